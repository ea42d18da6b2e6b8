//! The faults: each is inflicted under load, ends, and says how long it took until pushes were taken again.

use super::bombs::Bomb;
use super::ledger::{Answers, read};
use super::load::{Field, Sender};
use super::push::FLOODER;
use super::rig::{End, RECOVERY, Rig, open};
use crate::faults::{Random, prlimit};
use crate::server::Http;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Pushes go on within this of space coming back.
const RESUMES: Duration = Duration::from_secs(1);
/// And of the end of other faults that no process has ended for.
const GOES_ON: Duration = Duration::from_secs(2);
/// A full disk is told to clients within this of being full: what is prepared and in memory has to be used up first.
const FULL_WITHIN: Duration = Duration::from_secs(60);
const STOPPED: Duration = Duration::from_secs(5);
/// How long the others last.
const LASTS: Duration = Duration::from_secs(4);
const HOUR: i64 = 3600;
/// Where descriptors are short, a process has this many more than it has open.
const DESCRIPTORS: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Kill,
    Stop,
    FullDisk,
    SlowDisk,
    FdLimit,
    ClockJump,
    SlowClients,
    Bombs,
    Flood,
}

impl Fault {
    pub const ALL: [Self; 9] = [
        Self::Kill,
        Self::Stop,
        Self::FullDisk,
        Self::SlowDisk,
        Self::FdLimit,
        Self::ClockJump,
        Self::SlowClients,
        Self::Bombs,
        Self::Flood,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill -9",
            Self::Stop => "SIGSTOP",
            Self::FullDisk => "full disk",
            Self::SlowDisk => "slow disk",
            Self::FdLimit => "fd limit",
            Self::ClockJump => "clock jump",
            Self::SlowClients => "slow clients",
            Self::Bombs => "bombs",
            Self::Flood => "cardinality flood",
        }
    }

    /// Pushes are taken again within this.
    pub fn limit(self) -> Duration {
        match self {
            Self::Kill => RECOVERY,
            Self::FullDisk => RESUMES,
            _ => GOES_ON,
        }
    }
}

/// In what order faults come: each once, then each once again in another order.
pub struct Schedule {
    random: Random,
    kinds: Vec<Fault>,
    left: Vec<Fault>,
}

impl Schedule {
    pub fn new(seed: u64, kinds: Vec<Fault>) -> Self {
        // Xorshift does not leave 0, and small seeds take a while to differ.
        let mut random = Random(super::push::mix(seed, 2) | 1);
        random.next();
        Self { random, kinds, left: Vec::new() }
    }

    pub fn next(&mut self) -> Fault {
        if self.left.is_empty() {
            self.left.clone_from(&self.kinds);
            self.random.shuffle(&mut self.left);
        }
        self.left.pop().unwrap_or(Fault::Kill)
    }

    pub fn chance(&mut self) -> u64 {
        self.random.next()
    }
}

/// What came of one fault.
pub struct Outcome {
    /// From its end until a push was taken.
    pub again: Duration,
    /// Answers that it had itself, by what they were.
    pub answers: BTreeMap<String, u64>,
    /// How pushes were answered meanwhile.
    pub pushes: Answers,
}

/// Inflicts a fault, and waits for its end.
pub fn inflict(fault: Fault, rig: &mut Rig, bombs: &[Bomb]) -> Outcome {
    let before = rig.field.ledger.lock().answers();
    let (again, answers) = inflict_one(fault, rig, bombs);
    let pushes = rig.field.ledger.lock().answers().since(before);
    Outcome { again, answers, pushes }
}

fn inflict_one(fault: Fault, rig: &mut Rig, bombs: &[Bomb]) -> (Duration, BTreeMap<String, u64>) {
    let mut answers = BTreeMap::new();
    match fault {
        Fault::Kill => {
            let begin = Instant::now();
            rig.restart(End::Kill, &[]);
            rig.until_taken(RECOVERY);
            return (begin.elapsed(), answers);
        }
        Fault::Stop => stop(rig),
        Fault::FullDisk => full_disk(rig),
        Fault::SlowDisk => slow_disk(rig),
        Fault::FdLimit => fd_limit(rig),
        Fault::ClockJump => return (clock_jump(rig), answers),
        Fault::SlowClients => slow_clients(&rig.field),
        Fault::Bombs => answers = throw(bombs, &rig.field),
        Fault::Flood => answers = flood(&rig.field),
    }
    (rig.until_taken(fault.limit()), answers)
}

/// Throws each of them, all at once: the answer is an error, or the connection is closed.
fn throw(bombs: &[Bomb], field: &Field) -> BTreeMap<String, u64> {
    let throw = |bomb: &Bomb| {
        let answer = Http::new(&field.addr).send("POST", "/loki/api/v1/push", &bomb.headers, &bomb.body);
        let status = answer.map_or("none".into(), |(status, _)| status.to_string());
        if !["400", "413", "422", "429", "503", "none"].contains(&&*status) {
            field.wrong(format!("a bomb ({}) was answered {status}", bomb.name));
        }
        status
    };
    let answers = std::thread::scope(|scope| {
        let thrown: Vec<_> = bombs.iter().map(|bomb| scope.spawn(move || throw(bomb))).collect();
        thrown.into_iter().filter_map(|t| t.join().ok()).collect::<Vec<_>>()
    });
    counted(answers)
}

fn counted(answers: impl IntoIterator<Item = String>) -> BTreeMap<String, u64> {
    let mut out = BTreeMap::new();
    answers.into_iter().for_each(|answer| *out.entry(answer).or_default() += 1);
    out
}

/// Stopped as a virtual machine is that moves.
fn stop(rig: &Rig) {
    rig.server.signal("STOP");
    std::thread::sleep(STOPPED);
    rig.server.signal("CONT");
}

fn slow_disk(rig: &Rig) {
    if let Err(why) = rig.slow.begin(rig.server.pid()) {
        rig.field.wrong(format!("the disk could not be slowed: {why}"));
    }
    std::thread::sleep(LASTS);
    rig.slow.end();
}

/// Takes what is free on the file system without writing it; gives it back when dropped.
struct Filler(PathBuf);

impl Filler {
    fn fill(&self) -> std::io::Result<()> {
        let file = std::fs::File::options().create(true).append(true).open(&self.0)?;
        for step in [1 << 30, 64 << 20, 1 << 20, 64 << 10, 4096] {
            let allocate = |len| rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), len, step);
            while allocate(file.metadata()?.len()).is_ok() {}
        }
        Ok(())
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Full until pushes get 503, and a second longer; reads are answered meanwhile.
fn full_disk(rig: &mut Rig) {
    let filler = Filler(rig.data.join("filler"));
    rig.field.hurry.store(true, Ordering::Relaxed);
    let (begin, mut refused_since) = (Instant::now(), None);
    loop {
        if let Err(e) = filler.fill() {
            rig.field.wrong(format!("the disk could not be filled: {e}"));
        }
        if rig.probe() == Some(503) {
            if refused_since.get_or_insert_with(Instant::now).elapsed() > Duration::from_secs(1) {
                break;
            }
        } else {
            refused_since = None;
        }
        if begin.elapsed() > FULL_WITHIN * rig.field.busy {
            rig.field.wrong(format!("the disk is full for {:.0?}, and pushes are not refused", begin.elapsed()));
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut http = rig.server.http();
    if !http.get("/livez").is_ok_and(|(status, _)| status == 200) {
        rig.field.wrong("/livez is not 200 on a full disk".into());
    }
    if let Err(why) = read(&mut http, 0) {
        rig.field.wrong(format!("on a full disk {why}"));
    }
    rig.field.hurry.store(false, Ordering::Relaxed);
}

/// Connections take all descriptors that there are.
fn fd_limit(rig: &Rig) {
    let pid = rig.server.pid();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
    let limit = limits.lines().find_map(|l| l.strip_prefix("Max open files")).and_then(|l| l.split_whitespace().next());
    let (files, others) = open(pid);
    prlimit(&rig.server, &format!("--nofile={}:", files + others + DESCRIPTORS));
    // Until the queue of those that wait to be accepted is full, too.
    let eaten: Vec<_> = std::iter::repeat_with(|| connect(&rig.field.addr)).take(200).map_while(|c| c).collect();
    std::thread::sleep(LASTS);
    drop(eaten);
    prlimit(&rig.server, &format!("--nofile={}:", limit.unwrap_or("1024")));
}

fn connect(addr: &str) -> Option<TcpStream> {
    TcpStream::connect_timeout(&addr.parse().ok()?, Duration::from_millis(200)).ok()
}

/// A process whose wall clock goes an hour forward, back, an hour back, and back; then one that has the machine's again.
fn clock_jump(rig: &mut Rig) -> Duration {
    rig.clock.shift(0);
    let env = rig.clock.env().map(|(name, value)| (name.to_string(), value.to_string()));
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    rig.restart(End::Term, &env);
    rig.until_taken(RECOVERY);
    rig.clock.shift(HOUR);
    std::thread::sleep(LASTS / 3);
    // Lines are an hour old by this clock, and taken.
    rig.until_taken(GOES_ON);
    rig.clock.shift(0);
    std::thread::sleep(LASTS / 6);
    // Lines are too new by this clock. That is not said for good: it would be a violation of its own.
    rig.clock.shift(-HOUR);
    std::thread::sleep(LASTS / 3);
    rig.clock.shift(0);
    let again = rig.until_taken(GOES_ON);
    rig.restart(End::Term, &[]);
    rig.until_taken(RECOVERY);
    again
}

/// Heads and bodies that drip, connections that say nothing, and answers that nobody reads.
fn slow_clients(field: &Field) {
    const HEAD: &str = "POST /loki/api/v1/push HTTP/1.1\r\nHost: soak\r\nX-Scope-OrgID: red\r\n";
    const BODY: &str = "Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n{\"streams\": [";
    const READ: &str = "GET /loki/api/v1/query_range?query=%7Bjob%3D%22soak%22%7D&start=0&end=4000000000000000000&limit=20000 \
                        HTTP/1.1\r\nHost: soak\r\nX-Scope-OrgID: red\r\n\r\n";
    let body = format!("{HEAD}{BODY}");
    let starts = [(HEAD, true), (&body, true), ("", false), (READ, false)];
    let numbers = [60, 60, 60, 4];
    let mut connections = Vec::new();
    for ((start, drips), number) in starts.into_iter().zip(numbers) {
        for _ in 0..number {
            let mut begin = || -> std::io::Result<()> {
                let mut connection = TcpStream::connect(&field.addr)?;
                connection.write_all(start.as_bytes())?;
                connections.push((connection, drips));
                Ok(())
            };
            if let Err(e) = begin() {
                field.wrong(format!("a slow client could not begin: {e}"));
            }
        }
    }
    let before = field.ledger.lock().acked_pushes;
    let begin = Instant::now();
    while begin.elapsed() < LASTS {
        for (connection, _) in connections.iter_mut().filter(|(_, drips)| *drips) {
            // Those that were sent away are gone.
            let _ = connection.write_all(b" ");
        }
        std::thread::sleep(Duration::from_millis(400));
    }
    if field.ledger.lock().acked_pushes == before {
        field.wrong("slow clients kept everybody else out".into());
    }
}

/// One tenant makes new streams without end: it is told to stop.
fn flood(field: &Field) -> BTreeMap<String, u64> {
    let (mut sender, mut last, begin) = (Sender::new(field, FLOODER), 0, Instant::now());
    let mut answers = Vec::new();
    while begin.elapsed() < LASTS {
        let push = field.new_push(FLOODER, &mut last);
        answers.push(field.send(&mut sender, &push).map_or("none".into(), |status| status.to_string()));
        std::thread::sleep(Duration::from_millis(50));
    }
    let answers = counted(answers);
    if !answers.contains_key("429") {
        field.wrong(format!("a flood of new streams was not refused: {answers:?}"));
    }
    answers
}
