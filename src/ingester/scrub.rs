//! The scrubber: reads sealed segments of both logs again, slowly, so that damage is found before somebody needs what it hit.
//!
//! What has another copy is healed: lines of a damaged segment of the write-ahead log are in memory or in blocks, and those in
//! memory are sealed. A damaged block is told, and made again by the next start (ADR 0009).

use super::commit::Payload;
use super::retain::{decision, still_needed};
use super::sealed::Sealing;
use super::stream::Unsettled;
use super::worker::{Signal, Worker};
use super::{State, Stream};
use crate::fs::is_shortage;
use crate::wal::{
    BlockError, BlockLog, BlockPlace, BlockStore, Damage, DamageReport, LogKind, Scrub, Scrubbed, Sealed, SyncMode,
    Wal, file_name, keep_report,
};
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tracing::{error, info, warn};
use uuid::Uuid;

/// The first pass begins so long after the start, or after the interval if that is shorter: the start has read the most itself.
const FIRST: Duration = Duration::from_secs(60);
/// Bytes that are read before the rate is looked at.
const STEP: u64 = 1 << 20;
/// Under pressure it is looked again after this time.
const RETRY: Duration = Duration::from_millis(250);
/// A sync that takes longer is pressure: pushes wait for the disk.
const SLOW_SYNC: Duration = Duration::from_millis(50);
/// How long a damaged segment's lines may take on their way to blocks.
const HEAL_FOR: Duration = Duration::from_secs(60);
/// What a report says.
const NO_LINES: &str = "no block that is needed lies there, so no line is lost with it";
const HEALED: &str = "all lines of the segment are in blocks now, most of them were before: none is lost with it";
const UNHEALED: &str = "not all lines of the segment could be sealed into blocks yet: those are in memory, and a start would miss what the \
                        damage hit; look whether the disk is full";

/// How fast, and how often.
#[derive(Clone, Copy, Debug)]
pub struct ScrubOptions {
    /// Bytes a second.
    pub rate: u64,
    /// From the beginning of a pass to that of the next.
    pub interval: Duration,
}

/// How far it is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ScrubStatus {
    /// Bytes a second, at most.
    pub rate: u64,
    /// Seconds from the beginning of a pass to that of the next.
    pub interval_seconds: f64,
    /// Passes that were finished.
    pub passes: u64,
    /// Is one running?
    pub running: bool,
    /// Bytes of the pass that is running, or of the last one.
    pub pass_bytes: u64,
    /// Duration of the last whole pass.
    pub last_pass_seconds: Option<f64>,
    /// Places that were found damaged, since the start.
    pub damaged_places: u64,
    /// Segments whose lines were made safe, since the start.
    pub healed_segments: u64,
}

/// The thread that does it.
pub(super) struct Scrubber {
    status: Arc<Mutex<ScrubStatus>>,
    worker: Worker,
}

impl Scrubber {
    pub fn start(
        state: &Arc<State>,
        wal: &Arc<Wal<Payload>>,
        blocks: &Arc<BlockLog<Sealing>>,
        volume: Uuid,
        options: ScrubOptions,
    ) -> Self {
        let status = ScrubStatus {
            rate: options.rate,
            interval_seconds: options.interval.as_secs_f64(),
            ..ScrubStatus::default()
        };
        let status = Arc::new(Mutex::new(status));
        let (state, wal, blocks) = (Arc::downgrade(state), wal.clone(), blocks.clone());
        let shared = status.clone();
        let worker = Worker::start("scrub", move |signal| {
            let (scrub, healed) = (Scrub::default(), HashSet::new());
            Work { state, wal, blocks, volume, options, signal, status: shared, scrub, owed: 0, healed }.run();
        });
        Self { status, worker }
    }

    pub fn status(&self) -> ScrubStatus {
        self.status.lock().clone()
    }

    pub fn stop(&self) {
        self.worker.stop();
    }
}

struct Work {
    state: Weak<State>,
    wal: Arc<Wal<Payload>>,
    blocks: Arc<BlockLog<Sealing>>,
    volume: Uuid,
    options: ScrubOptions,
    signal: Arc<Signal>,
    status: Arc<Mutex<ScrubStatus>>,
    scrub: Scrub,
    /// Bytes that were read since the last look at the rate.
    owed: u64,
    /// Damaged segments of the write-ahead log of which nothing is needed any more.
    healed: HashSet<u64>,
}

impl Work {
    fn run(&mut self) {
        let mut wait = FIRST.min(self.options.interval);
        while self.signal.pause(wait) {
            let started = Instant::now();
            if self.pass(started).is_none() {
                return;
            }
            wait = self.options.interval.saturating_sub(started.elapsed());
        }
    }

    /// Reads everything once; `None` to stop.
    fn pass(&mut self, started: Instant) -> Option<()> {
        {
            let mut status = self.status.lock();
            (status.running, status.pass_bytes) = (true, 0);
        }
        for (number, end) in self.blocks.store().ends() {
            self.block_segment(number, end)?;
        }
        for (number, end) in self.wal.retention().finished() {
            self.wal_segment(number, end)?;
        }
        let mut status = self.status.lock();
        status.running = false;
        status.passes += 1;
        status.last_pass_seconds = Some(started.elapsed().as_secs_f64());
        self.state.upgrade()?.metrics.scrub_passes.inc();
        Some(())
    }

    fn path(&self, state: &State, log: LogKind, number: u64) -> PathBuf {
        let dir = if log == LogKind::Wal { &state.config.wal_dir } else { &state.config.blocks_dir };
        dir.join(file_name(log, number))
    }

    /// Reads a segment; the inner `None` if nothing that was read counts, the outer to stop.
    fn read(&mut self, log: LogKind, number: u64, end: u64) -> Option<Option<io::Result<Scrubbed>>> {
        let state = self.state.upgrade()?;
        let path = self.path(&state, log, number);
        let sealed = Sealed { path: &path, log, number, volume: self.volume, end };
        let mut waits = false;
        loop {
            let mut scrub = std::mem::take(&mut self.scrub);
            let read = scrub.run(&*state.config.fs, &sealed, &mut |bytes| self.pace(&state, bytes));
            self.scrub = scrub;
            if self.signal.is_stopping() {
                return None;
            }
            match read {
                Err(error) if is_shortage(&error) => {
                    if !std::mem::replace(&mut waits, true) {
                        let segment = file_name(log, number);
                        warn!(segment, %error, "the scrubber waits: are there too few descriptors (ulimit -n), or too little memory?");
                    }
                    if !self.signal.pause(RETRY) {
                        return None;
                    }
                }
                read => return Some(read.transpose()),
            }
        }
    }

    /// Keeps the rate, and waits while pushes need the disk; returns whether to go on.
    fn pace(&mut self, state: &State, bytes: u64) -> bool {
        self.status.lock().pass_bytes += bytes;
        state.metrics.scrub_bytes.inc_by(bytes);
        self.owed += bytes;
        if self.owed < STEP {
            return !self.signal.is_stopping();
        }
        let wait = Duration::from_secs_f64(self.owed as f64 / self.options.rate.max(1) as f64);
        self.owed = 0;
        let mut goes_on = self.signal.pause(wait);
        while goes_on && self.is_pressed(state) {
            goes_on = self.signal.pause(RETRY);
        }
        goes_on
    }

    /// Is a log full, or the disk slow?
    fn is_pressed(&self, state: &State) -> bool {
        let patience = match state.config.sync {
            SyncMode::Always => SLOW_SYNC,
            SyncMode::Interval(every) => every.saturating_add(SLOW_SYNC),
            SyncMode::Os => Duration::MAX,
        };
        let slow = self.wal.syncs().unsynced().is_some_and(|unsynced| unsynced > patience);
        slow || self.wal.unavailable().is_some() || self.blocks.starved().is_some()
    }

    fn block_segment(&mut self, number: u64, end: u64) -> Option<()> {
        let Some(read) = self.read(LogKind::Blocks, number, end)? else { return Some(()) };
        let (state, store) = (self.state.upgrade()?, self.blocks.store().clone());
        if !store.holds(number) {
            return Some(());
        }
        let Scrubbed { salt, mut damage } = match read {
            Ok(scrubbed) if scrubbed.damage.is_empty() => return Some(()),
            Ok(scrubbed) => scrubbed,
            Err(error) => {
                self.tell_unreadable(LogKind::Blocks, number, &error);
                return Some(());
            }
        };
        let live: Vec<BlockPlace> = state
            .all_instances()
            .iter()
            .flat_map(|i| i.shown())
            .flat_map(|s| s.blocks_in(number))
            .map(|(_, _, block)| block.place)
            .collect();
        // Blocks are told as if a query had met them: the store remembers those that a read finds damaged.
        for place in live.iter().filter(|place| damage.iter().any(|d| overlaps(d, place))) {
            if !store.is_known_damaged(*place) && self.is_damaged(&store, *place)? {
                self.status.lock().damaged_places += 1;
            }
        }
        damage.retain(|d| !live.iter().any(|place| overlaps(d, place)));
        if !damage.is_empty() {
            self.tell(&state, LogKind::Blocks, number, Scrubbed { salt, damage }, NO_LINES);
        }
        Some(())
    }

    /// Reads a block, when there are descriptors for it; `None` to stop. One that is gone is not damaged.
    fn is_damaged(&self, store: &BlockStore, place: BlockPlace) -> Option<bool> {
        loop {
            match store.read(place) {
                Err(BlockError::Io(_, error)) if is_shortage(&error) => self.signal.pause(RETRY).then_some(())?,
                Err(BlockError::Io(_, error)) => return Some(error.kind() != io::ErrorKind::NotFound),
                Err(BlockError::Damaged(_)) => return Some(true),
                Ok(_) => return Some(false),
            }
        }
    }

    fn wal_segment(&mut self, number: u64, end: u64) -> Option<()> {
        let Some(read) = self.read(LogKind::Wal, number, end)? else { return Some(()) };
        let state = self.state.upgrade()?;
        if self.wal.retention().bounds().is_none_or(|(oldest, _)| oldest > number) {
            return Some(());
        }
        let scrubbed = match read {
            Ok(scrubbed) if scrubbed.damage.is_empty() => return Some(()),
            Ok(scrubbed) => scrubbed,
            Err(error) => {
                self.tell_unreadable(LogKind::Wal, number, &error);
                // What cannot be read is healed as what is damaged.
                self.heal_once(&state, number)?;
                return Some(());
            }
        };
        let healed = self.heal_once(&state, number)?;
        let new = self.tell(&state, LogKind::Wal, number, scrubbed, if healed { HEALED } else { UNHEALED });
        if healed && new {
            self.status.lock().healed_segments += 1;
            state.metrics.scrub_healed.inc();
            info!(segment = number, "the lines of the damaged segment are in blocks: none is lost");
        }
        Some(())
    }

    /// Heals a segment, unless an earlier pass has: the damage stays until the segment goes.
    fn heal_once(&mut self, state: &Arc<State>, number: u64) -> Option<bool> {
        let oldest = self.wal.retention().bounds().map_or(0, |(oldest, _)| oldest);
        self.healed.retain(|healed| *healed >= oldest);
        if !self.healed.contains(&number) && self.heal(state, number)? {
            self.healed.insert(number);
        }
        Some(self.healed.contains(&number))
    }

    /// Seals from memory what a segment of the write-ahead log is needed for, and logs its decisions again; returns whether
    /// nothing of it is needed any more. `None` to stop.
    fn heal(&self, state: &Arc<State>, number: u64) -> Option<bool> {
        let Some((streams, holds)) = self.wal.retention().needed_for(number) else { return Some(true) };
        let mut streams: Vec<(Arc<Stream>, u64)> =
            streams.iter().filter_map(|(id, end_seq)| Some((state.stream(*id)?, *end_seq))).collect();
        let started = Instant::now();
        loop {
            streams.retain(|(stream, end_seq)| match stream.unsettled(*end_seq) {
                Unsettled::No => false,
                Unsettled::Wait => true,
                Unsettled::Head(_) => {
                    if stream.freeze_head() {
                        state.sealer.enqueue(stream.clone());
                    }
                    true
                }
            });
            if streams.is_empty() || started.elapsed() > HEAL_FOR {
                break;
            }
            if !self.signal.pause(Duration::from_millis(20)) {
                return None;
            }
        }
        if !streams.is_empty() {
            return Some(false);
        }
        let again: Vec<_> =
            holds.into_iter().filter(|h| still_needed(state, self.blocks.store(), h)).map(decision).collect();
        Some(again.is_empty() || self.wal.decide(again).is_ok())
    }

    /// Keeps the segment with a report, and tells what is new; returns whether anything is.
    fn tell(&self, state: &State, log: LogKind, number: u64, found: Scrubbed, remark: &str) -> bool {
        let report = DamageReport {
            log: if log == LogKind::Wal { "wal" } else { "blocks" }.to_string(),
            segment: number,
            salt: found.salt,
            places: found.damage.iter().map(Damage::to_string).collect(),
            remarks: vec![remark.to_string()],
            ..DamageReport::default()
        };
        let path = self.path(state, log, number);
        let places = match keep_report(&*state.config.fs, &state.config.quarantine_dir, report, &path) {
            Ok(places) => places,
            Err(error) => {
                warn!(%error, "a report on damage could not be written to the quarantine: it is tried again with the next pass");
                found.damage.iter().map(Damage::to_string).collect()
            }
        };
        if places.is_empty() {
            return false;
        }
        self.status.lock().damaged_places += places.len() as u64;
        state.metrics.corruptions.with_label_values(&["segment"]).inc_by(places.len() as u64);
        error!(file = %path.display(), places = places.join("; "), "a sealed segment is damaged on the disk: {remark}");
        true
    }

    fn tell_unreadable(&self, log: LogKind, number: u64, error: &io::Error) {
        self.status.lock().damaged_places += 1;
        error!(segment = file_name(log, number), %error, "a sealed segment cannot be read: look at the disk (dmesg)");
    }
}

fn overlaps(damage: &Damage, place: &BlockPlace) -> bool {
    damage.bytes.start < place.offset + u64::from(place.len) && place.offset < damage.bytes.end
}
