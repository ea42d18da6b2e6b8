//! A whole ingester on the simulated disk: both logs, with the threads that seal, carry, retire, recycle and clean. They run
//! freely, so two runs differ; what each of them did, and what was known when, is noted, and crash states are made from that.

use super::SEGMENT;
use super::content::{Content, Image, mix};
use super::crash::Volume;
use super::disk::{Fault, Op, Schedule, SimDisk};
use super::node_book::{Book, Seen};
use super::workload::Stop;
use prometheus::{CounterVec, Opts, Registry};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use timberline::chunk::{Block, BlockMeta, Encoding, Selection, Symbols, select, select_readable};
use timberline::fs::Fs;
use timberline::ingester::*;
use timberline::model::{Entry, LabelSet, Push, PushStream, Span, Tenant};
use timberline::wal::*;

/// Live segments that each log may have.
const SEGMENTS: u64 = 4;
/// How long a step may take that other threads do.
const PATIENCE: Duration = Duration::from_secs(10);

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// A push of a few short lines to three streams.
    Small,
    /// A push that makes a block of two streams: one that does not compress and closes its chunk, one that does.
    Seal,
    /// Every closed chunk is settled.
    Settle,
    /// Pushes until the write-ahead log retires a segment, for which it carries small heads, and uses it again.
    Fill,
    /// Chunks are sealed and settled until a segment of the block log goes, whose other blocks are copied.
    Clean,
    Kill,
    Restart,
}

impl Act {
    pub const ALL: [(char, Self); 7] = [
        ('s', Self::Small),
        ('b', Self::Seal),
        ('f', Self::Settle),
        ('w', Self::Fill),
        ('c', Self::Clean),
        ('k', Self::Kill),
        ('o', Self::Restart),
    ];
}

/// Steps with the seed of what is left to chance.
#[derive(Clone)]
pub struct Script {
    pub acts: Vec<Act>,
    pub seed: u64,
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |a: &Act| Act::ALL.iter().find(|(_, b)| a == b).map_or('?', |(c, _)| *c);
        write!(f, "{}:{}", self.acts.iter().map(letter).collect::<String>(), self.seed)
    }
}

impl Script {
    /// From letters, as in [`Act::ALL`].
    pub fn parse(letters: &str, seed: u64) -> Option<Self> {
        let act = |c: char| Act::ALL.iter().find(|(l, _)| *l == c).map(|(_, a)| *a);
        Some(Self { acts: letters.chars().map(act).collect::<Option<_>>()?, seed })
    }

    /// All scripts of exactly this many steps.
    pub fn all(length: u32, seed: u64) -> impl Iterator<Item = Self> {
        let base = Act::ALL.len();
        (0..base.pow(length)).map(move |n| {
            let digits = (0..length).map(|place| Act::ALL[n / base.pow(place) % base].1);
            Self { acts: digits.collect(), seed: seed + n as u64 }
        })
    }
}

pub struct Node {
    pub disk: SimDisk,
    pub book: Book,
    /// What really happened, by the ingester's own figures.
    pub happened: BTreeMap<&'static str, u64>,
    seed: u64,
    next: i64,
    live: Option<Ingester<Live>>,
    registry: Registry,
    poisoned: Arc<Mutex<Option<String>>>,
    runtime: tokio::runtime::Runtime,
}

const COUNTED: [(&str, &str); 5] = [
    ("sealed blocks", "timberline_ingester_blocks_sealed_total"),
    ("closed chunks", "timberline_ingester_chunks_closed_total"),
    ("carried lines", "timberline_wal_carried_lines_total"),
    ("retired log segments", "timberline_wal_segments_retired_total"),
    ("retired block segments", "timberline_blocks_segments_retired_total"),
];

impl Node {
    pub fn new(script: &Script, fault: Option<Fault>) -> Self {
        let json =
            serde_json::to_string(&Identity { format_version: 1, volume: crate::support::VOLUME }).expect("JSON");
        let text = format!("{json}\n{:08x}\n", crc32fast::hash(json.as_bytes()));
        let mut image = Image::default();
        image.files.insert(Path::new("/data/identity").into(), Arc::new(Content::of(text.as_bytes())));
        let out = Self::on(image, Book::default(), script.seed);
        out.disk.fail(fault);
        out
    }

    /// An ingester on a disk with these files, of which `book` knows what they hold.
    pub fn on(image: Image, book: Book, seed: u64) -> Self {
        let disk = SimDisk::new(image, Schedule::Late, seed | 1);
        disk.run_freely();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        Self {
            disk,
            next: book.len() as i64,
            book,
            happened: BTreeMap::new(),
            seed,
            live: None,
            registry: Registry::new(),
            poisoned: Arc::default(),
            runtime,
        }
    }

    /// Recovers and goes live.
    pub fn open(&mut self) -> Result<Seen, Stop> {
        let fs = self.disk.next_process();
        self.registry = Registry::new();
        self.poisoned = Arc::default();
        let ended = |e: StartError| Stop::Ended(e.to_string());
        let replayed = replay(fs, metrics(&self.registry)).map_err(ended)?;
        sound(&replayed.report).map_err(Stop::Wrong)?;
        let poisoned = self.poisoned.clone();
        let on_poisoned = move |e: &std::io::Error| *poisoned.lock().expect("no panic") = Some(e.to_string());
        let live = replayed.go_live(Box::new(on_poisoned)).map_err(ended)?;
        let seen = read(&live).map_err(Stop::Wrong)?;
        self.book.observed(self.disk.now(), &seen);
        self.live = Some(live);
        Ok(seen)
    }

    pub fn act(&mut self, act: Act) -> Result<(), Stop> {
        match act {
            Act::Small => self.small().map(drop),
            Act::Seal => self.seal(),
            Act::Settle => self.settle(),
            Act::Fill => self.fill(),
            Act::Clean => self.clean(),
            Act::Kill => {
                self.kill();
                self.open().map(drop)
            }
            Act::Restart => {
                self.stop();
                self.open().map(drop)
            }
        }?;
        self.look()
    }

    /// What is read now must be what is known now, and both logs within their budgets.
    fn look(&self) -> Result<(), Stop> {
        let Some(live) = &self.live else { return Ok(()) };
        if let Some(why) = self.poisoned.lock().expect("no panic").clone() {
            return Err(Stop::Ended(why));
        }
        let seen = read(live).map_err(Stop::Wrong)?;
        self.book.check(usize::MAX, &seen).map_err(|why| Stop::Wrong(format!("a read while it runs: {why}")))?;
        self.wait("both logs within their budgets", Self::is_within_budgets)
    }

    /// Segments that are given up are removed by another thread: for a moment there may be more.
    fn is_within_budgets(&self) -> bool {
        let files = self.disk.seen().files;
        // Prepared segments, and retired ones that wait to be used again, come on top of the log: at most four.
        [("wal", SEGMENTS + 1 + 4), ("blk", 2 * SEGMENTS + 1)].iter().all(|(what, limit)| {
            let these = files.iter().filter(|(path, _)| path.extension().is_some_and(|e| e == *what));
            these.map(|(_, file)| file.len()).sum::<u64>() <= limit * SEGMENT
        })
    }

    /// Pushes lines: stream, length, and whether they compress. Returns whether they were stored.
    fn push(&mut self, lines: &[(usize, usize, bool)]) -> Result<bool, Stop> {
        let Some(live) = &self.live else { return Ok(false) };
        let mut sent = Vec::new();
        for (stream, len, compresses) in lines {
            self.next += 1;
            let mut text = format!("line {} ", self.next).into_bytes();
            let noise = |i: u64| mix(&[self.seed, self.next as u64, i]).to_le_bytes();
            text.extend((0..len.div_ceil(8)).flat_map(|i| if *compresses { [b'a'; 8] } else { noise(i as u64) }));
            sent.push((*stream, 1_700_000_000_000_000_000 + self.next * 1000, text));
        }
        sent.sort_by_key(|(stream, t, _)| (*stream, *t));
        let push = push_of(&sent);
        let all: Vec<u32> = (0..push.streams.len() as u32).collect();
        let number = self.book.send(self.disk.now(), &sent);
        let stored = self.runtime.block_on(live.push(&tenant(), Arc::new(push), &all)).is_ok();
        if stored {
            self.book.acked(number, self.disk.now());
        } else {
            self.book.failed(number);
        }
        match self.poisoned.lock().expect("no panic").clone() {
            Some(why) if !stored => Err(Stop::Ended(why)),
            _ => Ok(stored),
        }
    }

    /// The same push twice at the same time; it is acknowledged with the first answer.
    pub fn twice(&mut self) -> Result<(), Stop> {
        let Some(live) = &self.live else { return Ok(()) };
        self.next += 1;
        let sent = [(1, 1_700_000_000_000_000_000 + self.next * 1000, b"twice".to_vec())];
        let number = self.book.send(self.disk.now(), &sent);
        let (push, tenant, disk) = (Arc::new(push_of(&sent)), tenant(), &self.disk);
        let one = || async {
            let stored = live.push(&tenant, push.clone(), &[0]).await.is_ok();
            stored.then(|| disk.now())
        };
        let (first, second) = self.runtime.block_on(async { tokio::join!(one(), one()) });
        match first.into_iter().chain(second).min() {
            Some(at) => self.book.acked(number, at),
            None => self.book.failed(number),
        }
        Ok(())
    }

    fn small(&mut self) -> Result<bool, Stop> {
        self.push(&[(1, 40, true), (3, 30, true), (4 + self.next as usize % 2, 20, true)])
    }

    fn seal(&mut self) -> Result<(), Stop> {
        let before = self.metric("timberline_ingester_blocks_sealed_total");
        if self.push(&[(1, 3000, false), (1, 10, true), (2, 2500, true), (2, 10, true)])? {
            self.wait("blocks that count", |n| n.metric("timberline_ingester_blocks_sealed_total") >= before + 2)?;
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Stop> {
        let Some(live) = &self.live else { return Ok(()) };
        for chunk in live.closed_chunks() {
            let count = (chunk.seqs().end - chunk.seqs().start) as usize;
            // The oldest chunk: the first lines that the stream still has.
            let lines = lines_of(chunk.stream()).map_err(Stop::Wrong)?;
            let lines: Vec<i64> = lines.iter().take(count).map(|(t, _)| *t).collect();
            // An upload begins here: a start that did not know the chunk closed would fill and upload it again.
            let mut volume = Volume::new(&self.disk.base);
            self.disk.ops().iter().for_each(|op| volume.apply(op));
            let known = below(&volume.lost()).map_err(Stop::Wrong)?.closed;
            if !known.contains(&(chunk.stream().id(), chunk.number())) {
                return Err(Stop::Wrong(format!(
                    "chunk {} is flushed, and only memory knows it closed",
                    chunk.number()
                )));
            }
            let flush = self.book.settling(self.disk.now(), lines);
            if live.settle(&chunk, "key").is_ok() {
                self.book.settled(flush, self.disk.now());
                *self.happened.entry("settled chunks").or_default() += 1;
            }
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<(), Stop> {
        let retired = |n: &Self| n.metric("timberline_wal_segments_retired_total");
        let (before, until) = (retired(self), Instant::now() + PATIENCE);
        while retired(self) == before {
            if !self.small()? {
                std::thread::sleep(Duration::from_millis(10));
            }
            self.in_time(until, "a segment of the log that is retired")?;
        }
        // The next segments are made of those that went.
        for _ in 0..6 {
            self.small()?;
        }
        Ok(())
    }

    fn clean(&mut self) -> Result<(), Stop> {
        let gone = |n: &Self| n.metric("timberline_blocks_segments_retired_total");
        let (before, until) = (gone(self), Instant::now() + PATIENCE);
        while gone(self) == before {
            self.seal()?;
            self.settle()?;
            std::thread::sleep(Duration::from_millis(60));
            self.in_time(until, "a segment of the block log that is cleaned")?;
        }
        Ok(())
    }

    /// Waits for what other threads do. On a disk that fails they may never.
    fn wait(&self, what: &str, done: impl Fn(&Self) -> bool) -> Result<(), Stop> {
        let until = Instant::now() + PATIENCE;
        while !done(self) {
            if !self.in_time(until, what)? {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn in_time(&self, until: Instant, what: &str) -> Result<bool, Stop> {
        if let Some(why) = self.poisoned.lock().expect("no panic").clone() {
            return Err(Stop::Ended(why));
        }
        if self.disk.failed_at().is_some() && Instant::now() + PATIENCE - Duration::from_secs(1) > until {
            return Err(Stop::Ended(format!("no {what} on a failing disk")));
        }
        if Instant::now() > until { Err(Stop::Wrong(format!("{what}: never came"))) } else { Ok(true) }
    }

    fn metric(&self, name: &str) -> u64 {
        let families = self.registry.gather();
        let found = families.iter().filter(|f| f.name() == name);
        found.flat_map(|f| f.get_metric()).map(|m| m.get_counter().get_value() as u64).sum()
    }

    fn count(&mut self) {
        for (what, name) in COUNTED {
            *self.happened.entry(what).or_default() += self.metric(name);
        }
        self.registry = Registry::new();
    }

    /// Ends the process as `kill -9` does.
    pub fn kill(&mut self) {
        self.disk.end_process();
        self.count();
        if let Some(live) = self.live.take() {
            // Its threads notice one by one.
            std::thread::spawn(move || drop(live));
        }
    }

    /// Ends the process in good order.
    pub fn stop(&mut self) {
        if let Some(live) = self.live.take() {
            live.stop();
        }
        self.count();
        self.disk.end_process();
    }

    /// Segments of the log that were made of retired ones.
    pub fn recycled(&self) -> u64 {
        let again = |op: &&Op| matches!(op, Op::Rename(from, _) if from.extension().is_some_and(|e| e == "wal"));
        self.disk.ops().iter().filter(again).count() as u64
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

fn tenant() -> Tenant {
    Tenant::new("tenant-a").expect("a legal name")
}

fn push_of(lines: &[(usize, i64, Vec<u8>)]) -> Push {
    let mut out = Push::default();
    for same in lines.chunk_by(|a, b| a.0 == b.0) {
        let first = out.entries.len() as u32;
        for (_, timestamp, text) in same {
            out.arena.extend_from_slice(text);
            let line = Span::new(out.arena.len() - text.len(), text.len());
            out.entries.push(Entry { timestamp: *timestamp, line, metadata: 0..0 });
        }
        let labels = Arc::new(LabelSet::new([("app", same[0].0.to_string())]));
        out.streams.push(PushStream { labels, token: 0, entries: first..out.entries.len() as u32 });
    }
    out
}

fn metrics(registry: &Registry) -> IngesterMetrics {
    let counter = |name: &str| {
        let labels = ["reason", "tenant", "retention_hours", "policy", "format"];
        CounterVec::new(Opts::new(name, name), &labels).expect("a legal name")
    };
    IngesterMetrics::new(registry, (counter("a"), counter("b"))).expect("an empty registry")
}

fn config(fs: Arc<dyn Fs>) -> IngesterConfig {
    IngesterConfig {
        fs,
        data_dir: "/data".into(),
        wal_dir: crate::support::dir(),
        blocks_dir: "/blocks".into(),
        quarantine_dir: "/quarantine".into(),
        refuse_damage: false,
        wal_max_size: SEGMENTS * SEGMENT,
        blocks_max_size: 2 * SEGMENTS * SEGMENT,
        require_data: false,
        segment_size: SEGMENT,
        sync: SyncMode::Always,
        wal_codec: Codec::None,
        queue_bytes: 1 << 20,
        queue_timeout: Duration::from_millis(300),
        chunk_block_size: 2 << 10,
        chunk_target_size: 2500,
        chunk_encoding: Encoding::Snappy,
        max_chunk_age: Duration::from_secs(7200),
        sync_period: Duration::ZERO,
        sync_min_utilization: 0.1,
        max_returned_stream_errors: 10,
        heads_budget: 64 << 20,
        metadata_budget: 64 << 20,
        cluster: Cluster { ingesters: 1, replication_factor: 1 },
        threads: 1,
    }
}

fn replay(fs: Arc<dyn Fs>, metrics: IngesterMetrics) -> Result<Replayed, StartError> {
    Ingester::<NilRecord>::replay(config(fs), Arc::default(), metrics, &Progress::default())
}

/// A crash is no damage.
fn sound(report: &RecoveryReport) -> Result<(), String> {
    let clean = (report.damaged_places, report.lost_lines, report.unattributed_lines) == (0, 0, 0);
    if clean { Ok(()) } else { Err(format!("a crash is told as damage: {report:?}")) }
}

fn lines_of(stream: &Stream) -> Result<Vec<(i64, Vec<u8>)>, String> {
    let all = Selection { start: i64::MIN, end: i64::MAX, forward: true, limit: usize::MAX };
    let entries = select(&stream.parts(all.start, all.end), &all, &mut |_, _| true).map_err(|e| e.to_string())?;
    Ok(entries.into_iter().map(|e| (e.timestamp, e.line.to_vec())).collect())
}

/// All lines, as a query reads them. Two live streams with equal labels are legal.
fn read<L>(ingester: &Ingester<L>) -> Result<Seen, String> {
    let mut out = Seen::new();
    for stream in ingester.streams(&tenant(), &[], i64::MIN, i64::MAX) {
        let number = stream.labels().get("app").and_then(|n| n.parse().ok()).ok_or("a stream that nobody has sent")?;
        let lines = out.entry(number).or_default();
        lines.extend(lines_of(&stream)?);
        lines.sort_by_key(|(t, _)| *t);
    }
    out.retain(|_, lines| !lines.is_empty());
    Ok(out)
}

/// What a start on this image reads.
pub fn start(image: &Image) -> Result<(Seen, u64), String> {
    thread_local! {
        static METRICS: IngesterMetrics = metrics(&Registry::new());
    }
    let replayed = replay(Arc::new(image.clone()), METRICS.with(Clone::clone)).map_err(|e| e.to_string())?;
    sound(&replayed.report)?;
    let stored = replayed.report.lines + replayed.report.block_lines;
    Ok((read(replayed.ingester())?, stored))
}

/// What a start on a damaged image reads, the blocks that it cannot read, and what it tells.
pub fn start_damaged(image: &Image) -> Result<(Seen, usize, RecoveryReport), String> {
    thread_local! {
        static METRICS: IngesterMetrics = metrics(&Registry::new());
    }
    let replayed = replay(Arc::new(image.clone()), METRICS.with(Clone::clone)).map_err(|e| e.to_string())?;
    let all = Selection { start: i64::MIN, end: i64::MAX, forward: true, limit: usize::MAX };
    let (mut seen, mut unreadable) = (Seen::new(), Vec::new());
    for stream in replayed.ingester().streams(&tenant(), &[], i64::MIN, i64::MAX) {
        let number = stream.labels().get("app").and_then(|n| n.parse().ok()).ok_or("a stream that nobody has sent")?;
        let parts = stream.parts(all.start, all.end);
        let entries = select_readable(&parts, &all, &mut |_, _| true, &mut unreadable);
        let lines = seen.entry(number).or_default();
        lines.extend(entries.into_iter().map(|e| (e.timestamp, e.line.to_vec())));
        lines.sort_by_key(|(t, _)| *t);
    }
    seen.retain(|_, lines| !lines.is_empty());
    Ok((seen, unreadable.len(), replayed.report))
}

/// What a look below the deduplication finds.
pub struct Below {
    /// Blocks that are there twice, because they are being copied.
    pub copies: usize,
    /// Lines with a name of their own: memory holds no more.
    pub names: u64,
    pub durable_lsn: u64,
    pub next_stream_id: u64,
    /// Stream and number of the chunks that a start knows to be closed.
    pub closed: BTreeSet<(u64, u64)>,
}

/// (stream id, seq) names one line wherever it lies in the two logs, and each line has one such name.
pub fn below(image: &Image) -> Result<Below, String> {
    let options = WalOptions {
        max_size: SEGMENTS * SEGMENT,
        next_stream_id: Arc::new(AtomicU64::new(1)),
        ..super::ledger::options(Arc::new(image.clone()))
    };
    let recovered = recover(options, &mut |_, _| {}).map_err(|e| e.to_string())?;
    if !recovered.blocks().damage.is_empty() {
        return Err(format!("a crash is told as damage of blocks: {:?}", recovered.blocks().damage));
    }
    let mut names = Names::default();
    let mut wrong = Ok(());
    let mut record = |r: &RecordRef, bytes: &[u8]| {
        if wrong.is_ok() {
            wrong = names.record(r, bytes);
        }
    };
    recovered.replay_carried(&mut record).map_err(|e| e.to_string())?;
    recovered.replay(&mut record).map_err(|e| e.to_string())?;
    wrong?;
    let mut places = HashMap::new();
    let defined: BTreeSet<u64> = recovered.blocks().definitions.iter().map(|d| d.id).collect();
    for b in recovered.blocks().iter() {
        if !defined.contains(&b.tables.stream) {
            return Err(format!("the block log does not say what stream {} is", b.tables.stream));
        }
        *places.entry((b.tables.stream, b.tables.first_seq)).or_insert(0) += 1;
        let data = recovered.block_store().read(b.place).map_err(|e| e.to_string())?;
        names.block(&b.tables, data)?;
    }
    let plan = &recovered.plan;
    Ok(Below {
        copies: places.values().filter(|n| **n > 1).count(),
        names: names.by_name.len() as u64,
        durable_lsn: plan.durable_lsn,
        next_stream_id: plan.next_stream_id,
        closed: plan.contents.iter().flat_map(|c| &c.holds).filter_map(closed).collect(),
    })
}

fn closed(hold: &Hold) -> Option<(u64, u64)> {
    if let Hold::Closed(c) = hold { Some((c.stream, c.chunk)) } else { None }
}

#[derive(Default)]
struct Names {
    by_name: HashMap<(u64, u64), (i64, Vec<u8>)>,
    by_time: HashMap<i64, (u64, u64)>,
}

impl Names {
    fn line(&mut self, name: (u64, u64), timestamp: i64, line: &[u8]) -> Result<(), String> {
        let known = self.by_name.entry(name).or_insert_with(|| (timestamp, line.to_vec()));
        if (known.0, &known.1[..]) != (timestamp, line) {
            return Err(format!("seq {} of stream {} names two lines: {} and {timestamp}", name.1, name.0, known.0));
        }
        match *self.by_time.entry(timestamp).or_insert(name) {
            first if first == name => Ok(()),
            first => Err(format!("the line at {timestamp} is there twice: as {first:?} and as {name:?}")),
        }
    }

    fn record(&mut self, r: &RecordRef, bytes: &[u8]) -> Result<(), String> {
        let raw = decompress_body(&r.head, r.head.body(bytes, 0)).map_err(|e| e.to_string())?;
        let tables = Tables::decode(r.head.tables(bytes, 0)).map_err(|e| e.to_string())?;
        if tables.tenant != tenant().as_str() {
            return Err(format!("LSN {} is of tenant {}", r.head.lsn, tables.tenant));
        }
        let view = BodyView::new(&raw).map_err(|e| e.to_string())?;
        let mut start = 0;
        for row in &tables.rows {
            for (seq, entry) in (row.first_seq..).zip(view.part(start, row).map_err(|e| e.to_string())?) {
                let entry = entry.map_err(|e| e.to_string())?;
                self.line((row.stream, seq), entry.timestamp, entry.line)?;
            }
            start += row.part_len as usize;
        }
        Ok(())
    }

    fn block<S>(&mut self, tables: &BlockTables<S>, data: bytes::Bytes) -> Result<(), String> {
        let meta = BlockMeta {
            encoding: Encoding::from_code(tables.encoding).map_err(|e| e.to_string())?,
            entries: tables.entries,
            min_timestamp: tables.min_timestamp,
            max_timestamp: tables.max_timestamp,
            uncompressed_size: tables.uncompressed_size,
            compressed_len: data.len() as u32,
            crc: tables.crc,
        };
        let block = Block::from_stored(meta, data).map_err(|e| e.to_string())?;
        let entries = block.entries(&Symbols::new()).map_err(|e| e.to_string())?;
        if entries.len() as u64 != tables.end_seq - tables.first_seq {
            return Err(format!(
                "a block of {} lines stands for seqs {}..{}",
                entries.len(),
                tables.first_seq,
                tables.end_seq
            ));
        }
        for (seq, e) in (tables.first_seq..).zip(&entries) {
            self.line((tables.stream, seq), e.timestamp, &e.line)?;
        }
        Ok(())
    }
}

/// A number for each failure's copy of the disk.
pub fn keep(image: &Image) -> Option<std::path::PathBuf> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let name = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simulation-failures").join(name);
    for (path, content) in &image.files {
        let file = dir.join(path.strip_prefix("/").ok()?);
        std::fs::create_dir_all(file.parent()?).ok()?;
        std::fs::write(file, content.to_vec()).ok()?;
    }
    Some(dir)
}
