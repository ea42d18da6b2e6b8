//! Recovery: reads what the disk holds, plans, replays, writes the unsettled tail again. The only part of the log that
//! changes what an earlier process wrote, and it only adds a segment or removes one that holds nothing that counts.

use super::blocks::{Ahead, AheadReader, BlockLog, BlockSink, BlockStore, FoundBlocks, RecoveredBlocks, Suspect};
use super::by_id::ById;
use super::format::{FIRST_GROUP, HeaderError, Kind, LogKind, RecordHead};
use super::plan::{Plan, RecordRef, SoFar, Summary, Summing, plan, plan_with};
use super::ranges::Ranges;
use super::record::{
    Beginning, BlocksSynced, BodyError, ChunkClosed, ChunkFlushed, Gap, Open, SeriesDef, TableRow, Tables,
    decode_control, encode_control,
};
use super::replay::{Batch, IsNeeded, ReplaySegment, Which, each_batch};
use super::retention::{Contents, Hold};
use super::scan::{Window, read_group, read_groups, read_start, scan_segment};
use super::segment::{Prepared, file_number, segment_name, segment_number};
use super::spread::{beside, drop_aside, spread, workers, yielding};
use super::supply::Supply;
use super::survivors::{LostBlock, LostSegments, Survivors, block_seqs, held_by};
use super::writer::{Decision, LogError, Sink, Start, TailRecord, Wal, WalOptions, Writer};
use crate::fs::{DirEntry, File, read_full_at};
use crate::planted::{Bug, is};
use ahash::{AHashMap, AHashSet};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io;
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::Instant;

/// Why the log was not recovered. Nothing was changed on disk unless the text says so.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The disk failed.
    #[error("{what} {path}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: String,
        /// The system's error.
        error: io::Error,
    },
    /// A segment of a newer format.
    #[error("segment {0}: {1}")]
    Version(String, HeaderError),
    /// A segment with records of a newer format.
    #[error(
        "segment {0} holds records of type {1}, which this program does not know: use the newer program that wrote it"
    )]
    Kind(String, u8),
    /// A segment of another data directory.
    #[error(
        "segment {0} belongs to another volume ({1}, this directory is {2}): move it away, or restore the identity file"
    )]
    Foreign(String, uuid::Uuid, uuid::Uuid),
    /// The tail could not be written again.
    #[error("the end of the log could not be made durable: {0}. Free space on its disk and start again")]
    Tail(String),
    /// A record was sound, and a moment later it was not.
    #[error(
        "{path} at {offset}: the bytes are not those that were read a moment ago. The disk or the memory is failing, or another \
         process writes to the file: find out which, and start again"
    )]
    Changed {
        /// The file.
        path: String,
        /// Where the record begins.
        offset: u64,
    },
}

/// The state of the log on disk, read and planned; nothing is changed yet.
pub struct Recovered {
    options: WalOptions,
    blocks: RecoveredBlocks,
    lost_blocks: Vec<LostBlock>,
    lost_segments: LostSegments,
    /// What was found and what will be done.
    pub plan: Plan,
    /// Bytes of segments that hold something.
    pub bytes: u64,
    /// Segments that hold something.
    pub segments: usize,
    /// What is read again is not in the page cache.
    uncached: bool,
}

/// What the metadata of a block segment counts for in the progress, in bytes of the write-ahead log.
const FOOTER_WEIGHT: u64 = 1 << 20;

/// From so many bytes on, segments are read by several threads.
pub(super) const WIDE: u64 = 32 << 20;

/// Reads all segments and plans. `progress` gets bytes done and bytes in all.
///
/// # Errors
/// A file could not be read, or belongs to a newer format or to another volume.
pub fn recover(options: WalOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<Recovered, RecoverError> {
    recover_doubting(options, &[], progress)
}

/// As [`recover`], with blocks that reads have found damaged: a start reads no block that a footer lists, but these. What is
/// damaged indeed does not count, so that its lines are replayed where the write-ahead log still has them.
///
/// # Errors
/// As [`recover`].
pub fn recover_doubting(
    options: WalOptions,
    suspects: &[Suspect],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Recovered, RecoverError> {
    recover_ahead(options, suspects, progress, |_| ()).map(|(recovered, ())| recovered)
}

/// As [`recover_doubting`]; `aside` gets what the block log tells before most of the log is read, and runs beside its reading if that takes
/// long. What it makes of it holds if [`FoundBlocks::is_as_ahead`], as far as the plan does not say otherwise.
///
/// # Errors
/// As [`recover`].
pub fn recover_ahead<A: Send>(
    options: WalOptions,
    suspects: &[Suspect],
    progress: &mut dyn FnMut(u64, u64),
    aside: impl FnOnce(&Ahead<'_>) -> A + Send,
) -> Result<(Recovered, A), RecoverError> {
    let list = options.fs.list(&options.dir).map_err(io_error("list", &options.dir))?;
    let given_up: Vec<Summary> = list.iter().filter_map(given_up).map(Summary::given_up).collect();
    let mut numbers: Vec<(u64, u64)> = list.iter().filter_map(|e| Some((segment_number(&e.name)?, e.len))).collect();
    // The newest first: its definitions of streams know the most.
    numbers.sort_unstable_by_key(|(number, _)| Reverse(*number));
    let log: u64 = numbers.iter().map(|(_, len)| len).sum();
    let total = log + block_segments(&options) * FOOTER_WEIGHT;
    let mut bytes_done = 0;
    let (so_far, wide) = (SoFar::default(), log >= WIDE);
    let store = Arc::new(BlockStore::new(&options));
    let (newest, listed) = newest_open(&options, &numbers).map_or((0, Vec::new()), |open| open);
    let pace = Pace::new(newest, numbers.len());
    let work = |window: &mut Window, (number, len): (u64, u64)| {
        window.uncached = pace.spares_cache(number);
        let summary = summarize(&options, number, window, &so_far);
        pace.read(len);
        (len, summary)
    };
    let (footers_are_read, wait_for_footers) = channel::<()>();
    let (tell, news) = channel();
    let store = &store;
    let reader = &AheadReader::new(store, listed, wide);
    let ((ahead, made), planned) = beside(
        wide,
        move || {
            let finished = reader.read_finished();
            // Whoever reads the log waits for it.
            drop(footers_are_read);
            // Nothing is sent if no segment begins with an Open.
            let ahead = Ahead::new(store, finished, news.recv().unwrap_or_default());
            let made = if wide { yielding(|| aside(&ahead)) } else { aside(&ahead) };
            (ahead, made)
        },
        || {
            let mut done = |(len, _): &(u64, _)| {
                bytes_done += len;
                progress(bytes_done, total);
            };
            // Footers are small, and would wait for the disk behind megabytes of the log: only one segment is read beside them.
            let (beside_footers, later): (Vec<_>, Vec<_>) = numbers.into_iter().partition(|(n, _)| *n == newest);
            let mut read = spread(beside_footers, 1, Window::default, work, &mut done);
            let blocks = read.first().and_then(|(_, summary)| summary.as_ref().ok()?.blocks());
            // Who receives it waits for it.
            blocks.into_iter().for_each(|blocks| drop(tell.send(reader.read_new(&blocks))));
            drop(tell);
            if wide {
                // Nothing is sent: it ends when they are read.
                let _: Result<(), _> = wait_for_footers.recv();
            }
            read.extend(spread(later, workers(wide), Window::default, work, &mut done));
            plan_of(read, given_up)
        },
    );
    let (summaries, bytes, mut plan) = planned?;
    if is(Bug::StreamIdsAgain) {
        plan.next_stream_id = 1;
    }
    let blocks_dir = options.blocks.dir.clone();
    // Beside each other: each footer asks for all of its streams, and the definitions lie far apart.
    let mut next_seqs = ById::for_ids(plan.definitions.keys().copied());
    plan.definitions.iter().for_each(|(id, d)| next_seqs.insert(*id, d.next_seq));
    let known = |id: u64, next_seq: u64| next_seqs.get(id).is_some_and(|known| *known >= next_seq);
    let mut read = || {
        bytes_done = total.min(bytes_done + FOOTER_WEIGHT);
        progress(bytes_done, total);
    };
    let mut blocks = RecoveredBlocks::read(&options, &plan, &known, ahead, &mut read)
        .map_err(io_error("read the block log in", &blocks_dir))?;
    blocks.doubt(suspects);
    if plan.has_tail() && !blocks.found.definitions.is_empty() {
        // They may name streams of the tail, too.
        plan = plan_with(&summaries, &blocks.found.definitions);
    } else {
        blocks.found.definitions.iter().rev().for_each(|d| plan.define(d));
    }
    if !blocks.adopted.is_empty() {
        plan.skip_ids();
    }
    let (mut lost_blocks, mut lost_segments) = (Vec::new(), LostSegments::default());
    let found = &blocks.found;
    if !plan.loss.lsns.is_empty() || !found.damaged.is_empty() || !found.unseen.is_empty() {
        let mut reader = SegmentReader::new(&options);
        let mut survivors = Survivors::new(&plan);
        for (number, _) in &plan.replay {
            let file = reader.again(*number)?;
            let Ok(scan) = scan_segment(file) else { continue };
            survivors.segment(&plan, *number, &scan, file);
        }
        let held = held_by(&plan, found);
        survivors.settle(&mut plan.loss, &held);
        lost_blocks = survivors.lost_blocks(found, held);
        if !found.unseen.is_empty() {
            lost_segments = survivors.lost_segments(&plan, &block_seqs(found), &known_lost(&plan, found));
        }
    }
    let segments = summaries.iter().filter(|s| !s.is_empty()).count();
    if wide {
        drop_aside(summaries);
    }
    let uncached = pace.is_fast();
    Ok((Recovered { plan, blocks, lost_blocks, lost_segments, bytes, segments, uncached, options }, made))
}

/// Plans by what was read: a summary of each segment, or why there is none, with the bytes of its file.
fn plan_of(
    read: Vec<(u64, Result<Summary, RecoverError>)>,
    given_up: Vec<Summary>,
) -> Result<(Vec<Summary>, u64, Plan), RecoverError> {
    let (mut bytes, mut summaries) = (0, Vec::with_capacity(read.len()));
    for (len, summary) in read {
        let summary = summary?;
        bytes += if summary.is_empty() { 0 } else { len };
        summaries.push(summary);
    }
    summaries.extend(given_up);
    summaries.sort_by_key(|s| s.number);
    let plan = plan(&summaries);
    Ok((summaries, bytes, plan))
}

/// How fast the log is read, and so which segments are read past the page cache. What a start applies lies in the newest ones mostly,
/// which are read twice: a slow disk is to be spared that. Where it is fast, the pages that the system would have to find cost more.
struct Pace {
    /// Segments that are read again.
    again: RangeInclusive<u64>,
    began: Instant,
    /// Bytes that were read, and the microseconds until then.
    done: AtomicU64,
    took: AtomicU64,
}

impl Pace {
    /// Bytes a microsecond from which on a disk is fast, while footers are read beside: it reads what a start applies in less time than
    /// that is applied in.
    const FAST: u64 = 200;
    /// Fewer bytes tell nothing.
    const LEAST: u64 = 32 << 20;

    fn new(newest: u64, segments: usize) -> Self {
        let again = newest.saturating_sub(segments as u64 / 2)..=newest;
        Self { again, began: Instant::now(), done: AtomicU64::new(0), took: AtomicU64::new(0) }
    }

    fn read(&self, len: u64) {
        self.done.fetch_add(len, Ordering::Relaxed);
        self.took.store(self.began.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    fn is_fast(&self) -> bool {
        let (done, took) = (self.done.load(Ordering::Relaxed), self.took.load(Ordering::Relaxed));
        done >= Self::LEAST && done >= took.saturating_mul(Self::FAST)
    }

    fn spares_cache(&self, number: u64) -> bool {
        !self.again.contains(&number) || self.is_fast()
    }
}

/// Number of the newest segment with an Open, and what that lists of the block log. Who reads ahead by it checks each against the
/// plan: what cannot be read here is met again by who reads the whole.
fn newest_open(options: &WalOptions, newest_first: &[(u64, u64)]) -> Option<(u64, Vec<BlocksSynced>)> {
    let mut window = Window::default();
    let open = |(number, _): &(u64, u64)| -> Option<(u64, Vec<BlocksSynced>)> {
        let file = options.fs.open(&options.dir.join(segment_name(*number)), false).ok()?;
        let start = read_start(&*file, &mut window).ok()?.ok()?;
        let group = read_group(&*file, &mut window, &start, FIRST_GROUP).ok()??;
        let first = group.records.first().filter(|r| r.body_is_sound && r.head.known_kind() == Some(Kind::Open))?;
        let body = first.head.body(window.bytes(group.end).from(first.offset), 0);
        decode_control(&first.head, body).ok().map(|open: Open| (*number, open.blocks))
    };
    newest_first.iter().find_map(open)
}

/// Files of the block log; none before it is there.
fn block_segments(options: &WalOptions) -> u64 {
    let files = options.fs.list(&options.blocks.dir).unwrap_or_default();
    files.iter().filter(|e| file_number(LogKind::Blocks, &e.name).is_some()).count() as u64
}

/// Seqs of records and blocks that are damaged, and tell what they held.
fn known_lost(plan: &Plan, found: &FoundBlocks) -> Vec<(u64, Range<u64>)> {
    let records = plan.loss.streams.iter().map(|r| (r.stream, r.first_seq..r.end_seq()));
    let blocks = found.damaged.iter().map(|(_, _, t)| (t.stream, t.first_seq..t.end_seq));
    records.chain(blocks).collect()
}

/// Reads and sums up a segment: the bytes on the disk, not those of a page cache that an I/O error has left behind. What is
/// dirty is written first, then dropped.
fn summarize(options: &WalOptions, number: u64, window: &mut Window, so_far: &SoFar) -> Result<Summary, RecoverError> {
    let name = segment_name(number);
    let path = options.dir.join(&name);
    let file = options.fs.open(&path, false).map_err(io_error("open", &path))?;
    file.sync_data().map_err(io_error("sync", &path))?;
    file.drop_cache().map_err(io_error("drop the cache of", &path))?;
    if !window.uncached {
        file.will_be_read();
    }
    let start = match read_start(&*file, window).map_err(io_error("read", &path))? {
        Ok(start) if start.header.volume != options.volume => {
            return Err(RecoverError::Foreign(name, start.header.volume, options.volume));
        }
        Ok(start) => start,
        Err(e @ HeaderError::Version(_)) => return Err(RecoverError::Version(name, e)),
        Err(HeaderError::NotASegment | HeaderError::Damaged) => return Ok(Summary::unusable(number)),
    };
    let mut summing = match Summing::begin(number, &start.header, start.bad_header.clone(), so_far) {
        Ok(summing) => summing,
        Err(foreign) => return Ok(*foreign),
    };
    let groups = read_groups(&*file, window, &start, &mut |group, bytes| summing.group(&group, bytes));
    groups.map_err(io_error("read", &path))?;
    let summary = summing.end(start.missing);
    summary.unknown_kind.map_or(Ok(summary), |kind| Err(RecoverError::Kind(name, kind)))
}

/// Reads whole segments, one at a time, into the same buffer.
struct SegmentReader<'a> {
    options: &'a WalOptions,
    buffer: Vec<u8>,
}

impl<'a> SegmentReader<'a> {
    fn new(options: &'a WalOptions) -> Self {
        Self { options, buffer: Vec::new() }
    }

    /// The bytes again, after [`summarize`] in this process: what is cached came from the disk.
    fn again(&mut self, number: u64) -> Result<&[u8], RecoverError> {
        let path = self.options.dir.join(segment_name(number));
        let file = self.options.fs.open(&path, false).map_err(io_error("open", &path))?;
        self.read(&*file, &path)
    }

    fn read(&mut self, file: &dyn File, path: &Path) -> Result<&[u8], RecoverError> {
        let len = file.len().map_err(io_error("size of", path))?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if self.buffer.len() < len {
            // Zeroed by the allocator, which costs nothing for fresh pages; `resize` would write each byte.
            self.buffer = vec![0; len];
        }
        self.buffer.truncate(len);
        let read = read_full_at(file, 0, &mut self.buffer).map_err(io_error("read", path))?;
        self.buffer.truncate(read);
        Ok(&self.buffer)
    }
}

pub(super) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecoverError + use<> {
    let path = path.display().to_string();
    move |error| RecoverError::Io { what, path, error }
}

impl Recovered {
    pub(super) fn fs(&self) -> &dyn crate::fs::Fs {
        &*self.options.fs
    }

    pub(super) fn segment_path(&self, number: u64) -> std::path::PathBuf {
        self.options.dir.join(segment_name(number))
    }

    /// May seqs and stream ids have been given that nothing shows any more? Then none of the known ones goes on.
    pub fn has_forgotten(&self) -> bool {
        !self.plan.loss.lsns.is_empty() || self.plan.forgets || !self.blocks.adopted.is_empty()
    }

    /// The streams whose seqs go on where the known ones end, all of them if there is no answer. What was in a segment of the block
    /// log that is gone may come back with it, and may be more than is known of a stream without records in the write-ahead log.
    pub fn may_go_on(&self) -> Option<AHashSet<u64>> {
        let gone = !self.blocks.found.unseen.is_empty();
        gone.then(|| self.plan.contents.iter().flat_map(|c| c.streams.keys().copied()).collect())
    }

    /// What was found of the block log.
    pub fn blocks(&self) -> &FoundBlocks {
        &self.blocks.found
    }

    /// Blocks whose bytes were found damaged, and what is lost with each.
    pub fn lost_blocks(&self) -> &[LostBlock] {
        &self.lost_blocks
    }

    /// What is lost with segments of the block log that are gone.
    pub fn lost_segments(&self) -> &LostSegments {
        &self.lost_segments
    }

    /// Reads blocks.
    pub fn block_store(&self) -> &Arc<BlockStore> {
        self.blocks.store()
    }

    /// The records whose lines were carried here from segments that are gone, in LSN order. They are applied before those of
    /// [`Recovered::segment`]: entries with higher seqs may have smaller LSNs.
    pub fn carried(&self) -> impl Iterator<Item = Result<ReplaySegment, RecoverError>> {
        let by_segment = self.plan.carried.chunk_by(|a, b| a.segment == b.segment);
        let open =
            |records: &[RecordRef]| self.open_segment(records.first()?.segment, Which::Carried(records)).transpose();
        by_segment.filter_map(open)
    }

    /// The records of a segment of which `is_needed` holds for a row: a stream id, and the seq after its last line in the record. `None`
    /// if the segment has no sound header.
    ///
    /// # Errors
    /// The file could not be opened.
    pub fn segment(&self, number: u64, is_needed: &IsNeeded<'_>) -> Result<Option<ReplaySegment>, RecoverError> {
        self.open_segment(number, Which::Needed(is_needed))
    }

    fn open_segment(&self, number: u64, which: Which<'_>) -> Result<Option<ReplaySegment>, RecoverError> {
        ReplaySegment::open(&self.options.fs, &self.options.dir, &self.plan, number, which, self.uncached)
    }

    /// Hands segments on in batches of a few megabytes; while one is used, the next one is read, unless the log is small.
    ///
    /// # Errors
    /// A file could not be read, or what `each` returned.
    pub fn each_batch(
        &self,
        segments: impl Iterator<Item = Result<ReplaySegment, RecoverError>> + Send,
        each: &mut dyn FnMut(&Batch) -> Result<(), RecoverError>,
    ) -> Result<(), RecoverError> {
        each_batch(segments, self.bytes >= WIDE, each)
    }

    /// Hands the records of [`Recovered::carried`] on, with their bytes.
    ///
    /// # Errors
    /// A file could not be read.
    pub fn replay_carried(&self, apply: &mut dyn FnMut(&RecordRef, &[u8])) -> Result<(), RecoverError> {
        self.carried().try_for_each(|segment| segment?.records(apply))
    }

    /// Hands all records on, with their bytes, segment by segment, oldest first.
    ///
    /// # Errors
    /// A file could not be read.
    pub fn replay(&self, apply: &mut dyn FnMut(&RecordRef, &[u8])) -> Result<(), RecoverError> {
        for number in self.needed(|_| true) {
            self.segment(number, &|_, _| true)?.map_or(Ok(()), |segment| segment.records(apply))?;
        }
        Ok(())
    }

    /// Numbers of the segments for whose contents `is_needed` holds, and of those whose contents are unknown.
    pub fn needed(&self, is_needed: impl Fn(&Contents) -> bool) -> Vec<u64> {
        let contents = |number: &u64| self.plan.contents.iter().find(|c| c.begins.segment == *number);
        self.plan.replay.iter().map(|(n, _)| *n).filter(|n| contents(n).is_none_or(&is_needed)).collect()
    }

    /// Writes the tail again, removes what is left of unfinished segments, and opens the log for appending.
    ///
    /// # Errors
    /// The tail could not be made durable; nothing may be served then.
    pub fn open<P: Send + 'static, B: Send + 'static>(
        self,
        sink: impl Sink<P>,
        block_sink: impl BlockSink<B>,
    ) -> Result<(Arc<Wal<P>>, BlockLog<B>), RecoverError> {
        let queue_bytes = self.options.queue_bytes;
        let (mut writer, blocks, decisions) = self.write_tail(Supply::start, Vec::new())?;
        // Without space for it the next start finds the same again, which is no reason not to start.
        if let Err(error @ LogError::Fatal(_)) = decide(&mut writer, &decisions) {
            writer.supply.stop();
            return Err(RecoverError::Tail(error.to_string()));
        }
        let blocks_dir = blocks.store().dir().to_path_buf();
        let block_writer = blocks.open().map_err(io_error("open the block log in", &blocks_dir))?;
        let wal = Arc::new(Wal::start(writer, sink, queue_bytes));
        let block_log = BlockLog::start(block_writer, wal.clone(), block_sink);
        Ok((wal, block_log))
    }

    /// Does to the disk what [`Recovered::open`] does to it, and defines the streams of [`Recovered::unattributed`] lines that are
    /// `attached`. Nothing is prepared ahead, and nothing is left running.
    ///
    /// # Errors
    /// Something could not be written or removed. The next start, or the next call, does what is left.
    pub fn settle(self, attached: Vec<SeriesDef>) -> Result<(), RecoverError> {
        self.options.next_stream_id.fetch_max(self.plan.next_stream_id, Ordering::SeqCst);
        let (mut writer, blocks, decisions) = self.write_tail(Supply::on_demand, attached)?;
        let settled = decide(&mut writer, &decisions).and_then(|()| writer.finish());
        settled.map_err(|e| RecoverError::Tail(e.to_string()))?;
        let blocks_dir = blocks.store().dir().to_path_buf();
        blocks.open().map(drop).map_err(io_error("open the block log in", &blocks_dir))
    }

    /// Removes what does not count of the write-ahead log, and writes the tail again, with these definitions. What is still to be
    /// decided is handed on.
    fn write_tail(
        self,
        supply: impl FnOnce(&WalOptions, u64, Vec<Prepared>) -> Arc<Supply>,
        mut definitions: Vec<SeriesDef>,
    ) -> Result<(Writer, RecoveredBlocks, Vec<Decision>), RecoverError> {
        let Self { options, mut plan, mut blocks, .. } = self;
        let tail = tail_records(&options, &plan)?;
        let (prepared, next_segment) = take_stock(&options, &plan)?;
        let start = Start {
            next_lsn: plan.durable_lsn,
            lines: plan.lines,
            first_live: Beginning { segment: plan.first_live_segment, lsn: plan.first_lsn, lines: plan.first_lines },
            previous: plan.previous,
            supply: supply(&options, next_segment, prepared),
            contents: std::mem::take(&mut plan.contents),
            blocks: std::mem::take(&mut plan.blocks),
        };
        let mut writer = Writer::new(options, start);
        let is_needed = !tail.is_empty() && !is(Bug::TailNotRewritten);
        if is_needed || !definitions.is_empty() {
            let mut first_seqs: BTreeMap<u64, u64> = BTreeMap::new();
            for row in tail.iter().flat_map(TailRecord::rows) {
                let first = first_seqs.entry(row.stream).or_insert(row.first_seq);
                *first = row.first_seq.min(*first);
            }
            let defined = first_seqs.iter().filter_map(|(id, seq)| Some((plan.definitions.get(id)?, *seq)));
            definitions.extend(defined.map(|(d, next_seq)| SeriesDef { next_seq, ..SeriesDef::clone(d) }));
            if let Err(error) = writer.rewrite_tail(definitions, &tail) {
                writer.supply.stop();
                return Err(RecoverError::Tail(error.to_string()));
            }
        }
        // One group: that a loss is settled must not hide, at the next start, the segments that count because of it.
        let mut decisions: Vec<Decision> = blocks.adopted.iter().copied().map(Decision::BlocksSynced).collect();
        // Without LSNs it says that block segments may miss what a definition says of them: as long as it lies in the log, so do the
        // records with those lines.
        let settles = !plan.loss.lsns.is_empty() || plan.loss.missing_newest.is_some() || !blocks.adopted.is_empty();
        decisions.extend(settles.then(|| Decision::Gap(plan.loss.gap())));
        drop_aside((plan, std::mem::take(&mut blocks.found)));
        Ok((writer, blocks, decisions))
    }

    /// The streams that no definition names, and how many lines of theirs the logs have.
    ///
    /// # Errors
    /// A file could not be read.
    pub fn unattributed(&self) -> Result<Vec<Unattributed>, RecoverError> {
        let is_unknown = |id: u64| !self.plan.definitions.contains_key(&id);
        let mut found: BTreeMap<u64, Unattributed> = BTreeMap::new();
        let mut seqs: AHashMap<u64, Ranges> = AHashMap::new();
        // Without one of them in the tables of the log, its records need not be read.
        if self.plan.contents.iter().flat_map(|c| c.streams.keys()).any(|id| is_unknown(*id)) {
            self.replay(&mut |record, bytes| {
                let Ok(tables) = Tables::decode(record.head.tables(bytes, 0)) else { return };
                for row in tables.rows.iter().filter(|row| is_unknown(row.stream)) {
                    let stream = found.entry(row.stream).or_default();
                    stream.tenant = tables.tenant.to_string();
                    seqs.entry(row.stream).or_default().insert(row.first_seq..row.end_seq());
                }
            })?;
        }
        let unknown = self.blocks().listed().filter(|b| is_unknown(b.stream));
        for block in unknown.filter_map(|b| b.read()) {
            found.entry(block.tables.stream).or_default().block_lines += u64::from(block.tables.entries);
        }
        let with_seqs = |(id, stream): (u64, Unattributed)| {
            let seqs = seqs.get(&id).cloned().unwrap_or_default();
            let lines = seqs.iter().map(|r| r.end - r.start).sum();
            Unattributed { stream: id, lines, end_seq: seqs.end().unwrap_or(0), ..stream }
        };
        Ok(found.into_iter().map(with_seqs).collect())
    }
}

/// Lines of a stream that no definition names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unattributed {
    /// Stream id.
    pub stream: u64,
    /// Owner, as the records tell it; empty if there are none.
    pub tenant: String,
    /// Lines in records of the write-ahead log.
    pub lines: u64,
    /// The seq after the last of them.
    pub end_seq: u64,
    /// Lines in blocks.
    pub block_lines: u64,
}

fn decide(writer: &mut Writer, decisions: &[Decision]) -> Result<(), LogError> {
    if decisions.is_empty() { Ok(()) } else { writer.write_decisions(decisions) }
}

/// The records above the durable LSN; a Gap stands for each LSN between them that has no record, so that LSNs stay dense
/// and the next start does not find the hole again.
fn tail_records(options: &WalOptions, plan: &Plan) -> Result<Vec<TailRecord>, RecoverError> {
    let mut out = Vec::new();
    let mut expected = plan.durable_lsn;
    let mut reader = SegmentReader::new(options);
    let mut open = None;
    for r in &plan.tail {
        while expected < r.head.lsn {
            out.push(lost(expected, plan));
            expected += 1;
        }
        expected += 1;
        let file = if open == Some(r.segment) { &reader.buffer } else { reader.again(r.segment)? };
        open = Some(r.segment);
        let bytes = file.get(r.offset as usize..r.offset as usize + r.head.len as usize).unwrap_or_default().to_vec();
        // The scan has decoded the record before, else it were no part of the plan.
        let (rows, holds) = effects(r, file).unwrap_or_default();
        out.push(TailRecord::Kept { head: r.head, bytes, rows, holds });
    }
    Ok(out)
}

/// What a record keeps its segment for.
fn effects(r: &RecordRef, file: &[u8]) -> Result<(Vec<TableRow>, Vec<Hold>), BodyError> {
    let body = r.head.body(file, r.offset);
    Ok(match r.head.known_kind() {
        Some(Kind::Entries) => (Tables::decode(r.head.tables(file, r.offset))?.rows, Vec::new()),
        Some(Kind::ChunkClosed) => (Vec::new(), vec![Hold::Closed(decode_control::<ChunkClosed>(&r.head, body)?)]),
        Some(Kind::ChunkFlushed) => (Vec::new(), vec![Hold::Flushed(decode_control::<ChunkFlushed>(&r.head, body)?)]),
        _ => (Vec::new(), Vec::new()),
    })
}

fn lost(lsn: u64, plan: &Plan) -> TailRecord {
    let rows =
        plan.unresolved_rows.get(plan.unresolved_rows.partition_point(|(of, _)| *of < lsn)..).unwrap_or_default();
    let rows = rows.iter().take_while(|(of, _)| *of == lsn);
    let seqs = rows.map(|(_, r)| (r.stream, r.first_seq, r.first_seq.saturating_add(u64::from(r.count)))).collect();
    let (bytes, head): (Vec<u8>, RecordHead) =
        encode_control(Kind::Gap, &Gap { lsns: vec![(lsn, lsn + 1)], seqs, lines: 0 });
    TailRecord::Lost { bytes, head }
}

/// Keeps prepared segments for use, and removes those of another size, or that newer ones have overtaken. Returns the number
/// of the next one, too: behind all that hold something none is left out, or it would be missed.
fn take_stock(options: &WalOptions, plan: &Plan) -> Result<(Vec<Prepared>, u64), RecoverError> {
    let newest_used = plan.replay.last().map_or(0, |(number, _)| *number);
    let mut prepared = Vec::new();
    let mut removed = false;
    for number in &plan.retired {
        let path = options.dir.join(segment_name(*number));
        options.fs.remove(&path).map_err(io_error("remove", &path))?;
        removed = true;
    }
    let mut next = plan.last_segment + 1;
    // From the last on: should a crash keep some, none of them lies behind one that is gone.
    for header in plan.empty.iter().rev() {
        let path = options.dir.join(segment_name(header.number));
        if header.number > newest_used && header.file_len >= options.segment_size {
            let file = options.fs.open(&path, true).map_err(io_error("open", &path))?;
            prepared.push(Prepared { header: *header, file });
            continue;
        }
        options.fs.remove(&path).map_err(io_error("remove", &path))?;
        removed = true;
        if header.number > newest_used {
            options.fs.sync_dir(&options.dir).map_err(io_error("sync", &options.dir))?;
            next = if header.number + 1 == next { header.number } else { next };
        }
    }
    prepared.reverse();
    for entry in options.fs.list(&options.dir).map_err(io_error("list", &options.dir))? {
        if entry.name.ends_with(".wal.tmp") && given_up(&entry).is_none_or(|number| number <= newest_used) {
            let path = options.dir.join(&entry.name);
            options.fs.remove(&path).map_err(io_error("remove", &path))?;
            removed = true;
        }
    }
    if removed {
        options.fs.sync_dir(&options.dir).map_err(io_error("sync", &options.dir))?;
    }
    Ok((prepared, next))
}

/// The number that an empty file with a temporary name stands for.
fn given_up(entry: &DirEntry) -> Option<u64> {
    segment_number(entry.name.strip_suffix(".tmp")?).filter(|_| entry.len == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_fast_disk_is_read_past_the_page_cache_and_a_slow_one_is_not_read_twice() {
        let spared = |pace: &Pace| (1..=12).filter(|n| pace.spares_cache(*n)).collect::<Vec<_>>();
        let fast = Pace::new(10, 8);
        assert_eq!(spared(&fast), [1, 2, 3, 4, 5, 11, 12], "before anything is known");
        fast.read(31 << 20);
        assert_eq!(spared(&fast), [1, 2, 3, 4, 5, 11, 12], "too little to know");
        fast.read(1 << 40);
        assert_eq!(spared(&fast), (1..=12).collect::<Vec<_>>());
        let slow = Pace { began: Instant::now() - Duration::from_secs(1), ..Pace::new(10, 8) };
        slow.read(190_000_000);
        assert_eq!(spared(&slow), [1, 2, 3, 4, 5, 11, 12]);
        // Until the last read, not until now.
        let quick = Pace { began: Instant::now() - Duration::from_millis(500), ..Pace::new(10, 8) };
        quick.read(190_000_000);
        std::thread::sleep(Duration::from_millis(600));
        assert!(quick.is_fast());
    }
}
