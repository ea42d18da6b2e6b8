//! What an ingester was given and what it has answered, line by line: each line has a timestamp of its own, which names it.

use super::content::mix;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Lines of each stream in the order in which they are read: timestamp and bytes.
pub type Seen = BTreeMap<usize, Vec<(i64, Vec<u8>)>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Whole or not at all.
    May,
    There,
    Gone,
}

#[derive(Clone)]
struct Sent {
    lines: Vec<i64>,
    fates: Vec<(usize, Fate)>,
    failed: bool,
}

/// A chunk that was settled.
#[derive(Clone)]
struct Flush {
    lines: Vec<i64>,
    started: usize,
    acked: Option<usize>,
    /// A start has found that it did not happen.
    undone: Option<usize>,
}

/// The ledger of an ingester: pushes and settled chunks, with the operation of the disk from which on each is known.
#[derive(Clone, Default)]
pub struct Book {
    sent: Vec<Sent>,
    lines: HashMap<i64, (usize, Vec<u8>)>,
    flushes: Vec<Flush>,
}

impl Book {
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    pub fn send(&mut self, at: usize, lines: &[(usize, i64, Vec<u8>)]) -> usize {
        self.lines.extend(lines.iter().map(|(stream, t, text)| (*t, (*stream, text.clone()))));
        let lines = lines.iter().map(|(_, t, _)| *t).collect();
        self.sent.push(Sent { lines, fates: vec![(at, Fate::May)], failed: false });
        self.sent.len() - 1
    }

    pub fn acked(&mut self, push: usize, at: usize) {
        self.sent[push].fates.push((at, Fate::There));
        // What has failed before lies behind the end that the log tells from now on.
        for older in self.sent.iter_mut().filter(|s| s.failed) {
            older.failed = false;
            older.fates.push((at, Fate::Gone));
        }
    }

    pub fn failed(&mut self, push: usize) {
        self.sent[push].failed = true;
    }

    pub fn settling(&mut self, at: usize, lines: Vec<i64>) -> usize {
        self.flushes.push(Flush { lines, started: at, acked: None, undone: None });
        self.flushes.len() - 1
    }

    pub fn settled(&mut self, flush: usize, at: usize) {
        self.flushes[flush].acked = Some(at);
    }

    /// A start has found this, and serves it.
    pub fn observed(&mut self, at: usize, seen: &Seen) {
        let there: HashSet<i64> = seen.values().flatten().map(|(t, _)| *t).collect();
        let mut settled = HashSet::new();
        for flush in &mut self.flushes {
            let done = flush.acked.is_some() || flush.lines.iter().all(|t| !there.contains(t));
            match (flush.undone, done) {
                (Some(_), _) => {}
                (None, true) => {
                    flush.acked.get_or_insert(at);
                    settled.extend(flush.lines.iter().copied());
                }
                (None, false) => flush.undone = Some(at),
            }
        }
        for sent in &mut self.sent {
            sent.failed = false;
            let gone = sent.lines.iter().all(|t| !there.contains(t) && !settled.contains(t));
            sent.fates.push((at, if gone { Fate::Gone } else { Fate::There }));
        }
    }

    /// What is known after `at` operations, as the beginning of another run.
    pub fn at(&self, at: usize) -> Self {
        let mut out = Self { lines: self.lines.clone(), ..Self::default() };
        for sent in &self.sent {
            let Some(fate) = fate(sent, at) else { break };
            out.sent.push(Sent { fates: vec![(0, fate)], failed: false, ..sent.clone() });
        }
        for f in self.flushes.iter().filter(|f| f.started <= at && f.undone.is_none_or(|u| u > at)) {
            let acked = f.acked.filter(|a| *a <= at).map(|_| 0);
            out.flushes.push(Flush { started: 0, acked, undone: None, lines: f.lines.clone() });
        }
        out
    }

    /// Tells apart what is expected at this operation.
    pub fn expectation(&self, at: usize) -> u64 {
        let fates = self.sent.iter().map(|s| s.fates.iter().filter(|(since, _)| *since <= at).count() as u64);
        let after = |n: Option<usize>| u64::from(n.is_some_and(|n| n <= at));
        let flushes = self.flushes.iter().map(|f| after(Some(f.started)) + 2 * after(f.acked) + 4 * after(f.undone));
        mix(&fates.chain(flushes).collect::<Vec<_>>())
    }

    /// Checks that each line that is read was sent so, and gives them: by their timestamps, which name them.
    pub fn is_sent(&self, seen: &Seen) -> Result<HashSet<i64>, String> {
        let mut there = HashSet::new();
        for (stream, lines) in seen {
            if !lines.is_sorted_by(|a, b| a.0 < b.0) {
                return Err(format!(
                    "lines of stream {stream} are read twice, or not in their order: {:?}",
                    times(lines)
                ));
            }
            for (t, text) in lines {
                match self.lines.get(t) {
                    Some((of, sent)) if of == stream && sent == text => there.insert(*t),
                    Some((of, _)) if of != stream => return Err(format!("a line of stream {of} is read in {stream}")),
                    _ => return Err(format!("stream {stream} has a line at {t} that nobody has sent so")),
                };
            }
        }
        Ok(there)
    }

    /// Checks what is read against what is known after `at` operations.
    pub fn check(&self, at: usize, seen: &Seen) -> Result<(), String> {
        let there = self.is_sent(seen)?;
        let mut may_be_gone = HashSet::new();
        for f in self.flushes.iter().filter(|f| f.started <= at && f.undone.is_none_or(|u| u > at)) {
            let back = f.lines.iter().filter(|t| there.contains(t)).count();
            if back > 0 && f.acked.is_some_and(|a| a <= at) {
                return Err(format!("{back} lines of a settled chunk are back: {:?}", f.lines));
            }
            if back > 0 && back < f.lines.len() {
                return Err(format!("a chunk is settled in part: {:?}", f.lines));
            }
            may_be_gone.extend(f.lines.iter().copied());
        }
        for (number, sent) in self.sent.iter().enumerate() {
            let missing: Vec<i64> =
                sent.lines.iter().copied().filter(|t| !there.contains(t) && !may_be_gone.contains(t)).collect();
            let any = sent.lines.iter().any(|t| there.contains(t));
            let lines = &sent.lines;
            match fate(sent, at) {
                Some(Fate::There) if !missing.is_empty() => {
                    return Err(format!("push {number} was acknowledged; {missing:?} of its lines {lines:?} are gone"));
                }
                Some(Fate::Gone) if any => {
                    return Err(format!("push {number} had failed for good and is back: {lines:?}"));
                }
                Some(Fate::May) if any && !missing.is_empty() => {
                    return Err(format!("push {number} is there in part: {missing:?} of {lines:?} are gone"));
                }
                None if any => return Err(format!("push {number} is there and was not sent yet")),
                _ => {}
            }
        }
        Ok(())
    }
}

fn times(lines: &[(i64, Vec<u8>)]) -> Vec<i64> {
    lines.iter().map(|(t, _)| *t).collect()
}

fn fate(sent: &Sent, at: usize) -> Option<Fate> {
    sent.fates.iter().rev().find(|(since, _)| *since <= at).map(|(_, fate)| *fate)
}
