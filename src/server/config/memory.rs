//! How much memory this process may use.

use std::fs;
use std::path::Path;

/// Without any answer from the system (no Linux, /proc hidden), plan for a small machine.
const FALLBACK: u64 = 1 << 30;

/// Bytes: the tightest cgroup limit above this process, or else the machine's memory.
pub(super) fn available() -> u64 {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let total = read(Path::new("/proc/meminfo")).and_then(|text| mem_total(&text)).unwrap_or(FALLBACK);
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    cgroup_limit(&groups, read).map_or(total, |limit| limit.min(total))
}

/// `MemTotal` of `/proc/meminfo`.
fn mem_total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The smallest limit of the groups in `/proc/self/cgroup` and those above them; version 2, then version 1.
fn cgroup_limit(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            list if list.split(',').any(|c| c == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => return None,
        };
        // A path with .. (a cgroup namespace) leads nowhere that we may look; the root still counts.
        let depth = Path::new(path).ancestors().filter(|p| !p.to_string_lossy().contains(".."));
        depth.filter_map(|p| read(&Path::new(root).join(p).join(file))?.trim().parse::<u64>().ok()).min()
    });
    // Version 1 writes "no limit" as a huge number; the caller takes the smaller of this and the machine's memory.
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_memory_is_read() {
        assert_eq!(mem_total("MemTotal:       16303032 kB\nMemFree: 1 kB\n"), Some(16_303_032 * 1024));
        for text in ["", "MemTotal: x kB", "MemTotal: 12"] {
            assert_eq!(mem_total(text), None, "{text}");
        }
    }

    #[test]
    fn the_tightest_group_counts() {
        let read = |path: &Path| match path.to_str()? {
            "/sys/fs/cgroup/a/b/memory.max" => Some("max\n".to_string()),
            "/sys/fs/cgroup/a/c/memory.max" => Some("1073741824\n".to_string()),
            "/sys/fs/cgroup/a/memory.max" => Some("536870912\n".to_string()),
            "/sys/fs/cgroup/memory/x/memory.limit_in_bytes" => Some("268435456\n".to_string()),
            _ => None,
        };
        assert_eq!(cgroup_limit("0::/a/b\n", read), Some(512 << 20));
        assert_eq!(cgroup_limit("0::/a/c\n", read), Some(512 << 20));
        assert_eq!(cgroup_limit("5:cpu,memory:/x\n0::/a\n", read), Some(256 << 20));
        assert_eq!(cgroup_limit("5:cpu:/x\n", read), None);
        assert_eq!(cgroup_limit("garbage", read), None);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(available() >= 16 << 20);
    }
}
