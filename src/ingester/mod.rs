//! Instances, streams and chunks in memory: a pure function of the log's prefix.
//!
//! A push is *admitted* (limits, reservations, encoding) against applied state, goes to the log, and is *applied* when it
//! is durable. Replay applies the same records with the same function. What tells the two apart is a type: an
//! [`Ingester<NilRecord>`](NilRecord) has nothing to write a record with, so during replay nothing can be logged again;
//! an [`Ingester<Live>`](Live) is made from it once replay has ended.

mod admission;
mod commit;
mod data_dir;
mod flush;
mod index;
mod instance;
mod memory;
mod metrics;
#[cfg(feature = "planted-bugs")]
mod planted;
mod recovery;
mod restore;
mod retain;
mod scrub;
mod seal;
mod sealed;
mod status;
mod stream;
#[cfg(test)]
mod tests;
mod worker;

pub use data_dir::{DataDir, DataDirError, Dirs, Identity};
pub use flush::ClosedChunk;
pub use metrics::IngesterMetrics;
pub use recovery::{Forecast, Progress, RecoveryReport, Replayed, StartError, forecast};
pub use scrub::{ScrubOptions, ScrubStatus};
pub use status::{BlocksStatus, BusyStream, IngesterStatus, MemoryStatus, OldestSegment, PinningStream, WalStatus};
pub use stream::Stream;

use crate::chunk::Encoding;
use crate::fs::Fs;
use crate::model::{LabelSet, Matcher, Overrides, Tenant};
use crate::wal::{BlockLog, Codec, SyncMode, Wal};
use ahash::AHashMap;
use commit::Payload;
use instance::Instance;
use memory::Meter;
use parking_lot::RwLock;
use retain::Retainer;
use scrub::Scrubber;
use seal::Sealer;
use sealed::Sealing;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};

/// Streams that are shown while others wait for the index.
const SHOWN_AT_ONCE: usize = 1024;

/// How an ingester is set up. Names are Loki's `ingester` block where it has them.
#[derive(Clone)]
pub struct IngesterConfig {
    /// The disk.
    pub fs: Arc<dyn Fs>,
    /// Data directory: LOCK, identity.
    pub data_dir: PathBuf,
    /// Directory of the log's segments.
    pub wal_dir: PathBuf,
    /// Directory of damaged segments and their reports; on the file system of both logs.
    pub quarantine_dir: PathBuf,
    /// Do not start when damage is found that is not in quarantine yet.
    pub refuse_damage: bool,
    /// Refuse to start on an empty volume.
    pub require_data: bool,
    /// Directory of the block log's segments; on the file system of `wal_dir`.
    pub blocks_dir: PathBuf,
    /// Bytes of a log segment.
    pub segment_size: u64,
    /// Bytes that the log's live segments may take; at least four segments. From three quarters on the oldest is cleaned, at
    /// all of it pushes get 503.
    pub wal_max_size: u64,
    /// Bytes that the block log may take; above, pushes get 503.
    pub blocks_max_size: u64,
    /// When a push counts as stored.
    pub sync: SyncMode,
    /// Compression of a push's body in the log.
    pub wal_codec: Codec,
    /// Bytes of pushes that wait for the log; more wait up to `queue_timeout`, then get 503.
    pub queue_bytes: usize,
    /// How long a push waits for room, at most.
    pub queue_timeout: Duration,
    /// Uncompressed bytes at which a head is sealed.
    pub chunk_block_size: usize,
    /// Compressed bytes at which a chunk is closed.
    pub chunk_target_size: usize,
    /// Compression of blocks.
    pub chunk_encoding: Encoding,
    /// Entries further than half of this behind their stream's newest are refused.
    pub max_chunk_age: Duration,
    /// Chunks of replicas are cut at the same times; 0 switches it off.
    pub sync_period: Duration,
    /// Share of `chunk_target_size` below which the sync rule does not cut.
    pub sync_min_utilization: f64,
    /// Rejected entries that are named in an answer.
    pub max_returned_stream_errors: usize,
    /// Bytes that all heads may hold: above, pushes wait and then get 503.
    pub heads_budget: usize,
    /// Bytes that streams and blocks may take beside their lines: from three quarters on streams are refused that are new,
    /// at all of it pushes.
    pub metadata_budget: usize,
    /// Ingesters that share `max_global_streams_per_user`, and copies of each stream.
    pub cluster: Cluster,
    /// Threads that apply, and threads that replay.
    pub threads: usize,
}

/// The ingester's share of limits that hold over the cluster.
#[derive(Clone, Copy, Debug)]
pub struct Cluster {
    /// Healthy ingesters in the ring.
    pub ingesters: usize,
    /// `replication_factor`.
    pub replication_factor: usize,
}

/// Called when the log has failed for good. In production it ends the process with code 74.
pub type OnPoisoned = Box<dyn Fn(&io::Error) + Send + Sync>;

/// The record of a replay: there is none. A value of this type cannot be logged, which is the point.
pub struct NilRecord;

/// The log of a running ingester.
pub struct Live {
    wal: Arc<Wal<Payload>>,
    blocks: Arc<BlockLog<Sealing>>,
    retainer: Retainer,
    /// Absent until it is asked for.
    scrubber: OnceLock<Scrubber>,
    data_dir: DataDir,
}

impl Live {
    /// In this order, because each needs the next.
    fn stop(&self) {
        self.scrubber.get().into_iter().for_each(Scrubber::stop);
        self.retainer.stop();
        self.blocks.stop();
        self.wal.stop();
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The ingester, replaying or live.
pub struct Ingester<L> {
    state: Arc<State>,
    log: L,
}

/// What is in memory, and what bounds it.
pub(crate) struct State {
    config: IngesterConfig,
    overrides: Arc<Overrides>,
    metrics: IngesterMetrics,
    instances: RwLock<AHashMap<Tenant, Arc<Instance>>>,
    /// Streams with applied lines, by id.
    streams: RwLock<AHashMap<u64, Arc<Stream>>>,
    next_stream_id: Arc<AtomicU64>,
    sealer: Sealer,
    /// Uncompressed bytes in heads that are not sealed.
    head_bytes: AtomicUsize,
    /// Bytes of streams and blocks without their lines.
    metadata: Meter,
    /// Blocks that are being copied to another segment of the block log.
    moving: AtomicUsize,
    /// Woken when heads were sealed.
    heads_sealed: Notify,
    /// Bytes of pushes between admission and apply.
    in_flight: Arc<Semaphore>,
}

impl State {
    fn new(config: IngesterConfig, overrides: Arc<Overrides>, metrics: IngesterMetrics) -> Arc<Self> {
        let in_flight = Arc::new(Semaphore::new(config.queue_bytes.min(Semaphore::MAX_PERMITS)));
        let state = Arc::new(Self {
            sealer: Sealer::new(),
            overrides,
            metrics,
            instances: RwLock::default(),
            streams: RwLock::default(),
            next_stream_id: Arc::new(AtomicU64::new(1)),
            head_bytes: AtomicUsize::new(0),
            metadata: Meter::default(),
            moving: AtomicUsize::new(0),
            heads_sealed: Notify::new(),
            in_flight,
            config,
        });
        seal::start(&state);
        state
    }

    fn instance(&self, tenant: &Tenant) -> Arc<Instance> {
        if let Some(instance) = self.instances.read().get(tenant) {
            return instance.clone();
        }
        let mut instances = self.instances.write();
        instances.entry(tenant.clone()).or_insert_with(|| Arc::new(Instance::new(tenant.clone()))).clone()
    }

    /// Shows a stream to reads and to whoever knows its id only.
    fn show(&self, stream: &Arc<Stream>) {
        self.streams.write().insert(stream.log.id, stream.clone());
        self.instance(&stream.log.tenant).show(stream);
        self.metrics.memory_streams.with_label_values(&[stream.log.tenant.as_str()]).inc();
    }

    /// Shows many streams, with few waits for locks that others hold.
    fn show_all(&self, streams: &[Arc<Stream>]) {
        for some in streams.chunk_by(|a, b| a.log.tenant == b.log.tenant).flat_map(|same| same.chunks(SHOWN_AT_ONCE)) {
            let Some(tenant) = some.first().map(|stream| &stream.log.tenant) else { continue };
            self.streams.write().extend(some.iter().map(|stream| (stream.log.id, stream.clone())));
            self.instance(tenant).show_all(some);
            self.metrics.memory_streams.with_label_values(&[tenant.as_str()]).add(some.len() as i64);
        }
    }

    fn stream(&self, id: u64) -> Option<Arc<Stream>> {
        self.streams.read().get(&id).cloned()
    }

    fn existing(&self, tenant: &Tenant) -> Option<Arc<Instance>> {
        self.instances.read().get(tenant).cloned()
    }

    fn all_instances(&self) -> Vec<Arc<Instance>> {
        self.instances.read().values().cloned().collect()
    }

    /// Heads have grown.
    fn heads_grew(&self, bytes: usize) {
        self.head_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Heads were sealed: whoever waits for room may go on.
    fn heads_shrank(&self, bytes: usize) {
        self.head_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.heads_sealed.notify_waiters();
    }

    /// New streams leave room for the blocks of those that are there.
    fn takes_streams(&self) -> bool {
        self.metadata.bytes() < self.config.metadata_budget / 4 * 3
    }

    fn heads_full(&self) -> bool {
        self.head_bytes.load(Ordering::Relaxed) >= self.config.heads_budget
    }
}

impl<L> Ingester<L> {
    /// Streams of a tenant that satisfy all matchers and may hold entries of `start <= timestamp < end`. Only streams with
    /// applied lines are seen.
    pub fn streams(&self, tenant: &Tenant, matchers: &[Matcher], start: i64, end: i64) -> Vec<Arc<Stream>> {
        let Some(instance) = self.state.existing(tenant) else { return Vec::new() };
        let mut streams = instance.matching(matchers);
        streams.retain(|s| s.overlaps(start, end));
        streams
    }

    /// Names of labels of the matching streams, sorted.
    pub fn label_names(&self, tenant: &Tenant, matchers: &[Matcher], start: i64, end: i64) -> Vec<String> {
        let streams = self.streams(tenant, matchers, start, end);
        let names = streams.iter().flat_map(|s| s.labels().pairs().iter().map(|(n, _)| n.to_string()));
        sorted(names)
    }

    /// Values of a label in the matching streams, sorted.
    pub fn label_values(&self, tenant: &Tenant, name: &str, matchers: &[Matcher], start: i64, end: i64) -> Vec<String> {
        let streams = self.streams(tenant, matchers, start, end);
        sorted(streams.iter().filter_map(|s| s.labels().get(name)).map(str::to_string))
    }

    /// Label sets of the matching streams, each once.
    pub fn series(&self, tenant: &Tenant, matchers: &[Matcher], start: i64, end: i64) -> Vec<Arc<LabelSet>> {
        let mut series: Vec<_> =
            self.streams(tenant, matchers, start, end).iter().map(|s| s.labels().clone()).collect();
        series.sort_by(|a, b| a.text().cmp(b.text()));
        series.dedup_by(|a, b| a.text() == b.text());
        series
    }
}

impl Ingester<Live> {
    /// Begins to read sealed segments again and again, until it is stopped.
    pub fn scrub(&self, options: ScrubOptions) {
        let Live { wal, blocks, scrubber, data_dir, .. } = &self.log;
        scrubber.get_or_init(|| Scrubber::start(&self.state, wal, blocks, data_dir.identity.volume, options));
    }
}

impl<L> Ingester<L> {
    /// Sets the gauges that are sums over streams. Costs a walk over all streams: for a timer, not for each push.
    pub fn refresh_metrics(&self) {
        let instances = self.state.all_instances();
        let mut chunks = 0;
        for stream in instances.iter().flat_map(|i| i.shown()) {
            chunks += stream.chunk_count();
            stream.recent();
        }
        self.state.metrics.memory_chunks.set(i64::try_from(chunks).unwrap_or(i64::MAX));
        let head_bytes = self.state.head_bytes.load(Ordering::Relaxed);
        self.state.metrics.head_bytes.set(i64::try_from(head_bytes).unwrap_or(i64::MAX));
        self.state.metrics.metadata_bytes.set(i64::try_from(self.state.metadata.bytes()).unwrap_or(i64::MAX));
    }
}

fn sorted(items: impl Iterator<Item = String>) -> Vec<String> {
    let set: std::collections::BTreeSet<String> = items.collect();
    set.into_iter().collect()
}
