use super::router;
use super::{ClientConfig, GrpcIngesterClient};
use crate::api::ApiConfig;
use crate::api::fakes::{Answer, Fake, Pushed, fake};
use crate::api::grpc::client::ClientTls;
use crate::api::pb::logproto::pusher_client::PusherClient;
use crate::api::pb::logproto::{EntryAdapter, PushRequest, StreamAdapter};
use crate::api::serve::{GRPC_ALPN, ListenerConfig, Protocol, serve};
use crate::api::tls;
use crate::distributor::IngesterClient;
use crate::model::{Entry, LabelSet, MetadataPair, Push, PushError, PushStream, Span, Tenant};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::Code;

struct Running {
    fake: Fake,
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

async fn start(change: impl FnOnce(&mut ApiConfig), tls: Option<Arc<rustls::ServerConfig>>) -> Running {
    let fake = fake(change);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let (api, config) = (fake.api.clone(), ListenerConfig::new(Protocol::Grpc));
    tokio::spawn(async move {
        let shutdown = async { stopped.await.unwrap_or_default() };
        serve(listener, tls, router(api.clone()), config, api.metrics(), shutdown).await
    });
    Running { fake, address, _stop: stop }
}

impl Running {
    fn client(&self, config: ClientConfig) -> GrpcIngesterClient {
        GrpcIngesterClient::new(&self.address.to_string(), config).unwrap()
    }

    async fn stub(&self) -> PusherClient<tonic::transport::Channel> {
        PusherClient::connect(format!("http://{}", self.address)).await.unwrap()
    }
}

fn tenant() -> Tenant {
    Tenant::new("t1").unwrap()
}

/// Two streams; the first has a line that is no UTF-8 and structured metadata.
fn two_streams() -> Arc<Push> {
    let arena = b"one\xfftwonamevalue".to_vec();
    let span = Span::new;
    let entry = |timestamp, line, metadata| Entry { timestamp, line, metadata };
    let stream = |name: &str, entries| PushStream { labels: Arc::new(LabelSet::new([("s", name)])), token: 0, entries };
    Arc::new(Push {
        arena,
        streams: vec![stream("a", 0..2), stream("b", 2..3)],
        entries: vec![
            entry(1_700_000_000_123_456_789, span(0, 4), 0..1),
            entry(-1, span(4, 3), 1..1),
            entry(5, span(0, 0), 1..1),
        ],
        metadata: vec![MetadataPair { name: span(7, 4), value: span(11, 5) }],
        ..Push::default()
    })
}

fn small() -> PushRequest {
    let entry = EntryAdapter { line: "x".into(), ..Default::default() };
    let stream = StreamAdapter { labels: r#"{a="b"}"#.into(), entries: vec![entry], hash: 0 };
    PushRequest { streams: vec![stream], format: String::new() }
}

fn with_tenant(message: PushRequest, tenant: &str) -> tonic::Request<PushRequest> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("x-scope-orgid", tenant.parse().unwrap());
    request
}

#[tokio::test]
async fn the_chosen_streams_arrive_as_they_were() {
    let server = start(|_| (), None).await;
    let client = server.client(ClientConfig::default());
    client.push(tenant(), two_streams(), vec![0, 1]).await.unwrap();
    client.push(tenant(), two_streams(), vec![1]).await.unwrap();
    let a = r#"{s="a"}"#.to_string();
    let metadata = vec![("name".to_string(), "value".to_string())];
    let b = (r#"{s="b"}"#.to_string(), 5, String::new(), vec![]);
    let both = vec![
        (a.clone(), 1_700_000_000_123_456_789, "one\u{fffd}".to_string(), metadata),
        (a, -1, "two".to_string(), vec![]),
        b.clone(),
    ];
    let expected = [Pushed { tenant: "t1".into(), entries: both }, Pushed { tenant: "t1".into(), entries: vec![b] }];
    assert_eq!(*server.fake.pusher.pushed.lock(), expected);
    assert_eq!(server.fake.budget.used(), 0);
}

#[tokio::test]
async fn errors_keep_their_http_status() {
    let server = start(|_| (), None).await;
    let client = server.client(ClientConfig::default());
    for error in [
        PushError::bad_request("too old"),
        PushError::rate_limited("slower"),
        PushError::unavailable("disk full"),
        PushError::with_status(422, "nothing"),
        PushError::bad_request("several\nlines, and ünïcode"),
    ] {
        *server.fake.pusher.answer.lock() = Answer::Result(Err(error.clone()));
        assert_eq!(client.push(tenant(), two_streams(), vec![0]).await, Err(error));
    }
}

#[tokio::test]
async fn a_very_long_error_still_arrives() {
    let server = start(|_| (), None).await;
    *server.fake.pusher.answer.lock() = Answer::Result(Err(PushError::bad_request("ü".repeat(100_000))));
    let error = server.client(ClientConfig::default()).push(tenant(), two_streams(), vec![0]).await.unwrap_err();
    assert_eq!(error.status, 400);
    assert!(error.message.starts_with("üü") && error.message.ends_with("(cut)"), "{}", error.message);
}

#[tokio::test]
async fn clients_that_know_only_grpc_get_a_standard_code() {
    let server = start(|_| (), None).await;
    let mut stub = server.stub().await;
    assert_eq!(stub.push(small()).await.unwrap_err().code(), Code::Unauthenticated);
    let status = stub.push(with_tenant(small(), "a|b")).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "multiple org IDs present"));
    *server.fake.pusher.answer.lock() = Answer::Result(Err(PushError::rate_limited("slower")));
    assert_eq!(stub.push(with_tenant(small(), "t")).await.unwrap_err().code(), Code::ResourceExhausted);
    *server.fake.status.accepts.lock() = Err(PushError::unavailable("starting"));
    let status = stub.push(with_tenant(small(), "t")).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "starting"));
}

#[tokio::test]
async fn a_panic_is_an_error_and_the_connection_lives() {
    let server = start(|_| (), None).await;
    let mut stub = server.stub().await;
    *server.fake.pusher.answer.lock() = Answer::Panic("bug 17");
    let status = stub.push(with_tenant(small(), "t")).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Internal, "error while processing request: bug 17"));
    *server.fake.pusher.answer.lock() = Answer::Result(Ok(()));
    stub.push(with_tenant(small(), "t")).await.unwrap();
    let text = metrics(&server.fake);
    assert!(text.contains("loki_panic_total 1"), "{text}");
    let count = r#"loki_request_duration_seconds_count{method="gRPC",route="/logproto.Pusher/Push",status_code="#;
    assert!(text.contains(&format!(r#"{count}"success",ws="false"}} 1"#)), "{text}");
    assert!(text.contains(&format!(r#"{count}"500",ws="false"}} 1"#)), "{text}");
}

fn metrics(fake: &Fake) -> String {
    prometheus::TextEncoder::new().encode_to_string(&fake.api.registry.gather()).unwrap()
}

#[tokio::test]
async fn a_message_above_the_limit_is_413_and_five_mib_are_fine() {
    let mut large = small();
    large.streams[0].entries[0].line = vec![b'x'; 5 << 20].into();
    let server = start(|_| (), None).await;
    server.stub().await.push(with_tenant(large.clone(), "t")).await.unwrap();
    assert_eq!(server.fake.budget.used(), 0);
    let server = start(|c| c.grpc_max_recv_msg_size = 4 << 20, None).await;
    let status = server.stub().await.push(with_tenant(large, "t")).await.unwrap_err();
    assert_eq!(super::status::to_error(&status).status, 413, "{status:?}");
    assert!(server.fake.pusher.pushed.lock().is_empty());
}

#[tokio::test]
async fn garbage_is_refused() {
    let server = start(|_| (), None).await;
    let mut bad = small();
    bad.streams[0].labels = vec![0xff].into();
    let status = server.stub().await.push(with_tenant(bad, "t")).await.unwrap_err();
    assert_eq!(super::status::to_error(&status).status, 400, "{status:?}");
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    let server = start(|_| (), None).await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", server.address)).unwrap().connect_lazy();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = axum::http::uri::PathAndQuery::from_static("/logproto.Querier/Query");
    let codec = tonic_prost::ProstCodec::<PushRequest, PushRequest>::default();
    let status = grpc.unary(tonic::Request::new(small()), path, codec).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn health_follows_readiness() {
    let server = start(|_| (), None).await;
    let client = server.client(ClientConfig::default());
    assert_eq!(client.health().await, Ok(()));
    *server.fake.status.ready.lock() = Err("replaying".into());
    assert_eq!(client.health().await, Err("health check says NOT_SERVING".into()));
}

#[tokio::test]
async fn an_absent_or_silent_ingester_is_503() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let config = ClientConfig { remote_timeout: Duration::from_millis(200), ..ClientConfig::default() };
    let silent = GrpcIngesterClient::new(&address, config.clone()).unwrap();
    let error = silent.push(tenant(), two_streams(), vec![0]).await.unwrap_err();
    assert_eq!(error.status, 503, "{error}");
    drop(listener);
    let absent = GrpcIngesterClient::new(&address, config).unwrap();
    let error = absent.push(tenant(), two_streams(), vec![0]).await.unwrap_err();
    assert_eq!(error.status, 503, "{error}");
    assert!(absent.health().await.is_err());
    assert!(GrpcIngesterClient::new("not an address", ClientConfig::default()).is_err());
}

#[tokio::test]
async fn mutual_tls_between_distributor_and_ingester() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tls");
    let server_tls = tls::TlsConfig {
        cert_file: dir.join("server.crt"),
        key_file: dir.join("server.key"),
        client_ca_file: Some(dir.join("ca.crt")),
        client_auth: tls::ClientAuth::RequireAndVerify,
    };
    let server = start(|_| (), Some(tls::load(&server_tls, &GRPC_ALPN).unwrap())).await;
    let client = |identity| {
        let tls = Some(ClientTls { ca_file: dir.join("ca.crt"), identity, server_name: Some("localhost".into()) });
        server.client(ClientConfig { tls, ..ClientConfig::default() })
    };
    let known = client(Some((dir.join("client.crt"), dir.join("client.key"))));
    known.push(tenant(), two_streams(), vec![0]).await.unwrap();
    assert_eq!(client(None).push(tenant(), two_streams(), vec![0]).await.unwrap_err().status, 503);
    assert_eq!(server.fake.pusher.pushed.lock().len(), 1);
}
