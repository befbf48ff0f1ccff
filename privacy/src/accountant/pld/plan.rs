//! Where to tilt and how wide a window the composition needs, from a quadrature of the losses.
//!
//! Nothing here carries the guarantee; it only decides how tight the bound gets.

use super::Component;

/// Bisection steps; each halves an interval in the logarithm of the tilt.
const BISECTIONS: usize = 80;
/// The tilted probability that may wrap around either end of the window.
const WRAPPED: f64 = 1e-12;

/// The cumulant generating function of the composed loss under P.
pub(super) struct Cumulants {
    components: Vec<(Vec<(f64, f64)>, f64)>,
}

/// Value, slope and curvature at one tilt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tilted {
    pub(super) tilt: f64,
    pub(super) value: f64,
    pub(super) mean: f64,
    pub(super) variance: f64,
}

/// Where the composed loss ends, by Chernoff bounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reach {
    /// The lower end, of the tilted distribution.
    pub(super) low: f64,
    /// The upper end, of P.
    pub(super) high: f64,
    /// The tilt that gives the bound of the upper end.
    pub(super) tilt: f64,
}

impl Cumulants {
    pub(super) fn new(components: &[Component], tail: f64) -> Self {
        let nodes = |component: &Component| (component.pair.nodes(tail), component.count as f64);
        Self { components: components.iter().map(nodes).collect() }
    }

    pub(super) fn at(&self, tilt: f64) -> Tilted {
        let (mut value, mut mean, mut variance) = (0.0, 0.0, 0.0);
        for (nodes, count) in &self.components {
            let exponent = |&(_, loss): &(f64, f64)| tilt * loss;
            let largest = nodes.iter().map(exponent).fold(f64::NEG_INFINITY, f64::max);
            let mut sums = [0.0; 3];
            for node in nodes {
                let weight = node.0 * (exponent(node) - largest).exp();
                sums[0] += weight;
                sums[1] += weight * node.1;
                sums[2] += weight * node.1 * node.1;
            }
            if sums[0] > 0.0 {
                let average = sums[1] / sums[0];
                value += count * (largest + sums[0].ln());
                mean += count * average;
                variance += count * (sums[2] / sums[0] - average * average).max(0.0);
            }
        }
        Tilted { tilt, value, mean, variance }
    }

    /// A natural unit of tilt: the reciprocal of the composed deviation.
    pub(super) fn tilt_unit(&self) -> f64 {
        let deviation = self.at(0.0).variance.sqrt();
        if deviation > 1e-300 { deviation.recip() } else { 1.0 }
    }

    /// The variance of the loss without its rare, large values: the lesser of those under P and Q.
    pub(super) fn bulk_variance(&self) -> f64 {
        self.at(0.0).variance.min(self.at(-1.0).variance)
    }

    /// The tilt whose saddle-point estimate of the divergence at its own mean is `delta`.
    pub(super) fn tilt_for_delta(&self, delta: f64, unit: f64) -> f64 {
        bisect(unit, |tilt| {
            let Tilted { value, mean, variance, .. } = self.at(tilt);
            let spread = (std::f64::consts::TAU * variance).sqrt();
            // Of order 1 where the tilt is too small for the estimate to hold.
            let factor = (tilt * (1.0 + tilt) * spread + 2.0).ln();
            value - tilt * mean - factor > delta.ln()
        })
    }

    /// The tilt that moves the mean to `mean`.
    pub(super) fn tilt_for_mean(&self, mean: f64, unit: f64) -> f64 {
        bisect(unit, |tilt| self.at(tilt).mean < mean)
    }

    /// Losses that the composition leaves with probability `tail` at most, and the tilted one with
    /// [`WRAPPED`]: what wraps around the window is counted, at the wrong place.
    pub(super) fn reach(&self, center: Tilted, tail: f64, unit: f64) -> Reach {
        let mut tilted_high = f64::INFINITY;
        let mut reach = Reach { low: f64::NEG_INFINITY, high: f64::INFINITY, tilt: center.tilt };
        for step in -24..=24 {
            let shift = unit * f64::from(step).exp2().sqrt() * 4.0;
            let right = self.at(center.tilt + shift);
            let high = (right.value - tail.ln()) / right.tilt;
            if high < reach.high {
                (reach.high, reach.tilt) = (high, right.tilt);
            }
            let wrapped = WRAPPED.ln();
            tilted_high = tilted_high.min((right.value - center.value - wrapped) / shift);
            let left = self.at(center.tilt - shift);
            reach.low = reach.low.max((center.value - left.value + wrapped) / shift);
        }
        reach.high = reach.high.max(tilted_high);
        reach
    }
}

/// The positive tilt where `below` turns from true to false.
fn bisect(unit: f64, below: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = ((unit * 1e-4).ln(), (unit * 1e6).ln());
    for _ in 0..BISECTIONS {
        let middle = 0.5 * (low + high);
        if below(middle.exp()) {
            low = middle
        } else {
            high = middle
        }
        if high - low < 1e-4 {
            break;
        }
    }
    high.exp()
}
