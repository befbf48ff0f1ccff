//! Stochastic gradient descent with optional momentum; rate 1 without momentum is FedAvg.

use ndarray::{Array1, ArrayView1, ArrayViewMut1, Zip};

use super::{ServerOptimizer, block};

/// Source: McMahan et al. 2017, arXiv:1602.05629 (FedAvg); Hsu et al. 2019, arXiv:1909.06335
/// (server momentum).
#[derive(Debug, Clone)]
pub struct Sgd {
    server_learning_rate: f64,
    momentum: Option<Momentum>,
}

#[derive(Debug, Clone)]
struct Momentum {
    decay: f64,
    velocity: Array1<f64>,
}

impl Sgd {
    /// Plain descent.
    ///
    /// - `server_learning_rate`: step size
    #[must_use]
    pub const fn new(server_learning_rate: f64) -> Self {
        Self { server_learning_rate, momentum: None }
    }

    /// Descent along a velocity.
    ///
    /// - `decay`: weight of the velocity so far, in [0, 1)
    /// - `velocity`: what the last round left, zeros in the first; shape `[num_parameters]`
    #[must_use]
    pub fn with_momentum(self, decay: f64, velocity: Array1<f64>) -> Self {
        Self { momentum: Some(Momentum { decay, velocity }), ..self }
    }
}

impl ServerOptimizer for Sgd {
    fn step(
        &mut self,
        first: usize,
        parameters: ArrayViewMut1<'_, f32>,
        pseudo_gradient: ArrayView1<'_, f64>,
    ) {
        let rate = self.server_learning_rate;
        let descend = |parameter: &mut f32, &slope: &f64| {
            *parameter = (f64::from(*parameter) - rate * slope) as f32;
        };
        let Some(Momentum { decay, velocity }) = &mut self.momentum else {
            return Zip::from(parameters).and(pseudo_gradient).for_each(descend);
        };
        let mut velocity = block(velocity, first, parameters.len());
        velocity *= *decay;
        velocity += &pseudo_gradient;
        Zip::from(parameters).and(&velocity).for_each(descend);
    }

    fn moments(&self) -> Vec<ArrayView1<'_, f64>> {
        self.momentum.iter().map(|momentum| momentum.velocity.view()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn momentum_continues_from_its_state() {
        let gradient = Array1::from_vec(vec![-1.0]);
        let mut once = Array1::from_vec(vec![0.0_f32]);
        let mut optimizer = Sgd::new(1.0).with_momentum(0.5, Array1::zeros(1));
        optimizer.step(0, once.view_mut(), gradient.view());
        let velocity = optimizer.moments()[0].to_owned();
        Sgd::new(1.0).with_momentum(0.5, velocity).step(0, once.view_mut(), gradient.view());
        assert_eq!(once[0], 1.0 + 1.5);
    }
}
