//! The data directory: whose it is, and that one process has it.

use super::IngesterConfig;
use crate::codec::crc32;
use crate::fs::{Fs, Lock, LockError, read_full_at, replace_durably};
use crate::wal::{LogKind, file_number};
use std::io;
use std::path::{Path, PathBuf};
use uuid::Uuid;

const FORMAT_VERSION: u32 = 1;

/// What the file `identity` says.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// Version of the directory's layout.
    pub format_version: u32,
    /// Made with the directory; part of every segment.
    pub volume: Uuid,
}

impl Identity {
    /// What the data directory's file says; `None` if the directory is new. Nothing is changed.
    ///
    /// # Errors
    /// It is damaged, of a newer program, or gone from beside segments.
    pub fn of(fs: &dyn Fs, dirs: &Dirs) -> Result<Option<Self>, DataDirError> {
        let shown = || dirs.data.display().to_string();
        let failed = |e| DataDirError::Io(shown(), e);
        let identity = match read(fs, &dirs.data.join("identity")).map_err(failed)? {
            Some(bytes) => parse(&bytes).map_err(|why| DataDirError::Damaged(shown(), why))?,
            None if holds_segments(fs, dirs).map_err(failed)? => return Err(DataDirError::Gone(shown())),
            None => return Ok(None),
        };
        if identity.format_version > FORMAT_VERSION {
            return Err(DataDirError::Version(shown(), identity.format_version));
        }
        Ok(Some(identity))
    }
}

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process has it.
    #[error("{0} is in use by another process ({1}): stop it, or use another data directory")]
    Locked(String, String),
    /// The disk failed.
    #[error("cannot use the data directory {0}: {1}")]
    Io(String, io::Error),
    /// `identity` is damaged.
    #[error("{0}/identity is damaged ({1}): restore it from a backup; it names the volume that the log belongs to")]
    Damaged(String, String),
    /// `identity` is gone, and segments are there.
    #[error(
        "{0}/identity is gone and {0} holds segments: restore it from a backup; it names the volume that the log belongs to"
    )]
    Gone(String),
    /// Made by a newer Timberline.
    #[error("{0} has format version {1}, this program reads version {FORMAT_VERSION}: use the newer program")]
    Version(String, u32),
    /// `ingester.require_data` and nothing there.
    #[error("{0} is empty and ingester.require_data is set: is the right volume mounted?")]
    Empty(String),
}

/// A data directory that this process holds.
pub struct DataDir {
    /// Who it is.
    pub identity: Identity,
    _lock: Box<dyn Lock>,
}

/// The directories of a server.
#[derive(Clone, Debug)]
pub struct Dirs {
    /// LOCK and identity.
    pub data: PathBuf,
    /// Segments of the write-ahead log.
    pub wal: PathBuf,
    /// Segments of the block log.
    pub blocks: PathBuf,
}

impl Dirs {
    /// Those of a configuration.
    pub fn of(config: &IngesterConfig) -> Self {
        let (data, wal, blocks) = (config.data_dir.clone(), config.wal_dir.clone(), config.blocks_dir.clone());
        Self { data, wal, blocks }
    }
}

impl DataDir {
    /// As [`DataDir::take`], for a server.
    ///
    /// # Errors
    /// See [`DataDirError`]; nothing was changed but the lock file.
    pub fn open(config: &IngesterConfig) -> Result<Self, DataDirError> {
        Self::take(&*config.fs, &Dirs::of(config), config.require_data)
    }

    /// Creates the directories if need be, takes the lock, reads or makes the identity. `require_data` refuses a directory
    /// without one.
    ///
    /// # Errors
    /// See [`DataDirError`]; nothing was changed but the lock file.
    pub fn take(fs: &dyn Fs, dirs: &Dirs, require_data: bool) -> Result<Self, DataDirError> {
        let dir = &dirs.data;
        let shown = || dir.display().to_string();
        let failed = |e| DataDirError::Io(shown(), e);
        if require_data && fs.open(&dir.join("identity"), false).is_err() {
            return Err(DataDirError::Empty(shown()));
        }
        fs.create_dir_all(dir).map_err(failed)?;
        let about = format!("pid {}\n", std::process::id());
        let lock = fs.lock(&dir.join("LOCK"), &about).map_err(|e| match e {
            LockError::Held(who) => DataDirError::Locked(shown(), who),
            LockError::Io(e) => DataDirError::Io(shown(), e),
        })?;
        let identity = match Identity::of(fs, dirs)? {
            Some(identity) => identity,
            None => Identity::new(fs).write(fs, dir).map_err(failed)?,
        };
        fs.create_dir_all(&dirs.wal).map_err(failed)?;
        fs.create_dir_all(&dirs.blocks).map_err(failed)?;
        Ok(Self { identity, _lock: lock })
    }
}

/// Does either log hold a segment? With a new identity it would be another volume's.
pub(super) fn holds_segments(fs: &dyn Fs, dirs: &Dirs) -> io::Result<bool> {
    for dir in [&dirs.wal, &dirs.blocks] {
        let entries = match fs.list(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            listed => listed?,
        };
        let segment = |name: &str| [LogKind::Wal, LogKind::Blocks].iter().any(|log| file_number(*log, name).is_some());
        if entries.iter().any(|e| segment(&e.name)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn read(fs: &dyn Fs, path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match fs.open(path, false) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut bytes = vec![0; file.len()?.min(4096) as usize];
    let n = read_full_at(&*file, 0, &mut bytes)?;
    bytes.truncate(n);
    Ok(Some(bytes))
}

impl Identity {
    /// That of a directory that is about to be made.
    pub fn new(fs: &dyn Fs) -> Self {
        let bytes = (u128::from(fs.random()) << 64 | u128::from(fs.random())).to_be_bytes();
        Self { format_version: FORMAT_VERSION, volume: uuid::Builder::from_random_bytes(bytes).into_uuid() }
    }

    /// Writes the file, durably: a line of JSON and a line with its CRC-32 in hexadecimal.
    ///
    /// # Errors
    /// As [`replace_durably`].
    pub fn write(self, fs: &dyn Fs, dir: &Path) -> io::Result<Self> {
        let json = serde_json::to_string(&self)?;
        let text = format!("{json}\n{:08x}\n", crc32(&[json.as_bytes()]));
        replace_durably(fs, &dir.join("identity"), text.as_bytes())?;
        Ok(self)
    }
}

fn parse(bytes: &[u8]) -> Result<Identity, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text".to_string())?;
    let (json, rest) = text.split_once('\n').ok_or("its second line is missing")?;
    if rest.trim() != format!("{:08x}", crc32(&[json.as_bytes()])) {
        return Err("its checksum does not match".into());
    }
    serde_json::from_str(json).map_err(|e| e.to_string())
}
