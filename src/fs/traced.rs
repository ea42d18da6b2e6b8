//! Remembers what is changed in a file system, and lets somebody act before anything that was there changes.

use super::{DirEntry, File, Fs, Lock, LockError, Space};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was not there before.
    Made,
    /// It holds other bytes.
    Written,
    /// It is gone.
    Removed,
}

/// Called with the path of a file before it changes for the first time; if it fails, so does the change.
pub type Before = Box<dyn Fn(&Path) -> io::Result<()> + Send + Sync>;

/// A file system that passes everything on to another one and remembers which files changed. Directories, and the lock, are
/// not noted.
pub struct TracedFs {
    below: Arc<dyn Fs>,
    trace: Arc<Trace>,
}

struct Trace {
    changes: Mutex<BTreeMap<PathBuf, Change>>,
    before: Before,
}

impl Trace {
    /// A file that was there is about to change.
    fn changes(&self, path: &Path, change: Change) -> io::Result<()> {
        let mut changes = self.changes.lock();
        if !changes.contains_key(path) {
            (self.before)(path)?;
            changes.insert(path.to_path_buf(), change);
        }
        Ok(())
    }

    /// A name is given to a file.
    fn made(&self, path: &Path) {
        let mut changes = self.changes.lock();
        let known = changes.entry(path.to_path_buf()).or_insert(Change::Made);
        if *known == Change::Removed {
            *known = Change::Written;
        }
    }

    /// A name is taken away.
    fn gone(&self, path: &Path) {
        let mut changes = self.changes.lock();
        if changes.get(path) == Some(&Change::Made) {
            changes.remove(path);
        } else {
            changes.insert(path.to_path_buf(), Change::Removed);
        }
    }
}

impl TracedFs {
    /// `before` is called with each file before it changes.
    pub fn new(below: Arc<dyn Fs>, before: Before) -> Self {
        Self { below, trace: Arc::new(Trace { changes: Mutex::default(), before }) }
    }

    /// What has changed so far, by path.
    pub fn changes(&self) -> BTreeMap<PathBuf, Change> {
        self.trace.changes.lock().clone()
    }

    fn exists(&self, path: &Path) -> bool {
        self.below.open(path, false).is_ok()
    }
}

impl Fs for TracedFs {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = self.below.create_new(path)?;
        self.trace.made(path);
        // What is written to it changes nothing that was there.
        Ok(file)
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>> {
        let file = self.below.open(path, write)?;
        if !write {
            return Ok(file);
        }
        Ok(Arc::new(TracedFile { file, path: path.to_path_buf(), trace: self.trace.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.exists(from) {
            self.trace.changes(from, Change::Removed)?;
        }
        if self.exists(to) {
            self.trace.changes(to, Change::Written)?;
        }
        self.below.rename(from, to)?;
        self.trace.gone(from);
        self.trace.made(to);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if self.exists(path) {
            self.trace.changes(path, Change::Removed)?;
        }
        self.below.remove(path)?;
        self.trace.gone(path);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.below.sync_dir(dir)
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.below.hard_link(from, to)?;
        self.trace.made(to);
        Ok(())
    }

    fn links(&self, path: &Path) -> io::Result<u64> {
        self.below.links(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.below.list(dir)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.below.create_dir_all(dir)
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        self.below.space(dir)
    }

    fn lock(&self, path: &Path, about: &str) -> Result<Box<dyn Lock>, LockError> {
        self.below.lock(path, about)
    }

    fn random(&self) -> u64 {
        self.below.random()
    }
}

struct TracedFile {
    file: Arc<dyn File>,
    /// Its name when it was opened.
    path: PathBuf,
    trace: Arc<Trace>,
}

impl File for TracedFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.trace.changes(&self.path, Change::Written)?;
        self.file.write_at(offset, bytes)
    }

    fn write_uncached_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.trace.changes(&self.path, Change::Written)?;
        self.file.write_uncached_at(offset, bytes)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buffer)
    }

    fn read_uncached_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_uncached_at(offset, buffer)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.trace.changes(&self.path, Change::Written)?;
        self.file.allocate(len)
    }

    fn is_at(&self, path: &Path) -> io::Result<bool> {
        self.file.is_at(path)
    }

    fn will_be_read(&self) {
        self.file.will_be_read();
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.file.drop_cache()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{RealFs, replace_durably, write_all_at};
    use std::fs;

    #[test]
    fn what_was_there_is_told_before_it_changes_and_once() {
        let tmp = tempfile::tempdir().unwrap();
        let at = |name: &str| tmp.path().join(name);
        for name in ["written", "removed", "renamed", "replaced", "read"] {
            fs::write(at(name), name).unwrap();
        }
        let told: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
        let tell = told.clone();
        let before = move |path: &Path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_string();
            tell.lock().push((name, fs::read_to_string(path)?));
            Ok(())
        };
        let traced = TracedFs::new(Arc::new(RealFs), Box::new(before));
        traced.open(&at("read"), true).unwrap();
        let file = traced.open(&at("written"), true).unwrap();
        write_all_at(&*file, 0, b"W").unwrap();
        write_all_at(&*file, 1, b"W").unwrap();
        traced.remove(&at("removed")).unwrap();
        assert!(traced.remove(&at("removed")).is_err() && traced.remove(&at("never")).is_err());
        traced.rename(&at("renamed"), &at("moved")).unwrap();
        replace_durably(&traced, &at("replaced"), b"new").unwrap();
        replace_durably(&traced, &at("made"), b"new").unwrap();
        let made = traced.create_new(&at("made.2")).unwrap();
        write_all_at(&*made, 0, b"m").unwrap();
        traced.rename(&at("made.2"), &at("made.3")).unwrap();
        write_all_at(&*made, 0, b"m").unwrap();
        traced.hard_link(&at("read"), &at("linked")).unwrap();
        traced.create_new(&at("passing")).unwrap();
        traced.remove(&at("passing")).unwrap();

        let same = |name: &str| (name.to_string(), name.to_string());
        assert_eq!(*told.lock(), ["written", "removed", "renamed", "replaced"].map(same));
        let changes = traced.changes();
        let changes: Vec<_> = changes.iter().map(|(p, c)| (p.file_name().unwrap().to_str().unwrap(), *c)).collect();
        use Change::{Made, Removed, Written};
        let expected = [
            ("linked", Made),
            ("made", Made),
            ("made.3", Made),
            ("moved", Made),
            ("removed", Removed),
            ("renamed", Removed),
            ("replaced", Written),
            ("written", Written),
        ];
        assert_eq!(changes, expected);
    }

    #[test]
    fn nothing_changes_that_could_not_be_told() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("f");
        fs::write(&path, "old").unwrap();
        let traced = TracedFs::new(Arc::new(RealFs), Box::new(|_| Err(io::Error::other("no room"))));
        let file = traced.open(&path, true).unwrap();
        assert!(file.write_at(0, b"new").is_err() && file.write_uncached_at(0, b"new").is_err());
        assert!(file.allocate(9).is_err() && traced.remove(&path).is_err());
        assert!(traced.rename(&path, &tmp.path().join("g")).is_err() && replace_durably(&traced, &path, b"n").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert!(!traced.changes().contains_key(&path));
    }
}
