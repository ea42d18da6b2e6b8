//! Concurrent pushes, several of them into the same streams and into streams that are just being created, with a ledger
//! outside the process, and what is held against it after a crash: lines, labels and series, and what lies in the log.
#![allow(dead_code, reason = "each test target uses a part of it")]

use crate::faults::Random;
use crate::server::{self, Http};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use timberline::wal;

const WRITERS: u64 = 6;
/// Blocks are sealed and segments retired within a few megabytes.
pub const CONFIG: &str =
    "ingester: {chunk_block_size: 8KB, chunk_target_size: 64KB, wal: {segment_size: 1MB, max_size: 4MB}}\n";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Sent; the answer is unknown. There afterwards, or not, but whole.
    Sent,
    /// Not acknowledged, but a query has shown a line of it: what was visible stays.
    Shown,
    Acked,
}

/// One push: its lines by stream.
#[derive(Clone)]
pub struct Pushed {
    pub state: State,
    lines: Vec<(String, i64, String)>,
    /// Where the disk was before it was sent, and when its answer was there; of a disk that counts.
    sent: usize,
    acked: usize,
}

/// Everything that was ever sent, by epoch and number.
pub type Ledger = BTreeMap<u64, HashMap<u64, Pushed>>;

/// What all writers share.
pub struct Field {
    pub ledger: Mutex<Ledger>,
    next_push: AtomicU64,
    acks: AtomicU64,
    stop: AtomicBool,
    position: Box<dyn Fn() -> usize + Send + Sync>,
}

/// Each start is followed by a look at the newest epoch, the last one by a look at all.
pub fn epoch(cycle: u64) -> u64 {
    cycle / 10
}

/// All writers at work.
pub struct Load {
    field: Arc<Field>,
    writers: Vec<JoinHandle<()>>,
    before: u64,
}

impl Field {
    pub fn new() -> Arc<Self> {
        Self::on(|| 0)
    }

    /// On a disk that counts what it is asked for.
    pub fn on(position: impl Fn() -> usize + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            ledger: Mutex::default(),
            next_push: AtomicU64::new(0),
            acks: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            position: Box::new(position),
        })
    }

    pub fn acks(&self) -> u64 {
        self.acks.load(Ordering::Relaxed)
    }

    /// All writers push to this address until stopped, or until the server is gone.
    pub fn start(self: &Arc<Self>, addr: &str, cycle: u64) -> Load {
        self.stop.store(false, Ordering::Relaxed);
        let before = self.acks();
        let writer = |w| {
            let (field, addr) = (self.clone(), addr.to_string());
            std::thread::spawn(move || write(&field, &addr, w, cycle))
        };
        Load { field: self.clone(), writers: (0..WRITERS).map(writer).collect(), before }
    }

    /// What is visible now must stay visible, whatever was acknowledged.
    pub fn note_shown(&self, http: &mut Http, epoch: u64) {
        let shown = read(http, epoch);
        note_shown(self.ledger.lock().unwrap().entry(epoch).or_default(), &shown);
    }

    /// Holds what the server shows of an epoch against what was sent in it, labels and series too. Returns what is wrong.
    pub fn check(&self, http: &mut Http, epoch: u64) -> Vec<String> {
        let shown = read(http, epoch);
        let mut wrong = check(self.ledger.lock().unwrap().entry(epoch).or_default(), &shown);
        wrong.extend(check_series(http, &shown, epoch));
        wrong
    }

    /// The field as it was when the disk was at this position: a disk of that time knows nothing of later pushes and answers.
    pub fn at(&self, position: usize) -> Arc<Self> {
        let then = Self::on(|| 0);
        let mut ledger = then.ledger.lock().unwrap();
        for (epoch, pushes) in self.ledger.lock().unwrap().iter() {
            let sent = pushes.iter().filter(|(_, p)| p.sent <= position);
            let state = |p: &Pushed| if p.acked <= position { State::Acked } else { State::Sent };
            let pushes = sent.map(|(id, p)| (*id, Pushed { state: state(p), ..p.clone() }));
            ledger.insert(*epoch, pushes.collect());
        }
        drop(ledger);
        then
    }

    /// Positions at which the disk was when a push was acknowledged.
    pub fn acked_at(&self) -> Vec<usize> {
        let ledger = self.ledger.lock().unwrap();
        ledger.values().flat_map(HashMap::values).map(|p| p.acked).filter(|at| *at != NEVER).collect()
    }

    /// Pushes without an answer that are there all the same.
    pub fn unacked_there(&self) -> u64 {
        let ledger = self.ledger.lock().unwrap();
        ledger.values().flat_map(HashMap::values).filter(|p| p.state == State::Shown).count() as u64
    }
}

impl Load {
    /// Waits until something was acknowledged, but not for ever.
    pub fn wait_for_ack(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.field.acks() == self.before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Ends the writers and returns how many pushes were acknowledged.
    pub fn stop(self) -> u64 {
        self.field.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.join().unwrap();
        }
        self.field.acks() - self.before
    }
}

const NEVER: usize = usize::MAX;

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
        let pushed = Pushed { state: State::Sent, lines, sent: (field.position)(), acked: NEVER };
        field.ledger.lock().unwrap().entry(epoch).or_default().insert(id, pushed);
        match http.post_json("/loki/api/v1/push", &serde_json::json!({"streams": body}).to_string()) {
            Ok((204, _)) => {
                let acked = (field.position)();
                let mut ledger = field.ledger.lock().unwrap();
                let pushed = ledger.get_mut(&epoch).unwrap().get_mut(&id).unwrap();
                (pushed.state, pushed.acked) = (State::Acked, acked);
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
///
/// Where a write can be torn, LSNs before its ack may have no record (`Plan::unresolved`), and seqs be missing for good: `torn`
/// counts how often that was so. `None` where nothing can be torn.
pub fn check_log(data: &Path, torn: Option<&mut u64>) -> Vec<String> {
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
    let holes_are_wrong = torn.is_none_or(|torn| {
        *torn += u64::from(!recovered.plan.unresolved.is_empty());
        *torn == 0
    });
    if !recovered.plan.loss.is_empty() {
        wrong.push(format!("a crash is no damage, but the log says: {:?}", recovered.plan.loss));
    }
    wrong.extend(
        recovered
            .blocks()
            .damage
            .iter()
            .map(|(n, what)| format!("a crash is no damage, but block segment {n}: {what}")),
    );
    // Stream → ranges of seqs, and whether they were pushed so, carried, or sealed.
    let mut ranges: HashMap<u64, Vec<(u64, u64, &str)>> = HashMap::new();
    for block in recovered.blocks().iter() {
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
            if first > end && holes_are_wrong {
                wrong.push(format!("stream {stream}: {kind} {first}..{last} follows {end}"));
            }
            end = end.max(last);
        }
    }
    wrong
}
