//! What the tests of the real binary share: starting it, and plain requests whose answers are seen whole.
#![allow(dead_code)]

#[path = "../../recovery-tests/support/server.rs"]
pub mod server;

use prost::Message;
use serde_json::{Value, json};
pub use server::{Server, encode, free_port};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use timberline::api::pb::logproto::{EntryAdapter, LabelPairAdapter, PushRequest, StreamAdapter, Timestamp};

pub const PUSH: &str = "/loki/api/v1/push";
pub const LEGACY_PUSH: &str = "/api/prom/push";
/// Small segments, so that a test's server is ready in no time.
pub const SMALL_WAL: &str = "ingester: {wal: {segment_size: 4MB}}\n";

/// A server with Loki's limits and what `yaml` says, in a directory that goes away with it.
pub struct TestServer {
    pub server: Server,
    /// Removed after the server is ended: fields are dropped in order.
    pub dir: tempfile::TempDir,
}

impl TestServer {
    /// One tenant, Loki's limits.
    pub fn start() -> TestServer {
        Self::with("auth_enabled: false\n")
    }

    /// `yaml` is all of the configuration but `server`, `common` and `ingester`.
    pub fn with(yaml: &str) -> TestServer {
        Self::with_all(&format!("{SMALL_WAL}{yaml}"))
    }

    /// `yaml` is all of the configuration but `server` and `common`.
    pub fn with_all(yaml: &str) -> TestServer {
        Self::again(tempfile::tempdir().unwrap(), yaml)
    }

    /// On a directory that is there.
    pub fn again(dir: tempfile::TempDir, yaml: &str) -> TestServer {
        let mut server = spawn(dir.path(), yaml);
        server.wait_ready();
        TestServer { server, dir }
    }

    pub fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        send(&self.server.addr, method, target, headers, body)
    }

    pub fn get(&self, target: &str) -> Reply {
        self.send("GET", target, &[], b"")
    }

    /// A JSON push of a body as it is.
    pub fn push(&self, body: &str) -> Reply {
        self.push_as("", body)
    }

    /// A JSON push of a tenant.
    pub fn push_as(&self, tenant: &str, body: &str) -> Reply {
        let headers = [("Content-Type", "application/json"), ("X-Scope-OrgID", tenant)];
        let used = if tenant.is_empty() { &headers[..1] } else { &headers[..] };
        self.send("POST", PUSH, used, body.as_bytes())
    }

    /// Timestamps and lines of a selector, oldest first.
    pub fn lines(&self, selector: &str) -> Vec<(i64, String)> {
        self.lines_as("", selector)
    }

    pub fn lines_as(&self, tenant: &str, selector: &str) -> Vec<(i64, String)> {
        let mut out = Vec::new();
        for result in self.query(tenant, selector)["data"]["result"].as_array().unwrap() {
            for value in result["values"].as_array().unwrap() {
                out.push((value[0].as_str().unwrap().parse().unwrap(), value[1].as_str().unwrap().to_string()));
            }
        }
        out.sort_by_key(|(timestamp, _)| *timestamp);
        out
    }

    /// The whole answer of a query over all times, oldest first.
    pub fn query(&self, tenant: &str, selector: &str) -> Value {
        let target = format!(
            "/loki/api/v1/query_range?query={}&start=0&end=9000000000000000000&limit=5000&direction=forward",
            encode(selector)
        );
        let answer = self.send("GET", &target, &[("X-Scope-OrgID", tenant)], b"");
        assert_eq!(answer.status, 200, "{selector}: {}", answer.text());
        answer.json()
    }

    /// Kills the server and starts it again on the same directory.
    pub fn kill_and_restart(&mut self, yaml: &str) {
        self.server.kill_in_place();
        self.server = spawn(self.dir.path(), yaml);
        self.server.wait_ready();
    }
}

/// Starts a server and does not wait.
pub fn spawn(dir: &std::path::Path, yaml: &str) -> Server {
    let config = format!("common: {{path_prefix: {}}}\n{yaml}", dir.join("data").display());
    Server::spawn_with(dir, (free_port(), free_port()), &config, &[])
}

/// An answer of HTTP/1.1.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Every error is text with a newline, and says when to come back if that helps.
    #[track_caller]
    pub fn assert_error(&self, status: u16, part: &str) {
        let text = self.text();
        assert_eq!(self.status, status, "{text}");
        assert!(text.contains(part), "expected {part:?} in {text:?}");
        assert!(text.ends_with('\n'), "{text:?}");
        assert_eq!(self.header("content-type"), Some("text/plain; charset=utf-8"), "{text}");
        assert_eq!(self.header("retry-after").is_some(), matches!(status, 429 | 503), "{text}");
    }

    /// A stored push: nothing but the status.
    #[track_caller]
    pub fn assert_stored(&self) {
        assert_eq!((self.status, self.text().as_str()), (204, ""), "{:?}", self.headers);
        assert_eq!(self.header("content-type"), None);
    }
}

/// One request on a connection of its own.
pub fn send(addr: &str, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let mut head = format!(
        "{method} {target} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let mut message = (head + "\r\n").into_bytes();
    message.extend_from_slice(body);
    let mut connection = connect(addr);
    connection.write_all(&message).unwrap();
    read_reply(&mut connection).unwrap()
}

/// Does somebody listen there?
pub fn try_connect(addr: &str) -> bool {
    TcpStream::connect(addr).is_ok()
}

pub fn connect(addr: &str) -> TcpStream {
    let connection = TcpStream::connect(addr).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
    connection.set_write_timeout(Some(Duration::from_secs(40))).unwrap();
    connection.set_nodelay(true).unwrap();
    connection
}

/// One answer, whether or not the connection stays open behind it.
pub fn read_reply(connection: &mut TcpStream) -> std::io::Result<Reply> {
    let other = |why: String| std::io::Error::other(why);
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
        read_some(connection, &mut bytes)?;
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut body = bytes.split_off(end + 4);
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default();
    let status =
        first.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| other(format!("no status: {first}")))?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_string()))
        .collect();
    let length = headers.iter().find(|(n, _)| n == "content-length").map_or(0, |(_, v)| v.parse().unwrap());
    assert!(!headers.iter().any(|(n, _)| n == "transfer-encoding"), "answers have their length: {head}");
    while body.len() < length {
        read_some(connection, &mut body)?;
    }
    Ok(Reply { status, headers, body })
}

fn read_some(connection: &mut TcpStream, into: &mut Vec<u8>) -> std::io::Result<()> {
    let mut buffer = [0; 16 << 10];
    match connection.read(&mut buffer)? {
        0 => Err(std::io::Error::other(format!("closed after {:?}", String::from_utf8_lossy(into)))),
        n => {
            into.extend_from_slice(&buffer[..n]);
            Ok(())
        }
    }
}

/// Nanoseconds since the Unix epoch.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64
}

/// A JSON push of one stream, its lines now and later by a nanosecond each.
pub fn one_stream(labels: Value, lines: &[&str]) -> String {
    let now = now();
    let values: Vec<Value> = lines.iter().enumerate().map(|(i, l)| json!([(now + i as i64).to_string(), l])).collect();
    json!({"streams": [{"stream": labels, "values": values}]}).to_string()
}

/// Name and value.
pub type Pair<'a> = (&'a str, &'a str);

/// A stream of a protobuf push: timestamp, line, metadata.
pub fn stream(labels: &str, entries: &[(i64, &str, &[Pair<'_>])]) -> StreamAdapter {
    let bytes = |text: &str| prost::bytes::Bytes::copy_from_slice(text.as_bytes());
    let entry = |(at, line, metadata): &(i64, &str, &[Pair<'_>])| EntryAdapter {
        timestamp: Some(Timestamp {
            seconds: at.div_euclid(1_000_000_000),
            nanos: at.rem_euclid(1_000_000_000) as i32,
        }),
        line: bytes(line),
        structured_metadata: metadata
            .iter()
            .map(|(n, v)| LabelPairAdapter { name: bytes(n), value: bytes(v) })
            .collect(),
    };
    StreamAdapter { labels: bytes(labels), entries: entries.iter().map(entry).collect(), hash: 0 }
}

pub fn message(streams: Vec<StreamAdapter>) -> PushRequest {
    PushRequest { streams, format: String::new() }
}

/// The body of a protobuf push over HTTP.
pub fn snappy(message: &PushRequest) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(&message.encode_to_vec()).unwrap()
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Memory of a process in bytes: a field of `/proc/PID/status` such as `VmHWM`.
pub fn memory(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with(field)).unwrap_or_else(|| panic!("no {field} in {status}"));
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
