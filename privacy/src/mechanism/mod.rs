//! Mechanisms: what turns a sensitive vector into one that may leave the process.

mod batch_sum;
mod clip_vote;
mod clipped_sum;
mod correlated;
mod event;
mod gradient_sum;
mod map;
mod noisy_update;
mod statistics;

use std::sync::Arc;

use thiserror::Error;

pub(crate) use self::clipped_sum::ROUNDING_FAILURE;
pub use self::{
    batch_sum::{GradientSum, Held},
    clip_vote::ClipVote,
    clipped_sum::ClippedGradientSum,
    correlated::{BandedMatrix, CorrelatedGradientSum, ParticipationSchedule},
    event::{Neighbouring, PrivacyEvent},
    gradient_sum::{NoisyGradientSum, StepPart},
    map::discrete_gaussian_rho,
    noisy_update::NoisyUpdate,
    statistics::{NoisyMean, NoisyStatistics, NoisySum},
};
use crate::{clip::ClipError, lattice::LatticeError, noise::NoiseError};

/// Says why a mechanism cannot be built or released nothing.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum MechanismError {
    /// The input cannot be clipped.
    #[error(transparent)]
    Clip(#[from] ClipError),
    /// The noise cannot be drawn.
    #[error(transparent)]
    Noise(#[from] NoiseError),
    /// The input does not go on the lattice.
    #[error(transparent)]
    Lattice(#[from] LatticeError),
    /// The lattice is too coarse for the noise to be accounted as continuous.
    #[error("the noise is {sigma} grid units; it must be at least {sigma_min}: use a finer step")]
    TooCoarse {
        /// Noise deviation in grid units.
        sigma: f64,
        /// The smallest deviation for this dimension.
        sigma_min: f64,
    },
    /// opendp's privacy map refuses the mechanism.
    #[error("opendp has no privacy map for sensitivity {sensitivity} and deviation {sigma}")]
    PrivacyMap {
        /// The L2 sensitivity, in grid units.
        sensitivity: f64,
        /// The noise deviation, in grid units.
        sigma: f64,
        /// What opendp said.
        #[source]
        source: Arc<opendp::error::Error>,
    },
    /// A number lies outside its range (NaN included).
    #[error("`{field}` is {value}; it must be {range}")]
    OutOfRange {
        /// The name of the parameter.
        field: &'static str,
        /// What was given.
        value: f64,
        /// What would work.
        range: &'static str,
    },
    /// The vector has another length than the mechanism was built for.
    #[error("the vector has {length} elements; the mechanism was built for {dimension}")]
    Dimension {
        /// Elements given.
        length: usize,
        /// Elements expected.
        dimension: usize,
    },
    /// A coordinate of the sum exceeds what its examples can reach under the clipping norm.
    #[error(
        "coordinate {index} of the sum is {value}, beyond {examples} examples clipped to {norm}"
    )]
    NotClipped {
        /// Position of the coordinate.
        index: usize,
        /// Its value, in model units.
        value: f64,
        /// Examples that the caller summed.
        examples: u64,
        /// The clipping norm, in model units.
        norm: f64,
    },
    /// All steps of a run with correlated noise were released.
    #[error("the run's {steps} steps are over; a further one needs a new run")]
    RunFinished {
        /// Steps of the run.
        steps: u64,
    },
    /// The saved state of a run is not one of this plan.
    #[error("the saved run cannot go on: {reason}")]
    RunState {
        /// What does not hold.
        reason: &'static str,
    },
    /// The float summation error of this batch is no longer covered by the slack.
    #[error(
        "the examples of a batch times those of a micro-batch, {work}, exceed {work_max}; use \
         smaller micro-batches or batches"
    )]
    BatchTooLarge {
        /// Examples times the additions that each of their terms goes through.
        work: u64,
        /// The largest total that the slack covers.
        work_max: u64,
    },
}
