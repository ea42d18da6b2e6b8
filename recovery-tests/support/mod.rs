//! What the tests of the log share: a disk, pushes, and reading back what the log holds.

#![allow(dead_code, reason = "each test target uses a part of it")]

pub mod disk;

use disk::MemDisk;
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use timberline::fs::Fs;
use timberline::model::{LabelSet, Tenant};
use timberline::wal::*;

pub const SEGMENT: u64 = 64 << 10;
pub const VOLUME: uuid::Uuid = uuid::Uuid::from_u128(0x7469_6d62_6572_6c69_6e65_0000_0000_0001);

/// Metadata of a line.
pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;
/// Timestamp, bytes and metadata.
pub type Line = (i64, Vec<u8>, Pairs);
/// What a log holds: (stream id, seq) → line.
pub type Lines = BTreeMap<(u64, u64), Line>;

pub fn dir() -> PathBuf {
    PathBuf::from("/wal")
}

pub fn options(fs: Arc<dyn Fs>, dir: &Path, sync: SyncMode) -> WalOptions {
    WalOptions {
        fs,
        dir: dir.to_path_buf(),
        volume: VOLUME,
        segment_size: SEGMENT,
        max_size: 1 << 30,
        blocks: BlockLogOptions { dir: PathBuf::from("/blocks"), segment_size: SEGMENT, max_size: 1 << 30 },
        sync,
        queue_bytes: 64 << 20,
        next_stream_id: Arc::new(AtomicU64::new(1)),
        metrics: WalMetrics::unregistered(),
    }
}

/// One push: lines by stream id.
pub type Push = Vec<(u64, Vec<Line>)>;

/// A push whose lines tell which push they are of.
pub fn push(number: u32, streams: &[u64], lines: usize) -> Push {
    let line = |stream: u64, i: usize| {
        let text = format!("push {number} stream {stream} line {i}");
        let metadata =
            if i.is_multiple_of(2) { vec![(b"trace".to_vec(), format!("{number}").into_bytes())] } else { vec![] };
        (1_000_000 * i64::from(number) + i as i64, text.into_bytes(), metadata)
    };
    streams.iter().map(|s| (*s, (0..lines).map(|i| line(*s, i)).collect())).collect()
}

/// A push of one line of this many bytes that do not compress.
pub fn large_push(number: u32, stream: u64, bytes: usize) -> Push {
    let mut x = u64::from(number) + 88_172_645_463_325_252;
    let noise = (0..bytes).map(|_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 24) as u8
    });
    vec![(stream, vec![(i64::from(number), noise.collect(), vec![])])]
}

#[derive(Debug)]
pub enum Outcome {
    /// LSN and rows; when it was told, in operations of the disk.
    Durable {
        lsn: u64,
        rows: Vec<TableRow>,
        at: usize,
    },
    Failed(Unavailable),
}

#[derive(Default)]
struct Results {
    by_push: Mutex<HashMap<u32, Outcome>>,
    poisoned: Mutex<Option<String>>,
    blocks: Mutex<Vec<u32>>,
    changed: Condvar,
}

type Probe = Box<dyn FnMut(&[Applied<u32>]) + Send>;

struct Record {
    results: Arc<Results>,
    disk: Option<MemDisk>,
    probe: Option<Probe>,
}

impl Sink<u32> for Record {
    fn durable(&mut self, records: Vec<Applied<u32>>) {
        if let Some(probe) = &mut self.probe {
            probe(&records);
        }
        let at = self.disk.as_ref().map_or(0, MemDisk::now);
        for r in records {
            let outcome = Outcome::Durable { lsn: r.lsn, rows: r.rows, at };
            self.results.by_push.lock().insert(r.payload, outcome);
        }
        self.results.changed.notify_all();
    }

    fn failed(&mut self, payloads: Vec<u32>, why: &Unavailable) {
        for payload in payloads {
            self.results.by_push.lock().insert(payload, Outcome::Failed(why.clone()));
        }
        self.results.changed.notify_all();
    }

    fn poisoned(&mut self, error: &io::Error) {
        *self.results.poisoned.lock() = Some(error.to_string());
    }
}

/// Notes the blocks that count.
struct Blocks(Arc<Results>);

impl BlockSink<u32> for Blocks {
    fn synced(&mut self, blocks: Vec<(BlockPlace, u32)>) {
        self.0.blocks.lock().extend(blocks.into_iter().map(|(_, number)| number));
    }
}

/// A log that is open for pushes, with the streams that an ingester would keep.
pub struct Log {
    pub wal: Arc<Wal<u32>>,
    pub blocks: BlockLog<u32>,
    pub plan: Plan,
    streams: Mutex<BTreeMap<u64, Arc<StreamLog>>>,
    next_stream_id: Arc<AtomicU64>,
    results: Arc<Results>,
}

impl Log {
    /// Recovers and opens; also gives the lines that recovery found.
    pub fn open(options: WalOptions, disk: Option<MemDisk>) -> Result<(Self, Lines), RecoverError> {
        Self::open_with(options, disk, None)
    }

    pub fn open_with(
        options: WalOptions,
        disk: Option<MemDisk>,
        probe: Option<Probe>,
    ) -> Result<(Self, Lines), RecoverError> {
        let next_stream_id = options.next_stream_id.clone();
        let recovered = recover(options, &mut |_, _| {})?;
        let lines = lines_of(&recovered);
        let plan = recovered.plan.clone();
        next_stream_id.store(plan.next_stream_id, Ordering::SeqCst);
        let mut streams = BTreeMap::new();
        for (id, definition) in &plan.definitions {
            let seen = lines.range((*id, 0)..(*id + 1, 0)).next_back().map_or(0, |((_, seq), _)| seq + 1);
            let labels = LabelSet::new(definition.labels.clone());
            let tenant = Tenant::new(&definition.tenant).unwrap();
            let next = seen.max(definition.next_seq);
            streams.insert(*id, Arc::new(StreamLog::new(*id, tenant, Arc::new(labels), next)));
        }
        let results = Arc::new(Results::default());
        let (wal, blocks) =
            recovered.open(Record { results: results.clone(), disk, probe }, Blocks(results.clone()))?;
        Ok((Self { wal, blocks, plan, streams: Mutex::new(streams), next_stream_id, results }, lines))
    }

    pub fn mem(disk: &MemDisk, sync: SyncMode) -> (Self, Lines) {
        Self::open(options(Arc::new(disk.clone()), &dir(), sync), Some(disk.clone())).unwrap()
    }

    fn stream(&self, id: u64, tenant: &str) -> Arc<StreamLog> {
        let make = || {
            self.next_stream_id.fetch_max(id + 1, Ordering::SeqCst);
            let labels = LabelSet::new([("app".to_string(), format!("app-{id}")), ("zone".into(), "é".into())]);
            Arc::new(StreamLog::new(id, Tenant::new(tenant).unwrap(), Arc::new(labels), 0))
        };
        self.streams.lock().entry(id).or_insert_with(make).clone()
    }

    /// Hands a push to the log without waiting.
    pub fn send(&self, number: u32, push: &Push, tenant: &str, codec: Codec) -> Result<(), Unavailable> {
        self.results.by_push.lock().remove(&number);
        let mut builder = EntriesBuilder::new(0);
        for (stream, lines) in push {
            builder.stream(*stream);
            for (timestamp, line, metadata) in lines {
                builder.entry(*timestamp, line, metadata.iter().map(|(n, v)| (&n[..], &v[..])));
            }
        }
        let streams = push.iter().map(|(id, _)| self.stream(*id, tenant)).collect();
        let append = Append { record: builder.finish(tenant, codec), streams, payload: number };
        self.wal.append(append).map_err(|(why, _)| why)
    }

    /// What became of a push that was sent.
    pub fn outcome(&self, number: u32) -> Outcome {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut by_push = self.results.by_push.lock();
        loop {
            if let Some(outcome) = by_push.remove(&number) {
                return outcome;
            }
            let timed_out = self.results.changed.wait_until(&mut by_push, deadline).timed_out();
            assert!(!timed_out, "push {number} was never answered");
        }
    }

    /// Pushes and waits.
    pub fn push(&self, number: u32, push: &Push) -> Outcome {
        match self.send(number, push, "tenant-a", Codec::Snappy) {
            Ok(()) => self.outcome(number),
            Err(why) => Outcome::Failed(why),
        }
    }

    /// Pushes, waits, and notes the lines with the seqs that they got.
    pub fn acked(&self, number: u32, push_: &Push, into: &mut Lines) -> usize {
        match self.push(number, push_) {
            Outcome::Durable { rows, at, .. } => {
                note(push_, &rows, into);
                at
            }
            Outcome::Failed(why) => panic!("push {number} failed: {why}"),
        }
    }

    /// Hands a block of a stream to the block log without waiting.
    pub fn send_block(&self, number: u32, stream: u64, len: usize, lets_go: bool) {
        let seq = u64::from(number);
        let tables = BlockTables { stream, first_seq: seq, end_seq: seq + 1, entries: 1, ..BlockTables::default() };
        let stream = self.stream(stream, "tenant-a");
        self.blocks.append(BlockAppend {
            tables,
            data: vec![7; len].into(),
            stream,
            closes: None,
            lets_go,
            payload: number,
        });
    }

    /// The blocks that count, in the order of the log.
    pub fn blocks_synced(&self) -> Vec<u32> {
        self.results.blocks.lock().clone()
    }

    pub fn poisoned(&self) -> Option<String> {
        self.results.poisoned.lock().clone()
    }

    /// Leaves the log as `kill -9` does: no sync, no watermark. Its threads sleep until the test process ends.
    pub fn kill(self) {
        std::mem::forget(self.blocks);
        std::mem::forget(self.wal);
    }
}

/// Notes the lines of a push under the seqs in its rows.
pub fn note(push: &Push, rows: &[TableRow], into: &mut Lines) {
    for ((stream, lines), row) in push.iter().zip(rows) {
        assert_eq!((*stream, lines.len()), (row.stream, row.count as usize));
        for (seq, line) in (row.first_seq..).zip(lines) {
            assert!(into.insert((*stream, seq), line.clone()).is_none(), "seq {seq} of stream {stream} twice");
        }
    }
}

/// All lines that recovery hands to `apply`; a (stream, seq) that comes twice fails the test.
pub fn lines_of(recovered: &Recovered) -> Lines {
    let mut out = Lines::new();
    recovered.replay(&mut |r, bytes| decode_record(r, bytes, &mut out)).unwrap();
    out
}

/// The lines of a record, whose bytes these are.
pub fn decode_record(r: &RecordRef, bytes: &[u8], out: &mut Lines) {
    let raw = decompress_body(&r.head, r.head.body(bytes, 0)).unwrap();
    let body = BodyView::new(&raw).unwrap();
    let mut start = 0;
    for row in &Tables::decode(r.head.tables(bytes, 0)).unwrap().rows {
        for (seq, entry) in (row.first_seq..).zip(body.part(start, row).unwrap()) {
            let entry = entry.unwrap();
            let symbol = |i: u32| body.symbols()[i as usize].to_vec();
            let metadata = entry.metadata().map(|(n, v)| (symbol(n), symbol(v))).collect();
            let line = (entry.timestamp, entry.line.to_vec(), metadata);
            assert!(out.insert((row.stream, seq), line).is_none(), "seq {seq} of stream {} twice", row.stream);
        }
        start += row.part_len as usize;
    }
}
