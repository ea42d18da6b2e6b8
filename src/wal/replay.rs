//! Reads the records of a recovered log again, to apply them: run by run, and of a large log a batch of runs ahead, so that the disk
//! reads while the processors work.

use super::format::{RecordHead, SegmentHeader};
use super::plan::{Extent, Plan, RecordRef};
use super::repair::{RecoverError, io_error};
use super::segment::segment_name;
use super::spread::spreading;
use crate::fs::{File, Fs, PageBuffer};
use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel, sync_channel};

/// Records that lie closer to each other are read at once, up to about so many bytes.
const RUN: u64 = 256 << 10;
/// Bytes between two records of a run, at most: more are not worth reading.
const BETWEEN: u64 = 16 << 10;
/// The same where each run waits for the disk: about what that reads in the time that it takes to answer.
const BETWEEN_UNCACHED: u64 = 128 << 10;
/// Runs are read in batches of about so many bytes: what was decompressed of them is mostly still cached when it is applied, and the
/// threads seldom wait for each other.
const BATCH: usize = 8 << 20;

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
    fs: Arc<dyn Fs>,
    path: PathBuf,
    /// It is read past the page cache.
    uncached: bool,
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
        fs: &Arc<dyn Fs>,
        dir: &Path,
        plan: &Plan,
        number: u64,
        which: Which<'_>,
        uncached: bool,
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
        Ok(Some(Self { number, file_len, fs: fs.clone(), path, uncached, header: entries.header, extents, end, tail }))
    }

    /// The records in runs, each to be read at once.
    fn runs(&self) -> Vec<Range<usize>> {
        let between = if self.uncached { BETWEEN_UNCACHED } else { BETWEEN };
        let mut out: Vec<Range<usize>> = Vec::new();
        let mut begin = 0;
        let mut end = 0;
        for (n, extent) in self.extents.iter().enumerate() {
            let offset = u64::from(extent.offset);
            let is_near = offset >= end && offset - end <= between && extent.end() - begin <= RUN;
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

    /// The runs in batches.
    fn batches(&self) -> Vec<Vec<Range<usize>>> {
        let mut out: Vec<Vec<Range<usize>>> = Vec::new();
        let mut bytes = BATCH;
        for run in self.runs() {
            bytes += self.len_of(&run);
            match out.last_mut() {
                Some(last) if bytes <= BATCH => last.push(run),
                _ => {
                    bytes = self.len_of(&run);
                    out.push(vec![run]);
                }
            }
        }
        out
    }

    /// Bytes of a run.
    fn len_of(&self, run: &Range<usize>) -> usize {
        self.span(run).map_or(0, |span| (span.end - span.start) as usize)
    }

    fn span(&self, run: &Range<usize>) -> Option<Range<u64>> {
        let extents = self.extents.get(run.clone())?;
        Some(u64::from(extents.first()?.offset)..extents.last()?.end())
    }

    fn file(&self) -> Result<Arc<dyn File>, RecoverError> {
        self.fs.open(&self.path, false).map_err(io_error("open", &self.path))
    }

    /// Reads a run from the file.
    fn fetch(&self, file: &dyn File, run: &Range<usize>, buffer: &mut PageBuffer) -> Result<(), RecoverError> {
        let span = self.span(run).unwrap_or_default();
        buffer.read(file, span, self.uncached).map(drop).map_err(io_error("read", &self.path))
    }

    /// Checks the bytes of a run as if they were new: the records to apply, in LSN order, each with its bytes.
    ///
    /// # Errors
    /// They are other bytes than a moment ago.
    fn check<'b>(&self, run: &Range<usize>, bytes: &'b [u8]) -> Result<Vec<(RecordRef, &'b [u8])>, RecoverError> {
        let begin = self.span(run).unwrap_or_default().start;
        let mut out = Vec::with_capacity(run.len());
        for extent in self.extents.get(run.clone()).unwrap_or_default() {
            let record = self.record(*extent, begin, bytes);
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
    /// The file could not be read, or has other bytes than a moment ago.
    pub fn records(&self, apply: &mut dyn FnMut(&RecordRef, &[u8])) -> Result<(), RecoverError> {
        let (file, mut buffer) = (self.file()?, PageBuffer::default());
        for run in self.runs() {
            self.fetch(&*file, &run, &mut buffer)?;
            self.check(&run, buffer.bytes())?.iter().for_each(|(record, bytes)| apply(record, bytes));
        }
        Ok(())
    }
}

/// Records that were read at once, and their bytes.
struct Run {
    extents: Range<usize>,
    buffer: PageBuffer,
}

/// A part of a segment that was read.
pub struct Batch {
    segment: Arc<ReplaySegment>,
    runs: Vec<Run>,
    /// Bytes of the segment's file if this is the end of it, else 0.
    pub done: u64,
}

impl Batch {
    /// Its runs: what one thread decompresses at a time.
    pub fn runs(&self) -> Range<usize> {
        0..self.runs.len()
    }

    /// The records of a run that are to be applied, in LSN order, each with its bytes.
    ///
    /// # Errors
    /// They are other bytes than a moment ago.
    pub fn records(&self, run: usize) -> Result<Vec<(RecordRef, &[u8])>, RecoverError> {
        self.runs.get(run).map_or(Ok(Vec::new()), |run| self.segment.check(&run.extents, run.buffer.bytes()))
    }
}

/// Hands these segments on, batch by batch. If they are `wide`, the next one is read while a batch is used.
pub(super) fn each_batch(
    segments: impl Iterator<Item = Result<ReplaySegment, RecoverError>> + Send,
    wide: bool,
    each: &mut dyn FnMut(&Batch) -> Result<(), RecoverError>,
) -> Result<(), RecoverError> {
    /// Runs that are read at a time: each waits for the disk.
    const READERS: usize = 4;
    let (give_back, returned) = channel::<PageBuffer>();
    let mut use_up = |batch: Batch| {
        each(&batch)?;
        // There may be nothing left to read.
        batch.runs.into_iter().for_each(|run| drop(give_back.send(run.buffer)));
        Ok(())
    };
    if !wide {
        let mut used = Ok(());
        let hand_on = |batch| {
            used = use_up(batch);
            used.is_ok()
        };
        return read_batches(segments, 1, &returned, hand_on).and(used);
    }
    std::thread::scope(|scope| {
        // What is read waits here until the batch before it is used up.
        let (send, batches) = sync_channel(0);
        let reader = scope.spawn(move || read_batches(segments, READERS, &returned, |batch| send.send(batch).is_ok()));
        let used = batches.into_iter().try_for_each(use_up);
        // A panic while recovering must not pass as a shorter log.
        reader.join().unwrap_or_else(|_| std::process::abort()).and(used)
    })
}

/// A run to be read, of whichever segment.
struct ToRead {
    segment: Arc<ReplaySegment>,
    extents: Range<usize>,
    buffer: PageBuffer,
}

impl ToRead {
    /// Reads it from the file of its segment: the one that was used last, if it is that. Each reader opens it for itself: to read past the
    /// page cache is a flag of what was opened.
    fn read(self, file: &mut Option<(u64, Arc<dyn File>)>) -> Result<Run, RecoverError> {
        let Self { segment, extents, mut buffer } = self;
        let (_, file) = match file.take_if(|(number, _)| *number == segment.number) {
            Some(same) => file.insert(same),
            None => file.insert((segment.number, segment.file()?)),
        };
        segment.fetch(&**file, &extents, &mut buffer)?;
        Ok(Run { extents, buffer })
    }
}

/// Reads the segments, as long as `hand_on` wants more.
fn read_batches(
    segments: impl Iterator<Item = Result<ReplaySegment, RecoverError>>,
    readers: usize,
    returned: &Receiver<PageBuffer>,
    mut hand_on: impl FnMut(Batch) -> bool,
) -> Result<(), RecoverError> {
    let mut spare: Vec<PageBuffer> = Vec::new();
    spreading(
        readers,
        || None,
        |file, run: ToRead| run.read(file),
        |spread| {
            for segment in segments {
                let segment = Arc::new(segment?);
                let mut batches = segment.batches().into_iter().peekable();
                loop {
                    let runs = batches.next().unwrap_or_default();
                    // The last first, and no more than are wanted: each grows to the largest run that it has held.
                    spare.extend(returned.try_iter());
                    let buffer = |extents| (extents, spare.pop().unwrap_or_default());
                    let to_read = |(extents, buffer)| ToRead { segment: segment.clone(), extents, buffer };
                    let runs: Vec<ToRead> = runs.into_iter().map(buffer).map(to_read).collect();
                    spare.truncate(runs.len());
                    let runs = spread(runs, &mut |_| {}).into_iter().collect::<Result<_, _>>()?;
                    let is_last = batches.peek().is_none();
                    let done = if is_last { segment.file_len } else { 0 };
                    if !hand_on(Batch { segment: segment.clone(), runs, done }) {
                        return Ok(());
                    }
                    if is_last {
                        break;
                    }
                }
            }
            Ok(())
        },
    )
}
