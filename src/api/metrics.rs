//! Metrics of listeners and routes, with Loki's names and labels.

use super::BuildInfo;
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use std::any::Any;
use std::time::Instant;

/// Loki's buckets, in seconds.
const BUCKETS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0];

/// Metrics of listeners and routes.
#[derive(Clone, Debug)]
pub struct ApiMetrics {
    durations: HistogramVec,
    inflight: IntGaugeVec,
    panics: IntCounter,
    connections: IntGaugeVec,
    connections_limit: IntGaugeVec,
    accept_errors: IntCounterVec,
}

impl ApiMetrics {
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn register(registry: &Registry, build: &BuildInfo) -> Result<Self, prometheus::Error> {
        let gauges = |name, help, labels: &[&str]| IntGaugeVec::new(Opts::new(name, help), labels);
        let metrics = Self {
            durations: HistogramVec::new(
                HistogramOpts::new("loki_request_duration_seconds", "Time from a request's head to its answer.")
                    .buckets(BUCKETS.to_vec()),
                &["method", "route", "status_code", "ws"],
            )?,
            inflight: gauges("loki_inflight_requests", "Requests being served.", &["method", "route"])?,
            panics: IntCounter::new("loki_panic_total", "Panics in handlers, each answered with 500.")?,
            connections: gauges("loki_tcp_connections", "Open connections.", &["protocol"])?,
            connections_limit: gauges("loki_tcp_connections_limit", "Most connections at a time.", &["protocol"])?,
            accept_errors: IntCounterVec::new(
                Opts::new("timberline_tcp_accept_errors_total", "Attempts to accept a connection that failed."),
                &["protocol"],
            )?,
        };
        registry.register(Box::new(metrics.durations.clone()))?;
        registry.register(Box::new(metrics.inflight.clone()))?;
        registry.register(Box::new(metrics.panics.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.connections_limit.clone()))?;
        registry.register(Box::new(metrics.accept_errors.clone()))?;
        registry.register(Box::new(build_info(build)?))?;
        Ok(metrics)
    }

    /// Starts the clock of a request.
    pub(super) fn start<'a>(&'a self, method: &'a str, route: &'a str) -> Observation<'a> {
        let inflight = self.inflight.with_label_values(&[method, route]);
        inflight.inc();
        Observation { metrics: self, method, route, start: Instant::now(), inflight }
    }

    /// Counts a panic, logs it, and returns its message.
    pub(super) fn panicked(&self, route: &str, payload: &(dyn Any + Send)) -> String {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let message = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("unknown panic").to_owned();
        self.panics.inc();
        tracing::error!(route, panic = %message, "a handler panicked; its request is answered with 500");
        message
    }

    pub(super) fn connections(&self, protocol: &str, limit: usize) -> IntGauge {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.connections_limit.with_label_values(&[protocol]).set(limit);
        self.connections.with_label_values(&[protocol])
    }

    pub(super) fn accept_errors(&self, protocol: &str) -> IntCounter {
        self.accept_errors.with_label_values(&[protocol])
    }
}

/// A request being served. One that is dropped, because its client went away, has no duration.
pub(super) struct Observation<'a> {
    metrics: &'a ApiMetrics,
    method: &'a str,
    route: &'a str,
    start: Instant,
    inflight: IntGauge,
}

impl Observation<'_> {
    pub(super) fn finish(self, status_code: &str) {
        let labels = [self.method, self.route, status_code, "false"];
        self.metrics.durations.with_label_values(&labels).observe(self.start.elapsed().as_secs_f64());
    }
}

impl Drop for Observation<'_> {
    fn drop(&mut self) {
        self.inflight.dec();
    }
}

fn build_info(build: &BuildInfo) -> Result<IntGauge, prometheus::Error> {
    let gauge = IntGauge::with_opts(
        Opts::new("loki_build_info", "Always 1; the labels say what is running.")
            .const_label("version", &build.version)
            .const_label("revision", &build.revision)
            .const_label("branch", &build.branch)
            .const_label("goversion", "")
            .const_label("goos", std::env::consts::OS)
            .const_label("goarch", std::env::consts::ARCH),
    )?;
    gauge.set(1);
    Ok(gauge)
}
