//! A harness that cannot fail proves nothing: with each planted bug one of the recovery tests must fail, and with none of
//! them none.
//!
//! `cargo test --features planted-bugs --test mutants -- --nocapture` prints a table. Bugs are killed by the ledger of the
//! simulator, never by the code that they are in. Each is hunted in a process of its own, because a bug may end it; what ends it is
//! no proof by itself unless it is a failed invariant. Those that a killed process shows are hunted by `kill9`.
#![cfg(feature = "planted-bugs")]

#[path = "support/sim/mod.rs"]
mod sim;
mod support;

use sim::explore::Depth;
use sim::hunt::{Prey, hunt, hunt_node, hunt_twins};
use sim::node::Script;
use sim::workload::Workload;
use std::io::Write;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use timberline::planted::{Bug, plant};

/// How long one bug is hunted at most.
const BUDGET: Duration = Duration::from_secs(40);
/// How a hunt says what it found.
const FOUND: &str = "FOUND: ";

/// Who finds what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hunter {
    /// Crash states of the write-ahead log.
    Crashes,
    /// Failing calls, and crashes behind them.
    Faults,
    /// Changed bytes.
    Damage,
    /// Crash states of both logs under a whole ingester.
    Node,
    /// Equal pushes, the first of which is held.
    Twins,
    /// The real binary under SIGKILL: `kill9` and `panics` have tests of their own.
    Elsewhere,
}

fn hunter(bug: Bug) -> Hunter {
    use Bug::*;
    match bug {
        AckBeforeWrite | MemoryBeforeLog | DistinctDropped | RetiredTooEarly | PanicInApply | PanicInSeal => {
            Hunter::Elsewhere
        }
        DuplicateAckedEarly => Hunter::Twins,
        SyncRetried | SyncErrorSwallowed | FullDiskAcked | OffsetUsedAgain | ShortWriteIgnored | LsnsSkipped => {
            Hunter::Faults
        }
        HeadUnchecked | BodyUnchecked | LaterSegmentsDropped | DamageSilent | LossNotTold => Hunter::Damage,
        TenantMixedUp | AppliedTwice | CarriedStampedAnew | CarriedTooLate | BlockUnsynced | BlocksWithoutSeries
        | UnlinkedEarly | FlushedForgotten | SeriesOnce | DirectoryUnsynced => Hunter::Node,
        _ => Hunter::Crashes,
    }
}

fn workloads(letters: &[&str]) -> Vec<Workload> {
    letters.iter().zip(1..).filter_map(|(w, seed)| Workload::parse(w, seed)).collect()
}

fn go(hunter: Hunter, budget: Duration) -> Option<String> {
    match hunter {
        Hunter::Crashes => {
            hunt(&[Prey::Crashes], &workloads(&["ss", "rr", "sk", "ro", "bks", "lsk", "sik"]), &Depth::QUICK, budget)
        }
        Hunter::Faults => {
            hunt(&[Prey::Faults(3)], &workloads(&["bs", "ss", "sbs", "bbs", "rs", "lr"]), &Depth::FAULTS, budget)
        }
        Hunter::Damage => hunt(&[Prey::Damage(61)], &workloads(&["sks", "rro", "bkrs"]), &Depth::QUICK, budget),
        Hunter::Node => {
            let scripts = ["bsf", "bwk", "bwwwwk", "wk", "cs", "bfwk", "bwo", "skw", "wbf", "cwk", "bfbfo", "bww"];
            let scripts: Vec<Script> = scripts.iter().zip(1..).filter_map(|(s, seed)| Script::parse(s, seed)).collect();
            hunt_node(&[Prey::Crashes], &scripts, &Depth::NODE, budget)
        }
        Hunter::Twins => hunt_twins(&Script::parse("s", 1)?),
        Hunter::Elsewhere => None,
    }
}

/// One hunt, when a process is started for it.
#[test]
fn one_hunt() {
    let Ok(name) = std::env::var("TIMBERLINE_HUNT") else { return };
    let hunters = [Hunter::Twins, Hunter::Crashes, Hunter::Faults, Hunter::Damage, Hunter::Node];
    let bug = Bug::ALL.iter().copied().find(|b| b.name() == name);
    plant(bug);
    let of = bug.map_or(hunters.to_vec(), |b| vec![hunter(b)]);
    let each = if bug.is_some() { BUDGET } else { BUDGET / 4 };
    for hunter in of {
        if let Some(found) = go(hunter, each) {
            println!("{FOUND}{hunter:?}: {}", found.lines().next().unwrap_or_default());
            return;
        }
    }
}

/// What a hunt found, and how long it took.
fn hunted(name: &str) -> (Option<String>, Duration) {
    let begin = Instant::now();
    let me = std::env::current_exe().unwrap_or_else(|e| panic!("{e}"));
    let output = Command::new(me)
        .args(["one_hunt", "--exact", "--nocapture", "--test-threads=1"])
        .env("TIMBERLINE_HUNT", name)
        .env_remove("TIMBERLINE_RESULTS")
        .output()
        .unwrap_or_else(|e| panic!("{e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let found = text.lines().find_map(|l| l.split_once(FOUND)).map(|(_, found)| found.to_string());
    // An invariant of ours that ends the process is a find; that it was a planted assertion is ruled out by the names.
    let died = (!output.status.success()).then(|| {
        let why =
            text.lines().find(|l| l.contains("panicked at") || l.contains("error")).unwrap_or("the process ended");
        format!("{why} ({})", output.status)
    });
    (found.or(died), begin.elapsed())
}

#[test]
fn every_planted_bug_is_found() {
    let names: Vec<&str> = Bug::ALL.iter().filter(|b| hunter(**b) != Hunter::Elsewhere).map(|b| b.name()).collect();
    let (queue, results) = (Mutex::new(names.into_iter().rev().collect::<Vec<_>>()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(name) = { queue.lock().unwrap().pop() } {
                    let (found, took) = hunted(name);
                    println!("{name:24} {:6.1} s  {}", took.as_secs_f64(), found.as_deref().unwrap_or("SURVIVES"));
                    results.lock().unwrap().push((name, found, took));
                }
            });
        }
    });
    let results = results.into_inner().unwrap();
    if let Ok(path) = std::env::var("TIMBERLINE_RESULTS") {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        for (name, found, took) in &results {
            let line = serde_json::json!({"mutant": name, "killed_by": found, "seconds": took.as_secs_f64()});
            writeln!(file, "{line}").unwrap();
        }
    }
    let alive: Vec<&str> = results.iter().filter(|(_, found, _)| found.is_none()).map(|(name, ..)| *name).collect();
    assert!(alive.is_empty(), "these bugs are not found: {alive:?}");
}

#[test]
fn without_a_bug_nothing_is_found() {
    let (found, _) = hunted("none");
    assert_eq!(found, None);
}
