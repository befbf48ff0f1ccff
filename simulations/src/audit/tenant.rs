//! The `tenant` unit: one canary a tenant, whose update is clipped and noised at its own agent.

use tributary_agent::train::{LocalTask, local_sgd};
use tributary_coordinator::optimizer::{Sgd, descend};
use tributary_privacy::{
    accountant::{Delta, epsilon},
    clip::{ClippingNorm, clip_l2},
    lattice::{Lattice, LatticeRequest, ModularSum},
    mechanism::NoisyUpdate,
    noise::NoiseSource,
};
use tributary_protocol::job::{LocalAlgorithm, TrainingPlan};

use super::{
    AuditPlan, AuditRunError, CLIPPING_NORM, CanarySet, Observation, View,
    fault::Parameters,
    record::{dot, losses},
};

/// Rounds in which every tenant takes part.
const ROUNDS: u32 = 4;
/// Width of the modulus.
const LATTICE_BITS: u8 = 32;
const WRAP_PROBABILITY_MAX: f64 = 1.0 / (1_u64 << 40) as f64;

/// Trains and scores.
pub(super) fn observe(
    plan: &AuditPlan,
    set: &CanarySet,
    included: &[bool],
    noise: &mut impl NoiseSource,
) -> Result<Observation, AuditRunError> {
    let (spec, data) = (set.spec(), set.data());
    let dimension = spec.num_parameters();
    let build = |fault| -> Result<(NoisyUpdate, Lattice), AuditRunError> {
        let Parameters { clipping_norm, noise_multiplier } =
            Parameters::built(CLIPPING_NORM, plan.noise_multiplier, fault)?;
        let lattice = Lattice::plan(&LatticeRequest {
            dimension,
            norm_max: clipping_norm.value(),
            noise_sigma: clipping_norm.value() * noise_multiplier,
            contributors_max: included.len() as u32,
            bits: LATTICE_BITS,
            wrap_probability_max: WRAP_PROBABILITY_MAX,
        })?;
        let mechanism = NoisyUpdate::new(lattice, clipping_norm, noise_multiplier, dimension)?;
        Ok((mechanism, lattice))
    };
    let ((claimed, _), (built, lattice)) = (build(None)?, build(plan.fault)?);
    let event = claimed.event().with_count(u64::from(ROUNDS));
    let claimed_epsilon = epsilon(&[event], Delta::new(plan.delta)?)?;

    // One whole-batch step of size 1: an update is a gradient, and the attacker can repeat it.
    let training = TrainingPlan {
        local_steps: 1,
        sampling_rate: 1.0,
        batch_size_expected: 1,
        client_learning_rate: 1.0,
        update_norm_max: f64::MAX,
        algorithm: LocalAlgorithm::Sgd,
    };
    let norm = ClippingNorm::new(CLIPPING_NORM)?;
    let all: Vec<u32> = (0..set.canaries() as u32).collect();
    let mut base = vec![0.0; dimension];
    let mut scores = vec![0.0; set.canaries()];
    for _ in 0..ROUNDS {
        let mut sum = ModularSum::new(lattice, dimension);
        let losses_at_base = losses(spec, &base, set, &all)?;
        for (canary, &is_in) in included.iter().enumerate() {
            let own = [canary as u32];
            let train = |train, noise: &mut _| {
                let task = LocalTask { spec, base: &base, data, train, plan: &training };
                local_sgd(&task, noise, &mut |_, _| std::ops::ControlFlow::Continue(()))
            };
            // A tenant that is not there counts as the zero update: no record, no step.
            let mut update = train(if is_in { &own[..] } else { &[] }, noise)?;
            let packed = built.release(&mut update, noise)?;
            sum.add_packed(&packed)?;
            let mut own_sum = ModularSum::new(lattice, dimension);
            own_sum.add_packed(&packed)?;
            let release: Vec<f32> =
                lattice.dequantize_sum(own_sum.values()).iter().map(|&v| v as f32).collect();
            scores[canary] += match set.kind().view() {
                View::WhiteBox => {
                    let mut expected = train(&own, noise)?;
                    clip_l2(&mut expected, norm)?;
                    dot(&release, &expected)
                }
                View::BlackBox => {
                    let model: Vec<f32> =
                        base.iter().zip(&release).map(|(base, step)| base + step).collect();
                    losses_at_base[canary] - losses(spec, &model, set, &own)?[0]
                }
            };
        }
        descend(&mut Sgd::new(1.0), &mut base, included.len() as u32, |range, block| {
            lattice.dequantize_sum_into(&sum.values()[range], block);
        });
    }
    Ok(Observation { scores, claimed_epsilon })
}
