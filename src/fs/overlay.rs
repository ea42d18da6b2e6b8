//! A rehearsal: what is changed is remembered in memory, and what lies below is only read.

use super::{DirEntry, File, Fs, Lock, LockError, Space, read_full_at};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const PAGE: usize = 4096;

/// A file system on top of another one. Whoever reads it sees what was changed; the one below never does. Its lock alone is
/// that of the one below. Memory grows with the bytes that are written, zeros apart.
pub struct OverlayFs {
    below: Arc<dyn Fs>,
    names: Mutex<Names>,
}

#[derive(Default)]
struct Names {
    /// Files that were made, written or renamed; `None` for one that was removed.
    files: BTreeMap<PathBuf, Option<Arc<Node>>>,
    /// Directories that were made.
    dirs: BTreeSet<PathBuf>,
}

impl OverlayFs {
    /// Nothing is changed yet.
    pub fn new(below: Arc<dyn Fs>) -> Self {
        Self { below, names: Mutex::default() }
    }
}

impl Names {
    /// The file of this name, made ours.
    fn node(&mut self, below: &dyn Fs, path: &Path) -> io::Result<Arc<Node>> {
        match self.files.get(path) {
            Some(Some(node)) => Ok(node.clone()),
            Some(None) => Err(io::ErrorKind::NotFound.into()),
            None => {
                let node = Arc::new(Node::over(below.open(path, false)?)?);
                self.files.insert(path.to_path_buf(), Some(node.clone()));
                Ok(node)
            }
        }
    }

    fn exists(&self, below: &dyn Fs, path: &Path) -> bool {
        self.files.get(path).map_or_else(|| below.open(path, false).is_ok(), Option::is_some)
    }

    /// Gives a file a new name.
    fn add(&mut self, below: &dyn Fs, path: &Path, node: Arc<Node>) -> io::Result<()> {
        if self.exists(below, path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.files.insert(path.to_path_buf(), Some(node));
        Ok(())
    }
}

impl Fs for OverlayFs {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let node = Arc::new(Node::default());
        self.names.lock().add(&*self.below, path, node.clone())?;
        Ok(node)
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>> {
        let mut names = self.names.lock();
        if write || names.files.contains_key(path) {
            return Ok(names.node(&*self.below, path)?);
        }
        self.below.open(path, false)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut names = self.names.lock();
        let node = names.node(&*self.below, from)?;
        names.files.insert(from.to_path_buf(), None);
        names.files.insert(to.to_path_buf(), Some(node));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut names = self.names.lock();
        if !names.exists(&*self.below, path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        names.files.insert(path.to_path_buf(), None);
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut names = self.names.lock();
        let node = names.node(&*self.below, from)?;
        names.add(&*self.below, to, node)
    }

    fn links(&self, path: &Path) -> io::Result<u64> {
        let mut names = self.names.lock();
        if !names.files.contains_key(path) {
            return self.below.links(path);
        }
        let node = names.node(&*self.below, path)?;
        Ok(names.files.values().flatten().filter(|other| Arc::ptr_eq(other, &node)).count() as u64)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let names = self.names.lock();
        let mut entries = match self.below.list(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && names.dirs.contains(dir) => Vec::new(),
            listed => listed?,
        };
        entries.retain(|e| !names.files.contains_key(&dir.join(&e.name)));
        for (path, node) in names.files.iter().filter(|(path, _)| path.parent() == Some(dir)) {
            if let (Some(name), Some(node)) = (path.file_name().and_then(|n| n.to_str()), node) {
                entries.push(DirEntry { name: name.to_string(), len: node.content.lock().len });
            }
        }
        Ok(entries)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.names.lock().dirs.extend(dir.ancestors().map(Path::to_path_buf));
        Ok(())
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        match (self.below.space(dir), dir.parent()) {
            // It is made here only.
            (Err(e), Some(parent)) if e.kind() == io::ErrorKind::NotFound => self.space(parent),
            (space, _) => space,
        }
    }

    fn lock(&self, path: &Path, about: &str) -> Result<Box<dyn Lock>, LockError> {
        self.below.lock(path, about)
    }

    fn random(&self) -> u64 {
        self.below.random()
    }
}

/// A file that is ours, over the bytes of one that is not.
#[derive(Default)]
struct Node {
    below: Option<Arc<dyn File>>,
    content: Mutex<Content>,
}

#[derive(Default)]
struct Content {
    len: u64,
    /// Pages that were written, by number; `None` for zeros.
    pages: BTreeMap<u64, Option<Box<[u8; PAGE]>>>,
}

impl Node {
    fn over(below: Arc<dyn File>) -> io::Result<Self> {
        let content = Content { len: below.len()?, ..Content::default() };
        Ok(Self { below: Some(below), content: Mutex::new(content) })
    }

    fn page(&self, content: &Content, number: u64) -> io::Result<[u8; PAGE]> {
        let mut page = [0; PAGE];
        match (content.pages.get(&number), &self.below) {
            (Some(Some(written)), _) => page = **written,
            (None, Some(below)) => drop(read_full_at(&**below, number * PAGE as u64, &mut page)?),
            (Some(None), _) | (None, None) => {}
        }
        Ok(page)
    }
}

/// The pages of a range of bytes: number, the part of the page, and the part of the range.
fn pages(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let start = (at % PAGE as u64) as usize;
        let n = (PAGE - start).min(len - done);
        done += n;
        (n > 0).then_some((at / PAGE as u64, start..start + n, done - n..done))
    })
}

impl File for Node {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut content = self.content.lock();
        for (number, within, of) in pages(offset, bytes.len()) {
            let mut page = if within.len() == PAGE { [0; PAGE] } else { self.page(&content, number)? };
            page[within].copy_from_slice(&bytes[of]);
            let is_zero = page.iter().all(|b| *b == 0);
            content.pages.insert(number, (!is_zero).then(|| Box::new(page)));
        }
        content.len = content.len.max(offset + bytes.len() as u64);
        Ok(bytes.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let content = self.content.lock();
        let len = usize::try_from(content.len.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
        for (number, within, of) in pages(offset, len) {
            let page = self.page(&content, number)?;
            buffer[of].copy_from_slice(&page[within]);
        }
        Ok(len)
    }

    /// What lies below is made durable, as a reader wants it; what is here never is.
    fn sync_data(&self) -> io::Result<()> {
        self.below.as_ref().map_or(Ok(()), |below| below.sync_data())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.content.lock().len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut content = self.content.lock();
        content.len = content.len.max(len);
        Ok(())
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.below.as_ref().map_or(Ok(()), |below| below.drop_cache())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{RealFs, replace_durably, write_all_at, zero_fill};
    use std::fs;

    fn text(fs: &dyn Fs, path: &Path) -> Option<Vec<u8>> {
        let file = fs.open(path, false).ok()?;
        let mut bytes = vec![0; file.len().unwrap() as usize + 1];
        let n = read_full_at(&*file, 0, &mut bytes).unwrap();
        bytes.truncate(n);
        Some(bytes)
    }

    fn names(fs: &dyn Fs, dir: &Path) -> Vec<(String, u64)> {
        let mut names: Vec<_> = fs.list(dir).unwrap().into_iter().map(|e| (e.name, e.len)).collect();
        names.sort();
        names
    }

    /// The same calls on a real directory and on an overlay give the same files; the directory below stays as it was.
    #[test]
    fn an_overlay_reads_as_the_disk_would_and_the_disk_stays() {
        let (real, below) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [&real, &below] {
            fs::write(dir.path().join("kept"), b"kept").unwrap();
            fs::write(dir.path().join("written"), vec![7; 10_000]).unwrap();
            fs::write(dir.path().join("renamed"), b"r").unwrap();
            fs::write(dir.path().join("removed"), b"x").unwrap();
        }
        let before = names(&RealFs, below.path());
        let work = |fs: &dyn Fs, dir: &Path| {
            let file = fs.open(&dir.join("written"), true).unwrap();
            write_all_at(&*file, 4090, b"across a page").unwrap();
            zero_fill(&*file, 8192, 12_288).unwrap();
            write_all_at(&*file, 20_000, b"far").unwrap();
            fs.rename(&dir.join("renamed"), &dir.join("kept.2")).unwrap();
            fs.remove(&dir.join("removed")).unwrap();
            assert!(fs.remove(&dir.join("removed")).is_err() && fs.open(&dir.join("removed"), false).is_err());
            fs.hard_link(&dir.join("written"), &dir.join("linked")).unwrap();
            assert_eq!(fs.links(&dir.join("written")).unwrap(), 2);
            replace_durably(fs, &dir.join("kept"), b"replaced").unwrap();
            let sub = dir.join("sub");
            fs.create_dir_all(&sub).unwrap();
            let made = fs.create_new(&sub.join("made")).unwrap();
            made.allocate(5000).unwrap();
            write_all_at(&*made, 1, b"m").unwrap();
            assert!(fs.create_new(&sub.join("made")).is_err());
            assert!(fs.hard_link(&dir.join("kept"), &sub.join("made")).is_err());
            assert!(fs.list(&dir.join("none")).is_err());
            let all = ["kept", "kept.2", "written", "linked", "renamed", "removed", "sub/made"];
            let texts: Vec<_> = all.iter().map(|name| text(fs, &dir.join(name))).collect();
            (names(fs, dir), names(fs, &sub), texts)
        };
        let overlay = OverlayFs::new(Arc::new(RealFs));
        assert_eq!(work(&overlay, below.path()), work(&RealFs, real.path()));
        assert_eq!(names(&RealFs, below.path()), before);
        assert_eq!(fs::read(below.path().join("written")).unwrap(), vec![7; 10_000]);
        assert!(!below.path().join("sub").exists());
    }

    #[test]
    fn zeros_take_no_memory() {
        let overlay = OverlayFs::new(Arc::new(RealFs));
        let path = Path::new("/nowhere/at/all");
        let file = overlay.create_new(path).unwrap();
        zero_fill(&*file, 0, 64 << 20).unwrap();
        let names = overlay.names.lock();
        let content = names.files[path].as_ref().unwrap().content.lock();
        assert_eq!(content.len, 64 << 20);
        assert!(content.pages.values().all(Option::is_none));
    }
}
