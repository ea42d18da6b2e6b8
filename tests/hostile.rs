//! Input made to hurt: the answer is a clear error, the process lives on, and its memory stays bounded.

mod support;

use serde_json::json;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};
use support::{
    PUSH, Reply, TestServer, connect, gzip, memory, message, now, one_stream, read_reply, send, snappy, stream,
};

const MB: u64 = 1 << 20;

/// A server that plans with this much memory; bodies in flight may take an eighth of it.
fn with_memory(budget: &str, more: &str) -> TestServer {
    TestServer::with_all(&format!(
        "auth_enabled: false\ningester: {{memory_budget: {budget}, wal: {{segment_size: 4MB}}}}\n{more}"
    ))
}

/// It still takes a push and gives it back.
#[track_caller]
fn assert_alive(server: &TestServer) {
    server.push(&one_stream(json!({"alive": "yes"}), &["still here"])).assert_stored();
    assert!(!server.lines(r#"{alive="yes"}"#).is_empty());
}

/// What the process holds above what it held, in bytes, at its peak.
struct Peak {
    pid: u32,
    before: u64,
}

impl Peak {
    fn start(server: &TestServer) -> Peak {
        let pid = server.server.pid();
        Peak { pid, before: memory(pid, "VmRSS") }
    }

    #[track_caller]
    fn assert_added_at_most(&self, limit: u64) {
        let added = memory(self.pid, "VmHWM").saturating_sub(self.before);
        println!("peak: {} MB more", added / MB);
        assert!(added <= limit, "{} MB more, at most {} are allowed", added / MB, limit / MB);
    }
}

/// As small as it gets.
fn best_gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn best_deflate(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn raw_snappy(data: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(data).unwrap()
}

/// As large as they may be, on a machine as large as it is.
#[test]
fn sixty_four_bombs_at_once_stay_within_300_mb() {
    let server = TestServer::start();
    assert_alive(&server);
    let json_type = ("Content-Type", "application/json");
    let protobuf_type = ("Content-Type", "application/x-protobuf");
    let gzipped = ("Content-Encoding", "gzip");
    let spaces = |mib: usize| vec![b' '; mib << 20];
    let line = "x".repeat(100 << 20);
    let in_json = json!({"streams": [{"stream": {"a": "bomb"}, "values": [[now().to_string(), line]]}]}).to_string();
    let in_protobuf = message(vec![stream(r#"{a="bomb"}"#, &[(now(), &line, &[])])]);
    let bombs = [
        (vec![json_type, gzipped], best_gzip(&spaces(256))),
        (vec![json_type, gzipped], best_gzip(&spaces(190))),
        (vec![json_type, gzipped], best_gzip(in_json.as_bytes())),
        (vec![json_type, ("Content-Encoding", "deflate")], best_deflate(&spaces(180))),
        (vec![protobuf_type], raw_snappy(&spaces(180))),
        (vec![protobuf_type], snappy(&in_protobuf)),
        (vec![protobuf_type, gzipped], best_gzip(&snappy(&in_protobuf))),
    ];
    drop((line, in_json, in_protobuf));
    assert!(bombs.iter().all(|(_, body)| body.len() < 12 << 20));
    let peak = Peak::start(&server);
    let answers: Vec<Reply> = thread::scope(|scope| {
        let send = |i: usize| {
            let (headers, body) = &bombs[i % bombs.len()];
            server.send("POST", PUSH, headers, body)
        };
        let clients: Vec<_> = (0..64).map(|i| scope.spawn(move || send(i))).collect();
        clients.into_iter().map(|c| c.join().unwrap()).collect()
    });
    peak.assert_added_at_most(300 * MB);
    let mut decoded = 0;
    for answer in answers {
        decoded += usize::from([400, 422].contains(&answer.status));
        match answer.status {
            400 => answer.assert_error(400, ""),
            422 => answer.assert_error(422, "at least one valid stream"),
            413 => answer.assert_error(413, "send smaller batches"),
            _ => answer.assert_error(503, ""),
        }
    }
    assert!(decoded > 0, "none was decoded");
    assert_eq!(server.lines(r#"{a="bomb"}"#), []);
    assert_alive(&server);
}

/// A size that is only announced costs nothing.
#[test]
fn announced_sizes_are_refused_before_anything_is_allocated() {
    let server = TestServer::start();
    let peak = Peak::start(&server);
    // Snappy: a varint of 4 GiB - 1, then nothing; and one that fits 32 bits and is above the limit.
    let headers = [("Content-Type", "application/x-protobuf")];
    for length in [&[0xff, 0xff, 0xff, 0xff, 0x0f][..], &[0x81, 0x80, 0x80, 0x80, 0x01]] {
        let mut body = length.to_vec();
        body.extend_from_slice(&[0; 100]);
        let answer = server.send("POST", PUSH, &headers, &body);
        assert!([400, 413].contains(&answer.status), "{}: {}", answer.status, answer.text());
        answer.assert_error(answer.status, "");
    }
    // More than an int32 of zeros in 2 MB of gzip is cut off at the limit: 300 MB here.
    let zeros = gzip(&vec![b' '; 300 << 20]);
    let headers = [("Content-Type", "application/json"), ("Content-Encoding", "gzip")];
    server.send("POST", PUSH, &headers, &zeros).assert_error(413, "request body too large: ");
    peak.assert_added_at_most(300 * MB);
    assert_alive(&server);
}

#[test]
fn a_body_of_a_gigabyte_is_413() {
    let server = TestServer::start();
    let peak = Peak::start(&server);
    let head = |framing: &str| {
        format!("POST {PUSH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{framing}\r\n\r\n")
    };
    let mut announced = connect(&server.server.addr);
    announced.write_all(head("Content-Length: 1073741824").as_bytes()).unwrap();
    // Sends on as clients do; the server reads a part of it so that the answer is not lost.
    let block = vec![b' '; 1 << 20];
    for _ in 0..20 {
        announced.write_all(&block).unwrap();
    }
    read_reply(&mut announced)
        .unwrap()
        .assert_error(413, "request body too large: message size too large than max (1073741824 vs 104857600)");

    let mut chunked = connect(&server.server.addr);
    chunked.write_all(head("Transfer-Encoding: chunked").as_bytes()).unwrap();
    let chunk = [b"100000\r\n", &block[..], b"\r\n"].concat();
    for _ in 0..110 {
        if chunked.write_all(&chunk).is_err() {
            break;
        }
    }
    read_reply(&mut chunked).unwrap().assert_error(413, "request body too large: message size too large than max (");
    peak.assert_added_at_most(300 * MB);
    assert_alive(&server);
}

#[test]
fn deep_json_is_400() {
    let server = TestServer::start();
    let deep = 1_000_000;
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        let nested = format!("{}1{}", open.repeat(deep), close.repeat(deep));
        for body in [
            nested.clone(),
            format!(r#"{{"x":{nested}}}"#),
            format!(r#"{{"streams":[{{"stream":{{"a":{nested}}}}}]}}"#),
            format!(r#"{{"streams":[{{"stream":{{"a":"b"}},"values":[["{}","l",{nested}]]}}]}}"#, now()),
            format!("{{\"x\":{}", open.repeat(deep)),
        ] {
            server.push(&body).assert_error(400, "");
        }
    }
    // A line may be what it likes, also where a level is looked for in it.
    let line = format!("{{\"a\":{}1{}}}", "[".repeat(50_000), "]".repeat(50_000));
    server.push(&one_stream(json!({"deep": "line"}), &[&line])).assert_stored();
    assert_alive(&server);
}

#[test]
fn text_that_is_not_utf8() {
    let server = TestServer::start();
    let raw = |bytes: &'static [u8]| prost::bytes::Bytes::from_static(bytes);
    let push = |change: fn(&mut timberline::api::pb::logproto::StreamAdapter, prost::bytes::Bytes)| {
        let mut one = stream(r#"{utf8="no"}"#, &[(now(), "line", &[("k", "v")])]);
        change(&mut one, raw(b"{utf8=\"\xff\xfe\"}"));
        server.send("POST", PUSH, &[("Content-Type", "application/x-protobuf")], &snappy(&message(vec![one])))
    };
    push(|s, bad| s.labels = bad).assert_error(400, "UTF-8");
    push(|s, bad| s.entries[0].structured_metadata[0].value = bad).assert_error(400, "UTF-8");
    push(|s, bad| s.entries[0].structured_metadata[0].name = bad).assert_error(400, "UTF-8");
    assert_eq!(server.lines(r#"{utf8="no"}"#), []);
    // Lines are bytes.
    push(|s, bad| s.entries[0].line = bad).assert_stored();
    let lines = server.lines(r#"{utf8="no"}"#);
    assert!(lines.len() == 1 && lines[0].1.contains('\u{fffd}'), "{lines:?}");
    let json: &[u8] = b"{\"streams\":[{\"stream\":{\"a\":\"\xff\"},\"values\":[[\"1\",\"l\"]]}]}";
    server.send("POST", PUSH, &[("Content-Type", "application/json")], json).assert_error(400, "UTF-8");
    for target in
        ["/loki/api/v1/query_range?query=%ff%fe", "/loki/api/v1/label/%ff/values", "/loki/api/v1/series?match[]=%00"]
    {
        let answer = server.get(target);
        assert!((200..500).contains(&answer.status), "{target}: {}", answer.status);
    }
    assert_alive(&server);
}

/// A tenant's name is data, never a path.
#[test]
fn tenants_leave_no_trace_in_the_file_system() {
    let server = TestServer::with("auth_enabled: true\n");
    let names = |server: &TestServer| {
        let mut names = Vec::new();
        let mut dirs = vec![server.dir.path().to_path_buf()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    dirs.push(entry.path());
                }
                names.push(entry.path());
            }
        }
        // Segments come and go.
        names.retain(|n| !n.parent().is_some_and(|dir| dir.ends_with("data/wal")));
        names.sort();
        names
    };
    let before = names(&server);
    for tenant in ["../x", "..", "/etc/passwd", "a\\b", "%2e%2e%2fx", "\u{e9}"] {
        let answer = server.push_as(tenant, &one_stream(json!({"a": "b"}), &["l"]));
        answer.assert_error(400, "tenant ID");
    }
    for tenant in ["LOCK", "identity", "wal", "...", "con"] {
        server.push_as(tenant, &one_stream(json!({"a": "b"}), &["l"])).assert_stored();
    }
    let bytes = b"POST /loki/api/v1/push HTTP/1.1\r\nHost: x\r\nX-Scope-OrgID: \xff\xfe\r\nContent-Length: 0\r\n\r\n";
    let mut connection = connect(&server.server.addr);
    connection.write_all(bytes).unwrap();
    read_reply(&mut connection).unwrap().assert_error(400, "");
    assert_eq!(names(&server), before);
}

#[test]
fn heads_without_end_are_cut_off() {
    let server = TestServer::start();
    let peak = Peak::start(&server);
    let endless = |piece: &[u8]| {
        let mut connection = connect(&server.server.addr);
        connection.write_all(b"POST /loki/api/v1/push HTTP/1.1\r\nHost: x\r\n").unwrap();
        for sent in 0.. {
            if connection.write_all(piece).is_err() {
                break;
            }
            assert!(sent * piece.len() < 64 << 20, "64 MB of a head were taken");
        }
        // 431 or a closed connection: a reset may overtake the answer.
        if let Ok(answer) = read_reply(&mut connection) {
            assert!([400, 431].contains(&answer.status), "{}", answer.status);
        }
    };
    endless("X-A: b\r\n".repeat(1000).as_bytes());
    endless(&[b'x'; 8000]);
    let many = (0..200).map(|i| format!("X-{i}: b\r\n")).collect::<String>();
    let mut connection = connect(&server.server.addr);
    connection.write_all(format!("GET /ready HTTP/1.1\r\nHost: x\r\n{many}\r\n").as_bytes()).unwrap();
    assert_eq!(read_reply(&mut connection).unwrap().status, 431);
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
    ] {
        let mut connection = connect(&server.server.addr);
        connection.write_all(garbage).unwrap();
        if let Ok(answer) = read_reply(&mut connection) {
            assert!((400..600).contains(&answer.status), "{garbage:?}: {}", answer.status);
        }
    }
    peak.assert_added_at_most(64 * MB);
    assert_alive(&server);
}

/// All answers on a connection, until it is closed or, after the first, nothing comes any more.
fn answers(connection: &mut std::net::TcpStream) -> Vec<u16> {
    let mut patience = Duration::from_secs(10);
    std::iter::from_fn(|| {
        connection.set_read_timeout(Some(patience)).unwrap();
        patience = Duration::from_millis(500);
        read_reply(connection).ok().map(|answer| answer.status)
    })
    .collect()
}

/// A body whose length a proxy may read in another way is how a second request is smuggled past it.
#[test]
fn requests_with_doubtful_lengths_are_refused() {
    let server = TestServer::start();
    let smuggled = r#"{"streams":[{"stream":{"a":"smuggled"},"values":[["1","x"]]}]}"#;
    let inner = format!(
        "POST {PUSH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{smuggled}",
        smuggled.len()
    );
    for head in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 6",
        "Content-Length: +5",
        "Content-Length: 0x5",
        "Content-Length: -1",
        "Content-Length: 99999999999999999999",
        "Content-Length : 5",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
    ] {
        let mut connection = connect(&server.server.addr);
        let text = format!(
            "POST {PUSH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{head}\r\n\r\n0\r\n\r\n{inner}"
        );
        connection.write_all(text.as_bytes()).unwrap();
        assert_eq!(answers(&mut connection), [400], "{head}");
    }
    // HTTP/1.0 knows no chunks.
    let mut connection = connect(&server.server.addr);
    let text = format!("POST {PUSH} HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}");
    connection.write_all(text.as_bytes()).unwrap();
    assert_eq!(answers(&mut connection), [400]);
    // Chunks whose sizes are none.
    for chunk in ["-1\r\nx", "g\r\nx", "ffffffffffffffffff\r\nx", "2\r\nxxx\r\n0\r\n\r\n"] {
        let mut connection = connect(&server.server.addr);
        let text = format!(
            "POST {PUSH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}\r\n"
        );
        connection.write_all(text.as_bytes()).unwrap();
        let answers = answers(&mut connection);
        assert!(answers.iter().all(|status| *status == 400) && answers.len() <= 1, "{chunk:?}: {answers:?}");
    }
    assert_eq!(server.lines(r#"{a="smuggled"}"#), []);
    assert_alive(&server);
}

/// Peers that go away in the middle, with a reset or with half of the connection, leave nothing behind.
#[test]
fn connections_that_break_off_leave_nothing_behind() {
    let server = TestServer::start();
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", server.server.pid())).unwrap().count();
    assert_alive(&server);
    let (before, peak) = (descriptors(), Peak::start(&server));
    let head =
        format!("POST {PUSH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n");
    for i in 0..500 {
        let mut connection = connect(&server.server.addr);
        match i % 3 {
            // An answer that was not read when the socket is closed makes a reset.
            0 => connection
                .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                .unwrap(),
            1 => connection.write_all(format!("{head}{{\"streams\":[").as_bytes()).unwrap(),
            _ => {
                connection.write_all(head.as_bytes()).unwrap();
                connection.shutdown(std::net::Shutdown::Write).unwrap();
            }
        }
    }
    let begun = Instant::now();
    while descriptors() > before + 20 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{} descriptors, {before} before", descriptors());
        thread::sleep(Duration::from_millis(50));
    }
    peak.assert_added_at_most(64 * MB);
    assert_alive(&server);
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Streams that are opened and reset at once, without end (CVE-2023-44487), and headers that go on without end.
#[test]
fn rapid_resets_and_endless_headers_of_http_2_end_the_connection() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let server = TestServer::start();
    assert_alive(&server);
    let peak = Peak::start(&server);
    // Indexed: POST, http. Literal: path, authority, content-type (RFC 7541, section 6).
    let path = b"/logproto.Pusher/Push";
    let headers =
        [&[0x83, 0x86, 0x04, path.len() as u8][..], path, &[0x01, 1, b'x', 0x0F, 0x10, 16], b"application/grpc"]
            .concat();
    let flood = |frames: &dyn Fn(u32) -> Vec<u8>| {
        let mut connection = connect(&server.server.grpc);
        connection.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat()).unwrap();
        connection.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
        // Until it is closed on us, or waits for us to read what it says.
        (0..400_000u32).take_while(|n| connection.write_all(&frames(*n)).is_ok()).count()
    };
    let resets = flood(&|n| {
        let stream = 2 * n + 1;
        [frame(1, 4, stream, &headers), frame(3, 0, stream, &8u32.to_be_bytes())].concat()
    });
    println!("{resets} streams were reset");
    assert!(resets < 400_000, "nobody minds");
    // One head without its end, and pieces of it.
    let pieces = flood(&|n| {
        if n == 0 { frame(1, 0, 1, &headers) } else { frame(9, 0, 1, &[0x00, 1, b'a', 1, b'b'].repeat(200)) }
    });
    println!("{pieces} pieces of a head were taken");
    assert!(pieces < 400_000, "nobody minds");
    peak.assert_added_at_most(64 * MB);
    assert_alive(&server);
}

/// Heads and bodies that drip, and peers that say nothing, end after their time.
#[test]
fn slow_clients_are_sent_away() {
    let server = TestServer::start();
    let impatient = TestServer::with("auth_enabled: false\nserver: {http_server_read_timeout: 2s}\n");
    let drip = |addr: &str, start: &str| {
        let mut connection = connect(addr);
        connection.write_all(start.as_bytes()).unwrap();
        let begun = Instant::now();
        connection.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        loop {
            let dripped = connection.write_all(b"x");
            match read_reply(&mut connection) {
                Ok(answer) => return (begun.elapsed(), Some(answer)),
                Err(e) if [std::io::ErrorKind::WouldBlock, std::io::ErrorKind::TimedOut].contains(&e.kind()) => (),
                Err(_) => return (begun.elapsed(), None),
            }
            if dripped.is_err() {
                return (begun.elapsed(), None);
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "nobody minds");
        }
    };
    let head = "POST /loki/api/v1/push HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n";
    let (took, answer) = drip(&impatient.server.addr, head);
    answer.expect("an answer").assert_error(503, "the request body came too slowly");
    assert!(took < Duration::from_secs(6), "{took:?}");
    // A hundred of them at once, and everybody else goes on.
    thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| {
                let (took, _) = drip(&server.server.addr, "POST /loki/api/v1/push HTTP/1.1\r\nX-Slow: ");
                assert!(took < Duration::from_secs(15), "{took:?}");
            });
        }
        thread::sleep(Duration::from_millis(500));
        let start = Instant::now();
        assert_alive(&server);
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    });
}

#[test]
fn new_streams_without_end_are_bounded() {
    let streams = |from: usize, n: usize| {
        let at = now().to_string();
        let one = |i: usize| json!({"stream": {"pod": format!("pod-{i}"), "app": "flood"}, "values": [[at, "l"]]});
        json!({"streams": (from..from + n).map(one).collect::<Vec<_>>()}).to_string()
    };
    let push = |server: &TestServer, from: usize| {
        let body = streams(from, 1000);
        send(&server.server.addr, "POST", PUSH, &[("Content-Type", "application/json")], body.as_bytes())
    };
    // The limit holds to the stream, and refused streams cost nothing that stays.
    let server = TestServer::with("auth_enabled: false\nlimits_config: {max_global_streams_per_user: 2500}\n");
    let peak = Peak::start(&server);
    for i in 0..50 {
        let answer = push(&server, i * 1000);
        match i {
            0 | 1 => answer.assert_stored(),
            _ => answer.assert_error(429, "maximum active stream limit exceeded when trying to create stream {"),
        }
    }
    let metrics = server.get("/metrics").text();
    assert!(metrics.contains("loki_ingester_memory_streams{tenant=\"fake\"} 2500\n"), "the limit is exact");
    peak.assert_added_at_most(150 * MB);
    assert_alive_in(&server);
    // Without a limit memory is the limit.
    let server = with_memory("800MB", "limits_config: {max_global_streams_per_user: 0}\n");
    let peak = Peak::start(&server);
    for i in 0..50 {
        let answer = push(&server, i * 1000);
        assert!([204, 429, 503].contains(&answer.status), "{}: {}", answer.status, answer.text());
    }
    peak.assert_added_at_most(300 * MB);
    assert_eq!(server.get("/ready").status, 200);
}

/// A million new streams against the limits as they are: those above the limit get a clear 429, and cost nothing that
/// stays.
#[test]
fn a_million_new_streams_are_refused_above_the_limit() {
    const BODIES: usize = 20;
    const STREAMS: usize = 50_000;
    const LIMIT: usize = 5000;
    let server = TestServer::start();
    let peak = Peak::start(&server);
    let body = |n: usize| {
        let labels = |i: usize| format!(r#"{{app="flood", pod="pod-{}"}}"#, n * STREAMS + i);
        snappy(&message((0..STREAMS).map(|i| stream(&labels(i), &[(now(), "l", &[])])).collect()))
    };
    let mut resident = Vec::new();
    for n in 0..BODIES {
        let answer = server.send("POST", PUSH, &[("Content-Type", "application/x-protobuf")], &body(n));
        // What fits the limit is stored; the answer tells of the rest.
        answer.assert_error(429, "maximum active stream limit exceeded when trying to create stream {");
        assert!(answer.body.len() < 300 << 10, "an answer of {} bytes", answer.body.len());
        resident.push(memory(server.server.pid(), "VmRSS"));
    }
    println!("resident after each body, MB: {:?}", resident.iter().map(|r| r / MB).collect::<Vec<_>>());
    let metrics = server.get("/metrics").text();
    let has = |line: String| assert!(metrics.contains(&line), "{line} is not in /metrics");
    has(format!("loki_ingester_memory_streams{{tenant=\"fake\"}} {LIMIT}\n"));
    let refused = BODIES * STREAMS - LIMIT;
    let told = metrics.lines().filter(|l| l.starts_with("loki_discarded_samples_total{") && l.contains("stream_limit"));
    assert_eq!(told.filter_map(|l| l.rsplit(' ').next()?.parse::<usize>().ok()).sum::<usize>(), refused);
    assert!(metrics.len() < 200 << 10, "{} bytes of metrics", metrics.len());
    // A body of 50,000 streams takes up to 100 MB while it is in work: its texts, and for each stream its labels, parsed
    // and sorted, and its error. Twenty of them, one behind the other, take as much as one.
    peak.assert_added_at_most(200 * MB);
    // 900,000 refused streams later: a set of labels that stayed for each of them would be 200 MB and more.
    let grown = resident[BODIES - 1].saturating_sub(resident[1]);
    assert!(grown <= 80 * MB, "{} MB more after 900,000 refused streams", grown / MB);
    // Reads go on, and so do the streams that are there.
    assert_eq!(server.lines(r#"{pod="pod-4999"}"#).len(), 1);
    assert_eq!(server.lines(r#"{pod="pod-5000"}"#), []);
    let values = server.get("/loki/api/v1/label/pod/values?start=0&end=9000000000000000000").json();
    assert_eq!(values["data"].as_array().unwrap().len(), LIMIT);
    assert_alive_in(&server);
}

/// A refused stream is told with its labels, which may be large, and there may be thousands of them.
#[test]
fn what_is_told_about_refused_streams_is_bounded() {
    let server = with_memory(
        "4GB",
        "limits_config: {max_global_streams_per_user: 1, ingestion_rate_mb: 1000, ingestion_burst_size_mb: 1000}\n",
    );
    let (at, value) = (now().to_string(), "v".repeat(2000));
    let one = |i: usize| {
        let mut labels: serde_json::Map<_, _> = (0..14).map(|l| (format!("label_{l}"), json!(value))).collect();
        labels.insert("n".into(), json!(i.to_string()));
        json!({"stream": labels, "values": [[at, "l"]]})
    };
    let body = json!({"streams": (0..1000).map(one).collect::<Vec<_>>()}).to_string();
    let answer = server.push(&body);
    answer.assert_error(429, "maximum active stream limit exceeded when trying to create stream {");
    answer.assert_error(429, " more streams, whose errors find no room here");
    assert!(answer.body.len() < 300 << 10, "{} bytes", answer.body.len());
    assert_eq!(server.lines(r#"{n=~".+"}"#).len(), 1);
}

/// As [`assert_alive`], with a stream that exists.
fn assert_alive_in(server: &TestServer) {
    server.push(&one_stream(json!({"pod": "pod-0", "app": "flood"}), &["still here"])).assert_stored();
}

#[test]
fn many_idle_connections_keep_nobody_out() {
    let server = TestServer::start();
    let idle: Vec<_> = (0..500).map(|_| connect(&server.server.addr)).collect();
    assert_alive(&server);
    drop(idle);
    assert_alive(&server);
}
