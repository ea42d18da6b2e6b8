//! Sets of seqs as half-open ranges.

use std::ops::Range;

/// Sorted ranges that do not touch each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// Adds a range. Cheap at the end, where a log adds.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|r| r.end < range.start);
        let end = first + self.0.get(first..).unwrap_or_default().partition_point(|r| r.start <= range.end);
        let touched = self.0.get(first..end).unwrap_or_default();
        let start = touched.first().map_or(range.start, |r| r.start.min(range.start));
        let stop = touched.last().map_or(range.end, |r| r.end.max(range.end));
        self.0.splice(first..end, std::iter::once(start..stop));
    }

    /// The part of `range` up to the first seq that is not in the set, or the first part that is; `None` if none is.
    pub fn overlap(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let found = self.0.get(self.0.partition_point(|r| r.end <= range.start))?;
        let common = found.start.max(range.start)..found.end.min(range.end);
        (!common.is_empty()).then_some(common)
    }

    /// The parts of `range` that are not in the set, in order.
    pub fn missing(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut out = Vec::new();
        let mut at = range.start;
        let from = self.0.partition_point(|r| r.end <= range.start);
        for held in self.0.iter().skip(from).take_while(|r| r.start < range.end) {
            if held.start > at {
                out.push(at..held.start);
            }
            at = held.end;
        }
        if at < range.end {
            out.push(at..range.end);
        }
        out
    }

    /// Is it in the set?
    pub fn contains(&self, seq: u64) -> bool {
        self.0.get(self.0.partition_point(|r| r.end <= seq)).is_some_and(|r| r.start <= seq)
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }

    /// The smallest member.
    pub fn first(&self) -> Option<u64> {
        self.0.first().map(|r| r.start)
    }

    /// The number after the largest member.
    pub fn end(&self) -> Option<u64> {
        self.0.last().map(|r| r.end)
    }
}

/// How many seqs the ranges have.
pub fn count(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|r| r.end - r.start).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn ranges_are_a_set(added in prop::collection::vec((0u64..60, 0u64..12), 0..20), from in 0u64..70, len in 0u64..20) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for (start, len) in added {
                ranges.insert(start..start + len);
                set.extend(start..start + len);
            }
            let listed: Vec<u64> = ranges.iter().cloned().flatten().collect();
            prop_assert_eq!(&listed, &set.iter().copied().collect::<Vec<_>>());
            prop_assert!(ranges.0.windows(2).all(|w| w[0].end < w[1].start));
            let asked = from..from + len;
            let missing: Vec<u64> = ranges.missing(&asked).into_iter().flatten().collect();
            prop_assert_eq!(missing, asked.clone().filter(|s| !set.contains(s)).collect::<Vec<_>>());
            prop_assert_eq!(ranges.overlap(&asked).map(|r| r.start), asked.clone().find(|s| set.contains(s)));
            prop_assert!(asked.clone().all(|s| ranges.contains(s) == set.contains(&s)));
            prop_assert_eq!(ranges.first(), set.first().copied());
            prop_assert_eq!(ranges.end(), set.last().map(|s| s + 1));
        }
    }
}
