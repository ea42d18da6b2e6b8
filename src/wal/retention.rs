//! What the live segments hold, so that somebody can decide when the oldest may go, and the log's budget.

use super::record::{Beginning, ChunkClosed, ChunkFlushed, Gap};
use ahash::{AHashMap, AHashSet};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

/// From this share of its budget on the log is cleaned.
const CLEAN_AT: f64 = 0.75;

/// A decision that must stay in the log as long as it has an effect. It is logged again before its segment goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Hold {
    /// Until the chunk is flushed.
    Closed(ChunkClosed),
    /// Until nothing of the chunk is left in either log.
    Flushed(ChunkFlushed),
    /// Until the LSNs before it are gone, which is when it is in the oldest segment.
    Gap(Gap),
}

/// What one segment holds.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Its number, first LSN, and the lines before it.
    pub begins: Beginning,
    /// Bytes of its file.
    pub file_len: u64,
    /// Bytes before this offset are synced; 0 while it is written.
    pub end: u64,
    /// Stream id → the seq after the highest that may lie in the segment. All of them settled: the segment may go.
    pub streams: Arc<AHashMap<u64, u64>>,
    /// Decisions that may still have an effect.
    pub holds: Vec<Hold>,
}

/// The live segments of the write-ahead log, oldest first, and the budget of their bytes. Segments that are prepared, and
/// retired ones that wait to be used again, come on top: at most four.
#[derive(Debug)]
pub struct Retention {
    max_size: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    segments: VecDeque<Contents>,
    /// Somebody was refused since a segment went.
    refuses: bool,
}

impl State {
    fn size(&self) -> u64 {
        self.segments.iter().map(|s| s.file_len).sum()
    }
}

impl Retention {
    pub(super) fn new(max_size: u64, contents: Vec<Contents>) -> Self {
        Self { max_size, state: Mutex::new(State { segments: contents.into(), refuses: false }) }
    }

    /// Bytes that the live segments may have together.
    pub fn max_size(&self) -> u64 {
        self.max_size
    }

    /// Bytes of the live segments.
    pub fn size(&self) -> u64 {
        self.state.lock().size()
    }

    /// Is the log so near its budget that its oldest segments should go?
    pub fn needs_cleaning(&self) -> bool {
        self.size() as f64 > self.max_size as f64 * CLEAN_AT
    }

    /// Numbers of the oldest and of the newest live segment.
    pub fn bounds(&self) -> Option<(u64, u64)> {
        let state = self.state.lock();
        Some((state.segments.front()?.begins.segment, state.segments.back()?.begins.segment))
    }

    /// Looks at the oldest segment, unless it is the one that is written.
    pub fn oldest<R>(&self, look: impl FnOnce(&Contents) -> R) -> Option<R> {
        let state = self.state.lock();
        let finished = state.segments.len() > 1;
        state.segments.front().filter(|_| finished).map(look)
    }

    /// What the oldest segment alone holds. A crash may have left a decision in several segments: logged again from each of them, such
    /// copies would never end.
    pub fn held_by_oldest_alone(&self) -> Vec<Hold> {
        let state = self.state.lock();
        let mut segments = state.segments.iter();
        let Some(oldest) = segments.next() else { return Vec::new() };
        let newer: AHashSet<&Hold> = segments.flat_map(|s| &s.holds).collect();
        let mut alone: AHashSet<&Hold> = oldest.holds.iter().filter(|h| !newer.contains(h)).collect();
        // Each once, in the order of the log.
        oldest.holds.iter().filter(|h| alone.remove(h)).cloned().collect()
    }

    /// Live segments.
    pub fn segments(&self) -> usize {
        self.state.lock().segments.len()
    }

    /// Does the log refuse pushes because it is as large as it may be?
    pub fn refuses(&self) -> bool {
        self.state.lock().refuses
    }

    /// May another segment be taken for pushes? If not, this is remembered until a segment goes.
    pub(super) fn has_room(&self, segment: u64) -> bool {
        let mut state = self.state.lock();
        let room = state.segments.is_empty() || state.size().saturating_add(segment) <= self.max_size;
        state.refuses |= !room;
        room
    }

    /// A segment was taken into use, or enlarged.
    pub(super) fn opened(&self, begins: Beginning, file_len: u64) {
        let mut state = self.state.lock();
        match state.segments.back_mut().filter(|s| s.begins.segment == begins.segment) {
            Some(newest) => newest.file_len = file_len,
            None => state.segments.push_back(Contents { begins, file_len, ..Contents::default() }),
        }
    }

    /// Nothing is written behind this offset any more, and everything before it is synced.
    pub(super) fn ended(&self, number: u64, end: u64) {
        if let Some(segment) = self.state.lock().segments.iter_mut().rfind(|s| s.begins.segment == number) {
            segment.end = end;
        }
    }

    /// Numbers and ends of the segments that nothing is written to any more, oldest first.
    pub fn finished(&self) -> Vec<(u64, u64)> {
        let state = self.state.lock();
        let finished = state.segments.len().saturating_sub(1);
        state.segments.iter().take(finished).map(|s| (s.begins.segment, s.end)).collect()
    }

    /// What a segment holds: streams with their ends, and decisions. `None` if it is gone.
    pub fn needed_for(&self, number: u64) -> Option<(Arc<AHashMap<u64, u64>>, Vec<Hold>)> {
        let state = self.state.lock();
        let segment = state.segments.iter().find(|s| s.begins.segment == number)?;
        Some((segment.streams.clone(), segment.holds.clone()))
    }

    /// Entries of a stream are durable in the newest segment.
    pub(super) fn logged(&self, stream: u64, end_seq: u64) {
        if let Some(newest) = self.state.lock().segments.back_mut() {
            let end = Arc::make_mut(&mut newest.streams).entry(stream).or_default();
            *end = end_seq.max(*end);
        }
    }

    pub(super) fn holds(&self, hold: Hold) {
        if let Some(newest) = self.state.lock().segments.back_mut() {
            newest.holds.push(hold);
        }
    }

    /// Where the log begins without the segments before this one.
    pub(super) fn beginning(&self, first_live: u64) -> Beginning {
        let state = self.state.lock();
        let oldest = state.segments.iter().find(|s| s.begins.segment >= first_live);
        oldest.map_or(Beginning::default(), |s| Beginning { segment: first_live, ..s.begins })
    }

    /// Forgets the segments before this one, and tells their numbers and sizes.
    pub(super) fn retired(&self, first_live: u64) -> Vec<(u64, u64)> {
        let mut state = self.state.lock();
        let mut gone = Vec::new();
        while let Some(oldest) = state.segments.pop_front_if(|s| s.begins.segment < first_live) {
            gone.push((oldest.begins.segment, oldest.file_len));
        }
        state.refuses &= gone.is_empty();
        gone
    }
}
