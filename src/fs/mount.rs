//! What a directory lies on. Some places keep nothing that is synced to them, however well it is done.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A line of the kernel's mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Kind of file system, as in `/proc/filesystems`.
    pub fs_type: String,
    /// Options of the mount and of the file system, separated by commas.
    pub options: String,
}

impl Mount {
    /// The mount that holds a directory; `None` where the system tells no mounts.
    ///
    /// # Errors
    /// As `realpath(3)`.
    pub fn of(dir: &Path) -> io::Result<Option<Self>> {
        let Ok(table) = std::fs::read_to_string("/proc/self/mountinfo") else { return Ok(None) };
        Ok(find(&table, &dir.canonicalize()?))
    }

    /// Why what is synced here may be gone all the same, in words for an operator.
    pub fn doubt(&self) -> Option<&'static str> {
        let barriers_off = |option: &str| matches!(option, "nobarrier" | "barrier=0" | "barrier=none");
        match &*self.fs_type {
            "tmpfs" | "ramfs" | "devtmpfs" => {
                Some("it is in memory and gone when the machine restarts: put it on a disk")
            }
            "overlay" | "overlayfs" | "aufs" => {
                Some("it is the container's own layer and goes with the container: mount a volume")
            }
            "nfs" | "nfs4" | "cifs" | "smb3" | "9p" | "afs" | "ceph" | "glusterfs" | "lustre" | "virtiofs" => {
                Some("it is a network file system: what a sync makes durable is up to its server")
            }
            fuse if fuse == "fuse" || fuse.starts_with("fuse.") => {
                Some("it is a file system in user space: what a sync makes durable is up to its program")
            }
            _ if self.options.split(',').any(barriers_off) => Some(
                "it is mounted without write barriers: a power cut may take what was synced; mount it with barriers",
            ),
            _ => None,
        }
    }
}

/// Can a file in one directory have a second name in the other? By their devices: two mounts of one file system may refuse it still.
///
/// # Errors
/// As `stat(2)`.
pub fn are_on_one_file_system(one: &Path, other: &Path) -> io::Result<bool> {
    Ok(std::fs::metadata(one)?.dev() == std::fs::metadata(other)?.dev())
}

/// The last mount on the longest part of the path, from the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
fn find(table: &str, path: &Path) -> Option<Mount> {
    let mut found: Option<(usize, Mount)> = None;
    for line in table.lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else { continue };
        let mut mount = mount.split(' ').skip(4);
        let (Some(point), Some(options)) = (mount.next(), mount.next()) else { continue };
        let mut file_system = file_system.split(' ');
        let (Some(fs_type), Some(_), Some(own)) = (file_system.next(), file_system.next(), file_system.next()) else {
            continue;
        };
        let point = unescape(point);
        // What is mounted later on the same directory hides what was there.
        if path.starts_with(&point) && found.as_ref().is_none_or(|(len, _)| point.len() >= *len) {
            let mount = Mount { fs_type: fs_type.to_string(), options: format!("{options},{own}") };
            found = Some((point.len(), mount));
        }
    }
    found.map(|(_, mount)| mount)
}

/// Blanks and backslashes are in octal: `\040`.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (code, part.get(3..)) {
            (Some(code), Some(rest)) => {
                out.push(char::from(code));
                out.push_str(rest);
            }
            _ => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
22 21 0:20 / /run rw,nosuid - tmpfs tmpfs rw,size=100k
23 21 0:30 / /data rw,noatime - xfs /dev/sdb1 rw,nobarrier
24 23 0:31 / /data/my\\040logs rw - nfs4 server:/x rw,vers=4.2
25 21 0:32 / /twice rw - ext4 /dev/sdc1 rw
26 25 0:33 / /twice rw - overlay overlay rw,lowerdir=/a
27 21 0:34 / /user rw - fuse.sshfs host: rw
a line that says nothing
";

    #[test]
    fn doubtful_mounts_are_told() {
        let doubt = |path: &str| find(TABLE, Path::new(path)).and_then(|m| m.doubt()).unwrap_or("none");
        for (path, part) in [
            ("/", "none"),
            ("/running/late", "none"),
            ("/run/timberline", "in memory"),
            ("/data", "without write barriers"),
            ("/data/my logs/wal", "network file system"),
            ("/data/my", "without write barriers"),
            ("/twice/x", "container's own layer"),
            ("/user", "user space"),
        ] {
            assert!(doubt(path).contains(part), "{path}: {}", doubt(path));
        }
        assert_eq!(find("", Path::new("/")), None);
    }

    #[test]
    fn this_machine_tells_its_mounts() {
        let dir = tempfile::tempdir().unwrap();
        let mount = Mount::of(dir.path()).unwrap().expect("Linux tells its mounts");
        assert!(!mount.fs_type.is_empty() && mount.options.contains("rw"), "{mount:?}");
        assert!(Mount::of(&dir.path().join("none")).is_err());
    }
}
