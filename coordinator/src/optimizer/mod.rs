//! Server optimizers: how an aggregate moves the base model.

mod adagrad;
mod adam;
mod descend;
mod moments;
#[cfg(test)]
mod reference;
mod sgd;
mod yogi;

use ndarray::{Array1, ArrayView1, ArrayViewMut1, Zip, s};
use tributary_protocol::job::ServerOptimizerSpec;

pub use self::{adagrad::Adagrad, descend::descend, moments::AdaptiveMoments, sgd::Sgd};

/// A first-order optimizer over the flat parameters, in which every coordinate moves by itself.
pub trait ServerOptimizer {
    /// Moves a block of parameters against the pseudo-gradient; a round's blocks cover each
    /// coordinate once.
    ///
    /// - `first`: the first coordinate of the block
    /// - `parameters`, `pseudo_gradient`: of the block, shape `[block]`, model units
    fn step(
        &mut self,
        first: usize,
        parameters: ArrayViewMut1<'_, f32>,
        pseudo_gradient: ArrayView1<'_, f64>,
    );

    /// What must be kept until the next round: [`num_moments`] vectors of shape `[num_parameters]`.
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

/// Builds the optimizer of a job.
///
/// - `num_parameters`: that it moves
/// - `moments`: what the last round left, nothing in the first
#[must_use]
pub fn build(
    spec: &ServerOptimizerSpec,
    num_parameters: usize,
    moments: Vec<Array1<f64>>,
) -> Box<dyn ServerOptimizer> {
    let mut moments = moments.into_iter();
    let mut moment =
        |start: f64| moments.next().unwrap_or_else(|| Array1::from_elem(num_parameters, start));
    match *spec {
        ServerOptimizerSpec::Sgd { server_learning_rate, momentum: 0.0 } => {
            Box::new(Sgd::new(server_learning_rate))
        }
        ServerOptimizerSpec::Sgd { server_learning_rate, momentum } => {
            Box::new(Sgd::new(server_learning_rate).with_momentum(momentum, moment(0.0)))
        }
        ServerOptimizerSpec::Adagrad { server_learning_rate, tau } => {
            Box::new(Adagrad::new(server_learning_rate, tau, moment(tau * tau)))
        }
        ServerOptimizerSpec::Adam { server_learning_rate, beta1, beta2, tau } => {
            let (betas, moments) = ([beta1, beta2], [moment(0.0), moment(tau * tau)]);
            let next = adam::second_moment;
            Box::new(AdaptiveMoments::new(server_learning_rate, betas, tau, moments, next))
        }
        ServerOptimizerSpec::Yogi { server_learning_rate, beta1, beta2, tau } => {
            let (betas, moments) = ([beta1, beta2], [moment(0.0), moment(tau * tau)]);
            let next = yogi::second_moment;
            Box::new(AdaptiveMoments::new(server_learning_rate, betas, tau, moments, next))
        }
    }
}

/// The coordinates of `moment` that a block of so many parameters from `first` on has.
fn block(moment: &mut Array1<f64>, first: usize, length: usize) -> ArrayViewMut1<'_, f64> {
    moment.slice_mut(s![first..first + length])
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
