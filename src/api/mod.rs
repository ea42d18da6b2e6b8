//! HTTP and gRPC: listeners, routes, tenancy, request bodies, status codes. What a push or a read means is behind
//! [`Pusher`], [`Reader`] and [`Status`].

pub mod decode;
pub mod grpc;
pub mod http;
pub mod pb;
pub mod serve;
pub mod tls;

mod answer;
mod body;
mod connection;
mod metrics;
mod pages;
mod raw_targets;
mod tenancy;
mod told_refusals;

#[cfg(test)]
mod fakes;

pub use metrics::ApiMetrics;

use crate::distributor::Pusher;
use crate::model::{PushError, Tenant};
use decode::{Budget, DecodeLimits};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Everything that the routes work with. HTTP and gRPC share one.
pub struct Api {
    backends: Backends,
    budget: Arc<Budget>,
    config: ApiConfig,
    registry: prometheus::Registry,
    metrics: ApiMetrics,
    /// One permit for each read that may run at a time.
    reads: Arc<Semaphore>,
    /// One permit for each large body that may be decoded at a time: decoding takes a core.
    decodes: Arc<Semaphore>,
    /// The page of figures is made once at a time: it costs a walk over all streams.
    overview: Arc<Semaphore>,
}

/// What the routes call.
pub struct Backends {
    /// Takes pushes that came over HTTP: the distributor.
    pub pusher: Arc<dyn Pusher>,
    /// Takes pushes that came over gRPC: the distributor with `-target=distributor`, else the local ingester, so that a
    /// push that was already routed never enters the ring again.
    pub grpc_pusher: Arc<dyn Pusher>,
    /// Answers reads.
    pub reader: Arc<dyn Reader>,
    /// Answers the operational pages.
    pub status: Arc<dyn Status>,
}

/// Settings of the routes. [`ApiConfig::new`] has Loki's values where Loki has the setting.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Is `X-Scope-OrgID` required? Default true.
    pub auth_enabled: bool,
    /// The tenant of every request when it is not. Default `fake`.
    pub no_auth_tenant: Tenant,
    /// Largest pushes, as sent and as decoded. Over gRPC only the latter.
    pub decode: DecodeLimits,
    /// Largest message over gRPC in bytes (`server.grpc_server_max_recv_msg_size`). Default 100 MiB; Loki's 4 MiB make
    /// large pushes fail.
    pub grpc_max_recv_msg_size: usize,
    /// How long a body may make no progress (`server.http_server_read_timeout`). Default 30 s.
    pub read_timeout: Duration,
    /// How long a request waits for memory of the in-flight budget, and for its turn to be decoded, before it is answered
    /// 503. Default 2 s.
    pub budget_wait: Duration,
    /// Reads that run at a time. Default 16.
    pub max_concurrent_reads: usize,
    /// How long a read waits for its turn before it is answered 503. Default 10 s.
    pub read_queue_wait: Duration,
    /// What `/loki/api/v1/status/buildinfo` and `loki_build_info` say.
    pub build: BuildInfo,
}

impl ApiConfig {
    /// Loki's defaults, for the given tenant of requests without authentication.
    pub fn new(no_auth_tenant: Tenant) -> Self {
        Self {
            auth_enabled: true,
            no_auth_tenant,
            decode: DecodeLimits::default(),
            grpc_max_recv_msg_size: 100 << 20,
            read_timeout: Duration::from_secs(30),
            budget_wait: Duration::from_secs(2),
            max_concurrent_reads: 16,
            read_queue_wait: Duration::from_secs(10),
            build: BuildInfo::default(),
        }
    }
}

/// Where the binary comes from.
#[derive(Clone, Debug)]
pub struct BuildInfo {
    /// Version of the package.
    pub version: String,
    /// Commit, or `unknown`.
    pub revision: String,
    /// Branch, or `unknown`; without one `HEAD`.
    pub branch: String,
    /// RFC 3339, or empty.
    pub build_date: String,
}

impl Default for BuildInfo {
    fn default() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            revision: env!("TIMBERLINE_REVISION").into(),
            branch: env!("TIMBERLINE_BRANCH").into(),
            build_date: String::new(),
        }
    }
}

/// A read of the query API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadCall {
    /// `/loki/api/v1/query_range`
    QueryRange,
    /// `/loki/api/v1/query`
    Query,
    /// `/loki/api/v1/labels`
    Labels,
    /// `/loki/api/v1/label/<name>/values`
    LabelValues(String),
    /// `/loki/api/v1/series`
    Series,
}

/// Answers reads. Called on a blocking thread.
pub trait Reader: Send + Sync + 'static {
    /// `params` are those of the form, then those of the query string, decoded, in order. `encoding_flags` is the header
    /// `X-Loki-Response-Encoding-Flags`. Returns the JSON body.
    ///
    /// # Errors
    /// HTTP status and text, without a trailing newline.
    fn handle(
        &self,
        tenant: &Tenant,
        call: ReadCall,
        params: &[(String, String)],
        encoding_flags: Option<&str>,
    ) -> Result<Vec<u8>, (u16, String)>;
}

/// The process as its operators see it. No method blocks but [`Status::overview_json`].
pub trait Status: Send + Sync + 'static {
    /// Body of `/ready`: with 200, where it starts with `ready`.
    ///
    /// # Errors
    /// Body of the 503: what is not ready, and how far it is.
    fn ready(&self) -> Result<String, String>;

    /// May pushes come in? Asked before a body is read.
    ///
    /// # Errors
    /// 503 while starting or stopping.
    fn accepts_pushes(&self) -> Result<(), PushError>;

    /// The configuration in force as YAML, secrets masked.
    fn config_yaml(&self) -> String;

    /// Lines `<module> => <state>`.
    fn services(&self) -> String;

    /// The ring as JSON: `{"shards":[...],"now":...}`.
    fn ring_json(&self) -> String;

    /// Figures on one page, as JSON. Called on a blocking thread.
    fn overview_json(&self) -> String;

    /// The level that the log has now.
    fn log_level(&self) -> String;

    /// Changes the level of the log.
    ///
    /// # Errors
    /// A text that says which levels there are.
    fn set_log_level(&self, level: &str) -> Result<(), String>;
}

impl Api {
    /// Registers its metrics in `registry`, which `/metrics` shows.
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn new(
        backends: Backends,
        budget: Arc<Budget>,
        config: ApiConfig,
        registry: prometheus::Registry,
    ) -> Result<Arc<Self>, prometheus::Error> {
        let metrics = ApiMetrics::register(&registry, &config.build)?;
        let reads = Arc::new(Semaphore::new(config.max_concurrent_reads.clamp(1, Semaphore::MAX_PERMITS)));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let decodes = Arc::new(Semaphore::new(cores));
        let overview = Arc::new(Semaphore::new(1));
        Ok(Arc::new(Self { backends, budget, config, registry, metrics, reads, decodes, overview }))
    }

    /// The metrics of listeners and routes; [`serve::serve`] wants them.
    pub fn metrics(&self) -> &ApiMetrics {
        &self.metrics
    }
}
