//! `salvage`: a new data directory with everything that can be read from another one, which is only read.
//!
//! Blocks are copied as they are; lines of the write-ahead log become carried records, which keep their seqs. So a stream has its
//! id, its lines, their order and its duplicates as before. A Gap says of the seqs that are nowhere that they are not missed. The new
//! directory gets its identity last: until then no server starts on it.

use super::{define, options, refused, usual_segment_size};
use crate::fs::{Fs, RealFs};
use crate::ingester::{Dirs, Identity};
use crate::inspect::blocks::{KnownBlock, read_block};
use crate::inspect::cli::Dirs as Asked;
use crate::inspect::cli::SalvageArgs;
use crate::inspect::command::{Once, Streams};
use crate::inspect::log::{self, Judged, SegmentView, Step};
use crate::inspect::output::{Cell, Row, Shape};
use crate::inspect::{Finding, InspectError, Progress, Report, next, verify};
use crate::model::{LabelSet, Tenant};
use crate::wal::format::{FLAG_CARRIED, Kind};
use crate::wal::ranges::Ranges;
use crate::wal::{
    Applied, BlockAppend, BlockLog, BlockPlace, BlockSink, BodyView, Codec, Decision, EntriesBuilder, Gap, Hold,
    RecordScan, Sink, StreamLog, Tables, Unattributed, Unavailable, Wal, decompress_body, recover,
};
use bytes::Bytes;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, mpsc};

/// Bytes of blocks that are on their way to the new directory, about.
const IN_FLIGHT: u64 = 8 << 20;
/// Bytes and number of decisions that are logged in one group, about.
const BATCH_BYTES: usize = 2 << 20;
const BATCH: usize = 4096;
/// Ranges of seqs in one Gap.
const GAP_SEQS: usize = 10_000;

/// Copies what can be read.
///
/// # Errors
/// The source cannot be read, or the target not be written.
pub fn run(args: &SalvageArgs, asked: &Asked, mut progress: Progress) -> Result<Report, InspectError> {
    let (from, to) = (&args.source, &args.target);
    let source = Asked { dir: from.clone(), ..asked.clone() };
    check_target(from, to)?;
    let mut judged = log::judge(&source, &mut progress)?;
    if !args.attach_labels.is_empty() {
        let nameless = unattributed(&judged, &mut progress)?;
        let attached = define(&args.attach_labels, args.tenant.as_deref(), &nameless, &source)?;
        judged.plan.definitions.extend(attached.into_iter().map(|d| (d.id, Arc::new(d))));
    }
    let findings = verify::check(&judged, &mut progress)?;
    let mut salvage = Salvage::new(&judged, to)?;
    let copied = salvage.copy(&mut judged, &mut progress);
    let stopped = salvage.stop();
    copied.and(stopped).map_err(|e| unfinished(&e, to))?;
    let Salvage { copied, unreadable, without_labels, identity, .. } = salvage;
    check_result(to, &mut progress)?;
    identity.write(&RealFs, to).map_err(InspectError::io("write the identity of", to))?;
    // Of blocks that do not decode the write-ahead log may have had the lines.
    let left = |(id, seqs): &(u64, Range<u64>)| {
        let copied = copied.streams.get(id).map_or_else(|| vec![seqs.clone()], |copied| copied.missing(seqs));
        copied.into_iter().map(|seqs| (*id, seqs)).collect::<Vec<_>>()
    };
    let unreadable: Vec<(u64, Range<u64>)> = unreadable.iter().flat_map(left).collect();
    let lost = findings.lost + unreadable.iter().map(|(_, seqs)| seqs.end - seqs.start).sum::<u64>();
    let missing = [findings.missing, unreadable].concat();
    let unlabelled: u64 = without_labels.values().map(|(_, lines)| lines).sum();
    let complete = findings.sound && missing.is_empty() && unlabelled == 0;
    let summary = vec![
        ("source", from.display().to_string().into()),
        ("target", to.display().to_string().into()),
        ("verdict", if complete { "sound" } else { "incomplete" }.into()),
        ("streams", Cell::Count(copied.streams.len() as u64)),
        ("lines", Cell::Count(copied.lines + copied.block_lines)),
        ("block_lines", copied.block_lines.into()),
        ("blocks", copied.blocks.into()),
        ("lines_missing", lost.into()),
        ("lines_missing_unattributed", findings.unattributed.into()),
        ("lines_without_labels", unlabelled.into()),
    ];
    let without_labels = without_labels.iter().map(|(stream, (tenant, lines))| -> Row {
        vec![("stream", (*stream).into()), ("tenant", tenant.as_str().into()), ("lines", (*lines).into())]
    });
    let sections = vec![
        ("salvage", Shape::One, vec![summary]),
        ("missing", Shape::Many, verify::missing_rows(&missing, &Streams::of(&judged))),
        ("without_labels", Shape::Many, without_labels.collect()),
    ];
    let found = (!complete).then(|| Finding { what: "not everything could be read", next: next("verify", &source) });
    Ok(Report { sections, found })
}

/// The streams that no definition names, and their tenants where a record tells.
fn unattributed(judged: &Judged, progress: &mut Progress) -> Result<Vec<Unattributed>, InspectError> {
    let is_unknown = |id: u64| !judged.plan.definitions.contains_key(&id);
    let mut found: BTreeMap<u64, Unattributed> = BTreeMap::new();
    for block in judged.blocks.counting().filter(|b| is_unknown(b.stream)) {
        found.entry(block.stream).or_default().block_lines += block.lines;
    }
    judged.walk(
        |_| true,
        progress,
        |step| {
            let Step::Segment(view) = step else { return Err(judged.changing()) };
            let entries = view.records().filter(|(_, r, _)| r.head.known_kind() == Some(Kind::Entries));
            for tables in entries.filter_map(|(_, r, _)| Tables::decode(r.head.tables(view.file, r.offset)).ok()) {
                for row in tables.rows.iter().filter(|row| is_unknown(row.stream)) {
                    found.entry(row.stream).or_default().tenant = tables.tenant.to_string();
                }
            }
            Ok(true)
        },
    )?;
    Ok(found.into_iter().map(|(stream, u)| Unattributed { stream, ..u }).collect())
}

/// The target must be a new directory, or one without anything in it, and not in the source.
fn check_target(from: &Path, to: &Path) -> Result<(), InspectError> {
    let wrong = |what: String| {
        Err(refused(what, 2, "wal-inspect salvage SOURCE TARGET, with a directory that is not there yet"))
    };
    let source = from.canonicalize().map_err(InspectError::io("open", from))?;
    let absolute = std::path::absolute(to).map_err(InspectError::io("find", to))?;
    let existing = absolute.ancestors().find_map(|dir| dir.canonicalize().ok()).unwrap_or_default();
    if existing.starts_with(&source) {
        return wrong(format!("{} lies in the source, which is not touched", to.display()));
    }
    match std::fs::read_dir(to) {
        // A file system of its own begins with that.
        Ok(mut entries) => match entries.all(|e| e.is_ok_and(|e| e.file_name() == "lost+found")) {
            true => Ok(()),
            false => wrong(format!("{} is not empty", to.display())),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(InspectError::io("list", to)(e)),
    }
}

fn unfinished(error: &InspectError, to: &Path) -> InspectError {
    let next = format!("rm -r {}, which is unfinished and which no server takes; {}", to.display(), error.next());
    refused(error, error.exit_code(), next)
}

/// Reads the new logs as any reader would: what was written must be sound.
fn check_result(to: &Path, progress: &mut Progress) -> Result<(), InspectError> {
    let written = log::judge(&Asked::at(to), progress)?;
    if written.is_sound() {
        return Ok(());
    }
    let error = refused("what was written is damaged already", 3, "dmesg, which shows whether the disk failed");
    Err(unfinished(&error, to))
}

/// What came about on the threads of the new logs.
enum Event {
    /// Blocks count that have so many bytes.
    Synced(u64),
    /// A write or sync failed, or there is no space.
    Failed(String),
}

struct Events(mpsc::Sender<Event>);

impl Events {
    fn tell(&self, event: Event) {
        // Nobody listens any more when the work has failed already.
        let _ = self.0.send(event);
    }
}

impl Sink<()> for Events {
    fn durable(&mut self, _: Vec<Applied<()>>) {}
    fn failed(&mut self, _: Vec<()>, _: &Unavailable) {}
    fn poisoned(&mut self, error: &io::Error) {
        self.tell(Event::Failed(error.to_string()));
    }
}

impl BlockSink<u64> for Events {
    fn synced(&mut self, blocks: Vec<(BlockPlace, u64)>) {
        self.tell(Event::Synced(blocks.iter().map(|(_, bytes)| bytes).sum()));
    }

    fn starved(&mut self) {
        self.tell(Event::Failed("no space is left for blocks".to_string()));
    }
}

/// What was copied.
#[derive(Default)]
struct Copied {
    /// Seqs by stream.
    streams: BTreeMap<u64, Ranges>,
    lines: u64,
    block_lines: u64,
    blocks: u64,
}

struct Salvage {
    wal: Arc<Wal<()>>,
    blocks: BlockLog<u64>,
    events: mpsc::Receiver<Event>,
    in_flight: u64,
    identity: Identity,
    /// Streams that a definition names, and the seq after their last.
    streams: BTreeMap<u64, (Arc<StreamLog>, u64)>,
    copied: Copied,
    /// Seqs of blocks that hold by their checksums and do not decode.
    unreadable: Vec<(u64, Range<u64>)>,
    /// Streams that no definition names: tenant and lines.
    without_labels: BTreeMap<u64, (String, u64)>,
    batch: Vec<Decision>,
    batch_bytes: usize,
}

impl Salvage {
    /// Opens new, empty logs in the target.
    fn new(judged: &Judged, to: &Path) -> Result<Self, InspectError> {
        let fs: Arc<dyn Fs> = Arc::new(RealFs);
        let source =
            Dirs { data: judged.log.dir.clone(), wal: judged.log.dir.clone(), blocks: judged.log.blocks_dir.clone() };
        let segment_size = usual_segment_size(&*fs, &source)?;
        let target = Dirs { data: to.to_path_buf(), wal: to.join("wal"), blocks: to.join("blocks") };
        for dir in [&target.wal, &target.blocks] {
            fs.create_dir_all(dir).map_err(InspectError::io("make", dir))?;
        }
        let identity = Identity::new(&*fs);
        let options = options(fs, &target, identity.volume, segment_size);
        options.next_stream_id.store(judged.plan.next_stream_id, std::sync::atomic::Ordering::SeqCst);
        let (told, events) = mpsc::channel();
        let empty = recover(options, &mut |_, _| {}).map_err(|e| super::not_recovered(&e, &Asked::at(to)))?;
        let opened = empty.open(Events(told.clone()), Events(told));
        let (wal, blocks) = opened.map_err(|e| super::not_recovered(&e, &Asked::at(to)))?;
        Ok(Self {
            wal,
            blocks,
            events,
            in_flight: 0,
            identity,
            streams: streams_of(judged),
            copied: Copied::default(),
            unreadable: Vec::new(),
            without_labels: BTreeMap::new(),
            batch: Vec::new(),
            batch_bytes: 0,
        })
    }

    fn copy(&mut self, judged: &mut Judged, progress: &mut Progress) -> Result<(), InspectError> {
        self.copy_blocks(judged, progress)?;
        // What could not be read of blocks, the write-ahead log may still have.
        judged.blocks.held = self.copied.streams.iter().map(|(id, seqs)| (*id, seqs.clone())).collect();
        self.copy_log(judged, progress)?;
        self.copy_decisions(judged)?;
        self.flush()
    }

    fn stop(&self) -> Result<(), InspectError> {
        self.blocks.stop();
        self.wal.stop();
        match self.events.try_iter().find_map(|e| if let Event::Failed(why) = e { Some(why) } else { None }) {
            Some(why) => Err(failed(why)),
            None => Ok(()),
        }
    }

    fn copy_blocks(&mut self, judged: &Judged, progress: &mut Progress) -> Result<(), InspectError> {
        let live: HashSet<(u64, u64)> = judged.blocks.counting().map(|b| (b.place.segment, b.place.offset)).collect();
        progress.start(judged.blocks.counting().map(|b| u64::from(b.place.len)).sum(), "copying blocks");
        judged.blocks.walk(&judged.log, |view| {
            for record in view.records().filter(|r| live.contains(&(view.synced.segment, r.offset))) {
                self.copy_block(record, view.file)?;
                progress.advance(record.head.len.into());
            }
            Ok(true)
        })?;
        while self.in_flight > 0 {
            self.wait()?;
        }
        progress.clear();
        // A segment of which nothing was handed on has vanished.
        let known = |b: &&KnownBlock| b.live && self.streams.contains_key(&b.stream);
        let whole = |b: &KnownBlock| self.copied.streams.get(&b.stream).is_some_and(|r| r.missing(&b.seqs).is_empty());
        let told = |b: &KnownBlock| self.unreadable.iter().any(|(id, seqs)| *id == b.stream && *seqs == b.seqs);
        match judged.blocks.known.iter().filter(known).all(|b| whole(b) || told(b)) {
            true => Ok(()),
            false => Err(judged.changing()),
        }
    }

    fn copy_block(&mut self, record: &RecordScan, file: &[u8]) -> Result<(), InspectError> {
        let Ok(tables) = crate::wal::BlockTables::decode(record.head.tables(file, record.offset)) else {
            return Ok(());
        };
        let Some(stream) = self.streams.get(&tables.stream).map(|(stream, _)| stream.clone()) else {
            self.without_labels.entry(tables.stream).or_default().1 += u64::from(tables.entries);
            return Ok(());
        };
        let seqs = tables.first_seq..tables.end_seq;
        if read_block(record, file).is_err() {
            self.unreadable.push((tables.stream, seqs));
            return Ok(());
        }
        while self.in_flight > IN_FLIGHT {
            self.wait()?;
        }
        let data = Bytes::copy_from_slice(record.head.body(file, record.offset));
        let bytes = data.len() as u64;
        self.in_flight += bytes;
        self.copied.block_lines += u64::from(tables.entries);
        self.copied.blocks += 1;
        self.copied.streams.entry(tables.stream).or_default().insert(seqs);
        self.blocks.append(BlockAppend { tables, data, stream, closes: None, lets_go: true, payload: bytes });
        Ok(())
    }

    /// Waits until blocks count.
    fn wait(&mut self) -> Result<(), InspectError> {
        match self.events.recv() {
            Ok(Event::Synced(bytes)) => {
                self.in_flight = self.in_flight.saturating_sub(bytes);
                Ok(())
            }
            Ok(Event::Failed(why)) => Err(failed(why)),
            Err(_) => Err(failed("the new log has ended".to_string())),
        }
    }

    /// The lines that no block has: those that were carried first, as a start applies them.
    fn copy_log(&mut self, judged: &Judged, progress: &mut Progress) -> Result<(), InspectError> {
        let mut once = Once::new(judged);
        let with_carried: HashSet<u64> = judged.plan.carried.iter().map(|r| r.segment).collect();
        for carried in [true, false] {
            judged.walk(
                |number| !carried || with_carried.contains(&number),
                progress,
                |step| {
                    let Step::Segment(view) = step else { return Err(judged.changing()) };
                    for (_, record, _) in view.records() {
                        let head = &record.head;
                        let wanted = record.body_is_sound && head.known_kind() == Some(Kind::Entries);
                        if wanted && (head.flags & FLAG_CARRIED != 0) == carried {
                            self.copy_record(view, record, &mut once)?;
                        }
                    }
                    Ok(true)
                },
            )?;
        }
        Ok(())
    }

    fn copy_record(
        &mut self,
        view: &SegmentView<'_>,
        record: &RecordScan,
        once: &mut Once<'_>,
    ) -> Result<(), InspectError> {
        let head = &record.head;
        // What does not decode is told by the check.
        let Ok(tables) = Tables::decode(head.tables(view.file, record.offset)) else { return Ok(()) };
        let fresh: Vec<Vec<Range<u64>>> = tables.rows.iter().map(|row| once.seqs(row)).collect();
        if fresh.iter().all(Vec::is_empty) {
            return Ok(());
        }
        let Ok(raw) = decompress_body(head, head.body(view.file, record.offset)) else { return Ok(()) };
        let Ok(body) = BodyView::new(&raw) else { return Ok(()) };
        let symbol = |i: u32| body.symbols().get(i as usize).copied().unwrap_or_default();
        let mut builder = EntriesBuilder::new(raw.len());
        let (mut seqs, mut streams, mut start) = (Vec::new(), Vec::new(), 0);
        for (row, fresh) in tables.rows.iter().zip(&fresh) {
            let part = body.part(start, row);
            start = start.saturating_add(row.part_len as usize);
            let Ok(part) = part else { continue };
            let Some((stream, _)) = self.streams.get(&row.stream) else {
                let known = self.without_labels.entry(row.stream).or_default();
                known.0 = tables.tenant.to_string();
                known.1 += crate::wal::ranges::count(fresh);
                continue;
            };
            let copied = self.copied.streams.entry(row.stream).or_default();
            let mut run = 0..0;
            for (seq, entry) in (row.first_seq..).zip(part.map_while(Result::ok)) {
                if !fresh.iter().any(|r| r.contains(&seq)) {
                    continue;
                }
                if run.end != seq || run.is_empty() {
                    copied.insert(std::mem::replace(&mut run, seq..seq));
                    builder.stream(row.stream);
                    seqs.push(seq);
                    streams.push(stream.clone());
                }
                run.end = seq + 1;
                let metadata: Vec<(&[u8], &[u8])> = entry.metadata().map(|(n, v)| (symbol(n), symbol(v))).collect();
                builder.entry(entry.timestamp, entry.line, metadata.into_iter());
                self.copied.lines += 1;
            }
            copied.insert(run);
        }
        if seqs.is_empty() {
            return Ok(());
        }
        let codec = match head.codec {
            0 => Codec::None,
            2 => Codec::Zstd,
            _ => Codec::Snappy,
        };
        let record = builder.finish_carried(tables.tenant, codec, &seqs);
        let bytes = record.len();
        self.decide(Decision::Carried { record, streams }, bytes)
    }

    /// What was decided about chunks, and that nothing else is missed. The Gap is there in any case: behind it, no reader takes a
    /// definition's word for what blocks hold.
    fn copy_decisions(&mut self, judged: &Judged) -> Result<(), InspectError> {
        let holds = judged.plan.contents.iter().flat_map(|c| &c.holds);
        let mut known: HashSet<&Hold> = HashSet::new();
        for hold in holds.filter(|hold| known.insert(hold)) {
            match hold {
                Hold::Closed(c) if self.copied.streams.contains_key(&c.stream) => {
                    self.decide(Decision::ChunkClosed(*c), 64)?;
                }
                Hold::Flushed(c) => {
                    if let Some(copied) = self.copied.streams.get_mut(&c.stream) {
                        copied.insert(c.first_seq..c.end_seq);
                        self.decide(Decision::ChunkFlushed(c.clone()), 128 + c.key.len())?;
                    }
                }
                Hold::Closed(_) | Hold::Gap(_) => {}
            }
        }
        let mut seqs: Vec<(u64, u64, u64)> = Vec::new();
        for (id, copied) in &self.copied.streams {
            let end = self.streams.get(id).map_or(0, |(_, end)| *end);
            seqs.extend(copied.missing(&(0..end)).into_iter().map(|hole| (*id, hole.start, hole.end)));
        }
        for (at, seqs) in seqs.chunks(GAP_SEQS).map(<[_]>::to_vec).chain([Vec::new()]).enumerate() {
            if at == 0 || !seqs.is_empty() {
                let bytes = 27 * seqs.len();
                self.decide(Decision::Gap(Gap { lsns: Vec::new(), seqs, lines: 0 }), bytes)?;
            }
        }
        Ok(())
    }

    /// Logs a decision, soon.
    fn decide(&mut self, decision: Decision, bytes: usize) -> Result<(), InspectError> {
        if self.batch_bytes + bytes > BATCH_BYTES || self.batch.len() >= BATCH {
            self.flush()?;
        }
        self.batch.push(decision);
        self.batch_bytes += bytes;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), InspectError> {
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() { Ok(()) } else { self.wal.decide(batch).map_err(|e| failed(e.to_string())) }
    }
}

fn failed(why: String) -> InspectError {
    refused(
        format!("the new data directory cannot be written: {why}"),
        3,
        "df, which shows whether the target has space",
    )
}

/// The streams that a definition names, and the seq after the last that anything tells of each.
fn streams_of(judged: &Judged) -> BTreeMap<u64, (Arc<StreamLog>, u64)> {
    let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
    let mut note = |id: u64, end: u64| {
        let known = ends.entry(id).or_default();
        *known = end.max(*known);
    };
    judged.plan.definitions.values().for_each(|d| note(d.id, d.next_seq));
    judged.plan.contents.iter().flat_map(|c| &*c.streams).for_each(|(id, end)| note(*id, *end));
    judged.blocks.known.iter().for_each(|b| note(b.stream, b.seqs.end));
    judged.blocks.broken.iter().for_each(|(id, seqs)| note(*id, seqs.end));
    judged.blocks.flushed.iter().for_each(|(id, seqs)| note(*id, seqs.end().unwrap_or(0)));
    let log = |d: &crate::wal::SeriesDef| {
        let labels = LabelSet::new(d.labels.iter().map(|(n, v)| (n.as_str(), v.as_str())));
        let end = ends.get(&d.id).copied().unwrap_or(0);
        // A server takes no other name, and serves none.
        let tenant = Tenant::new(&d.tenant).ok()?;
        Some((d.id, (Arc::new(StreamLog::new(d.id, tenant, Arc::new(labels), end)), end)))
    };
    judged.plan.definitions.values().filter_map(|d| log(d)).collect()
}
