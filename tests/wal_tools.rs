//! The commands of `wal-inspect` that bring lines in and out, as a user types them: import, export, replay, `dump
//! --follow`, bench. The servers are real.

mod support;

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use support::{Server, TestServer};
use tempfile::TempDir;

const TWO_TENANTS: &str =
    "auth_enabled: true\nlimits_config: {reject_old_samples: false, discover_log_levels: false}\n";

fn command(data: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wal-inspect"));
    command.arg("-d").arg(data).args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn inspect(data: &Path, args: &[&str]) -> Output {
    command(data, args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a command that must end with this code; its standard output.
#[track_caller]
fn run(data: &Path, args: &[&str], code: i32) -> String {
    let output = inspect(data, args);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The first row of a section, of a command's JSON output.
#[track_caller]
fn document(data: &Path, args: &[&str], code: i32) -> Value {
    serde_json::from_str(&run(data, &[args, &["-o", "json"]].concat(), code)).unwrap()
}

/// Lines of jsonl as a set: labels, timestamp, line, metadata.
fn set(jsonl: &str) -> BTreeSet<String> {
    let lines = jsonl.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.map(|l| json!([l["labels"], nanos(&l["timestamp"]), l["line"], l["metadata"]]).to_string()).collect()
}

/// Nanoseconds or RFC 3339.
fn nanos(time: &Value) -> i128 {
    let text = time.as_str().unwrap();
    text.parse().unwrap_or_else(|_| text.parse::<jiff::Timestamp>().unwrap().as_nanosecond())
}

/// Everything that is in a log, by `export`; each line must come once.
#[track_caller]
fn exported(data: &Path, args: &[&str], code: i32) -> BTreeSet<String> {
    let text = run(data, &[&["export"], args].concat(), code);
    let set = set(&text);
    assert_eq!(set.len(), text.lines().count(), "a line came twice");
    set
}

mod import {
    use super::*;

    fn testdata() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/loki/wal")
    }

    fn expected() -> BTreeSet<String> {
        set(&fs::read_to_string(testdata().join("expected.jsonl")).unwrap())
    }

    /// A copy of what Loki wrote.
    fn loki(dir: &Path) -> PathBuf {
        let wal = dir.join("loki/wal");
        fs::create_dir_all(wal.join("checkpoint.000001")).unwrap();
        for name in ["checkpoint.000001/00000000", "00000002"] {
            fs::copy(testdata().join(name), wal.join(name)).unwrap();
        }
        wal
    }

    fn import(data: &Path, from: &Path, code: i32) -> Value {
        document(data, &["import", "--from-loki", from.to_str().unwrap()], code)
    }

    /// Fragments of a segment with their places; nearly all are whole records.
    fn fragments(segment: &[u8]) -> Vec<(usize, &[u8])> {
        let (mut at, mut out) = (0, Vec::new());
        while at + 7 <= segment.len() {
            let len = usize::from(u16::from_be_bytes([segment[at + 1], segment[at + 2]]));
            if segment[at] == 0 || 32768 - at % 32768 < 7 {
                at = at.next_multiple_of(32768).max(at + 1);
                continue;
            }
            out.push((at, &segment[at + 7..at + 7 + len]));
            at += 7 + len;
        }
        out
    }

    /// A segment with these records, in as many fragments as the pages need.
    fn segment(records: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        for record in records {
            let (mut rest, mut first) = (&record[..], true);
            loop {
                let room = 32768 - out.len() % 32768;
                if room < 7 {
                    out.resize(out.len() + room, 0);
                    continue;
                }
                let (part, left) = rest.split_at(rest.len().min(room - 7));
                let kind = match (first, left.is_empty()) {
                    (true, true) => 1,
                    (true, false) => 2,
                    (false, false) => 3,
                    (false, true) => 4,
                };
                out.push(kind);
                out.extend((part.len() as u16).to_be_bytes());
                out.extend(crc32c::crc32c(part).to_be_bytes());
                out.extend(part);
                (rest, first) = (left, false);
                if rest.is_empty() {
                    break;
                }
            }
        }
        out
    }

    fn text(out: &mut Vec<u8>, text: &str) {
        timberline::codec::put_uvarint(out, text.len() as u64);
        out.extend(text.as_bytes());
    }

    fn series(tenant: &str, reference: u64, labels: &[(&str, &str)]) -> Vec<u8> {
        let mut out = vec![1];
        text(&mut out, tenant);
        out.push(1);
        out.extend(reference.to_be_bytes());
        out.push(labels.len() as u8);
        labels.iter().for_each(|(n, v)| [n, v].iter().for_each(|t| text(&mut out, t)));
        out
    }

    fn entries(tenant: &str, reference: u64, lines: &[(i64, &str, &[(&str, &str)])]) -> Vec<u8> {
        let mut out = vec![5];
        text(&mut out, tenant);
        out.extend(lines[0].0.to_be_bytes());
        out.extend(reference.to_be_bytes());
        out.extend(99_i64.to_be_bytes());
        timberline::codec::put_uvarint(&mut out, lines.len() as u64);
        for (time, line, metadata) in lines {
            timberline::codec::put_varint(&mut out, time - lines[0].0);
            text(&mut out, line);
            out.push(metadata.len() as u8);
            metadata.iter().for_each(|(n, v)| [n, v].iter().for_each(|t| text(&mut out, t)));
        }
        out
    }

    #[test]
    fn what_loki_wrote_is_served() {
        let tmp = tempfile::tempdir().unwrap();
        let (data, wal) = (tmp.path().join("data"), loki(tmp.path()));
        let before = fs::read(wal.join("00000002")).unwrap();
        // Loki's data directory will do as well.
        let report = import(&data, wal.parent().unwrap(), 0);
        let figures = &report["import"];
        assert_eq!((&figures["verdict"], &figures["lines"]), (&"sound".into(), &510.into()), "{report}");
        assert_eq!(
            (&figures["streams"], &figures["tenants"], &figures["duplicate_lines"]),
            (&3.into(), &1.into(), &0.into())
        );
        assert_eq!(exported(&data, &[], 0), expected());
        assert_eq!(run(&data, &["verify", "-o", "logfmt"], 0).matches("verdict=sound").count(), 1);
        assert_eq!(fs::read(wal.join("00000002")).unwrap(), before, "Loki's log is not changed");
        // Nothing is imported on top of something.
        let output = inspect(&data, &["import", "--from-loki", wal.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("is not empty") && stderr(&output).contains("next: "), "{}", stderr(&output));

        let server = TestServer::again(tmp, "auth_enabled: false\n");
        let alpha: Vec<String> = server.lines("{app=\"fix\", env=\"a\"}").into_iter().map(|(_, line)| line).collect();
        assert_eq!(alpha, ["alpha 3", "alpha 0", "alpha 1", "alpha 2", "alpha 3", "alpha 0", "alpha 1", "alpha 2"]);
        assert_eq!(server.lines("{app=\"st\"}").len(), 500);
        // A new line of a stream that was imported, older than its newest by more than the window: that holds again.
        server.push(&support::one_stream(json!({"app": "fix", "env": "b"}), &["new"])).assert_stored();
        assert_eq!(server.lines("{env=\"b\"}").len(), 3);
    }

    #[test]
    fn lines_of_a_checkpoint_are_not_imported_again_from_segments_but_all_others_are() {
        let tmp = tempfile::tempdir().unwrap();
        let wal = loki(tmp.path());
        let base = 1_795_365_103_000_000_000;
        let (level, other) = ([("detected_level", "unknown")], [("trace_id", "abc")]);
        let long = "x".repeat(100_000);
        let records = [
            // Logged before its series, as Loki does when two pushes race: it drops these.
            entries(
                "fake",
                7,
                &[(base, "alpha 0", &level), (base + 1, "alpha 1", &level), (base + 9, "later", &level)],
            ),
            series("fake", 7, &[("app", "fix"), ("env", "a"), ("service_name", "fix")]),
            // Its metadata is in another order there.
            entries(
                "fake",
                7,
                &[(base + 2, "alpha 2", &[("user", "u1"), ("trace_id", "abc"), ("detected_level", "unknown")])],
            ),
            // As in the checkpoint but for one thing.
            entries("fake", 7, &[(base, "alpha 0", &other)]),
            series("other", 7, &[("app", "fix"), ("env", "a"), ("service_name", "fix")]),
            entries("other", 7, &[(base, "alpha 0", &level), (base, &long, &[])]),
            // Nobody defines it.
            entries("fake", 8, &[(base, "whose?", &[])]),
        ];
        fs::write(wal.join("00000002"), segment(&records)).unwrap();
        let data = tmp.path().join("data");
        let report = import(&data, &wal, 1);
        let figures = &report["import"];
        assert_eq!((&figures["lines"], &figures["duplicate_lines"]), (&9.into(), &3.into()), "{report}");
        assert_eq!((&figures["lines_without_stream"], &figures["damaged_places"]), (&1.into(), &1.into()), "{report}");
        assert_eq!(figures["tenants"], 2);
        let lines = |args: &[&str]| run(&data, &[&["export"], args].concat(), 0);
        assert_eq!(lines(&["-g", "^alpha 0$"]).lines().count(), 3);
        assert_eq!(lines(&["-g", "later"]).lines().count(), 1);
        assert!(lines(&["--tenant", "other", "-g", "xxx"]).contains(&long), "a record over several pages");
    }

    #[test]
    fn everything_around_damage_is_imported() {
        let tmp = tempfile::tempdir().unwrap();
        let wal = loki(tmp.path());
        let path = wal.join("00000002");
        let whole = fs::read(&path).unwrap();
        // A flipped byte in a record, a damaged length in another, a segment that is gone, and a record that was cut.
        let places = fragments(&whole);
        let (flipped, length) = (places[10], places[60]);
        let lines_of = |record: &[u8]| record.windows(14).filter(|w| w == b"detected_level").count();
        let page_end = (length.0 / 32768 + 1) * 32768;
        // The rest of the page, and what of its last record lies in the next one.
        let passed_over = |at: usize| (length.0..page_end).contains(&at) || at == page_end && whole[at] > 2;
        let lost_to_length: usize = places.iter().filter(|(at, _)| passed_over(*at)).map(|(_, r)| lines_of(r)).sum();
        let last = places[places.len() - 1];
        let mut damaged = whole.clone();
        damaged[flipped.0 + 20] ^= 1;
        damaged[length.0 + 1] ^= 1;
        damaged.truncate(whole.len() - 3);
        fs::remove_file(&path).unwrap();
        fs::write(wal.join("00000003"), damaged).unwrap();
        let data = tmp.path().join("data");
        let report = import(&data, &wal, 1);
        let lost = lines_of(flipped.1) + lost_to_length + lines_of(last.1);
        assert_eq!(lost, 40, "5 in each record");
        assert_eq!(report["import"]["lines"], 510 - lost as u64, "{report}");
        let damage = report["damage"].as_array().unwrap();
        let at = |offset: usize| {
            damage.iter().any(|d| d["offset"] == offset as u64 && d["file"].as_str().unwrap().ends_with("00000003"))
        };
        assert!(at(flipped.0) && at(length.0) && at(last.0), "{report}");
        assert!(damage[0]["what"].as_str().unwrap().contains("00000002 to 00000002 are missing"), "{report}");
        assert_eq!(report["import"]["damaged_places"], 4);
        let found = exported(&data, &[], 0);
        assert!(found.is_subset(&expected()) && found.len() == 510 - lost, "{}", found.len());
    }

    #[test]
    fn what_is_no_log_of_loki_is_told() {
        let tmp = tempfile::tempdir().unwrap();
        let data = tmp.path().join("data");
        for (from, code) in [(tmp.path().to_path_buf(), 3), (tmp.path().join("not there"), 3)] {
            let output = inspect(&data, &["import", "--from-loki", from.to_str().unwrap()]);
            assert_eq!(output.status.code(), Some(code));
            assert!(stderr(&output).contains("\nnext: "), "{}", stderr(&output));
            assert!(!data.exists(), "nothing is made for nothing");
        }
    }
}

/// A server with lines of two tenants; its data directory is at `dir/data`. Some of the lines are in blocks.
fn two_tenants(dir: TempDir) -> (TempDir, BTreeSet<String>) {
    let yaml = format!("ingester: {{chunk_block_size: 8KB, wal: {{segment_size: 1MB, max_size: 6MB}}}}\n{TWO_TENANTS}");
    let mut server = TestServer::again(dir, &yaml);
    for n in 0..8 {
        for (tenant, app) in [("acme", "web"), ("acme", "db"), ("other", "web")] {
            let lines: Vec<String> = (0..20).map(|i| format!("{app} {n} {i} é\"\\ {}", "x".repeat(60))).collect();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let body = support::one_stream(json!({"app": app, "env": "prod"}), &lines);
            server.push_as(tenant, &body).assert_stored();
        }
    }
    server.server.kill_in_place();
    let TestServer { dir, .. } = server;
    let all = set(&run(&dir.path().join("data"), &["export", "--tail"], 0));
    assert_eq!(all.len(), 480);
    (dir, all)
}

mod export {
    use super::*;

    #[test]
    fn both_formats_hold_each_line_once_and_files_are_never_replaced_by_accident() {
        let (tmp, all) = two_tenants(tempfile::tempdir().unwrap());
        let data = &tmp.path().join("data");
        let tail: &[&str] = &["--tail"];
        let filtered =
            exported(data, &[tail, &["-m", "{app=\"web\"}", "--tenant", "acme", "-g", "^web [0-3] "]].concat(), 0);
        assert_eq!(filtered.len(), 80);
        assert_eq!(exported(data, &["--since", "0s", "--tail"], 0).len(), 0);
        assert_eq!(exported(data, &["--until", "0s", "--tail"], 0), all);
        assert!(exported(data, &["--from", "1", "--end", "1:12288", "--tail"], 0).len() < 480);

        // Loki's format is a push of one tenant: another server takes it as it is.
        let output = inspect(data, &["export", "-f", "loki"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("of 2: acme, other"), "{}", stderr(&output));
        let push = run(data, &["export", "-f", "loki", "--tenant", "other", "--tail"], 0);
        let server = TestServer::with(TWO_TENANTS);
        server.push_as("other", &push).assert_stored();
        assert_eq!(server.lines_as("other", "{app=\"web\"}").len(), 160);

        // Files are compressed by their names.
        let file = |name: &str| tmp.path().join(name).to_str().unwrap().to_string();
        for name in ["plain.jsonl", "a.jsonl.gz", "a.jsonl.zst"] {
            assert_eq!(run(data, &["export", "--tail", "--to", &file(name)], 0), "");
        }
        assert_eq!(set(&fs::read_to_string(file("plain.jsonl")).unwrap()), all);
        let mut text = String::new();
        let gz = fs::File::open(file("a.jsonl.gz")).unwrap();
        flate2::read::MultiGzDecoder::new(gz).read_to_string(&mut text).unwrap();
        assert_eq!(set(&text), all);
        let zst = zstd::decode_all(fs::File::open(file("a.jsonl.zst")).unwrap()).unwrap();
        assert_eq!(set(&String::from_utf8(zst).unwrap()), all);

        let output = inspect(data, &["export", "--to", &file("plain.jsonl"), "-n", "1"]);
        assert_eq!(output.status.code(), Some(2), "there is no -n");
        let output = inspect(data, &["export", "--tenant", "other", "--tail", "--to", &file("plain.jsonl")]);
        assert_eq!(output.status.code(), Some(2));
        assert!(
            stderr(&output).contains("is there already") && stderr(&output).contains("--force"),
            "{}",
            stderr(&output)
        );
        assert_eq!(set(&fs::read_to_string(file("plain.jsonl")).unwrap()), all);
        run(data, &["export", "--tenant", "other", "--tail", "--to", &file("plain.jsonl"), "--force"], 0);
        assert_eq!(fs::read_to_string(file("plain.jsonl")).unwrap().lines().count(), 160);
        let left: Vec<_> = fs::read_dir(tmp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "{left:?}");
    }

    #[test]
    fn lines_that_are_in_both_logs_come_once() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/golden/v1-blocks");
        let wanted = fs::read_to_string(golden.join("lines.txt")).unwrap().lines().count();
        assert_eq!(exported(&golden, &[], 0).len(), wanted);
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        let (tmp, _) = two_tenants(tempfile::tempdir().unwrap());
        let mut child = command(&tmp.path().join("data"), &["export", "--tail"]).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    }
}

mod replay {
    use super::*;

    /// What a server has of a tenant: labels, timestamp, line, metadata.
    fn served(server: &TestServer, tenant: &str) -> BTreeSet<String> {
        let mut out = BTreeSet::new();
        for result in server.query(tenant, "{env=\"prod\"}")["data"]["result"].as_array().unwrap() {
            for value in result["values"].as_array().unwrap() {
                out.insert(json!([result["stream"], value[0], value[1]]).to_string());
            }
        }
        out
    }

    /// The same of an export; metadata is none.
    fn of(all: &BTreeSet<String>) -> BTreeSet<String> {
        let entry = |text: &String| {
            let entry: Value = serde_json::from_str(text).unwrap();
            json!([entry[0], entry[1].to_string(), entry[2]]).to_string()
        };
        all.iter().map(entry).collect()
    }

    #[test]
    fn a_replay_that_was_killed_goes_on_and_the_server_has_everything() {
        let (tmp, _) = two_tenants(tempfile::tempdir().unwrap());
        let data = &tmp.path().join("data");
        let server = TestServer::with(TWO_TENANTS);
        let (url, resume) = (format!("http://{}", server.server.addr), tmp.path().join("resume.json"));
        let resume = resume.to_str().unwrap();
        let args =
            ["replay", "--to", &url, "--all", "--resume", resume, "--tenant-map", "other=moved", "--batch-size", "4KB"];
        // At this rate, it would take most of a minute.
        let mut child = command(data, &[&args[..], &["--rate", "10"]].concat()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !Path::new(resume).exists() {
            assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "no push in a minute");
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let before = served(&server, "acme").len() + served(&server, "moved").len();
        assert!(before > 0 && before < 480, "{before}");

        let done = document(data, &args, 0)["replay"].clone();
        let (lines, skipped) = (done["lines"].as_u64().unwrap(), done["lines_done_before"].as_u64().unwrap());
        assert!(skipped > 0 && lines + skipped == 480, "{done}");
        assert_eq!(served(&server, "acme"), of(&set(&run(data, &["export", "--tail", "--tenant", "acme"], 0))));
        assert_eq!(served(&server, "moved"), of(&set(&run(data, &["export", "--tail", "--tenant", "other"], 0))));
        assert_eq!(served(&server, "other").len(), 0);

        // Again: nothing is left. Other lines: not with this file.
        assert_eq!(document(data, &args, 0)["replay"]["lines"], 0);
        let output = inspect(data, &[&args[..], &["--tenant", "acme"]].concat());
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("is of another replay: it tells of other lines"), "{}", stderr(&output));
        // Without the file, everything is pushed again, and stored once.
        assert_eq!(document(data, &args[..4], 0)["replay"]["lines"], 480);
        assert_eq!(served(&server, "acme").len(), 320);
    }

    /// Answers requests one after the other, and gives their heads.
    fn script(answers: &'static [&'static str]) -> (String, std::thread::JoinHandle<Vec<(Instant, String)>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let mut heads = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut head, mut length) = (String::new(), 0);
                while !head.ends_with("\r\n\r\n") {
                    let from = head.len();
                    reader.read_line(&mut head).unwrap();
                    if let Some(n) = head[from..].to_ascii_lowercase().strip_prefix("content-length:") {
                        length = n.trim().parse().unwrap();
                    }
                }
                reader.read_exact(&mut vec![0; length]).unwrap();
                heads.push((Instant::now(), head));
                stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).unwrap();
            }
            heads
        });
        (url, thread)
    }

    #[test]
    fn busy_servers_are_asked_again_and_refusals_end_it() {
        let (tmp, _) = two_tenants(tempfile::tempdir().unwrap());
        let data = &tmp.path().join("data");
        let one = ["--all", "--tenant", "other"];
        let (url, server) = script(&[
            "429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 4\r\nConnection: close\r\n\r\nslow",
            "503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            "204 No Content\r\nConnection: close\r\n\r\n",
        ]);
        let output = inspect(data, &[&["replay", "--to", &url, "-o", "logfmt"], &one[..]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(stderr(&output).contains("status 429 Too Many Requests: slow; again in 1.0 s"), "{}", stderr(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("lines=160") && text.contains("retries=2"), "{text}");
        let heads = server.join().unwrap();
        assert!(heads[1].0 - heads[0].0 >= Duration::from_millis(990), "Retry-After is honoured");
        let head = heads[2].1.to_ascii_lowercase();
        assert!(
            head.starts_with("post /loki/api/v1/push http/1.1\r\n") && head.contains("x-scope-orgid: other\r\n"),
            "{head}"
        );

        for (answer, part) in [
            (
                "400 Bad Request\r\nContent-Length: 17\r\nConnection: close\r\n\r\ntimestamp too old",
                "timestamp too old",
            ),
            // Loki's answer for a tenant that is blocked: a success by number, and nothing is stored.
            ("260 Blocked\r\nContent-Length: 7\r\nConnection: close\r\n\r\nblocked", "blocked"),
        ] {
            let (url, server) = script(Vec::leak(vec![answer]));
            let output = inspect(data, &[&["replay", "--to", &url], &one[..]].concat());
            assert_eq!(output.status.code(), Some(3));
            assert!(stderr(&output).contains(part) && stderr(&output).contains("\nnext: "), "{}", stderr(&output));
            server.join().unwrap();
        }
        // Nobody listens there.
        let (url, server) = script(&[]);
        server.join().unwrap();
        let output = inspect(data, &[&["replay", "--to", &url, "--give-up-after", "1s"], &one[..]].concat());
        assert_eq!(output.status.code(), Some(3));
        assert!(stderr(&output).contains("given up after 1 s"), "{}", stderr(&output));
        for wrong in ["ftp://x", "http://", "localhost:3100", "http://a@b:1"] {
            assert_eq!(inspect(data, &["replay", "--to", wrong]).status.code(), Some(2), "{wrong}");
        }
    }

    #[test]
    fn servers_with_tls_are_verified() {
        let (tmp, _) = two_tenants(tempfile::tempdir().unwrap());
        let data = &tmp.path().join("data");
        let tls = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tls");
        let target = tempfile::tempdir().unwrap();
        let config = format!(
            "auth_enabled: true\ncommon: {{path_prefix: {}}}\ningester: {{wal: {{segment_size: 1MB}}}}\n\
             server: {{http_tls_config: {{cert_file: {}, key_file: {}}}}}\n",
            target.path().join("data").display(),
            tls.join("server.crt").display(),
            tls.join("server.key").display()
        );
        let server = Server::spawn_with(target.path(), (support::free_port(), support::free_port()), &config, &[]);
        let (url, ca) = (format!("https://{}", server.addr), tls.join("ca.crt"));
        let args = ["replay", "--to", &url, "--all", "--give-up-after", "60s"];
        let output = document(data, &[&args[..], &["--ca-file", ca.to_str().unwrap()]].concat(), 0);
        assert_eq!(output["replay"]["lines"], 480);
        // Another authority does not vouch for it.
        let other = tls.join("client.crt");
        let output =
            inspect(data, &[&args[..4], &["--give-up-after", "0s", "--ca-file", other.to_str().unwrap()]].concat());
        assert_eq!(output.status.code(), Some(3));
        assert!(stderr(&output).contains("certificate"), "{}", stderr(&output));
        server.kill();
    }
}

mod follow {
    use super::*;

    /// The lines of a pipe as they come.
    fn lines(pipe: ChildStdout) -> Receiver<String> {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        receiver
    }

    /// So many rows; each comes within a minute.
    fn rows(lines: &Receiver<String>, count: usize) -> Vec<Value> {
        let row = |_| serde_json::from_str(&lines.recv_timeout(Duration::from_secs(60)).unwrap()).unwrap();
        (0..count).map(row).collect()
    }

    fn interrupt(child: &Child) {
        assert!(Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap().success());
    }

    #[test]
    fn lines_are_shown_as_they_become_durable_through_rotation_recycling_and_a_restart() {
        let yaml = "auth_enabled: false\n\
            ingester: {chunk_block_size: 64KB, wal: {segment_size: 1MB, max_size: 4MB, compression: none}}\n\
            limits_config: {ingestion_rate_mb: 1000, ingestion_burst_size_mb: 1000, per_stream_rate_limit: 1GB, \
            per_stream_rate_limit_burst: 1GB}\n";
        let mut server = TestServer::with_all(yaml);
        let data = server.dir.path().join("data");
        server.push(&support::one_stream(json!({"app": "x"}), &["before"])).assert_stored();
        let mut child = command(&data, &["dump", "-f", "-o", "jsonl", "--kind", "entries"]).spawn().unwrap();
        let lines = lines(child.stdout.take().unwrap());
        assert_eq!(rows(&lines, 1)[0]["line"], "before");
        let mut expected = Vec::new();
        let mut seen = Vec::new();
        for n in 0..24 {
            if n == 12 {
                server.kill_and_restart(yaml);
            }
            let new: Vec<String> = (0..4).map(|i| format!("{n} {i} {}", "y".repeat(100_000))).collect();
            let texts: Vec<&str> = new.iter().map(String::as_str).collect();
            server.push(&support::one_stream(json!({"app": "x", "n": (n % 3).to_string()}), &texts)).assert_stored();
            seen.extend(rows(&lines, 4).iter().map(|row| row["line"].as_str().unwrap().to_string()));
            expected.extend(new);
        }
        assert_eq!(seen, expected);
        let first = |data: &Path| fs::read_dir(data.join("wal")).unwrap().map(|e| e.unwrap().file_name()).min();
        assert!(first(&data).unwrap().to_str().unwrap() > "00000000000000000002.wal", "nothing was retired");
        interrupt(&child);
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    }

    #[test]
    fn it_ends_with_its_pipe_its_rows_or_ctrl_c() {
        let server = TestServer::start();
        let data = server.dir.path().join("data");
        let push = |line: &str| server.push(&support::one_stream(json!({"app": "x"}), &[line])).assert_stored();
        push("one");
        // A document is ended properly.
        let mut child = command(&data, &["dump", "--follow", "-o", "json"]).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).contains("\"one\"") {
            let mut byte = [0];
            out.read_exact(&mut byte).unwrap();
            text.extend(byte);
        }
        interrupt(&child);
        out.read_to_end(&mut text).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
        let document: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(document["records"].as_array().unwrap().iter().filter(|r| r["line"] == "one").count(), 1);

        let mut child = command(&data, &["dump", "--follow", "-g", "two", "-n", "1"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        push("two");
        let deadline = Instant::now() + Duration::from_secs(60);
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it does not end with its last row");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().contains("two"));

        let mut child = command(&data, &["dump", "--follow", "--kind", "entries"]).spawn().unwrap();
        drop(child.stdout.take());
        push("three");
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
        assert_eq!(inspect(&data, &["dump", "--follow", "--log", "blocks"]).status.code(), Some(2));
    }
}

#[test]
fn bench_measures_three_sizes_and_leaves_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let rows = document(tmp.path(), &["bench", "--seconds", "1"], 0)["bench"].clone();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.iter().map(|r| r["write"].as_u64().unwrap()).collect::<Vec<_>>(), [4096, 65536, 1 << 20]);
    for row in rows {
        let figures: BTreeMap<&str, u64> =
            ["p50_us", "p90_us", "p99_us", "max_us"].map(|name| (name, row[name].as_u64().unwrap())).into();
        assert!(row["syncs"].as_u64() > Some(0) && figures["p50_us"] > 0, "{row}");
        assert!(figures["p50_us"] <= figures["p90_us"] && figures["p99_us"] <= figures["max_us"], "{row}");
    }
    assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 0);
    let output = inspect(&tmp.path().join("not there"), &["bench"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("\nnext: "), "{}", stderr(&output));
}

#[test]
fn every_tool_has_an_example_in_its_help() {
    for name in ["dump", "export", "import", "replay", "bench"] {
        let help = run(Path::new("."), &[name, "--help"], 0);
        assert!(help.contains("Example") && help.contains(&format!(" {name} ")), "{help}");
    }
}
