//! Stochastic gradient descent with optional momentum; rate 1 without momentum is FedAvg.

use ndarray::{Array1, ArrayView1, ArrayViewMut1, Zip};

use super::ServerOptimizer;

/// Source: McMahan et al. 2017, arXiv:1602.05629 (FedAvg); Hsu et al. 2019, arXiv:1909.06335
/// (server momentum).
#[derive(Debug, Clone)]
pub struct Sgd {
    server_learning_rate: f64,
    momentum: f64,
    velocity: Option<Array1<f64>>,
}

impl Sgd {
    /// - `server_learning_rate`: step size
    /// - `momentum`: in [0, 1)
    /// - `velocity`: from the last round
    #[must_use]
    pub const fn new(
        server_learning_rate: f64,
        momentum: f64,
        velocity: Option<Array1<f64>>,
    ) -> Self {
        Self { server_learning_rate, momentum, velocity }
    }
}

impl ServerOptimizer for Sgd {
    fn step(&mut self, parameters: ArrayViewMut1<'_, f32>, pseudo_gradient: ArrayView1<'_, f64>) {
        let rate = self.server_learning_rate;
        let descend = |parameter: &mut f32, &slope: &f64| {
            *parameter = (f64::from(*parameter) - rate * slope) as f32;
        };
        if self.momentum == 0.0 {
            Zip::from(parameters).and(pseudo_gradient).for_each(descend);
            return;
        }
        let velocity = self.velocity.get_or_insert_with(|| Array1::zeros(pseudo_gradient.len()));
        *velocity *= self.momentum;
        *velocity += &pseudo_gradient;
        Zip::from(parameters).and(&*velocity).for_each(descend);
    }

    fn moments(&self) -> Vec<ArrayView1<'_, f64>> {
        self.velocity.iter().map(|velocity| velocity.view()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::pseudo_gradient;

    #[test]
    fn rate_one_is_the_mean_of_the_client_models() {
        let mut base = Array1::from_vec(vec![1.0_f32, -2.0]);
        let sum = vec![0.5 + 1.5, -1.0 + 0.0];
        Sgd::new(1.0, 0.0, None).step(base.view_mut(), pseudo_gradient(sum, 2).view());
        assert_eq!(base.to_vec(), [2.0, -2.5]);
    }

    #[test]
    fn momentum_continues_from_its_state() {
        let gradient = Array1::from_vec(vec![-1.0]);
        let mut once = Array1::from_vec(vec![0.0_f32]);
        let mut optimizer = Sgd::new(1.0, 0.5, None);
        optimizer.step(once.view_mut(), gradient.view());
        let velocity = optimizer.moments()[0].to_owned();
        Sgd::new(1.0, 0.5, Some(velocity)).step(once.view_mut(), gradient.view());
        assert_eq!(once[0], 1.0 + 1.5);
    }
}
