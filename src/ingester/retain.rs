//! Keeps both logs within their budgets: cleans the oldest segments step by step, so that they can go.
//!
//! Of the write-ahead log the oldest segment may go when nothing needs it: larger heads that hold it are sealed, smaller ones
//! are logged again at its end ("carried"). Of the block log a segment may go when all its chunks are in the object
//! store; one that is mostly dead is cleaned by copying what lives.

use super::commit::Payload;
use super::sealed::Sealing;
use super::stream::{Carry, Unsettled};
use super::worker::Worker;
use super::{State, Stream};
use crate::model::Tenant;
use crate::planted::{Bug, is};
use crate::wal::{
    BlockAppend, BlockLog, BlockPlace, BlockStore, Decision, EntriesBuilder, Hold, StreamLog, Unavailable, Wal,
};
use ahash::AHashMap;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tracing::{error, warn};

/// How often the logs are looked at.
const CHECK: Duration = Duration::from_millis(50);
/// How long the write-ahead log is left alone after a round that did not make it small enough, unless pushes wait for it.
const REST: Duration = Duration::from_secs(5);
/// Heads of so many bytes and more are sealed, smaller ones carried.
const SEAL_FROM: usize = 32 << 10;
/// Bytes of heads in one carried record, about.
const CARRY_BYTES: usize = 1 << 20;
/// Streams of one carried record.
const CARRY_STREAMS: usize = 2000;

/// Streams whose entries were logged again: the seq up to which, and the oldest segment in which the copy can be. A head is
/// carried once for each round of the log, not once for each segment.
type Carried = Arc<Mutex<AHashMap<u64, (u64, u64)>>>;

/// The thread that does it.
pub(super) struct Retainer {
    carried: Carried,
    worker: Worker,
}

impl Retainer {
    pub fn start(state: &Arc<State>, wal: &Arc<Wal<Payload>>, blocks: &Arc<BlockLog<Sealing>>) -> Self {
        let carried = Carried::default();
        let mut work = Work {
            state: Arc::downgrade(state),
            wal: wal.clone(),
            blocks: blocks.clone(),
            carried: carried.clone(),
            oldest: 0,
            cleaning: None,
            unreadable: HashSet::new(),
            rests_until: Instant::now(),
            damaged: Vec::new(),
            untold: false,
        };
        let worker = Worker::start("retain", move |signal| {
            while signal.pause(CHECK) {
                match work.step() {
                    Ok(()) => {}
                    // Ends with the process, or when it is told to.
                    Err(Unavailable::Stopped | Unavailable::Poisoned(_)) => return,
                    // Space comes back, or it does not: pushes are refused meanwhile, and the log says why.
                    Err(_) => {}
                }
            }
        });
        Self { carried, worker }
    }

    /// Were the entries of a stream up to this seq logged again?
    pub fn has_carried(&self, stream: u64, end_seq: u64) -> bool {
        self.carried.lock().get(&stream).is_some_and(|(end, _)| *end >= end_seq)
    }

    pub fn stop(&self) {
        self.worker.stop();
    }
}

struct Work {
    state: Weak<State>,
    wal: Arc<Wal<Payload>>,
    blocks: Arc<BlockLog<Sealing>>,
    carried: Carried,
    /// The oldest segment: copies in it do not count any more.
    oldest: u64,
    /// The segment of the block log whose blocks are being copied.
    cleaning: Option<u64>,
    /// Segments with a block that cannot be read.
    unreadable: HashSet<u64>,
    /// The whole log was cleaned, and is still too large.
    rests_until: Instant,
    /// Damaged blocks without a report, and whether writing one has failed.
    damaged: Vec<BlockPlace>,
    untold: bool,
}

impl Work {
    fn step(&mut self) -> Result<(), Unavailable> {
        let Some(state) = self.state.upgrade() else { return Err(Unavailable::Stopped) };
        state.metrics.wal_size.set(i64::try_from(self.wal.retention().size()).unwrap_or(i64::MAX));
        state.metrics.blocks_size.set(i64::try_from(self.blocks.store().size()).unwrap_or(i64::MAX));
        self.tell_damaged(&state);
        self.clean_wal(&state)?;
        self.clean_blocks(&state)
    }

    /// Puts blocks that reads have found damaged into quarantine, so that somebody hears of them, and the next start.
    fn tell_damaged(&mut self, state: &State) {
        self.damaged.extend(self.blocks.store().take_damaged());
        if self.damaged.is_empty() {
            return;
        }
        match self.blocks.store().quarantine(&state.config.quarantine_dir, &self.damaged) {
            Ok((new, not_kept)) => {
                self.damaged.clear();
                self.untold = false;
                state.metrics.corruptions.with_label_values(&["block"]).inc_by(new.len() as u64);
                not_kept.iter().for_each(|why| error!("a damaged segment is not in quarantine: {why}"));
                for place in new {
                    error!(
                        segment = place.segment,
                        offset = place.offset,
                        "a block is damaged: queries answer without its lines, and say so; restart soon, because a start makes it again \
                         from the write-ahead log, while that still has its lines"
                    );
                }
            }
            // It is tried again, and told once.
            Err(error) if !std::mem::replace(&mut self.untold, true) => {
                warn!(%error, blocks = self.damaged.len(), "blocks are damaged, and no report could be written to the quarantine");
            }
            Err(_) => {}
        }
    }

    fn clean_wal(&mut self, state: &State) -> Result<(), Unavailable> {
        let retention = self.wal.retention().clone();
        if Instant::now() < self.rests_until && !retention.refuses() {
            return Ok(());
        }
        // Once round: should what is needed not fit, going on would only write it again and again.
        let mut left = retention.segments();
        while retention.needs_cleaning() {
            if left == 0 {
                self.rests_until = Instant::now() + REST;
                return Ok(());
            }
            left -= 1;
            let Some((number, streams)) = retention.oldest(|s| (s.begins.segment, s.streams.clone())) else {
                return Ok(());
            };
            if self.oldest != number {
                self.oldest = number;
                self.carried.lock().retain(|_, (_, segment)| *segment > number);
            }
            let pinned = self.clean_segment(state, &streams)?;
            state.metrics.wal_pinned_streams.set(i64::try_from(pinned).unwrap_or(i64::MAX));
            if pinned > 0 {
                return Ok(());
            }
            let store = self.blocks.store();
            let again =
                retention.held_by_oldest_alone().into_iter().filter(|h| still_needed(state, store, h)).map(decision);
            self.wal.retire(number + 1, Vec::new(), again.collect())?;
            state.metrics.wal_retired.inc();
        }
        Ok(())
    }

    /// Seals and carries what the oldest segment is needed for; returns how many streams still need it.
    fn clean_segment(&mut self, state: &State, streams: &AHashMap<u64, u64>) -> Result<usize, Unavailable> {
        let mut pinned = 0;
        let mut small: Vec<Arc<Stream>> = Vec::new();
        for (&id, &end_seq) in streams {
            // A stream that memory does not know has nothing in it: all its pushes failed, or it was flushed.
            let Some(stream) = state.stream(id) else { continue };
            if self.carried.lock().get(&id).is_some_and(|(end, _)| *end >= end_seq) {
                continue;
            }
            match stream.unsettled(end_seq) {
                Unsettled::No => {}
                Unsettled::Wait if is(Bug::RetiredTooEarly) => {}
                Unsettled::Wait => pinned += 1,
                Unsettled::Head(size) if size >= SEAL_FROM => {
                    pinned += 1;
                    if stream.freeze_head() {
                        state.sealer.enqueue(stream);
                    }
                }
                Unsettled::Head(_) if is(Bug::CarriedTooLate) => {}
                Unsettled::Head(_) => small.push(stream),
            }
        }
        small.sort_by(|a, b| a.log.tenant.cmp(&b.log.tenant));
        for same_tenant in small.chunk_by(|a, b| a.log.tenant == b.log.tenant) {
            for some in same_tenant.chunks(CARRY_STREAMS) {
                pinned += self.carry(state, some)?;
            }
        }
        Ok(pinned)
    }

    /// Logs the heads of these streams of one tenant again; returns how many have to wait.
    fn carry(&mut self, state: &State, streams: &[Arc<Stream>]) -> Result<usize, Unavailable> {
        let mut waiting = 0;
        let mut heads: Vec<(&Arc<Stream>, Carry)> = Vec::new();
        let mut bytes = 0;
        for stream in streams {
            match stream.carry() {
                Some(carry) => {
                    bytes += carry.head.memory();
                    heads.push((stream, carry));
                }
                // It was frozen meanwhile, and comes as a block.
                None => waiting += 1,
            }
            if bytes >= CARRY_BYTES {
                self.log_again(state, &std::mem::take(&mut heads))?;
                bytes = 0;
            }
        }
        self.log_again(state, &heads)?;
        Ok(waiting)
    }

    fn log_again(&mut self, state: &State, heads: &[(&Arc<Stream>, Carry)]) -> Result<(), Unavailable> {
        let Some((first, _)) = heads.first() else { return Ok(()) };
        let tenant: &Tenant = &first.log.tenant;
        let size = heads.iter().map(|(_, c)| c.head.uncompressed_size() + 16 * c.head.len()).sum();
        let mut builder = EntriesBuilder::new(size);
        let mut seqs = Vec::new();
        let mut logs: Vec<Arc<StreamLog>> = Vec::new();
        let mut lines = 0;
        for (stream, carry) in heads {
            let mut position = 0;
            for (first_seq, count) in &carry.runs {
                builder.stream(stream.log.id);
                seqs.push(*first_seq);
                logs.push(stream.log.clone());
                for entry in (position..position + *count as usize).filter_map(|p| carry.head.get(p)) {
                    builder.entry(entry.timestamp, entry.line, entry.metadata());
                    lines += 1;
                }
                position += *count as usize;
            }
        }
        let record = builder.finish_carried(tenant.as_str(), state.config.wal_codec, &seqs);
        state.metrics.wal_carried_bytes.inc_by(record.len() as u64);
        let segment = self.wal.retention().bounds().map_or(0, |(_, newest)| newest);
        self.wal.decide(vec![Decision::Carried { record, streams: logs }])?;
        state.metrics.wal_carried_lines.inc_by(lines);
        for (stream, carry) in heads {
            let end = carry.runs.last().map_or(0, |(first, count)| first + u64::from(*count));
            // Behind the last run only duplicates have used up seqs.
            self.carried.lock().insert(stream.log.id, (end, segment));
        }
        Ok(())
    }

    fn clean_blocks(&mut self, state: &State) -> Result<(), Unavailable> {
        let store = self.blocks.store();
        let dead = store.dead();
        if !dead.is_empty() {
            if is(Bug::UnlinkedEarly) {
                let _ = store.remove(&dead);
            }
            self.wal.retire(0, dead.clone(), Vec::new())?;
            if let Err(error) = store.remove(&dead) {
                warn!(%error, "segments of the block log that hold nothing could not be removed: the next start tries again");
            }
            state.metrics.blocks_retired.inc_by(dead.len() as u64);
            let settled = state.moving.load(Ordering::Acquire) == 0;
            for stream in state.all_instances().iter().flat_map(|i| i.shown()).filter(|_| settled) {
                stream.forget_flushed(|segment| store.holds(segment));
            }
        }
        if self.cleaning.is_none_or(|segment| !store.holds(segment)) {
            self.cleaning = store.sparse(&self.unreadable);
            if let Some(segment) = self.cleaning {
                self.copy_live(state, segment);
            }
        }
        Ok(())
    }

    /// Copies what lives in a segment of the block log to its end; when the copies count, nothing holds the segment.
    fn copy_live(&mut self, state: &State, segment: u64) {
        for stream in state.all_instances().iter().flat_map(|i| i.shown()) {
            for (chunk, symbols, block) in stream.blocks_in(segment) {
                let data = match self.blocks.store().read(block.place) {
                    Ok(data) => data,
                    Err(error) => {
                        warn!(%error, "a block cannot be moved: its segment stays");
                        self.unreadable.insert(segment);
                        self.cleaning = None;
                        return;
                    }
                };
                let ids: Vec<u32> = (0..symbols.len() as u32).collect();
                state.moving.fetch_add(1, Ordering::AcqRel);
                self.blocks.append(BlockAppend {
                    tables: block.tables(stream.log.id, chunk, &symbols, &ids),
                    data,
                    stream: stream.log.clone(),
                    closes: None,
                    lets_go: true,
                    payload: Sealing::Moved { stream: stream.clone(), chunk, from: block.place },
                });
            }
        }
    }
}

/// The decision that a segment holds, to be logged again.
pub(super) fn decision(hold: Hold) -> Decision {
    match hold {
        Hold::Closed(c) => Decision::ChunkClosed(c),
        Hold::Flushed(c) => Decision::ChunkFlushed(c),
        Hold::Gap(g) => Decision::Gap(g),
    }
}

/// Does a decision in the oldest segment still have an effect?
pub(super) fn still_needed(state: &State, store: &BlockStore, hold: &Hold) -> bool {
    match hold {
        // The LSNs that it stands for are smaller than its own, so they go with this segment.
        Hold::Gap(_) => false,
        Hold::Flushed(_) if is(Bug::FlushedForgotten) => false,
        Hold::Closed(c) => state.stream(c.stream).is_some_and(|s| s.awaits_flush(c.chunk)),
        // As long as a segment of the block log holds blocks of it. Entries of it in the write-ahead log are older than this
        // decision, so they are gone with this segment.
        // A copy that is on its way may become such a block.
        Hold::Flushed(_) if state.moving.load(Ordering::Acquire) > 0 => true,
        Hold::Flushed(c) => {
            state.stream(c.stream).is_some_and(|s| s.flushed_into(c.chunk).iter().any(|segment| store.holds(*segment)))
        }
    }
}
