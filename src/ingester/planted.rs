//! Bugs on purpose: the crash tests must find them.

use super::{Payload, State, Stream};
use crate::planted::{Bug, is};
use crate::wal::{Append, BodyView, EntriesRecord, Wal, spawn_critical};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Loki's order: memory first, with the stream's counter, and the log later, without the lock in between.
pub(super) fn memory_before_log(state: &State, record: &mut EntriesRecord, streams: &[Arc<Stream>]) {
    if !is(Bug::MemoryBeforeLog) {
        return;
    }
    let raw = record.raw().clone();
    let Ok(body) = BodyView::new(&raw) else { return };
    let mut start = 0;
    for (i, stream) in streams.iter().enumerate() {
        let Some(row) = record.stamp_early(i, &stream.log) else { return };
        let _ = state.apply(stream, &row, &body, start);
        start += row.part_len as usize;
    }
    std::thread::sleep(Duration::from_micros(u64::from(record.rows().len() as u32) * 300 * (streams[0].id() % 3)));
}

/// Is this body that of an earlier push, which may still be on its way?
pub(super) fn was_sent_before(body: &[u8]) -> bool {
    static SENT: Mutex<BTreeSet<Vec<u8>>> = Mutex::new(BTreeSet::new());
    is(Bug::DuplicateAckedEarly) && !SENT.lock().insert(body.to_vec())
}

/// What is answered before it is written: the log gets it from a thread of its own, well after the answer.
pub(super) fn write_later(wal: Arc<Wal<Payload>>, append: Append<Payload>) {
    spawn_critical("late", move || {
        std::thread::sleep(Duration::from_millis(5));
        if let Err((why, append)) = wal.append(append) {
            append.payload.fail(&why);
        }
    });
}
