//! What the distributor counts, with Loki's names and labels.

use super::rejection::{Reason, Rejections};
use crate::model::Amount;
use prometheus::{CounterVec, IntCounterVec, IntGauge, Opts, Registry};

/// The distributor's metrics.
///
/// `loki_discarded_*` are counted by whoever discards; the distributor owns the registered vectors and lends them.
#[derive(Clone)]
pub struct Metrics {
    bytes_received: CounterVec,
    lines_received: CounterVec,
    metadata_bytes_received: CounterVec,
    /// `loki_distributor_push_zero_streams_count{tenant,stage}`
    pub zero_streams: IntCounterVec,
    /// `loki_discarded_samples_total{reason,tenant,retention_hours,policy,format}`
    pub discarded_samples: CounterVec,
    /// `loki_discarded_bytes_total{reason,tenant,retention_hours,policy,format}`
    pub discarded_bytes: CounterVec,
    mutated_samples: CounterVec,
    mutated_bytes: CounterVec,
    /// `loki_distributor_push_structured_metadata_sanitized_total{tenant,format}`
    metadata_sanitized: IntCounterVec,
    /// `loki_distributor_ingester_appends_total{ingester}`
    pub appends: IntCounterVec,
    /// `loki_distributor_ingester_append_timeouts_total{ingester}`
    pub append_timeouts: IntCounterVec,
    /// `loki_distributor_replication_factor`
    pub replication_factor: IntGauge,
}

/// What one push brought, before validation, and what was changed in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Lines and bytes (lines and structured metadata) by `is_internal_stream`.
    pub by_kind: [Volume; 2],
    /// Lines that were cut to `max_line_size`.
    pub truncated_lines: u64,
    /// Bytes that were cut off.
    pub truncated_bytes: u64,
    /// Names and values of structured metadata that were changed.
    pub sanitized: u64,
}

impl Received {
    /// All of it.
    pub fn amount(&self) -> Amount {
        let mut out = Amount::default();
        self.by_kind.iter().for_each(|v| out += Amount { lines: v.lines, bytes: v.bytes });
        out
    }
}

/// Lines and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Lines.
    pub lines: u64,
    /// Bytes of lines and structured metadata.
    pub bytes: u64,
    /// Bytes of structured metadata alone.
    pub metadata_bytes: u64,
}

impl Metrics {
    /// # Errors
    /// One of the names is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let float = |name: &str, help: &str, labels: &[&str]| -> Result<CounterVec, prometheus::Error> {
            let vec = CounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok(vec)
        };
        let int = |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
            let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok(vec)
        };
        let volume = ["tenant", "retention_hours", "is_internal_stream", "policy", "format"];
        let discarded = ["reason", "tenant", "retention_hours", "policy", "format"];
        let replication_factor =
            IntGauge::new("loki_distributor_replication_factor", "The configured replication factor.")?;
        registry.register(Box::new(replication_factor.clone()))?;
        Ok(Self {
            bytes_received: float(
                "loki_distributor_bytes_received_total",
                "The total number of uncompressed bytes received per tenant. Includes structured metadata bytes.",
                &volume,
            )?,
            lines_received: float(
                "loki_distributor_lines_received_total",
                "The total number of lines received per tenant",
                &["tenant", "is_internal_stream", "policy", "format"],
            )?,
            metadata_bytes_received: float(
                "loki_distributor_structured_metadata_bytes_received_total",
                "The total number of uncompressed bytes received per tenant for entries' structured metadata",
                &volume,
            )?,
            zero_streams: int(
                "loki_distributor_push_zero_streams_count",
                "Pushes without a stream, as received (pre-validation) or because nothing was left (post-validation).",
                &["tenant", "stage"],
            )?,
            discarded_samples: float(
                "loki_discarded_samples_total",
                "The total number of samples that were discarded.",
                &discarded,
            )?,
            discarded_bytes: float(
                "loki_discarded_bytes_total",
                "The total number of bytes that were discarded.",
                &discarded,
            )?,
            mutated_samples: float(
                "loki_mutated_samples_total",
                "The total number of samples that have been mutated.",
                &["reason", "tenant"],
            )?,
            mutated_bytes: float(
                "loki_mutated_bytes_total",
                "The total number of bytes that have been mutated.",
                &["reason", "tenant"],
            )?,
            metadata_sanitized: int(
                "loki_distributor_push_structured_metadata_sanitized_total",
                "The total number of names and values of structured metadata that were sanitized.",
                &["tenant", "format"],
            )?,
            appends: int(
                "loki_distributor_ingester_appends_total",
                "The total number of batch appends sent to ingesters.",
                &["ingester"],
            )?,
            append_timeouts: int(
                "loki_distributor_ingester_append_timeouts_total",
                "The total number of batch appends sent to ingesters that timed out.",
                &["ingester"],
            )?,
            replication_factor,
        })
    }

    pub(super) fn received(&self, received: &Received, tenant: &str, format: &str) {
        for (volume, internal) in received.by_kind.iter().zip(["false", "true"]) {
            if volume.lines == 0 {
                continue;
            }
            let labels = [tenant, "", internal, "", format];
            self.lines_received.with_label_values(&[tenant, internal, "", format]).inc_by(volume.lines as f64);
            self.bytes_received.with_label_values(&labels).inc_by(volume.bytes as f64);
            self.metadata_bytes_received.with_label_values(&labels).inc_by(volume.metadata_bytes as f64);
        }
        if received.truncated_lines > 0 {
            let labels = [Reason::LineTooLong.as_str(), tenant];
            self.mutated_samples.with_label_values(&labels).inc_by(received.truncated_lines as f64);
            self.mutated_bytes.with_label_values(&labels).inc_by(received.truncated_bytes as f64);
        }
        if received.sanitized > 0 {
            self.metadata_sanitized.with_label_values(&[tenant, format]).inc_by(received.sanitized);
        }
    }

    pub(super) fn discarded(&self, rejections: &Rejections, tenant: &str, format: &str) {
        for (reason, (entries, bytes)) in Reason::ALL.into_iter().zip(rejections.discarded) {
            if entries > 0 {
                let labels = [reason.as_str(), tenant, "", "", format];
                self.discarded_samples.with_label_values(&labels).inc_by(entries as f64);
                self.discarded_bytes.with_label_values(&labels).inc_by(bytes as f64);
            }
        }
    }
}
