//! Every system call of the durable path of the real binary fails, once and for ever, and is the last one that the
//! process makes: `strace` does that from outside, so nothing in the program knows of it.
//!
//! A counting run lists the calls on files of the data directory. A *site* is one of them: the call, what kind of file it
//! is on (its role), and the how-manieth of that kind it is in its thread. `cargo test` takes a sample of 25 s (`TIMBERLINE_SECONDS`);
//! `TIMBERLINE_FULL=1 cargo test --test io_faults -- --nocapture` takes all. `TIMBERLINE_SITE="fresh fdatasync wal 3
//! error=EIO"` takes one, and `TIMBERLINE_SEED` another sample.

#[path = "support/faults.rs"]
mod faults;
#[path = "support/server.rs"]
mod server;

use faults::{Client, Pushed, Random, figures, is_full, now};
use server::{Http, Ledger, Server, has, skip};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Small segments and blocks: twenty pushes go through every phase of both logs.
const CONFIG: &str = "ingester: {chunk_block_size: 8KB, chunk_target_size: 64KB, wal: {segment_size: 1MB, max_size: 4MB, \
                      compression: none}}\n";
/// All calls that change the data directory.
const CALLS: &str = "pwrite64,write,fdatasync,fsync,open,openat,rename,unlink,linkat,mkdir,fallocate,ftruncate,flock";
/// A sample ends after so many seconds, or as `TIMBERLINE_SECONDS` says.
const SAMPLE: u64 = 25;
/// From a failed sync to the end of the process.
const AT_ONCE: f64 = 1.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scenario {
    /// A start on an empty directory, then pushes through rotation, sealing, retirement and recycling, then a stop.
    Fresh,
    /// A start on what `kill -9` has left, a few pushes, then a stop.
    Killed,
}

/// What a system call is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Directory,
    Small,
    Wal,
    WalTmp,
    Blk,
    BlkTmp,
}

const ROLES: [(Role, &str); 6] = [
    (Role::Directory, "directory"),
    (Role::Small, "small"),
    (Role::Wal, "wal"),
    (Role::WalTmp, "wal.tmp"),
    (Role::Blk, "blk"),
    (Role::BlkTmp, "blk.tmp"),
];

impl Role {
    /// Of a path below the data directory.
    fn of(path: &str) -> Self {
        match path.rsplit('/').next().unwrap_or("") {
            name if name.ends_with(".wal") => Self::Wal,
            name if name.ends_with(".wal.tmp") => Self::WalTmp,
            name if name.ends_with(".blk") => Self::Blk,
            name if name.ends_with(".blk.tmp") => Self::BlkTmp,
            name if name.contains('.') || name == "LOCK" || name == "identity" => Self::Small,
            _ => Self::Directory,
        }
    }

    fn name(self) -> &'static str {
        ROLES.iter().find(|(r, _)| *r == self).map_or("", |(_, name)| name)
    }

    /// Paths of this kind in a data directory. `strace` takes whole paths only.
    fn paths(self, data: &Path) -> Vec<PathBuf> {
        let numbered = |dir: &str, end: &str| (0..48).map(|n| data.join(format!("{dir}/{n:020}.{end}"))).collect();
        match self {
            Self::Directory => {
                ["", "wal", "blocks", "quarantine"].iter().map(|d| data.join(d)).chain([data.into()]).collect()
            }
            Self::Small => ["LOCK", "identity", "identity.tmp"].iter().map(|f| data.join(f)).collect(),
            Self::Wal => numbered("wal", "wal"),
            Self::WalTmp => numbered("wal", "wal.tmp"),
            Self::Blk => numbered("blocks", "blk"),
            Self::BlkTmp => numbered("blocks", "blk.tmp"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The call fails and is not made.
    Error { errno: &'static str, for_ever: bool },
    /// SIGKILL instead of the call.
    KillBefore,
    /// The call is made, and is the last one. Nothing handles SIGUSR2, so it ends the process as SIGKILL does.
    KillAfter,
}

impl Fault {
    fn injection(self, when: usize) -> String {
        match self {
            Self::Error { errno, for_ever } => format!("error={errno}:when={when}{}", if for_ever { "+" } else { "" }),
            Self::KillBefore => format!("signal=SIGKILL:when={when}"),
            Self::KillAfter => format!("signal=SIGUSR2:when={when}"),
        }
    }

    fn kills(self) -> bool {
        !matches!(self, Self::Error { .. })
    }

    /// For a call: syncs fail with EIO, all others also for lack of space: in turn of the disk and of the quota.
    fn all(call: &str, nth: usize) -> Vec<Self> {
        let errors: &[&str] = match call {
            "fdatasync" | "fsync" => &["EIO"],
            _ if nth.is_multiple_of(2) => &["EIO", "EDQUOT"],
            _ => &["EIO", "ENOSPC"],
        };
        let errors = errors.iter().flat_map(|errno| [false, true].map(|for_ever| Self::Error { errno, for_ever }));
        errors.chain([Self::KillBefore, Self::KillAfter]).collect()
    }
}

#[derive(Clone, Debug)]
struct Site {
    scenario: Scenario,
    call: String,
    role: Role,
    nth: usize,
    fault: Fault,
}

impl Site {
    fn text(&self) -> String {
        let scenario = format!("{:?}", self.scenario).to_lowercase();
        let fault = self.fault.injection(self.nth);
        let fault = fault.replace(&format!(":when={}", self.nth), "");
        format!("{scenario} {} {} {} {fault}", self.call, self.role.name(), self.nth)
    }
}

/// A line of a trace: a call on a file of the data directory.
struct Call {
    thread: String,
    at: f64,
    name: String,
    role: Role,
    path: String,
    /// With the result.
    arguments: String,
    injected: bool,
    ok: bool,
    /// Opens a file for reading only.
    reads: bool,
}

/// Reads `strace -f -ttt -y -a 1`; calls that were cut in two lines are put together.
fn parse(trace: &str, data: &str) -> Vec<Call> {
    let mut open: BTreeMap<&str, String> = BTreeMap::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(begun) = rest.strip_suffix(" <unfinished ...>") {
            open.insert(thread, begun.to_string());
            continue;
        }
        let (_, text) = rest.split_once(' ').unwrap_or_default();
        let whole = match text.strip_prefix("<... ").and_then(|t| t.split_once(" resumed>")) {
            Some((_, end)) => open.remove(thread).unwrap_or_default() + end,
            None => rest.to_string(),
        };
        let Some((at, text)) = whole.split_once(' ') else { continue };
        let Some((name, arguments)) = text.split_once('(') else { continue };
        let Some((path, _)) = arguments.split_once(data).and_then(|(_, p)| p.split_once(['"', '>'])) else { continue };
        calls.push(Call {
            thread: thread.to_string(),
            at: at.parse().unwrap_or(0.0),
            name: name.to_string(),
            role: Role::of(path),
            path: path.trim_start_matches('/').to_string(),
            injected: arguments.contains("(INJECTED)") || arguments.ends_with(" = ?"),
            arguments: arguments.to_string(),
            reads: arguments.contains("O_RDONLY") && !arguments.contains("O_DIRECTORY"),
            ok: !arguments.contains(" = -1 ") && !arguments.ends_with(" = ?"),
        });
    }
    calls
}

fn may_trace() -> bool {
    let quiet = ["-qq", "-e", "trace=none", "true"];
    has("strace") && Command::new("strace").args(quiet).status().is_ok_and(|s| s.success())
}

/// A data directory as `kill -9` has left it, with what was acknowledged in it.
struct Base {
    dir: tempfile::TempDir,
    ledger: Ledger,
}

impl Base {
    fn make() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(dir.path(), CONFIG, &[]);
        let mut client = Client::default();
        script(&mut server.http(), &mut client, 9);
        server.kill();
        Self { dir, ledger: client.ledger }
    }

    fn copy_to(&self, dir: &Path) {
        let status = Command::new("cp").arg("-a").arg(self.dir.path().join("data")).arg(dir).status().unwrap();
        assert!(status.success());
    }
}

/// Large lines fill segments, small ones make groups. Ends early when the server is gone.
fn script(http: &mut Http, client: &mut Client, pushes: usize) {
    for n in 0..pushes {
        match client.push(http, if n % 3 == 2 { 300 } else { 230_000 }) {
            Some(204) => {}
            Some(_) => std::thread::sleep(Duration::from_millis(30)),
            None => return,
        }
    }
    // Blocks are gathered for 100 ms, the watermark comes 50 ms after the last ack.
    std::thread::sleep(Duration::from_millis(180));
}

/// What a run under `strace` has left.
struct Ran {
    dir: tempfile::TempDir,
    calls: Vec<Call>,
    status: ExitStatus,
    client: Client,
    /// When it began to serve; `None` if it ended before.
    serving: Option<f64>,
    /// When it ended, by the trace.
    ended: f64,
    log: String,
}

/// Runs a scenario under `strace` with these arguments.
fn run(
    scenario: Scenario,
    base: &Base,
    calls: &str,
    role: Option<Role>,
    inject: Option<(&str, bool)>,
) -> Result<Ran, String> {
    let dir = tempfile::tempdir().unwrap();
    let mut client = match scenario {
        Scenario::Fresh => Client::default(),
        Scenario::Killed => {
            base.copy_to(dir.path());
            Client::with(&base.ledger, 1000)
        }
    };
    let (data, path) = (dir.path().join("data"), dir.path().join("trace"));
    let mut wrapper: Vec<String> =
        ["strace", "-D", "-f", "-ttt", "-y", "-a", "1", "-s", "0", "-o"].map(String::from).into();
    wrapper.extend([path.display().to_string(), "-e".into(), format!("trace={calls}")]);
    if let Some((inject, kills)) = inject {
        wrapper.extend(["-e".into(), format!("inject={calls}:{inject}")]);
        // With the filter a signal is lost; without it each call of the process stops, which is only slower.
        if !kills {
            wrapper.push("--seccomp-bpf".into());
        }
    }
    for path in role.iter().flat_map(|r| r.paths(&data)) {
        wrapper.extend(["-P".into(), path.display().to_string()]);
    }
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let mut server = Server::spawn_under(&wrapper, dir.path(), CONFIG, &[]);
    let serving = wait_serving(&mut server)?;
    if serving.is_some() {
        let mut http = server.http();
        script(&mut http, &mut client, if scenario == Scenario::Fresh { 33 } else { 6 });
        // A query opens blocks: it may be what fails, or what the process ends in.
        let reads = !calls.starts_with("open") && !inject.is_some_and(|(_, kills)| kills);
        settle(&mut server, &mut client, inject.is_some_and(|(i, _)| i.ends_with('+')), reads)?;
    }
    let status = end(&mut server)?;
    let trace = trace_of(&path, server.pid())?;
    let ended = trace.lines().last().and_then(|l| l.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0.0);
    let log = server.log_tail();
    let calls = parse(&trace, &data.display().to_string());
    Ok(Ran { dir, calls, status, client, serving, ended, log })
}

/// Waits until reads are served or the process has ended.
fn wait_serving(server: &mut Server) -> Result<Option<f64>, String> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if server.ended().is_some() {
            return Ok(None);
        }
        if matches!(server.http().get("/loki/api/v1/labels"), Ok((200, _))) {
            return Ok(Some(now()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(format!("neither serving nor ended after 20 s; log: {}", server.log_tail()))
}

/// A server that lives on serves what it has acknowledged, and takes pushes again unless the failure lasts.
fn settle(server: &mut Server, client: &mut Client, for_ever: bool, reads: bool) -> Result<(), String> {
    let mut http = server.http();
    if for_ever {
        return Ok(());
    }
    match client.push_until_taken(&mut http, Duration::from_secs(3)) {
        Ok(_) => {}
        Err(_) if gone(server) => return Ok(()),
        Err(why) => return Err(format!("{why}; log: {}", server.log_tail())),
    }
    // It may end meanwhile: the watermark's sync comes 50 ms after the last ack. Then the next start is checked.
    let check = || client.ledger.check(&mut server.http());
    if reads && std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err() && !gone(server) {
        return Err("it does not serve what it has acknowledged, see above".into());
    }
    Ok(())
}

/// Is it ending?
fn gone(server: &mut Server) -> bool {
    let deadline = Instant::now() + Duration::from_secs(2);
    while Instant::now() < deadline {
        if server.ended().is_some() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

/// Ends it with SIGTERM, unless it has ended by itself.
fn end(server: &mut Server) -> Result<ExitStatus, String> {
    if server.ended().is_none() {
        // It may end at this moment.
        let _ = Command::new("kill").arg("-TERM").arg(server.pid().to_string()).status();
    }
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        match server.ended() {
            Some(status) => return Ok(status),
            None if Instant::now() > deadline => {
                return Err(format!("SIGTERM does not end it; log: {}", server.log_tail()));
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// The whole trace, once the tracer has written the end of the process.
fn trace_of(path: &Path, pid: u32) -> Result<String, String> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        let trace = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
        let ended =
            |l: &str| l.starts_with(&format!("{pid} ")) && (l.contains("+++ exited") || l.contains("+++ killed"));
        if trace.lines().rev().take(80).any(ended) {
            return Ok(trace);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err("the trace does not end".into())
}

/// What became of a run with a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// The run did not come to the call.
    NotReached,
    /// It ended where it was killed.
    Killed,
    /// It did not start, and said why.
    Refused,
    /// It ended with 74.
    Poisoned,
    /// It went on.
    Survived,
}

/// Runs one site; what happened, or what is wrong.
fn inject(site: &Site, base: &Base) -> Result<Outcome, String> {
    let injection = site.fault.injection(site.nth);
    let ran = run(site.scenario, base, &site.call, Some(site.role), Some((&injection, site.fault.kills())))?;
    let outcome = judge(site, &ran).map_err(|why| format!("{why}; log: {}", ran.log))?;
    // The next start finds everything, and works.
    let server = Server::start(ran.dir.path(), CONFIG, &[]);
    let (mut http, mut client) = (server.http(), ran.client);
    client.ledger.check(&mut http);
    client.push_until_taken(&mut http, Duration::from_secs(5))?;
    match server.terminate() {
        Some(0) => Ok(outcome),
        code => Err(format!("the start after it stops with {code:?}")),
    }
}

fn judge(site: &Site, ran: &Ran) -> Result<Outcome, String> {
    use std::os::unix::process::ExitStatusExt;
    let code = ran.status.code();
    if let Fault::Error { errno, .. } = site.fault {
        let Some(first) = ran.calls.iter().find(|c| c.injected) else {
            return if code == Some(0) {
                Ok(Outcome::NotReached)
            } else {
                Err(format!("nothing injected, exit {code:?}"))
            };
        };
        // An ack follows a sync that succeeded after the push was sent.
        if site.call == "fdatasync" && site.role == Role::Wal {
            let synced = |p: &&Pushed| ran.calls.iter().any(|c| c.ok && (p.sent..p.answered).contains(&c.at));
            if let Some(wrong) = ran.client.pushes.iter().filter(|p| p.status == Some(204)).find(|p| !synced(p)) {
                return Err(format!("a push sent at {} was answered 204 without a sync", wrong.sent));
            }
        }
        let Some(serving) = ran.serving else {
            let told = ["os error 5", "os error 28", "os error 122"].iter().any(|e| ran.log.contains(e));
            return match code {
                Some(1 | 74) if told => Ok(Outcome::Refused),
                _ => Err(format!("it did not start, exit {:?} {:?}", code, ran.status.signal())),
            };
        };
        let is_log = |c: &&Call| matches!(c.role, Role::Wal | Role::Blk) && c.name == "pwrite64" && errno == "EIO";
        // A directory is opened to be synced; std lists one with `openat`.
        let is_sync = |c: &&Call| match &*c.name {
            "fdatasync" | "fsync" => true,
            "open" => c.role == Role::Directory && errno == "EIO",
            _ => false,
        };
        // It serves a moment before anybody has seen it: then its own words tell in what order that was.
        let (ready, gave_up) = (ran.log.find("msg=\"ready: "), ran.log.find("exiting; the next start"));
        let served = ready.is_some_and(|ready| gave_up.is_some_and(|gave_up| ready < gave_up));
        let fails_for_good = |c: &&Call| (c.at > serving || served) && (is_sync(c) || is_log(c));
        let fatal = ran.calls.iter().filter(|c| c.injected).find(fails_for_good);
        let Some(fatal) = fatal else {
            return match code {
                Some(0) => Ok(Outcome::Survived),
                _ => Err(format!("{} {} failed, which is no reason to end with {code:?}", first.name, first.path)),
            };
        };
        let late = ran.client.pushes.iter().find(|p| p.sent > fatal.at && p.status == Some(204));
        if let Some(late) = late {
            return Err(format!("a push sent {:.3} s after the failure was answered 204", late.sent - fatal.at));
        }
        let took = ran.ended - fatal.at;
        return match code {
            Some(74) if took < AT_ONCE => Ok(Outcome::Poisoned),
            _ => Err(format!("{} {} failed, and it ended with {code:?} after {took:.3} s", fatal.name, fatal.path)),
        };
    }
    match ran.status.signal() {
        Some(9 | 12) => Ok(Outcome::Killed),
        _ if code == Some(0) => Ok(Outcome::NotReached),
        signal => Err(format!("exit {code:?}, signal {signal:?}")),
    }
}

/// All sites of a scenario, by a run in which nothing fails.
fn sites(scenario: Scenario, base: &Base) -> Vec<Site> {
    let ran = run(scenario, base, CALLS, None, None).unwrap();
    assert_eq!(ran.status.code(), Some(0), "{}", ran.log);
    ran.client.ledger.check(&mut Server::start(ran.dir.path(), CONFIG, &[]).http());
    // The how-manieth of its call and role in its thread; a place in the count is one site however many threads share it.
    let mut count: BTreeMap<(&str, &str, Role), usize> = BTreeMap::new();
    let mut most: BTreeMap<(&str, Role), usize> = BTreeMap::new();
    // Queries open blocks; recovery opens what it trusts.
    for call in ran.calls.iter().filter(|c| !c.reads || scenario == Scenario::Killed) {
        let nth = count.entry((&call.thread, &call.name, call.role)).or_default();
        *nth += 1;
        let most = most.entry((&call.name, call.role)).or_default();
        *most = (*most).max(*nth);
    }
    println!("{scenario:?}: {} calls; most in a thread by kind: {most:?}", ran.calls.len());
    if scenario == Scenario::Fresh {
        let renamed = |from: Role| ran.calls.iter().filter(|c| c.name == "rename" && c.role == from).count();
        let recycled = ran.calls.iter().filter(|c| c.name == "rename" && c.role == Role::Wal).count();
        assert!(renamed(Role::WalTmp) > 4 && renamed(Role::BlkTmp) > 1 && recycled > 0, "too little happens");
    }
    let site = |call: &str, role, nth, fault| Site { scenario, call: call.to_string(), role, nth, fault };
    let all = |(call, role): (&str, Role), n: usize| {
        (1..=n).flat_map(move |nth| Fault::all(call, nth).into_iter().map(move |f| site(call, role, nth, f))).collect()
    };
    most.into_iter().flat_map(|(kind, n)| -> Vec<Site> { all(kind, n) }).collect()
}

/// A sample: each kind of call and fault before a second of the same.
fn sampled(mut sites: Vec<Site>) -> Vec<Site> {
    let seed = std::env::var("TIMBERLINE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_260_101);
    println!("TIMBERLINE_SEED={seed}");
    Random(seed).shuffle(&mut sites);
    let mut seen = BTreeSet::new();
    let (first, rest): (Vec<Site>, Vec<Site>) =
        sites.into_iter().partition(|s| seen.insert((s.call.clone(), s.role, s.fault.kills())));
    first.into_iter().chain(rest).collect()
}

#[test]
fn every_call_of_the_durable_path_fails_and_is_the_last() {
    if !may_trace() {
        return skip("strace is not installed, or may not trace");
    }
    let started = Instant::now();
    let base = Base::make();
    let mut all = sites(Scenario::Fresh, &base);
    all.extend(sites(Scenario::Killed, &base));
    let total = all.len();
    let only = std::env::var("TIMBERLINE_SITE").ok();
    let all = match &only {
        Some(only) => all.into_iter().filter(|s| s.text() == *only).collect(),
        None if is_full() => all,
        None => sampled(all),
    };
    let seconds = std::env::var("TIMBERLINE_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(SAMPLE);
    let is_over = || !is_full() && only.is_none() && started.elapsed() > Duration::from_secs(seconds);
    let queue = Mutex::new(all.into_iter());
    let outcomes: Mutex<BTreeMap<Outcome, usize>> = Mutex::default();
    let failures: Mutex<Vec<String>> = Mutex::default();
    std::thread::scope(|scope| {
        // A site is mostly waiting.
        for _ in 0..if is_full() { 8 } else { 3 } {
            scope.spawn(|| {
                loop {
                    if is_over() {
                        return;
                    }
                    let Some(site) = queue.lock().unwrap().next() else { return };
                    match std::panic::catch_unwind(|| inject(&site, &base)) {
                        Ok(Ok(outcome)) => *outcomes.lock().unwrap().entry(outcome).or_default() += 1,
                        failed => {
                            let why = failed.map_or("a check failed, see above".to_string(), |r| r.unwrap_err());
                            let line = format!("TIMBERLINE_SITE=\"{}\": {why}", site.text());
                            eprintln!("{line}");
                            failures.lock().unwrap().push(line);
                        }
                    }
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap();
    let of = |o: Outcome| outcomes.get(&o).copied().unwrap_or(0);
    let failures = failures.into_inner().unwrap();
    let counts = [
        ("sites", total),
        ("injected", outcomes.values().sum::<usize>() + failures.len() - of(Outcome::NotReached)),
        ("not_reached", of(Outcome::NotReached)),
        ("exit_74", of(Outcome::Poisoned)),
        ("went_on", of(Outcome::Survived)),
        ("start_refused", of(Outcome::Refused)),
        ("killed", of(Outcome::Killed)),
        ("failures", failures.len()),
    ];
    figures("system_calls", started, &counts);
    assert!(failures.is_empty(), "{} sites failed:\n{}", failures.len(), failures.join("\n"));
}

impl Call {
    /// Where a `pwrite64` begins and ends.
    fn range(&self) -> (u64, u64) {
        let text = self.arguments.rsplit_once(')').map_or("", |(text, _)| text);
        let mut numbers = text.rsplit(", ").map(|n| n.parse::<u64>().unwrap_or_else(|_| panic!("{}", self.arguments)));
        let (offset, len) = (numbers.next().unwrap(), numbers.next().unwrap());
        (offset, offset + len)
    }
}

/// A group begins on a block of its own behind all others, so no sector with acknowledged bytes is ever written again; and
/// the descriptor that filled a file is the one that logs, so that no error of a write-back goes to another one.
#[test]
fn no_sector_is_written_again_and_no_segment_opened_again() {
    if !may_trace() {
        return skip("strace is not installed, or may not trace");
    }
    let ran = run(Scenario::Fresh, &Base::make(), CALLS, None, None).unwrap();
    assert_eq!(ran.status.code(), Some(0), "{}", ran.log);
    let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
    let logged = |c: &&Call| c.name == "pwrite64" && matches!(c.role, Role::Wal | Role::Blk);
    for call in ran.calls.iter().filter(logged) {
        let (start, end) = call.range();
        let last = ends.entry(&call.path).or_default();
        assert!(start >= *last && start.is_multiple_of(4096), "{}: {start} after {last}", call.path);
        *last = end;
    }
    assert!(ends.len() > 6, "only {} segments were written", ends.len());
    let opened: Vec<_> =
        ran.calls.iter().filter(|c| c.name.starts_with("open") && c.role == Role::Wal).map(|c| &c.arguments).collect();
    assert!(opened.is_empty(), "{opened:?}");
}

/// Signals interrupt writes: they are made again.
#[test]
fn interrupted_writes_are_made_again() {
    if !may_trace() {
        return skip("strace is not installed, or may not trace");
    }
    let base = Base::make();
    for role in [Role::Wal, Role::WalTmp, Role::Blk, Role::BlkTmp] {
        let ran = run(Scenario::Fresh, &base, "pwrite64", Some(role), Some(("error=EINTR:when=2+3", false))).unwrap();
        assert_eq!(ran.status.code(), Some(0), "{}", ran.log);
        assert!(ran.calls.iter().filter(|c| c.injected).count() > 1, "{role:?}: nothing was interrupted");
        // The log of four small segments may be full for a moment; an interrupted write that was taken for a failure would have
        // ended the process.
        let taken = ran.client.pushes.iter().filter(|p| p.status == Some(204)).count();
        let answered = ran.client.pushes.iter().all(|p| matches!(p.status, Some(204 | 503)));
        assert!(answered && taken > 15, "{role:?}: {taken} pushes were taken");
        ran.client.ledger.check(&mut Server::start(ran.dir.path(), CONFIG, &[]).http());
    }
}

/// Blocks whose disk fails to read are missing in an answer only with a warning, or the answer is an error.
#[test]
fn blocks_that_cannot_be_read_are_never_missing_silently() {
    if !may_trace() {
        return skip("strace is not installed, or may not trace");
    }
    let tmp = tempfile::tempdir().unwrap();
    let data = tmp.path().join("data");
    let mut wrapper: Vec<String> =
        ["strace", "-D", "-f", "--seccomp-bpf", "-e", "trace=pread64", "-e", "inject=pread64:error=EIO", "-o"]
            .map(String::from)
            .into();
    wrapper.push(tmp.path().join("trace").display().to_string());
    for path in Role::Blk.paths(&data) {
        wrapper.extend(["-P".into(), path.display().to_string()]);
    }
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let mut server = Server::spawn_under(&wrapper, tmp.path(), CONFIG, &[]);
    server.wait_for("/loki/api/v1/labels");
    let (mut http, mut client) = (server.http(), Client::default());
    script(&mut http, &mut client, 20);
    let target = format!(
        "/loki/api/v1/query_range?query={}&start=0&end=4000000000000000000&limit=1000",
        server::encode("{s=~\".+\"}")
    );
    let (status, body) = http.get(&target).unwrap();
    let body = String::from_utf8_lossy(&body).into_owned();
    let shown = client.ledger.acked.iter().filter(|line| body.contains(line.as_str())).count();
    println!("{status}, {shown} of {} lines, warnings: {}", client.ledger.acked.len(), body.contains("\"warnings\""));
    assert!(shown < client.ledger.acked.len(), "no block was read: nothing is tested");
    assert!(status >= 500 || body.contains("\"warnings\""), "{status} without a warning");
    assert_eq!(client.push(&mut http, 100), Some(204), "pushes do not need blocks");
    server.kill();
    client.ledger.check(&mut Server::start(tmp.path(), CONFIG, &[]).http());
}

/// Resident memory of a process in bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Seconds that the log's syncs have taken, as `/metrics` has them.
fn sync_seconds(http: &mut Http) -> f64 {
    let (status, body) = http.get("/metrics").unwrap();
    assert_eq!(status, 200);
    let body = String::from_utf8(body).unwrap();
    let sum = body.lines().find_map(|l| l.strip_prefix("prometheus_tsdb_wal_fsync_duration_seconds_sum "));
    sum.and_then(|s| s.parse().ok()).expect("the metric of syncs is missing")
}

/// What the clients of a slow disk saw.
#[derive(Default)]
struct Seen {
    ledger: Ledger,
    taken: usize,
    refused: usize,
    slowest_refusal: Duration,
    wrong: Vec<String>,
}

/// Pushes until told to stop. A refusal comes within two seconds, and says when to come back.
fn push_on_slow_disk(server: &str, number: i64, until: Instant) -> Seen {
    let (mut http, mut client) = (Http::new(server), Client::from(1_000_000 * number));
    http.timeout = Duration::from_secs(120);
    let mut seen = Seen::default();
    while Instant::now() < until {
        let started = Instant::now();
        match client.push(&mut http, 50_000) {
            Some(204) => seen.taken += 1,
            Some(_) => {
                seen.refused += 1;
                seen.slowest_refusal = seen.slowest_refusal.max(started.elapsed());
                if !http.headers.contains("retry-after: ") {
                    seen.wrong.push(format!("no Retry-After: {}", http.headers));
                }
            }
            None => seen.wrong.push("no answer".into()),
        }
    }
    seen.ledger = client.ledger;
    seen
}

/// Each sync of the log takes 30 s (4 s in a sample): the queue is bounded, whoever does not fit hears so within two
/// seconds, memory stays flat however long it is pushed, and `/metrics` tells what syncs take.
#[test]
fn a_disk_with_slow_syncs_refuses_in_time_and_holds_its_memory() {
    if !may_trace() {
        return skip("strace is not installed, or may not trace");
    }
    let begun = Instant::now();
    let sync = Duration::from_secs(if is_full() { 30 } else { 4 });
    let tmp = tempfile::tempdir().unwrap();
    let (data, trace) = (tmp.path().join("data"), tmp.path().join("trace"));
    let inject = format!("inject=fdatasync:delay_enter={}", sync.as_micros());
    let mut wrapper: Vec<String> =
        ["strace", "-D", "-f", "--seccomp-bpf", "-e", "trace=fdatasync", "-e", &inject, "-o"].map(String::from).into();
    wrapper.push(trace.display().to_string());
    for path in Role::Wal.paths(&data) {
        wrapper.extend(["-P".into(), path.display().to_string()]);
    }
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let config = "ingester: {wal: {segment_size: 1MB, queue_size: 1MB}}\n";
    let mut server = Server::spawn_under(&wrapper, tmp.path(), config, &[]);
    server.wait_for("/loki/api/v1/labels");
    let started = Instant::now();
    let until = started + 3 * sync;
    let mut memory = Vec::new();
    let seen: Vec<Seen> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..40)
            .map(|n| {
                scope.spawn({
                    let addr = &server.addr;
                    move || push_on_slow_disk(addr, n, until)
                })
            })
            .collect();
        while Instant::now() < until {
            memory.push((started.elapsed(), resident(server.pid())));
            std::thread::sleep(Duration::from_millis(100));
        }
        clients.into_iter().map(|c| c.join().unwrap()).collect()
    });
    let sum = |of: fn(&Seen) -> usize| seen.iter().map(of).sum::<usize>();
    let (taken, refused) = (sum(|s| s.taken), sum(|s| s.refused));
    let slowest = seen.iter().map(|s| s.slowest_refusal).max().unwrap();
    // The first sync is over after one time of it: from there on everything that can fill is full.
    let peak = |range: std::ops::Range<Duration>| {
        memory.iter().filter(|(at, _)| range.contains(at)).map(|(_, bytes)| *bytes).max().unwrap() >> 20
    };
    let (early, late) = (peak(Duration::ZERO..sync), peak(2 * sync..4 * sync));
    let told = sync_seconds(&mut server.http());
    println!(
        "syncs of {sync:?}: {taken} taken, {refused} refused, the slowest refusal {slowest:?}; {early} MB, then {late} MB; metrics tell {told:.1} s"
    );
    let wrong: Vec<_> = seen.iter().flat_map(|s| &s.wrong).collect();
    assert!(wrong.is_empty(), "{:?}", &wrong[..wrong.len().min(3)]);
    assert!(taken > 0 && refused > 20, "{taken} taken, {refused} refused");
    assert!(slowest < Duration::from_millis(3500), "a refusal took {slowest:?}");
    assert!(late <= early + 24, "memory grew from {early} MB to {late} MB");
    assert!(told >= sync.as_secs_f64(), "{told}");
    server.kill();
    let mut all = Ledger::default();
    seen.into_iter().for_each(|s| all.merge(s.ledger));
    all.check(&mut Server::start(tmp.path(), CONFIG, &[]).http());
    let counts = [("taken", taken), ("refused", refused), ("slowest_refusal_ms", slowest.as_millis() as usize)];
    figures("slow_disk", begun, &counts);
}
