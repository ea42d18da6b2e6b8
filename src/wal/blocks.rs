//! The block log: sealed blocks, in segments of their own with the same framing (`wal-format.md`, section 8).
//!
//! Its thread gathers blocks, writes them as one group, syncs, and logs [`BlocksSynced`] in the write-ahead log. Only then
//! does a block count: what lies behind the durable end is written over after a restart.

use super::by_id::ById;
use super::format::{
    FIRST_GROUP, GROUP_ALIGN, GROUP_HEADER_LEN, GroupHeader, HeaderError, Kind, LogKind, RECORD_HEAD_LEN, RecordHead,
    SegmentHeader,
};
use super::group::GroupBuilder;
use super::plan::Plan;
use super::record::{
    BlockSymbolsRef, BlockTables, BlocksSynced, BodyError, ChunkClosed, Footer, FooterParts, SeriesAt, SeriesDef,
    decode_control, decompress_body,
};
use super::repair::WIDE;
use super::scan::{self, Damage, GroupScan, Window, read_groups, read_start};
use super::segment::{self, Prepared};
use super::spread::{spread, workers};
use super::verdict::{Cost, Finding, Part, Place, verdict};
use super::writer::{Decision, LogError, StreamLog, Unavailable, Wal, WalOptions, spawn_critical};
use crate::codec::{align_up, crc32};
use crate::fs::{File, Fs, PageBuffer, read_full_at, write_all_at, write_all_uncached_at};
use crate::model::add_within;
use crate::planted::{Bug, is};
use ahash::AHashSet;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Blocks are gathered until there are so many bytes, or for so long: each sync of the block log competes with those of
/// pushes.
const GATHER_BYTES: usize = 2 << 20;
const GATHER_FOR: Duration = Duration::from_millis(100);
/// Most bytes of a group, unless it is a single block.
const MAX_GROUP: usize = 4 << 20;
/// Segments that are kept ready while one is needed. The last one is for what lets segments go.
const AHEAD: usize = 2;
/// After a failure for lack of space.
const RETRY: Duration = Duration::from_millis(250);

/// How the block log is set up.
#[derive(Clone, Debug)]
pub struct BlockLogOptions {
    /// Directory of the segments; on the file system of the write-ahead log.
    pub dir: PathBuf,
    /// Bytes of a segment.
    pub segment_size: u64,
    /// Bytes that all segments may take together.
    pub max_size: u64,
}

/// Where a block lies in the block log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BlockPlace {
    /// Number of the segment.
    pub segment: u64,
    /// Offset of its record.
    pub offset: u64,
    /// Bytes of its record.
    pub len: u32,
}

/// A block on its way to the block log.
pub struct BlockAppend<P> {
    /// What is known of it without its bytes.
    pub tables: BlockTables,
    /// Its bytes.
    pub data: Bytes,
    /// Its stream.
    pub stream: Arc<StreamLog>,
    /// Its chunk takes no more blocks.
    pub closes: Option<ChunkClosed>,
    /// It is a copy that lets its old segment go, so it may take the last prepared one.
    pub lets_go: bool,
    /// Handed back when the block counts.
    pub payload: P,
}

/// Takes blocks that count. Called on the block log's thread.
pub trait BlockSink<P>: Send + 'static {
    /// These are durable, and the write-ahead log says so.
    fn synced(&mut self, blocks: Vec<(BlockPlace, P)>);

    /// There is no space for blocks: [`BlockLog::starved`] says why until there is some.
    fn starved(&mut self) {}
}

/// The part of the write-ahead log that the block log needs.
pub trait Decide: Send + Sync + 'static {
    /// As [`Wal::decide`].
    ///
    /// # Errors
    /// As [`Wal::decide`].
    fn decide(&self, decisions: Vec<Decision>) -> Result<(), Unavailable>;
    /// As [`Wal::poison`].
    fn poison(&self, error: io::Error);
    /// Does a block let the write-ahead log give up segments, so that it may take the last prepared one of the block log?
    fn needs_cleaning(&self) -> bool;
}

impl<P: Send + 'static> Decide for Wal<P> {
    fn decide(&self, decisions: Vec<Decision>) -> Result<(), Unavailable> {
        Wal::decide(self, decisions)
    }

    fn poison(&self, error: io::Error) {
        Wal::poison(self, error);
    }

    fn needs_cleaning(&self) -> bool {
        self.retention().needs_cleaning()
    }
}

/// Why a block cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The disk failed, or the segment is gone.
    #[error("block segment {0}: {1}")]
    Io(u64, io::Error),
    /// The bytes are not those that were written.
    #[error("the block at segment {}, offset {} is damaged", .0.segment, .0.offset)]
    Damaged(BlockPlace),
}

/// The segments of the block log and their sizes; reads blocks.
pub struct BlockStore {
    fs: Arc<dyn Fs>,
    volume: Uuid,
    options: BlockLogOptions,
    segments: RwLock<BTreeMap<u64, Usage>>,
    /// Bytes of prepared segments.
    prepared: AtomicU64,
    /// Blocks that a read has found damaged, and those of them that nobody was told of yet. No more than there are blocks.
    damaged: Mutex<(HashSet<BlockPlace>, Vec<BlockPlace>)>,
}

/// What is known of one segment.
#[derive(Clone, Copy, Debug)]
struct Usage {
    header: SegmentHeader,
    /// Bytes of records that are needed.
    live: u64,
    /// Bytes of records at all.
    used: u64,
    /// Nothing is appended any more.
    finished: bool,
    /// Bytes before this offset are synced.
    end: u64,
}

impl BlockStore {
    pub(super) fn new(options: &WalOptions) -> Self {
        Self {
            fs: options.fs.clone(),
            volume: options.volume,
            options: options.blocks.clone(),
            segments: RwLock::default(),
            prepared: AtomicU64::default(),
            damaged: Mutex::default(),
        }
    }

    pub(super) fn path(&self, number: u64) -> PathBuf {
        self.options.dir.join(segment::file_name(LogKind::Blocks, number))
    }

    pub(super) fn fs(&self) -> &dyn Fs {
        &*self.fs
    }

    pub(super) fn dir(&self) -> &std::path::Path {
        &self.options.dir
    }

    /// Reads a block's bytes from the disk and verifies them.
    ///
    /// # Errors
    /// The disk fails, or the bytes are not those that were written.
    pub fn read(&self, place: BlockPlace) -> Result<Bytes, BlockError> {
        let gone = || BlockError::Io(place.segment, io::ErrorKind::NotFound.into());
        let header = self.segments.read().get(&place.segment).map(|s| s.header).ok_or_else(gone)?;
        let io = |e| BlockError::Io(place.segment, e);
        let file = self.fs.open(&self.path(place.segment), false).map_err(io)?;
        let mut record = vec![0; place.len as usize];
        let read = read_full_at(&*file, place.offset, &mut record).map_err(io)?;
        record.truncate(read);
        let head = RecordHead::decode_at(&record, place.offset, &header).filter(|h| h.len == place.len);
        let start = RECORD_HEAD_LEN + head.map_or(0, |h| h.tables_len as usize);
        let record = Bytes::from(record);
        match head {
            Some(head) if record.get(start..).is_some_and(|body| crc32(&[body]) == head.body_crc) => {
                Ok(record.slice(start..))
            }
            _ => {
                let mut damaged = self.damaged.lock();
                if damaged.0.insert(place) {
                    damaged.1.push(place);
                }
                Err(BlockError::Damaged(place))
            }
        }
    }

    /// Has a read found this block damaged?
    pub fn is_known_damaged(&self, place: BlockPlace) -> bool {
        self.damaged.lock().0.contains(&place)
    }

    /// Blocks that reads have found damaged since the last call.
    pub fn take_damaged(&self) -> Vec<BlockPlace> {
        std::mem::take(&mut self.damaged.lock().1)
    }

    /// Bytes of all segments, prepared ones included.
    pub fn size(&self) -> u64 {
        let used: u64 = self.segments.read().values().map(|s| s.header.file_len).sum();
        used + self.prepared.load(Ordering::Relaxed)
    }

    /// Numbers of all segments, oldest first, and up to where they are synced.
    pub fn ends(&self) -> Vec<(u64, u64)> {
        self.segments.read().iter().map(|(number, s)| (*number, s.end)).collect()
    }

    /// Segments, and bytes of the blocks that are needed.
    pub fn usage(&self) -> (usize, u64) {
        let segments = self.segments.read();
        (segments.len(), segments.values().map(|s| s.live).sum())
    }

    /// Is the log as large as it may be?
    pub fn is_full(&self) -> bool {
        self.size() > self.options.max_size
    }

    /// Bytes that all segments may take together.
    pub fn max_size(&self) -> u64 {
        self.options.max_size
    }

    /// Salt of a segment whose header is sound.
    pub(super) fn salt(&self, segment: u64) -> Option<u64> {
        self.segments.read().get(&segment).map(|s| s.header.salt)
    }

    /// Is this segment still there?
    pub fn holds(&self, segment: u64) -> bool {
        self.segments.read().contains_key(&segment)
    }

    /// Nothing needs this block any more.
    pub fn free(&self, place: BlockPlace) {
        if let Some(usage) = self.segments.write().get_mut(&place.segment) {
            usage.live = usage.live.saturating_sub(u64::from(place.len));
        }
    }

    /// Finished segments that hold nothing that is needed.
    pub fn dead(&self) -> Vec<u64> {
        let segments = self.segments.read();
        segments.iter().filter(|(_, s)| s.finished && s.live == 0).map(|(n, _)| *n).collect()
    }

    /// The finished segment with the fewest needed bytes, if they are under a quarter of it.
    pub fn sparse(&self, but: &HashSet<u64>) -> Option<u64> {
        let segments = self.segments.read();
        let sparse = |n: &u64, s: &Usage| s.finished && s.live > 0 && s.live < s.used / 4 && !but.contains(n);
        let sparse = segments.iter().filter(|(n, s)| sparse(n, s));
        sparse.min_by_key(|(_, s)| s.live).map(|(n, _)| *n)
    }

    /// Removes segments that a durable Retiring record has given up. One that stays is removed by the next start.
    ///
    /// # Errors
    /// The directory could not be synced.
    pub fn remove(&self, numbers: &[u64]) -> io::Result<()> {
        for number in numbers {
            self.segments.write().remove(number);
            match self.fs.remove(&self.path(*number)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        self.fs.sync_dir(&self.options.dir)
    }
}

/// The block log, open for appending. Stop it before the write-ahead log.
pub struct BlockLog<P: Send + 'static> {
    store: Arc<BlockStore>,
    queue: Arc<Queue<P>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Queue<P> {
    state: Mutex<QueueState<P>>,
    wake: Condvar,
    stopping: AtomicBool,
    /// Why there is no space for what waits.
    starved: Mutex<Option<String>>,
}

struct QueueState<P> {
    blocks: VecDeque<BlockAppend<P>>,
    bytes: usize,
    since: Option<Instant>,
}

impl<P: Send + 'static> BlockLog<P> {
    pub(super) fn start(writer: BlockWriter, wal: Arc<dyn Decide>, sink: impl BlockSink<P>) -> Self {
        let state = QueueState { blocks: VecDeque::new(), bytes: 0, since: None };
        let queue = Arc::new(Queue {
            state: Mutex::new(state),
            wake: Condvar::new(),
            stopping: AtomicBool::new(false),
            starved: Mutex::new(None),
        });
        let store = writer.store.clone();
        let run = Run { queue: queue.clone(), writer, wal, sink };
        let thread = spawn_critical("blocks", move || run.run());
        Self { store, queue, thread: Mutex::new(Some(thread)) }
    }

    /// Hands a block over; the sink gets it when it counts. Bounded by its callers: a block on its way
    /// is a head that still counts in the heads' budget, or lives in a segment that is mostly dead.
    pub fn append(&self, block: BlockAppend<P>) {
        let mut state = self.queue.state.lock();
        state.bytes += block.data.len();
        state.since.get_or_insert_with(Instant::now);
        state.blocks.push_back(block);
        drop(state);
        self.queue.wake.notify_one();
    }

    /// Why blocks cannot be written, as long as there is no space for them. It is looked for every 250 ms.
    pub fn starved(&self) -> Option<String> {
        self.queue.starved.lock().clone()
    }

    /// The segments.
    pub fn store(&self) -> &Arc<BlockStore> {
        &self.store
    }

    /// Ends the thread after the group that it is writing. Blocks that wait are dropped: their lines are in the
    /// write-ahead log.
    pub fn stop(&self) {
        self.queue.stopping.store(true, Ordering::Release);
        // Under the lock, so that the thread cannot miss it between its look and its sleep.
        drop(self.queue.state.lock());
        self.queue.wake.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            // A panic on the thread has ended the process already.
            let _ = thread.join();
        }
    }
}

impl<P: Send + 'static> Drop for BlockLog<P> {
    fn drop(&mut self) {
        self.stop();
    }
}

impl<P> Queue<P> {
    /// The next group; `None` to stop.
    fn next(&self) -> Option<Vec<BlockAppend<P>>> {
        let mut state = self.state.lock();
        loop {
            if self.stopping() {
                return None;
            }
            match state.since {
                None => self.wake.wait(&mut state),
                Some(since) => {
                    let left = GATHER_FOR.saturating_sub(since.elapsed());
                    if state.bytes >= GATHER_BYTES || left.is_zero() {
                        break;
                    }
                    self.wake.wait_for(&mut state, left);
                }
            }
        }
        let mut group = Vec::new();
        let mut bytes = 0;
        while let Some(block) = state.blocks.pop_front_if(|b| bytes == 0 || bytes + b.data.len() <= MAX_GROUP) {
            bytes += block.data.len();
            group.push(block);
        }
        state.bytes -= bytes;
        if state.blocks.is_empty() {
            state.since = None;
        }
        Some(group)
    }

    fn lets_go(&self) -> bool {
        self.state.lock().blocks.iter().any(|b| b.lets_go)
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Waits a while; returns whether to go on.
    fn pause(&self) -> bool {
        let mut state = self.state.lock();
        if !self.stopping() {
            self.wake.wait_for(&mut state, RETRY);
        }
        !self.stopping()
    }
}

struct Run<P, S> {
    queue: Arc<Queue<P>>,
    writer: BlockWriter,
    wal: Arc<dyn Decide>,
    sink: S,
}

impl<P: Send + 'static, S: BlockSink<P>> Run<P, S> {
    fn run(mut self) {
        while let Some(group) = self.queue.next() {
            let Some(places) = self.write(&group) else { return };
            let mut decisions: Vec<Decision> =
                self.writer.take_ends().into_iter().map(Decision::BlocksSynced).collect();
            decisions.extend(group.iter().filter_map(|b| b.closes).map(Decision::ChunkClosed));
            if !self.decide(&decisions) {
                return;
            }
            self.sink.synced(places.into_iter().zip(group.into_iter().map(|b| b.payload)).collect());
        }
    }

    /// Writes and syncs a group, for as long as it takes; `None` when there is no more use in it.
    fn write(&mut self, group: &[BlockAppend<P>]) -> Option<Vec<BlockPlace>> {
        loop {
            // What waits behind the group waits for it.
            let lets_go = group.iter().any(|b| b.lets_go) || self.queue.lets_go();
            let may_take_last = lets_go || self.wal.needs_cleaning();
            match self.writer.write(group, may_take_last) {
                Ok(places) => {
                    *self.queue.starved.lock() = None;
                    return Some(places);
                }
                Err(error @ (LogError::NoSpace(_) | LogError::Full(_))) => {
                    *self.queue.starved.lock() = Some(error.to_string());
                    self.sink.starved();
                    if !self.queue.pause() {
                        return None;
                    }
                }
                Err(LogError::Fatal(error)) => {
                    self.wal.poison(error);
                    return None;
                }
            }
        }
    }

    fn decide(&self, decisions: &[Decision]) -> bool {
        loop {
            match self.wal.decide(decisions.to_vec()) {
                Ok(()) => return true,
                Err(Unavailable::Stopped | Unavailable::Poisoned(_)) => return false,
                Err(_) if self.queue.pause() => {}
                Err(_) => return false,
            }
        }
    }
}

/// The segment that is being written.
struct Active {
    header: SegmentHeader,
    file: Arc<dyn File>,
    /// Where the next group goes.
    at: u64,
    footer: Footer,
    defined: AHashSet<u64>,
    /// Upper bound of the footer's group.
    footer_len: u64,
}

const FOOTER_BASE: u64 = 512;

impl Active {
    /// The segment in which an earlier process has left off at `at`.
    fn again(header: SegmentHeader, file: Arc<dyn File>, at: u64, footer: Footer) -> Self {
        let defined = footer.definitions.iter().map(|d| d.id).collect();
        let tables: u64 = footer.blocks.iter().map(|(_, _, t)| t.len() as u64 + 32).sum();
        let labels = |d: &SeriesDef| d.labels.iter().map(|(n, v)| n.len() + v.len() + 16).sum::<usize>();
        let definitions: usize = footer.definitions.iter().map(|d| labels(d) + d.tenant.len() + 64).sum();
        let footer_len = FOOTER_BASE + (tables + definitions as u64) * 7 / 6;
        Self { header, file, at, footer, defined, footer_len }
    }

    fn new(header: SegmentHeader, file: Arc<dyn File>) -> Self {
        Self {
            header,
            file,
            at: FIRST_GROUP,
            footer: Footer::default(),
            defined: AHashSet::new(),
            footer_len: FOOTER_BASE,
        }
    }
}

/// Everything that the block log's thread owns.
pub(super) struct BlockWriter {
    store: Arc<BlockStore>,
    active: Option<Active>,
    /// Prepared segments of the usual size, oldest first.
    ready: VecDeque<Prepared>,
    next_segment: u64,
    /// Durable ends that the write-ahead log does not know yet.
    ends: Vec<BlocksSynced>,
    buffer: Vec<u8>,
}

impl BlockWriter {
    fn take_ends(&mut self) -> Vec<BlocksSynced> {
        std::mem::take(&mut self.ends)
    }

    /// Writes blocks as one group behind the durable end and syncs them.
    fn write<P>(&mut self, group: &[BlockAppend<P>], may_take_last: bool) -> Result<Vec<BlockPlace>, LogError> {
        let tables: Vec<Vec<u8>> = group.iter().map(|b| b.tables.encode()).collect();
        let data = group.iter().map(|b| b.data.len());
        let bodies: u64 = data.zip(&tables).map(|(d, t)| (RECORD_HEAD_LEN + d + t.len() + 8) as u64).sum();
        let in_footer: u64 = tables.iter().map(|t| t.len() as u64 + 32).sum();
        let definitions: u64 = group.iter().map(|b| b.stream.definition_len() * 7 / 6 + 64).sum();
        let len = GROUP_HEADER_LEN as u64 + bodies + definitions;
        let footer = in_footer * 7 / 6 + definitions;
        self.make_room(align_up(len, GROUP_ALIGN), footer, may_take_last)?;
        let buffer = std::mem::take(&mut self.buffer);
        let Some(active) = &mut self.active else { return Err(LogError::NoSpace("no block segment".into())) };
        active.footer_len += footer;
        let mut builder = GroupBuilder::new(buffer, active.header, active.at, 0);
        let fresh = |b: &&BlockAppend<P>| !active.defined.contains(&b.stream.id);
        let mut new: BTreeMap<u64, _> = BTreeMap::new();
        for block in group.iter().filter(fresh) {
            let mut definition = block.stream.definition(block.tables.end_seq);
            definition.settled_seq = block.tables.first_seq;
            new.insert(block.stream.id, definition);
        }
        if !is(Bug::BlocksWithoutSeries) {
            builder.series(new.values().cloned());
        }
        let mut places = Vec::with_capacity(group.len());
        for (block, tables) in group.iter().zip(&tables) {
            let (segment, offset) = (active.header.number, builder.place());
            places.push(BlockPlace { segment, offset, len: builder.block(tables, &block.data) });
        }
        let built = builder.finish(0, 0);
        let written = write_all_uncached_at(&*active.file, active.at, &built.bytes);
        let end = active.at + built.bytes.len() as u64;
        self.buffer = built.bytes;
        if let Err(error) = written {
            // No byte is written to the segment again: it ends where it was durable.
            self.abandon();
            return Err(LogError::of_write(error));
        }
        if !is(Bug::BlockUnsynced) {
            active.file.sync_data().map_err(LogError::Fatal)?;
        }
        segment::in_place(&*active.file, &self.store.path(active.header.number)).map_err(LogError::Fatal)?;
        active.at = end;
        active.defined.extend(new.keys());
        if !is(Bug::BlocksWithoutSeries) {
            active.footer.definitions.extend(new.into_values());
        }
        let in_footer = places.iter().zip(tables).map(|(p, t)| (p.offset, p.len, t));
        active.footer.blocks.extend(in_footer);
        let synced = BlocksSynced { segment: active.header.number, end, footer: 0 };
        self.ends.retain(|e| e.segment != synced.segment);
        self.ends.push(synced);
        self.store.grew(synced.segment, places.iter().map(|p| u64::from(p.len)).sum(), end);
        Ok(places)
    }

    /// Makes sure that the active segment takes a group of `len` bytes and, later, a footer that grows by `footer`.
    fn make_room(&mut self, len: u64, footer: u64, may_take_last: bool) -> Result<(), LogError> {
        let fits = |a: &Active| a.at + len + align_up(a.footer_len + footer, GROUP_ALIGN) <= a.header.file_len;
        if !self.active.as_ref().is_some_and(fits) {
            self.finish()?;
            let groups = len + align_up(FOOTER_BASE + footer, GROUP_ALIGN);
            let usual = self.store.options.segment_size;
            let Prepared { header, file } = if FIRST_GROUP + groups <= usual {
                self.take(may_take_last)?
            } else {
                self.prepare(segment::len_for(groups))?
            };
            self.store.opened(header);
            self.active = Some(Active::new(header, file));
        }
        Ok(())
    }

    /// The next prepared segment. The last one is left for what lets segments go: on a full disk nothing else gives space back.
    fn take(&mut self, may_take_last: bool) -> Result<Prepared, LogError> {
        let failed = self.prepare_ahead(AHEAD).err();
        let taken = if self.ready.len() > usize::from(!may_take_last) { self.ready.pop_front() } else { None };
        self.tell_prepared();
        taken.ok_or_else(|| failed.unwrap_or_else(|| LogError::NoSpace("no block segment".into())))
    }

    /// Prepares segments until there are so many.
    fn prepare_ahead(&mut self, count: usize) -> Result<(), LogError> {
        while self.ready.len() < count {
            let prepared = self.prepare(self.store.options.segment_size)?;
            self.ready.push_back(prepared);
        }
        Ok(())
    }

    fn prepare(&mut self, len: u64) -> Result<Prepared, LogError> {
        let (fs, dir, number) = (&*self.store.fs, &self.store.options.dir, self.next_segment);
        let made = segment::prepare_blocks(fs, dir, self.store.volume, number, len);
        self.next_segment += 1;
        // Whatever failed, nothing that counts depends on the file: it is discarded, and tried again.
        made.map_err(|e| LogError::NoSpace(e.to_string()))
    }

    fn tell_prepared(&self) {
        let bytes = self.ready.iter().map(|p| p.header.file_len).sum();
        self.store.prepared.store(bytes, Ordering::Relaxed);
    }

    /// Writes the active segment's footer and leaves it.
    fn finish(&mut self) -> Result<(), LogError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        let mut builder = GroupBuilder::new(std::mem::take(&mut self.buffer), active.header, active.at, 0);
        builder.control(Kind::Footer, &active.footer);
        let built = builder.finish(0, 0);
        let footer = active.at;
        let end = footer + built.bytes.len() as u64;
        // The bound is generous; should it fail, the segment is scanned at each start, which is only slower.
        let fits = end <= active.header.file_len;
        let written = if fits { write_all_at(&*active.file, footer, &built.bytes) } else { Ok(()) };
        self.buffer = built.bytes;
        if written.is_ok() && fits {
            active.file.sync_data().map_err(LogError::Fatal)?;
            let synced = BlocksSynced { segment: active.header.number, end, footer };
            self.ends.retain(|e| e.segment != synced.segment);
            self.ends.push(synced);
            self.store.grew(synced.segment, 0, end);
        }
        self.abandon();
        written.map_err(LogError::of_write)
    }

    fn abandon(&mut self) {
        if let Some(active) = self.active.take() {
            self.store.finished(active.header.number);
        }
    }
}

impl BlockStore {
    fn opened(&self, header: SegmentHeader) {
        let usage = Usage { header, live: 0, used: 0, finished: false, end: FIRST_GROUP };
        self.segments.write().insert(header.number, usage);
    }

    fn grew(&self, number: u64, bytes: u64, end: u64) {
        if let Some(usage) = self.segments.write().get_mut(&number) {
            usage.live += bytes;
            usage.used += bytes;
            usage.end = end;
        }
    }

    fn finished(&self, number: u64) {
        if let Some(usage) = self.segments.write().get_mut(&number) {
            usage.finished = true;
        }
    }
}

/// A block that recovery found.
#[derive(Clone, Debug)]
pub struct FoundBlock<'a> {
    /// Where it lies.
    pub place: BlockPlace,
    /// What is known of it.
    pub tables: BlockTables<BlockSymbolsRef<'a>>,
}

/// A block that recovery found, with its tables as they lie in its record: there are millions, and most are looked at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListedBlock<'a> {
    /// Where it lies.
    pub place: BlockPlace,
    /// Its stream's id.
    pub stream: u64,
    tables: &'a [u8],
}

impl<'a> ListedBlock<'a> {
    /// What is known of it; `None` never, because it was decoded when it was listed.
    pub fn read(&self) -> Option<FoundBlock<'a>> {
        BlockTables::view(self.tables).ok().map(|tables| FoundBlock { place: self.place, tables })
    }

    /// Reads a little of it: in a loop that does nothing else, the processor waits for the memory of many at once.
    pub fn touch(&self) -> u8 {
        self.tables.iter().step_by(64).fold(0, |sum, byte| sum ^ byte)
    }
}

/// The sound blocks of one segment.
#[derive(Default)]
struct SegmentBlocks {
    number: u64,
    blocks: Vec<Listed>,
    /// Their tables, and whatever else was read with them.
    bytes: Vec<u8>,
}

struct Listed {
    offset: u64,
    stream: u64,
    /// Where its tables begin.
    at: usize,
    tables_len: u32,
    len: u32,
}

impl SegmentBlocks {
    /// Where the tables begin.
    fn tables_at(&self) -> usize {
        self.blocks.iter().map(|b| b.at).min().unwrap_or(self.bytes.len())
    }

    /// Lets go what lies before the tables.
    fn keep_tables(&mut self) {
        let begin = self.tables_at();
        drop(self.bytes.drain(..begin));
        self.bytes.shrink_to_fit();
        self.blocks.iter_mut().for_each(|block| block.at -= begin);
    }

    /// Takes in a block whose tables lie there in the bytes.
    fn list(&mut self, offset: u64, len: u32, tables: Range<usize>) -> Result<(), BodyError> {
        let stream = BlockTables::view(self.bytes.get(tables.clone()).unwrap_or_default())?.stream;
        let tables_len = u32::try_from(tables.len()).unwrap_or(u32::MAX);
        self.blocks.push(Listed { offset, stream, at: tables.start, tables_len, len });
        Ok(())
    }

    fn listed(&self, block: &Listed) -> ListedBlock<'_> {
        let Listed { offset, stream, at, tables_len, len } = *block;
        let tables = self.bytes.get(at..at + tables_len as usize).unwrap_or_default();
        ListedBlock { place: BlockPlace { segment: self.number, offset, len }, stream, tables }
    }

    /// Where the last one ends.
    fn end(&self) -> Option<u64> {
        self.blocks.iter().map(|b| b.offset + u64::from(b.len)).max()
    }
}

/// A block that a read has found damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Salt of its segment.
    pub salt: u64,
    /// Where it lies.
    pub place: BlockPlace,
}

/// What recovery found of the block log.
#[derive(Default)]
pub struct FoundBlocks {
    /// Sound blocks by segment, in the order of the log.
    blocks: Vec<SegmentBlocks>,
    /// Damage, by segment.
    pub damage: Vec<(u64, Damage)>,
    /// Blocks whose bytes are damaged: segment, place, and what they held, unless it is in another place.
    pub damaged: Vec<(u64, Range<u64>, BlockTables)>,
    /// Segments that hold, or held, blocks of which nothing tells.
    pub unseen: Vec<u64>,
    /// Bytes of all segments.
    pub bytes: u64,
    /// Definitions of streams.
    pub definitions: Vec<Arc<SeriesDef>>,
    /// [`Ahead`] told of the same segments, and of no others.
    pub is_as_ahead: bool,
}

impl FoundBlocks {
    /// Sound blocks, in the order of the log.
    pub fn listed(&self) -> impl Iterator<Item = ListedBlock<'_>> {
        self.blocks.iter().flat_map(|segment| segment.blocks.iter().map(|block| segment.listed(block)))
    }

    /// Those of these streams, in the order of the log.
    pub fn listed_of(&self, is_wanted: impl Fn(u64) -> bool + Sync) -> Vec<ListedBlock<'_>> {
        let of_segments = self.blocks.par_iter().map(|segment| {
            segment.blocks.iter().filter(|b| is_wanted(b.stream)).map(|block| segment.listed(block)).collect()
        });
        let listed: Vec<Vec<ListedBlock<'_>>> = of_segments.collect();
        listed.concat()
    }

    /// As [`FoundBlocks::listed`], with what is known of each.
    pub fn iter(&self) -> impl Iterator<Item = FoundBlock<'_>> {
        self.listed().filter_map(|block| block.read())
    }

    /// Number of sound blocks.
    pub fn len(&self) -> usize {
        self.blocks.iter().map(|segment| segment.blocks.len()).sum()
    }

    /// Is there no sound block?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes out those for which `is_damaged` holds.
    fn extract(&mut self, is_damaged: impl Fn(&ListedBlock<'_>) -> bool) -> Vec<(BlockPlace, BlockTables)> {
        let mut out = Vec::new();
        for segment in &mut self.blocks {
            let all = std::mem::take(&mut segment.blocks);
            let (damaged, sound) = all.into_iter().partition(|block| is_damaged(&segment.listed(block)));
            segment.blocks = sound;
            let damaged: Vec<Listed> = damaged;
            let tables = damaged.iter().map(|block| segment.listed(block));
            out.extend(tables.filter_map(|b| Some((b.place, BlockTables::decode(b.tables).ok()?))));
        }
        out
    }
}

/// The block log as recovery found it; nothing is changed on disk yet.
pub(super) struct RecoveredBlocks {
    store: Arc<BlockStore>,
    active: Option<Active>,
    next_segment: u64,
    /// Files that hold nothing that counts.
    unlisted: Vec<u64>,
    /// Segments that count as a whole, or further, than any record tells.
    pub adopted: Vec<BlocksSynced>,
    temporary: Vec<String>,
    pub found: FoundBlocks,
}

impl RecoveredBlocks {
    /// Reads the metadata of all live segments: footers where there are, else the whole segment up to its durable end.
    pub fn read(
        options: &WalOptions,
        plan: &Plan,
        known: &Known<'_>,
        ahead: Ahead<'_>,
        read: &mut dyn FnMut(),
    ) -> io::Result<Self> {
        let live = &plan.blocks;
        let entries = match options.fs.list(&options.blocks.dir) {
            // Older than the block log.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            listed => listed?,
        };
        let temporary = entries.iter().filter(|e| e.name.ends_with(".blk.tmp")).map(|e| e.name.clone()).collect();
        let mut files: Vec<u64> =
            entries.iter().filter_map(|e| segment::file_number(LogKind::Blocks, &e.name)).collect();
        files.sort_unstable();
        let newest = live.last().map(|b| b.segment);
        let next_segment = files.last().copied().max(newest).unwrap_or(0) + 1;
        let mut out = Self {
            store: ahead.store.clone(),
            active: None,
            next_segment,
            unlisted: Vec::new(),
            adopted: Vec::new(),
            temporary,
            found: FoundBlocks::default(),
        };
        let total: u64 = entries.iter().map(|e| e.len).sum();
        let store = out.store.clone();
        let told = |(synced, live): (BlocksSynced, &BlocksSynced)| Told {
            synced,
            end: live.end,
            ..Told::new(synced, Some(live.segment) == newest)
        };
        let mut to_read: Vec<Told> = plan.blocks_to_read().zip(live).map(told).collect();
        let (readings, definitions) = ahead.take(&to_read, known);
        out.found.is_as_ahead = readings.len() == to_read.len() && !plan.blocks_are_uncertain;
        let readings = Mutex::new(readings);
        let work = |buffer: &mut PageBuffer, told: Told| {
            let ahead = readings.lock().remove(&told.synced.segment);
            let read = || -> io::Result<Reading<'_>> {
                let mut reading = Reading::new(&store, told);
                if files.binary_search(&told.synced.segment).is_ok() {
                    reading.run(buffer)?;
                } else {
                    reading.judge(Part::Missing, 0..told.end, true);
                }
                Ok(reading)
            };
            let mut reading = ahead.map_or_else(read, Ok)?;
            reading.define(known);
            Ok(reading)
        };
        // The newest first: it has no footer yet, and is read as a whole.
        to_read.reverse();
        let readings: Vec<Reading<'_>> = spread(to_read, workers(total >= WIDE), PageBuffer::default, work, |_| read())
            .into_iter()
            .collect::<io::Result<_>>()?;
        out.found.definitions = definitions;
        readings.into_iter().rev().for_each(|reading| out.take(reading));
        for number in files.into_iter().filter(|n| !live.iter().any(|b| b.segment == *n)) {
            if plan.blocks_are_uncertain && !plan.retired_blocks.contains(&number) {
                // The record that names it may be lost. What it holds is sound where its checksums hold.
                let whole = BlocksSynced { segment: number, end: u64::MAX, footer: 0 };
                let mut reading = Reading::new(&store, Told { end: 0, ..Told::new(whole, false) });
                reading.run(&mut PageBuffer::default())?;
                reading.define(known);
                let holds_nothing = reading.found.is_empty();
                out.take(reading);
                // Without its header nothing can be proved, not even that it holds nothing.
                if holds_nothing && out.store.holds(number) {
                    out.unlisted.push(number);
                }
            } else {
                out.unlisted.push(number);
            }
        }
        Ok(out)
    }

    /// Reads blocks that a footer lists and that are said to be damaged: those that are, do not count.
    pub fn doubt(&mut self, suspects: &[Suspect]) {
        let suspected: HashSet<BlockPlace> =
            suspects.iter().filter(|s| self.store.salt(s.place.segment) == Some(s.salt)).map(|s| s.place).collect();
        if suspected.is_empty() {
            return;
        }
        let is_damaged = |b: &ListedBlock<'_>| {
            suspected.contains(&b.place) && matches!(self.store.read(b.place), Err(BlockError::Damaged(_)))
        };
        for (place, tables) in self.found.extract(is_damaged) {
            let bytes = place.offset..place.offset + u64::from(place.len);
            let part = Part::Record(Kind::Block);
            self.found.damage.push((place.segment, Damage { bytes: bytes.clone(), part }));
            self.found.damaged.push((place.segment, bytes, tables));
            self.store.free(place);
        }
    }

    fn take(&mut self, reading: Reading<'_>) {
        let Reading { told: Told { synced, end: told, .. }, found, opened, .. } = reading;
        let block_end = found.blocks.iter().filter_map(SegmentBlocks::end).max();
        let mut synced_end = told;
        if let Some(end) = block_end.filter(|end| *end > told) {
            let end = align_up(end, GROUP_ALIGN);
            synced_end = end;
            self.adopted.push(BlocksSynced { segment: synced.segment, end, footer: 0 });
        }
        self.found.blocks.extend(found.blocks);
        self.found.damage.extend(found.damage);
        self.found.damaged.extend(found.damaged);
        self.found.unseen.extend(found.unseen.last());
        self.found.definitions.extend(found.definitions);
        self.found.bytes += found.bytes;
        let Some(Opened { header, used, active }) = opened else { return };
        self.store.opened(header);
        self.store.grew(synced.segment, used, synced_end);
        match active {
            Some(active) => self.active = Some(active),
            None => self.store.finished(synced.segment),
        }
    }

    /// Removes what does not count, and makes the log ready for appending.
    pub fn open(self) -> io::Result<BlockWriter> {
        let (fs, dir) = (&*self.store.fs, &self.store.options.dir);
        // Prepared ones stay, so that a start on a full disk does not lose the last.
        let mut ready: VecDeque<Prepared> = self.unlisted.iter().filter_map(|n| self.prepared(*n)).collect();
        ready.truncate(AHEAD);
        let is_ready = |n: &&u64| ready.iter().any(|p| p.header.number == **n);
        let unlisted = self.unlisted.iter().filter(|n| !is_ready(n)).map(|n| segment::file_name(LogKind::Blocks, *n));
        let mut removed = false;
        for name in unlisted.chain(self.temporary) {
            fs.remove(&dir.join(name))?;
            removed = true;
        }
        if removed {
            fs.sync_dir(dir)?;
        }
        let writer = BlockWriter {
            active: self.active,
            ready,
            next_segment: self.next_segment,
            ends: Vec::new(),
            buffer: Vec::new(),
            store: self.store,
        };
        writer.tell_prepared();
        Ok(writer)
    }

    /// A segment behind all others that an earlier process has prepared and not used, if it is sound. What a torn first write has left
    /// in it is dead without its group header.
    fn prepared(&self, number: u64) -> Option<Prepared> {
        let read = || -> io::Result<Option<Prepared>> {
            let file = self.store.fs.open(&self.store.path(number), true)?;
            file.sync_data()?;
            file.drop_cache()?;
            let mut start = vec![0; FIRST_GROUP as usize + GROUP_HEADER_LEN];
            let whole = read_full_at(&*file, 0, &mut start)? == start.len();
            let Ok(header) = SegmentHeader::decode(&start) else { return Ok(None) };
            let (volume, len) = (self.store.volume, self.store.options.segment_size);
            let is_ours =
                (header.log, header.number, header.volume, header.file_len) == (LogKind::Blocks, number, volume, len);
            let is_unused = start.iter().skip(FIRST_GROUP as usize).all(|b| *b == 0);
            Ok((whole && is_ours && is_unused).then_some(Prepared { header, file }))
        };
        let is_behind = self.store.segments.read().keys().next_back().is_none_or(|newest| *newest < number);
        // What cannot be read is removed as the others are.
        if is_behind { read().ok().flatten() } else { None }
    }

    /// Reads blocks before the log is open.
    pub fn store(&self) -> &Arc<BlockStore> {
        &self.store
    }
}

/// Footers that are read before the plan is there, while the disk leaves the processors time, and the segment that has none yet: as an
/// Open, and then the whole newest segment of the write-ahead log, tell of them. If the plan tells otherwise all are read again.
pub struct Ahead<'a> {
    store: &'a Arc<BlockStore>,
    /// By number.
    readings: BTreeMap<u64, Reading<'a>>,
    /// For each stream the definition that knows the highest seq, of those in footers: in which segment, and where.
    highest: Vec<(u64, SeriesAt)>,
    /// None is missing.
    is_whole: bool,
}

/// Reads segments of the block log for [`Ahead`], by two threads at a time: one knows what an Open lists, the other what was written since.
pub(super) struct AheadReader<'a> {
    store: &'a Arc<BlockStore>,
    listed: Vec<BlocksSynced>,
    wide: bool,
    /// Bytes of definitions that are kept until the plan is there.
    kept: AtomicUsize,
    is_full: AtomicBool,
}

impl<'a> AheadReader<'a> {
    /// `listed` is what the newest Open lists.
    pub fn new(store: &'a Arc<BlockStore>, mut listed: Vec<BlocksSynced>, wide: bool) -> Self {
        listed.sort_unstable_by_key(|b| b.segment);
        Self { store, listed, wide, kept: AtomicUsize::new(0), is_full: AtomicBool::new(false) }
    }

    /// The segments of the Open that are finished: they stay as they are.
    fn finished(&self) -> Vec<Told> {
        self.listed.iter().filter(|b| b.footer > 0).map(|b| Told::new(*b, false)).collect()
    }

    /// Reads what else is live, as the newest segment of the write-ahead log tells.
    pub fn read_new(&self, live: &[BlocksSynced]) -> News<'a> {
        let newest = live.last().map(|b| b.segment);
        let live: Vec<Told> = live.iter().map(|b| Told::new(*b, Some(b.segment) == newest)).collect();
        let finished = self.finished();
        let new = live.iter().filter(|told| !told.is_among(&finished)).copied().collect();
        let readings = self.read(new, 1);
        News { live, readings }
    }

    /// Reads the footers of the others.
    pub fn read_finished(&self) -> Vec<Reading<'a>> {
        /// Footers are small: most of them wait for the disk.
        const WORKERS: usize = 12;
        self.read(self.finished(), if self.wide { WORKERS } else { 1 })
    }

    /// Those of the segments that are sound. What fails here is met again by who reads the rest.
    fn read(&self, segments: Vec<Told>, workers: usize) -> Vec<Reading<'a>> {
        /// Each segment defines its streams again.
        const DEFINITIONS: usize = 128 << 20;
        let work = |buffer: &mut PageBuffer, told: Told| {
            if self.is_full.load(Ordering::Relaxed) {
                return None;
            }
            let mut reading = Reading::new(self.store, told);
            reading.run_sound(buffer).ok()?;
            let definitions: usize = reading.found.blocks.iter().map(SegmentBlocks::tables_at).sum();
            if reading.is_sound() && add_within(&self.kept, definitions, DEFINITIONS).is_ok() {
                return Some(reading);
            }
            // Not read ahead for nothing, either.
            self.is_full.fetch_or(reading.is_sound(), Ordering::Relaxed);
            None
        };
        spread(segments, workers, PageBuffer::default, work, |_| {}).into_iter().flatten().collect()
    }
}

/// The live segments as the newest segment of the write-ahead log tells of them, oldest first, and those that no Open lists as they are.
#[derive(Default)]
pub(super) struct News<'a> {
    live: Vec<Told>,
    readings: Vec<Reading<'a>>,
}

/// What is told of a segment of the block log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    /// What is read: to the end of the file where nobody knows the synced end.
    synced: BlocksSynced,
    /// Synced for certain up to here; 0 in a segment that no record names.
    end: u64,
    /// No live one is newer: without a footer, the log goes on in it.
    newest: bool,
}

impl Told {
    fn new(synced: BlocksSynced, newest: bool) -> Self {
        // Where a footer is, it makes no difference which is the newest.
        Self { synced, end: synced.end, newest: newest && synced.footer == 0 }
    }

    /// Is the same among what is told of segments, which is in their order?
    fn is_among(&self, all: &[Self]) -> bool {
        let same = all.binary_search_by_key(&self.synced.segment, |told| told.synced.segment);
        same.is_ok_and(|at| all.get(at) == Some(self))
    }
}

impl<'a> Ahead<'a> {
    /// Those that are live of the segments that were read.
    pub(super) fn new(store: &'a Arc<BlockStore>, finished: Vec<Reading<'a>>, news: News<'a>) -> Self {
        let readings = finished.into_iter().chain(news.readings).filter(|r| r.told.is_among(&news.live));
        let readings: BTreeMap<u64, Reading<'a>> = readings.map(|r| (r.told.synced.segment, r)).collect();
        let is_whole = readings.len() == news.live.len();
        let mut out = Self { store, readings, highest: Vec::new(), is_whole };
        out.find_highest();
        out
    }

    fn find_highest(&mut self) {
        let all =
            || self.readings.values().rev().flat_map(|r| r.defined.iter().map(move |at| (r.told.synced.segment, at)));
        let mut places: ById<u32> = ById::for_ids(all().map(|(_, at)| at.id));
        let mut highest: Vec<(u64, SeriesAt)> = Vec::new();
        for (segment, at) in all() {
            match places.get(at.id).and_then(|place| highest.get_mut(*place as usize)) {
                Some(known) if known.1.next_seq >= at.next_seq => {}
                Some(known) => *known = (segment, at.clone()),
                None => {
                    places.insert(at.id, u32::try_from(highest.len()).unwrap_or(u32::MAX));
                    highest.push((segment, at.clone()));
                }
            }
        }
        self.highest = highest;
    }

    /// Is each live segment there?
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Reads the blocks.
    pub fn store(&self) -> &Arc<BlockStore> {
        self.store
    }

    /// The blocks that they list, in the order of the log.
    pub fn blocks(&self) -> impl Iterator<Item = ListedBlock<'_>> {
        self.readings.values().flat_map(|reading| reading.found.listed())
    }

    /// Number of these blocks.
    pub fn len(&self) -> usize {
        self.readings.values().map(|reading| reading.found.len()).sum()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The streams that they define, each as the definition does that knows the highest seq.
    pub fn definitions(&self) -> Vec<SeriesDef> {
        let mut out = self.decode(|_| true);
        let mut places = ById::for_ids(out.iter().map(|d| d.id));
        (0..).zip(&out).for_each(|(n, d): (usize, _)| places.insert(d.id, n));
        // Those of a segment without a footer.
        for definition in self.readings.values().flat_map(|r| &r.found.definitions) {
            match places.get(definition.id).and_then(|place| out.get_mut(*place)) {
                Some(known) if known.next_seq > definition.next_seq => {}
                Some(known) => *known = (**definition).clone(),
                None => {
                    places.insert(definition.id, out.len());
                    out.push((**definition).clone());
                }
            }
        }
        out
    }

    /// Those of footers that are wanted.
    fn decode(&self, is_wanted: impl Fn(&SeriesAt) -> bool + Sync) -> Vec<SeriesDef> {
        let decode = |(segment, at): &(u64, SeriesAt)| {
            let reading = self.readings.get(segment).filter(|_| is_wanted(at))?;
            at.decode(&reading.found.blocks.last()?.bytes).ok()
        };
        self.highest.par_iter().filter_map(decode).collect()
    }

    /// Of these segments those that were read, and the definitions in their footers that tell more than is known. Nothing if others were
    /// read: their definitions would count.
    fn take(mut self, told: &[Told], known: &Known<'_>) -> (BTreeMap<u64, Reading<'a>>, Vec<Arc<SeriesDef>>) {
        if !self.readings.values().all(|r| r.told.is_among(told)) {
            return (BTreeMap::new(), Vec::new());
        }
        let definitions = self.decode(|at| !known(at.id, at.next_seq)).into_iter().map(Arc::new).collect();
        self.readings.values_mut().for_each(|r| r.defined.clear());
        (self.readings, definitions)
    }
}

/// Does anything else tell of this next seq of a stream, or of a higher one?
type Known<'a> = dyn Fn(u64, u64) -> bool + Sync + 'a;

/// One segment of the block log on its way into [`FoundBlocks`].
pub(super) struct Reading<'a> {
    store: &'a BlockStore,
    told: Told,
    found: FoundBlocks,
    /// Definitions of the footer, which lie in the bytes of the blocks.
    defined: Vec<SeriesAt>,
    /// Nothing without a sound header.
    opened: Option<Opened>,
}

struct Opened {
    header: SegmentHeader,
    /// Bytes of its records.
    used: u64,
    /// The log goes on in it.
    active: Option<Active>,
}

impl<'a> Reading<'a> {
    fn new(store: &'a BlockStore, told: Told) -> Self {
        Self { store, told, found: FoundBlocks::default(), defined: Vec::new(), opened: None }
    }

    /// Has it been read without anything to report?
    fn is_sound(&self) -> bool {
        let FoundBlocks { damage, damaged, unseen, .. } = &self.found;
        self.opened.is_some() && damage.is_empty() && damaged.is_empty() && unseen.is_empty()
    }

    /// Takes in those definitions of the footer that tell more than is known: `known` says whether this next seq of a stream, or a
    /// higher one, is. Most are, and to decode them all would take longer than all else. Their bytes are let go.
    fn define(&mut self, known: &Known<'_>) {
        let Some(blocks) = self.found.blocks.last_mut() else { return };
        let fresh = std::mem::take(&mut self.defined).into_iter().filter(|d| !known(d.id, d.next_seq));
        self.found.definitions.extend(fresh.filter_map(|d| d.decode(&blocks.bytes).ok()).map(Arc::new));
        blocks.keep_tables();
    }

    /// Notes what does not hold, if it counts.
    fn judge(&mut self, part: Part, bytes: Range<u64>, elsewhere: bool) {
        let place = if bytes.start >= self.told.end { Place::Unnamed } else { Place::Durable };
        let judged = verdict(part, place, elsewhere, false);
        if judged.finding == Finding::Damage {
            // The head of a damaged block, or the footer, tells what it held.
            let is_listed = matches!(part, Part::Record(_));
            self.found.unseen.extend((judged.cost == Cost::Lines && !is_listed).then_some(self.told.synced.segment));
            self.found.damage.push((self.told.synced.segment, Damage { bytes, part }));
        }
    }

    fn run(&mut self, buffer: &mut PageBuffer) -> io::Result<()> {
        let Some((file, header)) = self.begin(buffer)? else { return Ok(()) };
        if self.told.synced.footer > 0 {
            if self.footer(&*file, &header, buffer)? {
                return Ok(());
            }
            self.judge(Part::Record(Kind::Footer), self.told.synced.footer..self.told.synced.end, false);
        }
        self.whole(file, header)
    }

    /// As [`Reading::run`], but it stops where something does not hold.
    fn run_sound(&mut self, buffer: &mut PageBuffer) -> io::Result<()> {
        match self.begin(buffer)? {
            Some((file, header)) if self.told.synced.footer > 0 => self.footer(&*file, &header, buffer).map(drop),
            Some((file, header)) if self.found.damage.is_empty() => self.whole(file, header),
            _ => Ok(()),
        }
    }

    /// Opens the file and reads its header; `None` if that is of no use.
    fn begin(&mut self, buffer: &mut PageBuffer) -> io::Result<Option<(Arc<dyn File>, SegmentHeader)>> {
        let path = self.store.path(self.told.synced.segment);
        let file = self.store.fs.open(&path, self.told.newest)?;
        // The bytes of the disk, not those of a page cache that an I/O error has left behind.
        file.sync_data()?;
        file.drop_cache()?;
        let start = buffer.read(&*file, 0..FIRST_GROUP, true)?;
        let header = match SegmentHeader::decode(start) {
            Ok(header) => header,
            Err(e @ HeaderError::Version(_)) => return Err(io::Error::new(io::ErrorKind::InvalidData, e)),
            Err(HeaderError::NotASegment | HeaderError::Damaged) => {
                self.judge(Part::Header, 0..FIRST_GROUP, false);
                return Ok(None);
            }
        };
        if (header.number, header.log, header.volume) != (self.told.synced.segment, LogKind::Blocks, self.store.volume)
        {
            self.judge(Part::Name, 0..FIRST_GROUP, false);
            return Ok(None);
        }
        if let Some(copy) = SegmentHeader::damaged_copy(start) {
            self.judge(Part::Header, copy, true);
        }
        self.found.bytes = header.file_len;
        Ok(Some((file, header)))
    }

    /// Reads the group that should hold the footer, and takes what that tells, if it is sound; returns whether it is.
    fn footer(&mut self, file: &dyn File, header: &SegmentHeader, buffer: &mut PageBuffer) -> io::Result<bool> {
        let BlocksSynced { footer, end, .. } = self.told.synced;
        let group = buffer.read(file, footer..end.min(header.file_len), true)?;
        let Some((bytes, parts)) = decode_footer(header, footer, group) else { return Ok(false) };
        self.defined = parts.definitions;
        let used = self.blocks(header, bytes, parts.blocks);
        self.opened = Some(Opened { header: *header, used, active: None });
        Ok(true)
    }

    /// Takes what all records up to the durable end tell.
    fn whole(&mut self, file: Arc<dyn File>, header: SegmentHeader) -> io::Result<()> {
        let synced = self.told.synced;
        let footer = self.scan(&*file, &header)?;
        let mut bytes = Vec::new();
        let in_bytes = |(offset, len, tables): &(u64, u32, Vec<u8>)| {
            let begin = bytes.len();
            bytes.extend_from_slice(tables);
            (*offset, *len, begin..bytes.len())
        };
        let blocks = footer.blocks.iter().map(in_bytes).collect();
        let used = self.blocks(&header, bytes, blocks);
        self.found.definitions.extend(footer.definitions.iter().cloned().map(Arc::new));
        let goes_on = self.told.newest && synced.footer == 0 && synced.end < header.file_len;
        let active = goes_on.then(|| Active::again(header, file, synced.end, footer));
        self.opened = Some(Opened { header, used, active });
        Ok(())
    }

    /// Takes blocks by their tables in the bytes; returns the bytes of their records.
    fn blocks(&mut self, header: &SegmentHeader, bytes: Vec<u8>, blocks: Vec<(u64, u32, Range<usize>)>) -> u64 {
        let mut used = 0;
        let blocks_len = blocks.len();
        let mut sound = SegmentBlocks { number: header.number, blocks: Vec::with_capacity(blocks_len), bytes };
        for (offset, len, tables) in blocks {
            if sound.list(offset, len, tables).is_err() {
                self.judge(Part::Record(Kind::Block), offset..offset + u64::from(len), false);
                self.found.unseen.push(header.number);
            }
            used += u64::from(len);
        }
        self.found.blocks.push(sound);
        used
    }

    /// Reads a segment up to its durable end, and makes its footer.
    fn scan(&mut self, file: &dyn File, header: &SegmentHeader) -> io::Result<Footer> {
        let end = self.told.synced.end.min(header.file_len);
        let len = file.len()?.min(end);
        // Of one that no record names all of the file is missed.
        let missed = if self.told.end == 0 { end } else { self.told.end.min(end) };
        if len < missed {
            self.judge(Part::Cut, len..missed, true);
        }
        let mut footer = Footer::default();
        let mut window = Window::default();
        window.uncached = true;
        if let Ok(start) = read_start(file, &mut window)? {
            let each = &mut |group: GroupScan, bytes: scan::Bytes<'_>| self.group(header, &group, bytes, &mut footer);
            read_groups(file, &mut window, &start.up_to(len), each)?;
        }
        Ok(footer)
    }

    /// Takes in what the records of a group tell. `bytes` hold all of it.
    fn group(&mut self, header: &SegmentHeader, group: &GroupScan, bytes: scan::Bytes<'_>, footer: &mut Footer) {
        // The footer is judged already.
        let synced = self.told.synced;
        let before_footer = |d: &&Damage| synced.footer == 0 || d.bytes.start < synced.footer;
        for d in group.damage.iter().filter(before_footer) {
            self.judge(d.part, d.bytes.clone(), false);
        }
        for record in &group.records {
            let (head, offset) = (record.head, record.offset);
            let (place, bytes) = (offset..offset + u64::from(head.len), bytes.from(offset));
            match (head.known_kind(), record.body_is_sound) {
                (Some(Kind::Block), true) => footer.blocks.push((offset, head.len, head.tables(bytes, 0).to_vec())),
                // Behind the end that is told it is the rest of a write.
                (Some(Kind::Block), false) if offset < self.told.end => {
                    let tables = BlockTables::decode(head.tables(bytes, 0)).ok();
                    self.found.damaged.extend(tables.map(|t| (header.number, place, t)));
                }
                (Some(Kind::Series), true) => match decode_control(&head, head.body(bytes, 0)) {
                    Ok(definitions) => footer.definitions.extend::<Vec<_>>(definitions),
                    Err(_) => self.judge(Part::Record(Kind::Series), place, false),
                },
                _ => {}
            }
        }
    }
}

/// The footer in the bytes of a group at `at`, if it is sound: its body, and where its parts lie in that.
fn decode_footer(header: &SegmentHeader, at: u64, bytes: &[u8]) -> Option<(Vec<u8>, FooterParts)> {
    let group = GroupHeader::decode_at(bytes, at, header)?;
    let record = bytes.get(GROUP_HEADER_LEN..group.len as usize)?;
    let head = RecordHead::decode_at(record, at + GROUP_HEADER_LEN as u64, header)?;
    let body = record.get(RECORD_HEAD_LEN..head.len as usize)?;
    let sound = head.known_kind() == Some(Kind::Footer) && head.tables_len == 0 && crc32(&[body]) == head.body_crc;
    let raw = if sound { decompress_body(&head, body).ok()? } else { return None };
    let parts = FooterParts::find(&raw).ok()?;
    Some((raw, parts))
}
