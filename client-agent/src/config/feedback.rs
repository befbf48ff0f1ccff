//! `[feedback]`: predictions and outcomes that are kept.

use std::num::NonZeroU32;

use serde::Deserialize;

use crate::feedback::Retention;

const DAY_MS: u64 = 24 * 3_600_000;

/// `[feedback]` as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FeedbackSection {
    keep: bool,
    age_max_days: Option<NonZeroU32>,
    count_max: Option<NonZeroU32>,
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
