//! The table of every setting. Nothing else lists them.

use super::units::{
    Bool, Bytes, Choice, Codec, Float, GoDuration, Int, Kind, Megabytes, Text, Word, Words, quote, scalar,
};
use super::yaml::{Node, Value};
use super::{ChunkEncoding, ClientAuth, Config, RingInstance, Target};

/// One setting.
#[derive(Clone, Copy)]
pub struct Key {
    /// Its place in YAML, for example `server.http_listen_port`.
    pub path: &'static str,
    /// Its flag without dashes, for example `server.http-listen-port`.
    pub flag: &'static str,
    /// What its values are called: `number`, `size`, `duration`, `choice`...
    pub kind: &'static str,
    /// What it means, in one sentence.
    pub help: &'static str,
    /// Reads a value into a configuration.
    pub(super) set: fn(&mut Config, &Node) -> Result<(), String>,
    /// The value as YAML.
    pub show: fn(&Config) -> String,
}

impl Key {
    /// A bare flag means `true`.
    pub fn is_bool(&self) -> bool {
        self.kind == Bool::NAME
    }

    /// The default as YAML.
    pub fn default(&self) -> String {
        (self.show)(&Config::default())
    }
}

/// Headings of the sections, by the first part of a path, in the order of the table.
pub const SECTIONS: &[(&str, &str)] = &[
    ("", "What runs, and for whom"),
    ("server", "Listeners and our own log"),
    ("common", "Data directory and ring"),
    ("distributor", "Push requests"),
    ("ingester", "Memory, chunks and the log"),
    ("limits_config", "Limits of a tenant; each can be overridden by tenant"),
    ("runtime_config", "Per-tenant overrides"),
];

macro_rules! table {
    ($($path:literal, $flag:literal, $codec:ty, $($field:ident).+, $help:literal;)*) => {
        &[$(Key {
            path: $path,
            flag: $flag,
            kind: <$codec as Kind>::NAME,
            help: $help,
            set: |config, node| {
                config.$($field).+ = <$codec as Codec<_>>::parse(node)?;
                Ok(())
            },
            show: |config| <$codec as Codec<_>>::show(&config.$($field).+),
        },)*]
    };
}

/// Every setting.
pub fn keys() -> &'static [Key] {
    KEYS
}

static KEYS: &[Key] = table! {
    "target", "target", Targets, target, "What runs in this process, separated by commas: all, distributor, ingester, querier.";
    "auth_enabled", "auth.enabled", Bool, auth_enabled, "Requests must name their tenant in X-Scope-OrgID; false puts everybody into no_auth_tenant.";
    "no_auth_tenant", "auth.no-auth-tenant", Text, no_auth_tenant, "Tenant of everybody when auth_enabled is false.";

    "server.http_listen_address", "server.http-listen-address", Text, server.http_listen_address, "Address of the HTTP listener; empty is every address.";
    "server.http_listen_port", "server.http-listen-port", Int, server.http_listen_port, "Port of the HTTP listener; 0 takes a free one.";
    "server.grpc_listen_address", "server.grpc-listen-address", Text, server.grpc_listen_address, "Address of the gRPC listener; empty is every address.";
    "server.grpc_listen_port", "server.grpc-listen-port", Int, server.grpc_listen_port, "Port of the gRPC listener; 0 takes a free one.";
    "server.http_tls_config.cert_file", "server.http-tls-cert-path", Text, server.http_tls_config.cert_file, "PEM file of the HTTP listener's certificate; empty for no TLS.";
    "server.http_tls_config.key_file", "server.http-tls-key-path", Text, server.http_tls_config.key_file, "PEM file of its key.";
    "server.http_tls_config.client_ca_file", "server.http-tls-ca-path", Text, server.http_tls_config.client_ca_file, "PEM file of the authorities that sign clients' certificates.";
    "server.http_tls_config.client_auth_type", "server.http-tls-client-auth", ClientAuthType, server.http_tls_config.client_auth_type, "Clients' certificates: NoClientCert, VerifyClientCertIfGiven or RequireAndVerifyClientCert.";
    "server.grpc_tls_config.cert_file", "server.grpc-tls-cert-path", Text, server.grpc_tls_config.cert_file, "PEM file of the gRPC listener's certificate; empty for no TLS.";
    "server.grpc_tls_config.key_file", "server.grpc-tls-key-path", Text, server.grpc_tls_config.key_file, "PEM file of its key.";
    "server.grpc_tls_config.client_ca_file", "server.grpc-tls-ca-path", Text, server.grpc_tls_config.client_ca_file, "PEM file of the authorities that sign clients' certificates.";
    "server.grpc_tls_config.client_auth_type", "server.grpc-tls-client-auth", ClientAuthType, server.grpc_tls_config.client_auth_type, "Clients' certificates: NoClientCert, VerifyClientCertIfGiven or RequireAndVerifyClientCert.";
    "server.graceful_shutdown_timeout", "server.graceful-shutdown-timeout", GoDuration, server.graceful_shutdown_timeout, "Longest wait for requests in flight at a stop.";
    "server.http_server_read_timeout", "server.http-read-timeout", GoDuration, server.http_server_read_timeout, "Longest time for a whole request to arrive.";
    "server.http_server_write_timeout", "server.http-write-timeout", GoDuration, server.http_server_write_timeout, "Longest time for an answer to be written.";
    "server.http_server_idle_timeout", "server.http-idle-timeout", GoDuration, server.http_server_idle_timeout, "Longest time that a connection may stay open without a request.";
    "server.grpc_server_max_recv_msg_size", "server.grpc-max-recv-msg-size-bytes", Bytes, server.grpc_server_max_recv_msg_size, "Largest gRPC message received.";
    "server.grpc_server_max_send_msg_size", "server.grpc-max-send-msg-size-bytes", Bytes, server.grpc_server_max_send_msg_size, "Largest gRPC message sent.";
    "server.log_level", "log.level", Choice, server.log_level, "Least severe level shown: debug, info, warn or error.";
    "server.log_format", "log.format", Choice, server.log_format, "Form of our own log: logfmt or json.";

    "common.path_prefix", "common.path-prefix", Text, common.path_prefix, "Data directory.";
    "common.replication_factor", "distributor.replication-factor", Int, common.replication_factor, "Ingesters that hold each stream; a push succeeds when most of them have it on disk.";
    "common.instance_addr", "ingester.lifecycler.addr", Text, common.instance_addr, "Address under which others reach this process; empty to find out.";
    "common.ring.instance_id", "ingester.lifecycler.ID", Text, common.ring.instance_id, "Name of this process in the ring; empty is the host's name.";
    "common.ring.num_tokens", "ingester.num-tokens", Int, common.ring.num_tokens, "Tokens of each ingester in the ring, 1 to 4096.";
    "common.ring.instances", "common.ring.instances", Instances, common.ring.instances, "Timberline's own: the ingesters of a static ring, [{id: a, addr: \"host:9095\"}]; as a flag a=host:9095,b=host:9095. Empty: the one in this process.";

    "distributor.max_recv_msg_size", "distributor.max-recv-msg-size", Bytes, distributor.max_recv_msg_size, "Largest body of a push as received.";
    "distributor.max_decompressed_size", "distributor.max-decompressed-size", Bytes, distributor.max_decompressed_size, "Largest body of a push after decompression, at most 256MB (a larger value is lowered to it, with a warning). What pushes above 256KB take in memory is 192MB together.";

    "ingester.chunk_block_size", "ingester.chunks-block-size", Bytes, ingester.chunk_block_size, "Uncompressed size at which a block is sealed.";
    "ingester.chunk_target_size", "ingester.chunk-target-size", Bytes, ingester.chunk_target_size, "Compressed size at which a chunk is closed.";
    "ingester.chunk_encoding", "ingester.chunk-encoding", Encoding, ingester.chunk_encoding, "Codec of sealed blocks: snappy or none. Loki's others are accepted with a warning, and snappy is used until the store is built.";
    "ingester.max_chunk_age", "ingester.max-chunk-age", GoDuration, ingester.max_chunk_age, "Oldest age of an open chunk. Entries more than half of it behind their stream's newest are rejected.";
    "ingester.chunk_idle_period", "ingester.chunks-idle-period", GoDuration, ingester.chunk_idle_period, "A chunk without new entries for so long is closed. Without effect until chunks are flushed to a store.";
    "ingester.sync_period", "ingester.sync-period", GoDuration, ingester.sync_period, "Replicas close chunks at multiples of this time; 0s for never.";
    "ingester.sync_min_utilization", "ingester.sync-min-utilization", Float, ingester.sync_min_utilization, "Part of chunk_target_size that a chunk must have to be closed so, 0 to 1.";
    "ingester.max_returned_stream_errors", "ingester.max-ignored-stream-errors", Int, ingester.max_returned_stream_errors, "Rejected entries that an answer describes one by one; 0 for all.";
    "ingester.require_data", "ingester.require-data", Bool, ingester.require_data, "Timberline's own: refuse to start on an empty data directory (a volume that was not mounted).";
    "ingester.memory_budget", "ingester.memory-budget", Bytes, ingester.memory_budget, "Timberline's own: memory to plan with; 0 for the container's limit, or else the machine's memory.";
    "ingester.wal.enabled", "ingester.wal-enabled", Bool, ingester.wal.enabled, "Always true: no push is answered without the log.";
    "ingester.wal.dir", "ingester.wal-dir", Text, ingester.wal.dir, "Directory of the log; empty is wal in the data directory.";
    "ingester.wal.sync", "ingester.wal-sync", Choice, ingester.wal.sync, "Timberline's own: a push is answered after its bytes are synced (always), or after the write, with a sync every sync_interval (interval) or when the kernel likes (os, as Loki).";
    "ingester.wal.sync_interval", "ingester.wal-sync-interval", GoDuration, ingester.wal.sync_interval, "Timberline's own: time between syncs with sync: interval, 1ms to 1m.";
    "ingester.wal.segment_size", "ingester.wal-segment-size", Bytes, ingester.wal.segment_size, "Timberline's own: size of a segment of the log, 1MB to 1GB; smaller by itself on a small disk.";
    "ingester.wal.max_size", "ingester.wal-max-size", Bytes, ingester.wal.max_size, "Timberline's own: bytes that the log's live segments may take together, at least four segments and at most a quarter of the disk. From three quarters on the oldest segment is cleaned; pushes get 503 when there is no room.";
    "ingester.wal.compression", "ingester.wal-compression", Choice, ingester.wal.compression, "Timberline's own: codec of pushes in the log: snappy, zstd or none.";
    "ingester.wal.queue_size", "ingester.wal-queue-size", Bytes, ingester.wal.queue_size, "Timberline's own: bytes of pushes that may wait for the log, 1MB to 4GB; further ones wait up to 2s, then get 503.";
    "ingester.wal.on_damage", "ingester.wal-on-damage", Choice, ingester.wal.on_damage, "Timberline's own: what a start does with damage that is not in quarantine yet: salvage keeps all that is sound and tells the rest; refuse changes nothing and does not start.";
    "ingester.blocks.dir", "ingester.blocks-dir", Text, ingester.blocks.dir, "Timberline's own: directory of sealed blocks, on the file system of the log; empty is blocks in the data directory.";
    "ingester.blocks.max_size", "ingester.blocks-max-size", Bytes, ingester.blocks.max_size, "Timberline's own: bytes that sealed blocks may take on the disk before pushes get 503; 0 for half of the disk.";
    "ingester.scrub.rate", "ingester.scrub-rate", Bytes, ingester.scrub.rate, "Timberline's own: bytes a second at which sealed segments are read again to find damage; 0 for never. It waits while the disk is slow or full.";
    "ingester.scrub.interval", "ingester.scrub-interval", GoDuration, ingester.scrub.interval, "Timberline's own: time from the beginning of such a pass to that of the next, 1s or more; the first begins a minute after the start, or after this time if it is shorter.";

    "limits_config.ingestion_rate_mb", "distributor.ingestion-rate-limit-mb", Megabytes, limits.ingestion_rate, "Rate of lines and metadata, in MB per second.";
    "limits_config.ingestion_burst_size_mb", "distributor.ingestion-burst-size-mb", Megabytes, limits.ingestion_burst_size, "Largest burst above that rate, in MB; also the largest push.";
    "limits_config.max_label_name_length", "validation.max-length-label-name", Int, limits.max_label_name_length, "Longest label name, in bytes.";
    "limits_config.max_label_value_length", "validation.max-length-label-value", Int, limits.max_label_value_length, "Longest label value, in bytes.";
    "limits_config.max_label_names_per_series", "validation.max-label-names-per-series", Int, limits.max_label_names_per_series, "Most labels of a stream; service_name is not counted.";
    "limits_config.reject_old_samples", "validation.reject-old-samples", Bool, limits.reject_old_samples, "Reject entries older than reject_old_samples_max_age.";
    "limits_config.reject_old_samples_max_age", "validation.reject-old-samples.max-age", GoDuration, limits.reject_old_samples_max_age, "Oldest entry that is accepted.";
    "limits_config.creation_grace_period", "validation.create-grace-period", GoDuration, limits.creation_grace_period, "How far in the future an entry may be.";
    "limits_config.max_line_size", "distributor.max-line-size", Bytes, limits.max_line_size, "Longest line; 0 for no limit.";
    "limits_config.max_line_size_truncate", "distributor.max-line-size-truncate", Bool, limits.max_line_size_truncate, "Cut longer lines instead of rejecting them.";
    "limits_config.max_line_size_truncate_identifier", "distributor.max-line-size-truncate-identifier", Text, limits.max_line_size_truncate_identifier, "Text at the end of a line that was cut.";
    "limits_config.increment_duplicate_timestamp", "validation.increment-duplicate-timestamps", Bool, limits.increment_duplicate_timestamp, "Move an entry by 1ns when the one before it has the same time and another line.";
    "limits_config.discover_service_name", "validation.discover-service-name", Words, limits.discover_service_name, "Labels that name a service, the first one wins; empty to set no service_name.";
    "limits_config.discover_log_levels", "validation.discover-log-levels", Bool, limits.discover_log_levels, "Set detected_level in the metadata of each entry.";
    "limits_config.log_level_fields", "validation.log-level-fields", Words, limits.log_level_fields, "Labels, metadata and fields of a line that hold a level.";
    "limits_config.log_level_from_json_max_depth", "validation.log-level-from-json-max-depth", Int, limits.log_level_from_json_max_depth, "Depth of JSON objects that are searched for a level.";
    "limits_config.allow_structured_metadata", "validation.allow-structured-metadata", Bool, limits.allow_structured_metadata, "Accept entries with structured metadata.";
    "limits_config.max_structured_metadata_size", "limits.max-structured-metadata-size", Bytes, limits.max_structured_metadata_size, "Largest metadata of an entry.";
    "limits_config.max_structured_metadata_entries_count", "limits.max-structured-metadata-entries-count", Int, limits.max_structured_metadata_entries_count, "Most pairs of metadata of an entry.";
    "limits_config.max_streams_per_user", "ingester.max-streams-per-user", Int, limits.max_streams_per_user, "Streams of a tenant in one ingester; 0 for no limit.";
    "limits_config.max_blocks_size_per_user", "ingester.max-blocks-size-per-user", Bytes, limits.max_blocks_size_per_user, "Timberline's own: bytes of sealed blocks that a tenant may have on the disk of one ingester before its pushes get 429, so that no tenant fills the disk for all; 0 for no limit.";
    "limits_config.max_global_streams_per_user", "ingester.max-global-streams-per-user", Int, limits.max_global_streams_per_user, "Streams of a tenant over all ingesters; 0 for no limit.";
    "limits_config.per_stream_rate_limit", "ingester.per-stream-rate-limit", Bytes, limits.per_stream_rate_limit, "Rate of one stream, per second.";
    "limits_config.per_stream_rate_limit_burst", "ingester.per-stream-rate-limit-burst", Bytes, limits.per_stream_rate_limit_burst, "Largest burst of one stream above that rate.";
    "limits_config.max_entries_limit_per_query", "validation.max-entries-limit", Int, limits.max_entries_limit_per_query, "Most entries that a query returns.";

    "runtime_config.file", "runtime-config.file", Text, runtime_config.file, "Files with overrides by tenant, separated by commas, as Loki's; read once, at the start.";
};

/// `all` or parts separated by commas.
struct Targets;

impl Kind for Targets {
    const NAME: &'static str = "list";
}

impl Codec<Vec<Target>> for Targets {
    fn parse(node: &Node) -> Result<Vec<Target>, String> {
        let words: Vec<String> = Words::parse(node)?;
        let mut targets = Vec::new();
        for word in &words {
            let target = Target::find(word)
                .ok_or_else(|| format!("{word:?} is not a target of Timberline; it has: {}", Target::list()))?;
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        if targets.is_empty() {
            return Err(format!("is empty; it needs one or more of: {}", Target::list()));
        }
        Ok(targets)
    }

    fn show(value: &Vec<Target>) -> String {
        let words: Vec<&str> = value.iter().map(Word::as_str).collect();
        quote(&words.join(","))
    }
}

/// Go's names of client authentication; empty is none.
struct ClientAuthType;

impl Kind for ClientAuthType {
    const NAME: &'static str = "choice";
}

impl Codec<ClientAuth> for ClientAuthType {
    fn parse(node: &Node) -> Result<ClientAuth, String> {
        match scalar(node, "a word")? {
            "" => Ok(ClientAuth::None),
            text @ ("RequestClientCert" | "RequireAnyClientCert") => Err(format!(
                "{text} would accept certificates that nobody verified; use VerifyClientCertIfGiven or \
                 RequireAndVerifyClientCert"
            )),
            _ => Choice::parse(node),
        }
    }

    fn show(value: &ClientAuth) -> String {
        Choice::show(value)
    }
}

/// Loki's codecs of chunks; those that are not built fall back to snappy. The loader warns.
struct Encoding;

/// Loki's names of codecs that are not built.
pub(super) const FOREIGN_ENCODINGS: [&str; 7] = ["gzip", "lz4", "lz4-64k", "lz4-256k", "lz4-1M", "flate", "zstd"];

impl Kind for Encoding {
    const NAME: &'static str = "choice";
}

impl Codec<ChunkEncoding> for Encoding {
    fn parse(node: &Node) -> Result<ChunkEncoding, String> {
        let text = scalar(node, "a word")?;
        if FOREIGN_ENCODINGS.contains(&text) { Ok(ChunkEncoding::Snappy) } else { Choice::parse(node) }
    }

    fn show(value: &ChunkEncoding) -> String {
        Choice::show(value)
    }
}

/// The members of a static ring.
struct Instances;

impl Kind for Instances {
    const NAME: &'static str = "list";
}

impl Codec<Vec<RingInstance>> for Instances {
    fn parse(node: &Node) -> Result<Vec<RingInstance>, String> {
        match &node.value {
            Value::Null => Ok(Vec::new()),
            Value::Scalar(text) => text.split(',').filter(|p| !p.trim().is_empty()).map(pair).collect(),
            Value::List(items) => items.iter().map(instance).collect(),
            Value::Map(_) => Err("is a map, expected a list of {id, addr}".to_string()),
        }
    }

    fn show(value: &Vec<RingInstance>) -> String {
        let items: Vec<String> =
            value.iter().map(|i| format!("{{id: {}, addr: {}}}", quote(&i.id), quote(&i.addr))).collect();
        format!("[{}]", items.join(", "))
    }
}

fn pair(text: &str) -> Result<RingInstance, String> {
    match text.trim().split_once('=') {
        Some((id, addr)) => Ok(RingInstance { id: id.to_string(), addr: addr.to_string() }),
        None => Err(format!("{text:?} is not a member of the ring; write id=host:port")),
    }
}

fn instance(node: &Node) -> Result<RingInstance, String> {
    let Value::Map(entries) = &node.value else { return Err("has a member that is not {id, addr}".to_string()) };
    let mut instance = RingInstance { id: String::new(), addr: String::new() };
    for entry in entries {
        let text = scalar(&entry.node, "a text")?.to_string();
        match entry.key.as_str() {
            "id" => instance.id = text,
            "addr" => instance.addr = text,
            other => return Err(format!("has a member with the unknown key {other:?}; it has id and addr")),
        }
    }
    Ok(instance)
}
