//! Sealing: frozen heads become compressed blocks in the block log, off the way of pushes.

use super::sealed::{SealedBlock, Sealing, tables_of};
use super::stream::CloseReason;
use super::{State, Stream};
use crate::chunk::Block;
use crate::planted::{Bug, is};
use crate::wal::{BlockAppend, BlockLog, BlockPlace, BlockSink, ChunkClosed, spawn_critical};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// What sealing needs of the heads' budget while it frees it: heads that wait for a sync of the block log, at the rate of a
/// fast disk. At most half of the budget, at least an eighth of it.
const RESERVE: usize = 64 << 20;
const CHECK: Duration = Duration::from_millis(100);
/// Streams that have been idle for less are all alike: the larger head goes first.
const SHORTLY: Duration = Duration::from_secs(60);

/// Streams with frozen heads. Each stream is in the queue at most once, so streams bound it.
pub(super) struct Sealer {
    queue: Mutex<VecDeque<Arc<Stream>>>,
    wake: Condvar,
    /// Where blocks go; absent while replaying, when nothing is sealed.
    log: OnceLock<Arc<BlockLog<Sealing>>>,
}

impl Sealer {
    pub fn new() -> Self {
        Self { queue: Mutex::default(), wake: Condvar::new(), log: OnceLock::new() }
    }

    pub fn enqueue(&self, stream: Arc<Stream>) {
        self.queue.lock().push_back(stream);
        self.wake.notify_one();
    }

    /// From here on blocks go to the block log.
    pub fn opened(&self, log: Arc<BlockLog<Sealing>>) {
        // Called once, by the one that made the log.
        let _ = self.log.set(log);
        self.wake.notify_all();
    }
}

/// Starts the sealer; it ends with the state.
pub(super) fn start(state: &Arc<State>) {
    for worker in 0..state.config.threads.div_ceil(2).max(1) {
        let state = Arc::downgrade(state);
        spawn_critical(&format!("seal-{worker}"), move || run(&state, worker == 0));
    }
}

fn run(state: &Weak<State>, relieves_pressure: bool) {
    while let Some(state) = state.upgrade() {
        match next(&state) {
            Some((stream, log)) => seal_stream(&state, &stream, &log),
            None if relieves_pressure => relieve(&state),
            None => {}
        }
    }
}

/// The next stream to seal; `None` after a while, to look around.
fn next(state: &State) -> Option<(Arc<Stream>, Arc<BlockLog<Sealing>>)> {
    let sealer = &state.sealer;
    let mut queue = sealer.queue.lock();
    if queue.is_empty() || sealer.log.get().is_none() {
        sealer.wake.wait_for(&mut queue, CHECK);
    }
    let log = sealer.log.get()?.clone();
    Some((queue.pop_front()?, log))
}

/// Above how many bytes of heads some are sealed early, and down to how many. The more heads may hold, the fewer blocks are
/// made of streams that are seldom written.
fn pressure(budget: usize) -> (usize, usize) {
    let high = budget - (budget / 8).max(RESERVE.min(budget / 2));
    (high, high - budget / 8)
}

/// Compresses a stream's frozen heads and sends the blocks on their way.
fn seal_stream(state: &State, stream: &Arc<Stream>, log: &BlockLog<Sealing>) {
    while let Some(mut job) = stream.next_seal() {
        assert!(!is(Bug::PanicInSeal), "planted: sealing panics");
        let symbols = Arc::make_mut(&mut job.symbols);
        let (block, ids) = Block::seal_with_ids(&job.head, symbols, state.config.chunk_encoding);
        let data = block.data().clone();
        let compressed = job.compressed + data.len();
        let full = compressed >= state.config.chunk_target_size;
        let closed = job.close.or(full.then_some(CloseReason::Full));
        let tables = tables_of(&job, stream, block.meta(), &job.symbols, &ids);
        let closes = closed.filter(|_| !is(Bug::FlushedBeforeClosed)).map(|reason| ChunkClosed {
            stream: stream.log.id,
            chunk: job.chunk,
            end_seq: job.end_seq,
            reason: reason.code(),
        });
        let payload = Sealing::New {
            stream: stream.clone(),
            tables: tables.clone(),
            data_len: data.len() as u32,
            symbols: job.symbols.clone(),
            closed,
        };
        stream.sent(job.symbols, compressed, closed.is_some());
        log.append(BlockAppend { tables, data, stream: stream.log.clone(), closes, lets_go: false, payload });
    }
}

/// Takes blocks that count into memory's place of their heads.
pub(super) struct Sealed(pub Weak<State>);

impl BlockSink<Sealing> for Sealed {
    fn synced(&mut self, blocks: Vec<(BlockPlace, Sealing)>) {
        let Some(state) = self.0.upgrade() else { return };
        let Some(log) = state.sealer.log.get() else { return };
        let mut freed = 0;
        for (place, sealing) in blocks {
            match sealing {
                Sealing::New { stream, tables, data_len, symbols, closed } => {
                    let shelf = stream.shelf(log.store(), &state.metadata);
                    let block = SealedBlock::of(&tables, place, data_len, shelf);
                    let block = block.unwrap_or_else(|e| panic!("a block of our own is refused: {e}"));
                    freed += stream.sealed(tables.chunk, block, symbols, closed);
                    state.metrics.blocks_sealed.inc();
                    state.metrics.block_bytes.inc_by(u64::from(data_len));
                    if let Some(reason) = closed {
                        state.metrics.chunks_closed.with_label_values(&[reason.name()]).inc();
                    }
                }
                Sealing::Moved { stream, chunk, from } => {
                    log.store().free(from);
                    if !stream.relocate(chunk, from, place) {
                        log.store().free(place);
                    }
                    state.moving.fetch_sub(1, Ordering::AcqRel);
                }
            }
        }
        state.heads_shrank(freed);
    }

    fn starved(&mut self) {
        if let Some(state) = self.0.upgrade() {
            // Who waits for room in the heads does not wait for a full disk.
            state.heads_shrank(0);
        }
    }
}

/// Many small heads can fill the budget without one of them reaching the block size: the largest and longest idle are sealed
/// as they are.
fn relieve(state: &Arc<State>) {
    let (high, low) = pressure(state.config.heads_budget);
    if state.head_bytes.load(Ordering::Relaxed) <= high {
        return;
    }
    let mut heads: Vec<(usize, u128, Arc<Stream>)> = Vec::new();
    for instance in state.all_instances() {
        heads.extend(instance.shown().into_iter().map(|s| {
            let (size, idle) = s.head_memory();
            (size, size as u128 * idle.max(SHORTLY).as_millis(), s)
        }));
    }
    heads.sort_unstable_by_key(|(_, weight, _)| std::cmp::Reverse(*weight));
    // Frozen heads leave by themselves.
    let mut left: usize = heads.iter().map(|(size, _, _)| size).sum();
    for (size, _, stream) in heads {
        if left <= low {
            return;
        }
        if stream.freeze_head() {
            state.sealer.enqueue(stream);
        }
        left = left.saturating_sub(size);
    }
}
