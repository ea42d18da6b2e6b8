//! Streams and chunks made again from what the block log tells of blocks, in footers as a rule.
//!
//! Most of them are made while the write-ahead log is still being read, of what was read ahead of it: the disk leaves the
//! processors time. The plan decides afterwards which of these [`Drafts`] hold; what it contradicts is made again.

use super::commit::shard_of;
use super::instance::Instance;
use super::memory::Meter;
use super::sealed::SealedBlock;
use super::stream::{ChunkState, CloseReason};
use super::{State, Stream};
use crate::chunk::Symbols;
use crate::model::{LabelSet, Tenant};
use crate::planted::{Bug, is};
use crate::wal::format::RECORD_HEAD_LEN;
use crate::wal::{
    Ahead, BlockPlace, BlockStore, ById, FoundBlock, Hold, ListedBlock, Plan, Recovered, SeriesDef, StreamLog,
    drop_aside,
};
use ahash::AHashMap;
use rayon::prelude::*;
use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

/// Blocks that are touched at a time: less than what a processor's own cache holds.
const TOUCHED: usize = 256;
/// Fewer blocks are not worth a thread.
const FEW_BLOCKS: usize = 10_000;

/// What was decided about a stream's chunks, by chunk number.
#[derive(Default)]
struct Decided {
    closed: AHashMap<u64, CloseReason>,
    flushed: AHashMap<u64, Range<u64>>,
}

impl Decided {
    /// By stream id.
    fn of(plan: &Plan) -> AHashMap<u64, Self> {
        let mut out: AHashMap<u64, Self> = AHashMap::new();
        for hold in plan.contents.iter().flat_map(|c| &c.holds) {
            match hold {
                Hold::Closed(c) => {
                    let reason = CloseReason::from_code(c.reason);
                    out.entry(c.stream).or_default().closed.insert(c.chunk, reason);
                }
                Hold::Flushed(c) => {
                    out.entry(c.stream).or_default().flushed.insert(
                        c.chunk,
                        if is(Bug::FlushedAsPrefix) { 0..c.end_seq + 1000 } else { c.first_seq..c.end_seq },
                    );
                }
                Hold::Gap(_) => {}
            }
        }
        out
    }
}

/// A stream with the chunks that its blocks make up.
pub(super) struct Restored {
    pub stream: Arc<Stream>,
    /// Its id.
    pub id: u64,
    /// Blocks that were found of it.
    blocks: usize,
    /// Lines in those that it needs.
    pub lines: u64,
    /// Smaller seqs have been given, by its definition.
    pub next_seq: u64,
    /// Smaller seqs were taken to be settled.
    settled_seq: u64,
    /// Blocks that it does not need.
    free: Vec<BlockPlace>,
}

/// Gives a stream its chunks from the blocks that were found; returns the lines in them, and blocks that it does not need.
fn restore_stream(
    stream: &Stream,
    blocks: &mut Vec<FoundBlock<'_>>,
    decided: &Decided,
    settled_seq: u64,
    store: &Arc<BlockStore>,
    metadata: &Meter,
) -> (u64, Vec<BlockPlace>) {
    // Of equal blocks, one is a copy that was made for cleaning: the newer place stays.
    blocks.sort_by_key(|b| (b.tables.first_seq, Reverse((b.place.segment, b.place.offset))));
    let mut free = take_replaced(blocks);
    let mut chunks: BTreeMap<u64, (ChunkState, BTreeMap<u32, &[u8]>)> = BTreeMap::new();
    let mut settled: Vec<Range<u64>> = Vec::with_capacity(decided.flushed.len() + 1 + blocks.len());
    settled.extend(decided.flushed.values().cloned());
    settled.extend((settled_seq > 0).then_some(0..settled_seq));
    let (mut end, mut lines, mut newest_chunk) = (0, 0, decided.flushed.keys().max().copied());
    for number in decided.flushed.keys() {
        let places = blocks.iter().filter(|b| b.tables.chunk == *number).map(|b| b.place);
        stream.note_flushed(*number, &places.collect::<Vec<_>>());
    }
    let mut newest_timestamp = None;
    let shelf = stream.shelf(store, metadata);
    for same_chunk in blocks.chunk_by(|a, b| a.tables.chunk == b.tables.chunk) {
        for FoundBlock { place, tables } in same_chunk {
            newest_chunk = newest_chunk.max(Some(tables.chunk));
            newest_timestamp = newest_timestamp.max(Some(tables.newest_timestamp));
            let data_len = place.len.saturating_sub(RECORD_HEAD_LEN as u32 + tables.encoded_len() as u32);
            let is_needed = tables.first_seq >= end && !decided.flushed.contains_key(&tables.chunk);
            let block = is_needed.then(|| SealedBlock::of(tables, *place, data_len, shelf));
            let Some(Ok(block)) = block else {
                free.push(*place);
                continue;
            };
            end = tables.end_seq;
            lines += u64::from(tables.entries);
            settled.push(block.seqs.clone());
            let (chunk, symbols) = chunks.entry(tables.chunk).or_default();
            if chunk.blocks.is_empty() {
                chunk.number = tables.chunk;
                chunk.closed = decided.closed.get(&tables.chunk).copied();
                chunk.blocks.reserve(same_chunk.len());
            }
            chunk.compressed += block.len();
            chunk.blocks.push(Arc::new(block));
            symbols.extend(tables.symbols.iter());
        }
    }
    newest_timestamp.into_iter().for_each(|timestamp| stream.note_newest(timestamp));
    let newest = newest_chunk.map_or(0, |n| n + 1);
    let chunks: VecDeque<ChunkState> = chunks
        .into_values()
        .map(|(mut chunk, texts)| {
            chunk.symbols = Arc::new(table_of(&texts));
            // A chunk with a successor takes no more.
            let succeeded = chunk.number + 1 < newest;
            chunk.closed = chunk.closed.or(succeeded.then_some(CloseReason::Full));
            chunk
        })
        .collect();
    let settled = merged(settled);
    let prefix = settled.front().filter(|r| r.start == 0).map_or(0, |r| r.end);
    let last = blocks.iter().map(|b| &b.tables).rfind(|t| t.end_seq == prefix);
    let last = last.map(|t| (t.last_timestamp, t.last_hash));
    stream.restore(chunks, newest, settled, last);
    (lines, free)
}

/// Takes out damaged blocks in whose place an earlier start has made others, of what the log still had of their lines: also
/// when nobody tells any more that they are damaged. No others overlap but in the whole. `blocks` are sorted by their first
/// seq, the newest of equal ones first.
fn take_replaced(blocks: &mut Vec<FoundBlock<'_>>) -> Vec<BlockPlace> {
    let place = |b: &FoundBlock<'_>| (b.place.segment, b.place.offset);
    let mut out = Vec::new();
    let mut at = 1;
    while let Some([before, block]) = blocks.get(at - 1..=at) {
        let inside = (before.tables.first_seq + 1..before.tables.end_seq).contains(&block.tables.first_seq);
        if inside && place(block) > place(before) {
            out.push(blocks.remove(at - 1).place);
            at = at.max(2) - 1;
        } else {
            at += 1;
        }
    }
    out
}

/// The chunk's symbols with their ids. An id that only a damaged block used stands for nothing.
fn table_of(texts: &BTreeMap<u32, &[u8]>) -> Symbols {
    let mut symbols = Symbols::with_capacity(texts.len(), texts.values().map(|text| text.len()).sum());
    for (id, text) in texts {
        while symbols.len() < *id as usize {
            symbols.push(b"");
        }
        symbols.push(text);
    }
    symbols
}

/// Streams that were restored before there was a plan.
pub(super) type Drafts = Vec<Vec<Restored>>;

/// Restores the streams of the blocks that were read ahead, as if nothing else told of them.
pub(super) fn draft(state: &State, ahead: &Ahead<'_>) -> Drafts {
    // Where footers are missing nearly all of them would be made again.
    if !ahead.is_whole() {
        return Vec::new();
    }
    let (definitions, decided) = (ahead.definitions(), AHashMap::new());
    let restoring = Restoring { state, store: ahead.store(), decided, settles: true };
    let (drafts, _) = restoring.streams(definitions.iter().collect(), ahead.len(), || ahead.blocks());
    if definitions.len() >= FEW_BLOCKS {
        drop_aside(definitions);
    }
    drafts
}

/// Makes the streams and chunks again that the block log holds, from the drafts where these hold; returns the lines of streams that no
/// definition names, too.
pub(super) fn restore(state: &State, recovered: &Recovered, drafts: Drafts) -> (Vec<Vec<Restored>>, u64) {
    let (plan, found) = (&recovered.plan, recovered.blocks());
    // What a definition says of a prefix saves the look at each record. After damage the blocks that it means may be gone
    // while the write-ahead log still has their lines; what is flushed, ChunkFlushed records say as long as it matters.
    let is_sound = found.damage.is_empty() && plan.loss.is_empty() && plan.gaps.is_empty();
    let decided = Decided::of(plan);
    let restoring = Restoring { state, store: recovered.block_store(), decided, settles: is_sound };
    let drafts = if is_sound && found.is_as_ahead { drafts } else { Vec::new() };
    let mut restored = restoring.keep(drafts, recovered);
    let mut is_kept = ById::for_ids(plan.definitions.keys().copied());
    restored.iter().flatten().for_each(|kept: &Restored| is_kept.insert(kept.id, ()));
    let is_left = |id: u64| is_kept.get(id).is_none();
    let left = plan.definitions.values().map(|d| &**d).filter(|d| is_left(d.id)).collect();
    // Few are left where drafts hold, of many, or none: they are looked for once.
    let kept: usize = restored.iter().flatten().map(|kept| kept.blocks).sum();
    let blocks: Vec<ListedBlock<'_>> = if kept < found.len() { found.listed_of(is_left) } else { Vec::new() };
    let (again, unnamed_lines) = restoring.streams(left, blocks.len(), || blocks.iter().copied());
    restored.extend(again);
    let free = restored.iter().flatten().flat_map(|restored| &restored.free);
    free.for_each(|place| restoring.store.free(*place));
    (restored, unnamed_lines)
}

/// What a restoration needs to know of all streams.
struct Restoring<'a> {
    state: &'a State,
    store: &'a Arc<BlockStore>,
    decided: AHashMap<u64, Decided>,
    /// What definitions say of settled seqs counts.
    settles: bool,
}

/// Some streams and their blocks, with those of each beside each other, in the order of the log.
struct ByStream<'a> {
    definitions: Vec<&'a SeriesDef>,
    blocks: Vec<ListedBlock<'a>>,
    /// Where those of each stream end.
    ends: Vec<usize>,
    /// Lines in blocks of none of the streams.
    unnamed_lines: u64,
}

impl<'a> ByStream<'a> {
    /// `ours` gives the same blocks twice. Counting them first spares sorting them.
    fn new<B: Iterator<Item = ListedBlock<'a>>>(definitions: Vec<&'a SeriesDef>, ours: impl Fn() -> B) -> Self {
        let mut at = ById::for_ids(definitions.iter().map(|d| d.id));
        (0..).zip(&definitions).for_each(|(n, d): (u32, _)| at.insert(d.id, n));
        let lines = |b: ListedBlock<'_>| b.read().map_or(0, |b| u64::from(b.tables.entries));
        let (mut counts, mut unnamed_lines) = (vec![0; definitions.len()], 0);
        // Which stream each block is of: looked up once.
        let mut streams: Vec<u32> = Vec::new();
        for block in ours() {
            let stream = at.get(block.stream).copied().unwrap_or(u32::MAX);
            match counts.get_mut(stream as usize) {
                Some(count) => *count += 1,
                None => unnamed_lines += lines(block),
            }
            streams.push(stream);
        }
        // Where the next one of each goes: behind the last, where its stream's blocks end.
        let mut next = 0;
        let begin = |count: usize| {
            next += count;
            next - count
        };
        let mut ends: Vec<usize> = counts.into_iter().map(begin).collect();
        let mut blocks = vec![ListedBlock::default(); next];
        for (block, stream) in ours().zip(streams) {
            let Some(end) = ends.get_mut(stream as usize) else { continue };
            if let Some(slot) = blocks.get_mut(*end) {
                *slot = block;
            }
            *end += 1;
        }
        Self { definitions, blocks, ends, unnamed_lines }
    }

    /// The streams a few at a time: so many that the processors end at about the same time.
    fn parts(&self) -> impl Iterator<Item = Range<usize>> {
        const STREAMS: usize = 500;
        let count = self.definitions.len();
        (0..count).step_by(STREAMS).map(move |begin| begin..count.min(begin + STREAMS))
    }

    /// The definitions of some streams, each with its blocks.
    fn streams(&self, part: Range<usize>) -> impl Iterator<Item = (&'a SeriesDef, &[ListedBlock<'a>])> {
        let begin = part.start.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        let definitions = self.definitions.get(part.clone()).unwrap_or_default();
        let ends = self.ends.get(part).unwrap_or_default();
        let blocks = self.blocks.get(begin..ends.last().copied().unwrap_or(begin)).unwrap_or_default();
        let (mut at, mut touched) = (begin, 0);
        definitions.iter().zip(ends).map(move |(definition, end)| {
            // What lies far from each other is fetched for many streams at once.
            while touched < blocks.len() && touched < end - begin + TOUCHED {
                let next = blocks.get(touched..).unwrap_or_default();
                let next = next.get(..TOUCHED).unwrap_or(next);
                std::hint::black_box(next.iter().fold(0, |sum, block| sum ^ block.touch()));
                touched += next.len();
            }
            let own = blocks.get(at - begin..end - begin).unwrap_or_default();
            at = *end;
            (*definition, own)
        })
    }
}

impl Restoring<'_> {
    /// Restores the streams of these definitions that have blocks, or had; returns the lines of other streams in the blocks, too.
    /// There are no more than `count` blocks.
    fn streams<'b, B: Iterator<Item = ListedBlock<'b>>>(
        &self,
        definitions: Vec<&'b SeriesDef>,
        count: usize,
        blocks: impl Fn() -> B + Sync,
    ) -> (Vec<Vec<Restored>>, u64) {
        let threads = if count < FEW_BLOCKS { 1 } else { self.state.config.threads.max(1) };
        let by_stream = |shard: usize| {
            let is_ours = |id: u64| shard_of(id, threads) == shard;
            let definitions = definitions.iter().copied().filter(|d| is_ours(d.id));
            ByStream::new(definitions.collect(), || blocks().filter(|b| is_ours(b.stream)))
        };
        let by_stream: Vec<ByStream<'_>> = (0..threads).into_par_iter().map(by_stream).collect();
        let parts: Vec<_> = by_stream.iter().flat_map(|b| b.parts().map(move |part| (b, part))).collect();
        let restored = parts.into_par_iter().with_max_len(1).map(|(b, part)| self.restore(b, part));
        (restored.collect(), by_stream.iter().map(|b| b.unnamed_lines).sum())
    }

    fn restore(&self, by_stream: &ByStream<'_>, part: Range<usize>) -> Vec<Restored> {
        let mut out = Vec::with_capacity(part.len());
        let nothing = Decided::default();
        let (mut maker, mut read) = (Maker::new(self.state), Vec::new());
        for (definition, blocks) in by_stream.streams(part) {
            read.clear();
            read.extend(blocks.iter().filter_map(ListedBlock::read));
            let SeriesDef { id, next_seq, .. } = *definition;
            let settled_seq = if self.settles { definition.settled_seq } else { 0 };
            let decided = self.decided.get(&id).unwrap_or(&nothing);
            if read.is_empty() && decided.flushed.is_empty() && settled_seq == 0 {
                continue;
            }
            if let Some(stream) = maker.make(definition) {
                let blocks = read.len();
                let (lines, free) =
                    restore_stream(&stream, &mut read, decided, settled_seq, self.store, &self.state.metadata);
                out.push(Restored { stream, id, blocks, lines, next_seq, settled_seq, free });
            }
        }
        out
    }

    /// Those drafts that the plan and the blocks that were found do not contradict: what was restored from them would be the same.
    fn keep(&self, drafts: Drafts, recovered: &Recovered) -> Vec<Vec<Restored>> {
        let holds = |draft: &mut Restored| {
            let Some(definition) = recovered.plan.definitions.get(&draft.id) else { return false };
            draft.next_seq = definition.next_seq;
            let decided = self.decided.get(&draft.id);
            let holds = decided.is_none_or(|d| d.flushed.is_empty()) && is_confirmed(draft, definition);
            if let Some(decided) = decided.filter(|_| holds) {
                draft.stream.restore_closed(&decided.closed);
            }
            holds
        };
        let keep = |mut part: Vec<Restored>| {
            part.retain_mut(holds);
            part
        };
        drafts.into_par_iter().map(keep).collect()
    }
}

/// Would the stream be restored to the same by this definition?
fn is_confirmed(draft: &Restored, definition: &SeriesDef) -> bool {
    let stream = &draft.stream;
    // What it says to be settled is in the draft's blocks, too, or was settled in the draft.
    let settled = draft.settled_seq..=stream.next_seq();
    let labels = stream.labels().pairs().iter().map(|(name, value)| (&**name, &**value));
    let defined = definition.labels.iter().map(|(name, value)| (&**name, &**value));
    settled.contains(&definition.settled_seq) && stream.log.tenant.as_str() == definition.tenant && labels.eq(defined)
}

/// Makes streams of definitions. Most have the tenant of the one before.
pub(super) struct Maker<'a> {
    state: &'a State,
    last: Option<Arc<Instance>>,
}

impl<'a> Maker<'a> {
    pub fn new(state: &'a State) -> Self {
        Self { state, last: None }
    }

    /// The stream that a definition tells of; `None` if its tenant cannot be one.
    pub fn make(&mut self, definition: &SeriesDef) -> Option<Arc<Stream>> {
        let instance = match self.last.take().filter(|last| last.tenant.as_str() == definition.tenant) {
            Some(last) => last,
            None => self.state.instance(&Tenant::new(&definition.tenant).ok()?),
        };
        let labels = Arc::new(LabelSet::new(definition.labels.iter().map(|(n, v)| (n.as_str(), v.as_str()))));
        let log = StreamLog::new(definition.id, instance.tenant.clone(), labels, 0);
        let stream = Stream::new(Arc::new(log), &self.state.metadata, &instance.blocks);
        self.last = Some(instance);
        Some(Arc::new(stream))
    }
}

/// Ranges sorted, those that touch made one.
fn merged(mut ranges: Vec<Range<u64>>) -> VecDeque<Range<u64>> {
    ranges.sort_by_key(|r| r.start);
    let mut out: VecDeque<Range<u64>> = VecDeque::new();
    for range in ranges {
        match out.back_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push_back(range),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::{config, unregistered};
    use super::*;
    use crate::wal::{BlockSymbolsRef, BlockTables};

    /// Blocks by place: first and end seq. What is left of them, in the order of their seqs.
    fn left(blocks: &[(u64, u64)]) -> (Vec<(u64, u64)>, Vec<u64>) {
        let block = |(offset, (first_seq, end_seq)): (u64, &(u64, u64))| FoundBlock {
            place: BlockPlace { segment: 1, offset, len: 1 },
            tables: BlockTables::<BlockSymbolsRef<'_>> {
                first_seq: *first_seq,
                end_seq: *end_seq,
                ..Default::default()
            },
        };
        let mut blocks: Vec<FoundBlock<'_>> = (0..).zip(blocks).map(block).collect();
        blocks.sort_by_key(|b| (b.tables.first_seq, Reverse(b.place.offset)));
        let taken = take_replaced(&mut blocks).iter().map(|p| p.offset).collect();
        (blocks.iter().map(|b| (b.tables.first_seq, b.tables.end_seq)).collect(), taken)
    }

    #[test]
    fn a_draft_is_confirmed_by_a_definition_that_makes_the_same_stream() {
        let tmp = tempfile::tempdir().unwrap();
        let state = State::new(config(tmp.path()), Arc::default(), unregistered());
        let definition = SeriesDef {
            id: 7,
            tenant: "t".into(),
            labels: vec![("app".into(), "x".into()), ("env".into(), "y".into())],
            fingerprint: 1,
            next_seq: 20,
            settled_seq: 5,
        };
        let stream = Maker::new(&state).make(&definition).unwrap();
        // Blocks up to 10.
        stream.restore(VecDeque::new(), 0, std::iter::once(0..10).collect(), None);
        let draft = Restored { stream, id: 7, blocks: 1, lines: 10, next_seq: 20, settled_seq: 5, free: Vec::new() };
        let with = |change: &dyn Fn(&mut SeriesDef)| {
            let mut other = definition.clone();
            change(&mut other);
            is_confirmed(&draft, &other)
        };
        assert!(with(&|_| ()));
        assert!(with(&|d| (d.next_seq, d.settled_seq) = (25, 10)));
        assert!(!with(&|d| d.settled_seq = 11));
        assert!(!with(&|d| d.settled_seq = 4));
        assert!(!with(&|d| d.tenant = "u".into()));
        assert!(!with(&|d| d.labels[1].1 = "z".into()));
        assert!(!with(&|d| drop(d.labels.pop())));
        assert!(!with(&|d| d.labels.push(("zone".into(), "1".into()))));
    }

    #[test]
    fn what_was_made_again_of_a_damaged_block_takes_its_place() {
        // Only its end was left in the log, and lines behind it came into the same block.
        assert_eq!(left(&[(0, 10), (10, 20), (15, 30), (30, 40)]), (vec![(0, 10), (15, 30), (30, 40)], vec![1]));
        // It was made again in two parts.
        assert_eq!(left(&[(0, 10), (10, 20), (12, 15), (15, 30)]), (vec![(0, 10), (12, 15), (15, 30)], vec![1]));
        assert_eq!(left(&[(0, 10), (0, 5), (5, 10)]).1, [0]);
        // Two neighbours were damaged.
        assert_eq!(left(&[(0, 10), (10, 20), (5, 18), (18, 30)]), (vec![(5, 18), (18, 30)], vec![0, 1]));
        // Copies are no replacement, and neighbours none.
        let copies = [(0, 10), (10, 20), (0, 10), (10, 20)];
        assert_eq!(left(&copies), (vec![(0, 10), (0, 10), (10, 20), (10, 20)], vec![]));
        assert_eq!(left(&[]), (vec![], vec![]));
    }
}
