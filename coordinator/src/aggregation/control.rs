//! The population's control variate (SCAFFOLD), made of the aggregates alone.

use tributary_protocol::{
    job::{JobSpec, LocalAlgorithm, TrainingPlan},
    message::BlobRef,
    tensor_file,
};

use super::AggregationError;
use crate::blobs::BlobStore;

/// Moves the population's control variate by what a round's sum says.
///
/// Every contributor moves its own variate to `c_i - c - update / (K rate)` with the K local steps of
/// the job, so their mean over a population of N moves from c to
/// `c - (S c + sum / (K rate)) / N` for S contributors. The sum is private already, so nothing more
/// is revealed. Does nothing if the tenants keep no control variates.
///
/// - `control`: shape `[num_parameters]`
/// - `sum`: of the client updates, shape `[num_parameters]`, model units
///
/// Source: Karimireddy et al. 2020, arXiv:1910.06378, algorithm 1, option II.
pub fn move_control(control: &mut [f32], sum: &[f64], contributors: usize, plan: &TrainingPlan) {
    let LocalAlgorithm::Scaffold { population } = plan.algorithm else { return };
    let drift = f64::from(plan.local_steps) * plan.client_learning_rate;
    let (population, contributors) = (f64::from(population), contributors as f64);
    for (value, &sum) in control.iter_mut().zip(sum) {
        let before = f64::from(*value);
        *value = (before - (contributors * before + sum / drift) / population) as f32;
    }
}

/// The population's control variate after a round, stored.
///
/// - `control`: of the round's base; zero if there is none
/// - returns: `None` if the job's tenants keep no control variates
///
/// # Errors
/// [`AggregationError`] if a file fails, or the variate is not finite.
pub(super) fn next(
    job: &JobSpec,
    control: Option<BlobRef>,
    sum: &[f64],
    contributors: usize,
    blobs: &BlobStore,
) -> Result<Option<BlobRef>, AggregationError> {
    if !matches!(job.training.algorithm, LocalAlgorithm::Scaffold { .. }) {
        return Ok(None);
    }
    let mut values = match control {
        Some(file) => tensor_file::read(&job.model, &blobs.read(file.digest)?)?,
        None => vec![0.0; sum.len()],
    };
    move_control(&mut values, sum, contributors, &job.training);
    let bytes = tensor_file::write(&job.model, &values)?;
    Ok(Some(BlobRef { digest: blobs.put(&bytes)?, length: bytes.len() as u64 }))
}
