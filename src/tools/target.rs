//! A new data directory that takes pushes: where `import` writes to. It is an ingester with the default settings, so what
//! it writes is what a server writes.

use crate::ingester::{Ingester, IngesterMetrics, Live, NilRecord, Progress};
use crate::inspect::{InspectError, say};
use crate::model::{Entry, LabelSet, Limits, MetadataPair, Overrides, Push, PushError, PushStream, Span, Tenant};
use crate::server::config::Config;
use crate::server::ingester_config;
use prometheus::{CounterVec, Opts, Registry};
use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Bytes of lines in a push.
const PUSH: usize = 1 << 20;
/// Bytes of lines that wait to be pushed, over all tenants.
const WAITING: usize = 16 << 20;
/// How long one push is tried again while the ingester makes room.
const PATIENCE: Duration = Duration::from_secs(60);

/// A data directory that is being filled.
pub struct Target {
    ingester: Ingester<Live>,
    runtime: Runtime,
    batches: HashMap<Tenant, Batch>,
    waiting: usize,
}

/// Lines of a tenant that wait to be pushed.
#[derive(Default)]
struct Batch {
    push: Push,
    streams: HashMap<Arc<str>, (Arc<LabelSet>, Vec<Entry>)>,
    /// Streams in the order in which they came.
    order: Vec<Arc<str>>,
}

impl Target {
    /// Makes the directory, which must be empty or not exist.
    ///
    /// # Errors
    /// It is not empty, or the disk fails.
    pub fn create(dir: &Path) -> Result<Self, InspectError> {
        refuse_content(dir)?;
        let mut config = Config::default();
        config.common.path_prefix = dir.to_string_lossy().into_owned();
        let mut settings = ingester_config(&config).map_err(|e| failed(dir, &format!("{e:#}")))?;
        // What is too far behind was decided when the line was first stored.
        settings.max_chunk_age = Duration::MAX;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|e| failed(dir, &e.to_string()))?;
        let metrics = metrics().map_err(|e| failed(dir, &e.to_string()))?;
        let overrides = Arc::new(Overrides::new(no_limits(), HashMap::new()));
        let replayed = Ingester::<NilRecord>::replay(settings, overrides, metrics, &Progress::default());
        let shown = dir.display().to_string();
        let on_poisoned = move |e: &std::io::Error| {
            // The log's own thread tells; nothing that was not synced counts.
            say(&format!(
                "wal-inspect: a sync or write in {shown} failed: {e}\nnext: look at the disk; then {}",
                again(&shown)
            ));
            std::process::exit(3);
        };
        let live = replayed.and_then(|r| r.go_live(Box::new(on_poisoned)));
        let ingester = live.map_err(|e| failed(dir, &e.to_string()))?;
        Ok(Self { ingester, runtime, batches: HashMap::new(), waiting: 0 })
    }

    /// Adds a line. It is on disk when [`Target::finish`] returns, at the latest.
    ///
    /// # Errors
    /// A push failed.
    pub fn add<'a>(
        &mut self,
        tenant: &Tenant,
        labels: &Arc<LabelSet>,
        timestamp: i64,
        line: &'a [u8],
        metadata: &[(&'a [u8], &'a [u8])],
    ) -> Result<(), InspectError> {
        if !self.batches.contains_key(tenant) {
            self.batches.insert(tenant.clone(), Batch::default());
        }
        let Some(batch) = self.batches.get_mut(tenant) else { return Ok(()) };
        let before = batch.push.arena.len();
        batch.add(labels, timestamp, line, metadata);
        let size = batch.push.arena.len();
        self.waiting += size - before;
        if size >= PUSH {
            self.push(tenant)?;
        } else if self.waiting >= WAITING {
            self.push_all()?;
        }
        Ok(())
    }

    /// Stores what waits, and makes everything durable.
    ///
    /// # Errors
    /// A push failed.
    pub fn finish(mut self) -> Result<(), InspectError> {
        self.push_all()?;
        self.ingester.stop();
        Ok(())
    }

    fn push_all(&mut self) -> Result<(), InspectError> {
        let tenants: Vec<Tenant> = self.batches.keys().cloned().collect();
        tenants.iter().try_for_each(|tenant| self.push(tenant))
    }

    fn push(&mut self, tenant: &Tenant) -> Result<(), InspectError> {
        let Some(batch) = self.batches.remove(tenant) else { return Ok(()) };
        self.waiting = self.waiting.saturating_sub(batch.push.arena.len());
        let push = Arc::new(batch.into_push());
        let streams: Vec<u32> = (0..push.streams.len() as u32).collect();
        let started = Instant::now();
        loop {
            let pushed = self.runtime.block_on(self.ingester.push(tenant, push.clone(), &streams));
            match pushed {
                Ok(()) => return Ok(()),
                // Nothing of it was stored: heads are being sealed, or the disk is full.
                Err(e) if e.status == 503 && started.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(100))
                }
                Err(e) => return Err(refused(&e)),
            }
        }
    }
}

impl Batch {
    fn add(&mut self, labels: &Arc<LabelSet>, timestamp: i64, line: &[u8], metadata: &[(&[u8], &[u8])]) {
        let push = &mut self.push;
        let first = push.metadata.len() as u32;
        for (name, value) in metadata {
            let pair = MetadataPair { name: intern(&mut push.arena, name), value: intern(&mut push.arena, value) };
            push.metadata.push(pair);
        }
        let line = intern(&mut push.arena, line);
        let entry = Entry { timestamp, line, metadata: first..push.metadata.len() as u32 };
        let stream = match self.streams.entry(labels.text().into()) {
            Slot::Occupied(known) => known.into_mut(),
            Slot::Vacant(free) => {
                self.order.push(free.key().clone());
                free.insert((labels.clone(), Vec::new()))
            }
        };
        stream.1.push(entry);
    }

    fn into_push(mut self) -> Push {
        for text in self.order {
            let Some((labels, entries)) = self.streams.remove(&text) else { continue };
            let start = self.push.entries.len() as u32;
            self.push.entries.extend(entries);
            // Without a ring, nobody asks for the token.
            let stream = PushStream { labels, token: 0, entries: start..self.push.entries.len() as u32 };
            self.push.streams.push(stream);
        }
        self.push
    }
}

fn intern(arena: &mut Vec<u8>, bytes: &[u8]) -> Span {
    let start = arena.len();
    arena.extend_from_slice(bytes);
    Span::new(start, bytes.len())
}

/// A fresh volume may have the directory of its file system's lost files.
fn refuse_content(dir: &Path) -> Result<(), InspectError> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        listed => listed.map_err(InspectError::io("list", dir))?,
    };
    for entry in entries {
        let entry = entry.map_err(InspectError::io("list", dir))?;
        if entry.file_name() != "lost+found" {
            return Err(InspectError::Tool {
                what: format!("{} is not empty: a log is imported into a new directory", dir.display()),
                next: "wal-inspect -d NEW_DIR import ..., with a directory that is empty or not there yet".to_string(),
                code: 2,
            });
        }
    }
    Ok(())
}

fn again(dir: &str) -> String {
    format!("remove {dir}, which holds a part only, and give the same command again")
}

fn failed(dir: &Path, why: &str) -> InspectError {
    let what = format!("cannot make a log in {}: {why}", dir.display());
    InspectError::Tool { what, next: again(&dir.display().to_string()), code: 3 }
}

fn refused(error: &PushError) -> InspectError {
    InspectError::Tool {
        what: format!("the new log did not take the lines: {error}"),
        next: "df, which shows whether there is space; then remove the new directory and give the same command again"
            .to_string(),
        code: 3,
    }
}

/// What is imported was admitted before.
fn no_limits() -> Limits {
    Limits {
        per_stream_rate_limit: f64::INFINITY,
        per_stream_rate_limit_burst: f64::INFINITY,
        max_global_streams_per_user: 0,
        ..Limits::default()
    }
}

fn metrics() -> Result<IngesterMetrics, prometheus::Error> {
    let discarded = |name: &str| {
        CounterVec::new(Opts::new(name, "Not shown."), &["reason", "tenant", "retention_hours", "policy", "format"])
    };
    IngesterMetrics::new(&Registry::new(), (discarded("samples")?, discarded("bytes")?))
}
