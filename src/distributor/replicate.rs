//! One push to several ingesters: grouped, sent in parallel, answered at the quorum.

use super::pool::ClientPool;
use super::{combine, metrics::Metrics};
use crate::model::{Push, PushError, Tenant};
use crate::ring::{Ring, RingError, SharedRing};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Sends pushes to the ingesters that the ring names.
pub(super) struct Replicator {
    pub(super) ring: Arc<SharedRing>,
    pub(super) pool: Arc<ClientPool>,
    pub(super) replication_factor: usize,
    pub(super) remote_timeout: Duration,
    pub(super) metrics: Metrics,
}

/// Which ingester gets which streams, and how far each stream is.
struct Plan {
    /// Streams by the ingester's position in the ring.
    targets: BTreeMap<usize, Vec<u32>>,
    tracker: Tracker,
}

impl Plan {
    fn new(ring: &Ring, push: &Push, replication_factor: usize, now: i64) -> Result<Self, RingError> {
        let mut targets: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        let mut streams = Vec::with_capacity(push.streams.len());
        for (index, stream) in push.streams.iter().enumerate() {
            let set = ring.get(stream.token, replication_factor, now)?;
            for instance in &set.instances {
                targets.entry(*instance).or_default().push(index as u32);
            }
            streams.push(Progress {
                min_success: set.min_success(),
                max_errors: set.max_errors,
                ..Progress::default()
            });
        }
        Ok(Self { targets, tracker: Tracker::new(streams) })
    }
}

impl Replicator {
    /// Returns when every stream is on disk in enough ingesters, or cannot be any more. The calls to the other
    /// ingesters go on, also when the future is dropped; each ends within the remote timeout.
    ///
    /// `now` is in seconds since the Unix epoch.
    pub(super) async fn push(&self, tenant: Tenant, push: Arc<Push>, now: i64) -> Result<(), PushError> {
        let ring = self.ring.load();
        let unavailable = |error: RingError| PushError::unavailable(error.to_string());
        let Plan { targets, mut tracker } =
            Plan::new(&ring, &push, self.replication_factor, now).map_err(unavailable)?;
        let (answers, mut answered) = mpsc::channel(targets.len().max(1));
        for (instance, streams) in targets {
            let Some(addr) = ring.instances().get(instance).map(|instance| instance.addr.clone()) else { continue };
            let call = self.call(addr, tenant.clone(), Arc::clone(&push), streams.clone());
            let answers = answers.clone();
            tokio::spawn(async move {
                // Nobody listens any more once the quorum is reached.
                let _ = answers.send((streams, call.await)).await;
            });
        }
        drop((answers, push));
        while let Some((streams, answer)) = answered.recv().await {
            if let Some(verdict) = tracker.settle(&streams, answer) {
                return verdict;
            }
        }
        Err(PushError::unavailable("an ingester's call ended without an answer; the push can be sent again"))
    }

    /// One ingester's part of a push, within the remote timeout.
    fn call(
        &self,
        addr: String,
        tenant: Tenant,
        push: Arc<Push>,
        streams: Vec<u32>,
    ) -> impl Future<Output = Result<(), PushError>> + Send + use<> {
        let pooled = self.pool.get(&addr);
        let (timeout, timeouts) = (self.remote_timeout, self.metrics.append_timeouts.clone());
        self.metrics.appends.with_label_values(&[&addr]).inc();
        async move {
            let Some(_room) = pooled.reserve(push.arena.len()) else {
                return Err(PushError::unavailable(format!(
                    "too many bytes are on their way to ingester {addr}; try again"
                )));
            };
            match tokio::time::timeout(timeout, pooled.client.push(tenant, push, streams)).await {
                Ok(answer) => answer,
                Err(_) => {
                    timeouts.with_label_values(&[&addr]).inc();
                    Err(PushError::unavailable(format!("ingester {addr} did not answer within {timeout:?}")))
                }
            }
        }
    }
}

/// The answers for one stream so far.
#[derive(Debug, Default)]
struct Progress {
    min_success: usize,
    max_errors: usize,
    /// Stored and synced.
    stored: usize,
    /// Answered with 4xx: what the ingester accepted is synced, the rest will never be.
    refused: usize,
    /// Nothing is known to be stored.
    failed: usize,
    done: bool,
}

enum Step {
    Waiting,
    Stored,
    Refused,
    Lost,
}

impl Progress {
    /// A stream whose copies are refused is settled only when as many ingesters as for a success hold what was good:
    /// the client will not send it again.
    fn step(&self) -> Step {
        if self.stored >= self.min_success {
            Step::Stored
        } else if self.failed > self.max_errors {
            Step::Lost
        } else if self.refused + self.failed > self.max_errors && self.stored + self.refused >= self.min_success {
            Step::Refused
        } else {
            Step::Waiting
        }
    }
}

/// Counts answers until the push is decided.
struct Tracker {
    streams: Vec<Progress>,
    waiting: usize,
    refused: bool,
    errors: Vec<PushError>,
}

impl Tracker {
    fn new(streams: Vec<Progress>) -> Self {
        Self { waiting: streams.len(), streams, refused: false, errors: Vec::new() }
    }

    /// Counts one ingester's answer for its streams. `Some` decides the push.
    fn settle(&mut self, streams: &[u32], answer: Result<(), PushError>) -> Option<Result<(), PushError>> {
        let failed = answer.as_ref().is_err_and(|error| error.status >= 500);
        let refused = answer.is_err() && !failed;
        self.errors.extend(answer.err().map(retryable));
        for index in streams {
            let Some(stream) = self.streams.get_mut(*index as usize) else { continue };
            stream.stored += usize::from(!failed && !refused);
            stream.refused += usize::from(refused);
            stream.failed += usize::from(failed);
            if stream.done {
                continue;
            }
            match stream.step() {
                Step::Waiting => continue,
                Step::Lost => return Some(self.error(|_| true)),
                Step::Stored => {}
                Step::Refused => self.refused = true,
            }
            stream.done = true;
            self.waiting -= 1;
        }
        match (self.waiting, self.refused) {
            (0, true) => Some(self.error(|error| error.status < 500)),
            (0, false) => Some(Ok(())),
            _ => None,
        }
    }

    fn error(&mut self, tell: impl Fn(&PushError) -> bool) -> Result<(), PushError> {
        let errors = std::mem::take(&mut self.errors);
        combine(errors.into_iter().filter(tell).collect()).map_or(Ok(()), Err)
    }
}

/// Clients drop a 500, and every failure of an ingester can be mended by a retry.
fn retryable(error: PushError) -> PushError {
    match error.status {
        500.. if error.status != 503 => PushError::unavailable(error.message),
        _ => error,
    }
}

#[cfg(test)]
#[path = "replicate_tests.rs"]
mod tests;
