//! The commands of `wal-inspect` that mend, save and compare, on directories that the real server made: `repair`, `salvage`, `get`,
//! `diff`, `format`, `completions`, `man`.

#[path = "support/inspect.rs"]
mod inspect;
mod support;

use inspect::{code, inspect, json, program, stderr, stdout};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::server::{Http, Server, has, skip};
use tempfile::TempDir;
use timberline::codec::crc32;
use timberline::wal::format::{Kind, SECOND_HEADER};
use timberline::wal::{SegmentScan, SeriesDef, decode_control, scan_segment};

/// First timestamp: 2026-01-01T00:00:00Z.
const T0: i64 = 1_767_225_600_000_000_000;

/// Small segments and blocks: a few megabytes go through every phase of both logs.
const SMALL: &str = "ingester: {chunk_block_size: 8KB, chunk_target_size: 64KB, \
                     wal: {segment_size: 1MB, max_size: 4MB, compression: none}}\n";

fn rows<'a>(document: &'a Value, section: &str) -> &'a Vec<Value> {
    document[section].as_array().unwrap_or_else(|| panic!("no {section} in {document}"))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A data directory, in `data` below the directory that is handed back.
struct Made {
    dir: TempDir,
}

impl Made {
    /// What the server leaves after these pushes, stopped in good order.
    fn with(push: impl FnOnce(&Server)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(dir.path(), SMALL, &[]);
        push(&server);
        assert_eq!(server.terminate(), Some(0));
        Self { dir }
    }

    /// Two streams, a few pushes, in one segment of the write-ahead log.
    fn small() -> Self {
        Self::with(|server| {
            let mut http = server.http();
            for n in 0..4 {
                let lines: Vec<String> = (0..3).map(|i| format!("web {n} {i}")).collect();
                assert_eq!(http.push("web", T0 + n * 10, &lines).unwrap(), 204);
                assert_eq!(http.push("db", T0 + n * 10, &[format!("db {n}")]).unwrap(), 204);
            }
        })
    }

    /// Blocks in several segments, a small stream whose lines were carried, retired segments; lines with equal timestamps.
    fn large() -> Self {
        Self::with(|server| {
            let mut http = server.http();
            let mut noise = Noise(7);
            assert_eq!(http.push("small", T0, &["small 1".into(), "small 2".into()]).unwrap(), 204);
            for n in 0..60 {
                let lines: Vec<String> = (0..100).map(|i| format!("big {n} {i} {}", noise.text(1000))).collect();
                push_small(&mut http, &format!("big{}", n % 2), T0 + n / 4, &lines);
            }
            push_small(&mut http, "small", T0 + 5, &["small 3".into()]);
        })
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Everything that a server serves of it, in order: labels, timestamp, line.
    fn served(self) -> Vec<(String, i64, String)> {
        served(self.dir.path())
    }
}

/// A push to a log of a few segments: 503 as long as it is cleaned too slowly for the load. Waits until its lines are in blocks, as
/// far as they fill some.
fn push_small(http: &mut Http, stream: &str, at: i64, lines: &[String]) {
    let mut taken = false;
    for _ in 0..3000 {
        if !taken {
            let status = http.push(stream, at, lines).unwrap();
            assert!([204, 503].contains(&status), "{status}");
            taken = status == 204;
        }
        // Blocks that wait for the disk together would get a segment of their own size.
        let page: Value = serde_json::from_slice(&http.get("/api/v1/status").unwrap().1).unwrap();
        if taken && page["memory"]["heads"].as_u64().unwrap() < 700_000 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("the log is full, or its heads stay, for a minute");
}

fn served(dir: &Path) -> Vec<(String, i64, String)> {
    let server = Server::start(dir, SMALL, &[]);
    let all = server.http().query_all("{s=~\".+\"}");
    assert_eq!(server.terminate(), Some(0));
    all.into_iter().map(|(labels, at, line)| (labels.to_string(), at, line)).collect()
}

/// Text that does not compress.
struct Noise(u64);

impl Noise {
    fn text(&mut self, len: usize) -> String {
        let mut out = String::new();
        while out.len() < len {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            out += &format!("{:016x}", self.0);
        }
        out
    }
}

/// Files of a directory and those below, with their bytes.
fn state(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(dir: &Path, base: &Path, out: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, base, out);
            } else {
                out.insert(path.strip_prefix(base).unwrap().display().to_string(), fs::read(&path).unwrap());
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(dir, dir, &mut out);
    // It names the process that had the directory last.
    out.remove("LOCK");
    out
}

fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    let done = Command::new("cp").arg("-a").arg(from).arg(to.path().join("data")).status().unwrap();
    assert!(done.success());
    to
}

fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

fn scan(path: &Path) -> (Vec<u8>, SegmentScan) {
    let file = fs::read(path).unwrap();
    let scan = scan_segment(&file).unwrap();
    (file, scan)
}

/// Segments of a log that hold something, oldest first.
fn used(data: &Path, log: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(data.join(log)).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "wal" || e == "blk"));
    files.retain(|f| scan_segment(&fs::read(f).unwrap()).is_ok_and(|s| !s.is_prepared()));
    files.sort();
    files
}

/// Record offset and body offset of all records of a kind.
fn records(path: &Path, kind: Kind) -> Vec<(u64, u64)> {
    let (_, scan) = scan(path);
    let records = scan.groups.iter().flat_map(|g| &g.records).filter(|r| r.head.known_kind() == Some(kind));
    records.map(|r| (r.offset, r.offset + 48 + u64::from(r.head.tables_len))).collect()
}

/// Takes the watermarks away, as a kill within 50 ms of the last answer leaves them: what was written last is the tail again.
fn forget_watermarks(path: &Path) {
    let (mut file, scan) = scan(path);
    for group in scan.groups.iter().filter(|g| g.records.is_empty()) {
        file[group.offset as usize..group.end as usize].fill(0);
    }
    fs::write(path, file).unwrap();
}

/// Names and actions of the files that change.
fn changed(document: &Value) -> BTreeMap<String, String> {
    let files = rows(document, "files").iter().filter(|f| f["action"] != "kept");
    files.map(|f| (f["file"].as_str().unwrap().to_string(), f["action"].as_str().unwrap().to_string())).collect()
}

/// The copies that a repair has made.
fn copies(data: &Path) -> BTreeMap<String, Vec<u8>> {
    let all = state(data).into_iter().filter(|(name, _)| name.starts_with("repair-"));
    all.filter_map(|(name, bytes)| Some((name.split_once('/')?.1.to_string(), bytes))).collect()
}

/// The label that a test gave; the server adds others.
fn label(row: &Value) -> &str {
    let labels = row["labels"].as_str().unwrap_or_else(|| panic!("{row}"));
    labels.split("s=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_else(|| panic!("{row}"))
}

/// What differs between two states, but for copies.
fn difference(before: &BTreeMap<String, Vec<u8>>, after: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, String> {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).filter(|n| !n.starts_with("repair-")).collect();
    let action = |name: &String| match (before.get(name), after.get(name)) {
        (None, Some(_)) => Some("made"),
        (Some(_), None) => Some("removed"),
        (Some(a), Some(b)) if a != b => Some("written"),
        _ => None,
    };
    names.into_iter().filter_map(|n| Some((n.clone(), action(n)?.to_string()))).collect()
}

#[test]
fn a_sound_directory_needs_no_repair() {
    let made = Made::small();
    let before = state(&made.data());
    for args in [&["repair"][..], &["repair", "--apply"]] {
        let repair = json(&made.data(), args, 0);
        assert_eq!((&repair["repair"]["verdict"], &repair["repair"]["copies"]), (&"sound".into(), &Value::Null));
        assert!(changed(&repair).is_empty() && rows(&repair, "files").len() >= 2, "{repair}");
    }
    assert!(state(&made.data()) == before);
}

/// The dry run changes nothing, tells what the other one does, and that one keeps what it changes.
#[test]
fn a_tail_is_written_again_and_what_is_void_is_removed() {
    let made = Made::small();
    let data = made.data();
    forget_watermarks(used(&data, "wal").last().unwrap());
    fs::write(data.join("wal/00000000000000000099.wal.tmp"), b"half a preparation").unwrap();
    fs::write(data.join("blocks/00000000000000000077.blk"), b"of nothing").unwrap();
    let before = state(&data);

    let dry = json(&data, &["repair"], 1);
    assert_eq!(dry["repair"]["verdict"], "to be repaired");
    assert_eq!((&dry["repair"]["tail_records"], &dry["repair"]["lines_lost"]), (&1.into(), &0.into()));
    assert!(state(&data) == before, "a dry run changed something");
    let output = inspect(&data, &["repair"]);
    assert!(stderr(&output).contains("next: wal-inspect repair --apply -d "), "{}", stderr(&output));
    let told = changed(&dry);
    assert_eq!(told.get("wal/00000000000000000099.wal.tmp").map(String::as_str), Some("removed"), "{told:?}");
    assert_eq!(told.get("blocks/00000000000000000077.blk").map(String::as_str), Some("removed"), "{told:?}");
    assert_eq!(told.values().filter(|a| *a == "written").count(), 1, "{told:?}");

    let applied = json(&data, &["repair", "--apply"], 0);
    assert_eq!(changed(&applied), told);
    let after = state(&data);
    assert_eq!(difference(&before, &after), told, "what is told is what happens");
    let kept = copies(&data);
    for (name, _) in told.iter().filter(|(_, action)| *action != "made") {
        assert!(kept.get(name) == before.get(name), "the copy of {name}");
    }
    assert_eq!(kept.len(), told.len());

    let again = json(&data, &["repair"], 0);
    assert_eq!((&again["repair"]["verdict"], changed(&again).len()), (&"sound".into(), 0));
    assert_eq!(code(&inspect(&data, &["verify"])), 0);
    assert_eq!(made.served().len(), 16);
}

#[test]
fn damage_is_kept_counted_and_settled_once() {
    let made = Made::small();
    let data = made.data();
    let segment = used(&data, "wal").pop().unwrap();
    // The third push: three lines of the second stream of pushes.
    let (record, body) = records(&segment, Kind::Entries)[2];
    flip(&segment, body + 8);
    let before = state(&data);
    let dry = json(&data, &["repair"], 1);
    assert_eq!(
        (&dry["repair"]["verdict"], &dry["repair"]["lines_lost"]),
        (&"damaged, to be repaired".into(), &3.into())
    );
    assert!(rows(&dry, "damage")[0]["what"].as_str().unwrap().contains(&format!("bytes {record}..")), "{dry}");
    let missing = rows(&dry, "missing");
    assert_eq!((missing.len(), &missing[0]["lines"], label(&missing[0])), (1, &3.into(), "web"));
    assert!(state(&data) == before);

    let applied = json(&data, &["repair", "--apply"], 1);
    assert_eq!(changed(&applied), changed(&dry));
    assert_eq!(difference(&before, &state(&data)), changed(&applied));
    let name = segment.file_name().unwrap().to_str().unwrap();
    let quarantine: Vec<String> = state(&data).into_keys().filter(|n| n.starts_with("quarantine/")).collect();
    assert_eq!(quarantine.len(), 2, "{quarantine:?}");
    assert!(quarantine.iter().any(|n| n.ends_with(name)) && quarantine.iter().any(|n| n.ends_with(".json")));

    let again = json(&data, &["repair"], 1);
    assert_eq!(
        (&again["repair"]["verdict"], &again["repair"]["lines_lost"]),
        (&"damaged, and settled".into(), &0.into())
    );
    assert_eq!(changed(&again).len(), 0, "{again}");
    assert_eq!(again["repair"]["known_places"], again["repair"]["damaged_places"]);
    // The server counts nothing again either.
    let server = Server::start(made.dir.path(), SMALL, &[]);
    let (_, metrics) = server.http().get("/metrics").unwrap();
    let metrics = String::from_utf8(metrics).unwrap();
    assert!(metrics.contains("\ntimberline_wal_lost_lines_total 0\n"), "{metrics}");
    assert_eq!(server.http().query_all("{s=~\".+\"}").len(), 13);
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn a_running_server_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), SMALL, &[]);
    assert_eq!(server.http().push("a", T0, &["line".into()]).unwrap(), 204);
    let data = dir.path().join("data");
    for args in [&["repair"][..], &["repair", "--apply"]] {
        let output = inspect(&data, args);
        let told = stderr(&output);
        assert_eq!((code(&output), told.contains(&format!("pid {}", server.pid()))), (3, true), "{told}");
        assert!(told.contains("next: stop the server"), "{told}");
    }
    assert!(copies(&data).is_empty());
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn what_is_no_data_directory_is_not_made_one() {
    let empty = tempfile::tempdir().unwrap();
    for dir in [empty.path().to_path_buf(), empty.path().join("missing")] {
        let output = inspect(&dir, &["repair", "--apply"]);
        assert_eq!(code(&output), 3, "{}", stderr(&output));
        assert!(stderr(&output).contains("next: wal-inspect repair"), "{}", stderr(&output));
    }
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
    // Without its identity nobody knows whose segments they are.
    let made = Made::small();
    fs::remove_file(made.data().join("identity")).unwrap();
    let before = state(&made.data());
    let output = inspect(&made.data(), &["repair", "--apply"]);
    assert_eq!((code(&output), stderr(&output).contains("identity is gone")), (3, true), "{}", stderr(&output));
    assert!(state(&made.data()) == before);
}

#[test]
fn a_newer_format_is_refused_with_5_and_untouched() {
    let made = Made::small();
    let path = used(&made.data(), "wal").pop().unwrap();
    let mut file = fs::read(&path).unwrap();
    for at in [0, SECOND_HEADER as usize] {
        file[at + 8] = 2;
        let crc = crc32(&[&file[at..at + 60], &(at as u64).to_le_bytes()]);
        file[at + 60..at + 64].copy_from_slice(&crc.to_le_bytes());
    }
    fs::write(&path, file).unwrap();
    let before = state(&made.data());
    let target = made.dir.path().join("new");
    let data = made.data();
    let commands: [&[&str]; 4] = [
        &["repair", "--apply"],
        &["salvage", text(&data), text(&target)],
        &["get", "1:8256"],
        &["diff", text(&data), text(&data)],
    ];
    for args in commands {
        let output = inspect(&data, args);
        assert_eq!((code(&output), stderr(&output).contains("next: ")), (5, true), "{args:?}: {}", stderr(&output));
    }
    assert!(state(&data) == before && !target.exists());
}

/// Where each definition of a stream is damaged, its lines are there and nobody knows whose they are.
#[test]
fn labels_are_attached_to_lines_that_have_none() {
    let made = Made::with(|server| {
        let mut http = server.http();
        assert_eq!(http.push("lost", T0, &["one".into(), "two".into()]).unwrap(), 204);
        for n in 0..3 {
            assert_eq!(http.push("kept", T0 + n, &[format!("kept {n}")]).unwrap(), 204);
        }
    });
    let data = made.data();
    let segment = used(&data, "wal").pop().unwrap();
    let (file, found) = scan(&segment);
    let series = found.groups.iter().flat_map(|g| &g.records).filter(|r| r.head.known_kind() == Some(Kind::Series));
    let mut id = 0;
    for record in series {
        let definitions: Vec<SeriesDef> = decode_control(&record.head, record.head.body(&file, record.offset)).unwrap();
        if let Some(lost) = definitions.iter().find(|d| d.labels.iter().any(|(_, v)| v == "lost")) {
            id = lost.id;
            flip(&segment, record.offset + 48 + 3);
        }
    }
    let dry = json(&data, &["repair"], 1);
    let row = &rows(&dry, "without_labels")[0];
    assert_eq!((&row["stream"], &row["lines"], &row["labels"]), (&id.into(), &2.into(), &"unknown".into()), "{dry}");
    let labels = format!("{id}={{s=\"found\", why=\"attached\"}}");
    for wrong in [
        &["--attach-labels", "99={a=\"b\"}"][..],
        &["--attach-labels", "x"],
        &["--attach-labels", &labels, "--tenant", "other"],
        &["--tenant", "other"],
    ] {
        assert_eq!(code(&inspect(&data, &[&["repair", "--apply"], wrong].concat())), 2, "{wrong:?}");
    }
    assert!(copies(&data).is_empty());
    let tenant = row["tenant"].as_str().unwrap();
    let args = ["repair", "--apply", "--attach-labels", &labels, "--tenant", tenant];
    let applied = json(&data, &args, 1);
    assert_eq!(
        (&applied["repair"]["lines_without_labels"], &rows(&applied, "without_labels")[0]["labels"]),
        (&0.into(), &"attached".into())
    );
    let again = json(&data, &["repair"], 1);
    assert_eq!((rows(&again, "without_labels").len(), changed(&again).len()), (0, 0), "{again}");
    let served = made.served();
    let found: Vec<&str> =
        served.iter().filter(|(l, ..)| l.contains("attached")).map(|(.., line)| line.as_str()).collect();
    assert_eq!((found, served.len()), (vec!["one", "two"], 5));
}

/// Nothing of either log tells any stream's labels any more. A repair could not make them last; a new directory does.
#[test]
fn a_salvage_attaches_labels_to_streams_with_blocks() {
    let made = Made::large();
    let data = made.data();
    let before = json(&data, &["streams"], 0);
    for (log, kinds) in [("wal", &[Kind::Series][..]), ("blocks", &[Kind::Series, Kind::Footer])] {
        for segment in used(&data, log) {
            let places = kinds.iter().flat_map(|kind| records(&segment, *kind));
            places.for_each(|(offset, _)| flip(&segment, offset + 48 + 3));
        }
    }
    let named = |row: &Value| format!("{}={}", row["stream"], row["labels"].as_str().unwrap());
    let labels: Vec<String> = rows(&before, "streams").iter().map(named).collect();
    let tenant = rows(&before, "streams")[0]["tenant"].as_str().unwrap().to_string();
    let target = tempfile::tempdir().unwrap();
    let args = |labels: &[String]| {
        let mut command = program();
        command.arg("salvage").arg(&data).arg(target.path()).args(["--tenant", &tenant]);
        command.args(labels.iter().flat_map(|l| ["--attach-labels", l]));
        command.output().unwrap()
    };
    assert_eq!(code(&args(&["99={a=\"b\"}".to_string()])), 2);
    let output = args(&labels);
    assert_eq!(code(&output), 1, "the source is damaged: {}", stderr(&output));
    let repaired = inspect(&data, &["repair", "--attach-labels", &labels[1]]);
    assert!(code(&repaired) == 2 && stderr(&repaired).contains("salvage"), "{repaired:?}");
    let lines = |document: &Value| -> Vec<(String, u64)> {
        let row = |r: &Value| (r["labels"].as_str().unwrap().to_string(), r["lines"].as_u64().unwrap());
        let mut all: Vec<_> = rows(document, "streams").iter().map(row).collect();
        all.sort();
        all
    };
    assert_eq!(lines(&json(target.path(), &["streams"], 0)), lines(&before));
    assert_eq!(code(&inspect(target.path(), &["verify"])), 0);
}

/// Calls of a run that change something, by name.
fn calls(trace: &str) -> BTreeMap<String, usize> {
    let mut out = BTreeMap::new();
    for line in trace.lines() {
        let name = line.split_once('(').map_or("", |(before, _)| before.rsplit(' ').next().unwrap_or_default());
        if CALLS.split(',').any(|call| call == name) {
            *out.entry(name.to_string()).or_insert(0) += 1;
        }
    }
    out
}

const CALLS: &str = "pwrite64,write,fdatasync,fsync,rename,unlink,linkat,mkdir";

/// Killed before any call that changes something: what was there is there or copied, and the same command finishes.
#[test]
fn a_repair_that_is_killed_anywhere_goes_on() {
    if !has("strace") {
        return skip("strace is not installed");
    }
    let made = Made::small();
    let segment = used(&made.data(), "wal").pop().unwrap();
    forget_watermarks(&segment);
    flip(&segment, records(&segment, Kind::Entries)[2].1 + 8);
    fs::write(made.data().join("wal/00000000000000000099.wal.tmp"), b"half a preparation").unwrap();
    fs::write(made.data().join("blocks/00000000000000000077.blk"), b"of nothing").unwrap();
    let before = state(&made.data());
    let under = |data: &Path, options: &[&str]| {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq"]).args(options).arg(env!("CARGO_BIN_EXE_wal-inspect"));
        strace.arg("-d").arg(data).args(["repair", "--apply"]).output().unwrap()
    };
    let whole = copy(&made.data());
    let trace = whole.path().join("trace");
    let counted = under(&whole.path().join("data"), &["-e", &format!("trace={CALLS}"), "-o", text(&trace)]);
    assert_eq!(code(&counted), 1, "{counted:?}");
    let calls = calls(&fs::read_to_string(&trace).unwrap());
    let total: usize = calls.values().sum();
    assert!(total > 20 && calls.len() >= 6, "{calls:?}");
    let every = if std::env::var_os("TIMBERLINE_FULL").is_some() { 1 } else { 2 };
    let sites = calls.iter().flat_map(|(call, n)| (1..=*n).map(move |nth| (call, nth)));
    let mut killed = 0;
    for (call, nth) in sites.step_by(every) {
        let work = copy(&made.data());
        let data = work.path().join("data");
        let output = under(&data, &["-e", &format!("inject={call}:signal=SIGKILL:when={nth}")]);
        killed += usize::from(output.status.code() != Some(1));
        let (now, kept) = (state(&data), copies(&data));
        for (name, bytes) in &before {
            let safe = now.get(name) == Some(bytes) || kept.get(name) == Some(bytes);
            assert!(safe, "killed at {call} {nth}: {name} is neither as it was nor copied");
        }
        let repaired = json(&data, &["repair", "--apply"], 1);
        assert_eq!(repaired["repair"]["verdict"], "damaged, and settled", "killed at {call} {nth}");
        let again = json(&data, &["repair"], 1);
        assert!(changed(&again).is_empty(), "killed at {call} {nth}: {again}");
        let equal = inspect(&data, &["diff", text(&data), text(&whole.path().join("data"))]);
        assert_eq!(code(&equal), 0, "killed at {call} {nth}: {}", stdout(&equal));
    }
    println!("{total} calls, {killed} kills");
    assert!(killed * every >= total / 2, "{killed} of {total}");
    assert_eq!(served(whole.path()).len(), 13);
}

#[test]
fn a_salvaged_directory_has_every_line_in_order_and_the_source_is_only_read() {
    let made = Made::large();
    let data = made.data();
    forget_watermarks(used(&data, "wal").last().unwrap());
    let stats = json(&data, &["ls"], 0);
    assert!(rows(&stats, "block_segments").len() >= 2, "{stats}");
    let dumped = json(&data, &["dump", "--tail", "--no-lines", "--kind", "entries"], 0);
    let lines = rows(&dumped, "records").len();
    assert!(rows(&dumped, "records").iter().any(|r| r["log"] == "wal"), "nothing is in the write-ahead log alone");
    let before = state(&data);
    let times = |dir: &Path| -> Vec<_> {
        let files = fs::read_dir(dir.join("wal")).unwrap().chain(fs::read_dir(dir.join("blocks")).unwrap());
        let mut times: Vec<_> =
            files.map(|f| f.unwrap()).map(|f| (f.path(), f.metadata().unwrap().mtime_nsec())).collect();
        times.sort();
        times
    };
    let touched = times(&data);
    let target = made.dir.path().join("new/data");
    let trace = made.dir.path().join("trace");
    let mut command = if has("strace") {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-e", "trace=open,openat,creat,unlink,rename,mkdir,linkat,truncate,utimensat"]);
        strace.arg("-o").arg(&trace).arg(env!("CARGO_BIN_EXE_wal-inspect"));
        strace
    } else {
        skip("strace is not installed: that the source is only read is seen by its files alone");
        program()
    };
    let output = command.arg("salvage").arg(&data).arg(&target).args(["-o", "json"]).output().unwrap();
    assert_eq!(code(&output), 0, "{}\n{}", stdout(&output), stderr(&output));
    let salvage: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&salvage["salvage"]["verdict"], &salvage["salvage"]["lines_missing"]), (&"sound".into(), &0.into()));
    assert_eq!(salvage["salvage"]["lines"], lines, "{salvage}");
    assert!(salvage["salvage"]["blocks"].as_u64().unwrap() > 5 && salvage["salvage"]["streams"] == 3, "{salvage}");
    assert!(state(&data) == before && times(&data) == touched);
    let trace = fs::read_to_string(&trace).unwrap_or_default();
    for line in trace.lines().filter(|l| l.contains(&format!("\"{}", data.display()))) {
        assert!(line.contains("open") && line.contains("O_RDONLY") && !line.contains("O_CREAT"), "{line}");
    }

    assert_eq!(code(&inspect(&target, &["verify"])), 0);
    assert_eq!(code(&inspect(&data, &["diff", text(&data), text(&target)])), 0);
    // Timestamps come again and again, so the order is that of arrival.
    let (old, new) = (served(made.dir.path()), served(&made.dir.path().join("new")));
    assert_eq!((old.len(), old == new), (lines, true));
    // It is a data directory like any other.
    let server = Server::start(&made.dir.path().join("new"), SMALL, &[]);
    push_small(&mut server.http(), "small", T0 + 9, &["more".into()]);
    assert_eq!(server.http().query_all("{s=\"small\"}").len(), 4);
    server.kill();
    assert_eq!(served(&made.dir.path().join("new")).len(), lines + 1);
}

#[test]
fn a_salvage_past_damage_tells_what_is_missing_by_stream() {
    let made = Made::large();
    let data = made.data();
    // A block whose lines have left the write-ahead log, a push, and a block segment that is gone.
    let blocks = used(&data, "blocks");
    let segments = used(&data, "wal");
    assert!(blocks.len() >= 3 && segments.len() >= 2, "{blocks:?} {segments:?}");
    flip(&blocks[0], records(&blocks[0], Kind::Block)[1].1 + 50);
    let newest = segments.last().unwrap();
    flip(newest, records(newest, Kind::Entries).last().unwrap().1 + 5);
    fs::remove_file(&blocks[1]).unwrap();
    let verify = json(&data, &["verify"], 1);
    let target = made.dir.path().join("new/data");
    let output = program().arg("salvage").arg(&data).arg(&target).args(["-o", "json"]).output().unwrap();
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("not everything could be read\nnext: wal-inspect verify -d "),
        "{}",
        stderr(&output)
    );
    let salvage: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(salvage["salvage"]["verdict"], "incomplete");
    assert_eq!(salvage["missing"], verify["missing"]);
    assert_eq!(salvage["salvage"]["lines_missing"], verify["verify"]["lost_lines"]);
    assert!(salvage["salvage"]["lines_missing"].as_u64().unwrap() > 10, "{salvage}");
    // What is there reads as sound, again and again, and is what the damaged one shows.
    assert_eq!(code(&inspect(&target, &["verify"])), 0, "{}", stdout(&inspect(&target, &["verify"])));
    assert_eq!(code(&inspect(&data, &["diff", text(&data), text(&target)])), 0);
    assert_eq!(json(&target, &["repair"], 0)["repair"]["verdict"], "sound");
    let (old, new) = (served(made.dir.path()), served(&made.dir.path().join("new")));
    assert_eq!((old.len(), old == new), (new.len(), true));
    assert_eq!(code(&inspect(&target, &["verify"])), 0);
}

/// The server was told to keep its log elsewhere, and what it had written before was left where it was.
#[test]
fn a_log_that_was_left_behind_is_told() {
    let made = Made::small();
    let (data, before) = (made.data(), copy(&made.data().join("wal")));
    let server = Server::start(made.dir.path(), SMALL, &[]);
    let (mut http, mut noise) = (server.http(), Noise(7));
    for n in 0..30 {
        let lines: Vec<String> = (0..100).map(|i| format!("big {n} {i} {}", noise.text(1000))).collect();
        push_small(&mut http, "big", T0 + n, &lines);
    }
    assert_eq!(server.terminate(), Some(0));
    assert!(used(&data, "blocks").len() > 2);
    let elsewhere = made.dir.path().join("elsewhere");
    fs::rename(data.join("wal"), &elsewhere).unwrap();
    fs::rename(before.path().join("data"), data.join("wal")).unwrap();
    let told = |args: &[&str]| {
        let said = stderr(&inspect(&data, args));
        let names = |log| said.contains(text(&data.join(log)));
        said.contains("--wal-dir") && names("wal") && names("blocks")
    };
    for command in ["summary", "verify", "repair"] {
        assert!(told(&[command]), "{command}");
        assert!(!told(&[command, "--wal-dir", text(&elsewhere)]), "{command}");
    }
}

#[test]
fn the_golden_logs_are_salvaged() {
    // In the first one seqs are gone that a torn write had: a start has settled them.
    for name in ["v1", "v1-blocks"] {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/golden").join(name);
        let target = tempfile::tempdir().unwrap();
        let output = program().arg("salvage").arg(&golden).arg(target.path()).output().unwrap();
        assert_eq!(code(&output), 0, "{name}: {}", stderr(&output));
        let output = program().arg("diff").arg(&golden).arg(target.path()).output().unwrap();
        assert_eq!(code(&output), 0, "{name}: {}", stdout(&output));
        let lines = fs::read_to_string(golden.join("lines.txt")).unwrap().lines().count() as u64;
        let verify = json(target.path(), &["verify"], 0);
        assert_eq!(verify["verify"]["lines"], lines, "{name}");
    }
}

#[test]
fn a_salvage_takes_a_new_directory_only_and_is_unfinished_until_it_ends() {
    let made = Made::small();
    let data = made.data();
    let salvage = |from: &Path, to: &Path| program().arg("salvage").arg(from).arg(to).output().unwrap();
    let full = made.dir.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("precious"), b"x").unwrap();
    for (to, exit) in [(&full, 2), (&data, 2), (&data.join("new"), 2)] {
        let output = salvage(&data, to);
        assert_eq!((code(&output), stderr(&output).contains("next: ")), (exit, true), "{}", stderr(&output));
    }
    assert_eq!(fs::read_dir(&full).unwrap().count(), 1);
    let inside = program().current_dir(&data).args(["salvage", ".", "new"]).output().unwrap();
    assert_eq!((code(&inside), data.join("new").exists()), (2, false), "{}", stderr(&inside));
    let output = salvage(&made.dir.path().join("none"), &made.dir.path().join("new"));
    assert_eq!((code(&output), made.dir.path().join("new").exists()), (3, false), "{}", stderr(&output));
    if !has("strace") {
        return skip("strace is not installed");
    }
    let target = made.dir.path().join("killed/data");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", "inject=fdatasync:signal=SIGKILL:when=2"]).arg(env!("CARGO_BIN_EXE_wal-inspect"));
    let output = strace.arg("salvage").arg(&data).arg(&target).output().unwrap();
    assert_ne!(output.status.code(), Some(0));
    assert!(target.join("wal").exists() && !target.join("identity").exists());
    let output = inspect(&target, &["repair"]);
    assert_ne!(code(&output), 0, "what is unfinished is no data directory");
}

#[test]
fn get_prints_one_record_or_block() {
    let made = Made::large();
    let data = made.data();
    let segment = used(&data, "wal").pop().unwrap();
    let number: u64 = segment.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let got = |record: u64| json(&data, &["get", &format!("{number}:{record}")], 0);
    let lines = |got: &Value| -> Vec<String> {
        rows(got, "records").iter().map(|r| r["line"].as_str().unwrap().to_string()).collect()
    };
    // Behind it, lines of older segments may have been carried.
    let all = records(&segment, Kind::Entries);
    let &(record, body) = all.iter().rev().find(|(record, _)| lines(&got(*record)) == ["small 3"]).unwrap();
    let got = got(record);
    let row = &rows(&got, "records")[0];
    assert_eq!((label(row), &row["seq"], &row["log"]), ("small", &2.into(), &"wal".into()));
    // As `dump` has it, by the same position.
    let dump =
        json(&data, &["dump", "--log", "wal", "--from", row["position"].as_str().unwrap(), "--kind", "entries"], 0);
    assert_eq!(
        (&rows(&dump, "records")[0]["line"], &rows(&dump, "records")[0]["metadata"]),
        (&row["line"], &row["metadata"])
    );
    // A place inside is the record; any way to name the file; every format.
    assert_eq!(json(&data, &["get", &format!("{}:{}", segment.display(), body + 3)], 0), got);
    for format in ["table", "json", "jsonl", "logfmt"] {
        let output = inspect(&data, &["get", &format!("{number}:{record}"), "-o", format]);
        assert_eq!((code(&output), stdout(&output).contains("small 3")), (0, true), "{format}");
    }

    let blocks = used(&data, "blocks").remove(0);
    let (block, block_body) = records(&blocks, Kind::Block)[0];
    let name = blocks.file_name().unwrap().to_str().unwrap();
    let got = json(&data, &["get", &format!("{name}:{block}")], 0);
    assert!(rows(&got, "records").len() > 5 && rows(&got, "records").iter().all(|r| r["log"] == "blocks"), "{got}");
    assert!(rows(&got, "records").iter().all(|r| r["line"].as_str().unwrap().starts_with("big ")));
    let by_number = format!("{}:{block}", name.trim_end_matches(".blk"));
    assert_eq!(json(&data, &["get", &by_number, "--log", "blocks"], 0), got);

    // Other records tell their fields.
    let open = format!("{number}:{}", records(&segment, Kind::Open)[0].0);
    assert!(rows(&json(&data, &["get", &open], 0), "records").iter().any(|r| r["field"] == "total_lines"));
    let series = format!("{number}:{}", records(&segment, Kind::Series)[0].0);
    assert!(rows(&json(&data, &["get", &series], 0), "records").iter().all(|r| r["kind"] == "series"));

    for (place, exit) in [("1:999999999", 3), (&*format!("{number}:8192"), 2), ("x", 2), ("99999:8192", 3)] {
        let output = inspect(&data, &["get", place]);
        assert!(code(&output) == exit || code(&output) == 2, "{place}: {} {}", code(&output), stderr(&output));
        assert!(!stderr(&output).is_empty());
    }
    flip(&blocks, block_body + 9);
    flip(&segment, body + 3);
    for place in [format!("{number}:{record}"), format!("{name}:{block}")] {
        let output = inspect(&data, &["get", &place]);
        assert_eq!((code(&output), stdout(&output).as_str()), (1, ""), "{}", stderr(&output));
        assert!(stderr(&output).contains(&format!("next: wal-inspect explain {place} -d ")), "{}", stderr(&output));
    }
}

#[test]
fn diff_tells_lines_that_are_only_in_one() {
    let (a, b) = (
        Made::small(),
        Made::with(|server| {
            let mut http = server.http();
            // Other pushes, another order, the same lines; one is left out, one is more, and one stream is new.
            for n in [2, 0, 3, 1] {
                assert_eq!(http.push("db", T0 + n * 10, &[format!("db {n}")]).unwrap(), 204);
                let lines: Vec<String> = (0..3).map(|i| format!("web {n} {i}")).collect();
                let lines = if n == 1 { lines[..2].to_vec() } else { lines };
                assert_eq!(http.push("web", T0 + n * 10, &lines).unwrap(), 204);
            }
            assert_eq!(http.push("web", T0 + 100, &["more".into(), "web 1 2".into()]).unwrap(), 204);
            assert_eq!(http.push("new", T0, &["new".into()]).unwrap(), 204);
        }),
    );
    let (one, other) = (a.data(), b.data());
    let diff = |x: &Path, y: &Path, more: &[&str], exit| json(x, &[&["diff", text(x), text(y)], more].concat(), exit);
    let same = diff(&one, &one, &["--lines"], 0);
    assert_eq!((&same["diff"]["result"], &same["diff"]["lines_both"]), (&"equal".into(), &16.into()));
    assert!(rows(&same, "streams").is_empty() && rows(&same, "lines").is_empty());
    // The segments alone will do.
    assert_eq!(diff(&one.join("wal"), &one, &[], 0)["diff"]["result"], "equal");

    let different = diff(&one, &other, &["--lines"], 1);
    let figures = &different["diff"];
    assert_eq!(
        (&figures["lines_only_a"], &figures["lines_only_b"], &figures["lines_both"]),
        (&1.into(), &3.into(), &15.into())
    );
    let lines: Vec<(&str, &str)> =
        rows(&different, "lines").iter().map(|l| (l["only"].as_str().unwrap(), l["line"].as_str().unwrap())).collect();
    assert_eq!(lines, [("a", "web 1 2"), ("b", "more"), ("b", "web 1 2"), ("b", "new")]);
    let differing = rows(&different, "streams");
    let streams: Vec<_> = differing.iter().map(|s| (label(s), &s["only_a"], &s["only_b"], &s["both"])).collect();
    let n = |n: u64| Value::from(n);
    assert_eq!(streams, [("web", &n(1), &n(2), &n(11)), ("new", &n(0), &n(1), &n(0))]);
    let output = inspect(&one, &["diff", text(&one), text(&other)]);
    assert!(stderr(&output).contains("the logs differ\nnext: wal-inspect diff --lines"), "{}", stderr(&output));
    assert!(!stdout(&output).contains("more"), "lines are asked for");

    // Damage in one makes a difference, and the way to it is named.
    let segment = used(&other, "wal").pop().unwrap();
    flip(&segment, records(&segment, Kind::Entries)[0].1 + 4);
    let output = inspect(&one, &["diff", text(&one), text(&other)]);
    assert!(stderr(&output).contains("next: wal-inspect verify -d "), "{}", stderr(&output));
    assert_eq!(code(&inspect(&one, &["diff", text(&one), text(&one.join("nothing"))])), 3);
}

#[test]
fn metadata_tenants_and_labels_make_a_difference() {
    let with = |tenant: &str, labels: Value, metadata: Value| {
        let server = support::TestServer::with("auth_enabled: true\nlimits_config: {reject_old_samples: false}\n");
        let body = serde_json::json!({"streams": [{"stream": labels, "values": [[T0.to_string(), "line", metadata]]}]});
        server.push_as(tenant, &body.to_string()).assert_stored();
        server
    };
    let plain = || (serde_json::json!({"app": "x"}), serde_json::json!({"k": "v"}));
    let first = with("a", plain().0, plain().1);
    for (other, different) in [
        (with("a", plain().0, plain().1), false),
        (with("b", plain().0, plain().1), true),
        (with("a", serde_json::json!({"app": "y"}), plain().1), true),
        (with("a", plain().0, serde_json::json!({"k": "w"})), true),
    ] {
        let (a, b) = (first.dir.path().join("data"), other.dir.path().join("data"));
        assert_eq!(code(&inspect(&a, &["diff", text(&a), text(&b)])), i32::from(different));
    }
}

#[test]
fn format_fills_one_screen_with_what_the_code_says() {
    let nowhere = Path::new("/nonexistent");
    let format = json(nowhere, &["format"], 0);
    assert_eq!((&format["format"]["magic_wal"], &format["format"]["version"]), (&"TMBRWAL1".into(), &1.into()));
    assert_eq!(rows(&format, "kinds").len(), 10);
    let layouts = rows(&format, "layouts");
    assert_eq!((&layouts[0]["fields"]["volume"], &layouts[0]["bytes"]), (&"16+16".into(), &64.into()), "{format}");
    assert_eq!((&layouts[1]["fields"]["wall_clock"], &layouts[1]["fields"]["magic"]), (&"48+8".into(), &"0+4".into()));
    assert_eq!((&layouts[2]["fields"]["lsn"], &layouts[2]["fields"]["crc"]), (&"8+8".into(), &"44+4".into()));
    let text = stdout(&inspect(nowhere, &["format"]));
    assert!(text.lines().count() <= 40, "{text}");
}

#[test]
fn completions_and_manual_pages_are_made() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = program().args(["completions", shell]).output().unwrap();
        assert_eq!((code(&output), stdout(&output).contains("salvage")), (0, true), "{shell}");
    }
    let output = program().args(["man"]).output().unwrap();
    assert!(stdout(&output).starts_with(".ie") || stdout(&output).contains(".TH wal-inspect 1"), "{}", stdout(&output));
    for command in ["summary", "dump", "repair", "salvage", "get", "diff", "format", "man"] {
        let output = program().args(["man", command]).output().unwrap();
        let page = stdout(&output);
        assert_eq!(code(&output), 0);
        assert!(
            page.contains(&format!("wal\\-inspect\\-{command}")) || page.contains(&format!("wal-inspect-{command}")),
            "{page}"
        );
        assert!(page.contains("Example: "), "{page}");
    }
    for wrong in [&["man", "nothing"][..], &["completions", "tcsh"], &["completions"]] {
        assert_eq!(code(&program().args(wrong).output().unwrap()), 2, "{wrong:?}");
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    let made = Made::large();
    let data = made.data();
    let blocks = used(&data, "blocks").remove(0);
    let block = format!("{}:{}", blocks.display(), records(&blocks, Kind::Block)[0].0);
    let empty = Made::small();
    let empty_data = empty.data();
    let commands: [&[&str]; 4] =
        [&["diff", text(&data), text(&empty_data), "--lines"], &["get", &block], &["format"], &["man"]];
    for args in commands {
        let mut child =
            program().arg("-d").arg(&data).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(!first.is_empty() && !stderr(&output).contains("panic"), "{args:?}: {}", stderr(&output));
        assert!([0, 1].contains(&code(&output)), "{args:?}: {}", stderr(&output));
    }
}
