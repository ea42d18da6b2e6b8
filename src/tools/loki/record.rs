//! The records of Loki's write-ahead log: series, entries, and the streams of a checkpoint.
//!
//! ```text
//! 1 | tenant | 1 | { u64 reference, uvarint labels, { name, value }* }*
//! 2, 4 or 5 | tenant | i64 base | { u64 reference, i64 counter (not in 2), uvarint entries,
//!     { varint time - base, line, uvarint pairs (only in 5), { name, value }* }* }*
//! 3 | protobuf: the stream with its chunks
//! ```
//! Fixed-width numbers are big-endian; texts have their length before them, as a uvarint.

use crate::codec::{Cursor, DecodeError};
use prost::Message;

/// Label names and values, as stored.
pub type Labels<'a> = Vec<(&'a [u8], &'a [u8])>;

/// A record.
pub enum Record<'a> {
    /// Definitions of streams of a tenant: what follows the tenant.
    Series(&'a [u8], Series<'a>),
    /// Entries of streams of a tenant.
    Entries(&'a [u8], Entries<'a>),
    /// A stream of a checkpoint.
    Checkpoint(Box<CheckpointSeries>),
}

/// Why a record does not decode.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Its fields.
    #[error("a record that does not decode: {0}")]
    Fields(#[from] DecodeError),
    /// Its kind.
    #[error("a record of kind {0}, which is not known")]
    Kind(u8),
    /// The protobuf message of a checkpoint.
    #[error("a stream of a checkpoint that does not decode: {0}")]
    Protobuf(#[from] prost::DecodeError),
}

/// # Errors
/// The beginning of the record does not decode; what is behind that shows when it is read.
pub fn decode(record: &[u8]) -> Result<Record<'_>, RecordError> {
    let mut cursor = Cursor::new(record);
    match cursor.u8()? {
        1 => {
            let tenant = prefixed(&mut cursor)?;
            match cursor.u8()? {
                1 => Ok(Record::Series(tenant, Series(cursor))),
                kind => Err(RecordError::Kind(kind)),
            }
        }
        3 => Ok(Record::Checkpoint(Box::new(CheckpointSeries::decode(record.get(1..).unwrap_or_default())?))),
        kind @ (2 | 4 | 5) => {
            let tenant = prefixed(&mut cursor)?;
            // A record without entries ends here.
            let base = if cursor.remaining() == 0 { 0 } else { i64::from_be_bytes(array(&mut cursor)?) };
            Ok(Record::Entries(tenant, Entries { cursor, kind, base }))
        }
        kind => Err(RecordError::Kind(kind)),
    }
}

fn prefixed<'a>(cursor: &mut Cursor<'a>) -> Result<&'a [u8], DecodeError> {
    let len = cursor.uvarint()?;
    cursor.bytes(usize::try_from(len).map_err(|_| DecodeError::Truncated)?)
}

fn array<const N: usize>(cursor: &mut Cursor<'_>) -> Result<[u8; N], DecodeError> {
    let bytes = cursor.bytes(N)?;
    bytes.try_into().map_err(|_| DecodeError::Truncated)
}

fn pairs<'a>(cursor: &mut Cursor<'a>) -> Result<Labels<'a>, DecodeError> {
    let mut pairs = Vec::new();
    for _ in 0..cursor.uvarint()? {
        pairs.push((prefixed(cursor)?, prefixed(cursor)?));
    }
    Ok(pairs)
}

/// The definitions of a series record, one after the other. Ends behind the first that does not decode.
pub struct Series<'a>(Cursor<'a>);

impl<'a> Iterator for Series<'a> {
    type Item = Result<(u64, Labels<'a>), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.remaining() == 0 {
            return None;
        }
        let mut next = || Ok((u64::from_be_bytes(array(&mut self.0)?), pairs(&mut self.0)?));
        let item = next();
        if item.is_err() {
            self.0 = Cursor::new(&[]);
        }
        Some(item)
    }
}

/// The streams of an entries record.
pub struct Entries<'a> {
    cursor: Cursor<'a>,
    kind: u8,
    base: i64,
}

/// An entry as stored.
pub struct StoredEntry<'a> {
    /// Nanoseconds since the Unix epoch.
    pub timestamp: i64,
    /// The line.
    pub line: &'a [u8],
    /// Structured metadata.
    pub metadata: Labels<'a>,
}

impl<'a> Entries<'a> {
    /// Hands each entry on with the reference of its stream.
    ///
    /// # Errors
    /// An entry does not decode; those before it were handed on. Or `each` failed.
    pub fn each<E: From<DecodeError>>(
        mut self,
        each: &mut dyn FnMut(u64, StoredEntry<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        let cursor = &mut self.cursor;
        while cursor.remaining() > 0 {
            let reference = u64::from_be_bytes(array(cursor)?);
            if self.kind != 2 {
                // How many entries the stream had in memory: Loki's own mark for duplicates, which loses lines that were
                // logged out of turn.
                cursor.bytes(8)?;
            }
            for _ in 0..cursor.uvarint()? {
                let timestamp = self.base.wrapping_add(cursor.varint()?);
                let line = prefixed(cursor)?;
                let metadata = if self.kind == 5 { pairs(cursor)? } else { Vec::new() };
                each(reference, StoredEntry { timestamp, line, metadata })?;
            }
        }
        Ok(())
    }
}

/// A stream of a checkpoint, with all chunks that were in memory. Times and counters are left out.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckpointSeries {
    /// Tenant.
    #[prost(string, tag = "1")]
    pub tenant: String,
    /// By this number entries name the stream.
    #[prost(uint64, tag = "2")]
    pub reference: u64,
    /// Labels.
    #[prost(message, repeated, tag = "3")]
    pub labels: Vec<LabelPair>,
    /// Chunks, oldest first.
    #[prost(message, repeated, tag = "4")]
    pub chunks: Vec<CheckpointChunk>,
}

/// A label.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct LabelPair {
    /// Name.
    #[prost(bytes = "vec", tag = "1")]
    pub name: Vec<u8>,
    /// Value.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// A chunk of a checkpoint.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct CheckpointChunk {
    /// Its blocks, in Loki's chunk format but for the symbols, which are not compressed.
    #[prost(bytes = "vec", tag = "7")]
    pub data: Vec<u8>,
    /// Entries that are in no block yet.
    #[prost(bytes = "vec", tag = "8")]
    pub head: Vec<u8>,
}
