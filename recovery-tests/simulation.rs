//! The log on a simulated disk: every crash point of every workload, crashes inside recovery, failing calls, damage.
//!
//! `cargo test --test simulation` runs the quick tier. The full tier is `TIMBERLINE_SIM_FULL=1` (with `--profile sim`); layers that are done are
//! not repeated (their figures lie in the target directory). A failure prints a line that shows it again; what was
//! found once stays in `regressions.txt`.

#[path = "support/sim/mod.rs"]
mod sim;
mod support;

use sim::crash::Volume;
use sim::damage::damage;
use sim::explore::{Depth, crashes, faults, play};
use sim::hunt::{Prey, hunt, hunt_node};
use sim::node::Script;
use sim::node_damage::node_damage;
use sim::node_explore::{node_crashes, node_faults};
use sim::report::{Layer, is_done, is_full};
use sim::workload::{Workload, fills_a_segment};
use std::time::Duration;

/// That of the server.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// All workloads of up to `whole` steps, and a sample of the longer ones up to five.
fn workloads(whole: u32, sample: usize) -> Vec<Workload> {
    let mut out: Vec<Workload> = (0..=whole).flat_map(|n| Workload::all(n, u64::from(n))).collect();
    for length in whole + 1..=5 {
        let all: Vec<Workload> = Workload::all(length, u64::from(length)).collect();
        let step = (all.len() / sample.max(1)).max(1);
        // Odd steps: all letters come at all places.
        out.extend(all.into_iter().step_by(step | 1).take(sample));
    }
    for (i, w) in out.iter_mut().enumerate() {
        w.seed = i as u64;
    }
    out
}

#[test]
fn crash_states() {
    if is_done("crash_states") {
        return;
    }
    let layer = Layer::new("crash_states", None);
    let list = if is_full() { workloads(3, 2240) } else { workloads(1, 20) };
    layer.each(&list, 8, |w| crashes(&layer, w, if is_full() { &Depth::FULL } else { &Depth::QUICK }));
    layer.finish();
}

#[test]
fn failing_calls() {
    if is_done("failing_calls") {
        return;
    }
    let layer = Layer::new("failing_calls", None);
    let mut list = if is_full() { workloads(2, 60) } else { workloads(1, 4) };
    // A failed group of two blocks, and a shorter one after it: what is left of the first must stay dead, also if its streams
    // were defined before.
    list.extend(["bs", "sbs", "bbs"].iter().filter_map(|w| Workload::parse(w, 3)));
    layer.each(&list, 12, |w| faults(&layer, w, &Depth::FAULTS, if is_full() { 3 } else { 10 }));
    layer.finish();
}

/// Both logs under a whole ingester: scripts whose threads seal, close, settle, carry, retire, recycle and clean.
#[test]
fn node_crash_states() {
    if is_done("node_crash_states") {
        return;
    }
    let layer = Layer::new("node_crash_states", None);
    let quick = ["bsf", "wk", "bbfwo", "cs", "cbk", "bwfck"];
    if is_full() {
        let all: Vec<Script> = (1..=3).flat_map(|n| Script::all(n, u64::from(n) << 20)).collect();
        layer.each(&all, 8, |s| node_crashes(&layer, s, &Depth::QUICK, false));
    } else {
        let list: Vec<Script> = quick.iter().zip(1..).filter_map(|(s, seed)| Script::parse(s, seed)).collect();
        layer.each(&list, 6, |s| node_crashes(&layer, s, &Depth::NODE, true));
    }
    let done = [
        "sealed blocks",
        "closed chunks",
        "settled chunks",
        "carried lines",
        "retired log segments",
        "recycled log segments",
        "retired block segments",
        "states with a block in two places",
    ];
    let missing: Vec<&str> = done.into_iter().filter(|what| layer.counts.get(what) == 0).collect();
    let failed = layer.failures() > 0;
    layer.finish();
    assert!(failed || missing.is_empty(), "never happened, so nothing was tested of it: {missing:?}");
}

#[test]
fn node_failing_calls() {
    if is_done("node_failing_calls") {
        return;
    }
    let layer = Layer::new("node_failing_calls", None);
    let scripts = |letters: &[&str]| -> Vec<Script> {
        letters.iter().zip(1..).filter_map(|(s, seed)| Script::parse(s, seed)).collect()
    };
    // One call in so many fails.
    let every = if is_full() { 20 } else { 100 };
    layer.each(&scripts(&["bsf", "wb", "cs"]), 6, |s| node_faults(&layer, s, &Depth::FAULTS, every));
    if is_full() {
        let all: Vec<Script> = (1..=2).flat_map(|n| Script::all(n, u64::from(n) << 24)).collect();
        layer.each(&all, 6, |s| node_faults(&layer, s, &Depth::FAULTS, 200));
    }
    layer.finish();
}

#[test]
fn damaged_logs() {
    if is_done("damaged_logs") {
        return;
    }
    let layer = Layer::new("damaged_logs", None);
    let quick = DAMAGED.iter().enumerate().filter_map(|(i, w)| Workload::parse(w, i as u64));
    let list = if is_full() { workloads(2, 51) } else { quick.collect() };
    layer.each(&list, 2, |w| damage(&layer, w, 61));
    layer.finish();
}

/// The same for the block log, under a whole ingester.
#[test]
fn damaged_blocks() {
    if is_done("damaged_blocks") {
        return;
    }
    let layer = Layer::new("damaged_blocks", None);
    let scripts = ["bsf", "bbsbb", "cbk", "bwbsb"];
    let list: Vec<Script> = scripts.iter().zip(1..).filter_map(|(s, seed)| Script::parse(s, seed)).collect();
    let every = if is_full() { 9 } else { 97 };
    layer.each(&list, 2, |s| node_damage(&layer, s, 61, every));
    layer.finish();
}

/// Logs that are damaged in the quick tier: stopped and killed, with groups of several pushes, copies of a tail, a push larger
/// than a segment, full segments.
const DAMAGED: [&str; 4] = ["bkrs", "lsk", "skskb", "rro"];

/// What was found once is looked at again in every run: each line of `regressions.txt` is a `TIMBERLINE_SIM`.
#[test]
fn regressions() {
    let list = include_str!("regressions.txt");
    let lines = list.lines().map(|l| l.split('#').next().unwrap_or_default().trim());
    let mut known = 0;
    for line in lines.filter(|l| !l.is_empty()) {
        again(Layer::new("regressions", None), line);
        known += 1;
    }
    assert!(known > 0, "the list is empty");
}

/// The simulated disk: what it notes gives back what a process sees, and pushes of an exact size end where they must.
#[test]
fn the_simulation_is_what_it_says() {
    let workload = Workload::parse("sxlrbixko", 1).expect("known letters");
    let mut played = play(&workload, None);
    assert!(played.stopped.is_none(), "{:?}", played.stopped);
    played.run.kill();
    let ops = played.run.disk.ops();
    assert!(fills_a_segment(&ops), "no push has filled a segment to its end");
    let mut volume = Volume::new(&played.run.disk.base);
    ops.iter().for_each(|op| volume.apply(op));
    assert_eq!(volume.kept().hash(), played.run.disk.seen().hash());
    // All was stopped in good order and synced.
    assert_eq!(volume.lost().hash(), played.run.disk.seen().hash());
}

/// Without a planted bug a hunt finds nothing, and ends.
#[test]
fn a_hunt_ends() {
    let list: Vec<Workload> = Workload::parse("sk", 1).into_iter().collect();
    let all = [Prey::Crashes, Prey::Faults(40), Prey::Damage(997)];
    assert_eq!(hunt(&all, &list, &Depth::QUICK, Duration::from_secs(5)), None);
    let list: Vec<Script> = Script::parse("bsf", 1).into_iter().collect();
    assert_eq!(hunt_node(&[Prey::Crashes], &list, &Depth::NODE, Duration::from_secs(5)), None);
}

/// `TIMBERLINE_SIM=<workload>:<seed>:<state>`: shows one state again.
#[test]
fn reproduce() {
    let Ok(asked) = std::env::var("TIMBERLINE_SIM") else { return };
    let layer = Layer::new("reproduce", None);
    again(layer, &asked);
}

fn again(mut layer: Layer, asked: &str) {
    let mut parts = asked.splitn(3, ':');
    let mut next = || parts.next().unwrap_or_default();
    let (letters, seed, state) = (next(), next(), next());
    let seed = seed.parse().unwrap_or_else(|_| panic!("{asked}: <workload>:<seed>:<state>"));
    if state.starts_with("node-damage") {
        let script = Script::parse(letters, seed).unwrap_or_else(|| panic!("{asked}: an unknown step"));
        layer.only = Some(state.to_string());
        node_damage(&layer, &script, 61, 1);
        return layer.finish();
    }
    if state.starts_with("node") {
        // Threads run freely, so the number of a state says little: some runs with all their states instead.
        let script = Script::parse(letters, seed).unwrap_or_else(|| panic!("{asked}: an unknown step"));
        layer.only = Some(String::new());
        let again = |_: &u32| match state.starts_with("node-fault") {
            true => node_faults(&layer, &script, &Depth::FAULTS, 10),
            false => node_crashes(&layer, &script, &Depth::QUICK, true),
        };
        layer.each(&[1, 2, 3, 4, 5], 2, again);
        return layer.finish();
    }
    let workload = Workload::parse(letters, seed).unwrap_or_else(|| panic!("{asked}: an unknown step"));
    layer.only = Some(state.to_string());
    if state.starts_with("fault") {
        faults(&layer, &workload, &Depth::FAULTS, 1);
    } else if state.starts_with("damage") {
        damage(&layer, &workload, 61);
    } else {
        crashes(&layer, &workload, &Depth::QUICK);
    }
    layer.finish();
}
