//! The sum of clipped per-example gradients as integers of known sensitivity, without any noise.

use super::{
    GradientSum, MechanismError,
    batch_sum::{BLOCKS_MAX, SUMMATION_WORK_MAX},
};
use crate::{
    clip::{ClipError, ClippingNorm},
    noise::NoiseSource,
};

/// Relative error that the caller's per-example norms may have.
const NORM_ERROR: f64 = 1.0 / 2048.0;
/// Unit roundoff of f32.
const UNIT_ROUNDOFF: f64 = 1.0 / 16_777_216.0;
/// The probability with which random rounding leaves the sensitivity, at most.
pub(crate) const ROUNDING_FAILURE: f64 = 1.0 / (1u64 << 60) as f64;
/// Distance of the values that a rounding threshold takes.
const THRESHOLD_STEP: f64 = 1.0 / 65_536.0;
/// The largest dimension, in coordinates.
const DIMENSION_MAX: usize = 1 << 32;

/// What makes integers of a sum of clipped per-example gradients, on any grid.
///
/// For the release with noise of its own see [`NoisyGradientSum`](super::NoisyGradientSum); this
/// part alone serves distributed noise, where the caller adds its share of the noise (and masks)
/// to the integers. Without noise they are not private.
///
/// - Neighbouring relation: add or remove one record.
/// - Sensitivity: the L2 distance of the *integer* vectors of two neighbours is at most
///   `clipping_norm / step`, by the argument below, but with probability
///   [`statistical_distance`](Self::statistical_distance).
/// - Randomness: of the rounding, from the [`NoiseSource`] given to [`quantize`](Self::quantize).
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
///    blocked or fused, and b - 1 more additions of micro-batches to each other, the f32 sum of n
///    examples in b micro-batches of at most m differs from the exact one by a vector of norm at
///    most `n (m + b) u C` (to first order; the rest is in the 1/64 below). Adding or removing a
///    record may move every other record to another micro-batch, so nothing cancels: both
///    neighbours' errors count in full, which gives `2 Σ n (m + b) u C (1 + 1/64)` over all runs
///    of up to four micro-batches, after which f64 takes over (whose own error stays below
///    2^-18 C; rounding back to f32 counts as one more addition). That is why [`GradientSum`] is
///    told the number of examples and refuses a batch whose `Σ n (m + b)` exceeds 133,000 (364
///    examples at once, 500 in micro-batches of 250, 1,000 of 128, 4,000 of 28): the bound is
///    *checked*, not assumed. The check looks only at the sampled batch size, and a refusal
///    releases nothing. It takes one term per example and coordinate: a layer that adds several (a
///    time axis) must first form each example's own gradient, or accumulate in f64.
/// 3. *Rounding to the grid.* Coordinate x becomes `⌊x⌋ + [x − ⌊x⌋ > u]` with one uniform u for
///    both neighbours. A coordinate that differs by g then differs by the next whole number above
///    or below |g|, above with the probability that the fraction of |g| says, to within 2^-16
///    as u has 16 bits. In units of the grid, the squared distance R² before rounding thus becomes
///    in expectation at most `R² + d/4 + 2^-16 (2 R sqrt(d) + d)` for d coordinates; and, being a
///    sum of independent terms (Hoeffding), more than that by `sqrt(2 ln(1/β)) (R + sqrt(d)/2)` with
///    probability at most β = 2^-60. Rounding to nearest would cost `sqrt(d)` in the distance
///    itself, and so take a grid a hundred times finer.
///
/// The slack, the relative distance of C below `clipping_norm`, is the sum of these: 1.7 % and
/// [`rounding_slack`](Self::rounding_slack). The noise is that of the full `clipping_norm`, so the
/// loss is one of signal and not of privacy.
///
/// Source of the rounding argument: Kairouz, Liu, Steinke 2021, arXiv:2102.06387, lemma 4 (there
/// for one vector, with conditioning in place of the failure probability).
#[derive(Debug, Clone)]
pub struct ClippedGradientSum {
    clipping_norm: ClippingNorm,
    step: f64,
    dimension: usize,
    float_clipping_norm: f64,
}

impl ClippedGradientSum {
    /// Plans the slack.
    ///
    /// - `clipping_norm`: L2 bound of one example's gradient, model units
    /// - `step`: of the grid, model units
    /// - `dimension`: number of parameters
    ///
    /// # Errors
    /// [`MechanismError::OutOfRange`] names the parameter that cannot work.
    pub fn new(
        clipping_norm: ClippingNorm,
        step: f64,
        dimension: usize,
    ) -> Result<Self, MechanismError> {
        let norm = clipping_norm.value();
        if !(1e-18..=1e18).contains(&norm) {
            let range = "between 1e-18 and 1e18";
            return Err(MechanismError::OutOfRange { field: "clipping_norm", value: norm, range });
        }
        if !(1..=DIMENSION_MAX).contains(&dimension) {
            let (field, range) = ("dimension", "between 1 and 2^32");
            return Err(MechanismError::OutOfRange { field, value: dimension as f64, range });
        }
        let units = norm / step;
        let rounding = Self::rounding_slack(units, dimension);
        if !(step > 0.0 && units <= 2.0_f64.powi(40) && rounding <= 0.5) {
            let range = "fine enough that rounding costs less than half of the clipping norm, and \
                         at least 2^-40 of it";
            return Err(MechanismError::OutOfRange { field: "step", value: step, range });
        }
        let summation = 2.0 * SUMMATION_WORK_MAX as f64 * UNIT_ROUNDOFF;
        let slack = NORM_ERROR + summation * (1.0 + 1.0 / 64.0) + 2.0_f64.powi(-17) + rounding;
        let float_clipping_norm = norm * (1.0 - slack);
        Ok(Self { clipping_norm, step, dimension, float_clipping_norm })
    }

    /// The part of the clipping norm that random rounding takes, 1 if it takes all.
    ///
    /// - `units`: the clipping norm in grid units
    #[must_use]
    pub fn rounding_slack(units: f64, dimension: usize) -> f64 {
        let root = (dimension as f64).sqrt();
        let deviation = (-2.0 * ROUNDING_FAILURE.ln()).sqrt();
        // R² + linear R + constant = units², solved for R.
        let linear = 2.0 * THRESHOLD_STEP * root + deviation;
        let constant = dimension as f64 * (0.25 + THRESHOLD_STEP) + deviation * root / 2.0;
        let room = units * units - constant;
        // NaN, too, takes all.
        if !(room > 0.0 && units.is_finite()) {
            return 1.0;
        }
        let before = ((linear * linear / 4.0 + room).sqrt() - linear / 2.0).max(0.0);
        1.0 - before / units
    }

    /// The norm that the float per-example clip must use: slightly below the clipping norm.
    #[must_use]
    pub const fn float_clipping_norm(&self) -> f64 {
        self.float_clipping_norm
    }

    /// The L2 bound that the sensitivity refers to, in model units.
    #[must_use]
    pub const fn clipping_norm(&self) -> ClippingNorm {
        self.clipping_norm
    }

    /// Model units in one grid unit.
    #[must_use]
    pub const fn step(&self) -> f64 {
        self.step
    }

    /// Number of coordinates.
    #[must_use]
    pub const fn dimension(&self) -> usize {
        self.dimension
    }

    /// The L2 sensitivity of the integers, in grid units.
    #[must_use]
    pub fn sensitivity(&self) -> f64 {
        self.clipping_norm.value() / self.step
    }

    /// The probability with which rounding leaves the sensitivity, at most: an amount of δ a sum.
    #[must_use]
    pub const fn statistical_distance(&self) -> f64 {
        ROUNDING_FAILURE
    }

    /// The largest micro-batch size with which a batch of so many examples is accepted; 0 if none.
    #[must_use]
    pub const fn micro_batch_max(examples: usize) -> usize {
        match (SUMMATION_WORK_MAX as usize).checked_div(examples) {
            // One addition for the return from f64.
            Some(share) => share.saturating_sub(BLOCKS_MAX as usize + 1),
            None => usize::MAX,
        }
    }

    /// Starts the sum of one batch.
    #[must_use]
    pub fn begin(&self) -> GradientSum {
        self.begin_in(Vec::new())
    }

    /// Starts the sum of one batch in memory that is no longer needed.
    #[must_use]
    pub fn begin_in(&self, mut memory: Vec<f32>) -> GradientSum {
        memory.resize(self.dimension, 0.0);
        GradientSum::begin_in(memory)
    }

    /// Rounds the batch sum to the grid.
    ///
    /// - `sum`: of gradients clipped to [`float_clipping_norm`](Self::float_clipping_norm)
    /// - `noise`: randomness of the rounding
    /// - returns: shape `[dimension]`, grid units; **not private** until noise is added
    ///
    /// # Errors
    /// [`MechanismError::NotClipped`] or [`MechanismError::Clip`] for a coordinate beyond what
    /// clipped gradients can sum to, [`MechanismError::Dimension`] if the sum belongs to another
    /// mechanism, [`MechanismError::BatchTooLarge`].
    pub fn quantize(
        &self,
        sum: GradientSum,
        noise: &mut impl NoiseSource,
    ) -> Result<Vec<i64>, MechanismError> {
        const CHUNK: usize = 1024;
        let values = self.checked(sum)?;
        let mut grid = Vec::with_capacity(values.len());
        let mut bytes = [0; 2 * CHUNK];
        for values in values.chunks(CHUNK) {
            let bytes = &mut bytes[..2 * values.len()];
            noise.fill_bytes(bytes);
            grid.extend(values.iter().zip(bytes.as_chunks::<2>().0).map(|(&value, &bytes)| {
                let threshold = (f64::from(u16::from_le_bytes(bytes)) + 0.5) * THRESHOLD_STEP;
                let units = f64::from(value) / self.step;
                units.floor() as i64 + i64::from(units - units.floor() > threshold)
            }));
        }
        Ok(grid)
    }

    /// The finished sum, of the right length and with every coordinate within reach.
    pub(super) fn checked(&self, sum: GradientSum) -> Result<Vec<f32>, MechanismError> {
        let (values, reach) = self.finished(sum)?;
        self.check(&values, reach)?;
        Ok(values)
    }

    /// The finished sum, of the right length, and how far its coordinates may reach.
    pub(super) fn finished(&self, sum: GradientSum) -> Result<(Vec<f32>, Reach), MechanismError> {
        let (length, dimension) = (sum.dimension(), self.dimension);
        if length != dimension {
            return Err(MechanismError::Dimension { length, dimension });
        }
        let examples = sum.examples();
        let value = (examples as f64 * self.clipping_norm.value()) as f32;
        Ok((sum.finish()?, Reach { value, examples }))
    }

    /// Names the first coordinate that is out of reach.
    pub(super) fn check(&self, values: &[f32], reach: Reach) -> Result<(), MechanismError> {
        // One pass without branches; NaN is not within.
        let is_within = |value: &f32| value.abs() <= reach.value;
        if values.iter().fold(true, |all, value| all & is_within(value)) {
            return Ok(());
        }
        let index = values.iter().position(|value| !is_within(value)).unwrap_or_default();
        let value = values[index];
        if !value.is_finite() {
            return Err(ClipError::NonFinite { index, value }.into());
        }
        let (examples, norm) = (reach.examples, self.clipping_norm.value());
        Err(MechanismError::NotClipped { index, value: value.into(), examples, norm })
    }
}

/// How far the coordinates of a sum of clipped gradients may reach.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reach {
    /// Model units.
    pub(super) value: f32,
    examples: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::noise::SeededNoise;

    fn norm() -> ClippingNorm {
        ClippingNorm::new(0.7).expect("positive")
    }

    fn mechanism(dimension: usize) -> ClippedGradientSum {
        ClippedGradientSum::new(norm(), 0.7 / 3000.0, dimension).expect("valid")
    }

    #[test]
    fn the_slack_falls_with_the_square_of_the_grid() {
        let slack = |units, dimension| ClippedGradientSum::rounding_slack(units, dimension);
        assert!((0.001..0.003).contains(&slack(4096.0, 100_000)));
        assert!((0.004..0.009).contains(&slack(2048.0, 100_000)));
        assert!(slack(1e6, 1 << 20) < 1e-5);
        assert_eq!(slack(100.0, 100_000), 1.0);
        assert_eq!(slack(f64::NAN, 1), 1.0);
        assert_eq!(slack(f64::INFINITY, 1), 1.0);
    }

    #[test]
    fn a_rounded_sum_is_the_sum_on_average() {
        let mechanism = mechanism(30_000);
        let mut noise = SeededNoise::from_seed([3; 32]);
        let mut sum = mechanism.begin();
        // A third of a unit, and one that f32 holds exactly between two units.
        let value = |index: usize| [1.0 / 3.0, -41.5][index % 2] * (0.7 / 3000.0);
        let values: Vec<f32> = (0..30_000).map(|index| value(index) as f32).collect();
        sum.add(&values, 1).expect("finite");
        let grid = mechanism.quantize(sum, &mut noise).expect("in bounds");
        for (parity, expected) in [(0, 1.0 / 3.0), (1, -41.5)] {
            let units: Vec<f64> = grid.iter().skip(parity).step_by(2).map(|&u| u as f64).collect();
            assert!(units.iter().all(|unit| (unit - expected).abs() < 1.0));
            let mean = units.iter().sum::<f64>() / units.len() as f64;
            // Five standard errors, the variance being at most a quarter.
            assert!((mean - expected).abs() < 5.0 * 0.5 / (units.len() as f64).sqrt(), "{mean}");
        }
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
        for batch in [1, 100, 364, 500, 600, 1023, 5000, 16_000] {
            let mut sum = mechanism.begin();
            let size = ClippedGradientSum::micro_batch_max(batch);
            for start in (0..batch).step_by(size) {
                sum.add(&[0.0; 2], size.min(batch - start)).expect("small enough");
            }
            assert_eq!(sum.examples(), batch as u64);
            let mut noise = SeededNoise::from_seed([3; 32]);
            assert!(mechanism.quantize(sum, &mut noise).is_ok());
        }
        assert_eq!(ClippedGradientSum::micro_batch_max(1_000_000), 0);
        let mut sum = mechanism.begin();
        for _ in 0..128 {
            sum.add(&[0.1; 2], 28).expect("3,584 examples in small micro-batches");
        }
        assert_eq!(sum.examples(), 128 * 28);
    }

    #[test]
    fn runs_beyond_f32_add_up() {
        let mechanism = mechanism(3);
        let mut sum = mechanism.begin_in(vec![5.0; 9]);
        for index in 0..11_u8 {
            sum.add(&[f32::from(index), 1.0, 0.25], 20).expect("small");
        }
        assert_eq!(sum.finish().expect("small"), [55.0, 11.0, 2.75]);
    }

    #[test]
    fn nothing_comes_of_bad_input() {
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
            mechanism.quantize(sum, &mut noise),
            Err(MechanismError::NotClipped { index: 0, examples: 1, .. })
        ));
        for value in [f32::NAN, f32::NEG_INFINITY] {
            let mut sum = mechanism.begin();
            let spoil = |sum: &mut [f32]| {
                sum[1] = value;
                Ok::<_, MechanismError>(())
            };
            sum.add_in_place(3, spoil).expect("seen at the end");
            assert!(matches!(
                mechanism.quantize(sum, &mut noise),
                Err(MechanismError::Clip(ClipError::NonFinite { index: 1, .. }))
            ));
        }
        for step in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-300, 0.7] {
            assert!(ClippedGradientSum::new(norm(), step, 2).is_err(), "{step}");
        }
        assert!(ClippedGradientSum::new(norm(), 1e-4, 0).is_err());
        assert!(ClippedGradientSum::new(norm(), 1e-4, 1 << 33).is_err());
        let absurd = ClippingNorm::new(1e300).expect("positive");
        assert!(ClippedGradientSum::new(absurd, 1e298, 2).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The claim behind the sensitivity: neighbouring batches, clipped in f32 with f32 norms,
        /// summed in f32 in different orders and rounded with the same randomness, stay within it.
        #[test]
        fn neighbouring_grids_are_within_the_sensitivity(
            gradients in prop::collection::vec(prop::collection::vec(-1e3f32..1e3, 16), 1..60),
            seed: [u8; 32],
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
            let grid = |rows: &mut dyn Iterator<Item = &Vec<f32>>| {
                let mut sum = mechanism.begin();
                for row in rows {
                    sum.add(row, 1).expect("finite");
                }
                mechanism.quantize(sum, &mut SeededNoise::from_seed(seed)).expect("in bounds")
            };
            let with = grid(&mut clipped.iter());
            let without = grid(&mut clipped[1..].iter().rev());
            let square: i64 = with.iter().zip(&without).map(|(a, b)| (a - b).pow(2)).sum();
            prop_assert!((square as f64).sqrt() <= mechanism.sensitivity());
        }
    }
}
