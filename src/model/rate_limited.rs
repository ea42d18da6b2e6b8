//! A limiter for warnings that repeat.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Lets a repeated warning through once in a period, and counts the others.
///
/// ```
/// # use std::time::Duration;
/// # use timberline::model::RateLimited;
/// static REFUSED: RateLimited = RateLimited::new(Duration::from_secs(10));
/// if let Some(suppressed) = REFUSED.due() {
///     tracing::warn!(suppressed, "pushes are refused: the disk is full");
/// }
/// ```
#[derive(Debug)]
pub struct RateLimited {
    period: Duration,
    /// Milliseconds since [`epoch`] from which on the next one is due.
    next: AtomicU64,
    suppressed: AtomicU64,
    total: AtomicU64,
}

impl RateLimited {
    /// The first one is due at once.
    pub const fn new(period: Duration) -> Self {
        Self { period, next: AtomicU64::new(0), suppressed: AtomicU64::new(0), total: AtomicU64::new(0) }
    }

    /// `Some(n)` if the warning is due, where `n` were suppressed since the last one; `None` if it is suppressed.
    pub fn due(&self) -> Option<u64> {
        self.due_at(millis(epoch().elapsed()))
    }

    fn due_at(&self, now: u64) -> Option<u64> {
        let next = self.next.load(Ordering::Relaxed);
        let then = now.saturating_add(millis(self.period));
        let won = now >= next && self.next.compare_exchange(next, then, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if won {
            return Some(self.suppressed.swap(0, Ordering::Relaxed));
        }
        self.suppressed.fetch_add(1, Ordering::Relaxed);
        self.total.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// How many were suppressed since the start.
    pub fn suppressed_total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_warnings_are_counted() {
        let limited = RateLimited::new(Duration::from_secs(10));
        let at = |second: u64| limited.due_at(second * 1000);
        assert_eq!(at(0), Some(0));
        assert_eq!((at(1), at(9)), (None, None));
        assert_eq!(at(10), Some(2));
        assert_eq!(at(25), Some(0));
        assert_eq!(limited.suppressed_total(), 2);
        assert_eq!(RateLimited::new(Duration::MAX).due(), Some(0));
    }
}
