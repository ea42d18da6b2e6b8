//! `get`: one record or block by its position, with its lines. Nothing else of the log is judged.

use super::cli::Dirs;
use super::command::{Context, Streams};
use super::dump::{DumpLog, Position, rows_of};
use super::error::InspectError;
use super::explain::{Place, body_texts, path_of};
use super::log::read_path;
use super::output::{Row, Shape};
use crate::wal::format::{HeaderError, Kind};
use crate::wal::{BlockTables, LogKind, RecordScan, SegmentScan, SeriesDef, Tables, decode_control, scan_segment};
use std::io::{self, Write};

/// Prints the record at a place; `false` if it is damaged. A number in the place is a segment of `log`.
///
/// # Errors
/// The file cannot be read, no record lies there, or the output cannot be written.
pub fn run<W: Write>(
    place: &Place,
    log: Option<DumpLog>,
    dirs: &Dirs,
    context: &mut Context<W>,
) -> Result<bool, InspectError> {
    let log = if log == Some(DumpLog::Blocks) { LogKind::Blocks } else { LogKind::Wal };
    let path = path_of(place, log, dirs)?;
    let gone = || InspectError::io("open", &path)(io::ErrorKind::NotFound.into());
    let file = read_path(&path)?.ok_or_else(gone)?;
    let scan = match scan_segment(&file) {
        Ok(scan) => scan,
        Err(HeaderError::Version(version)) => {
            let segment = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(InspectError::Version { segment, version });
        }
        // Without it nothing in the file can be proved.
        Err(HeaderError::NotASegment | HeaderError::Damaged) => return Ok(false),
    };
    let Some(record) = record_at(&scan, place.offset) else {
        let mut damage = scan.groups.iter().flat_map(|g| &g.damage);
        if damage.any(|d| d.bytes.contains(&place.offset)) {
            return Ok(false);
        }
        return Err(nothing(&scan, place));
    };
    if !record.body_is_sound {
        return Ok(false);
    }
    let at = Position { segment: scan.header.number, offset: record.offset };
    let mut streams = Streams::default();
    streams.define(&definitions(&scan, &file));
    let log = if scan.header.log == LogKind::Blocks { "blocks" } else { "wal" };
    let printer = &mut context.printer;
    printer.section("records", Shape::Stream).map_err(InspectError::Output)?;
    let mut rows = 0;
    let mut emit = |row: Row| -> Result<bool, InspectError> {
        rows += 1;
        printer.row(&row).map_err(InspectError::Output)?;
        Ok(true)
    };
    let (head, body) = (&record.head, record.head.body(&file, record.offset));
    let tables = head.tables(&file, record.offset);
    let wanted = match head.known_kind() {
        Some(Kind::Entries) => Tables::decode(tables).map(|t| t.lines()),
        Some(Kind::Block) => BlockTables::decode(tables).map(|t| t.entries.into()),
        Some(Kind::Series) => decode_control::<Vec<SeriesDef>>(head, body).map(|d| d.len() as u64),
        kind => {
            let texts = body_texts(head, body);
            for (name, value) in texts.iter().flatten() {
                let kind = kind.map_or("unknown", Kind::name);
                emit(vec![
                    ("position", at.to_string().into()),
                    ("kind", kind.into()),
                    ("field", (*name).into()),
                    ("value", value.as_str().into()),
                    ("log", log.into()),
                ])?;
            }
            return Ok(texts.is_ok());
        }
    };
    rows_of(record, &file, log, at, &streams, &mut emit)?;
    // Checksums hold, and it still does not decode.
    Ok(wanted.is_ok_and(|wanted| wanted == rows))
}

/// The record at an offset, or around it.
fn record_at(scan: &SegmentScan, offset: u64) -> Option<&RecordScan> {
    let holds = |r: &&RecordScan| (r.offset..r.offset + u64::from(r.head.len)).contains(&offset);
    scan.groups.iter().flat_map(|g| &g.records).find(holds)
}

fn nothing(scan: &SegmentScan, place: &Place) -> InspectError {
    let records = || scan.groups.iter().flat_map(|g| &g.records).map(|r| r.offset);
    let near = match (records().rfind(|at| *at <= place.offset), records().next()) {
        (Some(before), _) => format!("the one before it is at {before}"),
        (None, Some(first)) => format!("the first one is at {first}"),
        (None, None) => "the segment has none".to_string(),
    };
    InspectError::Usage(format!("no record lies at offset {} of {}; {near}", place.offset, place.file))
}

/// Streams are defined before their first record in each segment.
fn definitions(scan: &SegmentScan, file: &[u8]) -> Vec<SeriesDef> {
    let records = scan.groups.iter().flat_map(|g| &g.records);
    let series = records.filter(|r| r.body_is_sound && r.head.known_kind() == Some(Kind::Series));
    let decoded = series.map(|r| decode_control::<Vec<SeriesDef>>(&r.head, r.head.body(file, r.offset)));
    decoded.flat_map(Result::unwrap_or_default).collect()
}
