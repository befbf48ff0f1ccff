//! Bounded waiting for something that another process does.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// Looks until `look` gives a value.
///
/// # Panics
/// After `seconds`, naming what was waited for.
#[expect(clippy::disallowed_methods, reason = "a test drives other processes in real time")]
pub fn until<T>(what: &str, seconds: u64, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(
            start.elapsed() < Duration::from_secs(seconds),
            "gave up after {seconds} s waiting for {what}"
        );
        std::thread::sleep(INTERVAL);
    }
}
