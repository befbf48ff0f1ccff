//! What secure aggregation of a job's updates must withstand, and what its rounds were worth.

use tributary_privacy::{
    distributed::{DistributedError, DistributedNoise},
    lattice::Lattice,
    mechanism::PrivacyEvent,
    secagg::{self, SecaggPlan},
};
use tributary_protocol::{
    job::{Adversary, JobSpec, PrivacyUnit, UpdateBound},
    message::LatticeSpec,
};

use crate::round::SecaggTerms;

/// What a job asks of its sums; `None` where every update is private by itself.
#[must_use]
pub fn noise(job: &JobSpec) -> Option<DistributedNoise> {
    let spec = job.secagg.as_ref()?;
    let UpdateBound { norm_max, noise_sigma } = job.update_bound();
    Some(DistributedNoise {
        dimension: job.federated_dimension() as u64,
        norm_max,
        noise_sigma,
        survivors_min: job.round.cohort_size_min,
        cohort_size_max: job.round.cohort_size,
        dropout_max: spec.dropout_max,
        corrupt_max: spec.corrupt_max,
        adversary: match spec.adversary {
            Adversary::SemiHonest => secagg::Adversary::SemiHonest,
            Adversary::MaliciousCoordinator => secagg::Adversary::MaliciousCoordinator,
        },
    })
}

/// The terms that every round of a job has.
#[must_use]
pub fn terms(job: &JobSpec, lattice: LatticeSpec) -> Option<SecaggTerms> {
    Some(SecaggTerms {
        job: job.name.clone(),
        noise: noise(job)?,
        lattice,
        terms: SecaggTerms::terms_digest(job, lattice),
        step_timeout_ms: job.secagg.as_ref()?.step_timeout_ms,
    })
}

/// The finest lattice that no cohort of the job overflows.
pub(super) fn lattice(
    noise: &DistributedNoise,
    bits: u8,
    wrap_probability_max: f64,
) -> Result<Lattice, DistributedError> {
    noise.lattice(bits, wrap_probability_max)
}

/// What one committed round revealed, for the number of updates that were in its sum: less than the
/// worst case that agents account for, where fewer members dropped out than the plan tolerates.
///
/// Colluding members are still taken to be as many as the job tolerates.
#[must_use]
pub fn event(
    job: &JobSpec,
    plan: &SecaggPlan,
    lattice: LatticeSpec,
    survivors: u32,
) -> Option<PrivacyEvent> {
    let lattice = Lattice::new(lattice.step, lattice.bits).ok()?;
    let sampling_rate = match job.privacy.unit {
        PrivacyUnit::Record => job.training.sampling_rate,
        PrivacyUnit::Tenant => 1.0,
    };
    let multiplier = job.privacy.noise_multiplier;
    Some(noise(job)?.event(plan, lattice, sampling_rate, multiplier, Some(survivors)))
}
