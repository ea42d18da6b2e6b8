//! What streams and blocks take of memory beside the lines in heads, bounded by
//! [`IngesterConfig::metadata_budget`](super::IngesterConfig::metadata_budget), and what a tenant's blocks take of the disk. It is
//! counted as long as a value lives.

use super::Stream;
use crate::model::LabelSet;
use crate::wal::StreamLog;
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};

/// A stream's places in maps, in the index and in the log's tables of streams, without its labels.
const STREAM_ENTRIES: usize = 600;
/// A label's place in the index, without its text.
const LABEL_ENTRY: usize = 64;
/// How often a stream's labels are held as text: label set, key, index, what the log will write again.
const LABEL_COPIES: usize = 4;
/// A block's place in its chunk, and the counters around it.
pub(super) const BLOCK_ENTRY: usize = 48;

/// Adds up what is held. Threads count in places of their own: those that restore a hundred thousand streams would wait for each
/// other at a single one.
#[derive(Clone, Default)]
pub(super) struct Meter(Arc<[Place; PLACES]>);

const PLACES: usize = 4;

/// Alone in its cache line. What one thread adds another may subtract, so only the sum has a meaning.
#[derive(Default)]
#[repr(align(64))]
struct Place(AtomicIsize);

impl Meter {
    /// Bytes that are held now.
    pub fn bytes(&self) -> usize {
        let sum: isize = self.0.iter().map(|place| place.0.load(Ordering::Relaxed)).sum();
        // While others count, a value may be missed that is subtracted already.
        usize::try_from(sum).unwrap_or(0)
    }

    fn place(&self) -> &AtomicIsize {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static THREAD: usize = THREADS.fetch_add(1, Ordering::Relaxed) % PLACES);
        // A thread that ends may have no number any more.
        let [first, ..] = &*self.0;
        let thread = THREAD.try_with(|thread| *thread).unwrap_or(0);
        &self.0.get(thread).unwrap_or(first).0
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
        self.place().fetch_add(bytes as isize, Ordering::Relaxed);
    }

    /// Takes back what was added.
    pub fn subtract(&self, bytes: usize) {
        self.place().fetch_sub(bytes as isize, Ordering::Relaxed);
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
