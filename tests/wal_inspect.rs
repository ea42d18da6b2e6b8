//! `wal-inspect` on logs that the library's writer made: every command, every exit code, damage, a live writer.

#[path = "support/inspect.rs"]
mod inspect;
mod support;

use inspect::{code, inspect, json, stderr, stdout};
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use timberline::codec::crc32;
use timberline::fs::{Fs, Map, RealFs, exit_on_map_fault};
use timberline::model::{LabelSet, Tenant};
use timberline::wal::format::{FIRST_GROUP, Kind, LogKind, SECOND_HEADER, SegmentHeader};
use timberline::wal::{
    Append, Applied, BlockLog, BlockLogOptions, BlockPlace, BlockSink, Codec, EntriesBuilder, Sink, StreamLog,
    SyncMode, Unavailable, Wal, WalMetrics, WalOptions, file_name, recover, scan_segment, segment_name,
};

/// First timestamp of every test log: 2026-01-01T00:00:00Z.
const T0: i64 = 1_767_225_600_000_000_000;

const VOLUME: uuid::Uuid = uuid::Uuid::from_u128(7);

struct Ack(mpsc::Sender<()>);

impl Sink<()> for Ack {
    fn durable(&mut self, records: Vec<Applied<()>>) {
        for _ in records {
            // The test may have ended already.
            let _ = self.0.send(());
        }
    }
    fn failed(&mut self, _: Vec<()>, why: &Unavailable) {
        panic!("{why}");
    }
    fn poisoned(&mut self, error: &io::Error) {
        panic!("{error}");
    }
}

/// Takes no blocks.
struct NoBlocks;

impl BlockSink<()> for NoBlocks {
    fn synced(&mut self, _: Vec<(BlockPlace, ())>) {}
}

/// A data directory with a log that is being written.
struct Log {
    data: TempDir,
    wal: Arc<Wal<()>>,
    _blocks: BlockLog<()>,
    acks: Mutex<mpsc::Receiver<()>>,
}

impl Log {
    fn start(data: TempDir) -> Self {
        let (dir, blocks_dir) = (data.path().join("wal"), data.path().join("blocks"));
        RealFs.create_dir_all(&dir).unwrap();
        RealFs.create_dir_all(&blocks_dir).unwrap();
        let options = WalOptions {
            fs: Arc::new(RealFs),
            dir,
            volume: VOLUME,
            segment_size: 1 << 20,
            max_size: 1 << 40,
            blocks: BlockLogOptions { dir: blocks_dir, segment_size: 1 << 20, max_size: 1 << 40 },
            sync: SyncMode::Always,
            queue_bytes: 1 << 20,
            next_stream_id: Arc::new(AtomicU64::new(1)),
            metrics: WalMetrics::unregistered(),
        };
        let (tx, rx) = mpsc::channel();
        let (wal, blocks) = recover(options, &mut |_, _| {}).unwrap().open(Ack(tx), NoBlocks).unwrap();
        Self { data, wal, _blocks: blocks, acks: Mutex::new(rx) }
    }

    fn new() -> Self {
        Self::start(tempfile::tempdir().unwrap())
    }

    /// Appends one push and waits for its ack. `lines` are of one tenant, by stream.
    fn push(&self, tenant: &str, lines: &[(&Arc<StreamLog>, &[&str])]) {
        let mut builder = EntriesBuilder::new(0);
        for (stream, lines) in lines {
            builder.stream(stream.id);
            for (i, line) in lines.iter().enumerate() {
                let metadata = [(&b"level"[..], &b"info"[..])];
                builder.entry(T0 + i as i64 * 1_000_000_000, line.as_bytes(), metadata.into_iter());
            }
        }
        let streams = lines.iter().map(|(s, _)| (*s).clone()).collect();
        let append = Append { record: builder.finish(tenant, Codec::None), streams, payload: () };
        assert!(self.wal.append(append).is_ok());
        self.acks.lock().recv().unwrap();
    }

    fn stop(self) -> TempDir {
        self.wal.stop();
        self.data
    }
}

fn stream(id: u64, tenant: &str, app: &str, env: &str) -> Arc<StreamLog> {
    let labels = Arc::new(LabelSet::new([("app", app), ("env", env)]));
    Arc::new(StreamLog::new(id, Tenant::new(tenant).unwrap(), labels, 0))
}

/// Two tenants, three streams, four pushes, twelve lines.
fn sample() -> TempDir {
    let log = Log::new();
    let (web, db) = (stream(1, "acme", "web", "prod"), stream(2, "acme", "db", "test"));
    let other = stream(3, "other", "web", "dev");
    log.push("acme", &[(&web, &["GET /a", "GET /b"]), (&db, &["select 1"])]);
    log.push("acme", &[(&web, &["POST /a", "\x1b[31mred\x1b[0m", "GET /c"]), (&db, &["select 2", "select 3"])]);
    log.push("other", &[(&other, &["hello"])]);
    log.push("acme", &[(&web, &["GET /last", "GET /d", "GET /e"])]);
    log.stop()
}

fn lines(document: &Value) -> Vec<&str> {
    let records = document["records"].as_array().unwrap();
    records.iter().filter_map(|r| r["line"].as_str()).collect()
}

fn segment(data: &Path, number: u64) -> PathBuf {
    data.join("wal").join(segment_name(number))
}

/// Places of the Entries records of a segment: record and body offsets, by LSN.
fn entries(path: &Path) -> Vec<(u64, u64)> {
    let file = fs::read(path).unwrap();
    let scan = scan_segment(&file).unwrap();
    let records = scan.groups.iter().flat_map(|g| &g.records);
    let entries = records.filter(|r| r.head.known_kind() == Some(Kind::Entries));
    entries.map(|r| (r.offset, r.offset + 48 + u64::from(r.head.tables_len))).collect()
}

fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

/// The only segment with content.
fn first_segment(data: &Path) -> PathBuf {
    segment(data, 1)
}

#[test]
fn every_command_reads_a_sound_log_in_every_format() {
    let data = sample();
    let place = "1:8192";
    let commands: [&[&str]; 9] = [
        &[],
        &["summary"],
        &["ls"],
        &["dump"],
        &["streams", "--top", "2"],
        &["stats", "--by", "tenant"],
        &["stats", "--by", "stream"],
        &["verify"],
        &["explain", place],
    ];
    for args in commands {
        for format in ["table", "json", "jsonl", "logfmt"] {
            let output = inspect(data.path(), &[args, &["-o", format]].concat());
            assert_eq!((code(&output), stderr(&output).as_str()), (0, ""), "{args:?} {format}");
            let text = stdout(&output);
            assert!(!text.is_empty() && !text.contains('\x1b'), "{args:?} {format}: {text}");
            match format {
                "json" => drop(serde_json::from_str::<Value>(&text).unwrap()),
                "jsonl" => text.lines().for_each(|l| drop(serde_json::from_str::<Value>(l).unwrap())),
                "logfmt" => assert!(text.lines().all(|l| l.starts_with("type=")), "{text}"),
                _ => assert!(text.lines().count() < 60, "{args:?} fills more than a screen"),
            }
        }
    }
    // The directory of the segments will do as well.
    assert_eq!(code(&inspect(&data.path().join("wal"), &["verify"])), 0);
}

#[test]
fn figures_are_those_of_the_pushes() {
    let data = sample();
    let summary = &json(data.path(), &[], 0)["summary"];
    for (name, value) in [("lines", 12), ("records", 4), ("streams", 3), ("tenants", 2), ("durable_lsn", 4)] {
        assert_eq!(summary[name], value, "{name}");
    }
    assert_eq!(summary["verdict"], "sound");
    assert_eq!((&summary["tail_records"], &summary["lost_lines"]), (&0.into(), &0.into()));

    let ls = json(data.path(), &["ls"], 0);
    assert_eq!((&ls["segments"][0]["state"], &ls["segments"][0]["lines"]), (&"active".into(), &12.into()));
    assert_eq!((&ls["segments"][1]["state"], &ls["segments"][1]["lines"]), (&"prepared".into(), &0.into()));

    let tenants = json(data.path(), &["stats"], 0);
    let acme = &tenants["tenants"][0];
    assert_eq!((&acme["tenant"], &acme["lines"], &acme["records"]), (&"acme".into(), &11.into(), &3.into()));
    let by_segment = json(data.path(), &["stats", "--by", "segment"], 0);
    assert_eq!(by_segment["segments"].as_array().unwrap().len(), 1);

    let streams = json(data.path(), &["streams", "--by", "lines"], 0);
    let web = &streams["streams"][0];
    assert_eq!((&web["stream"], &web["lines"], &web["next_seq"]), (&1.into(), &8.into(), &8.into()));
    assert_eq!(web["labels"], "{app=\"web\", env=\"prod\"}");
    assert_eq!((&web["first"], &web["last"]), (&"2026-01-01T00:00:00Z".into(), &"2026-01-01T00:00:02Z".into()));
    let top = json(data.path(), &["streams", "--top", "1", "-m", "{env=~\"test|dev\"}"], 0);
    assert_eq!(top["streams"].as_array().unwrap().len(), 1);
    assert_eq!(top["streams"][0]["stream"], 2);
}

#[test]
fn dump_filters() {
    let data = sample();
    let dump = |args: &[&str]| json(data.path(), &[&["dump"], args].concat(), 0);
    assert_eq!(lines(&dump(&[])).len(), 12);
    assert_eq!(lines(&dump(&["--tenant", "other"])), ["hello"]);
    assert_eq!(lines(&dump(&["--stream", "2"])), ["select 1", "select 2", "select 3"]);
    assert_eq!(lines(&dump(&["-m", "{app=\"web\", env!=\"prod\"}"])), ["hello"]);
    assert_eq!(lines(&dump(&["-g", "^POST|last$"])), ["POST /a", "GET /last"]);
    assert_eq!(lines(&dump(&["--since", "2026-01-01T00:00:02Z"])), ["GET /c", "GET /e"]);
    assert_eq!(lines(&dump(&["--until", &T0.to_string()])).len(), 0);
    assert_eq!(lines(&dump(&["-n", "2", "--kind", "entries"])), ["GET /a", "GET /b"]);

    let series = dump(&["--kind", "series"]);
    assert!(series["records"].as_array().unwrap().iter().all(|r| r["kind"] == "series" && r["line"].is_null()));
    assert_eq!(series["records"][0]["labels"].as_str().unwrap().get(..5), Some("{app="));

    // Positions select a half-open range of records.
    let all = dump(&["--kind", "entries"]);
    let mut positions: Vec<&str> = Vec::new();
    for record in all["records"].as_array().unwrap() {
        let position = record["position"].as_str().unwrap();
        if positions.last() != Some(&position) {
            positions.push(position);
        }
    }
    assert_eq!(positions.len(), 4);
    let range = dump(&["--kind", "entries", "--from", positions[2], "--to", positions[3]]);
    assert_eq!(lines(&range), ["hello"]);

    let hidden = dump(&["--no-lines", "--stream", "3", "--kind", "entries"]);
    assert_eq!((&hidden["records"][0]["line_bytes"], &hidden["records"][0]["line"]), (&5.into(), &Value::Null));
    let text = stdout(&inspect(data.path(), &["dump", "--no-lines"]));
    assert!(!text.contains("hello") && !text.contains("level"), "{text}");

    // A line's escapes are shown, not obeyed; JSON keeps the bytes.
    let text = stdout(&inspect(data.path(), &["dump", "-g", "red"]));
    assert!(text.contains("\\x1b[31mred\\x1b[0m") && !text.contains('\x1b'), "{text}");
    assert_eq!(lines(&dump(&["-g", "red"])), ["\x1b[31mred\x1b[0m"]);
}

#[test]
fn only_dump_prints_lines() {
    let data = sample();
    let places = entries(&first_segment(data.path()));
    let place = format!("1:{}", places[2].0);
    let hex: String = "hello".bytes().map(|b| format!("{b:02x}")).collect();
    let commands: [&[&str]; 6] = [&["summary"], &["ls"], &["streams"], &["stats"], &["verify"], &["explain", &place]];
    for args in commands {
        let text = stdout(&inspect(data.path(), args));
        assert!(!text.contains("hello") && !text.contains(&hex), "{args:?}: {text}");
    }
}

#[test]
fn a_flipped_byte_in_a_body_costs_its_record_and_is_told_by_stream() {
    let data = sample();
    let path = first_segment(data.path());
    let (record, body) = entries(&path)[1];
    flip(&path, body + 4);
    let verify = json(data.path(), &["verify"], 1);
    assert_eq!(verify["verify"]["verdict"], "damaged");
    assert_eq!(verify["damage"].as_array().unwrap().len(), 1);
    assert_eq!(verify["damage"][0]["position"], format!("1:{record}"));
    assert_eq!(verify["damage"][0]["what"], "record body (entries)");
    assert_eq!((&verify["verify"]["lost_lines"], &verify["verify"]["lost_lines_unattributed"]), (&5.into(), &0.into()));
    let missing: Vec<_> = verify["missing"].as_array().unwrap().iter().collect();
    let ranges: Vec<_> = missing.iter().map(|m| (&m["stream"], &m["first_seq"], &m["end_seq"])).collect();
    let n = |n: u64| Value::from(n);
    assert_eq!(ranges, [(&n(1), &n(2), &n(5)), (&n(2), &n(1), &n(3))]);
    assert_eq!((&missing[0]["tenant"], &missing[0]["labels"]), (&"acme".into(), &"{app=\"web\", env=\"prod\"}".into()));

    // The other commands still work, answer 1 and name the next command.
    assert_eq!(lines(&json(data.path(), &["dump"], 1)).len(), 7);
    for args in [&["summary"][..], &["ls"], &["stats"], &["streams"]] {
        let output = inspect(data.path(), args);
        assert_eq!(code(&output), 1, "{args:?}");
        assert!(stderr(&output).contains("next: wal-inspect verify -d "), "{}", stderr(&output));
    }
    let output = inspect(data.path(), &["verify"]);
    assert!(stderr(&output).contains(&format!("next: wal-inspect explain 1:{record} ")), "{}", stderr(&output));
    let explained = json(data.path(), &["explain", &format!("1:{record}")], 1);
    let field = |name: &str| {
        let fields = explained["fields"].as_array().unwrap();
        fields.iter().find(|f| f["field"] == name).map(|f| f["value"].to_string()).unwrap_or_default()
    };
    assert!(field("body_crc").contains("MISMATCH") && field("head_crc").contains("ok"), "{explained}");
}

#[test]
fn a_damaged_head_is_attributed_by_the_seqs_around_it() {
    let data = sample();
    let path = first_segment(data.path());
    let (record, _) = entries(&path)[1];
    flip(&path, record + 8);
    let verify = json(data.path(), &["verify"], 1);
    assert_eq!(verify["damage"][0]["what"], "record head");
    assert_eq!(verify["missing_lsns"][0]["first"], 1);
    assert_eq!(verify["verify"]["lost_lines"], 5);
    // Stream 1 goes on after the loss; stream 2 has no later record, so its two lines have no name.
    assert_eq!(verify["missing"].as_array().unwrap().len(), 1);
    assert_eq!((&verify["missing"][0]["stream"], &verify["missing"][0]["lines"]), (&1.into(), &3.into()));
    assert_eq!(verify["verify"]["lost_lines_unattributed"], 2);
    let explained = json(data.path(), &["explain", &format!("1:{record}")], 1);
    assert!(explained.to_string().contains("MISMATCH"));
}

#[test]
fn a_byte_flipped_anywhere_in_a_record_is_damage() {
    let data = sample();
    let path = first_segment(data.path());
    let whole = fs::read(&path).unwrap();
    let (first, _) = entries(&path)[0];
    // Heads, tables and body of the first record: the durable part of the log.
    let end = entries(&path)[0].1 + 8;
    for offset in (first..end).step_by(5) {
        flip(&path, offset);
        let verify = json(data.path(), &["verify"], 1);
        assert_eq!(verify["verify"]["lost_lines"], 3, "offset {offset}");
        fs::write(&path, &whole).unwrap();
    }
    assert_eq!(code(&inspect(data.path(), &["verify"])), 0);
}

#[test]
fn a_lost_segment_and_a_lost_header_are_damage() {
    let log = Log::new();
    let web = stream(1, "acme", "web", "prod");
    let big = "x".repeat(300_000);
    for _ in 0..8 {
        log.push("acme", &[(&web, &[&big])]);
    }
    let data = log.stop();
    assert_eq!(code(&inspect(data.path(), &["verify"])), 0);
    let middle = segment(data.path(), 2);
    let whole = fs::read(&middle).unwrap();
    fs::remove_file(&middle).unwrap();
    let verify = json(data.path(), &["verify"], 1);
    assert_eq!(verify["missing_segments"][0]["segment"], 2);
    assert!(verify["verify"]["lost_lines"].as_u64().unwrap() >= 1);
    assert_eq!(verify["verify"]["lost_lines_unattributed"], 0);

    let mut headless = whole.clone();
    headless[..8192].fill(0);
    fs::write(&middle, headless).unwrap();
    let verify = json(data.path(), &["verify"], 1);
    assert_eq!(verify["damage"][0]["position"], "2:0");
    fs::write(&middle, &whole[..200_000]).unwrap();
    let verify = json(data.path(), &["verify"], 1);
    assert!(verify["damage"].to_string().contains("end of the file is missing"), "{verify}");
}

#[test]
fn a_tail_that_was_cut_is_no_damage() {
    let log = Log::new();
    let web = stream(1, "acme", "web", "prod");
    log.push("acme", &[(&web, &["first"])]);
    log.push("acme", &[(&web, &["second"])]);
    // Copied at once: as after kill -9, no watermark follows the last group.
    let copy = tempfile::tempdir().unwrap();
    fs::create_dir(copy.path().join("wal")).unwrap();
    fs::copy(first_segment(log.data.path()), first_segment(copy.path())).unwrap();
    drop(log.stop());
    let summary = &json(copy.path(), &[], 0)["summary"];
    if summary["tail_records"] == 1 {
        assert_eq!((&summary["lines"], &summary["tail_lines"]), (&1.into(), &1.into()));
        assert_eq!(lines(&json(copy.path(), &["dump"], 0)), ["first"]);
        assert_eq!(lines(&json(copy.path(), &["dump", "--tail"], 0)), ["first", "second"]);
        flip(&first_segment(copy.path()), entries(&first_segment(copy.path()))[1].1);
        let verify = json(copy.path(), &["verify"], 0);
        assert_eq!(verify["verify"]["unresolved_lsns"], 1);
    } else {
        // The machine was so slow that the watermark came first.
        assert_eq!(summary["lines"], 2);
    }
}

#[test]
fn a_newer_version_is_refused_with_5() {
    let data = sample();
    let path = first_segment(data.path());
    let mut file = fs::read(&path).unwrap();
    for at in [0, SECOND_HEADER as usize] {
        file[at + 8] = 2;
        let crc = crc32(&[&file[at..at + 60], &(at as u64).to_le_bytes()]);
        file[at + 60..at + 64].copy_from_slice(&crc.to_le_bytes());
    }
    fs::write(&path, file).unwrap();
    for args in [&["summary"][..], &["verify"], &["dump"], &["explain", "1:8192"]] {
        let output = inspect(data.path(), args);
        assert_eq!(code(&output), 5, "{args:?}");
        assert!(stderr(&output).contains("format version 2") && stderr(&output).contains("next: "));
    }
}

#[test]
fn usage_is_2_and_io_is_3() {
    let data = sample();
    let wrong: [&[&str]; 8] = [
        &["nonsense"],
        &["dump", "-m", "{app="],
        &["dump", "-g", "("],
        &["dump", "--from", "x"],
        &["dump", "-n", "0"],
        &["stats", "--by", "moon"],
        &["explain"],
        &["explain", "1:999999999"],
    ];
    for args in wrong {
        let output = inspect(data.path(), args);
        assert_eq!(code(&output), 2, "{args:?}: {}", stderr(&output));
        assert!(!stderr(&output).is_empty());
    }
    let empty = tempfile::tempdir().unwrap();
    for dir in [empty.path().to_path_buf(), empty.path().join("missing")] {
        let output = inspect(&dir, &[]);
        assert_eq!(code(&output), 3, "{}", stderr(&output));
        assert!(stderr(&output).contains("next: "), "{}", stderr(&output));
    }
    assert_eq!(code(&inspect(data.path(), &["explain", "99:8192"])), 3);
    assert_eq!(code(&inspect(data.path(), &["--help"])), 0);
    assert_eq!(code(&inspect(data.path(), &["--version"])), 0);
}

#[test]
fn explain_takes_every_structure_and_every_way_to_name_a_file() {
    let data = sample();
    let path = first_segment(data.path());
    let what = |place: &str| {
        let document = json(data.path(), &["explain", place], 0);
        document["fields"][0]["value"].as_str().unwrap().to_string()
    };
    assert_eq!(what("1:0"), "segment header, first copy");
    assert_eq!(what("1:4100"), "segment header, second copy");
    assert_eq!(what(&format!("{}:8192", path.display())), "group header");
    let (record, body) = entries(&path)[0];
    assert_eq!(what(&format!("{}:{record}", segment_name(1))), "record");
    // A place inside a record is the record.
    assert_eq!(what(&format!("1:{}", body + 3)), "record");
    let explained = json(data.path(), &["explain", &format!("1:{record}")], 0).to_string();
    for part in ["entries (2)", "stream 1: seqs 0 to 2 (end)", "stream 2: seqs 0 to 1 (end)", ": ok"] {
        assert!(explained.contains(part), "{part}: {explained}");
    }
    let output = inspect(data.path(), &["explain", "1:500000"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("nothing but zeros"), "{}", stderr(&output));
}

#[test]
fn a_closed_pipe_is_no_error() {
    let log = Log::new();
    let web = stream(1, "acme", "web", "prod");
    let line = "y".repeat(200);
    let many: Vec<&str> = (0..3000).map(|_| line.as_str()).collect();
    log.push("acme", &[(&web, &many)]);
    let data = log.stop();
    let mut command = Command::new(env!("CARGO_BIN_EXE_wal-inspect"));
    command.arg("-d").arg(data.path()).arg("dump").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(first.starts_with("1:"), "{first}");
    assert_eq!((code(&output), stderr(&output).as_str()), (0, ""));
}

#[test]
fn nothing_is_changed() {
    let data = sample();
    let state = || {
        let files = fs::read_dir(data.path().join("wal")).unwrap().flatten();
        let mut files: Vec<_> = files.map(|f| (f.file_name(), fs::read(f.path()).unwrap())).collect();
        files.sort();
        files
    };
    let before = state();
    for args in [&["summary"][..], &["verify"], &["dump"], &["explain", "1:0"]] {
        assert_eq!(code(&inspect(data.path(), args)), 0);
    }
    assert!(before == state());
    assert_eq!(fs::read_dir(data.path()).unwrap().count(), 2, "no lock file or anything else is made");
}

#[test]
fn a_log_that_is_being_written_is_never_damaged() {
    let log = Log::new();
    let streams: Vec<_> = (1..=4).map(|id| stream(id, "acme", &format!("app-{id}"), "prod")).collect();
    let done = AtomicBool::new(false);
    let wanted = std::env::var("WAL_INSPECT_LIVE_RUNS").map_or(20, |n| n.parse().unwrap());
    let line = "z".repeat(700);
    let (mut runs, mut seen) = (0, 0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut pushes = 0;
            while !done.load(Ordering::Relaxed) && pushes < 200_000 {
                let stream = &streams[pushes % streams.len()];
                log.push("acme", &[(stream, &vec![line.as_str(); 1 + pushes % 20])]);
                pushes += 1;
                if pushes > 3000 {
                    // Long runs read the whole log each time: let it grow slowly.
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
            }
            pushes
        });
        for _ in 0..wanted {
            let output = inspect(log.data.path(), &["verify", "-o", "json"]);
            if code(&output) != 0 {
                done.store(true, Ordering::Relaxed);
                panic!("{}\n{}", stdout(&output), stderr(&output));
            }
            let document: Value = serde_json::from_slice(&output.stdout).unwrap();
            let lines = document["verify"]["lines"].as_u64().unwrap();
            runs += u64::from(lines > seen);
            seen = seen.max(lines);
        }
        done.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap() > 20);
    });
    assert!(runs >= 5, "the log must grow while it is read; it grew before {runs} of {wanted} runs");
    let data = log.stop();
    assert_eq!(code(&inspect(data.path(), &["verify"])), 0);
}

/// Lines that do not compress, of a few streams, until somebody ends it; the lines that were acknowledged.
fn load(server: &support::Server, done: &AtomicBool) -> usize {
    let (mut http, mut acked) = (server.http(), 0);
    let mut x = u64::from(server.pid()) | 1;
    for n in 0.. {
        if done.load(Ordering::Relaxed) {
            break;
        }
        let mut noise = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            format!("{x:016x}")
        };
        let lines: Vec<String> = (0..100).map(|_| (0..60).map(|_| noise()).collect()).collect();
        // 503 where the log is cleaned too slowly for this load.
        let status = http.push(&format!("s{}", n % 5), T0 + n * 1000, &lines).unwrap();
        assert!([204, 503].contains(&status), "{status}");
        acked += if status == 204 { lines.len() } else { 0 };
    }
    acked
}

/// What does not fit a log without damage: the bytes of an old segment behind the content of a new one are nothing.
fn strange_segments(ls: &Value) -> Vec<String> {
    let segments = ls["segments"].as_array().unwrap();
    let mut strange: Vec<String> = segments.iter().filter(|s| s["damage"] != 0).map(Value::to_string).collect();
    let states: Vec<&str> = segments.iter().map(|s| s["state"].as_str().unwrap()).collect();
    // Retired and full ones, one that is written, and prepared ones.
    let rest = states.iter().skip_while(|s| matches!(**s, "retired" | "full")).skip(1);
    if !states.contains(&"active") || rest.clone().any(|s| *s != "prepared") {
        strange.push(states.join(" "));
    }
    strange
}

/// A running server that retires its segments and uses them again: nothing is damaged, whenever somebody looks.
#[test]
fn a_log_whose_segments_a_server_uses_again_is_never_damaged() {
    let wanted = std::env::var("WAL_INSPECT_LIVE_RUNS").map_or(40, |n| n.parse().unwrap());
    let tmp = tempfile::tempdir().unwrap();
    let config =
        "ingester: {chunk_block_size: 8KB, chunk_target_size: 64KB, wal: {segment_size: 1MB, max_size: 6MB}}\n";
    let server = support::Server::start(tmp.path(), config, &[]);
    let data = tmp.path().join("data");
    assert_eq!(server.http().push("first", T0, &["line".to_string()]).unwrap(), 204);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| load(&server, &done));
        let commands: [&[&str]; 4] = [&["verify"], &["ls", "-o", "json"], &["dump", "-n", "2000"], &["summary"]];
        let (mut codes, mut strange) = (BTreeMap::new(), Vec::new());
        for run in 0..wanted {
            let args = commands[run % commands.len()];
            let output = inspect(&data, args);
            if code(&output) != 0 {
                println!("{args:?}: {}\n{}", stdout(&output), stderr(&output));
            }
            *codes.entry((args[0], code(&output))).or_insert(0) += 1;
            if args[0] == "ls" && code(&output) == 0 {
                let ls: Value = serde_json::from_slice(&output.stdout).unwrap();
                strange.extend(strange_segments(&ls));
            }
        }
        done.store(true, Ordering::Relaxed);
        let acked = writer.join().unwrap();
        let numbers: BTreeSet<u64> = (1..100_000).filter(|n| segment(&data, *n).exists()).collect();
        println!("{acked} lines, segments {:?} to {:?}, exit codes {codes:?}", numbers.first(), numbers.last());
        assert!(codes.keys().all(|(_, code)| *code == 0), "{codes:?}");
        assert!(numbers.first() > Some(&3), "no segment was retired: {numbers:?}");
        assert!(strange.is_empty(), "{strange:?}");
    });
    assert_eq!(server.terminate(), Some(0));
    assert_eq!(code(&inspect(&data, &["verify"])), 0);
    assert_eq!(strange_segments(&json(&data, &["ls"], 0)), Vec::<String>::new());
}

/// Both logs lie elsewhere: with the flags they are sound, beside the running server too, and what is not named is never damage.
#[test]
fn logs_in_directories_of_their_own_are_found_by_flags() {
    let tmp = tempfile::tempdir().unwrap();
    let (data, wal, blocks) = (tmp.path().join("data"), tmp.path().join("logs/w"), tmp.path().join("other"));
    let config = format!(
        "ingester: {{chunk_block_size: 8KB, wal: {{dir: {}, segment_size: 1MB}}, blocks: {{dir: {}}}}}\n",
        wal.display(),
        blocks.display()
    );
    let server = support::Server::start(tmp.path(), &config, &[]);
    let pushed: Vec<String> = (0..2000).map(|n| format!("line {n} of two thousand {}", n * n)).collect();
    assert_eq!(server.http().push("s", T0, &pushed).unwrap(), 204);
    let named = |of: &Path| fs::read_dir(of).unwrap().flatten().map(|e| e.path()).collect::<Vec<_>>();
    let (wal_flag, blocks_flag) = (["--wal-dir", wal.to_str().unwrap()], ["--blocks-dir", blocks.to_str().unwrap()]);
    let all = [&["verify"][..], &wal_flag, &blocks_flag].concat();
    // Until there are blocks that count.
    let deadline = Instant::now() + Duration::from_secs(20);
    let summary = [&["summary"][..], &wal_flag, &blocks_flag].concat();
    while json(&data, &summary, 0)["summary"]["block_lines"] == 0 {
        assert!(Instant::now() < deadline, "no line was sealed: {:?}", named(&blocks));
        std::thread::sleep(Duration::from_millis(20));
    }
    for running in [true, false] {
        if !running {
            server.signal("TERM");
            let deadline = Instant::now() + Duration::from_secs(20);
            while support::try_connect(&server.addr) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        assert_eq!(json(&data, &all, 0)["verify"]["lines"], 2000);
        // Neither log is where it is looked for: what is asked for is a flag, not help for damage.
        let missing: [(&Path, &[&str], &str); 4] = [
            (&data, &["verify"], "--wal-dir"),
            (&data, &["verify", wal_flag[0], wal_flag[1]], "--blocks-dir"),
            (&wal, &["verify"], "--blocks-dir"),
            (&wal, &["summary"], "--blocks-dir"),
        ];
        for (dir, args, flag) in missing {
            let output = inspect(dir, args);
            let text = stderr(&output);
            assert_eq!((code(&output), stdout(&output).as_str()), (3, ""), "{args:?}: {text}");
            assert!(text.contains(flag) && !text.contains("damage"), "{args:?}: {text}");
        }
        assert_eq!(code(&inspect(&wal, &["verify", blocks_flag[0], blocks_flag[1]])), 0);
    }
    // A place is named with the flags that find it.
    let path = blocks.join(file_name(LogKind::Blocks, 1));
    let scan = scan_segment(&fs::read(&path).unwrap()).unwrap();
    let mut records = scan.groups.iter().flat_map(|g| &g.records);
    flip(&path, records.find(|r| r.head.known_kind() == Some(Kind::Block)).unwrap().offset + 100);
    let text = stderr(&inspect(&data, &["ls", wal_flag[0], wal_flag[1], blocks_flag[0], blocks_flag[1]]));
    let next = format!("next: wal-inspect verify -d {} --wal-dir {}", data.display(), wal.display());
    assert!(text.contains(&next) && text.contains(&format!("--blocks-dir {}", blocks.display())), "{text}");
}

/// As for the server, its header is damaged; nothing is read of it.
#[test]
fn a_segment_file_of_200_gigabytes_is_damage() {
    let data = sample();
    let file = fs::OpenOptions::new().write(true).open(first_segment(data.path())).unwrap();
    file.set_len(200 << 30).unwrap();
    let verify = json(data.path(), &["verify"], 1);
    assert_eq!(verify["damage"][0]["position"], "1:0", "{verify}");
    let output = inspect(data.path(), &["explain", "1:8192"]);
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("more than a segment has") && !stderr(&output).contains("dmesg"));
}

/// What a hand does to the segments of a log, over and over: the oldest gets a temporary name, another header, another
/// length and other bytes, and then the next number. When none is left, the log is as it was.
struct Churn<'a> {
    data: &'a Path,
    /// Files as they are, oldest first.
    files: VecDeque<u64>,
    /// Those of the log, and what is in them.
    numbers: Vec<u64>,
    images: Vec<Vec<u8>>,
}

impl Churn<'_> {
    fn restore(&mut self) {
        for (number, image) in self.numbers.iter().zip(&self.images) {
            let path = segment(self.data, *number);
            fs::write(path.with_extension("wal.tmp"), image).unwrap();
            fs::rename(path.with_extension("wal.tmp"), path).unwrap();
        }
        for number in self.files.drain(..).rev() {
            fs::remove_file(segment(self.data, number)).unwrap();
        }
        self.files = self.numbers.iter().copied().collect();
    }

    /// Waits; `rough`: and a file shrinks and grows all the time.
    fn pause(&self, time: Duration, rough: bool) {
        let end = Instant::now() + time;
        let file = fs::OpenOptions::new().write(true).open(segment(self.data, self.files[0])).unwrap();
        let len = file.metadata().unwrap().len();
        while rough && Instant::now() < end {
            file.set_len(FIRST_GROUP).unwrap();
            file.set_len(len).unwrap();
        }
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
    }

    /// As a server does it; `rough` adds what none does: files that shrink and grow.
    fn turn(&mut self, n: u64, rough: bool) {
        if self.files.front() > self.numbers.last() {
            self.restore();
        }
        let (old, number) = (self.files.pop_front().unwrap(), self.files.back().unwrap() + 1);
        let (path, next) = (segment(self.data, old), segment(self.data, number));
        let temporary = next.with_extension("wal.tmp");
        let len = fs::metadata(&path).unwrap().len();
        fs::rename(&path, &temporary).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&temporary).unwrap();
        let header = SegmentHeader {
            log: LogKind::Wal,
            number,
            file_len: len,
            salt: 0x5eed + n,
            volume: VOLUME,
            recycled: true,
        };
        for at in [0, SECOND_HEADER] {
            file.write_all_at(&header.encode(at), at).unwrap();
        }
        if rough {
            file.set_len(FIRST_GROUP).unwrap();
            file.set_len(len).unwrap();
        }
        // The groups of another segment: each is sound, and none is of this one.
        let image = &self.images[n as usize % self.images.len()];
        file.write_all_at(&image[FIRST_GROUP as usize..], FIRST_GROUP).unwrap();
        fs::rename(&temporary, &next).unwrap();
        self.files.push_back(number);
    }
}

/// Runs commands while a log is churned; gives how often each exit code came.
fn runs_beside_churn(rough: bool) -> BTreeMap<i32, usize> {
    let log = Log::new();
    let streams: Vec<_> = (1..=3).map(|id| stream(id, "acme", &format!("app-{id}"), "prod")).collect();
    let line = |n: usize| format!("line {n} {}", "x".repeat(20_000));
    for n in 0..300 {
        log.push("acme", &[(&streams[n % 3], &[&line(n)])]);
    }
    let written: BTreeSet<String> = (0..300).map(line).collect();
    let data = log.stop();
    let numbers: Vec<u64> = (1..100).filter(|n| segment(data.path(), *n).exists()).collect();
    let images: Vec<_> = numbers.iter().map(|n| fs::read(segment(data.path(), *n)).unwrap()).collect();
    assert!(images.len() >= 6, "{} segments", images.len());
    let done = AtomicBool::new(false);
    let mut codes = BTreeMap::new();
    std::thread::scope(|scope| {
        let mut churn = Churn { data: data.path(), files: numbers.iter().copied().collect(), numbers, images };
        let done = &done;
        let churner = scope.spawn(move || {
            for n in 0.. {
                if done.load(Ordering::Relaxed) {
                    return n;
                }
                churn.turn(n, rough);
                // Some runs meet it once, some again and again.
                churn.pause(Duration::from_millis(n / 32 % 8 * 8), rough);
            }
            unreachable!("somebody ends it");
        });
        let commands: [&[&str]; 4] = [&["verify"], &["dump", "-o", "jsonl"], &["ls"], &["dump", "-o", "jsonl"]];
        let mut rows_seen = 0;
        for run in 0..200 {
            let output = inspect(data.path(), commands[run % commands.len()]);
            let told = stderr(&output);
            if !matches!(output.status.code(), Some(0 | 1 | 3)) || told.contains("panicked") {
                done.store(true, Ordering::Relaxed);
                panic!("{:?}: {:?}: {told}", commands[run % commands.len()], output.status);
            }
            *codes.entry(code(&output)).or_default() += 1;
            if commands[run % commands.len()][0] == "dump" {
                // A fault may cut the last row.
                let rows = stdout(&output);
                let rows = rows.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
                let shown: Vec<String> = rows.filter_map(|r| Some(r["line"].as_str()?.to_string())).collect();
                rows_seen += shown.len();
                let wrong = shown.iter().find(|l| !written.contains(*l));
                if let Some(wrong) = wrong {
                    done.store(true, Ordering::Relaxed);
                    panic!("never written: {:.80}", wrong);
                }
            }
        }
        done.store(true, Ordering::Relaxed);
        let turns = churner.join().unwrap();
        println!("{turns} segments used again (rough: {rough}), exit codes {codes:?}, {rows_seen} lines shown");
        assert!(rows_seen > 1000, "only {rows_seen} lines were shown");
        assert!(turns > 100, "only {turns} segments were used again");
    });
    codes
}

/// The segments that go were needed, as their log says, so damage may be told; but nothing else.
#[test]
fn segments_that_are_used_again_give_an_exit_code_and_no_wrong_line() {
    runs_beside_churn(false);
}

#[test]
fn segments_that_shrink_give_an_exit_code_and_no_signal() {
    runs_beside_churn(true);
}

/// The fault itself, without luck: a file that shrinks while the map of it is being read.
#[test]
fn the_fault_of_a_map_ends_with_3() {
    let tmp = tempfile::tempdir().unwrap();
    if std::env::var_os("WAL_INSPECT_FAULT").is_some() {
        let path = tmp.path().join("f");
        fs::write(&path, vec![1; 64 << 10]).unwrap();
        exit_on_map_fault(3, "the text\n");
        let map = Map::open(&path).unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
        println!("{:?}", map.copy(&path));
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["the_fault_of_a_map_ends_with_3", "--exact", "--nocapture"]).env("WAL_INSPECT_FAULT", "1");
    let output = command.output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).contains("the text")), (Some(3), true), "{output:?}");
}

/// On a terminal, which `script` makes: what it shows. `None` where that is impossible.
fn on_terminal(data: &Path, args: &str, env: &[(&str, &str)]) -> Option<(i32, String)> {
    script(&format!("{} -d {} {args}", env!("CARGO_BIN_EXE_wal-inspect"), data.display()), env)
}

/// Runs a command of the shell on a terminal.
fn script(run: &str, env: &[(&str, &str)]) -> Option<(i32, String)> {
    let there = Command::new("script").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !there.is_ok_and(|s| s.success()) {
        println!("SKIPPED: script of util-linux is not installed");
        assert!(std::env::var_os("CI").is_none(), "a skipped test is an error in CI");
        return None;
    }
    let mut command = Command::new("script");
    command.args(["-qec", run, "/dev/null"]).env("TERM", "xterm-256color").env_remove("NO_COLOR");
    let output = command.envs(env.iter().copied()).stdin(Stdio::null()).output().unwrap();
    Some((code(&output), stdout(&output)))
}

#[test]
fn colour_is_for_terminals_and_can_be_switched_off() {
    let data = sample();
    let Some((exit, text)) = on_terminal(data.path(), "verify", &[]) else { return };
    assert_eq!(exit, 0);
    assert!(text.contains("\x1b[32msound\x1b[0m"), "{text:?}");
    // Programs read the other formats.
    let plain = |args: &str, env: &[(&str, &str)]| {
        let (exit, text) = on_terminal(data.path(), args, env).unwrap();
        assert_eq!(exit, 0, "{text}");
        assert!(!text.contains('\x1b') && text.contains("sound"), "{args} {env:?}: {text:?}");
    };
    plain("verify", &[("NO_COLOR", "1")]);
    plain("verify --color never", &[]);
    for format in ["json", "jsonl", "logfmt"] {
        plain(&format!("verify -o {format}"), &[]);
    }
    assert!(!stdout(&inspect(data.path(), &["verify"])).contains('\x1b'));
    assert!(stdout(&inspect(data.path(), &["verify", "--color", "always"])).contains("\x1b[32msound"));
    let path = first_segment(data.path());
    flip(&path, entries(&path)[1].1 + 4);
    let (exit, text) = on_terminal(data.path(), "summary", &[]).unwrap();
    assert_eq!(exit, 1);
    assert!(text.contains("\x1b[31mdamaged\x1b[0m"), "{text:?}");
}

/// Both logs, made by an ingester.
mod blocks {
    use super::*;
    use prometheus::{CounterVec, Opts, Registry};
    use std::collections::BTreeSet;
    use std::time::{Duration, Instant};
    use timberline::chunk::Encoding;
    use timberline::ingester::{Cluster, Ingester, IngesterConfig, IngesterMetrics, Live, Progress};
    use timberline::model::{Entry, Overrides, Push, PushStream, Span};
    use timberline::wal::{BlockTables, RecordHead};

    fn start(dir: &Path) -> Ingester<Live> {
        let config = IngesterConfig {
            fs: Arc::new(RealFs),
            data_dir: dir.to_path_buf(),
            wal_dir: dir.join("wal"),
            blocks_dir: dir.join("blocks"),
            quarantine_dir: dir.join("quarantine"),
            refuse_damage: false,
            wal_max_size: 4 << 20,
            blocks_max_size: 1 << 30,
            require_data: false,
            segment_size: 1 << 20,
            sync: SyncMode::Always,
            wal_codec: Codec::Snappy,
            queue_bytes: 8 << 20,
            queue_timeout: Duration::from_secs(10),
            chunk_block_size: 64 << 10,
            chunk_target_size: 256 << 10,
            chunk_encoding: Encoding::Snappy,
            max_chunk_age: Duration::from_secs(7200),
            sync_period: Duration::ZERO,
            sync_min_utilization: 0.1,
            max_returned_stream_errors: 10,
            heads_budget: 64 << 20,
            metadata_budget: 1 << 30,
            cluster: Cluster { ingesters: 1, replication_factor: 1 },
            threads: 2,
        };
        let counter = |name: &str| {
            let labels = ["reason", "tenant", "retention_hours", "policy", "format"];
            CounterVec::new(Opts::new(name, name), &labels).unwrap()
        };
        let metrics = IngesterMetrics::new(&Registry::new(), (counter("a"), counter("b"))).unwrap();
        let overrides = Arc::new(Overrides::default());
        let replayed = Ingester::replay(config, overrides, metrics, &Progress::default()).unwrap();
        replayed.go_live(Box::new(|e| panic!("poisoned: {e}"))).unwrap()
    }

    /// Lines of one stream, numbered, of about a thousand bytes that compress by half.
    fn push(ingester: &Ingester<Live>, runtime: &tokio::runtime::Runtime, app: &str, numbers: std::ops::Range<u64>) {
        let mut out = Push::default();
        for n in numbers {
            let mut x = n * 2 + 88_172_645_463_325_253;
            let mut line = format!("{app} {n} ");
            while line.len() < 1000 && app == "big" {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                line += &format!("{x:016x}");
            }
            let at = out.arena.len();
            out.arena.extend_from_slice(line.as_bytes());
            let line = Span::new(at, line.len());
            out.entries.push(Entry { timestamp: T0 + n as i64, line, metadata: 0..0 });
        }
        let labels = Arc::new(LabelSet::new([("app", app)]));
        let entries = 0..out.entries.len() as u32;
        out.streams.push(PushStream { labels, token: 0, entries });
        let tenant = Tenant::new("acme").unwrap();
        let push = Arc::new(out);
        let deadline = Instant::now() + Duration::from_secs(30);
        // Refused while the small log is full, or above the stream's rate: nothing of it was stored.
        while let Err(error) = runtime.block_on(ingester.push(&tenant, push.clone(), &[0])) {
            assert!([429, 503].contains(&error.status) && Instant::now() < deadline, "{error:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    const BIG: u64 = 6000;

    /// Finished block segments, carried lines, a retired segment, a flushed chunk. Tells the lines in the log and the stream
    /// ids of `small` and `big`.
    fn sample() -> (TempDir, u64, (u64, u64)) {
        let data = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let ingester = start(data.path());
        push(&ingester, &runtime, "small", 0..5);
        for from in (0..BIG).step_by(50) {
            push(&ingester, &runtime, "big", from..from + 50);
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while segment(data.path(), 1).exists() {
            assert!(Instant::now() < deadline, "the first segment does not go");
            std::thread::sleep(Duration::from_millis(20));
        }
        let tenant = Tenant::new("acme").unwrap();
        let streams = ingester.streams(&tenant, &[], i64::MIN, i64::MAX);
        let id = |app: &str| streams.iter().find(|s| s.labels().get("app") == Some(app)).unwrap().id();
        let ids = (id("small"), id("big"));
        let chunk = ingester.closed_chunks().into_iter().next().expect("a closed chunk");
        assert_eq!(chunk.stream().id(), ids.1);
        let flushed = chunk.seqs().end - chunk.seqs().start;
        ingester.settle(&chunk, "acme/1").unwrap();
        ingester.stop();
        drop((streams, chunk, ingester));
        (data, 5 + BIG - flushed, ids)
    }

    fn block_file(data: &Path, number: u64) -> PathBuf {
        data.join("blocks").join(file_name(LogKind::Blocks, number))
    }

    fn block_numbers(data: &Path) -> Vec<u64> {
        let ls = json(data, &["ls"], 0);
        let used = ls["block_segments"].as_array().unwrap().iter().filter(|s| s["state"] != "prepared");
        used.map(|s| s["segment"].as_u64().unwrap()).collect()
    }

    /// Places of the blocks of a segment: offset, head, tables.
    fn blocks_of(path: &Path) -> Vec<(u64, RecordHead, BlockTables)> {
        let file = fs::read(path).unwrap();
        let scan = scan_segment(&file).unwrap();
        let records = scan.groups.iter().flat_map(|g| &g.records);
        let blocks = records.filter(|r| r.head.known_kind() == Some(Kind::Block));
        blocks.map(|r| (r.offset, r.head, BlockTables::decode(r.head.tables(&file, r.offset)).unwrap())).collect()
    }

    #[test]
    fn every_line_of_both_logs_is_counted_and_shown_once() {
        let (data, total, (small, big)) = sample();
        let verify = json(data.path(), &["verify"], 0);
        assert_eq!((&verify["verify"]["verdict"], &verify["verify"]["lines"]), (&"sound".into(), &total.into()));
        let summary = &json(data.path(), &[], 0)["summary"];
        assert_eq!((&summary["lines"], &summary["tenants"]), (&total.into(), &1.into()));
        assert!(summary["block_lines"].as_u64().unwrap() > BIG / 3, "{summary}");
        let dump = json(data.path(), &["dump"], 0);
        let shown = lines(&dump);
        assert_eq!(shown.len() as u64, total);
        assert_eq!(shown.iter().collect::<BTreeSet<_>>().len() as u64, total, "a line twice");
        assert_eq!(shown.iter().filter(|l| l.starts_with("small ")).count(), 5);
        let records = dump["records"].as_array().unwrap();
        for log in ["wal", "blocks"] {
            assert!(records.iter().any(|r| r["log"] == log && r["line"].is_string()), "{log}");
        }
        // As they lie there, both logs together have more.
        let only = |log: &str| lines(&json(data.path(), &["dump", "--log", log], 0)).len() as u64;
        assert!(only("wal") + only("blocks") > total);
        let streams = json(data.path(), &["streams", "--by", "lines"], 0);
        let figures: Vec<_> = streams["streams"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| (&s["stream"], s["lines"].as_u64().unwrap()))
            .collect();
        assert_eq!(figures, [(&big.into(), total - 5), (&small.into(), 5)]);
        for by in ["tenant", "stream"] {
            let stats = json(data.path(), &["stats", "--by", by], 0);
            let rows = stats[format!("{by}s")].as_array().unwrap();
            assert_eq!(rows.iter().map(|r| r["lines"].as_u64().unwrap()).sum::<u64>(), total, "{by}");
        }
        // The directory of the segments will do as well.
        let beside = json(&data.path().join("wal"), &["verify"], 0);
        assert_eq!(beside["verify"]["lines"], total);
    }

    #[test]
    fn ls_tells_of_block_segments_and_of_what_needs_the_oldest_one() {
        let (data, _, _) = sample();
        let ls = json(data.path(), &["ls"], 0);
        // Whether one is prepared depends on how large the groups were.
        let segments = ls["block_segments"].as_array().unwrap().iter();
        let segments: Vec<&Value> = segments.filter(|s| s["state"] != "prepared").collect();
        assert!(segments.len() >= 2, "{ls}");
        let (last, finished) = segments.split_last().unwrap();
        assert_eq!((&last["state"], &last["footer"]), (&"active".into(), &Value::Null));
        assert!(finished.iter().all(|s| s["state"] == "full" && s["footer"].as_u64().unwrap() > 8192), "{ls}");
        assert!(finished[0]["dead"].as_u64().unwrap() > 0 && finished[0]["live"].as_u64().unwrap() > 0, "{ls}");
        assert!(ls["oldest_segment"]["streams_that_need_it"].is_u64(), "{ls}");
        let text = stdout(&inspect(data.path(), &["ls"]));
        assert!(text.contains(".blk") && text.contains("active"), "{text}");
    }

    #[test]
    fn a_damaged_block_is_told_with_its_stream_and_seqs() {
        let (data, total, (_, big)) = sample();
        let number = block_numbers(data.path())[0];
        let path = block_file(data.path(), number);
        let whole = fs::read(&path).unwrap();
        // The newest block of the oldest segment: not flushed, and its lines have left the write-ahead log.
        let (offset, head, tables) = blocks_of(&path).pop().unwrap();
        let body = offset + 48 + u64::from(head.tables_len);
        flip(&path, body + 100);
        let verify = json(data.path(), &["verify"], 1);
        let place = format!("{number}:{offset}");
        assert_eq!(verify["damage"][0]["position"], place);
        assert_eq!(verify["damage"][0]["file"], file_name(LogKind::Blocks, number));
        let missing: Vec<_> = verify["missing"].as_array().unwrap().iter().collect();
        assert_eq!(missing.len(), 1, "{verify}");
        let range = (missing[0]["first_seq"].as_u64().unwrap(), missing[0]["end_seq"].as_u64().unwrap());
        assert_eq!((missing[0]["stream"].as_u64().unwrap(), range), (big, (tables.first_seq, tables.end_seq)));
        assert_eq!(verify["verify"]["lost_lines"], tables.end_seq - tables.first_seq);
        let shown = lines(&json(data.path(), &["dump"], 1)).len() as u64;
        assert_eq!(shown, total - u64::from(tables.entries));
        let output = inspect(data.path(), &["verify"]);
        let next = format!("next: wal-inspect explain {}:{offset} ", file_name(LogKind::Blocks, number));
        assert!(stderr(&output).contains(&next), "{}", stderr(&output));
        let place = format!("{}:{offset}", file_name(LogKind::Blocks, number));
        let explained = json(data.path(), &["explain", &place], 1).to_string();
        assert!(explained.contains("MISMATCH") && explained.contains("block (9)"), "{explained}");
        fs::write(&path, &whole).unwrap();
        assert!(json(data.path(), &["explain", &place], 0).to_string().contains("block_crc"));

        // Heads, tables and the footer.
        let footer = json(data.path(), &["ls"], 0)["block_segments"][0]["footer"].as_u64().unwrap();
        for at in [offset + 8, offset + 50, offset + 150, footer, footer + 64 + 20, footer + 64 + 60] {
            flip(&path, at);
            let verify = json(data.path(), &["verify"], 1);
            assert!(!verify["damage"].as_array().unwrap().is_empty(), "byte {at}: {verify}");
            fs::write(&path, &whole).unwrap();
        }
        json(data.path(), &["verify"], 0);
    }

    /// CRCs hold, the content does not: only `verify` reads so deep.
    #[test]
    fn a_block_or_footer_that_does_not_fit_its_record_is_found() {
        let (data, _, _) = sample();
        let path = block_file(data.path(), block_numbers(data.path())[0]);
        let whole = fs::read(&path).unwrap();
        let scan = scan_segment(&whole).unwrap();
        let (offset, head, _) = blocks_of(&path).pop().unwrap();
        let mut file = whole.clone();
        let start = offset as usize;
        // The number of lines, with a head stamped for it.
        file[start + 48 + 88] ^= 1;
        head.stamp(&mut file[start..start + head.len as usize], scan.header.salt, offset);
        fs::write(&path, &file).unwrap();
        let verify = json(data.path(), &["verify"], 1);
        let text = verify["damage"].to_string();
        assert!(text.contains("the number of its entries is not the stored one"), "{text}");
        // The payload's own checksum.
        let mut file = whole.clone();
        file[start + 48 + 92] ^= 1;
        head.stamp(&mut file[start..start + head.len as usize], scan.header.salt, offset);
        fs::write(&path, &file).unwrap();
        assert_eq!(json(data.path(), &["verify"], 1)["damage"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn a_block_segment_that_is_gone_or_cut_is_damage() {
        let (data, _, (_, big)) = sample();
        let number = block_numbers(data.path())[1];
        let path = block_file(data.path(), number);
        let whole = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let verify = json(data.path(), &["verify"], 1);
        assert_eq!(verify["missing_block_segments"][0]["segment"], number);
        assert_eq!(verify["missing"][0]["stream"], big, "{verify}");
        let ls = json(data.path(), &["ls"], 1);
        assert!(ls["block_segments"].as_array().unwrap().iter().any(|s| s["state"] == "missing"));
        fs::write(&path, &whole[..20_000]).unwrap();
        assert!(json(data.path(), &["verify"], 1)["damage"].to_string().contains("end of the file is missing"));
        let mut headless = whole.clone();
        headless[..8192].fill(0);
        fs::write(&path, headless).unwrap();
        assert_eq!(json(data.path(), &["verify"], 1)["damage"][0]["position"], format!("{number}:0"));
        fs::write(&path, &whole).unwrap();
        // A file that no record names is not of the log.
        fs::write(block_file(data.path(), 98), [&whole[..8192], &[0; 8192]].concat()).unwrap();
        fs::write(block_file(data.path(), 99), &whole).unwrap();
        let ls = json(data.path(), &["ls"], 0);
        let segments = ls["block_segments"].as_array().unwrap();
        let state = |n: u64| &segments.iter().find(|s| s["segment"] == n).unwrap()["state"];
        assert_eq!((state(98), state(99)), (&"prepared".into(), &"unnamed".into()));
        // Without the directory nobody knows whether it is lost or elsewhere; an empty one is lost.
        fs::remove_dir_all(data.path().join("blocks")).unwrap();
        let output = inspect(data.path(), &["verify"]);
        assert_eq!((code(&output), stdout(&output).as_str()), (3, ""));
        assert!(stderr(&output).contains("next: the same command with --blocks-dir DIR"), "{}", stderr(&output));
        fs::create_dir(data.path().join("blocks")).unwrap();
        json(data.path(), &["verify"], 1);
    }

    #[test]
    fn logs_that_are_being_written_and_retired_are_never_damaged() {
        let data = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let ingester = start(data.path());
        push(&ingester, &runtime, "small", 0..5);
        let done = AtomicBool::new(false);
        let mut first_lsns = BTreeSet::new();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut from = 0;
                while !done.load(Ordering::Relaxed) && from < 200_000 {
                    push(&ingester, &runtime, "big", from..from + 50);
                    from += 50;
                }
            });
            let deadline = Instant::now() + Duration::from_secs(120);
            let mut looks = 0;
            // Segments must go meanwhile, which takes longer on a busy machine.
            while looks < 25 || first_lsns.len() <= 2 {
                if Instant::now() > deadline {
                    done.store(true, Ordering::Relaxed);
                    panic!("no segments go: after {looks} looks these were first: {first_lsns:?}");
                }
                looks += 1;
                let output = inspect(data.path(), &["verify", "-o", "json"]);
                if code(&output) != 0 {
                    done.store(true, Ordering::Relaxed);
                    panic!("{}\n{}", stdout(&output), stderr(&output));
                }
                let document: Value = serde_json::from_slice(&output.stdout).unwrap();
                first_lsns.insert(document["verify"]["first_lsn"].as_u64().unwrap());
            }
            done.store(true, Ordering::Relaxed);
            writer.join().unwrap();
        });
        ingester.stop();
        assert_eq!(code(&inspect(data.path(), &["verify"])), 0);
    }

    /// Its tail was torn in the middle: of one record there is only the Gap that a start has written for it, which knows no seqs.
    #[test]
    fn a_log_that_a_start_has_settled_is_sound() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/golden/v1");
        let wanted = fs::read_to_string(golden.join("lines.txt")).unwrap().lines().count() as u64;
        let verify = json(&golden, &["verify"], 0);
        let told = ["lines", "settled_gaps", "lost_lines"].map(|name| verify["verify"][name].as_u64());
        assert_eq!(told, [Some(wanted), Some(1), Some(0)]);
    }

    #[test]
    fn the_golden_log_with_blocks_is_sound_and_each_line_is_shown() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/golden/v1-blocks");
        let wanted = fs::read_to_string(golden.join("lines.txt")).unwrap().lines().count() as u64;
        let verify = json(&golden, &["verify"], 0);
        assert_eq!((&verify["verify"]["lines"], &verify["verify"]["blocks"]), (&wanted.into(), &3.into()));
        assert_eq!(lines(&json(&golden, &["dump"], 0)).len() as u64, wanted);
    }
}

#[test]
fn long_work_on_a_terminal_shows_a_bar_and_leaves_nothing_of_it() {
    let log = Log::new();
    let web = stream(1, "acme", "web", "prod");
    let big = "x".repeat(900_000);
    for _ in 0..40 {
        log.push("acme", &[(&web, &[&big])]);
    }
    let data = log.stop();
    // Held up over and over, the work is long on any machine.
    let slowly = |args: &str, more: &str| {
        let run = format!("{} -d {} {args}", env!("CARGO_BIN_EXE_wal-inspect"), data.path().display());
        format!(
            "{run} {more} & p=$!; while kill -STOP $p 2>/dev/null; do sleep 0.5; kill -CONT $p; sleep 0.005; done; wait $p"
        )
    };
    for (args, first) in [("summary", "directory"), ("verify", "directory"), ("ls", "segments")] {
        let Some((exit, text)) = script(&slowly(args, ""), &[("NO_COLOR", "1")]) else { return };
        assert_eq!(exit, 0, "{text}");
        let bar = text.find('█').unwrap_or_else(|| panic!("{args}: no bar: {text:?}"));
        assert!(text[..bar].ends_with('[') && text[bar..].contains("/40.00 MiB "), "{args}: {text:?}");
        // Nothing stands behind the bar, and no colour was asked for.
        let begin = text.rfind(first).unwrap_or_else(|| panic!("{args}: no {first}: {text:?}"));
        let line = text[..begin].rsplit(['\r', '\n']).next().unwrap();
        assert!(!line.contains('█') && !text[begin..].contains('█'), "{args}: {text:?}");
        assert!(!text.contains("\x1b[3"), "{args}: {text:?}");
    }
    // Into a pipe or a file there is none.
    let (exit, text) = script(&slowly("verify", "2>&1 | cat"), &[]).unwrap();
    assert!(exit == 0 && !text.contains('\x1b') && text.contains("sound"), "{text:?}");
}
