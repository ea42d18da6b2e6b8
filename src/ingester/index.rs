use super::Stream;
use crate::model::{MatchOp, Matcher};
use ahash::AHashMap;
use std::sync::Arc;

/// Streams by the value of one label.
type Values = AHashMap<Box<str>, Vec<Arc<Stream>>>;

/// Inverted index of one tenant: label name → value → streams. Holds streams with applied lines only.
#[derive(Default)]
pub(super) struct Index {
    postings: AHashMap<Box<str>, Values>,
    all: Vec<Arc<Stream>>,
}

impl Index {
    pub fn add(&mut self, stream: &Arc<Stream>) {
        for (name, value) in stream.labels().pairs() {
            let values = self.postings.entry(name.clone()).or_default();
            values.entry(value.clone()).or_default().push(stream.clone());
        }
        self.all.push(stream.clone());
    }

    /// Streams that satisfy all matchers.
    pub fn matching(&self, matchers: &[Matcher]) -> Vec<Arc<Stream>> {
        let narrowest =
            matchers.iter().filter_map(|m| self.candidates(m)).min_by_key(|c| c.iter().map(|p| p.len()).sum::<usize>());
        let candidates = narrowest.unwrap_or_else(|| vec![&self.all]);
        let streams = candidates.into_iter().flatten();
        streams.filter(|s| matchers.iter().all(|m| m.matches(s.labels()))).cloned().collect()
    }

    /// Posting lists that hold every stream which the matcher accepts; `None` if streams without the label may match.
    fn candidates(&self, matcher: &Matcher) -> Option<Vec<&Vec<Arc<Stream>>>> {
        if matcher.matches_value("") {
            return None;
        }
        let Some(values) = self.postings.get(matcher.name.as_str()) else { return Some(Vec::new()) };
        if matcher.op == MatchOp::Equal {
            return Some(values.get(matcher.value.as_str()).into_iter().collect());
        }
        Some(values.iter().filter(|(v, _)| matcher.matches_value(v)).map(|(_, p)| p).collect())
    }

    /// Streams of the index.
    pub fn streams(&self) -> &[Arc<Stream>] {
        &self.all
    }
}
