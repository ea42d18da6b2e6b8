//! `verify`: every checksum, position and seq of the log, and what is missing, by stream.

use super::blocks::{BlockView, read_block};
use super::command::{Context, Once, Streams};
use super::dump::Position;
use super::error::InspectError;
use super::log::{Judged, Problem, SegmentView, State, Step};
use super::output::{Cell, Printer, Row, Shape};
use super::progress::Progress;
use super::seqs::Seqs;
use crate::codec::crc32;
use crate::wal::format::{FLAG_CARRIED, Kind};
use crate::wal::{
    BodyError, BodyView, Cut, Footer, GroupScan, LogKind, LostSegments, Open, RecordHead, RecordScan, SeriesDef, Side,
    Survivors, Tables, decode_control,
};
use crate::wal::{decompress_body, file_name, segment_name};
use std::collections::HashSet;
use std::io::Write;
use std::ops::Range;

/// What was checked and found beyond the judgement.
struct Check<'a> {
    seqs: Seqs,
    survivors: Survivors,
    /// What Gaps have settled without its seqs: nothing was left of the records but their LSNs.
    settled: Survivors,
    once: Once<'a>,
    problems: Vec<Problem>,
    known: HashSet<(bool, u64, u64)>,
    groups: u64,
    records: u64,
    lines: u64,
    bytes: u64,
    blocks: u64,
    block_lines: u64,
    /// The segment before, for the digest in the next Open.
    previous: Option<Chain>,
}

/// Digest of a segment's groups, after each of them: where it ends, and the digest.
struct Chain {
    segment: u64,
    ends: Vec<(u64, u32)>,
}

impl Chain {
    fn of(view: &SegmentView<'_>) -> Self {
        let mut digest = 0u32;
        let groups = view.scan.groups.iter().filter(|g| g.header.is_some());
        let ends = groups.map(|g| {
            digest = crc32(&[&digest.to_le_bytes(), &g.crc.to_le_bytes()]);
            (g.end, digest)
        });
        Self { segment: view.number, ends: ends.collect() }
    }
}

/// What a check of the whole log found.
pub struct Findings {
    /// Nothing acknowledged is damaged or missing.
    pub sound: bool,
    /// What does not hold, in the order of the logs.
    pub problems: Vec<Problem>,
    /// Missing seqs by stream, in order.
    pub missing: Vec<(u64, Range<u64>)>,
    /// Acknowledged lines that are gone.
    pub lost: u64,
    /// Of these, lines of which nothing tells their streams.
    pub unattributed: u64,
    /// Lines that both logs have, once each.
    pub lines: u64,
    /// What is lost with segments of the block log that are gone.
    segments: Option<LostSegments>,
    groups: u64,
    records: u64,
    bytes: u64,
    blocks: u64,
    block_lines: u64,
}

/// Checks the log and prints the findings; `true` if it is sound.
///
/// # Errors
/// The log cannot be read, or the output not be written.
pub fn run<W: Write>(judged: &Judged, context: &mut Context<W>) -> Result<bool, InspectError> {
    let findings = check(judged, &mut context.progress)?;
    findings.report(judged, context).map_err(InspectError::Output)?;
    Ok(findings.sound)
}

/// Checks every checksum, position and seq of both logs.
///
/// # Errors
/// The log cannot be read.
pub fn check(judged: &Judged, progress: &mut Progress) -> Result<Findings, InspectError> {
    let mut check = Check {
        seqs: Seqs::new(judged.plan.first_lsn == 0, &judged.plan.gaps),
        survivors: Survivors::new(&judged.plan),
        settled: Survivors::of_settled(&judged.plan),
        once: Once::new(judged),
        known: judged.damage().iter().map(Problem::place).collect(),
        problems: judged.damage(),
        groups: 0,
        records: 0,
        lines: 0,
        bytes: 0,
        blocks: 0,
        block_lines: judged.blocks.counting().map(|b| b.lines).sum(),
        previous: None,
    };
    judged.walk(
        |_| true,
        progress,
        |step| {
            match step {
                Step::Segment(view) => check.segment(view),
                Step::Vanished => {
                    check.seqs.restart();
                    check.previous = None;
                }
            }
            Ok(true)
        },
    )?;
    judged.blocks.walk(&judged.log, |view| {
        check.block_segment(view);
        Ok(true)
    })?;
    Ok(check.findings(judged))
}

impl Check<'_> {
    fn segment(&mut self, view: &SegmentView<'_>) {
        for (group, record, state) in view.records() {
            self.records += 1;
            self.bytes += u64::from(record.head.len);
            let end = group.header.map_or(record.head.lsn, |h| h.end_lsn());
            let decoded = self.record(view, record, end, state);
            if let (Err(error), State::Durable) = (decoded, state) {
                let what = format!("{} record: {error}", record.head.known_kind().map_or("unknown", Kind::name));
                self.problem(LogKind::Wal, view.number, record.offset, record.head.len.into(), what);
            }
        }
        self.groups += view.scan.groups.len() as u64;
        view.scan.groups.iter().for_each(|g| self.group(view, g));
        self.previous = Some(Chain::of(view));
    }

    fn problem(&mut self, log: LogKind, segment: u64, offset: u64, bytes: u64, what: String) {
        let problem = Problem { log, segment, offset, bytes, what };
        if self.known.insert(problem.place()) {
            self.problems.push(problem);
        }
    }

    /// Every block, and the footer against the records before it.
    fn block_segment(&mut self, view: &BlockView<'_>) {
        let number = view.synced.segment;
        let mut footer = None;
        let mut found = Footer::default();
        for record in view.records() {
            let (head, at) = (&record.head, record.offset);
            self.bytes += u64::from(head.len);
            match head.known_kind() {
                Some(Kind::Block) if record.body_is_sound => {
                    self.blocks += 1;
                    found.blocks.push((at, head.len, head.tables(view.file, at).to_vec()));
                    if let Err(error) = read_block(record, view.file) {
                        self.problem(LogKind::Blocks, number, at, head.len.into(), format!("block: {error}"));
                    }
                }
                Some(Kind::Series) if record.body_is_sound => {
                    let definitions = decode_control::<Vec<SeriesDef>>(head, head.body(view.file, at));
                    found.definitions.extend(definitions.unwrap_or_default());
                }
                Some(Kind::Footer) if record.body_is_sound => {
                    footer = decode_control::<Footer>(head, head.body(view.file, at)).ok().map(|f| (at, head.len, f));
                }
                _ => {}
            }
        }
        // Damage before it is told already, and a footer that is not read is told by the judgement.
        let damaged = self.known.iter().any(|(blocks, segment, _)| *blocks && *segment == number);
        match footer {
            Some((at, len, footer)) if footer != found && !damaged => {
                self.problem(LogKind::Blocks, number, at, len.into(), "the footer tells of other records".to_string());
            }
            None if view.synced.footer != 0 && !damaged => {
                let what = "no footer lies where the write-ahead log says".to_string();
                self.problem(LogKind::Blocks, number, view.synced.footer, 0, what);
            }
            _ => {}
        }
    }

    /// A group whose bytes hold must also hold what its header says.
    fn group(&mut self, view: &SegmentView<'_>, group: &GroupScan) {
        let Some(header) = group.header.filter(|_| group.damage.is_empty()) else { return };
        if group.records.iter().any(|r| view.state(r) != State::Durable) {
            return;
        }
        let with_lsn = || group.records.iter().filter(|r| r.head.known_kind().is_some_and(Kind::has_lsn));
        let found = (group.records.len() as u64, with_lsn().count() as u64);
        let counts = found == (u64::from(header.records), u64::from(header.lsns));
        let in_order = with_lsn().zip(0u64..).all(|(r, i)| r.head.lsn.checked_sub(header.first_lsn) == Some(i));
        if !counts || !in_order {
            let what = "the group holds other records than its header says".to_string();
            self.problem(LogKind::Wal, view.number, group.offset, group.end - group.offset, what);
        }
    }

    /// `end` is the LSN behind those of its group.
    fn record(&mut self, view: &SegmentView<'_>, record: &RecordScan, end: u64, state: State) -> Result<(), BodyError> {
        let (head, at) = (&record.head, record.offset);
        match head.known_kind() {
            Some(Kind::Entries) => self.entries(view, record, state),
            _ if !record.body_is_sound => Ok(()),
            Some(Kind::Series) => {
                let definitions: Vec<SeriesDef> = decode_control(head, head.body(view.file, at))?;
                for d in definitions.iter().filter(|_| state == State::Durable) {
                    self.seqs.defined(d.id, d.next_seq, d.settled_seq);
                    self.survivors.defined(head.lsn, d.id, d.next_seq, d.settled_seq);
                    self.settled.defined_in_group(head.lsn, end, d.id, d.next_seq);
                }
                Ok(())
            }
            Some(Kind::Open) => {
                let open: Open = decode_control(head, head.body(view.file, at))?;
                self.digest(view.number, at, &open);
                Ok(())
            }
            // The plan has decoded decisions and Gaps; unknown kinds that may be skipped have nothing to decode.
            Some(_) | None => Ok(()),
        }
    }

    fn entries(&mut self, view: &SegmentView<'_>, record: &RecordScan, state: State) -> Result<(), BodyError> {
        let head = &record.head;
        let tables = Tables::decode(head.tables(view.file, record.offset))?;
        let body =
            if record.body_is_sound { check_body(head, &tables, head.body(view.file, record.offset)) } else { Ok(()) };
        if state != State::Durable {
            return body;
        }
        let sound = record.body_is_sound && body.is_ok();
        for row in &tables.rows {
            let seqs = row.first_seq..row.end_seq();
            if sound {
                self.lines += self.once.lines(row);
                for survivors in [&mut self.survivors, &mut self.settled] {
                    survivors.entries(head.lsn, head.flags & FLAG_CARRIED != 0, row);
                }
            }
            if head.flags & FLAG_CARRIED != 0 {
                self.seqs.carried(row.stream, seqs, sound);
            } else if let Some(twice) = self.seqs.entries(row.stream, seqs, sound) {
                let what = format!("stream {} has seqs {} to {} twice", row.stream, twice.start, twice.end);
                self.problem(LogKind::Wal, view.number, record.offset, head.len.into(), what);
            }
        }
        body
    }

    /// The Open of a segment tells the digest of the groups before it. A difference that no damage explains means
    /// that a whole group was replaced.
    fn digest(&mut self, segment: u64, offset: u64, open: &Open) {
        let (Some(told), Some(chain)) = (open.previous, &self.previous) else { return };
        if told.segment != chain.segment
            || self.problems.iter().any(|p| p.log == LogKind::Wal && p.segment == chain.segment)
        {
            return;
        }
        let found = chain.ends.iter().rev().find(|(end, _)| *end <= told.end_offset).map_or(0, |(_, d)| *d);
        if found != told.digest {
            let what = format!("segment {} does not hold the groups that were written to it", chain.segment);
            self.problem(LogKind::Wal, segment, offset, 0, what);
        }
    }

    fn findings(mut self, judged: &Judged) -> Findings {
        let plan = &judged.plan;
        self.problems.sort_by_key(Problem::place);
        self.settled.gone().for_each(|(stream, seqs)| self.seqs.settled(stream, seqs.clone()));
        let mut missing = self.seqs.missing(&judged.blocks);
        let segments =
            judged.blocks.unseen.then(|| self.survivors.lost_segments(plan, &judged.blocks.seqs(), &missing));
        if let Some(lost) = &segments {
            missing.extend(lost.seqs.iter().cloned());
            missing.sort_by_key(|(id, seqs)| (*id, seqs.start));
        }
        let attributed: u64 = missing.iter().map(|(_, r)| r.end - r.start).sum();
        let mut loss = plan.loss.clone();
        self.survivors.settle(&mut loss, &judged.blocks.settled());
        let lost = loss.lines.max(attributed);
        Findings {
            sound: judged.is_sound() && self.problems.is_empty() && missing.is_empty(),
            problems: self.problems,
            missing,
            lost,
            unattributed: lost.saturating_sub(attributed),
            lines: self.lines + self.block_lines,
            segments,
            groups: self.groups,
            records: self.records,
            bytes: self.bytes,
            blocks: self.blocks,
            block_lines: self.block_lines,
        }
    }
}

/// Rows of missing seqs.
pub fn missing_rows(missing: &[(u64, Range<u64>)], streams: &Streams) -> Vec<Row> {
    let row = |(id, seqs): &(u64, Range<u64>)| -> Row {
        vec![
            ("stream", (*id).into()),
            ("tenant", streams.tenant(*id).into()),
            ("first_seq", seqs.start.into()),
            ("end_seq", seqs.end.into()),
            ("lines", (seqs.end - seqs.start).into()),
            ("labels", streams.labels(*id).into()),
        ]
    };
    missing.iter().map(row).collect()
}

impl Findings {
    fn report<W: Write>(&self, judged: &Judged, context: &mut Context<W>) -> std::io::Result<()> {
        let (plan, printer) = (&judged.plan, &mut context.printer);
        printer.section("verify", Shape::One)?;
        printer.row(&vec![
            ("directory", judged.log.dir.display().to_string().into()),
            ("segments", Cell::Count(judged.used().count() as u64)),
            ("groups", self.groups.into()),
            ("records", self.records.into()),
            ("bytes", Cell::Size(self.bytes)),
            ("lines", self.lines.into()),
            ("block_segments", Cell::Count(judged.blocks.facts.len() as u64)),
            ("blocks", self.blocks.into()),
            ("block_lines", self.block_lines.into()),
            ("first_lsn", plan.first_lsn.into()),
            ("durable_lsn", plan.durable_lsn.into()),
            ("tail_records", Cell::Count(plan.tail.len() as u64)),
            ("unresolved_lsns", Cell::Count(plan.unresolved.iter().map(|r| r.end - r.start).sum())),
            ("settled_gaps", Cell::Count(plan.gaps.len() as u64)),
            ("dirty_padding_bytes", Cell::Count(judged.facts.iter().map(|f| f.dirty_padding).sum())),
            ("damaged_places", Cell::Count(self.problems.len() as u64)),
            ("lost_records", Cell::Count(plan.loss.lsns.iter().map(|r| r.end - r.start).sum())),
            ("lost_lines", self.lost.into()),
            ("lost_lines_unattributed", self.unattributed.into()),
            ("verdict", if self.sound { "sound" } else { "damaged" }.into()),
        ])?;
        section(printer, "damage", self.problems.iter().map(damage_row))?;
        section(printer, "missing_segments", plan.loss.missing_segments.iter().map(missing_segment_row))?;
        section(printer, "missing_block_segments", judged.blocks.missing.iter().map(missing_block_row))?;
        let ranges = |r: &Range<u64>| -> Row { vec![("first", r.start.into()), ("end", r.end.into())] };
        let told = self.segments.iter().map(|lost| -> Row { vec![("what", lost.to_string().into())] });
        section(printer, "lost_block_segments", told)?;
        let newest = plan.loss.missing_newest.iter();
        section(printer, "missing_newest_segment", newest.map(missing_segment_row))?;
        section(printer, "missing_lsns", plan.loss.lsns.iter().map(ranges))?;
        section(printer, "missing", missing_rows(&self.missing, &Streams::of(judged)).into_iter())?;
        section(printer, "unresolved", plan.unresolved.iter().map(ranges))
    }
}

fn section<W: Write>(
    printer: &mut Printer<W>,
    name: &'static str,
    mut rows: impl Iterator<Item = Row>,
) -> std::io::Result<()> {
    printer.section(name, Shape::Many)?;
    rows.try_for_each(|row| printer.row(&row))
}

fn damage_row(p: &Problem) -> Row {
    vec![
        ("position", Position { segment: p.segment, offset: p.offset }.to_string().into()),
        ("bytes", Cell::Size(p.bytes)),
        ("what", p.what.as_str().into()),
        ("file", file_name(p.log, p.segment).into()),
    ]
}

fn missing_segment_row(number: &u64) -> Row {
    vec![("segment", (*number).into()), ("file", segment_name(*number).into())]
}

fn missing_block_row(number: &u64) -> Row {
    vec![("segment", (*number).into()), ("file", file_name(LogKind::Blocks, *number).into())]
}

/// A CRC holds for what was written; this checks that it can also be read, in pieces too.
fn check_body(head: &RecordHead, tables: &Tables<'_>, stored: &[u8]) -> Result<(), BodyError> {
    let whole = decompress_body(head, stored)?;
    check_parts(tables, &whole, 0, |_| true)?;
    let Some(cut) = Cut::find(tables.extension) else { return Ok(()) };
    let mut raw = Vec::new();
    for side in [Side::Before, Side::Behind] {
        cut.decompress(side, head.raw_len, stored, &mut raw)?;
        check_parts(tables, &raw, cut.shift(side), |start| cut.side(start) == side)?;
    }
    Ok(())
}

fn check_parts(
    tables: &Tables<'_>,
    raw: &[u8],
    shift: usize,
    is_there: impl Fn(usize) -> bool,
) -> Result<(), BodyError> {
    let body = BodyView::new(raw)?;
    let mut start = 0usize;
    for row in &tables.rows {
        if is_there(start) {
            for entry in body.part(start.saturating_sub(shift), row)? {
                entry?;
            }
        }
        start = start.saturating_add(row.part_len as usize);
    }
    Ok(())
}
