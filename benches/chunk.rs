//! Costs of a line between the log and the object store: append to a head, seal, read back.

#[path = "support/lines.rs"]
mod support;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::sync::Arc;
use support::lines;
use timberline::chunk::{Block, Encoding, Head, Part, Selection, Symbols, select};

/// A head of about Loki's block size: all lines, with timestamps that `offset` gives for the place of a line.
fn head(offset: impl Fn(i64) -> i64) -> Head {
    let mut head = Head::new();
    for (place, line) in (0..).zip(&lines(209_000)) {
        append(&mut head, 1_795_365_103_000_000_000 + offset(place), line);
    }
    head
}

fn append(head: &mut Head, timestamp: i64, line: &str) {
    let level = if line.contains("WARN") { "warn" } else { "info" };
    let pair = (head.intern(b"detected_level"), head.intern(level.as_bytes()));
    head.append(timestamp, line.as_bytes(), &[pair]);
}

fn line_bytes(head: &Head) -> Throughput {
    Throughput::Bytes(head.iter().map(|e| e.line.len() as u64).sum())
}

fn append_lines(c: &mut Criterion) {
    let lines = lines(209_000);
    let mut group = c.benchmark_group("append");
    group.throughput(Throughput::Elements(lines.len() as u64));
    let fill = |mut head: Head| {
        let name = head.intern(b"detected_level");
        for (i, line) in lines.iter().enumerate() {
            let value = head.intern(b"info");
            head.append(i as i64, line.as_bytes(), &[(name, value)]);
        }
        head
    };
    group.bench_function("new head", |b| b.iter_with_large_drop(|| fill(Head::new())));
    let mut used = fill(Head::new());
    used.clear();
    group.bench_function("used head", |b| b.iter_batched(|| used.clone(), fill, BatchSize::SmallInput));
    group.finish();
}

fn seal(c: &mut Criterion) {
    let mut group = c.benchmark_group("seal");
    let ordered = head(|i| i * 1_000_003);
    let unordered = head(|i| (i * 7919) % 1024 * 1_000_003);
    group.throughput(line_bytes(&ordered));
    let run = |head: &Head, encoding| Block::seal(head, &mut Symbols::new(), encoding);
    group.bench_function("snappy, ordered", |b| b.iter(|| run(&ordered, Encoding::Snappy)));
    group.bench_function("snappy, unordered", |b| b.iter(|| run(&unordered, Encoding::Snappy)));
    group.bench_function("none, ordered", |b| b.iter(|| run(&ordered, Encoding::None)));
    group.finish();
}

fn read(c: &mut Criterion) {
    let mut group = c.benchmark_group("select");
    let head = head(|i| i * 1_000_003);
    group.throughput(line_bytes(&head));
    let mut symbols = Symbols::new();
    let block = Arc::new(Block::seal(&head, &mut symbols, Encoding::Snappy));
    let parts = [Part::Block(block, Arc::new(symbols))];
    let all = Selection { start: i64::MIN, end: i64::MAX, forward: false, limit: usize::MAX };
    group.bench_function("none kept", |b| b.iter(|| select(&parts, &all, &mut |_, _| false)));
    group.bench_function("all kept", |b| b.iter(|| select(&parts, &all, &mut |_, _| true)));
    group.finish();
}

criterion_group!(benches, append_lines, seal, read);
criterion_main!(benches);
