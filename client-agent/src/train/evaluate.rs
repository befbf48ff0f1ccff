use serde::{Deserialize, Serialize};
use tributary_protocol::model::ModelSpec;

use super::{TrainError, check_data};
use crate::{adapter::Adapter, data::Dataset, model::Model};

/// How well a model does on some records. It is measured without noise and stays at the site.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Fraction of records whose most probable class is right.
    pub accuracy: f64,
    /// Mean cross-entropy, in nats.
    pub loss: f64,
    /// Number of records.
    pub num_examples: usize,
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
    let correct = outcomes.iter().filter(|outcome| outcome.correct).count();
    let loss: f64 = outcomes.iter().map(|outcome| outcome.loss).sum();
    let count = indices.len() as f64;
    Ok(Evaluation {
        accuracy: correct as f64 / count,
        loss: loss / count,
        num_examples: indices.len(),
    })
}

/// How well a model does on one record; it stays at the site.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Whether the most probable class is right.
    pub correct: bool,
    /// Cross-entropy, in nats.
    pub loss: f64,
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
    const BATCH: usize = 512;
    check_data(model.spec(), data, indices)?;
    let mut outcomes = Vec::with_capacity(indices.len());
    for batch in indices.chunks(BATCH) {
        let (inputs, _) = data.batch(batch)?;
        let probabilities = model.predict(&inputs)?;
        let rows = probabilities.chunks_exact(model.spec().num_classes());
        for (row, &index) in rows.zip(batch) {
            let label = data.labels()[index as usize] as usize;
            let correct = most_probable(row) == label;
            // A probability that underflows to 0 counts as the smallest positive number.
            let loss = -f64::from(row[label].max(f32::MIN_POSITIVE)).ln();
            outcomes.push(Outcome { correct, loss });
        }
    }
    Ok(outcomes)
}

/// The class with the largest probability; the first of equals.
pub(crate) fn most_probable(probabilities: &[f32]) -> usize {
    let mut best = 0;
    for (class, probability) in probabilities.iter().enumerate() {
        if *probability > probabilities[best] {
            best = class;
        }
    }
    best
}
