//! What streams and blocks take of memory beside the lines in heads, bounded by
//! [`IngesterConfig::metadata_budget`](super::IngesterConfig::metadata_budget), and what a tenant's blocks take of the disk. It is
//! counted as long as a value lives.

use super::Stream;
use crate::model::LabelSet;
use crate::wal::StreamLog;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A stream's places in maps, in the index and in the log's tables of streams, without its labels.
const STREAM_ENTRIES: usize = 600;
/// A label's place in the index, without its text.
const LABEL_ENTRY: usize = 64;
/// How often a stream's labels are held as text: label set, key, index, what the log will write again.
const LABEL_COPIES: usize = 4;
/// A block's place in its chunk, and the counters around it.
pub(super) const BLOCK_ENTRY: usize = 48;

/// Adds up what is held.
#[derive(Clone, Default)]
pub(super) struct Meter(Arc<AtomicUsize>);

impl Meter {
    /// Bytes that are held now.
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts a stream with these labels.
    pub fn stream(&self, labels: &LabelSet) -> Held {
        let text = labels.text().len() * LABEL_COPIES + labels.pairs().len() * LABEL_ENTRY;
        self.hold(size_of::<Stream>() + size_of::<StreamLog>() + STREAM_ENTRIES + text)
    }

    fn hold(&self, bytes: usize) -> Held {
        self.add(bytes);
        Held { meter: self.clone(), bytes }
    }

    /// For a value that is not [`Held`] and subtracts what it added itself.
    pub fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes back what was added.
    pub fn subtract(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Bytes that count until this is dropped.
pub(super) struct Held {
    meter: Meter,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.meter.subtract(self.bytes);
    }
}
