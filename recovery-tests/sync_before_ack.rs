//! The order of system calls in the real binary, and its answers when one of them fails: everything under `strace`,
//! which sees what the kernel sees, and can make a call fail without asking the program.

#[path = "support/server.rs"]
mod server;

use server::{Ledger, Server, has, skip};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Small segments, and bodies as they are: the trace shows the lines.
const CONFIG: &str = "ingester: {wal: {segment_size: 1MB, compression: none}}\n";
const WRITERS: u64 = 6;
const TIME: i64 = 1_700_000_000_000_000_000;

/// One system call: where in the trace it was entered, and where it returned.
struct Call {
    name: String,
    args: String,
    ret: i64,
    entry: usize,
    exit: usize,
}

impl Call {
    fn is(&self, names: &[&str]) -> bool {
        names.contains(&self.name.as_str())
    }

    /// What the first argument's descriptor stands for: a path, or `socket:[number]`.
    fn target(&self) -> &str {
        let rest = self.args.split_once('<').map_or("", |(_, rest)| rest);
        rest.split_once('>').map_or("", |(target, _)| target)
    }

    /// The marks of pushes in its data.
    fn marks(&self) -> Vec<u64> {
        self.args.split("mark-").skip(1).filter_map(|rest| rest.split_once('-')?.0.parse().ok()).collect()
    }

    /// All bytes that were to be written were.
    fn wrote_all(&self) -> bool {
        let mut numbers = self.args.rsplit(", ");
        let _offset = numbers.next();
        numbers.next().and_then(|n| n.parse().ok()) == Some(self.ret)
    }
}

/// Reads the output of `strace -f -ttt -y -a 1`. strace writes a line's beginning when it sees the call entered and its
/// end when it sees it return, and lets the thread go on only then: the order of lines is an order of causes.
fn parse(trace: &str) -> Vec<Call> {
    let mut open: HashMap<&str, (String, usize)> = HashMap::new();
    let mut calls = Vec::new();
    for (at, line) in trace.lines().enumerate() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let Some((_time, rest)) = rest.trim_start().split_once(' ') else { continue };
        if let Some(beginning) = rest.strip_suffix(" <unfinished ...>") {
            open.insert(pid, (beginning.to_string(), at));
            continue;
        }
        let (text, entry) = match rest.strip_prefix("<... ").and_then(|r| r.split_once(" resumed>")) {
            Some((_, end)) => match open.remove(pid) {
                Some((beginning, entry)) => (beginning + end, entry),
                None => continue,
            },
            None => (rest.to_string(), at),
        };
        let Some((call, ret)) = text.rsplit_once(" = ") else { continue };
        let Some((name, args)) = call.split_once('(') else { continue };
        let digits: String = ret.chars().take_while(|c| *c == '-' || c.is_ascii_digit()).collect();
        let Ok(ret) = digits.parse() else { continue };
        let args = args.strip_suffix(')').unwrap_or(args).to_string();
        calls.push(Call { name: name.to_string(), args, ret, entry, exit: at });
    }
    calls
}

/// What a trace shows about the acks in it.
#[derive(Default, Debug)]
struct Verdict {
    acks: usize,
    segments: usize,
    wrong: Vec<String>,
}

/// Holds each 204 against what must have happened before.
fn judge(calls: &[Call]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut first_ack: BTreeMap<&str, usize> = BTreeMap::new();
    let is_answer = |c: &&Call| c.is(&["write", "writev", "sendto", "sendmsg"]) && c.args.contains("HTTP/1.1 204");
    let mut answers: Vec<&Call> = calls.iter().filter(is_answer).collect();
    // An answer that is begun first may end second: of twins, the n-th is the n-th that was begun.
    answers.sort_by_key(|c| c.entry);
    let mut answered: HashMap<u64, usize> = HashMap::new();
    for answer in answers {
        verdict.acks += 1;
        match synced_before(calls, answer, &mut answered) {
            Ok(segment) => {
                let first = first_ack.entry(segment).or_insert(answer.entry);
                *first = answer.entry.min(*first);
            }
            Err(why) => verdict.wrong.push(why),
        }
    }
    verdict.segments = first_ack.len();
    for (segment, ack) in first_ack {
        verdict.wrong.extend(entry_durable_before(calls, segment, ack).err());
    }
    verdict
}

/// Data of the push in one whole write that began after its request had come, and a sync of that file that began after
/// the write had ended and returned 0 before the answer was begun. A push whose twin is in flight needs a record of its
/// own: the n-th answer of equal pushes has n synced records before it. Returns the segment.
fn synced_before<'a>(calls: &'a [Call], answer: &Call, answered: &mut HashMap<u64, usize>) -> Result<&'a str, String> {
    let (at, before) = (answer.entry + 1, |c: &&Call| c.exit < answer.entry);
    let arrivals = calls.iter().filter(before).filter(|c| c.is(&["read", "readv", "recvfrom", "recvmsg"]));
    let arrival = arrivals.filter(|c| c.target() == answer.target() && !c.marks().is_empty()).max_by_key(|c| c.exit);
    let arrival = arrival.ok_or(format!("line {at}: 204 without a request"))?;
    let mark = *arrival.marks().last().unwrap();
    let nth = answered.entry(mark).and_modify(|n| *n += 1).or_insert(1);

    let in_log = |c: &&Call| c.is(&["pwrite64"]) && c.target().ends_with(".wal") && c.wrote_all();
    let records = |c: &Call| c.marks().iter().filter(|m| **m == mark).count();
    let written: Vec<&Call> = calls.iter().filter(before).filter(in_log).filter(|c| records(c) > 0).collect();
    let own = written.iter().find(|w| w.entry > arrival.exit);
    let own = own.ok_or(format!("push {mark}: its 204 (line {at}) was sent before its data was written"))?;
    let synced = |w: &Call| {
        let of_file = calls.iter().filter(before).filter(|c| c.is(&["fdatasync", "fsync"]) && c.target() == w.target());
        of_file.into_iter().any(|c| c.ret == 0 && c.entry > w.exit)
    };
    if !synced(own) {
        return Err(format!(
            "push {mark}: written in line {}, but not synced before its 204 in line {at}",
            own.exit + 1
        ));
    }
    let durable: usize = written.iter().filter(|w| synced(w)).map(|w| records(w)).sum();
    if durable < *nth {
        return Err(format!("push {mark}: answered {nth} times by line {at}, with {durable} synced records"));
    }
    Ok(own.target())
}

/// The segment's content was synced before it got its name, and the name before the first ack in it.
fn entry_durable_before(calls: &[Call], segment: &str, ack: usize) -> Result<(), String> {
    let named =
        calls.iter().find(|c| c.name.starts_with("rename") && c.ret == 0 && c.args.contains(&format!("\"{segment}\"")));
    let named = named.ok_or(format!("{segment}: it was never renamed to its name"))?;
    let temporary = format!("{segment}.tmp");
    if !calls.iter().any(|c| c.is(&["fdatasync"]) && c.ret == 0 && c.target() == temporary && c.exit < named.entry) {
        return Err(format!("{segment}: it got its name before its content was synced"));
    }
    let dir = Path::new(segment).parent().unwrap().to_str().unwrap();
    if !calls
        .iter()
        .any(|c| c.is(&["fsync"]) && c.ret == 0 && c.target() == dir && c.entry > named.exit && c.exit < ack)
    {
        return Err(format!("{segment}: its directory was not synced before the first ack in it (line {})", ack + 1));
    }
    Ok(())
}

/// Starts the server under strace with these arguments; `None` if that is impossible here.
fn start_traced(arguments: &[&str], dir: &Path, extra: &str, env: &[(&str, &str)]) -> Option<(Server, PathBuf)> {
    let works = has("strace")
        && std::process::Command::new("strace")
            .args(["-qq", "-e", "trace=none", "true"])
            .status()
            .is_ok_and(|s| s.success());
    if !works {
        skip("strace is not installed, or may not trace");
        return None;
    }
    let trace = dir.join("trace");
    let mut wrapper =
        vec!["strace", "-D", "-f", "-ttt", "-y", "-a", "1", "--seccomp-bpf", "-o", trace.to_str().unwrap()];
    wrapper.extend_from_slice(arguments);
    let mut server = Server::spawn_under(&wrapper, dir, extra, env);
    server.wait_ready();
    Some((server, trace))
}

/// The whole trace, once the tracer has written the end of the process.
fn trace_of(path: &Path, pid: u32) -> String {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let trace = String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
        let ended = |l: &str| l.starts_with(&pid.to_string()) && (l.contains("+++ exited") || l.contains("+++ killed"));
        if trace.lines().rev().take(50).any(ended) {
            return trace;
        }
        assert!(Instant::now() < deadline, "the trace does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Concurrent pushes of 4 KB, traced: what the trace says, and how many were answered 204.
fn traced_load(extra: &str, env: &[(&str, &str)]) -> Option<(Verdict, usize)> {
    let tmp = tempfile::tempdir().unwrap();
    let calls = "trace=pwrite64,fdatasync,fsync,rename,renameat,renameat2,read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg";
    let (server, path) = start_traced(&["-s", "200000", "-e", calls], tmp.path(), extra, env)?;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let mut http = server.http();
            std::thread::spawn(move || {
                let push = |n: u64| {
                    // Each push has a twin, sent by the next writer at about the same time.
                    let id = writer / 2 * 1000 + n;
                    let line = format!("mark-{id}-{}", "x".repeat(4000));
                    u64::from(
                        http.push(&format!("stream-{}", id % 7), 1_700_000_000_000_000_000 + id as i64, &[line])
                            .unwrap()
                            == 204,
                    )
                };
                (0..60).map(push).sum::<u64>()
            })
        })
        .collect();
    let acked: u64 = writers.into_iter().map(|w| w.join().unwrap()).sum();
    let pid = server.pid();
    assert_eq!(server.terminate(), Some(0));
    let trace = trace_of(&path, pid);
    Some((judge(&parse(&trace)), acked as usize))
}

#[test]
fn every_ack_follows_the_sync_of_its_data() {
    let Some((verdict, acked)) = traced_load(CONFIG, &[]) else { return };
    println!(
        "{} acks in {} segments, each after its write, its sync and the sync of the directory",
        verdict.acks, verdict.segments
    );
    assert!(verdict.wrong.is_empty(), "{:#?}", &verdict.wrong[..verdict.wrong.len().min(10)]);
    assert_eq!(verdict.acks, acked, "the trace shows other acks than the clients saw");
    assert_eq!(acked as u64, WRITERS * 60);
    assert!(verdict.segments >= 2, "the load must go through a change of segments");
}

/// The judge must be able to find an ack without a sync: the mode without syncs has them.
#[test]
fn acks_without_a_sync_are_found() {
    let config = "ingester: {wal: {segment_size: 1MB, compression: none, sync: os}}\n";
    let Some((verdict, _)) = traced_load(config, &[]) else { return };
    let found = verdict.wrong.iter().filter(|w| w.contains("not synced before")).count();
    assert!(found * 2 > verdict.acks, "{found} of {} acks were seen to be unsynced", verdict.acks);
}

#[test]
fn a_planted_ack_before_the_write_is_found() {
    if !cfg!(feature = "planted-bugs") {
        // Not a missing tool: it needs a build with the feature.
        println!("SKIPPED: built without the feature planted-bugs");
        return;
    }
    let Some((verdict, _)) = traced_load(CONFIG, &[("TIMBERLINE_PLANTED_BUG", "ack-before-write")]) else { return };
    println!("found: {:?}", verdict.wrong.first());
    assert!(!verdict.wrong.is_empty(), "the planted bug was not found");
}

/// Four clients push until the server is gone. What they saw.
fn push_until_gone(server: &Server) -> Ledger {
    let clients: Vec<_> = (0..4)
        .map(|client| {
            let mut http = server.http();
            std::thread::spawn(move || {
                let mut ledger = Ledger::default();
                for n in 0..5000 {
                    if ledger
                        .push(
                            &mut http,
                            &format!("s{}", n % 3),
                            1_700_000_000_000_000_000 + n,
                            &format!("line {client}.{n}"),
                        )
                        .is_none()
                    {
                        return ledger;
                    }
                }
                panic!("5000 pushes, and nothing failed");
            })
        })
        .collect();
    let mut all = Ledger::default();
    clients.into_iter().for_each(|c| all.merge(c.join().unwrap()));
    all
}

/// A failed sync ends the process with 74; the next one serves what was acknowledged.
fn failed_sync_poisons(errno: &str) {
    let tmp = tempfile::tempdir().unwrap();
    // strace counts for each thread: only the log's thread comes this far.
    let inject = format!("inject=fdatasync:error={errno}:when=25");
    let Some((server, _)) = start_traced(&["-e", "trace=fdatasync", "-e", &inject], tmp.path(), CONFIG, &[]) else {
        return;
    };
    let ledger = push_until_gone(&server);
    assert_eq!(server.wait(Duration::from_secs(10)), Some(74));
    assert!(!ledger.acked.is_empty() && !ledger.unknown.is_empty());
    let server = Server::start(tmp.path(), CONFIG, &[]);
    ledger.check(&mut server.http());
    let mut again = Ledger::default();
    assert_eq!(again.push(&mut server.http(), "after", 1_700_000_001_000_000_000, "after"), Some(204));
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn a_sync_that_fails_with_eio_ends_the_process() {
    failed_sync_poisons("EIO");
}

#[test]
fn a_sync_that_fails_with_enospc_ends_the_process_too() {
    failed_sync_poisons("ENOSPC");
}

/// Also when nobody waits for it: the sync of the watermark, 50 ms after the last ack.
#[test]
fn a_failed_sync_of_a_watermark_ends_the_process() {
    let tmp = tempfile::tempdir().unwrap();
    // The thread that made the segment has synced it under another name.
    let segment = tmp.path().join("data/wal/00000000000000000001.wal");
    let inject = ["-P", segment.to_str().unwrap(), "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=2"];
    let Some((server, _)) = start_traced(&inject, tmp.path(), CONFIG, &[]) else { return };
    let (mut ledger, mut http) = (Ledger::default(), server.http());
    assert_eq!(ledger.push(&mut http, "s", 1_700_000_000_000_000_000, "one"), Some(204));
    assert_eq!(server.wait(Duration::from_secs(10)), Some(74));
    ledger.check(&mut Server::start(tmp.path(), CONFIG, &[]).http());
}

/// A failed write costs its push only: 503 with Retry-After, and the log goes on in another segment.
fn failed_write_is_answered(errno: &str) {
    let tmp = tempfile::tempdir().unwrap();
    // The preparing thread writes a segment in three calls and does not come this far.
    let inject = format!("inject=pwrite64:error={errno}:when=30..31");
    let Some((server, _)) = start_traced(&["-e", "trace=pwrite64", "-e", &inject], tmp.path(), CONFIG, &[]) else {
        return;
    };
    let (mut ledger, mut http) = (Ledger::default(), server.http());
    let (mut refused, mut retried) = (Vec::new(), None);
    for n in 0..200 {
        let (time, line) = (1_700_000_000_000_000_000 + n, format!("line {n}"));
        if ledger.push(&mut http, "s", time, &line) == Some(503) {
            assert!(http.headers.contains("retry-after: "), "{}", http.headers);
            refused.push(line.clone());
            if retried.is_none() {
                // Again until it is taken: the second try may meet the second failure.
                let taken = (0..20).any(|_| ledger.push(&mut http, "s", time, &line) == Some(204));
                assert!(taken, "the push is not taken again; log: {}", server.log_tail());
                retried = Some(line);
            }
        }
    }
    let retried = retried.expect("no write failed");
    println!("{errno}: refused {refused:?}, then {} acks", ledger.acked.len());
    assert!(ledger.acked.len() >= 198, "only {} pushes were taken", ledger.acked.len());
    assert_eq!(http.all_lines().get(&retried), Some(&1));
    ledger.check(&mut http);
    server.kill();
    let server = Server::start(tmp.path(), CONFIG, &[]);
    ledger.check(&mut server.http());
    assert_eq!(server.http().all_lines().get(&retried), Some(&1));
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn a_write_without_space_is_answered_503_and_the_log_goes_on() {
    failed_write_is_answered("ENOSPC");
}

#[test]
fn a_write_over_quota_or_to_a_read_only_mount_too() {
    failed_write_is_answered("EDQUOT");
    failed_write_is_answered("EROFS");
}

/// What a failed sync has lost may be anybody's: also one of a directory, for a segment that nobody uses yet, ends the process.
#[test]
fn a_failed_sync_of_the_directory_ends_the_process() {
    let tmp = tempfile::tempdir().unwrap();
    // The threads of the start make fewer of these calls, the one that prepares segments meets the failure.
    let inject = ["-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=8"];
    let Some((server, _)) = start_traced(&inject, tmp.path(), CONFIG, &[]) else { return };
    let (mut ledger, mut http) = (Ledger::default(), server.http());
    for n in 0..80 {
        let line = format!("line {n} {}", "x".repeat(100_000));
        if ledger.push(&mut http, "s", 1_700_000_000_000_000_000 + n, &line) != Some(204) {
            break;
        }
    }
    assert_eq!(server.wait(Duration::from_secs(10)), Some(74));
    assert!((1..80).contains(&ledger.acked.len()), "{} pushes were taken", ledger.acked.len());
    let server = Server::start(tmp.path(), CONFIG, &[]);
    ledger.check(&mut server.http());
    assert_eq!(server.terminate(), Some(0));
}

/// A push that meets a full queue, on a disk whose syncs take this long from the third one of a thread on: the first
/// fills the queue, the second comes 200 ms later. Answers to both.
fn push_into_full_queue(sync: Duration) -> Option<(Server, tempfile::TempDir, [Queued; 2])> {
    let tmp = tempfile::tempdir().unwrap();
    // The thread that prepares segments makes one sync for each of the two that it keeps, the log's thread two for the
    // push before: all of them quick.
    let inject = format!("inject=fdatasync:delay_enter={}:when=3+", sync.as_micros());
    let config = "ingester: {wal: {segment_size: 1MB, queue_size: 1MB}}\n";
    let (server, _) = start_traced(&["-e", "trace=fdatasync", "-e", &inject], tmp.path(), config, &[])?;
    assert_eq!(server.http().push("s", TIME, &["before".to_string()]).unwrap(), 204);
    // The watermark's sync is the log's second.
    std::thread::sleep(Duration::from_millis(500));
    let push = |n: i64| {
        let mut http = server.http();
        std::thread::spawn(move || {
            let (lines, start) = (lines_of(n), Instant::now());
            let status = http.push("s", TIME + 1000 * n, &lines).unwrap();
            Queued { lines, status, took: start.elapsed(), headers: http.headers }
        })
    };
    let first = push(1);
    std::thread::sleep(Duration::from_millis(200));
    let second = push(2);
    let answers = [first.join().unwrap(), second.join().unwrap()];
    println!("syncs of {sync:?}: {:?}", answers.iter().map(|a| (a.status, a.took)).collect::<Vec<_>>());
    assert_eq!(answers[0].status, 204, "a slow disk is no error");
    assert!(answers[0].took >= sync, "the first push filled nothing: its sync was not slow");
    Some((server, tmp, answers))
}

/// 900 KB: as good as the whole queue.
fn lines_of(push: i64) -> Vec<String> {
    (0..9).map(|i| format!("{push}.{i} {}", "x".repeat(100_000))).collect()
}

struct Queued {
    lines: Vec<String>,
    status: u16,
    took: Duration,
    headers: String,
}

/// The queue moves on within 2 s: whoever waits for it is taken.
#[test]
fn a_full_queue_that_moves_is_waited_for() {
    let sync = Duration::from_secs(1);
    let Some((server, _tmp, [first, second])) = push_into_full_queue(sync) else { return };
    assert_eq!(second.status, 204, "{}", second.headers);
    // The rest of the first push's sync, then its own.
    assert!(second.took > sync + sync / 2, "it did not wait for room: {:?}", second.took);
    let shown = server.http().all_lines();
    assert!([first.lines, second.lines].concat().iter().all(|l| shown.get(l) == Some(&1)));
}

/// It does not: 503 after 2 s, with the time of the next try, and nothing of the push is kept.
#[test]
fn a_full_queue_that_stands_is_answered_503_after_two_seconds() {
    let Some((server, _tmp, [first, second])) = push_into_full_queue(Duration::from_secs(6)) else { return };
    assert_eq!(second.status, 503);
    assert!(second.headers.contains("retry-after: "), "{}", second.headers);
    let waited = second.took.as_secs_f64();
    assert!((1.9..5.0).contains(&waited), "answered after {waited} s");
    let shown = server.http().all_lines();
    assert!(first.lines.iter().all(|l| shown.get(l) == Some(&1)));
    assert!(second.lines.iter().all(|l| !shown.contains_key(l)));
    // The client sends it again.
    assert_eq!(server.http().push("s", TIME + 2000, &second.lines).unwrap(), 204);
    let shown = server.http().all_lines();
    assert!(second.lines.iter().all(|l| shown.get(l) == Some(&1)));
}

#[test]
fn a_trace_is_read() {
    let trace = "7 1.0 fdatasync(5</a.wal> <unfinished ...>\n8 1.1 recvfrom(9<socket:[4]>, \"mark-12-x\", 10, 0, NULL, NULL) = 9\n\
                 7 1.2 <... fdatasync resumed>) = -1 EIO (Input/output error) (INJECTED)\n7 1.3 +++ exited with 74 +++\n";
    let calls = parse(trace);
    assert_eq!(calls.len(), 2);
    assert_eq!((calls[0].target(), calls[0].marks(), calls[0].entry), ("socket:[4]", vec![12], 1));
    assert_eq!((calls[1].target(), calls[1].ret, calls[1].entry, calls[1].exit), ("/a.wal", -1, 0, 2));
}
