//! The Poisson-subsampled Gaussian under replace-one.

use super::{
    super::normal::{Edge, density, quantile_bound},
    mixture::Mixture,
    pair::{Limits, LossGrid, node_count},
};

/// `(1 - q) N(0, σ²) + q N(1, σ²)` against `(1 - q) N(0, σ²) + q N(-1, σ²)`: the replaced record
/// pulled with full clipping norm one way and its substitute pulls the other way.
///
/// The pair is its own mirror image, so one direction serves both.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReplaceOne {
    pub(super) sampling_rate: f64,
    pub(super) sigma: f64,
}

impl ReplaceOne {
    /// `ln(P(x) / N(0, σ²)(x))`.
    fn part(self, x: f64) -> f64 {
        Mixture { sampling_rate: self.sampling_rate, sigma: self.sigma }.loss(x)
    }

    /// `ln(P(x) / Q(x))`, increasing in x and odd.
    fn loss(self, x: f64) -> f64 {
        self.part(x) - self.part(-x)
    }

    /// The x of a loss: `y = e^(x / σ²)` solves `b y² - a (e^loss - 1) y - b e^loss = 0` with
    /// `b = q e^(-1 / (2 σ²))` and `a = 1 - q`, so `x / σ² = loss / 2 + asinh(a / b sinh(loss / 2))`.
    fn position(self, loss: f64) -> f64 {
        if loss < 0.0 {
            return -self.position(-loss);
        }
        let variance = self.sigma * self.sigma;
        let half = 0.5 * loss;
        let log_ratio = (-self.sampling_rate).ln_1p() - self.sampling_rate.ln() + 0.5 / variance;
        // ln sinh(half), without overflow.
        let log_argument = log_ratio + half + (0.5 * -(-loss).exp_m1()).ln();
        let inverse = if log_argument > 300.0 {
            log_argument + std::f64::consts::LN_2
        } else {
            log_argument.exp().asinh()
        };
        variance * (half + inverse)
    }

    fn reach(self, tail: f64) -> f64 {
        let sampled = self.sigma * quantile_bound((tail / self.sampling_rate).min(0.5));
        (self.sigma * quantile_bound(tail)).max(1.0 + sampled)
    }

    pub(super) fn losses(self, limits: Limits) -> (f64, f64) {
        let high = self.loss(self.reach(limits.tail));
        ((-high).max(limits.floor), high)
    }

    pub(super) fn nodes(self, tail: f64) -> Vec<(f64, f64)> {
        let (rate, sigma) = (self.sampling_rate, self.sigma);
        let reach = self.reach(tail);
        let count = node_count(2.0 * reach / sigma);
        let width = 2.0 * reach / f64::from(count);
        (0..=count)
            .map(|node| {
                let x = width.mul_add(f64::from(node), -reach);
                let mass = (1.0 - rate) * density(x / sigma) + rate * density((x - 1.0) / sigma);
                (mass * width / sigma, self.loss(x))
            })
            .collect()
    }

    pub(super) fn on_grid(self, step: f64, limits: Limits) -> LossGrid {
        let (rate, sigma) = (self.sampling_rate, self.sigma);
        let (low, high) = self.losses(limits);
        let first = (low / step).floor() as i64;
        let last = (high / step).ceil() as i64;
        let edges = |index: i64| {
            let x = self.position(index as f64 * step);
            [x, x - 1.0, x + 1.0].map(|at| Edge::new(at / sigma))
        };
        let mix = |plain: f64, shifted: f64| (1.0 - rate) * plain + rate * shifted;
        let mut masses = vec![0.0; (last - first + 1) as usize];
        let mut left = edges(first);
        masses[0] += mix(left[0].below(), left[1].below());
        let scale = -(-step).exp_m1();
        for offset in 0..masses.len() - 1 {
            let lower = (first + offset as i64) as f64 * step;
            let right = edges(first + offset as i64 + 1);
            let [plain, with, against] =
                [0, 1, 2].map(|center: usize| left[center].until(right[center]));
            left = right;
            let total = mix(plain, with);
            // P - e^l Q over the interval.
            let excess =
                rate * (with - lower.exp() * against) - (1.0 - rate) * plain * lower.exp_m1();
            let upper = (excess / scale).clamp(0.0, total);
            masses[offset] += total - upper;
            masses[offset + 1] += upper;
        }
        LossGrid { first, masses, infinite: mix(left[0].above(), left[1].above()) }
    }
}
