//! Start, run, stop: listeners open first, then the log is replayed, then pushes are taken; a stop goes the other way.

use super::config::{
    ChunkEncoding, ClientAuth, Config, ConfigError, OnDamage, Problem, Target, TlsConfig, WalCompression, WalSync,
};
use super::local::{LocalClient, LocalIngester, LocalSource};
use super::reader::QueryReader;
use super::status::{ProcessStatus, durability_note};
use super::telemetry::Telemetry;
use crate::api::decode::{Budget, DecodeLimits};
use crate::api::grpc::{ClientConfig, GrpcIngesterClient};
use crate::api::serve::{GRPC_ALPN, HTTP_ALPN, ListenerConfig, Protocol, serve};
use crate::api::{Api, ApiConfig, Backends, grpc, http, tls};
use crate::chunk::Encoding;
use crate::distributor::{ClientPool, Distributor, DistributorConfig, IngesterClient, PoolConfig, Pusher, Route};
use crate::fs::{FailClosedFs, Fs, Mount, RealFs, Space, are_on_one_file_system};
use crate::ingester::{
    Cluster, Ingester, IngesterConfig, IngesterMetrics, Live, NilRecord, OnPoisoned, Progress, RecoveryReport,
    ScrubOptions,
};
use crate::model::{Limits, Overrides, RateLimited, Tenant, Traffic, WallClock};
use crate::querier::Querier;
use crate::ring::{Ring, SharedRing};
use crate::wal::{Codec, SyncMode};
use anyhow::{Context, Result, anyhow, bail};
use parking_lot::Mutex;
use prometheus::Registry;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info, warn};

/// Exit code after a failed sync (`EX_IOERR`).
pub const EXIT_POISONED: i32 = 74;
/// Exit code after a second SIGTERM or SIGINT.
const EXIT_AT_ONCE: i32 = 143;
/// As `signal(7)` has it for Linux on x86, ARM and RISC-V.
const SIGXFSZ: i32 = 25;

/// Runs the server until SIGTERM or SIGINT.
///
/// # Errors
/// It could not start: a port, a certificate, the data directory, the log.
pub async fn run(config: Config, telemetry: Telemetry) -> Result<()> {
    let tls = ListenerTls::load(&config)?;
    let server = Server::build(config, telemetry)?;
    let stop = stop_signal()?;
    // A write beyond RLIMIT_FSIZE is to fail like one to a full disk. Without a handler its signal ends the process.
    let _beyond_the_file_size = signal(SignalKind::from_raw(SIGXFSZ))?;
    server.serve(tls, stop).await
}

/// Resolves at the first SIGTERM or SIGINT; the second ends the process at once. Whatever was acknowledged is on disk.
fn stop_signal() -> Result<watch::Receiver<bool>> {
    let (told, stop) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        info!("stopping: no new connections, requests in flight are finished; a second signal stops at once");
        let _ = told.send(true);
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        warn!("stopping at once");
        std::process::exit(EXIT_AT_ONCE);
    });
    Ok(stop)
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // The sender lives as long as the process.
    let _ = stop.wait_for(|stop| *stop).await;
}

struct Server {
    config: Config,
    status: Arc<ProcessStatus>,
    api: Arc<Api>,
    overrides: Arc<Overrides>,
    ingester: Arc<LocalIngester>,
    metrics: Option<IngesterMetrics>,
    pool: Option<(Arc<ClientPool>, Arc<SharedRing>)>,
}

impl Server {
    fn build(config: Config, telemetry: Telemetry) -> Result<Self> {
        let registry = Registry::new();
        let overrides = Arc::new(config.overrides());
        let ingester = Arc::new(LocalIngester::default());
        let local: Arc<dyn IngesterClient> = Arc::new(LocalClient(ingester.clone()));
        let pool = static_ring(&config, &registry)?;
        let clock = Arc::<WallClock>::default();
        let traffic = Arc::<Traffic>::default();
        let distributor = |overrides: Arc<Overrides>, route, registry: &Registry, traffic: &Arc<Traffic>| {
            let settings =
                DistributorConfig { replication_factor: config.common.replication_factor, ..Default::default() };
            let distributor = Distributor::new(settings, overrides, route, registry)?;
            Ok::<_, prometheus::Error>(Arc::new(distributor.with_clock(clock.clone()).with_traffic(traffic.clone())))
        };
        let distributes = config.runs(Target::Distributor);
        // What an ingester gets over gRPC was routed already: it never enters the ring again. Without a distributor in
        // this process it was validated already, too.
        let local_limits = if distributes {
            overrides.clone()
        } else {
            Arc::new(Overrides::new(validated_already(), Default::default()))
        };
        let (pusher, grpc_pusher) = match &pool {
            Some((pool, ring)) if distributes => {
                let ring = distributor(
                    overrides.clone(),
                    Route::Ring { ring: ring.clone(), pool: pool.clone() },
                    &registry,
                    &traffic,
                )?;
                let own = if config.runs(Target::Ingester) {
                    // The names are taken by the distributor before the ring; these counts are not shown.
                    distributor(local_limits, Route::Local(local), &Registry::new(), &Arc::default())?
                } else {
                    ring.clone()
                };
                (ring, own)
            }
            _ if distributes && !config.runs(Target::Ingester) => {
                bail!("-target=distributor needs the ingesters: set common.ring.instances to a list of {{id, addr}}")
            }
            _ => {
                let own = distributor(local_limits, Route::Local(local), &registry, &traffic)?;
                (own.clone(), own)
            }
        };
        let discarded = pusher.metrics();
        let metrics =
            IngesterMetrics::new(&registry, (discarded.discarded_samples.clone(), discarded.discarded_bytes.clone()))?
                .with_traffic(traffic.clone());
        let status = Arc::new(ProcessStatus {
            config: config.clone(),
            telemetry,
            ingester: ingester.clone(),
            progress: Arc::new(Progress::default()),
            report: Mutex::new(None),
            stopping: AtomicBool::new(false),
            ring: pool.clone(),
            clock: clock.clone(),
            traffic,
        });
        let waiting = status.clone();
        let reader = Arc::new(QueryReader {
            querier: Querier::new(Arc::new(LocalSource(ingester.clone())), overrides.clone()),
            unavailable: Box::new(move || waiting.no_reads()),
        });
        let backends = Backends {
            pusher: pusher as Arc<dyn Pusher>,
            grpc_pusher: grpc_pusher as Arc<dyn Pusher>,
            reader,
            status: status.clone(),
        };
        let budget = Budget::new(usize::try_from(config.memory_budget() / 8).unwrap_or(usize::MAX));
        let api = Api::new(backends, budget, api_config(&config)?, registry)?;
        Ok(Self { config, status, api, overrides, ingester, metrics: Some(metrics), pool })
    }

    async fn serve(mut self, tls: ListenerTls, stop: watch::Receiver<bool>) -> Result<()> {
        let server = &self.config.server;
        let ListenerTls { http: http_tls, grpc: grpc_tls } = tls;
        let http_listener = listen(&server.http_listen_address, server.http_listen_port, "http").await?;
        let grpc_listener = listen(&server.grpc_listen_address, server.grpc_listen_port, "grpc").await?;
        let (http_addr, grpc_addr) = (http_listener.local_addr()?, grpc_listener.local_addr()?);
        info!(http = %shown(http_addr, http_tls.is_some()), grpc = %shown(grpc_addr, grpc_tls.is_some()), "listening");
        let http = self.listener(Protocol::Http, http_listener, http_tls, http::router(self.api.clone()), &stop);
        let grpc = self.listener(Protocol::Grpc, grpc_listener, grpc_tls, grpc::router(self.api.clone()), &stop);
        if let Some((pool, ring)) = self.pool.clone() {
            tokio::spawn(async move { pool.check_forever(ring).await });
        }
        tokio::spawn(watch_clock(self.status.clock.clone()));
        let started = tokio::select! {
            started = self.start_ingester() => started,
            // Nothing was taken yet: there is nothing to finish.
            () = stopped(stop.clone()) => return Ok(()),
        };
        started?;
        stopped(stop).await;
        self.status.stopping.store(true, Ordering::Release);
        let (http, grpc) = tokio::join!(http, grpc);
        let cut = http.unwrap_or(0) + grpc.unwrap_or(0);
        if cut > 0 {
            warn!(
                connections = cut,
                "connections were cut off: their requests took longer than graceful_shutdown_timeout"
            );
        }
        if let Some(ingester) = self.ingester.get().cloned() {
            tokio::task::spawn_blocking(move || ingester.stop()).await?;
        }
        info!("stopped: everything that was acknowledged is on disk");
        Ok(())
    }

    fn listener(
        &self,
        protocol: Protocol,
        listener: TcpListener,
        tls: Option<Arc<rustls::ServerConfig>>,
        router: axum::Router,
        stop: &watch::Receiver<bool>,
    ) -> tokio::task::JoinHandle<usize> {
        let server = &self.config.server;
        let mut settings = ListenerConfig::new(protocol);
        settings.write_timeout = server.http_server_write_timeout;
        settings.drain_timeout = server.graceful_shutdown_timeout;
        if protocol == Protocol::Http {
            settings.idle_timeout = server.http_server_idle_timeout;
        }
        let (api, stop) = (self.api.clone(), stop.clone());
        tokio::spawn(async move { serve(listener, tls, router, settings, api.metrics(), stopped(stop)).await })
    }

    /// Replays the log on threads of its own and opens it for pushes.
    async fn start_ingester(&mut self) -> Result<()> {
        let Some(metrics) = self.metrics.take().filter(|_| self.config.runs(Target::Ingester)) else {
            let (ring, copies) = (&self.config.common.ring, self.config.common.replication_factor);
            info!(ingesters = ring.instances.len(), copies, "ready: pushes are handed on to the ingesters of the ring");
            return Ok(());
        };
        let settings = ingester_config(&self.config)?;
        let (overrides, progress) = (self.overrides.clone(), self.status.progress.clone());
        let watcher = tokio::spawn(log_progress(progress.clone()));
        let started = tokio::task::spawn_blocking(move || -> Result<_> {
            let mut replayed = Ingester::<NilRecord>::replay(settings, overrides, metrics, &progress)?;
            replayed.keep_damaged();
            let report = replayed.report.clone();
            Ok((replayed.go_live(on_poisoned())?, report))
        })
        .await;
        watcher.abort();
        let (ingester, report) = started??;
        tell(&self.config, &report);
        report.newest.into_iter().for_each(|newest| self.status.clock.log_has_seen(newest));
        *self.status.report.lock() = Some(report);
        let scrub = &self.config.ingester.scrub;
        if scrub.rate > 0 {
            ingester.scrub(ScrubOptions { rate: scrub.rate, interval: scrub.interval });
        }
        let ingester = Arc::new(ingester);
        self.ingester.set(ingester.clone());
        tokio::spawn(watch_ingester(ingester));
        Ok(())
    }
}

/// A failed sync leaves memory and disk in doubt: nothing more is acknowledged, and the next start serves what the disk holds.
fn on_poisoned() -> OnPoisoned {
    Box::new(|e: &io::Error| {
        error!(error = %e, "the write-ahead log failed: exiting; the next start serves what is on disk");
        std::process::exit(EXIT_POISONED);
    })
}

/// What recovery found and how durable an ack is.
fn tell(config: &Config, report: &RecoveryReport) {
    let data = config.data_dir().display().to_string();
    info!(
        data,
        segments = report.segments,
        streams = report.streams,
        lines = report.lines,
        block_lines = report.block_lines,
        read_seconds = milliseconds(report.read_seconds),
        blocks_seconds = milliseconds(report.restored_seconds - report.read_seconds),
        seconds = milliseconds(report.seconds),
        "recovered the write-ahead log"
    );
    if report.damaged_places > 0 {
        error!(
            places = report.damaged_places,
            lost_lines = report.lost(),
            "where" = report.losses.join("; "),
            "the log is damaged; everything else was recovered, and {} in {data}/quarantine: run `wal-inspect verify {}`",
            match report.quarantine_failed[..] {
                [] => "the damaged segments are with a report",
                _ => "what could be kept is",
            },
            inspect_flags(config)
        );
    }
    for why in &report.quarantine_failed {
        error!("a damaged segment is not in quarantine: {why}");
    }
    if report.unattributed_lines > 0 {
        error!(
            lines = report.unattributed_lines,
            "lines of streams whose definitions are lost are kept in the log, and not shown"
        );
    }
    if report.unresolved > 0 {
        info!(
            records = report.unresolved,
            "tail unresolved: the last write was cut before its ack, or damaged within 50 ms of it"
        );
    }
    tell_mounts(config);
    tell_file_systems(config);
    match durability_note(config) {
        None => info!("ready: a push is answered when its lines are synced to disk (ingester.wal.sync: always)"),
        Some(note) => warn!("ready: {note}"),
    }
}

/// Seconds without what is below a millisecond.
fn milliseconds(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// An ack promises no more than the file system keeps.
fn tell_mounts(config: &Config) {
    let data = config.data_dir();
    let elsewhere = [config.wal_dir(), config.blocks_dir()].into_iter().filter(|dir| !dir.starts_with(&data));
    for dir in std::iter::once(data.clone()).chain(elsewhere) {
        // Without a table of mounts nothing is known, and nothing is said.
        if let Some(mount) = Mount::of(&dir).ok().flatten()
            && let Some(doubt) = mount.doubt()
        {
            warn!(dir = %dir.display(), file_system = mount.fs_type, "acknowledged lines may be lost with their directory: {doubt}");
        }
    }
}

/// The log is kept whole in quarantine by second names, where there can be any.
fn tell_file_systems(config: &Config) {
    let data = config.data_dir();
    for (key, dir) in [("ingester.wal.dir", config.wal_dir()), ("ingester.blocks.dir", config.blocks_dir())] {
        // Where nothing can be told of a directory, the start has failed, or will.
        if let Ok(false) = are_on_one_file_system(&dir, &data) {
            let (dir, data) = (dir.display(), data.display());
            warn!(
                "{key} ({dir}) is on another file system than {data}: should a segment be damaged, it is copied to \
                 {data}/quarantine, which needs space there"
            );
        }
    }
}

/// How `wal-inspect` finds the logs.
fn inspect_flags(config: &Config) -> String {
    let mut out = format!("-d {}", config.data_dir().display());
    for (flag, dir) in [("--wal-dir", &config.ingester.wal.dir), ("--blocks-dir", &config.ingester.blocks.dir)] {
        if !dir.is_empty() {
            out += &format!(" {flag} {dir}");
        }
    }
    out
}

/// Keeps the gauges fresh, and tells the operator while pushes are refused.
async fn watch_ingester(ingester: Arc<Ingester<Live>>) {
    static REFUSING: RateLimited = RateLimited::new(Duration::from_secs(60));
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        ingester.refresh_metrics();
        if let Some(why) = ingester.refuses()
            && let Some(suppressed) = REFUSING.due()
        {
            warn!(suppressed, "pushes are refused: {why}");
        }
    }
}

/// Tells when the wall clock is in doubt, and when it is not any more.
async fn watch_clock(clock: Arc<WallClock>) {
    let mut told = false;
    loop {
        let doubt = clock.doubt();
        match &doubt {
            Some(why) if !told => warn!("lines that are too old or too new are answered 503, not 400: {why}"),
            None if told => info!("the wall clock is believed again"),
            _ => {}
        }
        told = doubt.is_some();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn log_progress(progress: Arc<Progress>) {
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (done, total) = (progress.done.load(Ordering::Relaxed), progress.total.load(Ordering::Relaxed));
        if total == 0 {
            continue;
        }
        info!(percent = (done * 100 / total).min(100), bytes = total, "replaying the write-ahead log");
    }
}

fn shown(addr: SocketAddr, tls: bool) -> String {
    if tls { format!("{addr} (TLS)") } else { addr.to_string() }
}

async fn listen(address: &str, port: u16, what: &str) -> Result<TcpListener> {
    let host = if address.is_empty() { "0.0.0.0" } else { address };
    let bound = TcpListener::bind((host, port)).await;
    bound.with_context(|| {
        format!("cannot listen on {host}:{port} for {what}: is it in use? Set another with -server.{what}-listen-port")
    })
}

/// TLS of both listeners, from the files that the configuration names.
pub(super) struct ListenerTls {
    http: Option<Arc<rustls::ServerConfig>>,
    grpc: Option<Arc<rustls::ServerConfig>>,
}

impl ListenerTls {
    /// # Errors
    /// Everything that is wrong with the files of either.
    pub(super) fn load(config: &Config) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let mut load = |place: &str, config: &TlsConfig, alpn: &[&str]| {
            load_tls(config, alpn).unwrap_or_else(|error| {
                problems.push(Problem { place: place.to_string(), text: error.to_string() });
                None
            })
        };
        let server = &config.server;
        let http = load("server.http_tls_config", &server.http_tls_config, &HTTP_ALPN);
        let grpc = load("server.grpc_tls_config", &server.grpc_tls_config, &GRPC_ALPN);
        if problems.is_empty() { Ok(Self { http, grpc }) } else { Err(ConfigError { problems }) }
    }
}

fn load_tls(config: &TlsConfig, alpn: &[&str]) -> Result<Option<Arc<rustls::ServerConfig>>, tls::TlsError> {
    if !config.enabled() {
        return Ok(None);
    }
    let settings = tls::TlsConfig {
        cert_file: config.cert_file.clone().into(),
        key_file: config.key_file.clone().into(),
        client_ca_file: (!config.client_ca_file.is_empty()).then(|| config.client_ca_file.clone().into()),
        client_auth: match config.client_auth_type {
            ClientAuth::None => tls::ClientAuth::None,
            ClientAuth::IfGiven => tls::ClientAuth::VerifyIfGiven,
            ClientAuth::Required => tls::ClientAuth::RequireAndVerify,
        },
    };
    Ok(Some(tls::load(&settings, alpn)?))
}

fn api_config(config: &Config) -> Result<ApiConfig> {
    let tenant = Tenant::new(&config.no_auth_tenant)?;
    let mut out = ApiConfig::new(tenant);
    out.auth_enabled = config.auth_enabled;
    out.read_timeout = config.server.http_server_read_timeout;
    out.grpc_max_recv_msg_size = config.server.grpc_server_max_recv_msg_size;
    out.decode = DecodeLimits {
        max_compressed: config.distributor.max_recv_msg_size,
        max_decompressed: config.distributor.max_decompressed_size,
        ..DecodeLimits::default()
    };
    Ok(out)
}

/// Limits of an ingester that gets validated pushes only.
fn validated_already() -> Limits {
    Limits {
        ingestion_rate: f64::INFINITY,
        ingestion_burst_size: f64::INFINITY,
        max_label_name_length: usize::MAX,
        max_label_value_length: usize::MAX,
        max_label_names_per_series: usize::MAX,
        reject_old_samples: false,
        creation_grace_period: Duration::MAX,
        max_line_size: 0,
        discover_service_name: Vec::new(),
        discover_log_levels: false,
        max_structured_metadata_size: usize::MAX,
        max_structured_metadata_entries_count: usize::MAX,
        ..Limits::default()
    }
}

/// The static ring of `common.ring.instances` with its clients; `None` without members.
fn static_ring(config: &Config, registry: &Registry) -> Result<Option<(Arc<ClientPool>, Arc<SharedRing>)>> {
    let ring = &config.common.ring;
    if ring.instances.is_empty() || !config.runs(Target::Distributor) {
        return Ok(None);
    }
    for member in &ring.instances {
        // A wrong address shows at the start, not at the first push.
        GrpcIngesterClient::new(&member.addr, ClientConfig::default())
            .with_context(|| format!("ring member {}", member.id))?;
    }
    let members = ring.instances.iter().map(|i| (i.id.as_str(), i.addr.as_str()));
    let tokens = u32::try_from(ring.num_tokens).map_err(|_| anyhow!("common.ring.num_tokens is too large"))?;
    let shared = Arc::new(SharedRing::new(Ring::of_static(members, tokens)));
    let connect = |address: &str| -> Arc<dyn IngesterClient> {
        let client = GrpcIngesterClient::new(address, ClientConfig::default());
        Arc::new(client.unwrap_or_else(|e| unreachable!("checked at the start: {e}")))
    };
    let pool = ClientPool::new(Box::new(connect), PoolConfig::default(), registry)?;
    Ok(Some((Arc::new(pool), shared)))
}

/// The settings of the ingester that a configuration asks for, on the disk as it is.
///
/// # Errors
/// The disk cannot be asked for its space.
pub fn ingester_config(config: &Config) -> Result<IngesterConfig> {
    let fs: Arc<dyn Fs> = Arc::new(FailClosedFs::new(Arc::new(RealFs)));
    let (ingester, wal) = (&config.ingester, &config.ingester.wal);
    let (wal_dir, blocks_dir) = (config.wal_dir(), config.blocks_dir());
    let segment_size = segment_size(&*fs, config)?;
    let (wal_max_size, blocks_max_size) = budgets(&*fs, config, segment_size)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let members = config.common.ring.instances.len().max(1);
    Ok(IngesterConfig {
        segment_size,
        wal_max_size,
        blocks_max_size,
        fs,
        data_dir: config.data_dir(),
        wal_dir,
        blocks_dir,
        quarantine_dir: config.quarantine_dir(),
        refuse_damage: wal.on_damage == OnDamage::Refuse,
        require_data: ingester.require_data,
        sync: match wal.sync {
            WalSync::Always => SyncMode::Always,
            WalSync::Interval => SyncMode::Interval(wal.sync_interval),
            WalSync::Os => SyncMode::Os,
        },
        wal_codec: match wal.compression {
            WalCompression::Snappy => Codec::Snappy,
            WalCompression::Zstd => Codec::Zstd,
            WalCompression::None => Codec::None,
        },
        queue_bytes: wal.queue_size,
        queue_timeout: Duration::from_secs(2),
        chunk_block_size: ingester.chunk_block_size,
        chunk_target_size: ingester.chunk_target_size,
        chunk_encoding: match ingester.chunk_encoding {
            ChunkEncoding::Snappy => Encoding::Snappy,
            ChunkEncoding::None => Encoding::None,
        },
        max_chunk_age: ingester.max_chunk_age,
        sync_period: ingester.sync_period,
        sync_min_utilization: ingester.sync_min_utilization,
        max_returned_stream_errors: match ingester.max_returned_stream_errors {
            0 => usize::MAX,
            n => n,
        },
        // What is in heads only is what the log is kept for.
        metadata_budget: usize::try_from(config.memory_budget() / 2).unwrap_or(usize::MAX),
        heads_budget: usize::try_from((config.memory_budget() / 4).min(wal_max_size / 4)).unwrap_or(usize::MAX),
        cluster: Cluster { ingesters: members, replication_factor: config.common.replication_factor },
        threads: cores.min(8),
    })
}

/// The configured size, or less on a small disk, so that a few segments fit it.
fn segment_size(fs: &dyn Fs, config: &Config) -> Result<u64> {
    const SEGMENTS_ON_DISK: u64 = 16;
    let (dir, wanted) = (config.wal_dir(), config.ingester.wal.segment_size);
    let space = space_of(fs, &dir).with_context(|| format!("cannot ask for the space of {}", dir.display()))?;
    let fits = (space.total / SEGMENTS_ON_DISK).max(1 << 20);
    if fits >= wanted {
        return Ok(wanted);
    }
    let size = 1 << (u64::BITS - 1 - fits.leading_zeros());
    warn!(
        bytes = size,
        disk = space.total,
        "log segments are smaller than ingester.wal.segment_size: the disk is small"
    );
    Ok(size)
}

/// Bytes that the log and the block log may take. Of a small disk the log gets a quarter at most; without a limit of its
/// own, the block log gets half.
fn budgets(fs: &dyn Fs, config: &Config, segment_size: u64) -> Result<(u64, u64)> {
    let dir = config.blocks_dir();
    let total = space_of(fs, &dir).with_context(|| format!("cannot ask for the space of {}", dir.display()))?.total;
    let wal = config.ingester.wal.max_size.min((total / 4).max(4 * segment_size));
    let blocks = match config.ingester.blocks.max_size {
        0 => total / 2,
        bytes => bytes,
    };
    Ok((wal.max(4 * segment_size), blocks))
}

/// Space for a directory that may not exist yet: nothing is made before the data directory was found to be ours.
pub(super) fn space_of(fs: &dyn Fs, dir: &Path) -> io::Result<Space> {
    match (fs.space(dir), dir.parent()) {
        (Err(e), Some(parent)) if e.kind() == io::ErrorKind::NotFound => {
            space_of(fs, if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
        }
        (outcome, _) => outcome,
    }
}
