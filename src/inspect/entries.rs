//! Every line of both logs once, with its stream: what `export` and `replay` go through.
//!
//! The order is that of the logs: blocks first, oldest segment first, each sorted by timestamp; then the write-ahead log.
//! So memory does not grow with the lines, and the same directory gives the same order again.

use super::blocks::{BlockView, read_block};
use super::command::{Once, Stream, Streams, metadata};
use super::dump::{Moment, Position};
use super::error::InspectError;
use super::log::{Judged, SegmentView, State, Step};
use super::progress::Progress;
use super::selector::Selector;
use crate::wal::format::Kind;
use crate::wal::{BlockTables, BodyView, RecordScan, TableRow, Tables, decompress_body};
use regex::bytes::Regex;
use std::collections::HashSet;

/// Which lines are wanted, wherever they lie.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Wanted {
    /// Only this tenant
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// Only streams that satisfy a selector, such as '{app="web", env=~"prod|test"}'
    #[arg(short = 'm', long = "match", value_name = "SELECTOR")]
    pub selector: Option<Selector>,
    /// Only this stream id
    #[arg(long, value_name = "ID")]
    pub stream: Option<u64>,
    /// Only entries at or after: RFC 3339, nanoseconds, or a duration ago such as 15m
    #[arg(long, value_name = "TIME")]
    pub since: Option<Moment>,
    /// Only entries before
    #[arg(long, value_name = "TIME")]
    pub until: Option<Moment>,
    /// Only entries whose line matches a regular expression
    #[arg(short, long, value_name = "REGEX")]
    pub grep: Option<Regex>,
}

impl Wanted {
    /// Are there conditions that only a line can satisfy?
    pub fn only_entries(&self) -> bool {
        self.grep.is_some() || self.since.is_some() || self.until.is_some()
    }

    /// Are lines of this stream wanted?
    pub fn has_stream(&self, id: u64, tenant: &str, stream: Option<&Stream>) -> bool {
        let selected = |s: &Selector| stream.is_some_and(|stream| s.matches(&stream.labels));
        self.stream.is_none_or(|wanted| wanted == id)
            && self.tenant.as_deref().is_none_or(|wanted| wanted == tenant)
            && self.selector.as_ref().is_none_or(selected)
    }

    /// Is this line wanted?
    pub fn has_entry(&self, timestamp: i64, line: &[u8]) -> bool {
        self.since.is_none_or(|since| timestamp >= since.0)
            && self.until.is_none_or(|until| timestamp < until.0)
            && self.grep.as_ref().is_none_or(|g| g.is_match(line))
    }
}

/// Which lines are wanted, and from where.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Filter {
    /// Which.
    #[command(flatten)]
    pub wanted: Wanted,
    /// First position in the write-ahead log, SEGMENT:OFFSET; then lines of blocks are left out
    #[arg(long, value_name = "POSITION")]
    pub from: Option<Position>,
    /// End position in the write-ahead log, itself left out
    #[arg(long, value_name = "POSITION")]
    pub end: Option<Position>,
}

impl Filter {
    /// Positions are of the write-ahead log.
    fn has_positions(&self) -> bool {
        self.from.is_some() || self.end.is_some()
    }

    fn wants_segment(&self, number: u64) -> bool {
        let from = self.from.map_or(0, |p| p.segment);
        let to = self.end.map_or(u64::MAX, |p| p.segment);
        (from..=to).contains(&number)
    }

    fn wants_position(&self, at: Position) -> bool {
        self.from.is_none_or(|from| at >= from) && self.end.is_none_or(|to| at < to)
    }
}

/// Where a line lies. Ordered as the lines come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct EntryPlace {
    /// In the write-ahead log, which comes behind the block log.
    pub wal: bool,
    /// Number of the segment.
    pub segment: u64,
    /// Offset of its record or block.
    pub offset: u64,
    /// Number of the line in that.
    pub index: u64,
}

/// A line on its way to a command.
pub struct Line<'a> {
    /// Where it lies.
    pub place: EntryPlace,
    /// Stream id.
    pub id: u64,
    /// Tenant.
    pub tenant: &'a str,
    /// Its stream, if a definition survives.
    pub stream: Option<&'a Stream>,
    /// Nanoseconds since the Unix epoch.
    pub timestamp: i64,
    /// The line.
    pub line: &'a [u8],
    /// Structured metadata.
    pub metadata: &'a [(String, String)],
}

/// Gets each line; returns whether to go on.
pub type Visit<'a> = dyn FnMut(&Line<'_>) -> Result<bool, InspectError> + 'a;

/// Hands every wanted line to `visit` until it returns `false`. `tail` says whether records above the durable end count.
///
/// # Errors
/// The log cannot be read, or `visit` failed.
pub fn walk(
    filter: &Filter,
    tail: bool,
    judged: &Judged,
    progress: &mut Progress,
    visit: &mut Visit<'_>,
) -> Result<(), InspectError> {
    let walk = Walk { filter, tail, streams: &Streams::of(judged) };
    let mut once = Once::new(judged);
    let mut go_on = true;
    if filter.has_positions() {
        // A place is asked for, not what is settled: its lines come although blocks have them.
        once = Once::in_log(judged);
    } else {
        judged.blocks.walk(&judged.log, |view| {
            go_on = walk.blocks(judged, view, visit)?;
            Ok(go_on)
        })?;
    }
    if !go_on {
        return Ok(());
    }
    judged.walk(
        |number| filter.wants_segment(number),
        progress,
        |step| {
            // What was retired meanwhile had lost its worth: its lines are in blocks, or were carried.
            let Step::Segment(view) = step else { return Ok(true) };
            walk.segment(view, &mut once, visit)
        },
    )
}

struct Walk<'a> {
    filter: &'a Filter,
    tail: bool,
    streams: &'a Streams,
}

impl Walk<'_> {
    fn blocks(&self, judged: &Judged, view: &BlockView<'_>, visit: &mut Visit<'_>) -> Result<bool, InspectError> {
        let segment = view.synced.segment;
        let here = judged.blocks.counting().filter(|b| b.place.segment == segment);
        let live: HashSet<u64> = here.map(|b| b.place.offset).collect();
        for record in view.records().filter(|r| r.body_is_sound && live.contains(&r.offset)) {
            if record.head.known_kind() == Some(Kind::Block) && !self.block(segment, record, view.file, visit)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn block(
        &self,
        segment: u64,
        record: &RecordScan,
        file: &[u8],
        visit: &mut Visit<'_>,
    ) -> Result<bool, InspectError> {
        let Ok(tables) = BlockTables::decode(record.head.tables(file, record.offset)) else { return Ok(true) };
        let (id, stream) = (tables.stream, self.streams.get(tables.stream));
        let tenant = stream.map_or("", |s| &s.tenant);
        if !self.filter.wanted.has_stream(id, tenant, stream) {
            return Ok(true);
        }
        // A block that does not decode is damage, which the judgement has told.
        let Ok((_, entries)) = read_block(record, file) else { return Ok(true) };
        for (index, e) in (0..).zip(&entries).filter(|(_, e)| self.filter.wanted.has_entry(e.timestamp, &e.line)) {
            let place = EntryPlace { wal: false, segment, offset: record.offset, index };
            let (line, metadata) = (&*e.line, &*e.metadata);
            if !visit(&Line { place, id, tenant, stream, timestamp: e.timestamp, line, metadata })? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn segment(
        &self,
        view: &SegmentView<'_>,
        once: &mut Once<'_>,
        visit: &mut Visit<'_>,
    ) -> Result<bool, InspectError> {
        for (_, record, state) in view.records() {
            let at = Position { segment: view.number, offset: record.offset };
            let counts = record.body_is_sound && (state == State::Durable || self.tail);
            let is_entries = record.head.known_kind() == Some(Kind::Entries);
            if counts && is_entries && self.filter.wants_position(at) && !self.entries(view, record, once, visit)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn entries(
        &self,
        view: &SegmentView<'_>,
        record: &RecordScan,
        once: &mut Once<'_>,
        visit: &mut Visit<'_>,
    ) -> Result<bool, InspectError> {
        let head = &record.head;
        let Ok(tables) = Tables::decode(head.tables(view.file, record.offset)) else { return Ok(true) };
        let wants =
            |row: &TableRow| self.filter.wanted.has_stream(row.stream, tables.tenant, self.streams.get(row.stream));
        if !tables.rows.iter().any(wants) {
            return Ok(true);
        }
        let Ok(raw) = decompress_body(head, head.body(view.file, record.offset)) else { return Ok(true) };
        let Ok(body) = BodyView::new(&raw) else { return Ok(true) };
        let (mut start, mut first) = (0, 0);
        for row in &tables.rows {
            let (part, index) = (body.part(start, row), first);
            start = start.saturating_add(row.part_len as usize);
            first += u64::from(row.count);
            let Ok(part) = part else { continue };
            if !wants(row) {
                continue;
            }
            let fresh = once.seqs(row);
            for (n, entry) in (0..).zip(part.map_while(Result::ok)) {
                let seq = row.first_seq + n;
                if !fresh.iter().any(|r| r.contains(&seq)) || !self.filter.wanted.has_entry(entry.timestamp, entry.line)
                {
                    continue;
                }
                let place = EntryPlace { wal: true, segment: view.number, offset: record.offset, index: index + n };
                let line = Line {
                    place,
                    id: row.stream,
                    tenant: tables.tenant,
                    stream: self.streams.get(row.stream),
                    timestamp: entry.timestamp,
                    line: entry.line,
                    metadata: &metadata(&entry, &body),
                };
                if !visit(&line)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}
