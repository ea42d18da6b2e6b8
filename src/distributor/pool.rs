//! Connections to the ingesters of the ring, one for each address.

use super::IngesterClient;
use crate::model::RateLimited;
use crate::ring::{Instance, Ring};
use ahash::{AHashMap, AHashSet};
use futures_util::future::join_all;
use parking_lot::Mutex;
use prometheus::{IntGauge, Registry};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Makes the client of an address. It connects lazily and never blocks.
pub type Connect = dyn Fn(&str) -> Arc<dyn IngesterClient> + Send + Sync;

/// How a [`ClientPool`] treats its clients.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Time between two checks of all ingesters; Loki's is 15 s.
    pub check_period: Duration,
    /// The same while one of them fails: that it is back is to be seen soon.
    pub retry_period: Duration,
    /// A client that does not answer a check within this time is dropped; Loki's is 1 s.
    pub check_timeout: Duration,
    /// Bytes of pushes on their way to one ingester. Above it further pushes fail there at once, so that an ingester
    /// that hangs cannot fill memory. A single push is always admitted when nothing else is on its way.
    pub max_inflight_bytes: usize,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            check_period: Duration::from_secs(15),
            retry_period: Duration::from_secs(2),
            check_timeout: Duration::from_secs(1),
            max_inflight_bytes: 256 << 20,
        }
    }
}

/// The clients of a ring's ingesters.
pub struct ClientPool {
    connect: Box<Connect>,
    config: PoolConfig,
    clients: Mutex<AHashMap<String, Arc<PooledClient>>>,
    health: Mutex<AHashMap<String, Health>>,
    gauge: IntGauge,
}

/// What the checks of one ingester have found.
struct Health {
    /// Why the last one failed, if it did.
    problem: Option<String>,
    /// Was this told?
    told: bool,
    warning: RateLimited,
}

/// How often it is told that an ingester still fails.
const WARNING_PERIOD: Duration = Duration::from_secs(60);

impl Default for Health {
    fn default() -> Self {
        Self { problem: None, told: false, warning: RateLimited::new(WARNING_PERIOD) }
    }
}

impl Health {
    /// Notes what a check has found, and tells the operator what is new.
    fn note(&mut self, instance: &Instance, problem: Option<String>) {
        let (ingester, addr) = (&instance.id, &instance.addr);
        match &problem {
            Some(problem) => {
                if let Some(suppressed) = self.warning.due() {
                    self.told = true;
                    tracing::warn!(
                        ingester,
                        addr,
                        problem,
                        suppressed,
                        "an ingester fails its health checks: pushes depend on the others"
                    );
                }
            }
            None if std::mem::take(&mut self.told) => {
                tracing::info!(ingester, addr, "the ingester passes its health checks again");
            }
            None => {}
        }
        self.problem = problem;
    }
}

/// A client and the room that is left for pushes to it.
pub(super) struct PooledClient {
    pub(super) client: Arc<dyn IngesterClient>,
    room: Arc<Semaphore>,
    /// Permits of `room` when nothing is on its way.
    total: u32,
}

/// Bytes that one permit stands for.
const PERMIT: usize = 1024;

impl PooledClient {
    /// Room for a push of this many bytes; `None` if too much is on its way.
    pub(super) fn reserve(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let wanted = u32::try_from(bytes.div_ceil(PERMIT)).unwrap_or(u32::MAX).clamp(1, self.total);
        Arc::clone(&self.room).try_acquire_many_owned(wanted).ok()
    }
}

impl ClientPool {
    /// # Errors
    /// The registry already has `loki_distributor_ingester_clients`.
    pub fn new(connect: Box<Connect>, config: PoolConfig, registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = IntGauge::new("loki_distributor_ingester_clients", "The current number of ingester clients.")?;
        registry.register(Box::new(gauge.clone()))?;
        Ok(Self { connect, config, clients: Mutex::default(), health: Mutex::default(), gauge })
    }

    pub(super) fn get(&self, addr: &str) -> Arc<PooledClient> {
        let mut clients = self.clients.lock();
        if let Some(client) = clients.get(addr) {
            return Arc::clone(client);
        }
        let permits = (self.config.max_inflight_bytes / PERMIT).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        let room = Arc::new(Semaphore::new(permits));
        let client = Arc::new(PooledClient { client: (self.connect)(addr), room, total: permits as u32 });
        clients.insert(addr.to_string(), Arc::clone(&client));
        self.gauge.set(clients.len() as i64);
        client
    }

    /// Asks every ingester of the ring, also one that no push has gone to yet. Drops the clients of those that fail, and
    /// those whose address left the ring. A push makes a new one. Returns whether all passed.
    pub async fn check(&self, ring: &Ring) -> bool {
        self.forget_others(ring);
        let checks = ring.instances().iter().map(|instance| async move {
            let client = self.get(&instance.addr);
            let problem = self.problem_of(&client).await;
            if problem.is_some() {
                self.remove(&instance.addr, &client);
            }
            let passed = problem.is_none();
            self.health.lock().entry(instance.addr.clone()).or_default().note(instance, problem);
            passed
        });
        join_all(checks).await.into_iter().all(|passed| passed)
    }

    /// Why the ingester at this address failed its last health check, if it did.
    pub fn problem(&self, addr: &str) -> Option<String> {
        self.health.lock().get(addr)?.problem.clone()
    }

    fn forget_others(&self, ring: &Ring) {
        let members: AHashSet<&str> = ring.instances().iter().map(|instance| instance.addr.as_str()).collect();
        self.health.lock().retain(|addr, _| members.contains(addr.as_str()));
        let mut clients = self.clients.lock();
        clients.retain(|addr, _| members.contains(addr.as_str()));
        self.gauge.set(clients.len() as i64);
    }

    async fn problem_of(&self, client: &PooledClient) -> Option<String> {
        match tokio::time::timeout(self.config.check_timeout, client.client.check()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer to a health check within {:?}", self.config.check_timeout)),
        }
    }

    fn remove(&self, addr: &str, client: &Arc<PooledClient>) {
        let mut clients = self.clients.lock();
        // A newer client of the same address stays.
        if clients.get(addr).is_some_and(|present| Arc::ptr_eq(present, client)) {
            clients.remove(addr);
        }
        self.gauge.set(clients.len() as i64);
    }

    /// Runs [`ClientPool::check`] at once and then every `check_period`, for ever: the caller spawns and ends it.
    pub async fn check_forever(&self, ring: Arc<crate::ring::SharedRing>) {
        loop {
            let all_passed = self.check(&ring.load()).await;
            tokio::time::sleep(if all_passed { self.config.check_period } else { self.config.retry_period }).await;
        }
    }
}
