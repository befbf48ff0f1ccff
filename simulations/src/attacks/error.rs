//! Why an attack cannot be carried out.

use thiserror::Error;
use tributary_agent::train::TrainError;
use tributary_privacy::{
    accountant::AccountantError, clip::ClipError, lattice::LatticeError, mechanism::MechanismError,
    noise::NoiseError, secagg::SecaggError,
};

use crate::{audit::AuditRunError, data::fetch::FetchError};

/// Says why an attack has no result.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AttackError {
    /// The images are not here.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The attacked trainer failed.
    #[error("the attacked trainer failed")]
    Train(#[from] TrainError),
    /// A mechanism refused.
    #[error("the attacked mechanism failed")]
    Mechanism(#[from] MechanismError),
    /// The noise cannot be drawn.
    #[error("the noise of the defence cannot be drawn")]
    Noise(#[from] NoiseError),
    /// The noise for a wanted ε cannot be found.
    #[error("the noise of the defence cannot be calibrated")]
    Accountant(#[from] AccountantError),
    /// An update cannot be clipped.
    #[error("an update cannot be clipped")]
    Clip(#[from] ClipError),
    /// An update fits no lattice.
    #[error("an update fits no lattice")]
    Lattice(#[from] LatticeError),
    /// The masks of a cohort cannot be made.
    #[error("the cohort's secure aggregation failed")]
    Secagg(#[from] SecaggError),
    /// The audit has no result.
    #[error("the audit has no result")]
    Audit(#[from] AuditRunError),
}
