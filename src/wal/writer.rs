//! The thread that writes the log: it stamps LSN and seq, gathers what waits into a group, writes it with one
//! `pwrite`, syncs it, and only then hands the records on.

use super::blocks::BlockLogOptions;
use super::format::{FIRST_GROUP, GROUP_ALIGN, GROUP_HEADER_LEN, Kind, MAX_RECORD_LEN, RECORD_ALIGN, SegmentHeader};
use super::group::{GroupBuilder, chain_digest};
use super::record::{
    Beginning, BlocksSynced, ChunkClosed, ChunkFlushed, EntriesRecord, Gap, Open, Previous, Retiring, SeriesDef,
    TableRow,
};
use super::retention::{Contents, Hold, Retention};
use super::segment::{self, Prepared};
use super::supply::Supply;
use super::syncs::Syncs;
use super::{RecordHead, WalMetrics};
use crate::codec::align_up;
use crate::fs::{File, Fs, is_no_space, write_all_uncached_at};
use crate::model::{LabelSet, Tenant};
use crate::planted::{Bug, is};
use ahash::AHashMap;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Most bytes of a group, unless it is a single record.
const MAX_GROUP_LEN: u64 = 4 << 20;
/// Without another group for this long, a watermark tells that everything so far is durable.
const WATERMARK_AFTER: Duration = Duration::from_millis(50);
/// Definitions of a stream in each segment: a second one survives damage to the first.
const DEFINITIONS: u8 = 2;

/// When an append counts as done (`ingester.wal.sync`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncMode {
    /// After `fdatasync`: survives power loss.
    #[default]
    Always,
    /// After `pwrite`, with a sync at this interval: survives `kill -9`; power loss costs at most the interval.
    Interval(Duration),
    /// After `pwrite`; the operating system decides when to sync, as with Loki.
    Os,
}

/// A stream as the log knows it. The log's thread alone moves its cursor, and only when a group is durable.
#[derive(Debug)]
pub struct StreamLog {
    /// Given once, never again in this data directory.
    pub id: u64,
    /// Owner.
    pub tenant: Tenant,
    /// Canonical labels.
    pub labels: Arc<LabelSet>,
    /// xxhash64 of the labels.
    pub fingerprint: u64,
    cursor: Mutex<StreamCursor>,
    /// All smaller seqs are in blocks that count, or in the object store.
    settled: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct StreamCursor {
    next_seq: u64,
    /// Segment that `definitions` counts for.
    segment: u64,
    definitions: u8,
}

impl StreamLog {
    /// A stream whose next entry gets `next_seq`; 0 for a new stream.
    pub fn new(id: u64, tenant: Tenant, labels: Arc<LabelSet>, next_seq: u64) -> Self {
        let fingerprint = labels.hash();
        Self {
            id,
            tenant,
            labels,
            fingerprint,
            cursor: Mutex::new(StreamCursor { next_seq, ..Default::default() }),
            settled: AtomicU64::new(0),
        }
    }

    /// Takes seqs before a record is logged, as no correct program does.
    #[cfg(feature = "planted-bugs")]
    pub(super) fn take_seqs_early(&self, count: u64) -> u64 {
        let mut cursor = self.cursor.lock();
        cursor.next_seq += count;
        cursor.next_seq - count
    }

    /// Sets the seq of the next entry, once, after replay.
    pub fn resume_at(&self, next_seq: u64) {
        self.cursor.lock().next_seq = next_seq;
    }

    /// All seqs below this one are in blocks that count, or in the object store.
    pub fn settle(&self, seq: u64) {
        self.settled.fetch_max(seq, Ordering::AcqRel);
    }

    /// The seq that the stream's next logged entry gets.
    pub fn next_seq(&self) -> u64 {
        self.cursor.lock().next_seq
    }

    pub(super) fn definition(&self, next_seq: u64) -> SeriesDef {
        SeriesDef {
            id: self.id,
            tenant: if is(Bug::TenantMixedUp) { "a" } else { self.tenant.as_str() }.to_string(),
            labels: self.labels.pairs().iter().map(|(n, v)| (n.to_string(), v.to_string())).collect(),
            fingerprint: self.fingerprint,
            next_seq,
            settled_seq: self.settled.load(Ordering::Acquire),
        }
    }

    /// Upper bound of its definition in a record, before compression.
    pub(super) fn definition_len(&self) -> u64 {
        (self.labels.text().len() + self.tenant.as_str().len() + 16 * self.labels.pairs().len() + 64) as u64
    }
}

/// One push on its way to the log.
pub struct Append<P> {
    /// The encoded record; seqs are stamped by the log.
    pub record: EntriesRecord,
    /// The streams of the record's rows, in their order.
    pub streams: Vec<Arc<StreamLog>>,
    /// Handed back when the record is durable, or failed.
    pub payload: P,
}

/// A record that is ackable in the configured mode, in LSN order.
pub struct Applied<P> {
    /// Its log sequence number.
    pub lsn: u64,
    /// The stream table with seqs.
    pub rows: Vec<TableRow>,
    /// The uncompressed body.
    pub raw: Arc<Vec<u8>>,
    /// What came with the append.
    pub payload: P,
}

/// A decision about what is kept. It is logged before it takes effect, ahead of all pushes that wait.
#[derive(Clone, Debug)]
pub enum Decision {
    /// The block log is durable up to here.
    BlocksSynced(BlocksSynced),
    /// A chunk takes no more blocks.
    ChunkClosed(ChunkClosed),
    /// A chunk is in the object store.
    ChunkFlushed(ChunkFlushed),
    /// Segments that nothing needs any more.
    Retiring(Retiring),
    /// A loss is settled: the next start does not find it again.
    Gap(Gap),
    /// Entries of small heads, logged again with their seqs so that the oldest segment can go. The record's extension
    /// tells the ranges that it settles.
    Carried {
        /// The record, seqs included.
        record: EntriesRecord,
        /// The streams of its rows.
        streams: Vec<Arc<StreamLog>>,
    },
}

impl Decision {
    /// Upper bound of its bytes in a group, definitions included.
    fn len(&self) -> u64 {
        let body = match self {
            Self::BlocksSynced(_) | Self::ChunkClosed(_) => 64,
            Self::ChunkFlushed(c) => 128 + c.key.len(),
            Self::Retiring(r) => 96 + 9 * r.blocks.len(),
            Self::Gap(g) => 64 + 18 * g.lsns.len() + 27 * g.seqs.len(),
            Self::Carried { record, streams } => {
                let definitions: u64 = streams.iter().map(|s| s.definition_len() + s.definition_len() / 6 + 64).sum();
                record.len() + definitions as usize
            }
        };
        (body + super::format::RECORD_HEAD_LEN) as u64 + 2 * RECORD_ALIGN
    }
}

/// Decisions of one caller, logged in one group.
struct Decided {
    decisions: Vec<Decision>,
    done: mpsc::SyncSender<Result<(), Unavailable>>,
}

/// Why the log does not take a record now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// No space, quota, file size limit or a read-only mount. Ends by itself when space comes back.
    #[error(
        "the write-ahead log has no space left ({0}): free space on its disk; pushes are accepted again within a second"
    )]
    DiskFull(String),
    /// The log has reached its budget and nothing in it can go yet. Ends by itself when blocks are on disk.
    #[error(
        "the write-ahead log is as large as ingester.wal.max_size allows ({0} bytes) until its oldest lines are in \
         blocks: the disk is slower than the pushes, or the limit too small"
    )]
    LogFull(u64),
    /// More bytes wait than the queue may hold.
    #[error("the queue of the write-ahead log is full: the disk is slower than the pushes")]
    QueueFull,
    /// The record, or its body before compression, is larger than [`MAX_RECORD_LEN`]: no reader would accept it.
    #[error("the push needs a record of {0} bytes, the write-ahead log takes at most {MAX_RECORD_LEN}: split the push")]
    TooLarge(usize),
    /// The log was stopped.
    #[error("the write-ahead log is stopped")]
    Stopped,
    /// A sync or write failed; the process is about to exit.
    #[error("the write-ahead log failed ({0}): the process exits, and serves what is on disk after its restart")]
    Poisoned(String),
}

/// What happens to records after the log has written them. Called on the log's thread; must not block.
pub trait Sink<P>: Send + 'static {
    /// These are ackable, in LSN order.
    fn durable(&mut self, records: Vec<Applied<P>>);
    /// These were not written, or not completely; nothing of them will come back.
    fn failed(&mut self, payloads: Vec<P>, why: &Unavailable);
    /// A write or sync failed for good. In production the process exits here, with code 74.
    fn poisoned(&mut self, error: &io::Error);
}

/// How the log is set up.
pub struct WalOptions {
    /// The disk.
    pub fs: Arc<dyn Fs>,
    /// Directory of the segments.
    pub dir: PathBuf,
    /// Identity of the data directory.
    pub volume: Uuid,
    /// Bytes of a segment, 1 MiB to 1 GiB.
    pub segment_size: u64,
    /// Bytes that all segments may take together; at least four segments.
    pub max_size: u64,
    /// The block log beside it.
    pub blocks: BlockLogOptions,
    /// When an append counts as done.
    pub sync: SyncMode,
    /// Most bytes that wait for the log. An empty queue takes any record.
    pub queue_bytes: usize,
    /// Source of stream ids; recorded in each Open.
    pub next_stream_id: Arc<AtomicU64>,
    /// Figures.
    pub metrics: WalMetrics,
}

/// Where the log goes on after recovery.
pub(super) struct Start {
    pub next_lsn: u64,
    pub lines: u64,
    pub first_live: Beginning,
    pub previous: Option<Previous>,
    pub supply: Arc<Supply>,
    /// What the live segments hold, oldest first.
    pub contents: Vec<Contents>,
    /// The live segments of the block log.
    pub blocks: Vec<BlocksSynced>,
}

/// The log, open for appending. Dropping it without [`Wal::stop`] stops it too.
pub struct Wal<P: Send + 'static> {
    queue: Arc<Queue<P>>,
    supply: Arc<Supply>,
    retention: Arc<Retention>,
    syncs: Arc<Syncs>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Queue<P> {
    state: Mutex<QueueState<P>>,
    wake: Condvar,
    limit: usize,
}

struct QueueState<P> {
    records: VecDeque<Append<P>>,
    bytes: usize,
    decided: VecDeque<Decided>,
    /// Something outside of the log has failed for good.
    failure: Option<io::Error>,
    stopping: bool,
    stopped: bool,
    poisoned: Option<String>,
}

impl<P> Queue<P> {
    fn fail(&self, error: io::Error) {
        self.state.lock().failure.get_or_insert(error);
        self.wake.notify_one();
    }
}

impl<P: Send + 'static> Wal<P> {
    pub(super) fn start(writer: Writer, sink: impl Sink<P>, queue_bytes: usize) -> Self {
        let state = QueueState {
            records: VecDeque::new(),
            bytes: 0,
            decided: VecDeque::new(),
            failure: None,
            stopping: false,
            stopped: false,
            poisoned: None,
        };
        let queue = Arc::new(Queue { state: Mutex::new(state), wake: Condvar::new(), limit: queue_bytes });
        let supply = writer.supply.clone();
        let (retention, syncs) = (writer.retention.clone(), writer.syncs.clone());
        let failed = queue.clone();
        writer.options.fs.on_failed_sync(Box::new(move |error| failed.fail(error)));
        let run = Run { queue: queue.clone(), writer, sink };
        let thread = spawn_critical("wal", move || run.run());
        Self { queue, supply, retention, syncs, thread: Mutex::new(Some(thread)) }
    }

    /// Hands a record to the log; the sink gets it back.
    ///
    /// # Errors
    /// The log does not take it; the append comes back.
    #[allow(clippy::result_large_err, reason = "what is refused comes back as it was; a box for each push costs more")]
    pub fn append(&self, append: Append<P>) -> Result<(), (Unavailable, Append<P>)> {
        if let Some(why) = self.unavailable() {
            return Err((why, append));
        }
        let len = append.record.len();
        let largest = len.max(append.record.raw().len());
        if largest as u64 > MAX_RECORD_LEN {
            return Err((Unavailable::TooLarge(largest), append));
        }
        let mut state = self.queue.state.lock();
        if state.stopping {
            return Err((Unavailable::Stopped, append));
        }
        if state.bytes > 0 && state.bytes + len > self.queue.limit {
            return Err((Unavailable::QueueFull, append));
        }
        state.bytes += len;
        state.records.push_back(append);
        drop(state);
        self.queue.wake.notify_one();
        Ok(())
    }

    /// Why the log takes nothing at the moment, if so.
    pub fn unavailable(&self) -> Option<Unavailable> {
        if let Some(why) = &self.queue.state.lock().poisoned {
            return Some(Unavailable::Poisoned(why.clone()));
        }
        if let Some(why) = self.supply.exhausted() {
            return Some(Unavailable::DiskFull(why));
        }
        self.retention.refuses().then(|| Unavailable::LogFull(self.retention.max_size()))
    }

    /// Logs decisions in one group and waits until they are durable. Works on a full disk as long as a prepared segment
    /// is left.
    ///
    /// # Errors
    /// They are not in the log; the caller may try again unless the log is stopped or poisoned.
    pub fn decide(&self, decisions: Vec<Decision>) -> Result<(), Unavailable> {
        let (done, answer) = mpsc::sync_channel(1);
        {
            let mut state = self.queue.state.lock();
            if let Some(why) = &state.poisoned {
                return Err(Unavailable::Poisoned(why.clone()));
            }
            if state.stopped {
                return Err(Unavailable::Stopped);
            }
            state.decided.push_back(Decided { decisions, done });
        }
        self.queue.wake.notify_one();
        answer.recv().unwrap_or(Err(Unavailable::Stopped))
    }

    /// Poisons the log because something that acknowledged lines depend on has failed for good, such as a sync of the
    /// block log.
    pub fn poison(&self, error: io::Error) {
        self.queue.fail(error);
    }

    /// What is in the log, and what may go.
    pub fn retention(&self) -> &Arc<Retention> {
        &self.retention
    }

    /// How its syncs went.
    pub fn syncs(&self) -> &Syncs {
        &self.syncs
    }

    /// Gives up all segments before `first_live` and these segments of the block log: the decision is durable before the
    /// first of them is touched. Segments of the write-ahead log are used again or removed here; those of the block log
    /// are the caller's.
    ///
    /// # Errors
    /// As [`Wal::decide`]; nothing was given up then.
    pub fn retire(&self, first_live: u64, blocks: Vec<u64>, mut with: Vec<Decision>) -> Result<(), Unavailable> {
        let begins = if first_live == 0 { Beginning::default() } else { self.retention.beginning(first_live) };
        with.push(Decision::Retiring(Retiring { first_live: begins, blocks }));
        self.decide(with)?;
        self.supply.retired(self.retention.retired(first_live));
        Ok(())
    }

    /// Writes what waits, syncs, writes a watermark and ends the threads. Later appends get [`Unavailable::Stopped`].
    pub fn stop(&self) {
        self.queue.state.lock().stopping = true;
        self.queue.wake.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            // A panic on the thread has ended the process already.
            let _ = thread.join();
        }
        self.supply.stop();
    }
}

impl<P: Send + 'static> Drop for Wal<P> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Ends the process if it is dropped by a panic.
pub(super) struct Critical;

impl Drop for Critical {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// Runs a thread without which acknowledged lines could be lost: if it panics, the process ends at once.
pub fn spawn_critical(name: &str, body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let run = move || {
        let _critical = Critical;
        body();
    };
    let spawned = std::thread::Builder::new().name(name.to_string()).spawn(run);
    spawned.unwrap_or_else(|e| panic!("the operating system does not start the {name} thread: {e}"))
}

enum Batch<P> {
    Work { decided: VecDeque<Decided>, records: VecDeque<Append<P>> },
    Failure(io::Error),
    Idle,
    Stop,
}

/// The log's thread.
struct Run<P, S> {
    queue: Arc<Queue<P>>,
    writer: Writer,
    sink: S,
}

impl<P: Send + 'static, S: Sink<P>> Run<P, S> {
    fn run(mut self) {
        loop {
            match self.next_batch() {
                Batch::Work { decided, records } => {
                    self.decide(decided);
                    self.commit(records);
                }
                Batch::Failure(error) => self.note(Err(LogError::Fatal(error))),
                Batch::Idle => {
                    let outcome = self.writer.idle();
                    self.note(outcome);
                }
                Batch::Stop => {
                    let outcome = self.writer.finish();
                    self.note(outcome);
                    let mut state = self.queue.state.lock();
                    state.stopped = true;
                    // Their senders hear of it by the channel's end.
                    state.decided.clear();
                    return;
                }
            }
        }
    }

    fn next_batch(&self) -> Batch<P> {
        let mut state = self.queue.state.lock();
        loop {
            if let Some(error) = state.failure.take() {
                return Batch::Failure(error);
            }
            if !state.records.is_empty() || !state.decided.is_empty() {
                state.bytes = 0;
                let records = std::mem::take(&mut state.records);
                return Batch::Work { decided: std::mem::take(&mut state.decided), records };
            }
            if state.stopping {
                return Batch::Stop;
            }
            match self.writer.idle_after() {
                None => self.queue.wake.wait(&mut state),
                Some(wait) => {
                    let timed_out = self.queue.wake.wait_for(&mut state, wait).timed_out();
                    if timed_out && state.records.is_empty() && state.decided.is_empty() && state.failure.is_none() {
                        return Batch::Idle;
                    }
                }
            }
        }
    }

    /// Decisions go ahead of pushes: they are what makes room.
    fn decide(&mut self, decided: VecDeque<Decided>) {
        for Decided { decisions, done } in decided {
            let outcome = match self.poisoned() {
                Some(why) => Err(why),
                None => self.writer.write_decisions(&decisions).map_err(|why| {
                    let told = why.unavailable();
                    self.note(Err(why));
                    told
                }),
            };
            // Whoever does not wait any more has no use for the answer.
            let _ = done.send(outcome);
        }
    }

    fn commit(&mut self, mut batch: VecDeque<Append<P>>) {
        while !batch.is_empty() {
            if let Some(why) = self.poisoned() {
                self.sink.failed(batch.drain(..).map(|a| a.payload).collect(), &why);
                return;
            }
            match self.writer.write_group(&mut batch) {
                Ok(done) => self.sink.durable(done),
                Err(GroupError { why, failed }) => {
                    self.sink.failed(failed, &why.unavailable());
                    self.note(Err(why));
                }
            }
        }
    }

    fn poisoned(&self) -> Option<Unavailable> {
        self.queue.state.lock().poisoned.clone().map(Unavailable::Poisoned)
    }

    /// Remembers a failure for good. What waits is failed by the next turn of the loop.
    fn note(&mut self, outcome: Result<(), LogError>) {
        if let Err(LogError::Fatal(error)) = outcome {
            self.writer.give_up();
            self.writer.options.metrics.poisoned.set(1);
            self.queue.state.lock().poisoned = Some(error.to_string());
            self.sink.poisoned(&error);
        }
    }
}

/// Why a group or a segment failed.
pub(super) enum LogError {
    /// No space; the log goes on when there is some.
    NoSpace(String),
    /// The log has reached its budget of so many bytes.
    Full(u64),
    /// A failed sync, or a failed write that is not about space: disk and memory may differ now.
    Fatal(io::Error),
}

impl std::fmt::Display for LogError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoSpace(why) => f.write_str(why),
            Self::Full(limit) => write!(f, "the log is at its limit of {limit} bytes"),
            Self::Fatal(error) => error.fmt(f),
        }
    }
}

impl LogError {
    fn unavailable(&self) -> Unavailable {
        match self {
            Self::NoSpace(why) => Unavailable::DiskFull(why.clone()),
            Self::Full(limit) => Unavailable::LogFull(*limit),
            Self::Fatal(error) => Unavailable::Poisoned(error.to_string()),
        }
    }

    pub(super) fn of_write(error: io::Error) -> Self {
        if is_no_space(&error) { Self::NoSpace(error.to_string()) } else { Self::Fatal(error) }
    }
}

struct GroupError<P> {
    why: LogError,
    failed: Vec<P>,
}

/// The segment that is being written.
struct Active {
    header: SegmentHeader,
    file: Arc<dyn File>,
    /// Where the next group goes.
    at: u64,
    digest: u32,
    /// Written bytes are not synced yet (weaker modes only).
    dirty: bool,
}

impl Active {
    /// Groups may end here; the last block is kept for a watermark.
    fn capacity(&self) -> u64 {
        self.header.file_len - GROUP_ALIGN
    }

    fn fresh(&self) -> bool {
        self.at == FIRST_GROUP
    }
}

/// A stream's cursor while its group is not durable.
struct Staged {
    stream: Arc<StreamLog>,
    cursor: StreamCursor,
    /// The group holds its definition.
    defined: bool,
}

/// Everything that the log's thread owns.
pub(super) struct Writer {
    options: WalOptions,
    pub(super) supply: Arc<Supply>,
    active: Option<Active>,
    previous: Option<Previous>,
    first_live: Beginning,
    /// The live segments of the block log, as decided.
    blocks: Vec<BlocksSynced>,
    pub(super) retention: Arc<Retention>,
    syncs: Arc<Syncs>,
    next_lsn: u64,
    durable_lsn: u64,
    /// The largest durable LSN that a header on disk tells.
    announced_lsn: u64,
    lines: u64,
    last_sync: Instant,
    staged: AHashMap<u64, Staged>,
    buffer: Vec<u8>,
}

impl Writer {
    pub(super) fn new(options: WalOptions, start: Start) -> Self {
        let retention = Arc::new(Retention::new(options.max_size, start.contents));
        Self {
            supply: start.supply,
            retention,
            syncs: Arc::default(),
            blocks: start.blocks,
            active: None,
            previous: start.previous,
            first_live: start.first_live,
            next_lsn: start.next_lsn,
            durable_lsn: start.next_lsn,
            announced_lsn: start.next_lsn,
            lines: start.lines,
            last_sync: Instant::now(),
            staged: AHashMap::new(),
            buffer: Vec::new(),
            options,
        }
    }

    /// How long the thread may sleep before [`Writer::idle`] has something to do; `None` for ever.
    fn idle_after(&self) -> Option<Duration> {
        let dirty = self.active.as_ref().is_some_and(|a| a.dirty);
        match self.options.sync {
            SyncMode::Interval(every) if dirty => Some(every.saturating_sub(self.last_sync.elapsed())),
            _ if self.announced_lsn < self.durable_lsn => Some(WATERMARK_AFTER),
            _ => None,
        }
    }

    /// Nothing waits: sync what the weaker modes left, or tell on disk what is durable.
    fn idle(&mut self) -> Result<(), LogError> {
        if self.active.as_ref().is_some_and(|a| a.dirty) && matches!(self.options.sync, SyncMode::Interval(_)) {
            self.sync()?;
        }
        if self.announced_lsn < self.durable_lsn { self.watermark() } else { Ok(()) }
    }

    /// The log ends in good order: everything is synced, and the disk tells so.
    pub(super) fn finish(&mut self) -> Result<(), LogError> {
        self.sync()?;
        if self.announced_lsn < self.durable_lsn { self.watermark() } else { Ok(()) }
    }

    /// After a failed sync or write nothing is written or synced again, and no header tells anything.
    fn give_up(&mut self) {
        self.active = None;
        self.announced_lsn = self.durable_lsn;
    }

    fn sync(&mut self) -> Result<(), LogError> {
        let Some(active) = self.active.as_mut().filter(|a| a.dirty) else { return Ok(()) };
        let started = Instant::now();
        let timer = self.options.metrics.sync_seconds.start_timer();
        let mut synced = if is(Bug::AckBeforeSync) { Ok(()) } else { active.file.sync_data() };
        if is(Bug::SyncRetried) {
            synced = synced.or_else(|_| active.file.sync_data());
        }
        if !is(Bug::SyncErrorSwallowed) {
            synced.map_err(LogError::Fatal)?;
        }
        timer.observe_duration();
        let path = self.options.dir.join(segment::segment_name(active.header.number));
        segment::in_place(&*active.file, &path).map_err(LogError::Fatal)?;
        active.dirty = false;
        self.syncs.synced(started.elapsed());
        self.durable_lsn = self.next_lsn;
        self.last_sync = Instant::now();
        Ok(())
    }

    /// Writes one group from the front of the batch: as many records as fit.
    fn write_group<P>(&mut self, batch: &mut VecDeque<Append<P>>) -> Result<Vec<Applied<P>>, GroupError<P>> {
        let mut group = Vec::new();
        let outcome = self.gather(batch, &mut group).and_then(|()| self.build_and_write(&mut group));
        match outcome {
            Ok(first_lsn) => {
                let applied = |(lsn, append): (u64, Append<P>)| Applied {
                    lsn,
                    rows: append.record.rows().to_vec(),
                    raw: append.record.raw().clone(),
                    payload: append.payload,
                };
                Ok((first_lsn..).zip(group).map(applied).collect())
            }
            Err(why) => {
                self.staged.clear();
                // Without a segment nobody in the batch can be served; else only this group has failed.
                let rest = if group.is_empty() { batch.drain(..).collect() } else { group };
                Err(GroupError { why, failed: rest.into_iter().map(|a| a.payload).collect() })
            }
        }
    }

    /// Moves records from the batch into the group, with a segment that has room for them.
    fn gather<P>(&mut self, batch: &mut VecDeque<Append<P>>, group: &mut Vec<Append<P>>) -> Result<(), LogError> {
        let Some(first) = batch.front() else { return Ok(()) };
        let reserved = self.supply.reserve().inspect_err(|_| self.options.metrics.disk_full.inc());
        reserved.map_err(LogError::NoSpace)?;
        let mut len = self.room_for(false, |writer| writer.need(first))?;
        let (start, room) = self.active.as_ref().map_or((0, 0), |a| (a.at, a.capacity() - a.at));
        debug_assert!(start > 0);
        loop {
            let Some(next) = batch.pop_front() else { return Ok(()) };
            self.stage(&next.streams);
            group.push(next);
            let Some(candidate) = batch.front() else { return Ok(()) };
            len += self.need(candidate);
            if len > room.min(MAX_GROUP_LEN) {
                return Ok(());
            }
        }
    }

    /// Makes sure that the active segment takes a group with records of so many bytes; returns the bytes of that group.
    fn room_for(&mut self, may_take_last: bool, need: impl Fn(&Self) -> u64) -> Result<u64, LogError> {
        loop {
            let (fresh, room) = match &self.active {
                Some(active) => (active.fresh(), active.capacity().saturating_sub(active.at)),
                None => (false, 0),
            };
            let open = if fresh { self.open_len() } else { 0 };
            let len = GROUP_HEADER_LEN as u64 + open + need(self);
            if align_up(len, GROUP_ALIGN) <= room {
                return Ok(len);
            }
            if fresh { self.extend(len)? } else { self.rotate(may_take_last)? }
        }
    }

    /// Upper bound of an Open record.
    fn open_len(&self) -> u64 {
        OPEN_MAX + 32 * self.blocks.len() as u64
    }

    /// Upper bound of what a record adds to the group, definitions included.
    fn need<P>(&self, append: &Append<P>) -> u64 {
        let mut definitions = 0;
        for stream in &append.streams {
            let wanted = match self.staged.get(&stream.id) {
                Some(staged) => !staged.defined && self.wants_definition(&staged.cursor),
                None => self.wants_definition(&stream.cursor.lock()),
            };
            if wanted {
                definitions += stream.definition_len() + stream.definition_len() / 6 + 64;
            }
        }
        align_up(append.record.len() as u64, RECORD_ALIGN) + definitions
    }

    fn wants_definition(&self, cursor: &StreamCursor) -> bool {
        if is(Bug::SeriesOnce) {
            return cursor.definitions == 0;
        }
        let segment = self.active.as_ref().map_or(0, |a| a.header.number);
        cursor.segment != segment || cursor.definitions < DEFINITIONS
    }

    /// Takes the record's streams into the group's staging area.
    fn stage(&mut self, streams: &[Arc<StreamLog>]) {
        for stream in streams {
            if !self.staged.contains_key(&stream.id) {
                let cursor = *stream.cursor.lock();
                let defined = self.wants_definition(&cursor);
                self.staged.insert(stream.id, Staged { stream: stream.clone(), cursor, defined });
            }
        }
    }

    /// Builds the group's bytes, writes and, in mode `always`, syncs them; returns the group's first LSN.
    fn build_and_write<P>(&mut self, group: &mut [Append<P>]) -> Result<u64, LogError> {
        let first_lsn = self.next_lsn;
        let lines: u64 = group.iter().map(|a| a.record.lines()).sum();
        let mut builder = self.begin_group(0)?;
        builder.series(self.staged.values().filter(|s| s.defined).map(|s| s.stream.definition(s.cursor.next_seq)));
        for append in group.iter_mut() {
            for (row, stream) in append.streams.iter().enumerate() {
                if is(Bug::MemoryBeforeLog) {
                    continue;
                }
                if let Some(staged) = self.staged.get_mut(&stream.id) {
                    append.record.set_first_seq(row, staged.cursor.next_seq);
                    let count = append.record.rows().get(row).map_or(0, |r| r.count);
                    staged.cursor.next_seq += u64::from(count);
                }
            }
            builder.entries(&append.record);
        }
        self.write(builder, lines)?;
        self.sync_if_due()?;
        self.options.metrics.records.inc_by(group.len() as u64);
        self.commit_staged();
        Ok(first_lsn)
    }

    fn sync_if_due(&mut self) -> Result<(), LogError> {
        let due = match self.options.sync {
            SyncMode::Always => true,
            SyncMode::Interval(every) => self.last_sync.elapsed() >= every,
            SyncMode::Os => false,
        };
        if due { self.sync() } else { Ok(()) }
    }

    /// Writes decisions as one group and syncs it in every mode: what follows from them cannot be taken back.
    pub(super) fn write_decisions(&mut self, decisions: &[Decision]) -> Result<(), LogError> {
        let outcome = self.build_decisions(decisions);
        if outcome.is_err() {
            self.staged.clear();
        }
        outcome
    }

    fn build_decisions(&mut self, decisions: &[Decision]) -> Result<(), LogError> {
        let need: u64 = decisions.iter().map(Decision::len).sum();
        self.room_for(true, |_| need)?;
        let carried = decisions.iter().filter_map(|d| match d {
            Decision::Carried { record, streams } => Some((record, streams)),
            _ => None,
        });
        for (_, streams) in carried.clone() {
            self.stage(streams);
        }
        let mut builder = self.begin_group(0)?;
        builder.series(self.staged.values().filter(|s| s.defined).map(|s| s.stream.definition(s.cursor.next_seq)));
        let mut lines = 0;
        for decision in decisions {
            match decision {
                Decision::BlocksSynced(b) => builder.control(Kind::BlocksSynced, b),
                Decision::ChunkClosed(c) => builder.control(Kind::ChunkClosed, c),
                Decision::ChunkFlushed(c) => builder.control(Kind::ChunkFlushed, c),
                Decision::Retiring(r) => builder.control(Kind::Retiring, r),
                Decision::Gap(g) => builder.control(Kind::Gap, g),
                Decision::Carried { record, .. } => {
                    lines += record.lines();
                    let mut record = record.clone();
                    if is(Bug::CarriedStampedAnew) {
                        stamp_anew(&mut record, &mut self.staged);
                    }
                    builder.entries(&record);
                }
            }
        }
        self.write(builder, lines)?;
        self.sync()?;
        self.options.metrics.records.inc_by(decisions.len() as u64);
        self.commit_staged();
        decisions.iter().for_each(|d| self.decided(d));
        Ok(())
    }

    /// Takes a durable decision into what the next Open tells.
    fn decided(&mut self, decision: &Decision) {
        match decision {
            Decision::BlocksSynced(synced) => match self.blocks.iter_mut().find(|b| b.segment == synced.segment) {
                Some(known) => *known = *synced,
                None => self.blocks.push(*synced),
            },
            Decision::Retiring(retiring) => {
                if retiring.first_live.segment > self.first_live.segment {
                    self.first_live = retiring.first_live;
                }
                self.blocks.retain(|b| !retiring.blocks.contains(&b.segment));
            }
            Decision::ChunkClosed(closed) => self.retention.holds(Hold::Closed(*closed)),
            Decision::ChunkFlushed(flushed) => self.retention.holds(Hold::Flushed(flushed.clone())),
            Decision::Carried { .. } => {}
            Decision::Gap(gap) => self.retention.holds(Hold::Gap(gap.clone())),
        }
    }

    fn commit_staged(&mut self) {
        let segment = self.active.as_ref().map_or(0, |a| a.header.number);
        for (_, staged) in self.staged.drain() {
            let mut cursor = staged.cursor;
            if cursor.segment != segment {
                let kept = if is(Bug::SeriesOnce) { cursor.definitions } else { 0 };
                (cursor.segment, cursor.definitions) = (segment, kept);
            }
            cursor.definitions += u8::from(staged.defined);
            self.retention.logged(staged.stream.id, cursor.next_seq);
            if is(Bug::MemoryBeforeLog) {
                cursor.next_seq = cursor.next_seq.max(staged.stream.cursor.lock().next_seq);
            }
            *staged.stream.cursor.lock() = cursor;
        }
    }

    /// A builder for a group at the end of the active segment; the first group of a segment begins with Open.
    /// `tail_len` is the number of records that recovery writes again in this group.
    fn begin_group(&mut self, tail_len: u64) -> Result<GroupBuilder, LogError> {
        let Some(active) = &self.active else { return Err(LogError::NoSpace("no segment".into())) };
        let mut builder = GroupBuilder::new(std::mem::take(&mut self.buffer), active.header, active.at, self.next_lsn);
        if active.fresh() {
            builder.control(
                Kind::Open,
                &Open {
                    first_lsn: self.next_lsn,
                    next_stream_id: self.options.next_stream_id.load(Ordering::SeqCst),
                    total_lines: self.lines,
                    previous: self.previous,
                    tail_end: self.next_lsn + tail_len,
                    first_live: self.begins_with(active.header.number),
                    blocks: self.blocks.clone(),
                },
            );
        }
        Ok(builder)
    }

    /// Where the log begins, if the active segment is the first.
    fn begins_with(&self, number: u64) -> Beginning {
        let first = Beginning { segment: number, lsn: self.next_lsn, lines: self.lines };
        if self.first_live.segment == 0 { first } else { self.first_live }
    }

    /// Writes a finished group. A failed write abandons the segment: no byte is written to it again.
    fn write(&mut self, builder: GroupBuilder, lines: u64) -> Result<(), LogError> {
        let Some(active) = self.active.as_mut() else { return Err(LogError::NoSpace("no segment".into())) };
        let told = if is(Bug::WatermarkTooFar) { self.next_lsn + builder.lsns() } else { self.durable_lsn };
        let group = builder.finish(told, self.lines);
        let written = write_all_uncached_at(&*active.file, active.at, &group.bytes);
        let acked_anyway = |e: &std::io::Error| is(Bug::FullDiskAcked) && is_no_space(e);
        if let Err(error) = written.or_else(|e| if acked_anyway(&e) { Ok(()) } else { Err(e) }) {
            if is(Bug::LsnsSkipped) {
                self.next_lsn += u64::from(group.lsns);
            }
            if is(Bug::OffsetUsedAgain) && is_no_space(&error) {
                self.buffer = group.bytes;
                return Err(LogError::of_write(error));
            }
            self.options.metrics.write_failures.inc();
            self.buffer = group.bytes;
            let error = LogError::of_write(error);
            if matches!(error, LogError::NoSpace(_)) {
                self.options.metrics.disk_full.inc();
                // In the weaker modes earlier groups of the segment are not synced yet, and the next Open says that
                // they are.
                self.sync()?;
            }
            self.abandon();
            return Err(error);
        }
        let number = active.header.number;
        active.dirty = true;
        self.syncs.wrote();
        active.at += group.bytes.len() as u64;
        active.digest = chain_digest(active.digest, group.crc);
        self.announced_lsn = self.durable_lsn;
        self.first_live = self.begins_with(number);
        self.next_lsn += u64::from(group.lsns);
        self.lines += lines;
        self.options.metrics.groups.inc();
        self.options.metrics.bytes.inc_by(group.bytes.len() as u64);
        self.buffer = group.bytes;
        Ok(())
    }

    /// A group without records, whose header tells that everything so far is durable.
    fn watermark(&mut self) -> Result<(), LogError> {
        let fits = self.active.as_ref().is_some_and(|a| !a.fresh() && a.at + GROUP_ALIGN <= a.header.file_len);
        if !fits {
            // Everything durable lies in earlier segments; the next Open tells it.
            self.announced_lsn = self.durable_lsn;
            return Ok(());
        }
        let builder = self.begin_group(0)?;
        self.write(builder, 0)?;
        let Some(active) = self.active.as_mut() else { return Ok(()) };
        let started = Instant::now();
        if !is(Bug::TailUnsynced) {
            active.file.sync_data().map_err(LogError::Fatal)?;
        }
        active.dirty = false;
        self.syncs.synced(started.elapsed());
        Ok(())
    }

    /// Leaves the active segment as it is: its durable end goes into the next Open.
    fn abandon(&mut self) {
        if let Some(active) = self.active.take()
            && !active.fresh()
        {
            self.retention.ended(active.header.number, active.at);
            self.previous = Some(Previous {
                segment: active.header.number,
                end_offset: active.at,
                end_lsn: self.next_lsn,
                digest: active.digest,
            });
        }
    }

    /// Goes on in the next prepared segment. Ordinary pushes leave the last one for recovery.
    fn rotate(&mut self, may_take_last: bool) -> Result<(), LogError> {
        self.sync()?;
        if !may_take_last && !self.retention.has_room(self.options.segment_size) {
            return Err(LogError::Full(self.options.max_size));
        }
        // Without a next segment this one stays active: the watermark in its last block tells that all of it is durable.
        let prepared = self.supply.take(may_take_last).inspect_err(|_| self.options.metrics.disk_full.inc());
        let Prepared { header, file } = prepared.map_err(LogError::NoSpace)?;
        self.abandon();
        self.options.metrics.segment.set(i64::try_from(header.number).unwrap_or(i64::MAX));
        let begins = Beginning { segment: header.number, lsn: self.next_lsn, lines: self.lines };
        self.retention.opened(begins, header.file_len);
        self.active = Some(Active { header, file, at: FIRST_GROUP, digest: 0, dirty: false });
        Ok(())
    }

    /// Enlarges a fresh segment for one record that is larger than a segment.
    fn extend(&mut self, group_len: u64) -> Result<(), LogError> {
        let Some(active) = self.active.as_mut() else { return Ok(()) };
        let header = SegmentHeader { file_len: segment::len_for(group_len), ..active.header };
        let extended = segment::extend(&*active.file, active.header.file_len, &header);
        match extended {
            Ok(()) => {
                active.header = header;
                let begins = Beginning { segment: header.number, lsn: self.next_lsn, lines: self.lines };
                self.retention.opened(begins, header.file_len);
            }
            Err(segment::ExtendError::Sync(error)) => return Err(LogError::Fatal(error)),
            Err(segment::ExtendError::Write(error)) => {
                // The half-enlarged file would hold its space until the next start.
                segment::give_up(&*self.options.fs, &self.options.dir, active.header.number);
                self.active = None;
                return Err(LogError::of_write(error));
            }
        }
        Ok(())
    }

    /// Writes records that lay above the durable LSN again, with their LSNs, as the first group of a fresh segment,
    /// syncs them and tells that they are durable (design rule 6.5).
    pub(super) fn rewrite_tail(&mut self, definitions: Vec<SeriesDef>, tail: &[TailRecord]) -> Result<(), LogError> {
        let bound: usize =
            definitions.iter().map(|d| d.labels.iter().map(|(n, v)| n.len() + v.len() + 16).sum::<usize>() + 256).sum();
        let records: usize = tail.iter().map(|r| r.bytes().len() + 64).sum();
        let need = GROUP_HEADER_LEN as u64 + self.open_len() + (bound + bound / 6 + 64 + records) as u64;
        self.rotate(true)?;
        if self.active.as_ref().is_some_and(|a| align_up(need, GROUP_ALIGN) > a.capacity() - a.at) {
            self.extend(need)?;
        }
        let lines = tail.iter().map(TailRecord::lines).sum();
        let mut builder = self.begin_group(tail.len() as u64)?;
        builder.series(definitions.into_iter());
        for record in tail {
            match record {
                TailRecord::Kept { head, bytes, .. } | TailRecord::Lost { head, bytes } => {
                    builder.stamped(bytes, *head, true);
                }
            }
        }
        self.write(builder, lines)?;
        if !is(Bug::TailUnsynced) {
            self.sync()?;
        }
        for record in tail {
            if let TailRecord::Kept { rows, holds, .. } = record {
                rows.iter().for_each(|r| self.retention.logged(r.stream, r.end_seq()));
                holds.iter().for_each(|h| self.retention.holds(h.clone()));
            }
        }
        self.watermark()
    }
}

/// A planted bug: entries that are in the log already take seqs as if they were new.
fn stamp_anew(record: &mut EntriesRecord, staged: &mut AHashMap<u64, Staged>) {
    for at in 0..record.rows().len() {
        let Some(row) = record.rows().get(at).copied() else { return };
        if let Some(staged) = staged.get_mut(&row.stream) {
            record.set_first_seq(at, staged.cursor.next_seq);
            staged.cursor.next_seq += u64::from(row.count);
        }
    }
}

/// A record that recovery writes again.
pub(super) enum TailRecord {
    /// Head, tables and stored body as read.
    Kept { head: RecordHead, bytes: Vec<u8>, rows: Vec<TableRow>, holds: Vec<Hold> },
    /// Stands for an LSN whose record is gone.
    Lost { bytes: Vec<u8>, head: RecordHead },
}

impl TailRecord {
    pub(super) fn rows(&self) -> &[TableRow] {
        match self {
            Self::Kept { rows, .. } => rows,
            Self::Lost { .. } => &[],
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Kept { bytes, .. } | Self::Lost { bytes, .. } => bytes,
        }
    }

    fn lines(&self) -> u64 {
        match self {
            Self::Kept { rows, .. } => rows.iter().map(|r| u64::from(r.count)).sum(),
            Self::Lost { .. } => 0,
        }
    }
}

/// Upper bound of an Open record without blocks.
const OPEN_MAX: u64 = 256;
