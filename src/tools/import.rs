//! `import --from-loki`: a new log from what a Loki ingester left on its disk, past its damage.
//!
//! Loki's own replay is not imitated where it loses lines: it stops at the first damaged byte, drops entries whose series
//! was logged later, and takes entries that were logged out of turn for duplicates. Here all definitions are read first, and
//! a segment's entry is a duplicate only if a checkpoint has the same one.

use super::loki::chunk::{Chunk, ChunkError};
use super::loki::record::{CheckpointSeries, Labels, Record, RecordError, StoredEntry, decode};
use super::loki::wlog::{self, Piece};
use super::target::Target;
use crate::codec::DecodeError;
use crate::fs::{Fs, RealFs};
use crate::inspect::args::ImportArgs;
use crate::inspect::output::{Cell, Row, Shape};
use crate::inspect::{Finding, InspectError, Report};
use crate::model::{LabelSet, Tenant};
use ahash::RandomState;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Places of damage that are named; the others are counted.
const NAMED: usize = 1000;

/// Imports.
///
/// # Errors
/// The directories cannot be used. Damage is no error.
pub fn run(args: &ImportArgs, dir: &Path) -> Result<Report, InspectError> {
    let source = Source::find(&args.from_loki)?;
    let mut definitions = Definitions::default();
    for file in source.files() {
        each_record(file, &mut |_, record| {
            if let Found::Record(record) = record {
                definitions.learn(record);
            }
            Ok(())
        })?;
    }
    let mut import = Import::new(Target::create(dir)?, definitions);
    source.gaps.iter().for_each(|gap| import.tally.damage(gap.clone()));
    for file in source.files() {
        import.tally.files += 1;
        import.in_checkpoint = source.checkpoints.contains(file);
        each_record(file, &mut |offset, found| import.found(file, offset, found))?;
    }
    let Import { target, tally, .. } = import;
    target.finish()?;
    Ok(tally.report(dir))
}

/// The files of Loki's log, in the order in which they are read.
struct Source {
    /// Segments of checkpoints, the newest checkpoint first.
    checkpoints: Vec<PathBuf>,
    segments: Vec<PathBuf>,
    /// What should be there and is not.
    gaps: Vec<Damage>,
}

impl Source {
    /// In the directory of the log, or in Loki's data directory above it.
    fn find(dir: &Path) -> Result<Self, InspectError> {
        let below = dir.join("wal");
        let dir = if below.is_dir() { &below } else { dir };
        let mut out = Self { checkpoints: Vec::new(), segments: Vec::new(), gaps: Vec::new() };
        let mut checkpoints = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(InspectError::io("list", dir))? {
            let entry = entry.map_err(InspectError::io("list", dir))?;
            let number = |name: &str| name.strip_prefix("checkpoint.").and_then(number);
            // What ends in .tmp was not finished, and segments have all of it.
            if let Some(number) = entry.file_name().to_str().and_then(number)
                && entry.path().is_dir()
            {
                checkpoints.push((number, entry.path()));
            }
        }
        checkpoints.sort_unstable_by(|a, b| b.cmp(a));
        for (_, path) in &checkpoints {
            let segments = segments(path)?;
            out.note_gaps(path, 0, &segments);
            out.checkpoints.extend(segments.into_iter().map(|(_, path)| path));
        }
        let segments = segments(dir)?;
        let newest = checkpoints.first().map(|(number, _)| *number);
        // A checkpoint stands for the segments up to its number, and those before it may be there still.
        let first = newest.map_or(0, |n| n + 1);
        let from = segments.first().map_or(first, |(number, _)| first.min(*number));
        if newest.is_none() && segments.is_empty() {
            return Err(InspectError::Tool {
                what: format!("{} holds no log of Loki: neither segments (<8 digits>) nor checkpoints", dir.display()),
                next: "the same command with the directory that Loki's configuration has in ingester.wal.dir"
                    .to_string(),
                code: 3,
            });
        }
        out.note_gaps(dir, from, &segments);
        out.segments = segments.into_iter().map(|(_, path)| path).collect();
        Ok(out)
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.checkpoints.iter().chain(&self.segments)
    }

    /// Segments are numbered without a gap.
    fn note_gaps(&mut self, dir: &Path, mut expected: u64, segments: &[(u64, PathBuf)]) {
        for (number, _) in segments {
            if *number > expected {
                let what = format!("segments {expected:08} to {:08} are missing", number - 1);
                self.gaps.push(Damage { file: dir.to_path_buf(), offset: None, bytes: None, what });
            }
            expected = number + 1;
        }
    }
}

fn number(digits: &str) -> Option<u64> {
    let all = digits.len() >= 6 && digits.len() <= 18 && digits.bytes().all(|b| b.is_ascii_digit());
    all.then(|| digits.parse().ok())?
}

/// The segments of a directory by number.
fn segments(dir: &Path) -> Result<Vec<(u64, PathBuf)>, InspectError> {
    let listed = RealFs.list(dir).map_err(InspectError::io("list", dir))?;
    let mut out: Vec<(u64, PathBuf)> =
        listed.iter().filter_map(|e| Some((number(&e.name)?, dir.join(&e.name)))).collect();
    out.sort_unstable();
    Ok(out)
}

/// What a segment holds at an offset.
enum Found<'a> {
    Record(&'a [u8]),
    Damage(u64, String),
}

/// Reads a segment.
fn each_record(
    path: &Path,
    each: &mut dyn FnMut(u64, Found<'_>) -> Result<(), InspectError>,
) -> Result<(), InspectError> {
    /// An error of the disk, or of what is done with a record.
    enum Failed {
        Io(io::Error),
        Inner(InspectError),
    }
    impl From<io::Error> for Failed {
        fn from(e: io::Error) -> Self {
            Self::Io(e)
        }
    }
    let file = RealFs.open(path, false).map_err(InspectError::io("open", path))?;
    let outcome = wlog::read::<Failed>(&*file, &mut |offset, piece| {
        let found = match piece {
            Piece::Record(record) => Found::Record(record),
            Piece::Damage(bytes, what) => Found::Damage(bytes, what),
        };
        each(offset, found).map_err(Failed::Inner)
    });
    outcome.map_err(|e| match e {
        Failed::Io(e) => InspectError::io("read", path)(e),
        Failed::Inner(e) => e,
    })
}

/// The streams by tenant and reference, which Loki may give again to other labels after a restart.
#[derive(Default)]
struct Definitions {
    first: HashMap<(String, u64), Arc<LabelSet>>,
    current: HashMap<(String, u64), Arc<LabelSet>>,
}

impl Definitions {
    /// Reads a record for the first time: damage is told at the second.
    fn learn(&mut self, record: &[u8]) {
        match decode(record) {
            Ok(Record::Series(tenant, series)) => {
                for (reference, labels) in series.map_while(Result::ok) {
                    if let (Ok(tenant), Ok(labels)) = (text(tenant), label_set(&labels)) {
                        self.first.entry((tenant.to_string(), reference)).or_insert(labels);
                    }
                }
            }
            Ok(Record::Checkpoint(series)) => {
                if let Ok(labels) = checkpoint_labels(&series) {
                    self.first.entry((series.tenant.clone(), series.reference)).or_insert(labels);
                }
            }
            _ => {}
        }
    }

    fn define(&mut self, tenant: &str, reference: u64, labels: Arc<LabelSet>) {
        self.current.insert((tenant.to_string(), reference), labels);
    }

    /// Defined before, else later: Loki logs a stream's first entries before its definition at times.
    fn find(&self, key: &(String, u64)) -> Option<Arc<LabelSet>> {
        self.current.get(key).or_else(|| self.first.get(key)).cloned()
    }
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "a name that is not UTF-8".to_string())
}

fn label_set(labels: &Labels<'_>) -> Result<Arc<LabelSet>, String> {
    let mut pairs = Vec::with_capacity(labels.len());
    for (name, value) in labels {
        pairs.push((text(name)?, text(value)?));
    }
    pairs.sort_unstable();
    match pairs.windows(2).find(|w| w.first().map(|p| p.0) == w.last().map(|p| p.0)) {
        Some(_) => Err("a stream with a label name that comes twice".to_string()),
        None => Ok(Arc::new(LabelSet::new(pairs))),
    }
}

fn checkpoint_labels(series: &CheckpointSeries) -> Result<Arc<LabelSet>, String> {
    label_set(&series.labels.iter().map(|l| (l.name.as_slice(), l.value.as_slice())).collect())
}

/// Something that does not hold.
#[derive(Clone)]
struct Damage {
    file: PathBuf,
    offset: Option<u64>,
    bytes: Option<u64>,
    what: String,
}

/// What was found.
#[derive(Default)]
struct Tally {
    files: u64,
    records: u64,
    streams: HashSet<(Tenant, Box<str>)>,
    lines: u64,
    bytes: u64,
    duplicates: u64,
    nameless: u64,
    unsupported: u64,
    damages: u64,
    named: Vec<Damage>,
}

impl Tally {
    fn damage(&mut self, damage: Damage) {
        self.damages += 1;
        if self.named.len() < NAMED {
            self.named.push(damage);
        }
    }

    fn report(self, dir: &Path) -> Report {
        let tenants: HashSet<&Tenant> = self.streams.iter().map(|(tenant, _)| tenant).collect();
        let verdict = if self.damages == 0 { "sound" } else { "damaged" };
        let summary: Row = vec![
            ("verdict", verdict.into()),
            ("files", self.files.into()),
            ("records", self.records.into()),
            ("tenants", (tenants.len() as u64).into()),
            ("streams", (self.streams.len() as u64).into()),
            ("lines", self.lines.into()),
            ("line_bytes", Cell::Size(self.bytes)),
            ("duplicate_lines", self.duplicates.into()),
            ("lines_without_stream", self.nameless.into()),
            ("lines_of_unsupported_chunks", self.unsupported.into()),
            ("damaged_places", self.damages.into()),
        ];
        let row = |d: &Damage| -> Row {
            vec![
                ("file", d.file.display().to_string().into()),
                ("offset", d.offset.into()),
                ("bytes", d.bytes.into()),
                ("what", d.what.clone().into()),
            ]
        };
        let mut sections = vec![("import", Shape::One, vec![summary])];
        if !self.named.is_empty() {
            sections.push(("damage", Shape::Many, self.named.iter().map(row).collect()));
        }
        let next = format!(
            "wal-inspect -d {} verify; everything else was imported: keep Loki's directory until you know what is missing",
            dir.display()
        );
        Report { sections, found: (self.damages > 0).then(|| Finding::damage(next)) }
    }
}

/// The lines of checkpoints. They are known by 128 bits of a keyed hash: 16 bytes, and what the set takes besides.
struct Seen {
    keys: [RandomState; 2],
    lines: HashSet<u128, RandomState>,
}

impl Seen {
    fn hash(&self, tenant: &Tenant, labels: &LabelSet, entry: &StoredEntry<'_>) -> u128 {
        // Loki sorts metadata for its chunks, and not for its segments.
        let mut metadata = entry.metadata.clone();
        metadata.sort_unstable();
        let whole = (tenant.as_str(), labels.text(), entry.timestamp, entry.line, metadata);
        let [high, low] = self.keys.each_ref().map(|key| u128::from(key.hash_one(&whole)));
        high << 64 | low
    }
}

struct Import {
    target: Target,
    definitions: Definitions,
    seen: Seen,
    tally: Tally,
    /// Are the records those of a checkpoint?
    in_checkpoint: bool,
}

/// Why a record was left at some place.
enum Stopped {
    Damaged(String),
    Failed(InspectError),
}

impl From<InspectError> for Stopped {
    fn from(e: InspectError) -> Self {
        Self::Failed(e)
    }
}

impl From<DecodeError> for Stopped {
    fn from(e: DecodeError) -> Self {
        Self::Damaged(RecordError::from(e).to_string())
    }
}

impl From<ChunkError> for Stopped {
    fn from(e: ChunkError) -> Self {
        Self::Damaged(e.to_string())
    }
}

impl Import {
    fn new(target: Target, definitions: Definitions) -> Self {
        let keys = [RandomState::new(), RandomState::new()];
        let seen = Seen { keys, lines: HashSet::default() };
        Self { target, definitions, seen, tally: Tally::default(), in_checkpoint: false }
    }

    fn found(&mut self, file: &Path, offset: u64, found: Found<'_>) -> Result<(), InspectError> {
        let damage = |bytes, what| Damage { file: file.to_path_buf(), offset: Some(offset), bytes: Some(bytes), what };
        match found {
            Found::Damage(bytes, what) => self.tally.damage(damage(bytes, what)),
            Found::Record(record) => {
                self.tally.records += 1;
                let mut whats = Vec::new();
                match self.record(record, &mut whats) {
                    Err(Stopped::Failed(e)) => return Err(e),
                    Err(Stopped::Damaged(what)) => whats.push(what),
                    Ok(()) => {}
                }
                whats.into_iter().for_each(|what| self.tally.damage(damage(record.len() as u64, what)));
            }
        }
        Ok(())
    }

    /// Takes what a record holds; `whats` gets what of it does not hold.
    fn record(&mut self, record: &[u8], whats: &mut Vec<String>) -> Result<(), Stopped> {
        let name = |tenant: &[u8]| {
            let tenant = text(tenant).map_err(Stopped::Damaged)?;
            Tenant::new(tenant).map_err(|e| Stopped::Damaged(e.to_string()))
        };
        match decode(record).map_err(|e| Stopped::Damaged(e.to_string()))? {
            Record::Series(tenant, series) => {
                let tenant = name(tenant)?;
                for definition in series {
                    let (reference, labels) = definition?;
                    match label_set(&labels) {
                        Ok(labels) => self.definitions.define(tenant.as_str(), reference, labels),
                        Err(what) => whats.push(what),
                    }
                }
                Ok(())
            }
            Record::Entries(tenant, entries) => {
                let tenant = name(tenant)?;
                let mut nameless = 0;
                let mut last: Option<((String, u64), Option<Arc<LabelSet>>)> = None;
                let outcome = entries.each::<Stopped>(&mut |reference, entry| {
                    if last.as_ref().is_none_or(|(key, _)| key.1 != reference) {
                        let key = (tenant.as_str().to_string(), reference);
                        let labels = self.definitions.find(&key);
                        last = Some((key, labels));
                    }
                    match last.as_ref().and_then(|(_, labels)| labels.clone()) {
                        Some(labels) => Ok(self.entry(&tenant, &labels, &entry)?),
                        None => {
                            nameless += 1;
                            Ok(())
                        }
                    }
                });
                if nameless > 0 {
                    self.tally.nameless += nameless;
                    whats.push(format!("{nameless} lines of streams that no surviving record defines"));
                }
                outcome
            }
            Record::Checkpoint(series) => {
                let tenant = name(series.tenant.as_bytes())?;
                let labels = checkpoint_labels(&series).map_err(Stopped::Damaged)?;
                self.definitions.define(tenant.as_str(), series.reference, labels.clone());
                for chunk in &series.chunks {
                    self.chunk(&tenant, &labels, &chunk.data, &chunk.head, whats)?;
                }
                Ok(())
            }
        }
    }

    fn chunk(
        &mut self,
        tenant: &Tenant,
        labels: &Arc<LabelSet>,
        data: &[u8],
        head: &[u8],
        whats: &mut Vec<String>,
    ) -> Result<(), InspectError> {
        let chunk = match Chunk::decode(data) {
            Ok(chunk) => chunk,
            Err(e) => {
                whats.push(format!("a chunk of {labels}: {e}"));
                return Ok(());
            }
        };
        for block in &chunk.blocks {
            match chunk.block::<Stopped>(*block, &mut |entry| Ok(self.entry(tenant, labels, &entry)?)) {
                Err(Stopped::Failed(e)) => return Err(e),
                Err(Stopped::Damaged(what)) => {
                    if chunk.is_unsupported() {
                        self.tally.unsupported += block.entries;
                    }
                    whats.push(format!("a block of {} lines of {labels}: {what}", block.entries));
                }
                Ok(()) => {}
            }
        }
        match chunk.head::<Stopped>(head, &mut |entry| Ok(self.entry(tenant, labels, &entry)?)) {
            Err(Stopped::Failed(e)) => return Err(e),
            Err(Stopped::Damaged(what)) => whats.push(format!("the head of {labels}: {what}")),
            Ok(()) => {}
        }
        Ok(())
    }

    fn entry(&mut self, tenant: &Tenant, labels: &Arc<LabelSet>, entry: &StoredEntry<'_>) -> Result<(), InspectError> {
        if self.in_checkpoint || !self.seen.lines.is_empty() {
            let hash = self.seen.hash(tenant, labels, entry);
            let known =
                if self.in_checkpoint { !self.seen.lines.insert(hash) } else { self.seen.lines.contains(&hash) };
            if known {
                self.tally.duplicates += 1;
                return Ok(());
            }
        }
        self.target.add(tenant, labels, entry.timestamp, entry.line, &entry.metadata)?;
        self.tally.lines += 1;
        self.tally.bytes += entry.line.len() as u64;
        let key = (tenant.clone(), labels.text().into());
        if !self.tally.streams.contains(&key) {
            self.tally.streams.insert(key);
        }
        Ok(())
    }
}
