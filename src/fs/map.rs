use std::fs::Metadata;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;

/// A read-only memory map of a file, for tools that look and never serve: a map reads the page cache, and faults if
/// the file shrinks or the disk fails below it ([`exit_on_map_fault`]). The server reads with [`super::File::read_at`]
/// instead.
///
/// What is behind a map may change at any time, also between the check of a CRC and the use of what it covers: copy it
/// first ([`Map::copy`]).
pub struct Map {
    bytes: Option<memmap2::Mmap>,
    /// Device and inode.
    file: (u64, u64),
}

impl Map {
    /// Maps the whole file as it is now; an empty file is an empty slice.
    ///
    /// # Errors
    /// As `open(2)` and `mmap(2)`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = std::fs::File::open(path)?;
        let metadata = file.metadata()?;
        let identity = identity(&metadata);
        if metadata.len() == 0 {
            return Ok(Self { bytes: None, file: identity });
        }
        // SAFETY: the bytes may change under the map while a server writes the file. They are only ever read as plain
        // bytes, and every value is checked by its CRC before it is believed, so a change gives a checksum error. If
        // the file is shortened, reading gives SIGBUS, which ends the process: see `exit_on_map_fault`.
        #[allow(unsafe_code)]
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self { bytes: Some(map), file: identity })
    }

    /// Bytes in memory of their own: those that the file had while it was called `path`. `None` if the name leads
    /// elsewhere by now, as after the rename with which a server begins to use a segment's file again: then nothing says
    /// what was copied.
    ///
    /// # Errors
    /// As `stat(2)`.
    pub fn copy(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let bytes = self.to_vec();
        match std::fs::metadata(path) {
            Ok(now) => Ok((identity(&now) == self.file).then_some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or_default()
    }
}

static FAULT: OnceLock<(i32, &str)> = OnceLock::new();

/// From now on the fault of a map, for a file that became shorter or a disk that failed, ends the process with this exit
/// code and text on standard error, and not with SIGBUS. For tools; the first call counts.
pub fn exit_on_map_fault(code: i32, text: &'static str) {
    FAULT.get_or_init(|| (code, text));
    // SAFETY: the handler does only what a signal handler may. SIGBUS has no other user: the standard library's own
    // handler looks for stack overflows, which are SIGSEGV on Linux.
    #[allow(unsafe_code)]
    unsafe {
        libc::signal(libc::SIGBUS, on_fault as *const () as libc::sighandler_t)
    };
}

extern "C" fn on_fault(_: libc::c_int) {
    // An atomic load: it is set before the handler is.
    let (code, text) = FAULT.get().copied().unwrap_or((1, ""));
    // SAFETY: write(2) and _exit(2) may be called in a signal handler; the text lives as long as the process.
    #[allow(unsafe_code)]
    unsafe {
        libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
        libc::_exit(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_of_the_file_that_has_the_name() {
        let tmp = tempfile::tempdir().unwrap();
        let (old, new) = (tmp.path().join("1"), tmp.path().join("2"));
        std::fs::write(&old, b"before").unwrap();
        let map = Map::open(&old).unwrap();
        assert_eq!(map.copy(&old).unwrap().as_deref(), Some(&b"before"[..]));
        std::fs::rename(&old, &new).unwrap();
        assert_eq!(map.copy(&old).unwrap(), None);
        // Another file under the old name is another file.
        std::fs::write(&old, b"after").unwrap();
        assert_eq!(map.copy(&old).unwrap(), None);
        std::fs::write(&old, b"").unwrap();
        assert_eq!(Map::open(&old).unwrap().copy(&old).unwrap(), Some(vec![]));
    }
}
