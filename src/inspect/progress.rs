//! A progress bar for long work, on a terminal only.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

/// Work that is shorter than this shows no bar.
const SHOW_AFTER: Duration = Duration::from_millis(400);

/// Counts bytes and shows them on standard error when that is a terminal and the work is long.
pub struct Progress {
    enabled: bool,
    started: Instant,
    /// Hidden until the work is long: it measures the speed from the beginning.
    bar: ProgressBar,
}

impl Progress {
    /// `enabled` is false for commands whose output scrolls on the same terminal.
    pub fn new(enabled: bool) -> Self {
        Self { enabled: enabled && stderr().is_terminal(), started: Instant::now(), bar: ProgressBar::hidden() }
    }

    /// Begins a piece of work of so many bytes; ends the one before.
    pub fn start(&mut self, total: u64, what: &'static str) {
        self.clear();
        self.started = Instant::now();
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden()).with_message(what);
        // The template is constant; a wrong one would only cost its looks.
        self.bar = match ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}") {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
    }

    /// So many bytes more are done.
    pub fn advance(&mut self, bytes: u64) {
        if self.enabled && self.bar.is_hidden() && self.started.elapsed() >= SHOW_AFTER {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.inc(bytes);
    }

    /// Takes the bar off the terminal.
    pub fn clear(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
