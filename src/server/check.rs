//! `timberline -check`: would a start succeed here, and would it keep its promise? Looks at directories, file systems,
//! space, memory, the log and the ports. Nothing is changed; a file of 4 KiB is written beside the log, synced and removed.

use super::config::units::{Word, show_bytes};
use super::config::{Config, OnDamage, Target};
use super::lifecycle::{ListenerTls, ingester_config, space_of};
use crate::fs::{File, Fs, Mount, Place, RealFs, lock_holder, process_user, write_all_at};
use crate::ingester::{Forecast, IngesterConfig, forecast};
use crate::wal::percentile;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Exit code for errors: a start would fail, or break its promise.
const ERRORS: u8 = 1;
/// Exit code for a command line or a configuration that cannot be used.
pub(super) const USAGE: u8 = 2;
/// Exit code for warnings with `-check.strict`.
const WARNINGS: u8 = 3;
/// Syncs that are measured, and for how long at most.
const SYNCS: usize = 100;
const MEASURE_FOR: Duration = Duration::from_secs(5);
/// A disk whose syncs take longer is told: each push waits for one.
const SLOW: Duration = Duration::from_millis(50);
/// The file that is synced.
const TEMPORARY: &str = "check.tmp";
/// Prepared segments that come on top of the log's budget, and those of the block log.
const PREPARED: u64 = 4 + 2;
/// With less memory than this there is hardly room for streams.
const LITTLE_MEMORY: u64 = 128 << 20;

/// How the findings are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// As JSON, not as text.
    pub json: bool,
    /// Warnings make the exit code 3.
    pub strict: bool,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Ok,
    Skipped,
    Warning,
    Error,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What one check has found.
struct Finding {
    check: &'static str,
    level: Level,
    text: String,
    /// What to do about it.
    next: Option<String>,
    /// Figures, for programs.
    facts: Map<String, Value>,
}

impl Finding {
    fn new(check: &'static str, level: Level, text: impl Into<String>) -> Self {
        Self { check, level, text: text.into(), next: None, facts: Map::new() }
    }

    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, text)
    }

    fn skipped(check: &'static str, text: impl Into<String>) -> Self {
        Self::new(check, Level::Skipped, text)
    }

    fn warning(check: &'static str, text: impl Into<String>, next: impl Into<String>) -> Self {
        Self { next: Some(next.into()), ..Self::new(check, Level::Warning, text) }
    }

    fn error(check: &'static str, text: impl Into<String>, next: impl Into<String>) -> Self {
        Self { next: Some(next.into()), ..Self::new(check, Level::Error, text) }
    }

    fn with(mut self, facts: Value) -> Self {
        if let Value::Object(facts) = facts {
            self.facts.extend(facts);
        }
        self
    }

    fn json(&self) -> Value {
        let mut out = self.facts.clone();
        out.insert("check".into(), self.check.into());
        out.insert("level".into(), self.level.as_str().into());
        out.insert("text".into(), self.text.clone().into());
        out.insert("next".into(), self.next.clone().into());
        out.into()
    }
}

/// Checks everything, prints what was found, and returns the exit code.
pub(super) fn run(config: &Config, warnings: &[String], options: CheckOptions) -> ExitCode {
    let mut found: Vec<Finding> = warnings
        .iter()
        .map(|text| Finding::warning("configuration", text, "remove them from the configuration"))
        .collect();
    found.extend(all(config));
    let worst = found.iter().map(|f| f.level).max().unwrap_or(Level::Ok);
    println!("{}", if options.json { as_json(&found, worst) } else { as_text(&found, worst) });
    match worst {
        Level::Error => ExitCode::from(ERRORS),
        Level::Warning if options.strict => ExitCode::from(WARNINGS),
        _ => ExitCode::SUCCESS,
    }
}

fn verdict(worst: Level) -> &'static str {
    match worst {
        Level::Ok | Level::Skipped => "ok",
        Level::Warning => "warnings",
        Level::Error => "errors",
    }
}

fn as_json(found: &[Finding], worst: Level) -> String {
    let checks: Vec<Value> = found.iter().map(Finding::json).collect();
    format!("{:#}", json!({"verdict": verdict(worst), "checks": checks}))
}

fn as_text(found: &[Finding], worst: Level) -> String {
    let mut out = String::new();
    for f in found {
        // Writing to a String does not fail.
        let _ = writeln!(out, "{:<8} {:<16} {}", f.level.as_str(), f.check, f.text);
        if let Some(next) = &f.next {
            let _ = writeln!(out, "{:25} next: {next}", "");
        }
    }
    out + "verdict: " + verdict(worst)
}

fn all(config: &Config) -> Vec<Finding> {
    let mut found = vec![memory(config)];
    let mut running = None;
    if config.runs(Target::Ingester) {
        let dirs = [config.data_dir(), config.wal_dir(), config.blocks_dir()];
        found.extend(dirs.iter().map(|dir| directory(dir)));
        found.extend(file_systems(&dirs));
        found.push(one_file_system(config));
        found.push(sync_latency(&config.wal_dir()));
        let (lock, holder) = lock(config);
        found.push(lock);
        running = holder;
        match ingester_config(config) {
            Ok(settings) => {
                found.push(space(&settings));
                found.push(log(config, &settings, running.as_deref()));
            }
            Err(error) => found.push(Finding::new("space", Level::Error, format!("{error:#}"))),
        }
    }
    if let Err(error) = ListenerTls::load(config) {
        found.push(Finding::error("TLS", error.to_string(), "name files that can be read and fit each other"));
    }
    let server = &config.server;
    found.push(port("http", &server.http_listen_address, server.http_listen_port, running.as_deref()));
    found.push(port("grpc", &server.grpc_listen_address, server.grpc_listen_port, running.as_deref()));
    found
}

/// Owner and permissions.
fn directory(dir: &Path) -> Finding {
    const CHECK: &str = "directory";
    let shown = dir.display();
    let (uid, gid) = process_user();
    let place = match Place::of(dir) {
        Ok(place) => place,
        Err(error) => {
            let next = format!("let user {uid} enter the directories above it");
            return Finding::error(CHECK, format!("{shown} cannot be looked at: {error}"), next);
        }
    };
    let facts = json!({
        "dir": dir, "exists": place.exists, "uid": place.uid, "gid": place.gid, "mode": format!("{:04o}", place.mode),
    });
    let found = place.found.display();
    let about = format!("owner {}:{}, mode {:04o}", place.uid, place.gid, place.mode);
    let finding = if !place.is_dir {
        Finding::error(CHECK, format!("{found} is no directory"), "move it away, or name another directory")
    } else if !place.writable {
        let next = format!("chown {uid}:{gid} {found}, or run as its owner");
        Finding::error(CHECK, format!("{found} ({about}) cannot be written by user {uid}:{gid}"), next)
    } else if !place.exists {
        Finding::ok(CHECK, format!("{shown} does not exist; a start makes it in {found} ({about})"))
    } else if place.mode & 0o002 != 0 {
        let text = format!("{shown} ({about}) can be written by everybody");
        Finding::warning(CHECK, text, format!("chmod o-w {shown}"))
    } else {
        Finding::ok(CHECK, format!("{shown}: {about}"))
    };
    finding.with(facts)
}

/// What the directories lie on, each file system once.
fn file_systems(dirs: &[PathBuf]) -> Vec<Finding> {
    const CHECK: &str = "file system";
    let mut seen = Vec::new();
    let mut found = Vec::new();
    for dir in dirs {
        let Ok(place) = Place::of(dir) else { continue };
        if seen.contains(&place.device) {
            continue;
        }
        seen.push(place.device);
        let Ok(Some(mount)) = Mount::of(&place.found) else {
            found.push(Finding::skipped(CHECK, format!("nothing tells what {} lies on", dir.display())));
            continue;
        };
        let text = format!("{} is on {}", dir.display(), mount.fs_type);
        let finding = match mount.doubt() {
            None => Finding::ok(CHECK, text),
            Some(doubt) => Finding::warning(
                CHECK,
                format!("{text}: {doubt}"),
                "acknowledged lines may be lost with it: use a local disk",
            ),
        };
        found.push(finding.with(json!({"dir": dir, "file_system": mount.fs_type})));
    }
    found
}

/// Both logs, and the quarantine of their segments, need one.
fn one_file_system(config: &Config) -> Finding {
    const CHECK: &str = "one file system";
    let device = |dir: &Path| Place::of(dir).map(|p| p.device).ok();
    let (wal, blocks) = (config.wal_dir(), config.blocks_dir());
    if device(&wal) != device(&blocks) {
        let text = format!("{} and {} are on two file systems", wal.display(), blocks.display());
        return Finding::error(CHECK, text, "put both logs on one: ingester.wal.dir, ingester.blocks.dir");
    }
    if device(&wal) != device(&config.data_dir()) {
        let text = format!(
            "{} is not on the file system of {}: of damaged segments only reports can be kept in the quarantine",
            wal.display(),
            config.data_dir().display()
        );
        return Finding::warning(CHECK, text, "put the logs and common.path_prefix on one");
    }
    Finding::ok(CHECK, "both logs and the quarantine are on one")
}

/// Writes and syncs as the log does: each answer waits for that.
fn sync_latency(dir: &Path) -> Finding {
    const CHECK: &str = "sync latency";
    if !dir.is_dir() {
        return Finding::skipped(CHECK, format!("{} does not exist: nothing was measured", dir.display()));
    }
    let mut sorted = match measure(dir) {
        Ok(durations) => durations,
        Err(error) => {
            let text = format!("4 KiB cannot be written and synced in {}: {error}", dir.display());
            return Finding::error(CHECK, text, "free space, or look at the disk (dmesg)");
        }
    };
    sorted.sort_unstable();
    let at = |percent| percentile(&sorted, percent).unwrap_or_default();
    let (p50, p99, max) = (at(50), at(99), at(100));
    let text = format!("{} writes of 4 KiB: p50 {p50:.1?}, p99 {p99:.1?}, slowest {max:.1?}", sorted.len());
    let facts = json!({
        "syncs": sorted.len(), "p50_seconds": p50.as_secs_f64(), "p99_seconds": p99.as_secs_f64(),
        "max_seconds": max.as_secs_f64(),
    });
    let finding = if p99 > SLOW {
        Finding::warning(CHECK, text, "each push waits for a sync: use a faster disk, or expect slow answers")
    } else {
        Finding::ok(CHECK, text)
    };
    finding.with(facts)
}

fn measure(dir: &Path) -> io::Result<Vec<Duration>> {
    let path = dir.join(TEMPORARY);
    match RealFs.remove(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        // One that was left by a check that was killed.
        _ => {}
    }
    let file = RealFs.create_new(&path)?;
    let measured = sync_often(&*file);
    RealFs.remove(&path)?;
    measured
}

fn sync_often(file: &dyn File) -> io::Result<Vec<Duration>> {
    let (block, started) = ([0x5a; 4096], Instant::now());
    // The first sync carries the file's size, too; in the log that is done beforehand.
    write_all_at(file, 0, &block)?;
    file.sync_data()?;
    let mut durations = Vec::with_capacity(SYNCS);
    while durations.len() < SYNCS && (durations.is_empty() || started.elapsed() < MEASURE_FOR) {
        let begin = Instant::now();
        write_all_at(file, 0, &block)?;
        file.sync_data()?;
        durations.push(begin.elapsed());
    }
    Ok(durations)
}

/// Free space, with what the logs have already, against their budgets.
fn space(settings: &IngesterConfig) -> Finding {
    const CHECK: &str = "space";
    let dir = &settings.wal_dir;
    let space = match space_of(&RealFs, dir) {
        Ok(space) => space,
        Err(error) => {
            let text = format!("nothing tells the free space of {}: {error}", dir.display());
            return Finding::error(CHECK, text, "look at the disk (dmesg)");
        }
    };
    let used = bytes_in(dir) + bytes_in(&settings.blocks_dir);
    let prepared = PREPARED * settings.segment_size;
    let wanted = settings.wal_max_size.saturating_add(settings.blocks_max_size).saturating_add(prepared);
    let reachable = space.available.saturating_add(used);
    let text = format!(
        "{} are free and the logs have {}; their budgets are {} (log) and {} (blocks)",
        show_bytes(space.available),
        show_bytes(used),
        show_bytes(settings.wal_max_size),
        show_bytes(settings.blocks_max_size)
    );
    let facts = json!({
        "available_bytes": space.available, "used_bytes": used, "wal_max_bytes": settings.wal_max_size,
        "blocks_max_bytes": settings.blocks_max_size, "segment_bytes": settings.segment_size,
    });
    let finding = if used == 0 && space.available < prepared {
        let text = format!("{text}: too little for the first segments of {}", show_bytes(settings.segment_size));
        Finding::error(CHECK, text, "free space, or make ingester.wal.segment_size smaller")
    } else if reachable < wanted {
        let next = "pushes get 503 when the disk is full: free space, or lower ingester.wal.max_size and ingester.blocks.max_size";
        Finding::warning(CHECK, text, next)
    } else {
        Finding::ok(CHECK, text)
    };
    finding.with(facts)
}

fn bytes_in(dir: &Path) -> u64 {
    RealFs.list(dir).unwrap_or_default().iter().map(|entry| entry.len).sum()
}

/// What the process may use against what it plans with.
fn memory(config: &Config) -> Finding {
    const CHECK: &str = "memory";
    let (limit, budget) = (Config::memory_limit(), config.memory_budget());
    let facts = json!({"limit_bytes": limit, "budget_bytes": budget});
    let text = format!("the budget is {}, the machine or container gives {}", show_bytes(budget), show_bytes(limit));
    let finding = if budget > limit {
        let next =
            "the process would be killed before its budget holds: lower ingester.memory_budget, or raise the limit";
        Finding::warning(CHECK, text, next)
    } else if budget < LITTLE_MEMORY {
        Finding::warning(CHECK, text, format!("give it {} or more", show_bytes(LITTLE_MEMORY)))
    } else {
        Finding::ok(CHECK, text)
    };
    finding.with(facts)
}

/// Is a server running here? Returns what it says about itself, too.
fn lock(config: &Config) -> (Finding, Option<String>) {
    const CHECK: &str = "lock";
    let dir = config.data_dir();
    match lock_holder(&dir.join("LOCK")) {
        Ok(None) => (Finding::ok(CHECK, "no server is running here"), None),
        Ok(Some(holder)) => {
            let text = format!("a server is running on {} ({holder}): a second one would not start", dir.display());
            let next = "stop it first; its own state is at /ready and /api/v1/status";
            (Finding::error(CHECK, text, next).with(json!({"holder": holder})), Some(holder))
        }
        Err(error) => {
            let next = "let this user read it, or remove it if no server is running";
            (Finding::error(CHECK, format!("{}/LOCK cannot be read: {error}", dir.display()), next), None)
        }
    }
}

/// What a start would find in the log.
fn log(config: &Config, settings: &IngesterConfig, running: Option<&str>) -> Finding {
    const CHECK: &str = "log";
    if let Some(holder) = running {
        return Finding::skipped(CHECK, format!("a server is writing it ({holder})"));
    }
    let refuse = config.ingester.wal.on_damage == OnDamage::Refuse;
    let dir = config.data_dir();
    match forecast(settings) {
        // It says what to do.
        Err(error) => Finding::new(CHECK, Level::Error, error.to_string()),
        Ok(None) => Finding::ok(CHECK, "there is none yet").with(json!({"state": "new"})),
        Ok(Some(Forecast { report, would_refuse, unacknowledged })) => {
            let state = match (would_refuse, report.unresolved) {
                (true, _) => "damaged",
                (false, 0) => "sound",
                (false, _) => "torn tail",
            };
            let facts = json!({
                "state": state, "on_damage": config.ingester.wal.on_damage.as_str(),
                "start_would_refuse": would_refuse && refuse, "segments": report.segments, "bytes": report.bytes,
                "damaged_places": report.damaged_places, "lost_lines": report.lost_lines,
                "lost_lines_at_least": report.at_least, "losses": report.losses,
                "unresolved_records": report.unresolved, "unacknowledged_reports": unacknowledged,
            });
            let size = format!("{} segments, {}", report.segments, show_bytes(report.bytes));
            let finding = if would_refuse {
                let text = format!(
                    "{size}: damaged in {} places, {} acknowledged lines are lost: {}",
                    report.damaged_places,
                    report.lost(),
                    report.losses.join("; ")
                );
                let look = format!("wal-inspect verify -d {}", dir.display());
                if refuse {
                    let next = format!(
                        "a start refuses this (ingester.wal.on_damage: refuse): {look}, then start with salvage"
                    );
                    Finding::error(CHECK, text, next)
                } else {
                    Finding::warning(CHECK, text, format!("a start keeps everything else: {look}"))
                }
            } else if !unacknowledged.is_empty() {
                let text = format!("{size}: {} reports in the quarantine are unread", unacknowledged.len());
                let next = "read them and rename each: mv X.json X.acknowledged.json";
                Finding::warning(CHECK, text, next)
            } else if report.unresolved > 0 {
                let text = format!(
                    "{size}: the last write was cut before its answer ({} records), as after kill -9",
                    report.unresolved
                );
                Finding::ok(CHECK, text)
            } else {
                Finding::ok(CHECK, format!("{size}: sound"))
            };
            finding.with(facts)
        }
    }
}

/// Can the listener be opened?
fn port(what: &'static str, address: &str, port: u16, running: Option<&str>) -> Finding {
    let check = if what == "http" { "http port" } else { "grpc port" };
    let host = if address.is_empty() { "0.0.0.0" } else { address };
    let facts = json!({"address": host, "port": port});
    let finding = match TcpListener::bind((host, port)) {
        Ok(_) => Finding::ok(check, format!("{host}:{port} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && running.is_some() => {
            Finding::skipped(check, format!("{host}:{port} is in use, by the server that runs here or another one"))
        }
        Err(error) => {
            let next = format!("stop who listens there, or set -server.{what}-listen-port");
            Finding::error(check, format!("{host}:{port} cannot be listened on: {error}"), next)
        }
    };
    finding.with(facts)
}
