//! `summary` and `ls`.

use super::command::{Context, Once, Streams};
use super::error::InspectError;
use super::log::{Facts, Judged, State, Step};
use super::output::{Cell, Shape};
use super::ranges::Ranges;
use crate::wal::format::{FLAG_CARRIED, Kind, VERSION};
use crate::wal::{LogKind, TableRow, Tables, file_name};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

/// Streams that are named as those that hold the oldest segment.
const PINS_NAMED: usize = 3;

/// Records and lines below the durable end.
#[derive(Default)]
struct Totals {
    records: u64,
    lines: u64,
    tail_lines: u64,
    tenants: BTreeSet<String>,
}

/// Prints one screen.
///
/// # Errors
/// The log cannot be read, or the output not be written.
pub fn summary<W: Write>(judged: &Judged, context: &mut Context<W>) -> Result<(), InspectError> {
    let totals = totals(judged, context)?;
    let plan = &judged.plan;
    let sum = |figure: fn(&Facts) -> u64| judged.facts.iter().map(figure).sum::<u64>();
    let count = |state: &str| judged.facts.iter().filter(|f| f.state == state).count() as u64;
    let row = vec![
        ("directory", judged.log.dir.display().to_string().into()),
        ("format_version", Cell::Count(VERSION.into())),
        ("volume", judged.volume.map(|v| v.to_string()).into()),
        ("segments", Cell::Count(judged.used().count() as u64)),
        ("prepared_segments", Cell::Count(count("prepared"))),
        ("file_bytes", Cell::Size(sum(|f| f.len))),
        ("used_bytes", Cell::Size(judged.used().map(|f| f.used).sum())),
        ("entry_bytes", Cell::Size(sum(|f| f.stored))),
        ("entry_bytes_uncompressed", Cell::Size(sum(|f| f.raw))),
        ("records", totals.records.into()),
        ("lines", totals.lines.into()),
        ("block_segments", Cell::Count(judged.blocks.facts.len() as u64)),
        ("block_file_bytes", Cell::Size(judged.blocks.facts.iter().map(|f| f.len).sum())),
        ("blocks", Cell::Count(judged.blocks.counting().count() as u64)),
        ("block_lines", Cell::Count(judged.blocks.counting().map(|b| b.lines).sum())),
        ("streams", Cell::Count(plan.definitions.len() as u64)),
        ("tenants", Cell::Count(totals.tenants.len() as u64)),
        ("first_write", judged.facts.iter().filter_map(|f| f.first_clock).min().map(Cell::Time).into()),
        ("last_write", judged.facts.iter().filter_map(|f| f.last_clock).max().map(Cell::Time).into()),
        ("first_lsn", plan.first_lsn.into()),
        ("durable_lsn", plan.durable_lsn.into()),
        ("tail_records", Cell::Count(plan.tail.len() as u64)),
        ("tail_lines", totals.tail_lines.into()),
        ("unresolved_lsns", Cell::Count(plan.unresolved.iter().map(|r| r.end - r.start).sum())),
        ("lost_lines", plan.loss.lines.into()),
        ("verdict", verdict(judged).into()),
    ];
    context.printer.section("summary", Shape::One).map_err(InspectError::Output)?;
    context.printer.row(&row).map_err(InspectError::Output)
}

/// The verdict as a word.
pub fn verdict(judged: &Judged) -> &'static str {
    if judged.is_sound() { "sound" } else { "damaged" }
}

fn totals<W: Write>(judged: &Judged, context: &mut Context<W>) -> Result<Totals, InspectError> {
    let mut totals = Totals::default();
    let mut once = Once::new(judged);
    for block in judged.blocks.counting() {
        totals.lines += block.lines;
        let tenant = judged.plan.definitions.get(&block.stream).map(|d| &d.tenant);
        totals.tenants.extend(tenant.filter(|t| !totals.tenants.contains(*t)).cloned());
    }
    judged.walk(
        |_| true,
        &mut context.progress,
        |step| {
            let Step::Segment(view) = step else { return Ok(true) };
            for (_, record, state) in view.records() {
                if !record.body_is_sound || record.head.known_kind() != Some(Kind::Entries) {
                    continue;
                }
                let Ok(tables) = Tables::decode(record.head.tables(view.file, record.offset)) else { continue };
                if state == State::Tail {
                    totals.tail_lines += tables.lines();
                    continue;
                }
                totals.records += 1;
                totals.lines += tables.rows.iter().map(|row| once.lines(row)).sum::<u64>();
                if !totals.tenants.contains(tables.tenant) {
                    totals.tenants.insert(tables.tenant.to_string());
                }
            }
            Ok(true)
        },
    )?;
    Ok(totals)
}

/// What still needs the oldest segment of the write-ahead log.
struct Pins {
    segment: u64,
    /// Streams, the ones with most lines first.
    streams: Vec<u64>,
}

/// Streams whose entries in the oldest of several live segments are not in a block that counts, not in the object store and
/// not carried to a newer segment.
fn pins<W: Write>(judged: &Judged, context: &mut Context<W>) -> Result<Option<Pins>, InspectError> {
    let [(oldest, _), _, ..] = judged.plan.replay[..] else { return Ok(None) };
    let carrying: BTreeSet<u64> = judged.plan.carried.iter().map(|r| r.segment).collect();
    let mut rows: Vec<TableRow> = Vec::new();
    let mut carried: BTreeMap<u64, Ranges> = BTreeMap::new();
    judged.walk(
        |number| number == oldest || carrying.contains(&number),
        &mut context.progress,
        |step| {
            let Step::Segment(view) = step else { return Ok(true) };
            let sound = view.records().filter(|(_, r, _)| r.body_is_sound);
            for (_, record, _) in sound.filter(|(_, r, _)| r.head.known_kind() == Some(Kind::Entries)) {
                let Ok(tables) = Tables::decode(record.head.tables(view.file, record.offset)) else { continue };
                if view.number == oldest {
                    rows.extend(tables.rows);
                } else if record.head.flags & FLAG_CARRIED != 0 {
                    let of = |row: &TableRow| (row.stream, row.first_seq..row.end_seq());
                    tables.rows.iter().map(of).for_each(|(id, seqs)| carried.entry(id).or_default().insert(seqs));
                }
            }
            Ok(true)
        },
    )?;
    let mut lines: BTreeMap<u64, u64> = BTreeMap::new();
    let none = Ranges::default();
    for row in &rows {
        let carried = carried.get(&row.stream).unwrap_or(&none);
        let unsettled = judged.blocks.unsettled(row.stream, &(row.first_seq..row.end_seq()));
        // Beside carried lines only duplicates were left behind.
        let beside = |hole: &std::ops::Range<u64>| carried.iter().any(|c| c.end == hole.start || c.start == hole.end);
        let needed = unsettled.iter().flat_map(|r| carried.missing(r)).filter(|hole| !beside(hole));
        for hole in needed {
            *lines.entry(row.stream).or_default() += hole.end - hole.start;
        }
    }
    let mut streams: Vec<(u64, u64)> = lines.into_iter().map(|(id, n)| (n, id)).collect();
    streams.sort_unstable_by(|a, b| b.cmp(a));
    Ok(Some(Pins { segment: oldest, streams: streams.into_iter().map(|(_, id)| id).collect() }))
}

/// Prints the segments of both logs, and what needs the oldest one.
///
/// # Errors
/// The log cannot be read, or the output not be written.
pub fn ls<W: Write>(judged: &Judged, context: &mut Context<W>) -> Result<(), InspectError> {
    let pins = pins(judged, context)?;
    context.progress.clear();
    let mut print = || {
        segments(judged, context)?;
        block_segments(judged, context)?;
        if let Some(pins) = &pins {
            oldest(judged, pins, context)?;
        }
        if judged.log.unfinished.is_empty() {
            return Ok(());
        }
        context.printer.section("unfinished", Shape::Many)?;
        for (name, len) in &judged.log.unfinished {
            context.printer.row(&vec![("file", name.as_str().into()), ("size", Cell::Size(*len))])?;
        }
        Ok(())
    };
    print().map_err(InspectError::Output)
}

fn segments<W: Write>(judged: &Judged, context: &mut Context<W>) -> std::io::Result<()> {
    context.printer.section("segments", Shape::Many)?;
    judged.facts.iter().try_for_each(|f| {
        context.printer.row(&vec![
            ("segment", f.number.into()),
            ("file", crate::wal::segment_name(f.number).into()),
            ("state", f.state.into()),
            ("size", Cell::Size(f.len)),
            ("used", Cell::Size(f.used)),
            ("groups", f.groups.into()),
            ("records", f.records.into()),
            ("lines", f.lines.into()),
            ("first_lsn", f.first_lsn.into()),
            ("end_lsn", f.end_lsn.into()),
            ("first_write", f.first_clock.map(Cell::Time).into()),
            ("last_write", f.last_clock.map(Cell::Time).into()),
            ("damage", f.damage.into()),
        ])
    })
}

fn block_segments<W: Write>(judged: &Judged, context: &mut Context<W>) -> std::io::Result<()> {
    if judged.blocks.facts.is_empty() {
        return Ok(());
    }
    context.printer.section("block_segments", Shape::Many)?;
    judged.blocks.facts.iter().try_for_each(|f| {
        context.printer.row(&vec![
            ("segment", f.number.into()),
            ("file", file_name(LogKind::Blocks, f.number).into()),
            ("state", f.state.into()),
            ("size", Cell::Size(f.len)),
            ("synced_end", Cell::Size(f.end)),
            ("footer", f.footer.into()),
            ("blocks", f.blocks.into()),
            ("lines", f.lines.into()),
            ("live", Cell::Size(f.live)),
            ("dead", Cell::Size(f.dead)),
            ("damage", f.damage.into()),
        ])
    })
}

fn oldest<W: Write>(judged: &Judged, pins: &Pins, context: &mut Context<W>) -> std::io::Result<()> {
    let streams = Streams::of(judged);
    context.printer.section("oldest_segment", Shape::One)?;
    context.printer.row(&vec![
        ("segment", pins.segment.into()),
        ("streams_that_need_it", Cell::Count(pins.streams.len() as u64)),
    ])?;
    if pins.streams.is_empty() {
        return Ok(());
    }
    context.printer.section("needed_by", Shape::Many)?;
    pins.streams.iter().take(PINS_NAMED).try_for_each(|id| {
        context.printer.row(&vec![
            ("stream", (*id).into()),
            ("tenant", streams.tenant(*id).into()),
            ("labels", streams.labels(*id).into()),
        ])
    })
}
