//! Requests that real clients sent, byte for byte: each is answered 204, and its lines are read back.

mod support;

use serde_json::Value;
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
                [name.to_string(), format!("{name}_extracted")].iter().any(|n| metadata.iter().any(|p| p[0] == name && result["stream"][n] == p[1]))
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
