//! One push to several ingesters: grouped, sent in parallel, answered at the quorum.

use super::pool::ClientPool;
use super::{combine, metrics::Metrics};
use crate::model::{Push, PushError, Tenant};
use crate::ring::{Instance, Ring, RingError, SharedRing};
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
            let Some(Instance { id, addr, .. }) = ring.instances().get(instance).cloned() else { continue };
            let call = self.call(&addr, tenant.clone(), Arc::clone(&push), streams.clone());
            let answers = answers.clone();
            tokio::spawn(async move {
                let result = call.await;
                // Nobody listens any more once the quorum is reached.
                let _ = answers.send(Answer { id, addr, streams, result }).await;
            });
        }
        drop((answers, push));
        while let Some(answer) = answered.recv().await {
            if let Some(verdict) = tracker.settle(answer) {
                return verdict;
            }
        }
        Err(PushError::unavailable("an ingester's call ended without an answer; the push can be sent again"))
    }

    /// One ingester's part of a push, within the remote timeout.
    fn call(
        &self,
        addr: &str,
        tenant: Tenant,
        push: Arc<Push>,
        streams: Vec<u32>,
    ) -> impl Future<Output = Result<(), PushError>> + Send + use<> {
        let pooled = self.pool.get(addr);
        let (timeout, timeouts) = (self.remote_timeout, self.metrics.append_timeouts.with_label_values(&[addr]));
        self.metrics.appends.with_label_values(&[addr]).inc();
        async move {
            let Some(_room) = pooled.reserve(push.arena.len()) else {
                return Err(PushError::unavailable("too many bytes are on their way to it; try again"));
            };
            match tokio::time::timeout(timeout, pooled.client.push(tenant, push, streams)).await {
                Ok(answer) => answer,
                Err(_) => {
                    timeouts.inc();
                    Err(PushError::unavailable(format!("it did not answer within {timeout:?}")))
                }
            }
        }
    }
}

/// What one ingester says to its streams of a push.
struct Answer {
    id: String,
    addr: String,
    streams: Vec<u32>,
    result: Result<(), PushError>,
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
    /// Was a stream refused that enough ingesters answered for?
    refused: bool,
    refusals: Vec<PushError>,
    failures: Vec<Failure>,
}

/// An ingester of which nothing is known to be stored.
struct Failure {
    id: String,
    addr: String,
    streams: Vec<u32>,
    error: PushError,
}

impl Tracker {
    fn new(streams: Vec<Progress>) -> Self {
        Self { waiting: streams.len(), streams, refused: false, refusals: Vec::new(), failures: Vec::new() }
    }

    /// Counts one ingester's answer for its streams. `Some` decides the push.
    fn settle(&mut self, Answer { id, addr, streams, result }: Answer) -> Option<Result<(), PushError>> {
        let (mut failed, mut refused) = (false, false);
        match result {
            Ok(()) => {}
            Err(error) if error.status >= 500 => {
                failed = true;
                self.failures.push(Failure { id, addr, streams: streams.clone(), error: retryable(error) });
            }
            Err(error) => {
                refused = true;
                self.refusals.push(error);
            }
        }
        for index in streams {
            let Some(stream) = self.streams.get_mut(index as usize) else { continue };
            stream.stored += usize::from(!failed && !refused);
            stream.refused += usize::from(refused);
            stream.failed += usize::from(failed);
            if stream.done {
                continue;
            }
            match stream.step() {
                Step::Waiting => continue,
                Step::Lost => return Some(Err(self.lost(index))),
                Step::Stored => {}
                Step::Refused => self.refused = true,
            }
            stream.done = true;
            self.waiting -= 1;
        }
        match (self.waiting, self.refused) {
            (0, true) => Some(combine(std::mem::take(&mut self.refusals)).map_or(Ok(()), Err)),
            (0, false) => Some(Ok(())),
            _ => None,
        }
    }

    /// Why a stream has too few copies, in Loki's words, and what each of the ingesters said that failed.
    fn lost(&self, index: u32) -> PushError {
        let Some(stream) = self.streams.get(index as usize) else { return PushError::unavailable("no such stream") };
        let required = stream.min_success;
        let found = (required + stream.max_errors).saturating_sub(stream.failed);
        let failures: Vec<&Failure> = self.failures.iter().filter(|f| f.streams.contains(&index)).collect();
        let unhealthy = failures.iter().map(|f| f.addr.clone()).collect();
        let mut text = RingError::TooFewReplicas { required, found, unhealthy }.to_string();
        for Failure { id, addr, error, .. } in failures {
            text += &format!("\ningester {id} ({addr}): {}", error.message);
        }
        for refusal in &self.refusals {
            if !text.contains(&refusal.message) {
                text += &format!("\n{}", refusal.message);
            }
        }
        PushError::unavailable(text)
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
