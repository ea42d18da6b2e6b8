//! From a decoded push to the ingesters: validation, limits, rate limits, hash ring, replication.

mod assemble;
mod labels;
pub mod level;
mod metrics;
mod pool;
mod rate;
mod rejection;
mod replicate;

pub use labels::{LabelCache, LabelLevel, Resolved, StreamLabels};
pub use metrics::Metrics;
pub use pool::{ClientPool, Connect, PoolConfig};
pub use rejection::{LabelRejection, Reason};

use crate::model::{Agent, Amount, Limits, Overrides, Push, PushError, PushRequest, Tenant, Traffic, WallClock};
use crate::ring::SharedRing;
use assemble::{Assembled, assemble};
use parking_lot::RwLock;
use prometheus::Registry;
use rate::RateLimiter;
use rejection::Rejections;
use replicate::Replicator;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A boxed future, for traits that are used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Something that takes a decoded push: the distributor, or an ingester that validates what it gets.
pub trait Pusher: Send + Sync + 'static {
    /// Stores the push. Returns when every line that it stored is on disk, also with an error that concerns only a
    /// part of the push.
    ///
    /// `format` names the decoder (`loki`, `otlp`) for metrics. A label text that does not parse refuses the whole
    /// request, as Loki's HTTP decoder does.
    fn push(&self, tenant: Tenant, request: PushRequest, format: &'static str) -> BoxFuture<'_, Result<(), PushError>>;

    /// As [`Pusher::push`] for a request that came over gRPC: a stream whose labels do not parse is refused alone.
    fn push_grpc(&self, tenant: Tenant, request: PushRequest) -> BoxFuture<'_, Result<(), PushError>> {
        self.push(tenant, request, "")
    }
}

/// One ingester as the distributor sees it: in this process without encoding, elsewhere over gRPC.
pub trait IngesterClient: Send + Sync + 'static {
    /// Stores the streams with these indices in `push.streams`. Returns when what was stored is on disk.
    fn push(&self, tenant: Tenant, push: Arc<Push>, streams: Vec<u32>) -> BoxFuture<'static, Result<(), PushError>>;

    /// Is the ingester there and serving? One in this process always is. The caller sets the timeout.
    fn check(&self) -> BoxFuture<'static, Result<(), PushError>> {
        Box::pin(async { Ok(()) })
    }
}

/// How a tenant's ingestion rate is shared by distributors (`ingestion_rate_strategy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RateStrategy {
    /// Each distributor allows the whole rate.
    Local,
    /// Each allows the rate divided by the number of healthy distributors. The burst is not divided.
    #[default]
    Global,
}

/// Settings of a [`Distributor`]; the defaults are Loki's.
#[derive(Clone, Copy, Debug)]
pub struct DistributorConfig {
    /// Default global.
    pub ingestion_rate_strategy: RateStrategy,
    /// Distributors that share a global rate; default 1.
    pub healthy_distributors: usize,
    /// Ingesters that hold a stream, behind a ring; default 1 (Loki's is 3).
    pub replication_factor: usize,
    /// Longest call to one ingester behind a ring (`ingester_client.remote_timeout`); default 5 s.
    pub remote_timeout: Duration,
    /// Label texts that are remembered; default 100 000.
    pub label_cache_entries: usize,
    /// Memory for them, in bytes; default 64 MiB.
    pub label_cache_bytes: usize,
}

impl Default for DistributorConfig {
    fn default() -> Self {
        Self {
            ingestion_rate_strategy: RateStrategy::default(),
            healthy_distributors: 1,
            replication_factor: 1,
            remote_timeout: Duration::from_secs(5),
            label_cache_entries: 100_000,
            label_cache_bytes: 64 << 20,
        }
    }
}

/// Where validated pushes go.
pub enum Route {
    /// All streams to the ingester of this process: one direct call, no ring.
    Local(Arc<dyn IngesterClient>),
    /// Each stream to the ingesters that the ring names.
    Ring {
        /// The ring as it is now.
        ring: Arc<SharedRing>,
        /// Clients of its ingesters. The owner runs [`ClientPool::check_forever`].
        pool: Arc<ClientPool>,
    },
}

enum Destination {
    Local(Arc<dyn IngesterClient>),
    Replicated(Replicator),
}

/// Validates pushes and hands them to ingesters.
pub struct Distributor {
    config: DistributorConfig,
    overrides: RwLock<Arc<Overrides>>,
    labels: LabelCache,
    rates: RateLimiter,
    destination: Destination,
    metrics: Metrics,
    clock: Arc<WallClock>,
    traffic: Arc<Traffic>,
}

/// What a label text that does not parse means for the rest of its request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SyntaxErrors {
    RefuseRequest,
    RefuseStream,
}

/// Longest label text of a stream, in bytes, as in Loki.
const MAX_LABELS_TEXT: u32 = 1 << 24;

impl Distributor {
    /// # Errors
    /// The registry already has one of the metrics.
    pub fn new(
        config: DistributorConfig,
        overrides: Arc<Overrides>,
        route: Route,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        let metrics = Metrics::register(registry)?;
        metrics.replication_factor.set(config.replication_factor as i64);
        let destination = match route {
            Route::Local(client) => Destination::Local(client),
            Route::Ring { ring, pool } => Destination::Replicated(Replicator {
                ring,
                pool,
                replication_factor: config.replication_factor,
                remote_timeout: config.remote_timeout,
                metrics: metrics.clone(),
            }),
        };
        Ok(Self {
            labels: LabelCache::new(config.label_cache_entries, config.label_cache_bytes),
            config,
            overrides: RwLock::new(overrides),
            rates: RateLimiter::default(),
            destination,
            metrics,
            clock: Arc::default(),
            traffic: Arc::default(),
        })
    }

    /// With the clock that others ask, too.
    #[must_use]
    pub fn with_clock(self, clock: Arc<WallClock>) -> Self {
        Self { clock, ..self }
    }

    /// Counts pushes where others can see them.
    #[must_use]
    pub fn with_traffic(self, traffic: Arc<Traffic>) -> Self {
        Self { traffic, ..self }
    }

    /// Replaces the limits. They hold from the next push on.
    pub fn set_overrides(&self, overrides: Arc<Overrides>) {
        *self.overrides.write() = overrides;
    }

    /// The metrics, so that an ingester in this process counts what it discards in the same vectors.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    async fn distribute(
        &self,
        tenant: Tenant,
        request: PushRequest,
        format: &'static str,
        syntax: SyntaxErrors,
    ) -> Result<(), PushError> {
        if request.streams.is_empty() {
            self.count_zero_streams(&tenant, "pre-validation");
            let message = "error at least one valid stream is required for ingestion";
            return Err(PushError::with_status(422, message));
        }
        let limits = Arc::clone(self.overrides.read().of(&tenant));
        let (now, doubt) = self.clock.look();
        let agent = request.agent.clone();
        let resolved = self.resolve(&tenant, &request, &limits, syntax).inspect_err(|_| {
            let (lines, bytes) = volume_of(&request);
            let mut all = Rejections::default();
            all.discard(Reason::InvalidLabels, lines, bytes);
            self.discarded(&all, &tenant, format, &agent);
        })?;
        let Assembled { push, accepted, received, mut rejections } = assemble(request, &resolved, &limits, now);
        self.metrics.received(&received, tenant.as_str(), format);
        self.traffic.pushed(&tenant, received.amount());

        let mut errors = Vec::new();
        if push.streams.is_empty() {
            self.count_zero_streams(&tenant, "post-validation");
        } else if let Err(error) = self.check_rate(&tenant, &limits, accepted.lines, accepted.bytes) {
            rejections.discard(Reason::RateLimited, accepted.lines, accepted.bytes);
            rejections.streams.extend(amounts_of(&push).map(|(labels, amount)| (labels, Reason::RateLimited, amount)));
            errors.push(error);
        } else {
            errors.extend(self.send(tenant.clone(), Arc::new(push), now).await.err());
        }
        self.discarded(&rejections, &tenant, format, &agent);
        // Of a clock that is put right meanwhile, too: what is refused was compared with the wrong time.
        let doubt = rejections.by_time().then(|| doubt.or_else(|| self.clock.doubt())).flatten();
        if let Some(doubt) = doubt {
            errors.push(PushError::unavailable(format!("{doubt}; until then send again what is too old or too new")));
        }
        errors.extend(rejections.into_error());
        combine(errors).map_or(Ok(()), Err)
    }

    fn discarded(&self, rejections: &Rejections, tenant: &Tenant, format: &str, agent: &Agent) {
        self.metrics.discarded(rejections, tenant.as_str(), format);
        for (reason, (lines, bytes)) in Reason::ALL.into_iter().zip(rejections.discarded) {
            if lines > 0 {
                self.traffic.refused(tenant, reason.as_str(), Amount { lines, bytes }, agent);
            }
        }
        for (labels, reason, amount) in &rejections.streams {
            self.traffic.refused_stream(tenant, labels, reason.as_str(), *amount, agent);
        }
    }

    /// The labels of each stream. Over gRPC a stream without entries is not looked at.
    fn resolve(
        &self,
        tenant: &Tenant,
        request: &PushRequest,
        limits: &Arc<Limits>,
        syntax: SyntaxErrors,
    ) -> Result<Vec<Option<Resolved>>, PushError> {
        let mut resolved = Vec::with_capacity(request.streams.len());
        for stream in &request.streams {
            if syntax == SyntaxErrors::RefuseStream && stream.entries.is_empty() {
                resolved.push(None);
                continue;
            }
            if stream.labels.len > MAX_LABELS_TEXT {
                return Err(PushError::too_large(format!(
                    "request body too large: stream labels size {} exceeds limit of {MAX_LABELS_TEXT}",
                    stream.labels.len
                )));
            }
            let text = std::str::from_utf8(stream.labels.of(&request.arena))
                .map_err(|e| PushError::bad_request(format!("couldn't parse labels: they are not UTF-8: {e}")))?;
            let labels = self.labels.resolve(tenant, text, limits);
            if let (Err(LabelRejection::Syntax(error)), SyntaxErrors::RefuseRequest) = (&*labels, syntax) {
                return Err(PushError::bad_request(format!("couldn't parse labels: {error}")));
            }
            resolved.push(Some(labels));
        }
        Ok(resolved)
    }

    fn check_rate(&self, tenant: &Tenant, limits: &Limits, lines: u64, bytes: u64) -> Result<(), PushError> {
        let sharers = match self.config.ingestion_rate_strategy {
            RateStrategy::Local => 1,
            RateStrategy::Global => self.config.healthy_distributors.max(1),
        };
        let rate = limits.ingestion_rate / sharers as f64;
        if self.rates.allow(tenant.as_str(), bytes, rate, limits.ingestion_burst_size, Instant::now()) {
            return Ok(());
        }
        Err(PushError::rate_limited(format!(
            "ingestion rate limit exceeded for user {tenant} (limit: {} bytes/sec) while attempting to ingest '{lines}' \
             lines totaling '{bytes}' bytes, reduce log volume or contact your Loki administrator to see if the limit \
             can be increased",
            rate as u64
        )))
    }

    async fn send(&self, tenant: Tenant, push: Arc<Push>, now: i64) -> Result<(), PushError> {
        match &self.destination {
            Destination::Local(client) => {
                self.metrics.appends.with_label_values(&["local"]).inc();
                let streams = (0..push.streams.len() as u32).collect();
                client.push(tenant, push, streams).await
            }
            Destination::Replicated(replicator) => replicator.push(tenant, push, now.div_euclid(1_000_000_000)).await,
        }
    }

    fn count_zero_streams(&self, tenant: &Tenant, stage: &str) {
        self.metrics.zero_streams.with_label_values(&[tenant.as_str(), stage]).inc();
    }
}

impl Pusher for Distributor {
    fn push(&self, tenant: Tenant, request: PushRequest, format: &'static str) -> BoxFuture<'_, Result<(), PushError>> {
        Box::pin(self.distribute(tenant, request, format, SyntaxErrors::RefuseRequest))
    }

    fn push_grpc(&self, tenant: Tenant, request: PushRequest) -> BoxFuture<'_, Result<(), PushError>> {
        Box::pin(self.distribute(tenant, request, "", SyntaxErrors::RefuseStream))
    }
}

/// One error that tells all of them, each text once: the most severe first, whose status and `Retry-After` it has.
fn combine(mut errors: Vec<PushError>) -> Option<PushError> {
    errors.sort_by_key(|error| std::cmp::Reverse(error.severity()));
    let mut errors = errors.into_iter();
    let mut all = errors.next()?;
    let mut told = vec![all.message.clone()];
    for error in errors {
        if !told.contains(&error.message) {
            all.message.push('\n');
            all.message.push_str(&error.message);
            told.push(error.message);
        }
    }
    Some(all)
}

/// The streams of a push, and what they hold.
fn amounts_of(push: &Push) -> impl Iterator<Item = (Box<str>, Amount)> + '_ {
    push.streams.iter().map(|stream| {
        let entries = push.entries_of(stream);
        let pairs = |entry| push.metadata_of(entry).iter().map(|p| u64::from(p.name.len + p.value.len)).sum::<u64>();
        let bytes = entries.iter().map(|entry| u64::from(entry.line.len) + pairs(entry)).sum();
        (stream.labels.text().into(), Amount { lines: entries.len() as u64, bytes })
    })
}

/// Lines of a request and their bytes.
fn volume_of(request: &PushRequest) -> (u64, u64) {
    let lines: u64 = request.entries.iter().map(|entry| u64::from(entry.line.len)).sum();
    let pairs: u64 = request.metadata.iter().map(|p| u64::from(p.name.len) + u64::from(p.value.len)).sum();
    (request.entries.len() as u64, lines + pairs)
}

#[cfg(test)]
mod tests;
