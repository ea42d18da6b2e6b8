//! The loop of a listener: accepts, TLS, connection limits, graceful stop. HTTP and gRPC go through the same.

use super::ApiMetrics;
use super::connection::{ActiveBody, Activity, TimedStream, Timeouts};
use super::raw_targets::RawTargets;
use super::told_refusals::ToldRefusals;
use crate::model::RateLimited;
use axum::Router;
use axum::http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use prometheus::{IntCounter, IntGauge};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

/// Most headers of a request; with more it is answered 431.
pub(super) const MAX_HEADERS: usize = 100;
/// Largest head of a request in bytes; above it is answered 431. Also the size of the read buffer.
pub(super) const MAX_HEAD: usize = 64 << 10;
/// Requests of one HTTP/2 connection at a time.
const MAX_STREAMS: u32 = 256;
/// What an HTTP/2 peer may send before anybody reads it, in bytes: of one request, and of all of a connection.
const STREAM_WINDOW: u32 = 512 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// How often an HTTP/2 peer is asked whether it lives, and how long it may take to answer.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long accepting rests when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often that is told.
const ACCEPT_WARNING_PERIOD: Duration = Duration::from_secs(10);

/// Protocols of the HTTP listener for TLS.
pub const HTTP_ALPN: [&str; 2] = ["h2", "http/1.1"];
/// Protocols of the gRPC listener for TLS.
pub const GRPC_ALPN: [&str; 1] = ["h2"];

/// Which listener this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 and HTTP/2, both also without TLS.
    Http,
    /// HTTP/2 only.
    Grpc,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }
}

/// Limits of one listener.
#[derive(Clone, Copy, Debug)]
pub struct ListenerConfig {
    /// Which protocol it speaks.
    pub protocol: Protocol,
    /// Connections at a time; more wait in the kernel's queue. Default 4096.
    pub max_connections: usize,
    /// For the TLS handshake, and for the head of a request from its first byte. Default 10 s.
    pub header_timeout: Duration,
    /// Between requests of a connection (`server.http_server_idle_timeout`). Default 120 s for HTTP; a gRPC connection
    /// may be idle for a day, and is asked every minute whether its peer still lives.
    pub idle_timeout: Duration,
    /// For a client that does not take its answer (`server.http_server_write_timeout`). Default 30 s.
    pub write_timeout: Duration,
    /// How long requests may go on after the stop (`server.graceful_shutdown_timeout`). Default 30 s.
    pub drain_timeout: Duration,
}

impl ListenerConfig {
    /// The defaults of a protocol.
    pub fn new(protocol: Protocol) -> Self {
        let idle = if protocol == Protocol::Http { 120 } else { 24 * 3600 };
        Self {
            protocol,
            max_connections: 4096,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(idle),
            write_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
        }
    }

    fn timeouts(&self) -> Timeouts {
        Timeouts { header: self.header_timeout, idle: self.idle_timeout, write: self.write_timeout }
    }
}

/// Serves `router` on a listener until `shutdown` resolves; then no connection is accepted, idle ones are closed, and
/// requests have [`ListenerConfig::drain_timeout`] to end. Returns the number of connections that were cut off.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    router: Router,
    config: ListenerConfig,
    metrics: &ApiMetrics,
    shutdown: impl Future<Output = ()>,
) -> usize {
    let server = Server::new(router, tls, config, metrics);
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    tokio::select! {
        () = accept(listener, Arc::new(server), &graceful, &mut connections) => (),
        () = shutdown => (),
    }
    // The listener is closed by now.
    let _ = tokio::time::timeout(config.drain_timeout, graceful.shutdown()).await;
    while connections.try_join_next().is_some() {}
    connections.len()
    // Dropping the set ends what is left.
}

/// Serves one connection as a listener would, whatever its bytes come through: for tests without a network.
#[doc(hidden)]
pub async fn serve_stream(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    config: ListenerConfig,
    metrics: &ApiMetrics,
) {
    Server::new(router, None, config, metrics).http(stream, GracefulShutdown::new().watcher()).await;
}

struct Server {
    router: Router,
    http: auto::Builder<TokioExecutor>,
    tls: Option<TlsAcceptor>,
    open: IntGauge,
    accept_errors: IntCounter,
    accept_warning: RateLimited,
    config: ListenerConfig,
}

fn http_builder(protocol: Protocol) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_headers(MAX_HEADERS).max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    match protocol {
        Protocol::Http => builder,
        Protocol::Grpc => builder.http2_only(),
    }
}

/// Accepts for ever.
async fn accept(
    listener: TcpListener,
    server: Arc<Server>,
    graceful: &GracefulShutdown,
    connections: &mut JoinSet<()>,
) {
    let slots = Arc::new(Semaphore::new(server.config.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    loop {
        // The semaphore is never closed.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let stream = server.next_stream(&listener).await;
        while connections.try_join_next().is_some() {}
        let (server, watcher) = (Arc::clone(&server), graceful.watcher());
        connections.spawn(async move {
            let _slot = slot;
            server.open.inc();
            let open = OpenGuard(server.open.clone());
            server.connection(stream, watcher).await;
            drop(open);
        });
    }
}

/// Gives the gauge back also when the task is ended from outside.
struct OpenGuard(IntGauge);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

impl Server {
    fn new(
        router: Router,
        tls: Option<Arc<rustls::ServerConfig>>,
        config: ListenerConfig,
        metrics: &ApiMetrics,
    ) -> Self {
        Self {
            router,
            http: http_builder(config.protocol),
            tls: tls.map(TlsAcceptor::from),
            open: metrics.connections(config.protocol.name(), config.max_connections),
            accept_errors: metrics.accept_errors(config.protocol.name()),
            accept_warning: RateLimited::new(ACCEPT_WARNING_PERIOD),
            config,
        }
    }

    async fn next_stream(&self, listener: &TcpListener) -> TcpStream {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return stream,
                Err(e) if concerns_one_connection(&e) => (),
                Err(error) => {
                    self.accept_errors.inc();
                    if let Some(suppressed) = self.accept_warning.due() {
                        let protocol = self.config.protocol.name();
                        tracing::warn!(
                            %error, protocol, suppressed,
                            "cannot accept connections, trying again: are there too few descriptors (ulimit -n)?"
                        );
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection(&self, stream: TcpStream, watcher: Watcher) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps Nagle's algorithm");
        }
        let Some(tls) = &self.tls else { return self.http(stream, watcher).await };
        match tokio::time::timeout(self.config.header_timeout, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.http(stream, watcher).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn http(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, watcher: Watcher) {
        let activity = Arc::new(Activity::default());
        // The limits of time see every byte, also of a line that is held back.
        let stream = TimedStream::new(stream, self.config.timeouts(), Arc::clone(&activity));
        let stream = TokioIo::new(ToldRefusals::new(RawTargets::new(stream)));
        let service = hyper::service::service_fn(|request: Request<Incoming>| {
            let active = activity.begin(request.version() == Version::HTTP_2);
            let answer = self.router.clone().oneshot(request);
            async move {
                let Ok(response) = answer.await;
                let (head, body) = response.into_parts();
                Ok::<_, Infallible>(Response::from_parts(head, ActiveBody::new(body, active)))
            }
        });
        if let Err(error) = watcher.watch(self.http.serve_connection(stream, service)).await {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}

#[cfg(test)]
mod tests;
