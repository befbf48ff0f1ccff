//! What `FedAdam` and `FedYogi` share: exponential averages of the pseudo-gradient and of its square.

use ndarray::{Array1, ArrayView1, ArrayViewMut1, Zip};

use super::{ServerOptimizer, adaptive_step, block};

/// An adaptive optimizer with two moments, without bias correction.
///
/// Source: Reddi et al. 2021, arXiv:2003.00295, algorithm 2.
#[derive(Debug, Clone)]
pub struct AdaptiveMoments<F> {
    server_learning_rate: f64,
    betas: [f64; 2],
    tau: f64,
    moments: [Array1<f64>; 2],
    next_second: F,
}

impl<F: Fn(f64, f64, f64) -> f64> AdaptiveMoments<F> {
    /// - `server_learning_rate`: step size
    /// - `betas`: decay of the first moment, weight of the second moment's past, each in [0, 1)
    /// - `tau`: degree of adaptivity, above 0
    /// - `moments`: what the last round left, zeros and `tau²` in the first; each of shape
    ///   `[num_parameters]`
    /// - `next_second`: the next second moment of a coordinate, from the last one, the
    ///   pseudo-gradient, and the weight of the past
    #[must_use]
    pub const fn new(
        server_learning_rate: f64,
        betas: [f64; 2],
        tau: f64,
        moments: [Array1<f64>; 2],
        next_second: F,
    ) -> Self {
        Self { server_learning_rate, betas, tau, moments, next_second }
    }
}

impl<F: Fn(f64, f64, f64) -> f64> ServerOptimizer for AdaptiveMoments<F> {
    fn step(
        &mut self,
        first: usize,
        parameters: ArrayViewMut1<'_, f32>,
        pseudo_gradient: ArrayView1<'_, f64>,
    ) {
        let ([beta1, beta2], next_second) = (self.betas, &self.next_second);
        let [mut first_moment, mut second_moment] =
            self.moments.each_mut().map(|moment| block(moment, first, parameters.len()));
        Zip::from(&mut first_moment).and(&mut second_moment).and(pseudo_gradient).for_each(
            |first, second, &slope| {
                *first = beta1 * *first + (1.0 - beta1) * slope;
                *second = next_second(*second, slope, beta2);
            },
        );
        let rate = self.server_learning_rate;
        adaptive_step(parameters, rate, self.tau, first_moment.view(), second_moment.view());
    }

    fn moments(&self) -> Vec<ArrayView1<'_, f64>> {
        self.moments.iter().map(|moment| moment.view()).collect()
    }
}
