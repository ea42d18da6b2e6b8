use super::{MAX_PAYLOAD, Symbols};
use std::ops::RangeBounds;

/// Below this many bytes a buffer grows by a quarter: small heads are many, and what they do not use adds up.
const SMALL: usize = 8 * 1024;
/// Below this many bytes a buffer doubles; above, it grows to [`FULL`], and then by a quarter.
const STEP: usize = 64 * 1024;
/// Loki's block size and a long line.
const FULL: usize = 288 * 1024;
/// `Record::metadata` of an entry without structured metadata.
const NO_METADATA: u32 = 0;
/// Most bytes that an entry adds to a block's payload beside its line and its pairs: timestamp, two lengths, a count.
const ENTRY_OVERHEAD: usize = 10 + 5 + 5 + 5;
/// Most bytes that a pair of symbols adds to a block's payload.
const PAIR_OVERHEAD: usize = 2 * 5;
/// What Loki counts for a pair of symbols.
const PAIR_SIZE: usize = 8;

/// One entry's place in a head.
#[derive(Clone, Copy, Debug)]
struct Record {
    timestamp: i64,
    /// End of the line; it begins where the line before it ends.
    line_end: u32,
    /// 1 + the position of its metadata in `sets`, or [`NO_METADATA`].
    metadata: u32,
}

/// The open end of a stream: entries in the order of their arrival, uncompressed.
///
/// Appending is a copy of the line and 16 bytes of index. Equal lists of metadata that end in the same value are
/// stored once, so `detected_level` costs nothing per entry. A new head holds no memory. To hand a head over to be
/// sealed, `std::mem::take` it; to use its memory again, [`Head::clear`] it.
#[derive(Clone, Debug, Default)]
pub struct Head {
    records: Vec<Record>,
    lines: Vec<u8>,
    symbols: Symbols,
    /// Lists of metadata: number of pairs, then name and value of each.
    sets: Vec<u32>,
    /// By symbol: 1 + position in `sets` of the newest list whose last value it is, or [`NO_METADATA`].
    newest_set: Vec<u32>,
    /// Pairs of all entries, shared ones counted for each.
    pairs: usize,
    min: i64,
    max: i64,
    /// Is some timestamp below the one before it?
    unordered: bool,
}

impl Head {
    /// An empty head.
    pub fn new() -> Self {
        Self::default()
    }

    /// The id of a metadata name or value, for [`Head::append`] on this head.
    ///
    /// # Panics
    /// As [`Symbols::push`].
    pub fn intern(&mut self, symbol: &[u8]) -> u32 {
        self.symbols.intern(symbol)
    }

    /// Can an entry with a line of `line_len` bytes and this many metadata pairs be appended? Beyond
    /// [`MAX_PAYLOAD`] the head has to be sealed first.
    pub fn has_room(&self, line_len: usize, pairs: usize) -> bool {
        let more = line_len.saturating_add(ENTRY_OVERHEAD).saturating_add(pairs.saturating_mul(PAIR_OVERHEAD));
        self.largest_payload().saturating_add(more) <= MAX_PAYLOAD
    }

    /// Makes room for entries that come together, so that their buffers grow once.
    pub fn reserve(&mut self, entries: usize, line_bytes: usize) {
        reserve(&mut self.lines, line_bytes);
        reserve(&mut self.records, entries);
    }

    /// Appends an entry. `metadata` holds (name, value) ids that [`Head::intern`] of this head gave.
    ///
    /// # Panics
    /// An id is unknown, or there is no room ([`Head::has_room`]).
    pub fn append(&mut self, timestamp: i64, line: &[u8], metadata: &[(u32, u32)]) {
        assert!(self.has_room(line.len(), metadata.len()), "a head holds at most {MAX_PAYLOAD} bytes");
        let metadata = self.place_metadata(metadata);
        reserve(&mut self.lines, line.len());
        self.lines.extend_from_slice(line);
        self.note_time(timestamp);
        reserve(&mut self.records, 1);
        self.records.push(Record { timestamp, line_end: self.lines.len() as u32, metadata });
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Is there no entry? An empty line is an entry.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes of the lines, and 8 for each metadata pair: what Loki compares with `chunk_block_size`.
    pub fn uncompressed_size(&self) -> usize {
        self.lines.len() + self.pairs * PAIR_SIZE
    }

    /// Heap bytes held, unused capacity included.
    pub fn memory(&self) -> usize {
        self.records.capacity() * size_of::<Record>()
            + self.lines.capacity()
            + (self.sets.capacity() + self.newest_set.capacity()) * size_of::<u32>()
            + self.symbols.memory()
    }

    /// Lowest and highest timestamp, both inclusive; `None` without entries.
    pub fn bounds(&self) -> Option<(i64, i64)> {
        (!self.is_empty()).then_some((self.min, self.max))
    }

    /// Are the timestamps in the order of arrival?
    pub fn is_ordered(&self) -> bool {
        !self.unordered
    }

    /// Names and values of the metadata of all entries.
    pub fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    /// The entry that was appended last.
    pub fn last(&self) -> Option<EntryRef<'_>> {
        self.get(self.len().checked_sub(1)?)
    }

    /// The entry at a position in the order of arrival.
    pub fn get(&self, position: usize) -> Option<EntryRef<'_>> {
        let record = self.records.get(position)?;
        let start = position.checked_sub(1).and_then(|before| self.records.get(before)).map_or(0, |r| r.line_end);
        let line = self.lines.get(start as usize..record.line_end as usize)?;
        Some(EntryRef { timestamp: record.timestamp, line, ids: self.set(record.metadata), symbols: &self.symbols })
    }

    /// All entries in the order of arrival.
    pub fn iter(&self) -> impl Iterator<Item = EntryRef<'_>> {
        (0..self.len()).filter_map(|position| self.get(position))
    }

    /// A copy with only the entries of `start <= timestamp < end`, in the order of arrival.
    pub fn slice(&self, start: i64, end: i64) -> Head {
        let mut copy = Head::new();
        let mut ids: Vec<Option<u32>> = vec![None; self.symbols.len()];
        let mut pairs = Vec::new();
        for entry in self.iter().filter(|e| start <= e.timestamp && e.timestamp < end) {
            pairs.clear();
            pairs.extend(entry.ids().map(|(name, value)| {
                (copy.adopt(&mut ids, name, &self.symbols), copy.adopt(&mut ids, value, &self.symbols))
            }));
            copy.append(entry.timestamp, entry.line, &pairs);
        }
        copy
    }

    /// Removes all entries and symbols but keeps the memory.
    pub fn clear(&mut self) {
        self.records.clear();
        self.lines.clear();
        self.symbols.clear();
        self.sets.clear();
        self.newest_set.clear();
        self.pairs = 0;
        self.unordered = false;
    }

    /// Most bytes that the block's payload can have.
    pub(super) fn largest_payload(&self) -> usize {
        self.lines.len() + self.len() * ENTRY_OVERHEAD + self.pairs * PAIR_OVERHEAD
    }

    /// The timestamp at a position; positions come from this head's own index.
    pub(super) fn timestamp(&self, position: u32) -> i64 {
        self.records.get(position as usize).map_or(i64::MIN, |r| r.timestamp)
    }

    /// Positions of the entries whose timestamp is in a range, by timestamp and then arrival.
    pub(super) fn order(&self, range: impl RangeBounds<i64>) -> Vec<u32> {
        let inside = |r: &Record| range.contains(&r.timestamp);
        let mut order: Vec<u32> = (0u32..).zip(&self.records).filter(|(_, r)| inside(r)).map(|(i, _)| i).collect();
        if self.unordered {
            order.sort_by_key(|position| self.timestamp(*position));
        }
        order
    }

    /// The id in this head of a symbol of another head; `ids` remembers what was asked.
    fn adopt(&mut self, ids: &mut [Option<u32>], id: u32, theirs: &Symbols) -> u32 {
        match ids.get_mut(id as usize) {
            Some(Some(known)) => *known,
            Some(unknown) => *unknown.insert(self.symbols.intern(theirs.get(id).unwrap_or_default())),
            None => unreachable!("append lets no unknown id in"),
        }
    }

    fn note_time(&mut self, timestamp: i64) {
        match self.records.last() {
            None => (self.min, self.max) = (timestamp, timestamp),
            Some(last) => {
                self.unordered |= timestamp < last.timestamp;
                self.min = self.min.min(timestamp);
                self.max = self.max.max(timestamp);
            }
        }
    }

    /// Stores a list of pairs, or finds the newest one that ends in the same value if it is equal.
    fn place_metadata(&mut self, metadata: &[(u32, u32)]) -> u32 {
        let Some((_, key)) = metadata.last() else { return NO_METADATA };
        self.pairs += metadata.len();
        let key = *key as usize;
        let seen = self.newest_set.get(key).copied().unwrap_or(NO_METADATA);
        if seen != NO_METADATA && self.set(seen).iter().copied().eq(metadata.iter().map(|(n, v)| [*n, *v])) {
            return seen;
        }
        self.store_metadata(key, metadata)
    }

    fn store_metadata(&mut self, key: usize, metadata: &[(u32, u32)]) -> u32 {
        let known = self.symbols.len() as u32;
        assert!(metadata.iter().all(|(n, v)| n.max(v) < &known), "metadata ids come from this head's intern");
        let place = self.sets.len() as u32 + 1;
        reserve(&mut self.sets, 1 + 2 * metadata.len());
        self.sets.push(metadata.len() as u32);
        self.sets.extend(metadata.iter().flat_map(|(n, v)| [*n, *v]));
        if self.newest_set.len() <= key {
            reserve(&mut self.newest_set, key + 1);
            self.newest_set.resize(key + 1, NO_METADATA);
        }
        if let Some(newest) = self.newest_set.get_mut(key) {
            *newest = place;
        }
        place
    }

    /// The ids of a list that [`Head::store_metadata`] placed.
    fn set(&self, place: u32) -> &[[u32; 2]] {
        let list = (place as usize).checked_sub(1).and_then(|at| self.sets.get(at..)).and_then(<[u32]>::split_first);
        let Some((count, rest)) = list else { return &[] };
        rest.as_chunks().0.get(..*count as usize).unwrap_or_default()
    }
}

/// Makes room in few steps, because each one copies and touches new pages: most heads that pass [`STEP`] go on to be
/// sealed at Loki's block size, so the next step holds that. Beyond it, no buffer is half empty.
fn reserve<T>(buffer: &mut Vec<T>, additional: usize) {
    if buffer.capacity() - buffer.len() >= additional {
        return;
    }
    let (held, item) = (buffer.capacity() * size_of::<T>(), size_of::<T>());
    if held < SMALL {
        buffer.reserve_exact(additional.max(buffer.capacity() / 4));
    } else if held < STEP {
        buffer.reserve(additional);
    } else if held < FULL {
        buffer.reserve_exact(additional.max(FULL / item - buffer.len()));
    } else {
        buffer.reserve_exact(additional.max(buffer.capacity() / 4));
    }
}

/// An entry of a [`Head`], borrowed.
#[derive(Clone, Copy, Debug)]
pub struct EntryRef<'a> {
    /// Nanoseconds since the Unix epoch.
    pub timestamp: i64,
    /// The line's bytes.
    pub line: &'a [u8],
    ids: &'a [[u32; 2]],
    symbols: &'a Symbols,
}

impl<'a> EntryRef<'a> {
    /// Names and values of the structured metadata, in the order in which they were pushed.
    pub fn metadata(&self) -> impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let symbols = self.symbols;
        let text = move |id| symbols.get(id).unwrap_or_default();
        self.ids.iter().map(move |[name, value]| (text(*name), text(*value)))
    }

    /// Ids of names and values in the head's symbols.
    pub(super) fn ids(&self) -> impl ExactSizeIterator<Item = (u32, u32)> + use<'a> {
        self.ids.iter().map(|[name, value]| (*name, *value))
    }

    /// Is it the same entry: equal timestamp, line and metadata in the same order?
    pub fn equals<'b>(
        &self,
        timestamp: i64,
        line: &[u8],
        metadata: impl IntoIterator<Item = (&'b [u8], &'b [u8])>,
    ) -> bool {
        let mut mine = self.metadata();
        self.timestamp == timestamp
            && self.line == line
            && metadata.into_iter().all(|pair| mine.next() == Some(pair))
            && mine.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(head: &mut Head, value: &str) -> (u32, u32) {
        (head.intern(b"detected_level"), head.intern(value.as_bytes()))
    }

    #[test]
    fn an_empty_line_is_an_entry() {
        let mut h = Head::new();
        assert_eq!((h.is_empty(), h.memory(), h.bounds(), h.last().is_none()), (true, 0, None, true));
        h.append(5, b"", &[]);
        assert_eq!((h.is_empty(), h.len(), h.uncompressed_size(), h.bounds()), (false, 1, 0, Some((5, 5))));
        assert!(h.last().is_some_and(|e| e.equals(5, b"", [])));
    }

    #[test]
    fn last_is_the_newest_arrival_not_the_highest_timestamp() {
        let mut h = Head::new();
        let info = level(&mut h, "info");
        h.append(10, b"a", &[info]);
        assert!(h.is_ordered());
        h.append(-3, b"bc", &[]);
        assert_eq!(h.bounds(), Some((-3, 10)));
        assert!(!h.is_ordered());
        let last = h.last().unwrap();
        assert!(last.equals(-3, b"bc", []));
        assert!(!last.equals(-3, b"bd", []));
        assert!(h.get(0).unwrap().equals(10, b"a", [(&b"detected_level"[..], &b"info"[..])]));
        assert!(!h.get(0).unwrap().equals(10, b"a", [(&b"detected_level"[..], &b"warn"[..])]));
        assert!(h.get(2).is_none());
        assert_eq!(h.uncompressed_size(), 3 + 8);
    }

    #[test]
    fn alternating_levels_share_their_metadata() {
        let mut h = Head::new();
        for i in 0..1000 {
            let pair = level(&mut h, if i % 3 == 0 { "info" } else { "error" });
            h.append(i, b"line", &[pair]);
        }
        assert_eq!(h.sets.len(), 6);
        assert_eq!(h.uncompressed_size(), 4000 + 8000);
        let trace = (h.intern(b"trace_id"), h.intern(b"abc"));
        let info = level(&mut h, "info");
        h.append(0, b"", &[trace, info]);
        h.append(1, b"", &[info]);
        let metadata: Vec<usize> = h.iter().skip(999).map(|e| e.metadata().len()).collect();
        assert_eq!(metadata, [1, 2, 1]);
    }

    #[test]
    fn slice_keeps_arrival_order_and_only_its_own_symbols() {
        let mut h = Head::new();
        for (ts, line, value) in [(3, "c", "x"), (1, "a", "y"), (2, "b", "z"), (2, "b2", "y"), (4, "d", "w")] {
            let pair = level(&mut h, value);
            h.append(ts, line.as_bytes(), &[pair]);
        }
        let s = h.slice(1, 3);
        let lines: Vec<_> = s.iter().map(|e| (e.timestamp, e.line)).collect();
        assert_eq!(lines, [(1, &b"a"[..]), (2, b"b"), (2, b"b2")]);
        let values: Vec<_> = s.iter().flat_map(|e| e.metadata()).map(|(_, v)| v).collect();
        assert_eq!(values, [b"y", b"z", b"y"]);
        assert_eq!(s.symbols().len(), 3);
        assert!(h.slice(5, 100).is_empty());
        assert_eq!(h.slice(i64::MIN, i64::MAX).uncompressed_size(), h.uncompressed_size());
    }

    #[test]
    fn a_cleared_head_is_as_new_but_keeps_its_memory() {
        let mut h = Head::new();
        let pair = level(&mut h, "info");
        h.append(2, b"a", &[pair]);
        h.append(1, b"b", &[pair]);
        let held = h.memory();
        h.clear();
        assert_eq!((h.len(), h.uncompressed_size(), h.bounds(), h.is_ordered()), (0, 0, None, true));
        assert_eq!(h.memory(), held);
        let pair = level(&mut h, "warn");
        h.append(7, b"c", &[pair]);
        assert!(h.last().unwrap().equals(7, b"c", [(&b"detected_level"[..], &b"warn"[..])]));
        assert_eq!(h.bounds(), Some((7, 7)));
    }

    #[test]
    fn large_heads_are_not_half_empty() {
        let mut h = Head::new();
        for i in 0..20_000 {
            h.append(i, &[b'x'; 100], &[]);
        }
        let used = 20_000 * (100 + size_of::<Record>());
        assert!(h.memory() < used * 5 / 4 + 2 * FULL, "{} for {used}", h.memory());
    }

    #[test]
    #[should_panic(expected = "metadata ids come from this head's intern")]
    fn unknown_metadata_ids_are_refused() {
        Head::new().append(0, b"", &[(0, 1)]);
    }

    #[test]
    fn room_is_bounded_by_what_a_read_decompresses() {
        let h = Head::new();
        assert!(h.has_room(MAX_PAYLOAD - ENTRY_OVERHEAD, 0));
        assert!(!h.has_room(MAX_PAYLOAD, 0));
        assert!(!h.has_room(0, usize::MAX));
    }
}
