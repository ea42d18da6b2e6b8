//! Bugs on purpose: the recovery tests must find each of them, or they prove nothing.
//!
//! One bug at a time is chosen while the program runs, by `plant` or by the environment variable
//! `TIMBERLINE_PLANTED_BUG`. Without the feature `planted-bugs` nothing of this is left: [`is`] is a constant.

macro_rules! bugs {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A bug that can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $($(#[$doc])* $variant,)*
        }

        impl Bug {
            /// All bugs.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name in the environment and in reports.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

bugs! {
    /// A push is answered before its record is written.
    AckBeforeWrite = "ack-before-write",
    /// Memory first, the log later (Loki).
    MemoryBeforeLog = "memory-before-log",
    /// A push counts as durable when it is written (Loki, VictoriaLogs).
    AckBeforeSync = "ack-before-sync",
    /// A failed sync is tried again, and the second success believed.
    SyncRetried = "sync-retried",
    /// A failed sync of another file is none of the log's.
    SyncBesideIgnored = "sync-beside-ignored",
    /// A failed sync is no reason to stop.
    SyncErrorSwallowed = "sync-error-swallowed",
    /// A full disk is no reason not to answer (Loki).
    FullDiskAcked = "full-disk-acked",
    /// After a write that failed for lack of space, the next group goes to the same place.
    OffsetUsedAgain = "offset-used-again",
    /// What a short write has left out is forgotten.
    ShortWriteIgnored = "short-write-ignored",
    /// A header tells that its own group is durable.
    WatermarkTooFar = "watermark-too-far",
    /// A segment is used before its bytes are synced.
    SegmentUnsynced = "segment-unsynced",
    /// A segment is used before its name is.
    DirectoryUnsynced = "directory-unsynced",
    /// A segment gets its name before it has its header.
    HeaderAfterRename = "header-after-rename",
    /// The salt of a segment that is used again stays and nobody compares its number, so that old records hold.
    SaltKept = "salt-kept",
    /// Only the first segment defines a stream.
    SeriesOnce = "series-once",
    /// Heads of records are not checked.
    HeadUnchecked = "head-unchecked",
    /// Bodies of records are not checked.
    BodyUnchecked = "body-unchecked",
    /// The end of the log is served without being written again.
    TailNotRewritten = "tail-not-rewritten",
    /// The end of the log is written again, and not synced.
    TailUnsynced = "tail-unsynced",
    /// Segments behind a damaged one are dropped (Prometheus).
    LaterSegmentsDropped = "later-segments-dropped",
    /// Damage ends the log, and nobody is told.
    DamageSilent = "damage-silent",
    /// What is damaged is skipped, and nobody is told.
    LossNotTold = "loss-not-told",
    /// Bytes behind the end that the next segment tells count.
    VoidBytesCount = "void-bytes-count",
    /// Stream ids begin anew with each start.
    StreamIdsAgain = "stream-ids-again",
    /// LSNs of failed groups are skipped, as if they had been used.
    LsnsSkipped = "lsns-skipped",
    /// An entry is applied as often as it lies in the log.
    AppliedTwice = "applied-twice",
    /// Equal timestamps and lengths make a duplicate.
    DistinctDropped = "distinct-dropped",
    /// The second of two equal pushes is answered although the first is still on its way.
    DuplicateAckedEarly = "duplicate-acked-early",
    /// All lines are the first tenant's.
    TenantMixedUp = "tenant-mixed-up",
    /// Carried entries get new seqs.
    CarriedStampedAnew = "carried-stamped-anew",
    /// The oldest segment goes before small heads in it are logged again.
    CarriedTooLate = "carried-too-late",
    /// The oldest segment goes while blocks of its lines are on their way.
    RetiredTooEarly = "retired-too-early",
    /// A block counts before it is synced.
    BlockUnsynced = "block-unsynced",
    /// Segments of the block log do not define their streams.
    BlocksWithoutSeries = "blocks-without-series",
    /// Segments of the block log are removed before the log says so.
    UnlinkedEarly = "unlinked-early",
    /// What was flushed is forgotten with the segment that says so.
    FlushedForgotten = "flushed-forgotten",
    /// A chunk that is flushed settles other seqs of its stream too, before it and behind it.
    FlushedAsPrefix = "flushed-as-prefix",
    /// That a chunk was closed is not in the log when it is flushed.
    FlushedBeforeClosed = "flushed-before-closed",
    /// A thread that applies panics.
    PanicInApply = "panic-in-apply",
    /// A thread that seals panics.
    PanicInSeal = "panic-in-seal",
}

#[cfg(all(feature = "planted-bugs", not(debug_assertions)))]
compile_error!("planted bugs are for tests: a release build has none");

#[cfg(feature = "planted-bugs")]
mod on {
    use crate::planted::Bug;
    use std::sync::Once;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Position in `Bug::ALL`, and one; 0 for none.
    static PLANTED: AtomicUsize = AtomicUsize::new(0);
    static ASKED: Once = Once::new();

    /// Plants this bug in this process, and no other.
    pub fn plant(bug: Option<Bug>) {
        ASKED.call_once(|| {});
        PLANTED.store(bug.map_or(0, |b| b as usize + 1), Ordering::SeqCst);
    }

    /// Is this bug planted?
    pub fn is(bug: Bug) -> bool {
        ASKED.call_once(|| {
            let name = std::env::var("TIMBERLINE_PLANTED_BUG").unwrap_or_default();
            let asked = Bug::ALL.iter().position(|b| b.name() == name);
            PLANTED.store(asked.map_or(0, |p| p + 1), Ordering::SeqCst);
        });
        PLANTED.load(Ordering::Relaxed) == bug as usize + 1
    }
}

#[cfg(feature = "planted-bugs")]
pub use on::{is, plant};

/// Is this bug planted? There are none in this build.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub const fn is(_bug: Bug) -> bool {
    false
}
