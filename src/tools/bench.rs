//! `bench`: how long syncs take in a directory. Written is as the log writes: past the page cache, into a file that was
//! filled before.

use crate::fs::{File, Fs, Mount, RealFs, interrupted, watch_interrupts, write_all_uncached_at, zero_fill};
use crate::inspect::args::BenchArgs;
use crate::inspect::output::{Cell, Row, Shape};
use crate::inspect::{InspectError, Report, say};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of the file, as of a segment.
const FILE: u64 = 64 << 20;
/// Bytes that are written between two syncs.
const SIZES: [usize; 3] = [4 << 10, 64 << 10, 1 << 20];

/// Measures.
///
/// # Errors
/// The directory cannot be written to.
pub fn run(args: &BenchArgs, dir: &Path) -> Result<Report, InspectError> {
    watch_interrupts();
    let scratch = Scratch::create(dir)?;
    if let Some(doubt) = Mount::of(dir).ok().flatten().and_then(|mount| mount.doubt()) {
        say(&format!("a sync may promise nothing here: {doubt}"));
    }
    let mut rows = Vec::new();
    for size in SIZES {
        let times = scratch.measure(size, Duration::from_secs(args.seconds))?;
        if interrupted() {
            let (what, next) = ("interrupted".to_string(), "the same command again".to_string());
            return Err(InspectError::Tool { what, next, code: 3 });
        }
        rows.push(row(size, times));
    }
    Ok(Report { sections: vec![("bench", Shape::Many, rows)], found: None })
}

/// A file that goes when it is dropped.
struct Scratch {
    file: Arc<dyn File>,
    path: PathBuf,
}

impl Scratch {
    fn create(dir: &Path) -> Result<Self, InspectError> {
        let path = dir.join("wal-inspect-bench.tmp");
        let file = RealFs.create_new(&path).map_err(InspectError::io("create", &path))?;
        let scratch = Self { file, path };
        let filled = zero_fill(&*scratch.file, 0, FILE).and_then(|()| scratch.file.sync_data());
        filled.map_err(InspectError::io("fill", &scratch.path))?;
        Ok(scratch)
    }

    /// How long each write and its sync took.
    fn measure(&self, size: usize, time: Duration) -> Result<Vec<Duration>, InspectError> {
        let bytes = vec![0x5a; size];
        let (mut at, mut times) = (0, Vec::new());
        let started = Instant::now();
        while started.elapsed() < time && !interrupted() {
            let begun = Instant::now();
            let synced = write_all_uncached_at(&*self.file, at, &bytes).and_then(|()| self.file.sync_data());
            synced.map_err(InspectError::io("write to", &self.path))?;
            times.push(begun.elapsed());
            at = (at + size as u64) % FILE;
        }
        Ok(times)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = RealFs.remove(&self.path) {
            say(&format!("wal-inspect: cannot remove {}: {e}", self.path.display()));
        }
    }
}

fn row(size: usize, mut times: Vec<Duration>) -> Row {
    times.sort_unstable();
    let total: f64 = times.iter().map(Duration::as_secs_f64).sum();
    let at = |percent: usize| {
        let rank = (times.len() * percent).div_ceil(100).max(1) - 1;
        times.get(rank).map_or(0, |t| t.as_micros() as u64)
    };
    vec![
        ("write", Cell::Size(size as u64)),
        ("syncs", (times.len() as u64).into()),
        ("syncs_per_s", ((times.len() as f64 / total.max(1e-9)) as u64).into()),
        ("p50_us", at(50).into()),
        ("p90_us", at(90).into()),
        ("p99_us", at(99).into()),
        ("max_us", at(100).into()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let row = row(4096, (1..=200).rev().map(Duration::from_micros).collect());
        let value = |name: &str| row.iter().find(|(n, _)| *n == name).map(|(_, cell)| cell.clone());
        let expected = [("p50_us", 100), ("p90_us", 180), ("p99_us", 198), ("max_us", 200), ("syncs", 200)];
        for (name, us) in expected {
            assert_eq!(value(name), Some(Cell::Count(us)), "{name}");
        }
        assert_eq!(value("syncs_per_s"), Some(Cell::Count(9950)));
    }
}
