//! The process as its operators see it.

use super::config::units::Word;
use super::config::{Config, LogLevel, Target, WalSync};
use super::local::LocalIngester;
use super::overview::overview;
use super::telemetry::Telemetry;
use crate::api::Status;
use crate::distributor::ClientPool;
use crate::fs::RealFs;
use crate::ingester::{Progress, RecoveryReport};
use crate::model::{PushError, Traffic, WallClock};
use crate::ring::{Instance, SharedRing};
use crate::wal::{QUARANTINE_BUDGET, Quarantine};
use parking_lot::Mutex;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// State of the process, for pages and probes.
pub struct ProcessStatus {
    /// The configuration in force.
    pub config: Config,
    /// Our own log.
    pub telemetry: Telemetry,
    /// The ingester of this process.
    pub ingester: Arc<LocalIngester>,
    /// How far replay is.
    pub progress: Arc<Progress>,
    /// What replay found.
    pub report: Mutex<Option<RecoveryReport>>,
    /// SIGTERM was received.
    pub stopping: AtomicBool,
    /// The ring and the clients of its ingesters, if this process distributes over one.
    pub ring: Option<(Arc<ClientPool>, Arc<SharedRing>)>,
    /// The wall clock, by which lines are refused.
    pub clock: Arc<WallClock>,
    /// Who pushes, and who is refused.
    pub traffic: Arc<Traffic>,
}

impl ProcessStatus {
    pub(super) fn runs_ingester(&self) -> bool {
        self.config.runs(Target::Ingester)
    }

    /// Why the process is not ready, if so.
    pub fn not_ready(&self) -> Option<String> {
        if self.stopping.load(Ordering::Acquire) {
            return Some("Application is stopping".into());
        }
        if !self.runs_ingester() {
            return None;
        }
        if self.ingester.get().is_some() {
            return None;
        }
        let done = self.progress.done.load(Ordering::Relaxed);
        let total = self.progress.total.load(Ordering::Relaxed);
        if total == 0 {
            return Some("Ingester not ready: replaying the write-ahead log, 0 % so far".into());
        }
        let percent = (done * 100 / total).min(100);
        Some(format!("Ingester not ready: replaying the write-ahead log, {percent} % of {total} bytes"))
    }

    /// Status and text if reads cannot be answered: here there is nothing to read, or not yet. Loki's distributor has no
    /// routes for reads.
    pub fn no_reads(&self) -> Option<(u16, String)> {
        if !self.runs_ingester() {
            let text = "this process is a distributor (-target=distributor): it hands pushes on and holds no lines; \
                        send reads to the ingesters of common.ring.instances";
            return Some((404, text.to_string()));
        }
        self.not_ready().filter(|_| self.ingester.get().is_none()).map(|why| (503, why))
    }

    /// Why pushes are refused although the process is ready: a full disk. Reads go on, so it stays ready.
    fn refuses_pushes(&self) -> Option<String> {
        self.ingester.get()?.refuses()
    }

    /// What an operator should know although the process is ready.
    fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> =
            self.refuses_pushes().map(|why| format!("pushes are refused: {why}")).into_iter().collect();
        if let Some(weaker) = durability_note(&self.config) {
            notes.push(weaker);
        }
        notes.extend(self.clock.doubt());
        notes.extend(self.damage_note());
        let unresolved = self.report.lock().as_ref().map_or(0, |r| r.unresolved);
        if unresolved > 0 {
            let records = counted(unresolved, "record");
            notes.push(format!("the end of the log was cut before or within 50 ms of its ack: {records} unresolved"));
        }
        notes
    }
}

impl ProcessStatus {
    /// What is in quarantine, until an operator has read it.
    fn damage_note(&self) -> Option<String> {
        let dir = self.config.quarantine_dir();
        let shown = dir.display();
        let quarantine = match Quarantine::read(&RealFs, &dir) {
            Ok(quarantine) => quarantine,
            Err(error) => return Some(format!("{shown} cannot be read: {error}")),
        };
        let first = quarantine.unread.first()?;
        let lines = quarantine.unread_reports().map(|r| r.lines_missing).max().unwrap_or(0);
        let least = if quarantine.unread_reports().any(|r| r.at_least) { "at least " } else { "" };
        let full = if quarantine.bytes >= QUARANTINE_BUDGET { "; it is full, so only reports are added" } else { "" };
        Some(format!(
            "the log was damaged: {} in {shown}, the largest loss is {least}{}{full}; rename a report that you have read (mv {first} \
             {}.acknowledged.json)",
            counted(quarantine.unread.len() as u64, "report"),
            counted(lines, "acknowledged line"),
            first.trim_end_matches(".json")
        ))
    }
}

/// A number with its noun.
fn counted(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// A sentence for operators if acks are weaker than the default.
pub fn durability_note(config: &Config) -> Option<String> {
    match config.ingester.wal.sync {
        WalSync::Always => None,
        WalSync::Interval => Some(format!(
            "ingester.wal.sync is interval: a power loss may cost the acknowledged lines of the last {:?}",
            config.ingester.wal.sync_interval
        )),
        WalSync::Os => Some("ingester.wal.sync is os: a power loss may cost acknowledged lines".into()),
    }
}

impl Status for ProcessStatus {
    fn ready(&self) -> Result<String, String> {
        match self.not_ready() {
            Some(why) => Err(why),
            None => Ok(std::iter::once("ready".to_string()).chain(self.notes()).collect::<Vec<_>>().join("\n")),
        }
    }

    fn accepts_pushes(&self) -> Result<(), PushError> {
        let why = self.not_ready().or_else(|| self.refuses_pushes());
        why.map_or(Ok(()), |why| Err(PushError::unavailable(why)))
    }

    fn config_yaml(&self) -> String {
        self.config.to_yaml()
    }

    fn services(&self) -> String {
        let ingester = if self.ingester.get().is_some() { "Running" } else { "Starting" };
        let mut lines = vec!["server => Running".to_string()];
        for (part, name, state) in [
            (Target::Distributor, "distributor", "Running"),
            (Target::Ingester, "ingester", ingester),
            (Target::Querier, "querier", ingester),
        ] {
            if self.config.runs(part) {
                lines.push(format!("{name} => {state}"));
            }
        }
        lines.join("\n")
    }

    fn ring_json(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let shards: Vec<serde_json::Value> = match &self.ring {
            Some((pool, ring)) => ring.load().instances().iter().map(|i| shard(i, pool)).collect(),
            None => vec![json!({
                "id": instance_id(&self.config),
                "state": if self.not_ready().is_none() { "ACTIVE" } else { "JOINING" },
                "address": format!("{}:{}", self.config.server.grpc_listen_address, self.config.server.grpc_listen_port),
                "zone": "",
                "tokens": [],
            })],
        };
        json!({"shards": shards, "now": now}).to_string()
    }

    fn overview_json(&self) -> String {
        overview(self).to_string()
    }

    fn log_level(&self) -> String {
        self.telemetry.level().as_str().to_string()
    }

    fn set_log_level(&self, level: &str) -> Result<(), String> {
        let level: LogLevel = LogLevel::find(level).ok_or_else(|| format!("unrecognized log level \"{level}\""))?;
        self.telemetry.set_level(level).map_err(|e| e.to_string())
    }
}

/// One ingester, with Loki's word for one that is not heard of.
fn shard(instance: &Instance, pool: &ClientPool) -> serde_json::Value {
    let Instance { id, addr, zone, tokens, .. } = instance;
    let state = if pool.problem(addr).is_none() { "ACTIVE" } else { "UNHEALTHY" };
    json!({"id": id, "state": state, "address": addr, "zone": zone, "tokens": tokens})
}

/// This process in the ring: as configured, or the host's name.
pub fn instance_id(config: &Config) -> String {
    match config.common.ring.instance_id.as_str() {
        "" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        id => id.to_string(),
    }
}
