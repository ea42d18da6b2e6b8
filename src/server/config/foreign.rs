//! Keys and flags of Loki that mean nothing here, those that must not be ignored, and the nearest name to a typo.

use super::keys;
use super::yaml::Node;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::OnceLock;

/// A Loki setting that takes effect silently in Loki, and whose silent absence would weaken security or durability.
/// It is an error to set it, until it is built, unless to a value that asks for nothing.
pub(super) struct Refused {
    /// YAML path.
    pub(super) path: &'static str,
    /// Flag without dashes; empty if Loki has none.
    pub(super) flag: &'static str,
    /// Values, besides empty ones, that ask for nothing.
    harmless: &'static [&'static str],
    /// Why, and what to do.
    pub(super) why: &'static str,
}

const TLS: &str = "Timberline would not do what it asks, and traffic would be less protected than you expect";
const INLINE_TLS: &str =
    "certificates and keys inside the file are not built; use cert_file, key_file and client_ca_file";
const BLOCK: &str = "blocking ingestion is not built, and blocked logs would be accepted";
const RETENTION: &str = "retention is not built, and logs would be kept beyond it; remove it (nothing is deleted)";
const LABELS: &str = "enforced labels are not built, and streams without them would be accepted";
const OTHER_LOG: &str = "Timberline logs to its own disk only, and what you expect to be in Kafka would not be there";

const REFUSED: &[Refused] = &[
    Refused { path: "limits_config.enforced_labels", flag: "validation.enforced-labels", harmless: &[], why: LABELS },
    Refused { path: "limits_config.policy_enforced_labels", flag: "", harmless: &[], why: LABELS },
    Refused {
        path: "limits_config.block_ingestion_until",
        flag: "limits.block-ingestion-until",
        harmless: &["0", "0001-01-01T00:00:00Z"],
        why: BLOCK,
    },
    Refused { path: "limits_config.block_ingestion_policy_until", flag: "", harmless: &[], why: BLOCK },
    Refused { path: "limits_config.retention_period", flag: "store.retention", harmless: &["0", "0s"], why: RETENTION },
    Refused { path: "limits_config.retention_stream", flag: "", harmless: &[], why: RETENTION },
    Refused {
        path: "server.tls_min_version",
        flag: "server.tls-min-version",
        harmless: &["VersionTLS10", "VersionTLS11", "VersionTLS12"],
        why: "Timberline speaks TLS 1.2 and 1.3, and cannot be told to refuse 1.2",
    },
    Refused { path: "server.tls_cipher_suites", flag: "server.tls-cipher-suites", harmless: &[], why: TLS },
    Refused { path: "server.http_tls_config.cert", flag: "", harmless: &[], why: INLINE_TLS },
    Refused { path: "server.http_tls_config.key", flag: "", harmless: &[], why: INLINE_TLS },
    Refused { path: "server.http_tls_config.client_ca", flag: "", harmless: &[], why: INLINE_TLS },
    Refused { path: "server.grpc_tls_config.cert", flag: "", harmless: &[], why: INLINE_TLS },
    Refused { path: "server.grpc_tls_config.key", flag: "", harmless: &[], why: INLINE_TLS },
    Refused { path: "server.grpc_tls_config.client_ca", flag: "", harmless: &[], why: INLINE_TLS },
    Refused {
        path: "server.cluster_validation.grpc.enabled",
        flag: "server.cluster-validation.grpc.enabled",
        harmless: &["false"],
        why: "cluster validation is not built, and requests of other clusters would be accepted",
    },
    Refused {
        path: "server.cluster_validation.http.enabled",
        flag: "server.cluster-validation.http.enabled",
        harmless: &["false"],
        why: "cluster validation is not built, and requests of other clusters would be accepted",
    },
    Refused {
        path: "internal_server.enable",
        flag: "internal-server.enable",
        harmless: &["false"],
        why: "there is no second listener, and what should be internal would be on the first one",
    },
    Refused {
        path: "ingester_client.grpc_client_config.tls_enabled",
        flag: "ingester.client.tls-enabled",
        harmless: &["false"],
        why: "TLS to ingesters is not built, and lines would travel in the clear",
    },
    Refused {
        path: "distributor.kafka_writes_enabled",
        flag: "distributor.kafka-writes-enabled",
        harmless: &["false"],
        why: OTHER_LOG,
    },
    Refused {
        path: "distributor.ingester_writes_enabled",
        flag: "distributor.ingester-writes-enabled",
        harmless: &["true"],
        why: OTHER_LOG,
    },
    Refused {
        path: "ingester.kafka_ingestion.enabled",
        flag: "ingester.kafka-ingestion-enabled",
        harmless: &["false"],
        why: OTHER_LOG,
    },
];

/// The refusal of a key, if its value asks for something.
pub(super) fn refused_key(path: &str, node: &Node) -> Option<&'static Refused> {
    REFUSED.iter().find(|r| r.path == path && !r.allows(node))
}

/// The refusal of a flag, if its value asks for something.
pub(super) fn refused_flag(flag: &str, node: &Node) -> Option<&'static Refused> {
    REFUSED.iter().find(|r| !r.flag.is_empty() && r.flag == flag && !r.allows(node))
}

impl Refused {
    fn allows(&self, node: &Node) -> bool {
        node.is_empty()
            || matches!(&node.value, super::yaml::Value::Scalar(text) if self.harmless.contains(&text.as_str()))
    }
}

/// What Loki knows about a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    /// A section with keys of its own.
    Section,
    /// A setting with one value.
    Leaf,
    /// A list or map of anything.
    Free,
}

/// Key paths of Loki 3.8; `.*` ends those that hold lists or maps of anything.
const LOKI_KEYS: &str = include_str!("loki_keys.txt");
/// Flags of Loki 3.8.
const LOKI_FLAGS: &str = include_str!("loki_flags.txt");

fn loki_keys() -> &'static BTreeSet<&'static str> {
    static SET: OnceLock<BTreeSet<&'static str>> = OnceLock::new();
    SET.get_or_init(|| LOKI_KEYS.lines().collect())
}

fn loki_flags() -> &'static BTreeSet<&'static str> {
    static SET: OnceLock<BTreeSet<&'static str>> = OnceLock::new();
    SET.get_or_init(|| LOKI_FLAGS.lines().collect())
}

/// Whether this path is a key of Loki.
pub(super) fn loki_key(path: &str) -> Option<Foreign> {
    let set = loki_keys();
    if set.contains(format!("{path}.*").as_str()) {
        return Some(Foreign::Free);
    }
    if set.contains(path) {
        return Some(Foreign::Leaf);
    }
    let below = format!("{path}.");
    let next = set.range::<str, _>((Bound::Excluded(below.as_str()), Bound::Unbounded)).next();
    next.is_some_and(|key| key.starts_with(&below)).then_some(Foreign::Section)
}

/// Whether this is a flag of Loki (without dashes).
pub(super) fn loki_flag(flag: &str) -> bool {
    loki_flags().contains(flag)
}

/// A known key near to an unknown one: a sibling that is spelled nearly so, or the same name in another section.
pub(super) fn nearest_key(path: &str) -> Option<String> {
    let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
    if let Some(found) = nearest(name, children(section).into_iter()) {
        return Some(found.to_string());
    }
    let elsewhere = |candidate: &&str| candidate.rsplit('.').next() == Some(name);
    keys().iter().map(|k| k.path).find(elsewhere).map(str::to_string)
}

/// Names directly below a section, ours and Loki's.
fn children(section: &str) -> BTreeSet<&'static str> {
    let all = keys().iter().map(|k| k.path).chain(loki_keys().iter().copied()).chain(["overrides"]);
    all.filter_map(|path| {
        let below = if section.is_empty() { path } else { path.strip_prefix(section)?.strip_prefix('.')? };
        below.split('.').next()
    })
    .collect()
}

/// A known flag near to an unknown one; ours before Loki's.
pub fn nearest_flag<'a>(flag: &str, special: impl Iterator<Item = &'a str>) -> Option<String> {
    let ours = special.chain(keys().iter().map(|k| k.flag));
    let found = nearest(flag, ours).map(str::to_string);
    found.or_else(|| nearest(flag, loki_flags().iter().copied()).map(str::to_string))
}

/// The candidate with the smallest edit distance, if it is small enough to be a typo: a third of the name, at most 4.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).clamp(1, 4);
    let near = candidates.filter(|c| c.len().abs_diff(name.len()) <= limit);
    near.map(|c| (distance(name, c), c)).filter(|(d, _)| *d <= limit).min().map(|(_, c)| c)
}

/// Edit distance: insertions, deletions, replacements and swaps of neighbours. Names are cut to 128 bytes.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<u8> = a.bytes().take(128).collect();
    let b: Vec<u8> = b.bytes().take(128).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut next = Vec::with_capacity(row.len());
        next.push(i + 1);
        for (j, y) in b.iter().enumerate() {
            let cell = |row: &[usize], at: usize| row.get(at).copied().unwrap_or(usize::MAX - 1);
            let replaced = cell(&row, j) + usize::from(x != y);
            let mut best = replaced.min(cell(&row, j + 1) + 1).min(cell(&next, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                best = best.min(cell(&before, j - 1) + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in [("", "", 0), ("a", "", 1), ("port", "prot", 1), ("abc", "axc", 1), ("abc", "xyz", 3)] {
            assert_eq!((distance(a, b), distance(b, a)), (expected, expected), "{a} {b}");
        }
    }

    #[test]
    fn what_loki_knows() {
        assert_eq!(loki_key("schema_config"), Some(Foreign::Section));
        assert_eq!(loki_key("schema_config.configs"), Some(Foreign::Free));
        assert_eq!(loki_key("querier.max_concurrent"), Some(Foreign::Leaf));
        assert_eq!(loki_key("querier.max_concurren"), None);
        assert!(loki_flag("querier.max-concurrent"));
    }

    #[test]
    fn every_refused_setting_is_one_of_lokis_and_none_of_ours() {
        for refused in REFUSED {
            assert!(loki_key(refused.path).is_some(), "{}", refused.path);
            assert!(keys().iter().all(|k| k.path != refused.path), "{}", refused.path);
            assert!(refused.flag.is_empty() || loki_flag(refused.flag), "{}", refused.flag);
        }
    }

    #[test]
    fn every_key_is_one_of_lokis_or_says_that_it_is_ours() {
        for key in keys() {
            let ours = key.help.contains("Timberline's own");
            assert_eq!(loki_key(key.path).is_some(), !ours, "{}", key.path);
            assert_eq!(loki_flag(key.flag), !ours, "{}", key.flag);
        }
    }

    #[test]
    fn paths_and_flags_are_unique() {
        let paths: BTreeSet<_> = keys().iter().map(|k| k.path).collect();
        let flags: BTreeSet<_> = keys().iter().map(|k| k.flag).collect();
        assert_eq!((paths.len(), flags.len()), (keys().len(), keys().len()));
    }
}
