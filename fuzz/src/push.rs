//! Pushes: protobuf, JSON, and their compressed bodies.

use super::allocation::bounded;
use super::choices::Choices;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use prost::Message;
use std::io::Write;
use std::sync::Arc;
use timberline::api::decode::{Budget, DecodeLimits, Lease, PushHeaders, decode, decode_protobuf};
use timberline::api::pb::logproto::{EntryAdapter, LabelPairAdapter, PushRequest as Encoded, StreamAdapter, Timestamp};
use timberline::model::{PushError, PushRequest, Span, parse_labels};

/// A push without its arena, to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stream {
    labels: String,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    timestamp: i64,
    line: Vec<u8>,
    metadata: Vec<(String, String)>,
}

fn read(push: &PushRequest) -> Vec<Stream> {
    let bytes = |span: Span| span.of(&push.arena).to_vec();
    // Decoders have checked that labels and metadata are UTF-8.
    let text = |span: Span| String::from_utf8(bytes(span)).expect("UTF-8");
    let range = |r: &std::ops::Range<u32>| r.start as usize..r.end as usize;
    let entry = |e: &timberline::model::Entry| Entry {
        timestamp: e.timestamp,
        line: bytes(e.line),
        metadata: push.metadata[range(&e.metadata)].iter().map(|m| (text(m.name), text(m.value))).collect(),
    };
    let stream = |s: &timberline::model::RawStream| Stream {
        labels: text(s.labels),
        entries: push.entries[range(&s.entries)].iter().map(entry).collect(),
    };
    push.streams.iter().map(stream).collect()
}

/// Decodes with a budget of its own, which must be what it was afterwards.
fn with_lease(
    body: Vec<u8>,
    run: impl FnOnce(Vec<u8>, &mut Lease) -> Result<PushRequest, PushError>,
) -> Result<PushRequest, PushError> {
    let budget: Arc<Budget> = Budget::new(1 << 30);
    let mut lease = budget.lease();
    lease.take(body.capacity()).expect("a body is smaller than the budget");
    let result = run(body, &mut lease);
    match &result {
        Ok(push) => {
            let held = push.arena.capacity() + size_of_val(&push.streams[..]) + size_of_val(&push.entries[..]);
            assert!(budget.used() >= held, "{} bytes are accounted for, {held} are held", budget.used());
        }
        Err(_) => assert_eq!(budget.used(), 0, "an error keeps memory"),
    }
    drop(lease);
    assert_eq!(budget.used(), 0);
    result
}

fn decode_message(message: Vec<u8>, limits: &DecodeLimits) -> Result<PushRequest, PushError> {
    with_lease(message, |message, lease| decode_protobuf(message, limits, lease))
}

fn decode_text(text: Vec<u8>, v1: bool) -> Result<PushRequest, PushError> {
    let headers = PushHeaders { content_type: Some("application/json"), content_encoding: None, path_is_v1: v1 };
    with_lease(text, |text, lease| decode(&headers, text, &DecodeLimits::default(), lease))
}

/// A protobuf message.
pub fn protobuf(input: &[u8]) {
    let message = input.to_vec();
    if let Ok(push) = bounded(input.len(), || decode_message(message, &DecodeLimits::default())) {
        both_formats_agree(&read(&push));
    }
}

/// A JSON text, behind a byte that says on which path it comes.
pub fn json(input: &[u8]) {
    let Some((path, text)) = input.split_first() else { return };
    let text = text.to_vec();
    if let Ok(push) = bounded(text.len(), || decode_text(text, path & 1 == 0)) {
        both_formats_agree(&read(&push));
    }
}

/// What was decoded comes back from both formats.
fn both_formats_agree(push: &[Stream]) {
    let again = decode_message(encode_protobuf(push), &DecodeLimits::default());
    assert_eq!(read(&again.expect("it was decoded before")), push, "protobuf");
    // The labels of a v1 push are a map: only what the grammar of labels takes can be one. A label's last value counts.
    if let Some(maps) = push.iter().map(|s| distinct(&s.labels)).collect::<Option<Vec<_>>>() {
        let again = read(&decode_text(encode_json(push, &maps), true).expect("JSON of what was decoded"));
        for ((stream, again), map) in push.iter().zip(&again).zip(&maps) {
            assert_eq!(stream.entries, again.entries, "JSON");
            assert_eq!(distinct(&again.labels).as_ref(), Some(map), "labels in JSON");
        }
        assert_eq!(again.len(), push.len());
    }
    let has_metadata = push.iter().flat_map(|s| &s.entries).any(|e| !e.metadata.is_empty());
    if let (false, Some(text)) = (has_metadata, encode_legacy(push)) {
        assert_eq!(read(&decode_text(text, false).expect("legacy JSON of what was decoded")), push, "legacy JSON");
    }
}

type Pairs = Vec<(String, String)>;

/// The labels by name, if they parse and no name comes twice.
fn distinct(labels: &str) -> Option<Pairs> {
    let pairs = parse_labels(labels).ok()?;
    let mut pairs: Pairs = pairs.into_iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
    pairs.sort();
    pairs.windows(2).all(|w| w[0].0 != w[1].0).then_some(pairs)
}

fn encode_protobuf(push: &[Stream]) -> Vec<u8> {
    let entry = |e: &Entry| EntryAdapter {
        timestamp: Some(Timestamp {
            seconds: e.timestamp.div_euclid(1_000_000_000),
            nanos: e.timestamp.rem_euclid(1_000_000_000) as i32,
        }),
        line: e.line.clone().into(),
        structured_metadata: e
            .metadata
            .iter()
            .map(|(n, v)| LabelPairAdapter { name: n.clone().into(), value: v.clone().into() })
            .collect(),
    };
    let stream = |s: &Stream| StreamAdapter {
        labels: s.labels.clone().into(),
        entries: s.entries.iter().map(entry).collect(),
        hash: 0,
    };
    Encoded { streams: push.iter().map(stream).collect(), format: String::new() }.encode_to_vec()
}

/// A JSON string; lines may be any bytes.
fn quote(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in bytes {
        match byte {
            b'"' | b'\\' => out.extend([b'\\', *byte]),
            0..0x20 => out.extend(format!("\\u{byte:04x}").bytes()),
            _ => out.push(*byte),
        }
    }
    out.push(b'"');
}

/// Writes items with commas between them.
fn list<T>(items: impl IntoIterator<Item = T>, out: &mut Vec<u8>, mut write: impl FnMut(T, &mut Vec<u8>)) {
    for (n, item) in items.into_iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        write(item, out);
    }
}

fn object<'a>(pairs: impl IntoIterator<Item = &'a (String, String)>, out: &mut Vec<u8>) {
    out.push(b'{');
    list(pairs, out, |(name, value), out| {
        quote(name.as_bytes(), out);
        out.push(b':');
        quote(value.as_bytes(), out);
    });
    out.push(b'}');
}

fn encode_json(push: &[Stream], maps: &[Pairs]) -> Vec<u8> {
    let mut out = b"{\"streams\":[".to_vec();
    list(push.iter().zip(maps), &mut out, |(stream, map), out| {
        out.extend(b"{\"stream\":");
        object(map, out);
        out.extend(b",\"values\":[");
        list(&stream.entries, out, |e, out| {
            out.extend(format!("[\"{}\",", e.timestamp).bytes());
            quote(&e.line, out);
            out.push(b',');
            object(&e.metadata, out);
            out.push(b']');
        });
        out.extend(b"]}");
    });
    out.extend(b"]}");
    out
}

/// `None` if a timestamp has no text in RFC 3339.
fn encode_legacy(push: &[Stream]) -> Option<Vec<u8>> {
    let mut out = b"{\"streams\":[".to_vec();
    let mut all = true;
    list(push, &mut out, |stream, out| {
        out.extend(b"{\"labels\":");
        quote(stream.labels.as_bytes(), out);
        out.extend(b",\"entries\":[");
        list(&stream.entries, out, |e, out| {
            let time = rfc3339(e.timestamp);
            all &= time.is_some();
            out.extend(format!("{{\"ts\":\"{}\",\"line\":", time.unwrap_or_default()).bytes());
            quote(&e.line, out);
            out.push(b'}');
        });
        out.extend(b"]}");
    });
    out.extend(b"]}");
    all.then_some(out)
}

/// Days to a date by Hinnant's algorithm: another way than the decoder's.
fn rfc3339(timestamp: i64) -> Option<String> {
    let (seconds, nanos) = (timestamp.div_euclid(1_000_000_000), timestamp.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) =
        (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
    (1678..2262).contains(&year).then(|| format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{nanos:09}Z"))
}

/// Bodies as they come over HTTP: compressed bytes that may be anything, and messages in every encoding.
pub fn body(input: &[u8]) {
    const LIMIT: usize = 64 << 10;
    let limits = DecodeLimits { max_decompressed: LIMIT, ..DecodeLimits::default() };
    let mut choices = Choices::new(input);
    let content_type = choices.of(&[Some("application/x-protobuf"), Some("application/json"), Some("a/b;c"), None]);
    let encoding = choices.of(&[None, Some("snappy"), Some("gzip"), Some("deflate"), Some("br")]);
    let headers = PushHeaders { content_type, content_encoding: encoding, path_is_v1: choices.flag() };
    if choices.flag() {
        return every_encoding_agrees(choices.rest(), &limits);
    }
    let body = choices.rest();
    let own = body.to_vec();
    // It may decompress to the limit.
    bounded(body.len() + LIMIT, || with_lease(own, |own, lease| decode(&headers, own, &limits, lease)).map(drop)).ok();
}

fn every_encoding_agrees(message: &[u8], limits: &DecodeLimits) {
    let expected = decode_message(message.to_vec(), limits).map(|p| read(&p)).map_err(|e| e.status);
    let packed = snap::raw::Encoder::new().compress_vec(message).expect("it is small");
    let level = Compression::fast();
    let written = |out: std::io::Result<Vec<u8>>| out.expect("writing to memory");
    let mut gzip = GzEncoder::new(Vec::new(), level);
    let mut zlib = ZlibEncoder::new(Vec::new(), level);
    let mut deflate = DeflateEncoder::new(Vec::new(), level);
    [&mut gzip as &mut dyn Write, &mut zlib, &mut deflate]
        .iter_mut()
        .for_each(|w| w.write_all(&packed).expect("memory"));
    let bodies = [
        (None, packed),
        (Some("gzip"), written(gzip.finish())),
        (Some("deflate"), written(zlib.finish())),
        (Some("deflate"), written(deflate.finish())),
    ];
    for (content_encoding, body) in bodies {
        let headers = PushHeaders { content_type: Some("application/x-protobuf"), content_encoding, path_is_v1: true };
        let result = with_lease(body, |body, lease| decode(&headers, body, limits, lease));
        let found = result.map(|p| read(&p)).map_err(|e| e.status);
        assert_eq!(found, expected, "{content_encoding:?}");
    }
}
