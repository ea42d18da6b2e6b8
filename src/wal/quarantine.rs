//! Damaged segments are kept: a hard link, which takes no space, and a report beside it. A segment on another file system than
//! the quarantine is copied. Only the operator deletes them.

use super::blocks::{BlockPlace, BlockStore, Suspect};
use super::format::{Kind, LogKind};
use super::ranges::{Ranges, count};
use super::repair::Recovered;
use super::scan::Damage;
use super::segment::file_name;
use super::survivors::LostBlock;
use super::verdict::{Cost, Part, Place, verdict};
use crate::fs::{Fs, link_or_copy, read_full_at, replace_durably};
use ahash::AHashMap;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::ops::Range;
use std::path::Path;

/// Bytes of segments that are kept; above, only reports are added.
pub const QUARANTINE_BUDGET: u64 = 1 << 30;
/// A report that the operator has read has this extension.
const ACKNOWLEDGED: &str = ".acknowledged.json";
/// Largest report that is read back.
const MAX_REPORT: u64 = 16 << 20;
/// How a place ends that a running server has found, by a read of a block or by its scrubber.
const BY_A_SCRUB: &str = ", found by a scrub";
const BY_A_READ: &str = ", found by a read";
/// What a report says of blocks that a running server has found damaged.
const FOUND_BY_A_READ: &str = "queries answer without the lines of these blocks, and say so; the next start makes them again from the \
                               write-ahead log where that still has them, and counts what is lost: restart soon, and keep this report";
/// Most ranges of seqs that a report lists, so that it stays far below that.
const MAX_STREAMS: usize = 10_000;

/// What is wrong with one segment, and what all the damage together has cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DamageReport {
    /// `wal` or `blocks`.
    pub log: String,
    /// Number of the segment.
    pub segment: u64,
    /// Its salt; 0 if its header is gone or the file is missing.
    pub salt: u64,
    /// What does not hold, with offsets.
    pub places: Vec<String>,
    /// LSNs that are lost, over the whole log.
    pub lsns: Vec<(u64, u64)>,
    /// Acknowledged lines that are lost, over the whole log.
    pub lines_missing: u64,
    /// There may be more of them, as a remark says.
    pub at_least: bool,
    /// Of these: stream id, labels, first seq, end seq, where they are known.
    pub streams: Vec<(u64, String, u64, u64)>,
    /// Wall clock, in nanoseconds since the Unix epoch, of the last sound group before the first lost LSN and of the first
    /// one after the last.
    pub between: Option<(i64, i64)>,
    /// What else an operator should know, a sentence each.
    pub remarks: Vec<String>,
    /// Offset and length of blocks that a running server has found damaged: the next start looks at them.
    pub blocks: Vec<(u64, u32)>,
}

impl DamageReport {
    /// Name of the link to the segment.
    fn link(&self) -> String {
        let kind = if self.log == "blocks" { LogKind::Blocks } else { LogKind::Wal };
        format!("{:016x}-{}", self.salt, file_name(kind, self.segment))
    }

    /// A name for the report that no other has, read or not: damage that is found later in the same segment is a report of
    /// its own, and takes the place of none.
    fn free_name(&self, taken: &HashSet<String>) -> String {
        let link = self.link();
        let numbered = |n: u64| if n == 1 { link.clone() } else { format!("{link}.{n}") };
        let is_free = |name: &String| {
            !taken.contains(&format!("{name}.json")) && !taken.contains(&format!("{name}{ACKNOWLEDGED}"))
        };
        // As many names as are taken, and one more, hold a free one.
        let free = (1..=taken.len() as u64 + 1).map(numbered).find(is_free);
        format!("{}.json", free.unwrap_or(link))
    }

    /// Keeps the segment beside the report, unless it is there already, and writes the report, which says so if the segment could
    /// not be kept.
    fn keep(mut self, fs: &dyn Fs, dir: &Path, segment: &Path, room: u64) -> io::Result<Kept> {
        let taken: HashSet<String> = fs.list(dir)?.into_iter().map(|e| e.name).collect();
        let len = fs.open(segment, false).and_then(|f| f.len()).unwrap_or(0);
        let outcome = match len {
            0 => Ok(0),
            _ if taken.contains(&self.link()) => Ok(0),
            _ if len > room => Err(format!("the quarantine holds at most {QUARANTINE_BUDGET} bytes")),
            _ => link_or_copy(fs, segment, &dir.join(self.link())).map(|()| len).map_err(|e| e.to_string()),
        };
        let kept = match outcome {
            Ok(bytes) => Kept { bytes, failed: None },
            Err(why) => {
                let failed =
                    format!("{} could not be kept ({why}): copy it before the log gives it up", segment.display());
                self.remarks.push(failed.clone());
                Kept { bytes: 0, failed: Some(failed) }
            }
        };
        replace_durably(fs, &dir.join(self.free_name(&taken)), &serde_json::to_vec_pretty(&self)?)?;
        Ok(kept)
    }

    /// Its places, without how they were found.
    fn bare_places(&self) -> impl Iterator<Item = &str> {
        self.places.iter().map(|p| p.strip_suffix(BY_A_READ).unwrap_or(p))
    }

    /// Does another report give the account of these blocks, which a running server only found?
    fn is_superseded_by(&self, other: &Self) -> bool {
        let same = (&other.log, other.segment, other.salt) == (&self.log, self.segment, self.salt);
        same && !self.blocks.is_empty() && self.bare_places().all(|p| other.places.iter().any(|o| o == p))
    }
}

/// What became of a damaged segment.
struct Kept {
    /// Bytes that are in quarantine now and were not before.
    bytes: u64,
    /// Why it is not there.
    failed: Option<String>,
}

/// What is in a quarantine directory.
#[derive(Clone, Debug, Default)]
pub struct Quarantine {
    /// All reports that can be read, by name.
    pub reports: BTreeMap<String, DamageReport>,
    /// Names of those that nobody has acknowledged, but for reports of a read of which a start has given the account since.
    pub unread: Vec<String>,
    /// Bytes of kept segments.
    pub bytes: u64,
}

impl Quarantine {
    /// Reads a quarantine directory; one that is not there is empty. A report that cannot be read stays unread.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn read(fs: &dyn Fs, dir: &Path) -> io::Result<Self> {
        let entries = match fs.list(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            listed => listed?,
        };
        let mut out = Self::default();
        for entry in entries {
            if !entry.name.ends_with(".json") {
                out.bytes += if entry.name.ends_with(".tmp") { 0 } else { entry.len };
                continue;
            }
            if !entry.name.ends_with(ACKNOWLEDGED) {
                out.unread.push(entry.name.clone());
            }
            let read = || -> io::Result<DamageReport> {
                let file = fs.open(&dir.join(&entry.name), false)?;
                let mut bytes = vec![0; file.len()?.min(MAX_REPORT) as usize];
                let n = read_full_at(&*file, 0, &mut bytes)?;
                Ok(serde_json::from_slice(bytes.get(..n).unwrap_or_default())?)
            };
            out.reports.extend(read().map(|report| (entry.name, report)));
        }
        let reports = &out.reports;
        let is_open = |name: &String| {
            reports.get(name).is_none_or(|found| !reports.values().any(|told| found.is_superseded_by(told)))
        };
        out.unread.retain(is_open);
        out.unread.sort();
        Ok(out)
    }

    /// The reports that nobody has acknowledged and that can be read.
    pub fn unread_reports(&self) -> impl Iterator<Item = &DamageReport> {
        self.unread.iter().filter_map(|name| self.reports.get(name))
    }

    /// Blocks that reads have found damaged, for the next start.
    pub fn suspects(&self) -> Vec<Suspect> {
        let of = |r: &DamageReport| {
            let (segment, salt) = (r.segment, r.salt);
            let place = move |(offset, len): &(u64, u32)| BlockPlace { segment, offset: *offset, len: *len };
            r.blocks.iter().map(place).map(|place| Suspect { salt, place }).collect::<Vec<_>>()
        };
        self.reports.values().filter(|r| r.log == "blocks").flat_map(of).collect()
    }

    /// Places that some report names already: they were told and counted.
    fn known(&self) -> HashSet<(&str, u64, u64, &str)> {
        self.reports
            .values()
            .flat_map(|r| r.places.iter().map(|p| (r.log.as_str(), r.segment, r.salt, p.as_str())))
            .collect()
    }

    /// Did a scrub find all of these places before?
    pub fn has_scrubbed(&self, found: &[DamageReport]) -> bool {
        let known = self.known();
        let was_found = |r: &DamageReport, p: &String| {
            known.contains(&(r.log.as_str(), r.segment, r.salt, &*format!("{p}{BY_A_SCRUB}")))
        };
        found.iter().all(|r| r.places.iter().all(|p| was_found(r, p)))
    }

    /// The places of these reports that no report in the quarantine names.
    pub fn news(&self, found: Vec<DamageReport>) -> Vec<DamageReport> {
        let known = self.known();
        let mut out = Vec::new();
        for mut report in found {
            let is_new = |p: &String| !known.contains(&(report.log.as_str(), report.segment, report.salt, p.as_str()));
            let places: Vec<String> = report.places.iter().filter(|p| is_new(p)).cloned().collect();
            if !places.is_empty() {
                report.places = places;
                out.push(report);
            }
        }
        out
    }
}

/// Keeps a segment that a running server has found damaged, with what is new in this report; returns the places that are.
///
/// # Errors
/// The link or the report could not be made.
pub fn keep_report(fs: &dyn Fs, dir: &Path, report: DamageReport, segment: &Path) -> io::Result<Vec<String>> {
    let kept = Quarantine::read(fs, dir)?;
    // Under another name than a start gives it: that still has to judge and to count it.
    let scrubbed = |place: &String| format!("{place}{BY_A_SCRUB}");
    let known = kept.known();
    let is_new = |p: &&String| {
        [(*p).clone(), scrubbed(p)].iter().all(|p| !known.contains(&(&*report.log, report.segment, report.salt, &**p)))
    };
    let places: Vec<String> = report.places.iter().filter(is_new).map(scrubbed).collect();
    if places.is_empty() {
        return Ok(places);
    }
    fs.create_dir_all(dir)?;
    let report = DamageReport { places: places.clone(), ..report };
    report.keep(fs, dir, segment, QUARANTINE_BUDGET.saturating_sub(kept.bytes))?;
    fs.sync_dir(dir)?;
    Ok(places)
}

impl BlockStore {
    /// Keeps the segments of blocks that a read has found damaged, with a report for each, unless one names them already; returns the
    /// blocks that are new, and why segments could not be kept.
    ///
    /// # Errors
    /// A report could not be made.
    pub fn quarantine(&self, dir: &Path, places: &[BlockPlace]) -> io::Result<(Vec<BlockPlace>, Vec<String>)> {
        let kept = Quarantine::read(self.fs(), dir)?;
        let told: HashSet<BlockPlace> = kept.suspects().into_iter().map(|s| s.place).collect();
        let mut reports: BTreeMap<u64, DamageReport> = BTreeMap::new();
        let new: Vec<BlockPlace> = places.iter().filter(|p| !told.contains(p)).copied().collect();
        for place in &new {
            let report = reports.entry(place.segment).or_default();
            let bytes = place.offset..place.offset + u64::from(place.len);
            report.places.push(format!("{}{BY_A_READ}", Damage { bytes, part: Part::Record(Kind::Block) }));
            report.blocks.push((place.offset, place.len));
        }
        self.fs().create_dir_all(dir)?;
        let (mut bytes, mut failed) = (kept.bytes, Vec::new());
        for (segment, report) in reports {
            let report = DamageReport {
                log: "blocks".to_string(),
                segment,
                salt: self.salt(segment).unwrap_or(0),
                at_least: true,
                remarks: vec![FOUND_BY_A_READ.to_string()],
                ..report
            };
            let kept = report.keep(self.fs(), dir, &self.path(segment), QUARANTINE_BUDGET.saturating_sub(bytes))?;
            bytes += kept.bytes;
            failed.extend(kept.failed);
        }
        self.fs().sync_dir(dir)?;
        Ok((new, failed))
    }
}

impl Recovered {
    /// What was found damaged, a report for each segment.
    pub fn damage_reports(&self) -> Vec<DamageReport> {
        let plan = &self.plan;
        let mut out: Vec<DamageReport> = Vec::new();
        let salt = |segment: u64| plan.salts.get(&segment).copied().unwrap_or(0);
        let mut add = |log: &str, segment: u64, salt: u64, place: String| match out
            .iter_mut()
            .find(|r| (r.log.as_str(), r.segment) == (log, segment))
        {
            Some(report) => report.places.push(place),
            None => out.push(DamageReport {
                log: log.to_string(),
                segment,
                salt,
                places: vec![place],
                ..DamageReport::default()
            }),
        };
        for number in &plan.loss.missing_segments {
            add("wal", *number, 0, Part::Missing.to_string());
        }
        for (segment, d) in &plan.loss.damage {
            add("wal", *segment, salt(*segment), d.to_string());
        }
        for (segment, d) in &self.blocks().damage {
            add("blocks", *segment, self.block_store().salt(*segment).unwrap_or(0), d.to_string());
        }
        let labels = |id: u64| {
            let definition = plan.definitions.get(&id);
            let labels = definition.map(|d| crate::model::LabelSet::new(d.labels.iter().map(|(n, v)| (&**n, &**v))));
            labels.map_or("unattributed".to_string(), |l| l.text().to_string())
        };
        let in_blocks = self.lost_blocks().iter().flat_map(|b| b.seqs.iter().map(|r| (b.stream, r.clone())));
        let in_segments = self.lost_segments().seqs.iter().cloned();
        let seqs = plan.loss.seqs.iter().cloned().chain(in_blocks).chain(in_segments);
        let streams = seqs.map(|(stream, r)| (stream, labels(stream), r.start, r.end));
        let mut streams: Vec<_> = streams.collect();
        let mut remarks = self.remarks();
        if streams.len() > MAX_STREAMS {
            remarks.push(format!(
                "lines are missing in {} places of streams; the first {MAX_STREAMS} are listed",
                streams.len()
            ));
            streams.truncate(MAX_STREAMS);
        }
        let in_blocks = self.lost_blocks().iter().map(|b| b.lines).sum::<u64>();
        let lines_missing = plan.loss.lines + in_blocks + self.lost_segments().lines;
        for report in &mut out {
            report.lsns = plan.loss.lsns.iter().map(|r| (r.start, r.end)).collect();
            report.lines_missing = lines_missing;
            report.at_least = !self.lost_segments().is_exact() || plan.loss.missing_newest.is_some();
            report.streams = streams.clone();
            report.between = plan.loss.between;
            report.remarks = remarks.clone();
        }
        out
    }

    /// What the damage means beyond its places and counts.
    fn remarks(&self) -> Vec<String> {
        let mut out = Vec::new();
        let parts = || self.plan.loss.damage.iter().map(|(_, d)| d.part);
        let twice = parts().filter(|p| verdict(*p, Place::Durable, false, false).cost == Cost::Twice).count();
        if twice > 0 {
            out.push(format!(
                "{twice} records are damaged that say that a chunk is in the object store: such a chunk counts as not flushed, so its lines \
                 may be shown twice; none of them is lost"
            ));
        }
        if let Some(number) = self.plan.loss.missing_newest {
            out.push(format!(
                "segment {number} of the write-ahead log is gone, behind all that are there: nothing tells whether lines were in it, and how many"
            ));
        }
        if !self.blocks().unseen.is_empty() {
            out.push(self.lost_segments().to_string());
        }
        out
    }

    /// Lines that are lost in the places that these reports name. Records that are lost are settled by a Gap, so only those
    /// are counted that no start has counted before; a damaged block is damaged at each start, a segment that is gone is gone at
    /// each start, and `kept` are the reports of earlier ones.
    pub fn lost_lines(&self, reports: &[DamageReport], kept: &Quarantine) -> u64 {
        let told = |b: &&LostBlock| {
            let place = Damage { bytes: b.bytes.clone(), part: Part::Record(Kind::Block) }.to_string();
            reports.iter().any(|r| r.log == "blocks" && r.segment == b.segment && r.places.contains(&place))
        };
        let mut counted: AHashMap<u64, Ranges> = AHashMap::new();
        for (stream, _, first, end) in kept.reports.values().flat_map(|r| &r.streams) {
            counted.entry(*stream).or_default().insert(*first..*end);
        }
        let new = |(stream, seqs): &(u64, Range<u64>)| {
            count(&counted.get(stream).map_or_else(|| vec![seqs.clone()], |c| c.missing(seqs)))
        };
        let in_segments = self.lost_segments().seqs.iter().map(new).sum::<u64>();
        self.plan.loss.lines + self.lost_blocks().iter().filter(told).map(|b| b.lines).sum::<u64>() + in_segments
    }

    /// Keeps the segments of these reports, and the reports; returns why segments could not be kept, which is no reason not to
    /// start.
    ///
    /// # Errors
    /// A report could not be made.
    pub fn quarantine(&self, dir: &Path, kept: u64, reports: Vec<DamageReport>) -> io::Result<Vec<String>> {
        let (fs, mut bytes, mut failed) = (self.fs(), kept, Vec::new());
        fs.create_dir_all(dir)?;
        for report in reports {
            let source = if report.log == "blocks" {
                self.block_store().path(report.segment)
            } else {
                self.segment_path(report.segment)
            };
            let kept = report.keep(fs, dir, &source, QUARANTINE_BUDGET.saturating_sub(bytes))?;
            bytes += kept.bytes;
            failed.extend(kept.failed);
        }
        fs.sync_dir(dir)?;
        Ok(failed)
    }
}
