use super::Tenant;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Limits of one tenant on the write path. Names and defaults are Loki's (`limits_config`).
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// `ingestion_rate_mb` in bytes per second (1 MB = 1048576 B). Default 4 MB.
    pub ingestion_rate: f64,
    /// `ingestion_burst_size_mb` in bytes. Default 6 MB.
    pub ingestion_burst_size: f64,
    /// Bytes; default 1024.
    pub max_label_name_length: usize,
    /// Bytes; default 2048.
    pub max_label_value_length: usize,
    /// Default 15; `service_name` is not counted.
    pub max_label_names_per_series: usize,
    /// Default true.
    pub reject_old_samples: bool,
    /// Default 7 days.
    pub reject_old_samples_max_age: Duration,
    /// Default 10 minutes.
    pub creation_grace_period: Duration,
    /// Bytes, 0 for no limit; default 262144.
    pub max_line_size: usize,
    /// Default false: long lines are rejected.
    pub max_line_size_truncate: bool,
    /// Text at the end of a truncated line; default empty.
    pub max_line_size_truncate_identifier: String,
    /// Default false.
    pub increment_duplicate_timestamp: bool,
    /// Labels that name a service, first wins; empty disables discovery.
    pub discover_service_name: Vec<String>,
    /// Default true.
    pub discover_log_levels: bool,
    /// Label, metadata and field names that hold a level.
    pub log_level_fields: Vec<String>,
    /// Depth of JSON objects searched for a level; default 2.
    pub log_level_from_json_max_depth: usize,
    /// Default true.
    pub allow_structured_metadata: bool,
    /// Bytes an entry; default 64 KiB.
    pub max_structured_metadata_size: usize,
    /// Pairs an entry; default 128.
    pub max_structured_metadata_entries_count: usize,
    /// Streams of a tenant in one ingester, 0 for no limit; default 0.
    pub max_streams_per_user: usize,
    /// Streams of a tenant over all ingesters, 0 for no limit; default 5000.
    pub max_global_streams_per_user: usize,
    /// Bytes of a tenant's sealed blocks in one ingester, 0 for no limit; default 0. Not in Loki.
    pub max_blocks_size_per_user: u64,
    /// Bytes per second and stream; default 3 MiB.
    pub per_stream_rate_limit: f64,
    /// Bytes; default 15 MiB.
    pub per_stream_rate_limit_burst: f64,
    /// Most entries that a query returns; default 5000.
    pub max_entries_limit_per_query: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let strings = |v: &[&str]| v.iter().map(|s| (*s).to_string()).collect();
        Self {
            ingestion_rate: 4.0 * 1_048_576.0,
            ingestion_burst_size: 6.0 * 1_048_576.0,
            max_label_name_length: 1024,
            max_label_value_length: 2048,
            max_label_names_per_series: 15,
            reject_old_samples: true,
            reject_old_samples_max_age: Duration::from_secs(7 * 24 * 3600),
            creation_grace_period: Duration::from_secs(600),
            max_line_size: 262_144,
            max_line_size_truncate: false,
            max_line_size_truncate_identifier: String::new(),
            increment_duplicate_timestamp: false,
            discover_service_name: strings(&[
                "service",
                "app",
                "application",
                "app_name",
                "name",
                "app_kubernetes_io_name",
                "container",
                "container_name",
                "k8s_container_name",
                "component",
                "workload",
                "job",
                "k8s_job_name",
            ]),
            discover_log_levels: true,
            log_level_fields: strings(&[
                "level",
                "LEVEL",
                "Level",
                "log.level",
                "severity",
                "SEVERITY",
                "Severity",
                "SeverityText",
                "lvl",
                "LVL",
                "Lvl",
                "severity_text",
                "Severity_Text",
                "SEVERITY_TEXT",
            ]),
            log_level_from_json_max_depth: 2,
            allow_structured_metadata: true,
            max_structured_metadata_size: 65_536,
            max_structured_metadata_entries_count: 128,
            max_streams_per_user: 0,
            max_global_streams_per_user: 5000,
            max_blocks_size_per_user: 0,
            per_stream_rate_limit: 3.0 * 1_048_576.0,
            per_stream_rate_limit_burst: 15.0 * 1_048_576.0,
            max_entries_limit_per_query: 5000,
        }
    }
}

/// The limits of every tenant: a default, and those that differ.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    default: Arc<Limits>,
    tenants: HashMap<String, Arc<Limits>>,
}

impl Overrides {
    /// `tenants` holds complete limits by tenant name.
    pub fn new(default: Limits, tenants: HashMap<String, Limits>) -> Self {
        let tenants = tenants.into_iter().map(|(t, l)| (t, Arc::new(l))).collect();
        Self { default: Arc::new(default), tenants }
    }

    /// The limits that hold for a tenant.
    pub fn of(&self, tenant: &Tenant) -> &Arc<Limits> {
        self.tenants.get(tenant.as_str()).unwrap_or(&self.default)
    }
}
