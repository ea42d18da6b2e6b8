//! What a simulated process does: sequences of steps on the real log, each finished before the next.

use super::content::Image;
use super::disk::{Mode, Op, Schedule, SimDisk};
use super::ledger::{Found, Ledger, Place, found_in, labels, options};
use super::{SEGMENT, content::mix};
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use timberline::model::{LabelSet, Tenant};
use timberline::wal::*;

/// One step. Steps of the block log (seal, close, settle, carry, retire, recycle, clean) join here: a letter in
/// `ALL`, a case in [`Run::step`], and what they change of the ledger's rules in `ledger.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A push of a few lines to two streams.
    Small,
    /// A push that is larger than a segment.
    Large,
    /// A push that fills the segment to its exact end, by the bound that the log itself uses.
    Exact,
    /// A push that does not fit the rest of the segment: the log goes on in the next one.
    Rotate,
    /// Three pushes, of which the last two share a group, with a record in its second block.
    Burst,
    /// Nothing comes for 50 ms: the log writes a watermark.
    Idle,
    /// `kill -9`, and a start: the page cache survives.
    Kill,
    /// An orderly stop, and a start.
    Restart,
}

impl Step {
    pub const ALL: [(char, Self); 8] = [
        ('s', Self::Small),
        ('l', Self::Large),
        ('x', Self::Exact),
        ('r', Self::Rotate),
        ('b', Self::Burst),
        ('i', Self::Idle),
        ('k', Self::Kill),
        ('o', Self::Restart),
    ];

    fn letter(self) -> char {
        Self::ALL.iter().find(|(_, s)| *s == self).map_or('?', |(c, _)| *c)
    }
}

/// Steps with the seed of everything that is left to chance.
#[derive(Clone, PartialEq, Eq)]
pub struct Workload {
    pub steps: Vec<Step>,
    pub seed: u64,
}

impl fmt::Debug for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters: String = self.steps.iter().map(|s| s.letter()).collect();
        write!(f, "{letters}:{}", self.seed)
    }
}

impl Workload {
    /// From `letters`, as in [`Step::ALL`].
    pub fn parse(letters: &str, seed: u64) -> Option<Self> {
        let step = |c: char| Step::ALL.iter().find(|(l, _)| *l == c).map(|(_, s)| *s);
        Some(Self { steps: letters.chars().map(step).collect::<Option<_>>()?, seed })
    }

    /// All sequences of exactly this many steps.
    pub fn all(length: u32, seed: u64) -> impl Iterator<Item = Self> {
        let base = Step::ALL.len();
        (0..base.pow(length)).map(move |mut n| {
            let steps = (0..length).map(|_| {
                let (_, step) = Step::ALL[n % base];
                n /= base;
                step
            });
            Self { steps: steps.collect(), seed }
        })
    }

    pub fn schedule(&self) -> Schedule {
        [Schedule::Late, Schedule::Early, Schedule::Mid][self.seed as usize % 3]
    }
}

/// Why a run ended before its last step.
#[derive(Debug)]
pub enum Stop {
    /// The log failed for good, or could not be opened: what a fault may cause. Only a start can follow.
    #[allow(dead_code, reason = "shown when a run is debugged")]
    Ended(String),
    /// This machine was too slow for the timing of the run: it must be repeated.
    Disturbed,
    /// The log did what it must not do.
    Wrong(String),
}

#[derive(Default)]
struct Results {
    by_push: Mutex<HashMap<usize, (usize, Result<Place, Unavailable>)>>,
    changed: Condvar,
    poisoned: Mutex<Option<String>>,
}

struct Outcomes {
    results: Arc<Results>,
    disk: SimDisk,
}

impl Sink<usize> for Outcomes {
    fn durable(&mut self, records: Vec<Applied<usize>>) {
        let at = self.disk.now();
        for r in records {
            let place = Place { lsn: r.lsn, first_seqs: r.rows.iter().map(|r| r.first_seq).collect() };
            self.results.by_push.lock().insert(r.payload, (at, Ok(place)));
        }
        self.results.changed.notify_all();
    }

    fn failed(&mut self, payloads: Vec<usize>, why: &Unavailable) {
        let at = self.disk.now();
        for payload in payloads {
            self.results.by_push.lock().insert(payload, (at, Err(why.clone())));
        }
        self.results.changed.notify_all();
    }

    fn poisoned(&mut self, error: &io::Error) {
        *self.results.poisoned.lock() = Some(error.to_string());
        self.results.changed.notify_all();
    }
}

/// The bytes that a push needs at most, as the log counts them before it builds the group (`src/wal/writer.rs`).
struct Room {
    defined: HashMap<u64, u8>,
    inode: usize,
}

struct Open {
    wal: Arc<Wal<usize>>,
    _blocks: BlockLog<usize>,
    results: Arc<Results>,
    streams: BTreeMap<u64, Arc<StreamLog>>,
    next_stream_id: Arc<std::sync::atomic::AtomicU64>,
    room: Room,
}

/// Takes no blocks.
struct NoBlocks;

impl BlockSink<usize> for NoBlocks {
    fn synced(&mut self, _blocks: Vec<(BlockPlace, usize)>) {}
}

/// A log that lives through a workload.
pub struct Run {
    pub disk: SimDisk,
    pub ledger: Ledger,
    open: Option<Open>,
    seed: u64,
    pushes: u64,
    /// Durable, and not told on disk yet.
    untold: bool,
}

const TENANT: &str = "tenant-a";

impl Run {
    /// A run on a disk with these files. `ledger` knows what they hold.
    pub fn on(image: Image, ledger: Ledger, workload: &Workload) -> Self {
        let disk = SimDisk::new(image, workload.schedule(), workload.seed | 1);
        let pushes = ledger.len() as u64;
        Self { disk, ledger, open: None, seed: workload.seed, pushes, untold: false }
    }

    pub fn new(workload: &Workload) -> Self {
        Self::on(Image::default(), Ledger::default(), workload)
    }

    /// Recovers and opens the log. Pushes continue from number `pushes` on.
    pub fn open(&mut self) -> Result<Found, Stop> {
        let fs = self.disk.next_process();
        let options = options(fs.clone());
        let next_stream_id = options.next_stream_id.clone();
        let ended = |e: RecoverError| Stop::Ended(e.to_string());
        let recovered = recover(options, &mut |_, _| {}).map_err(ended)?;
        let found = found_in(&self.ledger, &recovered).map_err(Stop::Wrong)?;
        self.ledger.observed(self.disk.now(), &found);
        next_stream_id.store(recovered.plan.next_stream_id, std::sync::atomic::Ordering::SeqCst);
        let mut streams = BTreeMap::new();
        for (id, d) in &recovered.plan.definitions {
            streams.insert(*id, stream(*id, d.next_seq));
        }
        for (number, place) in &found.places {
            for (id, end) in self.ledger.ends(*number, place) {
                if let Some(s) = streams.get(&id) {
                    let next = end.max(recovered.plan.definitions.get(&id).map_or(0, |d| d.next_seq));
                    streams.insert(id, raise(s, next));
                }
            }
        }
        self.disk.set_ready(found.prepared);
        let needs_one = !recovered.plan.tail.is_empty() && found.prepared == 0;
        self.disk.allow(usize::from(needs_one));
        let results = Arc::new(Results::default());
        let sink = Outcomes { results: results.clone(), disk: self.disk.clone() };
        self.disk.set_opening(true);
        let opened = recovered.open(sink, NoBlocks);
        self.disk.set_opening(false);
        let (wal, blocks) = opened.map_err(ended)?;
        let room = Room { defined: HashMap::new(), inode: usize::MAX };
        let streams = streams.into_iter().map(|(id, s)| (id, s.0)).collect();
        self.open = Some(Open { wal, _blocks: blocks, results, streams, next_stream_id, room });
        self.disk.settle();
        self.disk.set_mode(Mode::Quiet);
        self.untold = false;
        Ok(found)
    }

    pub fn step(&mut self, step: Step) -> Result<(), Stop> {
        match step {
            Step::Small => self.push(&[&[(1, 60), (2 + self.pushes % 2, 40), (1, 50)]]),
            Step::Large => self.push(&[&[(2, SEGMENT as usize + 1000)]]),
            Step::Exact => self.push_exact(),
            Step::Rotate => self.push(&[&[(3, 2 * 4096 + 400)]]),
            Step::Burst => self.push(&[&[(1, 700)], &[(4, 4300), (1, 20)], &[(2, 900)]]),
            Step::Idle => self.idle(),
            Step::Kill => {
                self.kill();
                self.open().map(drop)
            }
            Step::Restart => {
                self.stop();
                self.open().map(drop)
            }
        }?;
        if self.disk.disturbed() { Err(Stop::Disturbed) } else { Ok(()) }
    }

    /// Pushes, one after the other; if there are more than one, the first is held until the others wait behind it.
    fn push(&mut self, pushes: &[&[(u64, usize)]]) -> Result<(), Stop> {
        self.disk.set_mode(Mode::Push);
        let mut numbers = Vec::new();
        if pushes.len() > 1 {
            self.disk.hold();
        }
        for push in pushes {
            let sent = self.send(push);
            numbers.push(sent);
            if pushes.len() > 1 && numbers.len() == 1 && sent.is_some() {
                self.disk.wait_held_or(|| self.answered(sent));
            }
        }
        self.disk.release();
        let mut out = Ok(());
        for number in numbers.into_iter().flatten() {
            let outcome = self.outcome(number);
            if outcome.is_err() {
                out = outcome;
            }
        }
        self.disk.settle();
        self.disk.set_mode(Mode::Quiet);
        out
    }

    fn answered(&self, number: Option<usize>) -> bool {
        number.zip(self.open.as_ref()).is_none_or(|(n, open)| open.results.by_push.lock().contains_key(&n))
    }

    /// Hands a push to the log: the lines' streams and lengths. Gives its number, or `None` if it was refused.
    fn send(&mut self, lines: &[(u64, usize)]) -> Option<usize> {
        let record = record(self.seed, self.pushes, lines);
        self.pushes += 1;
        let at = self.disk.now();
        let number = self.ledger.send(at, TENANT, record.rows(), record.raw());
        let open = self.open.as_mut()?;
        let ids: Vec<u64> = record.rows().iter().map(|r| r.stream).collect();
        let streams = ids.iter().map(|id| open.stream(*id)).collect();
        match open.wal.append(Append { record, streams, payload: number }) {
            Ok(()) => Some(number),
            Err(_) => {
                self.ledger.failed(number);
                None
            }
        }
    }

    fn outcome(&mut self, number: usize) -> Result<(), Stop> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let deadline = Instant::now() + Duration::from_secs(10);
        let (at, result) = loop {
            let mut by_push = open.results.by_push.lock();
            if let Some(outcome) = by_push.remove(&number) {
                break outcome;
            }
            let late = open.results.changed.wait_for(&mut by_push, Duration::from_millis(30)).timed_out();
            drop(by_push);
            if late {
                // After a failed write the log may need one more segment before it answers.
                self.disk.settle();
            }
            if Instant::now() > deadline {
                return Err(Stop::Wrong(format!("push {number} was never answered")));
            }
        };
        match result {
            Ok(place) => {
                open.room.note(&self.disk, self.ledger.streams(number));
                self.ledger.acked(number, at, place);
                self.untold = true;
                Ok(())
            }
            Err(why) => {
                self.ledger.failed(number);
                match why {
                    Unavailable::Poisoned(why) => Err(Stop::Ended(why)),
                    _ => Ok(()),
                }
            }
        }
    }

    fn push_exact(&mut self) -> Result<(), Stop> {
        let Some(open) = &self.open else { return Ok(()) };
        let bound = open.room.exact(&self.disk, 1, open.streams.get(&1).map(|s| &*s.labels));
        let mut len = bound.saturating_sub(400).max(1);
        // A line's length is a varint in the record, so a byte more of the line may be two of the record.
        for _ in 0..4 {
            let record = record(self.seed, self.pushes, &[(1, len)]);
            let now = record.len().next_multiple_of(8);
            len = (len + bound).saturating_sub(now).max(1);
        }
        self.push(&[&[(1, len)]])
    }

    fn idle(&mut self) -> Result<(), Stop> {
        if self.untold && self.open.is_some() {
            let before = self.disk.now();
            self.disk.set_mode(Mode::Free);
            // A write and a sync; a full segment takes none.
            self.disk.wait_for_ops(before + 2, Duration::from_millis(150));
            self.disk.set_mode(Mode::Quiet);
            self.untold = false;
        }
        if self.disk.failed_at().is_some()
            && let Some(open) = &self.open
        {
            // The log's thread tells of a failed sync a little after it has failed.
            let mut poisoned = open.results.poisoned.lock();
            if poisoned.is_none() {
                open.results.changed.wait_for(&mut poisoned, Duration::from_millis(100));
            }
        }
        match self.open.as_ref().and_then(|o| o.results.poisoned.lock().clone()) {
            Some(why) => Err(Stop::Ended(why)),
            None => Ok(()),
        }
    }

    /// Ends the process as `kill -9` does.
    pub fn kill(&mut self) {
        let quiet = self.disk.ready() >= 2;
        self.disk.end_process();
        let Some(open) = self.open.take() else { return };
        if quiet {
            drop(open);
        } else {
            // Its preparing thread may wait a quarter of a second before it looks up.
            std::thread::spawn(move || drop(open));
        }
    }

    /// Ends the process in good order.
    pub fn stop(&mut self) {
        let Some(open) = self.open.take() else { return };
        self.disk.set_mode(Mode::Free);
        self.disk.close_gate();
        open.wal.stop();
        self.disk.end_process();
    }

    /// Pushes until the log takes one again; false if it does not, long after space has come back. That it does within a second is
    /// measured on real disks, which nobody shares.
    pub fn resumes(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(15);
        // It takes a quarter of a second until space is looked for again, and a watermark may come in between.
        self.disk.set_mode(Mode::Free);
        while Instant::now() < deadline {
            if !self.disk.settle_after_failure() {
                continue;
            }
            let sent = self.send(&[(1, 50)]);
            let acks = self.ledger.acks();
            if sent.is_some_and(|n| self.outcome(n).is_ok() && self.ledger.acks() > acks) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Open {
    fn stream(&mut self, id: u64) -> Arc<StreamLog> {
        self.next_stream_id.fetch_max(id + 1, std::sync::atomic::Ordering::SeqCst);
        self.streams.entry(id).or_insert_with(|| stream(id, 0).0).clone()
    }
}

type Cursor = (Arc<StreamLog>, u64);

fn stream(id: u64, next_seq: u64) -> Cursor {
    let labels = LabelSet::new(labels(id));
    let tenant = Tenant::new(TENANT).expect("the name is legal");
    (Arc::new(StreamLog::new(id, tenant, Arc::new(labels), next_seq)), next_seq)
}

fn raise(s: &Cursor, next_seq: u64) -> Cursor {
    s.0.resume_at(next_seq.max(s.1));
    (s.0.clone(), next_seq.max(s.1))
}

/// The record of push `number`: its bytes depend on the numbers alone, and do not compress.
fn record(seed: u64, number: u64, lines: &[(u64, usize)]) -> EntriesRecord {
    let mut by_stream: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    for (i, (stream, len)) in lines.iter().enumerate() {
        let noise = (0..len.div_ceil(8)).flat_map(|w| mix(&[seed, number, i as u64, w as u64]).to_le_bytes());
        by_stream.entry(*stream).or_default().push(noise.take(*len).collect());
    }
    let id = number.to_string();
    let mut builder = EntriesBuilder::new(0);
    for (stream, lines) in &by_stream {
        builder.stream(*stream);
        for line in lines {
            let metadata = [(&b"push"[..], id.as_bytes())];
            builder.entry(1_000 + number as i64, line, metadata.into_iter());
        }
    }
    builder.finish(TENANT, Codec::None)
}

impl Room {
    /// After an acknowledged push: counts the definitions that the segment has.
    fn note(&mut self, disk: &SimDisk, streams: Vec<u64>) {
        let (inode, _, _) = disk.segment();
        if inode != self.inode {
            (self.inode, self.defined) = (inode, HashMap::new());
        }
        for stream in streams {
            *self.defined.entry(stream).or_default() += 1;
        }
    }

    /// Bytes of a record, aligned, with which a group fills the rest of the segment to the byte; of a fresh segment, if
    /// there is none; of a block, if the rest is longer than a segment.
    fn exact(&self, disk: &SimDisk, stream: u64, labels: Option<&LabelSet>) -> usize {
        let (inode, at, len) = disk.segment();
        let fresh = inode != self.inode || at + 4096 >= len;
        let room = if fresh { SEGMENT - 8192 - 4096 } else { len - 4096 - at };
        let room = if room > SEGMENT { 4096 } else { room };
        let wanted = fresh || self.defined.get(&stream).copied().unwrap_or(0) < 2;
        let own = LabelSet::new(super::ledger::labels(stream));
        let labels = labels.unwrap_or(&own);
        let definition = (labels.text().len() + TENANT.len() + 16 * labels.pairs().len() + 64) as u64;
        let definitions = if wanted { definition + definition / 6 + 64 } else { 0 };
        let open = if fresh { 256 } else { 0 };
        ((room - 64 - open - definitions) / 8 * 8) as usize
    }
}

/// Did the log write exactly to the end of a segment, its last block apart?
pub fn fills_a_segment(ops: &[Op]) -> bool {
    ops.iter()
        .any(|op| matches!(op, Op::Write(_, at, b) if b.starts_with(b"TGRP") && at + b.len() as u64 == SEGMENT - 4096))
}
