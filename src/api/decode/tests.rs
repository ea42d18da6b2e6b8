use super::*;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::io::Write as _;
use std::sync::Arc;

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/x-protobuf";

/// A decoded stream in owned form: labels, and (timestamp, line, metadata) of each entry.
type Stream = (String, Vec<(i64, Vec<u8>, Vec<(String, String)>)>);

fn headers<'a>(content_type: &'a str, content_encoding: &'a str) -> PushHeaders<'a> {
    PushHeaders {
        content_type: Some(content_type),
        content_encoding: Some(content_encoding).filter(|e| !e.is_empty()),
        path_is_v1: true,
    }
}

fn decode_with(headers: &PushHeaders<'_>, body: &[u8], limits: &DecodeLimits) -> Result<PushRequest, PushError> {
    let budget = Budget::new(1 << 30);
    let mut lease = budget.lease();
    let result = decode_own(headers, body, limits, &mut lease);
    if let Ok(request) = &result {
        assert_covered(request, &budget);
    }
    drop(lease);
    assert_eq!(budget.used(), 0);
    result
}

/// Decodes a body that the lease covers, as that of a request.
fn decode_own(
    headers: &PushHeaders<'_>,
    body: &[u8],
    limits: &DecodeLimits,
    lease: &mut Lease,
) -> Result<PushRequest, PushError> {
    let body = body.to_vec();
    lease.take(body.capacity())?;
    decode(headers, body, limits, lease)
}

/// The same for a message.
fn message_own(message: &[u8], limits: &DecodeLimits, lease: &mut Lease) -> Result<PushRequest, PushError> {
    let message = message.to_vec();
    lease.take(message.capacity())?;
    decode_protobuf(message, limits, lease)
}

/// The lease holds exactly what the push holds.
fn assert_covered(request: &PushRequest, budget: &Arc<Budget>) {
    let held = request.arena.capacity()
        + request.streams.capacity() * size_of::<crate::model::RawStream>()
        + request.entries.capacity() * size_of::<crate::model::Entry>()
        + request.metadata.capacity() * size_of::<crate::model::MetadataPair>();
    assert_eq!(budget.used(), held);
}

fn streams_of(request: &PushRequest) -> Vec<Stream> {
    let arena = &request.arena;
    let text = |span: crate::model::Span| String::from_utf8(span.of(arena).to_vec()).unwrap();
    let stream = |s: &crate::model::RawStream| {
        let entries = &request.entries[s.entries.start as usize..s.entries.end as usize];
        let entries = entries.iter().map(|e| {
            let metadata = &request.metadata[e.metadata.start as usize..e.metadata.end as usize];
            let metadata = metadata.iter().map(|p| (text(p.name), text(p.value))).collect();
            (e.timestamp, e.line.of(arena).to_vec(), metadata)
        });
        (text(s.labels), entries.collect())
    };
    request.streams.iter().map(stream).collect()
}

fn decoded(headers: &PushHeaders<'_>, body: &[u8]) -> Result<Vec<Stream>, PushError> {
    decode_with(headers, body, &DecodeLimits::default()).map(|r| streams_of(&r))
}

fn from_json(body: impl AsRef<[u8]>) -> Result<Vec<Stream>, PushError> {
    decoded(&headers(JSON, ""), body.as_ref())
}

fn from_message(message: &[u8]) -> Result<Vec<Stream>, PushError> {
    decoded(&headers(PROTOBUF, ""), &snappy(message))
}

/// One stream `{a="b"}` with one entry, as most tests want it.
fn one(timestamp: i64, line: &[u8]) -> Vec<Stream> {
    vec![("{a=\"b\"}".into(), vec![(timestamp, line.to_vec(), vec![])])]
}

fn snappy(bytes: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(bytes).unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The messages as prost sees them: the oracle of the decoder by hand.
mod wire {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct PushRequest {
        #[prost(message, repeated, tag = "1")]
        pub streams: Vec<Stream>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Stream {
        #[prost(string, tag = "1")]
        pub labels: String,
        #[prost(message, repeated, tag = "2")]
        pub entries: Vec<Entry>,
        #[prost(uint64, tag = "3")]
        pub hash: u64,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Entry {
        #[prost(message, optional, tag = "1")]
        pub timestamp: Option<Timestamp>,
        #[prost(bytes = "vec", tag = "2")]
        pub line: Vec<u8>,
        #[prost(message, repeated, tag = "3")]
        pub structured_metadata: Vec<Pair>,
        #[prost(message, repeated, tag = "4")]
        pub parsed: Vec<Pair>,
    }
    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub struct Timestamp {
        #[prost(int64, tag = "1")]
        pub seconds: i64,
        #[prost(int32, tag = "2")]
        pub nanos: i32,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Pair {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub value: String,
    }
}

fn to_wire(streams: &[Stream]) -> wire::PushRequest {
    let entry = |(timestamp, line, metadata): &(i64, Vec<u8>, Vec<(String, String)>)| wire::Entry {
        timestamp: Some(wire::Timestamp {
            seconds: timestamp.div_euclid(1_000_000_000),
            nanos: timestamp.rem_euclid(1_000_000_000) as i32,
        }),
        line: line.clone(),
        structured_metadata: metadata
            .iter()
            .map(|(name, value)| wire::Pair { name: name.clone(), value: value.clone() })
            .collect(),
        parsed: vec![],
    };
    let stream = |(labels, entries): &Stream| wire::Stream {
        labels: labels.clone(),
        entries: entries.iter().map(entry).collect(),
        hash: 7,
    };
    wire::PushRequest { streams: streams.iter().map(stream).collect() }
}

fn from_wire(request: &wire::PushRequest) -> Vec<Stream> {
    let entry = |e: &wire::Entry| {
        let t = e.timestamp.unwrap_or_default();
        let pairs = e.structured_metadata.iter().map(|p| (p.name.clone(), p.value.clone())).collect();
        (t.seconds * 1_000_000_000 + i64::from(t.nanos), e.line.clone(), pairs)
    };
    request.streams.iter().map(|s| (s.labels.clone(), s.entries.iter().map(entry).collect())).collect()
}

fn proto(message: &impl prost::Message) -> Vec<u8> {
    message.encode_to_vec()
}

// Real clients.

#[test]
fn bodies_of_real_clients_give_their_entries() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/push");
    let mut count = 0;
    for file in std::fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let want: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let body = std::fs::read(path.with_extension("body")).unwrap();
        let headers = PushHeaders {
            content_type: want["content_type"].as_str(),
            content_encoding: want["content_encoding"].as_str(),
            path_is_v1: true,
        };
        let got = decoded(&headers, &body).unwrap();
        let got: Vec<Value> = got.iter().map(as_value).collect();
        assert_eq!(Value::Array(got), want["streams"], "{path:?}");
        count += 1;
    }
    assert!(count >= 11, "only {count} captured bodies");
}

fn as_value((labels, entries): &Stream) -> Value {
    let entries: Vec<Value> =
        entries.iter().map(|(t, line, meta)| json!([t, String::from_utf8_lossy(line), meta])).collect();
    json!({"labels": labels, "entries": entries})
}

// Headers and encodings.

#[test]
fn every_encoding_gives_the_same_push() {
    let text = br#"{"streams":[{"stream":{"a":"b"},"values":[["1","x"]]}]}"#;
    let message = proto(&to_wire(&one(1, b"x")));
    for (encoding, pack) in [
        ("gzip", gzip as fn(&[u8]) -> Vec<u8>),
        ("deflate", deflate),
        ("deflate", zlib),
        ("", <[u8]>::to_vec),
        ("snappy", <[u8]>::to_vec),
    ] {
        assert_eq!(decoded(&headers(JSON, encoding), &pack(text)), Ok(one(1, b"x")), "JSON {encoding}");
        let body = pack(&snappy(&message));
        assert_eq!(decoded(&headers(PROTOBUF, encoding), &body), Ok(one(1, b"x")), "protobuf {encoding}");
    }
}

#[test]
fn gzip_members_are_joined_and_what_follows_is_ignored() {
    let text = br#"{"streams":[{"stream":{"a":"b"},"values":[["1","x"]]}]}"#;
    let (head, tail) = text.split_at(20);
    let mut body = [gzip(head), gzip(b""), gzip(tail)].concat();
    assert_eq!(decoded(&headers(JSON, "gzip"), &body), Ok(one(1, b"x")));
    body.extend_from_slice(b"garbage");
    assert_eq!(decoded(&headers(JSON, "gzip"), &body), Ok(one(1, b"x")));
}

/// Repetitive, and larger than what is doubled.
fn large_json() -> String {
    let line = "all work and no play ".repeat(600_000);
    format!(r#"{{"streams":[{{"stream":{{"a":"b"}},"values":[["1","{line}"]]}}]}}"#)
}

#[test]
fn a_large_body_without_an_account_of_its_size_is_counted_and_fits_exactly() {
    let text = large_json();
    let (head, tail) = text.as_bytes().split_at(text.len() - 1000);
    for (encoding, body) in [
        ("deflate", deflate(text.as_bytes())),
        ("deflate", zlib(text.as_bytes())),
        ("gzip", gzip(text.as_bytes())),
        // The account is that of the last member.
        ("gzip", [gzip(head), gzip(tail)].concat()),
    ] {
        let push = decode_with(&headers(JSON, encoding), &body, &DecodeLimits::default()).unwrap();
        assert!((text.len()..text.len() + 1024).contains(&push.arena.capacity()), "{encoding}");
        let limits = DecodeLimits { max_decompressed: text.len(), ..DecodeLimits::default() };
        assert!(decode_with(&headers(JSON, encoding), &body, &limits).is_ok());
        let limits = DecodeLimits { max_decompressed: text.len() - 1, ..DecodeLimits::default() };
        let error = decode_with(&headers(JSON, encoding), &body, &limits).unwrap_err();
        assert_eq!(error.status, 413);
        assert!(error.message.contains("decompressed message size too large than max"), "{}", error.message);
    }
}

#[test]
fn a_gzip_body_that_lies_about_its_size_is_refused() {
    let mut body = gzip(large_json().as_bytes());
    let at = body.len() - 4;
    for size in [0, 1, 100 << 20, u32::MAX] {
        body[at..].copy_from_slice(&size.to_le_bytes());
        let error = decode_with(&headers(JSON, "gzip"), &body, &DecodeLimits::default()).unwrap_err();
        assert_eq!((error.status, error.message.as_str()), (400, "gzip: invalid checksum"), "{size}");
    }
}

#[test]
fn optional_fields_of_a_gzip_header_are_skipped() {
    let text = br#"{"streams":[]}"#;
    let mut encoder = flate2::GzBuilder::new()
        .extra(vec![1, 2, 3])
        .filename("a name")
        .comment("a comment")
        .write(Vec::new(), Compression::fast());
    encoder.write_all(text).unwrap();
    let body = encoder.finish().unwrap();
    assert_eq!(decoded(&headers(JSON, "gzip"), &body), Ok(vec![]));
    // The same with a CRC of the header.
    let start = body.len() - 8 - deflate_len(&body);
    let mut head = body[..start].to_vec();
    head[3] |= 2;
    let sum = crc32fast::hash(&head) as u16;
    let with_sum = [&head[..], &sum.to_le_bytes(), &body[start..]].concat();
    assert_eq!(decoded(&headers(JSON, "gzip"), &with_sum), Ok(vec![]));
    let wrong = [&head[..], &(sum ^ 1).to_le_bytes(), &body[start..]].concat();
    assert_eq!(decoded(&headers(JSON, "gzip"), &wrong).unwrap_err().message, "gzip: invalid header");
}

fn deflate_len(gzip: &[u8]) -> usize {
    let start = 10 + 2 + 3 + "a name\0".len() + "a comment\0".len();
    gzip.len() - 8 - start
}

#[test]
fn the_decode_failure_matrix_of_loki() {
    let good = br#"{"streams":[{"stream":{"a":"b"},"values":[["1","x"]]}]}"#.to_vec();
    let mut bad_sum = gzip(&good);
    let at = bad_sum.len() - 8;
    bad_sum[at] ^= 1;
    let table: Vec<(PushHeaders<'_>, Vec<u8>, &str)> = vec![
        (PushHeaders { content_type: None, ..headers(JSON, "") }, good.clone(), "mime: no media type"),
        (headers("application/json; charsetutf-8", ""), good.clone(), "mime: invalid media parameter"),
        (headers("application/jsonn", ""), good.clone(), "snappy: corrupt input"),
        (headers(PROTOBUF, ""), vec![], "snappy: corrupt input"),
        (headers(PROTOBUF, ""), b"\xff\xff\xff\xff\xff\xff\xff".to_vec(), "snappy: corrupt input"),
        (headers(PROTOBUF, "snappy"), good.clone(), "snappy: corrupt input"),
        (headers(PROTOBUF, "gzip"), gzip(&good), "snappy: corrupt input"),
        (headers(JSON, "br"), good.clone(), "Content-Encoding \"br\" not supported"),
        (headers(JSON, "zstd"), good.clone(), "Content-Encoding \"zstd\" not supported"),
        (headers(JSON, "identity"), good.clone(), "Content-Encoding \"identity\" not supported"),
        (headers(JSON, "GZIP"), good.clone(), "Content-Encoding \"GZIP\" not supported"),
        (headers(JSON, "gzip, gzip"), good.clone(), "Content-Encoding \"gzip, gzip\" not supported"),
        (headers(JSON, ""), vec![], "EOF"),
        (headers(JSON, ""), b" \n".to_vec(), "EOF"),
        (headers(JSON, "gzip"), vec![], "EOF"),
        (headers(JSON, "deflate"), vec![], "EOF"),
        (headers(JSON, "gzip"), good.clone(), "gzip: invalid header"),
        (headers(JSON, "gzip"), gzip(&good)[..20].to_vec(), "unexpected EOF"),
        (headers(JSON, "gzip"), gzip(&good)[..at + 4].to_vec(), "unexpected EOF"),
        (headers(JSON, "gzip"), bad_sum, "gzip: invalid checksum"),
        (headers(JSON, "deflate"), deflate(&good)[..20].to_vec(), "unexpected EOF"),
        (headers(JSON, "deflate"), vec![0xff; 20], "flate: corrupt input"),
    ];
    for (headers, body, message) in table {
        let error = decoded(&headers, &body).unwrap_err();
        assert_eq!((error.status, error.message.as_str()), (400, message), "{headers:?}");
    }
    // Really compressed JSON behind a snappy header: Loki does not decompress it either.
    assert_eq!(decoded(&headers(JSON, "snappy"), &snappy(&good)).unwrap_err().status, 400);
}

// Sizes and memory.

#[test]
fn sizes_are_checked_at_the_limit_and_above() {
    let text = br#"{"streams":[{"stream":{"a":"b"},"values":[["1","x"]]}]}"#;
    let message = proto(&to_wire(&one(1, b"x")));
    let refused = |headers: &PushHeaders<'_>, body: &[u8], limits: DecodeLimits| {
        let error = decode_with(headers, body, &limits).unwrap_err();
        assert_eq!(error.status, 413);
        error.message
    };
    let fits = |headers: &PushHeaders<'_>, body: &[u8], limits: DecodeLimits| {
        assert!(decode_with(headers, body, &limits).is_ok());
    };
    let all = DecodeLimits::default();

    let received = |n: usize| DecodeLimits { max_compressed: n, ..all };
    fits(&headers(JSON, ""), text, received(text.len()));
    let message_size = refused(&headers(JSON, ""), text, received(text.len() - 1));
    assert_eq!(message_size, "request body too large: message size too large than max (55 vs 54)");

    let decompressed = |n: usize| DecodeLimits { max_decompressed: n, ..all };
    let want = "request body too large: decompressed message size too large than max (55 vs 54)";
    for (encoding, body) in [("", text.to_vec()), ("gzip", gzip(text)), ("deflate", deflate(text))] {
        fits(&headers(JSON, encoding), &body, decompressed(text.len()));
        assert_eq!(refused(&headers(JSON, encoding), &body, decompressed(text.len() - 1)), want);
    }
    fits(&headers(PROTOBUF, ""), &snappy(&message), decompressed(message.len()));
    let n = message.len();
    let want = format!("request body too large: decompressed message size too large than max ({n} vs {})", n - 1);
    assert_eq!(refused(&headers(PROTOBUF, ""), &snappy(&message), decompressed(n - 1)), want);

    // `{a="b"}`, a line of 1, and 8 for the stream and the entry each.
    let pushed = |n: usize| DecodeLimits { max_push_bytes: n, ..all };
    for (headers, body) in [(headers(JSON, ""), text.to_vec()), (headers(PROTOBUF, ""), snappy(&message))] {
        fits(&headers, &body, pushed(24));
        assert!(refused(&headers, &body, pushed(23)).contains("max_push_bytes is 23"));
    }
}

#[test]
fn a_label_text_above_16_mib_is_413() {
    let text = |n: usize| proto(&to_wire(&[("x".repeat(n), vec![])]));
    assert!(from_message(&text(1 << 24)).is_ok());
    let error = from_message(&text((1 << 24) + 1)).unwrap_err();
    assert_eq!(error.status, 413);
    assert_eq!(error.message, "request body too large: stream labels size 16777217 exceeds limit of 16777216");
    let map = json!({"streams": [{"stream": {"a": "x".repeat(1 << 24)}, "values": []}]}).to_string();
    assert_eq!(from_json(map).unwrap_err().status, 413);
}

/// An entry of two bytes takes twenty-four, and as many again while the list grows.
#[test]
fn a_push_of_empty_things_takes_no_more_than_its_bytes_explain() {
    let entries = |n: usize| proto(&to_wire(&[("{}".into(), vec![(0, vec![], vec![]); n])]));
    assert!(from_message(&entries(100)).is_ok());
    let budget = Budget::new(1 << 30);
    let mut lease = budget.lease();
    let message = [&b"\x0a\xc0\x84\x3d"[..], &b"\x12\0".repeat(500_000)].concat();
    let error = message_own(&message, &DecodeLimits::default(), &mut lease).unwrap_err();
    assert_eq!(error.status, 400);
    assert!(
        error
            .message
            .starts_with("the push has more empty streams, entries, labels or metadata than its 1000004 bytes")
    );
    // The smallest that mean something: a second, and a byte.
    let small: Vec<_> = (0..200_000).map(|n| (n * 1_000_000_000, b"a".to_vec(), vec![])).collect();
    let decoded = from_message(&proto(&to_wire(&[("{}".into(), small.clone())]))).unwrap();
    assert_eq!(decoded, [("{}".to_string(), small)]);
    let text = format!(r#"{{"streams":[{}{{}}]}}"#, "{},".repeat(500_000));
    assert_eq!(from_json(text).unwrap_err().status, 400);
}

#[test]
fn a_declared_snappy_length_is_not_believed() {
    // Ten bytes that declare 200 MiB: nothing of that size is reserved.
    let mut body = vec![0x80, 0x80, 0x80, 0x64];
    assert_eq!(snap::raw::decompress_len(&body).unwrap(), 200 << 20);
    body.extend_from_slice(&[0; 6]);
    let budget = Budget::new(1000);
    let mut lease = budget.lease();
    let head = headers(PROTOBUF, "");
    let error = decode_own(&head, &body, &DecodeLimits::default(), &mut lease).unwrap_err();
    assert_eq!((error.status, error.message.as_str()), (400, "snappy: corrupt input"));
    assert!(expected(&head, &body).bytes < 1000);
    // The most that snappy compresses is within the bound.
    let zeros = vec![0; 1 << 20];
    assert!(zeros.len() < snappy(&zeros).len() * 22);
}

#[test]
fn bombs_hold_no_more_than_the_budget() {
    const BUDGET: usize = 8 << 20;
    let zeros = vec![b' '; 64 << 20];
    let empty_entries = [0x12, 0].repeat(4 << 20);
    let mut stream = vec![0x0a];
    prost::encoding::encode_varint(empty_entries.len() as u64, &mut stream);
    stream.extend_from_slice(&empty_entries);
    let many_labels = format!("{{\"streams\":[{{\"stream\":{{{}\"a\":0}}}}]}}", "\"\":0,".repeat(1 << 20));
    for (headers, body) in [
        (headers(JSON, "gzip"), gzip(&zeros)),
        (headers(JSON, "deflate"), zlib(&zeros)),
        (headers(PROTOBUF, "gzip"), gzip(&snappy(&zeros))),
        (headers(PROTOBUF, ""), snappy(&zeros)),
        (headers(PROTOBUF, ""), snappy(&stream)),
        (headers(JSON, "gzip"), gzip(many_labels.as_bytes())),
    ] {
        let budget = Budget::new(BUDGET);
        let mut lease = budget.lease();
        let error = decode_own(&headers, &body, &DecodeLimits::default(), &mut lease).unwrap_err();
        assert_eq!(error.status, 413, "{}", error.message);
        assert_eq!((lease.reserved(), budget.used()), (0, 0));
        drop(lease);

        // The same while others hold nearly everything: come back later.
        let mut others = budget.lease();
        others.take(BUDGET - (32 << 10)).unwrap();
        let mut lease = budget.lease();
        let error = decode_own(&headers, &body, &DecodeLimits::default(), &mut lease).unwrap_err();
        assert!(matches!(error.status, 413 | 503), "{}", error.message);
        drop((others, lease));
        assert_eq!(budget.used(), 0);
    }
}

#[test]
fn a_push_that_finds_the_budget_taken_is_503_and_fits_afterwards() {
    let body = snappy(&proto(&to_wire(&one(1, &[b'x'; 1000]))));
    let head = headers(PROTOBUF, "");
    let budget = Budget::new(1 << 20);
    let mut others = budget.lease();
    others.take((1 << 20) - 100).unwrap();
    let mut lease = budget.lease();
    let error = decode_own(&head, &body, &DecodeLimits::default(), &mut lease).unwrap_err();
    assert_eq!((error.status, error.retry_after), (503, Some(1)));
    drop(others);
    assert!(decode_own(&head, &body, &DecodeLimits::default(), &mut lease).is_ok());
}

#[test]
fn what_was_reserved_beforehand_is_used_and_the_rest_given_back() {
    let message = proto(&to_wire(&one(1, &[b'x'; 100_000])));
    let body = snappy(&message);
    let head = headers(PROTOBUF, "");
    let budget = Budget::new(1 << 20);
    let expected = expected(&head, &body).bytes;
    assert!(expected >= message.len() && expected < 2 * message.len());
    let mut lease = budget.lease();
    lease.expect(body.len() + expected).unwrap();
    let request = decode_own(&head, &body, &DecodeLimits::default(), &mut lease).unwrap();
    assert_covered(&request, &budget);
}

// Protobuf.

#[test]
fn protobuf_fields_may_come_in_any_order_and_again() {
    // Timestamp {nanos 5}, line "x", then Timestamp {seconds 1} merged, and line "y" instead of "x".
    let entry = [&[0x0a, 2, 0x10, 5][..], &[0x12, 1, b'x'], &[0x0a, 2, 0x08, 1], &[0x12, 1, b'y']].concat();
    let mut stream = vec![0x12, entry.len() as u8];
    stream.extend_from_slice(&entry);
    stream.extend_from_slice(b"\x0a\x01?\x0a\x07{a=\"b\"}");
    // Unknown fields of every wire type, in the request.
    let mut message = vec![0x78, 0x80, 1, 0x79, 1, 2, 3, 4, 5, 6, 7, 8, 0x7a, 2, 0, 0, 0x7d, 1, 2, 3, 4];
    message.extend_from_slice(&[0x0a, stream.len() as u8]);
    message.extend_from_slice(&stream);
    assert_eq!(from_message(&message), Ok(one(1_000_000_005, b"y")));
}

#[test]
fn a_missing_timestamp_is_1970_and_a_missing_line_is_empty() {
    let message = wire::PushRequest {
        streams: vec![wire::Stream { labels: "{a=\"b\"}".into(), entries: vec![wire::Entry::default()], hash: 0 }],
    };
    assert_eq!(from_message(&proto(&message)), Ok(one(0, b"")));
}

#[test]
fn lines_are_bytes_and_everything_else_is_utf8() {
    assert_eq!(from_message(&proto(&to_wire(&one(1, b"\xff\x00\xfe")))), Ok(one(1, b"\xff\x00\xfe")));
    let labels = b"\x0a\x03\x0a\x01\xff";
    assert!(from_message(labels).unwrap_err().message.contains("labels is not valid UTF-8"));
    for field in [0x0a, 0x12] {
        let metadata = [0x0a, 7, 0x12, 5, 0x1a, 3, field, 1, 0xff];
        let error = from_message(&metadata).unwrap_err();
        assert!(error.message.contains("structured metadata is not valid UTF-8"), "{}", error.message);
    }
}

#[test]
fn timestamps_are_64_bits_of_nanoseconds() {
    let push = |seconds: i64, nanos: i32| {
        let entry = wire::Entry { timestamp: Some(wire::Timestamp { seconds, nanos }), ..Default::default() };
        let stream = wire::Stream { labels: "{a=\"b\"}".into(), entries: vec![entry], hash: 0 };
        from_message(&proto(&wire::PushRequest { streams: vec![stream] })).map_err(|e| e.status)
    };
    assert_eq!(push(9_223_372_036, 854_775_807), Ok(one(i64::MAX, b"")));
    assert_eq!(push(9_223_372_036, 854_775_808), Err(400));
    assert_eq!(push(-1, 1), Ok(one(-999_999_999, b"")));
    assert_eq!(push(i64::MAX, 0), Err(400));
    assert_eq!(push(i64::MIN, 0), Err(400));
    assert_eq!(push(1, -1), Err(400));
    assert_eq!(push(1, 1_000_000_000), Err(400));
}

#[test]
fn malformed_protobuf_is_400() {
    let table: &[(&[u8], &str)] = &[
        (&[0x0a, 5, 0], "unexpected EOF"),
        (&[0x0a], "unexpected EOF"),
        (&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], "unexpected EOF"),
        (&[0x80], "unexpected EOF"),
        (&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02], "integer overflow"),
        (&[0x00, 0x00], "illegal tag 0"),
        (&[0x08, 0x00], "wrong wireType = 0, want 2"),
        (&[0x7b, 0x7c], "groups are not supported"),
        (&[0x0c], "wrong wireType = 4, want 2"),
        (&[0x7e, 0], "illegal wireType 6"),
        (&[0x79, 0], "unexpected EOF"),
        // A stream whose entry is longer than the stream, although the request goes on.
        (&[0x0a, 2, 0x12, 3, 0, 0, 0], "unexpected EOF"),
        // A varint may not leave its message.
        (&[0x0a, 2, 0x18, 0x80, 0x01], "unexpected EOF"),
    ];
    for (message, want) in table {
        let error = from_message(message).unwrap_err();
        assert!(error.status == 400 && error.message.contains(want), "{message:x?}: {}", error.message);
    }
}

#[test]
fn an_uncompressed_message_is_decoded_for_grpc() {
    let budget = Budget::new(1 << 20);
    let mut lease = budget.lease();
    let message = proto(&to_wire(&one(5, b"x")));
    let request = message_own(&message, &DecodeLimits::default(), &mut lease).unwrap();
    assert_eq!(streams_of(&request), one(5, b"x"));
    assert_covered(&request, &budget);
    let small = DecodeLimits { max_decompressed: message.len() - 1, ..DecodeLimits::default() };
    assert_eq!(message_own(&message, &small, &mut lease).unwrap_err().status, 413);
}

// JSON.

/// The values of one v1 stream `{a="b"}`.
fn values(text: &str) -> Result<Vec<Stream>, PushError> {
    from_json(format!(r#"{{"streams":[{{"stream":{{"a":"b"}},"values":{text}}}]}}"#))
}

/// The label text of a v1 label map.
fn label_text(map: &str) -> Result<String, String> {
    let streams = from_json(format!(r#"{{"streams":[{{"stream":{map},"values":[]}}]}}"#)).map_err(|e| e.message)?;
    Ok(streams[0].0.clone())
}

#[test]
fn json_is_as_lenient_as_loki() {
    let empty = vec![("{a=\"b\"}".to_string(), vec![])];
    let table: Vec<(&str, Vec<Stream>)> = vec![
        (r#"[["1","x"]]"#, one(1, b"x")),
        (" [ [ \"1\" ,\t\"x\"\r\n] ] ", one(1, b"x")),
        (r#"[["-5","x"]]"#, one(-5, b"x")),
        (r#"[["9223372036854775807","x"]]"#, one(i64::MAX, b"x")),
        (r#"[["-9223372036854775808","x"]]"#, one(i64::MIN, b"x")),
        (r#"[["1"]]"#, one(1, b"")),
        (r#"[["1",""]]"#, one(1, b"")),
        (r#"[["1","x",{}]]"#, one(1, b"x")),
        (r#"[["1","x",{},5,[{"a":null}]]]"#, one(1, b"x")),
        (r#"[null,["1","x"],null]"#, one(1, b"x")),
        (r#"[["\u0031","x"]]"#, one(1, b"x")),
        (r#"[["1","a\"b\\c\/d\b\f\n\r\te"]]"#, one(1, b"a\"b\\c/d\x08\x0c\n\r\te")),
        (r#"[["1","\u00e9\u4E16\ud83d\ude00z\u0000"]]"#, one(1, "\u{e9}\u{4e16}\u{1f600}z\0".as_bytes())),
        ("[]", empty.clone()),
        ("null", empty),
    ];
    for (text, want) in table {
        assert_eq!(values(text), Ok(want), "{text}");
    }
}

#[test]
fn malformed_json_values_are_400() {
    for text in [
        r#"[[1,"x"]]"#,
        r#"[[1.5,"x"]]"#,
        r#"[["1.5","x"]]"#,
        r#"[["","x"]]"#,
        r#"[["-","x"]]"#,
        r#"[["+1","x"]]"#,
        r#"[["0x1","x"]]"#,
        r#"[["2026-11-22T00:00:00Z","x"]]"#,
        r#"[["9223372036854775808","x"]]"#,
        r#"[["-9223372036854775809","x"]]"#,
        r#"[[null,"x"]]"#,
        r#"[[]]"#,
        r#"[["1",5]]"#,
        r#"[["1",null]]"#,
        r#"[["1",{"a":"b"}]]"#,
        r#"[["1","x","y"]]"#,
        r#"[["1","x",["y"]]]"#,
        r#"[["1","x",null]]"#,
        r#"[["1","x",{"a":1}]]"#,
        r#"[["1","x",{"a":{"b":"c"}}]]"#,
        r#"[["1","x",{"a":null}]]"#,
        r#"["1","x"]"#,
        r#"{"1":"x"}"#,
        r#"[["1","x"],]"#,
        r#"[["1","x",]]"#,
        r#"[["1" "x"]]"#,
        r#"[["1","\ud800"]]"#,
        r#"[["1","\ud800x"]]"#,
        r#"[["1","\ud800\u0041"]]"#,
        r#"[["1","\udc00"]]"#,
        r#"[["1","\ud800\ud800"]]"#,
        r#"[["1","\u12"]]"#,
        r#"[["1","\u12g4"]]"#,
        r#"[["1","\x41"]]"#,
        "[[\"1\",\"a\tb\"]]",
        "[[\"1\",\"a\\n\nb\"]]",
        r#"[["1","x",{},01]]"#,
        r#"[["1","x",{},1.]]"#,
        r#"[["1","x",{},-]]"#,
        r#"[["1","x",{},1e]]"#,
        r#"[["1","x",{},nul]]"#,
        r#"[["1","x",{},{"a" 1}]]"#,
        r#"[["1","x",{},{"a":1,}]]"#,
        r#"5"#,
        r#""x""#,
    ] {
        let error = values(text).expect_err(text);
        assert_eq!(error.status, 400, "{text}");
    }
}

#[test]
fn lines_of_json_need_not_be_utf8_but_metadata_and_labels_do() {
    let push = |name: &[u8], value: &[u8], line: &[u8], label: &[u8]| {
        let parts: [&[u8]; 9] = [
            br#"{"streams":[{"stream":{"a":""#,
            label,
            br#""},"values":[["1",""#,
            line,
            br#"",{""#,
            name,
            br#"":""#,
            value,
            br#""}]]}]}"#,
        ];
        from_json(parts.concat()).map_err(|e| e.message)
    };
    let stream = ("{a=\"b\"}".to_string(), vec![(1, b"\xff\xfe".to_vec(), vec![("n".to_string(), "v".to_string())])]);
    assert_eq!(push(b"n", b"v", b"\xff\xfe", b"b"), Ok(vec![stream]));
    for (name, value, label) in [(b"\xff", b"v", b"b"), (b"n", b"\xff", b"b"), (b"n", b"v", b"\xff")] {
        let message = push(name, value, b"", label).unwrap_err();
        assert!(message.contains("not valid UTF-8"), "{message}");
    }
}

#[test]
fn a_label_map_becomes_a_sorted_label_text() {
    for (map, want) in [
        ("{}", "{}"),
        (r#"{"b":"2","a":"1"}"#, r#"{a="1", b="2"}"#),
        (r#"{"a":"1","b":"2","a":"3"}"#, r#"{a="3", b="2"}"#),
        (r#"{"a":"","\u0062":"x"}"#, r#"{a="", b="x"}"#),
        (r#"{"a":"q\"b\\s\n\u0007\u007f\u00e9"}"#, "{a=\"q\\\"b\\\\s\\x0a\\x07\x7f\u{e9}\"}"),
        (r#"{"i":5,"f":-1.50e3,"n":null,"t":true}"#, r#"{f="-1.50e3", i="5", n="null", t="true"}"#),
        (r#"{"a":["x", 1]}"#, r#"{a="[\"x\", 1]"}"#),
        // Left to the label grammar.
        (r#"{"a-b":"1"}"#, r#"{a-b="1"}"#),
    ] {
        assert_eq!(label_text(map).as_deref(), Ok(want), "{map}");
    }
    assert!(label_text(r#"{"a=\"1\", b":"2"}"#).unwrap_err().contains("contains \"=\""));
    assert!(label_text("null").unwrap_err().contains("expected an object"));
}

#[test]
fn of_a_key_that_comes_twice_the_last_one_counts() {
    let text = r#"{"streams":[{"stream":{"x":"y"},"values":[["9","z"]]}],"other":{"streams":5},
        "streams":[{"stream":{"q":"r"},"values":[["7","u"],["8","v",{"m":"n"}]],"stream":{"a":"b"},"values":[["1","x"]]}]}"#;
    assert_eq!(from_json(text), Ok(one(1, b"x")));
}

#[test]
fn requests_without_streams_are_not_refused_here() {
    for text in ["{}", "null", r#"{"streams":[]}"#, r#"{"streams":null}"#, r#"{"streams":[null]}"#, r#"{"x":[1,{}]}"#] {
        assert_eq!(from_json(text), Ok(vec![]), "{text}");
    }
    assert_eq!(from_message(b""), Ok(vec![]));
    for text in
        ["[]", "5", "\"x\"", r#"{"streams":{}}"#, r#"{"streams":5}"#, r#"{"streams":[5]}"#, "{", "{\"a\"", "nul"]
    {
        assert_eq!(from_json(text).map_err(|e| e.status), Err(400), "{text}");
    }
}

#[test]
fn bytes_after_the_json_value_are_ignored() {
    let text = br#"{"streams":[{"stream":{"a":"b"},"values":[["1","x"]]}]}"#;
    for tail in [&b"garbage"[..], b"{\"streams\":[]}", b"\xff", b"\n"] {
        assert_eq!(from_json([text, tail].concat()), Ok(one(1, b"x")));
    }
}

#[test]
fn the_legacy_shape_is_read_on_both_paths() {
    let text = r#"{"streams":[{"entries":[null,{"line":"x","ts":"2026-11-22T10:00:00.123456789+01:00","extra":[]}],
        "labels":"{a=\"b\"}"}]}"#;
    let want = one(1_795_338_000_123_456_789, b"x");
    for path_is_v1 in [true, false] {
        let head = PushHeaders { path_is_v1, ..headers(JSON, "") };
        assert_eq!(decoded(&head, text.as_bytes()), Ok(want.clone()));
        let v1 = br#"{"streams":[{"stream":{"a":"b"},"values":[["1","x"]]}]}"#;
        assert_eq!(decoded(&head, v1), Ok(one(1, b"x")));
    }
}

#[test]
fn a_stream_with_keys_of_both_shapes_is_read_in_the_shape_of_its_path() {
    let text = br#"{"streams":[{"labels":"{a=\"old\"}","entries":[{"ts":"1970-01-01T00:00:00.000000001Z","line":"o"}],
        "stream":{"a":"new"},"values":[["2","n"]]}]}"#;
    let at = |path_is_v1| decoded(&PushHeaders { path_is_v1, ..headers(JSON, "") }, text);
    assert_eq!(at(true), Ok(vec![("{a=\"new\"}".into(), vec![(2, b"n".to_vec(), vec![])])]));
    assert_eq!(at(false), Ok(vec![("{a=\"old\"}".into(), vec![(1, b"o".to_vec(), vec![])])]));
    // What is not read may be of any type.
    let odd = br#"{"streams":[{"labels":{"x":1},"stream":{"a":"b"},"values":[["1","x"]],"entries":"\"\\"}]}"#;
    assert_eq!(from_json(odd), Ok(one(1, b"x")));
}

#[test]
fn malformed_legacy_entries_are_400() {
    for entry in [
        r#"{"ts":"1","line":"x"}"#,
        r#"{"ts":1,"line":"x"}"#,
        r#"{"line":"x"}"#,
        r#"{"ts":null,"line":"x"}"#,
        r#"{"ts":"2026-11-22","line":"x"}"#,
        r#"{"ts":"2026-11-22T10:00:00","line":"x"}"#,
        r#"{"ts":"3000-01-01T00:00:00Z","line":"x"}"#,
        r#"{"ts":"2026-11-22T10:00:00Z","line":5}"#,
        r#"["1","x"]"#,
    ] {
        let text = format!(r#"{{"streams":[{{"labels":"{{}}","entries":[{entry}]}}]}}"#);
        assert_eq!(from_json(text).map_err(|e| e.status), Err(400), "{entry}");
    }
}

#[test]
fn values_are_nested_up_to_64_deep() {
    let nested = |n: usize| format!("{{\"x\":{}{}}}", "[".repeat(n), "]".repeat(n));
    assert_eq!(from_json(nested(64)), Ok(vec![]));
    assert!(from_json(nested(65)).unwrap_err().message.contains("nested deeper than 64"));
    let endless = format!("{{\"x\":{}", "{\"a\":[".repeat(1 << 20));
    assert!(from_json(endless).unwrap_err().message.contains("nested deeper than 64"));
}

// Properties.

fn metadata() -> impl Strategy<Value = Vec<(String, String)>> {
    // A JSON oracle keeps one value of a name, so names differ.
    prop::collection::btree_map("[a-z\"\\\\\u{e9}]{0,4}", any::<String>(), 0..3).prop_map(|m| m.into_iter().collect())
}

fn pushes() -> impl Strategy<Value = Vec<Stream>> {
    let entry = (any::<i64>(), any::<String>().prop_map(String::into_bytes), metadata());
    let stream = ("[a-z]{1,3}", prop::collection::vec(entry, 0..5)).prop_map(|(v, e)| (format!("{{a=\"{v}\"}}"), e));
    prop::collection::vec(stream, 0..4)
}

/// The push as serde_json writes it, sometimes with all that is not ASCII escaped.
fn to_json(streams: &[Stream], ascii: bool) -> String {
    let stream = |(labels, entries): &Stream| {
        let value = &labels[4..labels.len() - 2];
        let entries: Vec<Value> = entries
            .iter()
            .map(|(t, line, pairs)| {
                let pairs: serde_json::Map<String, Value> = pairs.iter().map(|(n, v)| (n.clone(), json!(v))).collect();
                json!([t.to_string(), String::from_utf8_lossy(line), pairs])
            })
            .collect();
        json!({"stream": {"a": value}, "values": entries})
    };
    let text = json!({"streams": streams.iter().map(stream).collect::<Vec<_>>()}).to_string();
    if !ascii {
        return text;
    }
    let mut units = [0; 2];
    text.chars().fold(String::new(), |mut out, c| {
        if c.is_ascii() {
            out.push(c);
        } else {
            c.encode_utf16(&mut units).iter().for_each(|u| out.push_str(&format!("\\u{u:04x}")));
        }
        out
    })
}

proptest! {
    #[test]
    fn json_and_protobuf_give_the_same_entries(streams in pushes(), ascii: bool) {
        prop_assert_eq!(from_message(&proto(&to_wire(&streams))), Ok(streams.clone()));
        prop_assert_eq!(from_json(to_json(&streams, ascii)), Ok(streams));
    }

    #[test]
    fn any_line_of_bytes_passes_protobuf(line: Vec<u8>, t: i64) {
        prop_assert_eq!(from_message(&proto(&to_wire(&one(t, &line)))), Ok(one(t, &line)));
    }

    #[test]
    fn strings_are_what_serde_json_reads(parts in prop::collection::vec(
        prop_oneof![
            any::<char>().prop_map(|c| format!("\\u{:04x}", c as u32 & 0xffff)),
            "\\\\[\"\\\\/bfnrtu]", "[ -~]", any::<char>().prop_map(String::from),
            Just("\\ud83d\\ude00".to_string()),
        ], 0..6)) {
        let literal = format!("\"{}\"", parts.concat());
        let want = serde_json::from_str::<String>(&literal);
        let got = values(&format!("[[\"1\",{literal}]]"));
        match want {
            Ok(want) => prop_assert_eq!(got, Ok(one(1, want.as_bytes()))),
            // serde_json would want the end of the text; a literal that ends early is still an error behind it.
            Err(_) => prop_assert!(got.is_err()),
        }
    }

    #[test]
    fn skipped_values_are_what_serde_json_takes(text in "[\\[\\]{}:,\"\\\\ 0-9.eE+-]{0,12}|(null|true|false|[0-9]|\\[\\]|\\{\\})") {
        let sound = serde_json::from_str::<Value>(&text).is_ok();
        let got = from_json(format!("{{\"x\":{text}}}"));
        // Numbers out of f64's range are numbers, and unknown escapes are not looked at, in what is skipped.
        if sound {
            prop_assert_eq!(got, Ok(vec![]));
        }
    }

    #[test]
    fn protobuf_that_prost_takes_is_read_alike(bytes in prop::collection::vec(
        prop_oneof![Just(0x0a_u8), Just(0x12), Just(0x1a), Just(0x08), Just(0x10), 0_u8..12, any::<u8>()], 0..40)) {
        let got = from_message(&bytes);
        // Where prost refuses, the field is one that is not looked into here, such as `hash`.
        if let Ok(want) = <wire::PushRequest as prost::Message>::decode(&bytes[..]) {
            let mut times = want.streams.iter().flat_map(|s| &s.entries).map(|e| e.timestamp.unwrap_or_default());
            let in_range = |t: wire::Timestamp| (0..1_000_000_000).contains(&t.nanos) && t.seconds.abs() < 9_000_000_000;
            match got {
                Ok(got) => prop_assert_eq!(got, from_wire(&want)),
                Err(e) => prop_assert!(e.message.contains("groups") || !times.all(in_range), "{}", e.message),
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes: Vec<u8>, json in "[\\[\\]{}:,\"\\\\u0-9a-f ]{0,60}") {
        for encoding in ["", "gzip", "deflate"] {
            let _ = decoded(&headers(JSON, encoding), &bytes);
            let _ = decoded(&headers(PROTOBUF, encoding), &bytes);
        }
        let _ = from_json(&json);
        let _ = from_json(format!("{{\"streams\":[{{\"stream\":{json}"));
        let _ = values(&json);
        let _ = from_message(&bytes);
    }

    #[test]
    fn damaged_bodies_never_panic(streams in pushes(), at: prop::sample::Index, byte: u8) {
        let text = to_json(&streams, true).into_bytes();
        let message = proto(&to_wire(&streams));
        let bodies = [
            (headers(JSON, ""), text.clone()), (headers(JSON, "gzip"), gzip(&text)), (headers(JSON, "deflate"), zlib(&text)),
            (headers(PROTOBUF, ""), snappy(&message)), (headers(PROTOBUF, "deflate"), deflate(&snappy(&message))),
        ];
        for (headers, mut body) in bodies {
            let i = at.index(body.len());
            body[i] = byte;
            let _ = decoded(&headers, &body);
        }
        let mut message = message;
        if !message.is_empty() {
            let i = at.index(message.len());
            message[i] = byte;
            let _ = from_message(&message);
        }
    }

    #[test]
    fn every_truncation_is_an_error(streams in pushes(), ascii: bool) {
        let text = to_json(&streams, ascii).into_bytes();
        let message = snappy(&proto(&to_wire(&streams)));
        let bodies = [
            (headers(JSON, ""), text.clone()), (headers(JSON, "gzip"), gzip(&text)), (headers(JSON, "deflate"), deflate(&text)),
            (headers(JSON, "deflate"), zlib(&text)), (headers(PROTOBUF, ""), message.clone()),
            (headers(PROTOBUF, "gzip"), gzip(&message)),
        ];
        for (headers, body) in bodies {
            for len in 0..body.len() {
                let result = decoded(&headers, &body[..len]);
                prop_assert!(result.is_err(), "{:?} cut at {} of {}", headers, len, body.len());
            }
        }
    }
}
