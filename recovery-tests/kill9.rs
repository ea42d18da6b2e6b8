//! The real binary, killed with SIGKILL again and again under concurrent pushes, several of them into the same streams
//! and into streams that are just being created. A ledger outside the process knows what was acknowledged.
//!
//! `TIMBERLINE_KILL_CYCLES` sets the number of cycles (25), `TIMBERLINE_KILL_RUNS` spreads them over directories that are
//! worked on at once (1), `TIMBERLINE_KILL_SEED` repeats a run's random choices.

#[path = "support/server.rs"]
mod server;

use server::{Http, Server};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use timberline::wal;

const WRITERS: u64 = 6;
/// Cycles on one directory, at most: nothing leaves it, so each start takes longer than the one before.
const ON_ONE: u64 = 250;
const CONFIG: &str =
    "ingester: {chunk_block_size: 8KB, chunk_target_size: 64KB, wal: {segment_size: 1MB, max_size: 4MB}}\n";

/// A small deterministic generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Sent; the answer is unknown. There afterwards, or not, but whole.
    Sent,
    /// Not acknowledged, but a query has shown a line of it: what was visible stays.
    Shown,
    Acked,
}

/// One push: its lines by stream.
struct Pushed {
    state: State,
    lines: Vec<(String, i64, String)>,
}

/// Everything that was ever sent, by epoch and number.
type Ledger = BTreeMap<u64, HashMap<u64, Pushed>>;

/// What all writers share.
struct Field {
    ledger: Mutex<Ledger>,
    next_push: AtomicU64,
    acks: AtomicU64,
    stop: AtomicBool,
}

/// Each start is followed by a look at the newest epoch, the last one by a look at all.
fn epoch(cycle: u64) -> u64 {
    cycle / 10
}

/// Text that does not compress well, so that segments fill and go often.
fn pad(seed: u64) -> String {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let words = random.below(60);
    (0..words).map(|_| format!("{:08x}", random.next() as u32)).collect()
}

/// Pushes until told to stop or the server is gone.
fn write(field: &Field, addr: &str, writer: u64, cycle: u64) {
    let mut http = Http::new(addr);
    let mut round = 0;
    while !field.stop.load(Ordering::Relaxed) {
        let id = field.next_push.fetch_add(1, Ordering::Relaxed);
        // All writers push into the shared stream; each fresh stream is created by all of them at about the same time.
        let epoch = epoch(cycle);
        let streams =
            [format!("shared-{epoch}"), format!("fresh-{epoch}-{cycle}-{round}"), format!("own-{epoch}-{writer}")];
        let base = 1_700_000_000_000_000_000 + i64::try_from(cycle * 1_000_000_000 + round * 1000).unwrap();
        let mut lines = Vec::new();
        let mut body = Vec::new();
        for (k, stream) in streams.iter().enumerate() {
            let mut values = Vec::new();
            for n in 0..3u64 {
                let timestamp = base + i64::from(n == 2);
                let line = format!("push={id} writer={writer} part={k} n={n} pad={}", pad(id * 16 + k as u64 * 3 + n));
                values.push(serde_json::json!([timestamp.to_string(), line]));
                lines.push((stream.clone(), timestamp, line));
            }
            body.push(serde_json::json!({"stream": {"s": stream, "e": epoch.to_string()}, "values": values}));
        }
        field.ledger.lock().unwrap().entry(epoch).or_default().insert(id, Pushed { state: State::Sent, lines });
        match http.post_json("/loki/api/v1/push", &serde_json::json!({"streams": body}).to_string()) {
            Ok((204, _)) => {
                field.ledger.lock().unwrap().get_mut(&epoch).unwrap().get_mut(&id).unwrap().state = State::Acked;
                field.acks.fetch_add(1, Ordering::Relaxed);
            }
            Ok((503, _)) => std::thread::sleep(Duration::from_millis(5)),
            Ok((status, body)) => panic!("push {id} got {status}: {}", String::from_utf8_lossy(&body)),
            Err(_) => return,
        }
        round += 1;
    }
}

/// What a query of one epoch shows, by stream, in the order shown.
fn read(http: &mut Http, epoch: u64) -> BTreeMap<String, Vec<(i64, String)>> {
    let mut out: BTreeMap<String, Vec<(i64, String)>> = BTreeMap::new();
    for (labels, timestamp, line) in http.query_all(&format!("{{e=\"{epoch}\"}}")) {
        out.entry(labels["s"].as_str().unwrap().to_string()).or_default().push((timestamp, line));
    }
    out
}

/// A number that a line tells of itself.
fn told(line: &str, name: &str) -> u64 {
    line.split(' ').find_map(|w| w.strip_prefix(name)).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Notes what a query has shown while pushes go on.
fn note_shown(pushes: &mut HashMap<u64, Pushed>, shown: &BTreeMap<String, Vec<(i64, String)>>) {
    for (_, line) in shown.values().flatten() {
        if let Some(push) = pushes.get_mut(&told(line, "push=")).filter(|p| p.state == State::Sent) {
            push.state = State::Shown;
        }
    }
}

/// Holds what the server shows against what was sent in the same epoch. Returns what is wrong.
fn check(pushes: &mut HashMap<u64, Pushed>, shown: &BTreeMap<String, Vec<(i64, String)>>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut present: HashMap<u64, usize> = HashMap::new();
    let mut all = HashSet::new();
    for (stream, entries) in shown {
        for pair in entries.windows(2) {
            if pair[0].0 > pair[1].0 {
                wrong.push(format!("{stream}: {} is shown before {}", pair[0].0, pair[1].0));
            }
        }
        // Equal timestamps come in the order of arrival: a writer's own lines in the order in which it sent them.
        let mut last: HashMap<(i64, u64), (u64, u64)> = HashMap::new();
        for (timestamp, line) in entries {
            let (push, n) = (told(line, "push="), told(line, "n="));
            *present.entry(push).or_default() += 1;
            let key = (*timestamp, told(line, "writer="));
            if last.insert(key, (push, n)).is_some_and(|before| before > (push, n)) {
                wrong.push(format!("{stream}: {line} comes before its predecessor"));
            }
            if !all.insert((stream.as_str(), *timestamp, line.as_str())) {
                wrong.push(format!("{stream}: twice: {line}"));
            }
        }
    }
    for (id, push) in pushes {
        let is_there =
            |(stream, timestamp, line): &&(String, i64, String)| all.contains(&(&**stream, *timestamp, &**line));
        let there = push.lines.iter().filter(is_there).count();
        let expected = push.lines.len();
        let count = present.remove(id).unwrap_or(0);
        match (push.state, there) {
            (State::Acked, n) if n < expected => {
                wrong.push(format!("push {id}: acknowledged, {} of {expected} lines lost", expected - n))
            }
            (State::Shown, n) if n < expected => {
                wrong.push(format!("push {id}: shown before, {} of {expected} lines gone", expected - n))
            }
            (State::Sent, n) if n != 0 && n != expected => {
                wrong.push(format!("push {id}: {n} of {expected} lines: not atomic"))
            }
            (_, n) if n != count => wrong.push(format!("push {id}: {count} lines shown, {n} as sent")),
            (State::Sent, n) if n > 0 => push.state = State::Shown,
            _ => {}
        }
    }
    wrong.extend(present.keys().map(|id| format!("push {id} was never sent")));
    wrong
}

/// Labels and series are those of the shown streams.
fn check_series(http: &mut Http, shown: &BTreeMap<String, Vec<(i64, String)>>, epoch: u64) -> Vec<String> {
    let mut ask = |target: &str| -> serde_json::Value {
        let (status, body) = http.get(target).unwrap();
        assert_eq!(status, 200, "{target}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    };
    let range = "start=0&end=4000000000000000000";
    let selector = server::encode(&format!("{{e=\"{epoch}\"}}"));
    let series = ask(&format!("/loki/api/v1/series?match[]={selector}&{range}"));
    let names = |v: &serde_json::Value| -> BTreeSet<String> {
        let items = v["data"].as_array().cloned().unwrap_or_default();
        items.iter().map(|s| s["s"].as_str().or(s.as_str()).unwrap_or_default().to_string()).collect()
    };
    let values = ask(&format!("/loki/api/v1/label/s/values?query={selector}&{range}"));
    let expected: BTreeSet<String> = shown.keys().cloned().collect();
    let mut wrong = Vec::new();
    if names(&series) != expected {
        wrong.push(format!(
            "series differ from the streams of the query: {:?}",
            names(&series).symmetric_difference(&expected).take(3).collect::<Vec<_>>()
        ));
    }
    if names(&values) != expected {
        wrong.push("label values differ from the streams of the query".into());
    }
    wrong
}

/// Below deduplication: over both logs every (stream id, seq) is there; it was pushed once, and it lies in one block at most.
fn check_log(data: &Path) -> Vec<String> {
    let dir = data.join("wal");
    if !dir.exists() {
        return Vec::new();
    }
    let identity = std::fs::read_to_string(data.join("identity")).unwrap();
    let identity: serde_json::Value = serde_json::from_str(identity.lines().next().unwrap()).unwrap();
    let options = wal::WalOptions {
        fs: Arc::new(timberline::fs::RealFs),
        dir,
        volume: identity["volume"].as_str().unwrap().parse().unwrap(),
        segment_size: 1 << 20,
        max_size: 1 << 30,
        blocks: wal::BlockLogOptions { dir: data.join("blocks"), segment_size: 1 << 20, max_size: 1 << 30 },
        sync: wal::SyncMode::Always,
        queue_bytes: 1 << 20,
        next_stream_id: Arc::new(AtomicU64::new(1)),
        metrics: wal::WalMetrics::unregistered(),
    };
    let recovered = wal::recover(options, &mut |_, _| {}).unwrap();
    let mut wrong = Vec::new();
    if !recovered.plan.loss.is_empty() {
        wrong.push(format!("kill -9 is no damage, but the log says: {:?}", recovered.plan.loss));
    }
    wrong.extend(
        recovered
            .blocks()
            .damage
            .iter()
            .map(|(n, what)| format!("kill -9 is no damage, but block segment {n}: {what}")),
    );
    // Stream → ranges of seqs, and whether they were pushed so, carried, or sealed.
    let mut ranges: HashMap<u64, Vec<(u64, u64, &str)>> = HashMap::new();
    for block in recovered.blocks().blocks.iter() {
        let t = &block.tables;
        ranges.entry(t.stream).or_default().push((t.first_seq, t.end_seq, "block"));
    }
    recovered
        .replay(&mut |record, bytes| {
            let kind = if record.head.flags & wal::format::FLAG_CARRIED == 0 { "push" } else { "carried" };
            for row in wal::Tables::decode(record.head.tables(bytes, 0)).unwrap().rows {
                ranges.entry(row.stream).or_default().push((row.first_seq, row.end_seq(), kind));
            }
        })
        .unwrap();
    for (stream, mut ranges) in ranges {
        ranges.sort_unstable();
        for kind in ["push", "block"] {
            let of_kind: Vec<_> = ranges.iter().filter(|r| r.2 == kind).collect();
            for pair in of_kind.windows(2) {
                if pair[0].1 > pair[1].0 {
                    wrong.push(format!("stream {stream}: {kind} {:?} and {:?} overlap", pair[0], pair[1]));
                }
            }
        }
        let mut end = 0;
        for (first, last, kind) in ranges {
            // Duplicates of the entry before use up seqs without being carried, but no test line comes twice.
            if first > end {
                wrong.push(format!("stream {stream}: {kind} {first}..{last} follows {end}"));
            }
            end = end.max(last);
        }
    }
    wrong
}

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
    let field = Arc::new(Field {
        ledger: Mutex::default(),
        next_push: AtomicU64::new(0),
        acks: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let mut result = Run::default();
    let data = tmp.path().join("data");
    let mut cycle = 0;
    while result.kills < cycles {
        let begin = Instant::now();
        let server = Server::start(tmp.path(), CONFIG, env);
        result.starts.push(begin.elapsed().as_millis() as u64);
        let mut http = server.http();
        let shown = read(&mut http, epoch(cycle));
        result.wrong.extend(check(field.ledger.lock().unwrap().entry(epoch(cycle)).or_default(), &shown));
        result.wrong.extend(check_series(&mut http, &shown, epoch(cycle)));
        let before = field.acks.load(Ordering::Relaxed);
        field.stop.store(false, Ordering::Relaxed);
        let writers: Vec<_> = (0..WRITERS)
            .map(|w| {
                let (field, addr) = (field.clone(), server.addr.clone());
                std::thread::spawn(move || write(&field, &addr, w, cycle))
            })
            .collect();
        let deadline = Instant::now() + Duration::from_secs(20);
        while field.acks.load(Ordering::Relaxed) == before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_micros(random.below(100_000)));
        // Many a wait for a new segment is in vain, and blocks are often being written anyway.
        let wanted = match random.below(11) {
            0..4 => Phase::Rotate,
            4..8 => Phase::Retire,
            8..10 => Phase::Seal,
            _ => Phase::Ingest,
        };
        if random.below(4) == 0 {
            // What is visible now must stay visible, whatever was acknowledged.
            let shown = read(&mut http, epoch(cycle));
            note_shown(field.ledger.lock().unwrap().entry(epoch(cycle)).or_default(), &shown);
        }
        let shown = wait_for(wanted, &data);
        server.kill();
        field.stop.store(true, Ordering::Relaxed);
        for w in writers {
            w.join().unwrap();
        }
        // A kill without an ack since the last one proves nothing.
        if field.acks.load(Ordering::Relaxed) > before {
            result.kills += 1;
            // What follows in the log within the time of a kill hides what was seen in the files.
            let phase = if shown { wanted } else { phase_of(&data) };
            *result.phases.entry(phase).or_default() += 1;
        }
        *result.phases.entry(Phase::Recover).or_default() += kill_while_starting(tmp.path(), env, &mut random);
        result.wrong.extend(check_log(&data));
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
        let shown = read(&mut server.http(), e);
        result.wrong.extend(check(field.ledger.lock().unwrap().entry(e).or_default(), &shown));
    }
    assert_eq!(server.terminate(), Some(0));
    result.wrong.extend(check_log(&tmp.path().join("data")));
    result.acks = field.acks.load(Ordering::Relaxed);
    let ledger = field.ledger.lock().unwrap();
    result.unacked_there = ledger.values().flat_map(HashMap::values).filter(|p| p.state == State::Shown).count() as u64;
    drop(ledger);
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
    if let Ok(path) = std::env::var("TIMBERLINE_RESULTS") {
        let phases: BTreeMap<String, u64> =
            run.phases.iter().map(|(p, n)| (format!("{p:?}").to_lowercase(), *n)).collect();
        let start = |percent: usize| run.starts.get(run.starts.len() * percent / 100).copied().unwrap_or(0);
        let line = serde_json::json!({
            "layer": "kills", "seed": seed, "kills": run.kills, "pushes acknowledged": run.acks, "phases": phases,
            "unresolved tails: pushes without an answer that are there": run.unacked_there,
            "recovery p50, ms": start(50), "recovery p99, ms": start(99),
            "lost": 0, "phantom": 0, "doubled": 0, "altered": 0,
        });
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        writeln!(file, "{line}").unwrap();
    }
    // Few kills may miss a phase by chance.
    let all: u64 = run.phases.values().sum();
    for phase in [Phase::Rotate, Phase::Seal, Phase::Retire, Phase::Recover].into_iter().filter(|_| cycles >= 200) {
        let n = run.phases.get(&phase).copied().unwrap_or(0);
        assert!(n * 10 >= all, "only {n} of {all} kills hit {phase:?}");
    }
}

/// Is this build one with bugs to plant?
fn can_plant() -> bool {
    if !cfg!(feature = "planted-bugs") {
        // Not a missing tool: `.ci/run` has a step of its own with the feature.
        println!("SKIPPED: built without the feature planted-bugs");
    }
    cfg!(feature = "planted-bugs")
}

/// A harness that cannot fail proves nothing: with each planted bug it must.
fn planted(bug: &str) {
    if !can_plant() {
        return;
    }
    let begin = Instant::now();
    let run = run(25, seed(), &[("TIMBERLINE_PLANTED_BUG", bug)], true);
    println!("{bug}: found after {} kills: {:?}", run.kills, run.wrong.first());
    if let Ok(path) = std::env::var("TIMBERLINE_RESULTS") {
        let message: String = run.wrong.first().map_or("", String::as_str).chars().take(110).collect();
        let line = serde_json::json!({"layer": "mutants", "bug": bug, "found_by": "kill -9", "message": message,
            "seconds": (begin.elapsed().as_secs_f64() * 10.0).round() / 10.0});
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        writeln!(file, "{line}").unwrap();
    }
    assert!(!run.wrong.is_empty(), "25 cycles did not find the planted bug {bug}");
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
