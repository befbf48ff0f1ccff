//! Inference: answers from the base with the tenant's adapter, swapped atomically under load.

pub mod generation;
pub mod language;

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use candle_core::{Device, Tensor};
use thiserror::Error;
use tributary_protocol::{
    id::{DatasetName, Digest},
    model::ModelSpec,
};

use crate::{
    adapter::Adapter,
    model::{Inputs, Model, ModelError, most_probable},
};

/// Inputs of one call, at most.
pub const INPUTS_MAX: usize = 4096;
/// Inputs that pass through the model together, at most: what bounds the memory.
const BATCH: usize = 256;

/// The model that answers; replaced whole, so a call sees one version from start to end.
#[derive(Default)]
pub struct Engine {
    serving: ArcSwapOption<Serving>,
}

/// A base model with, perhaps, an adapter merged into it.
pub struct Serving {
    base: Digest,
    adapter: Option<u64>,
    dataset: Option<DatasetName>,
    model: Model,
}

/// The class of one input.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The most probable class.
    pub class: u32,
    /// Probability of each class.
    pub probabilities: Vec<f32>,
}

/// The predictions of one call and the model they came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// One prediction an input, in order.
    pub predictions: Vec<Prediction>,
    /// Digest of the base model.
    pub base: Digest,
    /// Version of the adapter on top, if any.
    pub adapter: Option<u64>,
    /// The dataset that the model is trained for, where that is known.
    pub dataset: Option<DatasetName>,
}

/// Says why there is no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No model has arrived yet.
    #[error("no model is loaded yet; the first arrives with the first round")]
    NoModel,
    /// An input has the wrong number of features.
    #[error("input {input} has {found} features; the model takes {expected}")]
    Width {
        /// Position of the input, from 0.
        input: usize,
        /// Features of the model.
        expected: usize,
        /// Features given.
        found: usize,
    },
    /// A feature is NaN or infinite.
    #[error("input {input}, feature {feature} is {value}; features must be finite")]
    NonFinite {
        /// Position of the input, from 0.
        input: usize,
        /// Position of the feature, from 0.
        feature: usize,
        /// The value.
        value: f32,
    },
    /// An input of a model of texts is not a list of its tokens.
    #[error("input {input} must be 1 to {length_max} whole numbers below {vocab_size}: tokens")]
    Tokens {
        /// Position of the input, from 0.
        input: usize,
        /// Tokens of one input, at most.
        length_max: usize,
        /// Number of tokens that the model knows.
        vocab_size: usize,
    },
    /// A text for a model of numbers.
    #[error("input {input} is a text; a model of family {family:?} takes {expected} numbers")]
    Text {
        /// Position of the input, from 0.
        input: usize,
        /// The family.
        family: &'static str,
        /// Features of the model.
        expected: usize,
    },
    /// The model has no classes.
    #[error("a model of family {family:?} has no classes to predict; ask it for completions")]
    NoClasses {
        /// The family.
        family: &'static str,
    },
    /// Too many inputs at once.
    #[error("{found} inputs in one call; at most {INPUTS_MAX} are answered, send several calls")]
    TooMany {
        /// Inputs given.
        found: usize,
    },
    /// The model cannot be built or failed.
    #[error("the model cannot answer")]
    Model(#[from] ModelError),
}

impl Serving {
    /// Prepares a model for answering.
    ///
    /// - `parameters`: the base's, flat
    /// - `adapter`: its version and factors
    ///
    /// # Errors
    /// [`EngineError::Model`] if parameters or adapter do not belong to `spec`.
    pub fn new(
        spec: &ModelSpec,
        base: Digest,
        parameters: &[f32],
        adapter: Option<(u64, &Adapter)>,
    ) -> Result<Self, EngineError> {
        let model = match adapter {
            Some((_, adapter)) => Model::new(spec, &adapter.merge(spec, parameters)?)?,
            None => Model::new(spec, parameters)?,
        };
        Ok(Self { base, adapter: adapter.map(|(version, _)| version), dataset: None, model })
    }

    /// Says which dataset the model is trained for: outcomes of its predictions belong to it.
    #[must_use]
    pub fn for_dataset(self, dataset: DatasetName) -> Self {
        Self { dataset: Some(dataset), ..self }
    }

    /// Digest of the base model.
    #[must_use]
    pub const fn base(&self) -> Digest {
        self.base
    }

    /// Version of the adapter, if any.
    #[must_use]
    pub const fn adapter(&self) -> Option<u64> {
        self.adapter
    }

    /// The dataset that the model is trained for, where that is known.
    #[must_use]
    pub const fn dataset(&self) -> Option<&DatasetName> {
        self.dataset.as_ref()
    }

    /// Checks that the model gives texts classes.
    ///
    /// - `input`: position of the first text, from 0
    ///
    /// # Errors
    /// [`EngineError::NoClasses`] or [`EngineError::Text`].
    pub fn check_text(&self, input: usize) -> Result<(), EngineError> {
        let spec = self.model.spec();
        let family = spec.family();
        match spec {
            ModelSpec::Encoder(_) => Ok(()),
            ModelSpec::Decoder(_) => Err(EngineError::NoClasses { family }),
            _ => Err(EngineError::Text { input, family, expected: spec.num_inputs() }),
        }
    }

    /// Answers inputs.
    ///
    /// - `inputs`: features as the model was trained on (image bytes divided by 255, channels last), or
    ///   the tokens of texts
    ///
    /// # Errors
    /// [`EngineError`] naming the input that cannot be used.
    pub fn answer(&self, inputs: &[Vec<f32>]) -> Result<Answer, EngineError> {
        let predictions = self.predict(inputs)?;
        let (base, dataset) = (self.base, self.dataset.clone());
        Ok(Answer { predictions, base, adapter: self.adapter, dataset })
    }

    fn predict(&self, inputs: &[Vec<f32>]) -> Result<Vec<Prediction>, EngineError> {
        let spec = self.model.spec();
        if inputs.len() > INPUTS_MAX {
            return Err(EngineError::TooMany { found: inputs.len() });
        }
        if let ModelSpec::Decoder(_) = spec {
            return Err(EngineError::NoClasses { family: spec.family() });
        }
        let mut probabilities = Vec::with_capacity(inputs.len() * spec.num_classes());
        for (inputs, first) in inputs.chunks(BATCH).zip((0..).step_by(BATCH)) {
            let batch = match spec.vocab_size() {
                Some(vocab_size) => tokens(inputs, first, vocab_size, spec.num_inputs())?,
                None => features(inputs, first, spec.num_inputs())?,
            };
            probabilities.extend(self.model.probabilities(&batch)?);
        }
        let rows = probabilities.chunks_exact(spec.num_classes());
        let prediction = |row: &[f32]| Prediction {
            class: most_probable(row) as u32,
            probabilities: row.to_vec(),
        };
        Ok(rows.map(prediction).collect())
    }
}

impl Engine {
    /// An engine that has no model yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the model; calls in flight finish on the one they started with.
    pub fn swap(&self, serving: Serving) {
        self.serving.store(Some(Arc::new(serving)));
    }

    /// The model that answers now.
    #[must_use]
    pub fn serving(&self) -> Option<Arc<Serving>> {
        self.serving.load_full()
    }

    /// Answers inputs as [`Serving::answer`] does, all by the same model.
    ///
    /// # Errors
    /// [`EngineError`] naming the input that cannot be used.
    pub fn predict(&self, inputs: &[Vec<f32>]) -> Result<Answer, EngineError> {
        self.serving().ok_or(EngineError::NoModel)?.answer(inputs)
    }
}

/// Checks features; `first` is the position of the first input in the call.
fn features(inputs: &[Vec<f32>], first: usize, expected: usize) -> Result<Inputs, EngineError> {
    for (input, features) in (first..).zip(inputs) {
        if features.len() != expected {
            return Err(EngineError::Width { input, expected, found: features.len() });
        }
        if let Some(feature) = features.iter().position(|value| !value.is_finite()) {
            return Err(EngineError::NonFinite { input, feature, value: features[feature] });
        }
    }
    let rows = Tensor::from_vec(inputs.concat(), (inputs.len(), expected), &Device::Cpu);
    Ok(Inputs::Features(rows.map_err(ModelError::from)?))
}

/// Checks texts as tokens; `first` is the position of the first input in the call.
fn tokens(
    inputs: &[Vec<f32>],
    first: usize,
    vocab_size: usize,
    length_max: usize,
) -> Result<Inputs, EngineError> {
    let mut texts = Vec::with_capacity(inputs.len());
    for (input, values) in (first..).zip(inputs) {
        // Whole numbers of that size are exact in f32.
        let known = |value: &f32| value.fract() == 0.0 && (0.0..vocab_size as f32).contains(value);
        if !(1..=length_max).contains(&values.len()) || !values.iter().all(known) {
            return Err(EngineError::Tokens { input, length_max, vocab_size });
        }
        texts.push(values.iter().map(|&value| value as u32).collect::<Vec<u32>>());
    }
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    Ok(Inputs::tokens(&texts).map_err(ModelError::from)?)
}

#[cfg(test)]
mod tests;
