//! The normal distribution, with full relative precision in both tails.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// `P(Z > z)`.
pub(super) fn upper_tail(z: f64) -> f64 {
    0.5 * libm::erfc(z * FRAC_1_SQRT_2)
}

/// The density at `z`.
pub(super) fn density(z: f64) -> f64 {
    (-0.5 * z * z).exp() / (2.0 * PI).sqrt()
}

/// A z beyond which at most `mass` lies: an upper bound of the quantile.
pub(super) fn quantile_bound(mass: f64) -> f64 {
    // P(Z > z) <= exp(-z² / 2) / 2.
    (-2.0 * (2.0 * mass).min(1.0).ln()).sqrt()
}

/// A point of the real line, ready for interval masses without cancellation in the tails.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edge {
    z: f64,
    /// The mass beyond `z`, away from 0.
    outside: f64,
}

impl Edge {
    pub(super) fn new(z: f64) -> Self {
        Self { z, outside: upper_tail(z.abs()) }
    }

    /// The mass below.
    pub(super) const fn below(self) -> f64 {
        if self.z < 0.0 { self.outside } else { 1.0 - self.outside }
    }

    /// The mass above.
    pub(super) const fn above(self) -> f64 {
        if self.z < 0.0 { 1.0 - self.outside } else { self.outside }
    }

    /// The mass from here up to `right`.
    pub(super) fn until(self, right: Self) -> f64 {
        let mass = if self.z >= 0.0 {
            self.outside - right.outside
        } else if right.z < 0.0 {
            right.outside - self.outside
        } else {
            1.0 - self.outside - right.outside
        };
        mass.max(0.0)
    }
}
