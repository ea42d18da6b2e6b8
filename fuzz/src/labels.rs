//! Label texts.

use super::allocation::bounded;
use std::cell::OnceCell;
use std::sync::Arc;
use timberline::distributor::LabelCache;
use timberline::model::{LabelSet, Limits, Tenant, parse_labels};

/// A label text.
pub fn labels(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let parsed = bounded(input.len(), || parse_labels(text));
    resolved(text);
    let Ok(pairs) = parsed else { return };
    let mut expected: Vec<_> = pairs.iter().filter(|(_, v)| !v.is_empty()).cloned().collect();
    expected.sort();
    if expected.windows(2).any(|w| w[0].0 == w[1].0) {
        return; // No label set: the distributor refuses it.
    }
    let set = LabelSet::new(pairs);
    assert_eq!(set.pairs(), &expected[..]);
    let again = LabelSet::new(parse_labels(set.text()).expect("a canonical text"));
    assert_eq!((again.text(), again.pairs(), again.hash()), (set.text(), set.pairs(), set.hash()));
    for (name, value) in set.pairs() {
        assert_eq!(set.get(name), Some(&**value));
    }
}

/// What the distributor makes of it is the same from memory, and for the canonical text.
fn resolved(text: &str) {
    thread_local! {
        static CACHE: OnceCell<(LabelCache, Tenant, Arc<Limits>)> = const { OnceCell::new() };
    }
    let make = || (LabelCache::new(256, 1 << 20), Tenant::new("t").expect("a legal name"), Arc::default());
    CACHE.with(|cache| {
        let (cache, tenant, limits) = cache.get_or_init(make);
        let told = |text: &str| match &*cache.resolve(tenant, text, limits) {
            Ok(stream) => Ok((stream.labels.text().to_string(), stream.token)),
            Err(rejection) => Err(format!("{rejection:?}")),
        };
        let first = told(text);
        assert_eq!(told(text), first);
        if let Ok((canonical, _)) = &first {
            assert_eq!(told(canonical), first);
        }
    });
}
