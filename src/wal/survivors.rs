//! Lines of damaged records and blocks that are not lost, because they are in another place.

use super::blocks::FoundBlocks;
use super::format::{FLAG_CARRIED, Kind};
use super::plan::{Loss, Plan};
use super::ranges::{Ranges, count};
use super::record::{SeriesDef, TableRow, Tables, decode_control};
use super::retention::Hold;
use super::scan::SegmentScan;
use ahash::{AHashMap, AHashSet};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

/// Follows the seqs of all streams through a log with lost records, in the order of their LSNs. Memory grows with streams
/// and holes.
pub struct Survivors {
    /// Lost LSNs, in order.
    holes: Vec<Range<u64>>,
    /// The log begins with its first record, so every stream begins with seq 0.
    from_zero: bool,
    /// Seqs in sound records.
    logged: AHashMap<u64, Ranges>,
    /// Where a stream was seen last: the LSN behind it, and the next seq.
    last: AHashMap<u64, (u64, u64)>,
    /// Seqs that were given between two sound records with a hole between them: lost records had them.
    gone: AHashMap<u64, Ranges>,
    /// What carried records cover, from their first seq of a stream to the last: between were duplicates.
    carried: AHashMap<u64, Ranges>,
    /// The carried record that a stream was last seen in: its LSN, and the seq behind its last row.
    carrying: AHashMap<u64, (u64, u64)>,
    /// By stream: all smaller seqs are in blocks or in the object store.
    settled: AHashMap<u64, u64>,
}

/// A block that counts or did, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSeqs {
    /// Its stream.
    pub stream: u64,
    /// Number of its chunk in the stream.
    pub chunk: u64,
    /// Its seqs.
    pub seqs: Range<u64>,
}

/// What is lost with segments of the block log of which nothing says what they held: the file is missing, or its header,
/// or the heads of its records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LostSegments {
    /// Streams and seqs that were in blocks and are nowhere any more.
    pub seqs: Vec<(u64, Range<u64>)>,
    /// How many they are. A line that was a duplicate of the one before has a seq too.
    pub lines: u64,
    /// Further seqs that are nowhere: lost, or in the object store, or of duplicates behind a block, which are stored nowhere.
    pub doubtful: u64,
    /// More may have been there: of streams that nothing names any more, or behind the last that is known of a stream.
    pub unknown: bool,
}

impl LostSegments {
    /// Are `lines` all there can be?
    pub fn is_exact(&self) -> bool {
        self.doubtful == 0 && !self.unknown
    }
}

/// A sentence for operators.
impl fmt::Display for LostSegments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lines, doubtful, unknown, .. } = self;
        let least = if self.is_exact() { "" } else { "at least " };
        write!(
            f,
            "with segments of the block log {least}{lines} lines are lost that are not in the write-ahead log either"
        )?;
        if *doubtful > 0 {
            write!(f, "; {doubtful} more are, unless they are in the object store or were duplicates")?;
        }
        if *unknown {
            f.write_str("; nothing is left to tell of streams, or of ends of streams, that were nowhere else")?;
        }
        Ok(())
    }
}

/// A block whose bytes are damaged, and what is lost with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostBlock {
    /// Segment of the block log.
    pub segment: u64,
    /// Bytes of its record.
    pub bytes: Range<u64>,
    /// Its stream.
    pub stream: u64,
    /// Seqs that are nowhere else.
    pub seqs: Vec<Range<u64>>,
    /// Lines that are lost: no more than were stored.
    pub lines: u64,
}

impl Survivors {
    /// Nothing is seen yet of the log that this plan is about.
    pub fn new(plan: &Plan) -> Self {
        Self::around(plan.loss.lsns.clone(), plan)
    }

    /// As [`Survivors::new`], for the losses that Gaps have settled.
    pub fn of_settled(plan: &Plan) -> Self {
        let mut settled = Ranges::default();
        plan.gaps.iter().flat_map(|g| &g.lsns).for_each(|(first, end)| settled.insert(*first..*end));
        Self::around(settled.iter().cloned().collect(), plan)
    }

    fn around(holes: Vec<Range<u64>>, plan: &Plan) -> Self {
        Self {
            holes,
            from_zero: plan.first_lsn == 0,
            logged: AHashMap::new(),
            last: AHashMap::new(),
            gone: AHashMap::new(),
            carried: AHashMap::new(),
            carrying: AHashMap::new(),
            settled: AHashMap::new(),
        }
    }

    /// Is anything lost below this LSN and not below the other?
    fn has_hole(&self, from: u64, to: u64) -> bool {
        self.holes.get(self.holes.partition_point(|h| h.end <= from)).is_some_and(|h| h.start < to)
    }

    /// A definition before the record with this LSN: the stream's next seq was `next_seq`, and all below `settled_seq` were in
    /// blocks or in the object store.
    pub fn defined(&mut self, lsn: u64, stream: u64, next_seq: u64, settled_seq: u64) {
        self.given(stream, lsn, lsn, next_seq..next_seq);
        let settled = self.settled.entry(stream).or_default();
        *settled = settled_seq.max(*settled);
    }

    /// A definition in a group with LSNs from `lsn` to `end`. In one that recovery wrote, the first seq that is left may lie behind a
    /// Gap of the same group.
    pub fn defined_in_group(&mut self, lsn: u64, end: u64, stream: u64, next_seq: u64) {
        self.given(stream, end, lsn, next_seq..next_seq);
    }

    /// A sound Entries record has this row.
    pub fn entries(&mut self, lsn: u64, carried: bool, row: &TableRow) {
        let seqs = row.first_seq..row.end_seq();
        self.logged.entry(row.stream).or_default().insert(seqs.clone());
        if carried {
            let before = self.carrying.insert(row.stream, (lsn, seqs.end)).filter(|(record, _)| *record == lsn);
            let first = before.map_or(seqs.start, |(_, end)| end.min(seqs.start));
            self.carried.entry(row.stream).or_default().insert(first..seqs.end);
        } else {
            // Carried seqs are older than their LSN.
            self.given(row.stream, lsn, lsn.saturating_add(1), seqs);
        }
    }

    /// The seqs that the lost records had, where the records before and behind them tell: stream and range.
    pub fn gone(&self) -> impl Iterator<Item = (u64, &Range<u64>)> {
        self.gone.iter().flat_map(|(stream, seqs)| seqs.iter().map(|r| (*stream, r)))
    }

    /// Something before the LSN `before`, and seen up to `end`, has these seqs.
    fn given(&mut self, stream: u64, before: u64, end: u64, seqs: Range<u64>) {
        let known = self.last.get(&stream).copied().or(self.from_zero.then_some((0, 0)));
        if let Some((from, next)) = known
            && seqs.start > next
            && self.has_hole(from, before)
        {
            self.gone.entry(stream).or_default().insert(next..seqs.start);
        }
        let (from, next) = self.last.entry(stream).or_default();
        (*from, *next) = (end.max(*from), seqs.end.max(*next));
    }

    /// Everything of one segment that counts.
    pub(super) fn segment(&mut self, plan: &Plan, number: u64, scan: &SegmentScan, file: &[u8]) {
        let listed = plan.replay.iter().find(|(n, _)| *n == number);
        let end = listed.map_or(0, |(_, end)| (*end).min(plan.durable_lsn));
        let records = scan.groups.iter().flat_map(|g| &g.records).filter(|r| r.body_is_sound);
        let series = records.filter(|r| r.head.known_kind() == Some(Kind::Series) && r.head.lsn < end);
        // A definition stands before the record whose LSN it has.
        let mut all: Vec<(u64, bool, u64)> = series.map(|r| (r.head.lsn, false, r.offset)).collect();
        let entries = plan.records(number, scan);
        all.extend(entries.iter().map(|r| (r.head.lsn, true, r.offset)));
        all.sort_unstable();
        let heads: AHashMap<u64, _> = scan.groups.iter().flat_map(|g| &g.records).map(|r| (r.offset, r.head)).collect();
        for (lsn, is_entries, offset) in all {
            let Some(head) = heads.get(&offset) else { continue };
            if is_entries {
                let rows = Tables::decode(head.tables(file, offset)).map(|t| t.rows).unwrap_or_default();
                rows.iter().for_each(|row| self.entries(lsn, head.flags & FLAG_CARRIED != 0, row));
            } else {
                let definitions = decode_control::<Vec<SeriesDef>>(head, head.body(file, offset)).unwrap_or_default();
                definitions.iter().for_each(|d| self.defined(lsn, d.id, d.next_seq, d.settled_seq));
            }
        }
    }

    /// Takes from the loss what is in `held` (blocks that count and chunks in the object store, by stream) or in another record.
    pub fn settle(&self, loss: &mut Loss, held: &AHashMap<u64, Ranges>) {
        let none = Ranges::default();
        let of = |map: &AHashMap<u64, Ranges>, stream: u64| map.get(&stream).cloned().unwrap_or_default();
        let mut in_tables: AHashMap<u64, Ranges> = AHashMap::new();
        let (mut listed, mut survive) = (0, 0);
        loss.seqs.clear();
        for row in &loss.streams {
            let seqs = row.first_seq..row.end_seq();
            let missing = self.nowhere(row.stream, &seqs, held);
            listed += seqs.end - seqs.start;
            survive += seqs.end - seqs.start - count(&missing);
            loss.seqs.extend(missing.into_iter().map(|r| (row.stream, r)));
            in_tables.entry(row.stream).or_default().insert(seqs);
        }
        let mut elsewhere = 0;
        for (stream, held) in held {
            let mut gone = of(&self.gone, *stream);
            let last = self.last.get(stream).copied().or(self.from_zero.then_some((0, 0)));
            if let Some((_, next)) = last.filter(|(from, _)| self.has_hole(*from, u64::MAX)) {
                gone.insert(next..held.end().unwrap_or(next).max(next));
            }
            let logged = self.logged.get(stream).unwrap_or(&none);
            let in_tables = in_tables.get(stream).unwrap_or(&none);
            let unknown = gone.iter().flat_map(|r| logged.missing(r)).flat_map(|r| in_tables.missing(&r));
            elsewhere += unknown.map(|r| r.end - r.start - count(&held.missing(&r))).sum::<u64>();
        }
        survive += elsewhere.min(loss.logged.saturating_sub(listed));
        loss.lines = loss.logged.saturating_sub(survive);
    }

    /// The seqs that are neither in a sound record nor in `held`.
    fn nowhere(&self, stream: u64, seqs: &Range<u64>, held: &AHashMap<u64, Ranges>) -> Vec<Range<u64>> {
        let without = |map: &AHashMap<u64, Ranges>, seqs: &Range<u64>| match map.get(&stream) {
            Some(ranges) => ranges.missing(seqs),
            None => vec![seqs.clone()],
        };
        without(&self.logged, seqs).iter().flat_map(|r| without(held, r)).filter(|r| !r.is_empty()).collect()
    }

    /// What is lost with segments of the block log of which nothing says what they held. `blocks` are those that are left,
    /// `lost` are seqs of damaged records and blocks, which count by themselves.
    ///
    /// Blocks of a stream lie one behind the other, and chunks go to the object store oldest first. So what is not in the write-ahead log,
    /// not in a block and not flushed was in a block that is gone, or in a chunk that was flushed so long ago that nothing tells of it.
    pub fn lost_segments(&self, plan: &Plan, blocks: &[BlockSeqs], lost: &[(u64, Range<u64>)]) -> LostSegments {
        let mut streams: BTreeMap<u64, Known> = BTreeMap::new();
        for (id, definition) in &plan.definitions {
            let known = streams.entry(*id).or_default();
            known.ends_at(definition.next_seq);
            known.sealed = definition.settled_seq.max(self.settled.get(id).copied().unwrap_or(0));
        }
        for b in blocks {
            let known = streams.entry(b.stream).or_default();
            known.has(b.seqs.clone());
            known.sealed = known.sealed.max(b.seqs.end);
            let first = known.blocks.entry(b.chunk).or_insert(b.seqs.start);
            *first = b.seqs.start.min(*first);
        }
        for hold in plan.contents.iter().flat_map(|c| &c.holds) {
            match hold {
                Hold::Closed(c) => _ = streams.entry(c.stream).or_default().closed.insert(c.chunk, c.end_seq),
                Hold::Flushed(c) => {
                    let known = streams.entry(c.stream).or_default();
                    known.has(c.first_seq..c.end_seq);
                    known.flushed.insert(c.chunk, c.end_seq);
                }
                Hold::Gap(_) => {}
            }
        }
        let settled = plan.gaps.iter().flat_map(|g| g.seqs.iter().map(|(id, first, end)| (*id, *first..*end)));
        for (id, seqs) in settled.chain(lost.iter().cloned()) {
            streams.entry(id).or_default().has(seqs);
        }
        for (id, ranges) in [&self.logged, &self.carried, &self.gone].into_iter().flatten() {
            let known = streams.entry(*id).or_default();
            ranges.iter().for_each(|r| known.has(r.clone()));
        }
        let mut out = LostSegments::default();
        for (id, known) in &streams {
            known.lost(self.from_zero, |seqs| out.seqs.push((*id, seqs)), &mut out.doubtful);
        }
        out.lines = out.seqs.iter().map(|(_, r)| r.end - r.start).sum();
        out.unknown = !self.sees_all(plan);
        out
    }

    /// Is there no stream, and no end of one, of which only lost segments can tell? What is in the write-ahead log was defined
    /// there, and from a stream's first record on all are there.
    fn sees_all(&self, plan: &Plan) -> bool {
        if self.from_zero && self.holes.is_empty() {
            return true;
        }
        let logged: AHashSet<u64> = plan.contents.iter().flat_map(|c| c.streams.keys().copied()).collect();
        // Ids are given one by one, from 1.
        (1..plan.next_stream_id).take(logged.len() + 1).all(|id| logged.contains(&id))
    }

    /// What is lost with damaged blocks.
    pub(super) fn lost_blocks(&self, found: &FoundBlocks, mut held: AHashMap<u64, Ranges>) -> Vec<LostBlock> {
        let mut out = Vec::new();
        for (segment, bytes, tables) in &found.damaged {
            let seqs = self.nowhere(tables.stream, &(tables.first_seq..tables.end_seq), &held);
            let lines = count(&seqs).min(tables.entries.into());
            // Of two copies of a block only one is lost.
            held.entry(tables.stream).or_default().insert(tables.first_seq..tables.end_seq);
            out.push(LostBlock { segment: *segment, bytes: bytes.clone(), stream: tables.stream, seqs, lines });
        }
        out
    }
}

/// What is left of a stream.
#[derive(Default)]
struct Known {
    /// All smaller seqs were given, at least.
    end: u64,
    /// All smaller seqs were in blocks.
    sealed: u64,
    /// In a log, in a block, in the object store, or lost by itself.
    there: Ranges,
    /// Chunks that have blocks: number and lowest seq that is left.
    blocks: BTreeMap<u64, u64>,
    /// Closed chunks, and those in the object store: number and end.
    closed: BTreeMap<u64, u64>,
    flushed: BTreeMap<u64, u64>,
}

impl Known {
    fn ends_at(&mut self, seq: u64) {
        self.end = self.end.max(seq);
    }

    fn has(&mut self, seqs: Range<u64>) {
        self.ends_at(seqs.end);
        self.there.insert(seqs);
    }

    /// No seq from here on is in a chunk that was flushed and forgotten.
    fn unflushed_from(&self) -> u64 {
        let chunks: BTreeSet<u64> = self.blocks.keys().chain(self.closed.keys()).copied().collect();
        let Some(first) = chunks.into_iter().find(|c| !self.flushed.contains_key(c)) else { return self.end };
        let Some(before) = first.checked_sub(1) else { return 0 };
        let starts = self.closed.get(&before).or_else(|| self.flushed.get(&before)).or_else(|| self.blocks.get(&first));
        starts.or_else(|| self.closed.get(&first)).copied().unwrap_or(self.end)
    }

    /// Hands on the seqs that are lost for certain, and counts the others that are nowhere.
    fn lost(&self, from_zero: bool, mut lost: impl FnMut(Range<u64>), doubtful: &mut u64) {
        let from = if from_zero { 0 } else { self.unflushed_from() };
        for hole in self.there.missing(&(0..self.end)) {
            // Behind all blocks that are known duplicates may have used up seqs.
            let certain = hole.start.max(from)..hole.end.min(self.sealed);
            *doubtful += hole.end - hole.start;
            if !certain.is_empty() {
                *doubtful -= certain.end - certain.start;
                lost(certain);
            }
        }
    }
}

/// The blocks that were found, as evidence.
pub(super) fn block_seqs(found: &FoundBlocks) -> Vec<BlockSeqs> {
    let tables = found.iter().map(|b| b.tables);
    tables.map(|t| BlockSeqs { stream: t.stream, chunk: t.chunk, seqs: t.first_seq..t.end_seq }).collect()
}

/// Seqs by stream in blocks that were found, and in chunks that are in the object store.
pub(super) fn held_by(plan: &Plan, found: &FoundBlocks) -> AHashMap<u64, Ranges> {
    let mut held: AHashMap<u64, Ranges> = AHashMap::new();
    for t in found.iter().map(|b| b.tables) {
        held.entry(t.stream).or_default().insert(t.first_seq..t.end_seq);
    }
    for hold in plan.contents.iter().flat_map(|c| &c.holds) {
        if let Hold::Flushed(f) = hold {
            held.entry(f.stream).or_default().insert(f.first_seq..f.end_seq);
        }
    }
    held
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of ranges, and one is a list too")]
mod tests {
    use super::*;
    use crate::wal::{ChunkClosed, ChunkFlushed, Contents};
    use std::sync::Arc;

    fn row(stream: u64, seqs: Range<u64>) -> TableRow {
        TableRow { stream, first_seq: seqs.start, count: (seqs.end - seqs.start) as u32, part_len: 0 }
    }

    fn log(first_lsn: u64, holes: &[Range<u64>]) -> Survivors {
        let loss = Loss { lsns: holes.to_vec(), ..Loss::default() };
        Survivors::new(&Plan { first_lsn, loss, ..Plan::default() })
    }

    fn held(stream: u64, seqs: Range<u64>) -> AHashMap<u64, Ranges> {
        let mut ranges = Ranges::default();
        ranges.insert(seqs);
        AHashMap::from_iter([(stream, ranges)])
    }

    fn lost(survivors: &Survivors, logged: u64, streams: Vec<TableRow>, held: &AHashMap<u64, Ranges>) -> Loss {
        let mut loss = Loss { logged, lines: logged, streams, ..Loss::default() };
        survivors.settle(&mut loss, held);
        loss
    }

    #[test]
    fn lines_of_lost_records_that_a_block_has_are_not_lost() {
        // LSN 1 had seqs 5..9 of stream 1, which a block has up to 7, and a line of stream 2.
        let mut log = log(0, &[1..2]);
        log.entries(0, false, &row(1, 0..5));
        log.entries(2, false, &row(1, 9..10));
        assert_eq!(lost(&log, 5, vec![], &held(1, 0..7)).lines, 3);
        assert_eq!(lost(&log, 5, vec![], &held(1, 0..9)).lines, 1);
        let loss = lost(&log, 5, vec![row(1, 5..9), row(2, 0..1)], &held(1, 0..7));
        assert_eq!((loss.lines, loss.seqs), (3, vec![(1, 7..9), (2, 0..1)]));
        assert_eq!(loss.logged, 5, "the Gap settles all that was logged");
    }

    #[test]
    fn seqs_that_were_given_before_or_behind_the_hole_prove_nothing() {
        // Blocks may have more than the log: what was retired.
        let mut older = log(10, &[12..13]);
        older.entries(11, false, &row(1, 50..60));
        older.entries(14, false, &row(1, 60..61));
        assert_eq!(lost(&older, 3, vec![], &held(1, 0..60)).lines, 3);
        // Nothing was seen of stream 2 before the hole, so nobody knows which of its seqs were in it.
        older.entries(15, false, &row(2, 7..8));
        assert_eq!(lost(&older, 3, vec![], &held(2, 0..7)).lines, 3);
        // A definition does tell.
        let mut defined = log(10, &[12..13]);
        defined.defined(11, 2, 5, 0);
        defined.entries(15, false, &row(2, 7..8));
        assert_eq!(lost(&defined, 3, vec![], &held(2, 0..7)).lines, 1);
        // Carried seqs are older than their LSN.
        let mut carried = log(10, &[12..13]);
        carried.entries(11, true, &row(3, 1..2));
        carried.entries(15, false, &row(3, 9..10));
        assert_eq!(lost(&carried, 3, vec![], &held(3, 0..9)).lines, 3);
    }

    #[test]
    fn the_last_lines_of_a_stream_are_found_in_its_block() {
        let mut log = log(0, &[3..6]);
        log.entries(0, false, &row(1, 0..5));
        assert_eq!(lost(&log, 4, vec![], &held(1, 0..8)).lines, 1);
        assert_eq!(lost(&log, 4, vec![], &held(2, 0..8)).lines, 0, "all of a stream, and no more than was lost");
    }

    /// A stream whose next seq is 100, whose seqs below 80 are in blocks; the log has those from 90 on, and began before.
    fn stream(holds: Vec<Hold>, blocks: &[(u64, Range<u64>)]) -> LostSegments {
        let mut log = log(10, &[]);
        log.entries(20, false, &row(1, 90..100));
        let definition =
            SeriesDef { id: 1, tenant: "a".into(), labels: vec![], fingerprint: 0, next_seq: 100, settled_seq: 80 };
        let contents = Contents { holds, streams: Arc::new(AHashMap::from_iter([(1, 100)])), ..Contents::default() };
        let definitions = std::collections::HashMap::from_iter([(1, definition.into())]);
        let plan = Plan {
            first_lsn: 10,
            next_stream_id: 2,
            definitions: definitions.into(),
            contents: vec![contents],
            ..Plan::default()
        };
        let block = |(chunk, seqs): &(u64, Range<u64>)| BlockSeqs { stream: 1, chunk: *chunk, seqs: seqs.clone() };
        log.lost_segments(&plan, &blocks.iter().map(block).collect::<Vec<_>>(), &[])
    }

    fn closed(chunk: u64, end_seq: u64) -> Hold {
        Hold::Closed(ChunkClosed { stream: 1, chunk, end_seq, reason: 1 })
    }

    fn flushed(chunk: u64, seqs: Range<u64>) -> Hold {
        let (first_seq, end_seq) = (seqs.start, seqs.end);
        Hold::Flushed(ChunkFlushed { stream: 1, chunk, first_seq, end_seq, key: String::new() })
    }

    #[test]
    fn what_is_nowhere_was_in_the_segments_that_are_gone() {
        let all = [(0, 0..30), (0, 30..60), (1, 60..90)];
        let sound = LostSegments::default();
        assert_eq!(stream(vec![], &all), sound);
        let lost = |seqs: &[Range<u64>], doubtful| LostSegments {
            lines: count(seqs),
            seqs: seqs.iter().map(|r| (1, r.clone())).collect(),
            doubtful,
            unknown: false,
        };
        // The first chunk has a block, so it is not in the object store, and neither are those behind it.
        assert_eq!(stream(vec![], &[(0, 0..30), (1, 60..90)]), lost(&[30..60], 0));
        assert_eq!(stream(vec![], &[(0, 30..60), (1, 60..90)]), lost(&[0..30], 0));
        // Behind all blocks, seqs may be those of duplicates.
        assert_eq!(stream(vec![], &[(0, 0..30), (0, 30..60)]), lost(&[60..80], 10));
        // The first chunk may be in the object store, and nothing says so any more; or something says where it ends.
        assert_eq!(stream(vec![], &[(1, 60..90)]), lost(&[], 60));
        assert_eq!(stream(vec![closed(0, 60)], &[(1, 60..90)]), lost(&[0..60], 0));
        assert_eq!(stream(vec![], &[(1, 70..90)]), lost(&[], 70));
        assert_eq!(stream(vec![closed(0, 60), flushed(0, 0..60)], &[(1, 70..90)]), lost(&[60..70], 0));
        assert_eq!(stream(vec![closed(1, 60)], &[(2, 70..90)]), lost(&[60..70], 60));
        // Nothing is left but the log.
        assert_eq!(stream(vec![], &[]), lost(&[], 90));
        assert!(!stream(vec![], &[]).is_exact());
    }

    #[test]
    fn duplicates_between_carried_lines_are_not_missed_and_streams_without_records_are_told() {
        let mut log = log(10, &[]);
        log.entries(20, true, &row(1, 3..5));
        log.entries(20, true, &row(1, 7..9));
        log.entries(21, false, &row(1, 9..10));
        let contents = |ids: &[u64]| Contents {
            streams: Arc::new(ids.iter().map(|id| (*id, 10)).collect()),
            ..Contents::default()
        };
        let plan =
            |ids: &[u64]| Plan { first_lsn: 10, next_stream_id: 3, contents: vec![contents(ids)], ..Plan::default() };
        let blocks = [BlockSeqs { stream: 1, chunk: 0, seqs: 0..3 }];
        assert_eq!(log.lost_segments(&plan(&[1, 2]), &blocks, &[]), LostSegments::default());
        let unknown = log.lost_segments(&plan(&[1]), &blocks, &[]);
        assert_eq!(unknown, LostSegments { unknown: true, ..LostSegments::default() });
        assert!(unknown.to_string().contains("at least 0 lines"), "{unknown}");
    }
}
