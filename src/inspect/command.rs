//! What several commands need.

use super::dump::text_or_hex;
use super::log::Judged;
use super::output::Printer;
use super::progress::Progress;
use super::ranges::{Ranges, count};
use crate::model::LabelSet;
use crate::wal::{BodyView, EntryView, SeriesDef, TableRow};
use std::collections::HashMap;
use std::io::Write;
use std::ops::Range;

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

impl Stream {
    fn of(d: &SeriesDef) -> Self {
        let labels = LabelSet::new(d.labels.iter().map(|(n, v)| (n.as_str(), v.as_str())));
        Self { tenant: d.tenant.clone(), labels }
    }
}

/// Every stream that the log defines.
#[derive(Default)]
pub struct Streams(HashMap<u64, Stream>);

impl Streams {
    /// From a judged log.
    pub fn of(judged: &Judged) -> Self {
        Self(judged.plan.definitions.iter().map(|(id, d)| (*id, Stream::of(d))).collect())
    }

    /// Every stream, in no order.
    pub fn all(&self) -> impl Iterator<Item = (u64, &Stream)> {
        self.0.iter().map(|(id, stream)| (*id, stream))
    }

    /// The stream with this id, if a definition survives.
    pub fn get(&self, id: u64) -> Option<&Stream> {
        self.0.get(&id)
    }

    /// Learns of streams that were defined since.
    pub fn define(&mut self, definitions: &[SeriesDef]) {
        self.0.extend(definitions.iter().map(|d| (d.id, Stream::of(d))));
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

/// Gives each line of the write-ahead log once: not those that lie in blocks that count or in the object store, and those
/// of carried records only if the records before them do not have them. Memory grows with streams, if lines were carried.
pub struct Once<'a> {
    judged: &'a Judged,
    given: HashMap<u64, Ranges>,
    /// Leave out what blocks or the object store have.
    unsettled: bool,
}

impl<'a> Once<'a> {
    /// For one walk over the log.
    pub fn new(judged: &'a Judged) -> Self {
        Self { judged, given: HashMap::new(), unsettled: true }
    }

    /// As [`Once::new`], but blocks and the object store take nothing away: each line of the write-ahead log.
    pub fn in_log(judged: &'a Judged) -> Self {
        Self { unsettled: false, ..Self::new(judged) }
    }

    /// The seqs of a row that were not given yet, and that blocks do not give.
    pub fn seqs(&mut self, row: &TableRow) -> Vec<Range<u64>> {
        let all = row.first_seq..row.end_seq();
        let mut seqs = if self.unsettled { self.judged.blocks.unsettled(row.stream, &all) } else { vec![all] };
        if !self.judged.plan.carried.is_empty() {
            let given = self.given.entry(row.stream).or_default();
            seqs = seqs.iter().flat_map(|r| given.missing(r)).collect();
            seqs.iter().for_each(|r| given.insert(r.clone()));
        }
        seqs
    }

    /// How many they are.
    pub fn lines(&mut self, row: &TableRow) -> u64 {
        count(&self.seqs(row))
    }
}

/// Structured metadata of an entry as text; names and values that are not UTF-8 in hexadecimal.
pub fn metadata(entry: &EntryView<'_>, body: &BodyView<'_>) -> Vec<(String, String)> {
    let text = |i: u32| body.symbols().get(i as usize).map_or_else(String::new, |s| text_or_hex(s));
    entry.metadata().map(|(name, value)| (text(name), text(value))).collect()
}
