//! Start: lock, plan, replay through `apply`, and only then the log for new pushes.

use super::commit::{Committer, shard_of};
use super::data_dir::{Dirs, Identity, holds_segments};
use super::instance::Instance;
use super::memory::Meter;
use super::retain::Retainer;
use super::seal::Sealed;
use super::sealed::SealedBlock;
use super::stream::{ChunkState, CloseReason};
use super::{
    DataDir, DataDirError, Ingester, IngesterConfig, IngesterMetrics, Live, NilRecord, OnPoisoned, State, Stream,
};
use crate::chunk::Symbols;
use crate::model::{LabelSet, Overrides, Tenant};
use crate::planted::{Bug, is};
use crate::wal::format::RECORD_HEAD_LEN;
use crate::wal::{
    BlockLogOptions, BlockPlace, BlockStore, BodyView, ById, Contents, Cut, DamageReport, FoundBlock, Hold,
    ListedBlock, Plan, Quarantine, RecordHead, RecoverError, Recovered, ReplaySegment, SeriesDef, Side, StreamLog,
    TableRow, Tables, WalMetrics, WalOptions, decompress_body_into, recover_doubting,
};
use ahash::AHashMap;
use rayon::prelude::*;
use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use uuid::Uuid;

/// Records are decompressed and applied in batches of about this many stored bytes: what was decompressed is mostly still cached
/// when it is applied, and the threads seldom wait for each other.
const BATCH: usize = 8 << 20;
/// Blocks that are touched at a time: less than what a processor's own cache holds.
const TOUCHED: usize = 256;
/// Fewer blocks are not worth a thread.
const FEW_BLOCKS: usize = 10_000;

/// How far recovery is; for `/ready` and the log.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of the log read and replayed.
    pub done: AtomicU64,
    /// Bytes to do.
    pub total: AtomicU64,
}

/// What recovery found.
#[derive(Clone, Debug, Default)]
pub struct RecoveryReport {
    /// Segments with content.
    pub segments: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Streams.
    pub streams: u64,
    /// Lines applied from the write-ahead log.
    pub lines: u64,
    /// Lines in sealed blocks, which are not read at the start.
    pub block_lines: u64,
    /// Bytes of the block log.
    pub block_bytes: u64,
    /// Bytes of those lines.
    pub line_bytes: u64,
    /// Seconds from the lock to the last applied line.
    pub seconds: f64,
    /// Of these, until both logs were read and planned.
    pub read_seconds: f64,
    /// Of these, until streams and chunks were made from the block log.
    pub restored_seconds: f64,
    /// Places that are damaged and were not known before.
    pub damaged_places: usize,
    /// Why damaged segments, or the reports, are not in quarantine.
    pub quarantine_failed: Vec<String>,
    /// Acknowledged lines that are gone.
    pub lost_lines: u64,
    /// There may be more of them: nothing is left that would tell.
    pub at_least: bool,
    /// Where, one line each, at most ten; and what that means beyond its count.
    pub losses: Vec<String>,
    /// Records at the very end that were cut or damaged within 50 ms of their ack.
    pub unresolved: u64,
    /// Records whose stream no surviving definition names.
    pub unattributed_lines: u64,
    /// When the newest lines of the log were written: nanoseconds since the Unix epoch.
    pub newest: Option<i64>,
}

/// Why the ingester did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The log.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// Damage was found, and `ingester.wal.on_damage` is `refuse`.
    #[error(
        "the log is damaged and ingester.wal.on_damage is refuse, so nothing was changed: acknowledged lines lost: {lost}; \
         {places}. Look at it with wal-inspect verify; start with on_damage: salvage to keep everything else"
    )]
    Damaged {
        /// How many acknowledged lines are gone.
        lost: String,
        /// Where, at most ten places.
        places: String,
    },
}

/// A replayed ingester, and what it needs to go live.
pub struct Replayed {
    ingester: Ingester<NilRecord>,
    recovered: Recovered,
    data_dir: DataDir,
    /// Damage that is to go into quarantine, and the bytes that are there.
    damage: Vec<DamageReport>,
    kept: u64,
    /// What was found.
    pub report: RecoveryReport,
}

impl Ingester<NilRecord> {
    /// Takes the data directory and replays its log. Nothing is written but the lock, and the identity of a new
    /// directory.
    ///
    /// # Errors
    /// The directory is in use, or the disk fails.
    pub fn replay(
        config: IngesterConfig,
        overrides: Arc<Overrides>,
        metrics: IngesterMetrics,
        progress: &Progress,
    ) -> Result<Replayed, StartError> {
        let started = Instant::now();
        metrics.replay_active.set(1);
        let data_dir = DataDir::open(&config)?;
        let state = State::new(config, overrides, metrics);
        let config = &state.config;
        let metrics = state.metrics.wal.clone();
        let options = wal_options(config, data_dir.identity.volume, state.next_stream_id.clone(), metrics);
        let quarantine = Quarantine::read(&*config.fs, &config.quarantine_dir).unwrap_or_default();
        // Reading counts for half of the way, applying for the other.
        let recovered = recover_doubting(options, &quarantine.suspects(), &mut |done, total| {
            progress.total.store(total * 2, Ordering::Relaxed);
            progress.done.store(done, Ordering::Relaxed);
            state.metrics.replay_is_at(progress);
        })?;
        let mut replay = Replay {
            state: &state,
            plan: &recovered.plan,
            streams: ById::for_ids(recovered.plan.definitions.keys().copied()),
            made: Vec::new(),
            spare: Vec::new(),
            report: RecoveryReport::default(),
        };
        replay.report.read_seconds = started.elapsed().as_secs_f64();
        let restored = replay.restore(&recovered);
        replay.report.restored_seconds = started.elapsed().as_secs_f64();
        let total = recovered.bytes.max(1);
        // What was read had the metadata of blocks in it.
        let half = progress.total.load(Ordering::Relaxed) / 2;
        progress.done.store(half, Ordering::Relaxed);
        state.metrics.replay_is_at(progress);
        let done = |len: u64| {
            let share = u128::from(len) * u128::from(half) / u128::from(total);
            progress.done.fetch_add(share as u64, Ordering::Relaxed);
            state.metrics.replay_bytes.add(share as i64);
        };
        std::thread::scope(|scope| {
            let show = scope.spawn(|| restored.iter().for_each(|streams| state.show_all(streams)));
            // Within the pool: its threads stay awake from one step to the next.
            let applied = rayon::scope(|_| replay.apply_all(&recovered, &done));
            // A panic while replaying must not pass as a shorter log.
            show.join().unwrap_or_else(|_| std::process::abort());
            applied
        })?;
        let may_go_on = recovered.may_go_on();
        let admits = |id: u64| may_go_on.as_ref().is_none_or(|known| known.contains(&id));
        replay.finish(|id| !recovered.has_forgotten() && admits(id));
        let mut report = replay.report;
        report.segments = recovered.segments;
        report.bytes = recovered.bytes;
        report.seconds = started.elapsed().as_secs_f64();
        state.next_stream_id.store(recovered.plan.next_stream_id, Ordering::SeqCst);
        let damage = quarantine.news(recovered.damage_reports());
        report.note(&recovered, &damage, &quarantine);
        if config.refuse_damage && report.is_new(&damage, &quarantine) {
            return Err(StartError::Damaged { lost: report.lost(), places: report.losses.join("; ") });
        }
        state.metrics.recovery_ended(&report);
        let ingester = Ingester { state: state.clone(), log: NilRecord };
        Ok(Replayed { ingester, recovered, data_dir, damage, kept: quarantine.bytes, report })
    }
}

impl Replayed {
    /// What was replayed, for reads: nothing can be pushed to it.
    pub fn ingester(&self) -> &Ingester<NilRecord> {
        &self.ingester
    }

    /// Puts damaged segments into quarantine, before anything can retire them. That it fails, on a full disk for one, keeps
    /// nobody from starting: the report says why.
    pub fn keep_damaged(&mut self) {
        if self.damage.is_empty() {
            return;
        }
        let (dir, damage) = (&self.ingester.state.config.quarantine_dir, std::mem::take(&mut self.damage));
        self.report.quarantine_failed = match self.recovered.quarantine(dir, self.kept, damage) {
            Ok(failed) => failed,
            Err(error) => vec![format!("no report could be written: {error}")],
        };
    }

    /// Makes the unsettled tail durable and opens the log: from here on pushes can be stored.
    ///
    /// # Errors
    /// The tail could not be made durable.
    pub fn go_live(mut self, on_poisoned: OnPoisoned) -> Result<Ingester<Live>, StartError> {
        self.keep_damaged();
        let Self { ingester: Ingester { state, log: NilRecord }, recovered, data_dir, .. } = self;
        let committer = Committer::start(&state, on_poisoned);
        let (wal, blocks) = recovered.open(committer, Sealed(Arc::downgrade(&state)))?;
        let blocks = Arc::new(blocks);
        state.sealer.opened(blocks.clone());
        let retainer = Retainer::start(&state, &wal, &blocks);
        Ok(Ingester { state, log: Live { wal, blocks, retainer, scrubber: OnceLock::new(), data_dir } })
    }
}

fn wal_options(
    config: &IngesterConfig,
    volume: Uuid,
    next_stream_id: Arc<AtomicU64>,
    metrics: WalMetrics,
) -> WalOptions {
    WalOptions {
        fs: config.fs.clone(),
        dir: config.wal_dir.clone(),
        volume,
        segment_size: config.segment_size,
        max_size: config.wal_max_size,
        blocks: BlockLogOptions {
            dir: config.blocks_dir.clone(),
            segment_size: config.segment_size,
            max_size: config.blocks_max_size,
        },
        sync: config.sync,
        queue_bytes: config.queue_bytes.saturating_mul(2),
        next_stream_id,
        metrics,
    }
}

/// What a start would find.
pub struct Forecast {
    /// As a start would report it; without what only a replay finds.
    pub report: RecoveryReport,
    /// Reports in the quarantine that nobody has acknowledged.
    pub unacknowledged: Vec<String>,
    /// With `on_damage: refuse`, a start would change nothing and end.
    pub would_refuse: bool,
}

/// Reads and plans as a start would, and changes nothing; `None` if the data directory is new.
///
/// # Errors
/// A start would fail.
pub fn forecast(config: &IngesterConfig) -> Result<Option<Forecast>, StartError> {
    let shown = config.data_dir.display().to_string();
    let dirs = Dirs::of(config);
    let Some(identity) = Identity::of(&*config.fs, &dirs)? else {
        return if config.require_data { Err(DataDirError::Empty(shown).into()) } else { Ok(None) };
    };
    if !holds_segments(&*config.fs, &dirs).map_err(|e| DataDirError::Io(shown, e))? {
        return Ok(None);
    }
    let options = wal_options(config, identity.volume, Arc::default(), WalMetrics::unregistered());
    let quarantine = Quarantine::read(&*config.fs, &config.quarantine_dir).unwrap_or_default();
    let recovered = recover_doubting(options, &quarantine.suspects(), &mut |_, _| {})?;
    let damage = quarantine.news(recovered.damage_reports());
    let mut report =
        RecoveryReport { segments: recovered.segments, bytes: recovered.bytes, ..RecoveryReport::default() };
    report.note(&recovered, &damage, &quarantine);
    let would_refuse = report.is_new(&damage, &quarantine);
    Ok(Some(Forecast { report, would_refuse, unacknowledged: quarantine.unread }))
}

/// Applies the log's records, in parallel by stream.
struct Replay<'a> {
    state: &'a Arc<State>,
    plan: &'a Plan,
    streams: ById<Known>,
    /// Those of them of which nothing was known but a definition.
    made: Vec<u64>,
    spare: Vec<Slot>,
    report: RecoveryReport,
}

/// A stream, with what most records are asked for beside it: the streams lie far from each other.
struct Known {
    stream: Arc<Stream>,
    /// Smaller seqs are in blocks, or flushed.
    settled: u64,
    /// Smaller seqs have been given, by the stream's definition.
    defined: u64,
}

impl Known {
    fn new(stream: Arc<Stream>, definition: &SeriesDef) -> Self {
        Self { settled: stream.next_seq(), defined: definition.next_seq, stream }
    }

    /// Are there seqs below this one that are neither in a block nor applied?
    fn needs(&self, end_seq: u64) -> bool {
        self.settled < end_seq && self.stream.next_seq() < end_seq || is(Bug::AppliedTwice)
    }
}

/// Buffers for a run of records; their memory is used again.
#[derive(Default)]
struct Slot {
    stored: Vec<u8>,
    bodies: Vec<Body>,
}

/// A decompressed body, or the side of it that is needed, if it is sound.
#[derive(Default)]
struct Body {
    raw: Vec<u8>,
    /// How far the parts lie before their places in the whole body.
    shift: usize,
    sound: bool,
}

impl Body {
    fn decompress(&mut self, head: &RecordHead, stored: &[u8], sides: Option<(Cut, (Option<Side>, Option<Side>))>) {
        self.shift = 0;
        if let Some((cut, (Some(side), None) | (None, Some(side)))) = sides {
            self.sound = cut.decompress(side, head.raw_len, stored, &mut self.raw).is_ok();
            self.shift = cut.shift(side);
            if self.sound {
                return;
            }
            // A cut only saves time: the body may hold without it.
            self.shift = 0;
        }
        self.sound = decompress_body_into(head, stored, &mut self.raw).is_ok();
    }
}

/// What was decided about a stream's chunks, by chunk number.
#[derive(Default)]
struct Decided {
    closed: AHashMap<u64, CloseReason>,
    flushed: AHashMap<u64, Range<u64>>,
}

/// Gives a stream its chunks from the blocks that were found; returns the lines in them.
fn restore_stream(
    stream: &Stream,
    blocks: &mut Vec<FoundBlock<'_>>,
    decided: &Decided,
    settled_seq: u64,
    store: &Arc<BlockStore>,
    metadata: &Meter,
) -> u64 {
    // Of equal blocks, one is a copy that was made for cleaning: the newer place stays.
    blocks.sort_by_key(|b| (b.tables.first_seq, Reverse((b.place.segment, b.place.offset))));
    take_replaced(blocks).into_iter().for_each(|place| store.free(place));
    let mut chunks: BTreeMap<u64, (ChunkState, BTreeMap<u32, &[u8]>)> = BTreeMap::new();
    let mut settled: Vec<Range<u64>> = Vec::with_capacity(decided.flushed.len() + 1 + blocks.len());
    settled.extend(decided.flushed.values().cloned());
    settled.extend((settled_seq > 0).then_some(0..settled_seq));
    let (mut end, mut lines, mut newest_chunk) = (0, 0, decided.flushed.keys().max().copied());
    for number in decided.flushed.keys() {
        let places = blocks.iter().filter(|b| b.tables.chunk == *number).map(|b| b.place);
        stream.note_flushed(*number, &places.collect::<Vec<_>>());
    }
    let mut newest_timestamp = None;
    let shelf = stream.shelf(store, metadata);
    for same_chunk in blocks.chunk_by(|a, b| a.tables.chunk == b.tables.chunk) {
        for FoundBlock { place, tables } in same_chunk {
            newest_chunk = newest_chunk.max(Some(tables.chunk));
            newest_timestamp = newest_timestamp.max(Some(tables.newest_timestamp));
            let data_len = place.len.saturating_sub(RECORD_HEAD_LEN as u32 + tables.encoded_len() as u32);
            let is_needed = tables.first_seq >= end && !decided.flushed.contains_key(&tables.chunk);
            let block = is_needed.then(|| SealedBlock::of(tables, *place, data_len, shelf));
            let Some(Ok(block)) = block else {
                store.free(*place);
                continue;
            };
            end = tables.end_seq;
            lines += u64::from(tables.entries);
            settled.push(block.seqs.clone());
            let (chunk, symbols) = chunks.entry(tables.chunk).or_default();
            if chunk.blocks.is_empty() {
                chunk.number = tables.chunk;
                chunk.closed = decided.closed.get(&tables.chunk).copied();
                chunk.blocks.reserve(same_chunk.len());
            }
            chunk.compressed += block.len();
            chunk.blocks.push(Arc::new(block));
            symbols.extend(tables.symbols.iter());
        }
    }
    newest_timestamp.into_iter().for_each(|timestamp| stream.note_newest(timestamp));
    let newest = newest_chunk.map_or(0, |n| n + 1);
    let chunks: VecDeque<ChunkState> = chunks
        .into_values()
        .map(|(mut chunk, texts)| {
            chunk.symbols = Arc::new(table_of(&texts));
            // A chunk with a successor takes no more.
            let succeeded = chunk.number + 1 < newest;
            chunk.closed = chunk.closed.or(succeeded.then_some(CloseReason::Full));
            chunk
        })
        .collect();
    let settled = merged(settled);
    let prefix = settled.front().filter(|r| r.start == 0).map_or(0, |r| r.end);
    let last = blocks.iter().map(|b| &b.tables).rfind(|t| t.end_seq == prefix);
    let last = last.map(|t| (t.last_timestamp, t.last_hash));
    stream.restore(chunks, newest, settled, last);
    lines
}

/// Takes out damaged blocks in whose place an earlier start has made others, of what the log still had of their lines: also
/// when nobody tells any more that they are damaged. No others overlap but in the whole. `blocks` are sorted by their first
/// seq, the newest of equal ones first.
fn take_replaced(blocks: &mut Vec<FoundBlock<'_>>) -> Vec<BlockPlace> {
    let place = |b: &FoundBlock<'_>| (b.place.segment, b.place.offset);
    let mut out = Vec::new();
    let mut at = 1;
    while let Some([before, block]) = blocks.get(at - 1..=at) {
        let inside = (before.tables.first_seq + 1..before.tables.end_seq).contains(&block.tables.first_seq);
        if inside && place(block) > place(before) {
            out.push(blocks.remove(at - 1).place);
            at = at.max(2) - 1;
        } else {
            at += 1;
        }
    }
    out
}

/// The chunk's symbols with their ids. An id that only a damaged block used stands for nothing.
fn table_of(texts: &BTreeMap<u32, &[u8]>) -> Symbols {
    let mut symbols = Symbols::new();
    for (id, text) in texts {
        while symbols.len() < *id as usize {
            symbols.push(b"");
        }
        symbols.push(text);
    }
    symbols
}

/// What a restoration needs to know of all streams.
struct Restoring<'a> {
    state: &'a Arc<State>,
    plan: &'a Plan,
    recovered: &'a Recovered,
    decided: AHashMap<u64, Decided>,
    /// Nothing is damaged.
    sound: bool,
}

/// What was made of some streams.
#[derive(Default)]
struct Restored {
    streams: Vec<Known>,
    /// Those that have lines.
    visible: Vec<Arc<Stream>>,
    lines: u64,
}

/// Some streams and their blocks, with those of each beside each other, in the order of the log.
struct ByStream<'a> {
    definitions: Vec<&'a SeriesDef>,
    blocks: Vec<ListedBlock<'a>>,
    /// Where those of each stream end.
    ends: Vec<usize>,
    /// Lines in blocks of none of the streams.
    unnamed_lines: u64,
}

impl<'a> ByStream<'a> {
    /// `ours` gives the same blocks twice. Counting them first spares sorting them.
    fn new<B: Iterator<Item = ListedBlock<'a>>>(definitions: Vec<&'a SeriesDef>, ours: impl Fn() -> B) -> Self {
        let mut at = ById::for_ids(definitions.iter().map(|d| d.id));
        (0..).zip(&definitions).for_each(|(n, d): (u32, _)| at.insert(d.id, n));
        let lines = |b: ListedBlock<'_>| b.read().map_or(0, |b| u64::from(b.tables.entries));
        let (mut counts, mut unnamed_lines) = (vec![0; definitions.len()], 0);
        // Which stream each block is of: looked up once.
        let mut streams: Vec<u32> = Vec::new();
        for block in ours() {
            let stream = at.get(block.stream).copied().unwrap_or(u32::MAX);
            match counts.get_mut(stream as usize) {
                Some(count) => *count += 1,
                None => unnamed_lines += lines(block),
            }
            streams.push(stream);
        }
        // Where the next one of each goes: behind the last, where its stream's blocks end.
        let mut next = 0;
        let begin = |count: usize| {
            next += count;
            next - count
        };
        let mut ends: Vec<usize> = counts.into_iter().map(begin).collect();
        let mut blocks = vec![ListedBlock::default(); next];
        for (block, stream) in ours().zip(streams) {
            let Some(end) = ends.get_mut(stream as usize) else { continue };
            if let Some(slot) = blocks.get_mut(*end) {
                *slot = block;
            }
            *end += 1;
        }
        Self { definitions, blocks, ends, unnamed_lines }
    }

    /// The streams a few at a time: so many that the processors end at about the same time.
    fn parts(&self) -> impl Iterator<Item = Range<usize>> {
        const STREAMS: usize = 500;
        let count = self.definitions.len();
        (0..count).step_by(STREAMS).map(move |begin| begin..count.min(begin + STREAMS))
    }

    /// The definitions of some streams, each with its blocks.
    fn streams(&self, part: Range<usize>) -> impl Iterator<Item = (&'a SeriesDef, &[ListedBlock<'a>])> {
        let begin = part.start.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        let definitions = self.definitions.get(part.clone()).unwrap_or_default();
        let ends = self.ends.get(part).unwrap_or_default();
        let blocks = self.blocks.get(begin..ends.last().copied().unwrap_or(begin)).unwrap_or_default();
        let (mut at, mut touched) = (begin, 0);
        definitions.iter().zip(ends).map(move |(definition, end)| {
            // What lies far from each other is fetched for many streams at once.
            while touched < blocks.len() && touched < end - begin + TOUCHED {
                let next = blocks.get(touched..).unwrap_or_default();
                let next = next.get(..TOUCHED).unwrap_or(next);
                std::hint::black_box(next.iter().fold(0, |sum, block| sum ^ block.touch()));
                touched += next.len();
            }
            let own = blocks.get(at - begin..end - begin).unwrap_or_default();
            at = *end;
            (*definition, own)
        })
    }
}

impl Restoring<'_> {
    fn by_stream(&self, shard: usize, shards: usize) -> ByStream<'_> {
        let is_ours = |id: u64| shard_of(id, shards) == shard;
        let definitions = self.plan.definitions.values().map(|d| &**d);
        let ours = || self.recovered.blocks().listed().filter(|b| is_ours(b.stream));
        ByStream::new(definitions.filter(|d| is_ours(d.id)).collect(), ours)
    }

    fn restore(&self, by_stream: &ByStream<'_>, part: Range<usize>) -> Restored {
        let mut out = Restored::default();
        let nothing = Decided::default();
        let (mut maker, mut read) = (Maker::new(self.state), Vec::new());
        for (definition, blocks) in by_stream.streams(part) {
            read.clear();
            read.extend(blocks.iter().filter_map(ListedBlock::read));
            let settled_seq = if self.sound { definition.settled_seq } else { 0 };
            let decided = self.decided.get(&definition.id).unwrap_or(&nothing);
            if read.is_empty() && decided.flushed.is_empty() && settled_seq == 0 {
                continue;
            }
            if let Some(stream) = maker.make(definition) {
                let store = self.recovered.block_store();
                out.lines += restore_stream(&stream, &mut read, decided, settled_seq, store, &self.state.metadata);
                out.visible.extend(stream.is_visible().then(|| stream.clone()));
                out.streams.push(Known::new(stream, definition));
            }
        }
        out
    }
}

/// Makes streams of definitions. Most have the tenant of the one before.
struct Maker<'a> {
    state: &'a State,
    last: Option<Arc<Instance>>,
}

impl<'a> Maker<'a> {
    fn new(state: &'a State) -> Self {
        Self { state, last: None }
    }

    /// The stream that a definition tells of; `None` if its tenant cannot be one.
    fn make(&mut self, definition: &SeriesDef) -> Option<Arc<Stream>> {
        let instance = match self.last.take().filter(|last| last.tenant.as_str() == definition.tenant) {
            Some(last) => last,
            None => self.state.instance(&Tenant::new(&definition.tenant).ok()?),
        };
        let labels = Arc::new(LabelSet::new(definition.labels.iter().map(|(n, v)| (n.as_str(), v.as_str()))));
        let log = StreamLog::new(definition.id, instance.tenant.clone(), labels, 0);
        let stream = Stream::new(Arc::new(log), &self.state.metadata, &instance.blocks);
        self.last = Some(instance);
        Some(Arc::new(stream))
    }
}

/// Ranges sorted, those that touch made one.
fn merged(mut ranges: Vec<Range<u64>>) -> VecDeque<Range<u64>> {
    ranges.sort_by_key(|r| r.start);
    let mut out: VecDeque<Range<u64>> = VecDeque::new();
    for range in ranges {
        match out.back_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push_back(range),
        }
    }
    out
}

/// A record with the rows of its table that are needed: those whose entries are not all in blocks, in the object store, or
/// applied already.
struct Part<'a> {
    /// With their streams, and where their parts begin in the body.
    rows: Vec<(TableRow, &'a Arc<Stream>, usize)>,
    /// Which of the slot's.
    body: usize,
}

/// What a run holds.
struct Run<'a> {
    parts: Vec<Part<'a>>,
    /// Lines of streams that no definition names.
    unattributed: u64,
    slot: Slot,
}

#[derive(Default)]
struct Totals {
    lines: u64,
    bytes: u64,
    unattributed: u64,
}

impl Totals {
    fn add(&mut self, other: &Self) {
        self.lines += other.lines;
        self.bytes += other.bytes;
        self.unattributed += other.unattributed;
    }
}

/// The sides of the cut on which there is something to apply.
fn needed_sides(cut: Cut, rows: &[(TableRow, &Arc<Stream>, usize)]) -> (Option<Side>, Option<Side>) {
    let has = |side| rows.iter().any(|(_, _, start)| cut.side(*start) == side).then_some(side);
    (has(Side::Before), has(Side::Behind))
}

impl Replay<'_> {
    /// Makes the streams and chunks again that the block log holds, without reading a block; returns the streams that have lines.
    fn restore(&mut self, recovered: &Recovered) -> Vec<Vec<Arc<Stream>>> {
        let mut decided: AHashMap<u64, Decided> = AHashMap::new();
        for hold in self.plan.contents.iter().flat_map(|c| &c.holds) {
            match hold {
                Hold::Closed(c) => {
                    let reason = CloseReason::from_code(c.reason);
                    decided.entry(c.stream).or_default().closed.insert(c.chunk, reason);
                }
                Hold::Flushed(c) => {
                    decided.entry(c.stream).or_default().flushed.insert(
                        c.chunk,
                        if is(Bug::FlushedAsPrefix) { 0..c.end_seq + 1000 } else { c.first_seq..c.end_seq },
                    );
                }
                Hold::Gap(_) => {}
            }
        }
        let restoring = Restoring {
            state: self.state,
            plan: self.plan,
            recovered,
            decided,
            // What a definition says of a prefix saves the look at each record. After damage the blocks that it means may be gone
            // while the write-ahead log still has their lines; what is flushed, ChunkFlushed records say as long as it matters.
            sound: recovered.blocks().damage.is_empty() && self.plan.loss.is_empty() && self.plan.gaps.is_empty(),
        };
        let threads = if recovered.blocks().len() < FEW_BLOCKS { 1 } else { self.state.config.threads.max(1) };
        let by_stream: Vec<ByStream<'_>> =
            (0..threads).into_par_iter().map(|n| restoring.by_stream(n, threads)).collect();
        let parts: Vec<_> = by_stream.iter().flat_map(|b| b.parts().map(move |part| (b, part))).collect();
        let restored = parts.into_par_iter().with_max_len(1).map(|(b, part)| restoring.restore(b, part));
        let restored: Vec<Restored> = restored.collect();
        // They are kept, and told.
        self.report.unattributed_lines += by_stream.iter().map(|b| b.unnamed_lines).sum::<u64>();
        let mut visible = Vec::with_capacity(restored.len());
        for part in restored {
            self.report.block_lines += part.lines;
            part.streams.into_iter().for_each(|known| self.streams.insert(known.stream.id(), known));
            visible.push(part.visible);
        }
        visible
    }

    /// Makes the streams that are in the log alone, from any surviving definition, and tells all of them how far their
    /// entries go in the log.
    fn make_streams(&mut self) {
        // Each newer segment tells more of nearly all of them.
        let mut ends: AHashMap<u64, u64> = AHashMap::with_capacity(self.plan.definitions.len());
        for (id, end) in self.plan.contents.iter().flat_map(|c| &c.streams) {
            let known = ends.entry(*id).or_default();
            *known = (*known).max(*end);
        }
        let ends: Vec<(u64, u64)> = ends.into_iter().collect();
        let make = |maker: &mut Maker<'_>, (id, end): (u64, u64)| {
            if let Some(known) = self.streams.get(id) {
                if known.settled < end {
                    known.stream.expect(end);
                }
                return None;
            }
            let definition = self.plan.definitions.get(&id)?;
            let made = maker.make(definition)?;
            made.expect(end);
            Some((id, Known::new(made, definition)))
        };
        let made = ends.into_par_iter().map_init(|| Maker::new(self.state), make);
        let made: Vec<(u64, Known)> = made.flatten_iter().collect();
        self.made = made.iter().map(|(id, _)| *id).collect();
        made.into_iter().for_each(|(id, known)| self.streams.insert(id, known));
    }

    /// Is there an entry in a segment that is not in a block or applied? If not, it is not even read.
    fn needs(&self, contents: &Contents) -> bool {
        contents.streams.iter().any(|(id, end)| self.streams.get(*id).is_none_or(|k| k.needs(*end)))
    }

    /// Applies what is needed of the log. `done` gets the bytes of each segment.
    fn apply_all(&mut self, recovered: &Recovered, done: &(dyn Fn(u64) + Sync)) -> Result<(), RecoverError> {
        self.make_streams();
        // Entries that were carried to a newer segment come first: those behind them have smaller LSNs.
        recovered.carried().try_for_each(|segment| self.segment(&segment?))?;
        let numbers = recovered.needed(|contents| {
            let needed = self.needs(contents);
            done(if needed { 0 } else { contents.file_len });
            needed
        });
        numbers.into_iter().try_for_each(|number| {
            let is_needed = |id: u64, end: u64| self.streams.get(id).is_none_or(|known| known.needs(end));
            let Some(segment) = recovered.segment(number, &is_needed)? else { return Ok(()) };
            self.segment(&segment)?;
            done(segment.file_len);
            Ok(())
        })
    }

    /// Applies a segment's records, batch by batch. That one is loaded while another is applied would cost more of the cache
    /// than it gains.
    fn segment(&mut self, segment: &ReplaySegment) -> Result<(), RecoverError> {
        let mut spare = std::mem::take(&mut self.spare);
        let mut totals = Totals::default();
        for batch in batches(segment, &segment.runs()) {
            let with_slots = batch.iter().map(|run| (run, spare.pop().unwrap_or_default())).collect();
            let loaded = self.load(segment, with_slots)?;
            totals.add(&self.apply(&loaded));
            spare.extend(loaded.into_iter().map(|run| run.slot));
        }
        self.spare = spare;
        self.report.lines += totals.lines;
        self.report.line_bytes += totals.bytes;
        self.report.unattributed_lines += totals.unattributed;
        Ok(())
    }

    fn load<'a>(
        &'a self,
        segment: &ReplaySegment,
        runs: Vec<(&Range<usize>, Slot)>,
    ) -> Result<Vec<Run<'a>>, RecoverError> {
        runs.into_par_iter().map(|(run, slot)| self.load_run(segment, run, slot)).collect()
    }

    /// Reads a run and decompresses what is needed of it.
    fn load_run<'a>(
        &'a self,
        segment: &ReplaySegment,
        run: &Range<usize>,
        mut slot: Slot,
    ) -> Result<Run<'a>, RecoverError> {
        let Slot { stored, bodies } = &mut slot;
        let records = segment.read(run, stored)?;
        if bodies.len() < records.len() {
            bodies.resize_with(records.len(), Body::default);
        }
        let mut parts = Vec::with_capacity(records.len());
        let mut unattributed = 0;
        for ((n, body), (record, bytes)) in bodies.iter_mut().enumerate().zip(records) {
            // What does not decode is damage, and told as that.
            let Ok(tables) = Tables::decode(record.head.tables(bytes, 0)) else { continue };
            let (rows, unknown) = self.needed_rows(tables.rows);
            unattributed += unknown;
            if !rows.is_empty() {
                let sides = Cut::find(tables.extension).map(|cut| (cut, needed_sides(cut, &rows)));
                body.decompress(&record.head, record.head.body(bytes, 0), sides);
                parts.push(Part { rows, body: n });
            }
        }
        Ok(Run { parts, unattributed, slot })
    }

    fn apply(&self, runs: &[Run<'_>]) -> Totals {
        let threads = self.state.config.threads.max(1);
        let shards: Vec<Totals> =
            (0..threads).into_par_iter().map(|n| apply_shard(self.state, runs, n, threads)).collect();
        let mut totals = Totals { unattributed: runs.iter().map(|run| run.unattributed).sum(), ..Totals::default() };
        shards.iter().for_each(|shard| totals.add(shard));
        totals
    }

    /// The rows that are needed, with their streams and where their parts begin in the body, and how many lines no definition names.
    fn needed_rows(&self, all: Vec<TableRow>) -> (Vec<(TableRow, &Arc<Stream>, usize)>, u64) {
        let (mut start, mut unattributed) = (0, 0);
        let mut rows = Vec::new();
        for row in all {
            let len = row.part_len as usize;
            match self.streams.get(row.stream) {
                Some(known) if !known.needs(row.end_seq()) => {}
                Some(known) => rows.push((row, &known.stream, start)),
                None => unattributed += u64::from(row.count),
            }
            start += len;
        }
        (rows, unattributed)
    }

    /// Lines up the streams with the log's end, and lets new entries go to them with `admits`: after damage, seqs at a
    /// stream's end may have been used by lost records, and its labels go on under a new id.
    fn finish(&mut self, admits: impl Fn(u64) -> bool + Sync) {
        // Their records were damaged, or lie behind the log's end.
        let made = std::mem::take(&mut self.made);
        let is_empty = |id: &u64| self.streams.get(*id).is_some_and(|k| k.stream.next_seq() == 0);
        let empty: Vec<u64> = made.into_iter().filter(is_empty).collect();
        empty.into_iter().for_each(|id| self.streams.remove(id));
        let mut lost: AHashMap<u64, u64> = AHashMap::new();
        let told = self.plan.gaps.iter().flat_map(|g| &g.seqs).map(|(id, _, end)| (*id, *end));
        // What is found lost now is told by the next Gap. Nothing of it comes any more, so no segment waits for it.
        let found = self.plan.loss.streams.iter().map(|row| (row.stream, row.end_seq()));
        for (id, end) in told.chain(found) {
            let known = lost.entry(id).or_default();
            *known = end.max(*known);
        }
        let line_up = |Known { stream, defined, .. }: &Known| {
            stream.replayed(lost.get(&stream.id()).copied().unwrap_or(0).max(*defined));
            stream.log.resume_at(stream.next_seq());
            let text: Box<str> = stream.labels().text().into();
            (stream.log.tenant.clone(), admits(stream.id()).then(|| (text, stream.clone())))
        };
        let streams: Vec<&Known> = self.streams.iter().collect();
        self.report.streams = streams.len() as u64;
        let streams: Vec<_> = streams.into_par_iter().map(line_up).collect();
        let mut by_tenant: AHashMap<Tenant, Vec<(Box<str>, Arc<Stream>)>> = AHashMap::new();
        for (tenant, stream) in streams {
            by_tenant.entry(tenant).or_default().extend(stream);
        }
        for (tenant, streams) in by_tenant {
            self.state.instance(&tenant).recovered(streams);
        }
    }
}

/// The runs in batches that are loaded at once.
fn batches<'a>(segment: &ReplaySegment, runs: &'a [Range<usize>]) -> Vec<&'a [Range<usize>]> {
    let mut out = Vec::new();
    let mut rest = runs;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |run: &&Range<usize>| {
            bytes += segment.len_of(run);
            bytes <= BATCH
        };
        let (batch, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        out.push(batch);
        rest = later;
    }
    out
}

fn apply_shard(state: &State, runs: &[Run<'_>], shard: usize, threads: usize) -> Totals {
    let mut totals = Totals::default();
    let parts =
        runs.iter().flat_map(|run| run.parts.iter().filter_map(|part| Some((part, run.slot.bodies.get(part.body)?))));
    for (part, body) in parts {
        let Some(Ok(view)) = body.sound.then(|| BodyView::new(&body.raw)) else { continue };
        let ours = || part.rows.iter().filter(|(row, _, _)| shard_of(row.stream, threads) == shard);
        // As with blocks: the streams lie far from each other, and the processor fetches all of them at once.
        std::hint::black_box(ours().fold(false, |any, (_, stream, _)| any ^ stream.touch()));
        for (row, stream, start) in ours() {
            if let Ok(outcome) = state.apply(stream, row, &view, start.saturating_sub(body.shift)) {
                totals.lines += outcome.lines;
                totals.bytes += outcome.bytes;
            }
        }
    }
    totals
}

impl RecoveryReport {
    /// How many acknowledged lines are gone, in words.
    pub fn lost(&self) -> String {
        format!("{}{}", if self.at_least { "at least " } else { "" }, self.lost_lines)
    }

    /// Must an operator who wants to know of damage see this first? Not what the scrubber has told, and has made safe: the lines were
    /// sealed, so the damage costs none.
    fn is_new(&self, damage: &[DamageReport], kept: &Quarantine) -> bool {
        let costs = self.lost_lines > 0 || self.at_least || self.unattributed_lines > 0;
        !damage.is_empty() && (costs || !kept.has_scrubbed(damage))
    }

    fn note(&mut self, recovered: &Recovered, damage: &[DamageReport], kept: &Quarantine) {
        let plan = &recovered.plan;
        self.damaged_places = damage.iter().map(|r| r.places.len()).sum();
        self.lost_lines = recovered.lost_lines(damage, kept);
        self.at_least = damage.iter().any(|r| r.at_least);
        self.unresolved = plan.unresolved.iter().map(|r| r.end - r.start).sum();
        let place = |r: &DamageReport, p: &String| format!("{} segment {}: {p}", r.log, r.segment);
        let places = damage.iter().flat_map(|r| r.places.iter().map(move |p| place(r, p)));
        let lsns = plan.loss.lsns.iter().map(|Range { start, end }| format!("LSN {start}..{end}"));
        self.losses = places.chain(lsns).take(10).collect();
        self.losses.extend(damage.first().into_iter().flat_map(|r| r.remarks.iter().cloned()));
        self.block_bytes = recovered.blocks().bytes;
        self.newest = plan.newest;
    }
}

impl IngesterMetrics {
    fn replay_is_at(&self, progress: &Progress) {
        let shown = |bytes: &AtomicU64| i64::try_from(bytes.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        self.replay_bytes_total.set(shown(&progress.total));
        self.replay_bytes.set(shown(&progress.done));
    }

    fn recovery_ended(&self, report: &RecoveryReport) {
        self.replay_active.set(0);
        self.replay_seconds.set(report.seconds);
        self.recovered_streams.inc_by(report.streams);
        self.recovered_entries.inc_by(report.lines + report.block_lines);
        self.recovered_bytes.inc_by(report.line_bytes);
        self.corruptions.with_label_values(&["segment"]).inc_by(report.damaged_places as u64);
        self.lost_lines.inc_by(report.lost_lines);
        self.unresolved_lsns.inc_by(report.unresolved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{BlockSymbolsRef, BlockTables};

    /// Blocks by place: first and end seq. What is left of them, in the order of their seqs.
    fn left(blocks: &[(u64, u64)]) -> (Vec<(u64, u64)>, Vec<u64>) {
        let block = |(offset, (first_seq, end_seq)): (u64, &(u64, u64))| FoundBlock {
            place: BlockPlace { segment: 1, offset, len: 1 },
            tables: BlockTables::<BlockSymbolsRef<'_>> {
                first_seq: *first_seq,
                end_seq: *end_seq,
                ..Default::default()
            },
        };
        let mut blocks: Vec<FoundBlock<'_>> = (0..).zip(blocks).map(block).collect();
        blocks.sort_by_key(|b| (b.tables.first_seq, Reverse(b.place.offset)));
        let taken = take_replaced(&mut blocks).iter().map(|p| p.offset).collect();
        (blocks.iter().map(|b| (b.tables.first_seq, b.tables.end_seq)).collect(), taken)
    }

    #[test]
    fn what_was_made_again_of_a_damaged_block_takes_its_place() {
        // Only its end was left in the log, and lines behind it came into the same block.
        assert_eq!(left(&[(0, 10), (10, 20), (15, 30), (30, 40)]), (vec![(0, 10), (15, 30), (30, 40)], vec![1]));
        // It was made again in two parts.
        assert_eq!(left(&[(0, 10), (10, 20), (12, 15), (15, 30)]), (vec![(0, 10), (12, 15), (15, 30)], vec![1]));
        assert_eq!(left(&[(0, 10), (0, 5), (5, 10)]).1, [0]);
        // Two neighbours were damaged.
        assert_eq!(left(&[(0, 10), (10, 20), (5, 18), (18, 30)]), (vec![(5, 18), (18, 30)], vec![0, 1]));
        // Copies are no replacement, and neighbours none.
        let copies = [(0, 10), (10, 20), (0, 10), (10, 20)];
        assert_eq!(left(&copies), (vec![(0, 10), (0, 10), (10, 20), (10, 20)], vec![]));
        assert_eq!(left(&[]), (vec![], vec![]));
    }
}
