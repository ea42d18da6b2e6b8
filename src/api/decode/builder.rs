use super::{DecodeLimits, Lease};
use crate::model::{Entry, MetadataPair, PushError, PushRequest, RawStream, Span};

/// Loki's bound of one stream's label text.
const MAX_STREAM_LABELS_SIZE: usize = 1 << 24;
/// What an entry or a stream counts besides its text, so that empty ones are not free.
const FIXED_COST: usize = 8;

/// Collects a [`PushRequest`] without its arena: counts what the push holds, and reserves before it allocates.
pub(super) struct Builder<'a> {
    pub(super) streams: Vec<RawStream>,
    pub(super) entries: Vec<Entry>,
    pub(super) metadata: Vec<MetadataPair>,
    size: usize,
    max_size: usize,
    pub(super) lease: &'a mut Lease,
}

/// A state to which a [`Builder`] can return when a later key of the request replaces an earlier one.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    streams: usize,
    entries: usize,
    metadata: usize,
    size: usize,
}

impl<'a> Builder<'a> {
    pub(super) fn new(limits: &DecodeLimits, lease: &'a mut Lease) -> Self {
        let max_size = limits.max_push_bytes;
        Self { streams: Vec::new(), entries: Vec::new(), metadata: Vec::new(), size: 0, max_size, lease }
    }

    pub(super) fn mark(&self) -> Mark {
        let (streams, entries, metadata) = (self.streams.len(), self.entries.len(), self.metadata.len());
        Mark { streams, entries, metadata, size: self.size }
    }

    pub(super) fn rewind(&mut self, mark: Mark) {
        self.streams.truncate(mark.streams);
        self.entries.truncate(mark.entries);
        self.metadata.truncate(mark.metadata);
        self.size = mark.size;
    }

    /// Ends a stream whose entries are those added since `mark`.
    pub(super) fn add_stream(&mut self, labels: Span, mark: Mark) -> Result<(), PushError> {
        let len = labels.len as usize;
        check_labels_size(len)?;
        self.count(len + FIXED_COST)?;
        let entries = mark.entries as u32..self.entries.len() as u32;
        Ok(self.lease.push(&mut self.streams, RawStream { labels, entries })?)
    }

    /// Ends an entry whose metadata are those added since there were `first_metadata`.
    #[inline]
    pub(super) fn add_entry(&mut self, timestamp: i64, line: Span, first_metadata: usize) -> Result<(), PushError> {
        self.count(line.len as usize + FIXED_COST)?;
        let metadata = first_metadata as u32..self.metadata.len() as u32;
        Ok(self.lease.push(&mut self.entries, Entry { timestamp, line, metadata })?)
    }

    pub(super) fn add_metadata(&mut self, pair: MetadataPair) -> Result<(), PushError> {
        self.count(pair.name.len as usize + pair.value.len as usize)?;
        Ok(self.lease.push(&mut self.metadata, pair)?)
    }

    pub(super) fn finish(self, arena: Vec<u8>) -> PushRequest {
        let Self { streams, entries, metadata, .. } = self;
        PushRequest { arena, streams, entries, metadata, ..PushRequest::default() }
    }

    #[inline]
    fn count(&mut self, bytes: usize) -> Result<(), PushError> {
        self.size += bytes;
        if self.size <= self.max_size { Ok(()) } else { Err(push_too_large(self.size, self.max_size)) }
    }
}

#[cold]
fn push_too_large(size: usize, limit: usize) -> PushError {
    PushError::too_large(format!(
        "request body too large: the push holds {size} bytes or more of labels, lines and metadata, and \
         max_push_bytes is {limit}; send smaller batches"
    ))
}

/// # Errors
/// 413 if one stream's label text is larger than Loki takes.
pub(super) fn check_labels_size(len: usize) -> Result<(), PushError> {
    if len <= MAX_STREAM_LABELS_SIZE {
        return Ok(());
    }
    Err(PushError::too_large(format!(
        "request body too large: stream labels size {len} exceeds limit of {MAX_STREAM_LABELS_SIZE}"
    )))
}
