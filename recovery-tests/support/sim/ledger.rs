//! What was sent, what was acknowledged, what failed; and the one checker of what a start finds.
//!
//! The rules (contract 1 to 7 of the design): what was acknowledged is there, once, unaltered, under its seqs. What was
//! not is there whole or not at all. What failed before a later acknowledgement, and what a start has not found, never
//! comes back; what a start has found stays. Nothing else is there. (stream id, seq) names one line. A crash is no
//! damage. LSNs and stream ids never go back.

use super::content::Image;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use timberline::wal::*;

/// Where a push is in the log: LSN and first seqs of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub lsn: u64,
    pub first_seqs: Vec<u64>,
}

/// What may be known of a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Whole or not at all.
    May,
    /// Acknowledged, or found by a start.
    There(Place),
    /// Never again.
    Gone,
}

/// One push.
#[derive(Clone)]
pub struct Sent {
    pub tenant: &'static str,
    /// Stream id, lines and bytes of each row.
    pub rows: Vec<(u64, u32, u32)>,
    /// The uncompressed body: timestamps, lines and metadata.
    pub raw: Arc<Vec<u8>>,
    /// From which operation of the disk on, in their order.
    fates: Vec<(usize, Fate)>,
    failed: bool,
}

impl Sent {
    fn fate(&self, at: usize) -> Option<&Fate> {
        self.fates.iter().rev().find(|(since, _)| *since <= at).map(|(_, fate)| fate)
    }

    fn lines(&self) -> u64 {
        self.rows.iter().map(|(_, count, _)| u64::from(*count)).sum()
    }
}

/// All pushes of a run.
#[derive(Default)]
pub struct Ledger {
    sent: Vec<Sent>,
    by_body: HashMap<Arc<Vec<u8>>, usize>,
    /// LSN and stream id that the next ones must reach, since an operation.
    floors: Vec<(usize, u64, u64)>,
}

/// What a start found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Place of each push that is there, by its number.
    pub places: BTreeMap<usize, Place>,
    pub next_stream_id: u64,
    pub next_lsn: u64,
    pub has_tail: bool,
    /// Segments that are ready for use.
    pub prepared: usize,
    /// Opening removes files.
    pub leftovers: bool,
}

impl Ledger {
    /// What is known after `at` operations, as the beginning of another run.
    pub fn at(&self, at: usize) -> Self {
        let mut out = Self::default();
        for sent in &self.sent {
            let Some(fate) = sent.fate(at) else { break };
            out.by_body.insert(sent.raw.clone(), out.sent.len());
            out.sent.push(Sent { fates: vec![(0, fate.clone())], failed: false, ..sent.clone() });
        }
        out.floors.extend(self.floors.iter().rev().find(|f| f.0 <= at).map(|(_, lsn, id)| (0, *lsn, *id)));
        out
    }

    pub fn len(&self) -> usize {
        self.sent.len()
    }

    pub fn send(&mut self, at: usize, tenant: &'static str, rows: &[TableRow], raw: &Arc<Vec<u8>>) -> usize {
        let number = self.sent.len();
        let rows = rows.iter().map(|r| (r.stream, r.count, r.part_len)).collect();
        let fates = vec![(at, Fate::May)];
        self.sent.push(Sent { tenant, rows, raw: raw.clone(), fates, failed: false });
        assert!(self.by_body.insert(raw.clone(), number).is_none(), "pushes of a workload differ");
        number
    }

    pub fn acked(&mut self, number: usize, at: usize, place: Place) {
        self.floor(at, place.lsn + 1, 0);
        self.sent[number].fates.push((at, Fate::There(place)));
        // What has failed before lies behind the end that the log tells from now on.
        for older in self.sent.iter_mut().filter(|s| s.failed) {
            older.failed = false;
            older.fates.push((at, Fate::Gone));
        }
    }

    pub fn failed(&mut self, number: usize) {
        self.sent[number].failed = true;
    }

    /// A start has found this, and serves it.
    pub fn observed(&mut self, at: usize, found: &Found) {
        self.floor(at, found.next_lsn, found.next_stream_id);
        for (number, sent) in self.sent.iter_mut().enumerate() {
            sent.failed = false;
            let fate = found.places.get(&number).map_or(Fate::Gone, |p| Fate::There(p.clone()));
            sent.fates.push((at, fate));
        }
    }

    fn floor(&mut self, at: usize, lsn: u64, stream_id: u64) {
        let (_, old_lsn, old_id) = self.floors.last().copied().unwrap_or((0, 0, 1));
        self.floors.push((at, lsn.max(old_lsn), stream_id.max(old_id)));
    }

    /// Streams of a push.
    pub fn streams(&self, number: usize) -> Vec<u64> {
        self.sent[number].rows.iter().map(|(id, _, _)| *id).collect()
    }

    /// The seq after the last, for each stream of a push at this place.
    pub fn ends(&self, number: usize, place: &Place) -> Vec<(u64, u64)> {
        let rows = self.sent[number].rows.iter().zip(&place.first_seqs);
        rows.map(|((id, count, _), first)| (*id, first + u64::from(*count))).collect()
    }

    pub fn acks(&self) -> usize {
        self.sent.iter().filter(|s| s.fates.iter().any(|(_, f)| matches!(f, Fate::There(_)))).count()
    }

    /// Tells apart what is expected at this operation: states with equal images and expectations are checked once.
    pub fn expectation(&self, at: usize) -> u64 {
        let known = self.sent.iter().map(|s| s.fates.iter().filter(|(since, _)| *since <= at).count() as u64);
        known.fold(self.floors.iter().filter(|f| f.0 <= at).count() as u64, |h, n| h.wrapping_mul(31).wrapping_add(n))
    }

    /// Starts on this image and checks what is found against what is known after `at` operations.
    pub fn check(&self, image: &Image, at: usize) -> Result<Found, String> {
        let found = read(self, image)?;
        for (number, sent) in self.sent.iter().enumerate() {
            let place = found.places.get(&number);
            match (sent.fate(at), place) {
                (Some(Fate::There(_)), None) => return Err(format!("push {number} was acknowledged and is gone")),
                (Some(Fate::There(told)), Some(place)) if told != place => {
                    return Err(format!("push {number} was acknowledged as {told:?} and is {place:?}"));
                }
                (Some(Fate::Gone), Some(place)) => {
                    return Err(format!("push {number} failed for good and is back as {place:?}"));
                }
                (None, Some(_)) => return Err(format!("push {number} is there and was not sent yet")),
                _ => {}
            }
        }
        let (_, lsn, id) = self.floors.iter().rev().find(|f| f.0 <= at).copied().unwrap_or((0, 0, 1));
        if found.next_lsn < lsn || found.next_stream_id < id {
            let Found { next_lsn, next_stream_id, .. } = found;
            return Err(format!("LSN {next_lsn} or stream id {next_stream_id} went back behind {lsn} or {id}"));
        }
        Ok(found)
    }
}

pub fn labels(stream: u64) -> Vec<(String, String)> {
    vec![("app".into(), format!("app-{stream}")), ("zone".into(), "é".into())]
}

/// Options of a log of the simulation on this disk.
pub fn options(fs: Arc<dyn timberline::fs::Fs>) -> WalOptions {
    thread_local! {
        static METRICS: WalMetrics = WalMetrics::unregistered();
    }
    WalOptions {
        fs,
        dir: crate::support::dir(),
        volume: crate::support::VOLUME,
        segment_size: super::SEGMENT,
        max_size: 1 << 30,
        blocks: timberline::wal::BlockLogOptions {
            dir: "/blocks".into(),
            segment_size: super::SEGMENT,
            max_size: 1 << 30,
        },
        sync: SyncMode::Always,
        queue_bytes: 64 << 20,
        next_stream_id: Arc::new(AtomicU64::new(1)),
        metrics: METRICS.with(Clone::clone),
    }
}

/// Starts on an image, checks what holds for any crash, and tells which pushes are there.
fn read(ledger: &Ledger, image: &Image) -> Result<Found, String> {
    let recovered = recover(options(Arc::new(image.clone())), &mut |_, _| {}).map_err(|e| e.to_string())?;
    found_in(ledger, &recovered)
}

/// Which pushes a start has found.
pub fn found_in(ledger: &Ledger, recovered: &Recovered) -> Result<Found, String> {
    let plan = &recovered.plan;
    if !plan.loss.is_empty() {
        return Err(format!("a crash is told as damage: {:?}", plan.loss));
    }
    let mut reader = Reader { ledger, plan, places: BTreeMap::new(), seqs: HashSet::new(), lines: 0, tail_lines: 0 };
    let mut wrong = Ok(());
    let replayed = recovered.replay(&mut |r, bytes| {
        if wrong.is_ok() {
            wrong = reader.record(r, bytes);
        }
    });
    replayed.map_err(|e| e.to_string())?;
    wrong?;
    let Reader { places, lines, tail_lines, .. } = reader;
    if plan.lines + tail_lines != lines {
        return Err(format!("the headers tell {} lines and {tail_lines} in the tail, {lines} are there", plan.lines));
    }
    let newest = plan.replay.last().map_or(0, |(number, _)| *number);
    let usable = |h: &&SegmentHeader| h.number > newest && h.file_len >= super::SEGMENT;
    let prepared = plan.empty.iter().filter(usable).count();
    Ok(Found {
        places,
        next_stream_id: plan.next_stream_id,
        next_lsn: plan.next_lsn,
        has_tail: !plan.tail.is_empty() || !plan.unresolved.is_empty(),
        prepared,
        leftovers: prepared < plan.empty.len(),
    })
}

struct Reader<'a> {
    ledger: &'a Ledger,
    plan: &'a Plan,
    places: BTreeMap<usize, Place>,
    seqs: HashSet<(u64, u64)>,
    lines: u64,
    tail_lines: u64,
}

impl Reader<'_> {
    fn record(&mut self, r: &RecordRef, bytes: &[u8]) -> Result<(), String> {
        let lsn = r.head.lsn;
        let raw = decompress_body(&r.head, r.head.body(bytes, 0)).map_err(|e| format!("LSN {lsn}: {e}"))?;
        let tables = Tables::decode(r.head.tables(bytes, 0)).map_err(|e| format!("LSN {lsn}: {e}"))?;
        let number = self.ledger.by_body.get(&raw).ok_or(format!("LSN {lsn}: lines that nobody has sent"))?;
        let sent = &self.ledger.sent[*number];
        let rows: Vec<(u64, u32, u32)> = tables.rows.iter().map(|r| (r.stream, r.count, r.part_len)).collect();
        if rows != sent.rows || tables.tenant != sent.tenant {
            return Err(format!("push {number} is there with other streams, counts or tenant: {tables:?}"));
        }
        for row in &tables.rows {
            let definition = self.plan.definitions.get(&row.stream).ok_or(format!("stream {} is lost", row.stream))?;
            if definition.labels != labels(row.stream) || definition.tenant != sent.tenant {
                return Err(format!("stream {} has other labels or another tenant: {definition:?}", row.stream));
            }
            if row.stream >= self.plan.next_stream_id {
                return Err(format!("the id of stream {} would be given again", row.stream));
            }
            for seq in row.first_seq..row.first_seq + u64::from(row.count) {
                if !self.seqs.insert((row.stream, seq)) {
                    return Err(format!("seq {seq} of stream {} names two lines (push {number})", row.stream));
                }
            }
        }
        self.lines += sent.lines();
        self.tail_lines += if lsn >= self.plan.durable_lsn { sent.lines() } else { 0 };
        let place = Place { lsn, first_seqs: tables.rows.iter().map(|r| r.first_seq).collect() };
        match self.places.insert(*number, place.clone()) {
            Some(first) => Err(format!("push {number} is there twice: {first:?} and {place:?}")),
            None => Ok(()),
        }
    }
}
