//! gRPC against the real binary: pushes, their errors as Loki's clients read them, health.

mod support;

use prost::Message;
use serde_json::json;
use support::{SMALL_WAL, TestServer, message, now, stream};
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
