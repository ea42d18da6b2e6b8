//! `repair`: what a start of the server does to a data directory, without serving it.
//!
//! The dry run is the same work on a file system that only remembers what is changed, so it tells exactly what the other one
//! does. That one copies each file before it changes for the first time: the copy is durable before the change is made. So a
//! crash at any moment leaves what was there in the directory or in its copy, and a directory that the next start, or the next
//! `repair`, finishes: recovery can be cut anywhere.

use super::{define, not_recovered, not_taken, options, refused, usual_segment_size};
use crate::fs::{Before, Change, DirEntry, Fs, OverlayFs, RealFs, TracedFs, copy_durably};
use crate::ingester::{DataDir, Dirs};
use crate::inspect::blocks::warn_of_another_log;
use crate::inspect::cli::Dirs as Asked;
use crate::inspect::cli::{Attach, RepairArgs};
use crate::inspect::log::Log;
use crate::inspect::output::{Cell, Row, Shape};
use crate::inspect::{Finding, InspectError, Progress, Report, next};
use crate::wal::{
    DamageReport, LogKind, Plan, Quarantine, Recovered, SeriesDef, Unattributed, file_number, recover_doubting,
};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The directory of damaged segments, in the data directory.
const QUARANTINE: &str = "quarantine";

/// Repairs a data directory, or tells what that would do.
///
/// # Errors
/// The directory is in use, is none, or cannot be read or written.
pub fn run(args: &RepairArgs, asked: &Asked, mut progress: Progress) -> Result<Report, InspectError> {
    let (dirs, copies) = (dirs(asked)?, copies_dir(&asked.dir));
    let real: Arc<dyn Fs> = Arc::new(RealFs);
    let traced = if args.apply {
        Arc::new(TracedFs::new(real.clone(), keep_copies(real, &dirs, &copies)))
    } else {
        Arc::new(TracedFs::new(Arc::new(OverlayFs::new(real)), Box::new(|_| Ok(()))))
    };
    let fs: Arc<dyn Fs> = traced.clone();
    // Held until all is done.
    let held = DataDir::take(&*fs, &dirs, false).map_err(|e| not_taken(&e, asked))?;
    let before = files(&RealFs, &dirs)?;
    let quarantine = Quarantine::read(&*fs, &dirs.data.join(QUARANTINE)).unwrap_or_default();
    let options = options(fs.clone(), &dirs, held.identity.volume, usual_segment_size(&*fs, &dirs)?);
    let mut done = 0;
    let read = recover_doubting(options, &quarantine.suspects(), &mut |now, total| {
        if done == 0 {
            progress.start(total, "reading");
        }
        progress.advance(now - done);
        done = now;
    });
    progress.clear();
    let recovered = read.map_err(|e| not_recovered(&e, asked))?;
    if asked.wal_dir.is_none() {
        warn_of_another_log(&Log::open(asked)?, &recovered.plan)?;
    }
    let unattributed = recovered.unattributed().map_err(|e| not_recovered(&e, asked))?;
    let attached = attach(&args.attach_labels, args.tenant.as_deref(), &unattributed, asked)?;
    let reports = recovered.damage_reports();
    let news = quarantine.news(reports.clone());
    let mut found = Found {
        dirs: &dirs,
        states: States::of(&recovered.plan),
        lost_lines: recovered.lost_lines(&news, &quarantine),
        tail: recovered.plan.tail.len(),
        unresolved: recovered.plan.unresolved.iter().map(|r| r.end - r.start).sum(),
        known: reports.iter().map(|r| r.places.len()).sum::<usize>()
            - news.iter().map(|r| r.places.len()).sum::<usize>(),
        attached: attached.iter().map(|d| d.id).collect(),
        reports,
        unattributed,
        before,
        changes: BTreeMap::new(),
    };
    if let Err(error) = settle(recovered, attached, &dirs, &quarantine, &news, asked) {
        return Err(match traced.changes().is_empty() || !args.apply {
            true => error,
            false => half_done(&error, &copies),
        });
    }
    found.changes = traced.changes();
    Ok(Report { sections: found.sections(args.apply, &copies), found: found.finding(args.apply, asked) })
}

/// Everything that changes the logs, in the order of a start: what is damaged is kept first, before anything can retire it.
fn settle(
    recovered: Recovered,
    attached: Vec<SeriesDef>,
    dirs: &Dirs,
    quarantine: &Quarantine,
    news: &[DamageReport],
    asked: &Asked,
) -> Result<(), InspectError> {
    if !news.is_empty() {
        let kept = dirs.data.join(QUARANTINE);
        // A report says why a segment could not be kept.
        recovered.quarantine(&kept, quarantine.bytes, news.to_vec()).map_err(InspectError::io("write to", &kept))?;
    }
    recovered.settle(attached).map_err(|e| not_recovered(&e, asked))
}

fn half_done(error: &InspectError, copies: &Path) -> InspectError {
    let next = format!(
        "{}; the same command goes on, and copies of what was changed are in {}",
        error.next(),
        copies.display()
    );
    refused(error, error.exit_code(), next)
}

/// A start would make directories that are not there; a repair needs what it repairs.
fn dirs(asked: &Asked) -> Result<Dirs, InspectError> {
    let dir = &asked.dir;
    let wal = asked.wal_dir.clone().unwrap_or_else(|| dir.join("wal"));
    let blocks = asked.blocks_dir.clone().unwrap_or_else(|| dir.join("blocks"));
    if !wal.is_dir() {
        let what = format!("{} is no data directory: {} is not there", dir.display(), wal.display());
        return Err(refused(
            what,
            3,
            "wal-inspect repair -d DIR, with the data directory itself; --wal-dir if its log is elsewhere",
        ));
    }
    // A log, and of a version that we know.
    Log::open(asked)?;
    Ok(Dirs { data: dir.to_path_buf(), wal, blocks })
}

/// Where copies go: a directory that is not there yet.
fn copies_dir(data: &Path) -> PathBuf {
    let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let named = |n: u32| data.join(if n == 1 { format!("repair-{now}") } else { format!("repair-{now}-{n}") });
    (1..).map(named).find(|dir| !dir.exists()).unwrap_or_else(|| named(1))
}

/// Copies a file before it changes.
fn keep_copies(fs: Arc<dyn Fs>, dirs: &Dirs, copies: &Path) -> Before {
    let (data, copies) = (dirs.data.clone(), copies.to_path_buf());
    Box::new(move |path| {
        let to = copies.join(shown(path, &data));
        fs.create_dir_all(to.parent().unwrap_or(&copies))?;
        copy_durably(&*fs, path, &to)
    })
}

/// A path below the data directory, or below the directory of a log that lies elsewhere.
fn shown(path: &Path, data: &Path) -> PathBuf {
    if let Ok(below) = path.strip_prefix(data) {
        return below.to_path_buf();
    }
    let dir = path.parent().and_then(Path::file_name).unwrap_or_default();
    Path::new(dir).join(path.file_name().unwrap_or_default())
}

/// All files that a start may change, with their sizes.
fn files(fs: &dyn Fs, dirs: &Dirs) -> Result<BTreeMap<PathBuf, u64>, InspectError> {
    let mut out = BTreeMap::new();
    for dir in [&dirs.wal, &dirs.blocks, &dirs.data.join(QUARANTINE)] {
        let entries = match fs.list(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            listed => listed.map_err(InspectError::io("list", dir))?,
        };
        out.extend(entries.into_iter().map(|DirEntry { name, len }| (dir.join(name), len)));
    }
    Ok(out)
}

/// The definitions of streams whose labels were given. In the write-ahead log a definition goes with its segment.
fn attach(
    given: &[Attach],
    tenant: Option<&str>,
    unattributed: &[Unattributed],
    asked: &Asked,
) -> Result<Vec<SeriesDef>, InspectError> {
    let blocks = |g: &&Attach| unattributed.iter().any(|u| u.stream == g.stream && u.block_lines > 0);
    if let Some(Attach { stream, .. }) = given.iter().find(blocks) {
        let what = format!(
            "stream {stream} has blocks, which would be without labels again when the write-ahead log gives up the segment with the definition"
        );
        return Err(refused(
            what,
            2,
            "wal-inspect salvage SOURCE TARGET with the same --attach-labels: in a new directory they last",
        ));
    }
    define(given, tenant, unattributed, asked)
}

/// What segments are, in a word, by extension and number.
struct States(BTreeMap<(&'static str, u64), &'static str>);

impl States {
    fn of(plan: &Plan) -> Self {
        let mut out = BTreeMap::new();
        let mut add = |log: LogKind, number: u64, state| {
            out.insert((log.extension(), number), state);
        };
        plan.replay.iter().for_each(|(number, _)| add(LogKind::Wal, *number, "live"));
        plan.empty.iter().for_each(|header| add(LogKind::Wal, header.number, "prepared"));
        plan.retired.iter().for_each(|number| add(LogKind::Wal, *number, "retired"));
        plan.blocks.iter().for_each(|b| add(LogKind::Blocks, b.segment, "live"));
        Self(out)
    }

    /// Of a file that was there. What no record tells of is void in the write-ahead log, and holds nothing in the other one.
    fn before(&self, name: &str) -> Option<&'static str> {
        [(LogKind::Wal, "void"), (LogKind::Blocks, "unnamed")].into_iter().find_map(|(log, other)| {
            let number = file_number(log, name)?;
            Some(self.0.get(&(log.extension(), number)).copied().unwrap_or(other))
        })
    }
}

/// What was found, and what was done.
struct Found<'a> {
    dirs: &'a Dirs,
    states: States,
    reports: Vec<DamageReport>,
    /// Places that an earlier report names.
    known: usize,
    lost_lines: u64,
    tail: usize,
    unresolved: u64,
    unattributed: Vec<Unattributed>,
    attached: Vec<u64>,
    before: BTreeMap<PathBuf, u64>,
    changes: BTreeMap<PathBuf, Change>,
}

impl Found<'_> {
    fn places(&self) -> usize {
        self.reports.iter().map(|r| r.places.len()).sum()
    }

    fn is_damaged(&self) -> bool {
        self.places() > 0 || self.without_labels() > 0
    }

    /// Lines of streams that no definition names, and that got no labels either.
    fn without_labels(&self) -> u64 {
        let left = self.unattributed.iter().filter(|u| !self.attached.contains(&u.stream));
        left.map(|u| u.lines + u.block_lines).sum()
    }

    fn verdict(&self, applied: bool) -> &'static str {
        match (self.is_damaged(), self.changes.is_empty()) {
            (true, false) if !applied => "damaged, to be repaired",
            (true, _) => "damaged, and settled",
            (false, false) if !applied => "to be repaired",
            (false, _) => "sound",
        }
    }

    /// What the exit code tells, and the next command.
    fn finding(&self, applied: bool, asked: &Asked) -> Option<Finding> {
        if !self.changes.is_empty() && !applied {
            let what = if self.is_damaged() { "damage was found; nothing was changed" } else { "nothing was changed" };
            return Some(Finding { what, next: next("repair --apply", asked) });
        }
        let what = "damage was found, and is settled: nothing is left to repair";
        self.is_damaged().then(|| Finding { what, next: next("verify", asked) })
    }

    fn sections(&self, applied: bool, copies: &Path) -> Vec<(&'static str, Shape, Vec<Row>)> {
        let places = |r: &DamageReport| -> Vec<Row> {
            let row = |p: &String| -> Row {
                vec![("log", r.log.as_str().into()), ("segment", r.segment.into()), ("what", p.as_str().into())]
            };
            r.places.iter().map(row).collect()
        };
        let missing = |(stream, labels, first, end): &(u64, String, u64, u64)| -> Row {
            vec![
                ("stream", (*stream).into()),
                ("first_seq", (*first).into()),
                ("end_seq", (*end).into()),
                ("lines", end.saturating_sub(*first).into()),
                ("labels", labels.as_str().into()),
            ]
        };
        let without_labels = |u: &Unattributed| -> Row {
            vec![
                ("stream", u.stream.into()),
                ("tenant", u.tenant.as_str().into()),
                ("lines", u.lines.into()),
                ("block_lines", u.block_lines.into()),
                ("labels", if self.attached.contains(&u.stream) { "attached" } else { "unknown" }.into()),
            ]
        };
        // Each report tells of all streams.
        let streams = self.reports.first().iter().flat_map(|r| &r.streams).map(missing).collect();
        vec![
            ("repair", Shape::One, vec![self.summary(applied, copies)]),
            ("damage", Shape::Many, self.reports.iter().flat_map(places).collect()),
            ("missing", Shape::Many, streams),
            ("without_labels", Shape::Many, self.unattributed.iter().map(without_labels).collect()),
            ("files", Shape::Many, self.files().collect()),
        ]
    }

    fn summary(&self, applied: bool, copies: &Path) -> Row {
        let count = |wanted: Change| Cell::Count(self.changes.values().filter(|c| **c == wanted).count() as u64);
        let copied = applied && self.changes.values().any(|c| *c != Change::Made);
        vec![
            ("directory", self.dirs.data.display().to_string().into()),
            ("mode", if applied { "applied" } else { "dry run: nothing was changed" }.into()),
            ("verdict", self.verdict(applied).into()),
            ("damaged_places", Cell::Count(self.places() as u64)),
            ("known_places", Cell::Count(self.known as u64)),
            ("lines_lost", self.lost_lines.into()),
            ("lines_without_labels", self.without_labels().into()),
            ("tail_records", Cell::Count(self.tail as u64)),
            ("unresolved_lsns", self.unresolved.into()),
            ("files_made", count(Change::Made)),
            ("files_written", count(Change::Written)),
            ("files_removed", count(Change::Removed)),
            ("copies", if copied { copies.display().to_string().into() } else { Cell::None }),
        ]
    }

    /// What changes first.
    fn files(&self) -> impl Iterator<Item = Row> {
        let kept = self.before.keys().filter(|path| !self.changes.contains_key(*path)).map(|path| (path, None));
        self.changes.iter().map(|(path, change)| (path, Some(*change))).chain(kept).map(|(path, change)| {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let action = match change {
                None => "kept",
                Some(Change::Made) => "made",
                Some(Change::Written) => "written",
                Some(Change::Removed) => "removed",
            };
            let was = if change == Some(Change::Made) { None } else { self.states.before(name) };
            vec![
                ("file", shown(path, &self.dirs.data).display().to_string().into()),
                ("action", action.into()),
                ("was", was.into()),
                ("bytes", self.before.get(path).map_or(Cell::None, |len| Cell::Size(*len))),
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::LabelSet;

    #[test]
    fn files_are_named_by_where_they_lie() {
        let name = |path: &str| shown(Path::new(path), Path::new("/d/data")).display().to_string();
        assert_eq!(name("/d/data/wal/1.wal"), "wal/1.wal");
        assert_eq!(name("/d/data/identity"), "identity");
        assert_eq!(name("/elsewhere/log/1.wal"), "log/1.wal");
    }

    #[test]
    fn labels_are_attached_to_lines_of_the_log_without_any() {
        let unattributed = [
            Unattributed { stream: 7, tenant: "acme".into(), lines: 3, end_seq: 9, block_lines: 0 },
            Unattributed { stream: 8, block_lines: 2, ..Unattributed::default() },
        ];
        let given = |stream| Attach { stream, labels: LabelSet::new([("app", "x")]) };
        let of = |given: &[Attach], tenant| attach(given, tenant, &unattributed, &Asked::at(Path::new("d")));
        let made = of(&[given(7)], Some("acme")).unwrap();
        assert_eq!((made[0].id, made[0].tenant.as_str(), made[0].next_seq), (7, "acme", 9));
        assert_eq!(made[0].labels, [("app".to_string(), "x".to_string())]);
        assert_eq!(made[0].fingerprint, LabelSet::new([("app", "x")]).hash());
        for wrong in
            [of(&[given(6)], None), of(&[given(8)], None), of(&[given(7)], Some("b")), of(&[given(7), given(7)], None)]
        {
            assert_eq!(wrong.unwrap_err().exit_code(), 2);
        }
    }
}
