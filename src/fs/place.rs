//! A directory as somebody finds it who wants to write there, whether or not it exists yet. Nothing is changed.

use rustix::fs::{self as rfs, Access, AtFlags, FlockOperation, Mode, OFlags};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where a directory is, or would be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The directory, or the nearest one above it that exists.
    pub found: PathBuf,
    /// Is it there?
    pub exists: bool,
    /// Is what was found a directory?
    pub is_dir: bool,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permissions.
    pub mode: u32,
    /// Its file system.
    pub device: u64,
    /// May this process make files in it?
    pub writable: bool,
}

impl Place {
    /// Looks for a directory, without making it.
    ///
    /// # Errors
    /// As `stat(2)`, other than that nothing is there.
    pub fn of(dir: &Path) -> io::Result<Self> {
        // An empty path is the parent of a bare file name.
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        let metadata = match std::fs::metadata(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let parent = dir.parent().ok_or(e)?;
                return Ok(Self { exists: false, ..Self::of(parent)? });
            }
            found => found?,
        };
        let wanted = Access::WRITE_OK | Access::EXEC_OK;
        Ok(Self {
            found: dir.to_path_buf(),
            exists: true,
            is_dir: metadata.is_dir(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            mode: metadata.mode() & 0o7777,
            device: metadata.dev(),
            writable: rfs::accessat(rfs::CWD, dir, wanted, AtFlags::EACCESS).is_ok(),
        })
    }
}

/// User and group of this process, as the file system sees them.
pub fn process_user() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// What the process that holds a lock has written about itself; `None` if nobody holds it. It is taken for a moment, and
/// nothing is written.
///
/// # Errors
/// As `open(2)` and `flock(2)`, other than that no such file is there.
pub fn lock_holder(path: &Path) -> io::Result<Option<String>> {
    let file = match rfs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        opened => opened?,
    };
    match rfs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut about = String::new();
            // Who it is is a courtesy.
            let _ = std::fs::File::from(file).take(256).read_to_string(&mut about);
            Ok(Some(about.trim().to_string()))
        }
        outcome => {
            outcome?;
            rfs::flock(&file, FlockOperation::Unlock)?;
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{Fs, RealFs};

    #[test]
    fn a_directory_that_is_not_there_is_looked_for_above() {
        let tmp = tempfile::tempdir().unwrap();
        let there = Place::of(tmp.path()).unwrap();
        assert!(there.exists && there.is_dir && there.writable && there.uid == process_user().0);
        let above = Place::of(&tmp.path().join("a/b/c")).unwrap();
        assert_eq!(above, Place { exists: false, ..there });
        std::fs::write(tmp.path().join("f"), b"").unwrap();
        assert!(!Place::of(&tmp.path().join("f")).unwrap().is_dir);
        assert!(Place::of(Path::new("no-such-directory-here")).unwrap().is_dir);
    }

    #[test]
    fn who_holds_a_lock_is_told_and_nothing_is_written() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("LOCK");
        assert_eq!(lock_holder(&path).unwrap(), None);
        assert!(!path.exists());
        let lock = RealFs.lock(&path, "pid 7\n").unwrap();
        assert_eq!(lock_holder(&path).unwrap().as_deref(), Some("pid 7"));
        drop(lock);
        assert_eq!(lock_holder(&path).unwrap(), None);
        assert_eq!(std::fs::read(&path).unwrap(), b"pid 7\n");
        assert!(RealFs.lock(&path, "pid 8\n").is_ok());
    }
}
