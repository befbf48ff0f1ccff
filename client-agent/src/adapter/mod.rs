//! Private adapters: low-rank changes of linear layers that never leave the tenant's site.
//!
//! Source: Hu et al. 2021, arXiv:2106.09685 (LoRA).

mod fine_tune;
mod folder;
mod lora;
mod optimizer;
mod peft;
mod plan;
mod registry;
mod weights;

use thiserror::Error;
#[cfg(doc)]
use tributary_protocol::model::ModelSpec;
use tributary_protocol::{id::Digest, tensor_file::TensorFileError};

use crate::{
    model::{ModelError, peft::PeftError},
    train::TrainError,
};

pub use self::{
    fine_tune::{AdapterOutcome, FineTune, fine_tune},
    folder::{AdapterFolder, AdapterFolderError, ChangeLock},
    plan::{AdapterOptimizer, AdapterPlan},
    registry::{AdapterVersion, NewestBase, Origin, Registry, RegistryError, Served},
};

/// A low-rank adapter for one base model: a linear layer computes with `W + (alpha / rank) · B · A`.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    rank: usize,
    alpha: f64,
    base: Digest,
    /// One a linear layer, in the order of [`ModelSpec::linear_sites`]; nothing for a layer that is
    /// not changed.
    layers: Vec<Option<LowRank>>,
}

/// The two factors of one layer, row-major.
#[derive(Debug, Clone, PartialEq)]
struct LowRank {
    /// `[rank, inputs]`.
    a: Vec<f32>,
    /// `[outputs, rank]`.
    b: Vec<f32>,
}

/// Says why an adapter cannot be made, read or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// A number of the plan cannot work.
    #[error("`adapter.{field}` is {value}; it must be {range}")]
    Plan {
        /// The config key.
        field: &'static str,
        /// What was given.
        value: f64,
        /// What would work.
        range: &'static str,
    },
    /// A part of the records is empty.
    #[error("no records to {purpose}; add records or change `held_out.fraction`")]
    NoRecords {
        /// What they were for.
        purpose: &'static str,
    },
    /// The file lacks the adapter's own description or it cannot be read.
    #[error("the adapter file has no readable `{field}` in its metadata")]
    Metadata {
        /// The metadata key.
        field: &'static str,
    },
    /// The parameters do not fit the model.
    #[error("the adapter does not fit the model")]
    Model(#[from] ModelError),
    /// The file does not hold an adapter of the model.
    #[error("the adapter file is not usable")]
    File(#[from] TensorFileError),
    /// A PEFT folder cannot be used.
    #[error("the PEFT folder cannot be used")]
    Peft(#[from] PeftError),
    /// Training or evaluation failed.
    #[error("the adapter could not be trained")]
    Train(#[from] TrainError),
}

impl Adapter {
    /// Rank of every layer's change.
    #[must_use]
    pub const fn rank(&self) -> usize {
        self.rank
    }

    /// Digest of the base model that the adapter was trained on.
    #[must_use]
    pub const fn base(&self) -> Digest {
        self.base
    }

    /// The factor `alpha / rank` of the low-rank product.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }
}

#[cfg(test)]
mod tests;
