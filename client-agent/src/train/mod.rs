//! Local training: DP-SGD for the `record` unit, plain SGD for the `tenant` unit, and evaluation.
//!
//! Pure and synchronous. Randomness comes in as a value, progress goes out through a closure.

mod correlated;
mod dp_sgd;
mod drift;
mod evaluate;
mod fused;
mod graph;
mod learner;
mod local_sgd;
mod sampling;
mod task;
mod trainer;

use thiserror::Error;
use tributary_privacy::mechanism::MechanismError;

use crate::model::{ClippingError, ModelError};

pub use self::{
    dp_sgd::{clipped_gradient, dp_sgd},
    drift::{correction, move_control},
    evaluate::{Evaluation, evaluate, outcomes},
    local_sgd::local_sgd,
    task::LocalTask,
    trainer::Trainer,
};
pub(crate) use self::{evaluate::evaluate_model, task::check_data};

/// Says why training or evaluation produced nothing.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The parameters are no model.
    #[error("the base model cannot be used")]
    Model(#[from] ModelError),
    /// The records do not fit the model.
    #[error("the model has {model} {what} but the dataset has {data}")]
    DataShape {
        /// `inputs` or `classes`.
        what: &'static str,
        /// The model's number.
        model: usize,
        /// The dataset's number.
        data: usize,
    },
    /// The records are of a kind that the model does not read.
    #[error("a model of family {family:?} needs {needed}, which the dataset does not hold")]
    DataKind {
        /// The model's family.
        family: &'static str,
        /// What it reads.
        needed: &'static str,
    },
    /// A text has tokens that the model does not know, or too many.
    #[error("the model takes {model} {what} but the dataset has {data}")]
    DataRange {
        /// Of what.
        what: &'static str,
        /// The most that the model takes.
        model: usize,
        /// The dataset's number.
        data: usize,
    },
    /// An index names no record.
    #[error("record {index} was asked for but the dataset has {len}")]
    Index {
        /// The index, from 0.
        index: u32,
        /// Records in the dataset.
        len: usize,
    },
    /// There is nothing to measure.
    #[error("no records to evaluate on; set a larger part of the data aside")]
    NoRecords,
    /// A gradient is NaN or infinite; nothing was released.
    #[error("a gradient of step {step} is not finite; lower the learning rate or check the data")]
    NonFiniteGradient {
        /// The step, from 1.
        step: u32,
    },
    /// Training moved a parameter to NaN or infinity; nothing was released.
    #[error("the model is not finite after step {step}; lower `client_learning_rate`")]
    Diverged {
        /// The step, from 1.
        step: u32,
    },
    /// The caller stopped the training; nothing was released.
    #[error("training was stopped after step {step} of {steps}")]
    Stopped {
        /// The last finished step, from 1.
        step: u32,
        /// The steps that were planned.
        steps: u32,
    },
    /// The mechanism was made for another model.
    #[error("the noise mechanism covers {mechanism} parameters but the model has {model}")]
    MechanismDimension {
        /// Coordinates of the mechanism.
        mechanism: usize,
        /// Parameters of the model.
        model: usize,
    },
    /// The mechanism refused to release.
    #[error("the noise mechanism released nothing")]
    Mechanism(#[from] MechanismError),
    /// The gradients of this model cannot be clipped example by example.
    #[error("the gradients cannot be clipped")]
    Clipping(#[source] ClippingError),
    /// The tensor library failed.
    #[error("the tensor library failed")]
    Tensor(#[from] candle_core::Error),
}

impl TrainError {
    /// Names the step in which a gradient could not be clipped.
    fn from_clipping(error: ClippingError, step: u32) -> Self {
        match error {
            ClippingError::NonFinite { .. } => Self::NonFiniteGradient { step },
            ClippingError::Tensor(source) => Self::Tensor(source),
            shared @ ClippingError::Shared { .. } => Self::Clipping(shared),
        }
    }
}

#[cfg(test)]
mod family_tests;
#[cfg(test)]
mod tests;
