//! Syncs that fail closed: what one sync loses, no other can know, so after a failed one none succeeds.

use super::{DirEntry, File, Fs, Lock, LockError, Space, is_no_space, is_shortage};
use crate::planted::{Bug, is};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file system for one process: once a sync of a file or directory has failed, none succeeds any more, and none that
/// was under way then.
///
/// Who asks a disk to flush its cache takes with him what others have written. If the disk cannot, it tells only him, and
/// the others' bytes may be gone although their own syncs succeed a moment later. So a sync counts only if none that ran
/// beside it has failed, whatever file that was for: it waits for those.
pub struct FailClosedFs {
    below: Arc<dyn Fs>,
    syncs: Arc<Syncs>,
}

struct ClosedFile {
    file: Arc<dyn File>,
    path: PathBuf,
    syncs: Arc<Syncs>,
}

#[derive(Default)]
struct Syncs {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    begun: u64,
    running: BTreeSet<u64>,
    /// What failed first.
    failure: Option<String>,
    tell: Option<Box<dyn Fn(io::Error) + Send>>,
}

impl State {
    fn check(&self) -> io::Result<()> {
        self.failure.as_ref().map_or(Ok(()), |why| Err(io::Error::other(why.clone())))
    }

    fn fail(&mut self, path: &Path, error: &io::Error) {
        let why =
            || format!("a sync of {} failed ({error}): others may have lost what they wrote before it", path.display());
        let why = self.failure.get_or_insert_with(why);
        if let Some(tell) = self.tell.take() {
            tell(io::Error::other(why.clone()));
        }
    }
}

impl Syncs {
    fn run(
        &self,
        path: &Path,
        is_harmless: fn(&io::Error) -> bool,
        sync: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        if [Bug::SyncRetried, Bug::SyncBesideIgnored, Bug::SyncErrorSwallowed].into_iter().any(is) {
            return sync();
        }
        let mut state = self.state.lock();
        state.check()?;
        let number = state.begun;
        state.begun += 1;
        state.running.insert(number);
        drop(state);
        let outcome = sync();
        let mut state = self.state.lock();
        state.running.remove(&number);
        if let Some(error) = outcome.as_ref().err().filter(|e| !is_harmless(e)) {
            state.fail(path, error);
        }
        self.ended.notify_all();
        outcome?;
        let end = state.begun;
        while state.failure.is_none() && state.running.first().is_some_and(|first| *first < end) {
            self.ended.wait(&mut state);
        }
        state.check()
    }
}

/// Has such a failure cost no other file anything? No space for a file's own pages has not, nor a directory that cannot be
/// opened. A file system that says that it is read-only has given up its journal.
fn is_harmless(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    let is_full = is_no_space(error) && error.kind() != ReadOnlyFilesystem;
    is_full || is_shortage(error) || [NotADirectory, NotFound, PermissionDenied].contains(&error.kind())
}

/// As [`is_harmless`], of a directory that is made: that a file system is read-only is found before anything is flushed.
fn is_harmless_to_make(error: &io::Error) -> bool {
    is_harmless(error) || is_no_space(error)
}

impl FailClosedFs {
    /// Over another file system, for as long as the process lives.
    pub fn new(below: Arc<dyn Fs>) -> Self {
        Self { below, syncs: Arc::default() }
    }

    fn file(&self, path: &Path, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(ClosedFile { file, path: path.to_path_buf(), syncs: self.syncs.clone() })
    }
}

impl Fs for FailClosedFs {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.file(path, self.below.create_new(path)?))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn File>> {
        Ok(self.file(path, self.below.open(path, write)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.below.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.below.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.syncs.run(dir, is_harmless, || self.below.sync_dir(dir))
    }

    fn on_failed_sync(&self, tell: Box<dyn Fn(io::Error) + Send>) {
        let mut state = self.syncs.state.lock();
        match state.check() {
            Ok(()) => state.tell = Some(tell),
            Err(error) => tell(error),
        }
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.below.hard_link(from, to)
    }

    fn links(&self, path: &Path) -> io::Result<u64> {
        self.below.links(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.below.list(dir)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.syncs.run(dir, is_harmless_to_make, || self.below.create_dir_all(dir))
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

impl File for ClosedFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_at(offset, bytes)
    }

    fn write_uncached_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_uncached_at(offset, bytes)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buffer)
    }

    fn read_uncached_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_uncached_at(offset, buffer)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.syncs.run(&self.path, is_harmless, || self.file.sync_data())
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
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
    use crate::fs::RealFs;
    use std::sync::mpsc;
    use std::time::Duration;

    const EIO: i32 = 5;

    fn failed(errno: i32) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(errno))
    }

    /// A sync of another file is under way; this one has succeeded below. Returns what is said of it, which waits for the other.
    fn beside(other: fn() -> io::Result<()>) -> io::Result<()> {
        let syncs = &Syncs::default();
        let (begun, has_begun) = mpsc::channel();
        let (end, may_end) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let running = scope.spawn(move || {
                syncs.run(Path::new("other"), is_harmless, || {
                    begun.send(()).unwrap();
                    may_end.recv().unwrap();
                    other()
                })
            });
            has_begun.recv().unwrap();
            let (said, says) = mpsc::channel();
            scope.spawn(move || said.send(syncs.run(Path::new("own"), is_harmless, || Ok(()))).unwrap());
            assert!(says.recv_timeout(Duration::from_millis(50)).is_err(), "it does not wait for the other");
            end.send(()).unwrap();
            assert_eq!(running.join().unwrap().is_ok(), other().is_ok());
            says.recv_timeout(Duration::from_secs(10)).unwrap()
        })
    }

    #[test]
    fn a_sync_counts_when_those_beside_it_have_succeeded() {
        assert!(beside(|| Ok(())).is_ok());
        let error = beside(|| failed(EIO)).unwrap_err().to_string();
        assert!(error.contains("a sync of other failed") && error.contains("os error 5"), "{error}");
    }

    #[test]
    fn after_a_failed_sync_none_is_tried() {
        let syncs = Syncs::default();
        assert_eq!(syncs.run(Path::new("a"), is_harmless, || failed(EIO)).unwrap_err().raw_os_error(), Some(EIO));
        let error = syncs.run(Path::new("b"), is_harmless, || panic!("it is tried")).unwrap_err().to_string();
        assert!(error.contains("a sync of a failed"), "{error}");
    }

    #[test]
    fn what_took_nothing_from_others_is_no_failure_of_theirs() {
        const ENOENT: i32 = 2;
        const EMFILE: i32 = 24;
        const ENOSPC: i32 = 28;
        const EDQUOT: i32 = 122;
        for errno in [ENOENT, EMFILE, ENOSPC, EDQUOT] {
            let syncs = Syncs::default();
            assert_eq!(
                syncs.run(Path::new("a"), is_harmless, || failed(errno)).unwrap_err().raw_os_error(),
                Some(errno)
            );
            syncs.run(Path::new("b"), is_harmless, || Ok(())).unwrap();
        }
    }

    #[test]
    fn a_sync_that_finds_the_file_system_read_only_fails_the_others_but_not_who_makes_a_directory() {
        const EROFS: i32 = 30;
        for (is_harmless, spares_others) in [(is_harmless as fn(&_) -> _, false), (is_harmless_to_make, true)] {
            let syncs = Syncs::default();
            assert!(syncs.run(Path::new("a"), is_harmless, || failed(EROFS)).is_err());
            assert_eq!(syncs.run(Path::new("b"), is_harmless, || Ok(())).is_ok(), spares_others);
        }
        let syncs = Syncs::default();
        assert!(syncs.run(Path::new("a"), is_harmless_to_make, || failed(EIO)).is_err());
        assert!(syncs.run(Path::new("b"), is_harmless, || Ok(())).is_err());
    }

    #[test]
    fn a_failure_is_told_once_and_to_who_asks_later() {
        let fs = FailClosedFs::new(Arc::new(RealFs));
        let (tell, told) = mpsc::channel();
        let again = tell.clone();
        fs.on_failed_sync(Box::new(move |error| tell.send(error.to_string()).unwrap()));
        assert!(fs.sync_dir(Path::new("no such directory")).is_err());
        assert!(told.try_recv().is_err(), "a directory that is not there has lost nothing");
        for _ in 0..2 {
            assert!(fs.syncs.run(Path::new("x"), is_harmless, || failed(EIO)).is_err());
        }
        assert!(told.recv().unwrap().contains("a sync of x failed"));
        assert!(told.try_recv().is_err(), "it is told twice");
        fs.on_failed_sync(Box::new(move |error| again.send(error.to_string()).unwrap()));
        assert!(told.recv().unwrap().contains("a sync of x failed"));
    }
}
