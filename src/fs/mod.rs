//! The only door to the disk. Everything durable goes through [`Fs`] and [`File`], so that tests can stand in for the
//! disk, count its syncs and break them.

mod fail_closed;
mod interrupt;
mod map;
mod mount;
mod overlay;
mod place;
mod real;
mod traced;

pub use fail_closed::FailClosedFs;
pub use interrupt::{interrupted, watch_interrupts};
pub use map::{Map, exit_on_map_fault};
pub use mount::{Mount, are_on_one_file_system};
pub use overlay::OverlayFs;
pub use place::{Place, lock_holder, process_user};
pub use real::RealFs;
pub use traced::{Before, Change, TracedFs};

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open file. Offsets are explicit; there is no shared position.
#[allow(clippy::len_without_is_empty, reason = "the size asks the system and can fail; nobody asks for emptiness")]
pub trait File: Send + Sync {
    /// Writes some bytes at an offset and returns how many; may be fewer than given, as `pwrite(2)`.
    ///
    /// # Errors
    /// As `pwrite(2)`. What the file holds in the written range is unknown then.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize>;

    /// As [`File::write_at`], for bytes that nobody reads soon: where the file system can, they go past the page cache, which
    /// spares the kernel's copy. Offset and length should be multiples of 4096.
    ///
    /// # Errors
    /// As [`File::write_at`].
    fn write_uncached_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.write_at(offset, bytes)
    }

    /// Reads some bytes at an offset and returns how many; 0 at the end of the file.
    ///
    /// # Errors
    /// As `pread(2)`.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// As [`File::read_at`], for bytes that nobody reads again soon: where the file system can, they come past the page cache, which
    /// spares the kernel's pages and its copy. Offset, length and the buffer's address should be multiples of 4096.
    ///
    /// # Errors
    /// As [`File::read_at`].
    fn read_uncached_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_at(offset, buffer)
    }

    /// Makes the file's bytes and size durable (`fdatasync(2)`). A failure is final: the kernel may have dropped the
    /// pages, so the call is never repeated.
    ///
    /// # Errors
    /// As `fdatasync(2)`.
    fn sync_data(&self) -> io::Result<()>;

    /// Size in bytes.
    ///
    /// # Errors
    /// As `fstat(2)`.
    fn len(&self) -> io::Result<u64>;

    /// Gives a new file its size and reserves the space for it, so that a full disk shows now (`fallocate(2)`). Reads as
    /// zeros. Where the file system cannot reserve, zeros are written.
    ///
    /// # Errors
    /// As `fallocate(2)`, or as [`File::write_at`].
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Does this path name the file, and not another one or none? In memory nobody takes a name away from under us.
    ///
    /// # Errors
    /// As `stat(2)`, other than that nothing is there.
    fn is_at(&self, _path: &Path) -> io::Result<bool> {
        Ok(true)
    }

    /// The file will be read from its beginning to its end, so the system may read far ahead of that (`POSIX_FADV_SEQUENTIAL`). It
    /// is advice: whether it is taken, nobody is told.
    fn will_be_read(&self) {}

    /// Drops clean cached pages, so that the next read comes from the disk (`POSIX_FADV_DONTNEED`).
    ///
    /// # Errors
    /// As `posix_fadvise(2)`.
    fn drop_cache(&self) -> io::Result<()>;
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// File name. Names that are not UTF-8 are left out: none of ours is.
    pub name: String,
    /// Size in bytes.
    pub len: u64,
}

/// Space of the file system that holds a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that an unprivileged writer may still take.
    pub available: u64,
    /// All bytes.
    pub total: u64,
    /// What is written over a file takes new space before it gives back the old (copy on write).
    pub copies: bool,
}

/// A lock that lives as long as the value (and the process).
pub trait Lock: Send + Sync {}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it; the text is what that process wrote about itself.
    #[error("locked by {0}")]
    Held(String),
    /// The lock file could not be used.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A file system.
pub trait Fs: Send + Sync {
    /// Creates a file that must not exist yet (mode 0640), open for reading and writing. Not durable before the
    /// directory is synced.
    ///
    /// # Errors
    /// As `open(2)` with `O_CREAT|O_EXCL`.
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Opens an existing file, for reading and, if asked, for writing.
    ///
    /// # Errors
    /// As `open(2)`.
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>>;

    /// # Errors
    /// As `rename(2)`. Not durable before the directory is synced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// # Errors
    /// As `unlink(2)`. Not durable before the directory is synced.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// As `fsync(2)`; final, as for [`File::sync_data`].
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Gives a file another name. Not durable before the directory is synced.
    ///
    /// # Errors
    /// As `link(2)`.
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Names that the file has in its file system.
    ///
    /// # Errors
    /// As `stat(2)`.
    fn links(&self, path: &Path) -> io::Result<u64>;

    /// Files of a directory (not directories), in no order.
    ///
    /// # Errors
    /// As `readdir(3)`.
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;

    /// Creates a directory and its missing parents (mode 0750), durable on return.
    ///
    /// # Errors
    /// As `mkdir(2)` and `fsync(2)`.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// # Errors
    /// As `statvfs(3)`.
    fn space(&self, dir: &Path) -> io::Result<Space>;

    /// Takes an exclusive lock without waiting and writes `about` into its file.
    ///
    /// # Errors
    /// [`LockError::Held`] if another process has it.
    fn lock(&self, path: &Path, about: &str) -> Result<Box<dyn Lock>, LockError>;

    /// Calls this once, when any sync has failed so that others may have lost something; at once if one has. Only
    /// [`FailClosedFs`] looks after that.
    fn on_failed_sync(&self, _tell: Box<dyn Fn(io::Error) + Send>) {}

    /// A number that no file made before has seen: salts and the volume's identity are made of them.
    fn random(&self) -> u64;
}

/// Writes all bytes at an offset; repeats short writes and interrupted calls.
///
/// # Errors
/// The first error of [`File::write_at`]; a write of 0 bytes is `WriteZero`.
pub fn write_all_at(file: &dyn File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    repeat(offset, bytes, |at, rest| file.write_at(at, rest))
}

/// As [`write_all_at`], with [`File::write_uncached_at`].
///
/// # Errors
/// As [`write_all_at`].
pub fn write_all_uncached_at(file: &dyn File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    repeat(offset, bytes, |at, rest| file.write_uncached_at(at, rest))
}

fn repeat(mut offset: u64, mut bytes: &[u8], write: impl Fn(u64, &[u8]) -> io::Result<usize>) -> io::Result<()> {
    while !bytes.is_empty() {
        match write(offset, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(_) if crate::planted::is(crate::planted::Bug::ShortWriteIgnored) => return Ok(()),
            Ok(n) => {
                offset += n as u64;
                bytes = bytes.get(n..).unwrap_or_default();
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes zeros from one offset up to another.
///
/// # Errors
/// As [`write_all_at`].
pub fn zero_fill(file: &dyn File, mut at: u64, end: u64) -> io::Result<()> {
    #[repr(align(4096))]
    struct Zeros([u8; 256 << 10]);
    static ZEROS: Zeros = Zeros([0; _]);
    while at < end {
        let len = (end - at).min(ZEROS.0.len() as u64);
        write_all_uncached_at(file, at, ZEROS.0.get(..len as usize).unwrap_or_default())?;
        at += len;
    }
    Ok(())
}

/// Reads from an offset until the buffer is full or the file ends; returns the bytes read.
///
/// # Errors
/// The first error of [`File::read_at`].
pub fn read_full_at(file: &dyn File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    read_full(buffer, |done, rest| file.read_at(offset + done, rest))
}

/// As [`read_full_at`], with [`File::read_uncached_at`].
///
/// # Errors
/// The first error of [`File::read_uncached_at`].
pub fn read_full_uncached_at(file: &dyn File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    read_full(buffer, |done, rest| file.read_uncached_at(offset + done, rest))
}

/// Memory that begins at a page boundary, which reads past the page cache ask for, and what was read into it last. It is used again.
#[derive(Default)]
pub struct PageBuffer {
    memory: Vec<u8>,
    read: Range<usize>,
}

impl PageBuffer {
    const PAGE: u64 = 4096;

    /// Reads a range of a file, past the page cache if it is `uncached`; shorter where the file ends.
    ///
    /// # Errors
    /// The first error of [`File::read_at`].
    pub fn read(&mut self, file: &dyn File, range: Range<u64>, uncached: bool) -> io::Result<&[u8]> {
        self.forget();
        let begin = range.start - range.start % Self::PAGE;
        let end = range.end.max(begin).next_multiple_of(Self::PAGE);
        let len = usize::try_from(end - begin).unwrap_or(usize::MAX);
        if self.memory.len() < len + Self::PAGE as usize {
            // Zeroed by the allocator, which costs nothing for fresh pages; `resize` would write each byte. More than is wanted, so that it is
            // not made anew for each range that is a little longer than the last.
            self.memory = vec![0; len.next_power_of_two() + Self::PAGE as usize];
        }
        let page = self.memory.as_ptr().align_offset(Self::PAGE as usize).min(Self::PAGE as usize);
        let memory = self.memory.get_mut(page..page + len).unwrap_or_default();
        let read = if uncached { read_full_uncached_at } else { read_full_at };
        let filled = page + read(file, begin, memory)?;
        let at = |offset: u64| (page + (offset - begin) as usize).min(filled);
        self.read = at(range.start)..at(range.end.max(range.start));
        Ok(self.bytes())
    }

    /// Forgets what was read; the memory stays.
    pub fn forget(&mut self) {
        self.read = 0..0;
    }

    /// What was read last; nothing if that failed.
    pub fn bytes(&self) -> &[u8] {
        self.memory.get(self.read.clone()).unwrap_or_default()
    }
}

fn read_full(buffer: &mut [u8], mut read: impl FnMut(u64, &mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        let Some(rest) = buffer.get_mut(done..) else { break };
        match read(done as u64, rest) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Creates or replaces a small file so that after a crash it is the old one or the new one, whole.
///
/// # Errors
/// Any step that failed; the old file is untouched unless the rename succeeded.
pub fn replace_durably(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary_name(path);
    match fs.remove(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let file = fs.create_new(&temporary)?;
    write_all_at(&*file, 0, bytes)?;
    file.sync_data()?;
    fs.rename(&temporary, path)?;
    fs.sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Copies a file: under a temporary name, synced, renamed, its directory synced. Stretches of zeros are left out where they can be.
///
/// # Errors
/// Any step that failed; without the last one the copy may have its temporary name only.
pub fn copy_durably(fs: &dyn Fs, from: &Path, to: &Path) -> io::Result<()> {
    let temporary = temporary_name(to);
    copy(&*fs.open(from, false)?, &*fs.create_new(&temporary)?)?;
    fs.rename(&temporary, to)?;
    fs.sync_dir(to.parent().unwrap_or(Path::new(".")))
}

/// Gives a file a second name, or, where that is on another file system, makes a durable copy of it. The name is not durable
/// before its directory is synced.
///
/// # Errors
/// As `link(2)`; any step of the copy that failed, of which nothing is left then.
pub fn link_or_copy(fs: &dyn Fs, from: &Path, to: &Path) -> io::Result<()> {
    match fs.hard_link(from, to) {
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {}
        outcome => return outcome,
    }
    let temporary = temporary_name(to);
    match fs.remove(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let copied = copy(&*fs.open(from, false)?, &*fs.create_new(&temporary)?);
    if copied.is_err() {
        // The space is needed; that it cannot be given back is the smaller trouble.
        let _ = fs.remove(&temporary);
    }
    copied.and_then(|()| fs.rename(&temporary, to))
}

/// Copies all bytes and syncs them. Stretches of zeros are left out where they can be.
fn copy(from: &dyn File, to: &dyn File) -> io::Result<()> {
    const STEP: usize = 256 << 10;
    let len = from.len()?;
    let mut buffer = vec![0; STEP];
    let mut at = 0;
    while at < len {
        let n = read_full_at(from, at, &mut buffer)?;
        let bytes = buffer.get(..n).unwrap_or_default();
        at += n as u64;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // The last bytes give the copy its length.
        if at >= len || bytes.iter().any(|b| *b != 0) {
            write_all_at(to, at - n as u64, bytes)?;
        }
    }
    to.sync_data()
}

/// The name under which a file is made before it is renamed to its own.
pub fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

/// Are descriptors or memory short, of the process or of the system? Then the error says nothing about the disk, and ends by itself.
pub fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    is_one_of(error, &[Errno::MFILE, Errno::NFILE, Errno::NOMEM])
}

/// Is this error the disk being full, a quota, a file size limit or a read-only mount? Such a state ends by itself.
pub fn is_no_space(error: &io::Error) -> bool {
    use rustix::io::Errno;
    is_one_of(error, &[Errno::NOSPC, Errno::DQUOT, Errno::FBIG, Errno::ROFS])
}

fn is_one_of(error: &io::Error, codes: &[rustix::io::Errno]) -> bool {
    error.raw_os_error().is_some_and(|code| codes.iter().any(|e| e.raw_os_error() == code))
}
