//! The server on a disk of its own: starts and ends of it, what it uses, and what it shows.

use super::ledger::{Look, read};
use super::load::{Field, Sender};
use super::push::{PROBE, TENANTS};
use super::slow::SlowDisk;
use crate::clock::WallClock;
use crate::faults::ext4;
use crate::server::{Http, Mounted, Server, binary};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub const MEMORY: u64 = 512 << 20;
/// Resident memory may be above the budget by what the process itself and answers on their way take.
pub const MEMORY_SLACK: u64 = 256 << 20;
pub const WAL_MAX: u64 = 64 << 20;
const SEGMENT: u64 = 4 << 20;
/// The log's budget, and the segments that are prepared or wait to be used again.
pub const WAL_LIMIT: u64 = WAL_MAX + 4 * SEGMENT;
/// New streams that the tenant of the floods may have.
pub const FLOOD_LIMIT: u64 = 1000;
/// From the start of the process to `/ready`.
pub const RECOVERY: Duration = Duration::from_secs(10);
/// Epochs that are looked at again after a start: the last ones, and one by chance.
const AGAIN: usize = 2;

fn config(data: &Path) -> String {
    format!(
        "auth_enabled: true\n\
         common: {{path_prefix: {}}}\n\
         ingester: {{memory_budget: {MEMORY}, wal: {{segment_size: {SEGMENT}, max_size: {WAL_MAX}}}}}\n\
         limits_config: {{ingestion_rate_mb: 1000, ingestion_burst_size_mb: 1000, per_stream_rate_limit: 1GB, \
         per_stream_rate_limit_burst: 1GB, max_global_streams_per_user: 0, max_entries_limit_per_query: 1000000}}\n\
         overrides: {{{}: {{max_global_streams_per_user: {FLOOD_LIMIT}}}}}\n",
        data.display(),
        TENANTS[3]
    )
}

/// How a process came to its end before the next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Kill,
    Term,
}

pub struct Rig {
    pub dir: PathBuf,
    pub data: PathBuf,
    pub field: Arc<Field>,
    pub clock: WallClock,
    pub server: Server,
    ports: (u16, u16),
    probe: Sender,
    probed: i64,
    /// From the start of a process to `/ready`, after which end.
    pub starts: Vec<(End, Duration)>,
    /// Bytes to disk of the processes that have ended.
    written: u64,
    /// Epochs that have been looked at once.
    looked: BTreeSet<u32>,
    pub lines_checked: u64,
    /// These are dropped last: the server is gone by then.
    pub slow: SlowDisk,
    _mounted: Mounted,
}

impl Rig {
    /// `None` where a disk of its own is not allowed.
    pub fn new(dir: &Path, bytes: u64, field: Arc<Field>, ports: (u16, u16)) -> Option<Self> {
        std::fs::create_dir_all(dir).ok()?;
        let clock = WallClock::new(dir)?;
        let mounted = ext4(dir, bytes, &["-T", "largefile"])?;
        let (dir, data) = (dir.to_path_buf(), dir.join("data"));
        let server = Server::spawn_with(&dir, ports, &config(&data), &[]);
        let (probe, slow) = (Sender::new(&field, PROBE), SlowDisk::new(&data));
        let mut rig = Self {
            dir,
            data,
            field,
            clock,
            server,
            ports,
            probe,
            probed: 0,
            starts: Vec::new(),
            written: 0,
            looked: BTreeSet::new(),
            lines_checked: 0,
            slow,
            _mounted: mounted,
        };
        rig.wait_ready();
        Some(rig)
    }

    /// Bytes that all processes so far have sent to disk.
    pub fn written(&self) -> u64 {
        self.written + proc_figure(self.server.pid(), "io", "write_bytes:")
    }

    /// Waits until the server is ready; how long that took.
    fn wait_ready(&mut self) -> Duration {
        let begin = Instant::now();
        let is_ready = |rig: &Self| rig.server.http().get("/ready").is_ok_and(|(status, _)| status == 200);
        while !is_ready(self) {
            if let Some(status) = self.server.ended() {
                self.field.wrong(format!("a start ended with {status}; log: {}", self.server.log_tail()));
                break;
            }
            if begin.elapsed() > Duration::from_secs(60) {
                self.field.wrong(format!("a start is not ready within a minute; log: {}", self.server.log_tail()));
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.field.pid.store(self.server.pid(), Ordering::SeqCst);
        begin.elapsed()
    }

    /// Ends the process so, starts the next one, and looks at what it has found.
    pub fn restart(&mut self, end: End, env: &[(&str, &str)]) -> Duration {
        self.field.pid.store(0, Ordering::SeqCst);
        if end == End::Term {
            self.no_panics();
        }
        self.end(end);
        self.field.life.fetch_add(1, Ordering::SeqCst);
        self.field.next_epoch();
        let acked = self.field.ledger.lock().acked_lines;
        self.server = Server::spawn_with(&self.dir, self.ports, &config(&self.data), env);
        let took = self.wait_ready();
        self.starts.push((end, took));
        if took > RECOVERY * self.field.busy {
            self.field.wrong(format!("a start took {took:.1?}"));
        }
        self.found(acked);
        took
    }

    /// A server that has ended by itself is a violation, and is started again.
    pub fn revive(&mut self) {
        if self.server.ended().is_some() {
            self.restart(End::Kill, &[]);
        }
    }

    fn end(&mut self, end: End) {
        if let Some(status) = self.server.ended() {
            self.field.wrong(format!("the server ended by itself with {status}; log: {}", self.server.log_tail()));
            return;
        }
        // What it writes between this and its end is not counted.
        self.written += proc_figure(self.server.pid(), "io", "write_bytes:");
        if end == End::Kill {
            return self.server.kill_in_place();
        }
        self.server.signal("TERM");
        let deadline = Instant::now() + Duration::from_secs(40);
        while self.server.ended().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        match self.server.ended() {
            Some(status) if status.success() => {}
            status => self.field.wrong(format!("SIGTERM ended in {status:?}; log: {}", self.server.log_tail())),
        }
    }

    /// Stops the server for good.
    pub fn stop(&mut self) {
        self.field.pid.store(0, Ordering::SeqCst);
        self.no_panics();
        self.end(End::Term);
    }

    /// A start has found all lines that were acknowledged, no more than were sent, and no damage.
    fn found(&self, acked: u64) {
        let (found, sent) =
            (self.metric("loki_ingester_wal_recovered_entries_total"), self.field.ledger.lock().sent_lines);
        if found.is_none_or(|found| found < acked || found > sent) {
            self.field.wrong(format!("a start found {found:?} lines: {acked} were acknowledged, {sent} sent"));
        }
        for name in ["loki_ingester_wal_corruptions_total", "timberline_wal_lost_lines_total"] {
            if self.metric(name).is_some_and(|n| n > 0) {
                self.field.wrong(format!("kill -9 is no damage, but {name} is {:?}", self.metric(name)));
            }
        }
    }

    fn no_panics(&self) {
        if self.metric("loki_panic_total") != Some(0) {
            self.field.wrong(format!("handlers panicked: {:?}", self.metric("loki_panic_total")));
        }
    }

    /// The sum of a metric's samples.
    fn metric(&self, name: &str) -> Option<u64> {
        let (_, text) = self.server.http().get("/metrics").ok()?;
        let text = String::from_utf8_lossy(&text);
        let samples = text.lines().filter_map(|l| l.strip_prefix(name)).filter(|l| l.starts_with([' ', '{']));
        let values: Vec<f64> = samples.filter_map(|l| l.rsplit(' ').next()?.parse().ok()).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() as u64)
    }

    /// Pushes one line; was it taken?
    pub fn probe(&mut self) -> Option<u16> {
        let push = self.field.new_push(PROBE, &mut self.probed);
        self.field.send(&mut self.probe, &push)
    }

    /// Pushes until one is taken, which must not take longer than this.
    pub fn until_taken(&mut self, limit: Duration) -> Duration {
        let begin = Instant::now();
        while self.probe() != Some(204) {
            if begin.elapsed() > Duration::from_secs(60) || self.server.ended().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let (took, limit) = (begin.elapsed(), limit * self.field.busy);
        if took > limit {
            let tail = self.server.log_tail();
            self.field.wrong(format!("pushes were taken again only after {took:.1?}, limit {limit:?}; log: {tail}"));
        }
        took
    }

    /// Looks at the epochs that are over and were not looked at yet; after a start also at some that were.
    pub fn check(&mut self, after_start: bool, chance: u64) {
        let epochs = self.field.ledger.lock().epochs();
        let now = self.field.epoch.load(Ordering::SeqCst);
        let over: Vec<u32> = epochs.into_iter().filter(|e| *e < now).collect();
        let mut chosen: BTreeSet<u32> = over.iter().copied().filter(|e| !self.looked.contains(e)).collect();
        if after_start {
            chosen.extend(over.iter().rev().take(AGAIN));
            chosen.extend(over.get(chance as usize % over.len().max(1)));
        }
        chosen.into_iter().for_each(|epoch| self.look(epoch));
    }

    /// Looks at everything.
    pub fn check_all(&mut self) {
        let epochs = self.field.ledger.lock().epochs();
        epochs.into_iter().for_each(|epoch| self.look(epoch));
    }

    fn look(&mut self, epoch: u32) {
        let field = self.field.clone();
        let before = field.ledger.lock().epoch(epoch);
        let mut http = Http::new(&field.addr);
        let answers = match read(&mut http, epoch) {
            Ok(answers) => answers,
            Err(why) => return field.wrong(format!("epoch {epoch}: {why}")),
        };
        let after = field.ledger.lock().epoch(epoch);
        let life = field.life.load(Ordering::SeqCst);
        let look = Look { before: &before, after: &after, life, corpus: &field.corpus };
        let verdict = look.judge(&answers);
        field.ledger.lock().note_shown(epoch, &verdict.whole);
        let wrong = verdict.wrong.len();
        verdict.wrong.into_iter().take(5).for_each(|what| field.wrong(format!("epoch {epoch}: {what}")));
        if wrong > 5 {
            field.wrong(format!("epoch {epoch}: and {} more", wrong - 5));
        }
        self.looked.insert(epoch);
        self.lines_checked += verdict.lines;
    }

    /// `wal-inspect verify` finds nothing wrong with what the stopped server has left.
    pub fn verify(&self) {
        let inspect = binary().with_file_name("wal-inspect");
        match Command::new(&inspect).arg("-d").arg(&self.data).arg("verify").output() {
            Ok(out) if out.status.success() => {}
            Ok(out) => self.field.wrong(format!(
                "wal-inspect verify: {}: {} {}",
                out.status,
                String::from_utf8_lossy(&out.stdout),
                String::from_utf8_lossy(&out.stderr)
            )),
            Err(e) => self.field.wrong(format!("{}: {e}", inspect.display())),
        }
    }

    /// Lines of our own log that tell of an error, or of a panic.
    pub fn errors_told(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.dir.join("server.log")).unwrap_or_default();
        let is_error = |l: &&str| l.contains("level=error") || l.contains("panicked at");
        log.lines().filter(is_error).map(str::to_string).collect()
    }
}

/// A figure of a process: a field of a file in /proc.
pub fn proc_figure(pid: u32, file: &str, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(field));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// What the process has open: files, and all else, which is mostly sockets.
pub fn open(pid: u32) -> (usize, usize) {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links: Vec<PathBuf> = entries.filter_map(|e| std::fs::read_link(e.path()).ok()).collect();
    let files = links.iter().filter(|l| l.is_absolute()).count();
    (files, links.len() - files)
}

/// Processes that ran or wanted to, in the last minute, on the whole machine.
pub fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

/// Number and bytes of the files in a directory of the data directory.
pub fn files(data: &Path, name: &str) -> (usize, u64) {
    let entries = std::fs::read_dir(data.join(name)).into_iter().flatten().flatten();
    entries.filter_map(|e| e.metadata().ok()).fold((0, 0), |(n, bytes), m| (n + 1, bytes + m.len()))
}
