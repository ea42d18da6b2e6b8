//! `dump`: series and entry records in the order of the logs. The only command that prints log lines.
//!
//! Of both logs, each line is shown once: from its block if it is in one that counts, else from the write-ahead log.

use super::blocks::{BlockView, read_block};
use super::command::{Context, Once, Streams, metadata};
use super::entries::Wanted;
use super::error::InspectError;
use super::follow::Tailer;
use super::log::{Judged, State, Step};
use super::output::{Cell, Printer, Row, Shape, hex};
use crate::fs::{interrupted, watch_interrupts};
use crate::model::LogEntry;
use crate::wal::format::{FLAG_CARRIED, Kind};
use crate::wal::{BlockTables, BodyView, RecordScan, SeriesDef, TableRow, Tables, decode_control, decompress_body};
use std::collections::HashSet;
use std::fmt;
use std::io::Write;
use std::str::FromStr;
use std::time::Duration;

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
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DumpArgs {
    /// Which lines.
    #[command(flatten)]
    pub wanted: Wanted,
    /// First position, SEGMENT:OFFSET
    #[arg(long, value_name = "POSITION")]
    pub from: Option<Position>,
    /// End position, itself not shown
    #[arg(long, value_name = "POSITION")]
    pub to: Option<Position>,
    /// Only this kind of record
    #[arg(long, value_name = "KIND", value_enum)]
    pub kind: Option<DumpKind>,
    /// Leave the lines and metadata out
    #[arg(long)]
    pub no_lines: bool,
    /// Also records above the durable end (in flight, or kept by the next recovery)
    #[arg(long)]
    pub tail: bool,
    /// Go on with what becomes durable, until Ctrl-C
    #[arg(short, long, conflicts_with_all = ["to", "tail"])]
    pub follow: bool,
    /// Only this log, as it lies there: also what is settled, and what both logs hold; with --from and --to, wal if left out
    #[arg(long, value_name = "LOG", value_enum)]
    pub log: Option<DumpLog>,
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

/// The logs that `dump` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DumpLog {
    /// The write-ahead log.
    Wal,
    /// The block log.
    Blocks,
}

impl DumpArgs {
    /// Positions are of one log.
    fn only(&self) -> Option<DumpLog> {
        let positions = self.from.is_some() || self.to.is_some();
        self.log.or(positions.then_some(DumpLog::Wal))
    }

    /// Conditions on a line or its time leave no series.
    fn wants_series(&self) -> bool {
        self.kind.map_or(!self.wanted.only_entries(), |k| k == DumpKind::Series)
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
        self.wanted.has_stream(id, tenant, streams.get(id))
    }
}

/// Prints the records of a log.
///
/// # Errors
/// The log cannot be read, or the output not be written.
pub fn run<W: Write>(args: &DumpArgs, judged: &Judged, context: &mut Context<W>) -> Result<(), InspectError> {
    if args.follow && args.only() == Some(DumpLog::Blocks) {
        return Err(InspectError::Usage("--follow follows the write-ahead log: leave --log blocks out".to_string()));
    }
    let mut streams = Streams::of(judged);
    context.printer.section("records", Shape::Stream).map_err(InspectError::Output)?;
    let mut left = args.limit.unwrap_or(u64::MAX);
    recorded(args, judged, &streams, context, &mut left)?;
    if !args.follow || left == 0 {
        return Ok(());
    }
    let mut tailer = Tailer::behind(judged);
    watch_interrupts();
    loop {
        context.printer.flush().map_err(InspectError::Output)?;
        if interrupted() || left == 0 {
            return Ok(());
        }
        std::thread::sleep(POLL);
        let mut emit = emitter(&mut context.printer, &mut left);
        tailer.poll(&mut |segment, file, record| followed(args, &mut streams, segment, file, record, &mut emit))?;
    }
}

/// Between two looks at a log that is followed.
const POLL: Duration = Duration::from_millis(100);

/// Prints a row, and says whether there may be more.
fn emitter<W: Write>(printer: &mut Printer<W>, left: &mut u64) -> impl FnMut(Row) -> Result<bool, InspectError> {
    |row: Row| {
        printer.row(&row).map_err(InspectError::Output)?;
        *left -= 1;
        Ok(*left > 0)
    }
}

/// Prints a record that has become durable; returns whether to go on. `file` begins with the record.
fn followed(
    args: &DumpArgs,
    streams: &mut Streams,
    segment: u64,
    file: &[u8],
    record: &RecordScan,
    emit: &mut Emit<'_>,
) -> Result<bool, InspectError> {
    let at = Position { segment, offset: record.offset };
    let state = State::Durable;
    let record = RecordScan { offset: 0, ..*record };
    match record.head.known_kind() {
        Some(Kind::Series) => {
            let definitions = decode_control::<Vec<SeriesDef>>(&record.head, record.head.body(file, 0));
            let definitions = definitions.unwrap_or_default();
            streams.define(&definitions);
            let shown = Shown { args, streams, log: "wal", at, state };
            if args.wants_series() && args.wants_record(at, state) {
                shown.series(&definitions, emit)
            } else {
                Ok(true)
            }
        }
        // What is carried was durable before, and was shown.
        Some(Kind::Entries) if record.head.flags & FLAG_CARRIED == 0 && args.wants_record(at, state) => {
            if !args.wants_entries() {
                return Ok(true);
            }
            Dump { args, streams, file, record: &record, at, state }.entries(None, emit)
        }
        _ => Ok(true),
    }
}

/// Prints what the logs hold now.
fn recorded<W: Write>(
    args: &DumpArgs,
    judged: &Judged,
    streams: &Streams,
    context: &mut Context<W>,
    left: &mut u64,
) -> Result<(), InspectError> {
    let Context { printer, progress } = context;
    let mut emit = emitter(printer, left);
    let mut go_on = true;
    if args.only() != Some(DumpLog::Wal) {
        judged.blocks.walk(&judged.log, |view| {
            go_on = blocks(args, judged, streams, view, &mut emit)?;
            Ok(go_on)
        })?;
    }
    if !go_on || args.only() == Some(DumpLog::Blocks) {
        return Ok(());
    }
    let mut once = args.only().is_none().then(|| Once::new(judged));
    judged.walk(
        |number| args.wants_segment(number),
        progress,
        |step| {
            // What was retired meanwhile had lost its worth; its records are not shown.
            let Step::Segment(view) = step else { return Ok(true) };
            for (_, record, state) in view.records() {
                let at = Position { segment: view.number, offset: record.offset };
                if !record.body_is_sound || !args.wants_record(at, state) {
                    continue;
                }
                let dump = Dump { args, streams, file: view.file, record, at, state };
                let go_on = match record.head.known_kind() {
                    Some(Kind::Series) if args.wants_series() => {
                        let body = record.head.body(view.file, record.offset);
                        let shown = Shown { args, streams, log: "wal", at, state };
                        shown.series(
                            &decode_control::<Vec<SeriesDef>>(&record.head, body).unwrap_or_default(),
                            &mut emit,
                        )?
                    }
                    Some(Kind::Entries) if args.wants_entries() => dump.entries(once.as_mut(), &mut emit)?,
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

/// Prints the records of a block segment; returns whether to go on.
fn blocks(
    args: &DumpArgs,
    judged: &Judged,
    streams: &Streams,
    view: &BlockView<'_>,
    emit: &mut Emit<'_>,
) -> Result<bool, InspectError> {
    let segment = view.synced.segment;
    let live: HashSet<u64> =
        judged.blocks.counting().filter(|b| b.place.segment == segment).map(|b| b.place.offset).collect();
    for record in view.records().filter(|r| r.body_is_sound) {
        let at = Position { segment, offset: record.offset };
        let shown = Shown { args, streams, log: "blocks", at, state: State::Durable };
        if !args.wants_record(at, State::Durable) {
            continue;
        }
        let go_on = match record.head.known_kind() {
            Some(Kind::Series) if args.wants_series() => {
                let body = record.head.body(view.file, record.offset);
                shown.series(&decode_control::<Vec<SeriesDef>>(&record.head, body).unwrap_or_default(), emit)?
            }
            Some(Kind::Block) if args.wants_entries() && (args.only().is_some() || live.contains(&at.offset)) => {
                shown.block(record, view.file, emit)?
            }
            _ => true,
        };
        if !go_on {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Where rows come from, and which are wanted.
struct Shown<'a> {
    args: &'a DumpArgs,
    streams: &'a Streams,
    log: &'static str,
    at: Position,
    state: State,
}

impl Shown<'_> {
    fn series(&self, definitions: &[SeriesDef], emit: &mut Emit<'_>) -> Result<bool, InspectError> {
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
                ("log", self.log.into()),
            ];
            if !emit(row)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The lines of a block, in the order of their timestamps. Their seqs are not stored.
    fn block(&self, record: &RecordScan, file: &[u8], emit: &mut Emit<'_>) -> Result<bool, InspectError> {
        let Ok(tables) = BlockTables::decode(record.head.tables(file, record.offset)) else { return Ok(true) };
        let tenant = self.streams.tenant(tables.stream).unwrap_or_default();
        if !self.args.wants_stream(self.streams, tables.stream, &tenant) {
            return Ok(true);
        }
        let Ok((_, entries)) = read_block(record, file) else { return Ok(true) };
        for entry in entries.into_iter().filter(|e| self.args.wanted.has_entry(e.timestamp, &e.line)) {
            let LogEntry { timestamp, line, metadata } = entry;
            if !emit(self.entry(tables.stream, None, &tenant, timestamp, line.to_vec(), metadata))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn entry(
        &self,
        stream: u64,
        seq: Option<u64>,
        tenant: &str,
        timestamp: i64,
        line: Vec<u8>,
        metadata: Vec<(String, String)>,
    ) -> Row {
        let mut row: Row = vec![
            ("position", self.at.to_string().into()),
            ("kind", "entry".into()),
            ("state", self.state.name().into()),
            ("stream", stream.into()),
            ("seq", seq.into()),
            ("tenant", tenant.into()),
            ("timestamp", Cell::Time(timestamp)),
            ("labels", self.streams.labels(stream).into()),
        ];
        if self.args.no_lines {
            row.push(("line_bytes", Cell::Count(line.len() as u64)));
        } else {
            row.push(("line", Cell::Line(line)));
            row.push(("metadata", Cell::Pairs(metadata)));
        }
        row.push(("log", self.log.into()));
        row
    }
}

type Emit<'a> = dyn FnMut(Row) -> Result<bool, InspectError> + 'a;

/// An Entries record on its way to the output. What does not decode is left out here: `verify` tells it.
struct Dump<'a> {
    args: &'a DumpArgs,
    streams: &'a Streams,
    /// Its bytes lie here, at the record's offset.
    file: &'a [u8],
    record: &'a RecordScan,
    at: Position,
    state: State,
}

impl Dump<'_> {
    /// Returns whether to go on. With `once`, lines that were shown, or that blocks show, are left out.
    fn entries(&self, mut once: Option<&mut Once<'_>>, emit: &mut Emit<'_>) -> Result<bool, InspectError> {
        let head = &self.record.head;
        let Ok(tables) = Tables::decode(head.tables(self.file, self.record.offset)) else { return Ok(true) };
        let wanted = |row: &TableRow| self.args.wants_stream(self.streams, row.stream, tables.tenant);
        if !tables.rows.iter().any(wanted) {
            return Ok(true);
        }
        let Ok(raw) = decompress_body(head, head.body(self.file, self.record.offset)) else { return Ok(true) };
        let Ok(body) = BodyView::new(&raw) else { return Ok(true) };
        let shown = Shown { args: self.args, streams: self.streams, log: "wal", at: self.at, state: self.state };
        let mut start = 0;
        for row in &tables.rows {
            let part = body.part(start, row);
            start = start.saturating_add(row.part_len as usize);
            let Ok(part) = part else { continue };
            if !wanted(row) {
                continue;
            }
            let whole = row.first_seq..row.end_seq();
            let fresh = once.as_deref_mut().map_or_else(|| vec![whole], |once| once.seqs(row));
            for (seq, entry) in (row.first_seq..).zip(part.map_while(Result::ok)) {
                if !fresh.iter().any(|r| r.contains(&seq)) || !self.args.wanted.has_entry(entry.timestamp, entry.line) {
                    continue;
                }
                let (line, pairs) = (entry.line.to_vec(), metadata(&entry, &body));
                if !emit(shown.entry(row.stream, Some(seq), tables.tenant, entry.timestamp, line, pairs))? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

/// Hands on the rows of one sound record with lines or definitions, of a log that was not judged.
///
/// # Errors
/// As `emit`.
pub(super) fn rows_of(
    record: &RecordScan,
    file: &[u8],
    log: &'static str,
    at: Position,
    streams: &Streams,
    emit: &mut dyn FnMut(Row) -> Result<bool, InspectError>,
) -> Result<(), InspectError> {
    let args = &DumpArgs::default();
    let mut emit = |mut row: Row| {
        row.retain(|(name, _)| *name != "state");
        emit(row)
    };
    let state = State::Durable;
    let shown = Shown { args, streams, log, at, state };
    match record.head.known_kind() {
        Some(Kind::Series) => {
            let definitions = decode_control::<Vec<SeriesDef>>(&record.head, record.head.body(file, record.offset));
            shown.series(&definitions.unwrap_or_default(), &mut emit)?;
        }
        Some(Kind::Block) => {
            shown.block(record, file, &mut emit)?;
        }
        _ => {
            Dump { args, streams, file, record, at, state }.entries(None, &mut emit)?;
        }
    }
    Ok(())
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
