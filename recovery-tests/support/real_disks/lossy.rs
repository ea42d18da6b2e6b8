//! A file system in user space that keeps two versions of everything: what was written, and what was synced. A crash
//! drops what was not, data and names, whole or by the sector.
//!
//! It is harsher than ext4: a name is there when its directory was synced, not before. What is written with `O_DIRECT`
//! is as volatile as the rest until the file is synced, as in a drive's own cache.

use super::fuse::Fuse;
use crate::faults::Random;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const ROOT: u64 = 1;
const SECTOR: usize = 512;
const TTL: Duration = Duration::from_secs(1);
/// Bytes of the whole file system, as it tells them.
const CAPACITY: u64 = 4 << 30;

/// What a crash keeps of what was not synced.
#[derive(Clone, Copy, Debug)]
pub enum Unsynced {
    Lost,
    /// Each sector, size and name by a coin with this seed.
    Torn(u64),
}

/// What goes wrong before the crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The next sync of a file fails once. What it was to write is lost, and the sync after it succeeds.
    SyncFails,
    /// The next write to a file fails once, and leaves a part.
    WriteFails,
    /// A write takes half of its bytes.
    ShortWrites,
    /// Nothing may be made or grow.
    Full,
    /// Each sync takes this many milliseconds.
    SlowSyncs(u64),
}

enum Change {
    Write(u64, Box<[u8]>),
    Len(u64),
}

enum NameOp {
    Add(u64, OsString, u64),
    Remove(u64, OsString),
    /// From a name in a directory to one in another.
    Move((u64, OsString), (u64, OsString), u64),
}

impl NameOp {
    /// Directories that it changes.
    fn dirs(&self) -> [u64; 2] {
        match self {
            Self::Add(dir, ..) | Self::Remove(dir, _) => [*dir; 2],
            Self::Move((from, _), (to, _), _) => [*from, *to],
        }
    }
}

type Names = BTreeMap<OsString, u64>;

struct Inode {
    dir: bool,
    perm: u16,
    changed: SystemTime,
    opened: u32,
    /// Of a file: as written, as synced, and what lies between.
    cached: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    /// Of a directory.
    names: Names,
    durable_names: Names,
}

impl Inode {
    fn new(dir: bool, perm: u16) -> Self {
        Self {
            dir,
            perm,
            changed: SystemTime::now(),
            opened: 0,
            cached: Vec::new(),
            durable: Vec::new(),
            pending: Vec::new(),
            names: Names::new(),
            durable_names: Names::new(),
        }
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.cached, &change);
        self.pending.push(change);
        self.changed = SystemTime::now();
    }

    fn sync(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            apply(&mut self.durable, &change);
        }
    }

    /// What a crash, or a sync that failed, leaves of what was not synced.
    fn lose(&mut self, unsynced: Unsynced) {
        if let Unsynced::Torn(seed) = unsynced {
            let mut coins = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
            // From nearly nothing to nearly all of it is kept.
            let bias = coins.below(9);
            for change in &self.pending {
                match change {
                    Change::Write(offset, bytes) => {
                        for (i, sector) in bytes.chunks(SECTOR).enumerate().filter(|_| coins.below(8) < bias) {
                            put(&mut self.durable, offset + (i * SECTOR) as u64, sector);
                        }
                    }
                    change if coins.below(8) < bias => apply(&mut self.durable, change),
                    Change::Len(_) => {}
                }
            }
        }
        self.pending.clear();
        self.cached.clone_from(&self.durable);
    }
}

fn put(bytes: &mut Vec<u8>, offset: u64, piece: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + piece.len());
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[start..end].copy_from_slice(piece);
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(offset, piece) => put(bytes, *offset, piece),
        Change::Len(len) => bytes.resize(*len as usize, 0),
    }
}

struct State {
    inodes: HashMap<u64, Inode>,
    next: u64,
    name_ops: Vec<NameOp>,
    fault: Option<Fault>,
    /// How often a fault has struck.
    struck: u64,
    coins: Random,
    syncs: u64,
    direct_writes: u64,
}

impl State {
    fn new() -> Self {
        Self {
            inodes: HashMap::from([(ROOT, Inode::new(true, 0o755))]),
            next: ROOT + 1,
            name_ops: Vec::new(),
            fault: None,
            struck: 0,
            coins: Random(7),
            syncs: 0,
            direct_writes: 0,
        }
    }

    fn inode(&mut self, ino: u64) -> Result<&mut Inode, Errno> {
        self.inodes.get_mut(&ino).ok_or(Errno::ENOENT)
    }

    fn find(&self, dir: u64, name: &OsStr) -> Result<u64, Errno> {
        self.inodes.get(&dir).and_then(|d| d.names.get(name)).copied().ok_or(Errno::ENOENT)
    }

    /// Is this the fault, and does it strike now? One that strikes once is gone then.
    fn strikes(&mut self, fault: Fault) -> bool {
        if self.fault != Some(fault) {
            return false;
        }
        self.struck += 1;
        if matches!(fault, Fault::SyncFails | Fault::WriteFails) {
            self.fault = None;
        }
        true
    }

    fn grows(&mut self) -> Result<(), Errno> {
        if self.strikes(Fault::Full) { Err(Errno::ENOSPC) } else { Ok(()) }
    }

    fn add(&mut self, dir: u64, name: &OsStr, ino: u64) -> Result<(), Errno> {
        if self.find(dir, name).is_ok() {
            return Err(Errno::EEXIST);
        }
        self.inode(dir)?.names.insert(name.to_owned(), ino);
        self.name_ops.push(NameOp::Add(dir, name.to_owned(), ino));
        Ok(())
    }

    fn make(&mut self, parent: u64, name: &OsStr, inode: Inode) -> Result<u64, Errno> {
        self.grows()?;
        let ino = self.next;
        self.add(parent, name, ino)?;
        self.next += 1;
        self.inodes.insert(ino, inode);
        Ok(ino)
    }

    fn remove(&mut self, dir: u64, name: &OsStr) -> Result<(), Errno> {
        let ino = self.find(dir, name)?;
        if self.inode(ino).is_ok_and(|i| !i.names.is_empty()) {
            return Err(Errno::ENOTEMPTY);
        }
        self.inode(dir)?.names.remove(name);
        self.name_ops.push(NameOp::Remove(dir, name.to_owned()));
        Ok(())
    }

    fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Result<(), Errno> {
        let ino = self.find(from.0, from.1)?;
        self.inode(from.0)?.names.remove(from.1);
        self.inode(to.0)?.names.insert(to.1.to_owned(), ino);
        self.name_ops.push(NameOp::Move((from.0, from.1.to_owned()), (to.0, to.1.to_owned()), ino));
        Ok(())
    }

    fn write(&mut self, ino: u64, offset: u64, bytes: &[u8], direct: bool) -> Result<usize, Errno> {
        self.direct_writes += u64::from(direct);
        if self.strikes(Fault::WriteFails) {
            let part = self.coins.below(bytes.len() as u64) as usize;
            self.inode(ino)?.change(Change::Write(offset, bytes[..part].into()));
            return Err(Errno::EIO);
        }
        if offset + bytes.len() as u64 > self.inode(ino)?.cached.len() as u64 {
            self.grows()?;
        }
        // Halves at the boundaries of sectors, as disks take them.
        let half = bytes.len() / 2 / SECTOR * SECTOR;
        let taken = if half > 0 && self.strikes(Fault::ShortWrites) { half } else { bytes.len() };
        self.inode(ino)?.change(Change::Write(offset, bytes[..taken].into()));
        Ok(taken)
    }

    fn sync(&mut self, ino: u64) -> Result<(), Errno> {
        self.syncs += 1;
        let something = !self.inode(ino)?.pending.is_empty();
        if something && self.strikes(Fault::SyncFails) {
            let seed = self.coins.next();
            self.inode(ino)?.lose(if seed & 1 == 0 { Unsynced::Lost } else { Unsynced::Torn(seed) });
            return Err(Errno::EIO);
        }
        self.inode(ino)?.sync();
        Ok(())
    }

    fn sync_dir(&mut self, ino: u64) -> Result<(), Errno> {
        let dir = self.inode(ino)?;
        dir.durable_names.clone_from(&dir.names);
        self.name_ops.retain(|op| !op.dirs().contains(&ino));
        Ok(())
    }

    fn links(&self, ino: u64) -> u32 {
        self.inodes.values().flat_map(|i| i.names.values()).filter(|i| **i == ino).count() as u32
    }

    /// Power is gone, and back.
    fn crash(&mut self, unsynced: Unsynced) {
        for op in std::mem::take(&mut self.name_ops) {
            if let Unsynced::Torn(_) = unsynced {
                let coin = self.coins.below(3);
                self.keep(op, coin);
            }
        }
        for (number, inode) in &mut self.inodes {
            inode.lose(match unsynced {
                Unsynced::Torn(seed) => Unsynced::Torn(seed ^ number.wrapping_mul(0xA076_1D64_78BD_642F)),
                Unsynced::Lost => Unsynced::Lost,
            });
            inode.names.clone_from(&inode.durable_names);
            inode.opened = 0;
        }
        // Without a name they are gone; a name of what was never synced is one of an empty file.
        let (mut kept, mut queue) = (HashMap::new(), vec![ROOT]);
        while let Some(ino) = queue.pop() {
            if let Some(inode) = self.inodes.remove(&ino) {
                queue.extend(inode.names.values());
                kept.insert(ino, inode);
            }
        }
        self.inodes = kept;
        (self.fault, self.struck) = (None, 0);
    }

    /// A name that was not synced: 0 it is lost, 1 it is done, 2 of a rename both names are there.
    fn keep(&mut self, op: NameOp, coin: u64) {
        let mut names = |dir: u64, change: &dyn Fn(&mut Names)| {
            if let Some(inode) = self.inodes.get_mut(&dir) {
                change(&mut inode.durable_names);
            }
        };
        match op {
            _ if coin == 0 => {}
            NameOp::Add(dir, name, ino) => names(dir, &|n| _ = n.insert(name.clone(), ino)),
            NameOp::Remove(dir, name) => names(dir, &|n| _ = n.remove(&name)),
            NameOp::Move(from, to, ino) => {
                if coin == 1 {
                    names(from.0, &|n| _ = n.remove(&from.1));
                }
                names(to.0, &|n| _ = n.insert(to.1.clone(), ino));
            }
        }
    }

    /// Without a name and a user a file is gone; what a crash may bring back is kept.
    fn sweep(&mut self, ino: u64) {
        let unnamed = |i: &Inode| !i.names.values().chain(i.durable_names.values()).any(|n| *n == ino);
        let pending = self.name_ops.iter().any(|op| match op {
            NameOp::Add(_, _, of) | NameOp::Move(_, _, of) => *of == ino,
            NameOp::Remove(..) => false,
        });
        if !pending && self.inodes.get(&ino).is_some_and(|i| i.opened == 0) && self.inodes.values().all(unnamed) {
            self.inodes.remove(&ino);
        }
    }

    fn attr(&mut self, ino: u64) -> Result<FileAttr, Errno> {
        let links = self.links(ino);
        let inode = self.inode(ino)?;
        let size = inode.cached.len() as u64;
        Ok(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(SECTOR as u64),
            atime: inode.changed,
            mtime: inode.changed,
            ctime: inode.changed,
            crtime: inode.changed,
            kind: if inode.dir { FileType::Directory } else { FileType::RegularFile },
            perm: inode.perm,
            nlink: if inode.dir { 2 } else { links },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

/// The file system, mounted until dropped.
pub struct Lossy {
    state: Arc<Mutex<State>>,
    at: PathBuf,
    mounted: Option<Fuse>,
}

impl Lossy {
    /// `None` where that is not allowed.
    pub fn mount(at: &Path) -> Option<Self> {
        let state = Arc::new(Mutex::new(State::new()));
        let mounted = Fuse::mount(Files(state.clone()), at)?;
        Some(Self { state, at: at.to_path_buf(), mounted: Some(mounted) })
    }

    /// Power is gone, and back. Nobody may use the files meanwhile; the kernel's cache of them is gone too.
    pub fn crash(&mut self, unsynced: Unsynced) {
        drop(self.mounted.take());
        self.state().crash(unsynced);
        self.mounted = Some(Fuse::mount(Files(self.state.clone()), &self.at).expect("it could be mounted before"));
    }

    pub fn fault(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    /// How often faults have struck since the last crash.
    pub fn struck(&self) -> u64 {
        self.state().struck
    }

    /// Syncs of files, and writes past the page cache.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.syncs, state.direct_writes)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

struct Files(Arc<Mutex<State>>);

impl Files {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

/// Whether a file was opened with, or has by now, `O_DIRECT`.
fn is_direct(flags: OpenFlags) -> bool {
    flags.0 & libc::O_DIRECT != 0
}

macro_rules! answer {
    ($reply:ident, $outcome:expr, $value:pat => $ok:expr) => {
        match $outcome {
            Ok($value) => $ok,
            Err(e) => $reply.error(e),
        }
    };
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut state = self.state();
        let found = state.find(parent.0, name).and_then(|ino| state.attr(ino));
        answer!(reply, found, attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer!(reply, self.state().attr(ino.0), attr => reply.attr(&TTL, &attr));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.state();
        let outcome = state.inode(ino.0).map(|inode| {
            inode.perm = mode.map_or(inode.perm, |m| (m & 0o7777) as u16);
            if let Some(len) = size.filter(|len| *len != inode.cached.len() as u64) {
                inode.change(Change::Len(len));
            }
        });
        let outcome = outcome.and_then(|()| state.attr(ino.0));
        answer!(reply, outcome, attr => reply.attr(&TTL, &attr));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let mut state = self.state();
        let made = state.make(parent.0, name, Inode::new(true, (mode & !umask & 0o7777) as u16));
        let made = made.and_then(|ino| state.attr(ino));
        answer!(reply, made, attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, _: i32, reply: ReplyCreate) {
        let mut state = self.state();
        let made = state.make(parent.0, name, Inode::new(false, (mode & !umask & 0o7777) as u16));
        let made = made.and_then(|ino| {
            state.inode(ino)?.opened += 1;
            state.attr(ino)
        });
        answer!(reply, made, attr => reply.created(&TTL, &attr, Generation(0), FileHandle(0), FopenFlags::empty()));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.state().remove(parent.0, name), () => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.state().remove(parent.0, name), () => reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let outcome = self.state().rename((parent.0, name), (new_parent.0, new_name));
        answer!(reply, outcome, () => reply.ok());
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut state = self.state();
        let outcome = state.add(parent.0, name, ino.0).and_then(|()| state.attr(ino.0));
        answer!(reply, outcome, attr => reply.entry(&TTL, &attr, Generation(0)));
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let outcome = self.state().inode(ino.0).map(|inode| inode.opened += 1);
        answer!(reply, outcome, () => reply.opened(FileHandle(0), FopenFlags::empty()));
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let mut state = self.state();
        if let Ok(inode) = state.inode(ino.0) {
            inode.opened = inode.opened.saturating_sub(1);
        }
        state.sweep(ino.0);
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut state = self.state();
        answer!(reply, state.inode(ino.0), inode => {
            let bytes = inode.cached.get(offset as usize..).unwrap_or_default();
            reply.data(bytes.get(..size as usize).unwrap_or(bytes));
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let outcome = self.state().write(ino.0, offset, data, is_direct(flags));
        answer!(reply, outcome, taken => reply.written(taken as u32));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let slow = self.state().fault;
        if let Some(Fault::SlowSyncs(milliseconds)) = slow {
            self.state().struck += 1;
            std::thread::sleep(Duration::from_millis(milliseconds));
        }
        answer!(reply, self.state().sync(ino.0), () => reply.ok());
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.state().sync_dir(ino.0), () => reply.ok());
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut state = self.state();
        let names: Vec<(OsString, u64)> = match state.inode(ino.0) {
            Ok(dir) => dir.names.iter().map(|(name, ino)| (name.clone(), *ino)).collect(),
            Err(e) => return reply.error(e),
        };
        let dots = [(".".into(), ino.0), ("..".into(), ROOT)];
        for (at, (name, ino)) in (1..).zip(dots.into_iter().chain(names)).skip(offset as usize) {
            let dir = state.inode(ino).is_ok_and(|i| i.dir);
            let kind = if dir { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(ino), at, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let state = self.state();
        let used: u64 = state.inodes.values().map(|i| i.cached.len() as u64).sum();
        let free = if state.fault == Some(Fault::Full) { 0 } else { CAPACITY.saturating_sub(used) / 4096 };
        reply.statfs(CAPACITY / 4096, free, free, 1 << 20, 1 << 20, 4096, 255, 4096);
    }

    fn fallocate(&self, _: &Request, ino: INodeNo, _: FileHandle, at: u64, len: u64, mode: i32, reply: ReplyEmpty) {
        if mode != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let mut state = self.state();
        let outcome = state.grows().and_then(|()| state.inode(ino.0)).map(|inode| {
            if at + len > inode.cached.len() as u64 {
                inode.change(Change::Len(at + len));
            }
        });
        answer!(reply, outcome, () => reply.ok());
    }
}
