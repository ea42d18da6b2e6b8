//! How the syncs of the log went lately, for operators.

use parking_lot::Mutex;
use serde::Serialize;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Syncs whose durations are remembered.
const REMEMBERED: usize = 512;

/// The last syncs, and since when written bytes wait for one.
#[derive(Debug, Default)]
pub struct Syncs(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    durations: VecDeque<Duration>,
    last: Option<Instant>,
    unsynced_since: Option<Instant>,
}

/// The same in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SyncStatus {
    /// Since the last sync ended; none without any.
    pub last_sync_seconds_ago: Option<f64>,
    /// Syncs of which the following tells: the last ones, 512 at most.
    pub syncs: usize,
    /// Half of them were faster.
    pub p50_seconds: Option<f64>,
    /// 99 of 100 were faster.
    pub p99_seconds: Option<f64>,
    /// The slowest.
    pub max_seconds: Option<f64>,
    /// So long the oldest written bytes wait for a sync; 0 if all are synced.
    pub unsynced_seconds: f64,
}

impl Syncs {
    /// Bytes were written that are not synced yet.
    pub(super) fn wrote(&self) {
        self.0.lock().unsynced_since.get_or_insert_with(Instant::now);
    }

    /// Everything that was written is synced, which took so long.
    pub(super) fn synced(&self, took: Duration) {
        let mut state = self.0.lock();
        if state.durations.len() == REMEMBERED {
            state.durations.pop_front();
        }
        state.durations.push_back(took);
        state.last = Some(Instant::now());
        state.unsynced_since = None;
    }

    /// How long the oldest written bytes wait for a sync, if there are any.
    pub fn unsynced(&self) -> Option<Duration> {
        self.0.lock().unsynced_since.map(|since| since.elapsed())
    }

    /// All of it.
    pub fn status(&self) -> SyncStatus {
        let state = self.0.lock();
        let mut sorted: Vec<Duration> = state.durations.iter().copied().collect();
        let (last, unsynced) = (state.last, state.unsynced_since);
        drop(state);
        sorted.sort_unstable();
        let at = |percent| percentile(&sorted, percent).map(|d| d.as_secs_f64());
        SyncStatus {
            last_sync_seconds_ago: last.map(|last| last.elapsed().as_secs_f64()),
            syncs: sorted.len(),
            p50_seconds: at(50),
            p99_seconds: at(99),
            max_seconds: at(100),
            unsynced_seconds: unsynced.map_or(0.0, |since| since.elapsed().as_secs_f64()),
        }
    }
}

/// The nearest-rank percentile of sorted durations; none without any.
pub fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let durations: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        let at = |percent| percentile(&durations, percent).map(|d| d.as_millis());
        assert_eq!((at(50), at(99), at(100), at(0)), (Some(100), Some(198), Some(200), Some(1)));
        assert_eq!(percentile(&durations[..1], 99), Some(Duration::from_millis(1)));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn the_last_syncs_count_and_what_waits_is_told() {
        let syncs = Syncs::default();
        assert_eq!(syncs.status(), SyncStatus::default());
        syncs.wrote();
        std::thread::sleep(Duration::from_millis(2));
        assert!(syncs.unsynced().unwrap() >= Duration::from_millis(2) && syncs.status().unsynced_seconds >= 0.002);
        syncs.synced(Duration::from_secs(100));
        for _ in 0..REMEMBERED {
            syncs.wrote();
            syncs.synced(Duration::from_millis(4));
        }
        let status = syncs.status();
        assert_eq!((status.syncs, status.max_seconds), (REMEMBERED, Some(0.004)));
        assert_eq!((status.unsynced_seconds, syncs.unsynced()), (0.0, None));
        assert!(status.last_sync_seconds_ago.is_some());
    }
}
