//! The log on a disk that fails, fills up and loses power at every operation.

mod support;

use std::sync::Arc;
use std::time::Duration;
use support::disk::{Call, EIO, ENOSPC, Fault, MemDisk, Unsynced};
use support::{Lines, Log, Outcome, Push, SEGMENT, dir, large_push, lines_of, note, options, push};
use timberline::fs::FailClosedFs;
use timberline::wal::*;

fn durable(outcome: Outcome) -> (u64, Vec<TableRow>) {
    match outcome {
        Outcome::Durable { lsn, rows, .. } => (lsn, rows),
        Outcome::Failed(why) => panic!("not durable: {why}"),
    }
}

fn is_disk_full(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failed(Unavailable::DiskFull(_)))
}

/// Lines and plan that a start on this disk finds.
fn restart(disk: &MemDisk) -> (Lines, Plan) {
    let recovered = recover(options(Arc::new(disk.clone()), &dir(), SyncMode::Always), &mut |_, _| {}).unwrap();
    (lines_of(&recovered), recovered.plan)
}

fn times(lines: &Lines, push: &Push) -> Vec<usize> {
    let count = |line| lines.values().filter(|l| *l == line).count();
    push.iter().flat_map(|(_, lines)| lines.iter().map(count)).collect()
}

#[test]
fn an_ack_follows_the_sync_of_its_record_and_of_its_directory_entry() {
    let disk = MemDisk::default();
    let seen = disk.clone();
    let mut last_syncs = 0;
    let probe = move |records: &[Applied<u32>]| {
        assert!(seen.syncs() > last_syncs, "a group was handed on without a sync");
        last_syncs = seen.syncs();
        let files = seen.durable_files();
        let mut found = Vec::new();
        for (name, bytes) in files.iter().filter(|(name, _)| segment_number(name).is_some()) {
            let scan = scan_segment(bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
            let records = scan.groups.iter().flat_map(|g| &g.records);
            found
                .extend(records.filter(|r| r.body_is_sound && r.head.kind == 2).map(|r| (r.head.lsn, r.head.body_crc)));
        }
        for r in records {
            let crcs: Vec<u32> = found.iter().filter(|(lsn, _)| *lsn == r.lsn).map(|(_, crc)| *crc).collect();
            assert_eq!(crcs.len(), 1, "LSN {} is not in the durable state of the disk", r.lsn);
        }
    };
    let options = options(Arc::new(disk.clone()), &dir(), SyncMode::Always);
    let (log, _) = Log::open_with(options, Some(disk.clone()), Some(Box::new(probe))).unwrap();
    // Some in flight together, over several segments, one larger than a segment.
    for round in 0..12 {
        let numbers: Vec<u32> = (0..4).map(|i| round * 4 + i).collect();
        for n in &numbers {
            let p = if *n == 17 { large_push(*n, 9, 200_000) } else { push(*n, &[1, 2, u64::from(*n) + 10], 8) };
            log.send(*n, &p, "t", Codec::Snappy).unwrap();
        }
        for n in numbers {
            durable(log.outcome(n));
        }
    }
    log.wal.stop();
    assert!(disk.durable_files().len() > 3);
}

#[test]
fn a_full_disk_fails_one_group_and_its_push_comes_once_when_it_is_repeated() {
    for leaves in [0, 600, 4096, 100_000] {
        let disk = MemDisk::default();
        let (log, _) = Log::mem(&disk, SyncMode::Always);
        let mut acked = Lines::new();
        log.acked(0, &push(0, &[1, 2], 3), &mut acked);
        disk.fail(Fault { name: segment_name(1), leaves, ..Fault::new(Call::Write, 0, ENOSPC) });
        let a = push(1, &[1, 2], 30);
        assert!(is_disk_full(&log.push(1, &a)));
        // It failed, so it is nobody's duplicate and nothing of it may come back behind the next record.
        log.acked(2, &a, &mut acked);
        log.acked(3, &push(3, &[1, 3], 3), &mut acked);
        assert!(log.poisoned().is_none());
        log.kill();
        for disk in [disk.after_kill(), disk.crash(Unsynced::Lost)] {
            for _ in 0..2 {
                let (log, lines) = Log::mem(&disk, SyncMode::Always);
                assert!(log.plan.loss.is_empty(), "{:?}", log.plan.loss);
                assert_eq!(lines, acked, "{leaves} bytes left behind");
                assert_eq!(times(&lines, &a), vec![1; 60]);
                log.wal.stop();
            }
        }
    }
}

#[test]
fn a_failed_push_that_nothing_follows_is_there_whole_or_not_at_all() {
    for leaves in [0, 512, 600, 1024, 4096, 100_000] {
        let disk = MemDisk::default();
        let (log, _) = Log::mem(&disk, SyncMode::Always);
        let mut acked = Lines::new();
        log.acked(0, &push(0, &[1, 2], 3), &mut acked);
        disk.fail(Fault { name: segment_name(1), leaves, ..Fault::new(Call::Write, 0, ENOSPC) });
        let a = push(1, &[1, 2], 30);
        assert!(is_disk_full(&log.push(1, &a)));
        log.kill();
        let (log, lines) = Log::mem(&disk.after_kill(), SyncMode::Always);
        let counts = times(&lines, &a);
        assert!(counts.iter().all(|n| *n == counts[0]) && counts[0] <= 1, "{counts:?}");
        assert!(acked.iter().all(|(k, v)| lines.get(k) == Some(v)));
        assert!(log.plan.loss.is_empty());
        log.wal.stop();
    }
}

#[test]
fn an_io_error_poisons_and_disk_truth_is_served() {
    for call in [Call::Write, Call::Sync] {
        for mode in [SyncMode::Always, SyncMode::Interval(Duration::from_millis(1))] {
            let disk = MemDisk::default();
            let (log, _) = Log::mem(&disk, mode);
            let mut acked = Lines::new();
            log.acked(0, &push(0, &[1], 3), &mut acked);
            std::thread::sleep(Duration::from_millis(120));
            disk.fail(Fault { name: segment_name(1), ..Fault::new(call, 0, EIO) });
            let a = push(1, &[1], 3);
            let failed = match log.push(1, &a) {
                Outcome::Failed(Unavailable::Poisoned(_)) => true,
                Outcome::Durable { rows, .. } if mode != SyncMode::Always => {
                    note(&a, &rows, &mut acked);
                    false
                }
                other => panic!("{call:?} {mode:?}: {other:?}"),
            };
            std::thread::sleep(Duration::from_millis(120));
            assert!(log.poisoned().is_some(), "{call:?} {mode:?}");
            let syncs = disk.syncs();
            for n in 2..5 {
                assert!(matches!(log.push(n, &push(n, &[1], 1)), Outcome::Failed(Unavailable::Poisoned(_))));
            }
            // The disk works again; nobody may believe it.
            log.wal.stop();
            let again = disk.durable_files();
            let files: Vec<_> = again.iter().filter(|(name, _)| *name == segment_name(1)).collect();
            let told = files.iter().flat_map(|(_, b)| scan_segment(b).unwrap().groups).filter_map(|g| g.header);
            let told = told.map(|h| h.durable_lsn).max();
            assert!(told <= Some(1), "{call:?} {mode:?}: a header tells {told:?} after a failed {call:?}");
            let retried = disk.syncs() - syncs;
            assert!(retried <= 2, "only segments that are being prepared are synced after a failure, not {retried}");
            let (lines, plan) = restart(&disk.crash(Unsynced::Lost));
            assert!(plan.loss.is_empty());
            let synced = acked.range((1, 0)..(1, 3));
            assert!(synced.into_iter().all(|(k, v)| lines.get(k) == Some(v)), "failed: {failed}");
        }
    }
}

#[test]
fn short_writes_are_continued() {
    let disk = MemDisk::default();
    disk.set_largest_write(1000);
    let (log, _) = Log::mem(&disk, SyncMode::Always);
    let mut acked = Lines::new();
    for n in 0..20 {
        log.acked(n, &push(n, &[1, 2], 40), &mut acked);
    }
    log.wal.stop();
    let (lines, plan) = restart(&disk.crash(Unsynced::Lost));
    assert!(plan.loss.is_empty());
    assert_eq!(lines, acked);
}

/// Memory that changes a bit after the checksums were computed: the log says so, and at most that record is gone.
#[test]
fn a_bit_that_flips_on_its_way_to_the_disk_is_told() {
    let (mut lost, mut kept) = (0, 0);
    for bit in (0..8 * 4096).step_by(97) {
        let disk = MemDisk::default();
        let (log, _) = Log::mem(&disk, SyncMode::Always);
        let (mut before, mut flipped) = (Lines::new(), Lines::new());
        log.acked(0, &push(0, &[1, 2], 3), &mut before);
        disk.flip_in_next_group(bit);
        log.acked(1, &push(1, &[1, 2], 30), &mut flipped);
        log.acked(2, &push(2, &[2, 3], 3), &mut before);
        log.kill();
        let (lines, plan) = restart(&disk.after_kill());
        assert!(before.iter().all(|(k, v)| lines.get(k) == Some(v)), "bit {bit}: another record is damaged, too");
        let there = flipped.iter().filter(|(k, v)| lines.get(k) == Some(v)).count();
        assert_eq!(lines.len(), before.len() + there, "bit {bit}: lines that nobody has pushed");
        if there == 0 {
            lost += 1;
            assert_eq!(plan.loss.lines, flipped.len() as u64, "bit {bit}: {:?}", plan.loss);
        } else {
            kept += 1;
            assert_eq!(there, flipped.len(), "bit {bit}: a part of a push");
        }
    }
    // A group is padded to 4 KiB, and has its head twice.
    println!("{lost} of {} flipped bits took their record, each told", lost + kept);
    assert!(lost > 20 && kept > 20, "{lost} lost, {kept} kept");
}

#[test]
fn a_push_larger_than_a_segment_gets_its_own() {
    let disk = MemDisk::default();
    let (log, _) = Log::mem(&disk, SyncMode::Always);
    let mut acked = Lines::new();
    for n in 0..12 {
        let large = SEGMENT as usize * n as usize;
        log.acked(2 * n, &large_push(2 * n, 1, large), &mut acked);
        log.acked(2 * n + 1, &push(2 * n + 1, &[1, 2], 2), &mut acked);
    }
    log.kill();
    for disk in [disk.after_kill(), disk.crash(Unsynced::Lost)] {
        let (log, lines) = Log::mem(&disk, SyncMode::Always);
        assert!(log.plan.loss.is_empty(), "{:?}", log.plan.loss);
        assert_eq!(lines, acked);
        log.wal.stop();
        assert_eq!(restart(&disk).0, acked);
    }
}

#[test]
fn a_push_for_which_there_is_no_space_fails_and_leaves_no_file_behind() {
    let disk = MemDisk::default();
    let (log, _) = Log::mem(&disk, SyncMode::Always);
    let mut acked = Lines::new();
    log.acked(0, &push(0, &[1], 1), &mut acked);
    disk.set_capacity(Some(6 * SEGMENT));
    for n in 1..6 {
        assert!(is_disk_full(&log.push(n, &large_push(n, 1, 1 << 20))), "push {n}");
        std::thread::sleep(Duration::from_millis(300));
    }
    assert!(disk.used() <= 4 * SEGMENT, "{} bytes are used", disk.used());
    // Space for ordinary pushes is still there.
    log.acked(7, &push(7, &[1], 1), &mut acked);
    disk.set_capacity(None);
    log.acked(8, &large_push(8, 1, 1 << 20), &mut acked);
    log.wal.stop();
    assert_eq!(restart(&disk.crash(Unsynced::Lost)).0, acked);
}

#[test]
fn the_log_stops_on_a_full_disk_and_goes_on_within_a_second_of_space() {
    let disk = MemDisk::default();
    disk.set_capacity(Some(4 * SEGMENT));
    let (log, _) = Log::mem(&disk, SyncMode::Always);
    let mut acked = Lines::new();
    let mut n = 0;
    loop {
        let p = push(n, &[1, 2], 100);
        match log.push(n, &p) {
            Outcome::Durable { rows, .. } => note(&p, &rows, &mut acked),
            Outcome::Failed(Unavailable::DiskFull(_)) => break,
            other => panic!("{other:?}"),
        }
        n += 1;
        assert!(n < 1000);
    }
    assert!(log.wal.unavailable().is_some());
    // Many starts with zero bytes free, killed and not.
    disk.set_capacity(Some(disk.used()));
    log.kill();
    let mut disk = disk.after_kill();
    for start in 0..10 {
        disk.set_capacity(Some(disk.used()));
        let (log, lines) = Log::mem(&disk, SyncMode::Always);
        assert_eq!(lines, acked, "start {start}");
        assert!(log.plan.loss.is_empty());
        log.kill();
        disk = disk.after_kill();
    }
    disk.set_capacity(Some(disk.used()));
    let (log, _) = Log::mem(&disk, SyncMode::Always);
    assert!(is_disk_full(&log.push(n, &push(n, &[1, 2], 1))));
    disk.set_capacity(None);
    std::thread::sleep(Duration::from_millis(900));
    log.acked(n + 1, &push(n + 1, &[1, 2], 1), &mut acked);
    log.wal.stop();
    assert_eq!(restart(&disk.crash(Unsynced::Lost)).0, acked);
}

const LONG: Duration = Duration::from_secs(20);

/// On a full disk only what lets segments go gives space back, so the last prepared segment of the block log is left for it.
#[test]
fn the_last_block_segment_is_left_for_what_lets_segments_go() {
    for restarts in [false, true] {
        let mut disk = MemDisk::default();
        let (mut log, _) = Log::mem(&disk, SyncMode::Always);
        log.acked(0, &push(0, &[1], 1), &mut Lines::new());
        log.send_block(0, 1, 8_000, false);
        within(LONG, "the first block never comes", || log.blocks_synced() == [0]);
        if restarts {
            log.kill();
            disk = disk.after_kill();
            disk.set_capacity(Some(disk.used()));
            log = Log::mem(&disk, SyncMode::Always).0;
        }
        disk.set_capacity(Some(disk.used()));
        // It does not fit into the segment of the first.
        log.send_block(1, 1, 40 << 10, false);
        within(LONG, "the want of space never comes", || log.blocks.starved().is_some());
        std::thread::sleep(Duration::from_millis(600));
        assert!(!log.blocks_synced().contains(&1), "an ordinary block took the last segment");
        // What waits before a block that lets a segment go comes with it.
        log.send_block(2, 1, 1_000, true);
        within(LONG, "the last segment never comes", || log.blocks_synced().ends_with(&[1, 2]));
        within(LONG, "the end of the want never comes", || log.blocks.starved().is_none());
        // There is no other one.
        log.send_block(3, 1, 40 << 10, true);
        within(LONG, "the want of space never comes", || log.blocks.starved().is_some());
        disk.set_capacity(None);
        within(LONG, "a block after space came back never comes", || log.blocks_synced().ends_with(&[1, 2, 3]));
        assert_eq!(log.poisoned(), None);
    }
}

/// Prepared segments are no reserve where writing over them takes new space.
#[test]
fn where_writing_over_takes_space_some_stays_free() {
    for (copies, least) in [(false, 0), (true, 2 * SEGMENT)] {
        let (disk, capacity) = (MemDisk::default(), 10 * SEGMENT + 4096);
        disk.set_capacity(Some(capacity));
        if copies {
            disk.set_copies();
        }
        let (log, _) = Log::mem(&disk, SyncMode::Always);
        let mut acked = Lines::new();
        let full = (0..10_000).any(|n| {
            let p = push(n, &[1, 2], 100);
            match log.push(n, &p) {
                Outcome::Durable { rows, .. } => note(&p, &rows, &mut acked),
                outcome => assert!(is_disk_full(&outcome), "{outcome:?}"),
            }
            log.wal.unavailable().is_some()
        });
        assert!(full, "it never gets full");
        let free = capacity - disk.used();
        assert!((least..least + SEGMENT + 8192).contains(&free), "copies: {copies}, {free} bytes are free");
        log.wal.stop();
        assert_eq!(restart(&disk.crash(Unsynced::Lost)).0, acked);
    }
}

#[test]
fn interval_syncs_under_constant_load_and_os_does_not() {
    for (mode, at_least, at_most) in [(SyncMode::Interval(Duration::from_millis(10)), 4, 40), (SyncMode::Os, 0, 3)] {
        let disk = MemDisk::default();
        let options = WalOptions { segment_size: 4 << 20, ..options(Arc::new(disk.clone()), &dir(), mode) };
        let (log, _) = Log::open(options, Some(disk.clone())).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        durable(log.push(0, &push(0, &[1], 1)));
        std::thread::sleep(Duration::from_millis(100));
        let (before, start) = (disk.syncs(), std::time::Instant::now());
        let mut n = 1;
        while start.elapsed() < Duration::from_millis(200) {
            durable(log.push(n, &push(n, &[1], 1)));
            n += 1;
            std::thread::sleep(Duration::from_micros(200));
        }
        let syncs = disk.syncs() - before;
        assert!((at_least..=at_most).contains(&syncs), "{mode:?}: {syncs} syncs for {n} pushes");
        log.wal.stop();
        let (lines, plan) = restart(&disk.crash(Unsynced::Lost));
        assert!(plan.loss.is_empty() && plan.tail.is_empty(), "an orderly stop syncs and tells it");
        assert_eq!(lines.len(), n as usize);
    }
}

#[test]
fn in_the_weaker_modes_kill_loses_nothing_and_power_loss_loses_no_more_than_the_unsynced() {
    for mode in [SyncMode::Os, SyncMode::Interval(Duration::from_secs(60))] {
        let disk = MemDisk::default();
        let (log, _) = Log::mem(&disk, mode);
        let mut acked = Lines::new();
        for n in 0..10 {
            log.acked(n, &push(n, &[1, 2], 2), &mut acked);
        }
        log.kill();
        assert_eq!(restart(&disk.after_kill()).0, acked);
        for seed in 0..40 {
            let disk = disk.crash(Unsynced::Some(seed));
            let (log, lines) = Log::mem(&disk, mode);
            assert!(log.plan.loss.is_empty(), "a hole above the durable end is not damage: {:?}", log.plan.loss);
            assert!(lines.iter().all(|(k, v)| acked.get(k) == Some(v)));
            let mut all = lines.clone();
            log.acked(100, &push(100, &[1, 2], 2), &mut all);
            log.wal.stop();
            let (again, plan) = restart(&disk);
            assert_eq!(again, all, "seed {seed}");
            assert!(plan.loss.is_empty() && plan.unresolved.is_empty(), "the hole is settled by a Gap");
        }
    }
}

#[test]
fn a_failed_write_in_a_weaker_mode_leaves_no_unsynced_group_behind() {
    let disk = MemDisk::default();
    let (log, _) = Log::mem(&disk, SyncMode::Os);
    let mut acked = Lines::new();
    for n in 0..3 {
        log.acked(n, &push(n, &[1], 1), &mut acked);
    }
    disk.fail(Fault { name: segment_name(1), ..Fault::new(Call::Write, 0, ENOSPC) });
    assert!(is_disk_full(&log.push(3, &push(3, &[1], 1))));
    log.acked(4, &push(4, &[1], 1), &mut acked);
    // The next segment is synced at the end; its Open says that the one before is durable.
    log.wal.stop();
    let (lines, plan) = restart(&disk.crash(Unsynced::Lost));
    assert_eq!(lines, acked);
    assert!(plan.loss.is_empty());
}

#[test]
fn lines_of_the_log_are_counted_right_after_a_tail_in_interval_mode() {
    let disk = MemDisk::default();
    let (log, _) = Log::mem(&disk, SyncMode::Interval(Duration::from_secs(60)));
    for n in 0..6 {
        durable(log.push(n, &push(n, &[1], 1)));
    }
    log.kill();
    let disk = disk.after_kill();
    for _ in 0..3 {
        let (log, lines) = Log::mem(&disk, SyncMode::Always);
        log.wal.stop();
        assert_eq!(lines.len(), 6);
        assert_eq!(restart(&disk).1.lines, 6);
    }
}

#[test]
fn each_stream_is_defined_twice_in_each_segment() {
    let disk = MemDisk::default();
    let (log, _) = Log::mem(&disk, SyncMode::Always);
    let mut acked = Lines::new();
    for n in 0..40 {
        log.acked(n, &push(n, &[1, 2, 3], 1), &mut acked);
    }
    log.wal.stop();
    let mut segments = 0;
    for (_, file) in disk.durable_files() {
        let scan = scan_segment(&file).unwrap();
        let records = || scan.groups.iter().flat_map(|g| &g.records);
        let entries = records().filter(|r| r.head.kind == 2).count();
        let series = records().filter(|r| r.head.kind == 1);
        let defined: Vec<u64> = series
            .flat_map(|r| decode_control::<Vec<SeriesDef>>(&r.head, r.head.body(&file, r.offset)).unwrap())
            .map(|d| d.id)
            .collect();
        for id in 1..=3 {
            let times = defined.iter().filter(|d| **d == id).count();
            assert_eq!(times, entries.min(2), "stream {id}");
        }
        segments += usize::from(entries > 0);
    }
    assert!(segments >= 3);
}

#[test]
fn leftovers_of_preparation_and_prepared_segments_are_used_or_removed() {
    let disk = MemDisk::default();
    let (log, _) = Log::mem(&disk, SyncMode::Always);
    let mut acked = Lines::new();
    log.acked(0, &push(0, &[1], 1), &mut acked);
    std::thread::sleep(Duration::from_millis(50));
    log.wal.stop();
    let mut files = disk.crash(Unsynced::Lost).durable_files();
    let prepared = files.len() - 1;
    assert_eq!(prepared, 2, "two are prepared ahead");
    files.push((format!("{}.tmp", segment_name(9)), vec![0; 1000]));
    // A prepared file that was cut may have held something: it is told and kept, and nothing is written to it.
    if let Some((_, bytes)) = files.iter_mut().find(|(name, _)| *name == segment_name(3)) {
        bytes.truncate(20_000);
    }
    let disk = MemDisk::with_files(&dir(), &files);
    let (log, lines) = Log::mem(&disk, SyncMode::Always);
    assert_eq!(lines, acked);
    assert_eq!(log.plan.loss.damage.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [3]);
    log.acked(1, &push(1, &[1], 1), &mut acked);
    log.wal.stop();
    let files = disk.durable_files();
    assert!(files.iter().all(|(name, _)| !name.ends_with(".tmp")));
    let (_, cut) = files.iter().find(|(name, _)| *name == segment_name(3)).unwrap();
    assert_eq!(cut.len(), 20_000);
    assert_eq!(restart(&disk).0, acked);
}

#[test]
fn a_directory_that_cannot_be_synced_does_not_fill_up() {
    let disk = MemDisk::default();
    disk.fail(Fault { times: 5, ..Fault::new(Call::SyncDir, 0, EIO) });
    disk.fail(Fault { times: 2, ..Fault::new(Call::Rename, 0, EIO) });
    let (log, _) = Log::mem(&disk, SyncMode::Always);
    std::thread::sleep(Duration::from_millis(700));
    assert!(disk.used() <= 2 * SEGMENT, "{} bytes are used", disk.used());
    disk.heal();
    std::thread::sleep(Duration::from_millis(700));
    let mut acked = Lines::new();
    log.acked(0, &push(0, &[1], 1), &mut acked);
    log.wal.stop();
    assert_eq!(restart(&disk.crash(Unsynced::Lost)).0, acked);
}

fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + limit;
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whatever fails while a block segment is made, but for a sync: nothing that counts depends on it, the log goes on, blocks wait.
#[test]
fn a_failed_preparation_of_a_block_segment_is_tried_again_and_does_not_poison() {
    const EMFILE: i32 = 24;
    for (call, errno) in [
        (Call::Create, EIO),
        (Call::Create, EMFILE),
        (Call::Create, ENOSPC),
        (Call::Write, EIO),
        (Call::Sync, ENOSPC),
        (Call::Rename, EIO),
    ] {
        let disk = MemDisk::default();
        let (log, _) = Log::open(closed(&disk), None).unwrap();
        let mut acked = Lines::new();
        log.acked(0, &push(0, &[1], 1), &mut acked);
        disk.fail(Fault { name: ".blk.tmp".into(), times: 2, ..Fault::new(call, 0, errno) });
        log.send_block(0, 1, 1_000, false);
        within(Duration::from_secs(5), "the failure is not told", || log.blocks.starved().is_some());
        log.acked(1, &push(1, &[1], 1), &mut acked);
        within(Duration::from_secs(5), "it is not tried again", || {
            log.blocks.starved().is_none() && log.blocks.store().size() > 0
        });
        assert_eq!(log.poisoned(), None, "{call:?}: errno {errno}");
        log.acked(2, &push(2, &[1], 1), &mut acked);
        log.blocks.stop();
        log.wal.stop();
        assert_eq!(restart(&disk.crash(Unsynced::Lost)).0, acked);
    }
}

/// As the server opens the log.
fn closed(disk: &MemDisk) -> WalOptions {
    options(Arc::new(FailClosedFs::new(Arc::new(disk.clone()))), &dir(), SyncMode::Always)
}

/// A flush that the disk could not do may have taken anybody's bytes: also the sync of a segment that nobody uses yet.
#[test]
fn a_failed_sync_of_a_segment_in_the_making_poisons() {
    for (call, name) in [(Call::Sync, ".wal.tmp"), (Call::Sync, ".blk.tmp"), (Call::SyncDir, "")] {
        let disk = MemDisk::default();
        let (log, _) = Log::open(closed(&disk), None).unwrap();
        let mut acked = Lines::new();
        log.acked(0, &push(0, &[1], 1), &mut acked);
        std::thread::sleep(Duration::from_millis(120));
        disk.fail(Fault { name: name.into(), ..Fault::new(call, 0, EIO) });
        log.send_block(0, 1, 1_000, false);
        // Larger than a segment: the next is made.
        match log.push(1, &large_push(1, 2, 200_000)) {
            Outcome::Durable { rows, .. } => note(&large_push(1, 2, 200_000), &rows, &mut acked),
            Outcome::Failed(Unavailable::Poisoned(_)) => {}
            Outcome::Failed(why) => panic!("{why}"),
        }
        within(Duration::from_secs(1), "it does not poison", || log.poisoned().is_some());
        assert!(log.poisoned().unwrap().contains("os error 5"), "{:?}", log.poisoned());
        assert!(matches!(log.push(2, &push(2, &[1], 1)), Outcome::Failed(Unavailable::Poisoned(_))));
        log.kill();
        let lines = restart(&disk.crash(Unsynced::Lost)).0;
        assert!(acked.iter().all(|(k, v)| lines.get(k) == Some(v)));
    }
}

/// Also of a file that the log knows nothing of, and while nobody pushes.
#[test]
fn a_failed_sync_of_another_file_poisons_a_log_that_is_idle() {
    let disk = MemDisk::default();
    let options = closed(&disk);
    let fs = options.fs.clone();
    let (log, _) = Log::open(options, None).unwrap();
    let mut acked = Lines::new();
    log.acked(0, &push(0, &[1], 1), &mut acked);
    // The last watermark is written, and the next segments are made.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(log.poisoned(), None);
    let other = fs.create_new(&dir().join("other")).unwrap();
    disk.fail(Fault { name: "other".into(), ..Fault::new(Call::Sync, 0, EIO) });
    assert_eq!(other.sync_data().unwrap_err().raw_os_error(), Some(EIO));
    within(Duration::from_secs(1), "it does not poison", || log.poisoned().is_some());
    log.kill();
    assert_eq!(restart(&disk.crash(Unsynced::Lost)).0, acked);
}

/// A failed sync of blocks that were written is another thing: they may be what lets the log go.
#[test]
fn a_failed_sync_of_written_blocks_poisons() {
    let disk = MemDisk::default();
    let (log, _) = Log::mem(&disk, SyncMode::Always);
    let mut acked = Lines::new();
    log.acked(0, &push(0, &[1], 1), &mut acked);
    disk.fail(Fault { name: ".blk".into(), ..Fault::new(Call::Sync, 0, EIO) });
    log.send_block(0, 1, 1_000, false);
    within(Duration::from_secs(5), "the failure does not poison", || log.poisoned().is_some());
    assert!(matches!(log.push(1, &push(1, &[1], 1)), Outcome::Failed(Unavailable::Poisoned(_))));
    log.kill();
    assert_eq!(restart(&disk.crash(Unsynced::Lost)).0, acked);
}

#[test]
fn a_record_that_no_reader_would_accept_is_refused() {
    let disk = MemDisk::default();
    let (log, _) = Log::mem(&disk, SyncMode::Always);
    // Compresses well below the limit, and still does not decompress within it.
    let p = vec![(1, vec![(1, vec![b'x'; 257 << 20], vec![])])];
    assert!(matches!(log.push(0, &p), Outcome::Failed(Unavailable::TooLarge(_))));
    durable(log.push(1, &push(1, &[1], 1)));
    log.wal.stop();
}

/// Pushes of a run with the operation count at which each was acknowledged.
struct Run {
    disk: MemDisk,
    base: MemDisk,
    /// Lines that were pushed: acknowledged or not.
    pushed: Vec<Push>,
    /// Operation count, lines with their seqs.
    acks: Vec<(usize, Lines)>,
}

/// A run with rotations, a push larger than a segment, a failed write and contested streams.
fn eventful_run(larger_than_a_segment: bool) -> Run {
    let disk = MemDisk::default();
    let base = disk.crash(Unsynced::Lost);
    let (log, _) = Log::mem(&disk, SyncMode::Always);
    let (mut pushed, mut acks) = (Vec::new(), Vec::new());
    for n in 0..14 {
        let fails = n == 4 || n == 9;
        if fails {
            let leaves = if n == 4 { 100_000 } else { 700 };
            disk.fail(Fault { leaves, name: ".wal".into(), ..Fault::new(Call::Write, 0, ENOSPC) });
        }
        let p = match n {
            6 if larger_than_a_segment => large_push(n, 2, 90_000),
            3 => large_push(n, 1, 40_000),
            _ => push(n, &[1, 2, 3 + u64::from(n / 5)], 12),
        };
        pushed.push(p.clone());
        let mut lines = Lines::new();
        let at = match log.push(n, &p) {
            Outcome::Durable { rows, at, .. } => {
                // On a busy machine a watermark may have met the fault.
                note(&p, &rows, &mut lines);
                at
            }
            failed => {
                assert!(fails && is_disk_full(&failed), "{failed:?}");
                log.acked(n, &p, &mut lines)
            }
        };
        acks.push((at, lines));
    }
    log.wal.stop();
    Run { disk, base, pushed, acks }
}

/// What must hold after any crash.
fn check(lines: &Lines, plan: &Plan, acked: &Lines, pushed: &[Push], when: &str) {
    assert!(plan.loss.is_empty(), "{when}: {:?}", plan.loss);
    for (key, line) in acked {
        assert_eq!(lines.get(key), Some(line), "{when}: an acknowledged line is gone: {key:?}");
    }
    for p in pushed {
        let counts = times(lines, p);
        let all_acked = p.iter().all(|(_, l)| l.iter().all(|l| acked.values().any(|a| a == l)));
        let first = counts.first().copied().unwrap_or(0);
        assert!(counts.iter().all(|c| *c == first), "{when}: a push is there in part: {counts:?}");
        assert!(first <= 1 || !all_acked, "{when}: an acknowledged push is there twice");
    }
    let known: usize = pushed.iter().map(|p| times(lines, p).iter().sum::<usize>()).sum();
    assert_eq!(known, lines.len(), "{when}: a line that nobody pushed");
}

fn crashes() -> impl Iterator<Item = Unsynced> {
    [Unsynced::Lost, Unsynced::Kept].into_iter().chain((0..4).map(Unsynced::Some))
}

#[test]
fn a_crash_at_every_operation_loses_nothing_acknowledged() {
    let run = eventful_run(true);
    let mut states = 0;
    run.disk.history(&run.base, |done, disk| {
        let acked: Lines = run.acks.iter().filter(|(at, _)| *at <= done).flat_map(|(_, l)| l.clone()).collect();
        for unsynced in crashes() {
            let when = format!("after {done} operations, unsynced {unsynced:?}");
            let (lines, plan) = restart(&disk.crash(unsynced));
            check(&lines, &plan, &acked, &run.pushed, &when);
            states += 1;
        }
    });
    assert!(states > 200, "{states}");
}

#[test]
fn a_crash_at_every_operation_of_recovery_changes_nothing() {
    let run = eventful_run(false);
    let end = run.disk.now();
    let (mut states, mut with_tail) = (0, 0);
    run.disk.history(&run.base, |done, disk| {
        if done % 2 != 0 && done + 6 < end {
            return;
        }
        for unsynced in [Unsynced::Kept, Unsynced::Some(done as u64)] {
            let crashed = disk.crash(unsynced);
            let (before, plan) = restart(&crashed);
            if plan.tail.is_empty() {
                continue;
            }
            with_tail += 1;
            let base = crashed.crash(Unsynced::Kept);
            let (log, _) = Log::mem(&crashed, SyncMode::Always);
            log.wal.stop();
            crashed.history(&base, |step, disk| {
                for unsynced in crashes() {
                    let when = format!("after {done} operations and {step} of recovery, unsynced {unsynced:?}");
                    let (lines, plan) = restart(&disk.crash(unsynced));
                    assert!(plan.loss.is_empty(), "{when}: {:?}", plan.loss);
                    assert_eq!(lines, before, "{when}");
                    states += 1;
                }
            });
        }
    });
    assert!(with_tail > 5, "{with_tail} of {states} states had a tail");
}

#[test]
fn a_torn_copy_of_the_tail_does_not_void_the_original() {
    let disk = MemDisk::default();
    let (log, _) = Log::mem(&disk, SyncMode::Always);
    let mut acked = Lines::new();
    log.acked(0, &push(0, &[1, 2], 3), &mut acked);
    // Acknowledged, and killed before a watermark: recovery copies a record of many sectors.
    log.acked(1, &large_push(1, 1, 10_000), &mut acked);
    log.kill();
    let crashed = disk.after_kill();
    let base = disk.after_kill();
    let (log, _) = Log::mem(&crashed, SyncMode::Always);
    assert_eq!(log.plan.tail.len(), 1);
    log.wal.stop();
    let mut torn = 0;
    crashed.history(&base, |step, disk| {
        for seed in 0..24 {
            let (lines, plan) = restart(&disk.crash(Unsynced::Some(seed)));
            assert_eq!(lines, acked, "step {step}, seed {seed}");
            assert!(plan.loss.is_empty());
            torn += usize::from(plan.replay.len() == 2 && plan.tail.first().is_some_and(|r| r.segment == 1));
        }
    });
    assert!(torn > 0, "no crash tore the copy");
}

#[test]
fn a_hole_in_the_tail_becomes_a_gap_and_the_second_start_is_clean() {
    let disk = MemDisk::default();
    let (log, _) = Log::mem(&disk, SyncMode::Always);
    let mut acked = Lines::new();
    log.acked(0, &push(0, &[1], 1), &mut acked);
    // Three records in one group: the first sync is slow enough only by chance, so the group is made by a full queue.
    let lock = push(1, &[1], 400);
    log.send(1, &lock, "tenant-a", Codec::None).unwrap();
    for n in 2..6 {
        log.send(n, &push(n, &[u64::from(n)], 2), "tenant-a", Codec::None).unwrap();
    }
    for n in 1..6 {
        let p = if n == 1 { lock.clone() } else { push(n, &[u64::from(n)], 2) };
        let (_, rows) = durable(log.outcome(n));
        note(&p, &rows, &mut acked);
    }
    log.kill();
    let disk = disk.after_kill();
    let mut files = disk.durable_files();
    let (_, file) = files.iter_mut().find(|(n, _)| *n == segment_name(1)).unwrap();
    let scan = scan_segment(file).unwrap();
    let last = scan.groups.last().unwrap();
    let entries: Vec<_> = last.records.iter().filter(|r| r.head.kind == 2).collect();
    let Some([hit, .., _]) = entries.get(..).filter(|e| e.len() >= 2) else { return };
    let (at, lsn) = (hit.offset as usize + hit.head.len as usize - 1, hit.head.lsn);
    let rows = Tables::decode(hit.head.tables(file, hit.offset)).unwrap().rows;
    file[at] ^= 1;
    let disk = MemDisk::with_files(&dir(), &files);
    for row in &rows {
        for seq in row.first_seq..row.first_seq + u64::from(row.count) {
            acked.remove(&(row.stream, seq));
        }
    }
    let (log, lines) = Log::mem(&disk, SyncMode::Always);
    assert!(log.plan.loss.is_empty());
    assert_eq!(log.plan.unresolved, vec![lsn..lsn + 1]);
    assert_eq!(lines, acked);
    log.kill();
    let (lines, plan) = restart(&disk.after_kill());
    assert_eq!(lines, acked);
    assert!(plan.loss.is_empty() && plan.unresolved.is_empty());
    let seqs = rows.iter().map(|r| (r.stream, r.first_seq, r.first_seq + u64::from(r.count))).collect();
    assert_eq!(plan.gaps, [Gap { lsns: vec![(lsn, lsn + 1)], seqs, lines: 0 }]);
}

#[test]
fn the_history_of_a_disk_ends_in_its_state() {
    let run = eventful_run(false);
    let mut last = None;
    run.disk.history(&run.base, |_, disk| last = Some(disk.crash(Unsynced::Lost).durable_files()));
    assert!(last.unwrap() == run.disk.durable_files());
}
