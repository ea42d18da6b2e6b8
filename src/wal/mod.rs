//! The write-ahead log: its format, the thread that writes it, the scan that reads it, and the recovery plan.
//!
//! `wal-format.md` is the normative specification of the bytes. This module is plain synchronous code: it knows no
//! runtime, no chunks and no HTTP.

pub mod format;
mod metrics;
mod plan;
mod record;
mod repair;
mod scan;
mod segment;
mod supply;
#[cfg(test)]
mod tests;
mod writer;

pub use format::{GroupHeader, Kind, RecordHead, SegmentHeader};
pub use metrics::WalMetrics;
pub use plan::{Loss, Plan, RecordRef, Summary, plan};
pub use record::{
    BodyError, BodyView, Codec, EntriesBuilder, EntriesRecord, EntryView, Gap, Open, PartIter, Previous, SeriesDef,
    TableRow, Tables, decode_control, decompress_body, decompress_body_into,
};
pub use repair::{RecoverError, Recovered, ReplaySegment, recover};
pub use scan::{Damage, GroupScan, RecordScan, SegmentScan, scan_segment};
pub use segment::{segment_name, segment_number};
pub use writer::{Append, Applied, Sink, StreamLog, SyncMode, Unavailable, Wal, WalOptions, spawn_critical};
