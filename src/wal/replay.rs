//! Reads the records of a recovered log again, to apply them: run by run, so that what is read is still cached when it is
//! decompressed.

use super::format::{RecordHead, SegmentHeader};
use super::plan::{Extent, Plan, RecordRef};
use super::repair::{RecoverError, io_error};
use super::segment::segment_name;
use crate::fs::{File, Fs, read_full_at};
use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Records that lie closer to each other are read at once, up to about so many bytes.
const RUN: u64 = 256 << 10;
/// Bytes between two records of a run, at most: more are not worth reading.
const BETWEEN: u64 = 16 << 10;

/// Is something of these lines to be applied: of this stream, up to this seq? Asked by several threads.
pub type IsNeeded<'a> = dyn Fn(u64, u64) -> bool + Sync + 'a;

/// Which records of a segment are read again.
pub(super) enum Which<'a> {
    /// Those that were carried.
    Carried(&'a [RecordRef]),
    /// Those that count, if this holds for one of their rows.
    Needed(&'a IsNeeded<'a>),
}

/// The Entries records of a segment that are applied, all sound when the log was recovered.
pub struct ReplaySegment {
    /// Number.
    pub number: u64,
    /// Bytes of the file.
    pub file_len: u64,
    file: Arc<dyn File>,
    path: PathBuf,
    header: SegmentHeader,
    /// In LSN order.
    extents: Arc<[Extent]>,
    /// Records from this LSN on are applied only if they are in the tail.
    end: u64,
    /// Offsets of the records of the log's tail.
    tail: HashSet<u64>,
}

impl ReplaySegment {
    /// `None` if the segment has no sound header, and so no records.
    pub(super) fn open(
        fs: &dyn Fs,
        dir: &Path,
        plan: &Plan,
        number: u64,
        which: Which<'_>,
    ) -> Result<Option<Self>, RecoverError> {
        let Some(entries) = plan.entries.get(&number) else { return Ok(None) };
        let path = dir.join(segment_name(number));
        let file = fs.open(&path, false).map_err(io_error("open", &path))?;
        let file_len = file.len().map_err(io_error("size of", &path))?;
        let listed = plan.replay.iter().find(|(n, _)| *n == number);
        let counting = listed.map_or(0, |(_, end)| (*end).min(plan.durable_lsn));
        let (extents, end) = match which {
            Which::Carried(records) => {
                (records.iter().filter_map(|r| Extent::new(r.offset, r.head.len)).collect(), u64::MAX)
            }
            Which::Needed(is_needed) => (entries.needed(is_needed), counting),
        };
        let tail = plan.tail.iter().filter(|r| r.segment == number).map(|r| r.offset).collect();
        Ok(Some(Self { number, file_len, file, path, header: entries.header, extents, end, tail }))
    }

    /// The records in runs: each is for one call of [`ReplaySegment::read`].
    pub fn runs(&self) -> Vec<Range<usize>> {
        let mut out: Vec<Range<usize>> = Vec::new();
        let mut begin = 0;
        let mut end = 0;
        for (n, extent) in self.extents.iter().enumerate() {
            let offset = u64::from(extent.offset);
            let is_near = offset >= end && offset - end <= BETWEEN && extent.end() - begin <= RUN;
            match out.last_mut() {
                Some(last) if is_near => last.end = n + 1,
                _ => {
                    out.push(n..n + 1);
                    begin = offset;
                }
            }
            end = extent.end();
        }
        out
    }

    /// Bytes of a run.
    pub fn len_of(&self, run: &Range<usize>) -> usize {
        self.span(run).map_or(0, |span| (span.end - span.start) as usize)
    }

    fn span(&self, run: &Range<usize>) -> Option<Range<u64>> {
        let extents = self.extents.get(run.clone())?;
        Some(u64::from(extents.first()?.offset)..extents.last()?.end())
    }

    /// Reads a run, and checks it as if it were new: the records to apply, in LSN order, each with its bytes.
    ///
    /// # Errors
    /// The file could not be read, or has other bytes than a moment ago.
    pub fn read<'b>(
        &self,
        run: &Range<usize>,
        buffer: &'b mut Vec<u8>,
    ) -> Result<Vec<(RecordRef, &'b [u8])>, RecoverError> {
        let Some(span) = self.span(run) else { return Ok(Vec::new()) };
        let len = (span.end - span.start) as usize;
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let (bytes, _) = buffer.split_at_mut(len);
        let read = read_full_at(&*self.file, span.start, bytes).map_err(io_error("read", &self.path))?;
        let bytes = &bytes[..read];
        let mut out = Vec::with_capacity(run.len());
        for extent in self.extents.get(run.clone()).unwrap_or_default() {
            let record = self.record(*extent, span.start, bytes);
            let (record, bytes) = record.ok_or_else(|| self.changed(extent.offset))?;
            if record.head.lsn < self.end || self.tail.contains(&record.offset) {
                out.push((record, bytes));
            }
        }
        Ok(out)
    }

    fn record<'b>(&self, extent: Extent, begin: u64, bytes: &'b [u8]) -> Option<(RecordRef, &'b [u8])> {
        let offset = u64::from(extent.offset);
        let at = (offset - begin) as usize;
        let bytes = bytes.get(at..at + extent.len as usize)?;
        let head = RecordHead::decode_at(bytes, offset, &self.header)?;
        let sound = head.len == extent.len && head.body_is_sound(bytes, 0);
        sound.then_some((RecordRef { segment: self.number, offset, head }, bytes))
    }

    fn changed(&self, offset: u32) -> RecoverError {
        RecoverError::Changed { path: self.path.display().to_string(), offset: offset.into() }
    }

    /// Hands all records on, with their bytes, in LSN order.
    ///
    /// # Errors
    /// As [`ReplaySegment::read`].
    pub fn records(&self, apply: &mut dyn FnMut(&RecordRef, &[u8])) -> Result<(), RecoverError> {
        let mut buffer = Vec::new();
        for run in self.runs() {
            self.read(&run, &mut buffer)?.iter().for_each(|(record, bytes)| apply(record, bytes));
        }
        Ok(())
    }
}
