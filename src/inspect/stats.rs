//! `stats`: lines, bytes and compression by tenant, stream or segment, from the tables alone: nothing is decompressed.
//!
//! Lines count once. Records and their bytes are those of the write-ahead log as it lies there, whether their lines are in
//! blocks meanwhile or not; blocks and their bytes have figures of their own.

use super::blocks::KnownBlock;
use super::command::{Context, Once, Streams};
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

/// Calls `visit` with the tables, the stored and the uncompressed bytes of every durable Entries record, and with what
/// counts each line once.
fn each_entries<W: Write>(
    judged: &Judged,
    context: &mut Context<W>,
    mut visit: impl FnMut(&Tables<'_>, u64, u64, &mut Once<'_>),
) -> Result<(), InspectError> {
    let mut once = Once::new(judged);
    judged.walk(
        |_| true,
        &mut context.progress,
        |step| {
            let Step::Segment(view) = step else { return Ok(true) };
            let durable = view.records().filter(|(_, r, state)| *state == State::Durable && r.body_is_sound);
            for (_, r, _) in durable.filter(|(_, r, _)| r.head.known_kind() == Some(Kind::Entries)) {
                if let Ok(tables) = Tables::decode(r.head.tables(view.file, r.offset)) {
                    visit(&tables, r.head.len.into(), r.head.raw_len.into(), &mut once);
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
    blocks: InBlocks,
}

/// What blocks hold that count.
#[derive(Clone, Copy, Default)]
struct InBlocks {
    blocks: u64,
    lines: u64,
    stored: u64,
    raw: u64,
}

impl InBlocks {
    fn add(&mut self, block: &KnownBlock) {
        self.blocks += 1;
        self.lines += block.lines;
        self.stored += u64::from(block.place.len);
        self.raw += block.raw;
    }

    fn cells(&self) -> [(&'static str, Cell); 4] {
        [
            ("blocks", self.blocks.into()),
            ("block_lines", self.lines.into()),
            ("block_bytes", Cell::Size(self.raw)),
            ("block_stored_bytes", Cell::Size(self.stored)),
        ]
    }
}

fn tenants<W: Write>(judged: &Judged, context: &mut Context<W>) -> Result<Vec<Row>, InspectError> {
    let mut tenants: BTreeMap<String, Tenant> = BTreeMap::new();
    for block in judged.blocks.counting() {
        let name = judged.plan.definitions.get(&block.stream).map(|d| d.tenant.clone()).unwrap_or_default();
        let t = tenants.entry(name).or_default();
        t.streams.insert(block.stream);
        t.lines += block.lines;
        t.blocks.add(block);
    }
    each_entries(judged, context, |tables, stored, raw, once| {
        if !tenants.contains_key(tables.tenant) {
            tenants.insert(tables.tenant.to_string(), Tenant::default());
        }
        let Some(t) = tenants.get_mut(tables.tenant) else { return };
        t.streams.extend(tables.rows.iter().map(|r| r.stream));
        t.records += 1;
        t.lines += tables.rows.iter().map(|row| once.lines(row)).sum::<u64>();
        t.stored += stored;
        t.raw += raw;
    })?;
    let row = |(name, t): (String, Tenant)| {
        let mut row: Row = vec![
            ("tenant", name.into()),
            ("streams", Cell::Count(t.streams.len() as u64)),
            ("records", t.records.into()),
            ("lines", t.lines.into()),
            ("bytes", Cell::Size(t.raw)),
            ("stored_bytes", Cell::Size(t.stored)),
            ("stored_percent", percent(t.stored, t.raw)),
        ];
        row.extend(t.blocks.cells());
        row
    };
    Ok(tenants.into_iter().map(row).collect())
}

#[derive(Default)]
struct OfStream {
    records: u64,
    lines: u64,
    /// Lines and bytes of the records, for the mean.
    logged: (u64, u64),
    blocks: InBlocks,
}

fn streams<W: Write>(judged: &Judged, context: &mut Context<W>) -> Result<Vec<Row>, InspectError> {
    let mut streams: BTreeMap<u64, OfStream> = BTreeMap::new();
    for block in judged.blocks.counting() {
        let s = streams.entry(block.stream).or_default();
        s.lines += block.lines;
        s.blocks.add(block);
    }
    each_entries(judged, context, |tables, _, _, once| {
        for row in &tables.rows {
            let s = streams.entry(row.stream).or_default();
            s.records += 1;
            s.lines += once.lines(row);
            s.logged.0 += u64::from(row.count);
            s.logged.1 += u64::from(row.part_len);
        }
    })?;
    let defined = Streams::of(judged);
    let row = |(id, s): (u64, OfStream)| {
        let (logged, bytes) = s.logged;
        let mut row: Row = vec![
            ("stream", id.into()),
            ("tenant", defined.tenant(id).into()),
            ("records", s.records.into()),
            ("lines", s.lines.into()),
            ("bytes", Cell::Size(bytes)),
            ("bytes_per_line", bytes.checked_div(logged).into()),
        ];
        row.extend(s.blocks.cells());
        row.push(("labels", defined.labels(id).into()));
        row
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
