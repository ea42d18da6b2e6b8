//! `streams`: every stream with its figures. Memory grows with the streams, not with the log.

use super::blocks::KnownBlock;
use super::command::{Context, Once, Streams};
use super::error::InspectError;
use super::log::{Judged, SegmentView, State, Step};
use super::output::{Cell, Shape};
use super::ranges::count;
use super::selector::Selector;
use crate::wal::format::Kind;
use crate::wal::{BodyView, RecordScan, Tables, decompress_body};
use std::collections::HashMap;
use std::io::Write;

/// What the streams are ordered by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Order {
    /// Bytes before compression.
    #[default]
    Bytes,
    /// Log lines.
    Lines,
}

/// Which streams are shown.
pub struct Choice<'a> {
    /// At most so many.
    pub top: Option<usize>,
    /// Order, largest first.
    pub by: Order,
    /// Only this tenant.
    pub tenant: Option<&'a str>,
    /// Only streams that it selects.
    pub selector: Option<&'a Selector>,
}

/// Figures of one stream below the durable end.
#[derive(Clone, Debug, Default)]
struct Figures {
    tenant: String,
    lines: u64,
    bytes: u64,
    times: Option<(i64, i64)>,
    out_of_order: u64,
    next_seq: u64,
    block_lines: u64,
}

impl Figures {
    /// A block is sorted, so it tells nothing of the order of arrival within it.
    fn block(&mut self, block: &KnownBlock) {
        self.lines += block.lines;
        self.block_lines += block.lines;
        self.bytes += block.raw;
        self.next_seq = self.next_seq.max(block.seqs.end);
        let (first, last) = self.times.unwrap_or(block.times);
        self.times = Some((first.min(block.times.0), last.max(block.times.1)));
    }

    fn entry(&mut self, timestamp: i64) {
        if self.times.is_some_and(|(_, last)| timestamp < last) {
            self.out_of_order += 1;
        }
        let (first, last) = self.times.unwrap_or((timestamp, timestamp));
        self.times = Some((first.min(timestamp), last.max(timestamp)));
    }
}

/// Prints the streams.
///
/// # Errors
/// The log cannot be read, or the output not be written.
pub fn run<W: Write>(choice: &Choice<'_>, judged: &Judged, context: &mut Context<W>) -> Result<(), InspectError> {
    let streams = Streams::of(judged);
    let selected = |id: u64| choice.selector.is_none_or(|s| streams.get(id).is_some_and(|d| s.matches(&d.labels)));
    let mut figures: HashMap<u64, Figures> = HashMap::new();
    let mut once = Once::new(judged);
    for block in judged.blocks.counting().filter(|b| selected(b.stream)) {
        let owner = streams.tenant(block.stream).unwrap_or_default();
        if choice.tenant.is_none_or(|wanted| wanted == owner) {
            let f = figures.entry(block.stream).or_default();
            f.tenant = owner;
            f.block(block);
        }
    }
    judged.walk(
        |_| true,
        &mut context.progress,
        |step| {
            let Step::Segment(view) = step else { return Ok(true) };
            let durable = view.records().filter(|(_, r, state)| *state == State::Durable && r.body_is_sound);
            for (_, record, _) in durable.filter(|(_, r, _)| r.head.known_kind() == Some(Kind::Entries)) {
                add(view, record, choice.tenant, &selected, &mut once, &mut figures);
            }
            Ok(true)
        },
    )?;
    let mut rows: Vec<(u64, Figures)> = figures.into_iter().collect();
    let key = |f: &Figures| if choice.by == Order::Lines { (f.lines, f.bytes) } else { (f.bytes, f.lines) };
    rows.sort_by(|(a_id, a), (b_id, b)| key(b).cmp(&key(a)).then(a_id.cmp(b_id)));
    rows.truncate(choice.top.unwrap_or(usize::MAX));
    let print = || {
        context.printer.section("streams", Shape::Many)?;
        for (id, f) in rows {
            context.printer.row(&vec![
                ("stream", id.into()),
                ("tenant", f.tenant.into()),
                ("lines", f.lines.into()),
                ("block_lines", f.block_lines.into()),
                ("bytes", Cell::Size(f.bytes)),
                ("out_of_order", f.out_of_order.into()),
                ("next_seq", f.next_seq.into()),
                ("first", f.times.map(|(first, _)| Cell::Time(first)).into()),
                ("last", f.times.map(|(_, last)| Cell::Time(last)).into()),
                ("labels", streams.labels(id).into()),
            ])?;
        }
        Ok(())
    };
    print().map_err(InspectError::Output)
}

fn add(
    view: &SegmentView<'_>,
    record: &RecordScan,
    tenant: Option<&str>,
    selected: &dyn Fn(u64) -> bool,
    once: &mut Once<'_>,
    figures: &mut HashMap<u64, Figures>,
) {
    let head = &record.head;
    let Ok(tables) = Tables::decode(head.tables(view.file, record.offset)) else { return };
    if tenant.is_some_and(|wanted| wanted != tables.tenant) || !tables.rows.iter().any(|r| selected(r.stream)) {
        return;
    }
    let Ok(raw) = decompress_body(head, head.body(view.file, record.offset)) else { return };
    let Ok(body) = BodyView::new(&raw) else { return };
    let mut start = 0;
    for row in &tables.rows {
        let part = body.part(start, row);
        start = start.saturating_add(row.part_len as usize);
        if !selected(row.stream) {
            continue;
        }
        let f = figures.entry(row.stream).or_default();
        if f.tenant.is_empty() {
            f.tenant = tables.tenant.to_string();
        }
        let fresh = once.seqs(row);
        let lines = count(&fresh);
        f.lines += lines;
        f.bytes += (u64::from(row.part_len) * lines).checked_div(row.count.into()).unwrap_or(0);
        f.next_seq = f.next_seq.max(row.end_seq());
        let entries = (row.first_seq..).zip(part.into_iter().flatten().map_while(Result::ok));
        let given = entries.filter(|(seq, _)| fresh.iter().any(|r| r.contains(seq)));
        given.for_each(|(_, e)| f.entry(e.timestamp));
    }
}
