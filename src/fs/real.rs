use super::{DirEntry, File, Fs, Lock, LockError, Space, zero_fill};
use rustix::fs::{self as rfs, FlockOperation, Mode, OFlags};
use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

const FILE_MODE: u32 = 0o640;
const DIR_MODE: u32 = 0o750;

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFs;

/// Offset, length and address of what goes past the page cache are multiples of this.
const DIRECT_ALIGN: usize = 4096;
/// Most bytes that are copied, to be aligned, for one write; larger ones take several.
const DIRECT_STEP: usize = 4 << 20;

struct RealFile(OwnedFd);

impl RealFile {
    /// Does something past the page cache; `None` if it is not aligned, or the file system takes no such thing.
    fn direct(
        &self,
        (offset, len): (u64, usize),
        run: impl FnOnce(&OwnedFd) -> rustix::io::Result<usize>,
    ) -> io::Result<Option<usize>> {
        if !offset.is_multiple_of(DIRECT_ALIGN as u64) || !len.is_multiple_of(DIRECT_ALIGN) {
            return Ok(None);
        }
        let flags = rfs::fcntl_getfl(&self.0)?;
        if rfs::fcntl_setfl(&self.0, flags | OFlags::DIRECT).is_err() {
            return Ok(None);
        }
        let done = run(&self.0);
        rfs::fcntl_setfl(&self.0, flags)?;
        match done {
            // A device with larger blocks, or a file system that notices only now.
            Err(rustix::io::Errno::INVAL) => Ok(None),
            done => Ok(Some(done?)),
        }
    }
}

/// Calls `write` with the bytes, or with the first of them in an aligned buffer.
fn with_aligned<T>(bytes: &[u8], write: impl FnOnce(&[u8]) -> T) -> T {
    thread_local! {
        static ALIGNED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    if bytes.as_ptr().align_offset(DIRECT_ALIGN) == 0 {
        return write(bytes);
    }
    ALIGNED.with_borrow_mut(|buffer| {
        let len = bytes.len().min(DIRECT_STEP);
        if buffer.len() < len + DIRECT_ALIGN {
            buffer.resize(len + DIRECT_ALIGN, 0);
        }
        let start = buffer.as_ptr().align_offset(DIRECT_ALIGN).min(DIRECT_ALIGN);
        let aligned = &mut buffer[start..start + len];
        aligned.copy_from_slice(&bytes[..len]);
        write(aligned)
    })
}

impl File for RealFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::pwrite(&self.0, bytes, offset)?)
    }

    fn write_uncached_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let write = |fd: &OwnedFd| with_aligned(bytes, |bytes| rustix::io::pwrite(fd, bytes, offset));
        match self.direct((offset, bytes.len()), write)? {
            Some(written) => Ok(written),
            None => self.write_at(offset, bytes),
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::pread(&self.0, buffer, offset)?)
    }

    fn read_uncached_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let len = buffer.len();
        // An error that is one comes again.
        if buffer.as_ptr().align_offset(DIRECT_ALIGN) == 0
            && let Ok(Some(read)) = self.direct((offset, len), |fd| rustix::io::pread(fd, &mut *buffer, offset))
        {
            return Ok(read);
        }
        self.read_at(offset, buffer)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(rfs::fdatasync(&self.0)?)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(u64::try_from(rfs::fstat(&self.0)?.st_size).unwrap_or(0))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        match rfs::fallocate(&self.0, rfs::FallocateFlags::empty(), 0, len) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => zero_fill(self, 0, len),
            outcome => Ok(outcome?),
        }
    }

    fn is_at(&self, path: &Path) -> io::Result<bool> {
        let ours = rfs::fstat(&self.0)?;
        match rfs::stat(path) {
            Ok(there) => Ok((there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    fn will_be_read(&self) {
        let _ = rfs::fadvise(&self.0, 0, None, rfs::Advice::Sequential);
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(rfs::fadvise(&self.0, 0, None, rfs::Advice::DontNeed)?)
    }
}

impl Fs for RealFs {
    fn random(&self) -> u64 {
        // A version 4 UUID has six bits that are no coins, in other places of each half.
        let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
        high ^ low.rotate_left(32)
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        Ok(Arc::new(RealFile(rfs::open(path, flags, Mode::from_raw_mode(FILE_MODE))?)))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>> {
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        Ok(Arc::new(RealFile(rfs::open(path, access | OFlags::CLOEXEC, Mode::empty())?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // An empty path is the parent of a bare file name.
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let fd = rfs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(rfs::fsync(&fd)?)
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::hard_link(from, to)
    }

    fn links(&self, path: &Path) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(std::fs::metadata(path)?.nlink())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut out = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(m) => m,
                // Removed between readdir and stat, as a running server does with retired segments.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                out.push(DirEntry { name, len: metadata.len() });
            }
        }
        Ok(out)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        if dir.as_os_str().is_empty() {
            return Ok(());
        }
        let parent = dir.parent().unwrap_or(Path::new("."));
        if dir.is_dir() {
            // An earlier process may have been killed between mkdir and the sync. A parent that we may not read is
            // somebody else's, and older than us.
            return match self.sync_dir(parent) {
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
                outcome => outcome,
            };
        }
        self.create_dir_all(parent)?;
        match std::fs::DirBuilder::new().mode(DIR_MODE).create(dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        self.sync_dir(parent)
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        /// btrfs, ZFS, bcachefs, F2FS: `statfs(2)`.
        const COPYING: [i128; 4] = [0x9123_683E, 0x2FC1_2FC1, 0xCA45_1A4E, 0xF2F5_2010];
        let (s, kind) = (rfs::statvfs(dir)?, rfs::statfs(dir)?.f_type);
        Ok(Space {
            available: s.f_bavail.saturating_mul(s.f_frsize),
            total: s.f_blocks.saturating_mul(s.f_frsize),
            copies: COPYING.contains(&i128::from(kind)),
        })
    }

    fn lock(&self, path: &Path, about: &str) -> Result<Box<dyn Lock>, LockError> {
        let mut file = std::fs::File::from(
            rfs::open(path, OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC, Mode::from_raw_mode(FILE_MODE))
                .map_err(io::Error::from)?,
        );
        match rfs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // Who holds it is a courtesy of the message; the lock is held either way.
                let _ = Read::by_ref(&mut file).take(256).read_to_string(&mut holder);
                return Err(LockError::Held(holder.trim().to_string()));
            }
            Err(e) => return Err(io::Error::from(e).into()),
        }
        // On a full disk the note cannot be written; the lock counts, not the note.
        let _ = file.set_len(0).and_then(|()| file.write_all(about.as_bytes()));
        Ok(Box::new(RealLock { file }))
    }
}

struct RealLock {
    file: std::fs::File,
}

impl Lock for RealLock {}

impl Drop for RealLock {
    /// A lock lives as long as any copy of its descriptor, and a process that another thread is just starting has one.
    fn drop(&mut self) {
        // It ends with the last descriptor at the latest.
        let _ = rfs::flock(self.file.as_fd(), FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{copy_durably, read_full_at, replace_durably, write_all_at, write_all_uncached_at};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_0640_and_directories_0750() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("a/b");
        RealFs.create_dir_all(&dir).unwrap();
        let file = RealFs.create_new(&dir.join("f")).unwrap();
        write_all_at(&*file, 3, b"xyz").unwrap();
        let mut buffer = [9; 8];
        assert_eq!(read_full_at(&*file, 0, &mut buffer).unwrap(), 6);
        assert_eq!(&buffer[..6], b"\0\0\0xyz");
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir.join("f")) & !0o640, 0);
        assert_eq!(mode(&dir) & !0o750, 0);
        assert!(RealFs.create_new(&dir.join("f")).is_err());
    }

    #[test]
    fn what_is_written_past_the_page_cache_is_there() {
        let tmp = tempfile::tempdir().unwrap();
        let file = RealFs.create_new(&tmp.path().join("f")).unwrap();
        for (from, to) in [(0, 1 << 20), (4096, 4096 * 3), (100, 5000), (8192, 300_000)] {
            write_all_at(&*file, 0, &vec![7; 1 << 20]).unwrap();
            zero_fill(&*file, from, to).unwrap();
            write_all_uncached_at(&*file, 700 << 10, &[5; 300 << 10][..]).unwrap();
            let mut now = vec![1; (1 << 20) + 1];
            assert_eq!(read_full_at(&*file, 0, &mut now).unwrap(), 1 << 20);
            for (at, byte) in (0..1u64 << 20).zip(now) {
                let expected = match at {
                    at if (700 << 10..1000 << 10).contains(&at) => 5,
                    at if (from..to).contains(&at) => 0,
                    _ => 7,
                };
                assert_eq!(byte, expected, "at {at} of {from}..{to}");
            }
        }
    }

    /// Wherever it begins, however long it is, and wherever it goes: at the file's end too.
    #[test]
    fn what_is_read_past_the_page_cache_is_the_same() {
        use crate::fs::read_full_uncached_at;
        let tmp = tempfile::tempdir().unwrap();
        let file = RealFs.create_new(&tmp.path().join("f")).unwrap();
        let content: Vec<u8> = (0..100_003u32).map(|n| (n / 7 % 251) as u8).collect();
        write_all_at(&*file, 0, &content).unwrap();
        let mut buffer = vec![1; 128 << 10];
        let page = buffer.as_ptr().align_offset(DIRECT_ALIGN);
        for begin in [page, page + 8] {
            for (offset, len) in
                [(0, 4096), (4096, 65_536), (5, 4096), (8192, 100), (98_304, 8192), (0, 110_592), (110_592, 4096)]
            {
                let into = &mut buffer[begin..begin + len];
                let read = read_full_uncached_at(&*file, offset as u64, into).unwrap();
                let there = content.get(offset..).unwrap_or_default();
                assert_eq!(into[..read], there[..there.len().min(len)], "{len} bytes at {offset}");
            }
        }
        // The flag is taken back: what is written now goes through the cache as before.
        write_all_at(&*file, 3, b"abc").unwrap();
        let mut three = [0; 3];
        assert_eq!((read_full_at(&*file, 3, &mut three).unwrap(), &three), (3, b"abc"));
    }

    #[test]
    fn a_page_buffer_holds_what_was_read_last_and_nothing_else() {
        use crate::fs::PageBuffer;
        use std::ops::Range;
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("f");
        let file = RealFs.create_new(&path).unwrap();
        let content: Vec<u8> = (0..50_003u32).map(|n| (n / 7 % 251) as u8).collect();
        write_all_at(&*file, 0, &content).unwrap();
        let mut buffer = PageBuffer::default();
        assert_eq!(buffer.bytes(), b"");
        let ranges =
            [0..10, 5..4096, 4090..4100, 8192..12_288, 1..50_003, 49_000..60_000, 50_003..50_010, 70_000..70_001];
        let reversed = Range { start: 9000, end: 5000 };
        for range in ranges.into_iter().chain([7..7, reversed]) {
            let (begin, end) = (range.start as usize, range.end as usize);
            let want = content.get(begin.min(content.len())..end.min(content.len())).unwrap_or_default();
            for uncached in [true, false] {
                assert_eq!(buffer.read(&*file, range.clone(), uncached).unwrap(), want, "{range:?}");
                assert_eq!(buffer.bytes(), want, "{range:?}");
            }
        }
        buffer.read(&*file, 0..100, true).unwrap();
        let unreadable = RealFile(std::fs::OpenOptions::new().write(true).open(&path).unwrap().into());
        buffer.read(&unreadable, 0..100, false).unwrap_err();
        assert_eq!(buffer.bytes(), b"");
        buffer.read(&*file, 0..100, true).unwrap();
        buffer.forget();
        assert_eq!(buffer.bytes(), b"");
    }

    #[test]
    fn a_file_knows_whether_a_path_names_it() {
        let tmp = tempfile::tempdir().unwrap();
        let (dir, away) = (tmp.path().join("d"), tmp.path().join("away"));
        RealFs.create_dir_all(&dir).unwrap();
        let path = dir.join("f");
        let file = RealFs.create_new(&path).unwrap();
        assert!(file.is_at(&path).unwrap());
        RealFs.rename(&dir, &away).unwrap();
        assert!(!file.is_at(&path).unwrap(), "no such directory");
        std::fs::write(&dir, b"").unwrap();
        assert!(!file.is_at(&path).unwrap(), "not a directory");
        std::fs::remove_file(&dir).unwrap();
        RealFs.create_dir_all(&dir).unwrap();
        let other = RealFs.create_new(&path).unwrap();
        assert!(!file.is_at(&path).unwrap() && other.is_at(&path).unwrap());
        assert!(file.is_at(&away.join("f")).unwrap());
    }

    #[test]
    fn a_second_lock_names_the_first() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("LOCK");
        let first = RealFs.lock(&path, "pid 7\n").unwrap();
        match RealFs.lock(&path, "pid 8\n") {
            Err(LockError::Held(who)) => assert_eq!(who, "pid 7"),
            _ => panic!("the second lock must be refused"),
        }
        drop(first);
        assert!(RealFs.lock(&path, "pid 8\n").is_ok());
    }

    #[test]
    fn a_copy_of_its_descriptor_does_not_keep_a_lock() {
        let tmp = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(tmp.path().join("LOCK")).unwrap();
        rfs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive).unwrap();
        let copy = file.try_clone().unwrap();
        drop(RealLock { file });
        assert!(RealFs.lock(&tmp.path().join("LOCK"), "pid 8\n").is_ok());
        drop(copy);
    }

    #[test]
    fn a_copy_has_every_byte_and_no_zeros_of_its_own() {
        use std::os::unix::fs::MetadataExt;
        let tmp = tempfile::tempdir().unwrap();
        let (from, to) = (tmp.path().join("from"), tmp.path().join("to"));
        for (len, bytes) in [(0, 0..0), (1, 0..1), (3 << 20, 0..10), (5 << 20, 1_000_000..1_000_001), (1 << 20, 0..0)] {
            let mut content = vec![0u8; len];
            content[bytes].fill(9);
            std::fs::write(&from, &content).unwrap();
            copy_durably(&RealFs, &from, &to).unwrap();
            assert!(std::fs::read(&to).unwrap() == content, "{len} bytes");
            let blocks = std::fs::metadata(&to).unwrap().blocks() * 512;
            assert!(blocks <= 600 << 10, "{blocks} bytes for a copy of {len}");
        }
        assert_eq!(RealFs.list(tmp.path()).unwrap().len(), 2);
        assert!(copy_durably(&RealFs, &tmp.path().join("none"), &to).is_err());
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("identity");
        replace_durably(&RealFs, &path, b"one").unwrap();
        replace_durably(&RealFs, &path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(RealFs.list(tmp.path()).unwrap().len(), 1);
    }
}
