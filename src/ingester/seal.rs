//! Sealing: frozen heads become compressed blocks, off the way of pushes.

use super::stream::CloseReason;
use super::{State, Stream};
use crate::chunk::Block;
use crate::wal::spawn_critical;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Above this share of the heads' budget the largest heads are sealed early, down to `LOW`.
const HIGH: f64 = 0.75;
const LOW: f64 = 0.5;
const CHECK: Duration = Duration::from_millis(100);

/// Streams with frozen heads. Each stream is in the queue at most once, so streams bound it.
pub(super) struct Sealer {
    queue: Mutex<VecDeque<Arc<Stream>>>,
    wake: Condvar,
    /// While replaying, blocks are only sealed under memory pressure: start-up is not the time for it.
    replaying: AtomicBool,
}

impl Sealer {
    pub fn new() -> Self {
        Self { queue: Mutex::default(), wake: Condvar::new(), replaying: AtomicBool::new(true) }
    }

    pub fn enqueue(&self, stream: Arc<Stream>) {
        self.queue.lock().push_back(stream);
        self.wake.notify_one();
    }

    pub fn replay_ended(&self) {
        self.replaying.store(false, Ordering::Release);
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
            Some(stream) => seal_stream(&state, &stream),
            None if relieves_pressure => relieve(&state),
            None => {}
        }
    }
}

/// The next stream to seal; `None` after a while, to look around.
fn next(state: &State) -> Option<Arc<Stream>> {
    let sealer = &state.sealer;
    let mut queue = sealer.queue.lock();
    let may_seal = |state: &State| !sealer.replaying.load(Ordering::Acquire) || under_pressure(state, LOW);
    if queue.is_empty() || !may_seal(state) {
        sealer.wake.wait_for(&mut queue, CHECK);
    }
    if may_seal(state) { queue.pop_front() } else { None }
}

fn under_pressure(state: &State, share: f64) -> bool {
    state.head_bytes.load(Ordering::Relaxed) as f64 > state.config.heads_budget as f64 * share
}

fn seal_stream(state: &State, stream: &Arc<Stream>) {
    while let Some(mut job) = stream.next_seal() {
        let block = Block::seal(&job.head, Arc::make_mut(&mut job.symbols), state.config.chunk_encoding);
        let stored = block.data().len() as u64;
        let (freed, closed) = stream.sealed(state, block, job.symbols);
        drop(job.head);
        state.heads_shrank(freed);
        state.metrics.blocks_sealed.inc();
        state.metrics.block_bytes.inc_by(stored);
        if let Some(reason) = closed {
            let reason = match reason {
                CloseReason::Full => "full",
                CloseReason::Synced => "synced",
            };
            state.metrics.chunks_closed.with_label_values(&[reason]).inc();
        }
    }
}

/// Many small heads can fill the budget without one of them reaching the block size: the largest are sealed as they are.
fn relieve(state: &Arc<State>) {
    if !under_pressure(state, HIGH) {
        return;
    }
    let mut heads: Vec<(usize, Arc<Stream>)> = Vec::new();
    for instance in state.all_instances() {
        heads.extend(instance.shown().into_iter().map(|s| (s.head_memory(), s)));
    }
    heads.sort_unstable_by_key(|(size, _)| std::cmp::Reverse(*size));
    let target = (state.config.heads_budget as f64 * LOW) as usize;
    let mut left = state.head_bytes.load(Ordering::Relaxed);
    for (size, stream) in heads {
        if left <= target || size == 0 {
            return;
        }
        if stream.freeze_head() {
            state.sealer.enqueue(stream);
        }
        left = left.saturating_sub(size);
    }
}
