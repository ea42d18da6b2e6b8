//! Who pushes most, and who is refused most: the heaviest of many, in bounded memory.

use super::Tenant;
use ahash::AHashMap;
use parking_lot::Mutex;
use std::fmt;
use std::hash::Hash;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rates are those of about the last minute: what came is forgotten with this time constant.
const WINDOW: Duration = Duration::from_secs(60);
/// Tenants, and streams, that are counted at a time.
const KEYS: usize = 256;
/// User agents that are counted for one of them.
const AGENTS: usize = 4;
/// Bytes that are kept of a user agent.
const MAX_AGENT: usize = 128;
/// Bytes that are kept of a refused stream's labels.
const MAX_LABELS: usize = 1024;

/// Lines and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Lines.
    pub lines: u64,
    /// Bytes of lines and structured metadata.
    pub bytes: u64,
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.lines = self.lines.saturating_add(other.lines);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// What came lately: a sum that decays.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Recent {
    lines: f64,
    bytes: f64,
}

impl Recent {
    /// Forgets a part of it, after this time.
    pub fn decay(&mut self, elapsed: Duration) {
        let left = (-elapsed.as_secs_f64() / WINDOW.as_secs_f64()).exp();
        self.lines *= left;
        self.bytes *= left;
    }

    /// Something came.
    pub fn add(&mut self, amount: Amount) {
        self.lines += amount.lines as f64;
        self.bytes += amount.bytes as f64;
    }

    /// Lines a second.
    pub fn lines_per_second(&self) -> f64 {
        self.lines / WINDOW.as_secs_f64()
    }

    /// Bytes a second.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes / WINDOW.as_secs_f64()
    }

    /// What the heaviest are found by. Empty lines weigh something, too.
    pub fn weight(&self) -> f64 {
        self.lines + self.bytes
    }

    fn without(self, other: Self) -> Self {
        Self { lines: (self.lines - other.lines).max(0.0), bytes: (self.bytes - other.bytes).max(0.0) }
    }
}

/// The program that pushed, as it names itself: printable and short. Empty if it does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agent(Option<Arc<str>>);

impl Agent {
    /// From the header `User-Agent`, which is the client's.
    pub fn new(header: &[u8]) -> Self {
        let kept = header.iter().take(MAX_AGENT);
        let text: String = kept.map(|b| if matches!(b, b' '..=b'~') { char::from(*b) } else { '?' }).collect();
        Self((!text.is_empty()).then(|| text.into()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The programs whose pushes were refused: the last one, and those that were most often, with how often.
#[derive(Clone, Debug, Default)]
pub struct Agents {
    /// The last one.
    pub last: Agent,
    counts: Vec<(Agent, u64)>,
}

impl Agents {
    fn note(&mut self, agent: &Agent) {
        self.last = agent.clone();
        if let Some((_, count)) = self.counts.iter_mut().find(|(known, _)| known == agent) {
            *count += 1;
        } else if self.counts.len() < AGENTS {
            self.counts.push((agent.clone(), 1));
        } else if let Some(rarest) = self.counts.iter_mut().min_by_key(|(_, count)| *count) {
            // As with the keys: the newcomer may be more frequent than it seems.
            *rarest = (agent.clone(), rarest.1 + 1);
        }
    }

    /// Those that were refused most often, and how often at most.
    pub fn most(&self) -> Vec<(Agent, u64)> {
        let mut counts = self.counts.clone();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        counts
    }
}

/// What is known of one key.
#[derive(Clone, Debug)]
struct Counter<T> {
    recent: Recent,
    /// Of `recent`, what belongs to keys whose place it took.
    inherited: Recent,
    /// Since it is counted.
    total: Amount,
    more: T,
}

/// The heaviest of many keys, by the Space-Saving algorithm (Metwally et al., 2005) over sums that decay: a new key takes the
/// place of the lightest and inherits its sum, so that none that is heavy stays out for long.
struct Top<K, T> {
    counters: AHashMap<K, Counter<T>>,
    decayed: Option<Instant>,
}

impl<K, T> Default for Top<K, T> {
    fn default() -> Self {
        Self { counters: AHashMap::new(), decayed: None }
    }
}

impl<K: Hash + Eq + Clone, T: Default + Clone> Top<K, T> {
    /// Counts something of a key, and hands on what else is known of it.
    fn add(&mut self, key: &K, amount: Amount, now: Instant) -> &mut T {
        self.decay(now);
        if !self.counters.contains_key(key) {
            let inherited = if self.counters.len() < KEYS { Recent::default() } else { self.take_lightest() };
            let counter = Counter { recent: inherited, inherited, total: Amount::default(), more: T::default() };
            self.counters.insert(key.clone(), counter);
        }
        let counter = self.counters.get_mut(key).unwrap_or_else(|| unreachable!("it is known by now"));
        counter.recent.add(amount);
        counter.total += amount;
        &mut counter.more
    }

    /// Once a second at most, so that all sums stay comparable and most calls cost nothing here.
    fn decay(&mut self, now: Instant) {
        let since = *self.decayed.get_or_insert(now);
        let elapsed = now.saturating_duration_since(since);
        if elapsed < Duration::from_secs(1) {
            return;
        }
        self.decayed = Some(now);
        for counter in self.counters.values_mut() {
            counter.recent.decay(elapsed);
            counter.inherited.decay(elapsed);
        }
    }

    fn take_lightest(&mut self) -> Recent {
        let weight = |c: &Counter<T>| c.recent.weight();
        let lightest = self.counters.iter().min_by(|(_, a), (_, b)| weight(a).total_cmp(&weight(b)));
        let key = lightest.map(|(key, _)| key.clone());
        key.and_then(|key| self.counters.remove(&key)).map_or_else(Recent::default, |c| c.recent)
    }

    /// The heaviest, with what is certainly theirs.
    fn heaviest(&mut self, count: usize, now: Instant) -> Vec<Busy<K, T>> {
        self.decay(now);
        let busy = |(key, c): (&K, &Counter<T>)| Busy {
            key: key.clone(),
            recent: c.recent.without(c.inherited),
            total: c.total,
            more: c.more.clone(),
        };
        let mut all: Vec<Busy<K, T>> = self.counters.iter().map(busy).collect();
        all.sort_by(|a, b| b.recent.weight().total_cmp(&a.recent.weight()));
        all.truncate(count);
        all
    }
}

/// One of the heaviest.
#[derive(Clone, Debug)]
pub struct Busy<K, T> {
    /// Who it is.
    pub key: K,
    /// How fast.
    pub recent: Recent,
    /// How much since it is counted: others may have taken its place meanwhile.
    pub total: Amount,
    /// What else is known.
    pub more: T,
}

/// What is known of a stream that was refused.
#[derive(Clone, Debug, Default)]
pub struct RefusedStream {
    /// Why the last time.
    pub reason: &'static str,
    /// Who pushed to it.
    pub agents: Agents,
}

/// A tenant and a reason.
pub type TenantReason = (Tenant, &'static str);
/// A tenant and the labels of a stream, cut if they are long.
pub type TenantStream = (Tenant, Box<str>);

/// Counts pushes and refusals. One cheap operation for each push, and one for each stream of what is refused.
#[derive(Default)]
pub struct Traffic {
    pushed: Mutex<Top<Tenant, ()>>,
    refused: Mutex<Top<TenantReason, Agents>>,
    refused_streams: Mutex<Top<TenantStream, RefusedStream>>,
}

impl Traffic {
    /// A tenant has pushed something, accepted or not.
    pub fn pushed(&self, tenant: &Tenant, amount: Amount) {
        self.pushed.lock().add(tenant, amount, Instant::now());
    }

    /// Something of a push was refused.
    pub fn refused(&self, tenant: &Tenant, reason: &'static str, amount: Amount, agent: &Agent) {
        self.refused.lock().add(&(tenant.clone(), reason), amount, Instant::now()).note(agent);
    }

    /// Of that, what belongs to one stream.
    pub fn refused_stream(&self, tenant: &Tenant, labels: &str, reason: &'static str, amount: Amount, agent: &Agent) {
        let mut streams = self.refused_streams.lock();
        let stream = streams.add(&(tenant.clone(), cut(labels)), amount, Instant::now());
        stream.reason = reason;
        stream.agents.note(agent);
    }

    /// Tenants that push most.
    pub fn top_tenants(&self, count: usize) -> Vec<Busy<Tenant, ()>> {
        self.pushed.lock().heaviest(count, Instant::now())
    }

    /// Tenants that are refused most, by reason.
    pub fn top_refused(&self, count: usize) -> Vec<Busy<TenantReason, Agents>> {
        self.refused.lock().heaviest(count, Instant::now())
    }

    /// Streams that are refused most.
    pub fn top_refused_streams(&self, count: usize) -> Vec<Busy<TenantStream, RefusedStream>> {
        self.refused_streams.lock().heaviest(count, Instant::now())
    }
}

fn cut(labels: &str) -> Box<str> {
    if labels.len() <= MAX_LABELS {
        return labels.into();
    }
    let end = labels.floor_char_boundary(MAX_LABELS);
    format!("{}…", labels.get(..end).unwrap_or_default()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(lines: u64, bytes: u64) -> Amount {
        Amount { lines, bytes }
    }

    fn after(seconds: u64) -> Instant {
        static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        *START + Duration::from_secs(seconds)
    }

    #[test]
    fn the_heaviest_of_many_are_found_in_bounded_memory() {
        let mut top: Top<u64, ()> = Top::default();
        // A flood of keys that come once, and in it three that come again and again.
        for n in 0..200_000_u64 {
            top.add(&(1000 + n), amount(1, 10), after(n / 10_000));
            top.add(&(n % 3), amount(1, 100 * (n % 3 + 1)), after(n / 10_000));
        }
        assert_eq!(top.counters.len(), KEYS);
        let heaviest = top.heaviest(3, after(20));
        assert_eq!(heaviest.iter().map(|b| b.key).collect::<Vec<_>>(), [2, 1, 0]);
        assert_eq!(heaviest[0].total, amount(66_666, 66_666 * 300));
        // One of the flood shows what is its own, not what it has inherited.
        let all = top.heaviest(KEYS, after(20));
        assert!(all.iter().skip(3).all(|b| b.total == amount(1, 10) && b.recent.bytes <= 10.0), "{:?}", all.last());
    }

    #[test]
    fn a_key_that_becomes_heavy_gets_in_and_one_that_is_idle_leaves() {
        let mut top: Top<u64, ()> = Top::default();
        for n in 0..KEYS as u64 {
            top.add(&n, amount(1000, 1_000_000), after(0));
        }
        for n in 0..100 {
            top.add(&7000, amount(1, 1000), after(600 + n));
        }
        assert_eq!(top.heaviest(1, after(700))[0].key, 7000);
    }

    #[test]
    fn rates_are_those_of_about_the_last_minute() {
        let mut top: Top<u64, ()> = Top::default();
        for second in 0..600 {
            top.add(&1, amount(10, 1000), after(second));
        }
        let rate = |top: &mut Top<u64, ()>, at| top.heaviest(1, after(at))[0].recent.bytes_per_second();
        assert!((900.0..1100.0).contains(&rate(&mut top, 600)), "{}", rate(&mut top, 600));
        assert!(rate(&mut top, 660) < 450.0);
        assert!(rate(&mut top, 1200) < 1.0);
    }

    #[test]
    fn agents_are_short_printable_and_few() {
        assert_eq!(Agent::new(b"promtail/3.0\r\nX: y\x1b[31m\xff").as_str(), "promtail/3.0??X: y?[31m?");
        assert_eq!(Agent::new(&[b'a'; 1 << 20]).as_str().len(), MAX_AGENT);
        assert_eq!(Agent::new(b""), Agent::default());
        let mut agents = Agents::default();
        for n in 0..1000 {
            agents.note(&Agent::new(b"often"));
            agents.note(&Agent::new(format!("made up {n}").as_bytes()));
        }
        assert_eq!(agents.counts.len(), AGENTS);
        assert_eq!(agents.most()[0], (Agent::new(b"often"), 1000));
        assert_eq!(agents.last.as_str(), "made up 999");
    }

    #[test]
    fn labels_of_refused_streams_are_cut() {
        let traffic = Traffic::default();
        let tenant = Tenant::new("t").unwrap();
        let long = format!("{{a=\"{}\"}}", "é".repeat(100_000));
        traffic.refused_stream(&tenant, &long, "line_too_long", amount(1, 2), &Agent::new(b"x"));
        let top = traffic.top_refused_streams(10);
        assert!(top[0].key.1.len() <= MAX_LABELS + 3 && top[0].key.1.ends_with('…'));
        assert_eq!((top[0].more.reason, top[0].total), ("line_too_long", amount(1, 2)));
    }
}
