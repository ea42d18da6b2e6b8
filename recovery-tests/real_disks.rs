//! The real binary on file systems that a kernel mounts, and that lose what was not synced: one in user space that keeps
//! nothing else, an ext4 that is shut down under load, and an ext4 on a disk that notes each write, so that what it would
//! have held at any moment is mounted and recovered. And on a disk that fails below ext4.
//!
//! `TIMBERLINE_FULL=1` runs all of it, `TIMBERLINE_SEED` repeats a run's random choices. Needs root, FUSE and loop devices.

#[path = "support/faults.rs"]
mod faults;
#[path = "support/load.rs"]
mod load;
#[path = "support/real_disks/mod.rs"]
mod real_disks;
#[path = "support/server.rs"]
mod server;

use faults::{Client, Random, can_plant, figures, found, is_full};
use load::{CONFIG, Field, check_log, epoch};
use real_disks::ext4::{self, Ext4, Shutdown};
use real_disks::lossy::{Fault, Lossy, Unsynced};
use real_disks::recorder::{Disk, Event, Failure, Images, InFlight};
use server::{Server, has, skip};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Cycles on one disk, at most: nothing leaves it, so it gets full, and each start takes longer than the one before.
const ON_ONE: u64 = 50;
const SHUTDOWN_BYTES: u64 = 192 << 20;
const RECORDED_BYTES: u64 = 48 << 20;
/// Journals of data too take what is written past the page cache through it, so that a sync is all that makes it durable.
const JOURNALS: [&str; 3] = ["data=journal", "data=ordered", "data=writeback"];
/// `EX_IOERR`: the log could not be written or synced.
const IO_ERROR: i32 = 74;
const PLANTED: &str = "TIMBERLINE_PLANTED_BUG";

fn seed() -> u64 {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("TIMBERLINE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(clock);
    println!("TIMBERLINE_SEED={seed}");
    seed
}

/// How many: in `cargo test`, and in all.
fn count(short: u64, full: u64) -> u64 {
    if is_full() { full } else { short }
}

/// What a layer has done and found.
#[derive(Default)]
struct Run {
    crashes: u64,
    crashes_while_starting: u64,
    acks: u64,
    ended_by_itself: u64,
    unacked_there: u64,
    torn_tails: u64,
    struck: BTreeMap<&'static str, u64>,
    /// Images that the kernel itself does not mount.
    not_mounted: u64,
    wrong: Vec<String>,
}

impl Run {
    fn add(&mut self, other: Run) {
        self.crashes += other.crashes;
        self.crashes_while_starting += other.crashes_while_starting;
        self.acks += other.acks;
        self.ended_by_itself += other.ended_by_itself;
        self.unacked_there += other.unacked_there;
        self.torn_tails += other.torn_tails;
        self.not_mounted += other.not_mounted;
        other.struck.into_iter().for_each(|(what, n)| *self.struck.entry(what).or_default() += n);
        self.wrong.extend(other.wrong);
    }

    /// Is enough wrong to end a run? A hunt for a planted bug ends when acknowledged lines are lost, and not before.
    fn ends(&self, hunt: bool) -> bool {
        if hunt { !lost(&self.wrong).is_empty() } else { !self.wrong.is_empty() }
    }

    /// Writes the figures; something wrong is a failure.
    fn finish(self, layer: &str, crashes: &'static str, started: Instant) {
        let wrong = &self.wrong[..self.wrong.len().min(10)];
        assert!(wrong.is_empty(), "{layer}: {} wrong: {wrong:#?}", self.wrong.len());
        let mut counts = vec![
            (crashes, self.crashes),
            ("crashes while starting", self.crashes_while_starting),
            ("pushes acknowledged", self.acks),
            ("pushes without an answer that are there", self.unacked_there),
            ("torn tails", self.torn_tails),
            ("exit 74", self.ended_by_itself),
            ("images that the kernel does not mount", self.not_mounted),
        ];
        counts.retain(|(_, n)| *n > 0);
        counts.extend(self.struck);
        counts.extend([("lost", 0), ("phantom", 0), ("doubled", 0), ("altered", 0)]);
        let counts: Vec<(&str, usize)> = counts.into_iter().map(|(what, n)| (what, n as usize)).collect();
        figures(layer, started, &counts);
    }
}

/// Of what is wrong, the losses of acknowledged lines.
fn lost(wrong: &[String]) -> Vec<String> {
    wrong.iter().filter(|w| w.contains("acknowledged")).cloned().collect()
}

/// Waits for the process to end by itself.
fn end_of(server: &mut Server, patience: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        match server.ended() {
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            ended => return ended,
        }
    }
}

/// After an error of the disk the process ends with one code. Answers whether it has ended.
fn ends_well(server: &mut Server, patience: Duration, run: &mut Run) -> bool {
    let Some(ended) = end_of(server, patience) else { return false };
    run.ended_by_itself += 1;
    if ended.code() != Some(IO_ERROR) {
        run.wrong.push(format!("after an error of the disk the process ended with {ended}: {}", server.log_tail()));
    }
    true
}

/// A disk that loses what was not synced.
trait Forgets {
    /// Something happens to the disk under load, then the server ends, by itself or killed. The answer names what happened.
    fn strike(&mut self, server: &mut Server, random: &mut Random, run: &mut Run) -> &'static str;

    /// Power is gone, and back; nobody uses the files.
    fn crash(&mut self, random: &mut Random);
}

/// Start, check, load, crash, again and again.
fn cycles(
    disk: &mut impl Forgets,
    dir: &Path,
    wanted: u64,
    random: &mut Random,
    env: &[(&str, &str)],
    hunt: bool,
) -> Run {
    let (field, data, mut run) = (Field::new(), dir.join("data"), Run::default());
    let mut cycle = 0;
    while run.crashes < wanted {
        assert!(cycle < 2 * wanted + 10, "most crashes come without an ack since the one before");
        let mut server = Server::start(dir, CONFIG, env);
        let mut wrong = field.check(&mut server.http(), epoch(cycle));
        let load = field.start(&server.addr, cycle);
        load.wait_for_ack();
        // Some are long enough for new segments, blocks, and segments that go.
        let long = if random.below(8) == 0 { 10 } else { 1 };
        std::thread::sleep(Duration::from_micros(long * random.below(60_000)));
        if random.below(4) == 0 {
            field.note_shown(&mut server.http(), epoch(cycle));
        }
        let struck = disk.strike(&mut server, random, &mut run);
        server.kill_in_place();
        // A crash without an ack since the last one proves nothing.
        if load.stop() > 0 {
            run.crashes += 1;
            *run.struck.entry(struck).or_default() += 1;
        }
        disk.crash(random);
        while random.below(3) == 0 {
            let starting = Server::spawn(dir, CONFIG, env);
            std::thread::sleep(Duration::from_millis(random.below(50)));
            starting.kill();
            disk.crash(random);
            run.crashes_while_starting += 1;
        }
        wrong.extend(check_log(&data, Some(&mut run.torn_tails)));
        run.wrong.extend(wrong.into_iter().map(|w| format!("cycle {cycle}, {struck}: {w}")));
        if run.ends(hunt) {
            return run;
        }
        cycle += 1;
    }
    // Everything of every epoch once more, after a last start.
    let server = Server::start(dir, CONFIG, env);
    for e in 0..=epoch(cycle) {
        run.wrong.extend(field.check(&mut server.http(), e));
    }
    run.acks = field.acks();
    run.unacked_there = field.unacked_there();
    if server.terminate() != Some(0) {
        run.wrong.push("a stop did not end with 0".into());
    }
    run
}

/// Several disks, one after the other.
fn on_several(wanted: u64, one: impl Fn(u64) -> Option<Run>) -> Option<Run> {
    let (mut all, mut left) = (Run::default(), wanted);
    while left > 0 && all.wrong.is_empty() {
        let Some(run) = one(left.min(ON_ONE)) else {
            assert_eq!(left, wanted, "there were disks, and are none any more");
            return None;
        };
        all.add(run);
        left -= left.min(ON_ONE);
    }
    Some(all)
}

impl Forgets for Lossy {
    fn strike(&mut self, server: &mut Server, random: &mut Random, run: &mut Run) -> &'static str {
        let (name, fault) = match random.below(10) {
            0..4 => ("no fault before", None),
            4 => ("a sync failed before", Some(Fault::SyncFails)),
            5 => ("a write failed before", Some(Fault::WriteFails)),
            6 => ("short writes before", Some(Fault::ShortWrites)),
            7 => ("no space before", Some(Fault::Full)),
            _ => ("slow syncs before", Some(Fault::SlowSyncs(5 + random.below(40)))),
        };
        self.fault(fault);
        std::thread::sleep(Duration::from_micros(random.below(80_000)));
        if matches!(fault, Some(Fault::SyncFails | Fault::WriteFails)) {
            let deadline = Instant::now() + Duration::from_secs(5);
            while self.struck() == 0 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            // It goes on if it was but making a segment.
            ends_well(server, Duration::from_millis(500), run);
        }
        name
    }

    fn crash(&mut self, random: &mut Random) {
        Lossy::crash(self, if random.below(2) == 0 { Unsynced::Lost } else { Unsynced::Torn(random.next()) });
    }
}

/// `None` where it cannot run.
fn power_cuts(wanted: u64, random: &mut Random, env: &[(&str, &str)], hunt: bool) -> Option<Run> {
    let tmp = tempfile::tempdir().unwrap();
    let mut disk = Lossy::mount(&tmp.path().join("data"))?;
    let mut run = cycles(&mut disk, tmp.path(), wanted, random, env, hunt);
    let (syncs, direct) = disk.counts();
    run.struck.extend([("syncs", syncs), ("writes past the page cache", direct)]);
    Some(run)
}

/// Data and names that were not synced are gone, whole or by the sector; the disk was full, slow or failing before.
#[test]
fn every_acknowledged_line_outlives_a_power_cut() {
    let (started, random) = (Instant::now(), Mutex::new(Random(seed() | 1)));
    let run = on_several(count(8, 500), |n| power_cuts(n, &mut random.lock().unwrap(), &[], false));
    if let Some(run) = run {
        assert!(run.struck["writes past the page cache"] > 0, "the log is not written with O_DIRECT");
        run.finish("power_cuts", "power cuts", started);
    }
}

struct Shutdowns {
    disk: Ext4,
    journals: &'static [&'static str],
}

impl Forgets for Shutdowns {
    fn strike(&mut self, server: &mut Server, random: &mut Random, run: &mut Run) -> &'static str {
        let how = if random.below(4) == 0 { Shutdown::LogFlush } else { Shutdown::NoLogFlush };
        self.disk.shut_down(how);
        if random.below(2) == 0 && !ends_well(server, Duration::from_secs(30), run) {
            run.wrong.push(format!("the server goes on after a shutdown of its disk: {}", server.log_tail()));
        }
        if how == Shutdown::LogFlush { "with a flush of the journal" } else { "without a flush of the journal" }
    }

    fn crash(&mut self, random: &mut Random) {
        // A server that was killed while it started has met no shutdown.
        self.disk.shut_down(Shutdown::NoLogFlush);
        self.disk.remount(self.journals[random.below(self.journals.len() as u64) as usize]);
    }
}

/// `None` where it cannot run.
fn shutdowns(
    wanted: u64,
    journals: &'static [&'static str],
    random: &mut Random,
    env: &[(&str, &str)],
    hunt: bool,
) -> Option<Run> {
    let tmp = tempfile::tempdir().unwrap();
    let disk = Ext4::new(tmp.path(), SHUTDOWN_BYTES, journals[0])?;
    Some(cycles(&mut Shutdowns { disk, journals }, tmp.path(), wanted, random, env, hunt))
}

/// The kernel drops what its ext4 has in memory, and replays its journal.
#[test]
fn every_acknowledged_line_outlives_a_shutdown_of_ext4() {
    let (started, random) = (Instant::now(), Mutex::new(Random(seed() | 1)));
    let run = on_several(count(6, 500), |n| shutdowns(n, &JOURNALS, &mut random.lock().unwrap(), &[], false));
    if let Some(run) = run {
        assert!(run.ended_by_itself > 0 || run.crashes < 20, "no server has noticed a shutdown");
        run.finish("shutdowns", "shutdowns", started);
    }
}

/// What a disk was asked for while the server ran on it, was killed, and ran again.
struct Recording {
    first: Vec<u8>,
    events: Vec<Event>,
    field: Arc<Field>,
    options: &'static str,
}

/// `None` where it cannot run.
fn record(options: &'static str, milliseconds: u64, env: &[(&str, &str)]) -> Option<Recording> {
    let tmp = tempfile::tempdir().unwrap();
    let first = ext4::format(tmp.path(), RECORDED_BYTES)?;
    let mut disk = Disk::new(tmp.path(), first.clone(), true)?;
    if let Err(why) = disk.mount(options) {
        skip(&why);
        return None;
    }
    let field = Field::on(disk.position());
    for _ in 0..2 {
        let server = Server::start(tmp.path(), CONFIG, env);
        let load = field.start(&server.addr, 0);
        load.wait_for_ack();
        std::thread::sleep(Duration::from_millis(milliseconds));
        server.kill();
        load.stop();
    }
    let events = disk.take_events();
    disk.unmount();
    Some(Recording { first, events, field, options })
}

/// Where power goes, and what is kept: just after an ack, at and just before a flush, and anywhere.
fn moments(recording: &Recording, wanted: u64, random: &mut Random) -> Vec<(usize, InFlight)> {
    let acks = recording.field.acked_at();
    let flushes = recording.events.iter().enumerate().filter(|(_, e)| matches!(e, Event::Flush));
    let flushes: Vec<usize> = flushes.map(|(n, _)| n).collect();
    let one_of = |of: &[usize], random: &mut Random| of[random.below(of.len() as u64) as usize];
    let mut out: Vec<(usize, InFlight)> = (0..wanted)
        .map(|n| {
            let at = match n % 4 {
                0 => one_of(&acks, random),
                1 => one_of(&flushes, random),
                2 => one_of(&flushes, random) + 1,
                _ => random.below(recording.events.len() as u64) as usize,
            };
            let kept = [InFlight::Lost, InFlight::Some, InFlight::Torn, InFlight::Kept];
            (at, kept[random.below(4) as usize])
        })
        .collect();
    out.sort_unstable();
    out
}

/// Mounts an image, starts the server on it, and holds what is there against what was acknowledged by then; some lose power
/// once more.
fn check_image(image: Vec<u8>, field: &Field, options: &str, again: bool, env: &[(&str, &str)]) -> Run {
    let tmp = tempfile::tempdir().unwrap();
    let (mut run, data) = (Run { crashes: 1, ..Run::default() }, tmp.path().join("data"));
    let mut disk = Disk::new(tmp.path(), image, false).expect("there was one before");
    if let Err(why) = disk.mount(options) {
        println!("an image is not mounted: {why}");
        return Run { not_mounted: 1, ..Run::default() };
    }
    run.wrong.extend(check_log(&data, Some(&mut run.torn_tails)));
    for last in if again { &[false, true][..] } else { &[true] } {
        let server = Server::start(tmp.path(), CONFIG, env);
        run.wrong.extend(field.check(&mut server.http(), 0));
        if *last {
            server.kill();
            run.wrong.extend(check_log(&data, Some(&mut run.torn_tails)));
            break;
        }
        // What was just shown must be there, although nothing was flushed since.
        let flushed = disk.flushed();
        server.kill();
        drop(disk);
        disk = Disk::new(tmp.path(), flushed, false).expect("there was one before");
        disk.mount(options).unwrap();
        *run.struck.entry("with another power cut after the start").or_default() += 1;
    }
    run
}

/// `None` where it cannot run.
fn images(recordings: u64, wanted: u64, random: &mut Random, env: &[(&str, &str)], hunt: bool) -> Option<Run> {
    let all = Mutex::new(Run::default());
    for n in 0..recordings {
        let Some(recording) = record(JOURNALS[(n + 1) as usize % JOURNALS.len()], 300, env) else {
            assert_eq!(n, 0, "there were disks, and are none any more");
            return None;
        };
        all.lock().unwrap().acks += recording.field.acks();
        let moments = moments(&recording, wanted, random);
        let images = Images::new(recording.first.clone(), &recording.events);
        let next = Mutex::new((images, moments.into_iter().enumerate(), Random(random.next())));
        let work = || {
            loop {
                let mut next = next.lock().unwrap();
                if all.lock().unwrap().ends(hunt) {
                    return;
                }
                let (images, moments, coins) = &mut *next;
                let Some((n, (at, kept))) = moments.next() else { return };
                let (image, again) = (images.at(at, kept, coins), n % 4 == 0);
                drop(next);
                let mut run = check_image(image.clone(), &recording.field.at(at), recording.options, again, env);
                if !run.wrong.is_empty() {
                    let of = recording.events.len();
                    run.wrong.iter_mut().for_each(|w| *w = format!("event {at} of {of}, in flight {kept:?}: {w}"));
                    keep(&image);
                }
                let kept =
                    ["in flight: lost", "in flight: kept", "in flight: some writes", "in flight: torn"][kept as usize];
                *run.struck.entry(kept).or_default() += run.crashes;
                all.lock().unwrap().add(run);
            }
        };
        std::thread::scope(|scope| [scope.spawn(work), scope.spawn(work)].map(|w| w.join().unwrap()));
    }
    Some(all.into_inner().unwrap())
}

/// The last image with which something was wrong, for whoever looks into it.
fn keep(image: &[u8]) {
    if !can_plant() {
        let at = Path::new(env!("CARGO_TARGET_TMPDIR")).join("real_disks.image");
        std::fs::write(&at, image).unwrap();
        println!("the image is kept: {}", at.display());
    }
}

/// What the disk held at and between flushes, mounted by the kernel.
#[test]
fn every_acknowledged_line_is_in_every_image_of_a_disk() {
    let (started, mut random) = (Instant::now(), Random(seed() | 1));
    if let Some(run) = images(count(1, 12), count(12, 100), &mut random, &[], false) {
        assert!(!is_full() || run.crashes >= 1000, "only {} images could be mounted", run.crashes);
        run.finish("images", "images", started);
    }
}

/// How the disk below ext4 fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A flush fails, and what was in flight is lost.
    Flush,
    /// The same, of a flush that the block log asks for.
    BesideBlocks,
    /// The same, of a flush that is asked for by who makes segments.
    BesideSegment,
    /// A write past the page cache fails.
    Write,
    /// A write fails that the page cache makes for a sync.
    WriteBack,
}

/// `strace` on one thread of a server, with these arguments.
fn trace(server: &Server, thread: &str, arguments: &[&str]) -> Child {
    let tasks = format!("/proc/{}/task", server.pid());
    let is_it = |task: &Path| std::fs::read_to_string(task.join("comm")).is_ok_and(|c| c.trim() == thread);
    let task = std::fs::read_dir(tasks).unwrap().map(|t| t.unwrap().path()).find(|t| is_it(t)).unwrap();
    let id = task.file_name().unwrap().to_str().unwrap().to_string();
    let mut strace = Command::new("strace");
    let strace = strace.args(["-q", "-p", &id]).args(arguments).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let traced = || std::fs::read_to_string(task.join("status")).is_ok_and(|s| !s.contains("TracerPid:\t0"));
    while !traced() {
        assert!(Instant::now() < deadline, "strace does not trace {thread}");
        std::thread::sleep(Duration::from_millis(2));
    }
    strace
}

/// From now on the log's thread cannot have `O_DIRECT`: it is told that it has, and writes into the page cache.
fn without_direct_writes(server: &Server) -> Child {
    trace(server, "wal", &["-e", "trace=fcntl", "-e", "inject=fcntl:retval=0", "-o", "/dev/null"])
}

/// From now on the log's thread asks for a sync 200 ms after it has written, so that another's sync comes first.
fn with_late_syncs(server: &Server) -> Child {
    let inject = ["-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=200000", "-o", "/dev/null"];
    trace(server, "wal", &inject)
}

impl Way {
    fn failure(self) -> Failure {
        match self {
            Self::Flush => Failure::Flush,
            Self::BesideBlocks => Failure::FlushOfBoth,
            Self::BesideSegment => Failure::FlushOfSegment,
            Self::Write | Self::WriteBack => Failure::Write,
        }
    }

    /// The thread that meets the failure in the place of the log's.
    fn other(self) -> Option<&'static str> {
        match self {
            Self::BesideBlocks => Some("blocks"),
            Self::BesideSegment => Some("wal-prepare"),
            Self::Flush | Self::Write | Self::WriteBack => None,
        }
    }
}

/// One failure under a server, the next start on the same mount, and a power cut after that. Returns what is wrong.
fn disk_error(way: Way, env: &[(&str, &str)]) -> Option<Vec<String>> {
    let tmp = tempfile::tempdir().unwrap();
    let mut disk = Disk::new(tmp.path(), ext4::format(tmp.path(), RECORDED_BYTES)?, false)?;
    // The journal is not written by itself meanwhile.
    if let Err(why) = disk.mount("data=ordered,commit=600") {
        skip(&why);
        return None;
    }
    if way == Way::WriteBack {
        the_second_sync_succeeds(&disk, &tmp.path().join("data"));
    }
    let (mut client, mut wrong) = (Client::default(), Vec::new());
    let mut server = Server::start(tmp.path(), CONFIG, env);
    let mut http = server.http();
    for _ in 0..20 {
        assert_eq!(client.push(&mut http, 3000), Some(204));
    }
    let mut traces = Vec::new();
    if way == Way::WriteBack {
        traces.push(without_direct_writes(&server));
    }
    for _ in 0..20 {
        assert_eq!(client.push(&mut http, 3000), Some(204));
    }
    disk.wait_until_quiet();
    let before = disk.failed();
    let asked = tmp.path().join("asked");
    if let Some(other) = way.other() {
        traces.push(with_late_syncs(&server));
        traces.push(trace(&server, other, &["-e", "trace=fdatasync,fsync", "-o", asked.to_str().unwrap()]));
    }
    disk.fail(way.failure());
    // Large ones fill blocks and segments.
    let (size, most) = if way.other().is_some() { (200_000, 100) } else { (3000, 3) };
    let mut answers = Vec::new();
    while answers.len() < 3 || (disk.failed() == before && answers.len() < most) {
        answers.push(client.push(&mut http, size));
    }
    match end_of(&mut server, Duration::from_secs(2)) {
        Some(ended) if ended.code() == Some(IO_ERROR) => {}
        ended => wrong.push(format!("after a failed {way:?} the process: {ended:?}, answers {answers:?}")),
    }
    assert_eq!(disk.failed(), before + 1, "{way:?} did not fail");
    server.kill();
    traces.into_iter().for_each(|mut t| drop((t.kill(), t.wait())));
    if let Some(other) = way.other() {
        // On a busy machine it may have been the log itself. What holds then is the same.
        let was_other = std::fs::read_to_string(asked).unwrap().contains(" = -1 E");
        println!("{way:?}: the flush that failed was asked for by {}", if was_other { other } else { "another" });
        // If it was for metadata, the file system has given up its journal, and takes nothing any more.
        disk.unmount();
        disk.mount("data=ordered").unwrap();
    }
    // The kernel's cache is as the failure has left it.
    let server = Server::start(tmp.path(), CONFIG, &[]);
    let shown = server.http().all_lines();
    let flushed = disk.flushed();
    server.kill();
    wrong.extend(held_against(&client, &shown, way));
    // And what was shown was on the disk by then.
    drop(disk);
    let mut disk = Disk::new(tmp.path(), flushed, false)?;
    disk.mount("data=ordered").unwrap();
    let server = Server::start(tmp.path(), CONFIG, &[]);
    let later = server.http().all_lines();
    wrong.extend(held_against(&client, &later, way));
    let gone = shown.keys().filter(|line| !later.contains_key(*line)).count();
    if gone > 0 {
        wrong.push(format!("{way:?}: {gone} lines that a start has shown were not on the disk"));
    }
    server.kill();
    Some(wrong)
}

/// Each acknowledged line once, and nothing that was never pushed.
fn held_against(client: &Client, shown: &BTreeMap<String, usize>, way: Way) -> Vec<String> {
    let mut wrong = Vec::new();
    let lost = client.ledger.acked.iter().filter(|line| !shown.contains_key(*line)).count();
    if lost > 0 {
        wrong.push(format!("{way:?}: {lost} of {} acknowledged lines are lost", client.ledger.acked.len()));
    }
    let pushed: BTreeSet<&String> = client.ledger.acked.union(&client.ledger.unknown).collect();
    let alien = |(line, n): &(&String, &usize)| **n != 1 || !pushed.contains(line);
    wrong.extend(shown.iter().filter(alien).map(|(line, n)| format!("{way:?}: {n} times there: {line}")));
    wrong
}

/// Why a failed sync is never tried again: this kernel says that it has synced what is not on the disk.
fn the_second_sync_succeeds(disk: &Disk, at: &Path) {
    let file = File::options().read(true).write(true).create_new(true).open(at.join("victim")).unwrap();
    let (old, mut new) = ([b'A'; 4096], [b'B'; 4096]);
    new[..4].copy_from_slice(b"TGRP");
    file.write_all_at(&old, 0).unwrap();
    file.sync_all().unwrap();
    disk.fail(Failure::Write);
    file.write_all_at(&new, 0).unwrap();
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(5));
    file.sync_data().unwrap();
    let read = || {
        let mut bytes = [0; 4096];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert_eq!(read(), new, "the page cache");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    assert_eq!(read(), old, "the disk");
    drop(file);
    std::fs::remove_file(at.join("victim")).unwrap();
}

/// The ways in which a disk can fail here.
fn ways() -> Vec<Way> {
    let mut ways = vec![Way::Flush, Way::Write];
    if has("strace") {
        ways.extend([Way::WriteBack, Way::BesideBlocks, Way::BesideSegment]);
    } else {
        skip("strace is not installed: a failing write-back, and a flush that fails another, are not tried");
    }
    ways
}

#[test]
fn a_sync_that_fails_once_below_ext4_ends_the_process() {
    let (started, mut failed) = (Instant::now(), 0);
    for way in ways() {
        for _ in 0..count(1, 20) {
            let Some(wrong) = disk_error(way, &[]) else { return };
            assert!(wrong.is_empty(), "{wrong:#?}");
            failed += 1;
        }
    }
    figures("disk_errors", started, &[("errors of the disk", failed), ("exit 74", failed), ("lost", 0)]);
}

/// A harness that cannot fail proves nothing: without a sync before the ack, lines are lost, and it is found.
const WITHOUT_SYNC: &str = "ack-before-sync";

/// Hunts one bug with power cuts.
fn found_by_power_cuts(bug: &str) {
    let started = Instant::now();
    let run = can_plant().then(|| power_cuts(40, &mut Random(seed() | 1), &[(PLANTED, bug)], true)).flatten();
    run.into_iter().for_each(|run| found(bug, "power cuts", started, &lost(&run.wrong)));
}

#[test]
fn an_ack_before_the_sync_is_found_by_power_cuts() {
    found_by_power_cuts(WITHOUT_SYNC);
}

#[test]
fn a_name_that_is_not_synced_is_found_by_power_cuts() {
    found_by_power_cuts("directory-unsynced");
}

#[test]
fn an_ack_before_the_sync_is_found_by_shutdowns() {
    let (started, env) = (Instant::now(), [(PLANTED, WITHOUT_SYNC)]);
    let run = can_plant().then(|| shutdowns(20, &JOURNALS[..1], &mut Random(seed() | 1), &env, true)).flatten();
    run.into_iter().for_each(|run| found(WITHOUT_SYNC, "shutdowns of ext4", started, &lost(&run.wrong)));
}

#[test]
fn an_ack_before_the_sync_is_found_in_images() {
    let (started, env) = (Instant::now(), [(PLANTED, WITHOUT_SYNC)]);
    let run = can_plant().then(|| images(1, 40, &mut Random(seed() | 1), &env, true)).flatten();
    run.into_iter().for_each(|run| found(WITHOUT_SYNC, "images of a disk", started, &lost(&run.wrong)));
}

/// Hunts one bug with a disk that fails below ext4 in these ways, so often each.
fn found_by_disk_errors(bug: &str, ways: impl Iterator<Item = Way>, tries: usize) {
    for way in ways.filter(|_| can_plant()) {
        let started = Instant::now();
        let mut losses = Vec::new();
        for _ in 0..tries {
            let Some(wrong) = disk_error(way, &[(PLANTED, bug)]) else { return };
            losses = lost(&wrong);
            if !losses.is_empty() {
                break;
            }
        }
        found(bug, &format!("a disk that fails below ext4 ({way:?})"), started, &losses);
    }
}

#[test]
fn a_sync_that_is_tried_again_is_found() {
    let own = |way: &Way| way.other().is_none() && *way != Way::Write;
    found_by_disk_errors("sync-retried", ways().into_iter().filter(own), 1);
}

#[test]
fn a_failed_sync_of_another_file_that_is_ignored_is_found() {
    // A flush for metadata as well makes ext4 give up its journal. When it notices that soon, it fails the log's own sync: always
    // for a new segment, at times for a block.
    found_by_disk_errors("sync-beside-ignored", ways().into_iter().filter(|way| *way == Way::BesideBlocks), 8);
}
