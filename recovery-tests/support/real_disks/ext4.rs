//! ext4 on a loop device, and a shutdown of it as at a power failure (`FS_IOC_SHUTDOWN`).

use crate::server::{Mounted, has, skip};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The bytes of a new file system of this size.
pub fn format(dir: &Path, bytes: u64) -> Option<Vec<u8>> {
    if !has("mkfs.ext4") {
        skip("mkfs.ext4 is not installed");
        return None;
    }
    let image = dir.join("fresh");
    File::create(&image).unwrap().set_len(bytes).unwrap();
    let options = ["-q", "-F", "-m", "0", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,nodiscard"];
    assert!(Command::new("mkfs.ext4").args(options).arg(&image).status().unwrap().success());
    let out = std::fs::read(&image).unwrap();
    std::fs::remove_file(&image).unwrap();
    Some(out)
}

/// A loop device over a file, until dropped.
pub struct Loop(String);

impl Loop {
    /// `None` where that is not allowed.
    pub fn attach(file: &Path) -> Option<Self> {
        let out = Command::new("losetup").args(["-f", "--show"]).arg(file).output();
        match out {
            Ok(out) if out.status.success() => Some(Self(String::from_utf8(out.stdout).unwrap().trim().to_string())),
            Ok(out) => {
                skip(&format!("no loop device is to be had: {}", String::from_utf8_lossy(&out.stderr).trim()));
                None
            }
            Err(e) => {
                skip(&format!("losetup: {e}"));
                None
            }
        }
    }

    /// Mounts it with these options.
    pub fn mount(&self, options: &str, at: &Path) -> Result<Mounted, String> {
        Mounted::attempt(&["-t", "ext4", "-o", options, &self.0], at)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // A device that is still in use goes when it is not any more.
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// How much of the journal a shutdown still writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// What is in memory is gone.
    NoLogFlush = 2,
    /// The journal is written before.
    LogFlush = 1,
}

/// The file system takes and writes nothing any more: all calls fail with EIO until it is mounted again.
pub fn shut_down(at: &Path, how: Shutdown) {
    /// `_IOR('X', 125, __u32)`: `FS_IOC_SHUTDOWN` of `linux/fs.h`.
    const FS_IOC_SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
    let dir = File::open(at).unwrap();
    // SAFETY: the call reads four bytes at the address that it is given, and `Setter` gives it the address of four.
    #[allow(unsafe_code)]
    let done = unsafe { rustix::ioctl::ioctl(&dir, rustix::ioctl::Setter::<FS_IOC_SHUTDOWN, u32>::new(how as u32)) };
    done.unwrap_or_else(|e| panic!("FS_IOC_SHUTDOWN on {}: {e}", at.display()));
}

/// An ext4 file system in a file, which can be shut down and mounted again.
pub struct Ext4 {
    device: Loop,
    at: PathBuf,
    mounted: Option<Mounted>,
}

impl Ext4 {
    pub fn new(dir: &Path, bytes: u64, options: &str) -> Option<Self> {
        let image = dir.join("image");
        std::fs::write(&image, format(dir, bytes)?).unwrap();
        let mut ext4 = Self { device: Loop::attach(&image)?, at: dir.join("data"), mounted: None };
        match ext4.device.mount(options, &ext4.at) {
            Ok(mounted) => ext4.mounted = Some(mounted),
            Err(why) => {
                skip(&why);
                return None;
            }
        }
        Some(ext4)
    }

    pub fn shut_down(&self, how: Shutdown) {
        shut_down(&self.at, how);
    }

    /// Unmounts and mounts: the kernel replays its journal.
    pub fn remount(&mut self, options: &str) {
        drop(self.mounted.take());
        self.mounted = Some(self.device.mount(options, &self.at).unwrap());
    }
}
