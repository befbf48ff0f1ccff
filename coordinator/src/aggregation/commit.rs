//! From a round that has its updates to the next base model.

use std::collections::BTreeMap;

use ndarray::Array1;
use tributary_privacy::lattice::Lattice;
use tributary_protocol::{
    id::{Digest, RoundNumber, TenantId},
    job::{AggregationRule, JobSpec},
    message::{BlobRef, LatticeSpec},
    tensor_file,
};

use super::{
    AggregationError, PackedUpdates, RoundSum, Unmask, combine, control, lattice, open_sum,
};
use crate::{
    blobs::BlobStore,
    optimizer::{self, descend},
    registry::ModelVersion,
    round::{Aggregation, RoundRecord},
};

/// A round that has all its updates.
#[derive(Debug, Clone, Copy)]
pub struct Committing<'a> {
    /// The job, with the clipping norm of the round.
    pub job: &'a JobSpec,
    /// The lattice of the round's updates.
    pub lattice: LatticeSpec,
    /// The round.
    pub round: &'a RoundRecord,
    /// What it moves.
    pub base: &'a ModelVersion,
    /// Whose updates count.
    pub contributors: &'a BTreeMap<TenantId, Digest>,
    /// Removes the masks of the sum, if the updates are masked.
    pub unmask: Option<&'a Aggregation>,
}

/// Makes the next base model, durably.
///
/// Depends on nothing but the round and its files, so repeating it after a crash gives the same.
///
/// - `sum`: what was added as updates arrived, if that is still known
///
/// # Errors
/// [`AggregationError`].
pub fn make(
    committing: Committing<'_>,
    sum: Option<RoundSum>,
    blobs: &BlobStore,
) -> Result<NextModel, AggregationError> {
    let Committing { job, round, contributors, .. } = committing;
    let lattice = lattice(committing.lattice)?;
    let sum = sum
        .filter(|sum| sum.round() == round.number)
        .unwrap_or_else(|| RoundSum::new(round.number, lattice, job.wire_dimension()));
    let unmask = committing.unmask.zip(round.secagg.as_ref());
    let unmask = unmask.map(|(aggregation, terms)| Unmask { aggregation, terms });
    let sums = sum.finish(contributors, round.staleness(), unmask, blobs)?;
    let (updates, clip_vote) = match job.aggregation {
        AggregationRule::Mean => weighted_sum(job, round.number, lattice, sums)?,
        rule => {
            let files = Files { updates: contributors.values().copied().collect(), blobs };
            let mut one = combine(&rule, &files, lattice, job.federated_dimension())?;
            // The server optimizer divides by the denominator of the mean.
            let report_goal = f64::from(job.round.report_goal);
            one.iter_mut().for_each(|value| *value *= report_goal);
            // The vote on the clipping norm is a count, whatever becomes of the updates.
            one.extend(sums.into_values().next().unwrap_or_default().drain(one.len()..));
            open_sum(job, round.number, lattice, one)?
        }
    };
    let model = next_model(job, committing.base, updates, contributors.len(), blobs)?;
    Ok(NextModel { clip_vote, ..model })
}

/// Adds the sums, each with the public weight of its staleness.
fn weighted_sum(
    job: &JobSpec,
    round: RoundNumber,
    lattice: Lattice,
    sums: BTreeMap<u32, Vec<f64>>,
) -> Result<(Vec<f64>, Option<f64>), AggregationError> {
    let (mut total, mut clip_vote) = (None::<Vec<f64>>, None);
    for (staleness, sum) in sums {
        let of = RoundNumber(round.0.saturating_sub(staleness.into()));
        let (mut sum, vote) = open_sum(job, of, lattice, sum)?;
        let weight = job.round.asynchronous.map_or(1.0, |plan| plan.weight(staleness));
        sum.iter_mut().for_each(|value| *value *= weight);
        match &mut total {
            None => total = Some(sum),
            Some(total) => total.iter_mut().zip(sum).for_each(|(total, value)| *total += value),
        }
        clip_vote = vote;
    }
    Ok((total.unwrap_or_else(|| vec![0.0; job.federated_dimension()]), clip_vote))
}

/// The updates of a round as files.
struct Files<'a> {
    updates: Vec<Digest>,
    blobs: &'a BlobStore,
}

impl PackedUpdates for Files<'_> {
    type Error = AggregationError;

    fn count(&self) -> usize {
        self.updates.len()
    }

    fn read(&self, update: usize, offset: usize, bytes: &mut [u8]) -> Result<(), AggregationError> {
        Ok(self.blobs.read_at(self.updates[update], offset as u64, bytes)?)
    }
}

/// The files of a new base model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NextModel {
    /// The safetensors file.
    pub file: BlobRef,
    /// What the server optimizer keeps for the next round.
    pub optimizer_state: Option<Digest>,
    /// The population's control variate, where tenants keep some.
    pub control: Option<BlobRef>,
    /// The cohort's noisy vote on the clipping norm, where it adapts.
    pub clip_vote: Option<f64>,
}

/// Applies the server optimizer to the base and stores the new model, durably.
///
/// Depends only on its arguments, so repeating it after a crash gives the same files.
///
/// The optimizer moves the federated part; low-rank changes are then merged into the base.
///
/// - `base`: with what the server optimizer and the tenants' control variates left with it
/// - `sum`: of the updates, shape `[federated_dimension]`, units of the wire
///   ([`JobSpec::wire_scale`])
/// - `contributors`: updates in the sum
///
/// # Errors
/// [`AggregationError`].
pub fn next_model(
    job: &JobSpec,
    base: &ModelVersion,
    mut sum: Vec<f64>,
    contributors: usize,
    blobs: &BlobStore,
) -> Result<NextModel, AggregationError> {
    let mut parameters = tensor_file::read(&job.model, &blobs.read(base.file.digest)?)?;
    let mut federated = job.federated.start(&job.model, &parameters);
    let moments = match base.optimizer_state {
        Some(state) => {
            let moments = optimizer::num_moments(&job.server_optimizer);
            read_moments(state, moments, federated.len(), blobs)?
        }
        None => Vec::new(),
    };
    let mut optimizer = optimizer::build(&job.server_optimizer, federated.len(), moments);
    let scale = job.wire_scale();
    sum.iter_mut().for_each(|value| *value *= scale);
    let control = control::next(job, base.control, &sum, contributors, blobs)?;
    descend(&mut *optimizer, &mut federated, job.round.report_goal, |range, block| {
        block.copy_from_slice(&sum[range]);
    });
    job.federated.merge(&job.model, &mut parameters, &federated);
    let bytes = tensor_file::write(&job.model, &parameters)?;
    let state: Vec<u8> =
        optimizer.moments().into_iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    let optimizer_state = if state.is_empty() { None } else { Some(blobs.put(&state)?) };
    let file = BlobRef { digest: blobs.put(&bytes)?, length: bytes.len() as u64 };
    Ok(NextModel { file, optimizer_state, control, clip_vote: None })
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
