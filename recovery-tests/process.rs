//! The process as its operators see it: signals, locks, refusals, permissions, what it says and what it must not say.

#[path = "support/clock.rs"]
mod clock;
#[path = "support/server.rs"]
mod server;

use clock::WallClock;
use server::{Http, Ledger, Mounted, Server, free_port};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use timberline::codec::crc32;

const TIME: i64 = 1_700_000_000_000_000_000;

/// Four clients that push until the server is gone.
fn load(server: &Server) -> (Vec<JoinHandle<Ledger>>, Arc<AtomicU64>) {
    let acks = Arc::new(AtomicU64::new(0));
    let client = |client: i64| {
        let (mut http, acks) = (server.http(), acks.clone());
        std::thread::spawn(move || {
            let mut ledger = Ledger::default();
            for n in 0.. {
                match ledger.push(&mut http, &format!("s{}", n % 5), TIME + n, &format!("line {client}.{n}")) {
                    Some(204) => acks.fetch_add(1, Ordering::Relaxed),
                    Some(_) => continue,
                    None => break,
                };
            }
            ledger
        })
    };
    ((0..4).map(client).collect(), acks)
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn joined(clients: Vec<JoinHandle<Ledger>>) -> Ledger {
    let mut all = Ledger::default();
    clients.into_iter().for_each(|c| all.merge(c.join().unwrap()));
    all
}

#[test]
fn sigterm_under_load_finishes_and_exits_0() {
    let tmp = tempfile::tempdir().unwrap();
    let server = Server::start(tmp.path(), "", &[]);
    let (clients, acks) = load(&server);
    wait_until("200 acks", || acks.load(Ordering::Relaxed) > 200);
    let told = Instant::now();
    server.signal("TERM");
    assert_eq!(server.wait(Duration::from_secs(20)), Some(0));
    println!("stopped under load within {:?}", told.elapsed());
    assert!(told.elapsed() < Duration::from_secs(10), "{:?}", told.elapsed());
    let ledger = joined(clients);
    ledger.check(&mut Server::start(tmp.path(), "", &[]).http());
}

/// A push whose body does not come: the stop waits for it.
fn slow_request(server: &Server) -> TcpStream {
    let mut conn = TcpStream::connect(&server.addr).unwrap();
    let head = format!(
        "POST /loki/api/v1/push HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n",
        server.addr
    );
    conn.write_all((head + "{\"streams\": [").as_bytes()).unwrap();
    conn
}

#[test]
fn a_second_sigterm_exits_at_once_and_loses_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let server = Server::start(tmp.path(), "", &[]);
    let (clients, acks) = load(&server);
    let _held = slow_request(&server);
    wait_until("200 acks", || acks.load(Ordering::Relaxed) > 200);
    server.signal("TERM");
    std::thread::sleep(Duration::from_millis(500));
    assert!(Path::new(&format!("/proc/{}", server.pid())).exists(), "the stop did not wait for the request in flight");
    let told = Instant::now();
    server.signal("TERM");
    assert_eq!(server.wait(Duration::from_secs(5)), Some(143));
    assert!(told.elapsed() < Duration::from_secs(2), "{:?}", told.elapsed());
    joined(clients).check(&mut Server::start(tmp.path(), "", &[]).http());
}

#[test]
fn a_request_in_flight_is_finished_by_a_stop() {
    let tmp = tempfile::tempdir().unwrap();
    let server = Server::start(tmp.path(), "", &[]);
    let mut held = slow_request(&server);
    std::thread::sleep(Duration::from_millis(100));
    server.signal("TERM");
    // The request ends in time: it is answered although the stop has begun.
    std::thread::sleep(Duration::from_millis(200));
    let line = format!("{{\"stream\": {{\"s\": \"slow\"}}, \"values\": [[\"{TIME}\", \"slow line\"]]}}]}}");
    let padding = " ".repeat(1000 - "{\"streams\": [".len() - line.len());
    held.write_all((line + &padding).as_bytes()).unwrap();
    let mut answer = String::new();
    held.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    held.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 204") || answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(server.wait(Duration::from_secs(10)), Some(0));
    let there = Server::start(tmp.path(), "", &[]).http().all_lines().contains_key("slow line");
    println!("a request in flight at the stop: {}", answer.lines().next().unwrap());
    assert_eq!(there, answer.starts_with("HTTP/1.1 204"));
}

const BULK_PUSHES: i64 = 40;
const BULK_LINES: i64 = 20_000;

/// A log of about 100 MB.
fn bulk(http: &mut Http) {
    for push in 0..BULK_PUSHES {
        let lines: Vec<String> =
            (0..BULK_LINES).map(|n| format!("push {push} line {n} {}", "abcdefghij".repeat(10))).collect();
        assert_eq!(http.push("bulk", TIME + push * BULK_LINES, &lines).unwrap(), 204);
    }
}

/// How far the replay is, and out of how much, as the metrics tell.
fn replayed(http: &mut Http) -> (u64, u64) {
    let text = String::from_utf8(http.get("/metrics").unwrap().1).unwrap();
    let value = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()).unwrap();
    (value("timberline_wal_replay_bytes"), value("timberline_wal_replay_bytes_expected"))
}

/// Entries that the start has found.
fn recovered(http: &mut Http) -> String {
    let text = String::from_utf8(http.get("/metrics").unwrap().1).unwrap();
    text.lines().find_map(|l| l.strip_prefix("loki_ingester_wal_recovered_entries_total ")).unwrap().to_string()
}

#[test]
fn while_it_replays_it_says_so_and_stops_at_once() {
    let tmp = tempfile::tempdir().unwrap();
    let config = "ingester: {wal: {compression: none}}\n";
    let server = Server::start(tmp.path(), config, &[]);
    bulk(&mut server.http());
    server.kill();

    let server = Server::spawn(tmp.path(), config, &[]);
    wait_until("the listener", || matches!(server.http().get("/livez"), Ok((200, _))));
    let mut http = server.http();
    let (status, body) = http.get("/ready").unwrap();
    let progress = String::from_utf8(body).unwrap();
    println!("/ready: {status} {}", progress.trim());
    assert_eq!(status, 503);
    assert!(progress.contains("replaying the write-ahead log") && progress.contains('%'), "{progress}");
    assert_eq!(http.push("bulk", TIME, &["too early".into()]).unwrap(), 503);
    assert!(http.headers.contains("retry-after: "), "{}", http.headers);
    assert_eq!(http.get("/loki/api/v1/labels").unwrap().0, 503, "a read must not show a half of the log");
    assert_eq!(http.get("/livez").unwrap().0, 200);
    let told = Instant::now();
    server.signal("TERM");
    assert_eq!(server.wait(Duration::from_secs(10)), Some(0));
    println!("stopped during replay within {:?}", told.elapsed());

    let server = Server::spawn(tmp.path(), config, &[]);
    let (mut told, mut measured) = (Vec::new(), Vec::new());
    wait_until("the end of the replay", || match server.http().get("/ready") {
        Ok((200, _)) => true,
        Ok((_, body)) => {
            told.push(String::from_utf8_lossy(&body).trim().to_string());
            measured.push(replayed(&mut server.http()));
            false
        }
        Err(_) => false,
    });
    // The metrics go with it: also while the log is read, which is the first half.
    println!("metrics: {} times, from {:?} to {:?}", measured.len(), measured.first(), measured.last());
    assert!(measured.iter().any(|(done, of)| *done > 0 && *done < *of / 2), "{measured:?}");
    assert!(measured.is_sorted_by_key(|(done, _)| *done), "{measured:?}");
    let (done, of) = replayed(&mut server.http());
    assert!(done > 0 && done <= of, "{done} of {of}");
    let percent = |t: &String| t.split(", ").nth(1).and_then(|t| t.split(' ').next()?.parse::<u64>().ok());
    let percents: Vec<u64> = told.iter().filter_map(percent).collect();
    assert!(percents.iter().any(|p| (1..100).contains(p)) && percents.is_sorted(), "no progress is told: {told:?}");
    let all = (BULK_PUSHES * BULK_LINES).to_string();
    assert_eq!(recovered(&mut server.http()), all);
    server.kill();

    // On one processor, too, nobody waits for what only he could do.
    let server = Server::start(tmp.path(), config, &[("RAYON_NUM_THREADS", "1")]);
    assert_eq!(recovered(&mut server.http()), all);
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn a_second_process_is_refused_and_names_the_first() {
    let tmp = tempfile::tempdir().unwrap();
    let first = Server::start(tmp.path(), "", &[]);
    let second = Server::spawn(tmp.path(), "", &[]);
    assert_eq!(second.wait(Duration::from_secs(10)), Some(1));
    let named = format!("is in use by another process (pid {})", first.pid());
    assert!(first.log_tail().contains(&named), "{}", first.log_tail());
    assert_eq!(first.http().push("s", TIME, &["still there".into()]).unwrap(), 204);
    assert_eq!(first.terminate(), Some(0));
}

/// Starts what must refuse, and returns its log.
fn refused(dir: &Path, config: &str) -> String {
    let log = dir.join("server.log");
    let before = std::fs::read_to_string(&log).unwrap_or_default().len();
    let server = Server::spawn(dir, config, &[]);
    assert_eq!(server.wait(Duration::from_secs(10)), Some(1));
    std::fs::read_to_string(&log).unwrap()[before..].to_string()
}

#[test]
fn an_empty_volume_is_refused_where_data_is_required() {
    let tmp = tempfile::tempdir().unwrap();
    let config = "ingester: {require_data: true}\n";
    let log = refused(tmp.path(), config);
    assert!(log.contains("require_data"), "{log}");
    assert!(!tmp.path().join("data").exists(), "a refused start made the directory");
    assert_eq!(Server::start(tmp.path(), "", &[]).terminate(), Some(0));
    assert_eq!(Server::start(tmp.path(), config, &[]).terminate(), Some(0));
}

/// All paths below a directory, the directory first.
fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut out = vec![dir.to_path_buf()];
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    for path in names {
        if path.is_dir() { out.extend(walk(&path)) } else { out.push(path) }
    }
    out
}

/// Names and contents, but for LOCK: it names the process that was there last.
fn content(dir: &Path) -> Vec<(PathBuf, u32)> {
    let files = walk(dir).into_iter().filter(|p| p.file_name().is_some_and(|n| n != "LOCK"));
    files.map(|p| (p.clone(), if p.is_dir() { 0 } else { crc32(&[&std::fs::read(p).unwrap()]) })).collect()
}

#[test]
fn newer_formats_are_refused_untouched() {
    let tmp = tempfile::tempdir().unwrap();
    let data = tmp.path().join("data");
    let server = Server::start(tmp.path(), "", &[]);
    assert_eq!(server.http().push("s", TIME, &["kept".into()]).unwrap(), 204);
    // Killed: a log with an end that a start would write again.
    server.kill();

    let identity = std::fs::read_to_string(data.join("identity")).unwrap();
    let newer = identity.lines().next().unwrap().replace("\"format_version\":1", "\"format_version\":2");
    assert!(newer.contains(":2"));
    std::fs::write(data.join("identity"), format!("{newer}\n{:08x}\n", crc32(&[newer.as_bytes()]))).unwrap();
    let before = content(&data);
    let log = refused(tmp.path(), "");
    assert!(log.contains("has format version 2"), "{log}");
    assert_eq!(content(&data), before);
    std::fs::write(data.join("identity"), identity).unwrap();

    let segment = walk(&data).into_iter().find(|p| p.extension().is_some_and(|e| e == "wal")).unwrap();
    let bytes = std::fs::read(&segment).unwrap();
    std::fs::write(&segment, with_version(&bytes, 2)).unwrap();
    let before = content(&data);
    let log = refused(tmp.path(), "");
    assert!(log.contains("format version 2"), "{log}");
    assert_eq!(content(&data), before);
    std::fs::write(&segment, &bytes).unwrap();
    let server = Server::start(tmp.path(), "", &[]);
    assert_eq!(server.http().all_lines().get("kept"), Some(&1));
}

#[test]
fn a_damaged_identity_is_refused_untouched() {
    let tmp = tempfile::tempdir().unwrap();
    let data = tmp.path().join("data");
    let server = Server::start(tmp.path(), "", &[]);
    assert_eq!(server.http().push("s", TIME, &["kept".into()]).unwrap(), 204);
    server.kill();
    let identity = std::fs::read(data.join("identity")).unwrap();
    let mut flipped = identity.clone();
    flipped[20] ^= 1;
    for damaged in [flipped, identity[..identity.len() / 2].to_vec(), Vec::new()] {
        std::fs::write(data.join("identity"), damaged).unwrap();
        let before = content(&data);
        let log = refused(tmp.path(), "");
        assert!(log.contains("identity is damaged"), "{log}");
        assert_eq!(content(&data), before);
    }
    std::fs::write(data.join("identity"), identity).unwrap();
    let server = Server::start(tmp.path(), "", &[]);
    assert_eq!(server.http().all_lines().get("kept"), Some(&1));
}

/// Damage is a policy: `refuse` changes nothing and says what is lost; `salvage` keeps everything else and says it too.
#[test]
fn damage_is_refused_untouched_or_everything_else_is_served() {
    let tmp = tempfile::tempdir().unwrap();
    let data = tmp.path().join("data");
    let config =
        |policy: &str| format!("ingester: {{wal: {{compression: none, segment_size: 1MB, on_damage: {policy}}}}}\n");
    let server = Server::start(tmp.path(), &config("salvage"), &[]);
    for (n, line) in ["first", "line in the middle", "last"].into_iter().enumerate() {
        assert_eq!(server.http().push("s", TIME + n as i64, &[line.into()]).unwrap(), 204);
    }
    assert_eq!(server.terminate(), Some(0));
    let holds = |bytes: &[u8]| bytes.windows(13).position(|w| w == b"in the middle");
    let mut segments = walk(&data).into_iter().filter(|p| p.extension().is_some_and(|e| e == "wal"));
    let (path, at) = segments.find_map(|p| Some((p.clone(), holds(&std::fs::read(&p).unwrap())?))).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let before = content(&data);
    let log = refused(tmp.path(), &config("refuse"));
    assert!(log.contains("on_damage is refuse") && log.contains("acknowledged lines lost: 1;"), "{log}");
    assert_eq!(content(&data), before);
    let server = Server::start(tmp.path(), &config("salvage"), &[]);
    let shown: Vec<String> = server.http().all_lines().into_keys().collect();
    assert_eq!(shown, ["first", "last"]);
    let ready = String::from_utf8(server.http().get("/ready").unwrap().1).unwrap();
    assert!(ready.contains("damage"), "{ready}");
    assert!(walk(&data.join("quarantine")).len() > 1, "the damaged segment is not kept");
    assert_eq!(server.terminate(), Some(0));
}

/// A byte changes in a sealed block of a running server: the scrubber finds it, and everybody is told, once.
#[test]
fn a_flip_in_a_sealed_block_of_a_running_server_is_found_and_told() {
    use std::os::unix::fs::FileExt;
    let tmp = tempfile::tempdir().unwrap();
    let data = tmp.path().join("data");
    let config = "ingester: {chunk_block_size: 16KB, chunk_encoding: none, wal: {segment_size: 1MB}, scrub: {rate: 1GB, interval: 1s}}\n";
    let server = Server::start(tmp.path(), config, &[]);
    let lines: Vec<String> = (0..200).map(|n| format!("line {n} {}", "marked ".repeat(40))).collect();
    for part in lines.chunks(20) {
        assert_eq!(server.http().push("s", TIME, part).unwrap(), 204);
    }
    let marked = || {
        let segment = walk(&data.join("blocks")).into_iter().find(|p| p.extension().is_some_and(|e| e == "blk"))?;
        let at = std::fs::read(&segment).ok()?.windows(14).position(|w| w == b"marked marked ")?;
        Some((segment, at as u64))
    };
    wait_until("a sealed block", || marked().is_some());
    let (segment, at) = marked().unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&segment).unwrap();
    file.write_all_at(b"M", at).unwrap();
    file.sync_data().unwrap();
    let get = |target: &str| String::from_utf8(server.http().get(target).unwrap().1).unwrap();
    wait_until("the flip is told", || get("/ready").contains("the log was damaged: 1 report"));
    wait_until("the flip is counted", || {
        get("/metrics").contains("loki_ingester_wal_corruptions_total{type=\"block\"} 1")
    });
    let page: serde_json::Value = serde_json::from_str(&get("/api/v1/status")).unwrap();
    assert_eq!(page["damage"]["unacknowledged"], 1, "{page:#}");
    assert_eq!(page["scrub"]["damaged_places"], 1, "{page:#}");
    let told = || std::fs::read_to_string(tmp.path().join("server.log")).unwrap().matches("a block is damaged").count();
    let passes = page["scrub"]["passes"].as_u64().unwrap();
    wait_until("another pass", || {
        let page: serde_json::Value = serde_json::from_str(&get("/api/v1/status")).unwrap();
        page["scrub"]["passes"].as_u64().unwrap() > passes + 1
    });
    assert_eq!(told(), 1);
    assert_eq!(server.terminate(), Some(0));
    // The write-ahead log still has its lines.
    let server = Server::start(tmp.path(), config, &[]);
    assert_eq!(server.http().all_lines().len(), lines.len());
    assert_eq!(server.terminate(), Some(0));
}

/// While there is no descriptor left the scrubber waits: that it could not open a segment says nothing about the disk.
#[test]
fn a_scrubber_without_descriptors_waits_for_them() {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    let tmp = tempfile::tempdir().unwrap();
    let config = "ingester: {chunk_block_size: 16KB, chunk_encoding: none, wal: {segment_size: 1MB}, scrub: {rate: 1GB, interval: 1s}}\n";
    let server = Server::start(tmp.path(), config, &[]);
    let mut http = server.http();
    let lines: Vec<String> = (0..200).map(|n| format!("line {n} {}", "marked ".repeat(40))).collect();
    for part in lines.chunks(20) {
        assert_eq!(http.push("s", TIME, part).unwrap(), 204);
    }
    let mut scrub = || {
        let body = String::from_utf8(http.get("/api/v1/status").unwrap().1).unwrap();
        serde_json::from_str::<serde_json::Value>(&body).unwrap()["scrub"].clone()
    };
    let reads = |scrub: &serde_json::Value| scrub["pass_bytes"].as_u64().unwrap() > 0;
    wait_until("it reads a segment", || reads(&scrub()));
    let pid = Pid::from_raw(server.pid() as i32).unwrap();
    let usual = getrlimit(Resource::Nofile);
    let limit = |current: Option<u64>| prlimit(Some(pid), Resource::Nofile, Rlimit { current, ..usual }).unwrap();
    limit(Some(3));
    let log = || std::fs::read_to_string(tmp.path().join("server.log")).unwrap();
    wait_until("it waits", || log().contains("the scrubber waits"));
    std::thread::sleep(Duration::from_secs(2));
    let before = scrub()["passes"].as_u64().unwrap();
    limit(usual.current);
    wait_until("it goes on", || scrub()["passes"].as_u64().unwrap() > before + 1);
    assert_eq!(
        (scrub()["damaged_places"].as_u64(), log().matches("the scrubber waits").count()),
        (Some(0), 1),
        "{}",
        log()
    );
    assert!(!log().contains("cannot be read"), "{}", log());
    assert_eq!(server.terminate(), Some(0));
}

/// Reports in quarantine that nobody has acknowledged.
fn unread(data: &Path) -> Vec<PathBuf> {
    let name = |p: &PathBuf| p.to_string_lossy().into_owned();
    let is_open = |p: &PathBuf| name(p).ends_with(".json") && !name(p).ends_with(".acknowledged.json");
    walk(&data.join("quarantine")).into_iter().filter(is_open).collect()
}

/// A log on another file system than the quarantine: the damaged segment is copied, and told once. What was acknowledged is not
/// told again beside what is new.
#[test]
fn a_damaged_segment_of_another_file_system_is_copied_to_quarantine() {
    let tmp = tempfile::tempdir().unwrap();
    let elsewhere = match tempfile::tempdir_in("/dev/shm") {
        Ok(dir) if !timberline::fs::are_on_one_file_system(dir.path(), tmp.path()).unwrap() => dir,
        _ => return server::skip("/dev/shm is no file system of its own"),
    };
    let (data, wal) = (tmp.path().join("data"), elsewhere.path().join("w"));
    let config = format!("ingester: {{wal: {{dir: {}, compression: none, segment_size: 1MB}}}}\n", wal.display());
    let server = Server::start(tmp.path(), &config, &[]);
    for (n, line) in ["first", "lost in the middle", "lost later on", "last"].into_iter().enumerate() {
        assert_eq!(server.http().push("s", TIME + n as i64, &[line.into()]).unwrap(), 204);
    }
    server.kill();
    let log = || std::fs::read_to_string(tmp.path().join("server.log")).unwrap();
    assert!(log().contains("is on another file system than"), "{}", log());
    for (damage, text) in [(1, b"in the middle"), (2, b"lost later on")] {
        let mut segments = walk(&wal).into_iter().filter(|p| p.extension().is_some_and(|e| e == "wal"));
        let holds = |p: &PathBuf| std::fs::read(p).unwrap().windows(13).position(|w| w == text);
        let (path, at) = segments.find_map(|p| Some((p.clone(), holds(&p)?))).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        for start in [1, 2] {
            let server = Server::start(tmp.path(), &config, &[]);
            let ready = String::from_utf8(server.http().get("/ready").unwrap().1).unwrap();
            let [report] = &unread(&data)[..] else { panic!("not one report: {ready}") };
            let lines = serde_json::from_slice::<serde_json::Value>(&std::fs::read(report).unwrap()).unwrap();
            // The second one may have been healed from memory by the start that found the first.
            let lost = match lines["lines_missing"].as_u64().unwrap() {
                1 => "is 1 acknowledged line;",
                0 if damage == 2 => "is 0 acknowledged lines;",
                n => panic!("{n} lines are missing: {lines}"),
            };
            assert!(ready.contains("damaged: 1 report in ") && ready.contains(lost), "{ready}");
            server.kill();
            assert_eq!(log().matches("the log is damaged").count(), damage, "start {start}: {}", log());
            assert!(!log().contains("not in quarantine"), "{}", log());
        }
        let kept = walk(&data.join("quarantine"));
        let copies: Vec<&PathBuf> = kept.iter().filter(|p| p.extension().is_some_and(|e| e == "wal")).collect();
        let [copy] = copies[..] else { panic!("{kept:?}") };
        if damage == 1 {
            assert!(std::fs::read(copy).unwrap() == bytes, "the copy is not the damaged segment");
        }
        let report = &unread(&data)[0];
        std::fs::rename(report, report.with_extension("acknowledged.json")).unwrap();
    }
    assert!(log().contains(&format!("--wal-dir {}", wal.display())), "{}", log());
    assert!(log().contains(" where=") && !log().contains("where_"), "{}", log());
}

/// A segment whose two header copies say this version, with their checksums.
fn with_version(segment: &[u8], version: u16) -> Vec<u8> {
    let mut out = segment.to_vec();
    for at in [0, 4096] {
        let header = &mut out[at..at + 64];
        assert_eq!(&header[..8], &segment[..8], "the second header copy lies elsewhere");
        header[8..10].copy_from_slice(&version.to_le_bytes());
        let crc = crc32(&[&header[..60], &(at as u64).to_le_bytes()]);
        header[60..].copy_from_slice(&crc.to_le_bytes());
    }
    out
}

#[test]
fn files_are_0640_and_directories_0750_whatever_the_umask() {
    let tmp = tempfile::tempdir().unwrap();
    let mut server = Server::spawn_under(&["sh", "-c", "umask 0; exec \"$@\"", "sh"], tmp.path(), "", &[]);
    server.wait_ready();
    assert_eq!(server.http().push("s", TIME, &["line".into()]).unwrap(), 204);
    let paths = walk(&tmp.path().join("data"));
    assert!(paths.len() >= 5, "{paths:?}");
    for path in paths {
        // A segment in preparation may get its name between the two calls.
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        let expected = if metadata.is_dir() { 0o750 } else { 0o640 };
        assert_eq!(metadata.permissions().mode() & 0o777, expected, "{}", path.display());
    }
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn a_read_only_data_directory_is_refused_with_its_name() {
    let tmp = tempfile::tempdir().unwrap();
    let data = tmp.path().join("data");
    let Some(_mounted) = Mounted::new(&["-t", "tmpfs", "-o", "ro,size=8m", "tmpfs"], &data) else { return };
    let log = refused(tmp.path(), "");
    println!("{}", log.lines().last().unwrap_or_default());
    assert!(log.contains("Read-only file system") && log.contains(data.to_str().unwrap()), "{log}");
}

#[test]
fn weaker_sync_modes_are_announced_and_survive_kill_9() {
    for (mode, told) in
        [("interval, sync_interval: 50ms", "ingester.wal.sync is interval"), ("os", "ingester.wal.sync is os")]
    {
        let tmp = tempfile::tempdir().unwrap();
        let config = format!("ingester: {{wal: {{sync: {mode}}}}}\n");
        let server = Server::start(tmp.path(), &config, &[]);
        let (_, ready) = server.http().get("/ready").unwrap();
        assert!(String::from_utf8_lossy(&ready).contains(told), "{ready:?}");
        assert!(server.log_tail().contains(told), "{}", server.log_tail());
        let (mut ledger, mut http) = (Ledger::default(), server.http());
        for n in 0..100 {
            assert_eq!(ledger.push(&mut http, "s", TIME + n, &format!("line {n}")), Some(204));
        }
        server.kill();
        ledger.check(&mut Server::start(tmp.path(), &config, &[]).http());
    }
}

#[test]
fn log_lines_are_not_in_our_own_log_metrics_or_config() {
    const SECRET: &str = "hunter2-is-my-password";
    let tmp = tempfile::tempdir().unwrap();
    let server = Server::start(tmp.path(), "", &[]);
    let mut http = server.http();
    assert_eq!(http.send("POST", "/log_level?log_level=debug", &[], b"").unwrap().0, 200);
    assert_eq!(http.push("s", TIME, &[SECRET.into()]).unwrap(), 204);
    // Refused in different ways: not JSON, too long a line, a bad timestamp, bad labels.
    let long = format!("{SECRET} {}", "x".repeat(1 << 20));
    assert_ne!(http.push("s", TIME, &[long]).unwrap(), 204);
    for body in [
        format!("{{\"streams\": [{SECRET}"),
        format!("{{\"streams\": [{{\"stream\": {{\"s\": \"1\"}}, \"values\": [[\"x\", \"{SECRET}\"]]}}]}}"),
        format!("{{\"streams\": [{{\"stream\": 7, \"values\": [[\"1\", \"{SECRET}\"]]}}]}}"),
    ] {
        let status = http.post_json("/loki/api/v1/push", &body).unwrap().0;
        assert!((400..500).contains(&status), "{body} got {status}");
    }
    let protobuf = [("Content-Type", "application/x-protobuf")];
    assert_eq!(http.send("POST", "/loki/api/v1/push", &protobuf, SECRET.as_bytes()).unwrap().0, 400);
    http.query_all("{s=\"s\"}");
    for page in ["/metrics", "/config", "/ready", "/services", "/ring"] {
        let (_, body) = http.get(page).unwrap();
        assert!(!String::from_utf8_lossy(&body).contains(SECRET), "{page} shows a log line");
    }
    assert_eq!(server.terminate(), Some(0));
    let log = std::fs::read_to_string(tmp.path().join("server.log")).unwrap();
    assert!(log.contains("stopped"), "{log}");
    assert!(!log.contains(SECRET), "our own log shows a log line");
}

/// What is too old or too new by a clock that is wrong is not refused for good: clients would drop it.
#[test]
fn no_line_is_dropped_for_a_clock_that_was_set() {
    const NOON: i64 = 1_774_785_600_000_000_000;
    let tmp = tempfile::tempdir().unwrap();
    let Some(clock) = WallClock::new(tmp.path()) else { return };
    let push_to = |server: &Server, stream: &str, at: i64| {
        let values = [[at.to_string(), format!("line of {at}")]];
        let body = serde_json::json!({"streams": [{"stream": {"s": stream}, "values": values}]});
        let (status, body) = server.http().post_json("/loki/api/v1/push", &body.to_string()).unwrap();
        (status, String::from_utf8(body).unwrap())
    };
    let push = |server: &Server, at: i64| push_to(server, "s", at);
    let ready = |server: &Server| String::from_utf8(server.http().get("/ready").unwrap().1).unwrap();
    let log = || std::fs::read_to_string(tmp.path().join("server.log")).unwrap();
    let day = 86_400_000_000_000;

    clock.set("2026-03-29 12:00:00");
    let mut server = Server::start(tmp.path(), "", &clock.env());
    assert_eq!(push(&server, NOON), (204, String::new()));
    let (status, told) = push(&server, NOON + day);
    assert!(status == 400 && told.contains("too new"), "{status} {told}");
    assert_eq!(ready(&server).trim(), "ready");
    // The watermark, too, is to be of that time.
    std::thread::sleep(Duration::from_secs(1));

    clock.set("2020-01-01 00:00:00");
    let (status, told) = push(&server, NOON + 1);
    assert!(status == 503 && told.contains("set back by") && told.contains("too new"), "{status} {told}");
    assert!(ready(&server).contains("set back by"), "{}", ready(&server));

    server.kill_in_place();
    server = Server::start(tmp.path(), "", &clock.env());
    let (status, told) = push(&server, NOON + 1);
    assert!(status == 503 && told.contains("behind the newest lines"), "{status} {told}");
    assert!(ready(&server).contains("behind the newest lines"), "{}", ready(&server));

    wait_until("the doubt in our own log", || log().contains("answered 503, not 400"));
    // What is not refused for its time is taken as always.
    assert_eq!(push_to(&server, "old", NOON - 3000 * day), (204, String::new()));

    clock.set("2026-03-29 12:30:00");
    assert_eq!(push(&server, NOON + 1), (204, String::new()));
    assert_eq!(push(&server, NOON + day).0, 400);
    assert_eq!(ready(&server).trim(), "ready");
    wait_until("the end of the doubt in our own log", || log().contains("is believed again"));
    assert_eq!(server.terminate(), Some(0));
}

/// What was acknowledged stays, in the order of its timestamps, whatever the wall clock says meanwhile: order comes from
/// timestamps and seqs, waits from the monotonic clock.
#[test]
fn a_wall_clock_that_jumps_loses_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let Some(clock) = WallClock::new(tmp.path()) else { return };
    // Lines of 1970, which are too new for none of these clocks.
    let (mut ledger, mut at) = (Ledger::default(), 0);
    let times = [
        "2026-03-29 01:59:59",
        "2026-03-29 00:30:00",
        "2261-12-31 00:00:00",
        "1970-01-02 00:00:00",
        "2038-01-19 03:14:07",
    ];
    clock.set(times[0]);
    let mut server = Server::start(tmp.path(), "", &clock.env());
    // One start whose clock is behind everything, one whose clock is ahead of it.
    for start in [times[3], times[2]] {
        for time in times {
            clock.set(time);
            let mut http = server.http();
            for _ in 0..5 {
                at += 1_000_000;
                let status = ledger.push(&mut http, "s", at, &format!("line {at} at {time}"));
                assert_eq!(status, Some(204), "{time}: {}", server.log_tail());
            }
            ledger.check(&mut http);
        }
        server.kill();
        clock.set(start);
        server = Server::start(tmp.path(), "", &clock.env());
    }
    ledger.check(&mut server.http());
    let shown: Vec<i64> = server.http().query_all("{s=\"s\"}").into_iter().map(|(_, timestamp, _)| timestamp).collect();
    assert_eq!(shown.len(), 50);
    assert!(shown.is_sorted(), "{shown:?}");
    let log = std::fs::read_to_string(tmp.path().join("server.log")).unwrap();
    assert!(log.contains("ts=2261-") && log.contains("ts=1970-"), "the clock did not jump: {}", server.log_tail());
    assert!(!log.contains("panic") && !log.contains("level=error"), "{}", server.log_tail());
    assert_eq!(server.terminate(), Some(0));
}

/// Everybody comes again at once, as soon as the port is open, and asks again without a pause when refused.
#[test]
fn a_herd_after_a_restart_is_served_or_refused_in_time() {
    let tmp = tempfile::tempdir().unwrap();
    let mut server = Server::start(tmp.path(), "ingester: {memory_budget: 1GB}\n", &[]);
    let (clients, acks) = load(&server);
    wait_until("500 acks", || acks.load(Ordering::Relaxed) > 500);
    server.kill_in_place();
    let mut ledger = joined(clients);
    let mut server = Server::spawn(tmp.path(), "ingester: {memory_budget: 1GB}\n", &[]);
    let (addr, begin) = (server.addr.clone(), Instant::now());
    let herd = |client: i64| {
        let addr = addr.clone();
        move || {
            let (mut ledger, mut tries) = (Ledger::default(), 0u64);
            let mut http = Http::new(&addr);
            for n in 0..3 {
                let (at, line) = (TIME + client * 10 + n, format!("herd {client}.{n}"));
                // The same push until it is taken: shown once, however often it came.
                loop {
                    tries += 1;
                    match ledger.push(&mut http, &format!("h{client}"), at, &line) {
                        Some(204) => break,
                        Some(_) => {}
                        None => {
                            std::thread::sleep(Duration::from_millis(2));
                            http = Http::new(&addr);
                        }
                    }
                    assert!(begin.elapsed() < Duration::from_secs(60), "{line} is not taken");
                }
            }
            (ledger, tries)
        }
    };
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..300).map(|client| scope.spawn(herd(client))).collect();
        all.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let tries: u64 = outcomes.iter().map(|(_, tries)| tries).sum();
    println!("900 pushes of 300 clients were taken after {tries} tries, within {:?}", begin.elapsed());
    assert!(tries > 900, "nobody had to try again");
    outcomes.into_iter().for_each(|(one, _)| ledger.merge(one));
    server.wait_ready();
    ledger.check(&mut server.http());
    assert_eq!(server.terminate(), Some(0));
}

/// H9: a tenant that has its share of the disk is refused, before and after kill -9, and the others are not.
#[test]
fn a_tenant_does_not_fill_the_disk_for_all() {
    const SHARE: u64 = 1 << 20;
    let tmp = tempfile::tempdir().unwrap();
    let config = format!(
        "auth_enabled: true\n\
         common: {{path_prefix: {}}}\n\
         ingester: {{chunk_block_size: 16KB}}\n\
         limits_config: {{max_blocks_size_per_user: {SHARE}, ingestion_rate_mb: 1000, ingestion_burst_size_mb: 1000, \
         per_stream_rate_limit: 1GB, per_stream_rate_limit_burst: 1GB, reject_old_samples: false}}\n",
        tmp.path().join("data").display()
    );
    let start = || {
        let mut server = Server::spawn_with(tmp.path(), (free_port(), free_port()), &config, &[]);
        server.wait_ready();
        server
    };
    let push = |server: &Server, tenant: &str, n: u64| {
        // Lines that hardly compress.
        let noise = |i: u64| format!("{:016x}", (n * 1000 + i).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29));
        let values: Vec<_> = (0..20u64)
            .map(|k| {
                let line: String = (0..60).map(|i| noise(k * 60 + i)).collect();
                serde_json::json!([(1_700_000_000_000_000_000 + n * 100 + k).to_string(), line])
            })
            .collect();
        let body = serde_json::json!({"streams": [{"stream": {"s": "a"}, "values": values}]}).to_string();
        let headers = [("Content-Type", "application/json"), ("X-Scope-OrgID", tenant)];
        let (status, body) = server.http().send("POST", "/loki/api/v1/push", &headers, body.as_bytes()).unwrap();
        (status, String::from_utf8(body).unwrap())
    };
    let blocks = || {
        let files = std::fs::read_dir(tmp.path().join("data/blocks")).unwrap().flatten();
        let used =
            |f: std::fs::DirEntry| std::fs::read(f.path()).unwrap().iter().rposition(|b| *b != 0).unwrap_or(0) as u64;
        files.map(used).sum::<u64>()
    };
    let heads = |server: &Server| -> u64 {
        let page = server.http().get("/api/v1/status").unwrap().1;
        serde_json::from_slice::<serde_json::Value>(&page).unwrap()["memory"]["heads"].as_u64().unwrap()
    };
    let server = start();
    let mut stored = 0;
    let told = loop {
        assert!(stored < 1000, "a tenant's share of the disk has no end: {} bytes", blocks());
        match push(&server, "greedy", stored) {
            (204, _) => {
                stored += 1;
                // What heads hold comes on top of the share, and on a slow disk they are many.
                wait_until("full heads are blocks", || heads(&server) < SHARE / 4);
            }
            (status, told) => {
                assert_eq!(status, 429, "{told}");
                break told;
            }
        }
    };
    assert!(told.contains("max_blocks_size_per_user") && told.contains("user: 'greedy'"), "{told}");
    let used = blocks();
    assert!((SHARE..2 * SHARE).contains(&used), "{used} bytes of blocks, {SHARE} are allowed");
    assert_eq!(push(&server, "modest", 0).0, 204);
    server.kill();

    let server = start();
    let (status, told) = push(&server, "greedy", stored);
    assert!(status == 429 && told.contains("max_blocks_size_per_user"), "{status} {told}");
    assert_eq!(push(&server, "modest", 1).0, 204);
    let query = "/loki/api/v1/query_range?query=%7Bs%3D%22a%22%7D&start=0&end=4000000000000000000&limit=5000";
    let (status, body) = server.http().send("GET", query, &[("X-Scope-OrgID", "greedy")], b"").unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let found: usize =
        answer["data"]["result"].as_array().unwrap().iter().map(|r| r["values"].as_array().unwrap().len()).sum();
    assert_eq!((status, found as u64), (200, (stored * 20).min(5000)));
}
