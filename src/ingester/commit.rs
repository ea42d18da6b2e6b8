//! From the log back to memory: durable records go to appliers that the ingester owns, sharded by stream, in LSN order.
//! A request only waits; if its client goes away, nothing stalls.

use super::{Instance, OnPoisoned, State, Stream};
use crate::model::PushError;
use crate::planted::{Bug, is};
use crate::wal::{Applied, BodyView, Sink, TableRow, Unavailable, spawn_critical};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// What travels with a push through the log.
pub(super) struct Payload {
    pub instance: Arc<Instance>,
    /// The streams of the record's rows, each admitted once for this push.
    pub streams: Vec<Arc<Stream>>,
    /// What was taken from each stream's rate limit.
    pub taken: Vec<(f64, f64)>,
    pub ack: oneshot::Sender<Result<(), PushError>>,
    /// Room in the queue, given back when the push is applied or failed.
    pub room: OwnedSemaphorePermit,
}

impl Payload {
    /// Gives everything back that admission had reserved.
    pub fn release(&self) {
        for (stream, (cost, burst)) in self.streams.iter().zip(&self.taken) {
            stream.rate.lock().give_back(*cost, *burst);
            self.instance.release(stream);
        }
    }

    /// Releases the push and tells its client.
    pub fn fail(self, why: &Unavailable) {
        self.release();
        // A client that went away needs no answer.
        let _ = self.ack.send(Err(refusal(why)));
    }
}

/// The answer to a push that the log did not take.
pub(super) fn refusal(why: &Unavailable) -> PushError {
    match why {
        // A retry will not help.
        Unavailable::TooLarge(_) => PushError::too_large(why.to_string()),
        _ => PushError::unavailable(why.to_string()),
    }
}

/// A durable record on its way through the appliers.
struct Job {
    rows: Vec<TableRow>,
    raw: Arc<Vec<u8>>,
    streams: Vec<Arc<Stream>>,
    _room: OwnedSemaphorePermit,
}

struct Shared {
    job: Job,
    ack: Mutex<Option<oneshot::Sender<Result<(), PushError>>>>,
    /// Appliers that have not done their part.
    left: AtomicUsize,
}

/// The log's sink.
pub(super) struct Committer {
    shards: Vec<Sender<Arc<Shared>>>,
    on_poisoned: OnPoisoned,
}

impl Committer {
    /// Starts the appliers. They end when the log, and with it this value, is dropped.
    ///
    /// Their channels need no bound of their own: a push holds its room in the queue until it is applied.
    pub fn start(state: &Arc<State>, on_poisoned: OnPoisoned) -> Self {
        // Half of the processors: applying is a tenth of the work, and each record wakes all that it concerns.
        let count = state.config.threads.div_ceil(2).max(1);
        let shards = (0..count)
            .map(|shard| {
                let (sender, receiver) = channel();
                let state = state.clone();
                spawn_critical(&format!("apply-{shard}"), move || apply_all(&state, shard, count, &receiver));
                sender
            })
            .collect();
        Self { shards, on_poisoned }
    }

    fn dispatch(&self, job: Job, ack: oneshot::Sender<Result<(), PushError>>) {
        let count = self.shards.len();
        let mut wanted = vec![false; count];
        for row in &job.rows {
            if let Some(shard) = wanted.get_mut(shard_of(row.stream, count)) {
                *shard = true;
            }
        }
        let left = AtomicUsize::new(wanted.iter().filter(|w| **w).count());
        let shared = Arc::new(Shared { job, ack: Mutex::new(Some(ack)), left });
        for (shard, _) in self.shards.iter().zip(wanted).filter(|(_, wanted)| *wanted) {
            // An applier ends only after its channel is closed, or with the process.
            let _ = shard.send(shared.clone());
        }
    }
}

impl Sink<Payload> for Committer {
    fn durable(&mut self, records: Vec<Applied<Payload>>) {
        for Applied { rows, raw, payload, .. } in records {
            let Payload { streams, ack, room, .. } = payload;
            self.dispatch(Job { rows, raw, streams, _room: room }, ack);
        }
    }

    fn failed(&mut self, payloads: Vec<Payload>, why: &Unavailable) {
        payloads.into_iter().for_each(|p| p.fail(why));
    }

    fn poisoned(&mut self, error: &io::Error) {
        (self.on_poisoned)(error);
    }
}

pub(super) fn shard_of(stream: u64, count: usize) -> usize {
    (stream % count.max(1) as u64) as usize
}

fn apply_all(state: &State, shard: usize, count: usize, receiver: &Receiver<Arc<Shared>>) {
    for shared in receiver {
        apply_shard(state, &shared.job, shard, count);
        let last = shared.left.fetch_sub(1, Ordering::AcqRel) == 1;
        let ack = if last { shared.ack.lock().take() } else { None };
        // Room in the queue goes back before the client may push again.
        drop(shared);
        if let Some(ack) = ack {
            // A client that went away needs no answer.
            let _ = ack.send(Ok(()));
        }
    }
}

/// Applies the rows of one shard. The body was built by this process and came back unchanged, so it decodes; if it did
/// not, memory would differ from the log, and the process must end rather than serve that.
fn apply_shard(state: &State, job: &Job, shard: usize, count: usize) {
    assert!(!is(Bug::PanicInApply), "planted: applying panics");
    let body = BodyView::new(&job.raw).unwrap_or_else(|e| panic!("the body of a durable push does not decode: {e}"));
    let mut start = 0;
    for (row, stream) in job.rows.iter().zip(&job.streams) {
        if shard_of(row.stream, count) == shard {
            let applied = state.apply(stream, row, &body, start);
            applied.unwrap_or_else(|e| panic!("an entry of a durable push does not decode: {e}"));
            stream.finish();
        }
        start += row.part_len as usize;
    }
}
