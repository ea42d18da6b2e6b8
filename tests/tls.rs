//! TLS on both ports from the keys of the configuration, and the health check that asks there.

mod support;

use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{PUSH, SMALL_WAL, Server, connect, encode, free_port, message, now, one_stream, stream};
use timberline::api::pb::logproto::pusher_client::PusherClient;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tls").join(name)
}

/// A server with TLS on both ports; `more` goes to the settings of HTTP.
fn start(dir: &Path, more: &str) -> Server {
    let pair =
        format!("cert_file: {}, key_file: {}", testdata("server.crt").display(), testdata("server.key").display());
    let yaml = format!(
        "auth_enabled: false\ncommon: {{path_prefix: {}}}\n{SMALL_WAL}\
         server: {{http_tls_config: {{{pair}{more}}}, grpc_tls_config: {{{pair}}}}}\n",
        dir.join("data").display()
    );
    Server::spawn_with(dir, (free_port(), free_port()), &yaml, &[])
}

/// `-health` with the server's own configuration.
fn health(server: &Server) -> Output {
    let port = server.addr.rsplit_once(':').unwrap().1;
    Command::new(env!("CARGO_BIN_EXE_timberline"))
        .arg(format!("-config.file={}", server.dir.join("config.yaml").display()))
        .arg(format!("-server.http-listen-port={port}"))
        .arg("-health")
        .output()
        .unwrap()
}

fn wait_healthy(server: &mut Server) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let asked = health(server);
        if asked.status.success() {
            assert_eq!(asked.stdout, b"ready\n");
            return;
        }
        let why = String::from_utf8_lossy(&asked.stderr);
        assert!(server.ended().is_none() && Instant::now() < deadline, "{why}; log: {}", server.log_tail());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Status and body of one request, by a client that knows the authority.
fn https(server: &Server, method: &str, target: &str, body: &str) -> (u16, String) {
    use rustls_pki_types::{CertificateDer, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(testdata("ca.crt")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connection = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, connect(&server.addr));
    let head = "Host: localhost\r\nConnection: close\r\nContent-Type: application/json";
    let request = format!("{method} {target} HTTP/1.1\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_string())
}

/// Everything that a client without TLS gets.
fn in_the_clear(addr: &str) -> Vec<u8> {
    let mut plain: TcpStream = connect(addr);
    plain.write_all(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // However the connection ends.
    let _ = plain.read_to_end(&mut answer);
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ports_speak_tls_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = start(dir.path(), "");
    wait_healthy(&mut server);
    let pushed = https(&server, "POST", PUSH, &one_stream(json!({"over": "https"}), &["one"]));
    assert_eq!(pushed, (204, String::new()));
    let ca = Certificate::from_pem(std::fs::read(testdata("ca.crt")).unwrap());
    let tls = ClientTlsConfig::new().ca_certificate(ca).domain_name("localhost");
    let channel = Endpoint::from_shared(format!("https://{}", server.grpc)).unwrap().tls_config(tls).unwrap();
    let mut pusher = PusherClient::new(channel.connect().await.unwrap());
    pusher.push(message(vec![stream(r#"{over="grpc"}"#, &[(now(), "two", &[])])])).await.unwrap();
    let query = encode(r#"{over=~".+"}"#);
    let (status, found) = https(&server, "GET", &format!("/loki/api/v1/query_range?query={query}"), "");
    assert!(status == 200 && found.contains("\"one\"") && found.contains("\"two\""), "{status} {found}");
    for addr in [&server.addr, &server.grpc] {
        let answer = in_the_clear(addr);
        assert!(!String::from_utf8_lossy(&answer).contains("HTTP"), "{answer:?}");
    }
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn a_health_check_tells_why_it_cannot_ask() {
    let dir = tempfile::tempdir().unwrap();
    let ca = testdata("ca.crt");
    let mutual = format!(", client_ca_file: {}, client_auth_type: RequireAndVerifyClientCert", ca.display());
    let server = start(dir.path(), &mutual);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !support::try_connect(&server.addr) {
        assert!(Instant::now() < deadline, "{}", server.log_tail());
        std::thread::sleep(Duration::from_millis(20));
    }
    let asked = health(&server);
    let why = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert_eq!(asked.status.code(), Some(1), "{why}");
    assert!(why.contains("the listener asks for a client's certificate, and -health has none"), "{why}");
    server.kill();
}
