//! Which seqs of each stream are there, twice there, or missing.

use crate::wal::Gap;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// Follows the seqs of every stream through the log. Memory grows with streams and holes.
pub struct Seqs {
    /// The log begins with its first record, so every stream begins with seq 0.
    from_zero: bool,
    next: HashMap<u64, u64>,
    missing: BTreeMap<u64, Vec<Range<u64>>>,
    /// Settled losses, by stream.
    settled: HashMap<u64, Vec<Range<u64>>>,
}

impl Seqs {
    /// `from_zero` says that nothing before the first record was ever retired.
    pub fn new(from_zero: bool, gaps: &[Gap]) -> Self {
        let mut settled: HashMap<u64, Vec<Range<u64>>> = HashMap::new();
        for (stream, first, end) in gaps.iter().flat_map(|g| &g.seqs) {
            settled.entry(*stream).or_default().push(*first..*end);
        }
        settled.values_mut().for_each(|ranges| ranges.sort_by_key(|r| r.start));
        Self { from_zero, next: HashMap::new(), missing: BTreeMap::new(), settled }
    }

    /// A stretch of the log was not seen: what comes next is taken as it is.
    pub fn restart(&mut self) {
        self.from_zero = false;
        self.next.clear();
    }

    /// A definition says what the next seq of a stream is at least.
    pub fn defined(&mut self, stream: u64, next_seq: u64) {
        let next = self.expected(stream, next_seq);
        self.lost(stream, next..next_seq);
        self.next.insert(stream, next.max(next_seq));
    }

    /// An Entries record has these seqs of a stream; they are lost if its body is not `sound`. Returns those that an
    /// earlier record had already.
    pub fn entries(&mut self, stream: u64, seqs: Range<u64>, sound: bool) -> Option<Range<u64>> {
        let next = self.expected(stream, seqs.start);
        self.lost(stream, next..seqs.start);
        if !sound {
            self.lost(stream, seqs.start.max(next)..seqs.end);
        }
        self.next.insert(stream, next.max(seqs.end));
        let twice = seqs.start..next.min(seqs.end);
        (!twice.is_empty()).then_some(twice)
    }

    fn expected(&self, stream: u64, seen: u64) -> u64 {
        let first = if self.from_zero { 0 } else { seen };
        self.next.get(&stream).copied().unwrap_or(first)
    }

    fn lost(&mut self, stream: u64, seqs: Range<u64>) {
        if seqs.is_empty() {
            return;
        }
        let mut at = seqs.start;
        let settled = self.settled.get(&stream).map_or(&[][..], |ranges| ranges);
        let holes = self.missing.entry(stream).or_default();
        for range in settled.iter().filter(|r| r.end > seqs.start && r.start < seqs.end) {
            push_merged(holes, at..range.start.min(seqs.end));
            at = at.max(range.end);
        }
        push_merged(holes, at..seqs.end);
    }

    /// Missing seqs by stream, unsettled, in order.
    pub fn missing(&self) -> Vec<(u64, Range<u64>)> {
        self.missing.iter().flat_map(|(id, holes)| holes.iter().map(|r| (*id, r.clone()))).collect()
    }
}

fn push_merged(holes: &mut Vec<Range<u64>>, range: Range<u64>) {
    match holes.last_mut() {
        _ if range.is_empty() => {}
        Some(last) if last.end == range.start => last.end = range.end,
        _ => holes.push(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_found_by_later_records_definitions_and_broken_bodies() {
        let mut seqs = Seqs::new(true, &[]);
        assert_eq!(seqs.entries(1, 0..5, true), None);
        assert_eq!(seqs.entries(1, 7..9, true), None);
        assert_eq!(seqs.entries(1, 9..12, false), None);
        seqs.defined(1, 20);
        seqs.defined(2, 3);
        seqs.defined(2, 1);
        assert_eq!(seqs.missing(), [(1, 5..7), (1, 9..20), (2, 0..3)]);
    }

    #[test]
    fn a_log_whose_beginning_was_retired_starts_where_it_starts() {
        let mut seqs = Seqs::new(false, &[]);
        seqs.defined(1, 10);
        seqs.entries(1, 10..11, true);
        seqs.entries(2, 50..51, true);
        assert_eq!(seqs.missing(), []);
        seqs.restart();
        seqs.entries(1, 40..41, true);
        assert_eq!(seqs.missing(), []);
    }

    #[test]
    fn seqs_that_come_twice_are_told() {
        let mut seqs = Seqs::new(true, &[]);
        seqs.entries(1, 0..5, true);
        assert_eq!(seqs.entries(1, 3..8, true), Some(3..5));
        assert_eq!(seqs.entries(1, 8..9, true), None);
    }

    #[test]
    fn settled_losses_are_not_missing() {
        let gap = Gap { lsns: vec![], seqs: vec![(1, 6, 8), (1, 2, 4), (3, 0, 9)], lines: 0 };
        let mut seqs = Seqs::new(true, &[gap]);
        seqs.entries(1, 10..11, true);
        assert_eq!(seqs.missing(), [(1, 0..2), (1, 4..6), (1, 8..10)]);
    }
}
