use super::{HTTP_ALPN, ListenerConfig, Protocol, serve};
use crate::api::fakes::{Fake, fake};
use crate::api::{ApiConfig, grpc, http, tls};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const LINE: &str = r#"{"streams":[{"stream":{"a":"b"},"values":[["7","x"]]}]}"#;
const READY: &str = "GET /ready HTTP/1.1\r\nhost: x\r\n\r\n";

struct Running {
    fake: Fake,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<usize>,
}

async fn start(tls: Option<Arc<rustls::ServerConfig>>, change: impl FnOnce(&mut ListenerConfig)) -> Running {
    start_with(|_| (), tls, change).await
}

async fn start_with(
    change_api: impl FnOnce(&mut ApiConfig),
    tls: Option<Arc<rustls::ServerConfig>>,
    change: impl FnOnce(&mut ListenerConfig),
) -> Running {
    let fake = fake(change_api);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let mut config = ListenerConfig::new(Protocol::Http);
    change(&mut config);
    let api = fake.api.clone();
    let served = tokio::spawn(async move {
        let router = http::router(api.clone()).merge(grpc::router(api.clone()).reset_fallback());
        let shutdown = async { stopped.await.unwrap_or_default() };
        serve(listener, tls, router, config, api.metrics(), shutdown).await
    });
    Running { fake, address, stop, served }
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
}

fn push_head(length: usize, extra: &str) -> String {
    format!(
        "POST /loki/api/v1/push HTTP/1.1\r\nhost: x\r\nx-scope-orgid: t\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n{extra}\r\n"
    )
}

/// Everything up to the end of the connection, however it ends.
async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut all = Vec::new();
    let read = stream.read_to_end(&mut all);
    let _ = tokio::time::timeout(Duration::from_secs(10), read).await.expect("the connection ends");
    String::from_utf8_lossy(&all).into_owned()
}

/// One answer, read up to a text that ends it.
async fn until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut all = String::new();
    let mut buffer = [0; 1024];
    while !all.ends_with(end) {
        let read = stream.read(&mut buffer);
        let n = tokio::time::timeout(Duration::from_secs(10), read).await.expect("an answer").unwrap();
        assert!(n > 0, "the connection ended after {all:?}");
        all.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    all
}

async fn ask_ready(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    stream.write_all(READY.as_bytes()).await.unwrap();
    assert!(until(stream, "ready\n").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_connection_serves_many_requests_and_may_rest_longer_than_a_head() {
    let server = start(None, |c| {
        c.header_timeout = Duration::from_millis(200);
        c.idle_timeout = Duration::from_millis(1500);
    })
    .await;
    let mut stream = server.connect().await;
    ask_ready(&mut stream).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    ask_ready(&mut stream).await;
    stream.write_all(format!("{}{LINE}", push_head(LINE.len(), "")).as_bytes()).await.unwrap();
    assert!(until(&mut stream, "\r\n\r\n").await.starts_with("HTTP/1.1 204"));
    let start = Instant::now();
    assert_eq!(rest(&mut stream).await, "");
    assert!(start.elapsed() >= Duration::from_millis(1400), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_head_that_drips_ends_with_the_header_timeout() {
    let server = start(None, |c| c.header_timeout = Duration::from_millis(400)).await;
    for keep_alive in [false, true] {
        let mut stream = server.connect().await;
        if keep_alive {
            ask_ready(&mut stream).await;
        }
        let (mut read, mut write) = stream.into_split();
        let drip = tokio::spawn(async move {
            for byte in READY.bytes().cycle() {
                tokio::time::sleep(Duration::from_millis(100)).await;
                if write.write_all(&[byte]).await.is_err() {
                    break;
                }
            }
        });
        let start = Instant::now();
        rest(&mut read).await;
        assert!(start.elapsed() < Duration::from_secs(2), "keep_alive {keep_alive}: {:?}", start.elapsed());
        drip.abort();
    }
    let mut silent = server.connect().await;
    assert_eq!(rest(&mut silent).await, "");
}

#[tokio::test]
async fn what_is_no_request_is_refused_with_a_sentence() {
    let server = start(None, |_| ()).await;
    let limits = "more than 100 headers or 65536 bytes";
    for (head, status, reason) in [
        (format!("GET /ready HTTP/1.1\r\nx: {}", "y".repeat(100 << 10)), "431", limits),
        (format!("GET /ready HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(101)), "431", limits),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "y".repeat(65_535)), "431", limits),
        ("GET /ready HTTP/1.1\r\nno header\r\n\r\n".into(), "400", "does not follow the syntax"),
        ("GET /a b HTTP/1.1\r\n\r\n".into(), "400", "does not follow the syntax"),
    ] {
        let mut stream = server.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("\r\ncontent-length: {}", body.len())) && body.contains(reason), "{answer}");
    }
}

#[tokio::test]
async fn expect_100_continue_is_answered_only_when_the_body_is_wanted() {
    let server = start_with(|c| c.decode.max_compressed = 1000, None, |_| ()).await;
    let mut stream = server.connect().await;
    stream.write_all(push_head(LINE.len(), "expect: 100-continue\r\n").as_bytes()).await.unwrap();
    assert_eq!(until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(LINE.as_bytes()).await.unwrap();
    assert!(until(&mut stream, "\r\n\r\n").await.starts_with("HTTP/1.1 204"));

    let mut stream = server.connect().await;
    stream.write_all(push_head(1 << 30, "expect: 100-continue\r\n").as_bytes()).await.unwrap();
    assert!(until(&mut stream, "(1073741824 vs 1000)\n").await.starts_with("HTTP/1.1 413"));
}

#[tokio::test]
async fn a_client_that_sends_a_refused_body_still_reads_the_answer() {
    let server = start_with(|c| c.decode.max_compressed = 1000, None, |_| ()).await;
    let mut stream = server.connect().await;
    let body = vec![b' '; 8 << 20];
    stream.write_all(push_head(body.len(), "").as_bytes()).await.unwrap();
    stream.write_all(&body).await.expect("the server reads on");
    assert!(until(&mut stream, "vs 1000)\n").await.starts_with("HTTP/1.1 413"));
    // The connection is in step.
    ask_ready(&mut stream).await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let server = start(None, |c| c.max_connections = 1).await;
    let mut first = server.connect().await;
    ask_ready(&mut first).await;
    let mut second = server.connect().await;
    second.write_all(READY.as_bytes()).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(200), second.read_u8()).await;
    assert!(early.is_err(), "the second connection was served");
    drop(first);
    assert!(until(&mut second, "ready\n").await.starts_with("HTTP/1.1 200"));
    second.write_all("GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".as_bytes()).await.unwrap();
    let metrics = rest(&mut second).await;
    assert!(metrics.contains(r#"loki_tcp_connections{protocol="http"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"loki_tcp_connections_limit{protocol="http"} 1"#), "{metrics}");
}

#[tokio::test]
async fn http2_without_tls_is_spoken_on_the_http_port() {
    let server = start(None, |_| ()).await;
    let client = grpc::GrpcIngesterClient::new(&server.address.to_string(), grpc::ClientConfig::default()).unwrap();
    assert_eq!(client.health().await, Ok(()));
}

#[tokio::test]
async fn a_stop_lets_requests_finish_and_closes_what_rests() {
    let server = start(None, |_| ()).await;
    let mut idle = server.connect().await;
    ask_ready(&mut idle).await;
    let mut fresh = server.connect().await;
    let gate = server.fake.pusher.gate.acquire_many(1000).await.unwrap();
    let mut busy = server.connect().await;
    busy.write_all(format!("{}{LINE}", push_head(LINE.len(), "")).as_bytes()).await.unwrap();
    while server.fake.pusher.waiting.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    server.stop.send(()).unwrap();
    assert_eq!(rest(&mut idle).await, "");
    assert_eq!(rest(&mut fresh).await, "");
    assert!(TcpStream::connect(server.address).await.is_err());
    drop(gate);
    assert!(rest(&mut busy).await.starts_with("HTTP/1.1 204"));
    assert_eq!(server.served.await.unwrap(), 0);
}

#[tokio::test]
async fn a_stop_is_bounded() {
    let server = start(None, |c| c.drain_timeout = Duration::from_millis(200)).await;
    let _gate = server.fake.pusher.gate.acquire_many(1000).await.unwrap();
    let mut busy = server.connect().await;
    busy.write_all(format!("{}{LINE}", push_head(LINE.len(), "")).as_bytes()).await.unwrap();
    while server.fake.pusher.waiting.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    server.stop.send(()).unwrap();
    let cut = tokio::time::timeout(Duration::from_secs(5), server.served).await.unwrap().unwrap();
    assert_eq!(cut, 1);
    assert_eq!(rest(&mut busy).await, "");
}

#[tokio::test]
async fn tls_serves_its_certificate_and_refuses_plain_text() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tls");
    let config = tls::TlsConfig {
        cert_file: dir.join("server.crt"),
        key_file: dir.join("server.key"),
        client_ca_file: None,
        client_auth: tls::ClientAuth::None,
    };
    let server = start(Some(tls::load(&config, &HTTP_ALPN).unwrap()), |c| {
        c.header_timeout = Duration::from_millis(500);
    })
    .await;
    let mut secure = connector(&dir).connect("localhost".try_into().unwrap(), server.connect().await).await.unwrap();
    ask_ready(&mut secure).await;
    let mut plain = server.connect().await;
    plain.write_all(READY.as_bytes()).await.unwrap();
    assert!(!rest(&mut plain).await.contains("HTTP"));
    let mut silent = server.connect().await;
    assert_eq!(rest(&mut silent).await, "");
}

fn connector(dir: &Path) -> tokio_rustls::TlsConnector {
    use rustls_pki_types::{CertificateDer, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca.crt")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(builder.with_root_certificates(roots).with_no_client_auth()).into()
}
