//! Reading a log that a server may be writing at the same moment.
//!
//! No lock is taken and nothing is written. What makes this safe is order: the log is only ever appended to, so
//! whoever sees a valid group header finds everything before it in place. The newest segment with content is looked
//! for first and the end of its last valid group is noted (the *cut*). Only then are the segments read, oldest first,
//! and groups that came behind the cut meanwhile are left out. So a group is never seen without those before it.
//! The group at the cut may be half written; it lies above the durable end, where nothing is damage.

use super::blocks::{self, Blocks};
use super::cli::Dirs;
use super::error::InspectError;
use super::progress::Progress;
use crate::fs::{Fs, Map, RealFs};
use crate::wal::format::{FIRST_GROUP, FLAG_SKIPPABLE, HeaderError, Kind};
use crate::wal::{
    Damage, GroupScan, LogKind, Plan, RecordScan, SegmentScan, SeriesDef, Summary, Tables, file_number, plan,
    scan_segment, segment_name, segment_number,
};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// Most bytes of a segment: `ingester.wal.segment_size` ends here, and no record needs more.
const MAX_SEGMENT_LEN: u64 = 1 << 30;
/// A log in which segments vanish, or that changes while damage is seen, is read at most this many times.
const ATTEMPTS: u32 = 5;

/// A segment file as it was listed.
#[derive(Clone, Debug)]
pub struct SegmentFile {
    /// Number, from the file name.
    pub number: u64,
    /// Bytes.
    pub len: u64,
    /// What it held when the log was listed.
    pub content: Content,
}

impl SegmentFile {
    /// File name.
    pub fn name(&self) -> String {
        segment_name(self.number)
    }
}

/// What a segment held when the log was listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A valid header and nothing behind it but zeros or the bytes of a retired segment: prepared for use.
    Prepared,
    /// The newest segment with content: valid groups at or behind this offset came later and are left out.
    Newest(u64),
    /// Older than the newest, so nobody writes to it.
    Full,
}

/// The files of a log.
#[derive(Clone, Debug)]
pub struct Log {
    /// Directory of the segments.
    pub dir: PathBuf,
    /// Segments by number.
    pub segments: Vec<SegmentFile>,
    /// Segments that are being prepared: name and bytes.
    pub unfinished: Vec<(String, u64)>,
    /// Identity of the data directory, from the newest usable segment.
    pub volume: Option<Uuid>,
    /// Directory of the block log.
    pub blocks_dir: PathBuf,
    /// It is there.
    pub has_blocks_dir: bool,
    /// Segments of the block log by number, with their bytes.
    pub block_files: Vec<(u64, u64)>,
    /// What the directories were found by.
    dirs: Dirs,
}

impl Log {
    /// Lists the log of a data directory, or of the directory of the segments itself.
    ///
    /// # Errors
    /// The directory cannot be read or holds no log; a segment is of a newer version.
    pub fn open(dirs: &Dirs) -> Result<Self, InspectError> {
        let (dir, blocks_dir) = locate(dirs)?;
        let mut log = Self {
            segments: Vec::new(),
            unfinished: Vec::new(),
            volume: None,
            dir,
            blocks_dir,
            has_blocks_dir: false,
            block_files: Vec::new(),
            dirs: dirs.clone(),
        };
        // Before the write-ahead log, whose newest record tells of what was retired: a file that vanishes meanwhile is known.
        log.list_blocks()?;
        for entry in RealFs.list(&log.dir).map_err(InspectError::io("list", &log.dir))? {
            if let Some(number) = segment_number(&entry.name) {
                log.segments.push(SegmentFile { number, len: entry.len, content: Content::Full });
            } else if entry.name.ends_with(".wal.tmp") {
                log.unfinished.push((entry.name, entry.len));
            }
        }
        log.segments.sort_by_key(|s| s.number);
        log.find_newest()?;
        Ok(log)
    }

    fn list_blocks(&mut self) -> Result<(), InspectError> {
        let entries = match RealFs.list(&self.blocks_dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.dirs.blocks_dir.is_none() => return Ok(()),
            listed => listed.map_err(InspectError::io("list", &self.blocks_dir))?,
        };
        self.has_blocks_dir = true;
        for entry in entries {
            if let Some(number) = file_number(LogKind::Blocks, &entry.name) {
                self.block_files.push((number, entry.len));
            } else if entry.name.ends_with(".blk.tmp") {
                self.unfinished.push((entry.name, entry.len));
            }
        }
        self.block_files.sort_unstable();
        Ok(())
    }

    /// Goes from the newest file to the newest segment with content. A segment that is seen empty here is empty for
    /// this run.
    fn find_newest(&mut self) -> Result<(), InspectError> {
        for segment in self.segments.iter_mut().rev() {
            let Some(file) = read_file(&self.dir, segment.number)? else { continue };
            match scan_segment(&file) {
                Ok(scan) => {
                    segment.content = content(&scan);
                    self.volume.get_or_insert(scan.header.volume);
                }
                Err(HeaderError::Version(version)) => {
                    return Err(InspectError::Version { segment: segment.name(), version });
                }
                // Nothing in it can be proved, so it does not end the search.
                Err(HeaderError::NotASegment | HeaderError::Damaged) => continue,
            }
            if segment.content != Content::Prepared {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Numbers without a segment that was ever used: an empty file has the name of its preparation.
    fn given_up(&self) -> impl Iterator<Item = u64> {
        let empty = self.unfinished.iter().filter(|(_, len)| *len == 0);
        empty.filter_map(|(name, _)| segment_number(name.strip_suffix(".tmp")?))
    }

    /// Was anything appended, added or removed since the log was listed?
    ///
    /// # Errors
    /// As [`Log::open`].
    pub fn changed(&self) -> Result<bool, InspectError> {
        let now = Self::open(&self.dirs)?;
        let state = |log: &Self| log.segments.iter().map(|s| (s.number, s.content)).collect::<Vec<_>>();
        Ok(state(self) != state(&now))
    }

    /// Bytes that a reader of all segments with content goes through.
    fn bytes(&self) -> u64 {
        self.segments.iter().filter(|s| s.content != Content::Prepared).map(|s| s.len).sum()
    }

    /// Reads and scans a segment; `None` if it was removed or recycled.
    fn read(&self, segment: &SegmentFile) -> Result<Option<ReadSegment>, InspectError> {
        let Some(file) = read_file(&self.dir, segment.number)? else { return Ok(None) };
        let scan = match scan_segment(&file) {
            Ok(mut scan) => {
                leave_old_bytes(&mut scan);
                if let Content::Newest(cut) = segment.content {
                    let late = scan.groups.iter().position(|g| g.header.is_some() && g.offset >= cut);
                    scan.groups.truncate(late.unwrap_or(usize::MAX));
                }
                Ok(scan)
            }
            Err(HeaderError::Version(version)) => {
                return Err(InspectError::Version { segment: segment.name(), version });
            }
            Err(error) => Err(error),
        };
        Ok(Some(ReadSegment { file, scan }))
    }
}

/// A segment's bytes and what they hold.
struct ReadSegment {
    file: Vec<u8>,
    scan: Result<SegmentScan, HeaderError>,
}

/// In a segment that was used before, bytes behind the last group and record are those of the old one.
fn leave_old_bytes(scan: &mut SegmentScan) {
    let old = |g: &GroupScan| g.header.is_none() && g.records.is_empty();
    while scan.header.recycled && scan.groups.last().is_some_and(old) {
        scan.groups.pop();
    }
}

/// The directories of both logs: as given, else where a data directory has them.
fn locate(dirs: &Dirs) -> Result<(PathBuf, PathBuf), InspectError> {
    let (wal, beside) = match &dirs.wal_dir {
        Some(wal) if holds_log(wal)? => (wal.clone(), dirs.dir.clone()),
        Some(wal) => return Err(InspectError::NoLog(wal.clone())),
        None => locate_wal(&dirs.dir)?,
    };
    Ok((wal, dirs.blocks_dir.clone().unwrap_or_else(|| beside.join("blocks"))))
}

/// The directory of the write-ahead log, and the one that it lies in.
fn locate_wal(dir: &Path) -> Result<(PathBuf, PathBuf), InspectError> {
    let wal = dir.join("wal");
    match std::fs::metadata(&wal) {
        Ok(metadata) if metadata.is_dir() => return Ok((wal, dir.to_path_buf())),
        Err(e) if e.kind() != io::ErrorKind::NotFound && e.kind() != io::ErrorKind::NotADirectory => {
            return Err(InspectError::io("open", &wal)(e));
        }
        _ => {}
    }
    if holds_log(dir)? { Ok((dir.to_path_buf(), dir.join(".."))) } else { Err(InspectError::NoLog(dir.into())) }
}

fn holds_log(dir: &Path) -> Result<bool, InspectError> {
    let entries = RealFs.list(dir).map_err(InspectError::io("list", dir))?;
    Ok(entries.iter().any(|e| segment_number(&e.name).is_some() || e.name.ends_with(".wal.tmp")))
}

/// A segment's bytes as they were under its name; `None` if it was removed or recycled.
/// A file that is longer than any segment is none, as for the server: not a byte of it is read.
fn read_file(dir: &Path, number: u64) -> Result<Option<Vec<u8>>, InspectError> {
    let path = dir.join(segment_name(number));
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.len() > MAX_SEGMENT_LEN => Ok(Some(Vec::new())),
        _ => read_path(&path),
    }
}

/// The bytes of a file as they were while it had this name; `None` if it has lost the name.
pub(super) fn read_path(path: &Path) -> Result<Option<Vec<u8>>, InspectError> {
    let map = match Map::open(path) {
        Ok(map) => map,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(InspectError::io("map", path)(e)),
    };
    if map.len() as u64 > MAX_SEGMENT_LEN {
        let what = format!("{} bytes are more than a segment has ({MAX_SEGMENT_LEN})", map.len());
        return Err(InspectError::io("map", path)(io::Error::new(io::ErrorKind::InvalidData, what)));
    }
    map.copy(path).map_err(InspectError::io("look at", path))
}

/// Does a segment hold anything, and where does its last valid group end?
fn content(scan: &SegmentScan) -> Content {
    let ends = scan.groups.iter().filter(|g| g.header.is_some()).map(|g| g.end);
    if scan.is_prepared() { Content::Prepared } else { Content::Newest(ends.max().unwrap_or(FIRST_GROUP)) }
}

/// Something that does not hold, beyond what the plan finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The log that it is in.
    pub log: LogKind,
    /// Segment.
    pub segment: u64,
    /// Offset in it.
    pub offset: u64,
    /// Bytes that are concerned.
    pub bytes: u64,
    /// What does not hold.
    pub what: String,
}

impl Problem {
    /// What it is sorted and known by: the block log comes last.
    pub fn place(&self) -> (bool, u64, u64) {
        (self.log == LogKind::Blocks, self.segment, self.offset)
    }
}

/// What one segment holds, in numbers.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Number of the segment.
    pub number: u64,
    /// Bytes of the file.
    pub len: u64,
    /// Content, as one word: `prepared`, `active`, `full`, `void`, `retired` or `damaged` (its header is unusable).
    pub state: &'static str,
    /// Bytes up to the end of the last group.
    pub used: u64,
    /// Groups, the remains of damaged ones included.
    pub groups: u64,
    /// Records whose head holds.
    pub records: u64,
    /// Log lines of sound Entries.
    pub lines: u64,
    /// Bytes of sound Entries as stored, heads and tables included.
    pub stored: u64,
    /// Bytes of the bodies of sound Entries before compression.
    pub raw: u64,
    /// Bytes of padding behind groups.
    pub padding: u64,
    /// Bytes of padding that are not zero; harmless.
    pub dirty_padding: u64,
    /// First LSN, by the first group header.
    pub first_lsn: Option<u64>,
    /// LSN after the last, by the last group header.
    pub end_lsn: Option<u64>,
    /// Wall clock of the first group, nanoseconds.
    pub first_clock: Option<i64>,
    /// Wall clock of the last group, nanoseconds.
    pub last_clock: Option<i64>,
    /// Stretches of damage, below or above the durable end.
    pub damage: u64,
}

impl Facts {
    fn of(segment: &SegmentFile, scan: &SegmentScan, file: &[u8]) -> Self {
        let headers = || scan.groups.iter().filter_map(|g| g.header);
        let mut out = Self {
            number: segment.number,
            len: segment.len,
            state: if segment.content == Content::Full { "full" } else { "active" },
            used: scan.groups.last().map_or(FIRST_GROUP, |g| g.end),
            groups: scan.groups.len() as u64,
            first_lsn: headers().next().map(|h| h.first_lsn),
            end_lsn: headers().next_back().map(|h| h.end_lsn()),
            first_clock: headers().next().map(|h| h.wall_clock),
            last_clock: headers().next_back().map(|h| h.wall_clock),
            ..Self::default()
        };
        for group in &scan.groups {
            out.padding += group.header.map_or(0, |h| group.end.saturating_sub(h.end(group.offset)));
            out.dirty_padding += group.dirty_padding;
            out.damage += group.damage.len() as u64;
            out.records += group.records.len() as u64;
            group.records.iter().for_each(|r| out.record(r, file));
        }
        out
    }

    fn record(&mut self, record: &RecordScan, file: &[u8]) {
        if record.head.known_kind() == Some(Kind::Entries) && record.body_is_sound {
            self.lines += Tables::decode(record.head.tables(file, record.offset)).map_or(0, |t| t.lines());
            self.stored += u64::from(record.head.len);
            self.raw += u64::from(record.head.raw_len);
        }
    }

    fn bare(segment: &SegmentFile, state: &'static str) -> Self {
        Self { number: segment.number, len: segment.len, state, ..Self::default() }
    }
}

/// A log that was read once, whole: what recovery would do with it, and what does not hold.
pub struct Judged {
    /// Its files.
    pub log: Log,
    /// What recovery would do now.
    pub plan: Plan,
    /// Every segment in numbers.
    pub facts: Vec<Facts>,
    /// What does not hold, beyond the plan's loss.
    pub problems: Vec<Problem>,
    /// Identity of the data directory, from the newest usable segment.
    pub volume: Option<Uuid>,
    /// The block log.
    pub blocks: Blocks,
}

/// Reads and judges the log. Damage in a log that is being changed is believed only when it is seen again.
///
/// # Errors
/// The directory or a file cannot be read, is of a newer version, or segments vanish faster than they are read.
pub fn judge(dirs: &Dirs, progress: &mut Progress) -> Result<Judged, InspectError> {
    let mut listed = BTreeSet::new();
    for attempt in 1..=ATTEMPTS {
        let log = Log::open(dirs)?;
        listed.extend(log.segments.iter().map(|s| s.number));
        progress.start(log.bytes(), "scanning");
        let Some(mut judged) = judge_once(log, progress)? else { continue };
        // What was there a moment ago and is gone was retired: the server removes only what it does not need.
        judged.plan.loss.missing_segments.retain(|number| !listed.contains(number));
        if judged.is_sound() || attempt > 1 || !judged.log.changed()? {
            progress.clear();
            if dirs.wal_dir.is_none() {
                blocks::warn_of_another_log(&judged.log, &judged.plan)?;
            }
            return Ok(judged);
        }
    }
    Err(InspectError::Restless(ATTEMPTS, dirs.dir.clone()))
}

/// `None` if a segment vanished.
fn judge_once(log: Log, progress: &mut Progress) -> Result<Option<Judged>, InspectError> {
    let volume = log.volume;
    let mut out = Judged {
        plan: Plan::default(),
        facts: Vec::new(),
        problems: Vec::new(),
        volume,
        blocks: Blocks::default(),
        log,
    };
    let mut summaries = Vec::new();
    // Streams are defined again in each segment; the newest definition is enough. That of a segment which was given up is none.
    let mut defined: HashMap<u64, (usize, Arc<SeriesDef>)> = HashMap::new();
    for segment in &out.log.segments {
        if segment.content == Content::Prepared {
            out.facts.push(Facts::bare(segment, "prepared"));
            summaries.push(Summary::prepared(segment.number));
            continue;
        }
        let Some(ReadSegment { file, scan }) = out.log.read(segment)? else { return Ok(None) };
        progress.advance(segment.len);
        let scan = match scan {
            Ok(scan) => scan,
            Err(error) => {
                out.facts.push(Facts { damage: 1, ..Facts::bare(segment, "damaged") });
                let (bytes, what) = (FIRST_GROUP.min(segment.len), error.to_string());
                out.problems.push(Problem { log: LogKind::Wal, segment: segment.number, offset: 0, bytes, what });
                summaries.push(Summary::unusable(segment.number));
                continue;
            }
        };
        if scan.header.number != segment.number {
            if out.log.read(segment)?.and_then(|s| s.scan.ok()).is_none_or(|s| s.header.number == segment.number) {
                // It was recycled while we looked.
                return Ok(None);
            }
            let what = format!("the file name says {}, the header {}", segment.number, scan.header.number);
            out.problems.push(Problem { log: LogKind::Wal, segment: segment.number, offset: 0, bytes: 64, what });
        }
        out.facts.push(Facts::of(segment, &scan, &file));
        if Some(scan.header.volume) != out.volume {
            let what = format!("the segment belongs to another data directory (volume {})", scan.header.volume);
            out.problems.push(Problem { log: LogKind::Wal, segment: segment.number, offset: 0, bytes: 64, what });
            continue;
        }
        refuse_unknown_kinds(segment.number, &scan)?;
        let mut summary = Summary::of(segment.number, &scan, &file);
        for definition in summary.definitions.drain(..) {
            defined.insert(definition.id, (summaries.len(), definition));
        }
        summaries.push(summary);
    }
    for (at, definition) in defined.into_values() {
        if let Some(summary) = summaries.get_mut(at) {
            summary.definitions.push(definition);
        }
    }
    summaries.extend(out.log.given_up().map(Summary::given_up));
    summaries.sort_by_key(|s| s.number);
    out.plan = plan(&summaries);
    // What was given up may hold anything.
    out.problems.retain(|p| !out.plan.retired.contains(&p.segment));
    out.name_states();
    let Some(blocks) = blocks::judge(&out.log, &out.plan, out.volume)? else { return Ok(None) };
    out.blocks = blocks;
    for definition in &out.blocks.definitions {
        out.plan.define(&Arc::new(definition.clone()));
    }
    Ok(Some(out))
}

fn refuse_unknown_kinds(segment: u64, scan: &SegmentScan) -> Result<(), InspectError> {
    let records = scan.groups.iter().flat_map(|g| &g.records);
    let mut unknown = records.filter(|r| r.head.known_kind().is_none() && r.head.flags & FLAG_SKIPPABLE == 0);
    match unknown.next() {
        Some(r) => Err(InspectError::Kind { segment, offset: r.offset, kind: r.head.kind }),
        None => Ok(()),
    }
}

/// Is a record part of what was acknowledged?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Below the durable end.
    Durable,
    /// Above it: in flight on a running server; on a stopped one, recovery keeps it.
    Tail,
    /// Behind the end of a segment that was given up: never acknowledged here.
    Void,
}

impl State {
    /// The word in the output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Durable => "durable",
            Self::Tail => "tail",
            Self::Void => "void",
        }
    }
}

/// One segment with content on its way to a command.
pub struct SegmentView<'a> {
    /// Number.
    pub number: u64,
    /// The whole file.
    pub file: &'a [u8],
    /// Its groups and records.
    pub scan: &'a SegmentScan,
    /// Records from here on are void.
    lsn_end: u64,
    durable_lsn: u64,
}

impl SegmentView<'_> {
    /// What a record of this segment counts for.
    pub fn state(&self, record: &RecordScan) -> State {
        match record.head.lsn {
            lsn if lsn >= self.lsn_end => State::Void,
            lsn if lsn >= self.durable_lsn => State::Tail,
            _ => State::Durable,
        }
    }

    /// The records that are not void, with their group and state, in the order of the log.
    pub fn records(&self) -> impl Iterator<Item = (&GroupScan, &RecordScan, State)> {
        let all = self.scan.groups.iter().flat_map(|g| g.records.iter().map(move |r| (g, r)));
        all.map(|(g, r)| (g, r, self.state(r))).filter(|(_, _, state)| *state != State::Void)
    }
}

/// A step of [`Judged::walk`].
pub enum Step<'a> {
    /// The next segment.
    Segment(&'a SegmentView<'a>),
    /// This segment was removed or recycled after it was judged.
    Vanished,
}

impl Judged {
    /// Nothing acknowledged is damaged or missing.
    pub fn is_sound(&self) -> bool {
        self.plan.loss.is_empty() && self.problems.is_empty() && self.blocks.is_sound()
    }

    /// Lines of both logs, counted where they lie: some twice.
    pub fn lines(&self) -> u64 {
        self.facts.iter().map(|f| f.lines).chain(self.blocks.facts.iter().map(|f| f.lines)).sum()
    }

    /// Segments vanish while they are read, by one who needs all of them.
    pub fn changing(&self) -> InspectError {
        InspectError::Changing(self.log.dir.clone())
    }

    /// Damage below the durable end and in the block log: segment, bytes and what does not hold. In the order of the logs,
    /// once each.
    pub fn damage(&self) -> Vec<Problem> {
        let found = |(segment, d): &(u64, Damage)| Problem {
            log: LogKind::Wal,
            segment: *segment,
            offset: d.bytes.start,
            bytes: d.bytes.end.saturating_sub(d.bytes.start),
            what: d.part.to_string(),
        };
        let mut out: Vec<Problem> = self.problems.clone();
        let known: HashSet<(u64, u64)> = out.iter().map(|p| (p.segment, p.offset)).collect();
        let planned = self.plan.loss.damage.iter().map(found);
        out.extend(planned.filter(|p| !known.contains(&(p.segment, p.offset))));
        out.extend(self.blocks.problems.iter().cloned());
        out.sort_by_key(Problem::place);
        out
    }

    /// Facts of the segments that hold something.
    pub fn used(&self) -> impl Iterator<Item = &Facts> {
        self.facts.iter().filter(|f| f.state != "prepared")
    }

    fn name_states(&mut self) {
        for facts in &mut self.facts {
            let replayed = self.plan.replay.iter().any(|(number, _)| *number == facts.number);
            facts.state = match facts.state {
                _ if self.plan.retired.contains(&facts.number) => "retired",
                "active" | "full" if !replayed => "void",
                state => state,
            };
        }
    }

    /// Reads the segments of the judged log again, oldest first, and hands them to `visit` until it returns `false`.
    /// `wanted` says which segments are of interest.
    ///
    /// # Errors
    /// A file cannot be read, or `visit` failed.
    pub fn walk(
        &self,
        wanted: impl Fn(u64) -> bool,
        progress: &mut Progress,
        visit: impl FnMut(Step<'_>) -> Result<bool, InspectError>,
    ) -> Result<(), InspectError> {
        progress.start(self.log.bytes(), "reading");
        let outcome = self.steps(wanted, progress, visit);
        // What a command prints now is not written behind the bar.
        progress.clear();
        outcome
    }

    fn steps(
        &self,
        wanted: impl Fn(u64) -> bool,
        progress: &mut Progress,
        mut visit: impl FnMut(Step<'_>) -> Result<bool, InspectError>,
    ) -> Result<(), InspectError> {
        for segment in self.log.segments.iter().filter(|s| s.content != Content::Prepared && wanted(s.number)) {
            let Some((number, lsn_end)) = self.plan.replay.iter().find(|(n, _)| *n == segment.number) else {
                continue;
            };
            let go_on = match self.log.read(segment)? {
                Some(ReadSegment { file, scan: Ok(scan) }) if scan.header.number == *number => {
                    let durable_lsn = self.plan.durable_lsn;
                    visit(Step::Segment(&SegmentView {
                        number: *number,
                        file: &file,
                        scan: &scan,
                        lsn_end: *lsn_end,
                        durable_lsn,
                    }))?
                }
                Some(ReadSegment { scan: Err(_), .. }) if self.problems.iter().any(|p| p.segment == *number) => true,
                _ => visit(Step::Vanished)?,
            };
            progress.advance(segment.len);
            if !go_on {
                return Ok(());
            }
        }
        Ok(())
    }
}
