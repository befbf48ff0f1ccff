//! The release path: from trained parameters to bytes that may leave.
//!
//! Two durable steps stand between a noisy update and the wire, in this order: the packed bytes
//! are stored ([`ReleaseFiles`]), then the ledger is debited with their digest ([`release`]). A
//! crash before the debit leaves a file that nothing refers to and the round is trained anew; a
//! crash after it leaves bytes that are sent again as they are ([`standing`]). No path debits one
//! round twice, and none sends bytes that the ledger does not hold.

mod control;
mod correlated;
mod evaluation;
mod files;
mod masked;
mod noisy;
mod release;

use thiserror::Error;
use tributary_privacy::{
    clip::ClipError, lattice::LatticeError, ledger::LedgerError, mechanism::MechanismError,
    noise::NoiseError, secagg::SecaggError,
};
use tributary_protocol::{
    codec::CodecError,
    error_code::{ErrorCode, Refusal},
    id::{JobId, RoundNumber},
    message::BlobRef,
    tensor_file::TensorFileError,
};

pub use self::{
    control::{ControlFiles, released_update},
    correlated::{RunUpdate, correlated_update},
    evaluation::{noisy_evaluation, release_evaluation, released_evaluation},
    files::ReleaseFiles,
    masked::{Masked, masked_update},
    noisy::{RoundData, noisy_update},
    release::{SharedLedger, Standing, fits_from, release, release_run, request, standing},
};
pub(crate) use self::{correlated::planned_run, noisy::clip_vote};
use crate::{durable_file::FileError, train::TrainError};

/// Bytes that the ledger allows to leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// The job.
    pub job: JobId,
    /// The round.
    pub round: RoundNumber,
    /// The packed update.
    pub update: BlobRef,
}

/// Says why a round gives no release.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// The round closed meanwhile; nothing was debited.
    #[error("the round closed before the update was released")]
    Cancelled,
    /// Training gave nothing.
    #[error("local training failed")]
    Train(#[source] TrainError),
    /// A mechanism refused.
    #[error("the privacy mechanism released nothing")]
    Mechanism(#[from] MechanismError),
    /// The update cannot be clipped.
    #[error("the update cannot be clipped")]
    Clip(#[from] ClipError),
    /// The update does not go on the lattice.
    #[error("the update does not go on the lattice")]
    Lattice(#[from] LatticeError),
    /// The update cannot be masked.
    #[error("the update cannot be masked")]
    Secagg(#[from] SecaggError),
    /// There is no entropy for noise.
    #[error("no noise can be drawn")]
    Noise(#[from] NoiseError),
    /// The ledger refuses.
    #[error("the privacy ledger does not allow the release")]
    Ledger(#[from] LedgerError),
    /// The metrics cannot be written (our bug).
    #[error("the metrics cannot be encoded")]
    Encode(#[source] CodecError),
    /// The control variate that follows from the update cannot be kept.
    #[error("the tenant's control variate is not usable")]
    Control(#[source] Box<TensorFileError>),
    /// The release cannot be stored.
    #[error("the release cannot be stored")]
    File(#[from] FileError),
    /// The release of a debited round is lost.
    #[error(
        "round {round} of job {job} was debited, but its bytes are lost; it is not debited twice"
    )]
    Lost {
        /// The job.
        job: JobId,
        /// The round.
        round: RoundNumber,
    },
}

impl From<TrainError> for UpdateError {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Stopped { .. } => Self::Cancelled,
            error => Self::Train(error),
        }
    }
}

impl UpdateError {
    /// The code for the coordinator.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Train(TrainError::Model(_)) => ErrorCode::BaseModelInvalid,
            Self::Clip(_)
            | Self::Lattice(LatticeError::NonFinite { .. })
            | Self::Mechanism(MechanismError::Clip(_))
            | Self::Train(TrainError::NonFiniteGradient { .. } | TrainError::Diverged { .. }) => {
                ErrorCode::UpdateNotFinite
            }
            Self::Control(_) => ErrorCode::UpdateNotFinite,
            Self::Secagg(_) => ErrorCode::TrainingFailed,
            Self::Ledger(LedgerError::BudgetExceeded { .. }) => ErrorCode::BudgetExhausted,
            Self::Train(_) | Self::Mechanism(_) | Self::Lattice(_) => ErrorCode::TrainingFailed,
            Self::Lost { .. } => ErrorCode::ReleaseLost,
            Self::Cancelled => ErrorCode::TimedOut,
            Self::Noise(_) | Self::Ledger(_) | Self::File(_) | Self::Encode(_) => {
                ErrorCode::Internal
            }
        }
    }

    /// The refusal as it is sent and shown; a failing disk is named only in the agent's own log.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self.code() {
            ErrorCode::Internal => Refusal::new(ErrorCode::Internal, self),
            code => Refusal::from_error(code, self),
        }
    }
}

#[cfg(test)]
mod tests;
