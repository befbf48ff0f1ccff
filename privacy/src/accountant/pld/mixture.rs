//! The Poisson-subsampled Gaussian under add-or-remove-one.

use super::{
    super::normal::{Edge, density, quantile_bound},
    pair::{Direction, Limits, LossGrid, node_count},
};

/// `M = (1 - q) N(0, σ²) + q N(1, σ²)` against `A = N(0, σ²)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mixture {
    pub(super) sampling_rate: f64,
    pub(super) sigma: f64,
}

impl Mixture {
    /// `ln(M(x) / A(x))`, increasing in x.
    pub(super) fn loss(self, x: f64) -> f64 {
        let exponent = (2.0 * x - 1.0) / (2.0 * self.sigma * self.sigma);
        let rate = self.sampling_rate;
        if exponent > 30.0 {
            exponent + rate.ln() + ((1.0 - rate) / rate * (-exponent).exp()).ln_1p()
        } else if rate == 1.0 {
            exponent
        } else {
            (rate * exponent.exp_m1()).ln_1p()
        }
    }

    /// The x of a loss; minus infinity if no x has so low a loss.
    fn position(self, loss: f64) -> f64 {
        let rate = self.sampling_rate;
        let exponent = if rate == 1.0 {
            loss
        } else if loss > 30.0 {
            loss - rate.ln() + (-(1.0 - rate) * (-loss).exp()).ln_1p()
        } else {
            let ratio = loss.exp_m1() / rate;
            if ratio <= -1.0 {
                return f64::NEG_INFINITY;
            }
            ratio.ln_1p()
        };
        self.sigma * self.sigma * exponent + 0.5
    }

    /// Weighted losses for planning; see [`super::pair::Pair::nodes`].
    pub(super) fn nodes(self, direction: Direction, tail: f64) -> Vec<(f64, f64)> {
        let (rate, sigma) = (self.sampling_rate, self.sigma);
        let (low, high) = self.range(tail);
        let count = node_count((high - low) / sigma);
        let width = (high - low) / f64::from(count);
        (0..=count)
            .map(|node| {
                let x = width.mul_add(f64::from(node), low);
                let plain = density(x / sigma) * width / sigma;
                let shifted = density((x - 1.0) / sigma) * width / sigma;
                match direction {
                    Direction::Remove => ((1.0 - rate) * plain + rate * shifted, self.loss(x)),
                    Direction::Add => (plain, -self.loss(x)),
                }
            })
            .collect()
    }

    /// An interval outside of which M and A each have at most `2 tail`.
    fn range(self, tail: f64) -> (f64, f64) {
        let reach = self.sigma * quantile_bound(tail);
        let sampled = self.sigma * quantile_bound((tail / self.sampling_rate).min(0.5));
        (-reach, reach.max(1.0 + sampled))
    }

    /// The interval of `ln(M / A)` that has to be resolved.
    pub(super) fn losses(self, direction: Direction, limits: Limits) -> (f64, f64) {
        let (low, high) = self.range(limits.tail);
        let (low, high) = (self.loss(low), self.loss(high));
        match direction {
            Direction::Remove => (low.max(limits.floor), high),
            Direction::Add => (low, high.min(-limits.floor)),
        }
    }

    /// The loss on multiples of `step`; see [`super::pair::Pair::on_grid`].
    pub(super) fn on_grid(self, direction: Direction, step: f64, limits: Limits) -> LossGrid {
        let (rate, sigma) = (self.sampling_rate, self.sigma);
        let (low, high) = self.losses(direction, limits);
        let first = (low / step).floor() as i64;
        let last = (high / step).ceil() as i64;
        let edges = |index: i64| {
            let x = self.position(index as f64 * step);
            (Edge::new(x / sigma), Edge::new((x - 1.0) / sigma))
        };
        let mix = |plain: f64, shifted: f64| (1.0 - rate) * plain + rate * shifted;
        let mut masses = vec![0.0; (last - first + 1) as usize];
        let top = masses.len() - 1;
        let mut left = edges(first);
        let infinite;
        match direction {
            Direction::Remove => masses[0] += mix(left.0.below(), left.1.below()),
            Direction::Add => {}
        }
        let below = left.0.below();
        let scale = -(-step).exp_m1();
        for offset in 0..top {
            let right = edges(first + offset as i64 + 1);
            let plain = left.0.until(right.0);
            let shifted = left.1.until(right.1);
            left = right;
            match direction {
                Direction::Remove => {
                    // P - e^l Q over the interval, written without cancellation at small rates.
                    let lower = (first + offset as i64) as f64 * step;
                    let total = mix(plain, shifted);
                    let excess = rate * shifted - plain * (rate + lower.exp_m1());
                    let upper = (excess / scale).clamp(0.0, total);
                    masses[offset] += total - upper;
                    masses[offset + 1] += upper;
                }
                Direction::Add => {
                    // The loss is mirrored: from -(index + 1) to -index.
                    let upper_loss = (first + offset as i64 + 1) as f64 * step;
                    let excess = ((rate + upper_loss.exp_m1()) * plain - rate * shifted)
                        * (-upper_loss).exp();
                    let upper = (excess / scale).clamp(0.0, plain);
                    let index = top - offset - 1;
                    masses[index] += plain - upper;
                    masses[index + 1] += upper;
                }
            }
        }
        let first = match direction {
            Direction::Remove => {
                infinite = mix(left.0.above(), left.1.above());
                first
            }
            Direction::Add => {
                masses[0] += left.0.above();
                infinite = below;
                -last
            }
        };
        LossGrid { first, masses, infinite }
    }
}
