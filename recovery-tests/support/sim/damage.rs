//! Changed bytes: every bit of a log, sectors and blocks lost, set, swapped, repeated and shifted, files cut, lost,
//! repeated and mixed up.
//!
//! What must hold: no panic, no line that was not sent, none twice; at most the records that the bytes belong to are lost; what
//! was proved durable and is lost is told, with the exact number of lines wherever the log can know it.

use super::content::{Image, mix};
use super::crash::Volume;
use super::explore::play;
use super::ledger::options;
use super::report::Layer;
use super::workload::Workload;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use timberline::wal::*;

/// (stream id, seq) → hash of the line with all that belongs to it.
type Lines = BTreeMap<(u64, u64), u64>;
type Keys = BTreeSet<(u64, u64)>;

struct Segment {
    number: u64,
    bytes: Vec<u8>,
    summary: Summary,
    /// Place and lines of each record.
    records: Vec<(Range<u64>, Arc<Lines>)>,
}

/// A log that is whole, and what each of its bytes is.
pub struct Log {
    segments: Vec<Segment>,
    lines: Lines,
    plan: Plan,
    /// Segment and bytes of groups and headers, padding apart.
    live: Vec<(u64, Range<u64>)>,
    /// Nothing of this segment from this offset on is proved durable.
    unproved: (u64, u64),
    /// From here on a later segment's Open says that the bytes of a segment count for nothing.
    void: BTreeMap<u64, u64>,
}

/// What is found in a damaged log.
struct Found {
    plan: Plan,
    lost: Keys,
}

fn summary_of(number: u64, file: &[u8]) -> Summary {
    match scan_segment(file) {
        Ok(scan) => Summary::of(number, &scan, file),
        Err(_) => Summary::unusable(number),
    }
}

/// The lines of a record.
fn lines_of(head: &RecordHead, offset: u64, file: &[u8]) -> Result<Lines, String> {
    let raw = decompress_body(head, head.body(file, offset)).map_err(|e| e.to_string())?;
    let view = BodyView::new(&raw).map_err(|e| e.to_string())?;
    let tables = Tables::decode(head.tables(file, offset)).map_err(|e| e.to_string())?;
    let tenant = super::content::hash_of(tables.tenant.as_bytes());
    let (mut out, mut start) = (Lines::new(), 0);
    for row in &tables.rows {
        for (seq, entry) in (row.first_seq..).zip(view.part(start, row).map_err(|e| e.to_string())?) {
            let entry = entry.map_err(|e| e.to_string())?;
            let mut text = entry.line.to_vec();
            for (n, v) in entry.metadata() {
                for symbol in [n, v] {
                    text.extend_from_slice(view.symbols().get(symbol as usize).ok_or("a symbol is missing")?);
                    text.push(0);
                }
            }
            let hash = mix(&[tenant, entry.timestamp as u64, super::content::hash_of(&text)]);
            if out.insert((row.stream, seq), hash).is_some() {
                return Err(format!("seq {seq} of stream {} twice in a record", row.stream));
            }
        }
        start += row.part_len as usize;
    }
    Ok(out)
}

impl Segment {
    fn of(number: u64, bytes: Vec<u8>) -> Self {
        let mut records = Vec::new();
        if let Ok(scan) = scan_segment(&bytes) {
            for r in scan.groups.iter().flat_map(|g| &g.records) {
                let entries = r.body_is_sound && r.head.known_kind() == Some(Kind::Entries);
                let lines =
                    if entries { lines_of(&r.head, r.offset, &bytes).unwrap_or_default() } else { Lines::new() };
                records.push((r.offset..r.offset + u64::from(r.head.len), Arc::new(lines)));
            }
        }
        Self { number, summary: summary_of(number, &bytes), bytes, records }
    }
}

impl Log {
    /// From the files of an image.
    fn of(image: &Image) -> Result<Self, String> {
        let named = |(path, content): (&Arc<std::path::Path>, &Arc<super::content::Content>)| {
            Some((segment_number(&path.file_name()?.to_string_lossy())?, content.to_vec()))
        };
        let segments = image.files.iter().filter_map(named).map(|(n, b)| Segment::of(n, b)).collect::<Vec<_>>();
        let plan = plan(&segments.iter().map(|s| s.summary.clone()).collect::<Vec<_>>());
        let mut out =
            Self { segments, lines: Lines::new(), plan, live: vec![], unproved: (u64::MAX, 0), void: BTreeMap::new() };
        for s in &out.segments {
            out.live.extend([0, 4096].map(|copy| (s.number, copy..copy + 64)));
            for group in scan_segment(&s.bytes).map_err(|e| e.to_string())?.groups {
                let Some(header) = group.header else { continue };
                for r in group.records.iter().filter(|r| r.head.known_kind() == Some(Kind::Open)) {
                    let open: Open =
                        decode_control(&r.head, r.head.body(&s.bytes, r.offset)).map_err(|e| e.to_string())?;
                    let (last, end) = open.previous.map_or((0, 0), |p| (p.segment, p.end_offset));
                    out.void.insert(last, end);
                    out.void.extend((last + 1..s.number).map(|n| (n, 0)));
                }
                out.live.push((s.number, group.offset..group.offset + u64::from(header.len)));
                if header.end_lsn() > out.plan.durable_lsn && out.unproved.0 == u64::MAX {
                    out.unproved = (s.number, group.offset);
                }
            }
        }
        out.lines = out.read(&out.plan, &BTreeMap::new())?;
        if out.plan.loss.is_empty() { Ok(out) } else { Err(format!("a loss without damage: {:?}", out.plan.loss)) }
    }

    fn segment(&self, number: u64) -> Option<&Segment> {
        self.segments.iter().find(|s| s.number == number)
    }

    /// The lines that a plan applies; `changed` are files with other bytes.
    fn read(&self, plan: &Plan, changed: &BTreeMap<u64, Segment>) -> Result<Lines, String> {
        let mut out = Lines::new();
        for (number, _) in &plan.replay {
            let Some(s) = changed.get(number).or_else(|| self.segment(*number)) else { continue };
            let Ok(scan) = scan_segment(&s.bytes) else { continue };
            for r in plan.records(*number, &scan) {
                let known = s.records.iter().find(|(range, _)| range.start == r.offset);
                let lines = known.map(|(_, lines)| lines.clone()).ok_or("a record that the scan did not have")?;
                for (key, line) in &*lines {
                    if out.insert(*key, *line).is_some() {
                        return Err(format!("seq {} of stream {} twice", key.1, key.0));
                    }
                }
            }
        }
        Ok(out)
    }

    /// A start on the log with these files in the place of its own; `gone` are files that are not there.
    fn with(&self, changed: BTreeMap<u64, Segment>, gone: &[u64]) -> Result<Found, String> {
        let mut numbers: Vec<u64> = self.segments.iter().map(|s| s.number).chain(changed.keys().copied()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.retain(|n| !gone.contains(n));
        let file = |n: &u64| changed.get(n).or_else(|| self.segment(*n)).map(|s| s.summary.clone());
        let plan = plan(&numbers.iter().filter_map(file).collect::<Vec<_>>());
        let lines = self.read(&plan, &changed)?;
        for (key, line) in &lines {
            if self.lines.get(key) != Some(line) {
                return Err(format!("seq {} of stream {} is a line that nobody has sent", key.1, key.0));
            }
        }
        let lost = self.lines.keys().filter(|k| !lines.contains_key(k)).copied().collect();
        Ok(Found { plan, lost })
    }

    /// Lines of all records that overlap these bytes.
    fn lines_in(&self, number: u64, bytes: &Range<u64>) -> Keys {
        let records = self.segment(number).into_iter().flat_map(|s| &s.records);
        let hit = records.filter(|(r, _)| r.start < bytes.end && bytes.start < r.end);
        hit.flat_map(|(_, lines)| lines.keys().copied()).collect()
    }

    /// Replaces bytes of a segment and checks what a start finds.
    fn check(&self, number: u64, bytes: Range<u64>, file: Vec<u8>) -> Result<(), String> {
        let cut = self.segment(number).is_some_and(|s| file.len() < s.bytes.len());
        let changed = Segment::of(number, file);
        let found = self.with(BTreeMap::from([(number, changed)]), &[])?;
        // Without both headers nothing in the file can be proved.
        let headless = bytes.start < 64 && bytes.end >= 4096 + 64;
        let reach = if headless { 0..u64::MAX } else { bytes.clone() };
        let mut allowed = self.lines_in(number, &reach);
        let unproved = number > self.unproved.0 || (number == self.unproved.0 && bytes.end > self.unproved.1);
        if unproved {
            // A definition that is gone takes the lines behind it along, if nobody was told of them.
            allowed.extend(self.lines_in(number, &(self.unproved.1..u64::MAX)));
        }
        if !found.lost.is_subset(&allowed) {
            let more: Keys = found.lost.difference(&allowed).copied().collect();
            return Err(format!("more than the damaged records is lost: {more:?}"));
        }
        let told = &found.plan.loss;
        let end = self.void.get(&number).copied().unwrap_or(u64::MAX);
        let held = |(n, r): &(u64, Range<u64>)| *n == number && r.start >= 8192 && r.start < end && bytes.start < r.end;
        if cut && told.is_empty() && self.live.iter().any(held) {
            return Err("a file was cut and nobody is told".into());
        }
        if found.lost.is_empty() || unproved {
            return Ok(());
        }
        if told.is_empty() {
            return Err(format!("{} lines are lost silently", found.lost.len()));
        }
        // Where the beginning of the log is lost, nothing tells how many lines were in it.
        let beginning = number == found.plan.first_live_segment && bytes.start < 8192 + 4096;
        if !beginning && !cut && told.lines != found.lost.len() as u64 {
            return Err(format!("{} lines are lost, {} are told", found.lost.len(), told.lines));
        }
        Ok(())
    }
}

/// A log made by a workload, as `kill -9` leaves it.
fn make(layer: &Layer, workload: &Workload) -> Option<Log> {
    let mut played = play(workload, None);
    played.run.kill();
    let mut volume = Volume::new(&played.run.disk.base);
    played.run.disk.ops().iter().for_each(|op| volume.apply(op));
    match (played.stopped, Log::of(&volume.kept())) {
        (None, Ok(log)) => Some(log),
        (stopped, log) => {
            layer.fail(workload, "damage", &format!("{stopped:?} {:?}", log.err()));
            None
        }
    }
}

/// One change of a log.
#[derive(Debug)]
pub(super) enum Change {
    Bit(u64, u64, u8),
    Zero(u64, Range<u64>),
    Ones(u64, Range<u64>),
    /// These bytes hold what lies at another place of the same segment.
    Copy(u64, Range<u64>, u64),
    Cut(u64, u64),
}

impl Change {
    /// Segment, changed bytes, and the whole file with them; `file` gives the bytes of a segment.
    pub(super) fn apply(&self, file: impl Fn(u64) -> Option<Vec<u8>>) -> Option<(u64, Range<u64>, Vec<u8>)> {
        let within = |r: &Range<u64>| r.start as usize..r.end as usize;
        Some(match self {
            Self::Bit(n, at, bit) => {
                let mut bytes = file(*n)?;
                *bytes.get_mut(*at as usize)? ^= 1 << bit;
                (*n, *at..*at + 1, bytes)
            }
            Self::Zero(n, r) | Self::Ones(n, r) => {
                let mut bytes = file(*n)?;
                bytes.get_mut(within(r))?.fill(if matches!(self, Self::Zero(..)) { 0 } else { 0xff });
                (*n, r.clone(), bytes)
            }
            Self::Copy(n, r, from) => {
                let mut bytes = file(*n)?;
                let piece = bytes.get(*from as usize..)?.get(..(r.end - r.start) as usize)?.to_vec();
                bytes.get_mut(within(r))?.copy_from_slice(&piece);
                (*n, r.clone(), bytes)
            }
            Self::Cut(n, len) => {
                let mut bytes = file(*n)?;
                let end = bytes.len() as u64;
                bytes.truncate(*len as usize);
                (*n, *len..end, bytes)
            }
        })
    }
}

/// All changes of segments, given by number and length; of bits of long records one in `every_bit`. `live` are bytes that count.
pub(super) fn changes(
    segments: &[(u64, u64)],
    live: &[(u64, Range<u64>)],
    every_bit: u64,
) -> impl Iterator<Item = Change> {
    let bits = live.iter().flat_map(move |(n, r)| {
        let long = r.end - r.start > 8192;
        let wanted = move |at: &u64| !long || at.is_multiple_of(every_bit);
        r.clone().filter(wanted).flat_map(move |at| (0..8).map(move |bit| Change::Bit(*n, at, bit)))
    });
    let ranges = segments.iter().flat_map(move |(number, len)| {
        let used = live.iter().filter(|(n, _)| n == number).map(|(_, r)| r.end).max().unwrap_or(0);
        let of_size = move |size: u64| {
            let end = (used / size + 2).min(len / size);
            (0..end).map(move |i| i * size..(i + 1) * size)
        };
        let all = of_size(512).chain(of_size(4096)).filter(move |r| is_live(live, *number, r));
        all.flat_map(move |r| {
            let size = r.end - r.start;
            // Swapped with the neighbours, repeated from the headers and the first group, shifted by a little.
            let from = [
                r.start.wrapping_sub(size),
                r.end,
                0,
                8192,
                12288,
                r.start.wrapping_sub(8),
                r.start + 8,
                r.start + 512,
            ];
            let copies = from.into_iter().map({
                let r = r.clone();
                move |from| Change::Copy(*number, r.clone(), from)
            });
            [Change::Zero(*number, r.clone()), Change::Ones(*number, r)].into_iter().chain(copies).collect::<Vec<_>>()
        })
    });
    let cuts = segments.iter().flat_map(move |(number, len)| {
        let wanted = move |at: &u64| {
            let live = live.iter().any(|(n, r)| n == number && r.contains(at) && r.end - r.start <= 8192);
            at.is_multiple_of(512) || live
        };
        (0..*len).filter(wanted).map(move |at| Change::Cut(*number, at))
    });
    bits.chain(ranges).chain(cuts)
}

fn is_live(live: &[(u64, Range<u64>)], number: u64, bytes: &Range<u64>) -> bool {
    live.iter().any(|(n, r)| *n == number && r.start < bytes.end && bytes.start < r.end)
}

/// Every change of the log that a workload leaves.
pub fn damage(layer: &Layer, workload: &Workload, every_bit: u64) {
    let Some(log) = make(layer, workload) else { return };
    layer.counts.add("logs", 1);
    let (mut flips, mut other) = (0, 0);
    let segments: Vec<(u64, u64)> = log.segments.iter().map(|s| (s.number, s.bytes.len() as u64)).collect();
    for (i, change) in changes(&segments, &log.live, every_bit).enumerate() {
        let path = || format!("damage/{i}");
        if layer.enough() {
            break;
        }
        if !layer.wants(path) {
            continue;
        }
        let whole = |n: u64| log.segment(n).map(|s| s.bytes.clone());
        let Some((number, bytes, file)) = change.apply(whole) else { continue };
        if log.segment(number).is_some_and(|s| s.bytes == file) {
            continue;
        }
        if matches!(change, Change::Bit(..)) {
            flips += 1
        } else {
            other += 1
        }
        let what = format!("{change:?} of segment {number}");
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| log.check(number, bytes, file)));
        let wrong = checked.unwrap_or_else(|_| Err("panic".into()));
        if let Err(why) = wrong {
            layer.fail(workload, &path(), &format!("{what}: {why}"));
        }
    }
    layer.counts.add("bit flips", flips);
    layer.counts.add("other damage", other);
    let mixed = mixed_up(layer, workload, &log);
    layer.counts.add("segments mixed up", mixed);
    layer.counts.add("states", flips + other + mixed);
}

/// Every loss of segments, every pair swapped, every segment repeated under another number, and one of another volume.
fn mixed_up(layer: &Layer, workload: &Workload, log: &Log) -> usize {
    let used: Vec<&Segment> = log.segments.iter().filter(|s| !s.summary.is_empty()).collect();
    let mut tried = 0;
    let mut case = |what: String, changed: Vec<(u64, Vec<u8>)>, gone: Vec<u64>, may_be_silent: bool| {
        tried += 1;
        if !layer.wants(|| format!("damage/{what}")) {
            return;
        }
        let changed: BTreeMap<u64, Segment> = changed.into_iter().map(|(n, b)| (n, Segment::of(n, b))).collect();
        let touched: Keys = changed.keys().chain(&gone).flat_map(|n| log.lines_in(*n, &(0..u64::MAX))).collect();
        let checked = log.with(changed, &gone).and_then(|found| {
            if !found.lost.is_subset(&touched) {
                return Err("lines of untouched segments are lost".into());
            }
            let silent = !found.lost.is_empty() && found.plan.loss.is_empty();
            if silent && !may_be_silent { Err(format!("{} lines are lost silently", found.lost.len())) } else { Ok(()) }
        });
        if let Err(why) = checked {
            layer.fail(workload, &format!("damage/{what}"), &why);
        }
    };
    let newest = used.last().map_or(0, |s| s.number);
    // Nothing tells of the newest segment, nor, if it goes too, of the one before.
    for set in 1u32..1 << used.len().min(5) {
        let gone: Vec<u64> = (0..used.len().min(5)).filter(|i| set >> i & 1 == 1).map(|i| used[i].number).collect();
        let left = used.iter().map(|s| s.number).filter(|n| !gone.contains(n)).max().unwrap_or(0);
        let counts = |n: &&u64| log.void.get(n) != Some(&0);
        let silent = gone.iter().filter(counts).all(|n| *n > left) || gone.iter().all(|n| *n >= log.unproved.0);
        case(format!("gone-{set}"), vec![], gone, silent);
    }
    for (i, a) in used.iter().enumerate() {
        for b in &used[..i] {
            let swap = vec![(a.number, b.bytes.clone()), (b.number, a.bytes.clone())];
            case(format!("swapped-{}-{}", a.number, b.number), swap, vec![], false);
        }
        for under in [0, newest + 1, newest + 7] {
            if log.segment(under).is_none_or(|s| s.summary.is_empty()) {
                case(format!("{}-again-under-{under}", a.number), vec![(under, a.bytes.clone())], vec![], false);
            }
        }
    }
    if let Some(s) = used.last() {
        case(format!("foreign-{}", s.number), vec![], vec![], false);
        foreign(layer, workload, log, s);
    }
    tried
}

/// A segment of another volume stops the start, and nothing is changed.
fn foreign(layer: &Layer, workload: &Workload, log: &Log, s: &Segment) {
    let mut image = Image::default();
    for segment in &log.segments {
        let path = crate::support::dir().join(segment_name(segment.number));
        let mut content = super::content::Content::of(&segment.bytes);
        if segment.number == s.number
            && let Ok(header) = SegmentHeader::decode(&segment.bytes)
        {
            let other = SegmentHeader { volume: uuid::Uuid::from_u128(7), ..header };
            content.put(0, &other.encode(0));
            content.put(4096, &other.encode(4096));
        }
        image.files.insert(path.into(), Arc::new(content));
    }
    if !matches!(recover(options(Arc::new(image)), &mut |_, _| {}), Err(RecoverError::Foreign(..))) {
        layer.fail(workload, "damage/foreign", "a segment of another volume is taken");
    }
}
