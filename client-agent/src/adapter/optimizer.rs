use super::AdapterOptimizer;

/// The optimizer's memory.
pub(super) enum Optimizer {
    Sgd,
    Adam { first: Vec<f32>, second: Vec<f32>, steps: i32 },
}

impl Optimizer {
    pub(super) fn new(kind: AdapterOptimizer, dimension: usize) -> Self {
        match kind {
            AdapterOptimizer::Sgd => Self::Sgd,
            AdapterOptimizer::Adam => {
                Self::Adam { first: vec![0.0; dimension], second: vec![0.0; dimension], steps: 0 }
            }
        }
    }

    /// Turns a mean gradient into the direction to step against, in place.
    pub(super) fn precondition(&mut self, gradient: &mut [f32]) {
        const BETA_1: f32 = 0.9;
        const BETA_2: f32 = 0.999;
        const EPSILON: f32 = 1e-8;
        let Self::Adam { first, second, steps } = self else { return };
        *steps = steps.saturating_add(1);
        let correction_1 = 1.0 - BETA_1.powi(*steps);
        let correction_2 = 1.0 - BETA_2.powi(*steps);
        for ((g, m), v) in gradient.iter_mut().zip(first).zip(second) {
            *m = BETA_1 * *m + (1.0 - BETA_1) * *g;
            *v = BETA_2 * *v + (1.0 - BETA_2) * *g * *g;
            *g = (*m / correction_1) / ((*v / correction_2).sqrt() + EPSILON);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adam_takes_unit_steps_on_a_constant_gradient() {
        let mut adam = Optimizer::new(AdapterOptimizer::Adam, 2);
        for _ in 0..5 {
            let mut gradient = [0.3, -2.0];
            adam.precondition(&mut gradient);
            assert!((gradient[0] - 1.0).abs() < 1e-3 && (gradient[1] + 1.0).abs() < 1e-3);
        }
    }
}
