//! An HTTP client for pushes: one connection at a time, plain or with TLS.

use crate::inspect::InspectError;
use axum::body::{Body, to_bytes};
use bytes::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const PUSH: &str = "/loki/api/v1/push";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a server's text that are shown.
const MAX_TEXT: usize = 4 << 10;
/// Where systems keep the authorities that they trust.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What became of a push.
pub enum Outcome {
    /// The server has it.
    Stored,
    /// Try again, after the time that the server asks for.
    Busy(String, Option<Duration>),
    /// Trying again does not help.
    Refused(String),
}

/// A server.
pub struct Client {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
    connection: Option<SendRequest<Body>>,
}

type Failure = Box<dyn Error + Send + Sync>;

impl Client {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// It is no URL of a server, or there are no authorities to trust.
    pub fn new(url: &str, ca_file: Option<&Path>) -> Result<Self, InspectError> {
        let usage = |why: &str| InspectError::Tool {
            what: format!("{url:?} {why}"),
            next: "the same command with --to http://HOST:PORT".to_string(),
            code: 2,
        };
        let uri: Uri = url.parse().map_err(|e| usage(&format!("is no URL: {e}")))?;
        let (default, tls) = match uri.scheme_str() {
            Some("http") => (80, None),
            Some("https") => (443, Some(connector(ca_file)?)),
            _ => return Err(usage("does not begin with http:// or https://")),
        };
        let authority = uri.authority().ok_or_else(|| usage("names no server"))?;
        if authority.as_str().contains('@') {
            return Err(usage("has a user's name in it, which is not supported"));
        }
        let (host, port) = (authority.host().to_string(), authority.port_u16().unwrap_or(default));
        // hyper sends what the path says; a bare server means Loki's own.
        let path = if matches!(uri.path(), "" | "/") { PUSH } else { uri.path() };
        let query = uri.query().map_or_else(String::new, |q| format!("?{q}"));
        let target = format!("{path}{query}").parse().map_err(|e| usage(&format!("is no URL: {e}")))?;
        Ok(Self { uri: target, host: host.trim_matches(['[', ']']).to_string(), port, tls, connection: None })
    }

    /// Pushes snappy-compressed protobuf.
    pub async fn push(&mut self, tenant: &str, body: Bytes) -> Outcome {
        let reused = self.connection.is_some();
        let mut answer = tokio::time::timeout(ANSWER_TIMEOUT, self.exchange(tenant, body.clone())).await;
        if reused && matches!(answer, Ok(Err(_))) {
            // The server may close a connection that was idle: that tells nothing of the push.
            answer = tokio::time::timeout(ANSWER_TIMEOUT, self.exchange(tenant, body)).await;
        }
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => {
                self.connection = None;
                return Outcome::Busy(format!("{}:{}: {}", self.host, self.port, chain(&*e)), None);
            }
            Err(_elapsed) => {
                self.connection = None;
                let after = ANSWER_TIMEOUT.as_secs();
                return Outcome::Busy(format!("{}:{}: no answer in {after} s", self.host, self.port), None);
            }
        };
        let (status, wait, text) = answer;
        match status.as_u16() {
            // Loki answers other successes, such as 260, for pushes that it throws away.
            200 | 204 => Outcome::Stored,
            429 | 500..=599 => Outcome::Busy(format!("status {status}: {text}"), wait),
            _ => Outcome::Refused(format!("status {status}: {text}")),
        }
    }

    async fn exchange(&mut self, tenant: &str, body: Bytes) -> Result<(StatusCode, Option<Duration>, String), Failure> {
        let mut connection = match self.connection.take().filter(|c| !c.is_closed()) {
            Some(connection) => connection,
            None => {
                tokio::time::timeout(CONNECT_TIMEOUT, self.connect()).await.map_err(|_| "no connection in 10 s")??
            }
        };
        connection.ready().await?;
        let request = Request::post(self.uri.clone())
            .header(HOST, format!("{}:{}", self.host, self.port))
            .header(CONTENT_TYPE, "application/x-protobuf")
            .header(USER_AGENT, concat!("wal-inspect/", env!("CARGO_PKG_VERSION")))
            .header("X-Scope-OrgID", tenant)
            .body(Body::from(body))?;
        let answer = connection.send_request(request).await?;
        let (status, wait) = (answer.status(), retry_after(&answer));
        // A longer text would have to be read to its end before the connection can be used again: it is given up.
        let text = to_bytes(Body::new(answer.into_body()), MAX_TEXT).await;
        if let Ok(text) = text {
            self.connection = Some(connection);
            return Ok((status, wait, String::from_utf8_lossy(&text).trim().to_string()));
        }
        Ok((status, wait, "(the server's text is too long to be shown)".to_string()))
    }

    async fn connect(&self) -> Result<SendRequest<Body>, Failure> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => drive(stream).await,
            Some(tls) => drive(tls.connect(ServerName::try_from(self.host.clone())?, stream).await?).await,
        }
    }
}

async fn drive(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<SendRequest<Body>, Failure> {
    let (sender, connection) = handshake(TokioIo::new(io)).await?;
    // Its end shows at the next request.
    tokio::spawn(connection);
    Ok(sender)
}

/// Seconds; a date is passed over.
fn retry_after<B>(answer: &Response<B>) -> Option<Duration> {
    let seconds = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// An error with its causes: the last one says what happened.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

fn connector(ca_file: Option<&Path>) -> Result<TlsConnector, InspectError> {
    let named = ca_file.map(Path::to_path_buf).or_else(|| std::env::var_os("SSL_CERT_FILE").map(PathBuf::from));
    let bundle = named.or_else(|| BUNDLES.iter().map(PathBuf::from).find(|path| path.is_file()));
    let failed = |what: String| InspectError::Tool {
        what,
        next: "the same command with --ca-file FILE, the authority of the server in PEM".to_string(),
        code: 3,
    };
    let path = bundle.ok_or_else(|| failed("no authorities to trust were found on this system".to_string()))?;
    let wrong = |why: String| failed(format!("cannot use the authorities in {}: {why}", path.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&path).map_err(|e| wrong(e.to_string()))? {
        let certificate = certificate.map_err(|e| wrong(e.to_string()))?;
        // A bundle of a system has certificates that this library does not know.
        let added = roots.add(certificate);
        if ca_file.is_some() {
            added.map_err(|e| wrong(e.to_string()))?;
        }
    }
    if roots.is_empty() {
        return Err(wrong("it holds none".to_string()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| wrong(e.to_string()))?;
    Ok(TlsConnector::from(Arc::new(builder.with_root_certificates(roots).with_no_client_auth())))
}
