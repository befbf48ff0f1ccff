//! The noisy client update of the `tenant` privacy unit.

use super::{MechanismError, PrivacyEvent, discrete_gaussian_rho};
use crate::{
    clip::{ClippingNorm, clip_l2},
    lattice::Lattice,
    noise::{DiscreteGaussian, NoiseSource},
};

/// The largest total variation distance, per release, between the noise and a rounded continuous
/// Gaussian: the grid is finer than that.
const ROUNDING_DISTANCE_MAX: f64 = 1.0 / (1u64 << 40) as f64;

/// The largest dimension, in coordinates.
const DIMENSION_MAX: usize = 1 << 32;

/// The Gaussian mechanism on one whole client update: clip, quantise, add noise, pack.
///
/// - Neighbouring relation: add or remove the tenant's update (it is present or zero).
/// - Sensitivity: `clipping_norm / step` grid units in L2, enforced on the integers by
///   [`Lattice::quantize`], so no floating-point argument is needed.
/// - Randomness: the [`NoiseSource`] given to [`release`](Self::release).
#[derive(Debug, Clone)]
pub struct NoisyUpdate {
    lattice: Lattice,
    clipping_norm: ClippingNorm,
    noise_multiplier: f64,
    dimension: usize,
    gaussian: DiscreteGaussian,
}

impl NoisyUpdate {
    /// Plans the noise on a lattice.
    ///
    /// The noise must be fine-grained: a discrete Gaussian of deviation s grid units is within
    /// `s^-4 / 1000` of a rounded continuous one of variance `s² - 1/12` in every coordinate. The
    /// figure is half the root of the chi-square divergence, which bounds the statistical distance
    /// and grows only with the root of the dimension; over all coordinates it must stay below
    /// 2^-40. Then what the accountant adds for the grid is negligible.
    ///
    /// - `noise_multiplier`: noise deviation / clipping norm, above 0
    /// - `dimension`: number of coordinates
    ///
    /// # Errors
    /// [`MechanismError::OutOfRange`] names the parameter that cannot work,
    /// [`MechanismError::TooCoarse`] a lattice too coarse for the noise.
    pub fn new(
        lattice: Lattice,
        clipping_norm: ClippingNorm,
        noise_multiplier: f64,
        dimension: usize,
    ) -> Result<Self, MechanismError> {
        if !(noise_multiplier.is_finite() && noise_multiplier > 0.0) {
            let (field, range) = ("noise_multiplier", "a positive finite number");
            return Err(MechanismError::OutOfRange { field, value: noise_multiplier, range });
        }
        if !(1..=DIMENSION_MAX).contains(&dimension) {
            let (field, range) = ("dimension", "between 1 and 2^32");
            return Err(MechanismError::OutOfRange { field, value: dimension as f64, range });
        }
        let sigma = noise_multiplier * (clipping_norm.value() / lattice.step());
        // The factor absorbs the rounding of the two f64 operations: up, never down.
        let gaussian = DiscreteGaussian::new(sigma * (1.0 + 4.0 * f64::EPSILON))?;
        let sigma_min = ((dimension as f64).sqrt() / 1000.0 / ROUNDING_DISTANCE_MAX).powf(0.25);
        if sigma < sigma_min {
            return Err(MechanismError::TooCoarse { sigma, sigma_min });
        }
        Ok(Self { lattice, clipping_norm, noise_multiplier, dimension, gaussian })
    }

    /// What one release costs.
    #[must_use]
    pub const fn event(&self) -> PrivacyEvent {
        PrivacyEvent::LatticeGaussian {
            sampling_rate: 1.0,
            noise_multiplier: self.noise_multiplier,
            sigma_share: self.gaussian.sigma(),
            clients: 1,
            dimension: self.dimension as u64,
            steps: 1,
        }
    }

    /// The ρ (zCDP) of one release, by opendp's privacy map on the integer vectors.
    ///
    /// # Errors
    /// [`MechanismError::PrivacyMap`] if opendp refuses the numbers.
    pub fn rho(&self) -> Result<f64, MechanismError> {
        let sensitivity = self.clipping_norm.value() / self.lattice.step();
        discrete_gaussian_rho(sensitivity, self.gaussian.sigma())
    }

    /// Clips `update` in place, and returns its noisy, packed form: the only thing that may leave.
    ///
    /// - `update`: shape `[dimension]`, model units
    /// - returns: [`Lattice::packed_len`] bytes
    ///
    /// # Errors
    /// [`MechanismError::Dimension`], [`MechanismError::Clip`] on NaN or infinity,
    /// [`MechanismError::Lattice`] if the norm is too many grid units. Nothing is released then.
    pub fn release(
        &self,
        update: &mut [f32],
        noise: &mut impl NoiseSource,
    ) -> Result<Vec<u8>, MechanismError> {
        let (length, dimension) = (update.len(), self.dimension);
        if length != dimension {
            return Err(MechanismError::Dimension { length, dimension });
        }
        clip_l2(update, self.clipping_norm)?;
        let mut grid = self.lattice.quantize(update, self.clipping_norm)?;
        self.gaussian.add_to(noise, &mut grid);
        Ok(self.lattice.pack(&grid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        accountant::{Delta, epsilon},
        clip::ClipError,
        lattice::ModularSum,
        noise::SeededNoise,
    };

    fn norm() -> ClippingNorm {
        ClippingNorm::new(1.0).expect("positive")
    }

    #[test]
    fn a_release_is_the_clipped_update_plus_noise_of_the_planned_size() {
        let lattice = Lattice::new(1e-4, 24).expect("valid");
        let dimension = 20_000;
        let mechanism = NoisyUpdate::new(lattice, norm(), 0.5, dimension).expect("valid");
        let mut update = vec![3.0; dimension];
        let mut noise = SeededNoise::from_seed([1; 32]);
        let packed = mechanism.release(&mut update, &mut noise).expect("finite");
        let mut sum = ModularSum::new(lattice, dimension);
        sum.add_packed(&packed).expect("well formed");
        let values = lattice.dequantize_sum(sum.values());
        let mean = values.iter().sum::<f64>() / dimension as f64;
        let variance =
            values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / dimension as f64;
        let rho = mechanism.rho().expect("valid");
        assert!((rho / 2.0 - 1.0).abs() < 1e-9, "0.5 / 0.5² = 2, not {rho}");
        let delta = Delta::new(1e-5).expect("valid");
        let cost = |event| epsilon(&[event], delta).expect("valid");
        let continuous = PrivacyEvent::Gaussian { noise_multiplier: 0.5, count: 1 };
        let (ours, ideal) = (cost(mechanism.event()), cost(continuous));
        assert!(ours >= ideal && ours < ideal * 1.000_1, "{ours} {ideal}");
        let clipped = 1.0 / (dimension as f64).sqrt();
        // Five standard errors of each estimate.
        assert!((mean - clipped).abs() < 5.0 * 0.5 / (dimension as f64).sqrt());
        assert!((variance.sqrt() - 0.5).abs() < 5.0 * 0.5 / (2.0 * dimension as f64).sqrt());
    }

    /// The `s^-4 / 1000` of [`NoisyUpdate::new`], by direct summation.
    #[test]
    fn discrete_and_rounded_gaussians_are_as_close_as_claimed() {
        for sigma in [1.0, 2.0, 4.0, 8.0_f64] {
            let mass = |x: i32| (-0.5 * (f64::from(x) / sigma).powi(2)).exp();
            let reach = (8.0 * sigma) as i32;
            let total: f64 = (-10 * reach..=10 * reach).map(mass).sum();
            let deviation = (sigma * sigma - 1.0 / 12.0).sqrt();
            let above = |x: f64| 0.5 * libm::erfc(x / deviation / std::f64::consts::SQRT_2);
            let chi_square: f64 = (-reach..=reach)
                .map(|x| {
                    let rounded = above(f64::from(x.abs()) - 0.5) - above(f64::from(x.abs()) + 0.5);
                    (mass(x) / total - rounded).powi(2) / rounded
                })
                .sum();
            let distance = 0.5 * chi_square.sqrt() * sigma.powi(4);
            assert!(distance > 0.0008 && distance < 0.001, "{sigma}: {distance}");
        }
    }

    #[test]
    fn nothing_is_released_of_bad_input() {
        let lattice = Lattice::new(1e-4, 24).expect("valid");
        let mechanism = NoisyUpdate::new(lattice, norm(), 1.0, 2).expect("valid");
        let mut noise = SeededNoise::from_seed([1; 32]);
        assert!(matches!(
            mechanism.release(&mut [1.0, f32::NAN], &mut noise),
            Err(MechanismError::Clip(ClipError::NonFinite { index: 1, .. }))
        ));
        assert!(matches!(
            mechanism.release(&mut [1.0], &mut noise),
            Err(MechanismError::Dimension { length: 1, dimension: 2 })
        ));
        for noise_multiplier in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(NoisyUpdate::new(lattice, norm(), noise_multiplier, 2).is_err());
        }
        let coarse = Lattice::new(0.5, 8).expect("valid");
        assert!(matches!(
            NoisyUpdate::new(coarse, norm(), 1.0, 2),
            Err(MechanismError::TooCoarse { .. })
        ));
    }
}
