//! Server optimizers: how an aggregate moves the base model.

mod sgd;

use ndarray::{Array1, ArrayView1, ArrayViewMut1};
use tributary_protocol::job::ServerOptimizerSpec;

pub use self::sgd::Sgd;

/// A first-order optimizer over the flat parameters.
pub trait ServerOptimizer {
    /// Moves `parameters` against the pseudo-gradient.
    ///
    /// Both have shape `[num_parameters]`, model units.
    fn step(&mut self, parameters: ArrayViewMut1<'_, f32>, pseudo_gradient: ArrayView1<'_, f64>);

    /// What must be kept until the next round, shape `[num_parameters]`; `None` for a stateless
    /// optimizer.
    fn state(&self) -> Option<ArrayView1<'_, f64>>;
}

/// Builds the optimizer of a job; `state` is what the last round left.
#[must_use]
pub fn build(spec: &ServerOptimizerSpec, state: Option<Array1<f64>>) -> Box<dyn ServerOptimizer> {
    match *spec {
        ServerOptimizerSpec::Sgd { server_learning_rate, momentum } => {
            Box::new(Sgd::new(server_learning_rate, momentum, state))
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
