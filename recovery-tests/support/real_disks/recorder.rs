//! A disk in memory below a loop device: it notes each write and each flush, so that what it held at any moment can be
//! made again, and it fails on demand.

use super::ext4::Loop;
use super::fuse::Fuse;
use crate::faults::Random;
use crate::server::Mounted;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use parking_lot::{Mutex, MutexGuard};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

const FILE: u64 = 2;
const SECTOR: usize = 512;
const TTL: Duration = Duration::from_secs(3600);
/// A group of the log begins so, at a block of its own.
const GROUP: &[u8] = b"TGRP";
/// And so a segment.
const SEGMENT: &[u8] = b"TMBRWAL1";
const BLOCK: usize = 4096;

/// What the disk was asked for.
pub enum Event {
    Write(usize, Box<[u8]>),
    Flush,
}

/// What fails next, once, and is fine again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A write of a group of the log.
    Write,
    /// A flush with a group of the log in flight, which is lost. What the file system wrote for itself is kept, so that
    /// what is tried is the log.
    Flush,
    /// The same, with a group of each log in flight. Neither log writes a second one before its first is synced.
    FlushOfBoth,
    /// The same, with a group in flight and the header of a segment that is being made.
    FlushOfSegment,
}

#[derive(Default)]
struct Platter {
    bytes: Vec<u8>,
    /// What a loss of power leaves for sure.
    flushed: Vec<u8>,
    in_flight: Vec<(usize, Box<[u8]>)>,
    /// `None` if nobody wants to know.
    events: Option<Vec<Event>>,
    failure: Option<Failure>,
    failed: u64,
    /// Writes and flushes.
    asked: u64,
}

fn has_block(bytes: &[u8], begins: &[u8]) -> bool {
    bytes.chunks(BLOCK).any(|b| b.starts_with(begins))
}

/// Does a group begin in these bytes?
fn is_group(bytes: &[u8]) -> bool {
    has_block(bytes, GROUP)
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Platter {
    fn write(&mut self, at: usize, bytes: &[u8]) -> Result<(), Errno> {
        self.asked += 1;
        if at + bytes.len() > self.bytes.len() {
            return Err(Errno::ENOSPC);
        }
        if self.failure == Some(Failure::Write) && is_group(bytes) {
            (self.failure, self.failed) = (None, self.failed + 1);
            return Err(Errno::EIO);
        }
        put(&mut self.bytes, at, bytes);
        self.in_flight.push((at, bytes.into()));
        if let Some(events) = &mut self.events {
            events.push(Event::Write(at, bytes.into()));
        }
        Ok(())
    }

    fn fails_now(&self) -> bool {
        let in_flight = |begins: &[u8]| self.in_flight.iter().filter(|(_, b)| has_block(b, begins)).count();
        match self.failure {
            Some(Failure::Flush) => in_flight(GROUP) > 0,
            Some(Failure::FlushOfBoth) => in_flight(GROUP) > 1,
            Some(Failure::FlushOfSegment) => in_flight(GROUP) > 0 && in_flight(SEGMENT) > 0,
            Some(Failure::Write) | None => false,
        }
    }

    fn flush(&mut self) -> Result<(), Errno> {
        self.asked += 1;
        if self.fails_now() {
            (self.failure, self.failed) = (None, self.failed + 1);
            self.in_flight.retain(|(_, b)| !is_group(b));
            self.bytes.clone_from(&self.flushed);
            for (at, bytes) in &self.in_flight {
                put(&mut self.bytes, *at, bytes);
            }
            return Err(Errno::EIO);
        }
        for (at, bytes) in self.in_flight.drain(..) {
            put(&mut self.flushed, at, &bytes);
        }
        if let Some(events) = &mut self.events {
            events.push(Event::Flush);
        }
        Ok(())
    }
}

/// The disk, its loop device, and the file system on it.
pub struct Disk {
    platter: Arc<Mutex<Platter>>,
    // Dropped in this order.
    mounted: Option<Mounted>,
    device: Option<Loop>,
    _blocks: Fuse,
    at: PathBuf,
}

impl Disk {
    /// A disk with these bytes, in `dir`, with nothing mounted. `None` where that is not allowed.
    pub fn new(dir: &Path, image: Vec<u8>, record: bool) -> Option<Self> {
        let blocks = dir.join("blocks");
        let platter =
            Platter { flushed: image.clone(), bytes: image, events: record.then(Vec::new), ..Platter::default() };
        let platter = Arc::new(Mutex::new(platter));
        let served = Fuse::mount(One(platter.clone()), &blocks)?;
        let device = Loop::attach(&blocks.join("disk"))?;
        Some(Self { platter, mounted: None, device: Some(device), _blocks: served, at: dir.join("data") })
    }

    /// Mounts the file system; the kernel replays its journal.
    pub fn mount(&mut self, options: &str) -> Result<(), String> {
        self.mounted = Some(self.device.as_ref().expect("a disk has a device").mount(options, &self.at)?);
        Ok(())
    }

    pub fn unmount(&mut self) {
        drop(self.mounted.take());
    }

    /// Waits until nobody asks for anything: the next flush is that of the next push then, and not one of the file system's own journal,
    /// which could take a group with it and is told to nobody.
    pub fn wait_until_quiet(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut since = (self.platter().asked, Instant::now());
        while since.1.elapsed() < Duration::from_millis(300) {
            assert!(Instant::now() < deadline, "the disk is never left alone");
            std::thread::sleep(Duration::from_millis(5));
            let asked = self.platter().asked;
            if asked != since.0 {
                since = (asked, Instant::now());
            }
        }
    }

    /// Something fails soon, once.
    pub fn fail(&self, failure: Failure) {
        self.platter().failure = Some(failure);
    }

    /// How often something has failed.
    pub fn failed(&self) -> u64 {
        self.platter().failed
    }

    /// What it has been asked for so far, as a number.
    pub fn position(&self) -> impl Fn() -> usize + Send + Sync + 'static {
        let platter = self.platter.clone();
        move || platter.lock().events.as_ref().map_or(0, Vec::len)
    }

    /// All that it was asked for since it is there; nothing is noted any more.
    pub fn take_events(&self) -> Vec<Event> {
        self.platter().events.take().unwrap_or_default()
    }

    /// What a loss of power now leaves at least.
    pub fn flushed(&self) -> Vec<u8> {
        self.platter().flushed.clone()
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock()
    }
}

/// What power loss keeps of the writes in flight: those behind the last flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InFlight {
    Lost,
    Kept,
    /// Each write as a whole, by coin.
    Some,
    /// Each sector by coin.
    Torn,
}

/// Makes what the disk held at one position after the other, which must not go back.
pub struct Images<'a> {
    events: &'a [Event],
    flushed: Vec<u8>,
    at: usize,
    /// Writes behind the last flush.
    in_flight: Vec<usize>,
}

impl<'a> Images<'a> {
    /// Of a disk that began with these bytes.
    pub fn new(first: Vec<u8>, events: &'a [Event]) -> Self {
        Self { events, flushed: first, at: 0, in_flight: Vec::new() }
    }

    /// What is there if power goes when so many events have been.
    pub fn at(&mut self, position: usize, keeps: InFlight, coins: &mut Random) -> Vec<u8> {
        assert!(position >= self.at, "images come in the order of the recording");
        for (n, event) in self.events.iter().enumerate().take(position).skip(self.at) {
            match event {
                Event::Write(..) => self.in_flight.push(n),
                Event::Flush => {
                    for n in self.in_flight.drain(..) {
                        if let Event::Write(at, bytes) = &self.events[n] {
                            put(&mut self.flushed, *at, bytes);
                        }
                    }
                }
            }
        }
        self.at = position;
        let mut image = self.flushed.clone();
        // From nearly nothing to nearly all of it is kept.
        let bias = 1 + coins.below(7);
        for n in &self.in_flight {
            let Event::Write(at, bytes) = &self.events[*n] else { continue };
            match keeps {
                InFlight::Lost => {}
                InFlight::Kept => put(&mut image, *at, bytes),
                InFlight::Some if coins.below(8) < bias => put(&mut image, *at, bytes),
                InFlight::Some => {}
                InFlight::Torn => {
                    for (i, sector) in bytes.chunks(SECTOR).enumerate().filter(|_| coins.below(8) < bias) {
                        put(&mut image, at + i * SECTOR, sector);
                    }
                }
            }
        }
        image
    }
}

/// A directory with one file.
struct One(Arc<Mutex<Platter>>);

impl One {
    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock()
    }

    fn attr(&self, ino: u64) -> FileAttr {
        let size = if ino == FILE { self.platter().bytes.len() as u64 } else { 0 };
        let epoch = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size / SECTOR as u64,
            atime: epoch,
            mtime: epoch,
            ctime: epoch,
            crtime: epoch,
            kind: if ino == FILE { FileType::RegularFile } else { FileType::Directory },
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for One {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "disk" {
            reply.entry(&TTL, &self.attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino.0));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // The kernel keeps nothing of it: each write of the loop device arrives here, and in its order.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let platter = self.platter();
        let bytes = platter.bytes.get(offset as usize..).unwrap_or_default();
        reply.data(bytes.get(..size as usize).unwrap_or(bytes));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.platter().write(offset as usize, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(e) => reply.error(e),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.platter().flush() {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    /// Zeros are written, and nothing is discarded.
    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(Errno::EOPNOTSUPP);
    }
}
