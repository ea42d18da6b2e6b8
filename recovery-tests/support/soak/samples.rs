//! What the server uses, second by second.

use super::load::Field;
use super::rig::{MEMORY, MEMORY_SLACK, WAL_LIMIT, files, load_average, open, proc_figure};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub struct Sample {
    pub at: Duration,
    pub resident: u64,
    pub files: usize,
    pub others: usize,
    pub wal: u64,
    pub blocks: u64,
    /// Of the whole machine.
    pub load: f64,
}

impl Sample {
    /// Of the running process, if there is one.
    fn take(field: &Field, data: &Path, begin: Instant) -> Option<Self> {
        let pid = field.pid.load(Ordering::SeqCst);
        let resident = proc_figure(pid, "status", "VmRSS:") * 1024;
        let (files_open, others) = open(pid);
        let ((_, wal), (_, blocks)) = (files(data, "wal"), files(data, "blocks"));
        (pid != 0 && resident > 0).then_some(Self {
            at: begin.elapsed(),
            resident,
            files: files_open,
            others,
            wal,
            blocks,
            load: load_average(),
        })
    }

    fn judge(&self, field: &Field) {
        if self.resident > MEMORY + MEMORY_SLACK {
            field.wrong(format!("{} MB are resident", self.resident >> 20));
        }
        if self.wal > WAL_LIMIT {
            field.wrong(format!("the log takes {} MB", self.wal >> 20));
        }
    }
}

/// Takes a sample each second until told to stop.
pub fn sample(field: &Field, data: &Path, begin: Instant) -> Vec<Sample> {
    let mut samples = Vec::new();
    while !field.stop.load(Ordering::Relaxed) {
        if let Some(sample) = Sample::take(field, data, begin) {
            sample.judge(field);
            samples.push(sample);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    samples
}

/// How much memory grows in an hour, as a part of its mean: the line that fits the samples best.
pub fn slope(samples: &[Sample]) -> Option<f64> {
    let n = samples.len() as f64;
    let mean = |of: &dyn Fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / n;
    let (hours, bytes) = (|s: &Sample| s.at.as_secs_f64() / 3600.0, |s: &Sample| s.resident as f64);
    let (middle, level) = (mean(&hours), mean(&bytes));
    let spread = mean(&|s| (hours(s) - middle).powi(2));
    let together = mean(&|s| (hours(s) - middle) * (bytes(s) - level));
    (samples.len() > 10 && spread > 0.0 && level > 0.0).then(|| together / spread / level)
}
