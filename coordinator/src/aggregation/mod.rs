//! Adds packed lattice updates and turns the sum into the next base model.
//!
//! Memory is one integer a parameter (with asynchronous rounds, for each staleness that occurs),
//! however many tenants report. The sum modulo `2^bits` is exact
//! and commutes, so it does not matter in which order updates arrive, nor whether they were added
//! as they came or all again after a restart.

mod commit;
mod control;
mod distributed;
mod robust;
mod sum;
mod sums;

use thiserror::Error;
use tributary_privacy::{
    clip::{ClippingNorm, next_norm},
    distributed::DistributedError,
    lattice::{Lattice, LatticeError, LatticeRequest, Rotation},
    mechanism::{ClipVote, MechanismError},
    secagg::{Implausible, SecaggError},
};
use tributary_protocol::{
    id::{Digest, RoundNumber},
    job::{JobSpec, UpdateBound},
    message::LatticeSpec,
    tensor_file::TensorFileError,
};

pub use self::{
    commit::{Committing, NextModel, make, next_model},
    control::move_control,
    distributed::{event, noise, terms},
    robust::{PackedUpdates, combine},
    sum::{RoundSum, Unmask},
    sums::RoundSums,
};
use crate::blobs::BlobError;

/// The accepted probability that any coordinate of a round's sum wraps.
const WRAP_PROBABILITY_MAX: f64 = 1.0 / (1_u64 << 40) as f64;

/// Says why an aggregate cannot be formed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AggregationError {
    /// The job's numbers have no lattice.
    #[error("the job's norms and noise do not fit a lattice of `privacy.lattice_bits`")]
    Plan(#[source] LatticeError),
    /// The job's cohorts have no secure sum.
    #[error("no secure aggregation fits the job")]
    Distributed(#[from] DistributedError),
    /// The masks of a sum cannot be removed.
    #[error("the masks of the sum cannot be removed")]
    Masked(#[from] SecaggError),
    /// Honest updates alone cannot have made a sum.
    #[error("the sum of the updates is implausible: {0}")]
    Implausible(Implausible),
    /// The lattice does not carry the vote on the clipping norm.
    #[error("the votes on the clipping norm do not go on the job's lattice")]
    Vote(#[from] MechanismError),
    /// An update is not a vector of this lattice.
    #[error("update {update} is not a lattice vector of this job")]
    Update {
        /// Which.
        update: Digest,
        /// Why.
        #[source]
        source: LatticeError,
    },
    /// A part of an update does not unpack (our bug: all were checked when they were added).
    #[error("a part of an update cannot be unpacked")]
    Window(#[from] LatticeError),
    /// A file failed.
    #[error("a model or update file failed")]
    Blob(#[from] BlobError),
    /// A model file does not hold the model, or the new model is not finite.
    #[error("the model file is not usable; lower the learning rates if training diverges")]
    Model(#[from] TensorFileError),
    /// The optimizer state has the wrong length.
    #[error("optimizer state {state} has {bytes} bytes; {expected} were expected")]
    State {
        /// Which file.
        state: Digest,
        /// Its length.
        bytes: usize,
        /// The length for this model.
        expected: usize,
    },
}

/// Chooses the finest lattice on which the job's sums do not wrap.
///
/// # Errors
/// [`AggregationError::Plan`].
pub fn plan_lattice(job: &JobSpec) -> Result<LatticeSpec, AggregationError> {
    if let (Some(noise), Some(spec)) = (noise(job), &job.secagg) {
        let lattice = distributed::lattice(&noise, spec.bits, WRAP_PROBABILITY_MAX)?;
        return Ok(LatticeSpec { step: lattice.step(), bits: lattice.bits() });
    }
    let UpdateBound { norm_max, noise_sigma } = job.update_bound();
    let request = LatticeRequest {
        dimension: job.wire_dimension(),
        norm_max,
        noise_sigma,
        contributors_max: job.round.cohort_size,
        bits: job.privacy.lattice_bits,
        wrap_probability_max: WRAP_PROBABILITY_MAX,
    };
    let lattice = Lattice::plan(&request).map_err(AggregationError::Plan)?;
    // Refused at submission, not by every agent.
    clip_vote(job, lattice)?;
    Ok(LatticeSpec { step: lattice.step(), bits: lattice.bits() })
}

/// The vote on the clipping norm, where it adapts.
fn clip_vote(job: &JobSpec, lattice: Lattice) -> Result<Option<ClipVote>, AggregationError> {
    let Some(adaptive) = job.privacy.adaptive() else { return Ok(None) };
    let clipping_norm =
        ClippingNorm::new(job.privacy.clipping_norm).map_err(MechanismError::from)?;
    let multiplier = job.privacy.noise_multiplier;
    Ok(Some(ClipVote::new(lattice, clipping_norm, multiplier, adaptive.count_noise_multiplier)?))
}

/// Turns the sum of a round's lattice vectors into the sum of client updates, in model units, and
/// the noisy vote on the clipping norm where it adapts.
///
/// - `job`: with the clipping norm of the round
///
/// # Errors
/// [`AggregationError`] if the lattice does not carry the vote, which submission would have shown.
pub fn open_sum(
    job: &JobSpec,
    round: RoundNumber,
    lattice: Lattice,
    mut sum: Vec<f64>,
) -> Result<(Vec<f64>, Option<f64>), AggregationError> {
    let dimension = job.federated_dimension();
    let vote = clip_vote(job, lattice)?.map(|vote| vote.count(lattice, sum[dimension]));
    sum.truncate(dimension);
    if let Some(seed) = job.rotation_seed(round) {
        Rotation::new(seed, dimension).invert(&mut sum);
    }
    Ok((sum, vote))
}

/// The clipping norm of the round after one with this noisy vote; the same if the job's does not
/// adapt.
#[must_use]
pub fn next_clipping_norm(job: &JobSpec, vote: Option<f64>, contributors: usize) -> f64 {
    let norm = job.privacy.clipping_norm;
    let (Some(adaptive), Some(vote)) = (job.privacy.adaptive(), vote) else { return norm };
    let Ok(checked) = ClippingNorm::new(norm) else { return norm };
    let (rate, target) = (adaptive.learning_rate, adaptive.target_quantile);
    next_norm(checked, vote, contributors as f64, rate, target).value()
}

/// The lattice of a job, from its wire form.
///
/// # Errors
/// [`AggregationError::Plan`].
pub fn lattice(spec: LatticeSpec) -> Result<Lattice, AggregationError> {
    Lattice::new(spec.step, spec.bits).map_err(AggregationError::Plan)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tributary_protocol::{
        id::{Digest, TenantId},
        job::{AggregationRule, AsynchronousPlan, LocalAlgorithm, ServerOptimizerSpec},
        message::BlobRef,
        model::{MlpSpec, ModelSpec},
        tensor_file,
    };

    use super::*;
    use crate::{
        blobs::BlobStore,
        registry::{self, ModelVersion},
        round::{Phase, RoundRecord},
    };

    fn version(job: &JobSpec, file: Digest, blobs: &BlobStore) -> ModelVersion {
        let initial = registry::initial_model(job, 1, crate::scheduler::tests::NOW, blobs);
        let file = BlobRef { digest: file, length: 0 };
        ModelVersion { file, ..initial.expect("makes") }
    }

    #[test]
    fn order_repetition_and_restart_do_not_change_the_sum() {
        let folder = tempfile::tempdir().expect("folder");
        let blobs = BlobStore::open(folder.path()).expect("opens");
        let lattice = Lattice::new(0.5, 20).expect("lattice");
        let contributors: BTreeMap<_, _> = [[4_i64, -3, 0], [-8, 1, 1], [7, 7, -7]]
            .into_iter()
            .enumerate()
            .map(|(index, values)| {
                let update = blobs.put(&lattice.pack(&values)).expect("stores");
                (TenantId::new(format!("t{index}")).expect("valid"), update)
            })
            .collect();
        let fresh = || RoundSum::new(RoundNumber(1), lattice, 3);
        let current = BTreeMap::new();
        let all_at_once = fresh().finish(&contributors, &current, None, &blobs).expect("sums");
        assert_eq!(all_at_once, [(0, vec![1.5, 2.5, -3.0])].into());
        let mut streamed = fresh();
        for (tenant, &update) in contributors.iter().rev().chain(&contributors) {
            streamed.add(tenant, update, 0, &blobs).expect("adds");
        }
        assert_eq!(
            streamed.finish(&contributors, &current, None, &blobs).expect("sums"),
            all_at_once
        );
        let mut stale = fresh();
        let stranger = TenantId::new("stranger").expect("valid");
        stale
            .add(&stranger, contributors.values().copied().next().expect("one"), 0, &blobs)
            .expect("adds");
        assert_eq!(stale.finish(&contributors, &current, None, &blobs).expect("sums"), all_at_once);
    }

    #[test]
    fn a_diverging_aggregate_is_refused_and_names_the_tensor() {
        let folder = tempfile::tempdir().expect("folder");
        let blobs = BlobStore::open(folder.path()).expect("opens");
        let model = ModelSpec::Mlp(MlpSpec { inputs: 2, hidden: vec![], classes: 2 });
        let base =
            blobs.put(&tensor_file::write(&model, &[1e38; 6]).expect("writes")).expect("stores");
        let mut job = crate::scheduler::tests::job();
        job.model = model;
        let base = version(&job, base, &blobs);
        let error = next_model(&job, &base, vec![1e39; 6], 2, &blobs).expect_err("infinite");
        assert!(
            matches!(error, AggregationError::Model(TensorFileError::NonFinite { .. })),
            "{error:?}"
        );
    }

    #[test]
    fn an_adaptive_optimizer_continues_from_the_state_of_the_last_round() {
        let folder = tempfile::tempdir().expect("folder");
        let blobs = BlobStore::open(folder.path()).expect("opens");
        let mut job = crate::scheduler::tests::job();
        job.model = ModelSpec::Mlp(MlpSpec { inputs: 2, hidden: vec![], classes: 2 });
        let rates = [0.1, 0.9, 0.99, 1e-3];
        let [server_learning_rate, beta1, beta2, tau] = rates;
        job.server_optimizer =
            ServerOptimizerSpec::Yogi { server_learning_rate, beta1, beta2, tau };
        let base =
            blobs.put(&tensor_file::write(&job.model, &[0.0; 6]).expect("writes")).expect("stores");
        let base = version(&job, base, &blobs);
        let first = next_model(&job, &base, vec![2.0; 6], 2, &blobs).expect("makes");
        let state = first.optimizer_state.expect("two moments");
        assert_eq!(blobs.read(state).expect("reads").len(), 2 * 6 * 8);
        let again = next_model(&job, &base, vec![2.0; 6], 2, &blobs).expect("makes");
        assert_eq!(first, again, "a repeated commit gives the same files");
        let second = ModelVersion { file: first.file, optimizer_state: Some(state), ..base };
        let second = next_model(&job, &second, vec![2.0; 6], 2, &blobs).expect("makes");
        assert_ne!(second.optimizer_state, first.optimizer_state);
        job.server_optimizer = ServerOptimizerSpec::Adagrad { server_learning_rate, tau };
        let base = ModelVersion {
            optimizer_state: Some(state),
            ..version(&job, first.file.digest, &blobs)
        };
        let error = next_model(&job, &base, vec![2.0; 6], 2, &blobs).expect_err("length");
        assert!(
            matches!(error, AggregationError::State { bytes: 96, expected: 48, .. }),
            "{error}"
        );
    }

    #[test]
    fn the_control_variate_stays_the_mean_of_the_tenants_own() {
        let folder = tempfile::tempdir().expect("folder");
        let blobs = BlobStore::open(folder.path()).expect("opens");
        let mut job = crate::scheduler::tests::job();
        job.training.algorithm = LocalAlgorithm::Scaffold { population: 4 };
        job.training.local_steps = 5;
        let drift = 5.0 * job.training.client_learning_rate;
        let mut own = [[0.0_f64; 6]; 4];
        let mut base = version(&job, Digest::of(b""), &blobs);
        base.file = registry::initial_model(&job, 1, crate::scheduler::tests::NOW, &blobs)
            .expect("makes")
            .file;
        let mut common = [0.0_f64; 6];
        for (round, cohort) in [[0, 1], [1, 3], [0, 2]].into_iter().enumerate() {
            let mut sum = vec![0.0; 6];
            for tenant in cohort {
                for (coordinate, own) in own[tenant].iter_mut().enumerate() {
                    let update = ((round * 7 + tenant * 3 + coordinate) as f64).sin();
                    sum[coordinate] += update;
                    *own -= common[coordinate] + update / drift;
                }
            }
            let next = next_model(&job, &base, sum, 2, &blobs).expect("makes");
            let control = next.control.expect("SCAFFOLD keeps one");
            let bytes = blobs.read(control.digest).expect("stored");
            let values = tensor_file::read(&job.model, &bytes).expect("of the model's form");
            for (coordinate, &value) in values.iter().enumerate() {
                let mean = own.iter().map(|own| own[coordinate]).sum::<f64>() / 4.0;
                assert!((f64::from(value) - mean).abs() < 1e-5, "{value} is not {mean}");
                common[coordinate] = f64::from(value);
            }
            base = ModelVersion { file: next.file, control: Some(control), ..base };
        }
        job.training.algorithm = LocalAlgorithm::Sgd;
        let plain = next_model(&job, &base, vec![0.0; 6], 2, &blobs).expect("makes");
        assert_eq!(plain.control, None);
    }

    /// A round of these updates as `make` gets it.
    fn made(job: &JobSpec, updates: &[(u32, [i64; 6])]) -> Vec<f32> {
        let folder = tempfile::tempdir().expect("folder");
        let blobs = BlobStore::open(folder.path()).expect("opens");
        let spec = LatticeSpec { step: 0.5, bits: 20 };
        let lattice = lattice(spec).expect("valid");
        let tenant = |index: usize| TenantId::new(format!("t{index}")).expect("valid");
        let updates = updates.iter().enumerate();
        let (mut contributors, mut staleness) = (BTreeMap::new(), BTreeMap::new());
        for (index, (stale, values)) in updates {
            let update = blobs.put(&lattice.pack(values)).expect("stores");
            contributors.insert(tenant(index), update);
            staleness.insert(tenant(index), *stale);
        }
        let zeros = tensor_file::write(&job.model, &[0.0; 6]).expect("writes");
        let base = version(job, blobs.put(&zeros).expect("stores"), &blobs);
        let phase = Phase::Committed { contributors: contributors.clone() };
        let round = RoundRecord {
            number: RoundNumber(9),
            base: base.file.digest,
            plan: job.round.clone(),
            secagg: None,
            cohort_seed: 0,
            phase,
            carried: crate::round::Carried { tickets: BTreeMap::new(), staleness },
        };
        let committing = Committing {
            job,
            lattice: spec,
            round: &round,
            base: &base,
            contributors: &contributors,
            unmask: None,
        };
        let next = make(committing, None, &blobs).expect("makes");
        tensor_file::read(&job.model, &blobs.read(next.file.digest).expect("stored")).expect("read")
    }

    #[test]
    fn older_updates_count_with_their_public_weight() {
        let mut job = crate::scheduler::tests::job();
        job.round.report_goal = 4;
        let updates = [(0, [8; 6]), (3, [8; 6]), (0, [16; 6]), (3, [-24; 6])];
        assert_eq!(made(&job, &updates.map(|(_, values)| (0, values))), [1.0; 6]);
        job.round.asynchronous =
            Some(AsynchronousPlan { staleness_max: 3, staleness_exponent: 0.5 });
        // (4 + 8) + (4 - 12) / 2, over 4.
        assert_eq!(made(&job, &updates), [2.0; 6]);
    }

    #[test]
    fn a_robust_rule_takes_the_place_of_the_mean() {
        let mut job = crate::scheduler::tests::job();
        job.round.report_goal = 4;
        let updates = [(0, [8; 6]), (0, [10; 6]), (0, [12; 6]), (0, [-90_000; 6])];
        assert_eq!(made(&job, &updates)[0], (15.0 - 45_000.0) / 4.0);
        job.aggregation = AggregationRule::Median;
        assert_eq!(made(&job, &updates), [4.5; 6]);
        job.aggregation = AggregationRule::Krum { byzantine_max: 0 };
        assert_eq!(made(&job, &updates), [5.0; 6]);
    }
}
