//! `summary` and `ls`.

use super::command::Context;
use super::error::InspectError;
use super::log::{Facts, Judged, State, Step};
use super::output::{Cell, Shape};
use crate::wal::Tables;
use crate::wal::format::{Kind, VERSION};
use std::collections::BTreeSet;
use std::io::Write;

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
                totals.lines += tables.lines();
                if !totals.tenants.contains(tables.tenant) {
                    totals.tenants.insert(tables.tenant.to_string());
                }
            }
            Ok(true)
        },
    )?;
    Ok(totals)
}

/// Prints the segments.
///
/// # Errors
/// The output cannot be written.
pub fn ls<W: Write>(judged: &Judged, context: &mut Context<W>) -> Result<(), InspectError> {
    let mut print = || {
        context.printer.section("segments", Shape::Many)?;
        for f in &judged.facts {
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
            ])?;
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
