//! Appends to the log by batch size, sync mode and number of writers, beside a bare `pwrite` + `fdatasync` of as many
//! bytes. `cargo bench --bench wal`; the directory is `$TMPDIR`, which should be on a disk and not in memory.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use timberline::fs::{Fs, RealFs, write_all_at};
use timberline::model::{LabelSet, Tenant};
use timberline::wal::{
    Append, Applied, BlockLogOptions, BlockPlace, BlockSink, Codec, EntriesBuilder, Sink, StreamLog, SyncMode,
    Unavailable, Wal, WalMetrics, WalOptions, recover,
};

const LINE: usize = 150;

/// Answers each writer on its own channel.
type Reply = mpsc::Sender<Result<(), Unavailable>>;

struct Answer;

impl Sink<Reply> for Answer {
    fn durable(&mut self, records: Vec<Applied<Reply>>) {
        records.into_iter().for_each(|r| drop(r.payload.send(Ok(()))));
    }
    fn failed(&mut self, payloads: Vec<Reply>, why: &Unavailable) {
        payloads.into_iter().for_each(|p| drop(p.send(Err(why.clone()))));
    }
    fn poisoned(&mut self, error: &io::Error) {
        panic!("{error}");
    }
}

/// Takes no blocks.
struct NoBlocks;

impl BlockSink<()> for NoBlocks {
    fn synced(&mut self, _blocks: Vec<(BlockPlace, ())>) {}
}

fn open(dir: &Path, sync: SyncMode) -> Arc<Wal<Reply>> {
    let options = WalOptions {
        fs: Arc::new(RealFs),
        dir: dir.to_path_buf(),
        volume: uuid::Uuid::from_u128(1),
        segment_size: 64 << 20,
        max_size: 1 << 40,
        blocks: BlockLogOptions { dir: dir.to_path_buf(), segment_size: 64 << 20, max_size: 1 << 40 },
        sync,
        queue_bytes: 64 << 20,
        next_stream_id: Arc::new(AtomicU64::new(1)),
        metrics: WalMetrics::unregistered(),
    };
    recover(options, &mut |_, _| {})
        .and_then(|r| r.open(Answer, NoBlocks))
        .map(|(wal, _)| wal)
        .expect("an empty log opens")
}

/// Lines that compress about as well as real ones.
fn lines(count: usize) -> Vec<Vec<u8>> {
    let words =
        ["GET", "POST", "status=200", "status=503", "upstream", "10.2.3.4", "duration_ms=", "/api/v1/items", "user"];
    let mut x = 0x9E37_79B9u64;
    let mut word = || {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        format!("{} {:x} ", words[(x >> 40) as usize % words.len()], x >> 52)
    };
    (0..count)
        .map(|_| {
            let mut line = String::new();
            while line.len() < LINE {
                line += &word();
            }
            line.truncate(LINE);
            line.into_bytes()
        })
        .collect()
}

fn append(stream: &Arc<StreamLog>, lines: &[Vec<u8>], payload: Reply) -> Append<Reply> {
    let mut builder = EntriesBuilder::new(lines.len() * LINE);
    builder.stream(stream.id);
    lines.iter().zip(0..).for_each(|(line, i)| builder.entry(i, line, [].into_iter()));
    Append { record: builder.finish("bench", Codec::Snappy), streams: vec![stream.clone()], payload }
}

/// Each writer pushes and waits, `pushes` times.
fn run(wal: &Wal<Reply>, writers: u64, pushes: u64, lines: &[Vec<u8>]) -> Duration {
    let start = Instant::now();
    std::thread::scope(|s| {
        for writer in 0..writers {
            s.spawn(move || {
                let labels = Arc::new(LabelSet::new([("writer", writer.to_string())]));
                let tenant = Tenant::new("bench").expect("a valid name");
                let stream = Arc::new(StreamLog::new(writer + 1, tenant, labels, 0));
                let (tx, rx) = mpsc::channel();
                for _ in 0..pushes {
                    wal.append(append(&stream, lines, tx.clone())).unwrap_or_else(|(why, _)| panic!("{why}"));
                    rx.recv().expect("an answer").expect("a durable record");
                }
            });
        }
    });
    start.elapsed()
}

fn bench(c: &mut Criterion) {
    for (mode, sync) in [
        ("always", SyncMode::Always),
        ("interval", SyncMode::Interval(Duration::from_millis(100))),
        ("os", SyncMode::Os),
    ] {
        let mut group = c.benchmark_group(format!("append/{mode}"));
        group.sample_size(10).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(300));
        for writers in [1, 8] {
            for count in [1, 100, 2000] {
                let lines = lines(count);
                group.throughput(Throughput::Bytes((count * LINE) as u64 * writers));
                group.bench_function(BenchmarkId::new(format!("{writers} writers"), format!("{count} lines")), |b| {
                    // A fresh log each time, so that the disk does not fill.
                    b.iter_custom(|pushes| {
                        let dir = tempfile::tempdir().expect("a temporary directory");
                        let wal = open(dir.path(), sync);
                        run(&wal, 1, 1, &lines);
                        run(&wal, writers, pushes.min(2000), &lines).mul_f64(pushes as f64 / pushes.min(2000) as f64)
                    });
                });
            }
        }
        group.finish();
    }
    bare(c);
}

/// What the disk gives at best: the same bytes, one write and one sync each, into a file that is filled already.
fn bare(c: &mut Criterion) {
    let mut group = c.benchmark_group("bare pwrite + fdatasync");
    group.sample_size(10).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(300));
    for (writers, count) in [(1, 1), (1, 100), (1, 2000), (8, 1), (8, 100), (8, 2000)] {
        let lines = lines(count);
        let labels = Arc::new(LabelSet::new([("writer", "0")]));
        let stream = Arc::new(StreamLog::new(1, Tenant::new("bench").expect("a valid name"), labels, 0));
        let record = append(&stream, &lines, mpsc::channel().0).record.len();
        // One group with a record of each writer.
        let bytes = vec![0x5a; (64 + record * writers).next_multiple_of(4096)];
        group.throughput(Throughput::Bytes((count * LINE * writers) as u64));
        group.bench_function(BenchmarkId::new(format!("{writers} writers"), format!("{count} lines")), |b| {
            b.iter_custom(|groups| {
                let dir = tempfile::tempdir().expect("a temporary directory");
                let file = RealFs.create_new(&dir.path().join("f")).expect("a file");
                let len = 64u64 << 20;
                write_all_at(&*file, 0, &vec![0; len as usize]).and_then(|()| file.sync_data()).expect("space");
                let start = Instant::now();
                for i in 0..groups {
                    let at = i * bytes.len() as u64 % (len - bytes.len() as u64) / 4096 * 4096;
                    write_all_at(&*file, at, &bytes).and_then(|()| file.sync_data()).expect("a sync");
                }
                start.elapsed()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
