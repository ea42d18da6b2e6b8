//! A disk that runs a log in an order that repeats: the thread that prepares segments works only when the schedule
//! lets it, every call is noted with its outcome, and the N-th of them can fail. What a crash at any call would leave is
//! made from the notes (`crash.rs`).

use super::content::{Content, Image, NoLock, entries, mix};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use timberline::fs::{DirEntry, File, Fs, Lock, LockError, Space};

pub const EIO: i32 = 5;
pub const ENOSPC: i32 = 28;
pub const EDQUOT: i32 = 122;

/// Prepared segments that the log keeps ahead (`src/wal/supply.rs`).
const AHEAD: usize = 2;
/// A schedule that is stuck for this long is a bug of the simulator or a log that hangs.
const STUCK: Duration = Duration::from_secs(20);

/// What a call did to the disk.
#[derive(Clone)]
pub enum Op {
    Create(Arc<Path>, usize),
    Write(usize, u64, Arc<[u8]>),
    Sync(usize),
    /// The kernel may or may not have written what was pending, and will not try again.
    SyncFailed(usize),
    /// The page cache of a file was dropped after a failed sync: what the sync has not written is gone, or not.
    Resolved(usize, bool),
    Rename(Arc<Path>, Arc<Path>),
    Remove(Arc<Path>),
    SyncDir(PathBuf),
    /// A call that changed nothing.
    Nothing,
}

/// Calls that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    Create,
    Write,
    Sync,
    Rename,
    Remove,
    SyncDir,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// With this errno; a write leaves none, half or all of its bytes behind (0, 1, 2 halves).
    Errno(i32, u8),
    /// A write takes half of its bytes and says so; the calls after it fail with ENOSPC if the fault stays.
    Short,
}

/// A fault to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Number of the call, counted over all calls of the disk.
    pub at: usize,
    pub failure: Failure,
    /// All later calls of the same kind fail too.
    pub for_ever: bool,
}

/// When a new segment is prepared, as seen from the log's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// After the group is acknowledged.
    Late,
    /// Between taking a segment and the first write to it.
    Early,
    /// Between the first write to a segment and its sync.
    Mid,
}

/// What the log may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: the driver has not asked for anything.
    Quiet,
    /// Groups with records.
    Push,
    /// Anything.
    Free,
}

#[derive(Clone, Default)]
struct Inode {
    content: Content,
    /// What was durable when the last sync failed; what was written since then is in limbo.
    before_failed_sync: Option<Content>,
    synced: Content,
}

struct Gate {
    schedule: Schedule,
    mode: Mode,
    /// Preparations that may begin.
    allowed: usize,
    preparing: bool,
    /// After a failure, the calls that clean up.
    cleaning: Option<u8>,
    renamed: bool,
    finished: usize,
    failed: bool,
    ready: usize,
    taken: HashSet<usize>,
    /// The log has taken a segment and waits for the preparation of the next one.
    due: bool,
    /// The log's thread waits before each of its calls.
    hold: bool,
    waiting: bool,
    /// The log did something that nobody asked for: a watermark, because this machine was slow.
    disturbed: bool,
    closed: bool,
    /// No schedule: all threads run as they do in production, and the notes tell in which order.
    free: bool,
    /// A start writes the end of the log again. If that fails it waits for the preparing thread to end.
    opening: bool,
}

struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<Arc<Path>, usize>,
    ops: Vec<Op>,
    calls: Vec<Call>,
    fault: Option<Fault>,
    failing: Option<Call>,
    /// The first call that failed.
    failed_at: Option<usize>,
    /// Processes before this one are dead: their calls fail and change nothing.
    process: u32,
    coin: u64,
    /// Hash of what the disk held before its first call, and random numbers that were given since.
    origin: u64,
    drawn: u64,
    gate: Gate,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The disk. Clones share it.
#[derive(Clone)]
pub struct SimDisk {
    shared: Arc<Shared>,
    /// What it held before its first call.
    pub base: Image,
}

impl SimDisk {
    pub fn new(base: Image, schedule: Schedule, seed: u64) -> Self {
        let mut inodes = Vec::new();
        let mut names = BTreeMap::new();
        for (path, content) in &base.files {
            names.insert(path.clone(), inodes.len());
            let content = Content::clone(content);
            inodes.push(Inode { synced: content.clone(), content, before_failed_sync: None });
        }
        let gate = Gate {
            schedule,
            mode: Mode::Quiet,
            allowed: 0,
            preparing: false,
            cleaning: None,
            renamed: false,
            finished: 0,
            failed: false,
            ready: 0,
            taken: HashSet::new(),
            due: false,
            hold: false,
            waiting: false,
            disturbed: false,
            closed: false,
            free: false,
            opening: false,
        };
        let state = State {
            inodes,
            names,
            ops: Vec::new(),
            calls: Vec::new(),
            fault: None,
            failing: None,
            failed_at: None,
            process: 0,
            coin: seed,
            origin: base.hash(),
            drawn: 0,
            gate,
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }), base }
    }

    /// Lets all threads run without a schedule, in this process and those after it.
    pub fn run_freely(&self) {
        self.shared.state.lock().gate.free = true;
    }

    pub fn fail(&self, fault: Option<Fault>) {
        let mut state = self.shared.state.lock();
        state.fault = fault;
        state.failing = None;
    }

    /// The number of the first call that failed, and of operations then.
    pub fn failed_at(&self) -> Option<usize> {
        self.shared.state.lock().failed_at
    }

    /// Operations so far.
    pub fn now(&self) -> usize {
        self.shared.state.lock().ops.len()
    }

    pub fn ops(&self) -> Vec<Op> {
        self.shared.state.lock().ops.clone()
    }

    /// The kinds of all calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.state.lock().calls.clone()
    }

    /// The disk with its page cache, as a process sees it.
    pub fn seen(&self) -> Image {
        let state = self.shared.state.lock();
        let files = state.names.iter().map(|(p, i)| (p.clone(), Arc::new(state.inodes[*i].content.clone())));
        Image { files: files.collect() }
    }

    /// Ends the running process, whose calls change nothing from now on, and begins the next.
    pub fn next_process(&self) -> Arc<dyn Fs> {
        let mut state = self.shared.state.lock();
        state.process += 1;
        let gate = &mut state.gate;
        (gate.mode, gate.allowed, gate.preparing, gate.cleaning) = (Mode::Free, 0, false, None);
        (gate.renamed, gate.failed, gate.ready, gate.due) = (false, false, 0, false);
        (gate.hold, gate.closed) = (false, false);
        gate.taken.clear();
        self.shared.changed.notify_all();
        Arc::new(SimFs { disk: self.clone(), process: state.process })
    }

    /// Ends the running process.
    pub fn end_process(&self) {
        self.next_process();
    }

    pub fn set_mode(&self, mode: Mode) {
        self.shared.state.lock().gate.mode = mode;
    }

    /// Between the plan of a start and the open log.
    pub fn set_opening(&self, opening: bool) {
        let gate = &mut self.shared.state.lock().gate;
        (gate.opening, gate.closed) = (opening, false);
    }

    pub fn disturbed(&self) -> bool {
        self.shared.state.lock().gate.disturbed
    }

    /// Lets this many preparations begin, whenever the preparing thread comes.
    pub fn allow(&self, preparations: usize) {
        self.shared.state.lock().gate.allowed = preparations;
        self.shared.changed.notify_all();
    }

    /// Refuses all further preparations, without noting them.
    pub fn close_gate(&self) {
        self.shared.state.lock().gate.closed = true;
        self.shared.changed.notify_all();
    }

    /// The running process has found this many segments ready.
    pub fn set_ready(&self, ready: usize) {
        self.shared.state.lock().gate.ready = ready;
    }

    /// The file that the log has written a group to last, the end of that group, and the file's length.
    pub fn segment(&self) -> (usize, u64, u64) {
        let state = self.shared.state.lock();
        let group = state.ops.iter().rev().find_map(|op| match op {
            Op::Write(inode, at, bytes) if bytes.starts_with(b"TGRP") => Some((*inode, at + bytes.len() as u64)),
            _ => None,
        });
        group.map_or((usize::MAX, 0, 0), |(inode, end)| (inode, end, state.inodes[inode].content.len()))
    }

    pub fn ready(&self) -> usize {
        self.shared.state.lock().gate.ready
    }

    /// Lets segments be prepared until enough are ready, or one preparation fails.
    pub fn settle(&self) {
        let mut state = self.shared.state.lock();
        state.gate.due = false;
        if state.gate.failed || state.gate.ready >= AHEAD {
            return;
        }
        let wanted = AHEAD - state.gate.ready;
        self.prepare(&mut state, wanted);
    }

    /// Lets the failed preparation be tried again until enough segments are ready; false if it fails again.
    pub fn settle_after_failure(&self) -> bool {
        self.shared.state.lock().gate.failed = false;
        self.settle();
        !self.shared.state.lock().gate.failed
    }

    fn prepare(&self, state: &mut MutexGuard<'_, State>, count: usize) {
        let until = state.gate.finished + count;
        state.gate.allowed = count;
        self.shared.changed.notify_all();
        self.wait(state, "the preparation of a segment", |s| s.gate.finished >= until || s.gate.failed);
        state.gate.allowed = 0;
    }

    /// Holds the log before its next call. `release` lets it go on.
    pub fn hold(&self) {
        self.shared.state.lock().gate.hold = true;
    }

    /// Waits until the log is held, or `answered` says that it will not come.
    pub fn wait_held_or(&self, answered: impl Fn() -> bool) {
        let deadline = Instant::now() + STUCK;
        let mut state = self.shared.state.lock();
        while !state.gate.waiting && !answered() {
            self.shared.changed.wait_for(&mut state, Duration::from_millis(5));
            assert!(Instant::now() < deadline, "the simulation waits for the log to come for ever");
        }
    }

    pub fn release(&self) {
        self.shared.state.lock().gate.hold = false;
        self.shared.changed.notify_all();
    }

    /// Waits until this many operations are done; false if they do not come in time.
    pub fn wait_for_ops(&self, count: usize, time: Duration) -> bool {
        let mut state = self.shared.state.lock();
        let deadline = Instant::now() + time;
        while state.ops.len() < count {
            if self.shared.changed.wait_until(&mut state, deadline).timed_out() {
                return state.ops.len() >= count;
            }
        }
        true
    }

    fn wait(&self, state: &mut MutexGuard<'_, State>, what: &str, until: impl Fn(&State) -> bool) {
        let deadline = Instant::now() + STUCK;
        while !until(state) {
            let timed_out = self.shared.changed.wait_until(state, deadline).timed_out();
            let gate = &state.gate;
            let at =
                (gate.allowed, gate.preparing, gate.cleaning, gate.renamed, gate.finished, gate.failed, gate.ready);
            assert!(!timed_out || until(state), "the simulation waits for {what} for ever: {at:?}");
        }
    }
}

fn dead<T>() -> io::Result<T> {
    Err(io::Error::other("the process that made this call is dead"))
}

fn is_preparing_thread() -> bool {
    std::thread::current().name() == Some("wal-prepare")
}

impl State {
    fn find(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Counts a call and says whether and how it fails.
    fn call(&mut self, call: Call) -> Option<Failure> {
        let number = self.calls.len();
        self.calls.push(call);
        let fault = self.fault?;
        let failure = if number == fault.at {
            if fault.for_ever {
                self.failing = Some(call);
            }
            Some(fault.failure)
        } else if self.failing == Some(call) {
            Some(if fault.failure == Failure::Short { Failure::Errno(ENOSPC, 0) } else { fault.failure })
        } else {
            None
        };
        if matches!(failure, Some(Failure::Errno(..))) && self.gate.opening && !is_preparing_thread() {
            self.gate.closed = true;
        }
        if failure.is_some() && self.failed_at.is_none() {
            self.failed_at = Some(self.ops.len());
        }
        failure
    }

    fn toss(&mut self) -> u64 {
        self.coin ^= self.coin << 13;
        self.coin ^= self.coin >> 7;
        self.coin ^= self.coin << 17;
        self.coin >> 32
    }

    /// Follows the preparation of a segment.
    fn prepared(&mut self, call: Call, ok: bool) {
        let gate = &mut self.gate;
        let mut ended = None;
        match gate.cleaning {
            Some(left) if call == Call::Remove => {
                gate.cleaning = Some(left - 1);
                if left == 1 {
                    ended = Some(false);
                }
            }
            Some(_) => {}
            None if !ok => gate.cleaning = Some(2),
            None if call == Call::Rename => gate.renamed = true,
            None if call == Call::SyncDir && gate.renamed => ended = Some(true),
            None => {}
        }
        if let Some(good) = ended {
            gate.finished += usize::from(good);
            gate.ready += usize::from(good);
            gate.failed = !good;
            if !good {
                gate.allowed = 0;
            }
            (gate.preparing, gate.cleaning, gate.renamed) = (false, None, false);
        }
    }
}

/// The disk as one process uses it.
struct SimFs {
    disk: SimDisk,
    process: u32,
}

impl SimFs {
    /// Waits until the schedule lets this call happen.
    fn enter(&self, fresh_inode: Option<usize>, is_watermark: bool) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.disk.shared.state.lock();
        if state.gate.free {
            if state.gate.hold && std::thread::current().name() == Some("wal") {
                self.disk.wait(&mut state, "the driver", |s| !s.gate.hold || s.process != self.process);
            }
            return if state.process == self.process { Ok(state) } else { dead() };
        }
        if is_preparing_thread() {
            while state.process == self.process && !state.gate.preparing {
                if state.gate.closed {
                    return dead();
                }
                if state.gate.allowed > 0 {
                    state.gate.allowed -= 1;
                    state.gate.preparing = true;
                } else {
                    self.disk.shared.changed.wait(&mut state);
                }
            }
            return if state.process == self.process { Ok(state) } else { dead() };
        }
        if state.gate.hold && state.process == self.process {
            state.gate.waiting = true;
            self.disk.shared.changed.notify_all();
            self.disk.wait(&mut state, "the driver", |s| !s.gate.hold || s.process != self.process);
            state.gate.waiting = false;
        }
        if state.process != self.process {
            return dead();
        }
        let unasked = state.gate.mode == Mode::Quiet || (state.gate.mode == Mode::Push && is_watermark);
        if unasked {
            state.gate.disturbed = true;
            return dead();
        }
        // A closed gate lets no preparation begin: a failed start waits for its preparing thread to end.
        if std::mem::take(&mut state.gate.due) && !state.gate.closed {
            self.disk.prepare(&mut state, 1);
        }
        if let Some(inode) = fresh_inode
            && state.gate.taken.insert(inode)
        {
            state.gate.ready = state.gate.ready.saturating_sub(1);
            let wanted = state.gate.ready < AHEAD && !state.gate.failed && !state.gate.closed;
            match state.gate.schedule {
                Schedule::Early if wanted => self.disk.prepare(&mut state, 1),
                Schedule::Mid => state.gate.due = wanted,
                _ => {}
            }
        }
        if state.process == self.process { Ok(state) } else { dead() }
    }

    fn leave(&self, mut state: MutexGuard<'_, State>, call: Call, op: Option<Op>, ok: bool) {
        state.ops.extend(op);
        if is_preparing_thread() && !state.gate.free {
            state.prepared(call, ok);
        }
        self.disk.shared.changed.notify_all();
    }

    /// A call without partial success.
    fn simple(&self, call: Call, run: impl FnOnce(&mut State) -> io::Result<Op>) -> io::Result<()> {
        let mut state = self.enter(None, false)?;
        let failure = state.call(call);
        let outcome = match failure {
            Some(Failure::Errno(errno, _)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Failure::Short) => Err(io::Error::from_raw_os_error(EIO)),
            None => run(&mut state),
        };
        // A name that is not there is no failure of the disk.
        let ok = outcome.is_ok() || (failure.is_none() && call == Call::Remove);
        let (op, result) = match outcome {
            Ok(op) => (op, Ok(())),
            Err(e) => (Op::Nothing, Err(e)),
        };
        self.leave(state, call, Some(op), ok);
        result
    }
}

struct SimFile {
    fs: SimFs,
    inode: usize,
}

/// A group header that says 64 bytes: a group without records (`wal-format.md`, section 3).
fn is_watermark(bytes: &[u8]) -> bool {
    bytes.starts_with(b"TGRP\x40\0\0\0")
}

impl File for SimFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.fs.enter(Some(self.inode), is_watermark(bytes))?;
        let half = bytes.len() / 2;
        let (left, result) = match state.call(Call::Write) {
            None => (bytes, Ok(bytes.len())),
            Some(Failure::Errno(errno, halves)) => {
                let left = [0, half, bytes.len()].get(usize::from(halves)).copied().unwrap_or(0);
                (&bytes[..left], Err(io::Error::from_raw_os_error(errno)))
            }
            Some(Failure::Short) if half > 0 => (&bytes[..half], Ok(half)),
            Some(Failure::Short) => (&bytes[..0], Err(io::Error::from_raw_os_error(ENOSPC))),
        };
        let op = if left.is_empty() {
            Op::Nothing
        } else {
            state.inodes[self.inode].content.put(offset, left);
            Op::Write(self.inode, offset, left.into())
        };
        let ok = result.is_ok();
        self.fs.leave(state, Call::Write, Some(op), ok);
        result
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let state = self.fs.disk.shared.state.lock();
        Ok(state.inodes[self.inode].content.read(offset, buffer))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.fs.enter(None, false)?;
        let failure = state.call(Call::Sync);
        let inode = &mut state.inodes[self.inode];
        let (op, result) = if let Some(failure) = failure {
            let errno = if let Failure::Errno(errno, _) = failure { errno } else { EIO };
            inode.before_failed_sync = Some(inode.synced.clone());
            (Op::SyncFailed(self.inode), Err(io::Error::from_raw_os_error(errno)))
        } else {
            inode.synced = inode.content.clone();
            (Op::Sync(self.inode), Ok(()))
        };
        self.fs.leave(state, Call::Sync, Some(op), result.is_ok());
        result
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.fs.disk.shared.state.lock().inodes[self.inode].content.len())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        timberline::fs::zero_fill(self, 0, len)
    }

    fn drop_cache(&self) -> io::Result<()> {
        let mut state = self.fs.disk.shared.state.lock();
        if state.process != self.fs.process {
            return dead();
        }
        let kept = state.toss() & 1 == 1;
        let inode = &mut state.inodes[self.inode];
        if let Some(before) = inode.before_failed_sync.take() {
            if !kept {
                inode.content = before;
            }
            inode.synced = inode.content.clone();
            state.ops.push(Op::Resolved(self.inode, kept));
        }
        Ok(())
    }
}

impl Fs for SimFs {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut made = 0;
        self.simple(Call::Create, |state| {
            if state.names.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            made = state.inodes.len();
            state.inodes.push(Inode::default());
            let path: Arc<Path> = path.into();
            state.names.insert(path.clone(), made);
            Ok(Op::Create(path, made))
        })?;
        // A file that its own preparing thread fills is not taken; the log's thread creates none.
        Ok(Arc::new(SimFile { fs: SimFs { disk: self.disk.clone(), process: self.process }, inode: made }))
    }

    fn open(&self, path: &Path, _write: bool) -> io::Result<Arc<dyn File>> {
        let inode = self.disk.shared.state.lock().find(path)?;
        Ok(Arc::new(SimFile { fs: SimFs { disk: self.disk.clone(), process: self.process }, inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.simple(Call::Rename, |state| {
            let inode = state.find(from)?;
            state.names.remove(from);
            state.names.insert(to.into(), inode);
            Ok(Op::Rename(from.into(), to.into()))
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.simple(Call::Remove, |state| {
            state.find(path)?;
            state.names.remove(path);
            Ok(Op::Remove(path.into()))
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.simple(Call::SyncDir, |_| Ok(Op::SyncDir(dir.to_path_buf())))
    }

    fn hard_link(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn links(&self, path: &Path) -> io::Result<u64> {
        self.disk.shared.state.lock().find(path).map(|_| 1)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let state = self.disk.shared.state.lock();
        Ok(entries(dir, state.names.iter().map(|(p, i)| (&**p, state.inodes[*i].content.len()))))
    }

    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn space(&self, _dir: &Path) -> io::Result<Space> {
        Ok(Space { available: u64::MAX, total: u64::MAX, copies: false })
    }

    fn lock(&self, _path: &Path, _about: &str) -> Result<Box<dyn Lock>, LockError> {
        Ok(Box::new(NoLock))
    }

    /// The same in each run from the same files, and another than those of the run that left them.
    fn random(&self) -> u64 {
        let mut state = self.disk.shared.state.lock();
        state.drawn += 1;
        mix(&[state.origin, state.drawn])
    }
}
