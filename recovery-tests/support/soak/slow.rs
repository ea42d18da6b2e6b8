//! A disk that is slow for a while.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes that the disk takes in a second.
const RATE: u64 = 256 << 10;

/// How a disk is made slow here.
pub enum SlowDisk {
    /// By a control group (version 1) of its own, which holds the server's writes to a rate.
    Throttled { group: PathBuf, device: String },
    /// By freezing the file system: it takes nothing at all.
    Frozen { data: PathBuf },
}

impl SlowDisk {
    /// For the file system of this directory.
    pub fn new(data: &Path) -> Self {
        let blkio = Path::new("/sys/fs/cgroup/blkio");
        let group = blkio.join(format!("timberline-soak-{}", std::process::id()));
        let device = std::fs::metadata(data).map(|m| m.dev()).unwrap_or(0);
        if std::fs::create_dir(&group).is_ok() && group.join("blkio.throttle.write_bps_device").exists() {
            let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
            return Self::Throttled { group, device };
        }
        Self::Frozen { data: data.to_path_buf() }
    }

    pub fn name(&self) -> String {
        match self {
            Self::Throttled { .. } => format!("{} KiB/s (cgroup blkio)", RATE >> 10),
            Self::Frozen { .. } => "nothing at all (fsfreeze): there is no cgroup blkio here".into(),
        }
    }

    pub fn begin(&self, pid: u32) -> Result<(), String> {
        match self {
            Self::Throttled { group, .. } => {
                write(&group.join("cgroup.procs"), &pid.to_string())?;
                self.throttle(RATE)
            }
            Self::Frozen { data } => fsfreeze("--freeze", data),
        }
    }

    pub fn end(&self) {
        let ended = match self {
            Self::Throttled { .. } => self.throttle(0),
            Self::Frozen { data } => fsfreeze("--unfreeze", data),
        };
        if let Err(why) = ended {
            eprintln!("soak: the disk stays slow: {why}");
        }
    }

    /// 0 is no limit.
    fn throttle(&self, rate: u64) -> Result<(), String> {
        let Self::Throttled { group, device } = self else { return Ok(()) };
        write(&group.join("blkio.throttle.write_bps_device"), &format!("{device} {rate}"))
    }
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    std::fs::write(file, text).map_err(|e| format!("{}: {e}", file.display()))
}

fn fsfreeze(what: &str, data: &Path) -> Result<(), String> {
    let status = Command::new("fsfreeze").arg(what).arg(data).status().map_err(|e| format!("fsfreeze: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("fsfreeze {what}: {status}")) }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        // Empty once the server has ended.
        if let Self::Throttled { group, .. } = self {
            let _ = std::fs::remove_dir(group);
        }
    }
}
