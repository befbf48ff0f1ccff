//! The one clock of the agent.

use std::time::SystemTime;

use tributary_protocol::time::Timestamp;

/// What time it is.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the driver is where clocks are read")]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Timestamp(since.map_or(0, |since| since.as_millis() as u64))
}

/// A number uniform in [0, 1), to spread the retries of many agents.
#[must_use]
pub fn jitter() -> f64 {
    // Without entropy every agent waits the full time, which is only less polite.
    getrandom::u32().map_or(1.0, |bits| f64::from(bits) / 4_294_967_296.0)
}
