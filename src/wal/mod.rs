//! The write-ahead log: its format, the thread that writes it, the scan that reads it, and the recovery plan.
//!
//! `wal-format.md` is the normative specification of the bytes. This module is plain synchronous code: it knows no
//! runtime, no chunks and no HTTP.

mod blocks;
mod by_id;
mod cut;
pub mod format;
mod group;
mod metrics;
mod plan;
mod quarantine;
pub mod ranges;
mod record;
mod repair;
mod replay;
mod retention;
mod scan;
mod scrub;
mod segment;
mod spread;
mod supply;
mod survivors;
mod syncs;
#[cfg(test)]
mod tests;
mod verdict;
mod writer;

pub use blocks::{
    Ahead, BlockAppend, BlockError, BlockLog, BlockLogOptions, BlockPlace, BlockSink, BlockStore, Decide, FoundBlock,
    FoundBlocks, ListedBlock, Suspect,
};
pub use by_id::ById;
pub use cut::{Cut, SMALL_PART, Side};
pub use format::{GroupHeader, Kind, LogKind, RecordHead, SegmentHeader};
pub use metrics::WalMetrics;
pub use plan::{Loss, Plan, RecordRef, Summary, plan};
pub use quarantine::{DamageReport, QUARANTINE_BUDGET, Quarantine, keep_report};
pub use record::{
    Beginning, BlockSymbols, BlockSymbolsRef, BlockTables, BlocksSynced, BodyError, BodyView, ChunkClosed,
    ChunkFlushed, Codec, EntriesBuilder, EntriesRecord, EntryView, Footer, Gap, Open, PartIter, Previous, Retiring,
    SeriesDef, TableRow, Tables, decode_control, decompress_body, decompress_body_into,
};
pub use repair::{RecoverError, Recovered, Unattributed, recover, recover_ahead, recover_doubting};
pub use replay::{Batch, IsNeeded, ReplaySegment};
pub use retention::{Contents, Hold, Retention};
pub use scan::{Damage, GroupScan, RecordScan, SegmentScan, scan_groups, scan_segment};
pub use scrub::{Scrub, Scrubbed, Sealed};
pub use segment::{file_name, file_number, segment_name, segment_number};
pub(crate) use spread::drop_aside;
pub use survivors::{BlockSeqs, LostBlock, LostSegments, Survivors};
pub use syncs::{SyncStatus, Syncs, percentile};
pub use verdict::{Cost, Finding, Part, Place, Then, Verdict, verdict};
pub use writer::{Append, Applied, Decision, Sink, StreamLog, SyncMode, Unavailable, Wal, WalOptions, spawn_critical};
