//! `-health`: a container's health check, without a runtime.

use super::config::units::show_duration;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{AlertDescription, ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest time for the health check as a whole.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes read of its answer.
const MAX_ANSWER: u64 = 64 << 10;

/// Asks a URL (`http://host[:port][/path]`, or with `https`) and returns the first line of the answer's body if the
/// status is 200.
///
/// A server's certificate is taken as it is. The question is whether the process on this machine serves, nothing secret is
/// sent, and who could listen on its port in its place could as well have a certificate of its own accepted: a container's
/// own listener is asked by a loopback address, which its certificate need not name. To verify the file that is
/// configured would be worse: when it has been renewed, a server that still has the old one would be killed as unhealthy.
///
/// # Errors
/// The URL is none, nobody answers within 5 seconds, or the status is another one; the text says which.
pub fn health(url: &str) -> Result<String, String> {
    let (rest, port, tls) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
        (Some(rest), _) => (rest, 80, false),
        (_, Some(rest)) => (rest, 443, true),
        (None, None) => return Err(format!("{url:?} is not an http:// or https:// URL")),
    };
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    if rest.chars().any(|c| c.is_control() || c == ' ') || authority.is_empty() {
        return Err(format!("{url:?} is not a URL"));
    }
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let address = if has_port { authority.to_string() } else { format!("{authority}:{port}") };
    let answer = exchange(&address, authority, path, tls).map_err(|e| format!("{url}: {}", told(&e)))?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let body = body.lines().next().unwrap_or("").to_string();
    match status {
        Some(200) => Ok(body),
        Some(code) => Err(format!("{url}: status {code}: {body}")),
        None => Err(format!("{url}: the answer is not HTTP")),
    }
}

fn exchange(address: &str, host: &str, path: &str, tls: bool) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + TIMEOUT;
    let stream = Timed { stream: connect(address, deadline)?, deadline };
    // One write: a packet for each piece of a format is needless.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: timberline-health\r\n\r\n");
    if tls { ask(secured(stream)?, &request) } else { ask(stream, &request) }
}

fn ask(mut stream: impl Read + Write, request: &str) -> io::Result<Vec<u8>> {
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    match stream.take(MAX_ANSWER).read_to_end(&mut answer) {
        // Who ends a TLS connection without its goodbye has said all the same what there was to say.
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && !answer.is_empty() => Ok(answer),
        Err(e) => Err(e),
        Ok(_) => Ok(answer),
    }
}

/// A name may have several addresses (`localhost`: `::1` and `127.0.0.1`); the first that answers counts.
fn connect(address: &str, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&candidate, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn secured(stream: Timed) -> io::Result<StreamOwned<ClientConnection, Timed>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    // Nobody compares the name with a certificate.
    let name = ServerName::from(stream.stream.peer_addr()?.ip());
    let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    Ok(StreamOwned::new(connection, stream))
}

/// Takes every certificate; [`health`] says why.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A connection that ends at a deadline, however often it is read.
struct Timed {
    stream: TcpStream,
    deadline: Instant,
}

impl Read for Timed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(left(self.deadline)?))?;
        self.stream.read(into).map_err(late)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(left(self.deadline)?))?;
        self.stream.write(bytes).map_err(late)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(timeout()) } else { Ok(left) }
}

fn late(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => timeout(),
        _ => error,
    }
}

fn timeout() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no whole answer within {}", show_duration(TIMEOUT)))
}

/// The error, and what to do where that is not plain.
fn told(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)) => {
            "the listener asks for a client's certificate, and -health has none: use client_auth_type \
             VerifyClientCertIfGiven, or a client that has one, such as curl --cert"
                .to_string()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Answers one request with these bytes.
    fn answering(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).unwrap();
            assert!(request[..read].starts_with(b"GET /ready HTTP/1.0\r\nHost: 127.0.0.1:"));
            stream.write_all(answer.as_bytes()).unwrap();
        });
        format!("http://{address}/ready")
    }

    #[test]
    fn health_tells_what_the_server_says() {
        assert_eq!(health(&answering("HTTP/1.1 200 OK\r\nX: y\r\n\r\nready\n")), Ok("ready".to_string()));
        let refused = health(&answering("HTTP/1.1 503 Unavailable\r\n\r\nreplaying 31 %\n")).unwrap_err();
        assert!(refused.ends_with(": status 503: replaying 31 %"), "{refused}");
        assert!(health(&answering("nonsense")).unwrap_err().ends_with("the answer is not HTTP"));
    }

    #[test]
    fn health_without_a_server_fails() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert!(health(&format!("http://127.0.0.1:{port}/ready")).is_err());
        for url in ["ftp://127.0.0.1/ready", "ready", "http:///ready", "http://a b/", "http://a\r\nX: y/"] {
            assert!(health(url).is_err(), "{url}");
        }
    }
}
