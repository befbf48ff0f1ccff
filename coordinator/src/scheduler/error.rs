//! Why the scheduler refuses.

use std::sync::Arc;

use thiserror::Error;
use tributary_protocol::{
    codec::CodecError,
    error_code::{ErrorCode, Refusal},
    id::{Digest, JobId, RoundNumber, TenantId},
    job::JobSpecError,
};

use crate::{
    round::RoundError,
    tenants::{EnrollmentError, QuotaUsedUp},
};

/// Says why a request was refused; nothing changed.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum SchedulerError {
    /// The job is not usable.
    #[error("the job cannot be accepted")]
    Job(#[source] JobSpecError),
    /// A job of this name exists.
    #[error("a job named {job} exists; choose another name")]
    JobExists {
        /// The name.
        job: JobId,
    },
    /// No job of this name.
    #[error("there is no job {job}; `job list` shows what there is")]
    JobUnknown {
        /// The name.
        job: JobId,
    },
    /// The job takes no updates any more.
    #[error("job {job} has ended")]
    JobFinished {
        /// The name.
        job: JobId,
    },
    /// The update is for a round that is not open.
    #[error("round {offered} of job {job} is not open; the open round is {open}")]
    WrongRound {
        /// The job.
        job: JobId,
        /// The round of the update.
        offered: RoundNumber,
        /// The round that is open.
        open: RoundNumber,
    },
    /// The update has the wrong size.
    #[error("the update has {offered} bytes; an update of job {job} has {expected}")]
    UpdateLength {
        /// The job.
        job: JobId,
        /// Announced length, in bytes.
        offered: u64,
        /// The only possible length, in bytes.
        expected: u64,
    },
    /// A message of secure aggregation does not decode.
    #[error("the message of secure aggregation is malformed")]
    SecaggMalformed {
        /// What the decoder met.
        #[source]
        source: Arc<CodecError>,
    },
    /// The metrics are not those that the job asks for in this round.
    #[error("the metrics with the update are not those that job {job} asks for in this round")]
    Metrics {
        /// The job.
        job: JobId,
    },
    /// The round refused the input.
    #[error(transparent)]
    Round(#[from] RoundError),
    /// The token does not admit.
    #[error(transparent)]
    Enrollment(#[from] EnrollmentError),
    /// The tenant is suspended.
    #[error("tenant {tenant} is suspended: {reason}")]
    TenantSuspended {
        /// Who.
        tenant: TenantId,
        /// Why.
        reason: String,
    },
    /// The tenant is revoked.
    #[error("tenant {tenant} is revoked: {reason}")]
    TenantRevoked {
        /// Who.
        tenant: TenantId,
        /// Why.
        reason: String,
    },
    /// No job that the tenant may take part in has this model.
    #[error("there is no model file {file} here")]
    ModelUnknown {
        /// Which.
        file: Digest,
    },
    /// The job has no such version.
    #[error("job {job} has no model version {version}; `model list` shows what there is")]
    VersionUnknown {
        /// The job.
        job: JobId,
        /// The version.
        version: u64,
    },
    /// No round is left to go on with.
    #[error(
        "all {rounds} rounds of job {job} led to version {version}; go on from an older version, or submit a new job with `--start-from`"
    )]
    NoRoundsLeft {
        /// The job.
        job: JobId,
        /// The version.
        version: u64,
        /// Rounds of the job.
        rounds: u64,
    },
    /// Agents serve the first version already.
    #[error("agents serve version 0 of job {job}; there is nothing before it")]
    NothingBefore {
        /// The job.
        job: JobId,
    },
    /// No tenant of this name.
    #[error("there is no tenant {tenant}; `tenant list` shows who there is")]
    TenantUnknown {
        /// The name.
        tenant: TenantId,
    },
    /// The tenant has used what it may use today.
    #[error("tenant {tenant}: {quota}")]
    QuotaExceeded {
        /// Who.
        tenant: TenantId,
        /// Which quota.
        quota: QuotaUsedUp,
    },
    /// The tenant is not known, or shows a certificate that is not its current one.
    #[error(
        "the certificate of tenant {tenant} is not the registered one; enrol again with a new token"
    )]
    CertificateNotRegistered {
        /// Who.
        tenant: TenantId,
    },
}

impl SchedulerError {
    /// The code for the peer.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Job(_) | Self::JobExists { .. } => ErrorCode::JobInvalid,
            Self::JobUnknown { .. } => ErrorCode::JobUnknown,
            Self::JobFinished { .. } | Self::WrongRound { .. } | Self::NoRoundsLeft { .. } => {
                ErrorCode::WrongRound
            }
            Self::UpdateLength { .. } => ErrorCode::UpdateLength,
            Self::Metrics { .. } => ErrorCode::UpdateMalformed,
            Self::SecaggMalformed { .. } => ErrorCode::SecaggMessageInvalid,
            Self::Round(error) => error.code(),
            Self::Enrollment(error) => error.code(),
            Self::CertificateNotRegistered { .. } | Self::TenantUnknown { .. } => {
                ErrorCode::CertificateNotRegistered
            }
            Self::ModelUnknown { .. }
            | Self::VersionUnknown { .. }
            | Self::NothingBefore { .. } => ErrorCode::BlobUnknown,
            Self::TenantSuspended { .. } => ErrorCode::TenantSuspended,
            Self::TenantRevoked { .. } => ErrorCode::TenantRevoked,
            Self::QuotaExceeded { .. } => ErrorCode::QuotaExceeded,
        }
    }

    /// The refusal for the peer.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        Refusal::from_error(self.code(), self)
    }
}
