use super::State;
use crate::chunk::{Block, Head, Part, Symbols};
use crate::model::{LabelSet, TokenBucket};
use crate::wal::{BodyError, BodyView, EntryView, StreamLog, TableRow};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};

/// Why a chunk was closed. Loki's names of flush reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CloseReason {
    /// It reached `chunk_target_size`.
    Full,
    /// The sync rule cut it.
    Synced,
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
}

/// Applied lines, in the order of their arrival: closed chunks, the open chunk, heads that are being sealed, the head.
#[derive(Default)]
struct Content {
    next_seq: u64,
    chunks: Vec<ChunkState>,
    sealing: VecDeque<Frozen>,
    head: Head,
    /// The last applied entry, if it is no longer in the head.
    last: Option<(i64, u128)>,
    /// The sealer has the stream in its queue.
    queued: bool,
}

#[derive(Default)]
struct ChunkState {
    symbols: Arc<Symbols>,
    blocks: Vec<Arc<Block>>,
    compressed: usize,
    closed: Option<CloseReason>,
}

#[derive(Clone)]
struct Frozen {
    head: Arc<Head>,
    close: Option<CloseReason>,
}

/// A frozen head on its way to a block, with its chunk's symbols.
pub(super) struct SealJob {
    pub head: Arc<Head>,
    pub symbols: Arc<Symbols>,
}

impl Stream {
    pub(super) fn new(log: Arc<StreamLog>) -> Self {
        Self {
            log,
            content: Mutex::default(),
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

    /// Seqs below this one do not come any more: they are applied, or lost for good.
    pub(super) fn skip_to(&self, next_seq: u64) {
        let mut content = self.content.lock();
        content.next_seq = content.next_seq.max(next_seq);
    }

    /// The stream's lines of `start <= timestamp < end` and more, in the order of arrival, as they are now. The open head
    /// is copied, within the range only.
    pub fn parts(&self, start: i64, end: i64) -> Vec<Part> {
        let content = self.content.lock();
        let mut parts = Vec::new();
        for chunk in &content.chunks {
            parts.extend(chunk.blocks.iter().map(|b| Part::Block(b.clone(), chunk.symbols.clone())));
        }
        parts.extend(content.sealing.iter().map(|f| Part::Head(f.head.clone())));
        parts.retain(|p| p.bounds().is_some_and(|(min, max)| min < end && max >= start));
        if !content.head.is_empty() {
            parts.push(Part::Head(Arc::new(content.head.slice(start, end))));
        }
        parts
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
        let mut symbols = SymbolMap::new(body.symbols().len());
        let before = content.head.memory();
        let mut frozen_bytes = 0;
        let (mut oldest, mut newest) = self.bounds();
        for (entry, seq) in part.zip(row.first_seq..) {
            let entry = entry?;
            if seq < content.next_seq {
                continue;
            }
            content.next_seq = seq + 1;
            if content.is_duplicate(&entry, body) {
                outcome.duplicates += 1;
                outcome.duplicate_bytes += entry.line.len() as u64;
                continue;
            }
            if content.wants_cut(state, &entry, newest, self.log.fingerprint) {
                frozen_bytes += content.freeze(Some(CloseReason::Synced));
                symbols.forget();
            } else if content.head.uncompressed_size() >= state.config.chunk_block_size
                || !content.head.has_room(entry.line.len(), entry.metadata().len())
            {
                frozen_bytes += content.freeze(None);
                symbols.forget();
            }
            content.append(&entry, body, &mut symbols);
            (oldest, newest) = (oldest.min(entry.timestamp), newest.max(entry.timestamp));
            outcome.lines += 1;
            outcome.bytes += entry.line.len() as u64;
        }
        outcome.grown = (content.head.memory() + frozen_bytes).saturating_sub(before);
        self.oldest.store(oldest, Ordering::Release);
        self.newest.store(newest, Ordering::Release);
        outcome.wants_seal = !content.sealing.is_empty() && !std::mem::replace(&mut content.queued, true);
        outcome.first_line = outcome.lines > 0 && !self.visible.swap(true, Ordering::AcqRel);
        Ok(outcome)
    }

    /// Freezes the head so that the sealer takes it, if it holds anything; returns whether the sealer is to be told.
    pub(super) fn freeze_head(&self) -> bool {
        let mut content = self.content.lock();
        if content.head.is_empty() {
            return false;
        }
        content.freeze(None);
        !std::mem::replace(&mut content.queued, true)
    }

    /// Bytes of the open head.
    pub(super) fn head_memory(&self) -> usize {
        self.content.lock().head.memory()
    }

    /// The next frozen head to seal; `None` ends the sealer's turn. At most one sealer works on a stream.
    pub(super) fn next_seal(&self) -> Option<SealJob> {
        let mut content = self.content.lock();
        let Some(frozen) = content.sealing.front() else {
            content.queued = false;
            return None;
        };
        let head = frozen.head.clone();
        if content.chunks.last().is_none_or(|c| c.closed.is_some()) {
            content.chunks.push(ChunkState::default());
        }
        let symbols = content.chunks.last().map(|c| c.symbols.clone()).unwrap_or_default();
        Some(SealJob { head, symbols })
    }

    /// Puts the block of the oldest frozen head in its place; returns the head's bytes and why its chunk was closed.
    pub(super) fn sealed(&self, state: &State, block: Block, symbols: Arc<Symbols>) -> (usize, Option<CloseReason>) {
        let mut content = self.content.lock();
        let Some(frozen) = content.sealing.pop_front() else { return (0, None) };
        let Some(chunk) = content.chunks.last_mut() else { return (frozen.head.memory(), None) };
        chunk.compressed += block.data().len();
        chunk.blocks.push(Arc::new(block));
        chunk.symbols = symbols;
        let full = chunk.compressed >= state.config.chunk_target_size;
        chunk.closed = frozen.close.or(full.then_some(CloseReason::Full));
        (frozen.head.memory(), chunk.closed)
    }

    /// Chunks in memory, the open one included.
    pub(super) fn chunk_count(&self) -> usize {
        let content = self.content.lock();
        let open = content.chunks.last().is_some_and(|c| c.closed.is_none());
        let heads = !content.head.is_empty() || !content.sealing.is_empty();
        content.chunks.len() + usize::from(heads && !open)
    }
}

impl Content {
    fn is_duplicate(&self, entry: &EntryView<'_>, body: &BodyView<'_>) -> bool {
        if let Some(last) = self.head.last() {
            // Timestamps differ nearly always, so metadata is hardly ever resolved.
            return last.timestamp == entry.timestamp
                && last.equals(entry.timestamp, entry.line, metadata(entry, body));
        }
        let same_time = self.last.filter(|(timestamp, _)| *timestamp == entry.timestamp);
        same_time.is_some_and(|(_, hash)| hash == entry_hash(entry.line, metadata(entry, body)))
    }

    /// Loki's sync rule: replicas cut their chunks when an entry's time rolls over the sync period, shifted by the
    /// stream's fingerprint, so that their chunks are equal.
    fn wants_cut(&self, state: &State, entry: &EntryView<'_>, newest: i64, fingerprint: u64) -> bool {
        let period = u64::try_from(state.config.sync_period.as_nanos()).unwrap_or(u64::MAX);
        if period == 0 || newest == i64::MIN || entry.timestamp < newest {
            return false;
        }
        let phase = |timestamp: i64| (timestamp as u64).wrapping_add(fingerprint) % period;
        phase(entry.timestamp) < phase(newest) && self.utilization(state) > state.config.sync_min_utilization
    }

    fn utilization(&self, state: &State) -> f64 {
        let open = self.chunks.last().filter(|c| c.closed.is_none()).map_or(0, |c| c.compressed);
        let frozen: usize = self.sealing.iter().map(|f| f.head.uncompressed_size()).sum();
        (open + frozen + self.head.uncompressed_size()) as f64 / state.config.chunk_target_size.max(1) as f64
    }

    /// Moves the head to the sealer's queue; returns its bytes.
    fn freeze(&mut self, close: Option<CloseReason>) -> usize {
        let head = std::mem::take(&mut self.head);
        if head.is_empty() {
            if let Some(last) = self.sealing.back_mut() {
                last.close = last.close.or(close);
            } else if let Some(chunk) = self.chunks.last_mut() {
                chunk.closed = chunk.closed.or(close);
            }
            return 0;
        }
        self.last = head.last().map(|e| (e.timestamp, entry_hash(e.line, e.metadata())));
        let memory = head.memory();
        self.sealing.push_back(Frozen { head: Arc::new(head), close });
        memory
    }

    fn append(&mut self, entry: &EntryView<'_>, body: &BodyView<'_>, symbols: &mut SymbolMap) {
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
            self.instance(&stream.log.tenant).show(stream);
            self.metrics.streams_created.with_label_values(&[stream.log.tenant.as_str()]).inc();
            self.metrics.memory_streams.with_label_values(&[stream.log.tenant.as_str()]).inc();
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
