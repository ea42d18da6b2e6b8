//! Why a command ended early, the exit code for it, and the next command to try.

use std::io;
use std::path::{Path, PathBuf};

/// Why a command could not do its work. Damage is no error: it is what the commands look for.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The arguments fit their syntax but not the log.
    #[error("{0}")]
    Usage(String),
    /// The directory holds no log.
    #[error("{0} holds no log: neither a wal directory nor segments (<20 digits>.wal)")]
    NoLog(PathBuf),
    /// The write-ahead log names blocks, and the directory where they are looked for is not there.
    #[error("the log has blocks, and the directory {0} is not there: is ingester.blocks.dir set?")]
    NoBlocks(PathBuf),
    /// The disk or the permissions.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A segment of a newer format.
    #[error("{segment} has format version {version}, this program reads version {}", crate::wal::format::VERSION)]
    Version {
        /// File name.
        segment: String,
        /// Its version.
        version: u16,
    },
    /// A record of a kind that this program does not know and that may not be skipped.
    #[error("the record at {segment}:{offset} has kind {kind}, which this program does not know")]
    Kind {
        /// Segment number.
        segment: u64,
        /// Offset in the segment.
        offset: u64,
        /// Number of the kind.
        kind: u8,
    },
    /// The directory changed, and all of it was needed.
    #[error("{0} changes while it is read")]
    Changing(PathBuf),
    /// The directory changed faster than it could be read.
    #[error("segments were removed in each of {0} attempts to read {1}")]
    Restless(u32, PathBuf),
    /// A tool could not do its work.
    #[error("{what}")]
    Tool {
        /// What happened.
        what: String,
        /// What to try next.
        next: String,
        /// Exit code.
        code: u8,
    },
    /// The output could not be written.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
}

impl InspectError {
    /// Makes an [`InspectError::Io`].
    pub fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { what, path, source }
    }

    /// The reader of the output has gone away, which is its right.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(e) if e.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Exit code: 2 usage, 3 I/O, 5 unknown version.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::NoLog(_)
            | Self::NoBlocks(_)
            | Self::Io { .. }
            | Self::Changing(_)
            | Self::Restless(..)
            | Self::Output(_) => 3,
            Self::Version { .. } | Self::Kind { .. } => 5,
            Self::Tool { code, .. } => *code,
        }
    }

    /// What to try next, as a whole sentence or command.
    pub fn next(&self) -> String {
        match self {
            Self::Usage(_) => "wal-inspect ls, which shows the segments".to_string(),
            Self::NoLog(_) => "wal-inspect -d DIR, with the data directory of the server; and --wal-dir DIR if ingester.wal.dir is set, \
                               --blocks-dir DIR if ingester.blocks.dir is set"
                .to_string(),
            Self::NoBlocks(_) => "the same command with --blocks-dir DIR, where ingester.blocks.dir is; if the blocks are lost, an empty \
                                  directory there shows what was in them"
                .to_string(),
            Self::Io { path, source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                format!("sudo -u <user of the server> wal-inspect ..., which may read {}", path.display())
            }
            Self::Io { path, source, .. } if source.kind() == io::ErrorKind::NotFound => {
                let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                format!("ls -l {}, then wal-inspect -d DIR with the data directory of the server, and --wal-dir or --blocks-dir if a log lies elsewhere", parent.display())
            }
            Self::Io { path, source, .. } if source.kind() == io::ErrorKind::InvalidData => {
                format!("ls -l {}: no server made this file", path.display())
            }
            Self::Changing(_) => {
                "the same command with the server stopped, or with a copy of the directory".to_string()
            }
            Self::Io { .. } => "dmesg, which shows whether the disk failed".to_string(),
            Self::Version { .. } | Self::Kind { .. } => {
                "wal-inspect --version, and the wal-inspect of the Timberline that wrote the log".to_string()
            }
            Self::Tool { next, .. } => next.clone(),
            Self::Restless(..) => "the same command again".to_string(),
            Self::Output(_) => "df, which shows whether the target has space".to_string(),
        }
    }
}
