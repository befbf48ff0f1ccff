//! The one place of this crate that reads the clock.

use std::time::{SystemTime, UNIX_EPOCH};

use tributary_protocol::time::Timestamp;

/// The current time.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the driver's clock")]
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}
