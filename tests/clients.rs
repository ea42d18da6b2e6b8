//! Requests that real clients sent, byte for byte: each is answered 204, and its lines are read back.

mod support;

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use support::TestServer;

/// The captured requests know their time; a test does not know when it runs.
const YAML: &str = "auth_enabled: true\nlimits_config: {reject_old_samples: false, creation_grace_period: 175200h}\n";

/// What was sent, and what a decoder that is not ours made of it.
struct Capture {
    name: String,
    body: Vec<u8>,
    meta: Value,
}

fn captures() -> Vec<Capture> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/push");
    let is_body = |path: &PathBuf| path.extension().is_some_and(|e| e == "body");
    let mut bodies: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(is_body).collect();
    bodies.sort();
    let load = |path: &PathBuf| Capture {
        name: path.file_stem().unwrap().to_str().unwrap().to_string(),
        body: std::fs::read(path).unwrap(),
        meta: serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap(),
    };
    bodies.iter().map(load).collect()
}

#[test]
fn requests_of_real_clients_are_stored_and_read_back() {
    let server = TestServer::with(YAML);
    let captures = captures();
    assert!(captures.len() >= 11, "{}", captures.len());
    for capture in &captures {
        println!("{}", capture.name);
        let header = |key: &str| capture.meta[key].as_str();
        let mut headers = vec![("X-Scope-OrgID", capture.name.as_str()), ("Authorization", "Basic dXNlcjpwYXNz")];
        headers.extend(header("content_type").map(|v| ("Content-Type", v)));
        headers.extend(header("content_encoding").map(|v| ("Content-Encoding", v)));
        server.send("POST", header("path").unwrap(), &headers, &capture.body).assert_stored();
        // A retry after a lost answer adds nothing.
        server.send("POST", header("path").unwrap(), &headers, &capture.body).assert_stored();
        for stream in capture.meta["streams"].as_array().unwrap() {
            check_stream(&server, capture, stream);
        }
    }
}

fn check_stream(server: &TestServer, capture: &Capture, stream: &Value) {
    let found = server.query(&capture.name, stream["labels"].as_str().unwrap());
    let mut expected: Vec<(String, String)> = Vec::new();
    for entry in stream["entries"].as_array().unwrap() {
        expected.push((entry[0].to_string(), entry[1].as_str().unwrap().to_string()));
        let metadata = entry[2].as_array().unwrap();
        let shown = found["data"]["result"].as_array().unwrap().iter().any(|result| {
            let has_entry = result["values"].as_array().unwrap().iter().any(|v| v[1] == entry[1]);
            // What a label names already is shown as `<name>_extracted`.
            let value_of = |name: &str| {
                [name.to_string(), format!("{name}_extracted")]
                    .iter()
                    .any(|n| metadata.iter().any(|p| p[0] == name && result["stream"][n] == p[1]))
            };
            has_entry && metadata.iter().all(|p| value_of(p[0].as_str().unwrap()))
        });
        assert!(shown, "{}: {entry} with its metadata in {found}", capture.name);
    }
    let mut lines: Vec<(String, String)> = Vec::new();
    for result in found["data"]["result"].as_array().unwrap() {
        let text = |value: &Value| value.as_str().unwrap().to_string();
        lines.extend(result["values"].as_array().unwrap().iter().map(|v| (text(&v[0]), text(&v[1]))));
    }
    expected.sort();
    lines.sort();
    assert_eq!(lines, expected, "{}", capture.name);
}

/// Reads as Grafana and logcli send them.
#[test]
fn reads_of_real_clients_are_answered() {
    let server = TestServer::with(YAML);
    let at = 1_795_364_000_000_000_000_i64;
    let labels = json!({"job": "syslog-ng", "host": "myhost"});
    let body = json!({"streams": [{"stream": labels, "values": [[at.to_string(), "level=warn one"], [(at + 1).to_string(), "two"]]}]});
    server.push_as("t1", &body.to_string()).assert_stored();
    let range = "start=1795362772717561080&end=1795366372717561080";
    let read = |path: &str, flags: &[(&str, &str)]| {
        let answer = server.send(
            "GET",
            path,
            &[&[("X-Scope-OrgID", "t1"), ("X-Query-Tags", "Source=grafana")], flags].concat(),
            b"",
        );
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some("application/json; charset=UTF-8")),
            "{path}: {}",
            answer.text()
        );
        answer.json()
    };
    let names = json!(["host", "job", "service_name"]);
    for path in [
        format!("/loki/api/v1/labels?{range}"),
        format!("/loki/api/v1/labels?{range}&query=%7Bjob%3D%22syslog-ng%22%7D"),
        "/loki/api/v1/labels?end=1795364846388753937&start=1795361246388753937".into(),
    ] {
        assert_eq!(read(&path, &[])["data"], names, "{path}");
    }
    assert_eq!(read(&format!("/loki/api/v1/label/job/values?{range}"), &[])["data"], json!(["syslog-ng"]));
    let series = json!([{"host": "myhost", "job": "syslog-ng", "service_name": "syslog-ng"}]);
    for path in [
        format!("/loki/api/v1/series?match%5B%5D=%7Bjob%3D%22syslog-ng%22%7D&{range}"),
        "/loki/api/v1/series?end=1795364847593917855&match=%7Bjob%3D~%22.%2B%22%7D&start=1795278447593917855".into(),
    ] {
        assert_eq!(read(&path, &[])["data"], series, "{path}");
    }
    let query = "query=%7Bjob%3D%22syslog-ng%22%7D+%7C%3D+%22%22";
    let newest =
        read(&format!("/loki/api/v1/query_range?{query}&{range}&limit=1&direction=backward&step=15000ms"), &[]);
    assert_eq!(newest["data"]["result"][0]["values"], json!([[(at + 1).to_string(), "two"]]), "{newest}");
    let flags = [("X-Loki-Response-Encoding-Flags", "categorize-labels")];
    let categorized = read(&format!("/loki/api/v1/query_range?{query}&{range}&limit=1&direction=forward"), &flags);
    assert_eq!(categorized["data"]["encodingFlags"], json!(["categorize-labels"]), "{categorized}");
    let expected = json!([at.to_string(), "level=warn one", {"structuredMetadata": {"detected_level": "warn"}}]);
    assert_eq!(categorized["data"]["result"][0]["values"][0], expected, "{categorized}");
    let logcli = "direction=BACKWARD&end=1795364843034834077&limit=5&query=%7Bjob%3D%22syslog-ng%22%7D&start=1795278443034834077";
    let found = read(&format!("/loki/api/v1/query_range?{logcli}"), &[]);
    let count: usize =
        found["data"]["result"].as_array().unwrap().iter().map(|s| s["values"].as_array().unwrap().len()).sum();
    assert_eq!(count, 2, "{found}");
    // What Grafana asks to see whether a data source works.
    let health = read(
        "/loki/api/v1/query?query=vector%281%29%2Bvector%281%29&time=4000000000&direction=backward&limit=100",
        &[],
    );
    assert_eq!(health["data"]["result"], json!([{"metric": {}, "value": [4_000_000_000_i64, "2"]}]));
    for (path, text) in [
        (format!("/loki/api/v1/query_range?query=%7Bjob%3D&{range}"), "parse error at line 1, col 6: syntax error: unexpected $end"),
        (
            "/loki/api/v1/query_range?query=%7Bjob%3D%22syslog-ng%22%7D&start=1795366372717561080&end=1795362772717561080".into(),
            "end timestamp must not be before or equal to start time",
        ),
    ] {
        server.send("GET", &path, &[("X-Scope-OrgID", "t1")], b"").assert_error(400, text);
    }
}
