/// The first wait before connecting again, in milliseconds.
const FIRST_MS: u64 = 250;
/// The longest wait, in milliseconds.
const LONGEST_MS: u64 = 30_000;
/// The wait where only somebody's action helps, in milliseconds.
const LASTING_MS: u64 = 300_000;

/// Exponential back-off with jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff;

impl Backoff {
    /// The wait before the next attempt, in milliseconds: 250 ms, doubling to 30 s, of which one
    /// half is waited in any case and the other is spread.
    ///
    /// - `attempt`: failures in a row before this one
    /// - `jitter`: uniform in [0, 1)
    #[must_use]
    pub fn wait_ms(attempt: u32, jitter: f64) -> u64 {
        let whole = FIRST_MS.saturating_mul(1 << attempt.min(20)).min(LONGEST_MS);
        spread(whole, jitter)
    }

    /// The wait when trying again is likely to be refused again, in milliseconds.
    #[must_use]
    pub fn lasting_ms(jitter: f64) -> u64 {
        spread(LASTING_MS, jitter)
    }
}

fn spread(whole_ms: u64, jitter: f64) -> u64 {
    (whole_ms as f64 * (0.5 + 0.5 * jitter.clamp(0.0, 1.0))) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_a_bound_and_are_spread() {
        let waits: Vec<u64> = (0..9).map(|attempt| Backoff::wait_ms(attempt, 1.0)).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(Backoff::wait_ms(u32::MAX, 0.0), 15_000);
    }
}
