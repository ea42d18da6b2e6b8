//! Does the promise hold for long, under load, while everything goes wrong? A tool, not a test: 30 minutes by default.
//!
//! ```text
//! cargo build --release && cargo run --release --example soak -- --minutes 30
//!     [--seed N] [--dir DIR] [--report FILE] [--server BINARY] [--faults "kill -9,full disk"] [--busy N]
//! ```
//!
//! It needs root, loop devices, `mkfs.ext4`, `prlimit` and libfaketime. It starts the binary beside it on an ext4 image of its own
//! and pushes about 2 MB of lines a second: three tenants, each as snappy protobuf, JSON, JSON in gzip, and over gRPC; into streams
//! that all writers of a tenant share, that they create at the same moment, and that are a writer's own, with metadata. What
//! gets no answer or 503 is mostly sent again. Meanwhile, every 10 s, one fault of the list below, in an order that the seed gives.
//!
//! Each of these ends it with code 1, after the report is written:
//!
//! - the ledger: each acknowledged line is there once, unaltered, under its tenant, in order; nothing else is, but what was sent without
//!   success, as a whole or not at all; what a query has shown stays. After each start all lines are counted, and those
//!   of the last epochs and of one by chance compared; after each fault those that came since the last look; in the end all, after a
//!   last start, and once more by `wal-inspect verify`;
//! - an answer that fits no fault, a stop that does not end with 0, an end that nobody asked for, damage told by a start, a panic;
//! - pushes that are not taken again in time after a fault, or a start that takes too long (on a machine that has other work to do,
//!   `--busy 4` makes these limits four times as long, and the report says so);
//! - resident memory above the budget and what bodies take, its growth: by 1 % an hour in runs of two hours and more, by a quarter in shorter ones;
//! - file descriptors that are not given back after a fault;
//! - more bytes to disk (`write_bytes` of /proc/PID/io, summed over all processes) than a multiple of the acknowledged lines;
//! - a line of level error in the server's own log.

#[path = "support/clock.rs"]
mod clock;
#[path = "support/faults.rs"]
mod faults;
#[path = "../benches/support/lines.rs"]
mod lines;
#[path = "support/options.rs"]
mod options;
#[path = "support/soak/mod.rs"]
mod soak;
#[path = "../tests/support/mod.rs"]
mod support;

use options::Given;
use soak::bombs::bombs;
use soak::inflict::{Fault, Schedule, inflict};
use soak::load::{Field, writers};
use soak::report::{FILES, Figures, OTHERS, Run};
use soak::rig::{End, Rig, files, open};
use soak::samples::sample;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{free_port, server};

/// From the beginning of one fault to the next one's.
const EVERY: Duration = Duration::from_secs(10);
/// Set by SIGINT: no further fault.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

struct Options {
    minutes: f64,
    seed: u64,
    dir: PathBuf,
    report: PathBuf,
    faults: Vec<Fault>,
    busy: u32,
}

fn options() -> Result<Options, String> {
    let mut given = Given::read()?;
    let minutes = given.number("--minutes", 30.0)?;
    let seed = given.number("--seed", std::time::UNIX_EPOCH.elapsed().map_or(1, |d| d.as_secs()))?;
    let busy = given.number("--busy", 1)?;
    let dir = given.text("--dir").map_or_else(|| std::env::temp_dir().join("timberline-soak"), PathBuf::from);
    let report = given.text("--report").unwrap_or("recovery-tests/SOAK.md".into()).into();
    if let Some(binary) = given.text("--server") {
        server::BINARY.get_or_init(|| binary.into());
    }
    let named = |name: &str| {
        let found = Fault::ALL.into_iter().find(|f| f.name() == name);
        found.ok_or(format!("no fault {name:?}; there are: {}", Fault::ALL.map(Fault::name).join(", ")))
    };
    let faults = given.text("--faults").map_or(Ok(Fault::ALL.to_vec()), |f| f.split(',').map(named).collect())?;
    given.end()?;
    Ok(Options { minutes, seed, dir, report, faults, busy })
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("soak: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Why it cannot run here.
fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root may mount a disk and change limits");
    }
    ["mkfs.ext4", "mount", "umount", "prlimit", "fsfreeze"].into_iter().find(|program| !server::has(program))
}

fn run(options: &Options) -> Result<ExitCode, String> {
    if let Some(why) = missing() {
        server::skip(why);
        return Ok(ExitCode::SUCCESS);
    }
    if !server::binary().exists() {
        return Err(format!("{} is not there: cargo build --release", server::binary().display()));
    }
    if options.dir.read_dir().is_ok_and(|mut d| d.next().is_some()) {
        return Err(format!("{} is not empty", options.dir.display()));
    }
    let ports = (free_port(), free_port());
    let field = Arc::new(Field::new(lines::lines(3 << 20), ports, options.busy));
    // Takes up only what is written.
    let bytes = (4 << 30) + ((options.minutes * 60.0) as u64) * (8 << 20);
    let Some(mut rig) = Rig::new(&options.dir, bytes, field.clone(), ports) else { return Ok(ExitCode::SUCCESS) };
    on_sigint();
    println!("seed {}, {} minutes, in {}", options.seed, options.minutes, options.dir.display());
    let run = soak(options, &mut rig);
    let failed = run.violations.0 > 0;
    std::fs::write(&options.report, run.markdown()).map_err(|e| format!("{}: {e}", options.report.display()))?;
    println!("{}", run.markdown());
    println!("{} is written", options.report.display());
    drop(rig);
    if failed {
        println!("the disk and the server's log are kept in {}", options.dir.display());
        return Ok(ExitCode::FAILURE);
    }
    std::fs::remove_dir_all(&options.dir).map_err(|e| format!("{}: {e}", options.dir.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// The first one ends the run early, with a report.
fn on_sigint() {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if runtime.is_ok_and(|runtime| runtime.block_on(tokio::signal::ctrl_c()).is_ok()) {
            eprintln!("soak: no further fault");
            INTERRUPTED.store(true, Ordering::SeqCst);
        }
    });
}

fn rest_until(at: Instant) {
    while Instant::now() < at && !INTERRUPTED.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(50).min(at.saturating_duration_since(Instant::now())));
    }
}

fn soak(options: &Options, rig: &mut Rig) -> Run {
    let field = rig.field.clone();
    // What is built now: the checkout may move on meanwhile.
    let commit = commit();
    let (bombs, mut schedule) = (bombs(), Schedule::new(options.seed, options.faults.clone()));
    let begin = Instant::now();
    let sampler = {
        let (field, data) = (field.clone(), rig.data.clone());
        std::thread::spawn(move || sample(&field, &data, begin))
    };
    let writers = writers(&field);
    let mut outcomes = Vec::new();
    let mut next = begin + EVERY;
    rest_until(next);
    let (_, others) = open(rig.server.pid());
    while begin.elapsed().as_secs_f64() < options.minutes * 60.0 && !INTERRUPTED.load(Ordering::SeqCst) {
        let fault = schedule.next();
        field.next_epoch();
        rig.revive();
        let outcome = inflict(fault, rig, &bombs);
        rig.revive();
        println!(
            "{:>6.1} s: {}: taken again after {:.2?} {:?}",
            begin.elapsed().as_secs_f64(),
            fault.name(),
            outcome.again,
            outcome.answers
        );
        outcomes.push((fault, outcome));
        descriptors(rig, fault, others);
        rig.check(matches!(fault, Fault::Kill | Fault::ClockJump), schedule.chance());
        // One that took longer than its time moves those behind it.
        next = (next + EVERY).max(Instant::now());
        rest_until(next);
    }
    let lasted = begin.elapsed();
    field.stop.store(true, Ordering::SeqCst);
    writers.into_iter().for_each(|w| w.join().unwrap_or_else(|_| field.wrong("a writer panicked".into())));
    let samples = sampler.join().unwrap_or_default();
    rig.restart(End::Term, &[]);
    rig.check_all();
    let written = rig.written();
    rig.stop();
    rig.verify();
    rig.errors_told().into_iter().for_each(|line| field.wrong(format!("the server's log: {line}")));
    let ledger = {
        let l = field.ledger.lock();
        Figures {
            pushes: l.pushes(),
            acked_pushes: l.acked_pushes,
            acked_lines: l.acked_lines,
            acked_bytes: l.acked_bytes,
            refused: l.refused,
            unanswered: l.unanswered,
        }
    };
    let mut run = Run {
        seed: options.seed,
        commit,
        profile: if cfg!(debug_assertions) { "with assertions" } else { "release" },
        minutes: options.minutes,
        lasted,
        interrupted: INTERRUPTED.load(Ordering::SeqCst),
        slow: rig.slow.name(),
        outcomes,
        starts: rig.starts.clone(),
        samples,
        ledger,
        written,
        lines_checked: rig.lines_checked,
        violations: Default::default(),
        busy: options.busy,
    };
    run.judge().into_iter().for_each(|what| field.wrong(what));
    run.violations = field.violations();
    run
}

/// What a fault has opened is closed a moment after its end.
fn descriptors(rig: &Rig, fault: Fault, before: usize) {
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        let (open_files, others) = open(rig.server.pid());
        let logs = files(&rig.data, "wal").0 + files(&rig.data, "blocks").0;
        if open_files <= logs + FILES && others <= before + OTHERS {
            return;
        }
        if Instant::now() > deadline {
            let what = format!(
                "{open_files} files ({logs} of both logs) and {others} others are open, {before} others before"
            );
            return rig.field.wrong(format!("after {}: {what}", fault.name()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What was run, as far as git knows.
fn commit() -> String {
    let out = Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .output();
    let text = out.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string()).unwrap_or_default();
    if text.is_empty() { "unknown".into() } else { text }
}
