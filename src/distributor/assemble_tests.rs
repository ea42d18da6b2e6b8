use super::super::labels::resolve;
use super::*;
use crate::model::Tenant;
use std::sync::Arc;
use std::time::Duration;

const NOW: i64 = 1_795_365_462_000_000_000;
const SECOND: i64 = 1_000_000_000;

/// (labels, entries of (timestamp, line, metadata))
type Stream<'a> = (&'a str, &'a [(i64, &'a str, &'a [(&'a str, &'a str)])]);

fn request(streams: &[Stream<'_>]) -> PushRequest {
    let mut request = PushRequest::default();
    for (labels, entries) in streams {
        let labels = request.intern(labels.as_bytes());
        let first = request.entries.len() as u32;
        for (timestamp, line, pairs) in *entries {
            let line = request.intern(line.as_bytes());
            let first_pair = request.metadata.len() as u32;
            for (name, value) in *pairs {
                let pair =
                    MetadataPair { name: request.intern(name.as_bytes()), value: request.intern(value.as_bytes()) };
                request.metadata.push(pair);
            }
            let metadata = first_pair..request.metadata.len() as u32;
            request.entries.push(Entry { timestamp: *timestamp, line, metadata });
        }
        request.streams.push(RawStream { labels, entries: first..request.entries.len() as u32 });
    }
    request
}

fn run(streams: &[Stream<'_>], limits: &Limits) -> Assembled {
    let request = request(streams);
    let tenant = Tenant::new("t").expect("tenant");
    let resolved: Vec<_> = streams.iter().map(|(labels, _)| Some(Arc::new(resolve(&tenant, labels, limits)))).collect();
    assemble(request, &resolved, limits, NOW)
}

/// What is stored, one text a stream: `labels: timestamp-now line{name=value,...}; ...`
fn stored(assembled: &Assembled) -> Vec<String> {
    let push = &assembled.push;
    let text = |span: Span| String::from_utf8_lossy(span.of(&push.arena)).into_owned();
    let entry = |e: &Entry| {
        let pairs: Vec<_> = push.metadata_of(e).iter().map(|p| format!("{}={}", text(p.name), text(p.value))).collect();
        format!("{} {}{{{}}}", e.timestamp - NOW, text(e.line), pairs.join(","))
    };
    let stream = |s: &PushStream| {
        format!("{}: {}", s.labels, push.entries_of(s).iter().map(entry).collect::<Vec<_>>().join("; "))
    };
    push.streams.iter().map(stream).collect()
}

/// No service name and no levels, so that the expectations are short.
fn plain() -> Limits {
    Limits { discover_service_name: vec![], discover_log_levels: false, ..Limits::default() }
}

fn error(assembled: Assembled) -> String {
    assembled.rejections.into_error().map(|e| e.message).unwrap_or_default()
}

#[test]
fn equal_streams_become_one_in_the_order_of_the_request() {
    let got = run(
        &[
            (r#"{a="1",b="2"}"#, &[(NOW, "x", &[]), (NOW + 1, "y", &[])]),
            (r#"{c="3"}"#, &[(NOW, "other", &[])]),
            (r#"{e="none"}"#, &[]),
            (r#"{b='2', a="1"}"#, &[(NOW, "z", &[])]),
        ],
        &plain(),
    );
    assert_eq!(stored(&got), [r#"{a="1", b="2"}: 0 x{}; 1 y{}; 0 z{}"#, r#"{c="3"}: 0 other{}"#]);
    assert_eq!(got.accepted, Volume { lines: 4, bytes: 8, metadata_bytes: 0 });
    assert_eq!(error(got), "");
}

#[test]
fn good_entries_are_kept_beside_bad_ones() {
    let limits = Limits { max_line_size: 3, ..plain() };
    let got = run(
        &[
            (r#"{a="1"}"#, &[(NOW, "good", &[]), (NOW, "yes", &[]), (NOW, "long", &[])]),
            (r#"{a="1",a="2"}"#, &[(NOW, "dup", &[("m", "v")]), (NOW, "dup", &[])]),
            ("{a=1}", &[(NOW, "syn", &[])]),
        ],
        &limits,
    );
    assert_eq!(stored(&got), [r#"{a="1"}: 0 yes{}"#]);
    assert_eq!(got.received.by_kind[0], Volume { lines: 6, bytes: 22, metadata_bytes: 2 });
    assert_eq!(got.rejections.discarded[Reason::LineTooLong as usize], (2, 8));
    assert_eq!(got.rejections.discarded[Reason::DuplicateLabel as usize], (2, 8));
    assert_eq!(got.rejections.discarded[Reason::InvalidLabels as usize], (1, 3));
    assert_eq!(
        error(got),
        "2 errors like: max entry size '3' bytes exceeded for stream '{a=\"1\"}' while adding an entry with length '4' bytes; \
         1 errors like: stream '{a=\"1\", a=\"2\"}' has duplicate label name: 'a'; \
         1 errors like: error parsing labels '{a=1}' with error: 1:4: parse error: unexpected character inside braces: '1'"
    );
}

#[test]
fn limits_of_entries_at_n_and_n_plus_1() {
    let limits = Limits {
        reject_old_samples_max_age: Duration::from_secs(10),
        creation_grace_period: Duration::from_secs(5),
        max_line_size: 4,
        max_structured_metadata_size: 6,
        max_structured_metadata_entries_count: 2,
        ..plain()
    };
    type Case<'a> = (i64, &'a str, &'a [(&'a str, &'a str)], Option<Reason>);
    let cases: &[Case<'_>] = &[
        (NOW - 10 * SECOND, "x", &[], None),
        (NOW - 10 * SECOND - 1, "x", &[], Some(Reason::TooOld)),
        (i64::MIN, "too long as well", &[], Some(Reason::TooOld)),
        (NOW + 5 * SECOND, "x", &[], None),
        (NOW + 5 * SECOND + 1, "x", &[], Some(Reason::TooNew)),
        (i64::MAX, "x", &[], Some(Reason::TooNew)),
        (NOW, "1234", &[], None),
        (NOW, "12345", &[], Some(Reason::LineTooLong)),
        (NOW, "12345", &[("a", "1234567")], Some(Reason::LineTooLong)),
        (NOW, "", &[("a", "12345")], None),
        (NOW, "", &[("a", "123456")], Some(Reason::MetadataTooLarge)),
        (NOW, "", &[("a", "12345"), ("detected_level", "information")], None),
        (NOW, "", &[("a", ""), ("b", "")], None),
        (NOW, "", &[("a", ""), ("b", ""), ("c", "")], Some(Reason::MetadataTooMany)),
    ];
    for (timestamp, line, pairs, expected) in cases {
        let got = run(&[(r#"{a="1"}"#, &[(*timestamp, line, pairs)])], &limits);
        let reason = Reason::ALL.into_iter().find(|r| got.rejections.discarded[*r as usize].0 > 0);
        assert_eq!(reason, *expected, "{timestamp} {line} {pairs:?}");
        assert_eq!(got.push.entries.len(), usize::from(expected.is_none()));
    }
    let old = Limits { reject_old_samples: false, ..limits.clone() };
    assert_eq!(run(&[(r#"{a="1"}"#, &[(i64::MIN, "x", &[])])], &old).push.entries.len(), 1);
    let any_length = Limits { max_line_size: 0, ..limits.clone() };
    assert_eq!(run(&[(r#"{a="1"}"#, &[(NOW, "123456789", &[])])], &any_length).push.entries.len(), 1);
    let disallowed = Limits { allow_structured_metadata: false, ..limits };
    let got = run(&[(r#"{a="1"}"#, &[(NOW, "x", &[("a", "b")]), (NOW, "y", &[])])], &disallowed);
    assert_eq!(stored(&got), [r#"{a="1"}: 0 y{}"#]);
    assert!(error(got).contains("this feature is disallowed"));
}

#[test]
fn long_lines_are_cut_when_the_limits_say_so() {
    let limits = Limits { max_line_size: 4, max_line_size_truncate: true, ..plain() };
    let streams: &[Stream<'_>] = &[(r#"{a="1"}"#, &[(NOW, "1234", &[]), (NOW, "123456", &[])])];
    let got = run(streams, &limits);
    assert_eq!(stored(&got), [r#"{a="1"}: 0 1234{}; 0 1234{}"#]);
    assert_eq!((got.received.truncated_lines, got.received.truncated_bytes), (1, 2));
    assert_eq!(got.accepted.bytes, 8);
    let marked = Limits { max_line_size_truncate_identifier: "~~".to_string(), ..limits.clone() };
    assert_eq!(stored(&run(streams, &marked)), [r#"{a="1"}: 0 1234{}; 0 12~~{}"#]);
    let absurd = Limits { max_line_size_truncate_identifier: "~~~~~".to_string(), ..limits };
    let got = run(streams, &absurd);
    assert_eq!(stored(&got), [r#"{a="1"}: 0 1234{}"#]);
    assert!(error(got).starts_with("max entry size '4' bytes"));
}

#[test]
fn metadata_are_sanitised() {
    let pairs: &[(&str, &str)] = &[
        ("good_name__", "v"),
        ("_x", "a\u{fffd}b\u{fffd}"),
        ("k8s.pod.name", "p"),
        ("1st", ""),
        ("日本", "é"),
        ("a..b__c", "x"),
        ("k8s.pod.name", "again"),
        ("", "empty"),
    ];
    let got = run(&[(r#"{a="1"}"#, &[(NOW, "x", pairs)])], &plain());
    assert_eq!(
        stored(&got),
        [r#"{a="1"}: 0 x{good_name__=v,_x=a b ,k8s_pod_name=p,key_1st=,_=é,a_b_c=x,k8s_pod_name=again,_=empty}"#]
    );
    assert_eq!(got.received.sanitized, 7);
}

#[test]
fn levels_come_from_the_first_source_that_tells() {
    let limits = Limits { discover_service_name: vec![], ..Limits::default() };
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str);
    let cases: &[Case<'_>] = &[
        (r#"{a="1"}"#, "an error", &[], "detected_level=error"),
        (r#"{a="1"}"#, "nothing", &[], "detected_level=unknown"),
        (r#"{level="WARN"}"#, "an error", &[], "detected_level=warn"),
        (r#"{level="notice"}"#, "an error", &[("level", "fatal")], "level=fatal,detected_level=notice"),
        (r#"{a="1"}"#, "an error", &[("lvl", "dbg"), ("severity", "Odd")], "lvl=dbg,severity=Odd,detected_level=Odd"),
        (r#"{a="1"}"#, "an error", &[("LEVEL", "wrn")], "LEVEL=wrn,detected_level=warn"),
        (r#"{a="1"}"#, "an error", &[("severity_number", "9")], "severity_number=9,detected_level=info"),
        (r#"{a="1"}"#, "an error", &[("severity_number", "")], "severity_number=,detected_level=error"),
        (r#"{level="info"}"#, "an error", &[("detected_level", "ERR"), ("x", "y")], "detected_level=error,x=y"),
        (r#"{level="info"}"#, "an error", &[("detected_level", "odd")], "detected_level=odd"),
        (r#"{a="1"}"#, "an error", &[("level", "")], "level="),
    ];
    for (labels, line, pairs, expected) in cases {
        let got = run(&[(labels, &[(NOW, line, pairs)])], &limits);
        let text = stored(&got).concat();
        assert!(text.ends_with(&format!(" {line}{{{expected}}}")), "{text} {expected}");
        assert_eq!(got.accepted.metadata_bytes, got.received.by_kind[0].metadata_bytes, "the level is not counted");
    }
    for off in [
        Limits { discover_log_levels: false, ..limits.clone() },
        Limits { allow_structured_metadata: false, ..limits.clone() },
    ] {
        assert!(run(&[(r#"{a="1"}"#, &[(NOW, "error", &[])])], &off).push.metadata.is_empty());
    }
}

#[test]
fn a_level_is_interned_once() {
    let limits = Limits { discover_service_name: vec![], ..Limits::default() };
    let streams: &[Stream<'_>] = &[
        (r#"{level="odd"}"#, &[(NOW, "x", &[]), (NOW, "y", &[])]),
        (r#"{level="even"}"#, &[(NOW, "x", &[])]),
        (r#"{a="1"}"#, &[(NOW, "info", &[]), (NOW, "info", &[]), (NOW, "error", &[])]),
    ];
    let before = request(streams).arena.len();
    let got = run(streams, &limits);
    let added = String::from_utf8_lossy(&got.push.arena[before..]).into_owned();
    assert_eq!(added, "odddetected_levelеveninfoerror".replace('е', "e"));
    assert_eq!(stored(&got)[1], r#"{level="even"}: 0 x{detected_level=even}"#);
}

#[test]
fn duplicate_timestamps_are_incremented_when_asked() {
    let limits = Limits { increment_duplicate_timestamp: true, ..plain() };
    let stamps = |entries: &[(i64, &str)]| -> Vec<i64> {
        let entries: Vec<(i64, &str, &[(&str, &str)])> = entries.iter().map(|(t, l)| (NOW + t, *l, &[][..])).collect();
        let got = run(&[(r#"{a="1"}"#, &entries)], &limits);
        got.push.entries.iter().map(|e| e.timestamp - NOW).collect()
    };
    assert_eq!(stamps(&[(0, "a"), (1, "b")]), [0, 1]);
    assert_eq!(stamps(&[(0, "a"), (0, "b")]), [0, 1]);
    assert_eq!(stamps(&[(0, "a"), (0, "a")]), [0, 0], "a duplicate stays one");
    assert_eq!(stamps(&[(0, "a"), (0, "b"), (0, "c"), (0, "d")]), [0, 1, 2, 3]);
    assert_eq!(stamps(&[(0, "a"), (0, "b"), (1, "c"), (1, "d")]), [0, 1, 2, 1], "Loki looks one entry back");
    assert_eq!(stamps(&[(0, "a"), (0, "b"), (5, "c"), (5, "d")]), [0, 1, 5, 6]);
    let off = run(&[(r#"{a="1"}"#, &[(NOW, "a", &[]), (NOW, "b", &[])])], &plain());
    assert_eq!(off.push.entries[1].timestamp, NOW);
}
