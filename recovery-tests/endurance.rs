//! Do log, blocks and memory stay within their budgets, however much is pushed? A tool, not a test: it takes minutes and
//! tens of gigabytes of a real file system.
//!
//! ```text
//! cargo run --release --example endurance -- --dir /a/directory/on/a/disk [--corpus DIR] [--gigabytes 20]
//! ```
//!
//! It starts the release binary (built beside it), pushes two shapes, each for half of the bytes, and samples the metrics
//! each second:
//!
//! - **warm**: the shape of the usual load test, 400 streams, 10 of them a push, 100 lines each;
//! - **cold**: 100,000 streams, of which 400 are warm: a push has 100 lines for each of 5 of those and 4 lines for each of
//!   50 others, which come again after 2,000 pushes.
//!
//! Then it kills the server with SIGKILL, starts it again, and compares the number of lines that it finds with those that
//! were acknowledged. Bytes to disk are those that the kernel counts for the process (`write_bytes` of /proc/PID/io), so
//! that carried lines, footers, padding, zeros and repeated blocks are among them. A budget that does not hold ends it
//! with code 1.

#[path = "../benches/support/lines.rs"]
mod lines;
#[path = "support/options.rs"]
mod options;

use options::Given;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const CONNECTIONS: u64 = 8;
const WARM: u64 = 400;
const STREAMS: u64 = 100_000;
const HTTP: &str = "127.0.0.1:13100";
const WAL_MAX: u64 = 1 << 30;
const MEMORY: u64 = 2 << 30;
/// Resident memory may be above the budget by what the process itself and bodies on their way take.
const MEMORY_SLACK: u64 = 256 << 20;

struct Options {
    dir: PathBuf,
    corpus: Option<PathBuf>,
    bytes: u64,
}

fn options() -> Result<Options, String> {
    let mut given = Given::read()?;
    let gigabytes: u64 = given.number("--gigabytes", 20)?;
    let dir = given.text("--dir").ok_or("--dir DIRECTORY: where the data goes; it must be empty or not exist")?;
    let corpus = given.text("--corpus").map(PathBuf::from);
    given.end()?;
    Ok(Options { dir: dir.into(), corpus, bytes: gigabytes * 1_000_000_000 })
}

fn main() {
    let outcome = options().and_then(|options| run(&options));
    if let Err(why) = outcome {
        eprintln!("endurance: {why}");
        std::process::exit(1);
    }
}

fn run(options: &Options) -> Result<(), String> {
    if options.dir.read_dir().is_ok_and(|mut d| d.next().is_some()) {
        return Err(format!("{} is not empty", options.dir.display()));
    }
    let corpus = match &options.corpus {
        Some(dir) => read_corpus(dir)?,
        None => lines::lines(3 << 20),
    };
    let mut server = Server::start(&options.dir)?;
    let mut generator = Generator { corpus, next: Default::default(), pushes: AtomicU64::new(0) };
    let mut acked = 0;
    let mut wrong = Vec::new();
    for shape in [Shape::Warm, Shape::Cold] {
        let outcome = phase(&server, &mut generator, shape, options.bytes / 2)?;
        acked += outcome.lines;
        println!("{shape:?}: {outcome}");
        let limit = if shape == Shape::Warm { 0.8 } else { 1.2 };
        if outcome.per_byte > limit {
            wrong.push(format!(
                "{shape:?}: {:.2} bytes to disk for each byte of lines, limit {limit}",
                outcome.per_byte
            ));
        }
        wrong.extend(outcome.over);
    }
    let blocks = server.metric("timberline_blocks_size_bytes")?;
    let wal = server.metric("timberline_wal_size_bytes")?;
    server.kill();
    let begin = Instant::now();
    let server = Server::start(&options.dir)?;
    let start = begin.elapsed();
    let found = server.metric("loki_ingester_wal_recovered_entries_total")?;
    println!(
        "start after SIGKILL with {} of blocks and {} of log: {:.2} s, {} resident; {found} lines found, {acked} acknowledged",
        megabytes(blocks as u64),
        megabytes(wal as u64),
        start.as_secs_f64(),
        megabytes(server.resident()),
    );
    if found as u64 != acked {
        wrong.push(format!("{acked} lines were acknowledged and {found} are there"));
    }
    if start > Duration::from_secs(2) {
        wrong.push("the start took more than 2 s".into());
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

fn read_corpus(dir: &Path) -> Result<Vec<String>, String> {
    let mut lines = Vec::new();
    for entry in dir.read_dir().map_err(|e| format!("{}: {e}", dir.display()))? {
        let path = entry.map_err(|e| e.to_string())?.path();
        let text = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        lines.extend(String::from_utf8_lossy(&text).lines().filter(|l| !l.is_empty()).map(str::to_string));
    }
    if lines.is_empty() { Err(format!("no lines in {}", dir.display())) } else { Ok(lines) }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Warm,
    Cold,
}

impl Shape {
    /// Streams of push number `n`, and lines for each.
    fn streams(self, n: u64) -> Vec<(u64, u64)> {
        let warm = |per: u64| (0..per).map(move |k| ((n * per + k) % WARM, 100));
        match self {
            Self::Warm => warm(10).collect(),
            Self::Cold => warm(5).chain((0..50).map(|k| (WARM + (n * 50 + k) % (STREAMS - WARM), 4))).collect(),
        }
    }
}

/// What a shape has cost.
#[derive(Default)]
struct Outcome {
    lines: u64,
    bytes: u64,
    seconds: f64,
    /// Bytes to disk for each byte of lines, after the log has gone round once.
    per_byte: f64,
    cold_start: f64,
    wal: f64,
    blocks: f64,
    resident: u64,
    over: Vec<String>,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} of lines ({} lines) in {:.0} s, {:.0} MB/s; {:.2} bytes to disk for each byte, {:.2} with the beginning; at most: log \
             {}, blocks {}, resident {}",
            megabytes(self.bytes),
            self.lines,
            self.seconds,
            self.bytes as f64 / 1e6 / self.seconds,
            self.per_byte,
            self.cold_start,
            megabytes(self.wal as u64),
            megabytes(self.blocks as u64),
            megabytes(self.resident),
        )
    }
}

fn phase(server: &Server, generator: &mut Generator, shape: Shape, bytes: u64) -> Result<Outcome, String> {
    let (lines, pushed, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let (written_before, begin) = (server.written(), Instant::now());
    let mut outcome = Outcome::default();
    // Bytes of lines and bytes to disk when counting begins.
    let mut counted_from: Option<(u64, u64)> = None;
    let retired_before = server.metric("timberline_wal_segments_retired_total").unwrap_or(0.0);
    let failed = std::thread::scope(|scope| {
        let work = || {
            let (generator, lines, pushed, stop) = (&*generator, &lines, &pushed, &stop);
            move || -> Result<(), String> {
                let mut connection = Connection::open()?;
                while !stop.load(Ordering::Relaxed) && pushed.load(Ordering::Relaxed) < bytes {
                    let body = generator.push(shape);
                    connection.push(&body.bytes)?;
                    lines.fetch_add(body.lines, Ordering::Relaxed);
                    pushed.fetch_add(body.line_bytes, Ordering::Relaxed);
                }
                Ok(())
            }
        };
        let workers: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(work())).collect();
        while workers.iter().any(|w| !w.is_finished()) {
            std::thread::sleep(Duration::from_millis(500));
            if let Err(why) = outcome.sample(server) {
                outcome.over.push(why);
                stop.store(true, Ordering::Relaxed);
            }
            let round = server.metric("timberline_wal_segments_retired_total").unwrap_or(0.0) > retired_before;
            if round && counted_from.is_none() {
                counted_from = Some((pushed.load(Ordering::Relaxed), server.written()));
            }
        }
        workers.into_iter().find_map(|w| w.join().map_or_else(|_| Some("a worker panicked".into()), Result::err))
    });
    if let Some(why) = failed {
        return Err(why);
    }
    outcome.lines = lines.into_inner();
    outcome.bytes = pushed.into_inner();
    outcome.seconds = begin.elapsed().as_secs_f64();
    let written = server.written();
    outcome.cold_start = (written - written_before) as f64 / outcome.bytes as f64;
    let (from, written_from) = counted_from.ok_or("the log has not gone round once: push more")?;
    outcome.per_byte = (written - written_from) as f64 / (outcome.bytes - from) as f64;
    Ok(outcome)
}

impl Outcome {
    fn sample(&mut self, server: &Server) -> Result<(), String> {
        self.wal = self.wal.max(server.metric("timberline_wal_size_bytes")?);
        self.blocks = self.blocks.max(server.metric("timberline_blocks_size_bytes")?);
        self.resident = self.resident.max(server.resident());
        if self.wal > WAL_MAX as f64 {
            return Err(format!("the log takes {}", megabytes(self.wal as u64)));
        }
        if self.resident > MEMORY + MEMORY_SLACK {
            return Err(format!("{} are resident", megabytes(self.resident)));
        }
        Ok(())
    }
}

/// The server under load.
struct Server(Child);

impl Server {
    /// Starts it, and waits until it is ready.
    fn start(dir: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let config = dir.join("endurance.yaml");
        std::fs::write(&config, CONFIG).map_err(|e| format!("{}: {e}", config.display()))?;
        let log = std::fs::File::create(dir.join("endurance.log")).map_err(|e| e.to_string())?;
        let me = std::env::current_exe().map_err(|e| e.to_string())?;
        let binary = me.parent().and_then(Path::parent).map(|d| d.join("timberline")).ok_or("no target directory")?;
        let child = Command::new(&binary)
            .arg(format!("-config.file={}", config.display()))
            .arg(format!("-common.path-prefix={}", dir.join("data").display()))
            .stderr(Stdio::from(log))
            .spawn()
            .map_err(|e| format!("{}: {e}; build it with cargo build --release", binary.display()))?;
        let server = Self(child);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(60) {
            if get("/ready").is_ok_and(|(status, _)| status == 200) {
                return Ok(server);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err("the server does not become ready: see endurance.log".into())
    }

    fn kill(&mut self) {
        // It may have gone by itself, which the next start shows.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    fn proc(&self, file: &str, field: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", self.0.id())).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix(field));
        line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }

    /// Bytes that the process has sent to disk.
    fn written(&self) -> u64 {
        self.proc("io", "write_bytes:")
    }

    fn resident(&self) -> u64 {
        self.proc("status", "VmRSS:") * 1024
    }

    /// The sum of a metric's samples.
    fn metric(&self, name: &str) -> Result<f64, String> {
        let (_, text) = get("/metrics")?;
        let samples = text.lines().filter_map(|l| l.strip_prefix(name)).filter(|l| l.starts_with([' ', '{']));
        let values: Vec<f64> = samples.filter_map(|l| l.rsplit(' ').next()?.parse().ok()).collect();
        if values.is_empty() { Err(format!("no metric {name}")) } else { Ok(values.iter().sum()) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

const CONFIG: &str = "\
auth_enabled: false
server: { http_listen_address: 127.0.0.1, http_listen_port: 13100, grpc_listen_address: 127.0.0.1, grpc_listen_port: 19095, log_level: warn }
ingester: { max_chunk_age: 8760h, memory_budget: 2GB, wal: { max_size: 1GB }, blocks: { max_size: 200GB } }
limits_config: { ingestion_rate_mb: 1000000, ingestion_burst_size_mb: 1000000, per_stream_rate_limit: 1TB, per_stream_rate_limit_burst: 1TB,
  max_streams_per_user: 0, max_global_streams_per_user: 0, reject_old_samples: false, creation_grace_period: 8760h }
";

fn get(path: &str) -> Result<(u16, String), String> {
    let mut connection = Connection::open()?;
    let (status, body) = connection.ask(&format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n"), &[])?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// A connection of HTTP/1.1 that stays open.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open() -> Result<Self, String> {
        let stream = TcpStream::connect(HTTP).map_err(|e| e.to_string())?;
        stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(Duration::from_secs(30))))
            .map_err(|e| e.to_string())?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Pushes until it is acknowledged: 503 and 429 ask to come again.
    fn push(&mut self, body: &[u8]) -> Result<(), String> {
        let head = format!(
            "POST /loki/api/v1/push HTTP/1.1\r\nHost: t\r\nContent-Type: application/x-protobuf\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        for _ in 0..600 {
            match self.ask(&head, body)? {
                (204, _) => return Ok(()),
                (503, _) => std::thread::sleep(Duration::from_millis(100)),
                (status, text) => return Err(format!("{status}: {}", String::from_utf8_lossy(&text))),
            }
        }
        Err("503 for a minute".into())
    }

    fn ask(&mut self, head: &str, body: &[u8]) -> Result<(u16, Vec<u8>), String> {
        let io = |e: std::io::Error| e.to_string();
        self.0.get_mut().write_all(&[head.as_bytes(), body].concat()).map_err(io)?;
        let mut line = String::new();
        self.0.read_line(&mut line).map_err(io)?;
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or(format!("no status in {line:?}"))?;
        let mut len = 0;
        loop {
            line.clear();
            self.0.read_line(&mut line).map_err(io)?;
            let header = line.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                len = value.trim().parse().map_err(|_| "content-length")?;
            }
        }
        let mut answer = vec![0; len];
        self.0.read_exact(&mut answer).map_err(io)?;
        Ok((status, answer))
    }
}

/// Makes pushes whose lines are all different, each stream's in the order of time.
struct Generator {
    corpus: Vec<String>,
    next: std::sync::Mutex<HashMap<u64, u64>>,
    pushes: AtomicU64,
}

struct Body {
    bytes: Vec<u8>,
    lines: u64,
    line_bytes: u64,
}

impl Generator {
    fn push(&self, shape: Shape) -> Body {
        let streams = shape.streams(self.pushes.fetch_add(1, Ordering::Relaxed));
        let firsts: Vec<u64> = {
            let mut next = self.next.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let take = |(stream, lines): &(u64, u64)| {
                let at = next.entry(*stream).or_default();
                *at += lines;
                *at - lines
            };
            streams.iter().map(take).collect()
        };
        let (mut out, mut all, mut line_bytes) = (Vec::with_capacity(200 << 10), 0, 0);
        for ((stream, lines), first) in streams.into_iter().zip(firsts) {
            let mut part = Vec::new();
            field(1, format!("{{job=\"endurance\", stream=\"s{stream:06}\"}}").as_bytes(), &mut part);
            for seq in first..first + lines {
                let text = &self.corpus[((seq * 31 + stream * 17) % self.corpus.len() as u64) as usize];
                let line = format!("{stream:x}-{seq:x} {text}");
                line_bytes += line.len() as u64;
                entry(seq, line.as_bytes(), &mut part);
            }
            all += lines;
            field(1, &part, &mut out);
        }
        let bytes = snap::raw::Encoder::new().compress_vec(&out).unwrap_or_default();
        Body { bytes, lines: all, line_bytes }
    }
}

/// An entry; the line's number makes its time, a microsecond apart.
fn entry(seq: u64, line: &[u8], out: &mut Vec<u8>) {
    let mut timestamp = vec![0x08];
    prost::encoding::encode_varint(1_795_000_000 + seq / 1_000_000, &mut timestamp);
    timestamp.push(0x10);
    prost::encoding::encode_varint(seq % 1_000_000 * 1000, &mut timestamp);
    let mut entry = Vec::with_capacity(line.len() + 20);
    field(1, &timestamp, &mut entry);
    field(2, line, &mut entry);
    field(2, &entry, out);
}

fn field(number: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(number << 3 | 2);
    prost::encoding::encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}
