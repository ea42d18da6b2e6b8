//! Requests made to hurt.

use crate::support::{gzip, message, snappy, stream};
use serde_json::json;

pub struct Bomb {
    pub name: &'static str,
    pub headers: Vec<(&'static str, &'static str)>,
    pub body: Vec<u8>,
}

const TENANT: (&str, &str) = ("X-Scope-OrgID", "red");
const JSON: (&str, &str) = ("Content-Type", "application/json");
const GZIP: (&str, &str) = ("Content-Encoding", "gzip");
const PROTOBUF: (&str, &str) = ("Content-Type", "application/x-protobuf");

/// Small bodies that become large, sizes that are only announced, nesting without end.
pub fn bombs() -> Vec<Bomb> {
    let bomb = |name, headers: &[(&'static str, &'static str)], body| Bomb {
        name,
        headers: [&[TENANT], headers].concat(),
        body,
    };
    let line = "x".repeat(32 << 20);
    let in_json = json!({"streams": [{"stream": {"a": "bomb"}, "values": [["1", line]]}]}).to_string();
    let deep = |open: &str, close: &str| format!("{}1{}", open.repeat(500_000), close.repeat(500_000)).into_bytes();
    let announced = |length: &[u8]| [length, &[0; 100]].concat();
    vec![
        bomb("gzip", &[JSON, GZIP], gzip(in_json.as_bytes())),
        bomb("gzip of blanks", &[JSON, GZIP], gzip(&vec![b' '; 300 << 20])),
        bomb("gzip in gzip", &[JSON, GZIP], gzip(&gzip(in_json.as_bytes()))),
        bomb("snappy", &[PROTOBUF], snappy(&message(vec![stream("{a=\"bomb\"}", &[(1, &line, &[])])]))),
        bomb("snappy that announces 4 GiB", &[PROTOBUF], announced(&[0xff, 0xff, 0xff, 0xff, 0x0f])),
        bomb("snappy that announces 256 MiB", &[PROTOBUF], announced(&[0x81, 0x80, 0x80, 0x80, 0x01])),
        bomb("deep arrays", &[JSON], deep("[", "]")),
        bomb("deep objects", &[JSON], deep("{\"a\":", "}")),
        bomb("not snappy", &[PROTOBUF], in_json.as_bytes()[..1 << 20].to_vec()),
    ]
}
