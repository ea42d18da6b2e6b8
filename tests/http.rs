//! HTTP against the real binary: what is accepted, what is refused and in which words, and what is read back.

mod support;

use serde_json::{Value, json};
use std::io::Write;
use std::time::Duration;
use support::{
    LEGACY_PUSH, PUSH, SMALL_WAL, TestServer, connect, encode, gzip, message, now, one_stream, read_reply, snappy,
    stream,
};

const JSON: (&str, &str) = ("Content-Type", "application/json");
const PROTOBUF: (&str, &str) = ("Content-Type", "application/x-protobuf");

fn deflate(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zlib(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Every form of a body that some client sends, each into a stream of its own.
#[test]
fn every_encoding_is_stored_and_read_back() {
    let server = TestServer::start();
    let at = now();
    let json_body =
        |name: &str| json!({"streams": [{"stream": {"form": name}, "values": [[at.to_string(), name]]}]}).to_string();
    let proto = |name: &str| snappy(&message(vec![stream(&format!("{{form={name:?}}}"), &[(at, name, &[])])]));
    let legacy = |name: &str| {
        json!({"streams": [{"labels": format!("{{form={name:?}}}"), "entries": [{"ts": "2026-01-02T03:04:05.000000006Z", "line": name}]}]})
            .to_string()
            .into_bytes()
    };
    let gz = ("Content-Encoding", "gzip");
    let de = ("Content-Encoding", "deflate");
    type Case<'a> = (&'a str, &'a str, Vec<(&'a str, &'a str)>, Vec<u8>);
    let cases: Vec<Case<'_>> = vec![
        ("json", PUSH, vec![JSON], json_body("json").into()),
        (
            "json-charset",
            PUSH,
            vec![("Content-Type", "application/json; charset=utf-8")],
            json_body("json-charset").into(),
        ),
        ("json-empty-encoding", PUSH, vec![JSON, ("Content-Encoding", "")], json_body("json-empty-encoding").into()),
        ("json-gzip", PUSH, vec![JSON, gz], gzip(json_body("json-gzip").as_bytes())),
        ("json-deflate", PUSH, vec![JSON, de], deflate(json_body("json-deflate").as_bytes())),
        ("json-zlib", PUSH, vec![JSON, de], zlib(json_body("json-zlib").as_bytes())),
        ("json-prom", LEGACY_PUSH, vec![JSON], json_body("json-prom").into()),
        ("proto", PUSH, vec![PROTOBUF], proto("proto")),
        ("proto-snappy", PUSH, vec![PROTOBUF, ("Content-Encoding", "snappy")], proto("proto-snappy")),
        ("proto-other-type", PUSH, vec![("Content-Type", "application/octet-stream")], proto("proto-other-type")),
        ("proto-gzip", PUSH, vec![PROTOBUF, gz], gzip(&proto("proto-gzip"))),
        ("proto-deflate", PUSH, vec![PROTOBUF, de], deflate(&proto("proto-deflate"))),
        ("proto-prom", LEGACY_PUSH, vec![PROTOBUF], proto("proto-prom")),
    ];
    for (name, path, headers, body) in &cases {
        let answer = server.send("POST", path, headers, body);
        assert_eq!((answer.status, answer.text().as_str()), (204, ""), "{name}");
        assert_eq!(server.lines(&format!("{{form={name:?}}}")), [(at, name.to_string())], "{name}");
    }
    // Loki answers 204 to legacy JSON on the new path, and loses it.
    let old = TestServer::with("auth_enabled: false\nlimits_config: {reject_old_samples: false}\n");
    for (name, path) in [("legacy", LEGACY_PUSH), ("legacy-on-v1", PUSH)] {
        old.send("POST", path, &[JSON], &legacy(name)).assert_stored();
        assert_eq!(old.lines(&format!("{{form={name:?}}}")), [(1_767_323_045_000_000_006, name.to_string())]);
    }
}

/// Reference 1.2: the body cannot be decoded, so nothing of it is stored.
#[test]
fn bodies_that_cannot_be_decoded_are_400() {
    let server = TestServer::start();
    let values = |values: &str| format!(r#"{{"streams":[{{"stream":{{"bad":"x"}},"values":[{values}]}}]}}"#);
    let at = now();
    let json_cases = [
        ("empty body", String::new(), "EOF"),
        ("truncated", r#"{"streams":[{"stream":{"bad":"x"}"#.into(), ""),
        ("not JSON", "hello".into(), ""),
        ("number as timestamp", values(&format!(r#"[{at},"l"]"#)), ""),
        ("text as timestamp", values(r#"["yesterday","l"]"#), ""),
        ("empty timestamp", values(r#"["","l"]"#), ""),
        ("timestamp above 64 bits", values(r#"["9223372036854775808","l"]"#), ""),
        ("object as line", values(&format!(r#"["{at}",{{"a":"b"}}]"#)), ""),
        ("number as line", values(&format!(r#"["{at}",5]"#)), ""),
        ("number in metadata", values(&format!(r#"["{at}","l",{{"a":5}}]"#)), ""),
        ("nested metadata", values(&format!(r#"["{at}","l",{{"a":{{"b":"c"}}}}]"#)), ""),
        ("text as metadata", values(&format!(r#"["{at}","l","m"]"#)), ""),
        ("array as metadata", values(&format!(r#"["{at}","l",["m"]]"#)), ""),
        ("invalid escape", values(&format!(r#"["{at}","\q"]"#)), ""),
        ("streams is no array", r#"{"streams":5}"#.into(), ""),
        (
            "label name with a brace",
            format!(r#"{{"streams":[{{"stream":{{"a}}":"x"}},"values":[["{at}","l"]]}}]}}"#),
            "",
        ),
    ];
    for (name, body, text) in &json_cases {
        println!("{name}");
        server.push(body).assert_error(400, text);
    }
    let good = one_stream(json!({"bad": "x"}), &["l"]);
    let proto = snappy(&message(vec![stream(r#"{bad="x"}"#, &[(at, "l", &[])])]));
    let half = |bytes: &[u8]| bytes[..bytes.len() / 2].to_vec();
    type Case<'a> = (&'a str, Vec<(&'a str, &'a str)>, Vec<u8>, &'a str);
    let cases: Vec<Case<'_>> = vec![
        ("no content type", vec![], good.clone().into(), "mime: no media type"),
        ("empty content type", vec![("Content-Type", "")], good.clone().into(), "mime: no media type"),
        (
            "bad parameter",
            vec![("Content-Type", "application/json; charset")],
            good.clone().into(),
            "mime: invalid media parameter",
        ),
        (
            "identity",
            vec![JSON, ("Content-Encoding", "identity")],
            good.clone().into(),
            r#"Content-Encoding "identity" not supported"#,
        ),
        ("br", vec![JSON, ("Content-Encoding", "br")], good.clone().into(), r#"Content-Encoding "br" not supported"#),
        (
            "zstd",
            vec![PROTOBUF, ("Content-Encoding", "zstd")],
            proto.clone(),
            r#"Content-Encoding "zstd" not supported"#,
        ),
        (
            "upper case",
            vec![JSON, ("Content-Encoding", "GZIP")],
            gzip(good.as_bytes()),
            r#"Content-Encoding "GZIP" not supported"#,
        ),
        ("gzip that is none", vec![JSON, ("Content-Encoding", "gzip")], good.clone().into(), ""),
        ("half a gzip", vec![JSON, ("Content-Encoding", "gzip")], half(&gzip(good.as_bytes())), "unexpected EOF"),
        ("deflate that is none", vec![JSON, ("Content-Encoding", "deflate")], vec![0xff; 40], ""),
        ("bad snappy", vec![PROTOBUF], b"\x90\x4e nothing".to_vec(), "snappy: corrupt input"),
        ("half a snappy", vec![PROTOBUF], half(&proto), "snappy: corrupt input"),
        ("empty protobuf body", vec![PROTOBUF], vec![], "snappy: corrupt input"),
        ("JSON as protobuf", vec![PROTOBUF], good.clone().into(), "snappy: corrupt input"),
        ("snappy of garbage", vec![PROTOBUF], snap::raw::Encoder::new().compress_vec(&[0x0a, 0xff, 0xff]).unwrap(), ""),
        ("JSON with snappy", vec![JSON, ("Content-Encoding", "snappy")], proto.clone(), ""),
    ];
    for (name, headers, body, text) in &cases {
        println!("{name}");
        server.send("POST", PUSH, headers, body).assert_error(400, text);
    }
    assert_eq!(server.lines(r#"{bad="x"}"#), []);
}

/// Odd bodies that Loki takes.
#[test]
fn lenient_json_is_accepted() {
    let server = TestServer::start();
    let at = now();
    let values =
        |name: &str, values: &str| format!(r#"{{"streams":[{{"stream":{{"odd":"{name}"}},"values":{values}}}]}}"#);
    let cases = [
        ("one-element", values("one-element", &format!(r#"[["{at}"]]"#)), vec![""]),
        ("more-elements", values("more-elements", &format!(r#"[["{at}","l",{{}},7,[8]]]"#)), vec!["l"]),
        ("null-entry", values("null-entry", &format!(r#"[null,["{at}","l"]]"#)), vec!["l"]),
        ("null-values", values("null-values", "null"), vec![]),
        ("no-values", values("no-values", "[]"), vec![]),
        (
            "unknown-keys",
            format!(
                r#"{{"x":{{"y":[1]}},"streams":[null,{{"z":null,"stream":{{"odd":"unknown-keys"}},"values":[["{at}","l"]]}}]}}"#
            ),
            vec!["l"],
        ),
        ("empty-line", values("empty-line", &format!(r#"[["{at}",""]]"#)), vec![""]),
    ];
    for (name, body, lines) in &cases {
        println!("{name}");
        server.push(body).assert_stored();
        let stored = server.lines(&format!("{{odd={name:?}}}"));
        assert_eq!(stored.iter().map(|(_, l)| l.as_str()).collect::<Vec<_>>(), *lines, "{name}");
    }
    let metrics = server.get("/metrics").text();
    let counted = r#"loki_distributor_push_zero_streams_count{stage="post-validation",tenant="fake"} 2"#;
    assert!(metrics.contains(counted), "no {counted}");
}

/// Reference 1.3, validation: the bad stream or entry is refused in Loki's words, everything beside it is stored.
#[test]
fn what_breaks_a_rule_is_refused_and_the_rest_is_stored() {
    let server = TestServer::start();
    let at = now();
    let (day, minute) = (86_400_000_000_000, 60_000_000_000);
    let labels = |n: usize| (0..n).map(|i| format!("l{i:02}=\"x\"")).collect::<Vec<_>>().join(", ");
    let (name, value) = ("n".repeat(1025), "v".repeat(2049));
    let big = "x".repeat(262_145);
    let metadata: Vec<(String, String)> = (0..129).map(|i| (format!("m{i}"), "v".into())).collect();
    let metadata: Vec<(&str, &str)> = metadata.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let long = "v".repeat(65_536);
    let bad = vec![
        ("labels", stream(&format!("{{{}}}", labels(16)), &[(at, "l", &[])]), "' has 16 label names; limit 15".to_string()),
        ("name", stream(&format!("{{bad=\"x\", {name}=\"y\"}}"), &[(at, "l", &[])]), format!("has label name too long: '{name}'")),
        ("value", stream(&format!("{{bad=\"{value}\"}}"), &[(at, "l", &[])]), format!("has label value too long: '{value}'")),
        ("twice", stream(r#"{bad="1", bad="2"}"#, &[(at, "l", &[])]), "has duplicate label name: 'bad'".into()),
        (
            "line",
            stream(r#"{bad="line"}"#, &[(at, &big, &[])]),
            "max entry size '262144' bytes exceeded for stream '{bad=\"line\", service_name=\"unknown_service\"}' while adding an \
             entry with length '262145' bytes"
                .into(),
        ),
        ("old", stream(r#"{bad="old"}"#, &[(at - 8 * day, "l", &[])]), "has timestamp too old: ".into()),
        ("new", stream(r#"{bad="new"}"#, &[(at + 11 * minute, "l", &[])]), "has timestamp too new: ".into()),
        (
            "metadata size",
            stream(r#"{bad="size"}"#, &[(at, "l", &[("k", &long)])]),
            "has structured metadata too large: '65537' bytes, limit: '65536' bytes.".into(),
        ),
        (
            "metadata count",
            stream(r#"{bad="count"}"#, &[(at, "l", &metadata)]),
            "has too many structured metadata labels: '129', limit: '128'.".into(),
        ),
    ];
    for (name, stream_of_it, text) in &bad {
        println!("{name}");
        let good = stream(&format!("{{good={name:?}}}"), &[(at, "kept", &[])]);
        let body = snappy(&message(vec![stream_of_it.clone(), good]));
        server.send("POST", PUSH, &[PROTOBUF], &body).assert_error(400, text);
        assert_eq!(server.lines(&format!("{{good={name:?}}}")), [(at, "kept".to_string())], "{name}");
    }
    assert_eq!(server.lines(r#"{bad=~".+"}"#), []);
    // Bad entries beside good ones of the same stream.
    let mixed = stream(
        r#"{mixed="x"}"#,
        &[(at, "one", &[]), (at - 8 * day, "old", &[]), (at + 1, &big, &[]), (at + 2, "two", &[])],
    );
    let answer = server.send("POST", PUSH, &[PROTOBUF], &snappy(&message(vec![mixed])));
    answer.assert_error(400, "has timestamp too old");
    answer.assert_error(400, "max entry size");
    assert_eq!(server.lines(r#"{mixed="x"}"#), [(at, "one".to_string()), (at + 2, "two".to_string())]);
}

#[test]
fn labels_that_do_not_parse_refuse_the_whole_push() {
    let server = TestServer::start();
    for bad in ["{", "x y", "{a}", "{a=b}", r#"{a="b""#, r#"{1a="b"}"#, r#"{a="b",,c="d"}"#, r#"{a!="b"}"#] {
        let both = vec![stream(r#"{good="x"}"#, &[(now(), "l", &[])]), stream(bad, &[(now(), "l", &[])])];
        println!("{bad}");
        server.send("POST", PUSH, &[PROTOBUF], &snappy(&message(both))).assert_error(400, "couldn't parse labels: ");
    }
    assert_eq!(server.lines(r#"{good="x"}"#), []);
}

/// Reference 1.3, what needs no entry.
#[test]
fn pushes_without_streams_or_labels() {
    let server = TestServer::start();
    for body in ["{}", r#"{"streams":[]}"#, r#"{"streams":null}"#] {
        server.push(body).assert_error(422, "error at least one valid stream is required for ingestion");
    }
    let nothing = snappy(&message(vec![]));
    // An empty message is one byte of snappy.
    server.send("POST", PUSH, &[PROTOBUF], &nothing).assert_error(422, "error at least one valid stream");
    server.push(&one_stream(json!({}), &["unnamed"])).assert_stored();
    assert_eq!(server.lines(r#"{service_name="unknown_service"}"#).len(), 1);
    server.push(&one_stream(json!({"empty": "", "app": "shop"}), &["dropped"])).assert_stored();
    let found = server.query("", r#"{service_name="shop"}"#);
    assert_eq!(found["data"]["result"][0]["stream"]["empty"], Value::Null, "{found}");
    assert_eq!(found["data"]["result"][0]["stream"]["app"], "shop", "{found}");

    let strict = TestServer::with("auth_enabled: false\nlimits_config: {discover_service_name: []}\n");
    strict
        .push(&one_stream(json!({}), &["l"]))
        .assert_error(400, "error at least one label pair is required per stream");
    strict
        .push(&one_stream(json!({"empty": ""}), &["l"]))
        .assert_error(400, "error at least one label pair is required per stream");
}

/// At the limit everything is accepted, one above it is refused.
#[test]
fn limits_hold_at_n_and_n_plus_one() {
    let limits = "auth_enabled: false\nlimits_config: {max_line_size: 100, max_label_name_length: 12, max_label_value_length: 20, \
                  max_label_names_per_series: 3, max_structured_metadata_size: 30, max_structured_metadata_entries_count: 2, \
                  reject_old_samples_max_age: 1h, creation_grace_period: 1h, max_global_streams_per_user: 7}\n";
    let server = TestServer::with(limits);
    let push = |labels: &str, entry: (i64, &str, &[(&str, &str)])| {
        server.send("POST", PUSH, &[PROTOBUF], &snappy(&message(vec![stream(labels, &[entry])])))
    };
    let at = now();
    push(r#"{a="line"}"#, (at, &"x".repeat(100), &[])).assert_stored();
    push(r#"{a="line"}"#, (at, &"x".repeat(101), &[])).assert_error(400, "max entry size '100' bytes exceeded");
    push(r#"{abcdefghijkl="1"}"#, (at, "l", &[])).assert_stored();
    push(r#"{abcdefghijklm="1"}"#, (at, "l", &[])).assert_error(400, "has label name too long: 'abcdefghijklm'");
    push(&format!(r#"{{a="{}"}}"#, "v".repeat(20)), (at, "l", &[])).assert_stored();
    push(&format!(r#"{{a="{}"}}"#, "v".repeat(21)), (at, "l", &[])).assert_error(400, "has label value too long");
    push(r#"{a="1", b="2", c="3"}"#, (at, "l", &[])).assert_stored();
    push(r#"{a="1", b="2", c="3", d="4"}"#, (at, "l", &[])).assert_error(400, "has 4 label names; limit 3");
    push(r#"{a="meta"}"#, (at, "l", &[("k", &"v".repeat(29))])).assert_stored();
    push(r#"{a="meta"}"#, (at, "l", &[("k", &"v".repeat(30))]))
        .assert_error(400, "structured metadata too large: '31' bytes, limit: '30'");
    push(r#"{a="meta"}"#, (at + 1, "l", &[("k", "v"), ("l", "v")])).assert_stored();
    push(r#"{a="meta"}"#, (at + 1, "l", &[("k", "v"), ("l", "v"), ("m", "v")]))
        .assert_error(400, "labels: '3', limit: '2'");
    let minute = 60_000_000_000;
    push(r#"{a="age"}"#, (at - 59 * minute, "l", &[])).assert_stored();
    push(r#"{a="age"}"#, (at - 61 * minute, "l", &[])).assert_error(400, "has timestamp too old");
    push(r#"{a="age 2"}"#, (at + 59 * minute, "l", &[])).assert_stored();
    push(r#"{a="age 2"}"#, (at + 61 * minute, "l", &[])).assert_error(400, "has timestamp too new");
    // Seven streams are there by now.
    push(r#"{a="8"}"#, (at, "l", &[]))
        .assert_error(429, "maximum active stream limit exceeded when trying to create stream {a=\"8\", ");
    push(r#"{a="line"}"#, (at + 9, "known streams go on", &[])).assert_stored();
}

/// 429 of a part: what fits is stored, and synced before the answer.
#[test]
fn the_good_part_of_a_429_is_stored() {
    let yaml = "auth_enabled: false\nlimits_config: {max_global_streams_per_user: 1, per_stream_rate_limit: 1KB, \
                per_stream_rate_limit_burst: 1KB, discover_log_levels: false}\n";
    let mut server = TestServer::with(yaml);
    let at = now();
    let (first, second) = (stream(r#"{a="1"}"#, &[(at, "in", &[])]), stream(r#"{a="2"}"#, &[(at, "out", &[])]));
    let body = snappy(&message(vec![first, second]));
    server
        .send("POST", PUSH, &[PROTOBUF], &body)
        .assert_error(429, "maximum active stream limit exceeded when trying to create stream {a=\"2\"");
    let line = "x".repeat(900);
    let two = stream(r#"{a="1"}"#, &[(at + 1, &line, &[]), (at + 2, &line, &[])]);
    let answer = server.send("POST", PUSH, &[PROTOBUF], &snappy(&message(vec![two])));
    answer.assert_error(
        429,
        "Per stream rate limit exceeded (limit: 1KB/sec) while attempting to ingest for stream '{a=\"1\", ",
    );
    let expected = server.lines(r#"{a=~".+"}"#);
    assert_eq!(expected.first(), Some(&(at, "in".to_string())));
    server.kill_and_restart(&format!("{SMALL_WAL}{yaml}"));
    assert_eq!(server.lines(r#"{a=~".+"}"#), expected);
}

#[test]
fn a_tenants_rate_refuses_the_whole_push() {
    let server = TestServer::with(
        "auth_enabled: true\nlimits_config: {ingestion_rate_mb: 0.001, ingestion_burst_size_mb: 0.01}\n",
    );
    let line = "x".repeat(6_000);
    server.push_as("t1", &one_stream(json!({"a": "1"}), &[&line])).assert_stored();
    let answer = server.push_as("t1", &one_stream(json!({"a": "2"}), &[&line]));
    answer.assert_error(429, "ingestion rate limit exceeded for user t1 (limit: 1048 bytes/sec) while attempting to ingest '1' lines totaling '");
    assert_eq!(server.lines_as("t1", r#"{a="2"}"#), []);
    server.push_as("t2", &one_stream(json!({"a": "1"}), &[&line])).assert_stored();
}

#[test]
fn entries_too_far_behind_are_400_and_the_others_are_stored() {
    let server = TestServer::start();
    let (at, hour) = (now(), 3_600_000_000_000);
    let body = |entries: &[(i64, &str, &[(&str, &str)])]| snappy(&message(vec![stream(r#"{a="1"}"#, entries)]));
    server.send("POST", PUSH, &[PROTOBUF], &body(&[(at, "newest", &[])])).assert_stored();
    let answer = server.send(
        "POST",
        PUSH,
        &[PROTOBUF],
        &body(&[(at - 2 * hour, "behind", &[]), (at - hour / 2, "within", &[])]),
    );
    answer.assert_error(400, "ignored, reason: 'entry too far behind, entry timestamp is: ");
    answer.assert_error(
        400,
        ",\nuser 'fake', total ignored: 1 out of 2 for stream: {a=\"1\", service_name=\"unknown_service\"}",
    );
    let lines = server.lines(r#"{a="1"}"#);
    assert_eq!(lines, [(at - hour / 2, "within".to_string()), (at, "newest".to_string())]);
}

#[test]
fn tenants_do_not_see_each_other_and_need_good_names() {
    let server = TestServer::with("auth_enabled: true\noverrides: {small: {max_line_size: 3}}\n");
    for tenant in ["t1", "t2", "!-_.*'()", &"x".repeat(150)] {
        server.push_as(tenant, &one_stream(json!({"a": "b", "of": tenant}), &[tenant])).assert_stored();
        let lines = server.lines_as(tenant, r#"{a="b"}"#);
        assert_eq!(lines.iter().map(|(_, l)| l.as_str()).collect::<Vec<_>>(), [tenant]);
        let values = server.send("GET", "/loki/api/v1/label/of/values", &[("X-Scope-OrgID", tenant)], b"").json();
        assert_eq!(values["data"], json!([tenant]));
    }
    server.push_as("small", &one_stream(json!({"a": "b"}), &["long"])).assert_error(400, "max entry size '3' bytes");
    server.push_as("small", &one_stream(json!({"a": "b"}), &["ok"])).assert_stored();
    let long = "x".repeat(151);
    for (tenant, status, text) in [
        ("", 401, "no org id"),
        ("a/b", 400, "tenant ID 'a/b' contains unsupported character '/'"),
        ("../x", 400, "unsupported character '/'"),
        ("..", 400, ""),
        (".", 400, ""),
        ("a|b", 400, "multiple org IDs present"),
        ("a b", 400, "unsupported character ' '"),
        (long.as_str(), 400, "tenant ID is too long: max 150 characters"),
    ] {
        println!("{tenant:?}");
        server.push_as(tenant, &one_stream(json!({"a": "b"}), &["l"])).assert_error(status, text);
        let read = server.send("GET", "/loki/api/v1/labels", &[("X-Scope-OrgID", tenant)], b"");
        assert_eq!(read.status, status);
    }
}

/// Whoever reads or writes as a tenant says which, at every door: there is no tenant by default, and no other header counts.
#[test]
fn no_door_opens_without_a_tenant() {
    let server = TestServer::with("auth_enabled: true\n");
    server.push_as("t", &one_stream(json!({"a": "b"}), &["line"])).assert_stored();
    let doors = [
        ("POST", "/loki/api/v1/push"),
        ("POST", "/api/prom/push"),
        ("GET", "/loki/api/v1/query_range?query={a=%22b%22}"),
        ("POST", "/loki/api/v1/query_range?query={a=%22b%22}"),
        ("GET", "/loki/api/v1/query?query={a=%22b%22}"),
        ("GET", "/loki/api/v1/labels"),
        ("GET", "/loki/api/v1/label/a/values"),
        ("GET", "/loki/api/v1/series?match[]={a=%22b%22}"),
    ];
    let strangers: [&[(&str, &str)]; 5] = [
        &[],
        &[("X-Scope-OrgID", "")],
        &[("Authorization", "Bearer t")],
        &[("Authorization", "Basic dDp0")],
        &[("X-Org-Id", "t"), ("Cookie", "X-Scope-OrgID=t")],
    ];
    for (method, target) in doors {
        for headers in strangers {
            let body = if target.ends_with("push") { one_stream(json!({"a": "b"}), &["alien"]) } else { String::new() };
            let mut headers = headers.to_vec();
            headers.push(("Content-Type", "application/json"));
            println!("{method} {target} {headers:?}");
            server.send(method, target, &headers, body.as_bytes()).assert_error(401, "no org id");
        }
    }
    assert_eq!(server.lines_as("t", r#"{a="b"}"#).len(), 1);
    assert!(server.lines_as("fake", r#"{a="b"}"#).is_empty(), "somebody was taken for another tenant");
}

/// Labels, metadata, levels and lines are the same, whichever way they came.
#[test]
fn json_and_protobuf_give_the_same_entries() {
    let server = TestServer::with("auth_enabled: true\n");
    let at = now();
    let lines = [
        "plain",
        "",
        "é世界 \"quoted\" \\ \t tab",
        "level=error msg=x",
        "{\"level\":\"warn\"}",
        "two\nlines",
        "\u{1}\u{7f}",
    ];
    let json_values: Vec<Value> = lines
        .iter()
        .enumerate()
        .map(|(i, l)| json!([(at + i as i64).to_string(), l, {"trace_id": "t\"1", "k": "é"}]))
        .collect();
    let labels = json!({"z": "last", "app": "a\"b\\c", "empty": "", "uni": "世界"});
    let body = json!({"streams": [{"stream": labels, "values": json_values}]}).to_string();
    server.push_as("json", &body).assert_stored();

    let pairs: &[(&str, &str)] = &[("k", "é"), ("trace_id", "t\"1")];
    let entries: Vec<_> = lines.iter().enumerate().map(|(i, l)| (at + i as i64, *l, pairs)).collect();
    let pushed = stream(r#"{uni="世界",app="a\"b\\c", empty="",  z="last"}"#, &entries);
    let headers = [PROTOBUF, ("X-Scope-OrgID", "proto")];
    server.send("POST", PUSH, &headers, &snappy(&message(vec![pushed]))).assert_stored();

    let flags = ("X-Loki-Response-Encoding-Flags", "categorize-labels");
    for headers in [vec![], vec![flags]] {
        let read = |tenant: &'static str| {
            let target = format!("/loki/api/v1/query_range?query={}&limit=100", encode(r#"{z="last"}"#));
            let mut headers = headers.clone();
            headers.push(("X-Scope-OrgID", tenant));
            server.send("GET", &target, &headers, b"").json()["data"]["result"].clone()
        };
        let (json_read, proto_read) = (read("json"), read("proto"));
        assert_eq!(json_read, proto_read);
        let stored: usize = json_read.as_array().unwrap().iter().map(|s| s["values"].as_array().unwrap().len()).sum();
        assert_eq!(stored, lines.len());
    }
}

/// The two label sets have one fingerprint in Loki, 0x61175bbd01d9082b. Only their text tells them apart.
#[test]
fn equal_fingerprints_stay_apart_also_after_kill_9() {
    let mut server = TestServer::start();
    let values = [
        "iK2ZWeqhFWCEPyYngFb51yBMWXaSCrUZoL8g5ubbbPIa84yRnBUbHoWC8FJowoRo",
        "iK2ZWe4ADBmK93YngFb51yBMWXaSCrUZoL8g5uD7fsyIt3yRnBUbHoWC8FJowoRo",
    ];
    let yaml = format!("{SMALL_WAL}auth_enabled: false\nlimits_config: {{discover_service_name: []}}\n");
    server.kill_and_restart(&yaml);
    let check = |server: &TestServer, rounds: usize| {
        for value in values {
            let lines = server.lines(&format!("{{a={value:?}}}"));
            assert_eq!(lines.len(), rounds, "{lines:?}");
            assert!(lines.iter().all(|(_, line)| line == value), "{lines:?}");
        }
        assert_eq!(server.query("", r#"{a=~"iK2.+"}"#)["data"]["result"].as_array().unwrap().len(), 2);
        let series = server.get(&format!("/loki/api/v1/series?match[]={}", encode(r#"{a=~".+"}"#))).json();
        assert_eq!(series["data"].as_array().unwrap().len(), 2, "{series}");
        let mut sorted = values;
        sorted.sort_unstable();
        assert_eq!(server.get("/loki/api/v1/label/a/values").json()["data"], json!(sorted));
    };
    for round in 1..=2 {
        for value in values {
            server.push(&one_stream(json!({"a": value}), &[value])).assert_stored();
        }
        check(&server, round);
        server.kill_and_restart(&yaml);
        check(&server, round);
    }
}

#[test]
fn reads_are_ordered_filtered_limited_and_without_duplicates() {
    let server = TestServer::start();
    let at = now() - 1_000_000_000;
    let push = |app: &str, entries: &[(i64, &str)]| {
        let values: Vec<Value> = entries.iter().map(|(t, l)| json!([(at + t).to_string(), l])).collect();
        server.push(&json!({"streams": [{"stream": {"app": app}, "values": values}]}).to_string()).assert_stored();
    };
    push("a", &[(3, "three"), (1, "one")]);
    push("a", &[(2, "two"), (2, "again two"), (3, "three")]);
    push("b", &[(2, "b two")]);
    let lines = |selector: &str| server.lines(selector).into_iter().map(|(_, l)| l).collect::<Vec<_>>();
    assert_eq!(lines(r#"{app="a"}"#), ["one", "two", "again two", "three"]);
    assert_eq!(lines(r#"{app="a"} |= "two""#), ["two", "again two"]);
    assert_eq!(lines(r#"{app="a"} != "two""#), ["one", "three"]);
    assert_eq!(lines(r#"{app="a"} |~ "^t""#), ["two", "three"]);
    assert_eq!(lines(r#"{app="a"} !~ "t.o""#), ["one", "three"]);
    assert_eq!(lines(r#"{app!="a", service_name=~"a|b"}"#), ["b two"]);
    assert_eq!(lines(r#"{app=~"a|b", app!~"a"}"#), ["b two"]);

    let query = |more: &str| {
        let target = format!("/loki/api/v1/query_range?query={}{more}", encode(r#"{app="a"}"#));
        let found = server.get(&target).json();
        assert_eq!((&found["status"], &found["data"]["resultType"]), (&json!("success"), &json!("streams")));
        let values = found["data"]["result"][0]["values"].as_array().cloned().unwrap_or_default();
        values.iter().map(|v| v[1].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(query(""), ["three", "again two", "two", "one"], "newest first by default");
    assert_eq!(query("&limit=2&direction=forward"), ["one", "two"]);
    assert_eq!(query("&limit=1"), ["three"]);
    let range = format!("&direction=forward&start={}&end={}", at + 2, at + 3);
    assert_eq!(query(&range), ["two", "again two"], "the end is exclusive");
    assert_eq!(query("&since=1h").len(), 4);

    let form = format!("query={}&limit=1", encode(r#"{app="b"}"#));
    let headers = [("Content-Type", "application/x-www-form-urlencoded")];
    for path in ["/loki/api/v1/query_range", "/loki/api/v1/query"] {
        let found = server.send("POST", path, &headers, form.as_bytes()).json();
        assert_eq!(found["data"]["result"][0]["values"][0][1], "b two", "{path}: {found}");
    }
    assert_eq!(server.get("/loki/api/v1/labels").json(), json!({"status": "success", "data": ["app", "service_name"]}));
    assert_eq!(server.get("/loki/api/v1/label/app/values").json()["data"], json!(["a", "b"]));
    let series = server.get(&format!("/loki/api/v1/series?match={}", encode(r#"{app="b"}"#))).json();
    assert_eq!(series["data"], json!([{"app": "b", "service_name": "b"}]));
    let bad = server.get(&format!("/loki/api/v1/query_range?query={}", encode("{app=}")));
    assert_eq!(bad.status, 400, "{}", bad.text());
    assert_eq!(server.get("/loki/api/v1/query_range").status, 400);
}

#[test]
fn pages_answer_what_operators_and_probes_ask() {
    let server = TestServer::start();
    server.push(&one_stream(json!({"a": "b"}), &["l"])).assert_stored();
    for (path, start) in
        [("/ready", "ready\n"), ("/ready?for=write", "ready\n"), ("/livez", "alive\n"), ("/", "Timberline ")]
    {
        let page = server.get(path);
        assert_eq!(page.status, 200, "{path}");
        assert!(page.text().starts_with(start), "{path}: {}", page.text());
        assert_eq!(page.header("content-type"), Some("text/plain; charset=utf-8"), "{path}");
    }
    let metrics = server.get("/metrics");
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    for line in [
        "# TYPE loki_request_duration_seconds histogram",
        r#"loki_request_duration_seconds_count{method="POST",route="loki_api_v1_push",status_code="204",ws="false"} 1"#,
        "loki_distributor_lines_received_total{",
        "loki_ingester_memory_streams{tenant=\"fake\"} 1",
        "loki_build_info{",
    ] {
        assert!(metrics.text().contains(line), "no {line} in {}", metrics.text());
    }
    let config = server.get("/config").text();
    assert!(config.contains("auth_enabled: false") && config.contains("segment_size: 4MB"), "{config}");
    let services = server.get("/services").text();
    for module in ["server", "distributor", "ingester", "querier"] {
        assert!(services.lines().any(|l| l == format!("{module} => Running")), "{services}");
    }
    let ring = server.get("/ring").json();
    assert_eq!(ring["shards"][0]["state"], "ACTIVE", "{ring}");
    let build = server.get("/loki/api/v1/status/buildinfo").json();
    assert_eq!(build["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(server.get("/log_level").json(), json!({"message": "Current log level is info"}));
    let set = server.send("POST", "/log_level?log_level=debug", &[], b"");
    assert_eq!(set.json(), json!({"status": "success", "message": "Log level set to debug"}));
    assert_eq!(server.get("/log_level").json(), json!({"message": "Current log level is debug"}));
    let bad = server.send("POST", "/log_level?log_level=bogus", &[], b"");
    let text = json!({"status": "failed", "message": "unrecognized log level \"bogus\""});
    assert_eq!((bad.status, bad.json()), (400, text));
}

#[test]
fn other_methods_and_paths_are_refused() {
    let server = TestServer::start();
    for (method, path) in [
        ("GET", PUSH),
        ("PUT", PUSH),
        ("DELETE", PUSH),
        ("OPTIONS", PUSH),
        ("GET", LEGACY_PUSH),
        ("PUT", "/loki/api/v1/query_range"),
        ("DELETE", "/loki/api/v1/labels"),
        ("POST", "/ready"),
        ("PUT", "/log_level"),
    ] {
        let answer = server.send(method, path, &[], b"");
        assert_eq!((answer.status, answer.text().as_str()), (405, ""), "{method} {path}");
        assert!(answer.header("allow").is_some(), "{method} {path}");
    }
    for path in ["/nothing", "/loki/api/v1/push/", "/loki/api/v2/push", "/../etc/passwd"] {
        server.get(path).assert_error(404, "404 page not found");
    }
    server
        .send("POST", "/otlp/v1/logs", &[JSON], b"{}")
        .assert_error(404, "OTLP is not supported yet; push to /loki/api/v1/push");
}

/// curl asks before it sends a large body.
#[test]
fn expect_100_continue_is_answered_before_the_body() {
    let server = TestServer::start();
    let body = one_stream(json!({"expect": "x"}), &["l"]);
    let head = |length: usize, path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut connection = support::connect(&server.server.addr);
    connection.write_all(head(body.len(), PUSH).as_bytes()).unwrap();
    assert_eq!(read_reply(&mut connection).unwrap().status, 100);
    connection.write_all(body.as_bytes()).unwrap();
    read_reply(&mut connection).unwrap().assert_stored();
    assert_eq!(server.lines(r#"{expect="x"}"#).len(), 1);
    // What is refused by its head is refused before the body.
    let mut connection = support::connect(&server.server.addr);
    connection.write_all(head(200 << 20, PUSH).as_bytes()).unwrap();
    read_reply(&mut connection)
        .unwrap()
        .assert_error(413, "request body too large: message size too large than max (209715200 vs 104857600)");
}

#[test]
fn keep_alive_and_chunked_bodies() {
    let server = TestServer::start();
    let mut connection = support::connect(&server.server.addr);
    for i in 0..3 {
        let body = one_stream(json!({"chunked": "x"}), &[&format!("line {i}")]);
        let (first, rest) = body.split_at(10);
        let head = format!(
            "POST {PUSH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        let chunks = format!("{:x}\r\n{first}\r\n{:x}\r\n{rest}\r\n0\r\n\r\n", first.len(), rest.len());
        connection.write_all((head + &chunks).as_bytes()).unwrap();
        read_reply(&mut connection).unwrap().assert_stored();
    }
    assert_eq!(server.lines(r#"{chunked="x"}"#).len(), 3);
}

/// A push whose body is on its way when the server is told to stop, and what was read of it so far.
fn half_a_push(server: &TestServer, body: &str) -> std::net::TcpStream {
    let head = format!(
        "POST {PUSH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut connection = support::connect(&server.server.addr);
    connection.write_all((head + &body[..10]).as_bytes()).unwrap();
    // Until the server has seen the head.
    while !server.get("/metrics").text().contains(r#"loki_inflight_requests{method="POST",route="loki_api_v1_push"} 1"#)
    {
        std::thread::sleep(Duration::from_millis(5));
    }
    connection
}

#[test]
fn a_stopping_server_finishes_what_is_in_flight() {
    let yaml = format!("{SMALL_WAL}auth_enabled: false\n");
    let server = TestServer::with_all(&yaml);
    let body = one_stream(json!({"a": "b"}), &["in flight"]);
    let mut connection = half_a_push(&server, &body);
    let TestServer { server, dir } = server;
    server.signal("TERM");
    while support::try_connect(&server.addr) {
        std::thread::sleep(Duration::from_millis(5));
    }
    connection.write_all(&body.as_bytes()[10..]).unwrap();
    read_reply(&mut connection).unwrap().assert_stored();
    assert_eq!(server.wait(Duration::from_secs(10)), Some(0));
    let server = TestServer::again(dir, &yaml);
    assert_eq!(server.lines(r#"{a="b"}"#).len(), 1);
}

#[test]
fn a_second_sigterm_stops_at_once_and_loses_nothing() {
    let yaml = format!("{SMALL_WAL}auth_enabled: false\n");
    let server = TestServer::with_all(&yaml);
    server.push(&one_stream(json!({"a": "b"}), &["stored"])).assert_stored();
    let body = one_stream(json!({"a": "b"}), &["never sent"]);
    let connection = half_a_push(&server, &body);
    let TestServer { server, dir } = server;
    server.signal("TERM");
    while support::try_connect(&server.addr) {
        std::thread::sleep(Duration::from_millis(5));
    }
    server.signal("TERM");
    assert_eq!(server.wait(Duration::from_secs(5)), Some(143));
    drop(connection);
    let server = TestServer::again(dir, &yaml);
    assert_eq!(server.lines(r#"{a="b"}"#).into_iter().map(|(_, l)| l).collect::<Vec<_>>(), ["stored"]);
}

/// The listener opens before replay: probes see a living process, and clients are told to come back.
#[test]
fn a_starting_server_lives_and_asks_pushes_to_come_back() {
    let yaml = "auth_enabled: false\nlimits_config: {ingestion_rate_mb: 10000, ingestion_burst_size_mb: 10000, \
                per_stream_rate_limit: 10GB, per_stream_rate_limit_burst: 10GB}\n";
    let server = TestServer::with_all(yaml);
    let line = "level=info msg=\"a line that compresses well\" ".repeat(20);
    let lines: Vec<&str> = (0..5_000).map(|_| line.as_str()).collect();
    for i in 0..20 {
        server.push(&one_stream(json!({"app": i.to_string()}), &lines)).assert_stored();
    }
    let TestServer { server, dir } = server;
    server.kill();
    let mut server = TestServer { server: support::spawn(dir.path(), yaml), dir };
    while !support::try_connect(&server.server.addr) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (mut refused, mut waited) = (0, 0);
    loop {
        assert_eq!(server.get("/livez").status, 200);
        let ready = server.get("/ready");
        if ready.status != 200 {
            ready.assert_error(503, "Ingester not ready: replaying the write-ahead log, ");
            waited += 1;
        }
        let answer = server.push(&one_stream(json!({"app": "new"}), &["l"]));
        if answer.status == 204 {
            break;
        }
        answer.assert_error(503, "Ingester not ready: replaying the write-ahead log, ");
        refused += 1;
    }
    println!("{waited} times not ready, {refused} pushes refused");
    assert!(refused > 0 && waited > 0, "nobody saw the replay");
    server.server.wait_ready();
    assert_eq!(server.lines(r#"{app="new"}"#).len(), 1);
}

/// Asks for the operator's page until it shows what is wanted.
fn status_when(server: &TestServer, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut page = Value::Null;
    for _ in 0..200 {
        let answer = server.get("/api/v1/status");
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some("application/json")),
            "{}",
            answer.text()
        );
        page = answer.json();
        if wanted(&page) {
            return page;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("the page does not show it: {page:#}");
}

/// The operator's page, without a tenant: how durable, how full, who pushes, who is refused and by which program.
#[test]
fn the_status_page_tells_durability_budgets_and_traffic() {
    let yaml = "auth_enabled: true\n\
                limits_config: {max_line_size: 100, per_stream_rate_limit: 1KB, per_stream_rate_limit_burst: 1KB}\n";
    let mut server = TestServer::with(yaml);
    let push = |server: &TestServer, tenant: &str, agent: &str, body: &str| {
        let headers = [JSON, ("X-Scope-OrgID", tenant), ("User-Agent", agent)];
        server.send("POST", PUSH, &headers, body.as_bytes()).status
    };
    let (long, secret) = ("x".repeat(101), "password-in-a-line");
    for n in 0..20 {
        assert_eq!(push(&server, "busy", "good/1.0", &one_stream(json!({"app": "busy"}), &[secret])), 204);
        let app = format!("quiet-{n}");
        assert_eq!(push(&server, "calm", "good/1.0", &one_stream(json!({"app": app}), &["l"])), 204);
    }
    for _ in 0..3 {
        assert_eq!(push(&server, "noisy", "bad/2.0 \u{e9}", &one_stream(json!({"app": "long"}), &[&long])), 400);
    }
    assert_eq!(push(&server, "noisy", "other/3", &one_stream(json!({"app": "long"}), &[&long])), 400);
    let many = vec!["0123456789".repeat(9); 20];
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(push(&server, "fast", "flood/1", &one_stream(json!({"app": "flood"}), &many)), 429);

    let page = status_when(&server, |page| page["streams"]["by_rate"].as_array().unwrap().len() == 10);
    assert!(!page.to_string().contains(secret) && !page.to_string().contains(&long), "lines are not for this page");
    assert_eq!((&page["ready"], &page["pushes_refused"]), (&json!(true), &Value::Null), "{page:#}");
    let durability = &page["durability"];
    assert_eq!((&durability["mode"], &durability["note"]), (&json!("always"), &Value::Null), "{page:#}");
    assert!(durability["syncs"].as_u64().unwrap() >= 40, "{page:#}");
    let seconds = |name: &str| durability[name].as_f64().unwrap_or_else(|| panic!("no {name}: {page:#}"));
    assert!(seconds("p50_seconds") > 0.0 && seconds("p50_seconds") <= seconds("p99_seconds"), "{page:#}");
    assert!(seconds("last_sync_seconds_ago") < 60.0 && seconds("unsynced_seconds") < 60.0, "{page:#}");
    assert!(page["wal"]["size"].as_u64().unwrap() > 0, "{page:#}");
    assert!(page["wal"]["max_size"].as_u64().unwrap() >= page["wal"]["size"].as_u64().unwrap(), "{page:#}");
    assert!(page["blocks"]["max_size"].as_u64().unwrap() > 0, "{page:#}");
    assert_eq!((&page["memory"]["streams"], &page["wal"]["segments"]), (&json!(21), &json!(1)), "{page:#}");
    assert_eq!((&page["damage"]["unacknowledged"], &page["recovery"]["lines"]), (&json!(0), &json!(0)), "{page:#}");

    let top = &page["streams"]["by_rate"][0];
    assert!(top["stream"].as_str().unwrap().contains("app=\"busy\"") && top["tenant"] == "busy", "{page:#}");
    assert!(top["bytes_per_second"].as_f64().unwrap() > 0.0, "{page:#}");
    let tenant = &page["tenants"]["by_rate"][0];
    assert_eq!((&tenant["tenant"], &tenant["lines"], &tenant["bytes"]), (&json!("fast"), &json!(20), &json!(1800)));
    let refused = page["tenants"]["by_rejection"].as_array().unwrap();
    let of = |reason: &str| refused.iter().find(|r| r["reason"] == reason).unwrap_or_else(|| panic!("{page:#}"));
    let long = of("line_too_long");
    assert_eq!((&long["tenant"], &long["lines"], &long["bytes"]), (&json!("noisy"), &json!(4), &json!(404)));
    assert_eq!(long["user_agents"]["last"], "other/3");
    assert_eq!(long["user_agents"]["most"][0], json!({"user_agent": "bad/2.0 ??", "refusals": 3}));
    assert_eq!((&of("per_stream_rate_limit")["tenant"], refused.len()), (&json!("fast"), 2), "{page:#}");
    let streams = page["streams"]["by_rejection"].as_array().unwrap();
    let flood = streams.iter().find(|s| s["last_reason"] == "per_stream_rate_limit").unwrap();
    assert!(flood["stream"].as_str().unwrap().contains("app=\"flood\""), "{page:#}");
    assert_eq!(flood["user_agents"]["last"], "flood/1");

    // What a start has found, and that lines of before it are no rate.
    server.kill_and_restart(&format!("{SMALL_WAL}{yaml}"));
    // The log opens after what recovery has found is told.
    let page = status_when(&server, |page| page["recovery"]["lines"] == 40 && !page["wal"]["oldest_segment"].is_null());
    assert_eq!(page["streams"]["by_rate"], json!([]), "{page:#}");
    let oldest = &page["wal"]["oldest_segment"];
    assert_eq!((&oldest["segment"], &oldest["streams_in_heads"]), (&json!(1), &json!(21)), "{page:#}");
    assert_eq!(oldest["largest"][0]["tenant"], "busy", "{page:#}");
}

/// While there is no descriptor left, the log says so once and not at every attempt.
#[test]
fn a_process_without_descriptors_tells_so_once_and_goes_on() {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    let server = TestServer::start();
    let pid = Pid::from_raw(server.server.pid() as i32).unwrap();
    // The server has the limits of this process.
    let usual = getrlimit(Resource::Nofile);
    let limit = |current: Option<u64>| prlimit(Some(pid), Resource::Nofile, Rlimit { current, ..usual }).unwrap();
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.server.pid())).unwrap().count();
    limit(Some(open as u64));
    let waiting: Vec<_> = (0..20).map(|_| connect(&server.server.addr)).collect();
    std::thread::sleep(Duration::from_millis(1500));
    limit(usual.current);
    drop(waiting);
    // The log may have missed descriptors as well, and says that it asks for them again within a second.
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while server.push(&one_stream(json!({"after": "that"}), &["l"])).status != 204 {
        assert!(std::time::Instant::now() < deadline, "{}", server.server.log_tail());
        std::thread::sleep(Duration::from_millis(100));
    }
    let log = std::fs::read_to_string(server.server.dir.join("server.log")).unwrap();
    assert_eq!(log.matches("cannot accept connections").count(), 1, "{log}");
    assert!(log.contains("protocol=http suppressed=0") && log.contains("ulimit -n"), "{log}");
    let metrics = server.get("/metrics").text();
    let count = |protocol: &str| {
        let name = format!("timberline_tcp_accept_errors_total{{protocol={protocol:?}}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse::<u64>().unwrap()
    };
    assert!(count("http") > 5 && count("grpc") == 0, "{metrics}");
}

/// As `curl -g` sends it, and Go takes it. The next request on the connection, too.
#[test]
fn a_query_needs_no_percent_encoding() {
    let server = TestServer::start();
    server.push(&one_stream(json!({"app": "x"}), &["<one> #1", "two"])).assert_stored();
    let mut connection = connect(&server.server.addr);
    for target in [
        "query_range?query={app=\"x\"}|=`<one>`",
        "query_range?query={app=\"x\"}|~\"^<.*#1$\"",
        "labels?query={app=\"x\"}",
    ] {
        let head = format!("GET /loki/api/v1/{target} HTTP/1.1\r\nHost: x\r\n\r\n");
        connection.write_all(head.as_bytes()).unwrap();
        let answer = read_reply(&mut connection).unwrap();
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        let wanted = if target.starts_with("labels") { "app" } else { "<one> #1" };
        assert!(answer.text().contains(wanted) && !answer.text().contains("two"), "{target}: {}", answer.text());
    }
}
