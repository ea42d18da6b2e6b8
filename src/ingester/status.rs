//! The ingester's figures for an operator: the logs against their budgets, what keeps the oldest segment, the busiest streams.

use super::stream::Unsettled;
use super::{Ingester, Live, ScrubStatus, Stream};
use crate::model::Recent;
use crate::wal::SyncStatus;
use serde::Serialize;
use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Streams that are named as those that keep the oldest segment.
const PINS_NAMED: usize = 5;

/// All of it. Sizes are bytes.
#[derive(Clone, Debug, Serialize)]
pub struct IngesterStatus {
    /// How the log's syncs went.
    pub syncs: SyncStatus,
    /// Why pushes are refused, if they are.
    pub refuses: Option<String>,
    /// The write-ahead log.
    pub wal: WalStatus,
    /// The block log.
    pub blocks: BlocksStatus,
    /// Memory.
    pub memory: MemoryStatus,
    /// The scrubber, unless it is switched off.
    pub scrub: Option<ScrubStatus>,
}

/// The write-ahead log.
#[derive(Clone, Debug, Serialize)]
pub struct WalStatus {
    /// Of the live segments.
    pub size: u64,
    /// What they may take together.
    pub max_size: u64,
    /// Live segments.
    pub segments: usize,
    /// Number of the segment that is written.
    pub newest_segment: Option<u64>,
    /// The oldest segment; none if it is the one that is written.
    pub oldest_segment: Option<OldestSegment>,
}

/// The oldest segment, and what keeps it.
#[derive(Clone, Debug, Serialize)]
pub struct OldestSegment {
    /// Its number.
    pub segment: u64,
    /// Streams with lines that lie in it and in no block. They become blocks, or are logged again, when the log needs room.
    pub streams_in_heads: usize,
    /// Bytes of their heads.
    pub head_bytes: usize,
    /// Streams with lines that are on their way to a block.
    pub streams_on_their_way: usize,
    /// Decisions that may still have an effect.
    pub decisions: usize,
    /// The streams with the largest heads.
    pub largest: Vec<PinningStream>,
}

/// A stream that keeps the oldest segment.
#[derive(Clone, Debug, Serialize)]
pub struct PinningStream {
    /// Its owner.
    pub tenant: String,
    /// Its labels.
    pub stream: String,
    /// Bytes of its head.
    pub head_bytes: usize,
}

/// The block log.
#[derive(Clone, Debug, Serialize)]
pub struct BlocksStatus {
    /// Of all segments, prepared ones included.
    pub size: u64,
    /// What they may take together.
    pub max_size: u64,
    /// Of blocks that are needed.
    pub live: u64,
    /// Segments.
    pub segments: usize,
    /// Why blocks cannot be written, if so.
    pub starved: Option<String>,
}

/// Memory, against its budgets.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryStatus {
    /// Streams with lines.
    pub streams: usize,
    /// Of lines that are not in a block yet.
    pub heads: usize,
    /// What they may take.
    pub heads_budget: usize,
    /// Of streams and blocks, beside their lines.
    pub metadata: usize,
    /// What they may take.
    pub metadata_budget: usize,
}

/// A stream and how fast it grows.
pub struct BusyStream {
    /// The stream.
    pub stream: Arc<Stream>,
    /// Applied lines of about the last minute.
    pub recent: Recent,
}

impl BusyStream {
    /// Its owner.
    pub fn tenant(&self) -> &str {
        self.stream.log.tenant.as_str()
    }
}

impl Ingester<Live> {
    /// Looks at everything. Costs a walk over the streams of the oldest segment.
    pub fn status(&self) -> IngesterStatus {
        let (state, retention, store) = (&self.state, self.log.wal.retention(), self.log.blocks.store());
        let (segments, live) = store.usage();
        IngesterStatus {
            syncs: self.log.wal.syncs().status(),
            refuses: self.refuses(),
            wal: WalStatus {
                size: retention.size(),
                max_size: retention.max_size(),
                segments: retention.segments(),
                newest_segment: retention.bounds().map(|(_, newest)| newest),
                oldest_segment: self.oldest_segment(),
            },
            blocks: BlocksStatus {
                size: store.size(),
                max_size: store.max_size(),
                live,
                segments,
                starved: self.log.blocks.starved(),
            },
            memory: MemoryStatus {
                streams: state.streams.read().len(),
                heads: state.head_bytes.load(Ordering::Relaxed),
                heads_budget: state.config.heads_budget,
                metadata: state.metadata.bytes(),
                metadata_budget: state.config.metadata_budget,
            },
            scrub: self.log.scrubber.get().map(|s| s.status()),
        }
    }

    fn oldest_segment(&self) -> Option<OldestSegment> {
        let oldest = |s: &crate::wal::Contents| (s.begins.segment, s.streams.clone(), s.holds.len());
        let (segment, streams, decisions) = self.log.wal.retention().oldest(oldest)?;
        let mut waiting = 0;
        let mut heads: Vec<(usize, Arc<Stream>)> = Vec::new();
        for (&id, &end_seq) in &*streams {
            if self.log.retainer.has_carried(id, end_seq) {
                continue;
            }
            let Some(stream) = self.state.stream(id) else { continue };
            match stream.unsettled(end_seq) {
                Unsettled::No => {}
                Unsettled::Wait => waiting += 1,
                Unsettled::Head(size) => heads.push((size, stream)),
            }
        }
        heads.sort_unstable_by_key(|(size, stream)| (Reverse(*size), stream.id()));
        let pinning = |(size, stream): &(usize, Arc<Stream>)| PinningStream {
            tenant: stream.log.tenant.to_string(),
            stream: stream.labels().text().to_string(),
            head_bytes: *size,
        };
        Some(OldestSegment {
            segment,
            streams_in_heads: heads.len(),
            head_bytes: heads.iter().map(|(size, _)| size).sum(),
            streams_on_their_way: waiting,
            decisions,
            largest: heads.iter().take(PINS_NAMED).map(pinning).collect(),
        })
    }

    /// The streams that grow fastest. Costs a walk over all streams.
    pub fn busiest_streams(&self, count: usize) -> Vec<BusyStream> {
        let streams = self.state.all_instances().into_iter().flat_map(|i| i.shown());
        let mut busy: Vec<BusyStream> = streams.map(|stream| BusyStream { recent: stream.recent(), stream }).collect();
        let heavier = |a: &BusyStream, b: &BusyStream| b.recent.weight().total_cmp(&a.recent.weight());
        if busy.len() > count {
            busy.select_nth_unstable_by(count, heavier);
            busy.truncate(count);
        }
        busy.sort_unstable_by(heavier);
        // Streams that have only been restored are not busy.
        busy.retain(|b| b.recent.weight() > 0.0);
        busy
    }
}
