//! Quotas: how much a tenant may use in a day (UTC).

use std::fmt;

use serde::{Deserialize, Serialize};
use tributary_protocol::time::Timestamp;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Connections, answers and transfers that a round takes, at most: with fewer left a tenant is not
/// invited.
const REQUESTS_PER_ROUND: u64 = 8;

/// The most that a tenant may use in a day; `None` is without limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quotas {
    /// Bytes of model and update files, up and down.
    pub bytes_per_day: Option<u64>,
    /// Rounds that it is invited to.
    pub rounds_per_day: Option<u64>,
    /// Connections, answers to invitations, and transfers.
    pub requests_per_day: Option<u64>,
}

/// What a tenant has used on one day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Days since the Unix epoch.
    day: u64,
    /// Bytes of files, up and down.
    bytes: u64,
    /// Rounds that it was invited to.
    rounds: u64,
    /// Connections, answers and transfers.
    requests: u64,
}

/// A quota that has no room left today.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaUsedUp {
    /// Bytes.
    Bytes {
        /// The quota.
        per_day: u64,
    },
    /// Rounds.
    Rounds {
        /// The quota.
        per_day: u64,
    },
    /// Requests.
    Requests {
        /// The quota.
        per_day: u64,
    },
}

impl fmt::Display for QuotaUsedUp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (per_day, unit) = match self {
            Self::Bytes { per_day } => (per_day, "bytes"),
            Self::Rounds { per_day } => (per_day, "rounds"),
            Self::Requests { per_day } => (per_day, "requests"),
        };
        write!(formatter, "the quota of {per_day} {unit} a day has no room left until 00:00 UTC")
    }
}

impl Usage {
    /// What was used today: nothing yet, if this was another day.
    #[must_use]
    pub const fn today(self, now: Timestamp) -> Self {
        let day = now.0 / DAY_MS;
        if self.day == day { self } else { Self { day, bytes: 0, rounds: 0, requests: 0 } }
    }

    /// Bytes, rounds and requests.
    #[must_use]
    pub const fn counts(self) -> [u64; 3] {
        [self.bytes, self.rounds, self.requests]
    }

    /// Counts bytes of files.
    pub const fn add_bytes(&mut self, bytes: u64, now: Timestamp) {
        *self = self.today(now);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Counts an invitation.
    pub const fn add_round(&mut self, now: Timestamp) {
        *self = self.today(now);
        self.rounds = self.rounds.saturating_add(1);
    }

    /// Counts a request.
    pub const fn add_request(&mut self, now: Timestamp) {
        *self = self.today(now);
        self.requests = self.requests.saturating_add(1);
    }
}

/// The next midnight, UTC: when every quota has room again.
#[must_use]
pub const fn next_day(now: Timestamp) -> Timestamp {
    Timestamp((now.0 / DAY_MS + 1).saturating_mul(DAY_MS))
}

impl Quotas {
    /// Bytes, rounds and requests.
    #[must_use]
    pub const fn per_day(&self) -> [Option<u64>; 3] {
        [self.bytes_per_day, self.rounds_per_day, self.requests_per_day]
    }

    /// Whether there is any.
    #[must_use]
    pub fn are_set(&self) -> bool {
        *self != Self::default()
    }

    /// Whether a whole round fits, with `bytes` of files.
    ///
    /// # Errors
    /// The quota that has no room.
    pub fn check_round(&self, usage: Usage, bytes: u64, now: Timestamp) -> Result<(), QuotaUsedUp> {
        let usage = usage.today(now);
        match self.rounds_per_day {
            Some(per_day) if usage.rounds >= per_day => {
                return Err(QuotaUsedUp::Rounds { per_day });
            }
            _ => {}
        }
        self.check_requests(usage, REQUESTS_PER_ROUND, now)?;
        self.check_bytes(usage, bytes, now)
    }

    /// Whether `bytes` more fit.
    ///
    /// # Errors
    /// [`QuotaUsedUp::Bytes`].
    pub fn check_bytes(&self, usage: Usage, bytes: u64, now: Timestamp) -> Result<(), QuotaUsedUp> {
        let used = usage.today(now).bytes;
        match self.bytes_per_day {
            Some(per_day) if used.saturating_add(bytes) > per_day => {
                Err(QuotaUsedUp::Bytes { per_day })
            }
            _ => Ok(()),
        }
    }

    /// Whether `requests` more fit.
    ///
    /// # Errors
    /// [`QuotaUsedUp::Requests`].
    pub fn check_requests(
        &self,
        usage: Usage,
        requests: u64,
        now: Timestamp,
    ) -> Result<(), QuotaUsedUp> {
        let used = usage.today(now).requests;
        match self.requests_per_day {
            Some(per_day) if used.saturating_add(requests) > per_day => {
                Err(QuotaUsedUp::Requests { per_day })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Timestamp = Timestamp(20_000 * DAY_MS + DAY_MS / 2);

    #[test]
    fn a_quota_is_exact_and_comes_back_at_midnight() {
        let quotas =
            Quotas { bytes_per_day: Some(100), rounds_per_day: Some(2), requests_per_day: None };
        let mut usage = Usage::default();
        usage.add_bytes(60, NOON);
        assert_eq!(quotas.check_bytes(usage, 40, NOON), Ok(()));
        let full = Err(QuotaUsedUp::Bytes { per_day: 100 });
        assert_eq!(quotas.check_bytes(usage, 41, NOON), full);
        assert_eq!(quotas.check_round(usage, 41, NOON), full);
        assert_eq!(quotas.check_bytes(usage, u64::MAX, NOON), full);
        usage.add_round(NOON);
        assert_eq!(quotas.check_round(usage, 0, NOON), Ok(()));
        usage.add_round(NOON);
        let full = Err(QuotaUsedUp::Rounds { per_day: 2 });
        assert_eq!(quotas.check_round(usage, 0, NOON), full);
        let midnight = next_day(NOON);
        assert_eq!(midnight.0 - NOON.0, DAY_MS / 2);
        assert_eq!(quotas.check_round(usage, 100, Timestamp(midnight.0 - 1)), full);
        assert_eq!(quotas.check_round(usage, 100, midnight), Ok(()));
        usage.add_request(midnight);
        assert_eq!(usage.counts(), [0, 0, 1], "a new day starts from nothing");
    }

    #[test]
    fn a_round_needs_room_for_all_its_requests() {
        let quotas = Quotas { requests_per_day: Some(10), ..Quotas::default() };
        let mut usage = Usage::default();
        for _ in 0..2 {
            assert_eq!(quotas.check_round(usage, 0, NOON), Ok(()));
            usage.add_request(NOON);
        }
        usage.add_request(NOON);
        let full = Err(QuotaUsedUp::Requests { per_day: 10 });
        assert_eq!(quotas.check_round(usage, 0, NOON), full);
        assert_eq!(quotas.check_requests(usage, 7, NOON), Ok(()));
        assert_eq!(Quotas::default().check_round(usage, u64::MAX, NOON), Ok(()));
    }
}
