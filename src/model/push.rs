use super::{Agent, LabelSet};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a push's arena. Offsets fit 32 bits because a decoded push is at most 256 MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Span {
    /// First byte in the arena.
    pub start: u32,
    /// Number of bytes.
    pub len: u32,
}

impl Span {
    /// The span of `range` in an arena.
    pub fn new(start: usize, len: usize) -> Self {
        debug_assert!(start <= u32::MAX as usize && len <= u32::MAX as usize);
        Self { start: start as u32, len: len as u32 }
    }

    /// The span's bytes. A span is only made for the arena that it is used with, so this is in bounds.
    pub fn of(self, arena: &[u8]) -> &[u8] {
        let start = self.start as usize;
        &arena[start..start + self.len as usize]
    }
}

/// One pushed entry; its bytes lie in the arena of the push.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Nanoseconds since the Unix epoch.
    pub timestamp: i64,
    /// The line.
    pub line: Span,
    /// Indices of its structured metadata in the push's `metadata`.
    pub metadata: Range<u32>,
}

/// One pair of structured metadata.
#[derive(Clone, Copy, Debug, Default)]
pub struct MetadataPair {
    /// Name.
    pub name: Span,
    /// Value.
    pub value: Span,
}

/// A decoded push before validation: label texts as the client wrote them, entries in the client's order.
///
/// All strings live in one arena: the decompressed request itself for protobuf, unescaped strings for JSON. So a line
/// is copied once at most between the socket and the log.
#[derive(Debug, Default)]
pub struct PushRequest {
    /// Bytes that all spans point into.
    pub arena: Vec<u8>,
    /// Streams in the order of the request. The same labels may come more than once.
    pub streams: Vec<RawStream>,
    /// Entries of all streams.
    pub entries: Vec<Entry>,
    /// Structured metadata of all entries.
    pub metadata: Vec<MetadataPair>,
    /// Who sent it.
    pub agent: Agent,
}

/// A stream of a [`PushRequest`].
#[derive(Clone, Debug, Default)]
pub struct RawStream {
    /// The label text, such as `{job="app"}`. Decoders check that it is UTF-8.
    pub labels: Span,
    /// Indices of its entries.
    pub entries: Range<u32>,
}

/// A push after validation: only good entries, canonical labels, each stream once.
#[derive(Debug, Default)]
pub struct Push {
    /// Bytes that all spans point into.
    pub arena: Vec<u8>,
    /// Streams; no label set comes twice and none is without entries.
    pub streams: Vec<PushStream>,
    /// Entries of all streams; a stream's entries are contiguous and in the order of the request.
    pub entries: Vec<Entry>,
    /// Structured metadata of all entries.
    pub metadata: Vec<MetadataPair>,
    /// Who sent it.
    pub agent: Agent,
}

/// A stream of a [`Push`].
#[derive(Clone, Debug)]
pub struct PushStream {
    /// Canonical labels.
    pub labels: Arc<LabelSet>,
    /// Ring token: FNV-1 of the tenant and the label text.
    pub token: u32,
    /// Indices of its entries.
    pub entries: Range<u32>,
}

impl Push {
    /// The entries of a stream.
    pub fn entries_of(&self, stream: &PushStream) -> &[Entry] {
        &self.entries[stream.entries.start as usize..stream.entries.end as usize]
    }

    /// The metadata of an entry.
    pub fn metadata_of(&self, entry: &Entry) -> &[MetadataPair] {
        &self.metadata[entry.metadata.start as usize..entry.metadata.end as usize]
    }
}

impl PushRequest {
    /// Appends bytes to the arena.
    pub fn intern(&mut self, bytes: &[u8]) -> Span {
        let start = self.arena.len();
        self.arena.extend_from_slice(bytes);
        Span::new(start, bytes.len())
    }
}
