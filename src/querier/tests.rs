use super::*;
use crate::model::{Limits, LogEntry, Matcher};
use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::HashMap;

/// The time of the captured requests, roughly.
const NOW: i64 = 1_795_366_372_717_561_080;

#[derive(Default)]
struct Memory {
    streams: Vec<Arc<MemoryStream>>,
}

struct MemoryStream {
    labels: Arc<LabelSet>,
    /// In arrival order.
    entries: Vec<LogEntry>,
    fails: bool,
    warning: Option<&'static str>,
    /// The ranges that were read.
    reads: Mutex<Vec<(i64, i64)>>,
}

impl Memory {
    fn with(mut self, labels: &[(&str, &str)], entries: Vec<LogEntry>) -> Self {
        let labels = Arc::new(LabelSet::new(labels.iter().copied()));
        self.streams.push(Arc::new(MemoryStream {
            labels,
            entries,
            fails: false,
            warning: None,
            reads: Mutex::default(),
        }));
        self
    }

    fn found(&self, matchers: &[Matcher], start: i64, end: i64) -> impl Iterator<Item = &Arc<MemoryStream>> {
        self.streams.iter().filter(move |s| {
            let (first, last) = s.bounds();
            first < end && last >= start && matchers.iter().all(|m| m.matches(&s.labels))
        })
    }

    fn querier(self) -> Querier {
        Querier::new(Arc::new(self), Arc::new(Overrides::default()))
    }
}

impl Source for Memory {
    fn streams(&self, _: &Tenant, matchers: &[Matcher], start: i64, end: i64) -> Vec<Arc<dyn StreamSource>> {
        self.found(matchers, start, end).map(|s| Arc::clone(s) as Arc<dyn StreamSource>).collect()
    }

    fn label_names(&self, _: &Tenant, matchers: &[Matcher], start: i64, end: i64) -> Vec<String> {
        self.found(matchers, start, end).flat_map(|s| s.labels.pairs().iter().map(|(n, _)| n.to_string())).collect()
    }

    fn label_values(&self, _: &Tenant, name: &str, matchers: &[Matcher], start: i64, end: i64) -> Vec<String> {
        self.found(matchers, start, end).filter_map(|s| s.labels.get(name).map(str::to_string)).collect()
    }

    fn series(&self, _: &Tenant, matchers: &[Matcher], start: i64, end: i64) -> Vec<Arc<LabelSet>> {
        self.found(matchers, start, end).map(|s| Arc::clone(&s.labels)).collect()
    }
}

impl StreamSource for MemoryStream {
    fn labels(&self) -> &Arc<LabelSet> {
        &self.labels
    }

    fn bounds(&self) -> (i64, i64) {
        let times = || self.entries.iter().map(|e| e.timestamp);
        (times().min().unwrap_or(i64::MAX), times().max().unwrap_or(i64::MIN))
    }

    fn select(
        &self,
        start: i64,
        end: i64,
        forward: bool,
        limit: usize,
        keep: &mut KeepEntry<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<LogEntry>, QueryError> {
        self.reads.lock().push((start, end));
        if self.fails {
            return Err(QueryError::internal("block 7 is damaged"));
        }
        warnings.extend(self.warning.map(str::to_string));
        let mut entries: Vec<LogEntry> = Vec::new();
        for e in self.entries.iter().filter(|e| (start..end).contains(&e.timestamp)) {
            if !entries.contains(e) {
                entries.push(e.clone());
            }
        }
        entries.sort_by_key(|e| e.timestamp);
        if !forward {
            entries.reverse();
        }
        entries.retain(|e| {
            let metadata: Vec<_> = e.metadata.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
            keep(&e.line, &metadata)
        });
        entries.truncate(limit);
        Ok(entries)
    }
}

fn entry(timestamp: i64, line: &str) -> LogEntry {
    with_metadata(timestamp, line, &[])
}

fn with_metadata(timestamp: i64, line: &str, metadata: &[(&str, &str)]) -> LogEntry {
    let metadata = metadata.iter().map(|(n, v)| ((*n).to_string(), (*v).to_string())).collect();
    LogEntry { timestamp, line: Bytes::copy_from_slice(line.as_bytes()), metadata }
}

fn tenant() -> Tenant {
    Tenant::new("fake").unwrap()
}

fn params(query: &str, direction: Direction, limit: usize) -> RangeParams {
    RangeParams { query: query.into(), start: 0, end: i64::MAX, limit, direction }
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// `data.result` of a range query without flags.
fn result(querier: &Querier, params: &RangeParams) -> Value {
    json(&querier.query_range(&tenant(), params, EncodingFlags::default()).unwrap())["data"]["result"].clone()
}

/// Timestamps and lines of the only result stream.
fn lines(querier: &Querier, params: &RangeParams) -> Vec<String> {
    let result = result(querier, params);
    assert!(result.as_array().unwrap().len() <= 1, "{result}");
    let values = result[0]["values"].as_array().cloned().unwrap_or_default();
    values.iter().map(|v| format!("{}:{}", v[0].as_str().unwrap(), v[1].as_str().unwrap())).collect()
}

// The answers of a real Loki.

struct Captured {
    pairs: Vec<(String, String)>,
    flags: EncodingFlags,
    status: u64,
    body: String,
}

fn captured(name: &str) -> Captured {
    let all = json(include_bytes!("../../testdata/querier/reads.json"));
    let one = all.as_array().unwrap().iter().find(|c| c["name"] == name).unwrap();
    let query = one["path"].as_str().unwrap().split_once('?').unwrap().1;
    let pairs = query.split('&').map(|p| p.split_once('=').unwrap()).map(|(n, v)| (unescape(n), unescape(v)));
    Captured {
        pairs: pairs.collect(),
        flags: EncodingFlags::parse(one["flags"].as_str().unwrap()),
        status: one["status"].as_u64().unwrap(),
        body: one["body"].as_str().unwrap().to_string(),
    }
}

fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        out.push(match b {
            b'+' => b' ',
            b'%' => {
                let hex = [bytes.next().unwrap(), bytes.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap()
            }
            b => b,
        });
    }
    String::from_utf8(out).unwrap()
}

/// The streams that the capturing session had pushed.
fn syslog(levels: &[(&str, &str)]) -> Querier {
    let mut memory = Memory::default();
    for (level, number) in levels {
        let line = format!("hello \"q\" back\\slash tab\t é世界 {number}");
        memory = memory.with(
            &[("host", "myhost"), ("job", "syslog-ng"), ("level", level), ("service_name", "syslog-ng")],
            vec![with_metadata(1_795_364_761_000_000_000, &line, &[("detected_level", level)])],
        );
    }
    memory.querier()
}

/// The bytes before the statistics, which differ, are Loki's.
fn before_stats(body: &str) -> &str {
    body.split_once(",\"stats\":").unwrap().0
}

/// Every key of `ours` is in `theirs`, with the same kind of value.
fn same_shape(ours: &Value, theirs: &Value, path: &str) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for (name, value) in a {
                let other = b.get(name).unwrap_or_else(|| panic!("{path}.{name} is not in Loki's answer"));
                same_shape(value, other, &format!("{path}.{name}"));
            }
        }
        (a, b) => assert_eq!(std::mem::discriminant(a), std::mem::discriminant(b), "{path}"),
    }
}

#[test]
fn range_queries_answer_lokis_bytes() {
    // With a limit of 3 and four equal timestamps Loki's choice is arbitrary; it left out `info`.
    let three = [("notice", "0"), ("debug", "2"), ("emerg", "3")];
    let four = [("notice", "0"), ("info", "1"), ("debug", "2"), ("emerg", "3")];
    for (name, levels) in [("range_logs", &three[..]), ("range_logs_plain", &three), ("logcli_query", &four)] {
        let c = captured(name);
        let p = RangeParams::decode(&c.pairs, NOW).unwrap();
        let body = String::from_utf8(syslog(levels).query_range(&tenant(), &p, c.flags).unwrap()).unwrap();
        assert_eq!(before_stats(&body), before_stats(&c.body), "{name}");
        assert!(body.ends_with("}}}}\n") && c.body.ends_with("}}}}\n"));
        let (ours, theirs) = (json(body.as_bytes()), json(c.body.as_bytes()));
        same_shape(&ours["data"]["stats"], &theirs["data"]["stats"], "stats");
        let summary = &ours["data"]["stats"]["summary"];
        assert_eq!(summary["totalLinesProcessed"], json!(levels.len()));
        assert_eq!(summary["totalEntriesReturned"], json!(levels.len()));
    }
}

#[test]
fn grafanas_health_check_is_answered() {
    let c = captured("health");
    let p = InstantParams::decode(&c.pairs, NOW).unwrap();
    let body = String::from_utf8(Memory::default().querier().query(&tenant(), &p, c.flags).unwrap()).unwrap();
    assert_eq!(before_stats(&body), before_stats(&c.body));
    same_shape(&json(body.as_bytes()), &json(c.body.as_bytes()), "");
}

#[test]
fn labels_and_series_answer_as_loki() {
    let querier = syslog(&[("notice", "0"), ("debug", "1"), ("info", "2"), ("emerg", "3")]);
    let c = captured("labels_q");
    let p = LabelParams::decode(&c.pairs, NOW).unwrap();
    assert_eq!(querier.labels(&tenant(), &p).unwrap(), c.body.as_bytes());

    let values = String::from_utf8(querier.label_values(&tenant(), "level", &p).unwrap()).unwrap();
    assert_eq!(values, "{\"status\":\"success\",\"data\":[\"debug\",\"emerg\",\"info\",\"notice\"]}\n");
    let none = querier.label_values(&tenant(), "absent", &p).unwrap();
    assert_eq!(none, b"{\"status\":\"success\"}\n");

    let c = captured("series");
    let p = SeriesParams::decode(&c.pairs, NOW).unwrap();
    let (ours, theirs) = (json(&querier.series(&tenant(), &p).unwrap()), json(c.body.as_bytes()));
    let sets = |v: &Value| {
        let mut sets: Vec<String> = v["data"].as_array().unwrap().iter().map(Value::to_string).collect();
        sets.sort();
        sets
    };
    assert_eq!(sets(&ours), sets(&theirs));
    let none = SeriesParams { selectors: vec!["{a=\"b\"}".into()], ..p };
    assert_eq!(querier.series(&tenant(), &none).unwrap(), b"{\"status\":\"success\",\"data\":[]}\n");
}

#[test]
fn series_of_several_selectors_are_united() {
    let querier = Memory::default()
        .with(&[("a", "1"), ("b", "1")], vec![entry(5, "x")])
        .with(&[("a", "1"), ("b", "1")], vec![entry(6, "x")])
        .with(&[("a", "2")], vec![entry(5, "x")])
        .querier();
    let series = |selectors: &[&str], start, end| {
        let selectors = selectors.iter().map(|s| (*s).to_string()).collect();
        json(&querier.series(&tenant(), &SeriesParams { start, end, selectors }).unwrap())["data"].clone()
    };
    let (first, second) = (json!({"a":"1","b":"1"}), json!({"a":"2"}));
    assert_eq!(series(&["{a=\"1\"}", "{b=\"1\"}"], 0, 10), json!([first]));
    assert_eq!(series(&["{a=\"2\"}", "{b=\"1\"}"], 0, 10), json!([first, second]));
    assert_eq!(series(&[], 0, 10), json!([first, second]));
    assert_eq!(series(&[], 6, 7), json!([first]));
}

#[test]
fn refusals_are_lokis() {
    let querier = syslog(&[]);
    let c = captured("bad_query");
    let p = RangeParams::decode(&c.pairs, NOW).unwrap();
    let error = querier.query_range(&tenant(), &p, EncodingFlags::default()).unwrap_err();
    assert_eq!((u64::from(error.status), error.message), (c.status, c.body));

    let c = captured("range_start_after_end");
    let error = RangeParams::decode(&c.pairs, NOW).unwrap_err();
    assert_eq!((u64::from(error.status), error.message), (c.status, c.body));
}

#[test]
fn the_tenants_limit_holds() {
    let low = Limits { max_entries_limit_per_query: 10, ..Limits::default() };
    let none = Limits { max_entries_limit_per_query: 0, ..Limits::default() };
    let overrides = Overrides::new(low, HashMap::from([("free".to_string(), none)]));
    let querier = Querier::new(Arc::new(Memory::default()), Arc::new(overrides));
    let run = |tenant: &str, limit| {
        let tenant = Tenant::new(tenant).unwrap();
        let p = params("{a=\"b\"}", Direction::Forward, limit);
        querier.query_range(&tenant, &p, EncodingFlags::default())
    };
    assert!(run("fake", 10).is_ok() && run("free", 11).is_ok());
    let text = "max entries limit per query exceeded, limit > max_entries_limit_per_query (11 > 10)";
    assert_eq!(run("fake", 11), Err(QueryError::bad_request(text)));
}

// Order, limits, duplicates.

#[test]
fn entries_come_in_timestamp_then_arrival_order() {
    // Out of order, equal timestamps, a repeated entry, an empty line.
    let entries = vec![entry(3, "c"), entry(1, "a"), entry(2, "z"), entry(2, "y"), entry(2, "z"), entry(2, "")];
    let querier = Memory::default().with(&[("a", "b")], entries).querier();
    let run = |direction, limit| lines(&querier, &params("{a=\"b\"}", direction, limit));
    assert_eq!(run(Direction::Forward, 10), ["1:a", "2:z", "2:y", "2:", "3:c"]);
    assert_eq!(run(Direction::Backward, 10), ["3:c", "2:", "2:y", "2:z", "1:a"]);
    assert_eq!(run(Direction::Forward, 3), ["1:a", "2:z", "2:y"]);
    assert_eq!(run(Direction::Backward, 2), ["3:c", "2:"]);
    let empty = lines(&querier, &params("{a=\"b\"} |~ \"^$\"", Direction::Forward, 10));
    assert_eq!(empty, ["2:"]);
}

#[test]
fn start_is_inclusive_and_end_is_not() {
    let querier = Memory::default().with(&[("a", "b")], (1..=5).map(|t| entry(t, "x")).collect()).querier();
    for direction in [Direction::Forward, Direction::Backward] {
        let p = RangeParams { start: 2, end: 4, ..params("{a=\"b\"}", direction, 10) };
        let mut found = lines(&querier, &p);
        found.sort();
        assert_eq!(found, ["2:x", "3:x"]);
        assert!(lines(&querier, &RangeParams { start: 3, end: 3, ..p }).is_empty());
    }
}

#[test]
fn streams_with_equal_labels_are_one() {
    let labels = [("a", "b")];
    let old = vec![entry(1, "one"), entry(2, "both"), entry(2, "old"), with_metadata(3, "m", &[("k", "1")])];
    let new = vec![entry(2, "new"), entry(2, "both"), with_metadata(3, "m", &[("k", "1")]), entry(4, "four")];
    let querier = Memory::default().with(&labels, old).with(&labels, new).querier();
    let run = |direction, limit| {
        let p = params("{a=\"b\"}", direction, limit);
        let flags = EncodingFlags { categorize_labels: true };
        let body = json(&querier.query_range(&tenant(), &p, flags).unwrap());
        assert_eq!(body["data"]["result"].as_array().unwrap().len(), 1);
        let values = body["data"]["result"][0]["values"].as_array().unwrap().clone();
        values.iter().map(|v| v[1].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(run(Direction::Forward, 10), ["one", "both", "old", "new", "m", "four"]);
    assert_eq!(run(Direction::Backward, 10), ["four", "m", "both", "new", "old", "one"]);
    assert_eq!(run(Direction::Forward, 3), ["one", "both", "old"]);
    assert_eq!(run(Direction::Backward, 3), ["four", "m", "both"]);
}

#[test]
fn equal_entries_of_different_streams_both_stay() {
    let querier =
        Memory::default().with(&[("a", "1")], vec![entry(1, "x")]).with(&[("a", "2")], vec![entry(1, "x")]).querier();
    let result = result(&querier, &params("{a=~\".+\"}", Direction::Forward, 10));
    assert_eq!(result, json!([{"stream":{"a":"1"},"values":[["1","x"]]}, {"stream":{"a":"2"},"values":[["1","x"]]}]));
}

#[test]
fn ties_at_the_limit_go_by_label_text_whatever_is_read_first() {
    // The stream 2 is read first and fills the heap; at time 5 the stream 1 comes before it.
    let querier = Memory::default()
        .with(&[("a", "1")], vec![entry(5, "one")])
        .with(&[("a", "2")], vec![entry(1, "first"), entry(5, "two"), entry(9, "last")])
        .querier();
    let run =
        |direction, start, end| result(&querier, &RangeParams { start, end, ..params("{a=~\".+\"}", direction, 2) });
    let one = json!({"stream":{"a":"1"},"values":[["5","one"]]});
    let two = |t: &str, line: &str| json!({"stream":{"a":"2"},"values":[[t, line]]});
    assert_eq!(run(Direction::Forward, 0, 9), json!([one, two("1", "first")]));
    assert_eq!(run(Direction::Backward, 2, 10), json!([one, two("9", "last")]));
}

#[test]
fn a_full_heap_narrows_what_is_read() {
    let mut memory = Memory::default();
    for stream in 0..10 {
        let entries = (0..10).map(|i| entry(stream * 100 + i, "x")).collect();
        memory = memory.with(&[("a", "b"), ("n", &stream.to_string())], entries);
    }
    let streams = memory.streams.clone();
    let reads = move || streams.iter().map(|s| s.reads.lock().drain(..).collect()).collect::<Vec<Vec<_>>>();
    let querier = memory.querier();
    result(&querier, &params("{a=\"b\"}", Direction::Backward, 15));
    let read = reads();
    assert_eq!(read[9], [(0, i64::MAX)]);
    assert_eq!(read[8], [(0, i64::MAX)]);
    assert!(read[..8].iter().all(Vec::is_empty), "{read:?}");
    result(&querier, &params("{a=\"b\"}", Direction::Forward, 15));
    let read = reads();
    assert!(read[..2].iter().all(|r| r.len() == 1) && read[2..].iter().all(Vec::is_empty), "{read:?}");
}

// Structured metadata and encoding.

#[test]
fn metadata_is_merged_into_the_labels_or_categorised() {
    let querier = Memory::default()
        .with(
            &[("app", "x"), ("level", "base")],
            vec![
                with_metadata(1, "one", &[("trace", "7"), ("level", "info")]),
                entry(2, "two"),
                // Of equal names the last counts.
                with_metadata(3, "three", &[("level", "info"), ("trace", "6"), ("trace", "7")]),
            ],
        )
        .querier();
    let p = params("{app=\"x\"}", Direction::Forward, 10);
    assert_eq!(
        result(&querier, &p),
        json!([
            {"stream":{"app":"x","level":"base"},"values":[["2","two"]]},
            {"stream":{"app":"x","level":"base","level_extracted":"info","trace":"7"},
                "values":[["1","one"],["3","three"]]}
        ])
    );
    let flags = EncodingFlags { categorize_labels: true };
    let body = json(&querier.query_range(&tenant(), &p, flags).unwrap());
    let metadata = json!({"structuredMetadata":{"level_extracted":"info","trace":"7"}});
    assert_eq!(body["data"]["encodingFlags"], json!(["categorize-labels"]));
    assert_eq!(
        body["data"]["result"],
        json!([{"stream":{"app":"x","level":"base"},
            "values":[["1","one",metadata],["2","two",{}],["3","three",metadata]]}])
    );
}

#[test]
fn invalid_utf8_is_shown_as_replacement_characters() {
    let line = Bytes::from_static(b"a\xffb\x00\"");
    let entries = vec![LogEntry { timestamp: 1, line, metadata: Vec::new() }];
    let querier = Memory::default().with(&[("a", "b\"\\")], entries).querier();
    let result = result(&querier, &params("{a!=\"\"} |= \"\\xff\"", Direction::Forward, 10));
    assert_eq!(result, json!([{"stream":{"a":"b\"\\"},"values":[["1","a\u{fffd}b\u{0}\""]]}]));
}

#[test]
fn statistics_count_what_was_read() {
    let entries = vec![entry(1, "keep"), with_metadata(2, "drop", &[("k", "v1")]), entry(3, "keep")];
    let querier = Memory::default().with(&[("a", "b")], entries).querier();
    let p = params("{a=\"b\"} |= \"keep\"", Direction::Forward, 1);
    let body = json(&querier.query_range(&tenant(), &p, EncodingFlags::default()).unwrap());
    let summary = &body["data"]["stats"]["summary"];
    for (name, expected) in [
        ("totalLinesProcessed", 3),
        ("totalBytesProcessed", 15),
        ("totalStructuredMetadataBytesProcessed", 3),
        ("totalPostFilterLines", 2),
        ("totalEntriesReturned", 1),
    ] {
        assert_eq!(summary[name], json!(expected), "{name}");
    }
}

#[test]
fn results_are_bounded_in_bytes() {
    let line = Bytes::from(vec![b'x'; 1 << 20]);
    let entries = |n| (0..n).map(|t| LogEntry { timestamp: t, line: line.clone(), metadata: Vec::new() }).collect();
    let over = MAX_RESULT_BYTES as i64 / (1 << 20) + 1;
    let querier = Memory::default().with(&[("a", "b")], entries(over)).querier();
    let error = querier
        .query_range(&tenant(), &params("{a=\"b\"}", Direction::Forward, 5000), EncodingFlags::default())
        .unwrap_err();
    assert_eq!(error.status, 400);
    assert!(error.message.contains("larger than 128 MiB: lower the limit (5000)"), "{error}");
    // Entries that better ones displace do not count.
    let p = params("{a=\"b\"}", Direction::Forward, 3);
    assert!(querier.query_range(&tenant(), &p, EncodingFlags::default()).is_ok());
}

#[test]
fn a_source_that_cannot_read_fails_the_query() {
    let mut memory = Memory::default();
    let labels = Arc::new(LabelSet::new([("a", "b")]));
    let entries = vec![entry(1, "x")];
    memory.streams.push(Arc::new(MemoryStream {
        labels,
        entries,
        fails: true,
        warning: None,
        reads: Mutex::default(),
    }));
    let p = params("{a=\"b\"}", Direction::Forward, 10);
    let error = memory.querier().query_range(&tenant(), &p, EncodingFlags::default()).unwrap_err();
    assert_eq!(error, QueryError::internal("block 7 is damaged"));
}

#[test]
fn an_instant_log_query_reads_back_from_its_time() {
    let hour = 3_600_000_000_000;
    let entries = vec![entry(NOW - hour - 1, "old"), entry(NOW - 5, "in"), entry(NOW, "now"), entry(NOW + 1, "late")];
    let querier = Memory::default().with(&[("a", "b")], entries).querier();
    let run = |more: &[(&str, &str)]| {
        let mut pairs = vec![("query".to_string(), "{a=\"b\"}".to_string())];
        pairs.extend(more.iter().map(|(n, v)| ((*n).to_string(), (*v).to_string())));
        let p = InstantParams::decode(&pairs, NOW).unwrap();
        let body = json(&querier.query(&tenant(), &p, EncodingFlags::default()).unwrap());
        let values = body["data"]["result"][0]["values"].as_array().unwrap().clone();
        values.iter().map(|v| v[1].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(run(&[]), ["now", "in"]);
    assert_eq!(run(&[("since", "2h"), ("direction", "forward")]), ["old", "in", "now"]);
    assert_eq!(run(&[("time", &(NOW + 1).to_string()), ("limit", "1")]), ["late"]);
}

// Against a simple model: sort everything, cut.

fn model(streams: &[(usize, Vec<(i64, u8)>)], forward: bool, limit: usize) -> Vec<(i64, usize, u8)> {
    let mut all: Vec<(i64, usize, u8)> = Vec::new();
    for (label, entries) in streams {
        let mut stream = Vec::new();
        for (t, line) in entries {
            if !stream.contains(&(*t, *label, *line)) {
                stream.push((*t, *label, *line));
            }
        }
        all.append(&mut stream);
    }
    if !forward {
        all.reverse();
    }
    all.sort_by_key(|(t, label, _)| (if forward { *t } else { -*t }, *label));
    let mut seen = std::collections::HashSet::new();
    all.retain(|e| seen.insert(*e));
    all.truncate(limit);
    all
}

proptest! {
    #[test]
    fn the_merge_is_a_sort_and_a_cut(
        streams in prop::collection::vec((0usize..3, prop::collection::vec((0i64..8, 0u8..6), 0..12)), 0..8),
        forward: bool,
        limit in 1usize..30,
    ) {
        let mut memory = Memory::default();
        for (label, entries) in &streams {
            let entries = entries.iter().map(|(t, line)| entry(*t, &line.to_string())).collect();
            memory = memory.with(&[("a", &label.to_string())], entries);
        }
        let direction = if forward { Direction::Forward } else { Direction::Backward };
        let result = result(&memory.querier(), &params("{a=~\".+\"}", direction, limit));
        let expected = model(&streams, forward, limit);
        let mut by_label: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for (t, label, line) in &expected {
            by_label.entry(label.to_string()).or_default().push(json!([t.to_string(), line.to_string()]));
        }
        let expected: Vec<Value> =
            by_label.into_iter().map(|(l, values)| json!({"stream": {"a": l}, "values": values})).collect();
        prop_assert_eq!(result, Value::Array(expected));
    }
}

#[test]
fn what_cannot_be_read_is_a_warning_beside_the_rest() {
    let mut memory = Memory::default();
    for (app, warning) in [("a", Some("block 7 is \"damaged\"")), ("b", None), ("c", Some("block 7 is \"damaged\""))] {
        let labels = Arc::new(LabelSet::new([("app", app)]));
        let line = LogEntry { timestamp: 5, line: bytes::Bytes::from_static(b"x"), metadata: vec![] };
        memory.streams.push(Arc::new(MemoryStream {
            labels,
            entries: vec![line],
            fails: false,
            warning,
            reads: Mutex::default(),
        }));
    }
    let params =
        RangeParams { query: "{app=~\".+\"}".into(), start: 0, end: 10, limit: 10, direction: Direction::Forward };
    let answer = memory.querier().query_range(&Tenant::new("t").unwrap(), &params, EncodingFlags::default()).unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer["warnings"], serde_json::json!(["block 7 is \"damaged\""]));
    assert_eq!(answer["data"]["result"].as_array().unwrap().len(), 3);
}
