use super::State;
use super::memory::{Held, Meter};
use super::sealed::{SealedBlock, Shelf};
use crate::chunk::{Head, Part, Symbols};
use crate::model::{Amount, LabelSet, Recent, TokenBucket};
use crate::planted::{Bug, is};
use crate::wal::{BlockPlace, BlockStore, BodyError, BodyView, EntryView, StreamLog, TableRow};
use ahash::AHashMap;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Why a chunk was closed. Loki's names of flush reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CloseReason {
    /// It reached `chunk_target_size`.
    Full,
    /// The sync rule cut it.
    Synced,
}

impl CloseReason {
    /// Its number in the log.
    pub fn code(self) -> u8 {
        match self {
            Self::Full => 1,
            Self::Synced => 4,
        }
    }

    /// Numbers of later versions count as full: the chunk takes no more either way.
    pub fn from_code(code: u8) -> Self {
        if code == 4 { Self::Synced } else { Self::Full }
    }

    /// Loki's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Synced => "synced",
        }
    }
}

/// A stream: one set of labels of one tenant, from its first line on.
pub struct Stream {
    pub(super) log: Arc<StreamLog>,
    content: Mutex<Content>,
    /// Admitted pushes that are neither applied nor failed.
    admitted: AtomicU32,
    visible: AtomicBool,
    /// Highest and lowest applied timestamp.
    newest: AtomicI64,
    oldest: AtomicI64,
    pub(super) rate: Mutex<TokenBucket>,
    /// What the tenant's blocks take of the disk.
    share: Meter,
    shelf: OnceLock<Arc<Shelf>>,
    _held: Held,
}

/// Applied lines, in the order of their arrival: closed chunks, the open chunk, heads that are being sealed, the head.
struct Content {
    next_seq: u64,
    chunks: VecDeque<ChunkState>,
    /// The chunk that the next block goes to, if it has blocks already, counted or on their way.
    open_chunk: Option<OpenChunk>,
    /// Number of the chunk after that one.
    next_chunk: u64,
    sealing: VecDeque<Frozen>,
    /// So many of `sealing`, from the front, are blocks on their way to the block log.
    sent: usize,
    head: Head,
    /// First seq of the head: the end of what was frozen before.
    head_first: u64,
    /// First seq and count of runs of entries in the head. Duplicates use up the seqs between two runs.
    runs: Vec<(u64, u32)>,
    /// The last applied entry, if it is no longer in the head.
    last: Option<(i64, u128)>,
    /// Ranges of seqs above `next_seq` that blocks hold or that are settled: behind damage, while replaying.
    later: VecDeque<Range<u64>>,
    /// Chunks in the object store whose blocks are still in segments of the block log.
    flushed: BTreeMap<u64, Vec<u64>>,
    /// A replay goes on to this seq, about.
    replayed_to: u64,
    /// The sealer has the stream in its queue.
    queued: bool,
    /// Timestamps between which the sync period does not roll over, as far as is known.
    within_period: Range<i64>,
    /// When the last entry was applied.
    touched: Instant,
    /// Applied since the last look at the rate.
    applied: Amount,
    recent: Recent,
    looked: Instant,
}

/// Blocks of one chunk; all of them count.
#[derive(Default)]
pub(super) struct ChunkState {
    pub number: u64,
    pub symbols: Arc<Symbols>,
    pub blocks: Vec<Arc<SealedBlock>>,
    pub compressed: usize,
    pub closed: Option<CloseReason>,
}

/// What the blocks of a chunk that takes more have in common.
#[derive(Clone, Default)]
struct OpenChunk {
    number: u64,
    symbols: Arc<Symbols>,
    compressed: usize,
}

#[derive(Clone)]
struct Frozen {
    head: Arc<Head>,
    first_seq: u64,
    end_seq: u64,
    newest: i64,
    last: (i64, u128),
    close: Option<CloseReason>,
}

/// A frozen head on its way to a block, with what its block has to tell.
pub(super) struct SealJob {
    pub head: Arc<Head>,
    pub symbols: Arc<Symbols>,
    pub chunk: u64,
    /// Compressed bytes of the chunk so far.
    pub compressed: usize,
    pub first_seq: u64,
    pub end_seq: u64,
    /// Highest timestamp of the stream.
    pub newest: i64,
    /// Timestamp and hash of the last entry.
    pub last: (i64, u128),
    pub close: Option<CloseReason>,
}

/// Entries of a small head, to be logged again.
pub(super) struct Carry {
    pub head: Head,
    /// First seq and count of the runs that its entries make up.
    pub runs: Vec<(u64, u32)>,
}

/// What keeps a segment of the log that holds entries of a stream.
pub(super) enum Unsettled {
    /// Nothing: all are in blocks that count.
    No,
    /// Entries are on their way to memory or to a block.
    Wait,
    /// A head of so many bytes.
    Head(usize),
}

impl Stream {
    pub(super) fn new(log: Arc<StreamLog>, metadata: &Meter, share: &Meter) -> Self {
        Self {
            _held: metadata.stream(&log.labels),
            share: share.clone(),
            shelf: OnceLock::new(),
            log,
            content: Mutex::new(Content::new()),
            admitted: AtomicU32::new(0),
            visible: AtomicBool::new(false),
            newest: AtomicI64::new(i64::MIN),
            oldest: AtomicI64::new(i64::MAX),
            rate: Mutex::new(TokenBucket::default()),
        }
    }

    /// Canonical labels.
    pub fn labels(&self) -> &Arc<LabelSet> {
        &self.log.labels
    }

    /// Stream id: given at birth, never again in this data directory.
    pub fn id(&self) -> u64 {
        self.log.id
    }

    /// Lowest and highest timestamp of applied lines; the lowest is above the highest without any.
    pub fn bounds(&self) -> (i64, i64) {
        (self.oldest.load(Ordering::Acquire), self.newest.load(Ordering::Acquire))
    }

    pub(super) fn overlaps(&self, start: i64, end: i64) -> bool {
        let (oldest, newest) = self.bounds();
        oldest < end && newest >= start
    }

    /// Where its blocks are.
    pub(super) fn shelf(&self, store: &Arc<BlockStore>, metadata: &Meter) -> &Arc<Shelf> {
        self.shelf.get_or_init(|| Shelf::new(store.clone(), metadata, &self.share))
    }

    /// Reads a little of it, so that the processor has it when it is wanted.
    pub(super) fn touch(&self) -> bool {
        self.content.is_locked() ^ self.is_visible()
    }

    pub(super) fn admit(&self) {
        self.admitted.fetch_add(1, Ordering::AcqRel);
    }

    /// One push less is on its way; returns how many are left.
    pub(super) fn finish(&self) -> u32 {
        self.admitted.fetch_sub(1, Ordering::AcqRel) - 1
    }

    pub(super) fn is_visible(&self) -> bool {
        self.visible.load(Ordering::Acquire)
    }

    /// Highest applied timestamp.
    pub(super) fn newest(&self) -> Option<i64> {
        self.is_visible().then(|| self.newest.load(Ordering::Acquire))
    }

    /// The seq that the next applied entry has.
    pub(super) fn next_seq(&self) -> u64 {
        self.content.lock().next_seq
    }

    /// A replay will apply entries up to this seq, so that a head grows once and not with each record.
    pub(super) fn expect(&self, end_seq: u64) {
        let mut content = self.content.lock();
        content.replayed_to = content.replayed_to.max(end_seq);
    }

    /// The stream's lines of `start <= timestamp < end` and more, in the order of arrival, as they are now. The open head
    /// is copied, within the range only.
    pub fn parts(&self, start: i64, end: i64) -> Vec<Part> {
        let content = self.content.lock();
        let mut parts: Vec<(u64, Part)> = Vec::new();
        for chunk in &content.chunks {
            let part = |b: &Arc<SealedBlock>| (b.seqs.start, Part::Block(b.clone(), chunk.symbols.clone()));
            parts.extend(chunk.blocks.iter().map(part));
        }
        parts.extend(content.sealing.iter().map(|f| (f.first_seq, Part::Head(f.head.clone()))));
        parts.retain(|(_, p)| p.bounds().is_some_and(|(min, max)| min < end && max >= start));
        if !content.head.is_empty() {
            parts.push((content.head_first, Part::Head(Arc::new(content.head.slice(start, end)))));
        }
        drop(content);
        // Only after damage do chunks not follow the order of arrival.
        parts.sort_by_key(|(first_seq, _)| *first_seq);
        parts.into_iter().map(|(_, part)| part).collect()
    }

    /// Applies the stream's part of a record: the one way in which lines get into memory, for pushes and for replay.
    ///
    /// A seq is applied at most once. An entry that equals the one with the previous seq uses up its seq and is not
    /// stored. Cannot fail but for a body that does not decode, which its CRC has ruled out for pushes.
    pub(super) fn apply(
        &self,
        state: &State,
        row: &TableRow,
        body: &BodyView<'_>,
        part_start: usize,
    ) -> Result<Outcome, BodyError> {
        let mut outcome = Outcome::default();
        let part = body.part(part_start, row)?;
        let mut content = self.content.lock();
        if row.end_seq() <= content.next_seq && !is(Bug::AppliedTwice) {
            return Ok(outcome);
        }
        let mut symbols = SymbolMap::new(body.symbols().len());
        let before = content.head.memory();
        // A head takes a block only, and an entry takes three bytes at least.
        let room = state.config.chunk_block_size.saturating_sub(content.head.uncompressed_size());
        let (entries, bytes) = content.expects(row, room);
        content.head.reserve(entries, bytes);
        let mut frozen_bytes = 0;
        let (mut oldest, mut newest) = self.bounds();
        for (entry, seq) in part.zip(row.first_seq..) {
            let entry = entry?;
            if seq < content.next_seq && !is(Bug::AppliedTwice) {
                continue;
            }
            if !content.later.is_empty() {
                frozen_bytes += content.pass(seq, newest);
                symbols.forget();
                if seq < content.next_seq {
                    continue;
                }
            }
            content.next_seq = seq + 1;
            if content.is_duplicate(&entry, body) {
                outcome.duplicates += 1;
                outcome.duplicate_bytes += entry.line.len() as u64;
                continue;
            }
            if content.wants_cut(state, entry.timestamp, newest, self.log.fingerprint) {
                frozen_bytes += content.freeze(Some(CloseReason::Synced), seq, newest);
                symbols.forget();
            } else if content.head.uncompressed_size() >= state.config.chunk_block_size
                || !content.head.has_room(entry.line.len(), entry.metadata().len())
            {
                frozen_bytes += content.freeze(None, seq, newest);
                symbols.forget();
            }
            content.append(&entry, body, &mut symbols, seq);
            (oldest, newest) = (oldest.min(entry.timestamp), newest.max(entry.timestamp));
            outcome.lines += 1;
            outcome.bytes += entry.line.len() as u64;
        }
        content.touched = Instant::now();
        content.applied += Amount { lines: outcome.lines, bytes: outcome.bytes };
        outcome.grown = (content.head.memory() + frozen_bytes).saturating_sub(before);
        self.oldest.store(oldest, Ordering::Release);
        self.newest.store(newest, Ordering::Release);
        outcome.wants_seal = !content.sealing.is_empty() && !std::mem::replace(&mut content.queued, true);
        outcome.first_line = outcome.lines > 0 && !self.visible.swap(true, Ordering::AcqRel);
        Ok(outcome)
    }

    /// Freezes the head so that the sealer takes it, if it holds anything; returns whether the sealer is to be told.
    pub(super) fn freeze_head(&self) -> bool {
        let newest = self.newest.load(Ordering::Acquire);
        let mut content = self.content.lock();
        if content.head.is_empty() {
            return false;
        }
        let at = content.next_seq;
        content.freeze(None, at, newest);
        !std::mem::replace(&mut content.queued, true)
    }

    /// All that a start restores of it, as text.
    #[cfg(test)]
    pub(super) fn restored(&self) -> String {
        let content = self.content.lock();
        let block = |b: &Arc<SealedBlock>| format!("{:?} {:?} {:?} {} {:?}", b.meta, b.place, b.seqs, b.newest, b.last);
        let chunk = |c: &ChunkState| {
            let blocks: Vec<String> = c.blocks.iter().map(block).collect();
            format!("{} {:?} {} {:?} {blocks:?}", c.number, c.symbols, c.compressed, c.closed)
        };
        let chunks: Vec<String> = content.chunks.iter().map(chunk).collect();
        let open = content.open_chunk.as_ref().map(|c| (c.number, c.compressed, c.symbols.len()));
        let seqs = (content.next_seq, content.head_first, &content.later, content.last);
        let numbers = (content.next_chunk, open, &content.flushed);
        let identity = (&self.log.tenant, self.labels().text(), self.bounds(), self.is_visible());
        format!("{identity:?} {seqs:?} {numbers:?} {chunks:#?}")
    }

    /// Are heads on their way to blocks?
    #[cfg(test)]
    pub(super) fn has_frozen(&self) -> bool {
        !self.content.lock().sealing.is_empty()
    }

    /// Bytes of the open head, and how long it has not grown.
    pub(super) fn head_memory(&self) -> (usize, Duration) {
        let content = self.content.lock();
        (content.head.memory(), content.touched.elapsed())
    }

    /// What is still needed of the stream's entries below `end_seq` in the log.
    pub(super) fn unsettled(&self, end_seq: u64) -> Unsettled {
        let content = self.content.lock();
        if content.sealed_end() >= end_seq {
            Unsettled::No
        } else if !content.sealing.is_empty() || content.next_seq < end_seq {
            Unsettled::Wait
        } else {
            Unsettled::Head(content.head.memory())
        }
    }

    /// A copy of the head with its seqs, if nothing of the stream waits for a block.
    pub(super) fn carry(&self) -> Option<Carry> {
        let content = self.content.lock();
        let whole = content.sealing.is_empty() && !content.head.is_empty();
        whole.then(|| Carry { head: content.head.clone(), runs: content.runs.clone() })
    }

    /// The next frozen head to seal; `None` ends the sealer's turn. One sealer at a time works on a stream, so its blocks
    /// go out, and come to count, in the order of their seqs.
    pub(super) fn next_seal(&self) -> Option<SealJob> {
        let mut content = self.content.lock();
        let Some(frozen) = content.sealing.get(content.sent).cloned() else {
            content.queued = false;
            return None;
        };
        if content.open_chunk.is_none() {
            let number = content.next_chunk;
            content.next_chunk += 1;
            content.open_chunk = Some(OpenChunk { number, ..OpenChunk::default() });
        }
        let chunk = content.open_chunk.clone()?;
        Some(SealJob {
            head: frozen.head,
            symbols: chunk.symbols,
            chunk: chunk.number,
            compressed: chunk.compressed,
            first_seq: frozen.first_seq,
            end_seq: frozen.end_seq,
            newest: frozen.newest,
            last: frozen.last,
            close: frozen.close,
        })
    }

    /// The head of the last [`Stream::next_seal`] is a block now and about to be sent: the chunk has these symbols and so many
    /// bytes, or takes no more.
    pub(super) fn sent(&self, symbols: Arc<Symbols>, compressed: usize, closed: bool) {
        let mut content = self.content.lock();
        content.sent += 1;
        match &mut content.open_chunk {
            _ if closed => content.open_chunk = None,
            Some(chunk) => (chunk.symbols, chunk.compressed) = (symbols, compressed),
            None => {}
        }
    }

    /// A block of this chunk counts now: it takes the place of the oldest frozen head, whose bytes are returned.
    pub(super) fn sealed(
        &self,
        number: u64,
        block: SealedBlock,
        symbols: Arc<Symbols>,
        closed: Option<CloseReason>,
    ) -> usize {
        let mut content = self.content.lock();
        let freed = content.sealing.pop_front().map_or(0, |f| f.head.memory());
        content.sent = content.sent.saturating_sub(1);
        if content.chunks.back().is_none_or(|c| c.number != number) {
            content.chunks.push_back(ChunkState { number, ..ChunkState::default() });
        }
        if let Some(chunk) = content.chunks.back_mut() {
            chunk.compressed += block.len();
            chunk.blocks.push(Arc::new(block));
            chunk.symbols = symbols;
            chunk.closed = chunk.closed.or(closed);
        }
        self.log.settle(content.sealed_end());
        freed
    }

    /// Takes in what the block log holds of the stream. `settled` are the ranges of its seqs that need no replay, sorted
    /// and apart; `last` is the entry before the first that does.
    pub(super) fn restore(
        &self,
        chunks: VecDeque<ChunkState>,
        next_chunk: u64,
        mut settled: VecDeque<Range<u64>>,
        last: Option<(i64, u128)>,
    ) {
        let bounds = chunks.iter().flat_map(|c| &c.blocks).map(|b| (b.meta.min_timestamp, b.meta.max_timestamp));
        for (min, max) in bounds {
            self.oldest.fetch_min(min, Ordering::AcqRel);
            self.newest.fetch_max(max, Ordering::AcqRel);
        }
        let any = chunks.iter().any(|c| !c.blocks.is_empty());
        let mut content = self.content.lock();
        let open = chunks.back().filter(|c| c.closed.is_none() && c.number + 1 == next_chunk);
        content.open_chunk =
            open.map(|c| OpenChunk { number: c.number, symbols: c.symbols.clone(), compressed: c.compressed });
        content.chunks = chunks;
        content.next_chunk = next_chunk;
        content.last = last;
        if let Some(prefix) = settled.pop_front_if(|r| r.start == 0) {
            content.next_seq = prefix.end;
            content.head_first = prefix.end;
        }
        self.log.settle(content.next_seq);
        content.later = settled;
        self.visible.store(any, Ordering::Release);
    }

    /// Says which of its chunks are closed, if [`Stream::restore`] knew of none.
    pub(super) fn restore_closed(&self, closed: &AHashMap<u64, CloseReason>) {
        let mut content = self.content.lock();
        for chunk in &mut content.chunks {
            chunk.closed = closed.get(&chunk.number).copied().or(chunk.closed);
        }
        if content.chunks.back().is_some_and(|c| c.closed.is_some()) {
            content.open_chunk = None;
        }
    }

    /// The stream's timestamps go up to here, also if the entry is not in memory any more.
    pub(super) fn note_newest(&self, timestamp: i64) {
        self.newest.fetch_max(timestamp, Ordering::AcqRel);
    }

    /// After replay: no seq below this comes any more, and the head goes on from what was recovered.
    pub(super) fn replayed(&self, next_seq: u64) {
        let newest = self.newest.load(Ordering::Acquire);
        let mut content = self.content.lock();
        // What lies behind the last hole.
        while let Some(end) = content.later.back().map(|r| r.end) {
            content.pass(end, newest);
        }
        content.next_seq = content.next_seq.max(next_seq);
        content.replayed_to = 0;
        content.applied = Amount::default();
        if content.head.is_empty() && content.sealing.is_empty() {
            content.head_first = content.next_seq;
        }
    }

    /// Moves a block to the place to which it was copied; returns whether the stream still has it. If its chunk was flushed
    /// meanwhile, the copy is one more place in which it is dead.
    pub(super) fn relocate(&self, chunk: u64, from: BlockPlace, to: BlockPlace) -> bool {
        let mut content = self.content.lock();
        let mut blocks = content.chunks.iter_mut().flat_map(|c| &mut c.blocks);
        if let Some(block) = blocks.find(|b| b.place == from) {
            *block = Arc::new(block.moved(to));
            return true;
        }
        content.flushed.entry(chunk).or_default().push(to.segment);
        false
    }

    /// The places of its blocks in a segment of the block log, with what a copy has to tell: chunk, symbols, block.
    pub(super) fn blocks_in(&self, segment: u64) -> Vec<(u64, Arc<Symbols>, Arc<SealedBlock>)> {
        let content = self.content.lock();
        let mut out = Vec::new();
        for chunk in &content.chunks {
            let here = chunk.blocks.iter().filter(|b| b.place.segment == segment);
            out.extend(here.map(|b| (chunk.number, chunk.symbols.clone(), b.clone())));
        }
        out
    }

    /// A closed chunk that is whole in blocks: its number and seqs. The oldest one first.
    pub(super) fn flushable(&self) -> Option<(u64, Range<u64>)> {
        let content = self.content.lock();
        // A chunk with a successor takes no more, and blocks come to count in order.
        let succeeded = content.chunks.len() > 1;
        let chunk = content.chunks.front().filter(|c| succeeded || c.closed.is_some())?;
        let seqs = chunk.blocks.first()?.seqs.start..chunk.blocks.last()?.seqs.end;
        // Lines of a damaged block among them, on their way to a new one, are in no chunk yet: they must not count as flushed.
        let heals = content.sealing.iter().any(|f| seqs.contains(&f.first_seq));
        (!heals).then_some((chunk.number, seqs))
    }

    /// Forgets a chunk that is in the object store; returns the places of its blocks.
    pub(super) fn flushed(&self, number: u64) -> Vec<BlockPlace> {
        let mut content = self.content.lock();
        let position = content.chunks.iter().position(|c| c.number == number);
        let Some(gone) = position.and_then(|p| content.chunks.remove(p)) else { return Vec::new() };
        let places: Vec<BlockPlace> = gone.blocks.iter().map(|b| b.place).collect();
        content.note_flushed(number, &places);
        places
    }

    /// A chunk that is in the object store has these dead blocks in the block log.
    pub(super) fn note_flushed(&self, number: u64, places: &[BlockPlace]) {
        self.content.lock().note_flushed(number, places);
    }

    /// Segments of the block log that held blocks of a flushed chunk.
    pub(super) fn flushed_into(&self, number: u64) -> Vec<u64> {
        self.content.lock().flushed.get(&number).cloned().unwrap_or_default()
    }

    /// Forgets flushed chunks of which no block is left.
    pub(super) fn forget_flushed(&self, holds: impl Fn(u64) -> bool) {
        self.content.lock().flushed.retain(|_, segments| segments.iter().any(|s| holds(*s)));
    }

    /// Is a chunk with this number still here?
    pub(super) fn awaits_flush(&self, number: u64) -> bool {
        self.content.lock().chunks.iter().any(|c| c.number == number)
    }

    /// What was applied lately. To be asked from time to time: it is what the rate is made of.
    pub(super) fn recent(&self) -> Recent {
        let mut content = self.content.lock();
        let elapsed = content.looked.elapsed();
        let applied = std::mem::take(&mut content.applied);
        content.looked += elapsed;
        content.recent.decay(elapsed);
        content.recent.add(applied);
        content.recent
    }

    /// Chunks in memory, the open one included.
    pub(super) fn chunk_count(&self) -> usize {
        let content = self.content.lock();
        let open = content.chunks.back().is_some_and(|c| c.closed.is_none());
        let heads = !content.head.is_empty() || !content.sealing.is_empty();
        content.chunks.len() + usize::from(heads && !open)
    }
}

/// How far into a sync period a timestamp lies. Without a period all lie at its beginning.
fn phase(timestamp: i64, period: u64, fingerprint: u64) -> u64 {
    (timestamp as u64).wrapping_add(fingerprint).checked_rem(period).unwrap_or(0)
}

/// Does another period begin between the two?
fn rolls_over(newest: i64, timestamp: i64, period: u64, fingerprint: u64) -> bool {
    phase(timestamp, period, fingerprint) < phase(newest, period, fingerprint)
}

/// Timestamps from this one on that lie in the same period: [`rolls_over`] holds for none of them and a later one.
fn period_from(timestamp: i64, period: u64, fingerprint: u64) -> Range<i64> {
    // Where the sum of both begins anew, so does the phase.
    let before_wrap = u64::MAX - (timestamp as u64).wrapping_add(fingerprint);
    let left = match period {
        0 => u64::MAX,
        _ => (period - phase(timestamp, period, fingerprint)).min(before_wrap),
    };
    timestamp..timestamp.saturating_add_unsigned(left)
}

impl Content {
    fn new() -> Self {
        Self {
            next_seq: 0,
            chunks: VecDeque::new(),
            open_chunk: None,
            next_chunk: 0,
            sealing: VecDeque::new(),
            sent: 0,
            head: Head::default(),
            head_first: 0,
            runs: Vec::new(),
            last: None,
            later: VecDeque::new(),
            flushed: BTreeMap::new(),
            replayed_to: 0,
            queued: false,
            within_period: 0..0,
            touched: Instant::now(),
            applied: Amount::default(),
            recent: Recent::default(),
            looked: Instant::now(),
        }
    }

    /// Entries and bytes that come to the head now, with those that a replay will bring, if they are like these; no more than `room`.
    fn expects(&self, row: &TableRow, room: usize) -> (usize, usize) {
        let (count, len) = (u128::from(row.count.max(1)), u128::from(row.part_len));
        // Once, with the first. Where blocks come between, after damage, most of them are in those.
        let to_come = if self.head.is_empty() && self.later.is_empty() {
            self.replayed_to.saturating_sub(row.first_seq)
        } else {
            0
        };
        let entries = u128::from(to_come).max(count);
        let bytes = usize::try_from(entries * len / count).unwrap_or(usize::MAX).min(room);
        // An entry takes three bytes at least.
        (usize::try_from(entries).unwrap_or(usize::MAX).min(bytes / 3), bytes)
    }

    fn note_flushed(&mut self, number: u64, places: &[BlockPlace]) {
        let segments: BTreeSet<u64> = places.iter().map(|p| p.segment).collect();
        self.flushed.insert(number, segments.into_iter().collect());
    }

    /// All smaller seqs need nothing of the write-ahead log.
    fn sealed_end(&self) -> u64 {
        match self.sealing.front() {
            Some(frozen) => frozen.first_seq,
            None if self.head.is_empty() => self.next_seq,
            None => self.head_first,
        }
    }

    /// Passes ranges that begin at or before `seq`: what comes behind them makes a head of its own, so that arrival stays in
    /// order. Returns the bytes that were frozen.
    fn pass(&mut self, seq: u64, newest: i64) -> usize {
        let mut frozen = 0;
        while let Some(range) = self.later.pop_front_if(|r| r.start <= seq) {
            frozen += self.freeze(None, range.start, newest);
            self.next_seq = self.next_seq.max(range.end);
            self.head_first = self.next_seq;
        }
        frozen
    }

    fn is_duplicate(&self, entry: &EntryView<'_>, body: &BodyView<'_>) -> bool {
        if let Some(last) = self.head.last() {
            if is(Bug::DistinctDropped) {
                return last.timestamp == entry.timestamp && last.line.len() == entry.line.len();
            }
            // Timestamps differ nearly always, so metadata is hardly ever resolved.
            return last.timestamp == entry.timestamp
                && last.equals(entry.timestamp, entry.line, metadata(entry, body));
        }
        let same_time = self.last.filter(|(timestamp, _)| *timestamp == entry.timestamp);
        same_time.is_some_and(|(_, hash)| hash == entry_hash(entry.line, metadata(entry, body)))
    }

    /// Loki's sync rule: replicas cut their chunks when an entry's time rolls over the sync period, shifted by the
    /// stream's fingerprint, so that their chunks are equal.
    fn wants_cut(&mut self, state: &State, timestamp: i64, newest: i64, fingerprint: u64) -> bool {
        if timestamp < newest || newest == i64::MIN {
            return false;
        }
        // The divisions would take as long as all else that is done with a line.
        if self.within_period.contains(&newest) && self.within_period.contains(&timestamp) {
            return false;
        }
        let period = u64::try_from(state.config.sync_period.as_nanos()).unwrap_or(u64::MAX);
        self.within_period = period_from(timestamp, period, fingerprint);
        rolls_over(newest, timestamp, period, fingerprint)
            && self.utilization(state) > state.config.sync_min_utilization
    }

    fn utilization(&self, state: &State) -> f64 {
        let open = self.open_chunk.as_ref().map_or(0, |c| c.compressed);
        let frozen: usize = self.sealing.iter().skip(self.sent).map(|f| f.head.uncompressed_size()).sum();
        (open + frozen + self.head.uncompressed_size()) as f64 / state.config.chunk_target_size.max(1) as f64
    }

    /// Moves the head, whose seqs end at `end_seq`, to the sealer's queue; returns its bytes.
    fn freeze(&mut self, close: Option<CloseReason>, end_seq: u64, newest: i64) -> usize {
        let head = std::mem::take(&mut self.head);
        self.runs.clear();
        let first_seq = std::mem::replace(&mut self.head_first, end_seq);
        let Some(last) = head.last().map(|e| (e.timestamp, entry_hash(e.line, e.metadata()))) else {
            let waits = self.sealing.len() > self.sent;
            match self.sealing.back_mut() {
                Some(last) if waits => last.close = last.close.or(close),
                // Its blocks are on their way or count already. That the next chunk has begun closes it in the log.
                _ if close.is_some() => {
                    if let Some(open) = self.open_chunk.take() {
                        let chunk = self.chunks.iter_mut().find(|c| c.number == open.number);
                        chunk.into_iter().for_each(|c| c.closed = c.closed.or(close));
                    }
                }
                _ => {}
            }
            return 0;
        };
        self.last = Some(last);
        let memory = head.memory();
        self.sealing.push_back(Frozen { head: Arc::new(head), first_seq, end_seq, newest, last, close });
        memory
    }

    fn append(&mut self, entry: &EntryView<'_>, body: &BodyView<'_>, symbols: &mut SymbolMap, seq: u64) {
        match self.runs.last_mut() {
            Some((first, count)) if *first + u64::from(*count) == seq => *count += 1,
            _ => self.runs.push((seq, 1)),
        }
        let pairs = entry.metadata();
        if pairs.len() == 1 {
            let mut one = [(0, 0)];
            for (slot, (n, v)) in one.iter_mut().zip(pairs) {
                *slot = (symbols.get(n, body, &mut self.head), symbols.get(v, body, &mut self.head));
            }
            self.head.append(entry.timestamp, entry.line, &one);
        } else {
            let head = &mut self.head;
            let pairs: Vec<(u32, u32)> =
                pairs.map(|(n, v)| (symbols.get(n, body, head), symbols.get(v, body, head))).collect();
            self.head.append(entry.timestamp, entry.line, &pairs);
        }
    }
}

fn metadata<'b, 'a: 'b>(
    entry: &EntryView<'a>,
    body: &'b BodyView<'a>,
) -> impl Iterator<Item = (&'b [u8], &'b [u8])> + use<'a, 'b> {
    let text = |i: u32| body.symbols().get(i as usize).copied().unwrap_or_default();
    entry.metadata().map(move |(n, v)| (text(n), text(v)))
}

/// 128 bits of a line and its metadata; lengths go in, so that no two entries run together.
fn entry_hash<'a>(line: &[u8], metadata: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> u128 {
    let mut h = twox_hash::XxHash3_128::new();
    let mut put = |bytes: &[u8]| {
        h.write(&(bytes.len() as u64).to_le_bytes());
        h.write(bytes);
    };
    put(line);
    for (name, value) in metadata {
        put(name);
        put(value);
    }
    h.finish_128()
}

/// Symbols of a body → symbols of the head, looked up once each.
struct SymbolMap(Vec<u32>);

impl SymbolMap {
    const UNKNOWN: u32 = u32::MAX;

    fn new(len: usize) -> Self {
        Self(vec![Self::UNKNOWN; len])
    }

    fn get(&mut self, symbol: u32, body: &BodyView<'_>, head: &mut Head) -> u32 {
        let Some(slot) = self.0.get_mut(symbol as usize) else { return head.intern(&[]) };
        if *slot == Self::UNKNOWN {
            *slot = head.intern(body.symbols().get(symbol as usize).copied().unwrap_or_default());
        }
        *slot
    }

    /// The head is a new one.
    fn forget(&mut self) {
        self.0.fill(Self::UNKNOWN);
    }
}

/// What applying a part has done.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub lines: u64,
    pub bytes: u64,
    pub duplicates: u64,
    pub duplicate_bytes: u64,
    /// Bytes that heads hold more than before.
    pub grown: usize,
    /// The sealer is to be told.
    pub wants_seal: bool,
    /// The stream is to be shown to reads.
    pub first_line: bool,
}

impl State {
    /// Applies one stream's part of a record and does what follows from it.
    pub(super) fn apply(
        &self,
        stream: &Arc<Stream>,
        row: &TableRow,
        body: &BodyView<'_>,
        part_start: usize,
    ) -> Result<Outcome, BodyError> {
        let outcome = stream.apply(self, row, body, part_start)?;
        self.heads_grew(outcome.grown);
        if outcome.first_line {
            self.show(stream);
            self.metrics.streams_created.with_label_values(&[stream.log.tenant.as_str()]).inc();
        }
        if outcome.duplicates > 0 {
            let tenant = stream.log.tenant.as_str();
            self.metrics.duplicate_bytes.with_label_values(&[tenant]).inc_by(outcome.duplicate_bytes);
        }
        if outcome.wants_seal {
            self.sealer.enqueue(stream.clone());
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn near(centre: i64) -> impl Strategy<Value = i64> {
        (-5000i64..5000).prop_map(move |distance| centre.saturating_add(distance))
    }

    proptest! {
        /// What spares the divisions changes nothing.
        #[test]
        fn no_period_begins_between_timestamps_of_one_range(
            (from, later) in prop_oneof![Just(0i64), Just(i64::MIN), Just(i64::MAX), any::<i64>()]
                .prop_flat_map(|centre| (near(centre), prop::collection::vec(near(centre), 1..50))),
            period in 0u64..3000,
            fingerprint in prop_oneof![0u64..3000, (u64::MAX - 3000)..=u64::MAX, any::<u64>()],
        ) {
            let range = period_from(from, period, fingerprint);
            let mut inside: Vec<i64> = later.iter().copied().filter(|t| range.contains(t)).collect();
            inside.sort_unstable();
            prop_assert!(inside.windows(2).all(|w| !rolls_over(w[0], w[1], period, fingerprint)));
            // It is not shorter than it must be, but at the ends of what can be told.
            let next = range.end;
            let is_end = next == i64::MAX || (next as u64).wrapping_add(fingerprint) == u64::MAX;
            prop_assert!(period == 0 || is_end || phase(next, period, fingerprint) == 0, "{range:?}");
        }
    }
}
