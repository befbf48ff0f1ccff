//! Why a round refuses.

use thiserror::Error;
use tributary_privacy::secagg::SecaggError;
use tributary_protocol::{
    error_code::ErrorCode,
    id::{Digest, RoundNumber, TenantId},
};

/// Says why an input was refused; the round is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RoundError {
    /// The tenant was not invited, or was dropped because it did not answer or declined.
    #[error("tenant {tenant} is not in the cohort of round {round}")]
    NotInCohort {
        /// Who.
        tenant: TenantId,
        /// The round.
        round: RoundNumber,
    },
    /// The tenant already reported something else.
    #[error(
        "tenant {tenant} already reported update {stored} in round {round}; {offered} is another one"
    )]
    Conflict {
        /// Who.
        tenant: TenantId,
        /// The round.
        round: RoundNumber,
        /// What is counted.
        stored: Digest,
        /// What was offered now.
        offered: Digest,
    },
    /// A message of secure aggregation is not what the step allows.
    #[error("secure aggregation of round {round}: the message of tenant {tenant} is refused")]
    Secagg {
        /// Whose message.
        tenant: TenantId,
        /// The round.
        round: RoundNumber,
        /// Why.
        #[source]
        source: SecaggError,
    },
    /// The round takes no such input any more, or not yet.
    #[error("round {round} is in phase {phase}")]
    WrongPhase {
        /// The round.
        round: RoundNumber,
        /// Its phase.
        phase: &'static str,
    },
}

impl RoundError {
    /// The code for the peer.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::NotInCohort { .. } => ErrorCode::NotInCohort,
            Self::Conflict { .. } => ErrorCode::UpdateConflict,
            Self::Secagg { .. } => ErrorCode::SecaggMessageInvalid,
            Self::WrongPhase { .. } => ErrorCode::WrongRound,
        }
    }
}
