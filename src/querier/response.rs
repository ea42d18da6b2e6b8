//! Loki's JSON, written directly.

use super::literal::Literal;
use super::select::{Hit, Selected, Stats};
use crate::model::{LabelSet, LogEntry, Metadata};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

/// Behind the name of structured metadata that is also the name of a stream label; Loki's.
const DUPLICATE_SUFFIX: &str = "_extracted";

/// What the header `X-Loki-Response-Encoding-Flags` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodingFlags {
    /// `categorize-labels`: structured metadata beside each entry instead of among the labels of its stream.
    pub categorize_labels: bool,
}

impl EncodingFlags {
    /// Decodes the header's value, flags separated by commas. Unknown ones are left out, as in Loki.
    pub fn parse(header: &str) -> Self {
        Self { categorize_labels: header.split(',').any(|f| f.trim() == "categorize-labels") }
    }
}

/// Labels of a result stream, sorted by name.
type Labels<'a> = Vec<(Cow<'a, str>, &'a str)>;

/// The answer to a log query.
pub(super) fn streams(selected: &Selected, flags: EncodingFlags, elapsed: Duration) -> Vec<u8> {
    let lines: usize = selected.entries.iter().map(|h| h.entry.line.len() + 48).sum();
    let mut out = String::with_capacity(lines + lines / 8 + 2048);
    open(&mut out, "streams", flags);
    out.push('[');
    for (i, (labels, hits)) in group(&selected.entries, flags).iter().enumerate() {
        comma(&mut out, i);
        out.push_str("{\"stream\":");
        object(&mut out, labels);
        out.push_str(",\"values\":[");
        for (i, hit) in hits.iter().enumerate() {
            comma(&mut out, i);
            value(&mut out, hit, flags);
        }
        out.push_str("]}");
    }
    out.push(']');
    close(&mut out, &selected.stats, selected.entries.len(), elapsed);
    warnings(&mut out, &selected.warnings);
    out.into_bytes()
}

/// The answer to an expression of literals: one sample.
pub(super) fn literal(literal: Literal, time: i64, flags: EncodingFlags) -> Vec<u8> {
    let mut out = String::new();
    let sample = format!("[{},\"{}\"]", seconds(time), float(literal.value));
    if literal.is_vector {
        open(&mut out, "vector", flags);
        let _ = write!(out, "[{{\"metric\":{{}},\"value\":{sample}}}]");
    } else {
        open(&mut out, "scalar", flags);
        out.push_str(&sample);
    }
    close(&mut out, &Stats::default(), 1, Duration::ZERO);
    out.into_bytes()
}

/// The answer of `labels` and `label/<name>/values`: sorted, each once. Loki leaves `data` out when it is empty.
pub(super) fn strings(mut values: Vec<String>) -> Vec<u8> {
    if values.is_empty() {
        return b"{\"status\":\"success\"}\n".to_vec();
    }
    values.sort_unstable();
    values.dedup();
    let mut out = String::from("{\"status\":\"success\",\"data\":[");
    for (i, value) in values.iter().enumerate() {
        comma(&mut out, i);
        string(&mut out, value);
    }
    out.push_str("]}\n");
    out.into_bytes()
}

/// The answer of `series`.
pub(super) fn series<'a>(found: impl Iterator<Item = &'a Arc<LabelSet>>) -> Vec<u8> {
    let mut out = String::from("{\"status\":\"success\",\"data\":[");
    for (i, labels) in found.enumerate() {
        comma(&mut out, i);
        object(&mut out, &stream_labels(labels));
    }
    out.push_str("]}\n");
    out.into_bytes()
}

/// Puts entries into result streams. Without `categorize-labels` structured metadata is part of a stream's labels, so
/// entries of one stream may come into several. Order within a result stream is that of `hits`.
fn group(hits: &[Hit], flags: EncodingFlags) -> BTreeMap<Labels<'_>, Vec<&Hit>> {
    let mut streams: BTreeMap<Labels<'_>, Vec<&Hit>> = BTreeMap::new();
    for hit in hits {
        let mut labels = stream_labels(&hit.labels);
        if !flags.categorize_labels && !hit.entry.metadata.is_empty() {
            labels.extend(metadata_labels(&hit.labels, &hit.entry.metadata));
            sort_last_wins(&mut labels);
        }
        streams.entry(labels).or_default().push(hit);
    }
    streams
}

fn stream_labels(labels: &LabelSet) -> Labels<'_> {
    labels.pairs().iter().map(|(n, v)| (Cow::Borrowed(&**n), &**v)).collect()
}

/// Structured metadata under the names that Loki shows.
fn metadata_labels<'a>(labels: &LabelSet, metadata: &'a Metadata) -> Labels<'a> {
    let mut pairs: Labels<'a> = metadata
        .iter()
        .map(|(name, value)| match labels.get(name) {
            Some(_) => (Cow::Owned(format!("{name}{DUPLICATE_SUFFIX}")), value.as_str()),
            None => (Cow::Borrowed(name.as_str()), value.as_str()),
        })
        .collect();
    sort_last_wins(&mut pairs);
    pairs
}

/// Sorts by name; of equal names the last stays.
fn sort_last_wins(pairs: &mut Labels<'_>) {
    pairs.reverse();
    pairs.sort_by(|a, b| a.0.cmp(&b.0));
    pairs.dedup_by(|a, b| a.0 == b.0);
}

fn value(out: &mut String, hit: &Hit, flags: EncodingFlags) {
    let LogEntry { timestamp, line, metadata } = &hit.entry;
    let _ = write!(out, "[\"{timestamp}\",");
    string(out, &String::from_utf8_lossy(line));
    if flags.categorize_labels {
        out.push_str(",{");
        if !metadata.is_empty() {
            out.push_str("\"structuredMetadata\":");
            object(out, &metadata_labels(&hit.labels, metadata));
        }
        out.push('}');
    }
    out.push(']');
}

fn open(out: &mut String, result_type: &str, flags: EncodingFlags) {
    let _ = write!(out, "{{\"status\":\"success\",\"data\":{{\"resultType\":\"{result_type}\",");
    if flags.categorize_labels {
        out.push_str("\"encodingFlags\":[\"categorize-labels\"],");
    }
    out.push_str("\"result\":");
}

/// Writes the statistics that we count, under Loki's names; all that clients parse and we leave out reads as zero.
fn close(out: &mut String, stats: &Stats, returned: usize, elapsed: Duration) {
    let Stats { streams, lines, line_bytes, metadata_bytes, kept_lines } = *stats;
    let bytes = line_bytes + metadata_bytes;
    let seconds = elapsed.as_secs_f64();
    let per_second = |count: u64| if seconds > 0.0 { (count as f64 / seconds) as u64 } else { 0 };
    let _ = write!(
        out,
        concat!(
            ",\"stats\":{{\"summary\":{{\"bytesProcessedPerSecond\":{},\"linesProcessedPerSecond\":{},",
            "\"totalBytesProcessed\":{},\"totalLinesProcessed\":{},\"execTime\":{},\"queueTime\":0,\"subqueries\":0,",
            "\"totalEntriesReturned\":{},\"splits\":0,\"shards\":0,\"totalPostFilterLines\":{},",
            "\"totalStructuredMetadataBytesProcessed\":{}}},",
            "\"querier\":{{\"store\":{{\"totalChunksRef\":0,\"totalChunksDownloaded\":0,\"chunksDownloadTime\":0,",
            "\"chunk\":{{\"headChunkBytes\":0,\"headChunkLines\":0,\"decompressedBytes\":0,\"decompressedLines\":0,",
            "\"compressedBytes\":0,\"totalDuplicates\":0}}}}}},",
            "\"ingester\":{{\"totalReached\":{},\"totalChunksMatched\":0,\"totalBatches\":0,\"totalLinesSent\":{},",
            "\"store\":{{\"totalChunksRef\":0,\"totalChunksDownloaded\":0,\"chunksDownloadTime\":0,",
            "\"chunk\":{{\"headChunkBytes\":0,\"headChunkLines\":0,\"decompressedBytes\":0,\"decompressedLines\":0,",
            "\"compressedBytes\":0,\"totalDuplicates\":0,\"postFilterLines\":{}}}}}}},",
            "\"cache\":{{}},\"index\":{{\"totalStreams\":{}}}}}}}}}\n"
        ),
        per_second(bytes),
        per_second(lines),
        bytes,
        lines,
        seconds,
        returned,
        kept_lines,
        metadata_bytes,
        u8::from(streams > 0),
        if streams > 0 { returned } else { 0 },
        kept_lines,
        streams,
    );
}

/// Adds Loki's `warnings` to a finished answer; none is no field.
fn warnings(out: &mut String, warnings: &[String]) {
    if warnings.is_empty() {
        return;
    }
    out.truncate(out.trim_end().len() - 1);
    out.push_str(",\"warnings\":[");
    for (i, warning) in warnings.iter().enumerate() {
        comma(out, i);
        string(out, warning);
    }
    out.push_str("]}\n");
}

fn object(out: &mut String, labels: &Labels<'_>) {
    out.push('{');
    for (i, (name, value)) in labels.iter().enumerate() {
        comma(out, i);
        string(out, name);
        out.push(':');
        string(out, value);
    }
    out.push('}');
}

fn comma(out: &mut String, index: usize) {
    if index > 0 {
        out.push(',');
    }
}

/// A JSON string. Only what JSON demands is escaped, so text without such characters is copied in one piece.
fn string(out: &mut String, text: &str) {
    out.push('"');
    let mut rest = text;
    while let Some(at) = rest.bytes().position(|b| b < 0x20 || b == b'"' || b == b'\\') {
        let (plain, special) = rest.split_at(at);
        out.push_str(plain);
        let mut chars = special.chars();
        escape(out, chars.next().unwrap_or_default());
        rest = chars.as_str();
    }
    out.push_str(rest);
    out.push('"');
}

fn escape(out: &mut String, c: char) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c => {
            let _ = write!(out, "\\u{:04x}", c as u32);
        }
    }
}

/// Unix seconds with up to three decimals, as Prometheus writes times.
fn seconds(nanoseconds: i64) -> String {
    let milliseconds = nanoseconds.div_euclid(1_000_000);
    let sign = if milliseconds < 0 { "-" } else { "" };
    let (whole, part) = (milliseconds.unsigned_abs() / 1000, milliseconds.unsigned_abs() % 1000);
    if part == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{part:03}") }
}

fn float(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_string();
    }
    value.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn strings_are_read_back_by_another_parser(text in "\\PC{0,20}[\\x00-\\x7f]{0,20}\\PC{0,5}") {
            let mut out = String::new();
            string(&mut out, &text);
            prop_assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
        }
    }

    #[test]
    fn numbers_are_prometheus() {
        assert_eq!(seconds(4_000_000_000_000_000_000), "4000000000");
        assert_eq!(seconds(1_795_364_845_127_005_532), "1795364845.127");
        assert_eq!(seconds(-1_500_000_000), "-1.500");
        assert_eq!(float(2.0), "2");
        assert_eq!(float(1.0 / 0.0), "+Inf");
        assert_eq!(float(f64::NAN), "NaN");
    }

    #[test]
    fn flags_are_found_among_others() {
        assert!(EncodingFlags::parse("foo, categorize-labels").categorize_labels);
        assert!(!EncodingFlags::parse("").categorize_labels);
        assert!(!EncodingFlags::parse("categorize-labels-2").categorize_labels);
    }
}
