//! Bytes of simulated files: pages that copies share, each with its hash, so that a copy of a disk and the hash of a
//! disk cost no bytes.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use timberline::fs::{DirEntry, File, Fs, Lock, LockError, Space};

pub const PAGE: usize = 4096;
/// Most disks write this many bytes at once or not at all.
pub const SECTOR: usize = 512;

#[derive(Clone)]
struct Page {
    /// Computed when it is asked for: a page of an image is changed more than once.
    hash: OnceLock<u64>,
    bytes: [u8; PAGE],
}

impl Page {
    fn zero() -> &'static Arc<Self> {
        static ZERO: OnceLock<Arc<Page>> = OnceLock::new();
        ZERO.get_or_init(|| Arc::new(Self { hash: OnceLock::new(), bytes: [0; PAGE] }))
    }

    fn hash(&self) -> u64 {
        *self.hash.get_or_init(|| hash_of(&self.bytes))
    }
}

/// A number from numbers, the same on every machine: for coins (splitmix64).
pub fn mix(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0x1234_5678_9ABC_DEF0, |state, n| {
        let mut z = (state ^ n).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

/// A hash for telling contents apart: the two CRCs that the processor computes, which are fast in every profile.
pub fn hash_of(bytes: &[u8]) -> u64 {
    u64::from(crc32fast::hash(bytes)) << 32 | u64::from(crc32c::crc32c(bytes))
}

/// The bytes of a file. Clones share their pages.
#[derive(Clone, Default)]
pub struct Content {
    pages: Vec<Arc<Page>>,
    len: u64,
}

impl Content {
    pub fn of(bytes: &[u8]) -> Self {
        let mut out = Self::default();
        out.put(0, bytes);
        out
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    /// Writes bytes and grows the file if they end behind it.
    pub fn put(&mut self, offset: u64, mut bytes: &[u8]) {
        self.len = self.len.max(offset + bytes.len() as u64);
        self.pages.resize(self.pages.len().max(self.len.div_ceil(PAGE as u64) as usize), Page::zero().clone());
        let mut at = offset as usize;
        while !bytes.is_empty() {
            let (page, start) = (at / PAGE, at % PAGE);
            let n = bytes.len().min(PAGE - start);
            self.put_in_page(page, start, &bytes[..n]);
            bytes = &bytes[n..];
            at += n;
        }
    }

    fn put_in_page(&mut self, page: usize, start: usize, bytes: &[u8]) {
        if self.pages[page].bytes[start..start + bytes.len()] == *bytes {
            return;
        }
        let new = Arc::make_mut(&mut self.pages[page]);
        new.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        new.hash = OnceLock::new();
    }

    /// Cuts the file, or lets it grow by zeros.
    pub fn set_len(&mut self, len: u64) {
        let pages = len.div_ceil(PAGE as u64) as usize;
        self.pages.resize(pages, Page::zero().clone());
        let used = (len % PAGE as u64) as usize;
        if used > 0 && len < self.len {
            self.put_in_page(pages - 1, used, &[0; PAGE][used..]);
        }
        self.len = len;
    }

    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let n = (buffer.len() as u64).min(self.len.saturating_sub(offset)) as usize;
        let (mut at, mut done) = (offset as usize, 0);
        while done < n {
            let (page, start) = (at / PAGE, at % PAGE);
            let step = (n - done).min(PAGE - start);
            buffer[done..done + step].copy_from_slice(&self.pages[page].bytes[start..start + step]);
            (at, done) = (at + step, done + step);
        }
        n
    }

    /// A sector; zeros behind the end.
    pub fn sector(&self, number: u64) -> &[u8] {
        let at = number as usize * SECTOR;
        self.pages.get(at / PAGE).map_or(&Page::zero().bytes[..SECTOR], |p| &p.bytes[at % PAGE..at % PAGE + SECTOR])
    }

    /// Is this page of both the same memory? Then it is equal.
    pub fn shares_page(&self, other: &Self, page: usize) -> bool {
        let page_of = |c: &Self| c.pages.get(page).unwrap_or(Page::zero()).clone();
        Arc::ptr_eq(&page_of(self), &page_of(other))
    }

    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = vec![0; self.len as usize];
        self.read(0, &mut out);
        out
    }

    pub fn hash(&self) -> u64 {
        self.pages.iter().fold(self.len, |h, p| (h.rotate_left(5) ^ p.hash()).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }
}

/// All files of a disk, as they are after a crash: durable, and read-only. Clones share everything.
#[derive(Clone, Default)]
pub struct Image {
    pub files: BTreeMap<Arc<Path>, Arc<Content>>,
}

impl Image {
    pub fn hash(&self) -> u64 {
        let mut hash = 0u64;
        for (path, content) in &self.files {
            hash = (hash.rotate_left(7) ^ hash_of(path.as_os_str().as_encoded_bytes()) ^ content.hash())
                .wrapping_mul(0xD6E8_FEB8_6659_FD93);
        }
        hash
    }
}

fn read_only<T>() -> io::Result<T> {
    Err(io::Error::from_raw_os_error(30))
}

struct ImageFile(Arc<Content>);

impl File for ImageFile {
    fn write_at(&self, _offset: u64, _bytes: &[u8]) -> io::Result<usize> {
        read_only()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(self.0.read(offset, buffer))
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len())
    }

    fn allocate(&self, _len: u64) -> io::Result<()> {
        read_only()
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }
}

pub struct NoLock;

impl Lock for NoLock {}

impl Fs for Image {
    fn create_new(&self, _path: &Path) -> io::Result<Arc<dyn File>> {
        read_only()
    }

    fn open(&self, path: &Path, _write: bool) -> io::Result<Arc<dyn File>> {
        let content = self.files.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(ImageFile(content.clone())))
    }

    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        read_only()
    }

    fn remove(&self, _path: &Path) -> io::Result<()> {
        read_only()
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn hard_link(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        read_only()
    }

    fn links(&self, path: &Path) -> io::Result<u64> {
        self.files.get(path).map(|_| 1).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        Ok(entries(dir, self.files.iter().map(|(p, c)| (&**p, c.len()))))
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

    fn random(&self) -> u64 {
        self.hash()
    }
}

/// The entries of one directory among these files.
pub fn entries<'a>(dir: &Path, files: impl Iterator<Item = (&'a Path, u64)>) -> Vec<DirEntry> {
    let here = files.filter(|(p, _)| p.parent() == Some(dir));
    here.map(|(p, len)| DirEntry { name: p.file_name().unwrap_or_default().to_string_lossy().into_owned(), len })
        .collect()
}
