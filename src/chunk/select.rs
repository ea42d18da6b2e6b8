//! Reading heads and blocks together.
//!
//! A merge over sources that are opened one by one: a source waits in the heap under the best timestamp that it can
//! have, and is decoded when the merge gets there. All entries of one timestamp are looked at together, so that equal
//! ones are found and the order is that of arrival in both directions.

use super::block::{OpenBlock, log_entry};
use super::{Block, BlockMeta, ChunkError, Head, Symbols};
use crate::model::LogEntry;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashSet};
use std::ops::Range;
use std::sync::Arc;

/// A sealed block, in memory or on a disk.
pub trait BlockSource: Send + Sync {
    /// What is known without the bytes.
    fn meta(&self) -> &BlockMeta;

    /// The block with its bytes, read now if they are not in memory.
    ///
    /// # Errors
    /// The bytes cannot be read, or are not those that were written.
    fn load(&self) -> Result<Block, ChunkError>;
}

impl BlockSource for Block {
    fn meta(&self) -> &BlockMeta {
        Block::meta(self)
    }

    fn load(&self) -> Result<Block, ChunkError> {
        Ok(self.clone())
    }
}

/// A piece of a stream.
#[derive(Clone)]
pub enum Part {
    /// A sealed block and the symbols of its chunk.
    Block(Arc<dyn BlockSource>, Arc<Symbols>),
    /// A head, or a slice of one.
    Head(Arc<Head>),
}

impl Part {
    /// Lowest and highest timestamp, both inclusive; `None` without entries.
    pub fn bounds(&self) -> Option<(i64, i64)> {
        match self {
            Part::Block(block, _) => {
                let meta = block.meta();
                (meta.entries > 0).then_some((meta.min_timestamp, meta.max_timestamp))
            }
            Part::Head(head) => head.bounds(),
        }
    }
}

/// Which entries to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Lowest timestamp, inclusive.
    pub start: i64,
    /// Highest timestamp, exclusive.
    pub end: i64,
    /// Oldest first, or newest first?
    pub forward: bool,
    /// Most entries of the result.
    pub limit: usize,
}

/// Does a query want an entry with this line and this metadata?
type Keep<'k> = dyn FnMut(&[u8], &[(&[u8], &[u8])]) -> bool + 'k;

/// Reads the entries of all parts that `keep` accepts, at most `limit`, in timestamp order.
///
/// `parts` are in the order of arrival, and so are entries of equal timestamp; backward is exactly the reverse of
/// forward. Entries of equal timestamp, line and metadata come once, at the place of the first, and count once. Blocks
/// are decoded when the merge reaches them and dropped behind it: memory holds the result, the blocks that overlap,
/// and the entries of one timestamp.
///
/// # Errors
/// A block that had to be read is damaged; parts that the result does not need are not looked at.
pub fn select(parts: &[Part], selection: &Selection, keep: &mut Keep<'_>) -> Result<Vec<LogEntry>, ChunkError> {
    let mut unreadable = Vec::new();
    let result = select_readable(parts, selection, keep, &mut unreadable);
    unreadable.into_iter().next().map_or(Ok(result), Err)
}

/// As [`select`], past blocks that cannot be read: why goes to `unreadable`, once for each of them.
pub fn select_readable(
    parts: &[Part],
    selection: &Selection,
    keep: &mut Keep<'_>,
    unreadable: &mut Vec<ChunkError>,
) -> Vec<LogEntry> {
    let mut result = Vec::new();
    let mut merge = Merge::new(parts, selection);
    while result.len() < selection.limit {
        let instant = merge.next_instant(unreadable);
        if instant.is_empty() {
            break;
        }
        take(&instant, selection, keep, &mut result);
        merge.put_back(instant);
    }
    result
}

/// Appends the wanted entries of one timestamp to the result.
fn take(instant: &[Run<'_>], selection: &Selection, keep: &mut Keep<'_>, result: &mut Vec<LogEntry>) {
    let mut entries: Vec<Entry<'_>> = instant.iter().flat_map(Run::entries).collect();
    if entries.len() > 1 {
        drop_duplicates(&mut entries);
    }
    if !selection.forward {
        entries.reverse();
    }
    let wanted = entries.into_iter().filter(|e| keep(e.line, &e.metadata)).take(selection.limit - result.len());
    result.extend(wanted.map(|e| log_entry(e.timestamp, e.line, &e.metadata)));
}

/// An entry in a decoded part.
#[derive(PartialEq, Eq, Hash)]
struct Entry<'a> {
    timestamp: i64,
    line: &'a [u8],
    metadata: Vec<(&'a [u8], &'a [u8])>,
}

/// Keeps the first of equal entries.
fn drop_duplicates(entries: &mut Vec<Entry<'_>>) {
    let mut seen = HashSet::with_capacity_and_hasher(entries.len(), ahash::RandomState::new());
    let first: Vec<bool> = entries.iter().map(|e| seen.insert(e)).collect();
    drop(seen);
    let mut first = first.into_iter();
    entries.retain(|_| first.next().unwrap_or(true));
}

/// The parts that are not read to their end, best timestamp first.
struct Merge<'a> {
    parts: &'a [Part],
    selection: &'a Selection,
    sources: BinaryHeap<Source<'a>>,
}

impl<'a> Merge<'a> {
    fn new(parts: &'a [Part], selection: &'a Selection) -> Self {
        let waiting = parts.iter().enumerate().filter_map(|(part, p)| {
            let (min, max) = p.bounds()?;
            let inside = selection.start < selection.end && max >= selection.start && min < selection.end;
            let best =
                if selection.forward { min.max(selection.start) } else { max.min(selection.end.saturating_sub(1)) };
            inside.then(|| Source { key: key(best, selection.forward), part, cursor: None })
        });
        Self { parts, selection, sources: waiting.collect() }
    }

    /// The runs of the best timestamp that is left, in the order of arrival; empty at the end.
    fn next_instant(&mut self, unreadable: &mut Vec<ChunkError>) -> Vec<Run<'a>> {
        let mut instant: Vec<Run<'a>> = Vec::new();
        while let Some(source) = self.pop(instant.first().map(|run| run.key)) {
            match source.cursor {
                Some(cursor) => instant.push(cursor.into_run(source.key, source.part)),
                // Opening tells the real timestamp, which is the same or worse: back into the heap with it.
                None => unreadable.extend(self.open(source.part).err()),
            }
        }
        instant
    }

    /// Takes the best source, if it has a given key or none is given.
    fn pop(&mut self, key: Option<i64>) -> Option<Source<'a>> {
        let best = self.sources.peek()?.key;
        if key.is_none_or(|k| k == best) { self.sources.pop() } else { None }
    }

    fn open(&mut self, part: usize) -> Result<(), ChunkError> {
        if let Some(p) = self.parts.get(part) {
            let cursor = Cursor::open(p, self.selection)?;
            self.push(part, cursor);
        }
        Ok(())
    }

    fn put_back(&mut self, instant: Vec<Run<'a>>) {
        for run in instant {
            self.push(run.part, run.cursor);
        }
    }

    fn push(&mut self, part: usize, cursor: Box<Cursor<'a>>) {
        if let Some(timestamp) = cursor.timestamp() {
            self.sources.push(Source { key: key(timestamp, cursor.forward), part, cursor: Some(cursor) });
        }
    }
}

/// Timestamps as keys of which the smallest comes first.
fn key(timestamp: i64, forward: bool) -> i64 {
    if forward { timestamp } else { !timestamp }
}

/// A part in the heap, under its best timestamp.
struct Source<'a> {
    key: i64,
    part: usize,
    /// Absent until the part is decoded; the key is then a bound.
    cursor: Option<Box<Cursor<'a>>>,
}

impl Ord for Source<'_> {
    /// The heap gives the greatest: smallest key, then earliest arrival.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.key, other.part).cmp(&(self.key, self.part))
    }
}

impl PartialOrd for Source<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Source<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Source<'_> {}

/// What is left to read of a decoded part.
struct Cursor<'a> {
    entries: Entries<'a>,
    /// Positions in the order of timestamp and arrival.
    left: Range<usize>,
    forward: bool,
}

/// The entries of a decoded part, in the order of timestamp and arrival.
enum Entries<'a> {
    Block(OpenBlock<'a>),
    Head(&'a Head, Vec<u32>),
}

impl<'a> Cursor<'a> {
    fn open(part: &'a Part, selection: &Selection) -> Result<Box<Self>, ChunkError> {
        let Selection { start, end, forward, .. } = *selection;
        let (entries, left) = match part {
            Part::Block(block, symbols) => {
                let open = block.load()?.open(symbols)?;
                let left = open.position(start)..open.position(end);
                (Entries::Block(open), left)
            }
            Part::Head(head) => {
                let order = head.order(start..end);
                let left = 0..order.len();
                (Entries::Head(head, order), left)
            }
        };
        Ok(Box::new(Self { entries, left, forward }))
    }

    /// The best timestamp that is left.
    fn timestamp(&self) -> Option<i64> {
        let best = if self.forward { self.left.start } else { self.left.end.checked_sub(1)? };
        (!self.left.is_empty()).then(|| self.entries.timestamp(best))
    }

    /// Takes the entries of the best timestamp.
    fn into_run(mut self: Box<Self>, key: i64, part: usize) -> Run<'a> {
        let best = self.timestamp();
        let same = |position: &usize| Some(self.entries.timestamp(*position)) == best;
        let Range { start, end } = self.left.clone();
        let taken = if self.forward {
            start..start + (start..end).take_while(same).count()
        } else {
            end - (start..end).rev().take_while(same).count()..end
        };
        self.left = if self.forward { taken.end..end } else { start..taken.start };
        Run { key, part, taken, cursor: self }
    }
}

impl Entries<'_> {
    fn timestamp(&self, position: usize) -> i64 {
        match self {
            Entries::Block(open) => open.timestamp(position),
            Entries::Head(head, order) => order.get(position).map_or(i64::MIN, |p| head.timestamp(*p)),
        }
    }

    fn get(&self, position: usize) -> Option<Entry<'_>> {
        match self {
            Entries::Block(open) => Some(Entry {
                timestamp: open.timestamp(position),
                line: open.line(position),
                metadata: open.metadata(position).collect(),
            }),
            Entries::Head(head, order) => {
                let entry = head.get(*order.get(position)? as usize)?;
                Some(Entry { timestamp: entry.timestamp, line: entry.line, metadata: entry.metadata().collect() })
            }
        }
    }
}

/// The entries of one timestamp in one part.
struct Run<'a> {
    key: i64,
    part: usize,
    taken: Range<usize>,
    cursor: Box<Cursor<'a>>,
}

impl Run<'_> {
    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.taken.clone().filter_map(|position| self.cursor.entries.get(position))
    }
}
