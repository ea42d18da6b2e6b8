//! Configuration: defaults, then the file, then flags.
//!
//! One table ([`keys`]) names each setting once: its YAML path, its flag, its default and its meaning; reading, flags,
//! `-help`, `/config` and the documentation are all made from it. Keys and flags are Loki's wherever Loki has them.

mod expand;
mod foreign;
mod keys;
mod load;
mod memory;
pub mod units;
mod validate;
mod yaml;

pub use foreign::{nearest, nearest_flag};
pub use keys::{Key, SECTIONS, keys};
pub use load::{ConfigError, EMBEDDED, EMBEDDED_NAME, File, FlagValue, Loaded, Problem, is_foreign_flag, load};

use crate::model::{Limits, Overrides, Tenant};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use units::{Word, quote, words};

/// Everything that an operator can set. `Default` is what holds for keys that a file leaves out: Loki's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which parts run in this process; never empty.
    pub target: Vec<Target>,
    /// Requests must name their tenant in `X-Scope-OrgID`.
    pub auth_enabled: bool,
    /// Everybody's tenant when `auth_enabled` is false; a valid tenant name.
    pub no_auth_tenant: String,
    /// Listeners and our own log.
    pub server: ServerConfig,
    /// What several parts share.
    pub common: CommonConfig,
    /// Push requests.
    pub distributor: DistributorConfig,
    /// Memory, chunks and the log.
    pub ingester: IngesterConfig,
    /// `limits_config`: the limits of tenants without an override.
    pub limits: Limits,
    /// Files with per-tenant overrides.
    pub runtime_config: RuntimeConfig,
    /// Complete limits of the tenants that have overrides, from the file's `overrides` and from `runtime_config.file`.
    pub tenants: BTreeMap<String, Limits>,
}

/// `server`
#[derive(Clone, Debug, PartialEq)]
pub struct ServerConfig {
    /// Host name or address; empty is every address.
    pub http_listen_address: String,
    /// 0 takes a free port.
    pub http_listen_port: u16,
    /// Host name or address; empty is every address.
    pub grpc_listen_address: String,
    /// 0 takes a free port.
    pub grpc_listen_port: u16,
    /// TLS of the HTTP listener.
    pub http_tls_config: TlsConfig,
    /// TLS of the gRPC listener.
    pub grpc_tls_config: TlsConfig,
    /// Longest wait for requests in flight at a stop.
    pub graceful_shutdown_timeout: Duration,
    /// Longest time for a whole request to arrive.
    pub http_server_read_timeout: Duration,
    /// Longest time for an answer to be written.
    pub http_server_write_timeout: Duration,
    /// Longest time that a connection may stay without a request.
    pub http_server_idle_timeout: Duration,
    /// Bytes.
    pub grpc_server_max_recv_msg_size: usize,
    /// Bytes.
    pub grpc_server_max_send_msg_size: usize,
    /// The least severe level that our own log shows.
    pub log_level: LogLevel,
    /// The form of our own log.
    pub log_format: LogFormat,
}

/// `server.http_tls_config` and `server.grpc_tls_config`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TlsConfig {
    /// PEM; empty for no TLS.
    pub cert_file: String,
    /// PEM; set together with `cert_file`.
    pub key_file: String,
    /// PEM of the authorities that sign clients' certificates.
    pub client_ca_file: String,
    /// Whether clients must show a certificate.
    pub client_auth_type: ClientAuth,
}

impl TlsConfig {
    /// The listener speaks TLS.
    pub fn enabled(&self) -> bool {
        !self.cert_file.is_empty()
    }
}

/// `common`
#[derive(Clone, Debug, PartialEq)]
pub struct CommonConfig {
    /// The data directory.
    pub path_prefix: String,
    /// Ingesters that hold each stream; 1 or more.
    pub replication_factor: usize,
    /// Address under which others reach this process; empty to find out.
    pub instance_addr: String,
    /// The ring of ingesters.
    pub ring: RingConfig,
}

/// `common.ring`
#[derive(Clone, Debug, PartialEq)]
pub struct RingConfig {
    /// This process in the ring; empty is the host's name.
    pub instance_id: String,
    /// Tokens of an instance; 1 to 4096.
    pub num_tokens: usize,
    /// Members of a static ring (ours, not Loki's); empty: the ingester in this process is the only one.
    pub instances: Vec<RingInstance>,
}

/// A member of the static ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingInstance {
    /// Unique in the ring.
    pub id: String,
    /// `host:port` of its gRPC listener.
    pub addr: String,
}

/// `distributor`
#[derive(Clone, Debug, PartialEq)]
pub struct DistributorConfig {
    /// Largest body as received, in bytes.
    pub max_recv_msg_size: usize,
    /// Largest body after decompression, in bytes; at most [`MAX_DECOMPRESSED`].
    pub max_decompressed_size: usize,
}

/// No configuration raises the decompressed size of a request above this.
pub const MAX_DECOMPRESSED: usize = 256 << 20;

/// `ingester`
#[derive(Clone, Debug, PartialEq)]
pub struct IngesterConfig {
    /// Uncompressed bytes at which a head is sealed into a block.
    pub chunk_block_size: usize,
    /// Compressed bytes at which a chunk is closed.
    pub chunk_target_size: usize,
    /// Codec of sealed blocks.
    pub chunk_encoding: ChunkEncoding,
    /// Oldest age of an open chunk; entries older than half of it behind a stream's newest are too far behind.
    pub max_chunk_age: Duration,
    /// A chunk without appends for so long is closed.
    pub chunk_idle_period: Duration,
    /// Replicas close chunks at multiples of this; zero for never.
    pub sync_period: Duration,
    /// Part of `chunk_target_size` that a chunk must have for that; 0 to 1.
    pub sync_min_utilization: f64,
    /// Rejected entries that an answer describes one by one; 0 for all.
    pub max_returned_stream_errors: usize,
    /// Refuse to start on an empty data directory.
    pub require_data: bool,
    /// As set, in bytes; 0 for this machine's or container's memory. Use [`Config::memory_budget`].
    pub memory_budget: u64,
    /// The write-ahead log.
    pub wal: WalConfig,
    /// The block log.
    pub blocks: BlocksConfig,
    /// Reading again what is sealed.
    pub scrub: ScrubConfig,
}

/// `ingester.scrub`
#[derive(Clone, Debug, PartialEq)]
pub struct ScrubConfig {
    /// Bytes a second; 0 switches it off.
    pub rate: u64,
    /// From the beginning of a pass to that of the next.
    pub interval: Duration,
}

impl Default for ScrubConfig {
    fn default() -> Self {
        Self { rate: 10 << 20, interval: Duration::from_secs(24 * 3600) }
    }
}

/// `ingester.blocks`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlocksConfig {
    /// As set; empty for `blocks` in the data directory. Use [`Config::blocks_dir`].
    pub dir: String,
    /// Bytes of all segments; 0 for half of the disk.
    pub max_size: u64,
}

/// `ingester.wal`
#[derive(Clone, Debug, PartialEq)]
pub struct WalConfig {
    /// Always true: the log is the contract.
    pub enabled: bool,
    /// As set; empty for `wal` in the data directory. Use [`Config::wal_dir`].
    pub dir: String,
    /// When an answer waits for the disk.
    pub sync: WalSync,
    /// Time between syncs in mode `interval`.
    pub sync_interval: Duration,
    /// Bytes; 1 MiB to 1 GiB.
    pub segment_size: u64,
    /// Bytes of all live segments.
    pub max_size: u64,
    /// Codec of pushes in the log.
    pub compression: WalCompression,
    /// Bytes of pushes that may wait for the log.
    pub queue_size: usize,
    /// What a start does with damage.
    pub on_damage: OnDamage,
}

/// `runtime_config`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuntimeConfig {
    /// Comma-separated files with `overrides`; read at the start.
    pub file: String,
}

words! {
    /// A part that can run on its own.
    pub enum Target {
        /// Everything in one process.
        All = "all",
        /// Takes pushes, validates them and sends them to ingesters.
        Distributor = "distributor",
        /// Logs, holds and serves what distributors send.
        Ingester = "ingester",
        /// Answers queries.
        Querier = "querier",
    }

    /// The least severe level that is shown.
    pub enum LogLevel {
        /// Everything.
        Debug = "debug",
        /// The normal course of things.
        Info = "info",
        /// What an operator should look at.
        Warn = "warn",
        /// What failed.
        Error = "error",
    }

    /// The form of our own log.
    pub enum LogFormat {
        /// `key=value` pairs.
        Logfmt = "logfmt",
        /// One JSON object a line.
        Json = "json",
    }

    /// Clients' certificates, under Go's names. Go's two modes that ask for a certificate without verifying it are not
    /// offered.
    pub enum ClientAuth {
        /// None is asked for (also written as an empty text).
        None = "NoClientCert",
        /// One that is shown must be valid.
        IfGiven = "VerifyClientCertIfGiven",
        /// A valid one must be shown.
        Required = "RequireAndVerifyClientCert",
    }

    /// Codec of sealed blocks.
    pub enum ChunkEncoding {
        /// Fast.
        Snappy = "snappy",
        /// As is.
        None = "none",
    }

    /// When a push is answered.
    pub enum WalSync {
        /// After its own bytes are synced.
        Always = "always",
        /// After the write; a crash of the machine may lose `sync_interval` of pushes.
        Interval = "interval",
        /// After the write; a crash of the machine may lose what the kernel had not written (as Loki).
        Os = "os",
    }

    /// What a start does with damage that nobody has been told of.
    pub enum OnDamage {
        /// Keeps everything that is sound, puts the damaged segments into quarantine, and says so.
        Salvage = "salvage",
        /// Changes nothing and does not start.
        Refuse = "refuse",
    }

    /// Codec of pushes in the log.
    pub enum WalCompression {
        /// Fast.
        Snappy = "snappy",
        /// Smaller, more CPU.
        Zstd = "zstd",
        /// As is.
        None = "none",
    }
}

#[expect(clippy::derivable_impls, reason = "the words macro has no place for #[default]")]
impl Default for ClientAuth {
    fn default() -> Self {
        Self::None
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            target: vec![Target::All],
            auth_enabled: true,
            no_auth_tenant: "fake".to_string(),
            server: ServerConfig::default(),
            common: CommonConfig::default(),
            distributor: DistributorConfig { max_recv_msg_size: 100 << 20, max_decompressed_size: MAX_DECOMPRESSED },
            ingester: IngesterConfig::default(),
            limits: Limits::default(),
            runtime_config: RuntimeConfig::default(),
            tenants: BTreeMap::new(),
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            http_listen_address: String::new(),
            http_listen_port: 3100,
            grpc_listen_address: String::new(),
            grpc_listen_port: 9095,
            http_tls_config: TlsConfig::default(),
            grpc_tls_config: TlsConfig::default(),
            graceful_shutdown_timeout: Duration::from_secs(30),
            http_server_read_timeout: Duration::from_secs(30),
            http_server_write_timeout: Duration::from_secs(30),
            http_server_idle_timeout: Duration::from_secs(120),
            grpc_server_max_recv_msg_size: 100 << 20,
            grpc_server_max_send_msg_size: 100 << 20,
            log_level: LogLevel::Info,
            log_format: LogFormat::Logfmt,
        }
    }
}

impl Default for CommonConfig {
    fn default() -> Self {
        Self {
            path_prefix: "./data".to_string(),
            replication_factor: 1,
            instance_addr: String::new(),
            ring: RingConfig { instance_id: String::new(), num_tokens: 128, instances: Vec::new() },
        }
    }
}

impl Default for IngesterConfig {
    fn default() -> Self {
        Self {
            chunk_block_size: 262_144,
            chunk_target_size: 1_572_864,
            chunk_encoding: ChunkEncoding::Snappy,
            max_chunk_age: Duration::from_secs(2 * 3600),
            chunk_idle_period: Duration::from_secs(30 * 60),
            sync_period: Duration::from_secs(3600),
            sync_min_utilization: 0.1,
            max_returned_stream_errors: 10,
            require_data: false,
            memory_budget: 0,
            wal: WalConfig::default(),
            blocks: BlocksConfig::default(),
            scrub: ScrubConfig::default(),
        }
    }
}

impl Default for WalConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            dir: String::new(),
            sync: WalSync::Always,
            sync_interval: Duration::from_millis(100),
            segment_size: 64 << 20,
            max_size: 1 << 30,
            compression: WalCompression::Snappy,
            queue_size: 64 << 20,
            on_damage: OnDamage::Salvage,
        }
    }
}

impl Config {
    /// Whether this process runs a part; `all` runs every one.
    pub fn runs(&self, part: Target) -> bool {
        self.target.contains(&Target::All) || self.target.contains(&part)
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        PathBuf::from(&self.common.path_prefix)
    }

    /// The log's directory.
    pub fn wal_dir(&self) -> PathBuf {
        match self.ingester.wal.dir.as_str() {
            "" => Path::new(&self.common.path_prefix).join("wal"),
            dir => PathBuf::from(dir),
        }
    }

    /// The block log's directory.
    pub fn blocks_dir(&self) -> PathBuf {
        match self.ingester.blocks.dir.as_str() {
            "" => Path::new(&self.common.path_prefix).join("blocks"),
            dir => PathBuf::from(dir),
        }
    }

    /// Where damaged segments are kept.
    pub fn quarantine_dir(&self) -> PathBuf {
        Path::new(&self.common.path_prefix).join("quarantine")
    }

    /// Bytes of memory to plan with: as set, or else the container's limit, or else the machine's memory.
    pub fn memory_budget(&self) -> u64 {
        match self.ingester.memory_budget {
            0 => memory::available(),
            bytes => bytes,
        }
    }

    /// Bytes of memory that the container, or else the machine, gives.
    pub fn memory_limit() -> u64 {
        memory::available()
    }

    /// The limits of every tenant.
    pub fn overrides(&self) -> Overrides {
        Overrides::new(self.limits.clone(), self.tenants.clone().into_iter().collect())
    }

    /// The tenant of requests without authentication. `None` cannot occur in a configuration that [`load`] returned.
    pub fn default_tenant(&self) -> Option<Tenant> {
        Tenant::new(&self.no_auth_tenant).ok()
    }

    /// The resolved configuration as YAML that reads back to an equal one, except that secrets are masked.
    pub fn to_yaml(&self) -> String {
        let mut tree = Section::default();
        for key in keys() {
            tree.put(key.path, mask(key, self));
        }
        let mut yaml = String::new();
        tree.write(0, &mut yaml);
        self.write_overrides(&mut yaml);
        yaml
    }

    fn write_overrides(&self, yaml: &mut String) {
        if self.tenants.is_empty() {
            return;
        }
        yaml.push_str("overrides:\n");
        for (tenant, limits) in &self.tenants {
            let with = Self { limits: limits.clone(), ..Self::default() };
            yaml.push_str(&format!("  {}:\n", quote(tenant)));
            for key in keys().iter().filter(|k| (k.show)(&with) != (k.show)(self)) {
                if let Some(name) = key.path.strip_prefix("limits_config.") {
                    yaml.push_str(&format!("    {name}: {}\n", (key.show)(&with)));
                }
            }
        }
    }
}

/// What stands in place of a secret.
const MASK: &str = "<secret>";

fn mask(key: &Key, config: &Config) -> String {
    let shown = (key.show)(config);
    let empty = shown == "\"\"";
    if !empty && is_secret(key.path) { quote(MASK) } else { shown }
}

/// Keys of secrets are told by their names, so that a new one is masked without anybody remembering to.
fn is_secret(path: &str) -> bool {
    let name = path.rsplit('.').next().unwrap_or(path);
    let is_file = name.ends_with("_file") || name.ends_with("_path");
    let is_count = name.starts_with("num_");
    !is_file && !is_count && ["password", "secret", "token", "access_key"].iter().any(|word| name.contains(word))
}

/// A YAML mapping being written, in the table's order.
#[derive(Default)]
struct Section {
    values: Vec<(String, String)>,
    sections: Vec<(String, Section)>,
}

impl Section {
    fn put(&mut self, path: &str, value: String) {
        let Some((head, rest)) = path.split_once('.') else {
            self.values.push((path.to_string(), value));
            return;
        };
        let found = self.sections.iter().position(|(name, _)| name == head);
        let index = found.unwrap_or_else(|| {
            self.sections.push((head.to_string(), Self::default()));
            self.sections.len() - 1
        });
        if let Some((_, section)) = self.sections.get_mut(index) {
            section.put(rest, value);
        }
    }

    fn write(&self, depth: usize, yaml: &mut String) {
        let indent = "  ".repeat(depth);
        for (name, value) in &self.values {
            yaml.push_str(&format!("{indent}{name}: {value}\n"));
        }
        for (name, section) in &self.sections {
            yaml.push_str(&format!("{indent}{name}:\n"));
            section.write(depth + 1, yaml);
        }
    }
}

/// For `/log_level`.
impl std::str::FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::find(text).ok_or_else(|| format!("{text:?} is not one of: {}", Self::list()))
    }
}

#[cfg(test)]
mod tests;
