use super::data_dir::{Dirs, Identity};
use super::recovery::wal_options;
use super::restore::{Restored, draft, restore};
use super::*;
use crate::chunk::{Part, Selection, select, select_readable};
use crate::fs::RealFs;
use crate::model::{Entry, LogEntry, MatchOp, MetadataPair, Push, PushError, PushStream, Span};
use crate::wal::{
    Ahead, ChunkClosed, Cut, Decision, Kind, Quarantine, RecordScan, Tables, recover_ahead, scan_segment,
};
use prometheus::{CounterVec, Opts, Registry};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

const A: &str = "iK2ZWeqhFWCEPyYngFb51yBMWXaSCrUZoL8g5ubbbPIa84yRnBUbHoWC8FJowoRo";
const B: &str = "iK2ZWe4ADBmK93YngFb51yBMWXaSCrUZoL8g5uD7fsyIt3yRnBUbHoWC8FJowoRo";

pub(super) fn config(dir: &Path) -> IngesterConfig {
    IngesterConfig {
        fs: Arc::new(RealFs),
        data_dir: dir.to_path_buf(),
        wal_dir: dir.join("wal"),
        blocks_dir: dir.join("blocks"),
        quarantine_dir: dir.join("quarantine"),
        refuse_damage: false,
        wal_max_size: 16 << 20,
        blocks_max_size: 1 << 30,
        require_data: false,
        segment_size: 1 << 20,
        sync: SyncMode::Always,
        wal_codec: Codec::Snappy,
        queue_bytes: 8 << 20,
        queue_timeout: Duration::from_secs(30),
        chunk_block_size: 4 << 10,
        chunk_target_size: 16 << 10,
        chunk_encoding: Encoding::Snappy,
        max_chunk_age: Duration::from_secs(7200),
        sync_period: Duration::from_secs(3600),
        sync_min_utilization: 0.1,
        max_returned_stream_errors: 10,
        heads_budget: 64 << 20,
        metadata_budget: 64 << 20,
        cluster: Cluster { ingesters: 1, replication_factor: 1 },
        threads: 2,
    }
}

pub(super) fn unregistered() -> IngesterMetrics {
    let counter = |name: &str| {
        CounterVec::new(Opts::new(name, name), &["reason", "tenant", "retention_hours", "policy", "format"]).unwrap()
    };
    IngesterMetrics::new(&Registry::new(), (counter("a"), counter("b"))).unwrap()
}

fn start(config: IngesterConfig, overrides: Overrides) -> (Ingester<Live>, RecoveryReport) {
    let replayed = Ingester::replay(config, Arc::new(overrides), unregistered(), &Progress::default()).unwrap();
    let report = replayed.report.clone();
    (replayed.go_live(Box::new(|e| panic!("poisoned: {e}"))).unwrap(), report)
}

fn tenant() -> Tenant {
    Tenant::new("t").unwrap()
}

/// A push of lines to streams; each line gets one metadata pair.
fn push(streams: &[(&[(&str, &str)], &[(i64, &str)])]) -> Arc<Push> {
    let mut out = Push::default();
    let intern = |text: &str, arena: &mut Vec<u8>| {
        arena.extend_from_slice(text.as_bytes());
        Span::new(arena.len() - text.len(), text.len())
    };
    let (name, value) = (intern("k", &mut out.arena), intern("v", &mut out.arena));
    out.metadata.push(MetadataPair { name, value });
    for (labels, lines) in streams {
        let first = out.entries.len() as u32;
        for (timestamp, line) in *lines {
            let line = intern(line, &mut out.arena);
            out.entries.push(Entry { timestamp: *timestamp, line, metadata: 0..1 });
        }
        let labels = Arc::new(LabelSet::new(labels.iter().copied()));
        out.streams.push(PushStream { labels, token: 0, entries: first..out.entries.len() as u32 });
    }
    Arc::new(out)
}

async fn store(ingester: &Ingester<Live>, streams: &[(&[(&str, &str)], &[(i64, &str)])]) -> Result<(), PushError> {
    let push = push(streams);
    let all: Vec<u32> = (0..push.streams.len() as u32).collect();
    ingester.push(&tenant(), push, &all).await
}

fn read<L>(ingester: &Ingester<L>) -> HashMap<String, Vec<LogEntry>> {
    let all = Selection { start: i64::MIN, end: i64::MAX, forward: true, limit: usize::MAX };
    let streams = ingester.streams(&tenant(), &[], i64::MIN, i64::MAX);
    let mut out: HashMap<String, Vec<LogEntry>> = HashMap::new();
    for s in streams {
        let entries = select(&s.parts(all.start, all.end), &all, &mut |_, _| true).unwrap();
        out.entry(s.labels().text().to_string()).or_default().extend(entries);
    }
    out
}

fn lines(entries: &[LogEntry]) -> Vec<(i64, String)> {
    entries.iter().map(|e| (e.timestamp, String::from_utf8_lossy(&e.line).into_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_with_one_fingerprint_stay_apart_before_and_after_a_restart() {
    let tmp = tempfile::tempdir().unwrap();
    let (ingester, _) = start(config(tmp.path()), Overrides::default());
    store(&ingester, &[(&[("a", A)], &[(1, "one")]), (&[("a", B)], &[(2, "two")])]).await.unwrap();
    let before = read(&ingester);
    assert_eq!(before.len(), 2);
    ingester.stop();
    drop(ingester);
    let (ingester, report) = start(config(tmp.path()), Overrides::default());
    assert_eq!(read(&ingester), before);
    assert_eq!((report.streams, report.lines, report.damaged_places), (2, 2, 0));
    let only = Matcher::new("a", MatchOp::Equal, A).unwrap();
    assert_eq!(ingester.streams(&tenant(), &[only], 0, 10).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_out_of_order_and_sealed_lines_read_the_same_after_replay() {
    let tmp = tempfile::tempdir().unwrap();
    let (ingester, _) = start(config(tmp.path()), Overrides::default());
    let labels: &[(&str, &str)] = &[("app", "x")];
    let long = "y".repeat(300);
    for i in 0..200i64 {
        store(
            &ingester,
            &[(labels, &[(1000 - i, &long), (i * 7 % 50, &format!("{i}")), (i * 7 % 50, &format!("{i}"))])],
        )
        .await
        .unwrap();
    }
    let before = read(&ingester);
    let entries = &before["{app=\"x\"}"];
    assert_eq!(entries.len(), 400, "each duplicate once");
    assert!(entries.is_sorted_by_key(|e| e.timestamp));
    assert_eq!(entries[0].metadata, [("k".to_string(), "v".to_string())]);
    ingester.stop();
    drop(ingester);
    let (ingester, _) = start(config(tmp.path()), Overrides::default());
    assert_eq!(read(&ingester), before);
    // The last line again, over a restart: found in apply.
    store(&ingester, &[(labels, &[(199 * 7 % 50, "199")])]).await.unwrap();
    assert_eq!(read(&ingester), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn contested_streams_keep_every_line_over_restarts() {
    let tmp = tempfile::tempdir().unwrap();
    let mut expected = 0;
    for round in 0..3i64 {
        let (ingester, report) = start(config(tmp.path()), Overrides::default());
        // Blocks that were synced in time are not read from the log again.
        assert_eq!(report.lines + report.block_lines, expected);
        let ingester = Arc::new(ingester);
        let writers: Vec<_> = (0..8i64)
            .map(|w| {
                let ingester = ingester.clone();
                tokio::spawn(async move {
                    for i in 0..30i64 {
                        let line = format!("{round}-{w}-{i}");
                        let fresh = format!("{round}-{i}");
                        let at = round * 1000 + i;
                        store(&ingester, &[(&[("s", "shared")], &[(at, &line)]), (&[("s", &fresh)], &[(at, &line)])])
                            .await
                            .unwrap();
                    }
                })
            })
            .collect();
        for w in writers {
            w.await.unwrap();
        }
        expected += 8 * 30 * 2;
        let all = read(&ingester);
        assert_eq!(all.values().map(Vec::len).sum::<usize>() as u64, expected);
        ingester.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_refuse_only_what_they_concern() {
    let tmp = tempfile::tempdir().unwrap();
    let limits = crate::model::Limits {
        max_global_streams_per_user: 2,
        per_stream_rate_limit: 100.0,
        per_stream_rate_limit_burst: 100.0,
        ..Default::default()
    };
    let (ingester, _) = start(config(tmp.path()), Overrides::new(limits, HashMap::new()));
    let hour = 3_600_000_000_000i64;
    store(&ingester, &[(&[("s", "1")], &[(10 * hour, "a")])]).await.unwrap();
    let e = store(&ingester, &[(&[("s", "1")], &[(9 * hour - 1, "late"), (9 * hour, "in time")])]).await.unwrap_err();
    assert_eq!(e.status, 400);
    assert!(
        e.message.starts_with(
            "entry with timestamp 1970-01-01 08:59:59.999999999 +0000 UTC ignored, reason: 'entry too far behind"
        ),
        "{e}"
    );
    assert!(e.message.ends_with("user 't', total ignored: 1 out of 2 for stream: {s=\"1\"}"), "{e}");
    let big = "x".repeat(99);
    let now = 10 * hour;
    let streams: [(&[(&str, &str)], &[(i64, &str)]); 3] =
        [(&[("s", "1")], &[(now, &big)]), (&[("s", "2")], &[(now, "b")]), (&[("s", "3")], &[(now, "y")])];
    let e = store(&ingester, &streams).await.unwrap_err();
    assert_eq!(e.status, 429);
    assert!(e.message.contains("maximum active stream limit exceeded when trying to create stream {s=\"3\"}"), "{e}");
    assert!(e.message.contains("Per stream rate limit exceeded (limit: 100B/sec)"), "{e}");
    let all = read(&ingester);
    assert_eq!(all.len(), 2, "a stream without lines is not seen");
    assert_eq!(lines(&all["{s=\"1\"}"]), [(9 * hour, "in time".into()), (now, "a".into())]);
    assert_eq!(lines(&all["{s=\"2\"}"]), [(now, "b".into())]);
    // A new stream whose only line is refused gives its slot back.
    let e = store(&ingester, &[(&[("s", "3")], &[(now, &big)])]).await.unwrap_err();
    assert!(e.message.contains("maximum active stream limit"), "{e}");
}

/// Small logs: segments of 1 MiB, four of them.
fn small(dir: &Path) -> IngesterConfig {
    IngesterConfig { wal_max_size: 4 << 20, heads_budget: 1 << 20, ..config(dir) }
}

/// Bytes that do not compress, as text.
fn noise(seed: u64, len: usize) -> String {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        char::from(b'!' + (x >> 33) as u8 % 90)
    };
    (0..len).map(|_| next()).collect()
}

/// Pushes `count` lines of 1 KiB to a busy stream, 20 at a time, and with them a line to one of 50 cold streams.
async fn load(ingester: &Ingester<Live>, from: i64, count: i64) {
    for batch in (from..from + count).step_by(20) {
        let texts: Vec<(i64, String)> = (batch..batch + 20).map(|n| (n, noise(n as u64, 1000))).collect();
        let lines: Vec<(i64, &str)> = texts.iter().map(|(n, text)| (*n, text.as_str())).collect();
        let (cold, text) = (format!("cold-{}", batch / 20 % 50), format!("cold line {batch}"));
        let busy: (&[(&str, &str)], &[(i64, &str)]) = (&[("app", "busy")], &lines);
        let labels = [("app", cold.as_str())];
        let quiet: (&[(&str, &str)], &[(i64, &str)]) = (&labels, &[(batch, &text)]);
        store_at_last(ingester, &[busy, quiet]).await;
    }
}

/// A log that is full for a moment is a reason to wait, not to fail.
async fn store_at_last(ingester: &Ingester<Live>, streams: &[(&[(&str, &str)], &[(i64, &str)])]) {
    while let Err(e) = store(ingester, streams).await {
        assert_eq!(e.status, 503, "{e:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_stays_within_its_budget_and_nothing_is_lost() {
    let tmp = tempfile::tempdir().unwrap();
    let mut want = None;
    for round in 0..4i64 {
        let (ingester, report) = start(small(tmp.path()), Overrides::default());
        assert_eq!((report.damaged_places, report.lost_lines, report.unattributed_lines), (0, 0, 0), "{report:?}");
        let found = read(&ingester);
        if let Some(want) = want.replace(HashMap::new()) {
            assert!(found == want, "round {round}: what was there is not what is there");
        }
        load(&ingester, round * 5000, 5000).await;
        let now = read(&ingester);
        assert_eq!(now["{app=\"busy\"}"].len() as i64, (round + 1) * 5000);
        assert_eq!(now["{app=\"cold-0\"}"].len() as i64, (round + 1) * 5);
        want = Some(now);
        assert!(ingester.log.wal.retention().size() <= 4 << 20);
        assert!(ingester.log.wal.retention().bounds().unwrap().0 > 1, "no segment went");
        let on_disk = |name: &str| -> u64 {
            std::fs::read_dir(tmp.path().join(name)).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum()
        };
        // Live segments, and at most four that are prepared or wait to be used again.
        assert!(on_disk("wal") <= (4 << 20) + (4 << 20), "{} bytes", on_disk("wal"));
        if round % 2 == 0 {
            ingester.stop();
        }
    }
}

fn unlimited() -> Overrides {
    let limits =
        crate::model::Limits { per_stream_rate_limit: 1e12, per_stream_rate_limit_burst: 1e12, ..Default::default() };
    Overrides::new(limits, HashMap::new())
}

/// As if a crash had undone their removal. They still define streams of which the rest of the log says nothing: what a start reads
/// ahead of blocks must not count on that. Together they are more than what is read by one thread.
#[tokio::test(flavor = "multi_thread")]
async fn segments_that_were_given_up_and_are_still_there_change_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let wal = tmp.path().join("wal");
    let (ingester, _) = start(small(tmp.path()), unlimited());
    for n in 0..100u64 {
        let (name, lines) = (format!("once-{n}"), [noise(n, 6000), noise(n + 1000, 6000)]);
        let lines = [(0, lines[0].as_str()), (1, lines[1].as_str())];
        store(&ingester, &[(&[("app", name.as_str())], &lines)]).await.unwrap();
    }
    let mut kept: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for from in (0..40_000).step_by(500) {
        load(&ingester, from, 500).await;
        for entry in std::fs::read_dir(&wal).unwrap().flatten() {
            // One may go meanwhile.
            let Ok(bytes) = std::fs::read(entry.path()) else { continue };
            kept.insert(entry.file_name().into_string().unwrap(), bytes);
        }
    }
    let want = read(&ingester);
    ingester.stop();
    drop(ingester);
    for count in [10, usize::MAX] {
        let given_up = |name: &&String| name.ends_with(".wal") && !wal.join(name).exists();
        let back: Vec<&String> = kept.keys().rev().filter(given_up).take(count).collect();
        back.iter().for_each(|name| std::fs::write(wal.join(name), &kept[*name]).unwrap());
        let bytes: u64 = std::fs::read_dir(&wal).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert_eq!(bytes >= 32 << 20, count == usize::MAX, "{} segments are back, {bytes} bytes", back.len());
        let (ingester, report) = start(small(tmp.path()), unlimited());
        assert_eq!((report.damaged_places, report.lost_lines, report.unattributed_lines), (0, 0, 0), "{report:?}");
        assert!(read(&ingester) == want, "with {} segments back", back.len());
        ingester.stop();
    }
}

/// What a start restores from the block log, before anything is applied: all streams as text, and the bytes of blocks that are
/// needed. And, if drafts are made, how many of them are kept, of how many.
fn restored(config: IngesterConfig, with_drafts: bool) -> ((BTreeMap<u64, String>, u64), (usize, usize)) {
    let metrics = unregistered();
    let state = State::new(config, Arc::default(), metrics);
    let (config, wal_metrics) = (&state.config, state.metrics.wal.clone());
    let volume = Identity::of(&*config.fs, &Dirs::of(config)).unwrap().unwrap().volume;
    let options = wal_options(config, volume, state.next_stream_id.clone(), wal_metrics);
    let make = |ahead: &Ahead<'_>| if with_drafts { draft(&state, ahead) } else { Vec::new() };
    let (recovered, drafts) = recover_ahead(options, &[], &mut |_, _| {}, make).unwrap();
    let drafted: HashSet<_> = drafts.iter().flatten().map(|d| Arc::as_ptr(&d.stream)).collect();
    let streams: Vec<Restored> = restore(&state, &recovered, drafts).0.into_iter().flatten().collect();
    let kept = streams.iter().filter(|r| drafted.contains(&Arc::as_ptr(&r.stream))).count();
    let shown = |r: &Restored| format!("{} {} {}", r.lines, r.next_seq, r.stream.restored());
    let shown = streams.iter().map(|r| (r.id, shown(r))).collect();
    ((shown, recovered.block_store().usage().1), (kept, drafted.len()))
}

/// In each round a third of the streams get blocks, chunks are closed, flushed and forgotten, and sparse segments are copied and go.
/// Later most streams are quiet, and what the log said of them goes.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_restored_before_the_plan_is_there_are_what_they_are_after_it() {
    let tmp = tempfile::tempdir().unwrap();
    let config = || IngesterConfig { chunk_target_size: 48 << 10, ..small(tmp.path()) };
    let (mut kept, mut made) = (0, 0);
    for round in 0..40u64 {
        let (ingester, report) = start(config(), unlimited());
        assert_eq!((report.damaged_places, report.lost_lines, report.unattributed_lines), (0, 0, 0), "{report:?}");
        let streams = if round < 24 { 60 } else { 10 };
        for n in (0..streams).filter(|n| n % 3 == round % 3) {
            let name = format!("s{n}");
            let texts: Vec<String> = (0..9).map(|i| noise(round * 1000 + n * 10 + i, 1000)).collect();
            let lines: Vec<(i64, &str)> = texts.iter().map(|text| (round as i64, text.as_str())).collect();
            store_at_last(&ingester, &[(&[("app", name.as_str())], &lines)]).await;
        }
        load(&ingester, round as i64 * 200, 200).await;
        if round % 4 == 3 {
            ingester.closed_chunks().iter().for_each(|chunk| ingester.settle(chunk, "key").unwrap());
        }
        // Segments of the block log go, and others are copied.
        tokio::time::sleep(Duration::from_millis(30)).await;
        ingester.stop();
        drop(ingester);
        let (want, _) = restored(config(), false);
        let (found, (now_kept, now_made)) = restored(config(), true);
        assert!(found == want, "round {round}:\n{found:#?}\n{want:#?}");
        kept += now_kept;
        made += now_made;
    }
    println!("{kept} of {made} drafts were kept");
    assert!(kept > 100 && kept < made, "{kept} of {made} drafts were kept");
}

/// Fills heads of streams of their own, so that blocks are made of them.
async fn store_blocks(ingester: &Ingester<Live>, streams: Range<u64>) {
    for n in streams {
        let name = format!("s{n}");
        let texts: Vec<String> = (0..40).map(|i| noise(n * 100 + i, 1000)).collect();
        let lines: Vec<(i64, &str)> = (0..).zip(texts.iter().map(String::as_str)).collect();
        store_at_last(ingester, &[(&[("app", name.as_str())], &lines)]).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
}

/// The records that tell how far the block log is synced are damaged, but for the Open: a start reads on, to the last block that holds.
#[tokio::test(flavor = "multi_thread")]
async fn blocks_behind_the_end_that_was_read_ahead_are_restored() {
    let tmp = tempfile::tempdir().unwrap();
    let config = || small(tmp.path());
    // The second run ends in the segment whose Open it began with: what it wrote to the block log, no other record tells.
    for streams in [0..30, 30..40] {
        let (ingester, _) = start(config(), unlimited());
        store_blocks(&ingester, streams).await;
        ingester.stop();
    }
    let ((_, bytes), (kept, _)) = restored(config(), true);
    assert!(bytes > 0 && kept > 0);
    damage_all(Kind::BlocksSynced, &tmp.path().join("wal"));
    let (want, _) = restored(config(), false);
    let (found, (kept, made)) = restored(config(), true);
    assert!(found == want, "{found:#?}\n{want:#?}");
    assert_eq!(found.1, bytes);
    assert!(kept == 0 && made > 0, "{kept} of {made} drafts were kept");
}

/// Blocks that were written, and of which the write-ahead log does not say that they are synced, do not count.
#[tokio::test(flavor = "multi_thread")]
async fn blocks_behind_the_synced_end_do_not_count() {
    let tmp = tempfile::tempdir().unwrap();
    let (wal, config) = (tmp.path().join("wal"), || small(tmp.path()));
    let (ingester, _) = start(config(), unlimited());
    store_blocks(&ingester, 0..30).await;
    ingester.stop();
    drop(ingester);
    let files = || std::fs::read_dir(&wal).unwrap().map(|e| e.unwrap().path());
    let kept: Vec<(PathBuf, Vec<u8>)> = files().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    let (want, _) = restored(config(), true);
    let (ingester, _) = start(config(), unlimited());
    store_blocks(&ingester, 30..60).await;
    ingester.stop();
    drop(ingester);
    let (more, _) = restored(config(), true);
    assert!(more.1 > want.1, "{} bytes, {} before", more.1, want.1);
    files().for_each(|path| std::fs::remove_file(path).unwrap());
    kept.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    let (found, _) = restored(config(), true);
    assert!(found == want, "{found:#?}\n{want:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn small_heads_are_carried_once_for_each_round_of_the_log() {
    let tmp = tempfile::tempdir().unwrap();
    let config = IngesterConfig { wal_max_size: 16 << 20, heads_budget: 8 << 20, ..config(tmp.path()) };
    let (ingester, _) = start(config, unlimited());
    // A segment takes about 1,200 of these lines, and in each are lines of all cold streams.
    let mut cold = 0;
    for from in (0..40_000).step_by(4000) {
        load(&ingester, from, 4000).await;
        cold += 4000 / 20;
    }
    let metrics = &ingester.state.metrics;
    let (carried, retired) = (metrics.wal_carried_lines.get(), metrics.wal_retired.get());
    println!("{cold} cold lines, {carried} carried, {retired} segments retired");
    assert!(carried > 0 && retired > 15, "{carried} lines carried, {retired} segments retired");
    assert!(carried < 4 * cold, "{carried} lines were carried of {cold}");
    ingester.stop();
}

/// What is needed takes more of the log than cleaning leaves: it is written again once in a while, not all the time.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_does_not_get_smaller_is_left_alone_for_a_while() {
    let tmp = tempfile::tempdir().unwrap();
    let config = IngesterConfig {
        wal_max_size: 16 << 20,
        heads_budget: 64 << 20,
        chunk_block_size: 1 << 20,
        wal_codec: Codec::None,
        ..config(tmp.path())
    };
    let (ingester, _) = start(config, Overrides::default());
    // Three quarters of the log, in heads that are carried and not sealed.
    let mut needed = 0;
    let until = Instant::now() + Duration::from_secs(30);
    for n in 0..540u64 {
        let texts: Vec<(i64, String)> = (0..24).map(|i| (i, noise(n * 24 + i as u64, 1000))).collect();
        let lines: Vec<(i64, &str)> = texts.iter().map(|(at, text)| (*at, text.as_str())).collect();
        let name = format!("s{n}");
        // The log may be full for a moment, because what is carried is in it twice.
        while store(&ingester, &[(&[("app", name.as_str())], &lines)]).await.is_err() {
            assert!(Instant::now() < until, "the log stays full");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        needed += 24_000;
    }
    let metrics = &ingester.state.metrics;
    while metrics.wal_carried_bytes.get() < needed / 2 {
        assert!(Instant::now() < until, "nothing is carried");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = metrics.wal_carried_bytes.get();
    assert!(ingester.log.wal.retention().needs_cleaning(), "the log is smaller than this test needs it");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let carried = metrics.wal_carried_bytes.get() - before;
    assert!(carried < 2 * needed, "{carried} bytes were carried of {needed} that are needed");
    ingester.stop();
}

/// The last record of a log is damaged in its body: before it was synced, when it does not count, or afterwards, when it is a loss.
/// Its stream never gets a line again. The segment goes all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_never_applied_keeps_no_segment() {
    for synced in [false, true] {
        let tmp = tempfile::tempdir().unwrap();
        let (ingester, _) = start(small(tmp.path()), Overrides::default());
        for n in 0..3 {
            store(&ingester, &[(&[("app", "once")], &[(n, "a line")])]).await.unwrap();
        }
        ingester.stop();
        drop(ingester);
        damage_last_entries(&tmp.path().join("wal"), synced);
        let (ingester, report) = start(small(tmp.path()), Overrides::default());
        assert_eq!((report.lines, report.lost_lines), (2, u64::from(synced)), "{report:?}");
        let (first, _) = ingester.log.wal.retention().bounds().unwrap();
        let loaded = tokio::time::timeout(Duration::from_secs(60), load(&ingester, 0, 10_000)).await;
        assert!(loaded.is_ok(), "synced {synced}: the log stays full: {:?}", ingester.log.wal.retention().bounds());
        assert!(ingester.log.wal.retention().bounds().unwrap().0 > first);
        assert_eq!(read(&ingester)["{app=\"once\"}"].len(), 2);
        ingester.stop();
    }
}

/// Changes the last byte of all records of a kind.
fn damage_all(kind: Kind, dir: &Path) {
    let mut damaged = 0;
    for path in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        let mut file = std::fs::read(&path).unwrap();
        let Ok(scan) = scan_segment(&file) else { continue };
        let records = scan.groups.iter().flat_map(|g| &g.records).filter(|r| r.head.known_kind() == Some(kind));
        for record in records {
            file[record.offset as usize + record.head.len as usize - 1] ^= 1;
            damaged += 1;
        }
        std::fs::write(&path, file).unwrap();
    }
    assert!(damaged > 0);
}

/// Changes the last byte of the last Entries record; if it is not synced, nothing is behind its group.
fn damage_last_entries(dir: &Path, synced: bool) {
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    for path in paths.into_iter().rev() {
        let mut file = std::fs::read(&path).unwrap();
        let Ok(scan) = scan_segment(&file) else { continue };
        let is_entries = |r: &&RecordScan| r.head.known_kind() == Some(Kind::Entries);
        let last = scan.groups.iter().rev().find_map(|g| Some((g.end, g.records.iter().rev().find(is_entries)?)));
        let Some((group_end, record)) = last else { continue };
        let end = record.offset as usize + record.head.len as usize;
        file[end - 1] ^= 1;
        if !synced {
            file[group_end as usize..].fill(0);
        }
        std::fs::write(&path, file).unwrap();
        return;
    }
    panic!("no record");
}

/// A crash may leave copies of a decision in several segments. They must not be written again from each of them for ever.
#[tokio::test(flavor = "multi_thread")]
async fn copies_of_decisions_come_to_an_end() {
    let tmp = tempfile::tempdir().unwrap();
    let (ingester, _) = start(small(tmp.path()), Overrides::default());
    load(&ingester, 0, 3000).await;
    let chunks = ingester.closed_chunks();
    let chunk = chunks.first().unwrap();
    let closed =
        ChunkClosed { stream: chunk.stream().id(), chunk: chunk.number(), end_seq: chunk.seqs().end, reason: 1 };
    for _ in 0..4 {
        ingester.log.wal.decide(vec![Decision::ChunkClosed(closed); 15_000]).unwrap();
    }
    let retention = ingester.log.wal.retention();
    let until = Instant::now() + Duration::from_secs(20);
    while retention.needs_cleaning() {
        assert!(std::time::Instant::now() < until, "the log is cleaned for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let newest = retention.bounds().unwrap().1;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(retention.bounds().unwrap().1 <= newest + 1, "it is still written");
    ingester.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn settled_chunks_leave_both_logs_and_do_not_come_back() {
    let tmp = tempfile::tempdir().unwrap();
    let config = || IngesterConfig { blocks_max_size: 1 << 30, ..small(tmp.path()) };
    let (ingester, _) = start(config(), Overrides::default());
    load(&ingester, 0, 3000).await;
    let count = |ingester: &Ingester<Live>| read(ingester).get("{app=\"busy\"}").map_or(0, Vec::len);
    assert_eq!(count(&ingester), 3000);
    let share = |ingester: &Ingester<Live>| ingester.state.instance(&tenant()).blocks.bytes();
    // What is on its way to a block would count after the next start only.
    let until = Instant::now() + Duration::from_secs(20);
    while ingester.state.stream(1).unwrap().has_frozen() || ingester.log.wal.retention().needs_cleaning() {
        assert!(Instant::now() < until, "the heads are sealed for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let all_of_it = share(&ingester);
    let mut settled = 0;
    loop {
        let chunks = ingester.closed_chunks();
        if chunks.is_empty() {
            break;
        }
        for chunk in &chunks {
            ingester.settle(chunk, "key").unwrap();
            settled += (chunk.seqs().end - chunk.seqs().start) as usize;
        }
    }
    assert!(settled > 2000, "{settled} lines settled");
    assert_eq!(count(&ingester), 3000 - settled);
    // What is in the object store takes nothing of the tenant's share of the disk any more.
    let left = share(&ingester);
    assert!(left < all_of_it / 2, "{left} of {all_of_it}");
    let before = read(&ingester);
    ingester.stop();
    drop(ingester);
    for _ in 0..2 {
        let (ingester, report) = start(config(), Overrides::default());
        assert_eq!(share(&ingester), left);
        assert_eq!((report.damaged_places, report.lost_lines), (0, 0), "{report:?}");
        assert!(read(&ingester) == before);
        // The dead segments of the block log go, all but the one that is written and the prepared one.
        for _ in 0..100 {
            if std::fs::read_dir(tmp.path().join("blocks")).unwrap().count() <= 2 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(std::fs::read_dir(tmp.path().join("blocks")).unwrap().count() <= 2);
    }
}

/// A copy that was on its way while its chunk was flushed comes to count when the record of the flush has long been in a
/// segment that went: it must not come back as lines.
#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_is_flushed_while_it_is_copied_does_not_come_back() {
    let tmp = tempfile::tempdir().unwrap();
    let config = || IngesterConfig { blocks_max_size: 1 << 30, ..small(tmp.path()) };
    let (ingester, _) = start(config(), Overrides::default());
    load(&ingester, 0, 3000).await;
    // As the retainer begins to copy a block.
    let chunk = ingester.closed_chunks().pop().unwrap();
    let stream = chunk.stream().clone();
    let store = ingester.log.blocks.store().clone();
    let segments = 1..=ingester.log.blocks.store().size() / (1 << 20) + 1;
    let mut blocks = segments.flat_map(|s| stream.blocks_in(s));
    let (number, symbols, block) = blocks.find(|(number, ..)| *number == chunk.number()).unwrap();
    let data = store.read(block.place).unwrap();
    ingester.state.moving.fetch_add(1, Ordering::AcqRel);
    // Its chunk is flushed, and all others, until the segment with the block is gone.
    for _ in 0..500 {
        ingester.closed_chunks().iter().for_each(|c| ingester.settle(c, "key").unwrap());
        if !store.holds(block.place.segment) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!store.holds(block.place.segment), "the segment of the block stays");
    // The log goes round, and with it the segment that holds the record of the flush.
    let newest = ingester.log.wal.retention().bounds().unwrap().1;
    let mut from = 10_000;
    while ingester.log.wal.retention().bounds().unwrap().0 <= newest {
        load(&ingester, from, 200).await;
        from += 200;
    }
    let ids: Vec<u32> = (0..symbols.len() as u32).collect();
    ingester.log.blocks.append(crate::wal::BlockAppend {
        tables: block.tables(stream.id(), number, &symbols, &ids),
        data,
        stream: stream.log.clone(),
        closes: None,
        lets_go: true,
        payload: Sealing::Moved { stream: stream.clone(), chunk: number, from: block.place },
    });
    while ingester.state.moving.load(Ordering::Acquire) > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let before = read(&ingester);
    drop((ingester, stream, store, block, chunk));
    for _ in 0..2 {
        let (ingester, _) = start(config(), Overrides::default());
        assert!(read(&ingester) == before, "flushed lines are back");
    }
}

fn try_start(config: IngesterConfig) -> Result<Replayed, StartError> {
    let metrics = unregistered();
    Ingester::replay(config, Arc::new(Overrides::default()), metrics, &Progress::default())
}

/// Flips a bit in the middle of the body of the `n`-th record of a kind.
fn damage(file: &Path, kind: Kind, n: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    let scan = scan_segment(&bytes).unwrap();
    let mut records = scan.groups.iter().flat_map(|g| &g.records).filter(|r| r.head.known_kind() == Some(kind));
    let record = records.nth(n).unwrap_or_else(|| panic!("no {kind:?} record {n}"));
    let at = record.offset + u64::from(record.head.len) - u64::from(record.head.body_len) / 2 - 1;
    bytes[at as usize] ^= 4;
    std::fs::write(file, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_kept_told_once_and_settled() {
    let tmp = tempfile::tempdir().unwrap();
    let (ingester, _) = start(config(tmp.path()), Overrides::default());
    for n in 0..6i64 {
        store(&ingester, &[(&[("app", "a")], &[(n, "one"), (n, "two")]), (&[("app", "b")], &[(n, "three")])])
            .await
            .unwrap();
    }
    ingester.stop();
    drop(ingester);
    damage(&tmp.path().join("wal/00000000000000000001.wal"), Kind::Entries, 2);
    let refused = try_start(IngesterConfig { refuse_damage: true, ..config(tmp.path()) }).err().unwrap().to_string();
    assert!(refused.contains("acknowledged lines lost: 3") && refused.contains("record body"), "{refused}");
    assert!(!tmp.path().join("quarantine").exists());

    let (ingester, report) = start(config(tmp.path()), Overrides::default());
    assert_eq!((report.damaged_places, report.lost_lines, report.unattributed_lines), (1, 3, 0), "{report:?}");
    let after = read(&ingester);
    assert_eq!((after["{app=\"a\"}"].len(), after["{app=\"b\"}"].len()), (10, 5));
    let quarantine = Quarantine::read(&RealFs, &tmp.path().join("quarantine")).unwrap();
    let [kept] = &quarantine.reports.values().collect::<Vec<_>>()[..] else { panic!("{quarantine:?}") };
    assert_eq!((kept.lines_missing, kept.lsns.as_slice(), kept.segment), (3, &[(2, 3)][..], 1));
    assert_eq!(kept.streams.iter().map(|s| s.2..s.3).collect::<Vec<_>>(), [4..6, 2..3]);
    assert!(kept.between.is_some_and(|(before, after)| before > 0 && before <= after));
    assert_eq!((quarantine.unread.len(), quarantine.bytes), (1, 1 << 20));
    store(&ingester, &[(&[("app", "a")], &[(9, "later")])]).await.unwrap();
    let after = read(&ingester);
    ingester.stop();
    drop(ingester);

    for refuse_damage in [true, false] {
        let (ingester, report) = start(IngesterConfig { refuse_damage, ..config(tmp.path()) }, Overrides::default());
        assert_eq!((report.damaged_places, report.lost_lines), (0, 0), "told again: {report:?}");
        assert_eq!(read(&ingester), after);
        ingester.stop();
    }
    let name = tmp.path().join("quarantine").join(&quarantine.unread[0]);
    std::fs::rename(&name, name.with_extension("acknowledged.json")).unwrap();
    let read_again = Quarantine::read(&RealFs, &tmp.path().join("quarantine")).unwrap();
    assert_eq!((read_again.unread.len(), read_again.reports.len()), (0, 1));
}

/// The report is there although the segment could not be kept, and says why; it is told once all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_cannot_be_kept_is_told_in_its_report() {
    let tmp = tempfile::tempdir().unwrap();
    let (ingester, _) = start(config(tmp.path()), Overrides::default());
    for n in 0..3i64 {
        store(&ingester, &[(&[("app", "a")], &[(n, "one")])]).await.unwrap();
    }
    ingester.stop();
    drop(ingester);
    let segment = tmp.path().join("wal/00000000000000000001.wal");
    damage(&segment, Kind::Entries, 1);
    // Its name in quarantine is taken by what is no file.
    let salt = scan_segment(&std::fs::read(&segment).unwrap()).unwrap().header.salt;
    let name = format!("{salt:016x}-00000000000000000001.wal");
    std::fs::create_dir_all(tmp.path().join("quarantine").join(&name)).unwrap();
    for again in [false, true] {
        let mut replayed = try_start(config(tmp.path())).unwrap();
        replayed.keep_damaged();
        let failed = &replayed.report.quarantine_failed;
        assert_eq!((failed.len(), replayed.report.damaged_places), if again { (0, 0) } else { (1, 1) }, "{failed:?}");
        drop(replayed);
        let quarantine = Quarantine::read(&RealFs, &tmp.path().join("quarantine")).unwrap();
        let [kept] = &quarantine.reports.values().collect::<Vec<_>>()[..] else { panic!("{quarantine:?}") };
        assert!(kept.remarks.iter().any(|r| r.contains("could not be kept") && r.contains("exists")), "{kept:?}");
        assert_eq!((quarantine.unread.len(), quarantine.bytes), (1, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_block_is_made_again_from_the_log_and_told_to_a_query() {
    let tmp = tempfile::tempdir().unwrap();
    let (ingester, _) = start(config(tmp.path()), Overrides::default());
    load(&ingester, 0, 60).await;
    // Every full head is a block that counts.
    while ingester.state.stream(1).unwrap().has_frozen() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = read(&ingester);
    let segment = tmp.path().join("blocks/00000000000000000001.blk");
    let sound = std::fs::read(&segment).unwrap();
    damage(&segment, Kind::Block, 1);
    let all = Selection { start: i64::MIN, end: i64::MAX, forward: true, limit: usize::MAX };
    let busy = &ingester.streams(&tenant(), &[Matcher::new("app", MatchOp::Equal, "busy").unwrap()], 0, 1000)[0];
    let mut unreadable = Vec::new();
    let rest = select_readable(&busy.parts(all.start, all.end), &all, &mut |_, _| true, &mut unreadable);
    assert_eq!(unreadable.len(), 1, "{unreadable:?}");
    assert!(unreadable[0].to_string().contains("is damaged"), "{unreadable:?}");
    assert!(rest.len() > 50 && rest.len() < 60, "{}", rest.len());
    std::fs::write(&segment, &sound).unwrap();
    assert!(read(&ingester) == before);
    ingester.stop();
    drop(ingester);
    damage(&segment, Kind::Block, 1);
    let (ingester, report) = start(config(tmp.path()), Overrides::default());
    assert_eq!((report.damaged_places, report.lost_lines), (1, 0), "{report:?}");
    assert!(read(&ingester) == before, "the log still has the lines of the damaged block");
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_outlive_a_write_ahead_log_that_is_gone() {
    let tmp = tempfile::tempdir().unwrap();
    let (ingester, _) = start(config(tmp.path()), Overrides::default());
    load(&ingester, 0, 200).await;
    while ingester.state.stream(1).unwrap().has_frozen() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ingester.stop();
    drop(ingester);
    std::fs::remove_dir_all(tmp.path().join("wal")).unwrap();
    for from in [1000, 2000] {
        let (ingester, report) = start(config(tmp.path()), Overrides::default());
        let found = read(&ingester)["{app=\"busy\"}"].iter().filter(|e| e.timestamp < 200).count();
        assert!(found > 150 && report.block_lines > 150, "{found} lines: {report:?}");
        load(&ingester, from, 20).await;
        assert_eq!(read(&ingester)["{app=\"busy\"}"].len() - found, from as usize / 50);
        ingester.stop();
    }
}

#[tokio::test]
async fn streams_and_blocks_stay_within_their_part_of_memory() {
    let dir = tempfile::tempdir().unwrap();
    let config = IngesterConfig { metadata_budget: 200 << 10, chunk_block_size: 64, ..config(dir.path()) };
    let (ingester, _) = start(config.clone(), Overrides::default());
    let mut refused = None;
    let mut kept = 0;
    for i in 0..1000 {
        match store(&ingester, &[(&[("n", &i.to_string())], &[(1, "first")])]).await {
            Ok(()) if refused.is_none() => kept += 1,
            Ok(()) => panic!("stream {i} is taken after one was refused"),
            Err(e) => refused = Some(e),
        }
    }
    let why = refused.expect("memory is bounded").to_string();
    assert!(why.contains("ingester.memory_budget"), "{why}");
    assert!((50..500).contains(&kept), "{kept} streams");
    // Those that are there go on, until their blocks take the rest.
    let mut taken = 1;
    let why = loop {
        match store(&ingester, &[(&[("n", "0")], &[(taken + 1, &format!("{taken:0>80}"))])]).await {
            Ok(()) => taken += 1,
            Err(e) => break e,
        }
        assert!(taken < 5000, "blocks take no memory");
    };
    assert_eq!(why.status, 503, "{why}");
    assert!(why.to_string().contains("ingester.memory_budget"), "{why}");
    assert!(taken > 20, "{taken} lines");
    drop(ingester);
    // What is there is there, whatever it takes; a larger budget goes on.
    let (ingester, report) = start(config.clone(), Overrides::default());
    assert_eq!(report.lines + report.block_lines, kept + taken as u64 - 1);
    assert!(store(&ingester, &[(&[("n", "0")], &[(99_999, "more")])]).await.is_err());
    drop(ingester);
    let (ingester, _) = start(IngesterConfig { metadata_budget: 64 << 20, ..config }, Overrides::default());
    store(&ingester, &[(&[("n", "new")], &[(1, "first")])]).await.unwrap();
}

/// Pushes of streams with few lines and of others: what a block has already is not decompressed, on either side of the cut.
#[tokio::test(flavor = "multi_thread")]
async fn cut_bodies_are_replayed_whole_and_by_sides() {
    // Bytes of lines of 20 small streams and of three others, which are new in each push: (is sealed, others are sealed).
    for (small, large, sealed) in [(500, 20_000, (0, 24)), (3000, 5000, (20, 0)), (500, 5000, (0, 0))] {
        let tmp = tempfile::tempdir().unwrap();
        let config = || IngesterConfig { chunk_block_size: 8 << 10, ..config(tmp.path()) };
        let (ingester, _) = start(config(), Overrides::default());
        for n in 0..8i64 {
            let name = |(i, _): (usize, &usize)| if i < 3 { format!("large-{n}-{i}") } else { format!("small-{i}") };
            let sizes: Vec<usize> = [large; 3].into_iter().chain([small; 20]).collect();
            let names: Vec<String> = sizes.iter().enumerate().map(name).collect();
            // Compressible, and different in each stream.
            let texts: Vec<String> =
                names.iter().zip(&sizes).map(|(s, len)| format!("{s} {n} ").repeat(*len / 10)).collect();
            let labels: Vec<[(&str, &str); 1]> = names.iter().map(|name| [("s", name.as_str())]).collect();
            let lines: Vec<[(i64, &str); 2]> = texts.iter().map(|t| [(n, t.as_str()), (n, "short")]).collect();
            let streams: Vec<(&[(&str, &str)], &[(i64, &str)])> =
                labels.iter().zip(&lines).map(|(l, e)| (&l[..], &e[..])).collect();
            store(&ingester, &streams).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = read(&ingester);
        ingester.stop();
        drop(ingester);
        assert_eq!(cuts(tmp.path()), 8, "small {small}, large {large}");
        let (ingester, report) = start(config(), Overrides::default());
        assert_eq!(report.lines + report.block_lines, 8 * 23 * 2);
        let streams = ingester.streams(&tenant(), &[], i64::MIN, i64::MAX);
        let has_blocks = |what: &str| {
            let in_blocks = |s: &Arc<Stream>| s.parts(i64::MIN, i64::MAX).iter().any(|p| matches!(p, Part::Block(..)));
            let blocks = |s: &&Arc<Stream>| s.labels().text().contains(what) && in_blocks(s);
            streams.iter().filter(blocks).count()
        };
        assert_eq!((has_blocks("small"), has_blocks("large")), sealed, "small {small}, large {large}");
        assert!(read(&ingester) == before, "small {small}, large {large}");
        ingester.stop();
    }
}

/// Records in the log whose body is cut.
fn cuts(dir: &Path) -> usize {
    let files = std::fs::read_dir(dir.join("wal")).unwrap().flatten().map(|f| std::fs::read(f.path()).unwrap());
    let cuts = |file: Vec<u8>| {
        let scan = scan_segment(&file).unwrap();
        let entries =
            scan.groups.iter().flat_map(|g| &g.records).filter(|r| r.head.known_kind() == Some(Kind::Entries));
        let extension = |r: &RecordScan| Cut::find(Tables::decode(r.head.tables(&file, r.offset)).unwrap().extension);
        entries.filter_map(extension).count()
    };
    files.map(cuts).sum()
}
