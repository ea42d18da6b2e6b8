//! gRPC against the real binary: pushes, their errors as Loki's clients read them, health.

mod support;

use axum::body::{Body, Bytes};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use serde_json::json;
use std::io::Write;
use support::{SMALL_WAL, TestServer, gzip, memory, message, now, stream};
use timberline::api::pb::httpgrpc::{HttpResponse, RpcStatus};
use timberline::api::pb::logproto::PushRequest;
use timberline::api::pb::logproto::pusher_client::PusherClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

async fn channel(server: &TestServer) -> Channel {
    Endpoint::from_shared(format!("http://{}", server.server.grpc)).unwrap().connect().await.unwrap()
}

async fn push(server: &TestServer, tenant: &str, push: PushRequest) -> Result<(), Status> {
    let mut request = Request::new(push);
    if !tenant.is_empty() {
        request.metadata_mut().insert("x-scope-orgid", tenant.parse().unwrap());
    }
    PusherClient::new(channel(server).await).push(request).await.map(|_| ())
}

/// The HTTP status where Loki's distributors and clients look for it.
#[track_caller]
fn assert_error(status: &Status, code: Code, http: i32, text: &str) {
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(text), "{status:?}");
    let details = RpcStatus::decode(status.details()).unwrap();
    assert_eq!(details.details[0].type_url, "type.googleapis.com/httpgrpc.HTTPResponse");
    let answer = HttpResponse::decode(details.details[0].value.clone()).unwrap();
    assert_eq!(answer.code, http);
    assert!(String::from_utf8_lossy(&answer.body).contains(text), "{answer:?}");
    let retry_after = answer.headers.iter().any(|h| h.key == "Retry-After");
    assert_eq!(retry_after, matches!(http, 429 | 503), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_stored_for_its_tenant_also_after_kill_9() {
    let yaml = "auth_enabled: true\n";
    let mut server = TestServer::with(yaml);
    let at = now();
    let entries: &[(i64, &str, &[(&str, &str)])] = &[(at, "one", &[("k", "v")]), (at + 1, "two", &[])];
    push(&server, "t1", message(vec![stream(r#"{a="b"}"#, entries)])).await.unwrap();
    let expected = [(at, "one".to_string()), (at + 1, "two".to_string())];
    for _ in 0..2 {
        assert_eq!(server.lines_as("t1", r#"{a="b"}"#), expected);
        assert_eq!(server.lines_as("t2", r#"{a="b"}"#), []);
        let found = server.query("t1", r#"{a="b"} |= "one""#);
        assert_eq!(found["data"]["result"][0]["stream"]["k"], json!("v"), "{found}");
        server.kill_and_restart(&format!("{SMALL_WAL}{yaml}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_carry_the_http_status() {
    let yaml = "auth_enabled: true\nlimits_config: {max_line_size: 10MB}\noverrides: {slow: {ingestion_rate_mb: 0.001, ingestion_burst_size_mb: 0.001}}\n";
    let server = TestServer::with(yaml);
    let at = now();
    let good = || stream(r#"{a="b"}"#, &[(at, "l", &[])]);
    let error = async |tenant: &'static str, streams| push(&server, tenant, message(streams)).await.unwrap_err();
    assert_error(&error("", vec![good()]).await, Code::Unauthenticated, 401, "no org id");
    assert_error(
        &error("a/b", vec![good()]).await,
        Code::InvalidArgument,
        400,
        "tenant ID 'a/b' contains unsupported character '/'",
    );
    assert_error(&error("a|b", vec![good()]).await, Code::InvalidArgument, 400, "multiple org IDs present");
    assert_error(&error("t1", vec![]).await, Code::InvalidArgument, 422, "at least one valid stream is required");
    let long = "x".repeat(5_000);
    let fast = stream(r#"{a="b"}"#, &[(at, &long, &[])]);
    assert_error(
        &error("slow", vec![fast]).await,
        Code::ResourceExhausted,
        429,
        "ingestion rate limit exceeded for user slow",
    );
    // Only the bad stream is refused, in other words than over HTTP.
    let bad = stream("{a=b}", &[(at, "l", &[])]);
    assert_error(
        &error("t1", vec![bad, good()]).await,
        Code::InvalidArgument,
        400,
        "error parsing labels '{a=b}' with error: ",
    );
    assert_eq!(server.lines_as("t1", r#"{a="b"}"#), [(at, "l".to_string())]);
}

/// What came over gRPC is validated all the same when there is no distributor before this process.
#[tokio::test(flavor = "multi_thread")]
async fn the_single_binary_validates_pushes_over_grpc() {
    let server = TestServer::start();
    let (at, long) = (now(), "x".repeat(262_145));
    let streams = vec![stream(r#"{a="b"}"#, &[(at, &long, &[]), (at + 1, "kept", &[])])];
    let status = push(&server, "", message(streams)).await.unwrap_err();
    assert_error(&status, Code::InvalidArgument, 400, "max entry size '262144' bytes exceeded");
    assert_eq!(server.lines(r#"{a="b"}"#), [(at + 1, "kept".to_string())]);
    assert_eq!(server.lines(r#"{service_name="unknown_service"}"#).len(), 1);
}

/// Loki's 4 MiB make its own distributors fail.
#[tokio::test(flavor = "multi_thread")]
async fn messages_up_to_the_limit_are_taken() {
    let yaml = "auth_enabled: false\nlimits_config: {ingestion_rate_mb: 100, ingestion_burst_size_mb: 100, \
                per_stream_rate_limit: 100MB, per_stream_rate_limit_burst: 100MB}\n";
    let server = TestServer::with(yaml);
    let (at, line) = (now(), "x".repeat(200_000));
    let entries: Vec<(i64, &str, &[(&str, &str)])> = (0..40).map(|i| (at + i, line.as_str(), &[][..])).collect();
    push(&server, "", message(vec![stream(r#"{a="b"}"#, &entries)])).await.unwrap();
    assert_eq!(server.lines(r#"{a="b"}"#).len(), 40);
    let line = "x".repeat(200 << 10);
    let entries: Vec<(i64, &str, &[(&str, &str)])> = (0..520).map(|i| (at + i, line.as_str(), &[][..])).collect();
    let status = push(&server, "", message(vec![stream(r#"{a="c"}"#, &entries)])).await.unwrap_err();
    assert_error(&status, Code::InvalidArgument, 413, "request body too large: message size too large than max");
    assert_eq!(server.lines(r#"{a="c"}"#), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_served_as_long_as_the_server_is_ready() {
    let server = TestServer::start();
    let mut health = HealthClient::new(channel(&server).await);
    for service in ["", "logproto.Pusher"] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
    }
    let unknown = health.check(HealthCheckRequest { service: "x".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert_eq!(health.watch(HealthCheckRequest::default()).await.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_methods_are_unimplemented() {
    let server = TestServer::start();
    let mut client = tonic::client::Grpc::new(channel(&server).await);
    client.ready().await.unwrap();
    let path = "/logproto.Querier/Query".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckRequest>::default();
    let answer = client.unary(Request::new(HealthCheckRequest::default()), path, codec).await;
    assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
}

/// A call with a frame as it is: flag, length, message. Returns `grpc-status` and `grpc-message`.
async fn call(server: &TestServer, encoding: &str, flag: u8, message: &[u8]) -> (u32, String) {
    let io = TokioIo::new(tokio::net::TcpStream::connect(&server.server.grpc).await.unwrap());
    let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let frame = [&[flag][..], &(message.len() as u32).to_be_bytes(), message].concat();
    let request = hyper::Request::post(format!("http://{}/logproto.Pusher/Push", server.server.grpc))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-encoding", encoding)
        .body(Body::from(frame))
        .unwrap();
    let mut answer = client.send_request(request).await.unwrap();
    let mut trailers = answer.headers().clone();
    while !trailers.contains_key("grpc-status") {
        let mut body = std::pin::Pin::new(answer.body_mut());
        let frame = std::future::poll_fn(|cx| hyper::body::Body::poll_frame(body.as_mut(), cx)).await;
        let frame: hyper::body::Frame<Bytes> = frame.expect("a status").unwrap();
        trailers.extend(frame.into_trailers().unwrap_or_default());
    }
    let text = |name: &str| trailers.get(name).map_or("", |v| v.to_str().unwrap()).to_string();
    (text("grpc-status").parse().unwrap(), text("grpc-message"))
}

fn snappy_stream(data: &[u8]) -> Vec<u8> {
    let mut encoder = snap::write::FrameEncoder::new(Vec::new());
    encoder.write_all(data).unwrap();
    encoder.into_inner().unwrap()
}

/// What Loki's distributors send with `grpc_compression`.
#[tokio::test(flavor = "multi_thread")]
async fn compressed_messages_are_stored() {
    let server = TestServer::start();
    let at = now();
    let pushed = |form: &str| message(vec![stream(&format!("{{form={form:?}}}"), &[(at, form, &[])])]).encode_to_vec();
    let halves = |message: &[u8]| [gzip(&message[..9]), gzip(&message[9..])].concat();
    for (form, encoding, flag, bytes) in [
        ("gzip", "gzip", 1, gzip(&pushed("gzip"))),
        ("members", "gzip", 1, halves(&pushed("members"))),
        ("snappy", "snappy", 1, snappy_stream(&pushed("snappy"))),
        ("not-compressed", "gzip", 0, pushed("not-compressed")),
        ("identity", "identity", 0, pushed("identity")),
    ] {
        assert_eq!(call(&server, encoding, flag, &bytes).await, (0, String::new()), "{form}");
        assert_eq!(server.lines(&format!("{{form={form:?}}}")), [(at, form.to_string())]);
    }
    let cut = gzip(&pushed("cut"));
    for (encoding, flag, bytes, code, text) in [
        ("br", 1, &b"x"[..], Code::Unimplemented, "br"),
        ("gzip", 1, b"this is no gzip", Code::InvalidArgument, "invalid%20header"),
        ("snappy", 1, b"no snappy", Code::InvalidArgument, "snappy"),
        ("gzip", 1, &cut[..cut.len() - 9], Code::InvalidArgument, "unexpected%20EOF"),
        ("identity", 1, &cut, Code::Internal, ""),
    ] {
        let (status, said) = call(&server, encoding, flag, bytes).await;
        assert!(status == code as u32 && said.contains(text), "{encoding}: {status} {said}");
    }
}

/// A message that becomes a thousand times larger is refused before the memory is taken, also when many come at once.
#[tokio::test(flavor = "multi_thread")]
async fn compressed_bombs_take_no_memory() {
    let server =
        TestServer::with_all("auth_enabled: false\ningester: {memory_budget: 128MB, wal: {segment_size: 4MB}}\n");
    let zeros = vec![0; 90 << 20];
    let (gz, snappy) = (gzip(&zeros), snappy_stream(&zeros));
    drop(zeros);
    assert_ne!(call(&server, "gzip", 1, &gzip(b"warm")).await.0, 0);
    let before = memory(server.server.pid(), "VmHWM");
    for (encoding, bomb) in [("gzip", &gz), ("snappy", &snappy)] {
        let calls = (0..24).map(|_| call(&server, encoding, 1, bomb));
        for (status, text) in futures_util::future::join_all(calls).await {
            // Too large, or no memory left beside the others.
            let refused = [Code::InvalidArgument, Code::Unavailable].iter().any(|code| *code as u32 == status);
            assert!(refused, "{status} {text}");
        }
    }
    let grown = memory(server.server.pid(), "VmHWM") - before;
    // The budget of pushes in flight is 16 MiB; frames of HTTP/2 and stacks come on top.
    assert!(grown < 100 << 20, "grown by {} MiB", grown >> 20);
    let limited = TestServer::with("auth_enabled: false\nserver: {grpc_server_max_recv_msg_size: 1MB}\n");
    let (status, text) = call(&limited, "gzip", 1, &gzip(&vec![0; (1 << 20) + 1])).await;
    assert_eq!(status, Code::InvalidArgument as u32, "{text}");
    assert!(text.contains("decompressed%20message%20size%20too%20large"), "{text}");
}
