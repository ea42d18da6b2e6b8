//! What the tests on real disks and under `strace` share: clients that keep a ledger, figures.
#![allow(dead_code, reason = "each test target uses a part of it")]

use crate::server::{Http, Ledger, Mounted, Server, has, skip};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Nanoseconds: where the timestamps of pushed lines begin.
pub const TIME: i64 = 1_700_000_000_000_000_000;

/// Is all of it asked for, or a sample that takes seconds?
pub fn is_full() -> bool {
    std::env::var_os("TIMBERLINE_FULL").is_some_and(|v| v == "1")
}

/// Seconds of the wall clock, as `strace -ttt` has them.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// A small deterministic generator.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Text that hardly compresses.
    pub fn text(&mut self, len: usize) -> String {
        let mut out = String::with_capacity(len + 16);
        while out.len() < len {
            out += &format!("{:016x}", self.next());
        }
        out.truncate(len);
        out
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
    }
}

/// One push: when it was sent and answered, and how.
pub struct Pushed {
    pub sent: f64,
    pub answered: f64,
    pub status: Option<u16>,
}

/// Numbers lines, so that each is different, and remembers the answers.
pub struct Client {
    pub ledger: Ledger,
    pub pushes: Vec<Pushed>,
    next: i64,
    random: Random,
}

impl Default for Client {
    fn default() -> Self {
        Self::from(0)
    }
}

impl Client {
    /// One whose lines begin with this number.
    pub fn from(next: i64) -> Self {
        Self { ledger: Ledger::default(), pushes: Vec::new(), next, random: Random(0x9E37_79B9_7F4A_7C15) }
    }

    /// One that knows what others have pushed.
    pub fn with(ledger: &Ledger, next: i64) -> Self {
        let ledger = Ledger { acked: ledger.acked.clone(), unknown: ledger.unknown.clone() };
        Self { ledger, ..Self::from(next) }
    }

    /// Pushes one line of about this many bytes into one of three streams.
    pub fn push(&mut self, http: &mut Http, len: usize) -> Option<u16> {
        self.next += 1;
        let line = format!("line {} {}", self.next, self.random.text(len));
        let sent = now();
        let status = self.ledger.push(http, &format!("s{}", self.next % 3), TIME + self.next, &line);
        self.pushes.push(Pushed { sent, answered: now(), status });
        status
    }

    /// Pushes until one is taken; how long that took.
    pub fn push_until_taken(&mut self, http: &mut Http, limit: Duration) -> Result<Duration, String> {
        let started = Instant::now();
        while self.push(http, 100) != Some(204) {
            if started.elapsed() > limit {
                return Err(format!("pushes do not go on within {limit:?}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(started.elapsed())
    }

    /// 503 with `Retry-After`, and at once.
    pub fn refused_at_once(&mut self, http: &mut Http) {
        for _ in 0..5 {
            let started = Instant::now();
            assert_eq!(self.push(http, 100), Some(503));
            assert!(started.elapsed() < Duration::from_millis(700), "a refusal took {:?}", started.elapsed());
            assert!(http.headers.contains("retry-after: "), "{}", http.headers);
        }
    }
}

/// Starts and waits until reads are served; `/ready` may tell of the disk.
pub fn start_serving(dir: &Path, config: &str) -> Server {
    let mut server = Server::spawn(dir, config, &[]);
    server.wait_for("/loki/api/v1/labels");
    server
}

/// A file system of its own of this size in a file beside the data directory, with mkfs(8) told this much.
pub fn ext4(dir: &Path, bytes: u64, mkfs: &[&str]) -> Option<Mounted> {
    if !has("mkfs.ext4") {
        skip("mkfs.ext4 is not installed");
        return None;
    }
    let image = dir.join("image");
    File::create(&image).unwrap().set_len(bytes).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).args(mkfs).arg(&image).status().unwrap();
    assert!(made.success());
    Mounted::new(&["-o", "loop", image.to_str().unwrap()], &dir.join("data"))
}

/// Changes a limit of a running server.
pub fn prlimit(server: &Server, limit: &str) {
    let status = Command::new("prlimit").args(["--pid", &server.pid().to_string(), limit]).status().unwrap();
    assert!(status.success(), "prlimit {limit}");
}

/// Prints figures, and keeps them where `TIMBERLINE_RESULTS` says.
pub fn figures(layer: &str, started: Instant, counts: &[(&str, usize)]) {
    let text: Vec<String> = counts.iter().map(|(what, n)| format!("\"{what}\": {n}")).collect();
    let json = format!(
        "{{\"layer\": \"{layer}\", \"full\": {}, \"seconds\": {:.1}, {}}}",
        is_full(),
        started.elapsed().as_secs_f64(),
        text.join(", ")
    );
    println!("{json}");
    note_result(&json);
}

/// Adds a line of JSON to the file that `TIMBERLINE_RESULTS` names, if it names one.
pub fn note_result(json: &str) {
    if let Some(path) = std::env::var_os("TIMBERLINE_RESULTS") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        let wrote = file.and_then(|mut f| writeln!(f, "{json}"));
        wrote.unwrap_or_else(|e| panic!("TIMBERLINE_RESULTS names {}: {e}", Path::new(&path).display()));
    }
}

/// Is this build one with bugs to plant?
pub fn can_plant() -> bool {
    if !cfg!(feature = "planted-bugs") {
        // Not a missing tool: `.ci/run` has a step of its own with the feature.
        println!("SKIPPED: built without the feature planted-bugs");
    }
    cfg!(feature = "planted-bugs")
}

/// Notes what a test has found wrong with a planted bug; nothing is a failure.
pub fn found(bug: &str, by: &str, started: Instant, wrong: &[String]) {
    let message: String = wrong.first().map_or("", String::as_str).chars().take(110).collect();
    println!("{bug}: found by {by}: {:?}", wrong.first());
    let seconds = (started.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    let json =
        serde_json::json!({"layer": "mutants", "bug": bug, "found_by": by, "message": message, "seconds": seconds});
    note_result(&json.to_string());
    assert!(!wrong.is_empty(), "{by} did not find the planted bug {bug}");
}
