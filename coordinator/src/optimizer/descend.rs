//! A step of an optimizer by the sum of a round.

use std::ops::Range;

use ndarray::{ArrayView1, ArrayViewMut1};

use super::ServerOptimizer;

/// Coordinates that are moved at a time: few enough that all of them stay in the innermost cache.
const BLOCK: usize = 2048;

/// Moves the parameters by a round's sum of client updates (trained − global).
///
/// The pseudo-gradient is their mean over the fixed, public denominator, negated; this is the only
/// place with that sign. A block of coordinates goes all the way before the next one begins, so a
/// large model passes through memory once.
///
/// - `parameters`: shape `[num_parameters]`, model units
/// - `report_goal`: the denominator
/// - `sum`: writes some coordinates of the sum, model units
///
/// Source: Reddi et al. 2021, arXiv:2003.00295, algorithm 1.
pub fn descend(
    optimizer: &mut dyn ServerOptimizer,
    parameters: &mut [f32],
    report_goal: u32,
    mut sum: impl FnMut(Range<usize>, &mut [f64]),
) {
    let mut gradient = [0.0; BLOCK];
    let denominator = -f64::from(report_goal);
    for (block, parameters) in parameters.chunks_mut(BLOCK).enumerate() {
        let first = block * BLOCK;
        let gradient = &mut gradient[..parameters.len()];
        sum(first..first + parameters.len(), gradient);
        gradient.iter_mut().for_each(|value| *value /= denominator);
        let (parameters, gradient) =
            (ArrayViewMut1::from(parameters), ArrayView1::from(&*gradient));
        optimizer.step(first, parameters, gradient);
    }
}

#[cfg(test)]
mod tests {
    use tributary_protocol::job::ServerOptimizerSpec;

    use super::*;
    use crate::optimizer::build;

    #[test]
    fn rate_one_is_the_mean_of_the_client_models() {
        let mut base = [1.0_f32, -2.0];
        let spec = ServerOptimizerSpec::Sgd { server_learning_rate: 1.0, momentum: 0.0 };
        let updates = [[0.5, -1.0], [1.5, 0.0]];
        descend(&mut *build(&spec, 2, Vec::new()), &mut base, 2, |range, sum| {
            for (coordinate, sum) in range.zip(sum) {
                *sum = updates.iter().map(|update| update[coordinate]).sum();
            }
        });
        assert_eq!(base, [2.0, -2.5]);
    }

    #[test]
    fn every_coordinate_of_many_blocks_moves_once_with_its_own_moment() {
        let length = 2 * BLOCK + 7;
        let specs = [
            ServerOptimizerSpec::Sgd { server_learning_rate: 0.5, momentum: 0.9 },
            ServerOptimizerSpec::Adagrad { server_learning_rate: 0.1, tau: 1e-3 },
            ServerOptimizerSpec::Adam {
                server_learning_rate: 0.1,
                beta1: 0.9,
                beta2: 0.99,
                tau: 1e-3,
            },
        ];
        for spec in specs {
            let mut whole: Vec<f32> = (0..length).map(|index| index as f32 * 1e-3).collect();
            let mut alone = whole.clone();
            let update = |index: usize| (index as f64).sin();
            let mut optimizer = build(&spec, length, Vec::new());
            let mut apart: Vec<_> = (0..length).map(|_| build(&spec, 1, Vec::new())).collect();
            for _ in 0..2 {
                descend(&mut *optimizer, &mut whole, 3, |range, sum| {
                    range.zip(sum).for_each(|(index, sum)| *sum = update(index));
                });
                for (index, optimizer) in apart.iter_mut().enumerate() {
                    let parameter = &mut alone[index..=index];
                    descend(&mut **optimizer, parameter, 3, |_, sum| sum[0] = update(index));
                }
            }
            assert_eq!(whole, alone, "{spec:?}");
        }
    }
}
