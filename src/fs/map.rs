use std::io;
use std::ops::Deref;
use std::path::Path;

/// A read-only memory map of a file, for tools that look and never serve: a map reads the page cache, and faults if
/// the file shrinks or the disk fails below it. The server reads with [`super::File::read_at`] instead.
pub struct Map(Option<memmap2::Mmap>);

impl Map {
    /// Maps the whole file as it is now; an empty file is an empty slice.
    ///
    /// # Errors
    /// As `open(2)` and `mmap(2)`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = std::fs::File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Ok(Self(None));
        }
        // SAFETY: the bytes may change under the map while a server writes the file. They are only ever read as plain
        // bytes and every value is checked by its CRC before it is believed, so a change gives a checksum error. Our
        // server never shortens a segment; if somebody does, the process gets SIGBUS, which ends a look-only tool.
        #[allow(unsafe_code)]
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self(Some(map)))
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}
