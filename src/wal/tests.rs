use super::*;
use crate::fs::RealFs;
use crate::model::{LabelSet, Tenant};
use parking_lot::Mutex;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;

type Out = Arc<Mutex<Vec<(u64, Vec<TableRow>, u32)>>>;

/// Takes no blocks.
struct NoBlocks;

impl BlockSink<()> for NoBlocks {
    fn synced(&mut self, _blocks: Vec<(BlockPlace, ())>) {}
}

struct Collect(Out, mpsc::Sender<Result<u32, Unavailable>>);

impl Sink<u32> for Collect {
    fn durable(&mut self, records: Vec<Applied<u32>>) {
        for r in records {
            self.0.lock().push((r.lsn, r.rows, r.payload));
            let _ = self.1.send(Ok(r.payload));
        }
    }
    fn failed(&mut self, payloads: Vec<u32>, why: &Unavailable) {
        payloads.iter().for_each(|_| drop(self.1.send(Err(why.clone()))));
    }
    fn poisoned(&mut self, _: &io::Error) {}
}

fn options(dir: &Path) -> WalOptions {
    WalOptions {
        fs: Arc::new(RealFs),
        dir: dir.to_path_buf(),
        volume: uuid::Uuid::from_u128(1),
        max_size: 1 << 30,
        blocks: BlockLogOptions { dir: dir.to_path_buf(), segment_size: 1 << 20, max_size: 1 << 30 },
        segment_size: 1 << 20,
        sync: SyncMode::Always,
        queue_bytes: 1 << 20,
        next_stream_id: Arc::new(AtomicU64::new(1)),
        metrics: WalMetrics::unregistered(),
    }
}

fn stream(id: u64) -> Arc<StreamLog> {
    let labels = LabelSet::new([("app", format!("app-{id}"))]);
    Arc::new(StreamLog::new(id, Tenant::new("t").unwrap(), Arc::new(labels), 0))
}

fn append(streams: &[Arc<StreamLog>], line: &str, lines: usize, payload: u32) -> Append<u32> {
    let mut b = EntriesBuilder::new(0);
    for s in streams {
        b.stream(s.id);
        for i in 0..lines {
            b.entry(i as i64, line.as_bytes(), [(&b"detected_level"[..], &b"info"[..])].into_iter());
        }
    }
    Append { record: b.finish("t", Codec::None), streams: streams.to_vec(), payload }
}

fn replayed(recovered: &Recovered) -> Vec<(u64, Vec<TableRow>)> {
    let mut out = Vec::new();
    recovered
        .replay(&mut |r, bytes| {
            let raw = decompress_body(&r.head, r.head.body(bytes, 0)).unwrap();
            let rows = Tables::decode(r.head.tables(bytes, 0)).unwrap().rows;
            let body = BodyView::new(&raw).unwrap();
            let mut start = 0;
            for row in &rows {
                assert_eq!(body.part(start, row).unwrap().filter(|e| e.is_ok()).count(), row.count as usize);
                start += row.part_len as usize;
            }
            out.push((r.head.lsn, rows));
        })
        .unwrap();
    out
}

/// Fills a new log: each record, which carries its number, is acknowledged before the next.
fn write(dir: &Path, count: u32, record: impl Fn(u32) -> Append<u32>) {
    let (tx, rx) = mpsc::channel();
    let recovered = recover(options(dir), &mut |_, _| {}).unwrap();
    let wal = recovered.open(Collect(Arc::default(), tx), NoBlocks).unwrap().0;
    for i in 0..count {
        assert!(wal.append(record(i)).is_ok());
        assert_eq!(rx.recv().unwrap(), Ok(i));
    }
    wal.stop();
}

/// Records are told apart by their rows alone: those of which nothing is asked are not even read.
#[test]
fn records_of_which_nothing_is_needed_are_not_read() {
    let tmp = tempfile::tempdir().unwrap();
    let streams: Vec<_> = (1..=3).map(stream).collect();
    write(tmp.path(), 12, |i| {
        let first = i as usize % 3;
        append(&streams[first..first + 1 + usize::from(first == 0)], &"x".repeat(100_000), 2, i)
    });
    let recovered = recover(options(tmp.path()), &mut |_, _| {}).unwrap();
    let read = |is_needed: &IsNeeded<'_>| {
        let mut lsns = Vec::new();
        for number in recovered.needed(|_| true) {
            let segment = recovered.segment(number, is_needed).unwrap().unwrap();
            segment.records(&mut |r, _| lsns.push(r.head.lsn)).unwrap();
        }
        lsns
    };
    assert!(recovered.plan.replay.len() > 2, "{:?}", recovered.plan.replay);
    assert_eq!(read(&|_, _| true), (0..12).collect::<Vec<_>>());
    assert_eq!(read(&|_, _| false), Vec::<u64>::new());
    assert_eq!(read(&|id, _| id == 3), [2, 5, 8, 11]);
    // Two streams a record, of which one is asked for; its lines end at 2, 4 and so on.
    assert_eq!(read(&|id, _| id == 1), [0, 3, 6, 9]);
    assert_eq!(read(&|id, end| id == 1 && end > 4), [6, 9]);
    assert_eq!(read(&|id, end| id == 2 && end > 8), [6, 7, 9, 10]);
}

/// The same whether the next batch is read while one is used or not.
#[test]
fn segments_come_in_batches_until_something_fails() {
    let tmp = tempfile::tempdir().unwrap();
    let streams: Vec<_> = (1..=3).map(stream).collect();
    write(tmp.path(), 40, |i| append(&streams, &"x".repeat(100_000), 1, i));
    let recovered = recover(options(tmp.path()), &mut |_, _| {}).unwrap();
    let numbers = recovered.needed(|_| true);
    assert!(numbers.len() > 10, "{numbers:?}");
    let open = |number: &u64| recovered.segment(*number, &|_, _| true).transpose();
    let bytes: u64 = numbers.iter().filter_map(open).map(|s| s.unwrap().file_len).sum();
    let lsns = |batch: &replay::Batch| -> Vec<u64> {
        batch.runs().flat_map(|run| batch.records(run).unwrap()).map(|(r, _)| r.head.lsn).collect()
    };
    for wide in [false, true] {
        let (mut seen, mut done) = (Vec::new(), 0);
        let mut all = |batch: &replay::Batch| {
            seen.extend(lsns(batch));
            done += batch.done;
            Ok(())
        };
        replay::each_batch(numbers.iter().filter_map(open), wide, &mut all).unwrap();
        assert_eq!((seen, done), ((0..40).collect(), bytes));

        let mut used = 0;
        let mut third_fails = |_: &replay::Batch| {
            used += 1;
            if used == 3 { Err(RecoverError::Tail("used".into())) } else { Ok(()) }
        };
        let failed = replay::each_batch(numbers.iter().filter_map(open), wide, &mut third_fails);
        assert!(matches!(failed, Err(RecoverError::Tail(why)) if why == "used"));
        assert_eq!(used, 3);

        let mut used = 0;
        let unreadable = || Some(Err(RecoverError::Tail("read".into())));
        let segments = numbers.iter().enumerate().filter_map(|(n, s)| if n == 2 { unreadable() } else { open(s) });
        let mut count = |_: &replay::Batch| {
            used += 1;
            Ok(())
        };
        let failed = replay::each_batch(segments, wide, &mut count);
        assert!(matches!(failed, Err(RecoverError::Tail(why)) if why == "read"));
        assert_eq!(used, 2);
    }
    // What was read a moment ago is not there any more.
    let path = tmp.path().join(segment_name(numbers[4]));
    std::fs::write(&path, &std::fs::read(&path).unwrap()[..300_000]).unwrap();
    for wide in [false, true] {
        let mut check = |batch: &replay::Batch| batch.runs().try_for_each(|run| batch.records(run).map(drop));
        let changed = replay::each_batch(numbers.iter().filter_map(open), wide, &mut check);
        assert!(matches!(changed, Err(RecoverError::Changed { .. })), "{:?}", changed.err());
    }
}

#[test]
fn what_was_appended_is_replayed_over_many_segments_and_starts() {
    let tmp = tempfile::tempdir().unwrap();
    let streams: Vec<_> = (1..=5).map(stream).collect();
    let all: Out = Arc::default();
    let mut total = 0;
    for round in 0..4 {
        let recovered = recover(options(tmp.path()), &mut |_, _| {}).unwrap();
        assert!(recovered.plan.loss.is_empty(), "{:?}", recovered.plan.loss);
        assert_eq!(recovered.plan.definitions.len(), if round == 0 { 0 } else { 5 });
        let seen: Vec<_> = all.lock().iter().map(|(lsn, rows, _)| (*lsn, rows.clone())).collect();
        assert_eq!(replayed(&recovered), seen);
        let (tx, rx) = mpsc::channel();
        let wal = recovered.open(Collect(all.clone(), tx), NoBlocks).unwrap().0;
        let big = "x".repeat(if round == 2 { 700_000 } else { 7_000 });
        for i in 0..60 {
            assert!(wal.append(append(&streams, &big, 1 + (i % 3), i as u32)).is_ok() || round == 2);
            assert_eq!(rx.recv().unwrap(), Ok(i as u32));
            total += 1;
        }
        assert_eq!(all.lock().len(), total);
        if round != 1 {
            wal.stop();
        }
    }
    // seqs are dense per stream over all starts.
    let mut next = std::collections::HashMap::new();
    for (i, (lsn, rows, _)) in all.lock().iter().enumerate() {
        assert_eq!(*lsn, i as u64);
        for row in rows {
            let seq = next.entry(row.stream).or_insert(0);
            assert_eq!(row.first_seq, *seq);
            *seq += u64::from(row.count);
        }
    }
}

/// Copies the directory on the log's own thread before the answer, so that no watermark can come in between.
struct CopyThen(std::path::PathBuf, std::path::PathBuf, mpsc::Sender<()>);

impl Sink<u32> for CopyThen {
    fn durable(&mut self, _: Vec<Applied<u32>>) {
        for entry in std::fs::read_dir(&self.0).unwrap().flatten() {
            // Files that another thread prepares right now change their names.
            let _ = std::fs::copy(entry.path(), self.1.join(entry.file_name()));
        }
        let _ = self.2.send(());
    }
    fn failed(&mut self, _: Vec<u32>, why: &Unavailable) {
        panic!("{why:?}");
    }
    fn poisoned(&mut self, why: &io::Error) {
        panic!("{why}");
    }
}

#[test]
fn records_above_the_durable_lsn_are_written_again_once() {
    let (tmp, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let streams = vec![stream(1)];
    let (tx, rx) = mpsc::channel();
    let sink = CopyThen(tmp.path().into(), copy.path().into(), tx);
    let wal = recover(options(tmp.path()), &mut |_, _| {}).unwrap().open(sink, NoBlocks).unwrap().0;
    for i in 0..3 {
        assert!(wal.append(append(&streams, "line", 1, i)).is_ok());
        rx.recv().unwrap();
    }
    wal.stop();
    for start in 0..3 {
        let recovered = recover(options(copy.path()), &mut |_, _| {}).unwrap();
        assert!(recovered.plan.loss.is_empty());
        assert_eq!(recovered.plan.tail.len(), usize::from(start == 0), "start {start}");
        assert_eq!(replayed(&recovered).iter().map(|(lsn, _)| *lsn).collect::<Vec<_>>(), [0, 1, 2]);
        let (tx, _rx) = mpsc::channel();
        recovered.open(Collect(Arc::default(), tx), NoBlocks).unwrap().0.stop();
    }
}

/// All that is in the newest segment is to be written again, and no group before it has its header.
#[test]
fn durable_records_without_their_header_stay_at_every_start() {
    let (tmp, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let streams = vec![stream(1)];
    let (tx, rx) = mpsc::channel();
    let sink = CopyThen(tmp.path().into(), copy.path().into(), tx);
    let wal = recover(options(tmp.path()), &mut |_, _| {}).unwrap().open(sink, NoBlocks).unwrap().0;
    let line = "x".repeat(400_000);
    for i in 0..3 {
        assert!(wal.append(append(&streams, &line, 1, i)).is_ok());
        rx.recv().unwrap();
    }
    wal.stop();
    let path = copy.path().join(segment_name(1));
    let mut file = std::fs::read(&path).unwrap();
    let groups = scan_segment(&file).unwrap().groups;
    assert_eq!(groups.last().unwrap().records.last().unwrap().head.lsn, 1);
    groups.iter().for_each(|group| file[group.offset as usize] ^= 1);
    std::fs::write(path, file).unwrap();
    for start in 0..3 {
        let recovered = recover(options(copy.path()), &mut |_, _| {}).unwrap();
        assert_eq!(replayed(&recovered).iter().map(|(lsn, _)| *lsn).collect::<Vec<_>>(), [0, 1, 2], "start {start}");
        let (tx, _rx) = mpsc::channel();
        recovered.open(Collect(Arc::default(), tx), NoBlocks).unwrap().0.stop();
    }
}

/// Writes a group with one push behind all others of the first segment, with checksums that hold.
fn forge(dir: &Path, first_lsn: u64) {
    let path = dir.join(segment_name(1));
    let mut file = std::fs::read(&path).unwrap();
    let scan = scan_segment(&file).unwrap();
    let end = scan.groups.last().unwrap().end as usize;
    let mut group = group::GroupBuilder::new(Vec::new(), scan.header, end as u64, first_lsn);
    group.entries(&append(&[stream(1)], "forged", 1, 0).record);
    let bytes = group.finish(0, 0).bytes;
    file[end..end + bytes.len()].copy_from_slice(&bytes);
    std::fs::write(path, file).unwrap();
}

#[test]
fn a_record_with_an_lsn_that_nobody_gave_is_no_tail() {
    for (beyond, kept) in [(1 << 20, 1), ((1 << 20) + 1, 0), (1 << 60, 0)] {
        let tmp = tempfile::tempdir().unwrap();
        let (tx, rx) = mpsc::channel();
        let wal = recover(options(tmp.path()), &mut |_, _| {}).unwrap().open(Collect(Arc::default(), tx), NoBlocks);
        let wal = wal.unwrap().0;
        assert!(wal.append(append(&[stream(1)], "line", 1, 7)).is_ok());
        assert_eq!(rx.recv().unwrap(), Ok(7));
        wal.stop();
        forge(tmp.path(), 1 + beyond);
        let recovered = recover(options(tmp.path()), &mut |_, _| {}).unwrap();
        assert_eq!(recovered.plan.tail.len(), kept, "{beyond} LSNs are missing");
        if kept == 0 {
            recovered.settle(Vec::new()).unwrap();
            let again = recover(options(tmp.path()), &mut |_, _| {}).unwrap();
            assert_eq!((again.plan.durable_lsn, replayed(&again).len()), (1, 1));
        }
    }
}
