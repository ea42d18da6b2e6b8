use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry};

/// Figures of the log. Names are Loki's and Prometheus' where they have the metric; docs/metrics.md says what each answers.
#[derive(Clone)]
pub struct WalMetrics {
    /// Records written.
    pub records: IntCounter,
    /// Bytes written, padding included.
    pub bytes: IntCounter,
    /// Seconds of each sync.
    pub sync_seconds: Histogram,
    /// Groups written.
    pub groups: IntCounter,
    /// Groups that failed for lack of space.
    pub disk_full: IntCounter,
    /// Failed writes of any kind.
    pub write_failures: IntCounter,
    /// Number of the segment that is written.
    pub segment: IntGauge,
    /// 1 after a failed sync.
    pub poisoned: IntGauge,
}

impl WalMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// The registry holds one of the names already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let c = IntCounter::new(name, help)?;
            registry.register(Box::new(c.clone()))?;
            Ok(c)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let g = IntGauge::new(name, help)?;
            registry.register(Box::new(g.clone()))?;
            Ok(g)
        };
        let sync_seconds = Histogram::with_opts(
            HistogramOpts::new(
                "prometheus_tsdb_wal_fsync_duration_seconds",
                "Duration of a sync of the write-ahead log.",
            )
            .buckets(prometheus::exponential_buckets(0.000_05, 2.0, 18)?),
        )?;
        registry.register(Box::new(sync_seconds.clone()))?;
        Ok(Self {
            records: counter("loki_ingester_wal_records_logged_total", "Records written to the write-ahead log.")?,
            bytes: counter("loki_ingester_wal_logged_bytes_total", "Bytes written to the write-ahead log.")?,
            sync_seconds,
            groups: counter("timberline_wal_groups_total", "Commit groups written to the write-ahead log.")?,
            disk_full: counter(
                "loki_ingester_wal_disk_full_failures_total",
                "Commit groups refused because the disk was full.",
            )?,
            write_failures: counter("prometheus_tsdb_wal_writes_failed_total", "Failed writes of the log.")?,
            segment: gauge("prometheus_tsdb_wal_segment_current", "Segment that is being written.")?,
            poisoned: gauge("timberline_wal_poisoned", "1 after a failed sync, until the process exits.")?,
        })
    }

    /// Metrics that nobody reads.
    pub fn unregistered() -> Self {
        Self::new(&Registry::new()).unwrap_or_else(|e| unreachable!("an empty registry takes any name: {e}"))
    }
}
