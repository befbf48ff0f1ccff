//! Adds packed lattice updates and turns the sum into the next base model.
//!
//! Memory is one integer a parameter, however many tenants report. The sum modulo `2^bits` is exact
//! and commutes, so it does not matter in which order updates arrive, nor whether they were added
//! as they came or all again after a restart.

mod distributed;

use std::collections::BTreeMap;

use ndarray::{Array1, ArrayViewMut1};
use thiserror::Error;
use tributary_privacy::{
    clip::{ClippingNorm, next_norm},
    distributed::DistributedError,
    lattice::{Lattice, LatticeError, LatticeRequest, ModularSum, Rotation},
    mechanism::{ClipVote, MechanismError},
    secagg::{Implausible, SecaggError},
};
use tributary_protocol::{
    id::{Digest, RoundNumber, TenantId},
    job::{JobSpec, UpdateBound},
    message::{BlobRef, LatticeSpec},
    tensor_file::{self, TensorFileError},
};

pub use self::distributed::{event, noise, terms};
use crate::{
    blobs::{BlobError, BlobStore},
    optimizer,
    round::{Aggregation, SecaggTerms},
};

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

/// The running sum of one round.
#[derive(Debug)]
pub struct RoundSum {
    round: RoundNumber,
    sum: ModularSum,
    added: BTreeMap<TenantId, Digest>,
}

impl RoundSum {
    /// An empty sum.
    #[must_use]
    pub fn new(round: RoundNumber, lattice: Lattice, dimension: usize) -> Self {
        Self { round, sum: ModularSum::new(lattice, dimension), added: BTreeMap::new() }
    }

    /// The round it belongs to.
    #[must_use]
    pub const fn round(&self) -> RoundNumber {
        self.round
    }

    /// Adds a tenant's stored update; a tenant that was added before is not added again.
    ///
    /// # Errors
    /// [`AggregationError`]; the sum must then be dropped, since part of the update may be in it.
    pub fn add(
        &mut self,
        tenant: &TenantId,
        update: Digest,
        blobs: &BlobStore,
    ) -> Result<(), AggregationError> {
        if self.added.contains_key(tenant) {
            return Ok(());
        }
        blobs.stream(update, |offset, bytes| {
            self.sum
                .add_chunk(offset, bytes)
                .map_err(|source| AggregationError::Update { update, source })
        })?;
        self.added.insert(tenant.clone(), update);
        Ok(())
    }

    /// Completes the sum over exactly these contributors, adding those that a restart forgot.
    ///
    /// - `unmask`: for masked updates, removes what is left of the masks
    ///
    /// # Errors
    /// [`AggregationError`].
    pub fn finish(
        mut self,
        contributors: &BTreeMap<TenantId, Digest>,
        unmask: Option<Unmask<'_>>,
        blobs: &BlobStore,
    ) -> Result<Vec<f64>, AggregationError> {
        if self.added.iter().any(|(tenant, update)| contributors.get(tenant) != Some(update)) {
            let lattice = self.sum.lattice();
            self = Self::new(self.round, lattice, self.sum.values().len());
        }
        for (tenant, &update) in contributors {
            if !self.added.contains_key(tenant) {
                // It arrived before a restart: the disk may have changed it since.
                blobs.verify(update)?;
                self.add(tenant, update, blobs)?;
            }
        }
        if let Some(unmask) = unmask {
            unmask.apply(&mut self.sum, contributors.len() as u32)?;
        }
        Ok(self.sum.lattice().dequantize_sum(self.sum.values()))
    }
}

/// Removes the masks of a sum, and checks that honest updates can have made it.
#[derive(Debug, Clone, Copy)]
pub struct Unmask<'a> {
    /// The finished secure aggregation.
    pub aggregation: &'a Aggregation,
    /// What the sum must withstand.
    pub terms: &'a SecaggTerms,
}

impl Unmask<'_> {
    fn apply(&self, sum: &mut ModularSum, survivors: u32) -> Result<(), AggregationError> {
        self.aggregation.server().unmask(sum)?;
        let bound = self.terms.noise.sum_bound(self.aggregation.plan(), sum.lattice());
        bound.check(sum, survivors).map_err(AggregationError::Implausible)
    }
}

/// The files of a new base model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NextModel {
    /// The safetensors file.
    pub file: BlobRef,
    /// What the server optimizer keeps for the next round.
    pub optimizer_state: Option<Digest>,
    /// The cohort's noisy vote on the clipping norm, where it adapts.
    pub clip_vote: Option<f64>,
}

/// Applies the server optimizer to the base and stores the new model, durably.
///
/// Depends only on its arguments, so repeating it after a crash gives the same files.
///
/// The optimizer moves the federated part; low-rank changes are then merged into the base.
///
/// - `sum`: of the updates, shape `[federated_dimension]`, units of the wire
///   ([`JobSpec::wire_scale`])
///
/// # Errors
/// [`AggregationError`].
pub fn next_model(
    job: &JobSpec,
    base: Digest,
    optimizer_state: Option<Digest>,
    mut sum: Vec<f64>,
    blobs: &BlobStore,
) -> Result<NextModel, AggregationError> {
    let mut parameters = tensor_file::read(&job.model, &blobs.read(base)?)?;
    let mut federated = job.federated.start(&job.model, &parameters);
    let moments = match optimizer_state {
        Some(state) => {
            let moments = optimizer::num_moments(&job.server_optimizer);
            read_moments(state, moments, federated.len(), blobs)?
        }
        None => Vec::new(),
    };
    let mut optimizer = optimizer::build(&job.server_optimizer, moments);
    let scale = job.wire_scale();
    sum.iter_mut().for_each(|value| *value *= scale);
    let gradient = optimizer::pseudo_gradient(sum, job.round.report_goal);
    optimizer.step(ArrayViewMut1::from(&mut federated), gradient.view());
    job.federated.merge(&job.model, &mut parameters, &federated);
    let bytes = tensor_file::write(&job.model, &parameters)?;
    let state: Vec<u8> =
        optimizer.moments().into_iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    let optimizer_state = if state.is_empty() { None } else { Some(blobs.put(&state)?) };
    let file = BlobRef { digest: blobs.put(&bytes)?, length: bytes.len() as u64 };
    Ok(NextModel { file, optimizer_state, clip_vote: None })
}

/// Reads the vectors that the server optimizer keeps: one after the other, little endian.
fn read_moments(
    state: Digest,
    moments: usize,
    dimension: usize,
    blobs: &BlobStore,
) -> Result<Vec<Array1<f64>>, AggregationError> {
    let bytes = blobs.read(state)?;
    let expected = moments * dimension * 8;
    if bytes.len() != expected {
        return Err(AggregationError::State { state, bytes: bytes.len(), expected });
    }
    let (words, _) = bytes.as_chunks::<8>();
    let vector = |words: &[[u8; 8]]| words.iter().map(|&word| f64::from_le_bytes(word)).collect();
    Ok(words.chunks(dimension).map(vector).collect())
}

#[cfg(test)]
mod tests {
    use tributary_protocol::{
        job::ServerOptimizerSpec,
        model::{MlpSpec, ModelSpec},
    };

    use super::*;

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
        let all_at_once = fresh().finish(&contributors, None, &blobs).expect("sums");
        assert_eq!(all_at_once, [1.5, 2.5, -3.0]);
        let mut streamed = fresh();
        for (tenant, &update) in contributors.iter().rev().chain(&contributors) {
            streamed.add(tenant, update, &blobs).expect("adds");
        }
        assert_eq!(streamed.finish(&contributors, None, &blobs).expect("sums"), all_at_once);
        let mut stale = fresh();
        let stranger = TenantId::new("stranger").expect("valid");
        stale
            .add(&stranger, contributors.values().copied().next().expect("one"), &blobs)
            .expect("adds");
        assert_eq!(stale.finish(&contributors, None, &blobs).expect("sums"), all_at_once);
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
        let error = next_model(&job, base, None, vec![1e39; 6], &blobs).expect_err("infinite");
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
        let first = next_model(&job, base, None, vec![2.0; 6], &blobs).expect("makes");
        let state = first.optimizer_state.expect("two moments");
        assert_eq!(blobs.read(state).expect("reads").len(), 2 * 6 * 8);
        let again = next_model(&job, base, None, vec![2.0; 6], &blobs).expect("makes");
        assert_eq!(first, again, "a repeated commit gives the same files");
        let second =
            next_model(&job, first.file.digest, Some(state), vec![2.0; 6], &blobs).expect("makes");
        assert_ne!(second.optimizer_state, first.optimizer_state);
        job.server_optimizer = ServerOptimizerSpec::Adagrad { server_learning_rate, tau };
        let error = next_model(&job, base, Some(state), vec![2.0; 6], &blobs).expect_err("length");
        assert!(
            matches!(error, AggregationError::State { bytes: 96, expected: 48, .. }),
            "{error}"
        );
    }
}
