//! A panic on a thread that acknowledged lines depend on ends the process, and costs nothing that was acknowledged. The
//! process is this test's own binary, started again with one test to run.

#[path = "support/server.rs"]
mod server;
mod support;

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use support::{Lines, Log, Outcome, note, push};
use timberline::fs::RealFs;
use timberline::wal::{Applied, SyncMode, TableRow, WalOptions, spawn_critical};

const SIGABRT: i32 = 6;
/// What the child is to do, and where.
const TASK: &str = "TIMBERLINE_PANIC_TASK";
const DIR: &str = "TIMBERLINE_PANIC_DIR";
const STREAMS: [u64; 2] = [1, 2];

fn options(dir: &Path) -> WalOptions {
    let mut options = support::options(Arc::new(RealFs), &dir.join("wal"), SyncMode::Always);
    options.blocks.dir = dir.join("blocks");
    for dir in [&options.dir, &options.blocks.dir] {
        std::fs::create_dir_all(dir).unwrap();
    }
    options
}

/// Runs this test binary's `child` with a task.
fn run(task: &str, dir: &Path) -> Output {
    // Without a core file in the project's directory.
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -c 0; exec \"$@\"", "sh"]).arg(std::env::current_exe().unwrap());
    command.args(["child", "--exact", "--nocapture", "--test-threads=1"]);
    command.env(TASK, task).env(DIR, dir).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// No test of its own: what the others start.
#[test]
fn child() {
    let dir = || PathBuf::from(std::env::var_os(DIR).unwrap());
    match std::env::var(TASK).as_deref() {
        Ok("panic") => drop(spawn_critical("apply-7", || panic!("on purpose")).join()),
        Ok("end") => drop(spawn_critical("apply-7", || ()).join()),
        Ok("catch") => {
            // Nobody can hold the process back, as a joining thread could.
            let _ = std::panic::catch_unwind(|| spawn_critical("apply-7", || panic!("on purpose")).join());
            std::thread::sleep(std::time::Duration::from_secs(5));
        }
        Ok(task) => write_until_panic(&dir(), task.parse().unwrap()),
        Err(_) => {}
    }
}

/// Pushes until the log's thread panics as it hands on the n-th record. Tells each ack.
fn write_until_panic(dir: &Path, nth: u32) {
    let mut handed_on = 0;
    let probe = move |records: &[Applied<u32>]| {
        handed_on += records.len() as u32;
        assert!(handed_on < nth, "planted: the log's thread fails after {handed_on} records");
    };
    let (log, _) = Log::open_with(options(dir), None, Some(Box::new(probe))).unwrap();
    for number in 0.. {
        let Outcome::Durable { .. } = log.push(number, &push(number, &STREAMS, 3)) else {
            panic!("push {number} failed")
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "acked {number}").and_then(|()| out.flush()).unwrap();
    }
}

#[test]
fn a_panic_on_a_critical_thread_aborts_and_names_the_thread() {
    for task in ["panic", "catch"] {
        let output = run(task, Path::new("."));
        assert_eq!(output.status.signal(), Some(SIGABRT), "{task}: {output:?}");
        let told = stderr(&output);
        assert!(told.contains("thread 'apply-7'") && told.contains("on purpose"), "{told}");
    }
    // One that ends is no reason to.
    assert_eq!(run("end", Path::new(".")).status.code(), Some(0));
}

#[test]
fn a_panic_on_the_log_thread_loses_nothing_that_was_acknowledged() {
    for nth in [1, 2, 25] {
        let tmp = tempfile::tempdir().unwrap();
        let output = run(&nth.to_string(), tmp.path());
        assert_eq!(output.status.signal(), Some(SIGABRT), "{output:?}");
        let told = stderr(&output);
        assert!(told.contains("thread 'wal'") && told.contains("planted"), "{told}");
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        // The first one stands behind the name of the test.
        let acked: Vec<u32> = stdout.lines().filter_map(|l| l.split_once("acked ")?.1.parse().ok()).collect();
        assert_eq!(acked, (0..nth - 1).collect::<Vec<_>>(), "{stdout}");

        // The push on which it failed was durable and is there, although nobody was told.
        let (log, found) = Log::open(options(tmp.path()), None).unwrap();
        let mut expected = Lines::new();
        for number in 0..nth {
            let pushed = push(number, &STREAMS, 3);
            let row = |(stream, lines): &(u64, Vec<_>)| TableRow {
                stream: *stream,
                first_seq: u64::from(number) * 3,
                count: lines.len() as u32,
                part_len: 0,
            };
            let rows: Vec<_> = pushed.iter().map(row).collect();
            note(&pushed, &rows, &mut expected);
        }
        assert_eq!(found, expected);
        // And the log goes on.
        log.acked(1000, &push(1000, &STREAMS, 1), &mut expected);
        log.wal.stop();
    }
}

/// The real binary, with a thread that panics as it applies or seals: it aborts, names the thread, and all that it has
/// acknowledged is back.
#[test]
fn a_panic_of_the_program_loses_nothing_that_was_acknowledged() {
    if !cfg!(feature = "planted-bugs") {
        // Not a missing tool: `.ci/run` has a step of its own with the feature.
        println!("SKIPPED: built without the feature planted-bugs");
        return;
    }
    const CONFIG: &str = "ingester: {chunk_block_size: 8KB, chunk_target_size: 64KB}\n";
    for (bug, thread) in [("panic-in-apply", "apply-"), ("panic-in-seal", "seal")] {
        let tmp = tempfile::tempdir().unwrap();
        let mut ledger = server::Ledger::default();
        // Something to lose.
        let healthy = server::Server::start(tmp.path(), CONFIG, &[]);
        for n in 0..5 {
            assert_eq!(ledger.push(&mut healthy.http(), "x", n, &format!("before {n}")), Some(204));
        }
        healthy.kill();
        let sick = server::Server::start(tmp.path(), CONFIG, &[("TIMBERLINE_PLANTED_BUG", bug)]);
        let mut http = sick.http();
        for n in 5..200 {
            if ledger.push(&mut http, "x", n, &format!("line {n} {}", "x".repeat(2000))).is_none() {
                break;
            }
        }
        // Ended by a signal: no exit code.
        assert_eq!(sick.wait(std::time::Duration::from_secs(10)), None, "{bug}");
        let told = std::fs::read_to_string(tmp.path().join("server.log")).unwrap();
        assert!(told.contains(&format!("thread '{thread}")) && told.contains("planted: "), "{bug}: {told}");
        let again = server::Server::start(tmp.path(), CONFIG, &[]);
        ledger.check(&mut again.http());
        println!("{bug}: {} pushes acknowledged, all of them there", ledger.acked.len());
        assert_eq!(again.terminate(), Some(0));
    }
}
