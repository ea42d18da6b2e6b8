//! A progress bar for long work, on a terminal only.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

/// Work that is shorter than this shows no bar.
const SHOW_AFTER: Duration = Duration::from_millis(400);

/// Counts bytes and shows them on standard error when that is a terminal and the work is long.
pub struct Progress {
    enabled: bool,
    started: Instant,
    total: u64,
    done: u64,
    what: &'static str,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// `enabled` is false for commands whose output scrolls on the same terminal.
    pub fn new(enabled: bool) -> Self {
        let enabled = enabled && stderr().is_terminal();
        Self { enabled, started: Instant::now(), total: 0, done: 0, what: "", bar: None }
    }

    /// Begins a piece of work of so many bytes; ends the one before.
    pub fn start(&mut self, total: u64, what: &'static str) {
        self.clear();
        (self.started, self.total, self.done, self.what) = (Instant::now(), total, 0, what);
    }

    /// So many bytes more are done.
    pub fn advance(&mut self, bytes: u64) {
        self.done = self.done.saturating_add(bytes);
        if !self.enabled || self.started.elapsed() < SHOW_AFTER {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(self.total).with_message(self.what);
            // The template is constant; a wrong one would only cost its looks.
            match ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}") {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        bar.set_position(self.done);
    }

    /// Takes the bar off the terminal.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
