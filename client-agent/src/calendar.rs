//! Moments as people read them, in UTC.

use time::OffsetDateTime;

/// Date and time to the minute; the number itself where no calendar reaches.
///
/// - `milliseconds`: since the Unix epoch
#[must_use]
pub fn moment(milliseconds: u64) -> String {
    match calendar(milliseconds) {
        Some(time) => {
            format!("{} {:02}:{:02} UTC", date(milliseconds), time.hour(), time.minute())
        }
        None => date(milliseconds),
    }
}

/// The date alone.
///
/// - `milliseconds`: since the Unix epoch
#[must_use]
pub fn date(milliseconds: u64) -> String {
    match calendar(milliseconds) {
        Some(time) => {
            format!("{:04}-{:02}-{:02}", time.year(), u8::from(time.month()), time.day())
        }
        None => format!("{milliseconds} ms"),
    }
}

fn calendar(milliseconds: u64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(i64::try_from(milliseconds / 1000).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leap_days_and_the_end_of_the_calendar() {
        assert_eq!(moment(951_782_400_000), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_000), "1970-01-01");
        assert_eq!(moment(u64::MAX), "18446744073709551615 ms");
    }
}
