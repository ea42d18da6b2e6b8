//! From a label text to a stream's labels: parsing, service name, validation, and the cache that makes them cheap.

use super::level::{Level, LevelDetector};
use super::rejection::{LabelRejection, Reason};
use crate::model::{LabelSet, Limits, Tenant, parse_labels};
use crate::ring::token_for;
use ahash::{AHashMap, RandomState};
use parking_lot::RwLock;
use std::sync::Arc;

/// The label that names a stream's service.
const SERVICE_NAME: &str = "service_name";
/// Its value when nothing else tells it.
const UNKNOWN_SERVICE: &str = "unknown_service";
/// Streams that Loki's components write for themselves get no service name.
const INTERNAL_LABELS: [&str; 2] = ["__aggregated_metric__", "__pattern__"];

/// What the distributor knows of a stream from its labels alone.
#[derive(Debug)]
pub struct StreamLabels {
    /// Canonical labels.
    pub labels: Arc<LabelSet>,
    /// Ring token of the tenant's stream.
    pub token: u32,
    /// The level that one of the labels tells, if the tenant's levels are discovered.
    pub level: Option<LabelLevel>,
    /// Written by a component of Loki for itself.
    pub internal: bool,
}

/// A level that a label tells: a known one, or any other value as it is.
#[derive(Debug, PartialEq)]
pub enum LabelLevel {
    /// A known level, whatever its spelling was.
    Known(Level),
    /// Another value.
    Verbatim(Box<str>),
}

/// Parses and checks a label text for a tenant.
///
/// # Errors
/// The text does not parse, or its labels break a limit.
pub fn resolve(tenant: &Tenant, text: &str, limits: &Limits) -> Result<StreamLabels, LabelRejection> {
    let mut pairs = parse_labels(text).map_err(LabelRejection::Syntax)?;
    pairs.retain(|(_, value)| !value.is_empty());
    let internal = pairs.iter().any(|(name, _)| INTERNAL_LABELS.contains(&&**name));
    if !internal {
        discover_service_name(&mut pairs, &limits.discover_service_name);
    }
    let labels = LabelSet::new(pairs);
    check(&labels, limits).map_err(|(reason, text)| LabelRejection::Limit(reason, text))?;
    let detector = LevelDetector::new(limits);
    let level = detector.of_labels(&labels).map(|value| match Level::of_value(value.as_bytes()) {
        Some(level) => LabelLevel::Known(level),
        None => LabelLevel::Verbatim(value.into()),
    });
    Ok(StreamLabels { token: token_for(tenant.as_str(), labels.text()), level, internal, labels: Arc::new(labels) })
}

fn discover_service_name(pairs: &mut Vec<(Box<str>, Box<str>)>, candidates: &[String]) {
    if candidates.is_empty() || pairs.iter().any(|(name, _)| &**name == SERVICE_NAME) {
        return;
    }
    let value_of = |wanted: &String| pairs.iter().find(|(name, _)| **name == **wanted).map(|(_, value)| value.clone());
    let service = candidates.iter().find_map(value_of).unwrap_or_else(|| UNKNOWN_SERVICE.into());
    pairs.reserve_exact(1);
    pairs.push((SERVICE_NAME.into(), service));
}

/// Loki's checks of a stream's labels, in its order.
fn check(labels: &LabelSet, limits: &Limits) -> Result<(), (Reason, String)> {
    let (pairs, text) = (labels.pairs(), labels.text());
    if pairs.is_empty() {
        return Err((Reason::MissingLabels, "error at least one label pair is required per stream".to_string()));
    }
    let names = pairs.iter().filter(|(name, _)| &**name != SERVICE_NAME).count();
    let limit = limits.max_label_names_per_series;
    if names > limit {
        let message = format!("entry for stream '{text}' has {names} label names; limit {limit}");
        return Err((Reason::TooManyLabels, message));
    }
    let mut previous: Option<&str> = None;
    for (name, value) in pairs {
        if name.len() > limits.max_label_name_length {
            return Err((Reason::LabelNameTooLong, format!("stream '{text}' has label name too long: '{name}'")));
        }
        if value.len() > limits.max_label_value_length {
            return Err((Reason::LabelValueTooLong, format!("stream '{text}' has label value too long: '{value}'")));
        }
        if previous == Some(name) {
            return Err((Reason::DuplicateLabel, format!("stream '{text}' has duplicate label name: '{name}'")));
        }
        previous = Some(name);
    }
    Ok(())
}

/// What `resolve` answered, shared by all pushes of the stream.
pub type Resolved = Arc<Result<StreamLabels, LabelRejection>>;

const SHARDS: usize = 16;

/// Remembers what `resolve` answered, by tenant and raw text, as long as the tenant's limits are the same object.
///
/// Bounded in entries and bytes by two generations a shard: a full young one becomes the old one, whose entries come
/// back to the young one when they are used. So what is used within the last half of the room stays, as in an LRU, and
/// a hit takes a read lock only.
pub struct LabelCache {
    hasher: RandomState,
    shards: Vec<RwLock<Shard>>,
    /// Per generation of a shard.
    max_entries: usize,
    max_bytes: usize,
}

#[derive(Default)]
struct Shard {
    young: Generation,
    old: Generation,
}

#[derive(Default)]
struct Generation {
    // By the hash of tenant and text; an entry with an equal hash and another key is replaced.
    entries: AHashMap<u64, CacheEntry>,
    bytes: usize,
}

#[derive(Clone)]
struct CacheEntry {
    tenant: Tenant,
    text: Arc<str>,
    /// Held, so that no later limits can have the same address.
    limits: Arc<Limits>,
    resolved: Resolved,
}

impl CacheEntry {
    fn is_for(&self, tenant: &Tenant, text: &str, limits: &Arc<Limits>) -> bool {
        Arc::ptr_eq(&self.limits, limits) && *self.text == *text && self.tenant == *tenant
    }

    /// A generous estimate of the memory that the entry keeps.
    fn bytes(&self) -> usize {
        const FIXED: usize = 512;
        const PER_LABEL: usize = 64;
        let resolved = match &*self.resolved {
            Ok(stream) => 2 * stream.labels.text().len() + PER_LABEL * stream.labels.pairs().len(),
            Err(LabelRejection::Limit(_, text)) => text.len(),
            Err(LabelRejection::Syntax(error)) => error.reason.len(),
        };
        FIXED + self.text.len() + resolved
    }
}

impl Generation {
    fn get(&self, key: u64, tenant: &Tenant, text: &str, limits: &Arc<Limits>) -> Option<&CacheEntry> {
        self.entries.get(&key).filter(|entry| entry.is_for(tenant, text, limits))
    }

    fn remove(&mut self, key: u64) {
        if let Some(entry) = self.entries.remove(&key) {
            self.bytes = self.bytes.saturating_sub(entry.bytes());
        }
    }
}

impl LabelCache {
    /// Holds at most `max_entries` texts and about `max_bytes` of memory.
    pub fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            max_entries: (max_entries / SHARDS / 2).max(1),
            max_bytes: max_bytes / SHARDS / 2,
        }
    }

    /// `resolve`, from memory if possible.
    pub fn resolve(&self, tenant: &Tenant, text: &str, limits: &Arc<Limits>) -> Resolved {
        let key = self.hasher.hash_one((tenant.as_str(), text));
        let Some(shard) = self.shards.get(key as usize % SHARDS) else {
            return Arc::new(resolve(tenant, text, limits));
        };
        let old = {
            let shard = shard.read();
            if let Some(entry) = shard.young.get(key, tenant, text, limits) {
                return Arc::clone(&entry.resolved);
            }
            shard.old.get(key, tenant, text, limits).cloned()
        };
        let entry = old.unwrap_or_else(|| CacheEntry {
            tenant: tenant.clone(),
            text: text.into(),
            limits: Arc::clone(limits),
            resolved: Arc::new(resolve(tenant, text, limits)),
        });
        let resolved = Arc::clone(&entry.resolved);
        self.insert(&mut shard.write(), key, entry);
        resolved
    }

    fn insert(&self, shard: &mut Shard, key: u64, entry: CacheEntry) {
        let bytes = entry.bytes();
        shard.young.remove(key);
        shard.old.remove(key);
        if bytes > self.max_bytes / 8 {
            return;
        }
        if shard.young.entries.len() >= self.max_entries || shard.young.bytes + bytes > self.max_bytes {
            shard.old = std::mem::take(&mut shard.young);
        }
        shard.young.bytes += bytes;
        shard.young.entries.insert(key, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> Tenant {
        Tenant::new(name).expect("tenant")
    }

    fn text_of(text: &str, limits: &Limits) -> String {
        match resolve(&tenant("t"), text, limits) {
            Ok(stream) => stream.labels.text().to_string(),
            Err(LabelRejection::Limit(reason, text)) => format!("{}: {text}", reason.as_str()),
            Err(LabelRejection::Syntax(e)) => e.to_string(),
        }
    }

    #[test]
    fn labels_are_normalised_and_get_a_service_name() {
        let limits = Limits::default();
        let cases = [
            ("{}", r#"{service_name="unknown_service"}"#),
            (r#"{foo="bar", job="stuff"}"#, r#"{foo="bar", job="stuff", service_name="stuff"}"#),
            (r#"{job="j", app="a"}"#, r#"{app="a", job="j", service_name="a"}"#),
            (r#"{app="", job="j"}"#, r#"{job="j", service_name="j"}"#),
            (r#"{job="j", service_name="s"}"#, r#"{job="j", service_name="s"}"#),
            (r#"{job="j", service_name=""}"#, r#"{job="j", service_name="j"}"#),
            (r#"{b="1",a="2",}"#, r#"{a="2", b="1", service_name="unknown_service"}"#),
            (r#"{__aggregated_metric__="x"}"#, r#"{__aggregated_metric__="x"}"#),
        ];
        for (text, expected) in cases {
            assert_eq!(text_of(text, &limits), expected, "{text}");
        }
        let none = Limits { discover_service_name: vec![], ..limits };
        assert_eq!(text_of(r#"{job="j"}"#, &none), r#"{job="j"}"#);
        let missing = "missing_labels: error at least one label pair is required per stream";
        assert_eq!(text_of("{}", &none), missing);
        assert_eq!(text_of(r#"{a=""}"#, &none), missing);
    }

    #[test]
    fn limits_at_n_and_n_plus_1() {
        let limits = Limits {
            max_label_names_per_series: 2,
            max_label_name_length: 3,
            max_label_value_length: 15,
            ..Limits::default()
        };
        let three = r#"{a="1", b="2", c="3", service_name="unknown_service"}"#;
        let long = "x".repeat(16);
        let cases = [
            // A service name is not counted, but its own name must fit.
            (r#"{a="1",b="2",c="3"}"#.to_string(), format!("max_label_names_per_series: entry for stream '{three}' has 3 label names; limit 2")),
            (r#"{abcd="1"}"#.to_string(), r#"label_name_too_long: stream '{abcd="1", service_name="unknown_service"}' has label name too long: 'abcd'"#.to_string()),
            (format!("{{a=\"{long}\"}}"), format!("label_value_too_long: stream '{{a=\"{long}\", service_name=\"unknown_service\"}}' has label value too long: '{long}'")),
            (r#"{a="1",a="2"}"#.to_string(), r#"duplicate_label_names: stream '{a="1", a="2", service_name="unknown_service"}' has duplicate label name: 'a'"#.to_string()),
            (r#"{a="1",a="1"}"#.to_string(), r#"duplicate_label_names: stream '{a="1", a="1", service_name="unknown_service"}' has duplicate label name: 'a'"#.to_string()),
        ];
        for (text, expected) in cases {
            assert_eq!(text_of(&text, &limits), expected);
        }
        let bare = Limits { discover_service_name: vec![], ..limits };
        for good in [r#"{a="1",b="2"}"#, r#"{abc="1"}"#, r#"{a="xxxxxxxxxxxxxxx"}"#] {
            assert!(resolve(&tenant("t"), good, &bare).is_ok(), "{good}");
        }
        let named = Limits { max_label_name_length: 12, ..bare };
        assert!(resolve(&tenant("t"), r#"{a="1",b="2",service_name="s"}"#, &named).is_ok());
    }

    #[test]
    fn a_label_tells_the_level() {
        let level = |text: &str| resolve(&tenant("t"), text, &Limits::default()).expect("good").level;
        assert_eq!(level(r#"{level="WARNING"}"#), Some(LabelLevel::Known(Level::Warn)));
        assert_eq!(level(r#"{severity="info",level="notice"}"#), Some(LabelLevel::Verbatim("notice".into())));
        assert_eq!(level(r#"{a="info"}"#), None);
    }

    #[test]
    fn the_cache_forgets_neither_tenant_nor_limits() {
        let cache = LabelCache::new(1000, 1 << 20);
        let wide = Arc::new(Limits::default());
        let narrow = Arc::new(Limits { max_label_value_length: 1, discover_service_name: vec![], ..Limits::default() });
        let text = r#"{a="long"}"#;
        let (a, b) = (tenant("a"), tenant("b"));
        let first = cache.resolve(&a, text, &wide);
        assert!(first.is_ok());
        assert!(Arc::ptr_eq(&first, &cache.resolve(&a, text, &wide)), "from memory");
        assert!(cache.resolve(&b, text, &narrow).is_err());
        assert!(cache.resolve(&a, text, &narrow).is_err(), "new limits hold at once");
        let token = |r: &Resolved| r.as_ref().as_ref().map(|s| s.token).ok();
        assert_ne!(token(&cache.resolve(&b, text, &wide)), token(&first), "the token depends on the tenant");
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let cache = LabelCache::new(64, 1 << 20);
        let limits = Arc::new(Limits::default());
        let hot = cache.resolve(&tenant("t"), r#"{a="hot"}"#, &limits);
        for i in 0..2000 {
            cache.resolve(&tenant("t"), &format!("{{a=\"{i}\"}}"), &limits);
            assert!(Arc::ptr_eq(&hot, &cache.resolve(&tenant("t"), r#"{a="hot"}"#, &limits)), "{i}");
        }
        let held = |cache: &LabelCache| -> (usize, usize) {
            let sizes = cache.shards.iter().map(|s| s.read());
            sizes.fold((0, 0), |(n, b), s| {
                let real: usize = s.young.entries.values().chain(s.old.entries.values()).map(CacheEntry::bytes).sum();
                assert_eq!(real, s.young.bytes + s.old.bytes);
                (n + s.young.entries.len() + s.old.entries.len(), b + real)
            })
        };
        assert!(held(&cache).0 <= 64, "{:?}", held(&cache));
        let small = LabelCache::new(100_000, 1 << 20);
        for i in 0..5000 {
            small.resolve(&tenant("t"), &format!("{{a=\"{i}{}\"}}", "x".repeat(i % 3000)), &limits);
        }
        assert!(held(&small).1 <= 1 << 20, "{:?}", held(&small));
    }
}
