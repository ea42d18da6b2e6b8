use crate::model::Traffic;
use crate::wal::WalMetrics;
use prometheus::{CounterVec, Gauge, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use std::sync::Arc;

/// Figures of the ingester, with Loki's names where Loki has the metric.
#[derive(Clone)]
pub struct IngesterMetrics {
    /// Who is refused most.
    pub(super) traffic: Arc<Traffic>,
    pub(super) wal: WalMetrics,
    pub(super) memory_streams: IntGaugeVec,
    pub(super) streams_created: IntCounterVec,
    pub(super) memory_chunks: IntGauge,
    pub(super) head_bytes: IntGauge,
    pub(super) metadata_bytes: IntGauge,
    pub(super) blocks_sealed: IntCounter,
    pub(super) block_bytes: IntCounter,
    pub(super) chunks_closed: IntCounterVec,
    pub(super) duplicate_bytes: IntCounterVec,
    pub(super) discarded_samples: CounterVec,
    pub(super) discarded_bytes: CounterVec,
    pub(super) replay_active: IntGauge,
    pub(super) replay_seconds: Gauge,
    pub(super) replay_bytes: IntGauge,
    pub(super) replay_bytes_total: IntGauge,
    pub(super) recovered_streams: IntCounter,
    pub(super) recovered_entries: IntCounter,
    pub(super) recovered_bytes: IntCounter,
    pub(super) corruptions: IntCounterVec,
    pub(super) lost_lines: IntCounter,
    pub(super) unresolved_lsns: IntCounter,
    pub(super) wal_size: IntGauge,
    pub(super) wal_pinned_streams: IntGauge,
    pub(super) wal_retired: IntCounter,
    pub(super) wal_carried_bytes: IntCounter,
    pub(super) wal_carried_lines: IntCounter,
    pub(super) blocks_size: IntGauge,
    pub(super) blocks_retired: IntCounter,
    pub(super) scrub_bytes: IntCounter,
    pub(super) scrub_passes: IntCounter,
    pub(super) scrub_healed: IntCounter,
}

impl IngesterMetrics {
    /// Registers the metrics. `discarded` are the two vectors `loki_discarded_samples_total` and
    /// `loki_discarded_bytes_total` with the labels (reason, tenant, retention_hours, policy, format), which the
    /// distributor registers and both use.
    ///
    /// # Errors
    /// The registry holds one of the names already.
    pub fn new(registry: &Registry, discarded: (CounterVec, CounterVec)) -> Result<Self, prometheus::Error> {
        let r = Registering(registry);
        Ok(Self {
            traffic: Arc::default(),
            wal: WalMetrics::new(registry)?,
            memory_streams: r.gauges("loki_ingester_memory_streams", "Streams in memory.", &["tenant"])?,
            streams_created: r.counters("loki_ingester_streams_created_total", "Streams created.", &["tenant"])?,
            memory_chunks: r.gauge("loki_ingester_memory_chunks", "Chunks in memory.")?,
            head_bytes: r.gauge("timberline_ingester_head_bytes", "Bytes of lines that are not in a block yet.")?,
            metadata_bytes: r.gauge(
                "timberline_ingester_metadata_bytes",
                "Bytes of memory that streams and blocks take beside their lines.",
            )?,
            blocks_sealed: r.counter("timberline_ingester_blocks_sealed_total", "Heads sealed into blocks.")?,
            block_bytes: r.counter("timberline_ingester_block_bytes_total", "Compressed bytes of sealed blocks.")?,
            chunks_closed: r.counters("timberline_ingester_chunks_closed_total", "Chunks closed.", &["reason"])?,
            duplicate_bytes: r.counters(
                "loki_ingester_duplicate_log_bytes_total",
                "Bytes of entries that equal the one before them and are stored once.",
                &["tenant"],
            )?,
            discarded_samples: discarded.0,
            discarded_bytes: discarded.1,
            replay_active: r.gauge("loki_ingester_wal_replay_active", "1 while the log is replayed.")?,
            replay_seconds: r.float("loki_ingester_wal_replay_duration_seconds", "Duration of the last replay.")?,
            replay_bytes: r.gauge(
                "timberline_wal_replay_bytes",
                "How far replay is: bytes of the log, each counted when it is read and again when it is applied.",
            )?,
            replay_bytes_total: r.gauge(
                "timberline_wal_replay_bytes_expected",
                "What timberline_wal_replay_bytes ends at: all bytes of the log, twice.",
            )?,
            recovered_streams: r.counter("loki_ingester_wal_recovered_streams_total", "Streams recovered.")?,
            recovered_entries: r.counter("loki_ingester_wal_recovered_entries_total", "Entries recovered.")?,
            recovered_bytes: r.counter("loki_ingester_wal_recovered_bytes_total", "Line bytes recovered.")?,
            corruptions: r.counters("loki_ingester_wal_corruptions_total", "Damaged places in the log.", &["type"])?,
            lost_lines: r.counter("timberline_wal_lost_lines_total", "Acknowledged lines lost to damage.")?,
            unresolved_lsns: r.counter(
                "timberline_wal_unresolved_records_total",
                "Records at the very end of the log that were cut, or damaged within 50 ms of their ack.",
            )?,
            wal_size: r.gauge("timberline_wal_size_bytes", "Bytes of the log's live segments.")?,
            wal_pinned_streams: r.gauge(
                "timberline_wal_oldest_segment_streams",
                "Streams that still need the log's oldest segment, when it was last to go.",
            )?,
            wal_retired: r.counter("timberline_wal_segments_retired_total", "Segments that the log gave up.")?,
            wal_carried_bytes: r
                .counter("timberline_wal_carried_bytes_total", "Bytes of small heads that were logged again.")?,
            wal_carried_lines: r
                .counter("timberline_wal_carried_lines_total", "Lines of small heads that were logged again.")?,
            blocks_size: r.gauge("timberline_blocks_size_bytes", "Bytes of the block log's segments.")?,
            blocks_retired: r
                .counter("timberline_blocks_segments_retired_total", "Segments that the block log gave up.")?,
            scrub_bytes: r.counter("timberline_scrub_bytes_total", "Bytes of sealed segments that were read again.")?,
            scrub_passes: r
                .counter("timberline_scrub_passes_total", "Times that all sealed segments were read again.")?,
            scrub_healed: r.counter(
                "timberline_scrub_healed_segments_total",
                "Damaged segments of the log whose lines are all in blocks.",
            )?,
        })
    }

    /// With the counts of refusals that others show.
    #[must_use]
    pub fn with_traffic(self, traffic: Arc<Traffic>) -> Self {
        Self { traffic, ..self }
    }
}

struct Registering<'a>(&'a Registry);

impl Registering<'_> {
    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        let c = IntCounter::new(name, help)?;
        self.0.register(Box::new(c.clone()))?;
        Ok(c)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        let c = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(c.clone()))?;
        Ok(c)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        let g = IntGauge::new(name, help)?;
        self.0.register(Box::new(g.clone()))?;
        Ok(g)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
        let g = IntGaugeVec::new(Opts::new(name, help), labels)?;
        self.0.register(Box::new(g.clone()))?;
        Ok(g)
    }

    fn float(&self, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
        let g = Gauge::new(name, help)?;
        self.0.register(Box::new(g.clone()))?;
        Ok(g)
    }
}
