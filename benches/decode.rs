//! Push decoding by format. The throughput is that of line bytes, whatever they are wrapped in.
//!
//! `cargo bench --bench decode`

#[path = "support/push.rs"]
mod push;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flate2::Compression;
use flate2::write::GzEncoder;
use push::{LINES, message};
use std::hint::black_box;
use std::io::Write as _;
use timberline::api::decode::{Budget, DecodeLimits, PushHeaders, decode};

/// As a push of the load generator: 10 streams of 100 lines.
const STREAMS: usize = 10;
const BUDGET: usize = 1 << 30;

/// Lines that look like those of a file system's daemons, always the same.
fn lines() -> Vec<String> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |bound: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % bound
    };
    (0..STREAMS * LINES)
        .map(|i| match i % 3 {
            0 => format!(
                "081109 2036{:02} {} INFO dfs.DataNode$PacketResponder: PacketResponder {} for block blk_{} terminating",
                i % 60,
                random(200),
                random(3),
                random(u64::MAX)
            ),
            1 => format!(
                "081109 2040{:02} {} INFO dfs.FSNamesystem: BLOCK* NameSystem.addStoredBlock: blockMap updated: \
                 10.251.{}.{}:50010 is added to blk_{} size {}",
                i % 60,
                random(40),
                random(256),
                random(256),
                random(u64::MAX),
                random(1 << 26)
            ),
            _ => format!(
                "level=info ts=2026-11-22T10:00:{:02}Z caller=http.go:{} msg=\"request done\" path=/api/v1/items/{} \
                 status=200 duration={}ms",
                i % 60,
                random(400),
                random(100_000),
                random(900)
            ),
        })
        .collect()
}

fn json(lines: &[String]) -> String {
    let stream = |(s, lines): (usize, &[String])| {
        let values: Vec<_> = lines
            .iter()
            .enumerate()
            .map(|(i, l)| serde_json::json!([(1_795_338_000_000_000_000 + i * 1_000_003).to_string(), l]))
            .collect();
        serde_json::json!({"stream": {"job": "bench", "host": format!("node-{s}"), "env": "test"}, "values": values})
    };
    let streams: Vec<_> = lines.chunks(LINES).enumerate().map(stream).collect();
    serde_json::json!({ "streams": streams }).to_string()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("a vector takes everything");
    encoder.finish().expect("a vector takes everything")
}

fn decoding(c: &mut Criterion) {
    let lines = lines();
    let line_bytes: usize = lines.iter().map(String::len).sum();
    let message = message(&lines);
    let packed = snap::raw::Encoder::new().compress_vec(&message).expect("far below snappy's limit");
    let json = json(&lines);
    let (json_type, protobuf_type) = ("application/json", "application/x-protobuf");
    let cases = [
        ("protobuf-snappy", protobuf_type, "", packed.clone()),
        ("json", json_type, "", json.clone().into_bytes()),
        ("json-gzip", json_type, "gzip", gzip(json.as_bytes())),
    ];
    let limits = DecodeLimits::default();
    let budget = Budget::new(BUDGET);
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Bytes(line_bytes as u64));
    for (name, content_type, encoding, body) in cases {
        let headers =
            PushHeaders { content_type: Some(content_type), content_encoding: Some(encoding), path_is_v1: true };
        group.bench_function(name, |b| {
            // A body as from the socket: its copy is not what is measured.
            b.iter_batched(
                || body.clone(),
                |body| {
                    let mut lease = budget.lease();
                    lease.take(body.capacity()).expect("the budget is free");
                    decode(black_box(&headers), body, &limits, &mut lease).expect("the body is sound")
                },
                criterion::BatchSize::SmallInput,
            );
        });
    }
    // The floor under protobuf-snappy.
    group.bench_function("snappy-alone", |b| {
        let mut out = vec![0; message.len()];
        b.iter(|| snap::raw::Decoder::new().decompress(black_box(&packed), &mut out));
    });
    group.finish();
}

criterion_group!(benches, decoding);
criterion_main!(benches);
