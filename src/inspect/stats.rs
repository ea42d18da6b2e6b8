//! `stats`: lines, bytes and compression by tenant, stream or segment, from the tables alone: nothing is decompressed.

use super::command::{Context, Streams};
use super::error::InspectError;
use super::log::{Judged, State, Step};
use super::output::{Cell, Row, Shape};
use crate::wal::Tables;
use crate::wal::format::Kind;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

/// What a row stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum By {
    /// A tenant.
    #[default]
    Tenant,
    /// A stream.
    Stream,
    /// A segment, with all that its file holds.
    Segment,
}

/// Prints the figures.
///
/// # Errors
/// The log cannot be read, or the output not be written.
pub fn run<W: Write>(by: By, judged: &Judged, context: &mut Context<W>) -> Result<(), InspectError> {
    let (name, rows) = match by {
        By::Tenant => ("tenants", tenants(judged, context)?),
        By::Stream => ("streams", streams(judged, context)?),
        By::Segment => ("segments", segments(judged)),
    };
    let printer = &mut context.printer;
    printer.section(name, Shape::Many).map_err(InspectError::Output)?;
    rows.iter().try_for_each(|row| printer.row(row)).map_err(InspectError::Output)
}

/// Stored bytes in hundredths of the bytes before compression.
fn percent(stored: u64, raw: u64) -> Cell {
    let percent = u128::from(stored) * 100;
    percent.checked_div(u128::from(raw)).and_then(|p| u64::try_from(p).ok()).into()
}

/// Calls `visit` with the tables, the stored and the uncompressed bytes of every durable Entries record.
fn each_entries<W: Write>(
    judged: &Judged,
    context: &mut Context<W>,
    mut visit: impl FnMut(&Tables<'_>, u64, u64),
) -> Result<(), InspectError> {
    judged.walk(
        |_| true,
        &mut context.progress,
        |step| {
            let Step::Segment(view) = step else { return Ok(true) };
            let durable = view.records().filter(|(_, r, state)| *state == State::Durable && r.body_is_sound);
            for (_, r, _) in durable.filter(|(_, r, _)| r.head.known_kind() == Some(Kind::Entries)) {
                if let Ok(tables) = Tables::decode(r.head.tables(view.file, r.offset)) {
                    visit(&tables, r.head.len.into(), r.head.raw_len.into());
                }
            }
            Ok(true)
        },
    )
}

#[derive(Default)]
struct Tenant {
    streams: BTreeSet<u64>,
    records: u64,
    lines: u64,
    stored: u64,
    raw: u64,
}

fn tenants<W: Write>(judged: &Judged, context: &mut Context<W>) -> Result<Vec<Row>, InspectError> {
    let mut tenants: BTreeMap<String, Tenant> = BTreeMap::new();
    each_entries(judged, context, |tables, stored, raw| {
        if !tenants.contains_key(tables.tenant) {
            tenants.insert(tables.tenant.to_string(), Tenant::default());
        }
        let Some(t) = tenants.get_mut(tables.tenant) else { return };
        t.streams.extend(tables.rows.iter().map(|r| r.stream));
        t.records += 1;
        t.lines += tables.lines();
        t.stored += stored;
        t.raw += raw;
    })?;
    let row = |(name, t): (String, Tenant)| {
        vec![
            ("tenant", name.into()),
            ("streams", Cell::Count(t.streams.len() as u64)),
            ("records", t.records.into()),
            ("lines", t.lines.into()),
            ("bytes", Cell::Size(t.raw)),
            ("stored_bytes", Cell::Size(t.stored)),
            ("stored_percent", percent(t.stored, t.raw)),
        ]
    };
    Ok(tenants.into_iter().map(row).collect())
}

fn streams<W: Write>(judged: &Judged, context: &mut Context<W>) -> Result<Vec<Row>, InspectError> {
    let mut streams: BTreeMap<u64, (u64, u64, u64)> = BTreeMap::new();
    each_entries(judged, context, |tables, _, _| {
        for row in &tables.rows {
            let (records, lines, bytes) = streams.entry(row.stream).or_default();
            *records += 1;
            *lines += u64::from(row.count);
            *bytes += u64::from(row.part_len);
        }
    })?;
    let defined = Streams::of(judged);
    let row = |(id, (records, lines, bytes)): (u64, (u64, u64, u64))| {
        vec![
            ("stream", id.into()),
            ("tenant", defined.tenant(id).into()),
            ("records", records.into()),
            ("lines", lines.into()),
            ("bytes", Cell::Size(bytes)),
            ("bytes_per_line", bytes.checked_div(lines).into()),
            ("labels", defined.labels(id).into()),
        ]
    };
    Ok(streams.into_iter().map(row).collect())
}

fn segments(judged: &Judged) -> Vec<Row> {
    let row = |f: &super::log::Facts| {
        vec![
            ("segment", f.number.into()),
            ("state", f.state.into()),
            ("groups", f.groups.into()),
            ("records", f.records.into()),
            ("lines", f.lines.into()),
            ("bytes", Cell::Size(f.raw)),
            ("stored_bytes", Cell::Size(f.stored)),
            ("stored_percent", percent(f.stored, f.raw)),
            ("padding_bytes", Cell::Size(f.padding)),
            ("used_bytes", Cell::Size(f.used)),
        ]
    };
    judged.used().map(row).collect()
}
