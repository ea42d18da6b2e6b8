//! The limit of the machine, beside which the figures of a push run are read: what no log can do without. A push's snappy
//! body is decompressed, the compressed bytes get their CRC, and they are written and synced in groups, as the log does it;
//! nothing is parsed, validated or kept. One thread. The throughput is that of line bytes.
//!
//! `cargo bench --bench ceiling`; the directory is `$TMPDIR`, which should be on a disk and not in memory.

#[path = "support/lines.rs"]
mod lines;
#[path = "support/push.rs"]
mod push;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use push::{LINES, message};
use std::hint::black_box;
use std::sync::Arc;
use timberline::codec::{align_up, crc32};
use timberline::fs::{File, Fs, RealFs, write_all_at};

/// As a push of the load generator: 10 streams of 100 lines.
const STREAMS: usize = 10;
/// Most bytes of a group of the log.
const MAX_GROUP_LEN: usize = 4 << 20;
const GROUP_ALIGN: u64 = 4096;
const SEGMENT_LEN: u64 = 64 << 20;

/// A file that is filled, as a prepared segment.
struct Segment {
    file: Arc<dyn File>,
    at: u64,
}

impl Segment {
    fn prepare(dir: &std::path::Path) -> Self {
        let file = RealFs.create_new(&dir.join("segment")).expect("a file");
        write_all_at(&*file, 0, &vec![0; SEGMENT_LEN as usize]).and_then(|()| file.sync_data()).expect("space");
        Self { file, at: 0 }
    }

    /// One write and one sync, from the beginning again behind the end.
    fn append(&mut self, group: &mut Vec<u8>) {
        let len = align_up(group.len() as u64, GROUP_ALIGN);
        group.resize(len as usize, 0);
        self.at = if self.at + len > SEGMENT_LEN { 0 } else { self.at };
        write_all_at(&*self.file, self.at, group).and_then(|()| self.file.sync_data()).expect("a sync");
        self.at += len;
        group.clear();
    }
}

/// A thousand of the lines that all benches use.
fn push_lines() -> Vec<String> {
    let mut lines = lines::lines(1 << 20);
    lines.truncate(STREAMS * LINES);
    assert_eq!(lines.len(), STREAMS * LINES);
    lines
}

fn ceiling(c: &mut Criterion) {
    let lines = push_lines();
    let line_bytes: usize = lines.iter().map(String::len).sum();
    let message = message(&lines);
    let body = snap::raw::Encoder::new().compress_vec(&message).expect("far below snappy's limit");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut segment = Segment::prepare(dir.path());
    let (mut raw, mut group) = (vec![0; message.len()], Vec::with_capacity(MAX_GROUP_LEN));
    let mut bench = c.benchmark_group("ceiling");
    bench.sample_size(20);
    // One client that waits for each answer, eight of them, and as many pushes as a group takes.
    for pushes in [1, 8, MAX_GROUP_LEN / body.len()] {
        bench.throughput(Throughput::Bytes((line_bytes * pushes) as u64));
        bench.bench_function(
            BenchmarkId::new("snappy + CRC + write + sync", format!("{pushes} pushes a group")),
            |b| {
                b.iter(|| {
                    for _ in 0..pushes {
                        snap::raw::Decoder::new().decompress(black_box(&body), &mut raw).expect("a sound body");
                        black_box(crc32(&[&body]));
                        group.extend_from_slice(&body);
                    }
                    segment.append(&mut group);
                });
            },
        );
    }
    // The same without the disk.
    bench.throughput(Throughput::Bytes(line_bytes as u64));
    bench.bench_function("snappy + CRC", |b| {
        b.iter(|| {
            snap::raw::Decoder::new().decompress(black_box(&body), &mut raw).expect("a sound body");
            black_box(crc32(&[&body]))
        });
    });
    bench.finish();
}

criterion_group!(benches, ceiling);
criterion_main!(benches);
