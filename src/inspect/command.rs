//! What several commands need.

use super::dump::text_or_hex;
use super::log::Judged;
use super::output::Printer;
use super::progress::Progress;
use crate::model::LabelSet;
use crate::wal::{BodyView, EntryView};
use std::collections::HashMap;
use std::io::Write;

/// Where a command writes to.
pub struct Context<W: Write> {
    /// The output.
    pub printer: Printer<W>,
    /// The bar on standard error.
    pub progress: Progress,
}

/// A stream as a surviving definition tells it.
pub struct Stream {
    /// Owner.
    pub tenant: String,
    /// Labels.
    pub labels: LabelSet,
}

/// Every stream that the log defines.
pub struct Streams(HashMap<u64, Stream>);

impl Streams {
    /// From a judged log.
    pub fn of(judged: &Judged) -> Self {
        let stream = |d: &crate::wal::SeriesDef| Stream {
            tenant: d.tenant.clone(),
            labels: LabelSet::new(d.labels.iter().map(|(n, v)| (n.as_str(), v.as_str()))),
        };
        Self(judged.plan.definitions.iter().map(|(id, d)| (*id, stream(d))).collect())
    }

    /// The stream with this id, if a definition survives.
    pub fn get(&self, id: u64) -> Option<&Stream> {
        self.0.get(&id)
    }

    /// Label text of a stream, if a definition survives.
    pub fn labels(&self, id: u64) -> Option<String> {
        self.get(id).map(|s| s.labels.text().to_string())
    }

    /// Tenant of a stream, if a definition survives.
    pub fn tenant(&self, id: u64) -> Option<String> {
        self.get(id).map(|s| s.tenant.clone())
    }
}

/// Structured metadata of an entry as text; names and values that are not UTF-8 in hexadecimal.
pub fn metadata(entry: &EntryView<'_>, body: &BodyView<'_>) -> Vec<(String, String)> {
    let text = |i: u32| body.symbols().get(i as usize).map_or_else(String::new, |s| text_or_hex(s));
    entry.metadata().map(|(name, value)| (text(name), text(value))).collect()
}
