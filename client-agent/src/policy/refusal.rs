use thiserror::Error;
use tributary_privacy::{
    distributed::DistributedError, lattice::LatticeError, mechanism::MechanismError,
};
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    id::DatasetName,
    job::JobSpecError,
};

use crate::refusals::Declined;

/// Says which key of the policy, or of the job itself, keeps the tenant out of a job.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum PolicyRefusal {
    /// The job document cannot work.
    #[error("the job is not usable")]
    Job(#[source] JobSpecError),
    /// The base model is not the one that the job describes.
    #[error("the base model of the assignment does not belong to its job")]
    BaseMismatch,
    /// The lattice cannot carry the job's updates.
    #[error("the lattice of the assignment is not usable")]
    Lattice(#[source] LatticeError),
    /// The lattice is so fine that sums of the cohort would wrap.
    #[error(
        "the lattice step {step:e} is too fine for {cohort_size} updates; it must be at least {step_min:e}"
    )]
    LatticeWraps {
        /// What was asked for, in model units.
        step: f64,
        /// The least that does not wrap.
        step_min: f64,
        /// Updates that may be summed.
        cohort_size: u32,
    },
    /// The lattice is coarser than an update is long.
    #[error("the lattice step {step:e} is too coarse for updates of norm {norm}")]
    LatticeCoarse {
        /// What was asked for, in model units.
        step: f64,
        /// The longest update, in model units.
        norm: f64,
    },
    /// The cohorts of the job have no secure sum.
    #[error("the job's cohorts cannot aggregate securely")]
    Distributed(#[source] DistributedError),
    /// The noise cannot be made as the job asks.
    #[error("the job's noise cannot be made")]
    Mechanism(#[source] MechanismError),
    /// The policy has no section for the dataset.
    #[error(
        "the policy has no section `datasets.{dataset}`; the tenant takes part with {allowed:?}"
    )]
    DatasetUnknown {
        /// What the job asks for.
        dataset: DatasetName,
        /// What the policy has.
        allowed: Vec<DatasetName>,
    },
    /// The agent's configuration has no files for the dataset.
    #[error("the agent has no section `data.{dataset}`; it has {configured:?}")]
    DatasetMissing {
        /// What the job asks for.
        dataset: DatasetName,
        /// What the configuration has.
        configured: Vec<DatasetName>,
    },
    /// A choice of the job is not in the policy's list.
    #[error("the job asks for {asked}, but the policy's `{key}` allows {allowed}")]
    NotAllowed {
        /// The key of the policy.
        key: &'static str,
        /// What the job asks for.
        asked: String,
        /// What the policy allows.
        allowed: String,
    },
    /// A number of the job is below the policy's least.
    #[error("the job's `{asked_key}` is {asked}, but the policy's `{key}` is {min}")]
    BelowMin {
        /// The key of the job.
        asked_key: &'static str,
        /// What the job asks for.
        asked: f64,
        /// The key of the policy.
        key: &'static str,
        /// The least that the policy allows.
        min: f64,
    },
    /// A number of the job is above the policy's most.
    #[error("the job's `{asked_key}` is {asked}, but the policy's `{key}` is {max}")]
    AboveMax {
        /// The key of the job.
        asked_key: &'static str,
        /// What the job asks for.
        asked: f64,
        /// The key of the policy.
        key: &'static str,
        /// The most that the policy allows.
        max: f64,
    },
}

impl PolicyRefusal {
    /// The code for the coordinator.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Job(_)
            | Self::BaseMismatch
            | Self::Lattice(_)
            | Self::LatticeWraps { .. }
            | Self::LatticeCoarse { .. }
            | Self::Distributed(_)
            | Self::Mechanism(_) => ErrorCode::JobInvalid,
            Self::DatasetMissing { .. } => ErrorCode::DatasetMissing,
            Self::DatasetUnknown { .. }
            | Self::NotAllowed { .. }
            | Self::BelowMin { .. }
            | Self::AboveMax { .. } => ErrorCode::PolicyForbids,
        }
    }

    /// What the policy, or the agent, would accept instead.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::DatasetUnknown { dataset, .. } => {
                format!("a section `datasets.{dataset}` in policy.toml, if the tenant wants this")
            }
            Self::DatasetMissing { dataset, .. } => {
                format!("a section `data.{dataset}` with its files in agent.toml")
            }
            Self::NotAllowed { key, allowed, .. } => {
                format!(
                    "a job that asks for one of {allowed}, or a longer list `{key}` in policy.toml"
                )
            }
            Self::BelowMin { asked_key, key, min, .. } => {
                format!(
                    "a job with `{asked_key}` of at least {min}, or a lower `{key}` in policy.toml"
                )
            }
            Self::AboveMax { asked_key, key, max, .. } => {
                format!(
                    "a job with `{asked_key}` of at most {max}, or a higher `{key}` in policy.toml"
                )
            }
            _ => "a job that its author corrects; no policy would accept this one".to_owned(),
        }
    }

    /// The refusal with what would work, for the tenant.
    #[must_use]
    pub fn declined(&self) -> Declined {
        Declined { refusal: self.refusal(), remedy: self.remedy() }
    }

    /// The refusal as it is sent and shown.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        Refusal::from_error(self.code(), self)
    }
}
