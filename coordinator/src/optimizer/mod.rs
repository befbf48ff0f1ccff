//! Server optimizers: how an aggregate moves the base model.

mod adagrad;
mod adam;
mod moments;
#[cfg(test)]
mod reference;
mod sgd;
mod yogi;

use ndarray::{Array1, ArrayView1, ArrayViewMut1, Zip};
use tributary_protocol::job::ServerOptimizerSpec;

pub use self::{adagrad::Adagrad, moments::AdaptiveMoments, sgd::Sgd};

/// A first-order optimizer over the flat parameters.
pub trait ServerOptimizer {
    /// Moves `parameters` against the pseudo-gradient.
    ///
    /// Both have shape `[num_parameters]`, model units.
    fn step(&mut self, parameters: ArrayViewMut1<'_, f32>, pseudo_gradient: ArrayView1<'_, f64>);

    /// What must be kept until the next round: [`num_moments`] vectors of shape
    /// `[num_parameters]`, or none before the first step.
    fn moments(&self) -> Vec<ArrayView1<'_, f64>>;
}

/// Vectors that an optimizer keeps between rounds.
#[must_use]
pub fn num_moments(spec: &ServerOptimizerSpec) -> usize {
    match spec {
        ServerOptimizerSpec::Sgd { momentum, .. } => usize::from(*momentum > 0.0),
        ServerOptimizerSpec::Adagrad { .. } => 1,
        ServerOptimizerSpec::Adam { .. } | ServerOptimizerSpec::Yogi { .. } => 2,
    }
}

/// Builds the optimizer of a job; `moments` is what the last round left, nothing in the first.
#[must_use]
pub fn build(spec: &ServerOptimizerSpec, moments: Vec<Array1<f64>>) -> Box<dyn ServerOptimizer> {
    let mut moments = moments.into_iter();
    let (first, second) = (moments.next(), moments.next());
    match *spec {
        ServerOptimizerSpec::Sgd { server_learning_rate, momentum } => {
            Box::new(Sgd::new(server_learning_rate, momentum, first))
        }
        ServerOptimizerSpec::Adagrad { server_learning_rate, tau } => {
            Box::new(Adagrad::new(server_learning_rate, tau, first))
        }
        ServerOptimizerSpec::Adam { server_learning_rate, beta1, beta2, tau } => {
            let moments = first.zip(second);
            Box::new(AdaptiveMoments::new(
                server_learning_rate,
                [beta1, beta2],
                tau,
                moments,
                adam::second_moment,
            ))
        }
        ServerOptimizerSpec::Yogi { server_learning_rate, beta1, beta2, tau } => {
            let moments = first.zip(second);
            Box::new(AdaptiveMoments::new(
                server_learning_rate,
                [beta1, beta2],
                tau,
                moments,
                yogi::second_moment,
            ))
        }
    }
}

/// Turns the sum of client updates (trained − global) into the pseudo-gradient that optimizers
/// descend: the mean over the fixed, public denominator, negated. The only place with that sign.
///
/// Source: Reddi et al. 2021, arXiv:2003.00295, algorithm 1.
#[must_use]
pub fn pseudo_gradient(sum_of_client_updates: Vec<f64>, report_goal: u32) -> Array1<f64> {
    let mut gradient = Array1::from_vec(sum_of_client_updates);
    gradient /= -f64::from(report_goal);
    gradient
}

/// The step that the adaptive optimizers share: `parameters -= rate * first / (sqrt(second) + tau)`.
///
/// Source: Reddi et al. 2021, arXiv:2003.00295, algorithm 2.
fn adaptive_step(
    parameters: ArrayViewMut1<'_, f32>,
    rate: f64,
    tau: f64,
    first: ArrayView1<'_, f64>,
    second: ArrayView1<'_, f64>,
) {
    Zip::from(parameters).and(first).and(second).for_each(|parameter, &first, &second| {
        *parameter = (f64::from(*parameter) - rate * first / (second.sqrt() + tau)) as f32;
    });
}
