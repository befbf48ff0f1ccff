//! The float-safe noisy sum of clipped per-example gradients (DP-SGD).

use super::{MechanismError, PrivacyEvent};
use crate::{
    clip::{ClipError, ClippingNorm},
    noise::{DiscreteGaussian, NoiseSource},
};

/// Grid units in one clipping norm, at least; a power of two.
const GRID_UNITS_PER_NORM: f64 = (1u64 << 20) as f64;
/// The largest `Σ m (m + 1)` over the micro-batch sizes m of one batch, as covered by the slack.
const SUMMATION_WORK_MAX: u64 = 133_000;
/// Relative error that the caller's per-example norms may have.
const NORM_ERROR: f64 = 1.0 / 2048.0;
/// Unit roundoff of f32.
const UNIT_ROUNDOFF: f64 = 1.0 / 16_777_216.0;
/// The largest dimension, in coordinates.
const DIMENSION_MAX: usize = 1 << 32;

/// The Gaussian mechanism on a sum of clipped per-example gradients, safe on floats.
///
/// The sum is rounded to an integer grid, integer discrete Gaussian noise is added, and only then
/// does the result become floating point again (post-processing), so the low bits of the output
/// tell nothing (Mironov 2012).
///
/// - Neighbouring relation: add or remove one record.
/// - Sensitivity: the L2 distance of the *integer* vectors of two neighbours is at most
///   `clipping_norm / step`, by the argument below.
/// - Randomness: the [`NoiseSource`] given to [`release`](Self::release).
///
/// # Why the sensitivity holds in floating point
/// The trainer clips in f32, so three errors stand between its sum and the ideal one. Let C be
/// [`float_clipping_norm`](Self::float_clipping_norm) and u = 2^-24.
/// 1. *Per-example norms.* The clip factor is `C / norm` with a computed norm whose relative error
///    is at most 2^-11. This is an obligation of the caller; any f64 accumulation meets it, and so
///    does f32 accumulation of up to 2^12 squares in any order (or blocked into runs that short).
///    A clipped example then has norm at most `C (1 + 2^-11)(1 + 4u)`, the last factor for rounding
///    the clip factor and its product.
/// 2. *Summation.* With two rounded products and m - 1 additions per coordinate, in any order,
///    blocked or fused, the f32 sum of m examples differs from the exact one by a vector of norm at
///    most `(m + 1) u m C` (to first order; the rest is in the 1/64 below). Adding or removing a
///    record may move every other record to another micro-batch, so nothing cancels: both
///    neighbours' errors count in full, over all micro-batches, which gives
///    `2 Σ m (m + 1) u C (1 + 1/64)`. That is why [`GradientSum::add`] is told the number of
///    examples and refuses a batch whose `Σ m (m + 1)` exceeds 133,000 (one micro-batch of 364
///    examples, 512 in micro-batches of 256, 1,024 of 128, 4,096 of 31): the bound is *checked*,
///    not assumed. The check looks only at the sampled batch size, and a refusal releases nothing.
///    It takes one term per example and coordinate: a layer that adds several (a time axis) must
///    first form each example's own gradient, or accumulate in f64. Micro-batch sums are added in
///    f64, whose error stays below 2^-18 C.
/// 3. *Rounding to the grid* moves each coordinate by at most half a unit in each neighbour: at
///    most `sqrt(dimension)` units in L2.
///
/// The slack, the relative distance of C below `clipping_norm`, is the sum of these: about 1.7 %
/// plus `sqrt(dimension) step / clipping_norm`. The noise is that of the full `clipping_norm`, so
/// the loss is 1.7 % of signal and no privacy.
///
/// # Why the continuous Gaussian accounts for it
/// Rounding a continuous Gaussian of variance `sigma² - 1/12` to the grid is post-processing of the
/// continuous mechanism on an integer shift, and its distribution is within `sigma^-4 / 1000` of the
/// discrete Gaussian of variance `sigma²` in every coordinate; sigma is 2^20 noise multipliers or
/// more. [`statistical_distance`](Self::statistical_distance) adds this up. (The Rényi divergences of the discrete Gaussian are
/// below the continuous ones at every order without such an argument: Canonne, Kamath, Steinke
/// 2020, theorem 14.)
#[derive(Debug, Clone)]
pub struct NoisyGradientSum {
    clipping_norm: ClippingNorm,
    noise_multiplier: f64,
    dimension: usize,
    step: f64,
    float_clipping_norm: f64,
    gaussian: DiscreteGaussian,
}

impl NoisyGradientSum {
    /// Plans the grid, the noise and the slack.
    ///
    /// - `clipping_norm`: L2 bound of one example's gradient, model units
    /// - `noise_multiplier`: noise deviation / clipping norm, in [0.01, 400]
    /// - `dimension`: number of parameters
    ///
    /// # Errors
    /// [`MechanismError::OutOfRange`] names the parameter that cannot work.
    pub fn new(
        clipping_norm: ClippingNorm,
        noise_multiplier: f64,
        dimension: usize,
    ) -> Result<Self, MechanismError> {
        let norm = clipping_norm.value();
        if !(1e-18..=1e18).contains(&norm) {
            let range = "between 1e-18 and 1e18";
            return Err(MechanismError::OutOfRange { field: "clipping_norm", value: norm, range });
        }
        if !(0.01..=400.0).contains(&noise_multiplier) {
            let (field, range) = ("noise_multiplier", "between 0.01 and 400");
            return Err(MechanismError::OutOfRange { field, value: noise_multiplier, range });
        }
        if !(1..=DIMENSION_MAX).contains(&dimension) {
            let (field, range) = ("dimension", "between 1 and 2^32");
            return Err(MechanismError::OutOfRange { field, value: dimension as f64, range });
        }
        // A power of two: dividing by it and multiplying with it is exact.
        let step = (norm / GRID_UNITS_PER_NORM).log2().floor().exp2();
        let summation = 2.0 * SUMMATION_WORK_MAX as f64 * UNIT_ROUNDOFF;
        let rounding = (dimension as f64).sqrt() * step / norm;
        let slack = NORM_ERROR + summation * (1.0 + 1.0 / 64.0) + 2.0_f64.powi(-17) + rounding;
        let float_clipping_norm = norm * (1.0 - slack);
        let sigma = noise_multiplier * (norm / step) * (1.0 + 4.0 * f64::EPSILON);
        let gaussian = DiscreteGaussian::new(sigma)?;
        Ok(Self { clipping_norm, noise_multiplier, dimension, step, float_clipping_norm, gaussian })
    }

    /// The norm that the float per-example clip must use: slightly below the clipping norm.
    #[must_use]
    pub const fn float_clipping_norm(&self) -> f64 {
        self.float_clipping_norm
    }

    /// The L2 bound that the accounted noise multiplier refers to, in model units.
    #[must_use]
    pub const fn clipping_norm(&self) -> ClippingNorm {
        self.clipping_norm
    }

    /// Noise deviation / clipping norm.
    #[must_use]
    pub const fn noise_multiplier(&self) -> f64 {
        self.noise_multiplier
    }

    /// Number of coordinates.
    #[must_use]
    pub const fn dimension(&self) -> usize {
        self.dimension
    }

    /// Model units per grid unit.
    pub(super) const fn step(&self) -> f64 {
        self.step
    }

    /// Noise deviation in grid units.
    pub(super) const fn sigma(&self) -> f64 {
        self.gaussian.sigma()
    }

    /// What one release costs on a Poisson sample.
    ///
    /// - `sampling_rate`: probability with which each record joined the batch
    #[must_use]
    pub const fn event(&self, sampling_rate: f64) -> PrivacyEvent {
        let noise_multiplier = self.noise_multiplier;
        PrivacyEvent::PoissonGaussian { sampling_rate, noise_multiplier, steps: 1 }
    }

    /// The statistical distance between one release's noise and the accounted one, at most: an
    /// amount of δ a release, far below what any budget resolves.
    #[must_use]
    pub fn statistical_distance(&self) -> f64 {
        // The sampler's, and the rounded continuous Gaussian's at `sigma^-4 / 1000`, a coordinate.
        let rounding = 1e-3 * self.gaussian.sigma().powi(-4);
        self.dimension as f64 * (DiscreteGaussian::STATISTICAL_DISTANCE + rounding)
    }

    /// The largest micro-batch size with which a batch of so many examples is accepted; 0 if none.
    #[must_use]
    pub const fn micro_batch_max(examples: usize) -> usize {
        // examples / m micro-batches of m make a total m (m + 1) of at most examples (m + 1).
        match (SUMMATION_WORK_MAX as usize).checked_div(examples) {
            Some(share) => share.saturating_sub(1),
            None => usize::MAX,
        }
    }

    /// Starts the sum of one batch; a batch without any example is released as it is.
    #[must_use]
    pub fn begin(&self) -> GradientSum {
        GradientSum { sum: vec![0.0; self.dimension], examples: 0, work: 0 }
    }

    /// Rounds the batch sum to the grid, adds the noise, and returns it in model units.
    ///
    /// - `sum`: of gradients clipped to [`float_clipping_norm`](Self::float_clipping_norm)
    /// - returns: shape `[dimension]`, model units; not divided by any batch size
    ///
    /// # Errors
    /// [`MechanismError::NotClipped`] if a coordinate is beyond what clipped gradients can sum to;
    /// [`MechanismError::Dimension`] if the sum belongs to another mechanism. Nothing is released
    /// then.
    pub fn release(
        &self,
        sum: GradientSum,
        noise: &mut impl NoiseSource,
    ) -> Result<Vec<f32>, MechanismError> {
        let mut grid = self.on_grid(sum)?;
        self.gaussian.add_to(noise, &mut grid);
        Ok(grid.into_iter().map(|units| (units as f64 * self.step) as f32).collect())
    }

    /// The sum in grid units, without any noise.
    ///
    /// # Errors
    /// As for [`release`](Self::release).
    pub(super) fn on_grid(&self, sum: GradientSum) -> Result<Vec<i64>, MechanismError> {
        self.check_length(sum.sum.len())?;
        let norm = self.clipping_norm.value();
        let bound = sum.examples as f64 * norm;
        if let Some(index) = sum.sum.iter().position(|value| value.abs() > bound) {
            let (value, examples) = (sum.sum[index], sum.examples);
            return Err(MechanismError::NotClipped { index, value, examples, norm });
        }
        Ok(sum.sum.iter().map(|value| (value / self.step).round_ties_even() as i64).collect())
    }

    const fn check_length(&self, length: usize) -> Result<(), MechanismError> {
        if length == self.dimension {
            Ok(())
        } else {
            Err(MechanismError::Dimension { length, dimension: self.dimension })
        }
    }
}

/// The running sum of one batch's clipped gradients; not private, it must not leave the process.
#[derive(Clone)]
pub struct GradientSum {
    sum: Vec<f64>,
    examples: u64,
    work: u64,
}

impl GradientSum {
    /// Adds the f32 sum of one micro-batch of clipped gradients.
    ///
    /// - `clipped_sum`: shape `[dimension]`, model units
    /// - `examples`: how many gradients it sums; an empty micro-batch may be left out
    ///
    /// # Errors
    /// [`ClipError::NonFinite`] on NaN or infinity, [`MechanismError::Dimension`] on another length,
    /// [`MechanismError::BatchTooLarge`] if the slack would not cover the summation error; the sum
    /// is then unchanged.
    pub fn add(&mut self, clipped_sum: &[f32], examples: usize) -> Result<(), MechanismError> {
        let (length, dimension) = (clipped_sum.len(), self.sum.len());
        if length != dimension {
            return Err(MechanismError::Dimension { length, dimension });
        }
        let size = examples as u64;
        let work = self.work.saturating_add(size.saturating_mul(size.saturating_add(1)));
        if work > SUMMATION_WORK_MAX {
            let work_max = SUMMATION_WORK_MAX;
            return Err(MechanismError::BatchTooLarge { work, work_max });
        }
        if let Some(index) = clipped_sum.iter().position(|value| !value.is_finite()) {
            return Err(ClipError::NonFinite { index, value: clipped_sum[index] }.into());
        }
        for (total, &value) in self.sum.iter_mut().zip(clipped_sum) {
            *total += f64::from(value);
        }
        self.work = work;
        self.examples += size;
        Ok(())
    }

    /// How many gradients were added.
    #[must_use]
    pub const fn examples(&self) -> u64 {
        self.examples
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::noise::SeededNoise;

    fn mechanism(dimension: usize) -> NoisyGradientSum {
        let norm = ClippingNorm::new(0.7).expect("positive");
        NoisyGradientSum::new(norm, 1.1, dimension).expect("valid")
    }

    #[test]
    fn an_empty_batch_releases_pure_noise_of_the_planned_size() {
        let mechanism = mechanism(40_000);
        let mut noise = SeededNoise::from_seed([3; 32]);
        let released = mechanism.release(mechanism.begin(), &mut noise).expect("nothing to refuse");
        let mean_square =
            released.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() / 40_000.0;
        let sigma = 1.1 * 0.7;
        // Five standard errors.
        assert!((mean_square / (sigma * sigma) - 1.0).abs() < 5.0 * (2.0f64 / 40_000.0).sqrt());
    }

    #[test]
    fn the_slack_is_small_and_grows_with_the_dimension() {
        assert!(mechanism(1).float_clipping_norm() > 0.7 * 0.983);
        assert!(mechanism(1 << 20).float_clipping_norm() > 0.7 * 0.982);
        assert!(mechanism(1 << 30).float_clipping_norm() < 0.7 * 0.965);
    }

    #[test]
    fn oversized_batches_are_refused_and_small_micro_batches_pass() {
        let mechanism = mechanism(2);
        assert!(mechanism.begin().add(&[0.0; 2], 364).is_ok());
        assert!(matches!(
            mechanism.begin().add(&[0.0; 2], 365),
            Err(MechanismError::BatchTooLarge { .. })
        ));
        assert!(mechanism.begin().add(&[0.0; 2], usize::MAX).is_err());
        for batch in [1, 100, 600, 1023, 5000, 40_000] {
            let mut sum = mechanism.begin();
            let size = NoisyGradientSum::micro_batch_max(batch);
            for start in (0..batch).step_by(size) {
                sum.add(&[0.0; 2], size.min(batch - start)).expect("small enough");
            }
            assert_eq!(sum.examples(), batch as u64);
        }
        assert_eq!(NoisyGradientSum::micro_batch_max(1_000_000), 0);
        let mut sum = mechanism.begin();
        for _ in 0..128 {
            sum.add(&[0.1; 2], 31).expect("4,000 examples in small micro-batches");
        }
        assert_eq!(sum.examples(), 128 * 31);
    }

    #[test]
    fn nothing_is_released_of_bad_input() {
        let mechanism = mechanism(2);
        let mut noise = SeededNoise::from_seed([3; 32]);
        let mut sum = mechanism.begin();
        for value in [f32::NAN, f32::INFINITY] {
            assert!(matches!(
                sum.add(&[0.0, value], 1),
                Err(MechanismError::Clip(ClipError::NonFinite { index: 1, .. }))
            ));
        }
        assert!(matches!(sum.add(&[0.0], 1), Err(MechanismError::Dimension { .. })));
        assert_eq!(sum.examples(), 0);
        sum.add(&[0.9, 0.0], 1).expect("finite");
        assert!(matches!(
            mechanism.release(sum, &mut noise),
            Err(MechanismError::NotClipped { index: 0, examples: 1, .. })
        ));
        let norm = ClippingNorm::new(1.0).expect("positive");
        for noise_multiplier in [0.0, -1.0, f64::NAN, 1e9] {
            assert!(NoisyGradientSum::new(norm, noise_multiplier, 2).is_err());
        }
        assert!(NoisyGradientSum::new(norm, 1.0, 0).is_err());
        let absurd = ClippingNorm::new(1e300).expect("positive");
        assert!(NoisyGradientSum::new(absurd, 1.0, 2).is_err());
    }

    proptest! {
        /// The claim itself, on random neighbours: gradients clipped in f32 with f32 norms, summed
        /// in f32 in different orders, stay within the integer sensitivity.
        #[test]
        fn neighbouring_grids_are_within_the_sensitivity(
            gradients in prop::collection::vec(prop::collection::vec(-1e3f32..1e3, 16), 1..60),
        ) {
            let mechanism = mechanism(16);
            let norm = mechanism.float_clipping_norm() as f32;
            let clipped: Vec<Vec<f32>> = gradients
                .iter()
                .map(|gradient| {
                    let length = gradient.iter().map(|v| v * v).sum::<f32>().sqrt();
                    let factor = if length > norm { norm / length } else { 1.0 };
                    gradient.iter().map(|v| v * factor).collect()
                })
                .collect();
            let grid = |rows: &mut dyn Iterator<Item = &Vec<f32>>| -> Vec<f64> {
                let mut sum = [0f32; 16];
                for row in rows {
                    for (total, value) in sum.iter_mut().zip(row) {
                        *total += value;
                    }
                }
                sum.iter().map(|&v| (f64::from(v) / mechanism.step).round_ties_even()).collect()
            };
            let with = grid(&mut clipped.iter());
            let without = grid(&mut clipped[1..].iter().rev());
            let distance: f64 =
                with.iter().zip(&without).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
            prop_assert!(distance <= 0.7 / mechanism.step);
        }
    }
}
