use std::time::Instant;

/// A token bucket with the semantics of Go's `x/time/rate.AllowN`: more than the burst is always refused.
#[derive(Debug)]
pub(super) struct TokenBucket {
    tokens: f64,
    at: Option<Instant>,
}

impl TokenBucket {
    pub fn new() -> Self {
        Self { tokens: 0.0, at: None }
    }

    /// Takes `cost` tokens if they are there.
    pub fn take(&mut self, cost: f64, rate: f64, burst: f64, now: Instant) -> bool {
        self.tokens = match self.at {
            None => burst,
            Some(at) => (self.tokens + now.saturating_duration_since(at).as_secs_f64() * rate).min(burst),
        };
        self.at = Some(now);
        let enough = cost <= self.tokens;
        if enough {
            self.tokens -= cost;
        }
        enough
    }

    /// Gives back what a push that failed had taken.
    pub fn give_back(&mut self, cost: f64, burst: f64) {
        self.tokens = (self.tokens + cost).min(burst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_bucket_fills_with_time_and_takes_back() {
        let mut bucket = TokenBucket::new();
        let start = Instant::now();
        assert!(bucket.take(10.0, 5.0, 10.0, start));
        assert!(!bucket.take(1.0, 5.0, 10.0, start));
        assert!(bucket.take(5.0, 5.0, 10.0, start + Duration::from_secs(1)));
        bucket.give_back(5.0, 10.0);
        assert!(bucket.take(5.0, 5.0, 10.0, start + Duration::from_secs(1)));
        assert!(!bucket.take(10.5, 5.0, 10.0, start + Duration::from_secs(100)));
    }
}
