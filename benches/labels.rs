//! Label parsing, level detection, and the distributor's whole work on a push of 10 streams with 100 lines each.
//!
//! `BENCH_CORPUS=<directory of log files>` takes lines from there instead of the built-in ones.

#![allow(missing_docs)]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use prometheus::Registry;
use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use timberline::distributor::level::LevelDetector;
use timberline::distributor::{BoxFuture, Distributor, DistributorConfig, IngesterClient, LabelCache, Pusher, Route};
use timberline::model::{Entry, Limits, Overrides, Push, PushError, PushRequest, RawStream, Tenant, parse_labels};

const LABELS: &str = r#"{cluster="eu-west-1", namespace="checkout", pod="checkout-7c9d8b6f5-x2x9k", container="app", filename="/var/log/pods/app/0.log", stream="stderr"}"#;

const LINES: [&str; 8] = [
    "2026-11-22T16:37:42.123Z INFO  [http-nio-8080-exec-7] c.example.checkout.OrderService - order 8812 stored in 14 ms",
    "Nov 22 16:37:42 node-3 sshd[24206]: Received disconnect from 203.0.113.80: 11: Bye Bye [preauth]",
    "Nov 22 16:37:42 node-3 kernel: [12345.678] eth0: link up, 10000 Mbps, full duplex, flow control rx and tx",
    "level=warn ts=2026-11-22T16:37:42.123Z caller=retry.go:88 component=queue msg=\"retrying\" attempt=3 after=1.2s",
    "{\"time\":\"2026-11-22T16:37:42.123Z\",\"logger\":\"api\",\"msg\":\"request\",\"status\":200,\"level\":\"debug\"}",
    "203.0.113.9 - - [22/Nov/2026:16:37:42 +0000] \"GET /api/v1/items?page=3&size=50 HTTP/1.1\" 200 5123 \"-\" \"curl/8\"",
    "081109 203615 148 INFO dfs.DataNode$PacketResponder: PacketResponder 1 for block blk_388650490641 terminating",
    "thread 'main' panicked at src/main.rs:42:13: called `Option::unwrap()` on a `None` value; note: run with backtrace",
];

/// Sets of lines by name.
fn corpora() -> Vec<(String, Vec<Vec<u8>>)> {
    let Ok(directory) = std::env::var("BENCH_CORPUS") else {
        return vec![(
            "built-in".to_string(),
            LINES.iter().cycle().take(1000).map(|l| l.as_bytes().to_vec()).collect(),
        )];
    };
    let files = std::fs::read_dir(directory).expect("BENCH_CORPUS").map(|f| f.expect("file").path());
    let mut logs: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
    logs.sort();
    let lines_of = |path: &std::path::Path| -> Vec<Vec<u8>> {
        let text = std::fs::read(path).expect("log");
        text.split(|b| *b == b'\n').filter(|l| !l.is_empty()).take(1000).map(<[u8]>::to_vec).collect()
    };
    logs.iter()
        .map(|path| (path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), lines_of(path)))
        .collect()
}

fn labels(c: &mut Criterion) {
    c.bench_function("parse_labels", |b| b.iter(|| parse_labels(black_box(LABELS))));
    let cache = LabelCache::new(100_000, 64 << 20);
    let (tenant, limits) = (Tenant::new("fake").expect("tenant"), Arc::new(Limits::default()));
    c.bench_function("cached labels", |b| b.iter(|| cache.resolve(&tenant, black_box(LABELS), &limits)));
}

fn levels(c: &mut Criterion) {
    let limits = Limits::default();
    let detector = LevelDetector::new(&limits);
    let mut group = c.benchmark_group("level detection");
    for (name, lines) in corpora() {
        group.throughput(Throughput::Bytes(lines.iter().map(|l| l.len() as u64).sum()));
        group.bench_function(name, |b| {
            b.iter(|| lines.iter().map(|line| detector.of_line(black_box(line)) as usize).sum::<usize>());
        });
    }
    group.finish();
}

struct Nowhere;

impl IngesterClient for Nowhere {
    fn push(&self, _: Tenant, push: Arc<Push>, _: Vec<u32>) -> BoxFuture<'static, Result<(), PushError>> {
        black_box(push);
        Box::pin(async { Ok(()) })
    }
}

/// 10 streams of 100 lines, as a decoder of protobuf leaves them.
fn request(lines: &[Vec<u8>]) -> PushRequest {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
    let mut request = PushRequest::default();
    let mut lines = lines.iter().cycle();
    for stream in 0..10 {
        let labels = request.intern(format!("{{job=\"bench\", host=\"h{stream}\"}}").as_bytes());
        let first = request.entries.len() as u32;
        for line in lines.by_ref().take(100) {
            let line = request.intern(line);
            request.entries.push(Entry { timestamp: now, line, metadata: 0..0 });
        }
        request.streams.push(RawStream { labels, entries: first..first + 100 });
    }
    // A decoder's buffer has some room behind the request.
    request.arena.reserve(256);
    request
}

fn pushes(c: &mut Criterion) {
    let limits = Limits { ingestion_rate: 1e12, ingestion_burst_size: 1e12, ..Limits::default() };
    let overrides = Arc::new(Overrides::new(limits, HashMap::new()));
    let route = Route::Local(Arc::new(Nowhere));
    let distributor =
        Distributor::new(DistributorConfig::default(), overrides, route, &Registry::new()).expect("fresh registry");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    let tenant = Tenant::new("fake").expect("tenant");
    let mut group = c.benchmark_group("distributor push");
    for (name, lines) in corpora() {
        let bytes: u64 = request(&lines).entries.iter().map(|e| u64::from(e.line.len)).sum();
        group.throughput(Throughput::Bytes(bytes));
        group.bench_function(name, |b| {
            b.iter_batched(
                || request(&lines),
                |request| runtime.block_on(distributor.push(tenant.clone(), request, "loki")).expect("stored"),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, labels, levels, pushes);
criterion_main!(benches);
