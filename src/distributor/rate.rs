//! Token buckets: how many bytes a tenant may push.

use crate::model::TokenBucket;
use ahash::AHashMap;
use parking_lot::Mutex;
use std::time::Instant;

/// Most tenants with a bucket. Above it the buckets that are full again are forgotten, then the least recently used.
const MAX_BUCKETS: usize = 100_000;

/// One token bucket for each tenant.
#[derive(Default)]
pub struct RateLimiter {
    buckets: Mutex<AHashMap<String, Bucket>>,
}

struct Bucket {
    tokens: TokenBucket,
    /// The limits of the last request, for [`forget`].
    rate: f64,
    burst: f64,
}

impl Bucket {
    fn take(&mut self, n: u64, rate: f64, burst: f64, now: Instant) -> bool {
        (self.rate, self.burst) = (rate, burst);
        self.tokens.take(n as f64, rate, burst, now)
    }

    fn is_full(&self, now: Instant) -> bool {
        self.tokens.available(self.rate, self.burst, now) >= self.burst
    }
}

impl RateLimiter {
    /// Takes `n` tokens from the tenant's bucket, or none and answers false. A request larger than `burst` never passes.
    pub fn allow(&self, tenant: &str, n: u64, rate: f64, burst: f64, now: Instant) -> bool {
        let mut buckets = self.buckets.lock();
        if let Some(bucket) = buckets.get_mut(tenant) {
            return bucket.take(n, rate, burst, now);
        }
        if buckets.len() >= MAX_BUCKETS {
            forget(&mut buckets, now);
        }
        let mut bucket = Bucket { tokens: TokenBucket::default(), rate, burst };
        let allowed = bucket.take(n, rate, burst, now);
        buckets.insert(tenant.to_string(), bucket);
        allowed
    }
}

/// Makes room: a full bucket is as good as none; if too few are full, the older half goes.
fn forget(buckets: &mut AHashMap<String, Bucket>, now: Instant) {
    buckets.retain(|_, bucket| !bucket.is_full(now));
    if buckets.len() < MAX_BUCKETS {
        return;
    }
    let mut times: Vec<Option<Instant>> = buckets.values().map(|bucket| bucket.tokens.last_used()).collect();
    let middle = times.len() / 2;
    let (_, median, _) = times.select_nth_unstable(middle);
    let median = *median;
    let mut excess = buckets.len() - middle;
    buckets.retain(|_, bucket| {
        let stays = bucket.tokens.last_used() > median || excess == 0;
        excess -= usize::from(!stays);
        stays
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_bucket_holds_burst_and_refills_with_rate() {
        let limiter = RateLimiter::default();
        let start = Instant::now();
        let allow = |n, after_ms| limiter.allow("t", n, 10.0, 20.0, start + Duration::from_millis(after_ms));
        assert!(!allow(21, 0), "more than the burst");
        assert!(allow(20, 0), "exactly the burst");
        assert!(!allow(1, 0), "nothing is left");
        assert!(allow(0, 0), "nothing costs nothing");
        assert!(!allow(10, 900), "9 tokens");
        assert!(allow(9, 900), "a refused request took nothing");
        assert!(!allow(21, 60_000), "never above the burst");
        assert!(allow(20, 60_000));
    }

    #[test]
    fn tenants_do_not_share_and_time_never_runs_back() {
        let limiter = RateLimiter::default();
        let start = Instant::now() + Duration::from_secs(10);
        assert!(limiter.allow("a", 20, 10.0, 20.0, start));
        assert!(limiter.allow("b", 20, 10.0, 20.0, start));
        assert!(!limiter.allow("a", 10, 10.0, 20.0, start - Duration::from_secs(5)));
        assert!(!limiter.allow("a", 10, 10.0, 20.0, start + Duration::from_millis(900)));
    }

    #[test]
    fn tenants_are_bounded() {
        let limiter = RateLimiter::default();
        let now = Instant::now();
        for i in 0..MAX_BUCKETS + 10 {
            limiter.allow(&i.to_string(), 1, 1.0, 20.0, now);
        }
        let held = limiter.buckets.lock().len();
        assert!((10..=MAX_BUCKETS).contains(&held), "{held}");
        assert!(!limiter.allow(&(MAX_BUCKETS + 9).to_string(), 20, 1.0, 20.0, now), "the newest is remembered");
        for i in 0..MAX_BUCKETS {
            limiter.allow(&format!("x{i}"), 0, 1.0, 20.0, now + Duration::from_secs(60));
        }
        assert!(limiter.buckets.lock().len() <= MAX_BUCKETS);
    }
}
