//! Choosing the finest grid that a modulus can carry.

use super::{Lattice, LatticeError};
use crate::noise::{SIGMA_MAX, SIGMA_MIN};

/// What [`Lattice::plan`] must accommodate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatticeRequest {
    /// Number of coordinates.
    pub dimension: usize,
    /// L2 bound of each contribution, in model units.
    pub norm_max: f64,
    /// Standard deviation of each contributor's noise per coordinate, in model units; 0 for none.
    pub noise_sigma: f64,
    /// The most contributions that are ever summed.
    pub contributors_max: u32,
    /// Width of the modulus.
    pub bits: u8,
    /// The accepted probability that any coordinate of the sum wraps; unused without noise.
    pub wrap_probability_max: f64,
}

impl Lattice {
    /// The lattice of the finest step on which the sum does not wrap.
    ///
    /// With n contributors, the signal of a coordinate is at most `n norm_max` (a certain bound).
    /// The sum of n discrete Gaussians is sub-Gaussian of variance `n sigma²`, so all d
    /// coordinates of the noise stay within `T = sigma sqrt(2 n ln(2 d / p))` but with probability
    /// p (union bound). The step is `(n norm_max + T) / (2^(bits-1) - 1)`: without noise the sum
    /// never wraps, with noise it does so with probability at most `wrap_probability_max`.
    ///
    /// # Errors
    /// [`LatticeError::OutOfRange`] names the number that cannot work; [`LatticeError::TooFewBits`]
    /// if the noise would fall below what the sampler supports.
    pub fn plan(request: &LatticeRequest) -> Result<Self, LatticeError> {
        let out_of_range =
            |field, value, range| Err(LatticeError::OutOfRange { field, value, range });
        let &LatticeRequest { dimension, norm_max, noise_sigma, contributors_max, bits, .. } =
            request;
        let wrap = request.wrap_probability_max;
        if dimension == 0 {
            return out_of_range("dimension", 0.0, "at least 1");
        }
        if !(norm_max.is_finite() && norm_max > 0.0) {
            return out_of_range("norm_max", norm_max, "a positive finite number");
        }
        if !(noise_sigma.is_finite() && noise_sigma >= 0.0) {
            return out_of_range("noise_sigma", noise_sigma, "a finite number, at least 0");
        }
        if contributors_max == 0 {
            return out_of_range("contributors_max", 0.0, "at least 1");
        }
        if noise_sigma > 0.0 && !(wrap > 0.0 && wrap < 1.0) {
            return out_of_range("wrap_probability_max", wrap, "above 0 and below 1");
        }
        let contributors = f64::from(contributors_max);
        let noise_reach = if noise_sigma > 0.0 {
            noise_sigma * (2.0 * contributors * (2.0 * dimension as f64 / wrap).ln()).sqrt()
        } else {
            0.0
        };
        // Checks the bits before they are used as a shift.
        Self::new(1.0, bits)?;
        let largest = ((1u64 << (bits - 1)) - 1) as f64;
        let reach = contributors.mul_add(norm_max, noise_reach);
        let step = (reach / largest * (1.0 + 1e-12)).max(noise_sigma / SIGMA_MAX * (1.0 + 1e-12));
        let units = noise_sigma / step;
        if noise_sigma > 0.0 && units < SIGMA_MIN {
            return Err(LatticeError::TooFewBits { bits, units, units_min: SIGMA_MIN });
        }
        Self::new(step, bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> LatticeRequest {
        LatticeRequest {
            dimension: 100_000,
            norm_max: 2.0,
            noise_sigma: 0.0,
            contributors_max: 50,
            bits: 16,
            wrap_probability_max: 1e-9,
        }
    }

    #[test]
    fn without_noise_the_extreme_sum_just_fits() {
        let lattice = Lattice::plan(&request()).expect("plannable");
        let units = 50.0 * 2.0 / lattice.step();
        assert!(units <= 32_767.0 && units > 32_766.9);
    }

    #[test]
    fn noise_widens_the_step_by_its_union_bound() {
        let noisy = LatticeRequest { noise_sigma: 1.0, ..request() };
        let step = Lattice::plan(&noisy).expect("plannable").step();
        let reach = 100.0 + (100.0 * (2.0 * 100_000.0 / 1e-9f64).ln()).sqrt();
        assert!((step * 32_767.0 / reach - 1.0).abs() < 1e-9);
    }

    #[test]
    fn impossible_requests_name_their_field() {
        let field = |request: LatticeRequest| match Lattice::plan(&request) {
            Err(LatticeError::OutOfRange { field, .. }) => field,
            Err(LatticeError::TooFewBits { .. }) => "too-few-bits",
            Err(LatticeError::Bits { .. }) => "bits",
            other => panic!("{other:?}"),
        };
        let base = request();
        assert_eq!(field(LatticeRequest { dimension: 0, ..base }), "dimension");
        assert_eq!(field(LatticeRequest { norm_max: f64::NAN, ..base }), "norm_max");
        assert_eq!(field(LatticeRequest { noise_sigma: -1.0, ..base }), "noise_sigma");
        assert_eq!(field(LatticeRequest { contributors_max: 0, ..base }), "contributors_max");
        assert_eq!(field(LatticeRequest { bits: 40, ..base }), "bits");
        let wrap = LatticeRequest { noise_sigma: 1.0, wrap_probability_max: 0.0, ..base };
        assert_eq!(field(wrap), "wrap_probability_max");
        let coarse = LatticeRequest { noise_sigma: 0.1, contributors_max: 10_000, bits: 8, ..base };
        assert_eq!(field(coarse), "too-few-bits");
    }
}
