//! What keeps local steps from drifting towards the tenant's own optimum.
//!
//! Nothing here looks at a record: FedProx pulls by the parameters alone, and SCAFFOLD corrects by
//! vectors that are made of releases. After noised steps both are post-processing.

use tributary_protocol::job::{LocalAlgorithm, TrainingPlan};

/// What to add to the parameters after one step, as the plan says; `None` is nothing.
///
/// FedProx takes the step of its quadratic pull implicitly (the proximal operator), which is stable
/// however strong the pull is.
///
/// - `origin`, `parameters`: what the round started from and what the step led to, shape
///   `[federated_dimension]`, model units
/// - `correction`: for SCAFFOLD, the population's control variate less the tenant's own; empty is
///   zero
///
/// Source: Li et al. 2020, arXiv:1812.06127; Karimireddy et al. 2020, arXiv:1910.06378.
pub(super) fn restraint(
    plan: &TrainingPlan,
    origin: &[f32],
    correction: &[f32],
    parameters: &[f32],
) -> Option<Vec<f32>> {
    let rate = plan.client_learning_rate;
    match plan.algorithm {
        LocalAlgorithm::Sgd => None,
        LocalAlgorithm::Fedprox { proximal } => {
            let back = (1.0 - 1.0 / (1.0 + rate * proximal)) as f32;
            let pull = |(now, origin): (&f32, &f32)| back * (origin - now);
            Some(parameters.iter().zip(origin).map(pull).collect())
        }
        LocalAlgorithm::Scaffold { .. } if correction.is_empty() => None,
        LocalAlgorithm::Scaffold { .. } => {
            Some(correction.iter().map(|value| -(rate as f32) * value).collect())
        }
    }
}

/// The difference by which SCAFFOLD corrects every step: the population's control variate less the
/// tenant's own.
#[must_use]
pub fn correction(population: &[f32], own: &[f32]) -> Vec<f32> {
    population.iter().zip(own).map(|(population, own)| population - own).collect()
}

/// Moves a tenant's control variate by what it released: `own - population - update / (K rate)`
/// with the K steps of the plan.
///
/// Post-processing of the release, so it costs no privacy.
///
/// - `update`: the client update as the coordinator sees it, shape `[num_parameters]`, model units
///
/// Source: Karimireddy et al. 2020, arXiv:1910.06378, algorithm 1, option II.
pub fn move_control(own: &mut [f32], population: &[f32], update: &[f32], plan: &TrainingPlan) {
    let drift = (f64::from(plan.local_steps) * plan.client_learning_rate) as f32;
    for ((own, population), update) in own.iter_mut().zip(population).zip(update) {
        *own -= population + update / drift;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(algorithm: LocalAlgorithm) -> TrainingPlan {
        TrainingPlan {
            local_steps: 4,
            sampling_rate: 0.5,
            batch_size_expected: 8,
            client_learning_rate: 0.5,
            update_norm_max: 1.0,
            algorithm,
        }
    }

    fn moved(plan: &TrainingPlan, origin: &[f32], correction: &[f32], from: [f32; 2]) -> Vec<f32> {
        let step = restraint(plan, origin, correction, &from).unwrap_or_else(|| vec![0.0; 2]);
        from.iter().zip(step).map(|(value, step)| value + step).collect()
    }

    #[test]
    fn the_pull_shortens_the_way_from_the_base_and_never_overshoots() {
        for (proximal, expected) in [(2.0, 0.5), (1e12, 0.0)] {
            let plan = plan(LocalAlgorithm::Fedprox { proximal });
            let found = moved(&plan, &[1.0, 1.0], &[], [3.0, -1.0]);
            let left = [1.0 + 2.0 * expected, 1.0 - 2.0 * expected];
            assert!(found.iter().zip(left).all(|(found, left)| (found - left).abs() < 1e-6));
        }
    }

    #[test]
    fn the_correction_is_taken_with_the_step_size_and_only_by_scaffold() {
        let scaffold = plan(LocalAlgorithm::Scaffold { population: 9 });
        let difference = correction(&[0.5, 0.0], &[0.0, 0.5]);
        assert_eq!(moved(&scaffold, &[], &difference, [1.0, 1.0]), [0.75, 1.25]);
        assert_eq!(moved(&plan(LocalAlgorithm::Sgd), &[], &[9.0; 2], [0.75, 1.25]), [0.75, 1.25]);
    }

    #[test]
    fn a_tenants_variate_is_its_mean_gradient_when_all_is_quiet() {
        // Four steps of size 0.5 along a gradient of 3 move by -6.
        let mut own = [0.0];
        move_control(&mut own, &[0.0], &[-6.0], &plan(LocalAlgorithm::Sgd));
        assert_eq!(own, [3.0]);
    }
}
