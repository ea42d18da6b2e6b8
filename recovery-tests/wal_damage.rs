//! Every bit flipped and every truncation of a small log, lost and repeated sectors, missing and mixed-up segments:
//! never a panic, never a wrong line, at most the damaged record lost, and every loss of durable lines told.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use support::disk::{MemDisk, Unsynced};
use support::{Lines, Log, Outcome, VOLUME, decode_record, dir, large_push, note, options, push};
use timberline::wal::*;

/// (stream id, seq) of lines.
type Keys = BTreeSet<(u64, u64)>;

/// A small log and what each of its bytes is.
struct Fixture {
    files: Vec<(u64, Vec<u8>)>,
    summaries: Vec<Summary>,
    lines: Lines,
    plan: Plan,
    /// Records: segment, bytes, keys of their lines.
    records: Vec<(u64, Range<u64>, Keys)>,
    /// Bytes of groups, padding excluded.
    live: Vec<(u64, Range<u64>)>,
    /// Nothing of this segment from this offset on is proved durable.
    unproved: (u64, u64),
}

/// `orderly` ends the log with a watermark; otherwise it ends as by `kill -9`, right behind its last ack.
fn make(orderly: bool) -> Fixture {
    let disk = MemDisk::default();
    // Five groups a segment: the time of these tests goes with the size.
    let options = WalOptions { segment_size: 32 << 10, ..options(Arc::new(disk.clone()), &dir(), SyncMode::Always) };
    let (log, _) = Log::open(options, None).unwrap();
    let mut lines = Lines::new();
    for n in 0..14 {
        let p = push(n, if u32::is_multiple_of(n, 2) { &[1, 2] } else { &[2, 3, 1] }, 2);
        log.send(n, &p, "t", Codec::Snappy).unwrap();
        match log.outcome(n) {
            Outcome::Durable { rows, .. } => note(&p, &rows, &mut lines),
            Outcome::Failed(why) => panic!("{why}"),
        }
    }
    if orderly {
        log.wal.stop();
    } else {
        log.kill();
    }
    let out = Fixture::of(&disk, lines);
    let used = out.summaries.iter().filter(|s| !s.is_empty()).count();
    assert!(used >= 3, "{used} segments");
    out
}

fn orderly() -> &'static Fixture {
    static LOG: OnceLock<Fixture> = OnceLock::new();
    LOG.get_or_init(|| make(true))
}

fn killed() -> &'static Fixture {
    static LOG: OnceLock<Fixture> = OnceLock::new();
    LOG.get_or_init(|| make(false))
}

fn summary(number: u64, file: &[u8]) -> Summary {
    match scan_segment(file) {
        Ok(scan) => Summary::of(number, &scan, file),
        Err(_) => Summary::unusable(number),
    }
}

/// Lines of the log in these files, by this plan.
fn read<'a>(plan: &Plan, file: impl Fn(u64) -> Option<&'a [u8]>) -> Lines {
    let mut out = Lines::new();
    for (number, _) in &plan.replay {
        let Some(bytes) = file(*number) else { continue };
        let Ok(scan) = scan_segment(bytes) else { continue };
        plan.records(*number, &scan).iter().for_each(|r| decode_record(r, &bytes[r.offset as usize..], &mut out));
    }
    out
}

/// Segments are needed for lines that a start applies, or tells as lost. One that is needed for others never goes, nor do those
/// behind it, and the log gets full.
fn no_segment_stays(plan: &Plan, lines: &Lines) {
    let mut comes: BTreeMap<u64, u64> = BTreeMap::new();
    let applied = lines.keys().map(|(stream, seq)| (*stream, seq + 1));
    for (stream, end) in applied.chain(plan.loss.streams.iter().map(|row| (row.stream, row.end_seq()))) {
        let known = comes.entry(stream).or_default();
        *known = end.max(*known);
    }
    for (stream, end) in plan.contents.iter().flat_map(|c| &*c.streams) {
        let come = comes.get(stream).copied().unwrap_or(0);
        assert!(
            come >= *end,
            "a segment is needed for seqs of stream {stream} below {end}, and only those below {come} come"
        );
    }
}

/// What a start finds.
struct Found {
    plan: Plan,
    lost: BTreeSet<(u64, u64)>,
}

impl Fixture {
    fn of(disk: &MemDisk, lines: Lines) -> Self {
        let files: Vec<(u64, Vec<u8>)> = disk
            .crash(Unsynced::Lost)
            .durable_files()
            .into_iter()
            .filter_map(|(name, bytes)| Some((segment_number(&name)?, bytes)))
            .collect();
        let summaries: Vec<Summary> = files.iter().map(|(n, b)| summary(*n, b)).collect();
        let plan = plan(&summaries);
        let (mut records, mut live) = (Vec::new(), Vec::new());
        let mut unproved = (u64::MAX, 0);
        for (number, bytes) in &files {
            for copy in [0, 4096] {
                live.push((*number, copy..copy + 64));
            }
            for group in scan_segment(bytes).unwrap().groups {
                let header = group.header.unwrap();
                live.push((*number, group.offset..group.offset + u64::from(header.len)));
                if header.end_lsn() > plan.durable_lsn {
                    unproved = (*number, group.offset);
                }
                for r in &group.records {
                    let mut keys = Lines::new();
                    if r.head.kind == 2 {
                        let r = RecordRef { segment: *number, offset: r.offset, head: r.head };
                        decode_record(&r, &bytes[r.offset as usize..], &mut keys);
                    }
                    let range = r.offset..r.offset + u64::from(r.head.len);
                    records.push((*number, range, keys.into_keys().collect()));
                }
            }
        }
        let out = Self { files, summaries, lines, plan, records, live, unproved };
        assert_eq!(read(&out.plan, |n| out.file(n)), out.lines);
        assert!(out.plan.loss.is_empty());
        out
    }

    fn file(&self, number: u64) -> Option<&[u8]> {
        self.files.iter().find(|(n, _)| *n == number).map(|(_, b)| &b[..])
    }

    /// Reads the log with one segment replaced. A wrong line or a line twice fails here.
    fn with(&self, number: u64, bytes: &[u8]) -> Found {
        let replaced =
            self.summaries.iter().map(|s| if s.number == number { summary(number, bytes) } else { s.clone() });
        let plan = plan(&replaced.collect::<Vec<_>>());
        let lines = read(&plan, |n| if n == number { Some(bytes) } else { self.file(n) });
        self.found(plan, &lines)
    }

    fn found(&self, plan: Plan, lines: &Lines) -> Found {
        for (key, line) in lines {
            assert_eq!(self.lines.get(key), Some(line), "a wrong line");
        }
        no_segment_stays(&plan, lines);
        let lost = self.lines.keys().filter(|k| !lines.contains_key(k)).copied().collect();
        Found { plan, lost }
    }

    /// Lines of all records that overlap these bytes.
    fn lines_in(&self, number: u64, bytes: &Range<u64>) -> BTreeSet<(u64, u64)> {
        let hit = self.records.iter().filter(|(n, r, _)| *n == number && r.start < bytes.end && bytes.start < r.end);
        hit.flat_map(|(_, _, keys)| keys.iter().copied()).collect()
    }

    fn check(&self, number: u64, bytes: Range<u64>, found: &Found) {
        let when = format!("bytes {bytes:?} of segment {number}");
        let Found { plan, lost } = found;
        let allowed = self.lines_in(number, &bytes);
        assert!(lost.is_subset(&allowed), "{when}: more than the damaged records is lost: {lost:?} of {allowed:?}");
        let unproved = number == self.unproved.0 && bytes.end > self.unproved.1;
        if lost.is_empty() || unproved {
            return;
        }
        assert!(!plan.loss.is_empty(), "{when}: {} lines are lost silently", lost.len());
        assert_eq!(plan.loss.lines, lost.len() as u64, "{when}: {:?}", plan.loss);
    }
}

/// Runs the cases on both cores.
fn in_parallel<T: Sync>(cases: &[T], run: impl Fn(&T) + Sync) {
    let half = cases.len() / 2;
    std::thread::scope(|s| {
        let first = s.spawn(|| cases[..half].iter().for_each(&run));
        cases[half..].iter().for_each(&run);
        first.join().unwrap();
    });
}

fn flip_every_bit(log: &'static Fixture, tell_unresolved: bool) {
    let bytes: Vec<(u64, u64)> = log.live.iter().flat_map(|(n, r)| r.clone().map(|at| (*n, at))).collect();
    in_parallel(&bytes, |(number, at)| {
        let mut file = log.file(*number).unwrap().to_vec();
        for bit in 0..8 {
            file[*at as usize] ^= 1 << bit;
            let found = log.with(*number, &file);
            log.check(*number, *at..*at + 1, &found);
            let proved = *number < log.unproved.0 || (*number == log.unproved.0 && *at < log.unproved.1);
            if *at >= 8192 && proved && !log.is_watermark_or_alignment(*number, *at) {
                assert!(!found.plan.loss.is_empty(), "byte {at} of segment {number}: the flip is not found");
            }
            if tell_unresolved && !found.lost.is_empty() && !proved {
                assert!(!found.plan.unresolved.is_empty(), "byte {at} of segment {number}: the tail is not told");
            }
            assert_eq!(found.plan.definitions.len(), 3);
            file[*at as usize] ^= 1 << bit;
        }
    });
}

impl Fixture {
    /// A group without records, or the zeros between two records: no line depends on it.
    fn is_watermark_or_alignment(&self, number: u64, at: u64) -> bool {
        let in_record = self.records.iter().any(|(n, r, _)| *n == number && r.contains(&at));
        let group = self.live.iter().find(|(n, r)| *n == number && r.contains(&at)).unwrap();
        let empty = group.1.end - group.1.start == 64;
        empty || (!in_record && at >= group.1.start + 64)
    }
}

#[test]
fn every_bit_flipped_in_a_log_that_was_stopped() {
    flip_every_bit(orderly(), false);
}

#[test]
fn every_bit_flipped_in_a_log_that_was_killed() {
    flip_every_bit(killed(), true);
}

#[test]
fn padding_and_unused_bytes_do_not_matter() {
    let log = orderly();
    for (number, file) in &log.files {
        let mut file = file.clone();
        let live = |at: u64| log.live.iter().any(|(n, r)| n == number && r.contains(&at));
        for at in (0..file.len() as u64).step_by(67).filter(|at| !live(*at)) {
            file[at as usize] ^= 0x10;
            let found = log.with(*number, &file);
            assert!(found.lost.is_empty() && found.plan.loss.is_empty(), "byte {at}: {:?}", found.plan.loss);
            assert!(found.plan.unresolved.is_empty());
            file[at as usize] ^= 0x10;
        }
    }
}

#[test]
fn every_truncation() {
    for log in [orderly(), killed()] {
        let cuts = log.files.iter().flat_map(|(number, file)| {
            let live = move |at: u64| log.live.iter().any(|(n, r)| n == number && r.contains(&at));
            (0..file.len() as u64).filter(move |at| at % 512 == 0 || live(*at)).map(|at| (*number, at))
        });
        in_parallel(&cuts.collect::<Vec<_>>(), |(number, cut)| {
            let file = &log.file(*number).unwrap()[..*cut as usize];
            let Found { plan, lost } = log.with(*number, file);
            let when = format!("segment {number} cut to {cut} bytes");
            let behind = *cut..u64::MAX;
            // Without a header nothing can be proved, so the whole segment is gone, and that is told.
            let allowed = log.lines_in(*number, if *cut < 64 { &(0..u64::MAX) } else { &behind });
            assert!(lost.is_subset(&allowed), "{when}: {lost:?}");
            // The program's files are never short, so even a cut before any group is told.
            // A cut behind the end that the next Open tells takes nothing.
            let held = log.live.iter().any(|(n, r)| n == number && r.start >= 8192 && *cut < r.end);
            assert!(lost.is_empty() || !plan.loss.is_empty(), "{when}: {} lines are lost silently", lost.len());
            assert!(!held || !plan.loss.is_empty(), "{when}: the cut is not found");
        });
    }
}

#[test]
fn lost_and_repeated_sectors() {
    for log in [orderly(), killed()] {
        for (number, original) in &log.files {
            for size in [512usize, 4096] {
                let sectors = original.len() / size;
                let used = log.live.iter().filter(|(n, _)| n == number).map(|(_, r)| r.end).max().unwrap_or(0);
                for sector in 0..sectors.min(used as usize / size + 2) {
                    let range = sector * size..(sector + 1) * size;
                    let bytes = range.start as u64..range.end as u64;
                    let mut file = original.clone();
                    file[range.clone()].fill(0);
                    log.check(*number, bytes.clone(), &log.with(*number, &file));
                    file[range.clone()].fill(0xff);
                    log.check(*number, bytes.clone(), &log.with(*number, &file));
                    // Another sector of the same segment in its place: an older version, or a misdirected write.
                    for other in [sector.wrapping_sub(1), sector + 1, 16, 2 * 4096 / size] {
                        let Some(from) = original.get(other.wrapping_mul(size)..).and_then(|b| b.get(..size)) else {
                            continue;
                        };
                        file[range.clone()].copy_from_slice(from);
                        log.check(*number, bytes.clone(), &log.with(*number, &file));
                    }
                }
            }
        }
    }
}

#[test]
fn missing_segments_are_told_the_newest_without_its_lines() {
    let log = orderly();
    let used: Vec<u64> = log.summaries.iter().filter(|s| !s.is_empty()).map(|s| s.number).collect();
    for missing in &used {
        let rest: Vec<Summary> = log.summaries.iter().filter(|s| s.number != *missing).cloned().collect();
        let plan = plan(&rest);
        let lines = read(&plan, |n| log.file(n));
        let Found { plan, lost } = log.found(plan, &lines);
        assert_eq!(lost, log.lines_in(*missing, &(0..u64::MAX)));
        assert_eq!(plan.loss.missing_segments, [*missing]);
        let newest = missing == used.last().unwrap();
        assert_eq!(plan.loss.missing_newest, newest.then_some(*missing));
        // Only the prepared segment behind the newest one tells of it, and not what it held.
        assert_eq!(plan.loss.lines, if newest { 0 } else { lost.len() as u64 });
        assert_eq!(plan.forgets, newest, "what it decided may be lost");
    }
}

/// A number that was given up has an empty file until a newer segment is used; and what no file tells of nobody misses.
#[test]
fn only_a_number_before_a_prepared_segment_is_missed() {
    let log = orderly();
    let newest = log.summaries.iter().filter(|s| !s.is_empty()).map(|s| s.number).max().unwrap();
    let missing = |numbers: &[u64], given_up: &[u64]| {
        let mut all: Vec<Summary> = log.summaries.iter().filter(|s| !s.is_empty()).cloned().collect();
        all.extend(numbers.iter().map(|n| Summary::prepared(newest + n)));
        all.extend(given_up.iter().map(|n| Summary::given_up(newest + n)));
        all.sort_by_key(|s| s.number);
        plan(&all).loss.missing_segments.iter().map(|n| n - newest).collect::<Vec<_>>()
    };
    assert!(missing(&[], &[]).is_empty());
    assert!(missing(&[1, 2], &[]).is_empty());
    assert_eq!(missing(&[2], &[]), [1]);
    assert_eq!(missing(&[3], &[1]), [2]);
    assert!(missing(&[2], &[1]).is_empty());
    assert!(missing(&[1], &[3]).is_empty());
    assert_eq!(missing(&[u64::MAX - newest], &[]), [1]);
}

#[test]
fn segments_under_wrong_names_give_no_wrong_line_and_are_told() {
    let log = orderly();
    let (a, b) = (log.files[0].clone(), log.files[1].clone());
    let files = |changed: &[(u64, &[u8])]| {
        let mut files = log.files.clone();
        for (number, bytes) in changed {
            files.retain(|(n, _)| n != number);
            files.push((*number, bytes.to_vec()));
        }
        files.sort_by_key(|(n, _)| *n);
        files
    };
    let newest = log.files.last().unwrap().0;
    let cases = [
        ("swapped", files(&[(a.0, &b.1), (b.0, &a.1)]), true),
        ("the oldest again under a higher number", files(&[(newest + 5, &a.1)]), false),
        ("the second again under the number of the first", files(&[(a.0, &b.1)]), true),
        ("the oldest again before itself", files(&[(0, &a.1)]), false),
    ];
    for (what, files, loses) in cases {
        let summaries: Vec<Summary> = files.iter().map(|(n, b)| summary(*n, b)).collect();
        let plan = plan(&summaries);
        let lines = read(&plan, |n| files.iter().find(|(m, _)| *m == n).map(|(_, b)| &b[..]));
        let found = log.found(plan, &lines);
        assert_eq!(!found.lost.is_empty(), loses, "{what}");
        assert!(!loses || !found.plan.loss.is_empty(), "{what}: lost silently");
        assert!(found.plan.replay.iter().all(|(n, _)| files.iter().any(|(m, _)| m == n)));
    }
}

#[test]
fn both_copies_of_a_segment_header_damaged_is_told() {
    let log = orderly();
    for (number, file) in &log.files {
        if log.lines_in(*number, &(0..u64::MAX)).is_empty() {
            continue;
        }
        let mut file = file.clone();
        file[20] ^= 1;
        file[4096 + 30] ^= 1;
        let found = log.with(*number, &file);
        assert_eq!(found.lost, log.lines_in(*number, &(0..u64::MAX)));
        assert!(found.plan.loss.damage.iter().any(|(n, _)| n == number), "segment {number} is lost silently");
    }
}

#[test]
fn a_segment_of_another_volume_stops_the_start() {
    let disk = MemDisk::default();
    let (log, _) = Log::mem(&disk, SyncMode::Always);
    log.acked(0, &push(0, &[1], 1), &mut Lines::new());
    log.wal.stop();
    let other = WalOptions { volume: uuid::Uuid::from_u128(2), ..options(Arc::new(disk), &dir(), SyncMode::Always) };
    match recover(other, &mut |_, _| {}) {
        Err(RecoverError::Foreign(_, found, _)) => assert_eq!(found, VOLUME),
        _ => panic!("a foreign segment must be refused"),
    }
}

#[test]
fn a_push_larger_than_a_segment_is_lost_whole_or_not() {
    let disk = MemDisk::default();
    let (log, _) = Log::mem(&disk, SyncMode::Always);
    let mut lines = Lines::new();
    for n in 0..6 {
        let p = if n == 3 { large_push(n, 1, 150_000) } else { push(n, &[1, 2], 2) };
        log.acked(n, &p, &mut lines);
    }
    for n in 6..20 {
        log.acked(n, &push(n, &[1, 2], 2), &mut lines);
    }
    log.wal.stop();
    let log = Fixture::of(&disk, lines);
    let (number, range, _) = log.records.iter().find(|(_, r, _)| r.end - r.start > 100_000).unwrap();
    let file = log.file(*number).unwrap();
    for at in (range.start..range.end).step_by(1009).chain(range.start..range.start + 100) {
        let mut file = file.to_vec();
        file[at as usize] ^= 4;
        let found = log.with(*number, &file);
        log.check(*number, at..at + 1, &found);
        assert_eq!(found.lost.len(), 1);
        let mut cut = log.file(*number).unwrap().to_vec();
        cut.truncate(at as usize);
        let found = log.with(*number, &cut);
        assert!(!found.plan.loss.is_empty());
        assert!(found.lost.is_subset(&log.lines_in(*number, &(at..u64::MAX))));
    }
}

/// A line that holds the bytes of a whole segment is a line.
#[test]
fn a_line_with_the_bytes_of_the_log_is_never_taken_for_the_log() {
    let inner = orderly().files[0].1.clone();
    let disk = MemDisk::default();
    let (log, _) = Log::mem(&disk, SyncMode::Always);
    let mut lines = Lines::new();
    log.acked(0, &push(0, &[1, 2], 2), &mut lines);
    for n in 1..3 {
        let p = vec![(1, vec![(i64::from(n), inner.clone(), vec![])])];
        log.send(n, &p, "t", Codec::None).unwrap();
        match log.outcome(n) {
            Outcome::Durable { rows, .. } => note(&p, &rows, &mut lines),
            Outcome::Failed(why) => panic!("{why}"),
        }
    }
    for n in 3..20 {
        log.acked(n, &push(n, &[1, 2], 2), &mut lines);
    }
    log.wal.stop();
    let log = Fixture::of(&disk, lines);
    let (number, range, _) = log.records.iter().find(|(_, r, _)| r.end - r.start > 30_000).unwrap();
    // Its head and the header of its group are damaged, so the scan looks at every place inside the line.
    for damaged in [range.start..range.start + 40, 8192..8200, 8192..12288] {
        let mut file = log.file(*number).unwrap().to_vec();
        file[damaged.start as usize..damaged.end as usize].iter_mut().for_each(|b| *b ^= 0x55);
        log.check(*number, damaged, &log.with(*number, &file));
    }
}

/// Damage to the files of an ingester with blocks, a flushed chunk, several segments of both logs. What a start finds is
/// compared with the contract and with `wal-inspect verify`; the start after it finds nothing new.
mod whole {
    use prometheus::{CounterVec, Opts, Registry};
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::{Arc, OnceLock};
    use std::time::{Duration, Instant};
    use timberline::chunk::{Encoding, Part, Selection, select_readable};
    use timberline::fs::RealFs;
    use timberline::ingester::{
        Cluster, Ingester, IngesterConfig, IngesterMetrics, Live, Progress, RecoveryReport, Replayed, ScrubOptions,
        ScrubStatus, StartError, Stream,
    };
    use timberline::model::{Entry, LabelSet, Overrides, Push, PushStream, Span, Tenant};
    use timberline::wal::*;

    fn config(dir: &Path) -> IngesterConfig {
        IngesterConfig {
            fs: Arc::new(RealFs),
            data_dir: dir.to_path_buf(),
            wal_dir: dir.join("wal"),
            blocks_dir: dir.join("blocks"),
            quarantine_dir: dir.join("quarantine"),
            refuse_damage: false,
            wal_max_size: 64 << 20,
            blocks_max_size: 1 << 30,
            require_data: false,
            segment_size: 1 << 20,
            sync: SyncMode::Always,
            wal_codec: Codec::Snappy,
            queue_bytes: 8 << 20,
            queue_timeout: Duration::from_secs(10),
            chunk_block_size: 32 << 10,
            chunk_target_size: 256 << 10,
            chunk_encoding: Encoding::Snappy,
            max_chunk_age: Duration::from_secs(7200),
            sync_period: Duration::ZERO,
            sync_min_utilization: 0.1,
            max_returned_stream_errors: 10,
            heads_budget: 64 << 20,
            metadata_budget: 1 << 30,
            cluster: Cluster { ingesters: 1, replication_factor: 1 },
            threads: 1,
        }
    }

    fn replay(config: IngesterConfig) -> Result<Replayed, StartError> {
        let labels = ["reason", "tenant", "retention_hours", "policy", "format"];
        let counter = |name: &str| CounterVec::new(Opts::new(name, name), &labels).unwrap();
        let metrics = IngesterMetrics::new(&Registry::new(), (counter("a"), counter("b"))).unwrap();
        Ingester::replay(config, Arc::new(Overrides::default()), metrics, &Progress::default())
    }

    fn start(dir: &Path) -> (Ingester<Live>, RecoveryReport) {
        let replayed = replay(config(dir)).unwrap();
        let report = replayed.report.clone();
        (replayed.go_live(Box::new(|e| panic!("poisoned: {e}"))).unwrap(), report)
    }

    fn tenant() -> Tenant {
        Tenant::new("acme").unwrap()
    }

    /// A line of `big` is about 600 bytes that hardly compress.
    fn line(app: &str, n: u64) -> String {
        let mut x = n * 2 + 88_172_645_463_325_253;
        let mut line = format!("{app} {n} ");
        while line.len() < 600 && app == "big" {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            line += &format!("{x:016x}");
        }
        line
    }

    type Wanted = [(&'static str, std::ops::Range<u64>)];

    fn push(ingester: &Ingester<Live>, runtime: &tokio::runtime::Runtime, streams: &Wanted) {
        let mut out = Push::default();
        for (app, numbers) in streams {
            let first = out.entries.len() as u32;
            for n in numbers.clone() {
                let (at, text) = (out.arena.len(), line(app, n));
                out.arena.extend_from_slice(text.as_bytes());
                out.entries.push(Entry { timestamp: n as i64, line: Span::new(at, text.len()), metadata: 0..0 });
            }
            let labels = Arc::new(LabelSet::new([("app", *app)]));
            out.streams.push(PushStream { labels, token: 0, entries: first..out.entries.len() as u32 });
        }
        let all: Vec<u32> = (0..out.streams.len() as u32).collect();
        let out = Arc::new(out);
        // Refused above the stream's rate, or by a full log: nothing of it was stored.
        while let Err(e) = runtime.block_on(ingester.push(&tenant(), out.clone(), &all)) {
            assert!(matches!(e.status, 429 | 503), "{e:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A slow disk delays what is awaited, and must not change what is tested.
    fn until(what: &str, holds: impl Fn() -> bool) {
        let begin = Instant::now();
        while !holds() {
            assert!(begin.elapsed() < Duration::from_secs(120), "in vain: {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Until each head that was full is in a block that counts.
    fn until_sealed(ingester: &Ingester<Live>) {
        let heads = |s: &Arc<Stream>| s.parts(i64::MIN, i64::MAX).iter().filter(|p| matches!(p, Part::Head(_))).count();
        let streams = ingester.streams(&tenant(), &[], i64::MIN, i64::MAX);
        until("full heads are blocks", || streams.iter().all(|s| heads(s) <= 1));
    }

    /// Until no head has grown far beyond a block: on a fast disk pushes overtake the sealing, and then a chunk is most of the sample.
    fn until_keeping_up(ingester: &Ingester<Live>) {
        let all = Selection { start: i64::MIN, end: i64::MAX, forward: true, limit: usize::MAX };
        let lines = |s: &Arc<Stream>| {
            let mut parts = s.parts(all.start, all.end);
            parts.retain(|p| matches!(p, Part::Head(_)));
            select_readable(&parts, &all, &mut |_, _| true, &mut Vec::new()).len()
        };
        let streams = ingester.streams(&tenant(), &[], i64::MIN, i64::MAX);
        // `cold` has 201, all in its head.
        until("large heads are sealed", || streams.iter().all(|s| lines(s) <= 201));
    }

    /// Every line that is there, and how often.
    fn read<L>(ingester: &Ingester<L>) -> BTreeMap<String, usize> {
        let all = Selection { start: i64::MIN, end: i64::MAX, forward: true, limit: usize::MAX };
        let mut out = BTreeMap::new();
        for s in ingester.streams(&tenant(), &[], i64::MIN, i64::MAX) {
            for e in select_readable(&s.parts(all.start, all.end), &all, &mut |_, _| true, &mut Vec::new()) {
                *out.entry(String::from_utf8_lossy(&e.line).into_owned()).or_default() += 1;
            }
        }
        out
    }

    struct Sample {
        dir: tempfile::TempDir,
        /// Lines that are not in the object store.
        lines: BTreeSet<String>,
        /// Lines of the flushed chunk.
        flushed: BTreeSet<String>,
        /// The oldest block segment as it was before anything was flushed.
        retired: Vec<u8>,
    }

    /// Three WAL segments and as many of blocks; `big` is in blocks but for its last lines, `cold` has a line in each push, `once`
    /// has one line, and so one definition.
    fn sample() -> &'static Sample {
        static SAMPLE: OnceLock<Sample> = OnceLock::new();
        SAMPLE.get_or_init(|| make(1))
    }

    /// With this many chunks flushed, at most.
    fn make(flushed_chunks: usize) -> Sample {
        {
            let dir = tempfile::tempdir().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (ingester, _) = start(dir.path());
            for from in (0..4000).step_by(20) {
                push(&ingester, &runtime, &[("big", from..from + 20), ("cold", from..from + 1)]);
                until_keeping_up(&ingester);
                if from == 2400 {
                    push(&ingester, &runtime, &[("once", 0..1)]);
                }
                // Blocks that wait for the disk together would get a segment of their own size.
                if from % 200 == 0 {
                    until_sealed(&ingester);
                }
            }
            until_sealed(&ingester);
            let mut flushed = BTreeSet::new();
            let retired = fs::read(path(dir.path(), LogKind::Blocks, 1)).unwrap();
            for _ in 0..flushed_chunks {
                // The oldest of each stream.
                let Some(chunk) = ingester.closed_chunks().into_iter().next() else { break };
                ingester.settle(&chunk, "acme/1").unwrap();
                flushed.extend(chunk.seqs().map(|n| line("big", n)));
            }
            assert!(!flushed.is_empty());
            push(&ingester, &runtime, &[("big", 4000..4001), ("cold", 4000..4001)]);
            let oldest = path(dir.path(), LogKind::Blocks, 1);
            until("the oldest block segment is given up", || flushed_chunks == 1 || !oldest.exists());
            std::thread::sleep(Duration::from_millis(300));
            let lines: BTreeSet<String> = read(&ingester).into_keys().collect();
            ingester.stop();
            drop(ingester);
            assert_eq!(lines.len() + BTreeSet::len(&flushed), 4001 + 201 + 1);
            assert!(numbers(dir.path(), LogKind::Wal).len() >= 3, "{:?}", numbers(dir.path(), LogKind::Wal));
            assert!(flushed_chunks > 1 || numbers(dir.path(), LogKind::Blocks).len() >= 2);
            Sample { dir, lines, flushed, retired }
        }
    }

    fn copy(from: &Path) -> tempfile::TempDir {
        let to = tempfile::tempdir().unwrap();
        for part in [".", "wal", "blocks"] {
            fs::create_dir_all(to.path().join(part)).unwrap();
            for file in fs::read_dir(from.join(part)).unwrap().flatten().filter(|f| f.path().is_file()) {
                fs::copy(file.path(), to.path().join(part).join(file.file_name())).unwrap();
            }
        }
        to
    }

    fn path(dir: &Path, log: LogKind, number: u64) -> PathBuf {
        dir.join(if log == LogKind::Wal { "wal" } else { "blocks" }).join(file_name(log, number))
    }

    /// Segments that hold something.
    fn numbers(dir: &Path, log: LogKind) -> Vec<u64> {
        let files = fs::read_dir(path(dir, log, 0).parent().unwrap()).unwrap().flatten();
        let number = |f: fs::DirEntry| file_number(log, &f.file_name().to_string_lossy());
        let holds = |n: &u64| scan_segment(&fs::read(path(dir, log, *n)).unwrap()).is_ok_and(|s| !s.is_prepared());
        let mut out: Vec<u64> = files.filter_map(number).filter(holds).collect();
        out.sort_unstable();
        out
    }

    fn flip(file: &Path, at: u64) {
        let mut bytes = fs::read(file).unwrap();
        bytes[at as usize] ^= 4;
        fs::write(file, bytes).unwrap();
    }

    /// All records of a kind: log, segment, offset, head.
    fn records(dir: &Path, kind: Kind) -> Vec<(LogKind, u64, u64, RecordHead)> {
        let mut out = Vec::new();
        for log in [LogKind::Wal, LogKind::Blocks] {
            for number in numbers(dir, log) {
                let scan = scan_segment(&fs::read(path(dir, log, number)).unwrap()).unwrap();
                let all = scan.groups.iter().flat_map(|g| &g.records).filter(|r| r.head.known_kind() == Some(kind));
                out.extend(all.map(|r| (log, number, r.offset, r.head)));
            }
        }
        out
    }

    fn block_lines(dir: &Path, (log, number, offset, head): (LogKind, u64, u64, RecordHead)) -> Vec<String> {
        let file = fs::read(path(dir, log, number)).unwrap();
        let (_, entries) =
            timberline::inspect::blocks::read_block(&RecordScan { offset, head, body_is_sound: true }, &file).unwrap();
        entries.iter().map(|e| String::from_utf8_lossy(&e.line).into_owned()).collect()
    }

    fn verify(dir: &Path) -> (i32, serde_json::Value) {
        let mut inspect = Command::new(env!("CARGO_BIN_EXE_wal-inspect"));
        let output = inspect.arg("-d").arg(dir).args(["verify", "-o", "json"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let parsed = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text} {output:?}"));
        (output.status.code().unwrap(), parsed)
    }

    struct After {
        report: RecoveryReport,
        missing: BTreeSet<String>,
        again: BTreeSet<String>,
    }

    /// Starts on damaged files, twice, and compares what must be the same.
    fn outcome(sample: &Sample, what: &str, dir: &Path) -> After {
        let (code, told) = verify(dir);
        let refused = replay(IngesterConfig { refuse_damage: true, ..config(dir) });
        assert!(matches!(refused, Err(StartError::Damaged { .. })), "{what}: on_damage: refuse starts");
        drop(refused);
        let (ingester, report) = start(dir);
        let found = read(&ingester);
        ingester.stop();
        drop(ingester);
        assert!(found.values().all(|n| *n == 1), "{what}: a line twice");
        let invented = found.keys().find(|l| !sample.lines.contains(*l) && !sample.flushed.contains(*l));
        assert_eq!(invented, None, "{what}: a line that nobody sent");
        let missing: BTreeSet<String> = sample.lines.iter().filter(|l| !found.contains_key(*l)).cloned().collect();
        let again = found.into_keys().filter(|l| sample.flushed.contains(l)).collect();
        assert!(report.damaged_places > 0, "{what}: not told: {report:?}");
        assert_eq!(code, 1, "{what}: verify finds nothing");
        let counted = report.lost_lines + report.unattributed_lines;
        assert_eq!(counted, missing.len() as u64, "{what}: {report:?}, missing {missing:?}");
        assert_eq!(told["verify"]["lost_lines"], report.lost_lines, "{what}: {report:?}: {told}");
        let kept = Quarantine::read(&RealFs, &dir.join("quarantine")).unwrap();
        assert!(!kept.unread.is_empty(), "{what}: no report");
        let (ingester, next) = start(dir);
        assert_eq!((next.damaged_places, next.lost_lines), (0, 0), "{what}: told again: {next:?}");
        let same = read(&ingester);
        assert_eq!(same.len(), sample.lines.len() - missing.len() + BTreeSet::len(&again), "{what}: the next start");
        ingester.stop();
        After { report, missing, again }
    }

    fn ends<T: Copy>(all: &[T]) -> Vec<T> {
        let mut at = vec![0, all.len() / 2, all.len() - 1];
        at.dedup();
        at.into_iter().map(|i| all[i]).collect()
    }

    /// First, middle and last record of every kind, in the body and in the head. Lines of `big` are in blocks as well, so nothing
    /// of them is lost; a push loses its line of `cold`.
    #[test]
    fn a_damaged_record_of_any_kind_costs_what_the_table_says() {
        let sample = sample();
        let lines = |app: &str, set: &BTreeSet<String>| set.iter().filter(|l| l.starts_with(app)).count();
        let kinds = [
            Kind::Series,
            Kind::Entries,
            Kind::Open,
            Kind::BlocksSynced,
            Kind::ChunkClosed,
            Kind::ChunkFlushed,
            Kind::Block,
            Kind::Footer,
        ];
        for kind in kinds {
            let all = records(sample.dir.path(), kind);
            assert!(!all.is_empty(), "no {kind:?}");
            for (log, number, offset, head) in ends(&all) {
                for at in [offset + u64::from(head.len) - u64::from(head.body_len) / 2 - 1, offset + 9] {
                    let what = format!("{kind:?} in {log:?} segment {number}, byte {at} of the record at {offset}");
                    let dir = copy(sample.dir.path());
                    flip(&path(dir.path(), log, number), at);
                    let footer = |f: &BlocksSynced| f.footer > 0;
                    let blocks = plan_of(dir.path()).blocks;
                    let has_footer = blocks.iter().any(|b| b.segment == number && footer(b));
                    if log == LogKind::Blocks && kind != Kind::Footer && has_footer {
                        // The footer tells of it, so it is read by who needs it.
                        assert_eq!(verify(dir.path()).0, 1, "{what}");
                        continue;
                    }
                    let after = outcome(sample, &what, dir.path());
                    let cold = if kind == Kind::Entries { 1 } else { 0 };
                    assert_eq!(lines("cold", &after.missing), cold, "{what}");
                    assert!(after.missing.len() <= 21, "{what}: {:?}", after.missing);
                    let twice = if kind == Kind::ChunkFlushed { sample.flushed.len() } else { 0 };
                    assert_eq!(after.again.len(), twice, "{what}");
                    if kind != Kind::Series {
                        assert_eq!(after.report.unattributed_lines, 0, "{what}");
                    }
                }
            }
        }
    }

    fn plan_of(dir: &Path) -> Plan {
        plan_without(dir, 0)
    }

    fn plan_without(dir: &Path, gone: u64) -> Plan {
        let mut files = numbers(dir, LogKind::Wal);
        files.retain(|n| *n != gone);
        let summary = |n: &u64| {
            let file = fs::read(path(dir, LogKind::Wal, *n)).unwrap();
            Summary::of(*n, &scan_segment(&file).unwrap(), &file)
        };
        plan(&files.iter().map(summary).collect::<Vec<_>>())
    }

    #[test]
    fn lines_without_any_definition_of_their_stream_are_counted_and_kept() {
        let sample = sample();
        // `once` has the only definition of its stream in a Series of its own.
        let alone = |(log, number, offset, head): &(LogKind, u64, u64, RecordHead)| {
            let file = fs::read(path(sample.dir.path(), *log, *number)).unwrap();
            let defined: Vec<SeriesDef> = decode_control(head, head.body(&file, *offset)).unwrap();
            defined.iter().any(|d| d.labels.iter().any(|(_, v)| v == "once"))
        };
        let all = records(sample.dir.path(), Kind::Series);
        let [(log, number, offset, head)] = all.into_iter().filter(alone).collect::<Vec<_>>()[..] else {
            panic!("the only definition")
        };
        let dir = copy(sample.dir.path());
        flip(&path(dir.path(), log, number), offset + u64::from(head.len) - 1);
        let after = outcome(sample, "Series of once", dir.path());
        assert_eq!((after.report.lost_lines, after.report.unattributed_lines), (0, 1), "{:?}", after.report);
        assert_eq!(after.missing, BTreeSet::from(["once 0 ".to_string()]));
        let kept = fs::read_dir(dir.path().join("quarantine")).unwrap().flatten();
        let bytes: Vec<Vec<u8>> = kept
            .filter(|f| f.path().extension().is_some_and(|e| e == "wal"))
            .map(|f| fs::read(f.path()).unwrap())
            .collect();
        assert_eq!(bytes.len(), 1, "the segment with its line");
    }

    #[test]
    fn one_copy_of_a_segment_header_serves_and_is_told_and_both_cost_the_segment() {
        let sample = sample();
        for log in [LogKind::Wal, LogKind::Blocks] {
            let numbers = numbers(sample.dir.path(), log);
            let last = numbers[numbers.len() - 1];
            for number in ends(&numbers) {
                for copies in [&[0u64][..], &[4096], &[0, 4096]] {
                    let what = format!("header copies {copies:?} of {log:?} segment {number}");
                    let dir = copy(sample.dir.path());
                    copies.iter().for_each(|at| flip(&path(dir.path(), log, number), at + 40));
                    if copies.len() == 1 {
                        let after = outcome(sample, &what, dir.path());
                        assert_eq!((after.missing.len(), after.again.len()), (0, 0), "{what}");
                        continue;
                    }
                    // What is lost is found to be lost, and nothing else.
                    let (ingester, report) = start(dir.path());
                    assert!(report.damaged_places > 0, "{what}");
                    let found = read(&ingester);
                    let missing = sample.lines.iter().filter(|l| !found.contains_key(*l)).count() as u64;
                    assert!(found.values().all(|n| *n == 1), "{what}");
                    match log {
                        // Nothing else tells what the newest segment held.
                        LogKind::Wal if number == last => assert!(missing <= 2000, "{what}"),
                        LogKind::Wal => assert_eq!(report.lost_lines, missing, "{what}: {report:?}"),
                        LogKind::Blocks => assert_eq!(missing, 0, "{what}: the write-ahead log has all of it"),
                    }
                }
            }
        }
    }

    #[test]
    fn an_identity_that_does_not_hold_refuses_and_changes_nothing() {
        let sample = sample();
        let identity = |dir: &Path| dir.join("identity");
        let other = tempfile::tempdir().unwrap();
        start(other.path()).0.stop();
        let files = |dir: &Path| -> BTreeMap<PathBuf, Vec<u8>> {
            let all = [".", "wal", "blocks"].map(|part| fs::read_dir(dir.join(part)).unwrap().flatten());
            let all = all.into_iter().flatten().map(|f| f.path()).filter(|p| p.is_file() && !p.ends_with("LOCK"));
            all.map(|p| (p.clone(), fs::read(p).unwrap())).collect()
        };
        let damages: [(&str, &dyn Fn(&Path)); 3] = [
            ("is gone", &|dir| fs::remove_file(identity(dir)).unwrap()),
            ("is damaged", &|dir| flip(&identity(dir), 30)),
            ("belongs to another volume", &|dir| assert!(fs::copy(identity(other.path()), identity(dir)).unwrap() > 0)),
        ];
        for (says, damage) in damages {
            let dir = copy(sample.dir.path());
            damage(dir.path());
            let before = files(dir.path());
            let error = replay(config(dir.path())).err().unwrap().to_string();
            assert!(error.contains(says), "{says}: {error}");
            assert!(files(dir.path()) == before, "{says}: something was changed");
            fs::copy(identity(sample.dir.path()), identity(dir.path())).unwrap();
            let (ingester, report) = start(dir.path());
            assert_eq!((report.damaged_places, read(&ingester).len()), (0, sample.lines.len()), "{says}");
        }
    }

    /// The record that gave up a block segment is damaged: nothing that is needed is removed, and nothing that was given up
    /// comes back, whether its file is still there or not.
    #[test]
    fn a_damaged_retiring_removes_nothing_and_brings_nothing_back() {
        let gone = make(usize::MAX);
        let (log, number, offset, head) = records(gone.dir.path(), Kind::Retiring)[0];
        let retired = path(gone.dir.path(), LogKind::Blocks, 1);
        assert!(!retired.exists());
        let at = offset + u64::from(head.len) - 1;
        let dir = copy(gone.dir.path());
        flip(&path(dir.path(), log, number), at);
        let after = outcome(&gone, "Retiring, done", dir.path());
        assert_eq!((after.missing.len(), after.again.len()), (0, 0));
        // The crash came before the file was removed.
        let dir = copy(gone.dir.path());
        flip(&path(dir.path(), log, number), at);
        fs::write(path(dir.path(), LogKind::Blocks, 1), &gone.retired).unwrap();
        let after = outcome(&gone, "Retiring, not done", dir.path());
        assert_eq!((after.missing.len(), after.again.len()), (0, 0));
    }

    #[test]
    fn group_headers_missing_files_and_cut_files_are_told_and_counted() {
        let sample = sample();
        for log in [LogKind::Wal, LogKind::Blocks] {
            let mut all = numbers(sample.dir.path(), log);
            // What is flushed comes back without the record that says so: another test.
            let flushed = records(sample.dir.path(), Kind::ChunkFlushed);
            all.retain(|number| !flushed.iter().any(|r| (r.0, r.1) == (log, *number)));
            let middle = all[all.len() / 2];
            let file = fs::read(path(sample.dir.path(), log, middle)).unwrap();
            let groups = scan_segment(&file).unwrap().groups;
            let with_records: Vec<u64> = groups.iter().filter(|g| !g.records.is_empty()).map(|g| g.offset).collect();
            let damages: [(&str, &dyn Fn(&Path)); 4] = [
                ("group header of the first group", &|file| flip(file, with_records[0] + 20)),
                ("group header in the middle", &|file| flip(file, with_records[with_records.len() / 2] + 20)),
                ("the file", &|file| fs::remove_file(file).unwrap()),
                ("its end", &|file| {
                    let bytes = fs::read(file).unwrap();
                    fs::write(file, &bytes[..300_000]).unwrap();
                }),
            ];
            for (part, damage) in damages {
                if log == LogKind::Blocks && (part.contains("group") || part.contains("end")) {
                    // Its footer tells of it, or is gone with the end and the segment is read.
                    continue;
                }
                let what = format!("{part} of {log:?} segment {middle}");
                let dir = copy(sample.dir.path());
                damage(&path(dir.path(), log, middle));
                let after = outcome(sample, &what, dir.path());
                assert_eq!(after.again.len(), 0, "{what}");
                if part.contains("header") {
                    assert_eq!(after.missing.len(), 0, "{what}: records prove themselves");
                }
            }
        }
    }

    /// A Gap that is damaged no longer settles its loss: it is told once more, with the same count.
    #[test]
    fn a_damaged_gap_tells_its_loss_again() {
        let sample = sample();
        let dir = copy(sample.dir.path());
        let (log, number, offset, _) = records(dir.path(), Kind::Entries)[50];
        flip(&path(dir.path(), log, number), offset + 9);
        let first = outcome(sample, "the first time", dir.path());
        assert_eq!((first.report.lost_lines, first.missing.len()), (1, 1));
        let (log, number, offset, head) = records(dir.path(), Kind::Gap)[0];
        flip(&path(dir.path(), log, number), offset + u64::from(head.len) - 1);
        let again = outcome(sample, "the second time", dir.path());
        assert_eq!((again.report.lost_lines, again.missing), (1, first.missing));
    }

    /// Damage that is found later in a segment that has a report already is a report of its own: neither is told again.
    #[test]
    fn a_second_damage_in_a_segment_takes_the_place_of_no_report() {
        let sample = sample();
        let dir = copy(sample.dir.path());
        let entries = records(dir.path(), Kind::Entries);
        let same: Vec<_> = entries.iter().filter(|(_, number, ..)| *number == entries[0].1).collect();
        let (log, number, offset, head) = *same[10];
        flip(&path(dir.path(), log, number), offset + u64::from(head.len) - u64::from(head.body_len) / 2);
        let first = outcome(sample, "the first", dir.path());
        assert_eq!(first.report.lost_lines, 1);
        let (log, number, offset, head) = *same[20];
        flip(&path(dir.path(), log, number), offset + u64::from(head.len) - u64::from(head.body_len) / 2);
        for start_again in [false, true] {
            let (ingester, report) = start(dir.path());
            let new = if start_again { (0, 0) } else { (1, 1) };
            assert_eq!((report.damaged_places, report.lost_lines), new, "again: {start_again}: {report:?}");
            ingester.stop();
        }
        let kept = Quarantine::read(&RealFs, &dir.path().join("quarantine")).unwrap();
        assert_eq!((kept.reports.len(), kept.unread.len(), kept.bytes), (2, 2, 1 << 20), "{kept:?}");
        // Each tells its own line, and not that of the other.
        let lost: Vec<_> = kept.reports.values().map(|r| (r.lines_missing, r.streams.len())).collect();
        assert_eq!(lost, [(1, 1), (1, 1)], "{kept:?}");
    }

    #[test]
    fn a_damaged_chunk_flushed_says_that_lines_may_be_shown_twice() {
        let sample = sample();
        let dir = copy(sample.dir.path());
        let (log, number, offset, head) = records(dir.path(), Kind::ChunkFlushed)[0];
        flip(&path(dir.path(), log, number), offset + u64::from(head.len) - 1);
        let after = outcome(sample, "ChunkFlushed", dir.path());
        assert_eq!((after.missing.len(), after.again.len()), (0, sample.flushed.len()));
        let kept = Quarantine::read(&RealFs, &dir.path().join("quarantine")).unwrap();
        let [report] = &kept.reports.values().collect::<Vec<_>>()[..] else { panic!("{kept:?}") };
        let [remark] = &report.remarks[..] else { panic!("{report:?}") };
        assert!(remark.contains("shown twice") && remark.contains("none of them is lost"), "{remark}");
        assert_eq!(report.lines_missing, 0);
    }

    /// An ingester whose write-ahead log is small, so that most lines are only in blocks.
    fn small(dir: &Path) -> IngesterConfig {
        IngesterConfig { wal_max_size: 4 << 20, ..config(dir) }
    }

    /// Pushes lines of `big` until the write-ahead log no longer has its record with this LSN; returns the next number.
    fn push_until_retired(ingester: &Ingester<Live>, dir: &Path, lsn: u64, from: u64) -> u64 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut n = from;
        while plan_of(dir).first_lsn <= lsn {
            for _ in 0..20 {
                push(ingester, &runtime, &[("big", n..n + 20)]);
                n += 20;
            }
            until_sealed(ingester);
            std::thread::sleep(Duration::from_millis(60));
            assert!(n < from + 100_000, "nothing is retired");
        }
        n
    }

    /// Three streams in several segments of both logs; `big` is in all of them. `hot` goes on, and `idle` has all its lines in so
    /// many blocks, far apart. Returns the lines, and the segment with the last of these blocks.
    fn mostly_blocks(dir: &Path, idle_blocks: u64) -> (BTreeSet<String>, u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let replayed = replay(small(dir)).unwrap();
        let ingester = replayed.go_live(Box::new(|e| panic!("poisoned: {e}"))).unwrap();
        push(&ingester, &runtime, &[("hot", 0..10)]);
        let mut n = push_until_retired(&ingester, dir, 30, 0);
        for part in 0..idle_blocks {
            // Large enough to be sealed, and too small to be sealed at once.
            let part = part * IDLE..(part + 1) * IDLE;
            part.step_by(100).for_each(|i| push(&ingester, &runtime, &[("idle", i..i + 100)]));
            n = push_until_retired(&ingester, dir, plan_of(dir).durable_lsn + 1, n);
        }
        push(&ingester, &runtime, &[("big", n..n + 1), ("hot", 10..20)]);
        until_sealed(&ingester);
        std::thread::sleep(Duration::from_millis(400));
        let lines: BTreeSet<String> = read(&ingester).into_keys().collect();
        assert_eq!(lines.len() as u64, n + 1 + 20 + idle_blocks * IDLE);
        ingester.stop();
        let idle = records(dir, Kind::Block).into_iter().filter(|(log, number, offset, head)| {
            let file = fs::read(path(dir, *log, *number)).unwrap();
            BlockTables::decode(head.tables(&file, *offset)).unwrap().stream == 3
        });
        let idle: Vec<u64> = idle.map(|(_, number, ..)| number).collect();
        assert_eq!(idle.len() as u64, idle_blocks, "{idle:?}");
        assert!(idle.is_sorted_by(|a, b| a < b), "{idle:?}");
        (lines, idle.last().copied().unwrap_or(0))
    }

    /// Lines of a block of `idle`: less than a block by their bytes, and much more as a head in memory.
    const IDLE: u64 = 2000;

    fn start_small(dir: &Path) -> (Ingester<Live>, RecoveryReport) {
        let replayed = replay(small(dir)).unwrap();
        let report = replayed.report.clone();
        (replayed.go_live(Box::new(|e| panic!("poisoned: {e}"))).unwrap(), report)
    }

    /// What is left tells exactly what a block segment held, as long as all its streams go on in the write-ahead log.
    #[test]
    fn the_lines_of_a_missing_block_segment_are_counted() {
        let made = tempfile::tempdir().unwrap();
        let (lines, _) = mostly_blocks(made.path(), 0);
        let all = numbers(made.path(), LogKind::Blocks);
        assert!(all.len() >= 3, "{all:?}");
        let mut lost = 0;
        for number in ends(&all) {
            for header in [false, true] {
                let dir = copy(made.path());
                let file = path(dir.path(), LogKind::Blocks, number);
                if header {
                    flip(&file, 40);
                    flip(&file, 4096 + 40);
                } else {
                    fs::remove_file(&file).unwrap();
                }
                let told = verify(dir.path()).1;
                let (ingester, report) = start_small(dir.path());
                let found = read(&ingester);
                ingester.stop();
                drop(ingester);
                let missing: BTreeSet<_> = lines.iter().filter(|l| !found.contains_key(*l)).cloned().collect();
                let what = format!("segment {number} of {all:?}, only its header: {header}: {report:?}");
                lost += missing.len();
                assert_eq!((report.lost_lines, report.at_least), (missing.len() as u64, false), "{what}");
                assert_eq!(told["verify"]["lost_lines"], report.lost_lines, "{what}");
                let kept = Quarantine::read(&RealFs, &dir.path().join("quarantine")).unwrap();
                let streams = &kept.reports.values().next().unwrap().streams;
                let listed: u64 = streams.iter().map(|(_, _, first, end)| end - first).sum();
                assert_eq!(listed, missing.len() as u64, "{what}: {streams:?}");
                assert!(streams.iter().all(|s| s.1 == "{app=\"big\"}"), "{what}: {streams:?}");
                let (ingester, next) = start_small(dir.path());
                assert_eq!((next.damaged_places, next.lost_lines), (0, 0), "{what}: told again");
                ingester.stop();
            }
        }
        assert!(lost > 1000, "{lost}");
    }

    /// All of a stream was in the segment that is gone. What is counted is lost, and the report says that there may be more.
    #[test]
    fn lines_of_which_nothing_is_left_are_told_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let (lines, number) = mostly_blocks(dir.path(), 1);
        fs::remove_file(path(dir.path(), LogKind::Blocks, number)).unwrap();
        let told = verify(dir.path()).1;
        let (ingester, report) = start_small(dir.path());
        let found = read(&ingester);
        ingester.stop();
        let missing: BTreeSet<_> = lines.iter().filter(|l| !found.contains_key(*l)).cloned().collect();
        let idle = missing.iter().filter(|l| l.starts_with("idle")).count() as u64;
        assert_eq!(idle, IDLE);
        assert_eq!((report.lost_lines, report.at_least), (missing.len() as u64 - idle, true), "{report:?}");
        assert_eq!(told["verify"]["lost_lines"], report.lost_lines, "{told}");
        let remark = report.losses.last().unwrap();
        assert!(remark.contains("at least") && remark.contains("nothing is left to tell"), "{remark}");
        assert_eq!(told["lost_block_segments"][0]["what"], remark.as_str(), "{told}");
    }

    /// A block segment is gone, the log goes on, and the segment is put back: what was pushed meanwhile has no seq of a line in it.
    #[test]
    fn a_block_segment_that_comes_back_hides_no_line_that_came_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let (mut lines, number) = mostly_blocks(dir.path(), 2);
        let file = path(dir.path(), LogKind::Blocks, number);
        let kept = fs::read(&file).unwrap();
        // Its stream is defined in another segment of the block log, too, with fewer lines.
        fs::remove_file(&file).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (ingester, _) = start_small(dir.path());
        for n in 0..3 {
            push(&ingester, &runtime, &[("idle", 5000 + n..5001 + n), ("hot", 5000 + n..5001 + n)]);
        }
        lines.extend((5000..5003).flat_map(|n| [line("idle", n), line("hot", n)]));
        ingester.stop();
        drop(ingester);
        fs::write(&file, kept).unwrap();
        let (ingester, report) = start_small(dir.path());
        let found = read(&ingester);
        ingester.stop();
        let missing: Vec<_> = lines.iter().filter(|l| !found.contains_key(*l)).collect();
        assert!(
            missing.is_empty() && found.len() == lines.len(),
            "{} of {}: {missing:?}: {report:?}",
            found.len(),
            lines.len()
        );
    }

    /// What a query cannot read.
    fn unreadable<L>(ingester: &Ingester<L>) -> usize {
        let all = Selection { start: i64::MIN, end: i64::MAX, forward: true, limit: usize::MAX };
        let mut out = Vec::new();
        for s in ingester.streams(&tenant(), &[], i64::MIN, i64::MAX) {
            select_readable(&s.parts(all.start, all.end), &all, &mut |_, _| true, &mut out);
        }
        out.len()
    }

    fn quarantined(dir: &Path) -> Quarantine {
        Quarantine::read(&RealFs, &dir.join("quarantine")).unwrap()
    }

    /// Damages the `n`-th block from the end of those that a footer lists, or the oldest if they are fewer, has a query find it, and
    /// stops.
    fn damage_listed_block(dir: &Path, n: usize, start: fn(&Path) -> (Ingester<Live>, RecoveryReport)) {
        let listed: Vec<u64> = plan_of(dir).blocks.iter().filter(|b| b.footer > 0).map(|b| b.segment).collect();
        let mut blocks = records(dir, Kind::Block);
        blocks.retain(|b| listed.contains(&b.1));
        let (log, number, offset, head) = *blocks.iter().rev().nth(n).or(blocks.first()).unwrap();
        flip(&path(dir, log, number), offset + u64::from(head.len) - u64::from(head.body_len) / 2);
        let (ingester, report) = start(dir);
        assert_eq!((report.damaged_places, report.lost_lines), (0, 0), "a start reads no block that a footer lists");
        assert!(quarantined(dir).reports.is_empty());
        assert_eq!(unreadable(&ingester), 1, "a query does, and says so");
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(20));
            if !quarantined(dir).reports.is_empty() {
                break;
            }
        }
        assert_eq!(unreadable(&ingester), 1);
        std::thread::sleep(Duration::from_millis(100));
        ingester.stop();
        let kept = quarantined(dir);
        let [report] = &kept.reports.values().collect::<Vec<_>>()[..] else { panic!("{kept:?}") };
        assert_eq!((report.segment, &report.blocks[..]), (number, &[(offset, head.len)][..]));
        assert!(
            report.places[0].contains("found by a read") && report.remarks[0].contains("restart soon"),
            "{report:?}"
        );
        assert_eq!((kept.unread.len(), kept.bytes > 0), (1, true), "{kept:?}");
    }

    /// A query finds it, the next start makes the block again from the write-ahead log, whatever becomes of the reports.
    #[test]
    fn a_damaged_block_that_a_footer_lists_is_made_again_by_the_next_start() {
        let sample = sample();
        for (n, keep_reports) in [(0, true), (7, false)] {
            let dir = copy(sample.dir.path());
            damage_listed_block(dir.path(), n, start);
            let refused = replay(IngesterConfig { refuse_damage: true, ..config(dir.path()) });
            assert!(matches!(refused, Err(StartError::Damaged { .. })), "on_damage: refuse starts");
            drop(refused);
            for again in 0..3 {
                let (ingester, report) = start(dir.path());
                assert_eq!(
                    (report.damaged_places, report.lost_lines),
                    (usize::from(again == 0), 0),
                    "{again}: {report:?}"
                );
                let found: BTreeSet<String> = read(&ingester).into_keys().collect();
                assert!(found == sample.lines, "{again}: {} of {}", found.len(), sample.lines.len());
                assert!(read(&ingester).values().all(|n| *n == 1), "{again}: a line twice");
                assert_eq!(unreadable(&ingester), 0, "{again}");
                // What was made again becomes a block that counts.
                std::thread::sleep(Duration::from_millis(400));
                ingester.stop();
                if !keep_reports && again == 0 {
                    fs::remove_dir_all(dir.path().join("quarantine")).unwrap();
                }
            }
        }
    }

    /// The write-ahead log has none of its lines any more: they are counted, once.
    #[test]
    fn a_damaged_block_whose_lines_are_nowhere_else_is_counted_by_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let (lines, _) = mostly_blocks(dir.path(), 0);
        damage_listed_block(dir.path(), usize::MAX, start_small);
        let told = verify(dir.path()).1;
        for again in [false, true] {
            let (ingester, report) = start_small(dir.path());
            let found = read(&ingester);
            ingester.stop();
            let missing = lines.iter().filter(|l| !found.contains_key(*l)).count();
            assert!((10..100).contains(&missing), "{missing}");
            let new = if again { (0, 0) } else { (1, missing as u64) };
            assert_eq!((report.damaged_places, report.lost_lines), new, "again: {again}: {report:?}");
            assert_eq!(told["verify"]["lost_lines"], missing, "{told}");
            assert!(!report.at_least, "{report:?}");
        }
        let kept = quarantined(dir.path());
        assert_eq!((kept.reports.len(), kept.unread.len()), (2, 1), "what it cost, not that a read has found it");
    }

    /// Under a running server every byte of the oldest segment is damaged behind its header, as no one reads it; then it is to go. What
    /// was only there is carried and sealed from memory, so nothing is lost.
    #[test]
    fn what_is_carried_and_sealed_comes_from_memory_never_from_a_damaged_segment() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (ingester, _) = start_small(dir.path());
        // Small heads are carried, a large one is sealed.
        push(&ingester, &runtime, &[("hot", 0..10), ("cold", 0..10)]);
        push(&ingester, &runtime, &[("idle", 0..IDLE)]);
        push(&ingester, &runtime, &[("big", 0..20)]);
        let oldest = path(dir.path(), LogKind::Wal, 1);
        {
            use std::os::unix::fs::FileExt;
            let file = fs::OpenOptions::new().write(true).open(&oldest).unwrap();
            // The group that is written next goes behind what is damaged.
            let used = scan_segment(&fs::read(&oldest).unwrap()).unwrap().groups.last().unwrap().end;
            file.write_all_at(&vec![0x5a; usize::try_from(used - 8192).unwrap()], 8192).unwrap();
        }
        let n = push_until_retired(&ingester, dir.path(), 10, 20);
        push(&ingester, &runtime, &[("hot", 10..20), ("cold", 10..20)]);
        ingester.stop();
        drop(ingester);
        let carried = Kind::Entries;
        let is_carried = |r: &&(LogKind, u64, u64, RecordHead)| r.3.flags & timberline::wal::format::FLAG_CARRIED != 0;
        assert!(records(dir.path(), carried).iter().filter(is_carried).count() > 0, "nothing was carried");
        let (ingester, report) = start_small(dir.path());
        assert_eq!((report.damaged_places, report.lost_lines, report.unattributed_lines), (0, 0, 0), "{report:?}");
        let found = read(&ingester);
        ingester.stop();
        let sent = [("hot", 20), ("cold", 20), ("idle", IDLE), ("big", n)];
        let sent: BTreeSet<String> = sent.iter().flat_map(|(app, n)| (0..*n).map(|i| line(app, i))).collect();
        assert!(found.values().all(|n| *n == 1), "a line twice");
        let missing: Vec<_> = sent.iter().filter(|l| !found.contains_key(*l)).take(5).collect();
        assert!(missing.is_empty() && found.len() == sent.len(), "{} of {}: {missing:?}", found.len(), sent.len());
    }

    /// Changes a byte under a running server.
    fn flip_in_place(file: &Path, at: u64) {
        use std::os::unix::fs::FileExt;
        let file = fs::OpenOptions::new().read(true).write(true).open(file).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        file.sync_data().unwrap();
    }

    const FAST: ScrubOptions = ScrubOptions { rate: 1 << 40, interval: Duration::from_millis(5) };

    fn scrubbed(ingester: &Ingester<Live>, what: &str, done: impl Fn(&ScrubStatus) -> bool) -> ScrubStatus {
        for _ in 0..1000 {
            let status = ingester.status().scrub.expect("it runs");
            if done(&status) {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{what}: not within 10 s: {:?}", ingester.status().scrub);
    }

    /// Nobody reads the block. The scrubber finds it and tells it as if a query had, once, and the next start makes it again.
    #[test]
    fn a_block_that_is_damaged_under_a_running_server_is_found_by_the_scrubber() {
        let sample = sample();
        let dir = copy(sample.dir.path());
        let (ingester, _) = start(dir.path());
        ingester.scrub(FAST);
        scrubbed(&ingester, "two sound passes", |s| s.passes >= 2);
        assert!(quarantined(dir.path()).reports.is_empty(), "{:?}", quarantined(dir.path()));
        let listed: Vec<u64> = plan_of(dir.path()).blocks.iter().filter(|b| b.footer > 0).map(|b| b.segment).collect();
        let blocks = records(dir.path(), Kind::Block);
        let (log, number, offset, head) = *blocks.iter().rev().find(|b| listed.contains(&b.1)).unwrap();
        flip_in_place(&path(dir.path(), log, number), offset + u64::from(head.len) - u64::from(head.body_len) / 2);
        let status = scrubbed(&ingester, "the flip", |s| s.damaged_places > 0);
        scrubbed(&ingester, "two more passes", |s| s.passes >= status.passes + 2);
        std::thread::sleep(Duration::from_millis(200));
        let kept = quarantined(dir.path());
        let [report] = &kept.reports.values().collect::<Vec<_>>()[..] else { panic!("{kept:?}") };
        assert_eq!((report.segment, &report.blocks[..]), (number, &[(offset, head.len)][..]));
        assert_eq!(unreadable(&ingester), 1);
        ingester.stop();
        drop(ingester);
        let (ingester, report) = start(dir.path());
        assert_eq!((report.damaged_places, report.lost_lines), (1, 0), "{report:?}");
        let found: BTreeSet<String> = read(&ingester).into_keys().collect();
        assert!(found == sample.lines, "{} of {}", found.len(), sample.lines.len());
        ingester.stop();
    }

    /// A segment's footer, definitions and headers hold no line that a running server would miss: damage to them is told.
    #[test]
    fn damage_beside_the_blocks_of_a_segment_is_told_by_the_scrubber() {
        let sample = sample();
        let dir = copy(sample.dir.path());
        let footer = records(dir.path(), Kind::Footer).pop().unwrap();
        let (ingester, _) = start(dir.path());
        let file = path(dir.path(), LogKind::Blocks, footer.1);
        flip_in_place(&file, footer.2 + u64::from(footer.3.len) - 1);
        flip_in_place(&file, 40);
        ingester.scrub(FAST);
        scrubbed(&ingester, "both", |s| s.damaged_places == 2 && s.passes >= 2);
        let kept = quarantined(dir.path());
        let [report] = &kept.reports.values().collect::<Vec<_>>()[..] else { panic!("{kept:?}") };
        let places = report.places.join("; ");
        assert!(places.contains("segment header, found by a scrub") && places.contains("(footer)"), "{places}");
        assert!(report.remarks[0].contains("no line is lost"), "{report:?}");
        assert_eq!(unreadable(&ingester), 0);
        ingester.stop();
    }

    /// Lines of a damaged segment of the write-ahead log that are in memory alone are sealed from there: a start misses none.
    #[test]
    fn the_lines_of_a_damaged_log_segment_are_sealed_from_memory() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (ingester, _) = start(dir.path());
        push(&ingester, &runtime, &[("cold", 0..10), ("idle", 0..10)]);
        let mut n = 0;
        while numbers(dir.path(), LogKind::Wal).len() < 3 {
            push(&ingester, &runtime, &[("big", n..n + 20)]);
            n += 20;
        }
        // The only record of `cold` and `idle`, and one of `big`.
        let entries: Vec<_> = records(dir.path(), Kind::Entries).into_iter().filter(|r| r.1 == 1).collect();
        for (_, number, offset, head) in [entries[0], entries[3]] {
            flip_in_place(&path(dir.path(), LogKind::Wal, number), offset + u64::from(head.len) - 1);
        }
        ingester.scrub(FAST);
        let status = scrubbed(&ingester, "healed", |s| s.healed_segments > 0);
        assert_eq!((status.damaged_places, status.healed_segments), (2, 1), "{status:?}");
        scrubbed(&ingester, "two more passes", |s| s.passes >= status.passes + 2);
        let kept = quarantined(dir.path());
        let [report] = &kept.reports.values().collect::<Vec<_>>()[..] else { panic!("{kept:?}") };
        assert_eq!((&*report.log, report.segment, report.places.len()), ("wal", 1, 2), "{report:?}");
        assert!(report.remarks[0].contains("none is lost"), "{report:?}");
        ingester.stop();
        drop(ingester);
        // Where a start refuses damage, what was healed is no reason to, and what the scrubber has not seen is one.
        let refusing = |dir: &Path| replay(IngesterConfig { refuse_damage: true, ..config(dir) }).map(drop);
        assert!(refusing(dir.path()).is_ok());
        let another = copy(dir.path());
        for file in fs::read_dir(dir.path().join("quarantine")).unwrap().flatten() {
            fs::create_dir_all(another.path().join("quarantine")).unwrap();
            fs::copy(file.path(), another.path().join("quarantine").join(file.file_name())).unwrap();
        }
        assert!(refusing(another.path()).is_ok());
        let (_, number, offset, head) = entries[1];
        flip_in_place(&path(another.path(), LogKind::Wal, number), offset + u64::from(head.len) - 1);
        assert!(matches!(refusing(another.path()), Err(StartError::Damaged { .. })));
        let (ingester, report) = start(dir.path());
        assert_eq!((report.damaged_places, report.lost_lines), (2, 0), "{report:?}");
        let found = read(&ingester);
        let sent = [("cold", 10), ("idle", 10), ("big", n)];
        let sent: BTreeSet<String> = sent.iter().flat_map(|(app, n)| (0..*n).map(|i| line(app, i))).collect();
        assert!(found.values().all(|n| *n == 1), "a line twice");
        assert!(found.into_keys().collect::<BTreeSet<_>>() == sent, "lines are missing");
        ingester.stop();
    }

    /// Segments are retired, used again and removed while they are read: that is no damage.
    #[test]
    fn segments_that_are_used_again_while_they_are_scrubbed_are_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        let (ingester, _) = start_small(dir.path());
        ingester.scrub(ScrubOptions { rate: 50 << 20, interval: Duration::from_millis(1) });
        let mut n = 0;
        for _ in 0..2 {
            n = push_until_retired(&ingester, dir.path(), plan_of(dir.path()).durable_lsn, n);
        }
        let status = scrubbed(&ingester, "some passes", |s| s.passes >= 3 && s.pass_bytes > 0);
        assert_eq!(status.damaged_places, 0, "{:?}", quarantined(dir.path()));
        assert!(quarantined(dir.path()).reports.is_empty());
        assert_eq!(read(&ingester).len() as u64, n);
        ingester.stop();
    }

    /// The same at the worst moment: right after the first group was read.
    #[test]
    fn what_is_used_again_or_removed_while_it_is_read_counts_for_nothing() {
        use std::os::unix::fs::FileExt;
        type Meanwhile = fn(&Path, SegmentHeader);
        fn write_over(file: &Path, header: SegmentHeader) {
            let file = fs::OpenOptions::new().write(true).open(file).unwrap();
            file.write_all_at(&header.encode(0), 0).unwrap();
            file.write_all_at(&header.encode(4096), 4096).unwrap();
            file.write_all_at(&vec![0x5a; 1 << 19], 12_288).unwrap();
        }
        let damaged: Meanwhile = |file, header| write_over(file, header);
        let used_again: Meanwhile = |file, header| {
            let next = file.with_file_name(file_name(LogKind::Wal, header.number + 1000));
            fs::rename(file, &next).unwrap();
            write_over(&next, SegmentHeader { number: header.number + 1000, salt: 7, recycled: true, ..header });
        };
        let under_its_name: Meanwhile =
            |file, header| write_over(file, SegmentHeader { salt: 7, recycled: true, ..header });
        let removed: Meanwhile = |file, _| fs::remove_file(file).unwrap();
        for (meanwhile, counts) in [(damaged, true), (used_again, false), (under_its_name, false), (removed, false)] {
            let dir = copy(sample().dir.path());
            let number = numbers(dir.path(), LogKind::Wal)[0];
            let file = path(dir.path(), LogKind::Wal, number);
            let bytes = fs::read(&file).unwrap();
            let header = SegmentHeader::decode(&bytes).unwrap();
            let end = scan_segment(&bytes).unwrap().groups.last().unwrap().end;
            let sealed = Sealed { path: &file, log: LogKind::Wal, number, volume: header.volume, end };
            let sound = Scrub::default().run(&RealFs, &sealed, &mut |_| true).unwrap().unwrap();
            assert_eq!((sound.salt, &sound.damage[..]), (header.salt, &[][..]));
            assert!(Scrub::default().run(&RealFs, &sealed, &mut |_| false).unwrap().is_none(), "it was not to go on");
            let mut first = true;
            let found = Scrub::default().run(&RealFs, &sealed, &mut |_| {
                if std::mem::replace(&mut first, false) {
                    meanwhile(&file, header);
                }
                true
            });
            assert_eq!(found.unwrap().is_some_and(|found| !found.damage.is_empty()), counts);
        }
    }

    /// A stop does not wait for a slow pass.
    #[test]
    fn a_stop_ends_a_scrub_at_once() {
        let dir = copy(sample().dir.path());
        let (ingester, _) = start(dir.path());
        ingester.scrub(ScrubOptions { rate: 1, interval: Duration::from_millis(1) });
        scrubbed(&ingester, "it reads", |s| s.running && s.pass_bytes >= 1 << 20);
        let stopped = std::thread::spawn(move || ingester.stop());
        for _ in 0..500 {
            if stopped.is_finished() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the stop waits for the scrubber");
    }

    /// The newest segment of the write-ahead log is gone. It is told, not its lines; and what only it named of the block log stays.
    #[test]
    fn without_the_newest_segment_of_the_log_every_block_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (lines, _) = mostly_blocks(dir.path(), 0);
        let newest = *numbers(dir.path(), LogKind::Wal).last().unwrap();
        let blocks = numbers(dir.path(), LogKind::Blocks);
        fs::remove_file(path(dir.path(), LogKind::Wal, newest)).unwrap();
        let named: Vec<u64> = plan_of(dir.path()).blocks.iter().map(|b| b.segment).collect();
        let told = verify(dir.path()).1;
        assert_eq!(told["missing_newest_segment"][0]["segment"], newest, "{told}");
        let refused = replay(IngesterConfig { refuse_damage: true, ..small(dir.path()) });
        assert!(matches!(refused, Err(StartError::Damaged { .. })), "on_damage: refuse starts");
        drop(refused);
        let (ingester, report) = start_small(dir.path());
        let found = read(&ingester);
        assert!(report.damaged_places > 0 && report.at_least, "{report:?}");
        assert!(report.losses.iter().any(|l| l.contains("behind all that are there")), "{report:?}");
        ingester.stop();
        drop(ingester);
        assert_eq!(numbers(dir.path(), LogKind::Blocks), blocks, "a block segment was removed; {named:?} were named");
        // `hot` was carried to the newest segment, and the last lines of `big` were only there: no more than a segment holds.
        let missing: Vec<&String> = lines.iter().filter(|l| !found.contains_key(*l)).collect();
        assert!(missing.len() < 2000, "{} of {}: {report:?}", missing.len(), lines.len());
        assert!(found.keys().all(|l| lines.contains(l)) && found.values().all(|n| *n == 1));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for n in 0..2 {
            let (ingester, next) = start_small(dir.path());
            assert_eq!((next.damaged_places, next.lost_lines), (0, 0), "told again: {next:?}");
            assert_eq!(read(&ingester).len(), found.len() + n);
            push(&ingester, &runtime, &[("hot", 7000 + n as u64..7001 + n as u64)]);
            ingester.stop();
        }
    }

    /// Blocks behind the end that older segments tell of theirs, because the newest one of the write-ahead log, which told a later one, is
    /// gone: they count, and are not written over.
    #[test]
    fn without_the_newest_segment_of_the_log_blocks_behind_the_told_end_count() {
        let dir = tempfile::tempdir().unwrap();
        let (mut lines, mut n) = mostly_blocks(dir.path(), 0);
        n = n.max(lines.len() as u64);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let is_behind = |plan: &Plan, number: u64, offset: u64| {
            plan.blocks.iter().any(|b| b.segment == number && b.footer == 0 && b.end <= offset)
        };
        let (newest, behind) = loop {
            assert!(n < 200_000, "no block behind the told end");
            let (ingester, _) = start_small(dir.path());
            for first in (n..n + 400).step_by(20) {
                push(&ingester, &runtime, &[("big", first..first + 20)]);
            }
            n += 400;
            std::thread::sleep(Duration::from_millis(100));
            lines.extend(read(&ingester).into_keys());
            ingester.stop();
            drop(ingester);
            let newest = *numbers(dir.path(), LogKind::Wal).last().unwrap();
            let plan = plan_without(dir.path(), newest);
            let blocks = records(dir.path(), Kind::Block).into_iter();
            let behind =
                blocks.filter(|(log, number, offset, _)| *log == LogKind::Blocks && is_behind(&plan, *number, *offset));
            let behind: BTreeSet<String> = behind.flat_map(|r| block_lines(dir.path(), r)).collect();
            if !behind.is_empty() {
                break (newest, behind);
            }
        };
        fs::remove_file(path(dir.path(), LogKind::Wal, newest)).unwrap();
        let told = verify(dir.path()).1;
        assert_eq!(told["missing_newest_segment"][0]["segment"], newest, "{told}");
        let mut before = 0;
        for again in [false, true] {
            let (ingester, report) = start_small(dir.path());
            let found = read(&ingester);
            let gone = behind.iter().filter(|l| !found.contains_key(*l)).count();
            assert_eq!(gone, 0, "again: {again}: sound blocks do not count, of {} lines", behind.len());
            assert!(found.keys().all(|l| lines.contains(l)) && found.values().all(|n| *n == 1));
            assert_eq!(report.damaged_places == 0, again, "{report:?}");
            // A block that is written now goes to another place.
            push(&ingester, &runtime, &[("big", 900_000..900_000 + IDLE * 2)]);
            std::thread::sleep(Duration::from_millis(300));
            ingester.stop();
            assert!(found.len() >= before);
            before = found.len();
            lines.extend((900_000..900_000 + IDLE * 2).map(|i| line("big", i)));
        }
    }
}
