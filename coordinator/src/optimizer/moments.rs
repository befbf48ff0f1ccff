//! What `FedAdam` and `FedYogi` share: exponential averages of the pseudo-gradient and of its square.

use ndarray::{Array1, ArrayView1, ArrayViewMut1, Zip};

use super::{ServerOptimizer, adaptive_step};

/// How the second moment of one coordinate moves.
pub trait SecondMoment {
    /// The next second moment.
    ///
    /// - `second`: the last one, starting at `tau²`
    /// - `slope`: the pseudo-gradient
    /// - `beta2`: weight of the past, in [0, 1)
    fn next(second: f64, slope: f64, beta2: f64) -> f64;
}

/// An adaptive optimizer with two moments, without bias correction.
///
/// Source: Reddi et al. 2021, arXiv:2003.00295, algorithm 2.
#[derive(Debug, Clone)]
pub struct AdaptiveMoments<R> {
    server_learning_rate: f64,
    betas: [f64; 2],
    tau: f64,
    moments: Option<(Array1<f64>, Array1<f64>)>,
    rule: std::marker::PhantomData<R>,
}

impl<R: SecondMoment> AdaptiveMoments<R> {
    /// - `server_learning_rate`: step size
    /// - `betas`: decay of the first moment, weight of the second moment's past, each in [0, 1)
    /// - `tau`: degree of adaptivity, above 0
    /// - `moments`: what the last round left
    #[must_use]
    pub const fn new(
        server_learning_rate: f64,
        betas: [f64; 2],
        tau: f64,
        moments: Option<(Array1<f64>, Array1<f64>)>,
    ) -> Self {
        Self { server_learning_rate, betas, tau, moments, rule: std::marker::PhantomData }
    }
}

impl<R: SecondMoment> ServerOptimizer for AdaptiveMoments<R> {
    fn step(&mut self, parameters: ArrayViewMut1<'_, f32>, pseudo_gradient: ArrayView1<'_, f64>) {
        let ([beta1, beta2], length) = (self.betas, pseudo_gradient.len());
        let start = self.tau * self.tau;
        let (first, second) = self
            .moments
            .get_or_insert_with(|| (Array1::zeros(length), Array1::from_elem(length, start)));
        Zip::from(&mut *first).and(&mut *second).and(pseudo_gradient).for_each(
            |first, second, &slope| {
                *first = beta1 * *first + (1.0 - beta1) * slope;
                *second = R::next(*second, slope, beta2);
            },
        );
        let rate = self.server_learning_rate;
        adaptive_step(parameters, rate, self.tau, first.view(), second.view());
    }

    fn moments(&self) -> Vec<ArrayView1<'_, f64>> {
        self.moments.iter().flat_map(|(first, second)| [first.view(), second.view()]).collect()
    }
}
