//! The real binary as a child process, and a small HTTP client. What runs here never shares a process with the server.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, Instant};

/// A running server on ports of its own.
pub struct Server {
    child: Child,
    /// Of the HTTP listener.
    pub addr: String,
    /// Of the gRPC listener.
    pub grpc: String,
    pub dir: PathBuf,
}

/// The binary under test. Cargo tells tests where it is; a tool sets this, or it is the one beside the tool.
pub static BINARY: OnceLock<PathBuf> = OnceLock::new();

pub fn binary() -> &'static Path {
    let beside = || {
        let me = std::env::current_exe().expect("the path of this program");
        // Examples lie one directory below the binaries.
        me.ancestors().nth(2).expect("a target directory").join("timberline")
    };
    BINARY.get_or_init(|| option_env!("CARGO_BIN_EXE_timberline").map_or_else(beside, PathBuf::from))
}

/// So many that none comes again while a client still knows who had it before.
const BLOCK: u16 = 1000;

/// Ports of this process alone: below those that the system gives to connections, a block at a time, held by a lock on a file. A
/// port that was only free a moment ago may be taken by another test before the server listens.
static PORTS: LazyLock<(File, u16)> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join("timberline-test-ports");
    std::fs::create_dir_all(&dir).unwrap();
    let of = |block: u16| {
        let file = File::options().create(true).append(true).open(dir.join(block.to_string())).ok()?;
        file.try_lock().ok()?;
        Some((file, 10_000 + BLOCK * block))
    };
    (0..22).find_map(of).expect("a block of free ports")
});

/// A port that nobody listens on, and that no other test gets while this one is about to.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let ports = || PORTS.1 + NEXT.fetch_add(1, Ordering::Relaxed) % BLOCK;
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(ports).take(10_000).find(is_free).expect("a free port")
}

impl Server {
    /// Starts the binary on a data directory with these limits lifted and `extra` in the configuration; does not wait.
    pub fn spawn(dir: &Path, extra: &str, env: &[(&str, &str)]) -> Server {
        Self::spawn_under(&[], dir, extra, env)
    }

    /// As [`Server::spawn`], started by a command that becomes the server by `exec`, or leaves it as our child.
    pub fn spawn_under(wrapper: &[&str], dir: &Path, extra: &str, env: &[(&str, &str)]) -> Server {
        let config = format!(
            "auth_enabled: false\n\
             common: {{path_prefix: {}}}\n\
             limits_config: {{ingestion_rate_mb: 100000, ingestion_burst_size_mb: 100000, per_stream_rate_limit: 100GB, \
             per_stream_rate_limit_burst: 100GB, max_global_streams_per_user: 0, max_entries_limit_per_query: 1000000, \
             reject_old_samples: false}}\n{extra}",
            dir.join("data").display()
        );
        Self::launch(wrapper, dir, (free_port(), free_port()), &config, env)
    }

    /// Starts the binary with this configuration on these (HTTP, gRPC) ports; does not wait.
    pub fn spawn_with(dir: &Path, ports: (u16, u16), config: &str, env: &[(&str, &str)]) -> Server {
        Self::launch(&[], dir, ports, config, env)
    }

    fn launch(wrapper: &[&str], dir: &Path, (http, grpc): (u16, u16), config: &str, env: &[(&str, &str)]) -> Server {
        std::fs::create_dir_all(dir).unwrap();
        let file = dir.join("config.yaml");
        std::fs::write(&file, config).unwrap();
        let log = File::options().create(true).append(true).open(dir.join("server.log")).unwrap();
        let words: Vec<&OsStr> = wrapper.iter().map(OsStr::new).chain([binary().as_os_str()]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        command.args(["-server.http-listen-address=127.0.0.1", "-server.grpc-listen-address=127.0.0.1"]);
        command.args([format!("-server.http-listen-port={http}"), format!("-server.grpc-listen-port={grpc}")]);
        command.arg(format!("-config.file={}", file.display())).stderr(log).stdout(Stdio::null()).stdin(Stdio::null());
        let child = command.envs(env.iter().copied()).spawn().unwrap();
        let (addr, grpc) = (format!("127.0.0.1:{http}"), format!("127.0.0.1:{grpc}"));
        Server { child, addr, grpc, dir: dir.to_path_buf() }
    }

    /// Starts the binary and waits until it is ready.
    pub fn start(dir: &Path, extra: &str, env: &[(&str, &str)]) -> Server {
        let mut server = Self::spawn(dir, extra, env);
        server.wait_ready();
        server
    }

    pub fn wait_ready(&mut self) {
        self.wait_for("/ready");
    }

    /// Waits until this page is answered with 200.
    pub fn wait_for(&mut self, target: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the server ended with {status} before it was ready; log: {}", self.log_tail());
            }
            if matches!(Http::new(&self.addr).get(target), Ok((200, _))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the server was not ready within a minute; log: {}", self.log_tail());
    }

    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.dir.join("server.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.kill_in_place();
    }

    /// SIGKILL; the process is gone on return.
    pub fn kill_in_place(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the process to end by itself and returns its exit code.
    pub fn wait(mut self, limit: Duration) -> Option<i32> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        panic!("the server did not end within {limit:?}; log: {}", self.log_tail());
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// SIGTERM, and the exit code.
    pub fn terminate(self) -> Option<i32> {
        self.signal("TERM");
        self.wait(Duration::from_secs(60))
    }

    pub fn http(&self) -> Http {
        Http::new(&self.addr)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already gone after `kill` and `wait`.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One keep-alive connection.
pub struct Http {
    addr: String,
    conn: Option<BufReader<TcpStream>>,
    /// Headers of the last answer, in lower case, one a line.
    pub headers: String,
    /// An answer that takes longer is none.
    pub timeout: Duration,
}

impl Http {
    pub fn new(addr: &str) -> Http {
        Http { addr: addr.to_string(), conn: None, headers: String::new(), timeout: Duration::from_secs(30) }
    }

    pub fn get(&mut self, target: &str) -> std::io::Result<(u16, Vec<u8>)> {
        self.send("GET", target, &[], b"")
    }

    pub fn post_json(&mut self, target: &str, body: &str) -> std::io::Result<(u16, Vec<u8>)> {
        self.send("POST", target, &[("Content-Type", "application/json")], body.as_bytes())
    }

    pub fn send(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<(u16, Vec<u8>)> {
        let outcome = self.exchange(method, target, headers, body);
        if outcome.is_err() {
            self.conn = None;
        }
        outcome
    }

    fn exchange(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<(u16, Vec<u8>)> {
        if self.conn.is_none() {
            let conn = TcpStream::connect(&self.addr)?;
            conn.set_nodelay(true)?;
            conn.set_read_timeout(Some(self.timeout))?;
            self.conn = Some(BufReader::with_capacity(1 << 16, conn));
        }
        let conn = self.conn.as_mut().unwrap();
        let mut message =
            format!("{method} {target} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n", self.addr, body.len());
        for (name, value) in headers {
            message += &format!("{name}: {value}\r\n");
        }
        message += "\r\n";
        let mut message = message.into_bytes();
        message.extend_from_slice(body);
        conn.get_mut().write_all(&message)?;
        let closed = || std::io::Error::other("connection closed");
        let mut line = String::new();
        if conn.read_line(&mut line)? == 0 {
            return Err(closed());
        }
        let status: u16 = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(closed)?;
        let (mut length, mut chunked) = (0, false);
        self.headers.clear();
        loop {
            let mut header = String::new();
            if conn.read_line(&mut header)? == 0 {
                return Err(closed());
            }
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            self.headers += &format!("{header}\n");
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(|_| closed())?;
            }
            chunked |= header.starts_with("transfer-encoding:") && header.contains("chunked");
        }
        let mut out = vec![0; length];
        conn.read_exact(&mut out)?;
        while chunked {
            let mut size = String::new();
            conn.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16).map_err(|_| closed())?;
            let at = out.len();
            out.resize(at + size + 2, 0);
            conn.read_exact(&mut out[at..])?;
            out.truncate(at + size);
            chunked = size > 0;
        }
        Ok((status, out))
    }

    /// Pushes lines into one stream `{s="..."}`, one nanosecond apart.
    pub fn push(&mut self, stream: &str, timestamp: i64, lines: &[String]) -> std::io::Result<u16> {
        let values: Vec<_> = (timestamp..).zip(lines).map(|(t, l)| serde_json::json!([t.to_string(), l])).collect();
        let body = serde_json::json!({"streams": [{"stream": {"s": stream}, "values": values}]});
        Ok(self.post_json("/loki/api/v1/push", &body.to_string())?.0)
    }

    /// How often each line of all streams is there.
    pub fn all_lines(&mut self) -> BTreeMap<String, usize> {
        let mut out = BTreeMap::new();
        for (_, _, line) in self.query_all("{s=~\".+\"}") {
            *out.entry(line).or_default() += 1;
        }
        out
    }

    /// All entries of a selector, forward: labels, timestamp, line.
    pub fn query_all(&mut self, selector: &str) -> Vec<(Arc<serde_json::Value>, i64, String)> {
        let target = format!(
            "/loki/api/v1/query_range?query={}&start=0&end=4000000000000000000&limit=1000000&direction=forward",
            encode(selector)
        );
        let (status, body) = self.get(&target).unwrap();
        assert_eq!(status, 200, "{selector}: {}", String::from_utf8_lossy(&body));
        let answer: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let mut out = Vec::new();
        for result in answer["data"]["result"].as_array().unwrap() {
            let labels = Arc::new(result["stream"].clone());
            for value in result["values"].as_array().unwrap() {
                let timestamp = value[0].as_str().unwrap().parse().unwrap();
                out.push((labels.clone(), timestamp, value[1].as_str().unwrap().to_string()));
            }
        }
        out
    }
}

/// Percent-encodes a query parameter.
pub fn encode(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    text.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Prints why a test cannot run here; in CI that is a failure.
pub fn skip(reason: &str) {
    println!("SKIPPED: {reason}");
    assert!(std::env::var_os("CI").is_none(), "a skipped test is an error in CI: {reason}");
}

/// What was pushed, and how it was answered.
#[derive(Default)]
pub struct Ledger {
    pub acked: BTreeSet<String>,
    /// Refused with 503, or without an answer: there afterwards, or not.
    pub unknown: BTreeSet<String>,
}

impl Ledger {
    /// Pushes one line and notes the answer, which must be 204, 503 or none; returns the status.
    pub fn push(&mut self, http: &mut Http, stream: &str, timestamp: i64, line: &str) -> Option<u16> {
        let status = http.push(stream, timestamp, &[line.to_string()]).ok();
        assert!(matches!(status, Some(204 | 503) | None), "{:.60} got {status:?}", line);
        let noted = if status == Some(204) { &mut self.acked } else { &mut self.unknown };
        noted.insert(line.to_string());
        status
    }

    pub fn merge(&mut self, other: Ledger) {
        self.acked.extend(other.acked);
        self.unknown.extend(other.unknown);
    }

    /// What the server serves is what it acknowledged, maybe something of what is unknown, nothing twice.
    pub fn check(&self, http: &mut Http) {
        let shown = http.all_lines();
        let short = |l: &String| l.chars().take(60).collect::<String>();
        let lost: Vec<_> = self.acked.iter().filter(|l| !shown.contains_key(*l)).map(short).collect();
        assert!(
            lost.is_empty(),
            "{} of {} acknowledged lines are lost: {:?}",
            lost.len(),
            self.acked.len(),
            &lost[..lost.len().min(5)]
        );
        let twice: Vec<_> = shown.iter().filter(|(_, n)| **n != 1).map(|(l, _)| short(l)).collect();
        assert!(twice.is_empty(), "shown twice: {twice:?}");
        let alien: Vec<_> =
            shown.keys().filter(|l| !self.acked.contains(*l) && !self.unknown.contains(*l)).map(short).collect();
        assert!(alien.is_empty(), "never pushed: {alien:?}");
    }
}

/// Is this program there?
pub fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
    found.is_ok_and(|s| s.success())
}

/// A file system of its own, until dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    /// Mounts with the arguments of mount(8); `None` where that is not allowed.
    pub fn new(arguments: &[&str], at: &Path) -> Option<Mounted> {
        Self::attempt(arguments, at).inspect_err(|why| skip(why)).ok()
    }

    /// As [`Mounted::new`], with what mount(8) says.
    pub fn attempt(arguments: &[&str], at: &Path) -> Result<Mounted, String> {
        std::fs::create_dir_all(at).unwrap();
        let done = Command::new("mount").args(arguments).arg(at).output().map_err(|e| e.to_string())?;
        if done.status.success() {
            return Ok(Mounted(at.to_path_buf()));
        }
        let why = String::from_utf8_lossy(&done.stderr).trim().to_string();
        Err(format!("mount {} is not allowed here: {why}", arguments.join(" ")))
    }

    /// What is mounted there already.
    pub fn there(at: &Path) -> Mounted {
        Mounted(at.to_path_buf())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmount = |more: &[&str]| Command::new("umount").args(more).arg(&self.0).stderr(Stdio::null()).status();
        // Busy while a server that is being killed still has it.
        if !unmount(&[]).is_ok_and(|s| s.success()) {
            let _ = unmount(&["-l"]);
        }
    }
}
