//! Rate limits: a token bucket for every access token, and one for all failed attempts together.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use tributary_protocol::time::Timestamp;

const MINUTE_MS: u64 = 60_000;

/// How many requests a minute are allowed; as many may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// At least 1.
    pub requests_per_minute: u32,
}

/// The buckets. There is one for each name that was admitted, and access tokens are few, so memory
/// is bounded by what the administrator handed out.
#[derive(Debug)]
pub struct RateLimits {
    limit: RateLimit,
    buckets: Mutex<BTreeMap<String, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Requests left, in thousandths.
    left_milli: u64,
    filled: Timestamp,
}

impl RateLimits {
    /// Full buckets.
    #[must_use]
    pub const fn new(limit: RateLimit) -> Self {
        Self { limit, buckets: Mutex::new(BTreeMap::new()) }
    }

    /// Counts a request.
    ///
    /// - `name`: whose bucket
    ///
    /// # Errors
    /// The seconds after which the next request would be allowed, at least 1.
    pub fn admit(&self, name: &str, now: Timestamp) -> Result<(), u64> {
        let per_minute = u64::from(self.limit.requests_per_minute.max(1));
        let full_milli = per_minute * 1000;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets
            .entry(name.to_owned())
            .or_insert(Bucket { left_milli: full_milli, filled: now });
        let elapsed_ms = now.since(bucket.filled).as_millis() as u64;
        if elapsed_ms >= MINUTE_MS {
            *bucket = Bucket { left_milli: full_milli, filled: now };
        } else {
            let gained_milli = elapsed_ms * full_milli / MINUTE_MS;
            bucket.left_milli = (bucket.left_milli + gained_milli).min(full_milli);
            // Only the time that was paid out passes; the rest of the division stays for later.
            bucket.filled = bucket.filled.after_ms(gained_milli * MINUTE_MS / full_milli);
        }
        if bucket.left_milli >= 1000 {
            bucket.left_milli -= 1000;
            return Ok(());
        }
        let wait_ms = ((1000 - bucket.left_milli) * MINUTE_MS).div_ceil(full_milli);
        Err(wait_ms.div_ceil(1000).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    #[test]
    fn a_burst_is_allowed_then_the_rate_and_others_are_not_affected() {
        let limits = RateLimits::new(RateLimit { requests_per_minute: 6 });
        for _ in 0..6 {
            limits.admit("a", NOW).expect("within the burst");
        }
        assert_eq!(limits.admit("a", NOW), Err(10));
        limits.admit("b", NOW).expect("a bucket of its own");
        assert_eq!(limits.admit("a", NOW.after_ms(9_000)), Err(1));
        limits.admit("a", NOW.after_ms(10_000)).expect("one came back");
        assert!(limits.admit("a", NOW.after_ms(10_000)).is_err());
        let later = NOW.after_ms(10_000_000);
        let admitted = (0..100).filter(|_| limits.admit("a", later).is_ok()).count();
        assert_eq!(admitted, 6, "a long pause fills the bucket once");
    }

    #[test]
    fn frequent_refused_requests_do_not_starve_the_refill() {
        let limits = RateLimits::new(RateLimit { requests_per_minute: 1 });
        limits.admit("a", NOW).expect("the first");
        let admitted =
            (1..=60_000).filter(|&ms| limits.admit("a", NOW.after_ms(ms)).is_ok()).count();
        assert_eq!(admitted, 1, "one in the whole minute");
    }

    #[test]
    fn a_clock_that_runs_backwards_admits_nothing_extra() {
        let limits = RateLimits::new(RateLimit { requests_per_minute: 1 });
        limits.admit("a", NOW).expect("the first");
        assert!(limits.admit("a", Timestamp(0)).is_err());
        assert!(limits.admit("a", NOW).is_err());
    }
}
