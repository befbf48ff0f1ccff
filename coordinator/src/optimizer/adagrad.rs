//! `FedAdagrad`: each coordinate's step shrinks with the sum of its squared pseudo-gradients.

use ndarray::{Array1, ArrayView1, ArrayViewMut1, Zip};

use super::{ServerOptimizer, adaptive_step, block};

/// Source: Reddi et al. 2021, arXiv:2003.00295, algorithm 2, with `beta1 = 0` as in its
/// experiments; Duchi et al. 2011.
#[derive(Debug, Clone)]
pub struct Adagrad {
    server_learning_rate: f64,
    tau: f64,
    second: Array1<f64>,
}

impl Adagrad {
    /// - `server_learning_rate`: step size
    /// - `tau`: degree of adaptivity, above 0
    /// - `second`: the sum of squares that the last round left, `tau²` in the first; shape
    ///   `[num_parameters]`
    #[must_use]
    pub const fn new(server_learning_rate: f64, tau: f64, second: Array1<f64>) -> Self {
        Self { server_learning_rate, tau, second }
    }
}

impl ServerOptimizer for Adagrad {
    fn step(
        &mut self,
        first: usize,
        parameters: ArrayViewMut1<'_, f32>,
        pseudo_gradient: ArrayView1<'_, f64>,
    ) {
        let mut second = block(&mut self.second, first, parameters.len());
        Zip::from(&mut second).and(pseudo_gradient).for_each(|sum, &slope| *sum += slope * slope);
        let rate = self.server_learning_rate;
        adaptive_step(parameters, rate, self.tau, pseudo_gradient, second.view());
    }

    fn moments(&self) -> Vec<ArrayView1<'_, f64>> {
        vec![self.second.view()]
    }
}
