//! Start: lock, plan, replay through `apply`, and only then the log for new pushes.

use super::commit::{Committer, shard_of};
use super::data_dir::{Dirs, Identity, holds_segments};
use super::restore::{Drafts, Maker, Restored, draft, restore};
use super::retain::Retainer;
use super::seal::Sealed;
use super::{
    DataDir, DataDirError, Ingester, IngesterConfig, IngesterMetrics, Live, NilRecord, OnPoisoned, State, Stream,
};
use crate::model::{Overrides, Tenant};
use crate::planted::{Bug, is};
use crate::wal::{
    Batch, BlockLogOptions, BodyView, ById, Contents, Cut, DamageReport, Plan, Quarantine, RecordHead, RecoverError,
    Recovered, ReplaySegment, Side, TableRow, Tables, WalMetrics, WalOptions, decompress_body_into, recover_ahead,
    recover_doubting,
};
use ahash::AHashMap;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use uuid::Uuid;

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
        let mut show_progress = |done, total| {
            progress.total.store(total * 2, Ordering::Relaxed);
            progress.done.store(done, Ordering::Relaxed);
            state.metrics.replay_is_at(progress);
        };
        let (recovered, drafts) =
            recover_ahead(options, &quarantine.suspects(), &mut show_progress, |ahead| draft(&state, ahead))?;
        let mut replay = Replay {
            state: &state,
            plan: &recovered.plan,
            streams: ById::for_ids(recovered.plan.definitions.keys().copied()),
            made: Vec::new(),
            report: RecoveryReport::default(),
        };
        replay.report.read_seconds = started.elapsed().as_secs_f64();
        let restored = replay.restore(&recovered, drafts);
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
            let applied = replay.apply_all(&recovered, &done);
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

pub(super) fn wal_options(
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
    fn new(stream: Arc<Stream>, defined: u64) -> Self {
        Self { settled: stream.next_seq(), defined, stream }
    }

    /// Are there seqs below this one that are neither in a block nor applied?
    fn needs(&self, end_seq: u64) -> bool {
        self.settled < end_seq && self.stream.next_seq() < end_seq || is(Bug::AppliedTwice)
    }
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

/// A record with the rows of its table that are needed: those whose entries are not all in blocks, in the object store, or
/// applied already.
struct Part<'a> {
    /// With their streams, and where their parts begin in the body.
    rows: Vec<(TableRow, &'a Arc<Stream>, usize)>,
    /// Which of the run's.
    body: usize,
}

/// What a run holds.
struct Run<'a> {
    parts: Vec<Part<'a>>,
    /// Lines of streams that no definition names.
    unattributed: u64,
    /// Their memory is used again.
    bodies: Vec<Body>,
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
    /// Makes the streams and chunks again that the block log holds; returns the streams that have lines.
    fn restore(&mut self, recovered: &Recovered, drafts: Drafts) -> Vec<Vec<Arc<Stream>>> {
        let (restored, unnamed_lines) = restore(self.state, recovered, drafts);
        self.report.unattributed_lines += unnamed_lines;
        // What lies far from each other is looked at by all processors.
        let look = |part: Vec<Restored>| {
            let shown: Vec<Arc<Stream>> = part.iter().map(|r| &r.stream).filter(|s| s.is_visible()).cloned().collect();
            let lines: u64 = part.iter().map(|r| r.lines).sum();
            let known = part.into_iter().map(|r| (r.id, Known::new(r.stream, r.next_seq))).collect();
            (shown, lines, known)
        };
        let looked: Vec<(_, u64, Vec<(u64, Known)>)> = restored.into_par_iter().map(look).collect();
        let mut visible = Vec::with_capacity(looked.len());
        for (shown, lines, known) in looked {
            visible.push(shown);
            self.report.block_lines += lines;
            known.into_iter().for_each(|(id, known)| self.streams.insert(id, known));
        }
        visible
    }

    /// Makes the streams that are in the log alone, from any surviving definition, and tells all of them how far their
    /// entries go in the log.
    fn make_streams(&mut self) {
        // Each newer segment tells more of nearly all of them.
        let mut ends: ById<(u64, u64)> = ById::for_ids(self.plan.definitions.keys().copied());
        for (id, end) in self.plan.contents.iter().flat_map(|c| &*c.streams) {
            match ends.get_mut(*id) {
                Some((_, known)) => *known = (*known).max(*end),
                None => ends.insert(*id, (*id, *end)),
            }
        }
        let ends: Vec<(u64, u64)> = ends.iter().copied().collect();
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
            Some((id, Known::new(made, definition.next_seq)))
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
        let carried = self.apply_segments(recovered, recovered.carried(), &|_| {})?;
        // Lines of unknown streams among them are counted with the others of their segments.
        let carried = Totals { unattributed: 0, ..carried };
        let numbers = recovered.needed(|contents| {
            let needed = self.needs(contents);
            done(if needed { 0 } else { contents.file_len });
            needed
        });
        let is_needed = |id: u64, end: u64| self.streams.get(id).is_none_or(|known| known.needs(end));
        let segments = numbers.into_iter().filter_map(|number| recovered.segment(number, &is_needed).transpose());
        let applied = self.apply_segments(recovered, segments, done)?;
        for totals in [carried, applied] {
            self.report.lines += totals.lines;
            self.report.line_bytes += totals.bytes;
            self.report.unattributed_lines += totals.unattributed;
        }
        Ok(())
    }

    /// Applies the records of these segments, batch by batch.
    fn apply_segments(
        &self,
        recovered: &Recovered,
        segments: impl Iterator<Item = Result<ReplaySegment, RecoverError>> + Send,
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<Totals, RecoverError> {
        let (mut totals, mut spare) = (Totals::default(), Vec::new());
        recovered.each_batch(segments, &mut |batch| {
            let with_bodies: Vec<_> = batch.runs().map(|run| (run, spare.pop().unwrap_or_default())).collect();
            let loaded = with_bodies.into_par_iter().map(|(run, bodies)| self.load_run(batch, run, bodies));
            let loaded = loaded.collect::<Result<Vec<_>, _>>()?;
            totals.add(&self.apply(&loaded));
            spare.extend(loaded.into_iter().map(|run| run.bodies));
            done(batch.done);
            Ok(())
        })?;
        Ok(totals)
    }

    /// Decompresses what is needed of a run.
    fn load_run<'a>(&'a self, batch: &Batch, run: usize, mut bodies: Vec<Body>) -> Result<Run<'a>, RecoverError> {
        let records = batch.records(run)?;
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
        Ok(Run { parts, unattributed, bodies })
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

fn apply_shard(state: &State, runs: &[Run<'_>], shard: usize, threads: usize) -> Totals {
    let mut totals = Totals::default();
    let parts =
        runs.iter().flat_map(|run| run.parts.iter().filter_map(|part| Some((part, run.bodies.get(part.body)?))));
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
