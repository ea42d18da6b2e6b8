//! A harness that cannot fail proves nothing: each planted bug (`src/planted.rs`) must be found by the ledger or an
//! invariant of the recovery tests, and without a bug the same hunters must find nothing.
//!
//! `cargo test --features planted-bugs --test mutants`. `TIMBERLINE_MUTANT=<name>` tries one bug only. The switch belongs to
//! a process, so each bug is hunted in a process of its own: this test's binary, started again with one test to run.

#![cfg_attr(not(feature = "planted-bugs"), allow(dead_code, unused_imports))]

#[path = "support/server.rs"]
mod server;
#[path = "support/sim/mod.rs"]
mod sim;
mod support;

use parking_lot::Mutex;
use server::Server;
use sim::explore::Depth;
use sim::hunt::{Prey, hunt, hunt_node};
use sim::node::Script;
use sim::node_explore::node_twice;
use sim::report::{Layer, note_result};
use sim::workload::Workload;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use timberline::planted::Bug;

/// Name of the bug, for the child.
const TASK: &str = "TIMBERLINE_MUTANT_TASK";
/// The planted bug of the whole process; the program itself reads it.
const PLANTED: &str = "TIMBERLINE_PLANTED_BUG";
/// What one hunter may take.
const BUDGET: Duration = Duration::from_secs(20);
/// A child that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// One way to look for a bug.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Hunter {
    /// The simulated log: workloads.
    Log(Prey, &'static [&'static str]),
    /// The simulated ingester with both logs: scripts.
    Node(Prey, &'static [&'static str]),
    /// Two equal pushes at the same time, and every crash.
    Twice,
    /// The real binary: two tenants, lines that differ little, and `kill -9`.
    Served,
}

use Hunter::{Log, Node, Served, Twice};

const SHORT: Hunter = Log(Prey::Crashes, &["ss", "sk", "bks", "rs"]);
const FAILING: Hunter = Log(Prey::Faults(1), &["ss", "bs", "sbs", "bbs"]);
const DAMAGED: Hunter = Log(Prey::Damage(61), &["bkrs", "skskb", "rro"]);
const SEALING: Hunter = Node(Prey::Crashes, &["bsf", "bk", "bbfwo"]);
const RETIRING: Hunter = Node(Prey::Crashes, &["wk", "bwfck", "cs", "cbk"]);

/// The hunters that are known to find a bug, the cheapest first.
fn hunters(bug: Bug) -> &'static [Hunter] {
    match bug {
        Bug::AckBeforeWrite | Bug::DirectoryUnsynced => &[Node(Prey::Crashes, &["ss"])],
        Bug::DuplicateAckedEarly => &[Twice],
        Bug::DistinctDropped | Bug::TenantMixedUp => &[Served],
        Bug::AckBeforeSync
        | Bug::WatermarkTooFar
        | Bug::SegmentUnsynced
        | Bug::HeaderAfterRename
        | Bug::TailNotRewritten
        | Bug::TailUnsynced
        | Bug::StreamIdsAgain => &[SHORT],
        Bug::SyncRetried
        | Bug::SyncErrorSwallowed
        | Bug::FullDiskAcked
        | Bug::OffsetUsedAgain
        | Bug::ShortWriteIgnored
        | Bug::VoidBytesCount
        | Bug::LsnsSkipped => &[FAILING],
        Bug::HeadUnchecked | Bug::BodyUnchecked | Bug::LaterSegmentsDropped | Bug::DamageSilent | Bug::LossNotTold => {
            &[DAMAGED]
        }
        Bug::SaltKept | Bug::SeriesOnce | Bug::CarriedStampedAnew | Bug::CarriedTooLate | Bug::UnlinkedEarly => {
            &[RETIRING]
        }
        Bug::AppliedTwice
        | Bug::RetiredTooEarly
        | Bug::BlockUnsynced
        | Bug::BlocksWithoutSeries
        | Bug::FlushedForgotten
        | Bug::FlushedAsPrefix
        | Bug::FlushedBeforeClosed => &[SEALING, RETIRING],
        Bug::MemoryBeforeLog | Bug::SyncBesideIgnored | Bug::PanicInApply | Bug::PanicInSeal => &[],
    }
}

/// Bugs that need a test of their own: it stands beside the others of its kind.
fn elsewhere(bug: Bug) -> Option<&'static str> {
    match bug {
        Bug::MemoryBeforeLog => Some("kill9.rs"),
        Bug::SyncBesideIgnored => Some("real_disks.rs"),
        Bug::PanicInApply | Bug::PanicInSeal => Some("panics.rs"),
        _ => None,
    }
}

impl Hunter {
    fn name(self) -> &'static str {
        match self {
            Log(Prey::Crashes, _) => "crash states",
            Log(Prey::Faults(_), _) => "failing calls",
            Log(Prey::Damage(_), _) => "damaged logs",
            Node(Prey::Crashes, _) => "crash states of both logs",
            Node(..) => "failing calls of both logs",
            Twice => "equal pushes at the same time",
            Served => "the real binary and kill -9",
        }
    }

    fn run(self) -> Option<String> {
        match self {
            Log(prey, list) => {
                let depth = if matches!(prey, Prey::Faults(_)) { Depth::FAULTS } else { Depth::QUICK };
                let list: Vec<Workload> = list.iter().filter_map(|w| Workload::parse(w, 3)).collect();
                hunt(&[prey], &list, &depth, BUDGET)
            }
            Node(prey, list) => {
                let list: Vec<Script> = list.iter().zip(1..).filter_map(|(s, seed)| Script::parse(s, seed)).collect();
                hunt_node(&[prey], &list, &Depth::NODE, BUDGET)
            }
            Twice => {
                let layer = Layer::hunting(BUDGET);
                // Several: in one of them the first answer may come before the second push looks.
                let list: Vec<Script> = (1..=4).filter_map(|seed| Script::parse("s", seed)).collect();
                layer.each(&list, 1, |s| node_twice(&layer, s));
                layer.first_failure()
            }
            Served => served(),
        }
    }
}

/// What two tenants have pushed is there, before a `kill -9` and after it, and nothing else.
fn served() -> Option<String> {
    const LINES: [&str; 3] = ["one", "two", "six"];
    let tmp = tempfile::tempdir().unwrap();
    let config = format!("auth_enabled: true\ncommon: {{path_prefix: {}}}\n", tmp.path().join("data").display());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos().to_string();
    for start in ["at first", "after kill -9"] {
        let ports = (server::free_port(), server::free_port());
        let planted = std::env::var(PLANTED).unwrap_or_default();
        let mut server = Server::spawn_with(tmp.path(), ports, &config, &[(PLANTED, &planted)]);
        server.wait_ready();
        let mut http = server.http();
        for tenant in ["a", "b"] {
            let header = ("X-Scope-OrgID", tenant);
            if start == "at first" {
                let values: Vec<_> =
                    LINES.iter().map(|l| serde_json::json!([now, format!("{l} of {tenant}")])).collect();
                let body = serde_json::json!({"streams": [{"stream": {"s": "x"}, "values": values}]}).to_string();
                let headers = [header, ("Content-Type", "application/json")];
                let (status, _) = http.send("POST", "/loki/api/v1/push", &headers, body.as_bytes()).unwrap();
                assert_eq!(status, 204);
            }
            let target = format!(
                "/loki/api/v1/query_range?query={}&start=0&end=4000000000000000000&limit=100",
                server::encode("{s=\"x\"}")
            );
            let (_, body) = http.send("GET", &target, &[header], b"").unwrap();
            let text = String::from_utf8_lossy(&body).into_owned();
            let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            let results = answer["data"]["result"].as_array().cloned().unwrap_or_default();
            let shown: Vec<String> = results
                .iter()
                .flat_map(|r| r["values"].as_array().cloned().unwrap_or_default())
                .filter_map(|v| v[1].as_str().map(String::from))
                .collect();
            let mut wanted: Vec<String> = LINES.iter().map(|l| format!("{l} of {tenant}")).collect();
            let mut sorted = shown.clone();
            wanted.sort();
            sorted.sort();
            if sorted != wanted {
                return Some(format!("{start}, tenant {tenant} reads {shown:?} and has pushed {wanted:?}: {text}"));
            }
        }
        server.kill();
    }
    None
}

/// No test of its own: what the other one starts.
#[test]
fn child() {
    let Ok(task) = std::env::var(TASK) else { return };
    let mut list: Vec<Hunter> = Vec::new();
    for bug in Bug::ALL.iter().filter(|b| task.is_empty() || b.name() == task) {
        hunters(*bug).iter().for_each(|h| {
            if !list.contains(h) {
                list.push(*h)
            }
        });
    }
    for hunter in list {
        if let Some(why) = hunter.run() {
            println!("KILLED {}: {}", hunter.name(), why.lines().next().unwrap_or_default());
            return;
        }
    }
    println!("NOTHING");
}

/// What became of a bug: who found it, what he said.
struct Outcome {
    by: String,
    message: String,
    seconds: f64,
}

/// Hunts one bug, or with an empty name none, with all hunters.
fn hunt_in_child(name: &str) -> Result<Outcome, String> {
    let started = Instant::now();
    let file = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
    let told = file.reopen().map_err(|e| e.to_string())?;
    let mut command = Command::new("sh");
    // Without a core file in the project's directory.
    command.args(["-c", "ulimit -c 0; exec \"$@\"", "sh"]).arg(std::env::current_exe().unwrap());
    command.args(["child", "--exact", "--nocapture", "--test-threads=1"]);
    command.env(TASK, name).env(PLANTED, name).stdin(Stdio::null()).stderr(told.try_clone().unwrap()).stdout(told);
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            break status;
        }
        if started.elapsed() > PATIENCE {
            let _ = (child.kill(), child.wait());
            return Err(format!("the hunt hangs after {PATIENCE:?}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let text = String::from_utf8_lossy(&std::fs::read(file.path()).unwrap_or_default()).into_owned();
    let seconds = started.elapsed().as_secs_f64();
    let killed = text.lines().find_map(|l| l.split_once("KILLED ")?.1.split_once(": "));
    match killed {
        Some((by, message)) => Ok(Outcome { by: by.into(), message: message.into(), seconds }),
        None if text.contains("NOTHING") => Err(format!("survives {seconds:.1} s")),
        // An invariant of the program has ended the process.
        None => {
            let last = text.lines().rev().find(|l| l.contains("panicked")).unwrap_or("no word");
            Ok(Outcome { by: format!("the process ends with {status}"), message: last.into(), seconds })
        }
    }
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() && *c != '|').take(110).collect()
}

#[test]
fn every_planted_bug_is_found() {
    if !cfg!(feature = "planted-bugs") {
        // Not a missing tool: `.ci/run` has a step of its own with the feature.
        println!("SKIPPED: built without the feature planted-bugs");
        return;
    }
    let only = std::env::var("TIMBERLINE_MUTANT").ok();
    let mut names: Vec<&str> = Bug::ALL.iter().filter(|b| elsewhere(**b).is_none()).map(|b| b.name()).collect();
    names.retain(|n| only.as_ref().is_none_or(|o| o.split(',').any(|o| o == *n)));
    if only.is_none() {
        // The longest first: no bug.
        names.insert(0, "");
    }
    let started = Instant::now();
    let (next, survivors) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    println!("| bug | found by | what it says | seconds |\n|---|---|---|---|");
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let outcome = hunt_in_child(name);
                    match (name.is_empty(), &outcome) {
                        (true, Err(why)) if why.starts_with("survives") => {
                            println!("| none | nobody | all hunters: nothing | |")
                        }
                        (true, Err(why)) => survivors.lock().push(format!("without a bug: {why}")),
                        (true, Ok(o)) => {
                            survivors.lock().push(format!("without a bug {} says: {}", o.by, o.message));
                        }
                        (false, Ok(o)) => {
                            println!("| {name} | {} | {} | {:.1} |", o.by, short(&o.message), o.seconds);
                            let json = serde_json::json!({"layer": "mutants", "bug": name, "found_by": o.by,
                                "message": short(&o.message), "seconds": (o.seconds * 10.0).round() / 10.0});
                            note_result(&json.to_string());
                        }
                        (false, Err(why)) => {
                            println!("| {name} | NOBODY | {why} | |");
                            survivors.lock().push(format!("{name}: {why}"));
                        }
                    }
                }
            });
        }
    });
    let survivors = survivors.into_inner();
    println!("{} bugs in {:.0} s", names.len(), started.elapsed().as_secs_f64());
    assert!(survivors.is_empty(), "{survivors:#?}");
}

/// A program without the feature has neither the bugs nor their names.
#[test]
fn the_ordinary_program_has_no_bugs() {
    if cfg!(feature = "planted-bugs") {
        return;
    }
    let program = std::fs::read(env!("CARGO_BIN_EXE_timberline")).unwrap();
    let has = |text: &str| memchr::memmem::find(&program, text.as_bytes()).is_some();
    assert!(has("TIMBERLINE") || has("timberline"), "the search finds nothing at all");
    assert!(!has(PLANTED), "{PLANTED} is in the program");
    for bug in Bug::ALL {
        assert!(!has(bug.name()), "{} is in the program", bug.name());
    }
}
