//! The real binary, killed with SIGKILL again and again under concurrent pushes, several of them into the same streams
//! and into streams that are just being created. A ledger outside the process knows what was acknowledged.
//!
//! `TIMBERLINE_KILL_CYCLES` sets the number of cycles (25), `TIMBERLINE_KILL_RUNS` spreads them over directories that are
//! worked on at once (1), `TIMBERLINE_KILL_SEED` repeats a run's random choices.

#[path = "support/faults.rs"]
mod faults;
#[path = "support/load.rs"]
mod load;
#[path = "support/server.rs"]
mod server;

use faults::Random;
use load::{CONFIG, Field, check_log, epoch};
use server::Server;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};
use timberline::wal;

/// Cycles on one directory, at most: nothing leaves it, so each start takes longer than the one before.
const ON_ONE: u64 = 250;

/// Kills during replay: the process is killed a few times before it is ready. Returns how often it was not.
fn kill_while_starting(dir: &Path, env: &[(&str, &str)], random: &mut Random) -> u64 {
    let mut kills = 0;
    while random.below(3) == 0 {
        let server = Server::spawn(dir, CONFIG, env);
        std::thread::sleep(Duration::from_millis(random.below(40)));
        let ready = server.http().get("/ready").is_ok_and(|(status, _)| status == 200);
        server.kill();
        kills += u64::from(!ready);
    }
    kills
}

/// What the server was at when it was killed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Phase {
    /// Nothing but pushes.
    Ingest,
    /// The next segment of the log was being made, or had just been taken.
    Rotate,
    /// Blocks were being written, or had just come to count.
    Seal,
    /// A segment was just given up.
    Retire,
    /// It was starting.
    Recover,
}

/// The files of both logs: names, and when those of the block log were written.
fn files(data: &Path) -> (BTreeSet<String>, BTreeMap<String, Option<std::time::SystemTime>>) {
    let entries = |dir: &str| std::fs::read_dir(data.join(dir)).into_iter().flatten().flatten();
    let name = |e: &std::fs::DirEntry| e.file_name().to_string_lossy().into_owned();
    let written = |e: &std::fs::DirEntry| e.metadata().ok().and_then(|m| m.modified().ok());
    (entries("wal").map(|e| name(&e)).collect(), entries("blocks").map(|e| (name(&e), written(&e))).collect())
}

/// Waits until the files show that the server is at this, but not for ever; returns whether they have shown it just now.
fn wait_for(phase: Phase, data: &Path) -> bool {
    let (logs, blocks) = files(data);
    let deadline = Instant::now() + Duration::from_millis(600);
    while Instant::now() < deadline {
        let (now, blocks_now) = files(data);
        let shows = match phase {
            Phase::Rotate => now.iter().any(|n| n.ends_with(".tmp")),
            Phase::Seal => blocks_now != blocks,
            Phase::Retire => !now.is_superset(&logs) && logs.iter().any(|n| n.ends_with(".wal") && !now.contains(n)),
            Phase::Ingest | Phase::Recover => true,
        };
        if shows {
            return phase != Phase::Ingest;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    false
}

/// What the server was at, by what it did last to its log.
fn phase_of(data: &Path) -> Phase {
    let (logs, _) = files(data);
    if logs.iter().any(|n| n.ends_with(".tmp")) {
        return Phase::Rotate;
    }
    let written = |name: &String| {
        let bytes = std::fs::read(data.join("wal").join(name)).ok()?;
        let scan = wal::scan_segment(&bytes).ok()?;
        let groups: Vec<_> = scan.groups.into_iter().filter(|g| g.header.is_some()).collect();
        (!groups.is_empty()).then_some(groups)
    };
    let Some(groups) = logs.iter().rev().find_map(written) else { return Phase::Ingest };
    let last = groups.iter().rev().take(2).flat_map(|g| &g.records).filter_map(|r| r.head.known_kind());
    let kinds: Vec<wal::Kind> = last.collect();
    let has = |wanted: &[wal::Kind]| kinds.iter().any(|k| wanted.contains(k));
    if has(&[wal::Kind::Retiring]) {
        Phase::Retire
    } else if has(&[wal::Kind::BlocksSynced, wal::Kind::ChunkClosed]) {
        Phase::Seal
    } else if groups.len() <= 2 {
        Phase::Rotate
    } else {
        Phase::Ingest
    }
}

#[derive(Default)]
struct Run {
    kills: u64,
    phases: BTreeMap<Phase, u64>,
    acks: u64,
    /// Pushes that were killed before their answer and are there all the same.
    unacked_there: u64,
    /// From the start of the process to ready, in milliseconds.
    starts: Vec<u64>,
    wrong: Vec<String>,
}

fn run(cycles: u64, seed: u64, env: &[(&str, &str)], stop_at_first: bool) -> Run {
    let tmp = tempfile::tempdir().unwrap();
    let mut random = Random(seed | 1);
    let field = Field::new();
    let mut result = Run::default();
    let data = tmp.path().join("data");
    let mut cycle = 0;
    while result.kills < cycles {
        let begin = Instant::now();
        let server = Server::start(tmp.path(), CONFIG, env);
        result.starts.push(begin.elapsed().as_millis() as u64);
        let mut http = server.http();
        result.wrong.extend(field.check(&mut http, epoch(cycle)));
        let load = field.start(&server.addr, cycle);
        load.wait_for_ack();
        std::thread::sleep(Duration::from_micros(random.below(100_000)));
        // Many a wait for a new segment is in vain, and blocks are often being written anyway.
        let wanted = match random.below(11) {
            0..4 => Phase::Rotate,
            4..8 => Phase::Retire,
            8..10 => Phase::Seal,
            _ => Phase::Ingest,
        };
        if random.below(4) == 0 {
            field.note_shown(&mut http, epoch(cycle));
        }
        let shown = wait_for(wanted, &data);
        server.kill();
        // A kill without an ack since the last one proves nothing.
        if load.stop() > 0 {
            result.kills += 1;
            // What follows in the log within the time of a kill hides what was seen in the files.
            let phase = if shown { wanted } else { phase_of(&data) };
            *result.phases.entry(phase).or_default() += 1;
        }
        *result.phases.entry(Phase::Recover).or_default() += kill_while_starting(tmp.path(), env, &mut random);
        result.wrong.extend(check_log(&data, None));
        if stop_at_first && !result.wrong.is_empty() {
            break;
        }
        assert!(
            result.wrong.is_empty(),
            "seed {seed}, cycle {cycle}: {:#?}",
            &result.wrong[..result.wrong.len().min(10)]
        );
        cycle += 1;
    }
    // Everything of every epoch once more, after a last start.
    let server = Server::start(tmp.path(), CONFIG, env);
    for e in 0..=epoch(cycle) {
        result.wrong.extend(field.check(&mut server.http(), e));
    }
    assert_eq!(server.terminate(), Some(0));
    result.wrong.extend(check_log(&data, None));
    result.acks = field.acks();
    result.unacked_there = field.unacked_there();
    result
}

/// Several runs at once, each in a directory and with a seed of its own.
fn runs(cycles: u64, runs: u64, seed: u64) -> Run {
    let each = |n: u64| {
        move || {
            let (mut left, mut ended) = (cycles.div_ceil(runs), Vec::new());
            while left > 0 {
                let seed = seed.wrapping_add(2 * n).wrapping_add(1_000_000 * ended.len() as u64);
                ended.push(run(left.min(ON_ONE), seed, &[], false));
                left -= left.min(ON_ONE);
            }
            ended
        }
    };
    let ended: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..runs).map(|n| scope.spawn(each(n))).collect();
        running.into_iter().map(|r| r.join()).collect()
    });
    let mut all = Run::default();
    for one in ended.into_iter().flat_map(|ended| ended.unwrap_or_else(|why| std::panic::resume_unwind(why))) {
        all.kills += one.kills;
        all.acks += one.acks;
        all.unacked_there += one.unacked_there;
        all.starts.extend(one.starts);
        all.wrong.extend(one.wrong);
        one.phases.into_iter().for_each(|(phase, n)| *all.phases.entry(phase).or_default() += n);
    }
    all.starts.sort_unstable();
    all
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

fn seed() -> u64 {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    number("TIMBERLINE_KILL_SEED", clock)
}

#[test]
fn every_acknowledged_line_is_back_after_kill_9() {
    let (cycles, seed) = (number("TIMBERLINE_KILL_CYCLES", 25), seed());
    let run = runs(cycles, number("TIMBERLINE_KILL_RUNS", 1).max(1), seed);
    println!("seed {seed}: {} kills with an ack since the last, {} pushes acknowledged", run.kills, run.acks);
    println!("by phase: {:?}", run.phases);
    assert!(run.wrong.is_empty(), "seed {seed}: {:#?}", &run.wrong[..run.wrong.len().min(10)]);
    let phases: BTreeMap<String, u64> = run.phases.iter().map(|(p, n)| (format!("{p:?}").to_lowercase(), *n)).collect();
    let start = |percent: usize| run.starts.get(run.starts.len() * percent / 100).copied().unwrap_or(0);
    let line = serde_json::json!({
        "layer": "kills", "seed": seed, "kills": run.kills, "pushes acknowledged": run.acks, "phases": phases,
        "unresolved tails: pushes without an answer that are there": run.unacked_there,
        "recovery p50, ms": start(50), "recovery p99, ms": start(99),
        "lost": 0, "phantom": 0, "doubled": 0, "altered": 0,
    });
    faults::note_result(&line.to_string());
    // Few kills may miss a phase by chance.
    let all: u64 = run.phases.values().sum();
    for phase in [Phase::Rotate, Phase::Seal, Phase::Retire, Phase::Recover].into_iter().filter(|_| cycles >= 200) {
        let n = run.phases.get(&phase).copied().unwrap_or(0);
        assert!(n * 10 >= all, "only {n} of {all} kills hit {phase:?}");
    }
}

/// A harness that cannot fail proves nothing: with each planted bug it must.
fn planted(bug: &str) {
    if faults::can_plant() {
        let begin = Instant::now();
        let run = run(25, seed(), &[("TIMBERLINE_PLANTED_BUG", bug)], true);
        faults::found(bug, "kill -9", begin, &run.wrong);
    }
}

#[test]
fn an_ack_before_the_write_is_found() {
    planted("ack-before-write");
}

#[test]
fn memory_before_the_log_is_found() {
    planted("memory-before-log");
}

#[test]
fn distinct_lines_taken_for_duplicates_are_found() {
    planted("distinct-dropped");
}
