//! The report, in Markdown.

use super::inflict::{Fault, Outcome};
use super::ledger::Answers;
use super::rig::{End, MEMORY, MEMORY_SLACK, WAL_LIMIT};
use super::samples::{Sample, slope};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Bytes to disk for each byte of lines that was acknowledged, at most.
pub const AMPLIFICATION: f64 = 3.0;
/// Growth of memory in an hour, at most, in runs that are long enough to tell.
const GROWTH: f64 = 0.01;
const LONG: Duration = Duration::from_secs(7200);
/// Growth in the whole of a shorter run, at most: each start begins with little, and blocks add up.
const SHORT_GROWTH: f64 = 0.25;
/// Until this long a server grows into its caches; a third of a short run.
const WARM: Duration = Duration::from_secs(600);

/// All that a run has brought.
pub struct Run {
    pub seed: u64,
    pub commit: String,
    pub profile: &'static str,
    /// What was asked for, and what it was.
    pub minutes: f64,
    pub lasted: Duration,
    pub interrupted: bool,
    pub slow: String,
    pub outcomes: Vec<(Fault, Outcome)>,
    pub starts: Vec<(End, Duration)>,
    pub samples: Vec<Sample>,
    pub ledger: Figures,
    pub written: u64,
    pub lines_checked: u64,
    pub violations: (u64, Vec<String>),
    /// Limits of time were so many times longer.
    pub busy: u32,
}

pub struct Figures {
    pub pushes: usize,
    pub acked_pushes: u64,
    pub acked_lines: u64,
    pub acked_bytes: u64,
    pub refused: u64,
    pub unanswered: u64,
}

fn seconds(d: Duration) -> String {
    if d < Duration::from_secs(1) { format!("{} ms", d.as_millis()) } else { format!("{:.1} s", d.as_secs_f64()) }
}

/// Middle and largest.
fn spread(mut times: Vec<Duration>) -> (String, String) {
    times.sort_unstable();
    let at = |i: usize| times.get(i).map_or("-".to_string(), |d| seconds(*d));
    (at(times.len() / 2), at(times.len().saturating_sub(1)))
}

impl Run {
    pub fn amplification(&self) -> f64 {
        self.written as f64 / self.ledger.acked_bytes.max(1) as f64
    }

    fn warm(&self) -> &[Sample] {
        let from = WARM.min(self.lasted / 3);
        &self.samples[self.samples.partition_point(|s| s.at < from)..]
    }

    /// Limit of the growth in an hour.
    fn most_growth(&self) -> f64 {
        let warm = self.warm();
        let hours = warm.last().zip(warm.first()).map_or(0.0, |(b, a)| (b.at - a.at).as_secs_f64() / 3600.0);
        if self.lasted >= LONG { GROWTH } else { SHORT_GROWTH / hours.max(0.01) }
    }

    /// What the figures say against the run.
    pub fn judge(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.amplification() > AMPLIFICATION {
            wrong.push(format!("{:.2} bytes to disk for each byte of lines", self.amplification()));
        }
        if let Some(growth) = slope(self.warm()).filter(|g| *g > self.most_growth()) {
            let most = self.most_growth();
            wrong.push(format!("memory grows by {:.1} % an hour, {:.1} are allowed", growth * 100.0, most * 100.0));
        }
        if self.ledger.acked_pushes == 0 {
            wrong.push("nothing was acknowledged".into());
        }
        wrong
    }

    pub fn markdown(&self) -> String {
        let mut out = String::new();
        // A String takes everything.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "# Soak\n")?;
        writeln!(
            out,
            "Written by `recovery-tests/soak.rs`: load from several tenants and formats while faults arrive. CONTRIBUTING.md has the \
             command; what is checked is told at the head of the program.\n"
        )?;
        let verdict = match self.violations.0 {
            0 => "Passed: no violation.".to_string(),
            n => format!("Failed: {n} violations."),
        };
        writeln!(out, "**{verdict}**\n")?;
        let asked = if self.interrupted {
            format!(" of {} that were asked for: it was stopped", self.minutes)
        } else {
            String::new()
        };
        writeln!(out, "| | |\n|---|---|")?;
        writeln!(out, "| commit | {} |", self.commit)?;
        writeln!(out, "| build | {} |", self.profile)?;
        writeln!(out, "| seed | {} |", self.seed)?;
        writeln!(out, "| minutes of load and faults | {:.1}{asked} |", self.lasted.as_secs_f64() / 60.0)?;
        writeln!(out, "| violations | {} |", self.violations.0)?;
        let load = self.samples.iter().map(|s| s.load).sum::<f64>() / self.samples.len().max(1) as f64;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        writeln!(out, "| processors; load average, all work on the machine included | {processors}; {load:.1} |")?;
        if self.busy > 1 {
            writeln!(out, "| limits of time (`--busy`) | {} times as long: the machine had other work |", self.busy)?;
        }
        self.faults(out)?;
        self.lines(out)?;
        self.resources(out)?;
        if self.violations.0 > 0 {
            writeln!(out, "\n## Violations\n")?;
            for what in &self.violations.1 {
                writeln!(out, "- {}", what.replace('\n', " / "))?;
            }
        }
        Ok(())
    }

    fn faults(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\n## Faults\n\nA slow disk takes {}.\n", self.slow)?;
        writeln!(
            out,
            "| fault | times | pushes taken again after, p50 | max | limit | pushes meanwhile: taken | refused | unanswered | its own answers |\n\
             |---|---|---|---|---|---|---|---|---|"
        )?;
        for fault in Fault::ALL {
            let of_it: Vec<&Outcome> = self.outcomes.iter().filter(|(f, _)| *f == fault).map(|(_, o)| o).collect();
            let (middle, most) = spread(of_it.iter().map(|o| o.again).collect());
            let mut answers: BTreeMap<&str, u64> = BTreeMap::new();
            for (answer, n) in of_it.iter().flat_map(|o| &o.answers) {
                *answers.entry(answer).or_default() += n;
            }
            let answers: Vec<String> = answers.iter().map(|(answer, n)| format!("{answer}: {n}")).collect();
            let pushes = of_it.iter().fold(Answers::default(), |sum, o| sum.plus(o.pushes));
            let limit = seconds(fault.limit() * self.busy);
            writeln!(
                out,
                "| {} | {} | {middle} | {most} | {limit} | {} | {} | {} | {} |",
                fault.name(),
                of_it.len(),
                pushes.acked,
                pushes.refused,
                pushes.unanswered,
                answers.join(", ")
            )?;
        }
        for (end, name) in [(End::Kill, "SIGKILL"), (End::Term, "SIGTERM")] {
            let times: Vec<Duration> = self.starts.iter().filter(|(e, _)| *e == end).map(|(_, d)| *d).collect();
            let n = times.len();
            let (middle, most) = spread(times);
            writeln!(out, "\nStarts after {name}: {n}; ready after {middle} (p50), {most} (max).")?;
        }
        Ok(())
    }

    fn lines(&self, out: &mut String) -> std::fmt::Result {
        let l = &self.ledger;
        writeln!(out, "\n## Lines\n\n| | |\n|---|---|")?;
        writeln!(out, "| pushes | {} |", l.pushes)?;
        writeln!(out, "| acknowledged: pushes | {} |", l.acked_pushes)?;
        writeln!(out, "| acknowledged: lines | {} |", l.acked_lines)?;
        writeln!(out, "| acknowledged: MB of lines | {} |", l.acked_bytes / 1_000_000)?;
        writeln!(out, "| requests refused (503, and 429 of floods) | {} |", l.refused)?;
        writeln!(out, "| requests without an answer | {} |", l.unanswered)?;
        writeln!(out, "| lines read back and compared, all checks together | {} |", self.lines_checked)
    }

    fn resources(&self, out: &mut String) -> std::fmt::Result {
        let most = |of: &dyn Fn(&Sample) -> u64| self.samples.iter().map(of).max().unwrap_or(0);
        let growth = slope(self.warm()).map_or("-".into(), |g| format!("{:+.1} %", g * 100.0));
        let judged = format!("{:+.1} %", self.most_growth() * 100.0);
        let mb = |bytes: u64| bytes / 1_000_000;
        writeln!(out, "\n## Resources\n\n| | | limit |\n|---|---|---|")?;
        writeln!(out, "| resident memory, MB, max | {} | {} |", mb(most(&|s| s.resident)), mb(MEMORY + MEMORY_SLACK))?;
        writeln!(out, "| growth of memory in an hour, after the warm-up | {growth} | {judged} |")?;
        writeln!(out, "| write-ahead log, MB, max | {} | {} |", mb(most(&|s| s.wal)), mb(WAL_LIMIT))?;
        writeln!(out, "| blocks, MB, max | {} | |", mb(most(&|s| s.blocks)))?;
        writeln!(out, "| open files, max | {} | files of both logs and {} |", most(&|s| s.files as u64), FILES)?;
        writeln!(
            out,
            "| open sockets and the like, max | {} | after each fault: as before |",
            most(&|s| s.others as u64)
        )?;
        writeln!(out, "| bytes to disk, MB | {} | |", mb(self.written))?;
        writeln!(out, "| for each byte of acknowledged lines | {:.2} | {AMPLIFICATION} |", self.amplification())
    }
}

/// Files that a server may have open besides those of both logs.
pub const FILES: usize = 8;
/// Sockets and the like that it may have open more than before the first fault.
pub const OTHERS: usize = 8;
