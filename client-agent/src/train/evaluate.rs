use serde::{Deserialize, Serialize};
use tributary_protocol::model::ModelSpec;

use super::{TrainError, check_data};
use crate::{
    adapter::Adapter,
    data::Dataset,
    model::{Model, Outcome},
};

/// How well a model does on some records. It is measured without noise and stays at the site.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Fraction of records whose most probable class is right; for decoders, of tokens.
    pub accuracy: f64,
    /// Mean cross-entropy, in nats.
    pub loss: f64,
    /// Number of records.
    pub num_examples: usize,
}

impl Evaluation {
    /// Whether this is at least as good as another on the same records: by loss for decoders, for
    /// classifiers by accuracy.
    #[must_use]
    pub fn is_not_worse(&self, other: &Self, spec: &ModelSpec) -> bool {
        match spec {
            ModelSpec::Decoder(_) => self.loss <= other.loss,
            _ => self.accuracy >= other.accuracy,
        }
    }

    /// Whether this is better than another on the same records; equal accuracies differ by loss.
    #[must_use]
    pub fn beats(&self, other: &Self, spec: &ModelSpec) -> bool {
        let closer = self.loss < other.loss;
        match spec {
            ModelSpec::Decoder(_) => closer,
            _ => self.accuracy > other.accuracy || (self.accuracy == other.accuracy && closer),
        }
    }
}

/// Measures a base model, with an adapter on top if one is given.
///
/// # Errors
/// [`TrainError`] for parameters or records that do not fit, or no record at all.
pub fn evaluate(
    spec: &ModelSpec,
    parameters: &[f32],
    adapter: Option<&Adapter>,
    data: &Dataset,
    indices: &[u32],
) -> Result<Evaluation, TrainError> {
    let model = match adapter {
        Some(adapter) => Model::new(spec, &adapter.merge(spec, parameters)?)?,
        None => Model::new(spec, parameters)?,
    };
    evaluate_model(&model, data, indices)
}

pub(crate) fn evaluate_model(
    model: &Model,
    data: &Dataset,
    indices: &[u32],
) -> Result<Evaluation, TrainError> {
    if indices.is_empty() {
        return Err(TrainError::NoRecords);
    }
    let outcomes = model_outcomes(model, data, indices)?;
    let mean =
        |value: fn(&Outcome) -> f64| outcomes.iter().map(value).sum::<f64>() / indices.len() as f64;
    Ok(Evaluation {
        accuracy: mean(|outcome| outcome.accuracy),
        loss: mean(|outcome| outcome.loss),
        num_examples: indices.len(),
    })
}

/// Measures a base model record by record, in the order of `indices`.
///
/// # Errors
/// [`TrainError`] for parameters or records that do not fit.
pub fn outcomes(
    spec: &ModelSpec,
    parameters: &[f32],
    data: &Dataset,
    indices: &[u32],
) -> Result<Vec<Outcome>, TrainError> {
    model_outcomes(&Model::new(spec, parameters)?, data, indices)
}

fn model_outcomes(
    model: &Model,
    data: &Dataset,
    indices: &[u32],
) -> Result<Vec<Outcome>, TrainError> {
    check_data(model.spec(), data, indices)?;
    let batch_max = match model.spec() {
        ModelSpec::Mlp(_) => 512,
        ModelSpec::Cnn(_) => 128,
        ModelSpec::Encoder(_) | ModelSpec::Decoder(_) => 16,
    };
    let mut outcomes = Vec::with_capacity(indices.len());
    for indices in indices.chunks(batch_max) {
        let batch = data.examples(indices)?;
        let outputs = model.outputs(&batch.inputs, model.frozen())?;
        outcomes.extend(batch.outcomes(&outputs, indices.len())?);
    }
    Ok(outcomes)
}
