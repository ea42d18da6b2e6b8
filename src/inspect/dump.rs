//! `dump`: series and entry records in the order of the log. The only command that prints log lines.

use super::command::{Context, Streams, metadata};
use super::error::InspectError;
use super::log::{Judged, SegmentView, State, Step};
use super::output::{Cell, Row, Shape, hex};
use super::selector::Selector;
use crate::wal::format::Kind;
use crate::wal::{BodyView, EntryView, RecordScan, SeriesDef, TableRow, Tables, decode_control, decompress_body};
use regex::bytes::Regex;
use std::fmt;
use std::io::Write;
use std::str::FromStr;

/// A place in the log, written `SEGMENT:OFFSET`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Number of the segment.
    pub segment: u64,
    /// Byte offset in its file.
    pub offset: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment, self.offset)
    }
}

impl FromStr for Position {
    type Err = String;

    /// `7:8256`, or `7` for the beginning of segment 7.
    fn from_str(text: &str) -> Result<Self, String> {
        let (segment, offset) = text.split_once(':').unwrap_or((text, "0"));
        match (segment.parse(), offset.parse()) {
            (Ok(segment), Ok(offset)) => Ok(Self { segment, offset }),
            _ => Err("expected SEGMENT:OFFSET, two decimal numbers such as 7:8256".to_string()),
        }
    }
}

/// A moment in nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub i64);

impl FromStr for Moment {
    type Err = String;

    /// RFC 3339 (`2026-11-22T10:00:00Z`), nanoseconds since the Unix epoch, or a duration ago (`15m`).
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(ns) = text.parse() {
            return Ok(Self(ns));
        }
        let at = match text.parse::<jiff::Timestamp>() {
            Ok(at) => Some(at),
            Err(_) => {
                let ago = text.parse::<jiff::SignedDuration>().ok();
                ago.and_then(|ago| jiff::Timestamp::now().checked_sub(ago).ok())
            }
        };
        let ns = at.and_then(|at| i64::try_from(at.as_nanosecond()).ok());
        let wrong =
            "expected a time such as 2026-11-22T10:00:00Z, nanoseconds since 1970, or a duration ago such as 15m";
        ns.map(Self).ok_or_else(|| wrong.to_string())
    }
}

/// What `dump` shows.
#[derive(Clone, Debug, clap::Args)]
pub struct DumpArgs {
    /// Only this tenant
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// Only streams that satisfy a selector, such as '{app="web", env=~"prod|test"}'
    #[arg(short = 'm', long = "match", value_name = "SELECTOR")]
    pub selector: Option<Selector>,
    /// Only this stream id
    #[arg(long, value_name = "ID")]
    pub stream: Option<u64>,
    /// First position, SEGMENT:OFFSET
    #[arg(long, value_name = "POSITION")]
    pub from: Option<Position>,
    /// End position, itself not shown
    #[arg(long, value_name = "POSITION")]
    pub to: Option<Position>,
    /// Only entries at or after: RFC 3339, nanoseconds, or a duration ago such as 15m
    #[arg(long, value_name = "TIME")]
    pub since: Option<Moment>,
    /// Only entries before
    #[arg(long, value_name = "TIME")]
    pub until: Option<Moment>,
    /// Only entries whose line matches a regular expression
    #[arg(short, long, value_name = "REGEX")]
    pub grep: Option<Regex>,
    /// Only this kind of record
    #[arg(long, value_name = "KIND", value_enum)]
    pub kind: Option<DumpKind>,
    /// Leave the lines and metadata out
    #[arg(long)]
    pub no_lines: bool,
    /// Also records above the durable end (in flight, or kept by the next recovery)
    #[arg(long)]
    pub tail: bool,
    /// Stop after N rows
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
}

/// The kinds that `dump` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DumpKind {
    /// Definitions of streams.
    Series,
    /// Log entries.
    Entries,
}

impl DumpArgs {
    /// Conditions on a line or its time leave no series.
    fn wants_series(&self) -> bool {
        let entries_only = self.grep.is_some() || self.since.is_some() || self.until.is_some();
        self.kind.map_or(!entries_only, |k| k == DumpKind::Series)
    }

    fn wants_entries(&self) -> bool {
        self.kind != Some(DumpKind::Series)
    }

    fn wants_segment(&self, number: u64) -> bool {
        let from = self.from.map_or(0, |p| p.segment);
        let to = self.to.map_or(u64::MAX, |p| p.segment);
        (from..=to).contains(&number)
    }

    fn wants_record(&self, at: Position, state: State) -> bool {
        let durable = state == State::Durable || self.tail;
        durable && self.from.is_none_or(|from| at >= from) && self.to.is_none_or(|to| at < to)
    }

    fn wants_stream(&self, streams: &Streams, id: u64, tenant: &str) -> bool {
        let selected = |s: &Selector| streams.get(id).is_some_and(|stream| s.matches(&stream.labels));
        self.stream.is_none_or(|wanted| wanted == id)
            && self.tenant.as_deref().is_none_or(|wanted| wanted == tenant)
            && self.selector.as_ref().is_none_or(selected)
    }

    fn wants_entry(&self, entry: &EntryView<'_>) -> bool {
        self.since.is_none_or(|since| entry.timestamp >= since.0)
            && self.until.is_none_or(|until| entry.timestamp < until.0)
            && self.grep.as_ref().is_none_or(|g| g.is_match(entry.line))
    }
}

/// Prints the records of a log.
///
/// # Errors
/// The log cannot be read, or the output not be written.
pub fn run<W: Write>(args: &DumpArgs, judged: &Judged, context: &mut Context<W>) -> Result<(), InspectError> {
    let streams = Streams::of(judged);
    let Context { printer, progress } = context;
    printer.section("records", Shape::Stream).map_err(InspectError::Output)?;
    let mut left = args.limit.unwrap_or(u64::MAX);
    judged.walk(
        |number| args.wants_segment(number),
        progress,
        |step| {
            // What was retired meanwhile had lost its worth; its records are not shown.
            let Step::Segment(view) = step else { return Ok(true) };
            let mut emit = |row: Row| -> Result<bool, InspectError> {
                printer.row(&row).map_err(InspectError::Output)?;
                left -= 1;
                Ok(left > 0)
            };
            for (_, record, state) in view.records() {
                let at = Position { segment: view.number, offset: record.offset };
                if !record.body_is_sound || !args.wants_record(at, state) {
                    continue;
                }
                let dump = Dump { args, streams: &streams, view, record, at, state };
                let go_on = match record.head.known_kind() {
                    Some(Kind::Series) if args.wants_series() => dump.series(&mut emit)?,
                    Some(Kind::Entries) if args.wants_entries() => dump.entries(&mut emit)?,
                    _ => true,
                };
                if !go_on {
                    return Ok(false);
                }
            }
            Ok(true)
        },
    )
}

type Emit<'a> = dyn FnMut(Row) -> Result<bool, InspectError> + 'a;

/// One record on its way to the output. Methods return whether to go on. What does not decode is left out here:
/// `verify` tells it.
struct Dump<'a> {
    args: &'a DumpArgs,
    streams: &'a Streams,
    view: &'a SegmentView<'a>,
    record: &'a RecordScan,
    at: Position,
    state: State,
}

impl Dump<'_> {
    fn series(&self, emit: &mut Emit<'_>) -> Result<bool, InspectError> {
        let body = self.record.head.body(self.view.file, self.record.offset);
        let Ok(definitions) = decode_control::<Vec<SeriesDef>>(&self.record.head, body) else { return Ok(true) };
        for d in definitions.iter().filter(|d| self.args.wants_stream(self.streams, d.id, &d.tenant)) {
            let row = vec![
                ("position", self.at.to_string().into()),
                ("kind", "series".into()),
                ("state", self.state.name().into()),
                ("stream", d.id.into()),
                ("seq", d.next_seq.into()),
                ("tenant", d.tenant.clone().into()),
                ("labels", self.streams.labels(d.id).into()),
                ("fingerprint", format!("{:016x}", d.fingerprint).into()),
            ];
            if !emit(row)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn entries(&self, emit: &mut Emit<'_>) -> Result<bool, InspectError> {
        let head = &self.record.head;
        let Ok(tables) = Tables::decode(head.tables(self.view.file, self.record.offset)) else { return Ok(true) };
        let wanted = |row: &TableRow| self.args.wants_stream(self.streams, row.stream, tables.tenant);
        if !tables.rows.iter().any(wanted) {
            return Ok(true);
        }
        let Ok(raw) = decompress_body(head, head.body(self.view.file, self.record.offset)) else { return Ok(true) };
        let Ok(body) = BodyView::new(&raw) else { return Ok(true) };
        let mut start = 0;
        for row in &tables.rows {
            let part = body.part(start, row);
            start = start.saturating_add(row.part_len as usize);
            let Ok(part) = part else { continue };
            if !wanted(row) {
                continue;
            }
            for (seq, entry) in (0u64..).zip(part.map_while(Result::ok)) {
                let seq = row.first_seq.saturating_add(seq);
                if self.args.wants_entry(&entry) && !emit(self.entry(&tables, row.stream, seq, &entry, &body))? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn entry(&self, tables: &Tables<'_>, stream: u64, seq: u64, entry: &EntryView<'_>, body: &BodyView<'_>) -> Row {
        let mut row: Row = vec![
            ("position", self.at.to_string().into()),
            ("kind", "entry".into()),
            ("state", self.state.name().into()),
            ("stream", stream.into()),
            ("seq", seq.into()),
            ("tenant", tables.tenant.into()),
            ("timestamp", Cell::Time(entry.timestamp)),
            ("labels", self.streams.labels(stream).into()),
        ];
        if self.args.no_lines {
            row.push(("line_bytes", Cell::Count(entry.line.len() as u64)));
        } else {
            row.push(("line", Cell::Line(entry.line.to_vec())));
            row.push(("metadata", Cell::Pairs(metadata(entry, body))));
        }
        row
    }
}

/// Text for bytes that should be UTF-8 and may not be.
pub fn text_or_hex(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| hex(bytes), str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_times_are_read() {
        assert_eq!("7:8256".parse(), Ok(Position { segment: 7, offset: 8256 }));
        assert_eq!("7".parse(), Ok(Position { segment: 7, offset: 0 }));
        for wrong in ["", "a", "1:", ":1", "1:2:3", "-1:2"] {
            assert!(wrong.parse::<Position>().is_err(), "{wrong}");
        }
        assert_eq!("1970-01-01T00:00:01Z".parse(), Ok(Moment(1_000_000_000)));
        assert_eq!("-5".parse(), Ok(Moment(-5)));
        assert!("15m".parse::<Moment>().is_ok_and(|m| m.0 > 0));
        assert!("soon".parse::<Moment>().is_err());
    }
}
