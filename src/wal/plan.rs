//! From the scans of all segments to what recovery does: pure, so that every state of a disk can be tried.

use super::format::{
    FIRST_GROUP, FLAG_CARRIED, FLAG_SKIPPABLE, GROUP_ALIGN, GroupHeader, Kind, LogKind, RecordHead, SegmentHeader,
};
use super::group::chain_digest;
use super::record::{
    Beginning, BlocksSynced, Gap, Open, Previous, Retiring, SeriesDef, SeriesRef, TableRow, Tables, decode_control,
    decompress_body,
};
use super::replay::IsNeeded;
use super::retention::{Contents, Hold};
use super::scan::{Bytes, Damage, GroupScan, RecordScan, SegmentScan};
use super::verdict::{Finding, Part, Place, Verdict, verdict};
use crate::codec::align_up;
use crate::model::add_within;
use crate::planted::{Bug, is};
use ahash::AHashMap;
use parking_lot::Mutex;
use rayon::prelude::*;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// After damage, stream ids go on this far ahead: ids of lost records are never given again.
const ID_SKIP: u64 = 1 << 20;

/// As many LSNs may be missing in the tail: more than a write that was cut ever held. Each takes a Gap.
const MAX_UNRESOLVED: u64 = 1 << 20;

/// What the plan needs to know of one segment; small, so that a long log fits memory.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Number in the file name.
    pub number: u64,
    /// Constants; `None` if the header is unusable.
    pub header: Option<SegmentHeader>,
    /// It was prepared for use, and not used.
    is_prepared: bool,
    open: Option<Open>,
    /// Sound records that use an LSN, as merged ranges.
    lsns: Vec<Range<u64>>,
    /// Records that use an LSN and whose head holds but not the body.
    broken: Vec<(u64, Vec<TableRow>)>,
    groups: Vec<GroupSummary>,
    /// Sound records where no group header holds: where such bytes end, and the first LSN in them.
    remains: Vec<(u64, u64)>,
    /// Sound records above the largest durable LSN that the segment itself tells.
    tail: Vec<(RecordRef, Vec<TableRow>)>,
    /// Definitions of streams; a reader of many segments may drop those that it has seen.
    pub(crate) definitions: Vec<Arc<SeriesDef>>,
    gaps: Vec<Gap>,
    blocks: Vec<BlocksSynced>,
    retiring: Vec<Retiring>,
    /// Stream id → the seq after the highest in records that a header of the segment tells are durable.
    streams: Arc<AHashMap<u64, u64>>,
    /// The same of the other records: whether they count is known when the whole log is.
    undecided: Vec<RowEnd>,
    /// Sound Entries records in LSN order.
    entries: Arc<[Extent]>,
    /// Their rows, if they are not too many.
    rows: Option<Arc<EntryRows>>,
    holds: Vec<Hold>,
    /// Sound Entries records with lines that were in the log before.
    carried: Vec<RecordRef>,
    damage: Vec<Damage>,
    /// The first group is there with every record that its header counts.
    first_group_is_whole: bool,
    /// A kind of record that this program does not know and may not skip.
    pub unknown_kind: Option<u8>,
    max_stream_id: u64,
    /// Lines of sound Entries, by LSN range: (lsn, lines), merged a group.
    lines: Vec<(Range<u64>, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct GroupSummary {
    first_lsn: u64,
    start: u64,
    end: u64,
    crc: u32,
    end_lsn: u64,
    durable_lsn: u64,
    lines_before: u64,
    wall_clock: i64,
}

/// Where a record lies in its segment. A log of the smallest records has millions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub offset: u32,
    pub len: u32,
}

impl Extent {
    /// `None` if it lies above 4 GiB, where no segment reaches.
    pub fn new(offset: u64, len: u32) -> Option<Self> {
        Some(Self { offset: u32::try_from(offset).ok()?, len })
    }

    /// Where it ends.
    pub fn end(self) -> u64 {
        u64::from(self.offset) + u64::from(self.len)
    }
}

/// The sound Entries records of a segment, in LSN order.
#[derive(Clone, Debug)]
pub(super) struct SegmentEntries {
    pub header: SegmentHeader,
    pub extents: Arc<[Extent]>,
    pub rows: Option<Arc<EntryRows>>,
}

impl SegmentEntries {
    /// Those of which `is_needed` holds for a row, or all if their rows are not known.
    pub fn needed(&self, is_needed: &IsNeeded<'_>) -> Arc<[Extent]> {
        let Some(rows) = &self.rows else { return self.extents.clone() };
        let is_needed = |(n, extent): (usize, &Extent)| {
            let rows = rows.get(n);
            rows.is_none_or(|rows| rows.iter().any(|(stream, end)| is_needed(*stream, *end))).then_some(*extent)
        };
        self.extents.par_iter().enumerate().filter_map(is_needed).collect::<Vec<_>>().into()
    }
}

/// Whose lines the records of a segment hold, and how far they go: those of which nothing is needed are not read again.
#[derive(Clone, Debug, Default)]
pub(super) struct EntryRows {
    /// Stream id, and the seq after its last line in the record.
    ends: Vec<(u64, u64)>,
    /// Of each record, in LSN order, its rows.
    records: Vec<Range<u32>>,
}

impl EntryRows {
    /// Most rows of a segment that are kept, 16 bytes each, and 8 for each record: 6 MiB.
    const MOST: usize = 1 << 18;
    /// Most of all segments: 48 MiB.
    const MOST_OF_ALL: usize = 1 << 21;

    /// Takes the rows of a record; returns where they are.
    fn take(&mut self, rows: &[TableRow]) -> Range<u32> {
        let begin = self.ends.len() as u32;
        // One more than are kept tells that they are too many.
        let room = (Self::MOST + 1).saturating_sub(self.ends.len());
        self.ends.extend(rows.iter().take(room).map(|row| (row.stream, row.end_seq())));
        begin..self.ends.len() as u32
    }

    /// `None` if they are too many; `kept` counts those of all segments.
    fn of(mut self, records: Vec<Range<u32>>, kept: &AtomicUsize) -> Option<Arc<Self>> {
        let rows = self.ends.len();
        let fits = rows <= Self::MOST && add_within(kept, rows, Self::MOST_OF_ALL).is_ok();
        self.ends.shrink_to_fit();
        fits.then(|| Arc::new(Self { records, ..self }))
    }

    /// The rows of the record at this place in LSN order.
    fn get(&self, record: usize) -> Option<&[(u64, u64)]> {
        let rows = self.records.get(record)?;
        self.ends.get(rows.start as usize..rows.end as usize)
    }
}

/// A record in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordRef {
    /// Number of the segment.
    pub segment: u64,
    /// Offset in it.
    pub offset: u64,
    /// Its head.
    pub head: RecordHead,
}

/// Definitions of streams that segments have told so far: each segment defines its streams again, and what a newer one tells
/// makes that of an older one needless.
#[derive(Default)]
struct KnownSeries(Mutex<AHashMap<u64, (u64, u64)>>);

impl KnownSeries {
    /// Leaves those that no newer segment has told.
    fn fresh(&self, segment: u64, definitions: &mut Vec<SeriesRef<'_>>) {
        let mut known = self.0.lock();
        definitions.retain(|d| match known.entry(d.id) {
            Entry::Vacant(entry) => {
                entry.insert((segment, d.next_seq));
                true
            }
            Entry::Occupied(mut entry) => {
                let (newest, next_seq) = *entry.get();
                if newest <= segment && next_seq <= d.next_seq {
                    entry.insert((segment, d.next_seq));
                }
                newest <= segment || next_seq < d.next_seq
            }
        });
    }
}

/// What is told so far, by all segments that were read.
#[derive(Default)]
pub(super) struct SoFar {
    series: KnownSeries,
    /// Rows that are kept.
    rows: AtomicUsize,
}

impl Summary {
    /// A segment whose header is unusable.
    pub fn unusable(number: u64) -> Self {
        let damage = vec![Damage { bytes: 0..FIRST_GROUP, part: Part::Header }];
        Self { header: None, damage, ..Self::empty(number) }
    }

    /// A number without a segment that was ever used: its preparation, or its enlargement, has failed.
    pub fn given_up(number: u64) -> Self {
        Self::empty(number)
    }

    /// A segment that holds nothing.
    pub fn prepared(number: u64) -> Self {
        Self { is_prepared: true, ..Self::empty(number) }
    }

    fn empty(number: u64) -> Self {
        Self {
            number,
            header: None,
            is_prepared: false,
            open: None,
            lsns: Vec::new(),
            broken: Vec::new(),
            groups: Vec::new(),
            remains: Vec::new(),
            tail: Vec::new(),
            definitions: Vec::new(),
            gaps: Vec::new(),
            blocks: Vec::new(),
            retiring: Vec::new(),
            streams: Arc::default(),
            undecided: Vec::new(),
            entries: Arc::default(),
            rows: None,
            holds: Vec::new(),
            carried: Vec::new(),
            damage: Vec::new(),
            first_group_is_whole: false,
            unknown_kind: None,
            max_stream_id: 0,
            lines: Vec::new(),
        }
    }

    /// Sums a scan up. `number` is the one in the file's name, `file` are the bytes that were scanned.
    pub fn of(number: u64, scan: &SegmentScan, file: &[u8]) -> Self {
        let so_far = SoFar::default();
        let mut out = match Summing::begin(number, &scan.header, scan.bad_header.clone(), &so_far) {
            Ok(out) => out,
            Err(foreign) => return *foreign,
        };
        scan.groups.iter().for_each(|group| out.group(group, Bytes::whole(file)));
        out.end(scan.missing)
    }

    /// Holds no group and no remains of one.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.lsns.is_empty() && self.damage.is_empty()
    }

    /// Could the segment's first group be a copy of the log's tail that a crash has cut, so that the original still
    /// counts? Not if a header proves that it was synced, or if all of it is there.
    fn may_be_torn_copy(&self, durable: u64) -> bool {
        let proved = self.first_lsn().is_some_and(|first| first < durable);
        let no_copy = self.open.as_ref().is_some_and(|o| o.tail_end <= o.first_lsn);
        !proved && !self.first_group_is_whole && !no_copy
    }

    /// A segment with durable content and without anything where its first group was: zeros, which scan as nothing.
    fn lost_first_group(&self, durable: u64) -> Option<Damage> {
        // A group behind it was written only when it was durable.
        let followed = self.groups.iter().any(|g| g.start > FIRST_GROUP && g.first_lsn <= durable);
        let proved = followed || self.first_lsn().is_some_and(|first| first < durable);
        let lost = self.open.is_none() && proved;
        let bytes = FIRST_GROUP..FIRST_GROUP + GROUP_ALIGN;
        let told = self.damage.iter().any(|d| bytes.contains(&d.bytes.start));
        (lost && !told).then_some(Damage { bytes, part: Part::GroupHeader })
    }

    /// The live segments of the block log, oldest first, as far as this one knows: all of them if it is the newest, and undamaged. `None`
    /// if it has no Open.
    pub fn blocks(&self) -> Option<Vec<BlocksSynced>> {
        self.open.as_ref().map(|_| block_segments(&[self]).0.into_values().collect())
    }

    /// The oldest segment that is needed, as far as this one knows.
    fn tells_first_live(&self) -> Beginning {
        let opened = self.open.iter().map(|o| o.first_live);
        opened.chain(self.retiring.iter().map(|r| r.first_live)).max_by_key(|b| b.segment).unwrap_or_default()
    }

    /// First LSN and lines before it, by what is left of the segment.
    fn begins(&self) -> Option<Beginning> {
        let segment = self.number;
        let opened = self.open.as_ref().map(|o| Beginning { segment, lsn: o.first_lsn, lines: o.total_lines });
        let group = |g: &GroupSummary| Beginning { segment, lsn: g.first_lsn, lines: g.lines_before };
        opened.or_else(|| self.groups.first().map(group))
    }

    fn first_lsn(&self) -> Option<u64> {
        let open = self.open.as_ref().map(|o| o.first_lsn);
        let seen = self.groups.iter().map(|g| g.first_lsn).chain(self.lsns.iter().map(|r| r.start));
        open.or_else(|| seen.min())
    }
}

/// Where the lines of a stream in a record end.
#[derive(Clone, Copy, Debug)]
struct RowEnd {
    lsn: u64,
    stream: u64,
    end_seq: u64,
}

/// A summary while its segment is read.
pub(super) struct Summing<'a> {
    out: Summary,
    so_far: &'a SoFar,
    /// A pair for each row of a durable record: stream id, and the seq after its last.
    ends: Vec<(u64, u64)>,
    /// Sound Entries records, with their LSNs and rows.
    entries: Vec<(u64, Extent, Range<u32>)>,
    rows: EntryRows,
    /// What a header has told of it yet.
    durable: u64,
    any_group: bool,
    /// Is there a group header, or a record?
    something: bool,
}

impl<'a> Summing<'a> {
    /// `number` is the one in the file's name. Definitions that are known so far are left out.
    ///
    /// # Errors
    /// The file is named wrongly: then this is all that there is to say.
    pub fn begin(
        number: u64,
        header: &SegmentHeader,
        bad_header: Option<Range<u64>>,
        so_far: &'a SoFar,
    ) -> Result<Self, Box<Summary>> {
        if (header.number, header.log) != (number, LogKind::Wal) {
            let damage = vec![Damage { bytes: 0..FIRST_GROUP, part: Part::Name }];
            return Err(Box::new(Summary { damage, ..Summary::empty(number) }));
        }
        let damage = bad_header.into_iter().map(|bytes| Damage { bytes, part: Part::Header }).collect();
        let out = Summary { header: Some(*header), damage, ..Summary::empty(number) };
        let (ends, entries, rows) = (Vec::new(), Vec::new(), EntryRows::default());
        Ok(Self { out, so_far, ends, entries, rows, durable: 0, any_group: false, something: false })
    }

    /// The segment ends, `missing` bytes too early.
    pub fn end(mut self, missing: u64) -> Summary {
        let Summary { number, header, .. } = self.out;
        let recycled = header.is_some_and(|h| h.recycled);
        if missing == 0 && !self.something && (recycled || !self.any_group) {
            return Summary { header, ..Summary::prepared(number) };
        }
        if missing > 0 {
            let end = header.map_or(0, |h| h.file_len);
            self.out.damage.push(Damage { bytes: end - missing..end, part: Part::Cut });
        }
        self.out.tail.retain(|(r, _)| r.head.lsn >= self.durable);
        self.out.streams = Arc::new(highest(self.ends));
        self.entries.sort_by_key(|(lsn, ..)| *lsn);
        self.out.entries = self.entries.iter().map(|(_, extent, _)| *extent).collect();
        let records = self.entries.into_iter().map(|(.., rows)| rows).collect();
        self.out.rows = self.rows.of(records, &self.so_far.rows);
        self.out
    }

    /// What is told of all groups.
    fn noted(&mut self, group: &GroupScan) {
        if !std::mem::replace(&mut self.any_group, true) {
            let whole = |h: GroupHeader| h.records as usize == group.records.len();
            self.out.first_group_is_whole =
                group.offset == FIRST_GROUP && group.damage.is_empty() && group.header.is_some_and(whole);
        }
        self.something |= group.header.is_some() || !group.records.is_empty();
        self.durable = group.header.map_or(0, |h| h.durable_lsn).max(self.durable);
        let durable = self.out.undecided.extract_if(.., |row| row.lsn < self.durable);
        self.ends.extend(durable.map(|row| (row.stream, row.end_seq)));
        // Most of it is behind the durable end only until the next group.
        self.out.tail.retain(|(r, _)| r.head.lsn >= self.durable);
    }

    /// Takes a group in. `bytes` hold all of it.
    pub fn group(&mut self, group: &GroupScan, bytes: Bytes<'_>) {
        self.noted(group);
        let mut lines = 0;
        let mut range: Option<Range<u64>> = None;
        for record in &group.records {
            let Some(n) = self.record(record, bytes.from(record.offset)) else {
                self.out.damage.push(Damage {
                    bytes: record.offset..record.offset + u64::from(record.head.len),
                    part: Part::record(record.head.known_kind()),
                });
                continue;
            };
            if record.body_is_sound && record.head.known_kind().is_some_and(Kind::has_lsn) {
                lines += n;
                let lsn = record.head.lsn;
                range = Some(
                    range.map_or(lsn..lsn.saturating_add(1), |r| r.start.min(lsn)..r.end.max(lsn.saturating_add(1))),
                );
            }
        }
        if let (Some(range), None) = (&range, group.header) {
            self.out.remains.push((align_up(group.end, GROUP_ALIGN), range.start));
        }
        if let Some(range) = range {
            self.out.lines.push((range, lines));
        }
        self.out.damage.extend(group.damage.iter().cloned());
        if let Some(h) = group.header {
            self.out.groups.push(GroupSummary {
                first_lsn: h.first_lsn,
                start: group.offset,
                end: group.end,
                crc: group.crc,
                end_lsn: h.end_lsn(),
                durable_lsn: h.durable_lsn,
                lines_before: h.lines_before,
                wall_clock: h.wall_clock,
            });
        }
    }

    /// Takes a record in; returns its lines, or `None` if it is sound and still does not decode.
    fn record(&mut self, record: &RecordScan, bytes: &[u8]) -> Option<u64> {
        let RecordScan { offset, head, body_is_sound } = *record;
        let Some(kind) = head.known_kind() else {
            if head.flags & FLAG_SKIPPABLE == 0 {
                self.out.unknown_kind = Some(head.kind);
            }
            return Some(0);
        };
        let mut rows = Vec::new();
        if kind == Kind::Entries {
            rows = Tables::decode(head.tables(bytes, 0)).ok()?.rows;
            self.out.max_stream_id = rows.iter().map(|r| r.stream).fold(self.out.max_stream_id, u64::max);
            let end = |row: &TableRow| RowEnd { lsn: head.lsn, stream: row.stream, end_seq: row.end_seq() };
            self.out.undecided.extend(rows.iter().map(end));
        }
        if !body_is_sound {
            if kind.has_lsn() {
                self.out.broken.push((head.lsn, rows));
            }
            return Some(0);
        }
        if kind == Kind::Entries {
            let taken = self.rows.take(&rows);
            self.entries.push((head.lsn, Extent::new(offset, head.len)?, taken));
        }
        let body = head.body(bytes, 0);
        match kind {
            Kind::Open => self.out.open = self.out.open.take().or(Some(decode_control(&head, body).ok()?)),
            Kind::Series => {
                let raw = decompress_body(&head, body).ok()?;
                let mut definitions = SeriesRef::all(&raw).ok()?;
                self.out.max_stream_id = definitions.iter().map(|d| d.id).fold(self.out.max_stream_id, u64::max);
                self.so_far.series.fresh(self.out.number, &mut definitions);
                let decoded: Result<Vec<_>, _> = definitions.iter().map(|d| d.decode().map(Arc::new)).collect();
                self.out.definitions.extend(decoded.ok()?);
            }
            Kind::Gap => {
                let gap: Gap = decode_control(&head, body).ok()?;
                self.out.holds.push(Hold::Gap(gap.clone()));
                self.out.gaps.push(gap);
            }
            Kind::BlocksSynced => self.out.blocks.push(decode_control(&head, body).ok()?),
            Kind::ChunkClosed => self.out.holds.push(Hold::Closed(decode_control(&head, body).ok()?)),
            Kind::ChunkFlushed => self.out.holds.push(Hold::Flushed(decode_control(&head, body).ok()?)),
            Kind::Retiring => self.out.retiring.push(decode_control(&head, body).ok()?),
            Kind::Entries if head.flags & FLAG_CARRIED != 0 => {
                self.out.carried.push(RecordRef { segment: self.out.number, offset, head });
            }
            Kind::Entries => {}
            // Of the other log: nothing writes them here.
            Kind::Block | Kind::Footer => return None,
        }
        let lines = rows.iter().map(|r| u64::from(r.count)).sum();
        if kind.has_lsn() {
            match self.out.lsns.last_mut() {
                Some(last) if last.end == head.lsn => last.end = last.end.saturating_add(1),
                _ => self.out.lsns.push(head.lsn..head.lsn.saturating_add(1)),
            }
            if head.lsn >= self.durable {
                self.out.tail.push((RecordRef { segment: self.out.number, offset, head }, rows));
            }
        }
        Some(lines)
    }
}

/// The highest of each. Sorting them is several times faster than a map that grows.
fn highest(mut ends: Vec<(u64, u64)>) -> AHashMap<u64, u64> {
    ends.sort_unstable();
    ends.dedup_by(|later, kept| {
        let same = later.0 == kept.0;
        kept.1 = if same { later.1 } else { kept.1 };
        same
    });
    ends.into_iter().collect()
}

/// Lines that are gone although they were acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Damaged bytes: segment and range.
    pub damage: Vec<(u64, Damage)>,
    /// LSNs below the durable end that no sound record has.
    pub lsns: Vec<Range<u64>>,
    /// Lines that are nowhere else.
    pub lines: u64,
    /// Lines that the lost records had, exactly, by the totals in the group headers.
    pub logged: u64,
    /// Stream, first seq and count, where the table of a lost record survives.
    pub streams: Vec<TableRow>,
    /// Of these, stream and seqs that are nowhere else.
    pub seqs: Vec<(u64, Range<u64>)>,
    /// Segments that should be there and are not.
    pub missing_segments: Vec<u64>,
    /// Of these, the one behind all that hold something: nothing tells what it held.
    pub missing_newest: Option<u64>,
    /// Wall clock of the last group before the first lost LSN and of the first one after the last, in nanoseconds since the
    /// Unix epoch.
    pub between: Option<(i64, i64)>,
}

impl Loss {
    /// The record that settles it.
    pub fn gap(&self) -> Gap {
        Gap {
            lsns: self.lsns.iter().map(|r| (r.start, r.end)).collect(),
            seqs: self.streams.iter().map(|r| (r.stream, r.first_seq, r.end_seq())).collect(),
            lines: self.logged,
        }
    }

    /// Was anything damaged?
    pub fn is_empty(&self) -> bool {
        self.damage.is_empty() && self.lsns.is_empty() && self.missing_segments.is_empty()
    }
}

/// What recovery does.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Segments to replay, oldest first, and the LSN at which each ends (exclusive).
    pub replay: Vec<(u64, u64)>,
    /// Everything below is durable: the largest durable LSN in any valid header.
    pub durable_lsn: u64,
    /// First LSN of the log.
    pub first_lsn: u64,
    /// Log lines in the log's life before it.
    pub first_lines: u64,
    /// Records above the durable LSN that hold: they are written again.
    pub tail: Vec<RecordRef>,
    /// LSNs above the durable one with no sound record, below the end of what was found. A write that was cut before its ack, or damage
    /// to the very last group within 50 ms of its ack: the log cannot tell.
    pub unresolved: Vec<Range<u64>>,
    /// LSN and rows of unresolved records whose table survives, by LSN.
    pub unresolved_rows: Vec<(u64, TableRow)>,
    /// The LSN of the next record.
    pub next_lsn: u64,
    /// Lines of the log's life up to the durable end.
    pub lines: u64,
    /// When the newest group was written: nanoseconds since the Unix epoch.
    pub newest: Option<i64>,
    /// The next stream id.
    pub next_stream_id: u64,
    /// Every stream that any segment defines.
    pub definitions: AHashMap<u64, Arc<SeriesDef>>,
    /// Losses that were settled before.
    pub gaps: Vec<Gap>,
    /// Where the next segment's Open says that the log ended.
    pub previous: Option<Previous>,
    /// Oldest segment that is needed.
    pub first_live_segment: u64,
    /// Segments without content: zeros, or the bytes of an older segment, behind their headers.
    pub empty: Vec<SegmentHeader>,
    /// Segments that a Retiring or Open record gave up: they are removed unread.
    pub retired: Vec<u64>,
    /// The live segments of the block log, oldest first.
    pub blocks: Vec<BlocksSynced>,
    /// Segments of the block log that were given up.
    pub retired_blocks: HashSet<u64>,
    /// A decision may be lost, so segments of the block log that no record names are live too.
    pub blocks_are_uncertain: bool,
    /// Damage hides records that nothing counts: LSNs, seqs and stream ids may have been given that nothing shows any more.
    pub forgets: bool,
    /// Salts of the segments whose headers are sound.
    pub salts: HashMap<u64, u64>,
    /// What each live segment of the write-ahead log holds.
    pub contents: Vec<Contents>,
    /// The sound Entries records of each segment to replay.
    pub(super) entries: AHashMap<u64, SegmentEntries>,
    /// Entries records to apply before all others, in LSN order: what they hold may lie nowhere else.
    pub carried: Vec<RecordRef>,
    /// Damage below the durable LSN.
    pub loss: Loss,
    /// Largest segment number seen.
    pub last_segment: u64,
}

impl Plan {
    /// Stream ids may have been given that nothing shows any more.
    pub(super) fn skip_ids(&mut self) {
        self.next_stream_id = self.next_stream_id.saturating_add(ID_SKIP);
    }

    /// The live segments of the block log, and how far to read them: to the synced end that is told, or, where a newer end may have
    /// been told by a record that is lost, to the last block that holds.
    pub fn blocks_to_read(&self) -> impl Iterator<Item = BlocksSynced> {
        self.blocks
            .iter()
            .map(|b| if self.blocks_are_uncertain && b.footer == 0 { BlocksSynced { end: u64::MAX, ..*b } } else { *b })
    }

    /// Is there anything above the durable LSN?
    pub(super) fn has_tail(&self) -> bool {
        !self.tail.is_empty() || !self.unresolved.is_empty()
    }

    /// Takes a definition in; of several, the one that knows the highest seq.
    pub(crate) fn define(&mut self, definition: &Arc<SeriesDef>) {
        let known = self.definitions.entry(definition.id).or_insert_with(|| definition.clone());
        if known.next_seq < definition.next_seq {
            *known = definition.clone();
        }
        self.next_stream_id = self.next_stream_id.max(definition.id.saturating_add(1));
    }

    /// The records of a segment that are applied, in LSN order: sound Entries below the segment's end, and its part
    /// of the tail.
    pub fn records(&self, number: u64, scan: &SegmentScan) -> Vec<RecordRef> {
        let listed = self.replay.iter().find(|(n, _)| *n == number && scan.header.number == number);
        let end = listed.map_or(0, |(_, end)| (*end).min(self.durable_lsn));
        let tail: HashSet<u64> = self.tail.iter().filter(|r| r.segment == number).map(|r| r.offset).collect();
        let records = scan.groups.iter().flat_map(|g| g.records.iter());
        let sound = records.filter(|r| r.body_is_sound && r.head.known_kind() == Some(Kind::Entries));
        let wanted = sound.filter(|r| r.head.lsn < end || tail.contains(&r.offset));
        let mut out: Vec<RecordRef> =
            wanted.map(|r| RecordRef { segment: number, offset: r.offset, head: r.head }).collect();
        out.sort_by_key(|r| r.head.lsn);
        out
    }
}

/// Makes the plan from the summaries of all segments, in the order of their numbers.
pub fn plan(summaries: &[Summary]) -> Plan {
    plan_with(summaries, &[])
}

/// As [`plan`], with definitions of streams that were found elsewhere.
pub(super) fn plan_with(summaries: &[Summary], elsewhere: &[Arc<SeriesDef>]) -> Plan {
    let mut out = Plan { last_segment: summaries.last().map_or(0, |s| s.number), ..Plan::default() };
    out.salts = summaries.iter().filter_map(|s| Some((s.number, s.header?.salt))).collect();
    out.empty = summaries.iter().filter(|s| s.is_empty()).filter_map(|s| s.header).collect();
    let told_begin = summaries.iter().map(Summary::tells_first_live).max_by_key(|b| b.segment).unwrap_or_default();
    let first_live = told_begin.segment;
    out.retired = summaries.iter().filter(|s| !s.is_empty() && s.number < first_live).map(|s| s.number).collect();
    let used: Vec<&Summary> = summaries.iter().filter(|s| !s.is_empty() && s.number >= first_live).collect();
    // What a valid header says of the log before it is true, also when the group itself is void.
    let told = used.iter().flat_map(|s| &s.groups).map(|g| g.durable_lsn);
    let opened = used.iter().filter_map(|s| s.open.as_ref()).filter_map(|o| o.previous).map(|p| p.end_lsn);
    out.durable_lsn = told.chain(opened).max().unwrap_or(0);
    let live = bounds(&used, out.durable_lsn, first_live, &mut out.loss);
    let opened = used.iter().rev().find_map(|s| Some((s.number, s.open.as_ref()?.first_lsn)));
    let judge = Judge { durable: out.durable_lsn, newest_open: opened, told_begin };
    out.first_live_segment = live.first().map_or(0, |l| l.summary.number);
    out.first_lsn = live.first().and_then(|l| l.summary.first_lsn()).unwrap_or(out.durable_lsn);
    for l in &live {
        out.replay.push((l.summary.number, l.lsn_end));
        if let Some(header) = l.summary.header {
            let (extents, rows) = (l.summary.entries.clone(), l.summary.rows.clone());
            let entries = SegmentEntries { header, extents, rows };
            out.entries.insert(l.summary.number, entries);
        }
        if (is(Bug::LaterSegmentsDropped) || is(Bug::DamageSilent)) && !l.summary.damage.is_empty() {
            break;
        }
    }
    // The newest first: those of older segments know less, and are not copied.
    elsewhere
        .iter()
        .rev()
        .chain(used.iter().rev().flat_map(|s| s.definitions.iter().rev()))
        .for_each(|d| out.define(d));
    find_tail(&live, &mut out);
    out.loss.missing_newest = missing_newest(summaries);
    out.loss.missing_segments.extend(out.loss.missing_newest);
    find_losses(&live, &judge, &mut out);
    settle_ends(&used, &live, &mut out);
    find_decisions(&used, &live, &mut out);
    if is(Bug::LossNotTold) || is(Bug::DamageSilent) {
        out.loss = Loss::default();
    }
    out
}

/// The first number behind the newest segment with content that has no file, while a prepared segment behind it has one: they are prepared,
/// and used, in the order of their numbers, and none is left out.
fn missing_newest(summaries: &[Summary]) -> Option<u64> {
    let newest = summaries.iter().filter(|s| !s.is_empty()).map(|s| s.number).max().unwrap_or(0);
    let behind = || summaries.iter().filter(|s| s.number > newest);
    let last = behind().filter(|s| s.is_prepared).map(|s| s.number).max()?;
    let known: HashSet<u64> = behind().map(|s| s.number).collect();
    // As many numbers as there are files, and one more, hold one without.
    let missing = (newest + 1..last).take(known.len() + 1).find(|n| !known.contains(n));
    missing.filter(|_| !is(Bug::DamageSilent))
}

/// The live segments of the block log, by number, and those that were given up, as these summaries tell.
fn block_segments(used: &[&Summary]) -> (BTreeMap<u64, BlocksSynced>, HashSet<u64>) {
    let mut ends: BTreeMap<u64, BlocksSynced> = BTreeMap::new();
    for summary in used {
        // An Open lists all that live, so what it does not list has gone before it.
        if let Some(open) = &summary.open {
            ends = open.blocks.iter().map(|b| (b.segment, *b)).collect();
        }
        for synced in &summary.blocks {
            let known = ends.entry(synced.segment).or_insert(*synced);
            if known.end < synced.end {
                *known = *synced;
            }
        }
    }
    let retired = used.iter().flat_map(|s| &s.retiring).flat_map(|r| r.blocks.iter().copied()).collect();
    ends.retain(|number, _| !HashSet::contains(&retired, number));
    (ends, retired)
}

/// What was decided about both logs. A decision was true when it was written, so one that lies in void bytes counts too.
fn find_decisions(used: &[&Summary], live: &[Live<'_>], out: &mut Plan) {
    let (ends, retired) = block_segments(used);
    out.retired_blocks = retired;
    out.blocks = ends.into_values().collect();
    // A write-ahead log that holds nothing is no proof that there are no blocks: it may be the wrong directory.
    out.blocks_are_uncertain = out.forgets || live.is_empty();
    let mut begins = Beginning { segment: 0, lsn: out.first_lsn, lines: out.first_lines };
    for l in live {
        let s = l.summary;
        begins = Beginning { segment: s.number, ..s.begins().unwrap_or(begins) };
        out.contents.push(Contents {
            begins,
            file_len: s.header.map_or(0, |h| h.file_len),
            end: l.proved_end(out.durable_lsn),
            streams: l.streams(out),
            holds: s.holds.clone(),
        });
        let counts = |r: &&RecordRef| r.head.lsn < l.lsn_end.min(out.durable_lsn) || out.tail.contains(r);
        out.carried.extend(s.carried.iter().filter(counts));
    }
    out.carried.sort_by_key(|r| r.head.lsn);
}

/// A segment and where its content ends.
struct Live<'a> {
    summary: &'a Summary,
    /// Records from this LSN on are void.
    lsn_end: u64,
    /// Bytes from here on are void.
    byte_end: u64,
}

impl Live<'_> {
    /// What lies before this offset was synced: a group that begins at the durable end proves the bytes before it.
    fn proved_end(&self, durable: u64) -> u64 {
        let proved = self.groups().filter(|g| g.first_lsn <= durable);
        proved.map(|g| if g.end_lsn <= durable { g.end } else { g.start }).max().unwrap_or(0)
    }

    /// The streams of its records that count. With the others, which are never applied, the segment would be needed for ever.
    fn streams(&self, plan: &Plan) -> Arc<AHashMap<u64, u64>> {
        let mut streams = self.summary.streams.clone();
        let end = self.lsn_end.min(plan.durable_lsn);
        let tail = plan.tail.iter().filter(|r| r.segment == self.summary.number);
        let tail: HashSet<u64> = tail.map(|r| r.head.lsn).collect();
        let counts = |row: &&RowEnd| row.lsn < end || tail.contains(&row.lsn);
        for row in self.summary.undecided.iter().filter(counts) {
            let known = Arc::make_mut(&mut streams).entry(row.stream).or_default();
            *known = row.end_seq.max(*known);
        }
        streams
    }

    /// Where these bytes lie, in the words of the decision table.
    fn place(&self, at: u64, proved_end: u64) -> Place {
        if self.summary.header.is_some() && at >= self.byte_end {
            Place::Void
        } else if self.summary.header.is_none() || self.byte_end < u64::MAX || at < proved_end {
            Place::Durable
        } else {
            Place::Last
        }
    }

    /// Where its durable content ends, if it has any. Without a header that holds, records tell: left out here, they would be
    /// void at the next start.
    fn ends_at(&self, durable: u64) -> Option<Previous> {
        let groups = || self.groups().filter(|g| g.end_lsn <= durable);
        let remains = self.summary.remains.iter().filter(|(end, first)| *end <= self.byte_end && *first < durable);
        let end_offset = groups().map(|g| g.end).chain(remains.map(|(end, _)| *end)).max()?;
        let digest = groups().fold(0, |digest, g| chain_digest(digest, g.crc));
        Some(Previous { segment: self.summary.number, end_offset, end_lsn: durable.min(self.lsn_end), digest })
    }

    fn groups(&self) -> impl Iterator<Item = &GroupSummary> {
        self.summary.groups.iter().filter(|g| g.end <= self.byte_end)
    }
}

/// Goes from the newest segment to the oldest: each Open tells where the log ended before it, and what lies between is
/// void. Without a readable Open, the first LSN of the newer segment ends the older one. A first group that may be a
/// torn copy of the older segments' tail ends nothing.
fn bounds<'a>(used: &[&'a Summary], durable: u64, first_live: u64, loss: &mut Loss) -> Vec<Live<'a>> {
    let mut live = Vec::new();
    let (mut lsn_end, mut byte_end) = (u64::MAX, u64::MAX);
    let mut wanted: Option<u64> = None;
    for summary in used.iter().rev() {
        if let Some(number) = wanted {
            if summary.number > number {
                continue;
            }
            if summary.number < number {
                loss.missing_segments.push(number);
                byte_end = u64::MAX;
            }
        }
        if is(Bug::VoidBytesCount) {
            (lsn_end, byte_end) = (u64::MAX, u64::MAX);
        }
        live.push(Live { summary, lsn_end, byte_end });
        if summary.may_be_torn_copy(durable) {
            (wanted, byte_end) = (None, u64::MAX);
            continue;
        }
        match &summary.open {
            Some(Open { previous: Some(p), .. }) => {
                (wanted, byte_end, lsn_end) = (Some(p.segment), p.end_offset, p.end_lsn.min(lsn_end));
            }
            Some(Open { previous: None, .. }) => {
                wanted = None;
                break;
            }
            None => {
                (wanted, byte_end) = (None, u64::MAX);
                lsn_end = summary.first_lsn().unwrap_or(lsn_end).min(lsn_end);
            }
        }
    }
    if let Some(number) = wanted.filter(|number| *number >= first_live) {
        loss.missing_segments.push(number);
    }
    live.reverse();
    live
}

fn find_tail(live: &[Live<'_>], out: &mut Plan) {
    let durable = out.durable_lsn;
    // Above the durable LSN, a definition that is missing was torn with its group: nobody was told of these lines, and
    // kept they would be lines without labels for ever.
    let is_defined = |rows: &[TableRow]| rows.iter().all(|row| out.definitions.contains_key(&row.stream));
    let mut tail: BTreeMap<u64, (RecordRef, &[TableRow])> = BTreeMap::new();
    let mut broken: BTreeMap<u64, &[TableRow]> = BTreeMap::new();
    for l in live {
        let above = |lsn: u64| lsn >= durable && lsn < l.lsn_end;
        for (record, rows) in l.summary.tail.iter().filter(|(r, _)| above(r.head.lsn)) {
            if !is_defined(rows) {
                broken.insert(record.head.lsn, rows);
                continue;
            }
            let older = tail.get(&record.head.lsn);
            // A copy adds nothing; the original keeps the order of the segments.
            if !older.is_some_and(|(o, r)| *r == &rows[..] && is_copy(&o.head, &record.head)) {
                tail.insert(record.head.lsn, (*record, rows));
            }
        }
        broken.extend(l.summary.broken.iter().filter(|(lsn, _)| above(*lsn)).map(|(lsn, rows)| (*lsn, &rows[..])));
    }
    let beyond = tail.keys().zip(0u64..).find(|(lsn, n)| **lsn - durable - n > MAX_UNRESOLVED).map(|(lsn, _)| *lsn);
    let beyond = beyond.map(|lsn| tail.split_off(&lsn)).unwrap_or_default();
    broken.extend(beyond.into_iter().map(|(lsn, (_, rows))| (lsn, rows)));
    let told_end = live.iter().flat_map(|l| l.groups().map(move |g| g.end_lsn.min(l.lsn_end))).max().unwrap_or(durable);
    let kept_end = tail.last_key_value().map_or(durable, |(lsn, _)| lsn.saturating_add(1));
    let seen_end = kept_end.max(told_end).max(broken.last_key_value().map_or(0, |(lsn, _)| lsn.saturating_add(1)));
    out.unresolved = missing(durable..seen_end, tail.keys().map(|lsn| *lsn..lsn.saturating_add(1)));
    let lost = broken.iter().filter(|(lsn, _)| !tail.contains_key(lsn));
    out.unresolved_rows = lost.flat_map(|(lsn, rows)| rows.iter().map(|row| (*lsn, *row))).collect();
    out.tail = tail.into_values().map(|(record, _)| record).collect();
    // What was never found needs no LSN: the next record takes it.
    out.next_lsn = kept_end.max(durable);
}

fn is_copy(a: &RecordHead, b: &RecordHead) -> bool {
    (a.kind, a.len, a.body_crc) == (b.kind, b.len, b.body_crc)
}

/// Judges damage by the decision table.
struct Judge {
    /// Everything below was synced.
    durable: u64,
    /// The newest segment with a sound Open, and its first LSN: it names all files that were needed then.
    newest_open: Option<(u64, u64)>,
    /// Where the log begins, by the newest Open or Retiring.
    told_begin: Beginning,
}

impl Judge {
    fn part(&self, part: Part, segment: u64, place: Place) -> Verdict {
        verdict(part, place, self.newest_open.is_some_and(|(open, _)| segment < open), false)
    }

    /// What does not hold in a segment, with what follows.
    fn segment<'a>(&self, l: &'a Live<'_>) -> impl Iterator<Item = (Damage, Verdict)> + use<'a, '_> {
        let proved_end = l.proved_end(self.durable);
        let headless = l.summary.lost_first_group(self.durable);
        headless.into_iter().chain(l.summary.damage.iter().cloned()).map(move |d| {
            let place = l.place(d.bytes.start, proved_end);
            let judged = match (d.part, l.summary.header) {
                // The other copy of the header.
                (Part::Header, Some(_)) => verdict(Part::Header, place, true, false),
                (part, _) => self.part(part, l.summary.number, place),
            };
            (d, judged)
        })
    }

    /// Records behind the newest Open that nothing shows, not even damaged bytes: zeros may hide a group.
    fn hidden(&self, lsns: &[Range<u64>], broken: &HashSet<u64>) -> bool {
        let newer = lsns.iter().flat_map(Range::clone).any(|lsn| !broken.contains(&lsn));
        newer && verdict(Part::GroupHeader, Place::Durable, false, false).every_file
    }
}

fn find_losses(live: &[Live<'_>], judge: &Judge, out: &mut Plan) {
    let durable = out.durable_lsn;
    let mut known_broken = HashSet::new();
    let mut covered: Vec<Range<u64>> = Vec::new();
    let mut surviving_lines = 0;
    out.gaps = live.iter().flat_map(|l| l.summary.gaps.iter().cloned()).collect();
    let is_settled = |lsn: u64| out.gaps.iter().flat_map(|g| &g.lsns).any(|(first, end)| (*first..*end).contains(&lsn));
    for l in live {
        let end = l.lsn_end.min(durable);
        covered.extend(l.summary.lsns.iter().map(|r| r.start..r.end.min(end)).filter(|r| !r.is_empty()));
        let in_bounds = l.summary.lines.iter().filter(|(r, _)| r.start < end);
        surviving_lines = in_bounds.map(|(_, n)| *n).fold(surviving_lines, u64::saturating_add);
        for (d, judged) in judge.segment(l).filter(|(_, judged)| judged.finding == Finding::Damage) {
            out.forgets |= judged.every_file;
            out.loss.damage.push((l.summary.number, d));
        }
        let broken = l.summary.broken.iter().filter(|(lsn, _)| *lsn < end);
        known_broken.extend(broken.clone().map(|(lsn, _)| *lsn));
        // What a Gap has settled was told and counted: its rows say nothing of what is lost beside it.
        let new = broken.filter(|(lsn, _)| !is_settled(*lsn));
        out.loss.streams.extend(new.flat_map(|(_, rows)| rows.iter().copied()));
    }
    covered.extend(out.gaps.iter().flat_map(|g| g.lsns.iter().map(|(a, b)| *a..*b)));
    covered.sort_by_key(|r| r.start);
    let missing_file = |n: &u64| judge.part(Part::Missing, *n, Place::Durable).every_file;
    out.forgets |= out.loss.missing_segments.iter().any(missing_file);
    let newest = judge.newest_open.map_or(out.first_lsn, |(_, first)| first);
    out.forgets |= judge.hidden(&missing(newest..durable, covered.iter().cloned()), &known_broken);
    let seen = live.first().and_then(|l| l.summary.begins()).map_or(0, |b| b.lines);
    (out.first_lsn, out.first_lines) = match judge.told_begin {
        // A Retiring that moved it may be lost: what it gave up is not missed.
        b if b.segment > 0 && b.lsn <= out.first_lsn && !out.forgets => (b.lsn, b.lines),
        _ => (out.first_lsn, seen),
    };
    out.loss.lsns = missing(out.first_lsn..durable, covered.into_iter());
    let start_lines = out.first_lines;
    // Nothing but a checksum speaks for what a header tells: no sum may wrap around.
    out.lines = total_lines(live, durable).max(start_lines.saturating_add(surviving_lines));
    out.newest = live.iter().flat_map(Live::groups).max_by_key(|g| g.first_lsn).map(|g| g.wall_clock);
    if let (Some(first), Some(last)) = (out.loss.lsns.first(), out.loss.lsns.last()) {
        let groups = || live.iter().flat_map(Live::groups);
        let before = groups().filter(|g| g.end_lsn <= first.start).map(|g| g.wall_clock).max();
        let after = groups().filter(|g| g.first_lsn >= last.end).map(|g| g.wall_clock).min();
        let either = before.or(after);
        out.loss.between = either.map(|e| (before.unwrap_or(e), after.unwrap_or(e)));
        // What a Gap has settled is lost for good, and was told.
        let settled = out.gaps.iter().filter(|g| g.lsns.first().is_none_or(|(first, _)| *first >= out.first_lsn));
        let settled = settled.map(|g| g.lines).fold(surviving_lines, u64::saturating_add);
        out.loss.logged = (out.lines - start_lines).saturating_sub(settled);
        out.loss.lines = out.loss.logged;
        out.loss.seqs = out.loss.streams.iter().map(|r| (r.stream, r.first_seq..r.end_seq())).collect();
    }
}

/// Lines up to the durable end: the newest header that does not lie above it tells them.
fn total_lines(live: &[Live<'_>], durable: u64) -> u64 {
    let groups = live.iter().flat_map(Live::groups);
    let told = groups.filter(|g| g.first_lsn <= durable).map(|g| g.lines_before);
    let opened = live.iter().filter_map(|l| l.summary.open.as_ref()).filter(|o| o.first_lsn <= durable);
    told.chain(opened.map(|o| o.total_lines)).max().unwrap_or(0)
}

fn settle_ends(used: &[&Summary], live: &[Live<'_>], out: &mut Plan) {
    let seen = used.iter().map(|s| s.max_stream_id.saturating_add(1));
    let told = used.iter().filter_map(|s| s.open.as_ref()).map(|o| o.next_stream_id);
    out.next_stream_id = seen.chain(told).max().unwrap_or(1).max(1);
    if !out.loss.lsns.is_empty() || out.forgets {
        out.skip_ids();
    }
    let durable = out.durable_lsn;
    out.previous = live.iter().rev().find_map(|l| l.ends_at(durable));
}

/// The parts of `whole` that none of the ranges, sorted by start, covers.
fn missing(whole: Range<u64>, covered: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut out = Vec::new();
    let mut at = whole.start;
    for range in covered {
        // A Gap may lie behind the durable end.
        if at >= whole.end {
            return out;
        }
        if range.start > at {
            out.push(at..range.start.min(whole.end));
        }
        at = at.max(range.end);
    }
    if at < whole.end {
        out.push(at..whole.end);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::File;
    use crate::wal::scan::{Window, read_groups, read_start};
    use crate::wal::{scan_segment, segment_number};
    use std::io;
    use std::path::Path;

    #[test]
    fn nothing_is_missing_where_nothing_is_asked() {
        let of = |whole, covered: &[Range<u64>]| missing(whole, covered.iter().cloned());
        assert_eq!(of(0..10, &[2..4, 3..5, 8..20]), [0..2, 5..8]);
        assert_eq!(of(3..20, &[0..4, 6..7, 30..31]), [4..6, 7..20]);
        assert_eq!(of(0..5, &[]).into_iter().map(|r| (r.start, r.end)).collect::<Vec<_>>(), [(0, 5)]);
        // A Gap behind the durable end, where nothing is durable, and where all below is there.
        assert_eq!(of(0..0, std::slice::from_ref(&(1..2))), []);
        assert_eq!(of(0..2, &[0..2, 5..6]), []);
    }

    #[test]
    fn rows_are_kept_up_to_a_bound() {
        let row = |stream| TableRow { stream, first_seq: 5, count: 2, part_len: 0 };
        let kept = AtomicUsize::new(0);
        let of = |counts: &[u64]| {
            let mut rows = EntryRows::default();
            let mut records: Vec<_> = counts.iter().map(|n| rows.take(&(0..*n).map(row).collect::<Vec<_>>())).collect();
            // They lie in the file in another order than that of their LSNs.
            records.reverse();
            rows.of(records, &kept)
        };
        let most = EntryRows::MOST as u64;
        let rows = of(&[most - 3, 0, 2, 1]).unwrap();
        assert_eq!(rows.get(0), Some(&[(0, 7)][..]));
        assert_eq!(rows.get(1), Some(&[(0, 7), (1, 7)][..]));
        assert_eq!(rows.get(2), Some(&[][..]));
        assert_eq!(rows.get(3).map(<[_]>::len), Some(EntryRows::MOST - 3));
        assert_eq!(rows.get(4), None);
        assert!(of(&[most - 3, 0, 2, 2]).is_none());
        assert!(of(&[3, most + 100, 7]).is_none());
        // And those of all segments: of the first one above, seven more, and what is left.
        for _ in 1..EntryRows::MOST_OF_ALL / EntryRows::MOST {
            assert!(of(&[most]).is_some());
        }
        assert!(of(&[1]).is_none());
        assert!(of(&[0]).is_some());
    }

    struct Memory<'a>(&'a [u8]);

    impl File for Memory<'_> {
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
            let from = self.0.get(offset as usize..).unwrap_or_default();
            // Short, as a file may do.
            let len = from.len().min(buffer.len()).min(5000);
            buffer[..len].copy_from_slice(&from[..len]);
            Ok(len)
        }
        fn len(&self) -> io::Result<u64> {
            Ok(self.0.len() as u64)
        }
        fn write_at(&self, _: u64, _: &[u8]) -> io::Result<usize> {
            unreachable!()
        }
        fn sync_data(&self) -> io::Result<()> {
            unreachable!()
        }
        fn allocate(&self, _: u64) -> io::Result<()> {
            unreachable!()
        }
        fn drop_cache(&self) -> io::Result<()> {
            unreachable!()
        }
    }

    fn shown(mut summary: Summary) -> String {
        let streams: BTreeMap<u64, u64> =
            std::mem::take(&mut summary.streams).iter().map(|(id, end)| (*id, *end)).collect();
        format!("{summary:?} {streams:?}")
    }

    fn in_pieces(number: u64, file: &[u8]) -> String {
        let (mut window, so_far) = (Window::default(), SoFar::default());
        let start = match read_start(&Memory(file), &mut window).unwrap() {
            Ok(start) => start,
            Err(e) => return format!("{e:?}"),
        };
        let mut summing = match Summing::begin(number, &start.header, start.bad_header.clone(), &so_far) {
            Ok(summing) => summing,
            Err(foreign) => return shown(*foreign),
        };
        read_groups(&Memory(file), &mut window, &start, &mut |group, bytes| summing.group(&group, bytes)).unwrap();
        shown(summing.end(start.missing))
    }

    fn at_once(number: u64, file: &[u8]) -> String {
        scan_segment(file).map_or_else(|e| format!("{e:?}"), |scan| shown(Summary::of(number, &scan, file)))
    }

    /// Pieces are far smaller than these files, and many groups lie across their borders.
    #[test]
    fn a_file_read_in_pieces_says_the_same() {
        let mut files = Vec::new();
        for dir in ["v1", "v1-blocks"] {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/golden").join(dir).join("wal");
            for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
                let number = segment_number(&entry.file_name().into_string().unwrap()).unwrap();
                files.push((number, std::fs::read(entry.path()).unwrap()));
            }
        }
        assert!(files.len() > 10);
        let mut different = HashSet::new();
        for (n, (number, whole)) in files.iter().enumerate() {
            let mut check = |what: &str, file: &[u8]| {
                let expected = at_once(*number, file);
                assert_eq!(in_pieces(*number, file), expected, "{what} of segment {number}");
                different.insert(expected);
            };
            check("all", whole);
            check("a longer file", &[&whole[..], &[1; 5000]].concat());
            (0..whole.len()).step_by(512).for_each(|len| check(&format!("{len} bytes"), &whole[..len]));
            let (_, other) = &files[(n + 1) % files.len()];
            for page in (0..whole.len()).step_by(4096) {
                let mut file = whole.clone();
                file[page..page + 4096].fill(0);
                check(&format!("without the page at {page}"), &file);
                file[page..page + 4096].copy_from_slice(&other[page..page + 4096]);
                check(&format!("with another page at {page}"), &file);
            }
            let mut file = whole.clone();
            for at in (n % 37..whole.len()).step_by(37) {
                let byte = std::mem::replace(&mut file[at], !whole[at]);
                check(&format!("byte {at} changed"), &file);
                file[at] = byte;
            }
        }
        assert!(different.len() > 1000, "{} kinds of damage", different.len());
    }
}
