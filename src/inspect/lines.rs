//! Every line of a log once, from both logs, as a start would show it.

use super::blocks::read_block;
use super::command::{Once, Streams, metadata};
use super::error::InspectError;
use super::log::{Judged, Step};
use super::progress::Progress;
use crate::wal::format::Kind;
use crate::wal::{BodyView, Tables, decompress_body};
use std::collections::HashSet;

/// A line with what belongs to it.
pub struct Line<'a> {
    /// Stream id.
    pub stream: u64,
    /// Nanoseconds since the Unix epoch.
    pub timestamp: i64,
    /// The line.
    pub line: &'a [u8],
    /// Structured metadata.
    pub metadata: Vec<(String, String)>,
}

/// Hands each line on whose stream a definition names, records above the durable end included. Returns how many lines no
/// definition names.
///
/// # Errors
/// The log cannot be read, changes meanwhile, or `visit` failed.
pub fn each(
    judged: &Judged,
    streams: &Streams,
    progress: &mut Progress,
    visit: &mut dyn FnMut(Line<'_>) -> Result<(), InspectError>,
) -> Result<u64, InspectError> {
    let mut unnamed = 0;
    judged.blocks.walk(&judged.log, |view| {
        let here = judged.blocks.counting().filter(|b| b.place.segment == view.synced.segment);
        let live: HashSet<u64> = here.map(|b| b.place.offset).collect();
        for record in view.records().filter(|r| live.contains(&r.offset)) {
            // What does not decode is told by `verify`.
            let Ok((tables, entries)) = read_block(record, view.file) else { continue };
            if streams.get(tables.stream).is_none() {
                unnamed += entries.len() as u64;
                continue;
            }
            for e in entries {
                visit(Line { stream: tables.stream, timestamp: e.timestamp, line: &e.line, metadata: e.metadata })?;
            }
        }
        Ok(true)
    })?;
    let mut once = Once::new(judged);
    judged.walk(
        |_| true,
        progress,
        |step| {
            let Step::Segment(view) = step else { return Err(judged.changing()) };
            for (_, record, _) in view.records() {
                let head = &record.head;
                if !record.body_is_sound || head.known_kind() != Some(Kind::Entries) {
                    continue;
                }
                let Ok(tables) = Tables::decode(head.tables(view.file, record.offset)) else { continue };
                let Ok(raw) = decompress_body(head, head.body(view.file, record.offset)) else { continue };
                let Ok(body) = BodyView::new(&raw) else { continue };
                let mut start = 0;
                for row in &tables.rows {
                    let part = body.part(start, row);
                    start = start.saturating_add(row.part_len as usize);
                    let fresh = once.seqs(row);
                    if streams.get(row.stream).is_none() {
                        unnamed += crate::wal::ranges::count(&fresh);
                        continue;
                    }
                    let Ok(part) = part else { continue };
                    let entries = (row.first_seq..).zip(part.map_while(Result::ok));
                    for (_, e) in entries.filter(|(seq, _)| fresh.iter().any(|r| r.contains(seq))) {
                        let metadata = metadata(&e, &body);
                        visit(Line { stream: row.stream, timestamp: e.timestamp, line: e.line, metadata })?;
                    }
                }
            }
            Ok(true)
        },
    )?;
    Ok(unnamed)
}
