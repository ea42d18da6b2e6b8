//! What streams and blocks take of memory beside the lines in heads, bounded by
//! [`IngesterConfig::metadata_budget`](super::IngesterConfig::metadata_budget), and what a tenant's blocks take of the disk. It is
//! counted as long as a value lives.

use super::Stream;
use super::sealed::SealedBlock;
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
const BLOCK_ENTRY: usize = 48;

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

    /// Counts a block.
    pub fn block(&self) -> Held {
        self.hold(size_of::<SealedBlock>() + BLOCK_ENTRY)
    }

    /// Counts bytes on a disk.
    pub fn disk(&self, bytes: u32) -> Held {
        self.hold(bytes as usize)
    }

    fn hold(&self, bytes: usize) -> Held {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Held { meter: self.clone(), bytes }
    }
}

/// Bytes that count until this is dropped.
pub(super) struct Held {
    meter: Meter,
    bytes: usize,
}

impl Clone for Held {
    fn clone(&self) -> Self {
        self.meter.hold(self.bytes)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.meter.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
