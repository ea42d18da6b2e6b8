//! A disk in memory that keeps what is durable and what is only in the page cache apart, counts syncs, fails on
//! demand, and can be rebuilt as it would be after a crash at any operation.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use timberline::fs::{DirEntry, File, Fs, Lock, LockError, Space};

/// Most disks write this many bytes at once or not at all.
const SECTOR: usize = 512;

pub const ENOSPC: i32 = 28;
pub const EIO: i32 = 5;

/// One change, as the disk was asked for it.
#[derive(Clone, Debug)]
pub enum Op {
    Create(PathBuf, usize),
    Write(usize, u64, Vec<u8>),
    Sync(usize),
    Rename(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Remove(PathBuf),
    SyncDir(PathBuf),
}

/// Calls that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Create,
    Write,
    Sync,
    Rename,
    SyncDir,
}

/// A failure to come.
#[derive(Clone, Debug)]
pub struct Fault {
    pub call: Call,
    /// Only calls on files whose name ends with this.
    pub name: String,
    /// Calls that still succeed.
    pub after: usize,
    /// Calls that fail then.
    pub times: usize,
    pub errno: i32,
    /// A failing write leaves this many bytes behind.
    pub leaves: usize,
}

impl Fault {
    pub fn new(call: Call, after: usize, errno: i32) -> Self {
        Self { call, name: String::new(), after, times: 1, errno, leaves: 0 }
    }
}

/// What a crash keeps of the writes and names that were not synced.
#[derive(Clone, Copy, Debug)]
pub enum Unsynced {
    Lost,
    Kept,
    /// Each sector of each write, and each name, by a coin with this seed.
    Some(u64),
}

#[derive(Clone, Default)]
struct Inode {
    name: String,
    cached: Vec<u8>,
    durable: Vec<u8>,
    /// Writes since the last sync.
    pending: Vec<(u64, Vec<u8>)>,
}

#[derive(Clone, Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    ops: Vec<Op>,
    faults: Vec<Fault>,
    /// Bytes that all files together may take.
    capacity: Option<u64>,
    /// It says that it copies on write.
    copies: bool,
    /// Most bytes that a write takes at once.
    largest_write: Option<usize>,
    /// A bit of the next write of a group that changes on its way, modulo the bits that it has.
    flip: Option<usize>,
    syncs: usize,
}

/// The disk. Clones share it.
#[derive(Clone, Default)]
pub struct MemDisk(Arc<Mutex<State>>);

impl MemDisk {
    pub fn fail(&self, fault: Fault) {
        self.0.lock().faults.push(fault);
    }

    pub fn heal(&self) {
        self.0.lock().faults.clear();
    }

    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.lock().capacity = bytes;
    }

    pub fn set_copies(&self) {
        self.0.lock().copies = true;
    }

    pub fn set_largest_write(&self, bytes: usize) {
        self.0.lock().largest_write = Some(bytes);
    }

    /// The next group is not written as the log has made it: this bit of it is another, modulo the bits that it has.
    pub fn flip_in_next_group(&self, bit: usize) {
        self.0.lock().flip = Some(bit);
    }

    /// Syncs of files that were asked for, failed ones included.
    pub fn syncs(&self) -> usize {
        self.0.lock().syncs
    }

    pub fn used(&self) -> u64 {
        self.0.lock().used()
    }

    /// Operations so far; an index into the history for [`MemDisk::history`].
    pub fn now(&self) -> usize {
        self.0.lock().ops.len()
    }

    /// Name and bytes of the files that a power loss would leave, sorted by name.
    pub fn durable_files(&self) -> Vec<(String, Vec<u8>)> {
        let state = self.0.lock();
        let files = state.durable_names.iter().filter_map(|(p, i)| Some((file_name(p), state.inodes.get(*i)?)));
        files.map(|(name, inode)| (name, inode.durable.clone())).collect()
    }

    /// A disk with these files, all durable.
    pub fn with_files(dir: &Path, files: &[(String, Vec<u8>)]) -> Self {
        let mut state = State::default();
        for (name, bytes) in files {
            let inode = Inode { name: name.clone(), cached: bytes.clone(), durable: bytes.clone(), pending: vec![] };
            state.names.insert(dir.join(name), state.inodes.len());
            state.inodes.push(inode);
        }
        state.durable_names = state.names.clone();
        Self(Arc::new(Mutex::new(state)))
    }

    /// A copy of the disk as it is, page cache included, as after `kill -9`: nothing is lost but the process.
    pub fn after_kill(&self) -> Self {
        self.crash(Unsynced::Kept)
    }

    /// A copy of the disk as it comes back after power loss.
    pub fn crash(&self, unsynced: Unsynced) -> Self {
        let mut state = self.0.lock().clone();
        state.crash(unsynced);
        Self(Arc::new(Mutex::new(state)))
    }

    /// The states of the disk after each of its operations: calls `visit` with the number of operations done and the
    /// disk as it was then, not crashed yet. `base` is the disk before its first operation.
    pub fn history(&self, base: &MemDisk, mut visit: impl FnMut(usize, &MemDisk)) {
        let ops = self.0.lock().ops.clone();
        let replay = base.crash(Unsynced::Kept);
        visit(0, &replay);
        for (i, op) in ops.into_iter().enumerate() {
            replay.0.lock().apply(op);
            visit(i + 1, &replay);
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn put(bytes: &mut Vec<u8>, offset: u64, piece: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + piece.len());
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[start..end].copy_from_slice(piece);
}

/// xorshift: enough for coins.
struct Coins(u64);

impl Coins {
    fn toss(&mut self) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 32 & 1 == 1
    }
}

impl State {
    fn used(&self) -> u64 {
        self.names.values().filter_map(|i| self.inodes.get(*i)).map(|i| i.cached.len() as u64).sum()
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Create(path, inode) => {
                assert_eq!(inode, self.inodes.len(), "operations are applied to the state that they were made on");
                self.inodes.push(Inode { name: file_name(&path), ..Inode::default() });
                self.names.insert(path, inode);
            }
            Op::Write(inode, offset, bytes) => {
                let inode = &mut self.inodes[inode];
                put(&mut inode.cached, offset, &bytes);
                inode.pending.push((offset, bytes));
            }
            Op::Sync(inode) => {
                let inode = &mut self.inodes[inode];
                for (offset, bytes) in inode.pending.drain(..) {
                    put(&mut inode.durable, offset, &bytes);
                }
            }
            Op::Rename(from, to) => {
                if let Some(inode) = self.names.remove(&from) {
                    self.inodes[inode].name = file_name(&to);
                    self.names.insert(to, inode);
                }
            }
            Op::Link(from, to) => {
                if let Some(inode) = self.names.get(&from).copied() {
                    self.names.insert(to, inode);
                }
            }
            Op::Remove(path) => drop(self.names.remove(&path)),
            Op::SyncDir(dir) => {
                self.durable_names.retain(|p, _| p.parent() != Some(&dir));
                let here = self.names.iter().filter(|(p, _)| p.parent() == Some(&dir));
                self.durable_names.extend(here.map(|(p, i)| (p.clone(), *i)));
            }
        }
    }

    fn done(&mut self, op: Op) {
        self.apply(op.clone());
        self.ops.push(op);
    }

    fn crash(&mut self, unsynced: Unsynced) {
        let mut coins = Coins(match unsynced {
            Unsynced::Some(seed) => seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            _ => 1,
        });
        let mut keep = || match unsynced {
            Unsynced::Lost => false,
            Unsynced::Kept => true,
            Unsynced::Some(_) => coins.toss(),
        };
        for inode in &mut self.inodes {
            for (offset, bytes) in std::mem::take(&mut inode.pending) {
                for (i, sector) in bytes.chunks(SECTOR).enumerate() {
                    if keep() {
                        put(&mut inode.durable, offset + (i * SECTOR) as u64, sector);
                    }
                }
            }
            inode.cached = inode.durable.clone();
        }
        if keep() {
            self.durable_names = self.names.clone();
        }
        self.names = self.durable_names.clone();
        self.ops.clear();
        self.faults.clear();
        self.syncs = 0;
    }

    /// The errno of a fault that this call meets, with the bytes that a write leaves behind.
    fn fault(&mut self, call: Call, name: &str) -> Result<(), (io::Error, usize)> {
        for fault in self.faults.iter_mut().filter(|f| f.call == call && name.ends_with(&f.name)) {
            if fault.after > 0 {
                fault.after -= 1;
            } else if fault.times > 0 {
                fault.times -= 1;
                return Err((io::Error::from_raw_os_error(fault.errno), fault.leaves));
            }
        }
        Ok(())
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

struct MemFile {
    disk: MemDisk,
    inode: usize,
}

impl File for MemFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.disk.0.lock();
        let mut bytes = bytes.get(..state.largest_write.unwrap_or(usize::MAX)).unwrap_or(bytes);
        let (name, len) = state.inodes.get(self.inode).map(|i| (i.name.clone(), i.cached.len() as u64)).unwrap();
        if let Err((error, leaves)) = state.fault(Call::Write, &name) {
            if let Some(left) = bytes.get(..leaves).filter(|l| !l.is_empty()) {
                state.done(Op::Write(self.inode, offset, left.to_vec()));
            }
            return Err(error);
        }
        if let Some(capacity) = state.capacity {
            let growth = (offset + bytes.len() as u64).saturating_sub(len);
            let free = capacity.saturating_sub(state.used());
            if growth > free {
                bytes = &bytes[..bytes.len().saturating_sub((growth - free) as usize)];
            }
            if bytes.is_empty() {
                return Err(io::Error::from_raw_os_error(ENOSPC));
            }
        }
        let mut bytes = bytes.to_vec();
        if bytes.starts_with(b"TGRP")
            && let Some(bit) = state.flip.take()
        {
            let at = bit / 8 % bytes.len();
            bytes[at] ^= 1 << (bit % 8);
        }
        let written = bytes.len();
        state.done(Op::Write(self.inode, offset, bytes));
        Ok(written)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let state = self.disk.0.lock();
        let bytes = state.inodes[self.inode].cached.get(offset as usize..).unwrap_or_default();
        let n = bytes.len().min(buffer.len());
        buffer[..n].copy_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.syncs += 1;
        let name = state.inodes[self.inode].name.clone();
        state.fault(Call::Sync, &name).map_err(|(e, _)| e)?;
        if !state.inodes[self.inode].pending.is_empty() {
            state.done(Op::Sync(self.inode));
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().inodes[self.inode].cached.len() as u64)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        timberline::fs::zero_fill(self, 0, len)
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }
}

struct MemLock;

impl Lock for MemLock {}

impl Fs for MemDisk {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut state = self.0.lock();
        state.fault(Call::Create, &file_name(path)).map_err(|(e, _)| e)?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.inodes.len();
        state.done(Op::Create(path.to_path_buf(), inode));
        Ok(Arc::new(MemFile { disk: self.clone(), inode }))
    }

    fn open(&self, path: &Path, _write: bool) -> io::Result<Arc<dyn File>> {
        let inode = self.0.lock().find(path)?;
        Ok(Arc::new(MemFile { disk: self.clone(), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.fault(Call::Rename, &file_name(from)).map_err(|(e, _)| e)?;
        state.find(from)?;
        state.done(Op::Rename(from.to_path_buf(), to.to_path_buf()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.find(path)?;
        state.done(Op::Remove(path.to_path_buf()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.fault(Call::SyncDir, "").map_err(|(e, _)| e)?;
        state.done(Op::SyncDir(dir.to_path_buf()));
        Ok(())
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.find(from)?;
        if state.names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.done(Op::Link(from.to_path_buf(), to.to_path_buf()));
        Ok(())
    }

    fn links(&self, path: &Path) -> io::Result<u64> {
        let state = self.0.lock();
        let inode = state.find(path)?;
        Ok(state.names.values().filter(|i| **i == inode).count() as u64)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let state = self.0.lock();
        let here = state.names.iter().filter(|(p, _)| p.parent() == Some(dir));
        Ok(here.map(|(p, i)| DirEntry { name: file_name(p), len: state.inodes[*i].cached.len() as u64 }).collect())
    }

    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn space(&self, _dir: &Path) -> io::Result<Space> {
        let state = self.0.lock();
        let total = state.capacity.unwrap_or(u64::MAX);
        Ok(Space { available: total.saturating_sub(state.used()), total, copies: state.copies })
    }

    fn lock(&self, _path: &Path, _about: &str) -> Result<Box<dyn Lock>, LockError> {
        Ok(Box::new(MemLock))
    }

    fn random(&self) -> u64 {
        timberline::fs::RealFs.random()
    }
}
