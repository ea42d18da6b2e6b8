//! Replay of a log of real shape, from the first byte read to the last line applied. Throughput is bytes of lines in the
//! log; divide by the threads for the figure per core. `heads`: no line is in a block, so each is decompressed and
//! applied. `blocks`: as a kill leaves it, most lines are in blocks that are trusted, and only the others are.

#[path = "support/lines.rs"]
mod support;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use prometheus::{CounterVec, Opts, Registry};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::lines;
use timberline::chunk::Encoding;
use timberline::fs::RealFs;
use timberline::ingester::{Cluster, Ingester, IngesterConfig, IngesterMetrics, NilRecord, Progress, Replayed};
use timberline::model::{Entry, LabelSet, MetadataPair, Push, PushStream, Span, Tenant};
use timberline::wal::{Codec, SyncMode};

const STREAMS: usize = 400;
const STREAMS_PER_PUSH: usize = 10;
const LINES_PER_STREAM: usize = 100;

/// Larger than what a stream gets here: its lines stay in the head.
const NEVER_SEALED: usize = 64 << 20;

fn config(dir: &Path, chunk_block_size: usize, threads: usize) -> IngesterConfig {
    IngesterConfig {
        fs: Arc::new(RealFs),
        data_dir: dir.to_path_buf(),
        wal_dir: dir.join("wal"),
        blocks_dir: dir.join("blocks"),
        quarantine_dir: dir.join("quarantine"),
        refuse_damage: false,
        wal_max_size: 1 << 40,
        blocks_max_size: 1 << 40,
        require_data: false,
        segment_size: 64 << 20,
        sync: SyncMode::Os,
        wal_codec: Codec::Snappy,
        queue_bytes: 64 << 20,
        queue_timeout: Duration::from_secs(60),
        chunk_block_size,
        chunk_target_size: 6 * chunk_block_size,
        chunk_encoding: Encoding::Snappy,
        max_chunk_age: Duration::from_secs(86_400),
        sync_period: Duration::ZERO,
        sync_min_utilization: 0.1,
        max_returned_stream_errors: 10,
        heads_budget: 4 << 30,
        metadata_budget: 1 << 30,
        cluster: Cluster { ingesters: 1, replication_factor: 1 },
        threads,
    }
}

fn replay(config: IngesterConfig) -> Replayed {
    let counter = |name: &str| {
        let labels = ["reason", "tenant", "retention_hours", "policy", "format"];
        CounterVec::new(Opts::new(name, name), &labels).unwrap()
    };
    let metrics = IngesterMetrics::new(&Registry::new(), (counter("a"), counter("b"))).unwrap();
    Ingester::<NilRecord>::replay(config, Arc::default(), metrics, &Progress::default()).unwrap()
}

fn push(lines: &[String], first_stream: usize, first_line: usize) -> Push {
    let mut out = Push::default();
    let mut intern = |text: &str| {
        out.arena.extend_from_slice(text.as_bytes());
        Span::new(out.arena.len() - text.len(), text.len())
    };
    let pair = MetadataPair { name: intern("detected_level"), value: intern("info") };
    for stream in first_stream..first_stream + STREAMS_PER_PUSH {
        let first = out.entries.len() as u32;
        for n in 0..LINES_PER_STREAM {
            let line = intern(&lines[(first_line + stream * 31 + n) % lines.len()]);
            let timestamp = 1_700_000_000_000_000_000 + (first_line + n) as i64 * 1000;
            out.entries.push(Entry { timestamp, line, metadata: 0..1 });
        }
        let labels = LabelSet::new([("job", "bench".to_string()), ("stream", format!("s{}", stream % STREAMS))]);
        out.streams.push(PushStream { labels: Arc::new(labels), token: 0, entries: first..out.entries.len() as u32 });
    }
    out.metadata.push(pair);
    out
}

/// Writes a log of about `bytes` bytes of lines and returns how many it holds.
fn write(config: IngesterConfig, bytes: u64) -> u64 {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let lines = lines(4 << 20);
    let ingester = replay(config).go_live(Box::new(|e| panic!("{e}"))).unwrap();
    let (tenant, mut written, mut round) = (Tenant::new("bench").unwrap(), 0, 0);
    while written < bytes {
        let push = Arc::new(push(&lines, round * STREAMS_PER_PUSH % STREAMS, round * LINES_PER_STREAM));
        written += push.entries.iter().map(|e| u64::from(e.line.len)).sum::<u64>();
        let all: Vec<u32> = (0..push.streams.len() as u32).collect();
        // The limits are those of tenants: this bench has none to test.
        let _ = runtime.block_on(ingester.push(&tenant, push, &all));
        round += 1;
    }
    ingester.stop();
    written
}

/// The time of `times` replays, each of them ended before the next: a directory has one owner.
fn measure(times: u64, replay: impl Fn() -> Replayed) -> Duration {
    let once = |_| {
        let start = Instant::now();
        let replayed = replay();
        let took = start.elapsed();
        drop(replayed);
        took
    };
    (0..times).map(once).sum()
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("replay");
    group.sample_size(10);
    for (name, block_size) in [("heads", NEVER_SEALED), ("blocks", 256 << 10)] {
        let tmp = tempfile::tempdir().unwrap();
        let config = |threads| config(tmp.path(), block_size, threads);
        let written = write(config(2), 256 << 20);
        let replayed = replay(config(2)).report.line_bytes;
        println!("{name}: {written} bytes of lines in the log, {replayed} of them in no block");
        group.throughput(Throughput::Bytes(written));
        for threads in [1, 2] {
            group.bench_function(format!("{name}/{threads} threads"), |b| {
                b.iter_custom(|times| measure(times, || replay(config(threads))));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
