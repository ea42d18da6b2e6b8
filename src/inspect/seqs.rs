//! Which seqs of each stream are there, twice there, or missing, over both logs.
//!
//! A seq may lie in the write-ahead log, in a carried record and in a block at once: that is how lines move. It is *twice*
//! there only if two pushes have it. It is *missing* if it lies between seqs that are known and nothing has or settles it,
//! with these exceptions, once segments were retired:
//!
//! - Below the first block that counts lie chunks that are in the object store.
//! - Duplicates of the line before use up seqs and are stored nowhere: they can follow a block or a carried run, and lie
//!   before a carried run.

use super::blocks::Blocks;
use super::ranges::Ranges;
use crate::wal::Gap;
use std::collections::BTreeMap;
use std::ops::Range;

/// Follows the seqs of every stream. Memory grows with streams and holes.
pub struct Seqs {
    /// The log begins with its first record, so every stream begins with seq 0 and nothing was retired.
    from_zero: bool,
    /// A stretch of the log was not seen: what is not there proves nothing.
    unseen: bool,
    streams: BTreeMap<u64, Known>,
}

/// What is known of one stream.
#[derive(Default)]
struct Known {
    /// In records of pushes.
    pushed: Ranges,
    /// In carried records.
    carried: Ranges,
    /// In records or blocks that are damaged.
    broken: Ranges,
    /// In the object store, or settled losses.
    settled: Ranges,
    /// The smallest seq that a definition tells, and the largest.
    defined: Option<(u64, u64)>,
    /// Highest settled seq of any definition.
    settled_seq: u64,
}

impl Seqs {
    /// `from_zero` says that nothing before the first record was ever retired.
    pub fn new(from_zero: bool, gaps: &[Gap]) -> Self {
        let mut out = Self { from_zero, unseen: false, streams: BTreeMap::new() };
        gaps.iter().flat_map(|g| &g.seqs).for_each(|(stream, first, end)| out.settled(*stream, *first..*end));
        out
    }

    /// A Gap settles the loss of these.
    pub fn settled(&mut self, stream: u64, seqs: Range<u64>) {
        self.stream(stream).settled.insert(seqs);
    }

    fn stream(&mut self, stream: u64) -> &mut Known {
        self.streams.entry(stream).or_default()
    }

    /// A stretch of the log was not seen.
    pub fn restart(&mut self) {
        self.unseen = true;
    }

    /// A definition says what the next seq of a stream is at least, and below which all are in blocks or in the object store.
    pub fn defined(&mut self, stream: u64, next_seq: u64, settled_seq: u64) {
        let known = self.stream(stream);
        let (low, high) = known.defined.unwrap_or((next_seq, next_seq));
        known.defined = Some((low.min(next_seq), high.max(next_seq)));
        known.settled_seq = known.settled_seq.max(settled_seq);
    }

    /// The record of a push has these seqs of a stream; they are lost if its body is not `sound`. Returns those that an
    /// earlier one had already.
    pub fn entries(&mut self, stream: u64, seqs: Range<u64>, sound: bool) -> Option<Range<u64>> {
        let known = self.stream(stream);
        let twice = known.pushed.overlap(&seqs).or_else(|| known.broken.overlap(&seqs));
        if sound { &mut known.pushed } else { &mut known.broken }.insert(seqs);
        twice
    }

    /// A carried record has these.
    pub fn carried(&mut self, stream: u64, seqs: Range<u64>, sound: bool) {
        let known = self.stream(stream);
        if sound { &mut known.carried } else { &mut known.broken }.insert(seqs);
    }

    /// Missing seqs by stream, in order.
    pub fn missing(mut self, blocks: &Blocks) -> Vec<(u64, Range<u64>)> {
        for (stream, seqs) in &blocks.broken {
            self.stream(*stream).broken.insert(seqs.clone());
        }
        for (stream, flushed) in &blocks.flushed {
            flushed.iter().for_each(|r| self.stream(*stream).settled.insert(r.clone()));
        }
        for stream in blocks.held.keys() {
            self.stream(*stream);
        }
        let none = Ranges::default();
        let mut out = Vec::new();
        for (stream, known) in &self.streams {
            let holes = self.holes(known, blocks.held.get(stream).unwrap_or(&none));
            out.extend(holes.into_iter().map(|hole| (*stream, hole)));
        }
        out
    }

    fn holes(&self, known: &Known, held: &Ranges) -> Vec<Range<u64>> {
        let all = [&known.pushed, &known.carried, &known.settled, held];
        let mut there = Ranges::default();
        all.iter().flat_map(|r| r.iter()).for_each(|r| there.insert(r.clone()));
        let seen = there.first().into_iter().chain(known.broken.first()).chain(known.defined.map(|(low, _)| low));
        let start = if self.from_zero { Some(0) } else { seen.min() };
        let ends = there.end().into_iter().chain(known.broken.end()).chain(known.defined.map(|(_, high)| high));
        let (Some(start), Some(end)) = (start, ends.max()) else { return Vec::new() };
        let mut lost = Ranges::default();
        for hole in there.missing(&(start..end)) {
            let explained = !self.from_zero && is_explained(&hole, known, held);
            if !explained && !self.unseen {
                lost.insert(hole);
                continue;
            }
            // What a damaged record or block had is missing for certain.
            let certain = known.broken.iter().filter(|b| b.start < hole.end && b.end > hole.start);
            certain.for_each(|b| lost.insert(b.start.max(hole.start)..b.end.min(hole.end)));
        }
        lost.iter().cloned().collect()
    }
}

/// May nothing be wrong with a hole in a log whose beginning was retired?
fn is_explained(hole: &Range<u64>, known: &Known, held: &Ranges) -> bool {
    let flushed_before = hole.end <= known.settled_seq && held.first().is_none_or(|first| hole.end <= first);
    let behind_blocks = held.end() == Some(hole.start) && hole.start >= known.settled_seq;
    let beside_carried = known.carried.iter().any(|c| c.end == hole.start || c.start == hole.end);
    let behind_settled = hole.start == known.settled_seq || known.settled.iter().any(|s| s.end == hole.start);
    flushed_before || behind_blocks || beside_carried || behind_settled
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of ranges, and one is a list too")]
mod tests {
    use super::*;

    fn missing(seqs: Seqs) -> Vec<(u64, Range<u64>)> {
        seqs.missing(&Blocks::default())
    }

    fn with_blocks(ranges: &[Range<u64>]) -> Blocks {
        let mut blocks = Blocks::default();
        ranges.iter().for_each(|r| blocks.held.entry(1).or_default().insert(r.clone()));
        blocks
    }

    #[test]
    fn holes_are_found_by_later_records_definitions_and_broken_bodies() {
        let mut seqs = Seqs::new(true, &[]);
        assert_eq!(seqs.entries(1, 0..5, true), None);
        assert_eq!(seqs.entries(1, 7..9, true), None);
        assert_eq!(seqs.entries(1, 9..12, false), None);
        seqs.defined(1, 20, 0);
        seqs.defined(2, 3, 0);
        seqs.defined(2, 1, 0);
        assert_eq!(missing(seqs), [(1, 5..7), (1, 9..20), (2, 0..3)]);
    }

    #[test]
    fn a_log_whose_beginning_was_retired_starts_where_it_starts() {
        let mut seqs = Seqs::new(false, &[]);
        seqs.defined(1, 10, 0);
        seqs.entries(1, 10..11, true);
        seqs.entries(2, 50..51, true);
        seqs.restart();
        seqs.entries(1, 40..41, true);
        seqs.entries(2, 52..53, false);
        assert_eq!(missing(seqs), [(2, 52..53)]);
    }

    #[test]
    fn seqs_that_come_twice_are_told_but_not_those_of_carried_lines() {
        let mut seqs = Seqs::new(true, &[]);
        seqs.entries(1, 0..5, true);
        assert_eq!(seqs.entries(1, 3..8, true), Some(3..5));
        assert_eq!(seqs.entries(1, 8..9, true), None);
        seqs.carried(1, 0..9, true);
        assert_eq!(missing(seqs), []);
    }

    #[test]
    fn settled_losses_are_not_missing() {
        let gap = Gap { lsns: vec![], seqs: vec![(1, 6, 8), (1, 2, 4), (3, 0, 9)], lines: 0 };
        let mut seqs = Seqs::new(true, &[gap]);
        seqs.entries(1, 10..11, true);
        assert_eq!(missing(seqs), [(1, 0..2), (1, 4..6), (1, 8..10)]);
    }

    #[test]
    fn a_block_that_is_gone_is_missing_and_a_flushed_one_is_not() {
        let log = |blocks: &[Range<u64>], settled_seq| {
            let mut seqs = Seqs::new(false, &[]);
            seqs.defined(1, 40, settled_seq);
            seqs.entries(1, 41..50, true);
            seqs.missing(&with_blocks(blocks))
        };
        // 40 may have been a duplicate.
        assert_eq!(log(&[0..20, 20..40], 40), []);
        assert_eq!(log(&[20..40], 40), [], "0 to 20 are in the object store");
        assert_eq!(log(&[0..10, 20..40], 40), [(1, 10..20)]);
        assert_eq!(log(&[0..20], 40), [(1, 20..41)]);
    }

    #[test]
    fn a_damaged_block_is_missing_unless_the_log_has_its_lines() {
        let blocks = || {
            let mut blocks = with_blocks(&[0..10, 20..30]);
            blocks.broken.push((1, 10..20));
            blocks
        };
        assert_eq!(Seqs::new(false, &[]).missing(&blocks()), [(1, 10..20)]);
        let mut seqs = Seqs::new(false, &[]);
        seqs.entries(1, 5..20, true);
        assert_eq!(seqs.missing(&blocks()), []);
    }
}
