use std::collections::BTreeMap;

use serde::Serialize;
use tributary_protocol::id::{DatasetName, Digest};

use super::{PredictionId, Record};
use crate::calendar::date;

/// Predictions that count as recent.
const RECENT: usize = 500;
/// Predictions on either side below which nothing is said about drift.
const SIDE_MIN: usize = 100;
/// Days of which the accuracy is shown, the newest.
const DAYS: usize = 30;
const DAY_MS: u64 = 24 * 3_600_000;
/// The usual bound of a shift that wants attention.
const INDEX_MAX: f64 = 0.25;
/// Standard errors of a loss of accuracy that chance does not explain.
const STANDARD_ERRORS: f64 = 3.0;

/// What is remembered of each prediction in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub(super) dataset: Option<DatasetName>,
    pub(super) class: u32,
    pub(super) classes: u32,
    pub(super) label: Option<u32>,
    /// Tells inputs apart.
    pub(super) input: Digest,
}

impl Seen {
    pub(super) fn of(record: &Record) -> Self {
        let Record { dataset, class, classes, label, features, .. } = record;
        let label = label.map(|label| label.class);
        let bytes: Vec<u8> = features.iter().flat_map(|value| value.to_le_bytes()).collect();
        let input = Digest::of(&bytes);
        Self { dataset: dataset.clone(), class: *class, classes: *classes, label, input }
    }

    /// Whether the prediction was right, once that is known.
    pub(super) fn is_right(&self) -> Option<bool> {
        self.label.map(|label| label == self.class)
    }
}

/// How good the predictions that are kept were.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quality {
    /// Predictions without an outcome.
    pub waiting: usize,
    /// Predictions with one.
    pub labelled: usize,
    /// The part of those that was right.
    pub accuracy: Option<f64>,
    /// By day of the prediction (UTC), the oldest first.
    pub days: Vec<DayQuality>,
    /// The newest predictions beside those before, where there are enough.
    pub drift: Option<Drift>,
}

/// The labelled predictions of one day.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DayQuality {
    /// As YYYY-MM-DD.
    pub day: String,
    /// Predictions with an outcome.
    pub labelled: usize,
    /// The part that was right.
    pub accuracy: f64,
}

/// Recent predictions beside earlier ones.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drift {
    /// Population stability index of the predicted classes: 0 if their shares are the same.
    pub class_shift: f64,
    /// Accuracy of recent predictions less that of earlier ones, where enough are labelled.
    pub accuracy_change: Option<f64>,
    /// Whether the shift is above 0.25, or the loss of accuracy above three standard errors.
    pub drifted: bool,
}

/// Judges predictions.
#[must_use]
pub fn quality(seen: &BTreeMap<PredictionId, Seen>) -> Quality {
    let outcomes = || seen.values().filter_map(Seen::is_right);
    let (labelled, right) = (outcomes().count(), outcomes().filter(|&right| right).count());
    let mut by_day: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
    for (id, seen) in seen {
        if let Some(right) = seen.is_right() {
            let (count, hits) = by_day.entry(id.at().0 / DAY_MS).or_default();
            *count += 1;
            *hits += usize::from(right);
        }
    }
    let skipped = by_day.len().saturating_sub(DAYS);
    let day = |(day, (labelled, right)): (u64, (usize, usize))| DayQuality {
        day: date(day * DAY_MS),
        labelled,
        accuracy: right as f64 / labelled as f64,
    };
    let all: Vec<&Seen> = seen.values().collect();
    Quality {
        waiting: seen.len() - labelled,
        labelled,
        accuracy: (labelled > 0).then(|| right as f64 / labelled as f64),
        days: by_day.into_iter().skip(skipped).map(day).collect(),
        drift: drift(&all),
    }
}

fn drift(all: &[&Seen]) -> Option<Drift> {
    let recent_from = all.len().saturating_sub(RECENT.min(all.len() / 2));
    let (before, recent) = all.split_at(recent_from);
    if before.len() < SIDE_MIN || recent.len() < SIDE_MIN {
        return None;
    }
    let class_shift = class_shift(before, recent);
    let change = accuracy_change(before, recent);
    let lost = change.is_some_and(|(change, error)| change < -STANDARD_ERRORS * error);
    Some(Drift {
        class_shift,
        accuracy_change: change.map(|(change, _)| change),
        drifted: class_shift > INDEX_MAX || lost,
    })
}

/// Half a prediction is added to every class, so that an unseen one is not infinitely surprising.
fn class_shift(before: &[&Seen], recent: &[&Seen]) -> f64 {
    let classes = before.iter().chain(recent).map(|seen| seen.classes).max().unwrap_or(0);
    let share = |side: &[&Seen], class: u32| {
        let count = side.iter().filter(|seen| seen.class == class).count();
        (count as f64 + 0.5) / (side.len() as f64 + 0.5 * f64::from(classes))
    };
    (0..classes)
        .map(|class| (share(before, class), share(recent, class)))
        .map(|(before, recent)| (recent - before) * (recent / before).ln())
        .sum()
}

/// The change and its standard error.
fn accuracy_change(before: &[&Seen], recent: &[&Seen]) -> Option<(f64, f64)> {
    let side = |side: &[&Seen]| {
        let outcomes: Vec<bool> = side.iter().filter_map(|seen| seen.is_right()).collect();
        let right = outcomes.iter().filter(|&&right| right).count() as f64;
        (outcomes.len() >= SIDE_MIN).then_some((right, outcomes.len() as f64))
    };
    let ((right_before, count_before), (right_recent, count_recent)) =
        (side(before)?, side(recent)?);
    let pooled = (right_before + right_recent) / (count_before + count_recent);
    let error = (pooled * (1.0 - pooled) * (count_before.recip() + count_recent.recip())).sqrt();
    Some((right_recent / count_recent - right_before / count_before, error))
}
