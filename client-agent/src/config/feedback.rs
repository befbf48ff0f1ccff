//! `[feedback]`: predictions and outcomes that are kept.

use std::num::NonZeroU32;

use serde::Deserialize;

use crate::feedback::Retention;

const DAY_MS: u64 = 24 * 3_600_000;

/// `[feedback]` as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FeedbackSection {
    /// Whether predictions are kept for their outcomes; if not, their ids are null.
    keep: bool,
    /// How long a prediction is kept, in days. Default 90.
    age_max_days: Option<NonZeroU32>,
    /// How many predictions are kept that wait for an outcome, and as many that have one. Default 100000.
    count_max: Option<NonZeroU32>,
    /// How much disk each of the two may take, in MiB. Default 256.
    max_mib: Option<NonZeroU32>,
}

impl Default for FeedbackSection {
    fn default() -> Self {
        Self { keep: true, age_max_days: None, count_max: None, max_mib: None }
    }
}

impl FeedbackSection {
    /// What is kept; nothing if nothing is.
    pub(super) fn retention(&self) -> Option<Retention> {
        let mut retention = Retention::default();
        if let Some(days) = self.age_max_days {
            retention.age_max_ms = u64::from(days.get()) * DAY_MS;
        }
        if let Some(count) = self.count_max {
            retention.count_max = count.get() as usize;
        }
        if let Some(mebibytes) = self.max_mib {
            retention.bytes_max = u64::from(mebibytes.get()) << 20;
        }
        self.keep.then_some(retention)
    }
}
