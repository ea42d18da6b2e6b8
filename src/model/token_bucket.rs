use std::time::Instant;

/// A token bucket with the arithmetic of Go's `x/time/rate`: it begins full, refills with `rate` tokens a second up to
/// `burst`, and a request takes all of its tokens or none, so one of more than `burst` never passes. Time never runs back.
///
/// Rate and burst come with each call: limits may change while the bucket lives.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenBucket {
    tokens: f64,
    /// The newest moment that it was asked at; `None` before the first one, when it is full.
    at: Option<Instant>,
}

impl TokenBucket {
    /// Tokens that are there.
    pub fn available(&self, rate: f64, burst: f64, now: Instant) -> f64 {
        let elapsed = |at| now.saturating_duration_since(at).as_secs_f64();
        self.at.map_or(burst, |at| (self.tokens + elapsed(at) * rate).min(burst))
    }

    /// Takes `cost` tokens, or none and answers false.
    pub fn take(&mut self, cost: f64, rate: f64, burst: f64, now: Instant) -> bool {
        let tokens = self.available(rate, burst, now);
        let allowed = cost <= tokens;
        self.tokens = if allowed { tokens - cost } else { tokens };
        self.at = self.at.max(Some(now));
        allowed
    }

    /// Gives back what a request that failed afterwards had taken.
    pub fn give_back(&mut self, cost: f64, burst: f64) {
        self.tokens = (self.tokens + cost).min(burst);
    }

    /// When it was asked last.
    pub fn last_used(&self) -> Option<Instant> {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_bucket_fills_with_time_and_takes_back() {
        let mut bucket = TokenBucket::default();
        let start = Instant::now();
        assert!(bucket.take(10.0, 5.0, 10.0, start));
        assert!(!bucket.take(1.0, 5.0, 10.0, start));
        assert!(bucket.take(5.0, 5.0, 10.0, start + Duration::from_secs(1)));
        bucket.give_back(5.0, 10.0);
        assert!(bucket.take(5.0, 5.0, 10.0, start + Duration::from_secs(1)));
        assert!(!bucket.take(10.5, 5.0, 10.0, start + Duration::from_secs(100)));
        bucket.give_back(100.0, 10.0);
        assert_eq!(bucket.available(5.0, 10.0, start), 10.0);
    }

    #[test]
    fn time_that_runs_back_gives_nothing_twice() {
        let mut bucket = TokenBucket::default();
        let start = Instant::now();
        let second = Duration::from_secs(1);
        assert!(bucket.take(10.0, 1.0, 10.0, start + 9 * second));
        assert!(!bucket.take(1.0, 1.0, 10.0, start));
        assert!(!bucket.take(1.5, 1.0, 10.0, start + 10 * second));
        assert!(bucket.take(1.0, 1.0, 10.0, start + 10 * second));
    }
}
