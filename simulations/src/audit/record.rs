//! The `record` unit: one tenant's DP-SGD, the canaries among its records.

use tributary_agent::{
    data::Dataset,
    model::{Model, ModelError, Tape, cross_entropy_sum},
    train::{LocalTask, dp_sgd},
};
use tributary_privacy::{
    accountant::{Delta, epsilon},
    clip::ClippingNorm,
    mechanism::NoisyGradientSum,
    noise::NoiseSource,
};
use tributary_protocol::{
    job::{LocalAlgorithm, TrainingPlan},
    model::ModelSpec,
};

use super::{
    AuditPlan, AuditRunError, CLIPPING_NORM, CanarySet, Observation, View, fault::Parameters,
};

/// Rounds of one step each: the coordinator sees every step's release.
const ROUNDS: u32 = 8;
const SAMPLING_RATE: f64 = 0.5;
/// Step size over batch size: so small that canaries keep their gradients to the end.
const RATE: f64 = 1e-3;

/// Trains and scores.
pub(super) fn observe(
    plan: &AuditPlan,
    set: &CanarySet,
    included: &[bool],
    noise: &mut impl NoiseSource,
) -> Result<Observation, AuditRunError> {
    let (spec, data) = (set.spec(), set.data());
    let dimension = spec.num_parameters();
    let build = |fault| -> Result<NoisyGradientSum, AuditRunError> {
        let built = Parameters::built(CLIPPING_NORM, plan.noise_multiplier, fault)?;
        Ok(NoisyGradientSum::new(built.clipping_norm, built.noise_multiplier, dimension)?)
    };
    let (claimed, built) = (build(None)?, build(plan.fault)?);
    let step = claimed.event(SAMPLING_RATE);
    let claimed_epsilon = epsilon(&[step.with_count(u64::from(ROUNDS))], Delta::new(plan.delta)?)?;

    let training = TrainingPlan {
        local_steps: 1,
        sampling_rate: SAMPLING_RATE,
        batch_size_expected: 1,
        client_learning_rate: RATE,
        update_norm_max: f64::MAX,
        algorithm: LocalAlgorithm::Sgd,
    };
    let train: Vec<u32> = members(included).chain(set.ordinary()).collect();
    let start = vec![0.0; dimension];
    let mut base = start.clone();
    let mut scores = vec![0.0; set.canaries()];
    for _ in 0..ROUNDS {
        let task = LocalTask { spec, base: &base, data, train: &train, plan: &training };
        let update = dp_sgd(&task, &built, noise, &mut |_, _| std::ops::ControlFlow::Continue(()))?;
        if set.kind().view() == View::WhiteBox {
            let model = Model::new(spec, &base)?;
            for (canary, score) in scores.iter_mut().enumerate() {
                let gradient =
                    clipped_gradient(&model, data, canary as u32, claimed.clipping_norm())?;
                // The trainer descends.
                *score -= dot(&update, &gradient);
            }
        }
        for (parameter, step) in base.iter_mut().zip(&update) {
            *parameter += step;
        }
    }
    if set.kind().view() == View::BlackBox {
        let all: Vec<u32> = (0..set.canaries() as u32).collect();
        let (before, after) = (losses(spec, &start, set, &all)?, losses(spec, &base, set, &all)?);
        scores = before.iter().zip(after).map(|(before, after)| before - after).collect();
        subtract_class_means(&mut scores, &data.labels()[..set.canaries()], spec.num_classes());
    }
    Ok(Observation { scores, claimed_epsilon })
}

/// Takes away what all canaries of a label share: how likely the model finds the label as such.
fn subtract_class_means(scores: &mut [f64], labels: &[u32], classes: usize) {
    let (mut sums, mut counts) = (vec![0.0; classes], vec![0.0; classes]);
    for (score, &label) in scores.iter().zip(labels) {
        sums[label as usize] += score;
        counts[label as usize] += 1.0;
    }
    for (score, &label) in scores.iter_mut().zip(labels) {
        *score -= sums[label as usize] / counts[label as usize];
    }
}

/// The indices of the canaries that are in.
fn members(included: &[bool]) -> impl Iterator<Item = u32> {
    (0..).zip(included).filter(|(_, is_in)| **is_in).map(|(index, _)| index)
}

/// What one record adds to a clipped sum at this model.
fn clipped_gradient(
    model: &Model,
    data: &Dataset,
    record: u32,
    norm: ClippingNorm,
) -> Result<Vec<f32>, AuditRunError> {
    let mut gradient = vec![0.0; model.spec().num_parameters()];
    let (inputs, labels) = data.batch(&[record]).map_err(ModelError::from)?;
    let tape = Tape::default();
    let logits = model.run(&inputs, Some(&tape)).map_err(ModelError::from)?;
    cross_entropy_sum(&logits, &labels)
        .and_then(|loss| loss.backward())
        .map_err(ModelError::from)?;
    tape.add_clipped_sum(1, norm.value(), &mut gradient)?;
    Ok(gradient)
}

pub(super) fn dot(one: &[f32], other: &[f32]) -> f64 {
    one.iter().zip(other).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// The loss of each of these canaries.
pub(super) fn losses(
    spec: &ModelSpec,
    parameters: &[f32],
    set: &CanarySet,
    canaries: &[u32],
) -> Result<Vec<f64>, AuditRunError> {
    let model = Model::new(spec, parameters)?;
    let mut losses = Vec::with_capacity(canaries.len());
    for batch in canaries.chunks(512) {
        let (inputs, _) = set.data().batch(batch).map_err(ModelError::from)?;
        let probabilities = model.predict(&inputs)?;
        let rows = probabilities.chunks_exact(spec.num_classes());
        losses.extend(rows.zip(batch).map(|(row, &canary)| {
            let label = set.data().labels()[canary as usize] as usize;
            -f64::from(row[label].max(f32::MIN_POSITIVE)).ln()
        }));
    }
    Ok(losses)
}
