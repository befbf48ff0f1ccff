use tributary_protocol::id::DatasetName;

use super::{PredictionId, Record};
use crate::data::{Dataset, Split};

/// Labelled data from feedback.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Examples {
    /// `[examples, num_features]`, as the model saw them.
    pub features: Vec<f32>,
    /// The true class of each.
    pub labels: Vec<u32>,
    ids: Vec<PredictionId>,
}

impl Examples {
    /// Those of the records that belong to a dataset and fit a model; a record for another model
    /// is left out.
    pub(super) fn of(
        records: &[Record],
        dataset: &DatasetName,
        num_features: usize,
        num_classes: u32,
    ) -> Self {
        let mut examples = Self::default();
        for record in records {
            let Some(label) = record.label else { continue };
            let fits = record.dataset.as_ref() == Some(dataset)
                && record.features.len() == num_features
                && label.class < num_classes;
            if fits {
                examples.features.extend_from_slice(&record.features);
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
/// If the examples were not chosen for a model of the records' features and classes.
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
    (data.appended(&examples.features, &examples.labels), split)
}
