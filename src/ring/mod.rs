//! The hash ring: which ingesters hold a stream. Pure: no clock, no network.
//!
//! The rules are those of Loki's write path (`WriteNoExtend`): walk the ring clockwise from the stream's token until
//! `replication_factor` distinct instances are found, count the quorum before the unhealthy ones are left out, and
//! never extend the set for an instance that is not ACTIVE.

use parking_lot::RwLock;
use std::fmt;
use std::hash::Hasher;
use std::sync::Arc;

#[cfg(test)]
mod tests;

/// Ring token of a stream: 32-bit FNV-1 (not 1a) over the tenant's bytes and then the canonical label text.
pub fn token_for(tenant: &str, labels_text: &str) -> u32 {
    let step = |hash: u32, byte: &u8| hash.wrapping_mul(0x0100_0193) ^ u32::from(*byte);
    let hash = tenant.as_bytes().iter().fold(0x811c_9dc5, step);
    labels_text.as_bytes().iter().fold(hash, step)
}

/// The tokens of an instance in a ring that is configured and not negotiated: derived from the id alone, so that every
/// distributor computes the same ring. Sorted, without repetition; `count` of them but for the rare collision.
pub fn tokens_of_instance(id: &str, count: u32) -> Vec<u32> {
    let token = |i: u32| {
        let mut hasher = twox_hash::XxHash64::with_seed(u64::from(i));
        hasher.write(id.as_bytes());
        (hasher.finish() >> 32) as u32
    };
    let mut tokens: Vec<u32> = (0..count).map(token).collect();
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

/// State of an instance, with the words and numbers of Loki's ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceState {
    /// Takes reads and writes.
    Active = 0,
    /// Shutting down.
    Leaving = 1,
    /// Has no tokens yet.
    Pending = 2,
    /// Takes over tokens.
    Joining = 3,
    /// Gone.
    Left = 4,
}

/// One ingester of the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Name, unique in the ring.
    pub id: String,
    /// `host:port` of its gRPC listener.
    pub addr: String,
    /// What it says about itself.
    pub state: InstanceState,
    /// Its places on the ring.
    pub tokens: Vec<u32>,
    /// Availability zone; empty if there are none.
    pub zone: String,
    /// When it was last heard of, in seconds since the Unix epoch; `None` in a ring without heartbeats.
    pub last_heartbeat: Option<i64>,
}

/// How a [`Ring`] chooses instances.
#[derive(Clone, Copy, Debug)]
pub struct RingConfig {
    /// Seconds after which an instance that is not heard of counts as dead; 0 for never. Loki's default is 60.
    pub heartbeat_timeout: i64,
    /// Take at most one instance of each zone.
    pub zone_awareness: bool,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self { heartbeat_timeout: 60, zone_awareness: false }
    }
}

/// The instances that get a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicationSet {
    /// Positions in [`Ring::instances`] of the healthy instances, in ring order.
    pub instances: Vec<usize>,
    /// How many of them may fail.
    pub max_errors: usize,
}

impl ReplicationSet {
    /// How many of the instances must have stored the stream.
    pub fn min_success(&self) -> usize {
        self.instances.len().saturating_sub(self.max_errors)
    }
}

/// Why there is no replication set; the texts are Loki's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// No instance has a token.
    #[error("empty ring")]
    Empty,
    /// Fewer healthy instances than a quorum needs.
    #[error("at least {required} live replicas required, could only find {found} - unhealthy instances: {}", unhealthy.join(","))]
    TooFewReplicas {
        /// The quorum.
        required: usize,
        /// Healthy instances in the set.
        found: usize,
        /// Addresses of the others.
        unhealthy: Vec<String>,
    },
}

/// An immutable view of the ring.
pub struct Ring {
    config: RingConfig,
    instances: Vec<Instance>,
    /// (token, position of its instance), sorted.
    tokens: Vec<(u32, usize)>,
}

impl Ring {
    /// Instances are ordered by id, so every process sees equal positions and settles equal tokens alike.
    pub fn new(config: RingConfig, mut instances: Vec<Instance>) -> Self {
        instances.sort_by(|a, b| a.id.cmp(&b.id));
        let mut tokens: Vec<(u32, usize)> = instances
            .iter()
            .enumerate()
            .flat_map(|(i, instance)| instance.tokens.iter().map(move |t| (*t, i)))
            .collect();
        tokens.sort_unstable();
        Self { config, instances, tokens }
    }

    /// A ring of the given (id, address) pairs that are always ACTIVE, each with `tokens_each` derived tokens.
    pub fn of_static<'a>(members: impl IntoIterator<Item = (&'a str, &'a str)>, tokens_each: u32) -> Self {
        let instance = |(id, addr): (&str, &str)| Instance {
            id: id.to_string(),
            addr: addr.to_string(),
            state: InstanceState::Active,
            tokens: tokens_of_instance(id, tokens_each),
            zone: String::new(),
            last_heartbeat: None,
        };
        Self::new(RingConfig::default(), members.into_iter().map(instance).collect())
    }

    /// All instances, ordered by id.
    pub fn instances(&self) -> &[Instance] {
        &self.instances
    }

    /// May a push go to this instance? `now` is in seconds since the Unix epoch.
    pub fn is_healthy(&self, instance: &Instance, now: i64) -> bool {
        let heard =
            |at: i64| self.config.heartbeat_timeout == 0 || now.saturating_sub(at) <= self.config.heartbeat_timeout;
        instance.state == InstanceState::Active && instance.last_heartbeat.is_none_or(heard)
    }

    /// The instances that get the stream with this token. `now` is in seconds since the Unix epoch.
    ///
    /// # Errors
    /// [`RingError`]: no instance has a token, or fewer than a quorum are healthy.
    pub fn get(&self, token: u32, replication_factor: usize, now: i64) -> Result<ReplicationSet, RingError> {
        if self.tokens.is_empty() {
            return Err(RingError::Empty);
        }
        let chosen = self.walk(token, replication_factor);
        let min_success = replication_factor.max(chosen.len()) / 2 + 1;
        let (healthy, unhealthy): (Vec<usize>, Vec<usize>) = chosen
            .into_iter()
            .partition(|i| self.instances.get(*i).is_some_and(|instance| self.is_healthy(instance, now)));
        if healthy.len() < min_success {
            let unhealthy = unhealthy.iter().filter_map(|i| self.instances.get(*i)).map(|i| i.addr.clone()).collect();
            return Err(RingError::TooFewReplicas { required: min_success, found: healthy.len(), unhealthy });
        }
        Ok(ReplicationSet { max_errors: healthy.len() - min_success, instances: healthy })
    }

    /// Distinct instances clockwise behind the token, healthy or not.
    fn walk(&self, token: u32, replication_factor: usize) -> Vec<usize> {
        let start = self.tokens.partition_point(|(t, _)| *t <= token);
        let (before, from) = self.tokens.split_at(start);
        let mut chosen: Vec<usize> = Vec::with_capacity(replication_factor.min(self.instances.len()));
        for (_, i) in from.iter().chain(before) {
            if chosen.len() >= replication_factor {
                break;
            }
            if !chosen.contains(i) && !self.zone_is_taken(*i, &chosen) {
                chosen.push(*i);
            }
        }
        chosen
    }

    fn zone_is_taken(&self, candidate: usize, chosen: &[usize]) -> bool {
        let zone = |i: usize| self.instances.get(i).map_or("", |instance| instance.zone.as_str());
        self.config.zone_awareness && !zone(candidate).is_empty() && chosen.iter().any(|i| zone(*i) == zone(candidate))
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring({} instances, {} tokens)", self.instances.len(), self.tokens.len())
    }
}

/// The ring as it is now: readers take a view, whoever watches the members replaces it.
#[derive(Debug)]
pub struct SharedRing(RwLock<Arc<Ring>>);

impl SharedRing {
    /// Starts with this view.
    pub fn new(ring: Ring) -> Self {
        Self(RwLock::new(Arc::new(ring)))
    }

    /// The present view.
    pub fn load(&self) -> Arc<Ring> {
        Arc::clone(&self.0.read())
    }

    /// Replaces the view.
    pub fn store(&self, ring: Ring) {
        *self.0.write() = Arc::new(ring);
    }
}
