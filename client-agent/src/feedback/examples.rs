use tributary_protocol::id::DatasetName;

use super::{PredictionId, Record};
use crate::data::{Dataset, Split};

/// Labelled data from feedback.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Examples {
    /// What the model saw of each: features, or the tokens of a text.
    pub rows: Vec<Vec<f32>>,
    /// The true class of each.
    pub labels: Vec<u32>,
    ids: Vec<PredictionId>,
}

impl Examples {
    /// Those of the records that belong to a dataset and fit its own records; a record for another
    /// model is left out.
    pub(super) fn of(records: Vec<Record>, dataset: &DatasetName, data: &Dataset) -> Self {
        let mut examples = Self::default();
        for record in records {
            let Some(label) = record.label else { continue };
            let own = record.dataset.as_ref() == Some(dataset);
            if own && data.accepts(&record.features, label.class) {
                examples.rows.push(record.features);
                examples.labels.push(label.class);
                examples.ids.push(record.id);
            }
        }
        examples
    }

    /// Number of examples.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// A tenant's records with examples behind them, for training and measuring an adapter.
///
/// Each example's part depends on its id alone, so one that was held out never trains later,
/// whatever else is deleted.
///
/// # Panics
/// If the examples were not chosen for these records.
#[must_use]
pub fn with_examples(
    (data, split): (&Dataset, &Split),
    examples: &Examples,
    held_out_fraction: f64,
) -> (Dataset, Split) {
    let first = data.len() as u32;
    let mut split = split.clone();
    for (index, id) in (first..).zip(&examples.ids) {
        split.part_mut(id.position(), held_out_fraction).push(index);
    }
    (data.appended(&examples.rows, &examples.labels), split)
}
