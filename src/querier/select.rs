//! The merge over streams: the first entries of a range, in order, in bounded memory.

use super::{Direction, LogQuery, QueryError, StreamSource};
use crate::model::{LabelSet, LogEntry, Metadata};
use bytes::Bytes;
use std::collections::{BTreeMap, BinaryHeap, HashSet};
use std::iter::Peekable;
use std::sync::Arc;

/// Most bytes of lines and structured metadata in one answer.
pub const MAX_RESULT_BYTES: usize = 128 << 20;

/// What to read.
pub(super) struct Selection<'a> {
    pub query: &'a LogQuery,
    pub start: i64,
    pub end: i64,
    pub direction: Direction,
    pub limit: usize,
}

/// What was found.
pub(super) struct Selected {
    /// In the order of the direction; between streams with one timestamp, by label text.
    pub entries: Vec<Hit>,
    pub stats: Stats,
    /// What could not be read; at most [`MAX_WARNINGS`] sentences.
    pub warnings: Vec<String>,
}

/// Most warnings of an answer.
const MAX_WARNINGS: usize = 10;

/// An entry and the labels of its stream.
pub(super) struct Hit {
    pub labels: Arc<LabelSet>,
    pub entry: LogEntry,
}

/// What reading cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stats {
    /// Label sets with entries that may lie in the range.
    pub streams: u64,
    /// Lines examined.
    pub lines: u64,
    /// Bytes of these lines, without structured metadata.
    pub line_bytes: u64,
    /// Bytes of their structured metadata.
    pub metadata_bytes: u64,
    /// Lines that the filters kept.
    pub kept_lines: u64,
}

/// Each warning once, and the number of those that find no room.
fn summed(mut warnings: Vec<String>) -> Vec<String> {
    warnings.sort_unstable();
    warnings.dedup();
    let more = warnings.len().saturating_sub(MAX_WARNINGS);
    warnings.truncate(MAX_WARNINGS);
    warnings.extend((more > 0).then(|| format!("and {more} more")));
    warnings
}

impl Selection<'_> {
    /// Reads the streams one label set after another and keeps the best `limit` entries in a heap. Once it is full, the
    /// range shrinks to what could still displace its worst entry, so `limit` entries of the heap and `limit` of one
    /// source are held; while sources with equal labels are merged, another `limit`.
    pub(super) fn run(&self, streams: Vec<Arc<dyn StreamSource>>) -> Result<Selected, QueryError> {
        let groups = self.groups(streams);
        let mut stats = Stats { streams: groups.len() as u64, ..Stats::default() };
        let mut best = Best::new(self.limit);
        let mut warnings = Vec::new();
        for group in &groups {
            let (start, end) = self.window(&best);
            if start >= end || group.first >= end || group.last < start {
                continue;
            }
            let entries = self.read(group, start, end, &mut stats, &mut warnings)?;
            best.offer(group.rank, entries, |timestamp| self.order(timestamp))?;
        }
        let mut labels: Vec<(u32, &Arc<LabelSet>)> = groups.iter().map(|g| (g.rank, &g.labels)).collect();
        labels.sort_unstable_by_key(|(rank, _)| *rank);
        let entries = best.into_entries().filter_map(|(rank, entry)| {
            let (_, labels) = labels.get(rank as usize)?;
            Some(Hit { labels: Arc::clone(labels), entry })
        });
        Ok(Selected { entries: entries.collect(), stats, warnings: summed(warnings) })
    }

    /// Puts sources with equal labels together, in their order, and sorts the groups so that those that reach nearest
    /// to the wanted end of the range come first: they fill the heap with what stays.
    fn groups(&self, streams: Vec<Arc<dyn StreamSource>>) -> Vec<Group> {
        let mut by_text: BTreeMap<String, Vec<Arc<dyn StreamSource>>> = BTreeMap::new();
        for stream in streams {
            match by_text.get_mut(stream.labels().text()) {
                Some(sources) => sources.push(stream),
                None => {
                    by_text.insert(stream.labels().text().to_string(), vec![stream]);
                }
            }
        }
        let mut groups: Vec<Group> =
            by_text.into_values().zip(0..).filter_map(|(sources, rank)| Group::new(rank, sources)).collect();
        match self.direction {
            Direction::Forward => groups.sort_by_key(|g| g.first),
            Direction::Backward => groups.sort_by_key(|g| !g.last),
        }
        groups
    }

    /// The part of the range whose entries could still be part of the result.
    fn window(&self, best: &Best) -> (i64, i64) {
        match (best.worst(), self.direction) {
            (None, _) => (self.start, self.end),
            (Some(order), Direction::Forward) => (self.start, self.end.min(order.saturating_add(1))),
            (Some(order), Direction::Backward) => (self.start.max(!order), self.end),
        }
    }

    /// Maps timestamps so that what is wanted first is lowest. Its own inverse: `!t` is `-t - 1`, and cannot overflow.
    fn order(&self, timestamp: i64) -> i64 {
        match self.direction {
            Direction::Forward => timestamp,
            Direction::Backward => !timestamp,
        }
    }

    fn read(
        &self,
        group: &Group,
        start: i64,
        end: i64,
        stats: &mut Stats,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<LogEntry>, QueryError> {
        let forward = self.direction == Direction::Forward;
        let mut keep = |line: &[u8], metadata: &[(&[u8], &[u8])]| {
            stats.lines += 1;
            stats.line_bytes += line.len() as u64;
            stats.metadata_bytes += metadata.iter().map(|(n, v)| (n.len() + v.len()) as u64).sum::<u64>();
            let kept = self.query.keeps(line);
            stats.kept_lines += u64::from(kept);
            kept
        };
        let mut merged = Vec::new();
        for source in &group.sources {
            let newer = source.select(start, end, forward, self.limit, &mut keep, warnings)?;
            merged = if merged.is_empty() { newer } else { self.merge(merged, newer) };
        }
        Ok(merged)
    }

    /// Merges the entries of two sources with equal labels. What both hold stays where it comes first in the order of
    /// reading; so a lower limit gives a prefix of what a higher one gives, although the sources cut at it too.
    fn merge(&self, older: Vec<LogEntry>, newer: Vec<LogEntry>) -> Vec<LogEntry> {
        let mut merged = Vec::with_capacity(older.len().max(newer.len()));
        let (mut older, mut newer) = (older.into_iter().peekable(), newer.into_iter().peekable());
        while merged.len() < self.limit {
            let next = [older.peek(), newer.peek()].into_iter().flatten().map(|e| self.order(e.timestamp)).min();
            let Some(order) = next else { break };
            let mut first = take_timestamp(&mut older, self.order(order));
            let mut second = take_timestamp(&mut newer, self.order(order));
            if self.direction == Direction::Backward {
                std::mem::swap(&mut first, &mut second);
            }
            drop_repeated(&first, &mut second);
            merged.append(&mut first);
            merged.append(&mut second);
        }
        merged.truncate(self.limit);
        merged
    }
}

fn take_timestamp(entries: &mut Peekable<impl Iterator<Item = LogEntry>>, timestamp: i64) -> Vec<LogEntry> {
    std::iter::from_fn(|| entries.next_if(|e| e.timestamp == timestamp)).collect()
}

/// Drops from `entries` what `seen`, all of the same timestamp, holds already.
fn drop_repeated(seen: &[LogEntry], entries: &mut Vec<LogEntry>) {
    if seen.is_empty() || entries.is_empty() {
        return;
    }
    let seen: HashSet<(&Bytes, &Metadata)> = seen.iter().map(|e| (&e.line, &e.metadata)).collect();
    entries.retain(|e| !seen.contains(&(&e.line, &e.metadata)));
}

/// The sources of one label set.
struct Group {
    /// Position of the label text among all.
    rank: u32,
    labels: Arc<LabelSet>,
    /// Oldest first.
    sources: Vec<Arc<dyn StreamSource>>,
    /// Lowest and highest timestamp, inclusive.
    first: i64,
    last: i64,
}

impl Group {
    /// `None` without sources.
    fn new(rank: u32, sources: Vec<Arc<dyn StreamSource>>) -> Option<Self> {
        let labels = Arc::clone(sources.first()?.labels());
        let first = sources.iter().map(|s| s.bounds().0).min()?;
        let last = sources.iter().map(|s| s.bounds().1).max()?;
        Some(Self { rank, labels, sources, first, last })
    }
}

/// The best entries so far; the worst of them is at the top of the heap.
struct Best {
    heap: BinaryHeap<Ranked>,
    limit: usize,
    /// Bytes of the heap's entries.
    bytes: usize,
}

impl Best {
    fn new(limit: usize) -> Self {
        Self { heap: BinaryHeap::new(), limit, bytes: 0 }
    }

    /// The order of the worst entry, if the heap is full.
    fn worst(&self) -> Option<i64> {
        if self.heap.len() < self.limit { None } else { self.heap.peek().map(|r| r.key.0) }
    }

    /// Offers the entries of one group, best first.
    fn offer(&mut self, rank: u32, entries: Vec<LogEntry>, order: impl Fn(i64) -> i64) -> Result<(), QueryError> {
        for (entry, index) in entries.into_iter().zip(0..) {
            let ranked = Ranked { key: (order(entry.timestamp), rank, index), entry };
            if self.heap.len() >= self.limit {
                if self.heap.peek().is_none_or(|worst| *worst <= ranked) {
                    return Ok(());
                }
                self.bytes -= self.heap.pop().map_or(0, |r| cost(&r.entry));
            }
            self.bytes += cost(&ranked.entry);
            if self.bytes > MAX_RESULT_BYTES {
                return Err(QueryError::bad_request(format!(
                    "the query's result is larger than {} MiB: lower the limit ({}) or narrow the time range",
                    MAX_RESULT_BYTES >> 20,
                    self.limit
                )));
            }
            self.heap.push(ranked);
        }
        Ok(())
    }

    /// Ranks and entries, best first.
    fn into_entries(self) -> impl Iterator<Item = (u32, LogEntry)> {
        self.heap.into_sorted_vec().into_iter().map(|r| (r.key.1, r.entry))
    }
}

fn cost(entry: &LogEntry) -> usize {
    entry.line.len() + entry.metadata.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>()
}

/// An entry in the heap, ordered by its key alone.
struct Ranked {
    /// Order of the timestamp, rank of the labels, position in the stream.
    key: (i64, u32, u32),
    entry: LogEntry,
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Ranked {}
