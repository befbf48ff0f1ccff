//! The float-safe noisy sum of clipped per-example gradients (DP-SGD).

use super::{ClippedGradientSum, GradientSum, MechanismError, PrivacyEvent};
use crate::{
    clip::ClippingNorm,
    noise::{Descend, DiscreteGaussian, NoiseSource, RoundAndAdd},
};

/// The part of the clipping norm that rounding to the grid may take.
const ROUNDING_SLACK_MAX: f64 = 1.0 / 256.0;
/// Coordinates of a part of a step.
const PART: usize = 1 << 15;
/// The distance, per release, between the noise and a rounded continuous Gaussian, at most.
const CONTINUOUS_DISTANCE_MAX: f64 = 1.0 / (1u64 << 50) as f64;

/// The Gaussian mechanism on a sum of clipped per-example gradients, safe on floats.
///
/// The sum is rounded to an integer grid, integer discrete Gaussian noise is added, and only then
/// does the result become floating point again (post-processing), so the low bits of the output
/// tell nothing (Mironov 2012).
///
/// - Neighbouring relation: add or remove one record.
/// - Sensitivity: the L2 distance of the *integer* vectors of two neighbours is at most
///   `clipping_norm / step`, by the argument of [`ClippedGradientSum`].
/// - Randomness: the [`NoiseSource`] given to [`release`](Self::release).
///
/// # Why the continuous Gaussian accounts for it
/// Rounding a continuous Gaussian of variance `sigma² - 1/12` to the grid is post-processing of the
/// continuous mechanism on an integer shift, and its distribution is within `sigma^-4 / 1000` of the
/// discrete Gaussian of variance `sigma²` in every coordinate, and within `sqrt(dimension)` times
/// that in all (as for [`NoisyUpdate::new`](super::NoisyUpdate::new)); the variance is chosen a
/// twelfth above the accounted one. [`statistical_distance`](Self::statistical_distance) adds this
/// up. (The Rényi divergences of the discrete Gaussian are below the continuous ones at every
/// order without such an argument: Canonne, Kamath, Steinke 2020, theorem 14.)
///
/// # How fine the grid is
/// A power of two, the coarsest for which rounding takes at most 1/256 of the clipping norm (0.2 % at
/// 100,000 coordinates) and the above distance stays below 2^-50 a release. The noise then has a
/// deviation of a few thousand grid units, and a draw costs two look-ups.
#[derive(Debug, Clone)]
pub struct NoisyGradientSum {
    clipped: ClippedGradientSum,
    noise_multiplier: f64,
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
        if !(0.01..=400.0).contains(&noise_multiplier) {
            let (field, range) = ("noise_multiplier", "between 0.01 and 400");
            return Err(MechanismError::OutOfRange { field, value: noise_multiplier, range });
        }
        let norm = clipping_norm.value();
        let is_fine = |units: f64| {
            continuous_distance(noise_multiplier * units, dimension) <= CONTINUOUS_DISTANCE_MAX
                && ClippedGradientSum::rounding_slack(units, dimension) <= ROUNDING_SLACK_MAX
        };
        // A power of two: dividing by it and multiplying with it is exact.
        let coarsest = norm.log2().floor();
        let step = (0..40)
            .map(|halvings| (coarsest - f64::from(halvings)).exp2())
            .find(|step| is_fine(norm / step))
            .unwrap_or(norm);
        let clipped = ClippedGradientSum::new(clipping_norm, step, dimension)?;
        // The factor absorbs the rounding of the f64 operations: up, never down.
        let sigma = (noise_multiplier * (norm / step)).hypot((1.0_f64 / 12.0).sqrt());
        let gaussian = DiscreteGaussian::new(sigma * (1.0 + 8.0 * f64::EPSILON))?;
        Ok(Self { clipped, noise_multiplier, gaussian })
    }

    /// The norm that the float per-example clip must use: slightly below the clipping norm.
    #[must_use]
    pub const fn float_clipping_norm(&self) -> f64 {
        self.clipped.float_clipping_norm()
    }

    /// The L2 bound that the accounted noise multiplier refers to, in model units.
    #[must_use]
    pub const fn clipping_norm(&self) -> ClippingNorm {
        self.clipped.clipping_norm()
    }

    /// Noise deviation / clipping norm.
    #[must_use]
    pub const fn noise_multiplier(&self) -> f64 {
        self.noise_multiplier
    }

    /// Number of coordinates.
    #[must_use]
    pub const fn dimension(&self) -> usize {
        self.clipped.dimension()
    }

    /// Model units per grid unit.
    pub(super) const fn step(&self) -> f64 {
        self.clipped.step()
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
        PrivacyEvent::LatticeGaussian {
            sampling_rate,
            noise_multiplier: self.noise_multiplier,
            sigma_share: self.gaussian.sigma(),
            clients: 1,
            dimension: self.dimension() as u64,
            steps: 1,
        }
    }

    /// The statistical distance between one release and the accounted mechanism, at most: an
    /// amount of δ a release, far below what any budget resolves.
    #[must_use]
    pub fn statistical_distance(&self) -> f64 {
        let dimension = self.dimension();
        dimension as f64 * DiscreteGaussian::STATISTICAL_DISTANCE
            + continuous_distance(self.gaussian.sigma(), dimension)
            + self.clipped.statistical_distance()
    }

    /// The largest micro-batch size with which a batch of so many examples is accepted; 0 if none.
    #[must_use]
    pub const fn micro_batch_max(examples: usize) -> usize {
        ClippedGradientSum::micro_batch_max(examples)
    }

    /// Starts the sum of one batch; a batch without any example is released as it is.
    #[must_use]
    pub fn begin(&self) -> GradientSum {
        self.clipped.begin()
    }

    /// The same, in memory that is no longer needed: that of an earlier release.
    #[must_use]
    pub fn begin_in(&self, memory: Vec<f32>) -> GradientSum {
        self.clipped.begin_in(memory)
    }

    /// Rounds the batch sum to the grid, adds the noise, and returns it in model units.
    ///
    /// - `sum`: of gradients clipped to [`float_clipping_norm`](Self::float_clipping_norm)
    /// - returns: shape `[dimension]`, model units; not divided by any batch size
    ///
    /// # Errors
    /// [`MechanismError::NotClipped`] or [`MechanismError::Clip`] if a coordinate is beyond what
    /// clipped gradients can sum to; [`MechanismError::Dimension`] if the sum belongs to another
    /// mechanism; [`MechanismError::BatchTooLarge`]. Nothing is released then.
    pub fn release(
        &self,
        sum: GradientSum,
        noise: &mut impl NoiseSource,
    ) -> Result<Vec<f32>, MechanismError> {
        let mut values = self.clipped.checked(sum)?;
        let operation = RoundAndAdd { step: self.clipped.step() as f32 };
        self.gaussian.round_and_add(noise, &mut values, &operation);
        Ok(values)
    }

    /// Releases the sum into a step of gradient descent: adds `scale` times what
    /// [`release`](Self::release) returns to the parameters, in one pass.
    ///
    /// - `noise`: every [`StepPart`] gets a fork of it, so what comes out does not depend on `run`
    /// - `parameters`: shape `[dimension]`; of no use after an error
    /// - `run`: runs every part, in any order, on any threads
    /// - returns: memory for [`begin_in`](Self::begin_in)
    ///
    /// # Errors
    /// As for [`release`](Self::release).
    ///
    /// # Panics
    /// If a part was not run.
    pub fn release_into<N: NoiseSource>(
        &self,
        sum: GradientSum,
        noise: &mut N,
        parameters: &mut [f32],
        scale: f32,
        run: impl FnOnce(&mut [StepPart<'_, N>]),
    ) -> Result<Vec<f32>, MechanismError> {
        let (length, dimension) = (parameters.len(), self.dimension());
        if length != dimension {
            return Err(MechanismError::Dimension { length, dimension });
        }
        let (sum, reach) = self.clipped.finished(sum)?;
        let part = |(parameters, sum)| StepPart {
            gaussian: &self.gaussian,
            noise: noise.fork(),
            parameters,
            descent: Descend {
                rounding: RoundAndAdd { step: self.clipped.step() as f32 },
                sum,
                bound: reach.value,
                scale,
            },
            within: None,
        };
        let stretches = parameters.chunks_mut(PART).zip(sum.chunks(PART));
        let mut parts: Vec<StepPart<'_, N>> = stretches.map(part).collect();
        run(&mut parts);
        let within = parts.iter().all(|part| part.within.expect("every part is run"));
        drop(parts);
        if !within {
            self.clipped.check(&sum, reach)?;
        }
        Ok(sum)
    }

    /// The sum in grid units, without any noise.
    ///
    /// # Errors
    /// As for [`release`](Self::release).
    pub(super) fn on_grid(
        &self,
        sum: GradientSum,
        noise: &mut impl NoiseSource,
    ) -> Result<Vec<i64>, MechanismError> {
        self.clipped.quantize(sum, noise)
    }
}

/// A stretch of a step of gradient descent, with noise from a stream of its own.
#[must_use = "a part that is not run has no noise"]
pub struct StepPart<'a, N> {
    gaussian: &'a DiscreteGaussian,
    noise: N,
    parameters: &'a mut [f32],
    descent: Descend<'a>,
    /// Whether the sum is within its bound, once it is known.
    within: Option<bool>,
}

impl<N: NoiseSource> StepPart<'_, N> {
    /// Moves the part's parameters, once.
    pub fn run(&mut self) {
        if self.within.is_none() {
            let Self { gaussian, noise, parameters, descent, .. } = self;
            self.within = Some(gaussian.descend(noise, parameters, descent));
        }
    }
}

/// The statistical distance between discrete Gaussian noise of so many grid units and a rounded
/// continuous one, at most.
fn continuous_distance(sigma: f64, dimension: usize) -> f64 {
    (dimension as f64).sqrt() * 1e-3 * sigma.powi(-4)
}

#[cfg(test)]
mod tests {
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
    fn a_release_is_the_sum_plus_noise_on_the_grid() {
        let mechanism = mechanism(40_000);
        let mut noise = SeededNoise::from_seed([5; 32]);
        let mut sum = mechanism.begin();
        sum.add(&vec![0.3; 40_000], 100).expect("finite");
        let released = mechanism.release(sum, &mut noise).expect("in bounds");
        let mean = released.iter().map(|&value| f64::from(value)).sum::<f64>() / 40_000.0;
        assert!((mean - 0.3).abs() < 5.0 * 1.1 * 0.7 / 200.0, "{mean}");
        let step = mechanism.clipped.step();
        assert!(released.iter().all(|&value| f64::from(value) % step == 0.0));
    }

    fn in_turn(parts: &mut [StepPart<'_, SeededNoise>]) {
        parts.iter_mut().for_each(StepPart::run);
    }

    #[test]
    fn the_order_of_parts_does_not_matter_and_each_has_noise_of_its_own() {
        let mechanism = mechanism(3 * PART + 5);
        let step = |run: fn(&mut [StepPart<'_, SeededNoise>])| {
            let mut noise = SeededNoise::from_seed([6; 32]);
            let mut parameters = vec![0.0; mechanism.dimension()];
            mechanism
                .release_into(mechanism.begin(), &mut noise, &mut parameters, 1.0, run)
                .expect("nothing to refuse");
            parameters
        };
        let moved = step(in_turn);
        let backwards = step(|parts| {
            assert_eq!(parts.len(), 4);
            parts.iter_mut().rev().for_each(StepPart::run);
            // Once is enough.
            parts[0].run();
        });
        assert_eq!(moved, backwards);
        assert_ne!(moved[..PART], moved[PART..2 * PART]);
        let square = moved.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
        let (ratio, count) = (square / (1.1 * 0.7f64).powi(2), moved.len() as f64);
        assert!((ratio / count - 1.0).abs() < 5.0 * (2.0 / count).sqrt(), "{ratio} of {count}");
    }

    #[test]
    #[should_panic(expected = "every part is run")]
    fn a_part_without_noise_is_never_overlooked() {
        let mechanism = mechanism(PART + 1);
        let mut parameters = vec![0.0; PART + 1];
        let mut noise = SeededNoise::from_seed([6; 32]);
        let forgetful = |parts: &mut [StepPart<'_, SeededNoise>]| parts[0].run();
        let sum = mechanism.begin();
        drop(mechanism.release_into(sum, &mut noise, &mut parameters, 1.0, forgetful));
    }

    #[test]
    fn a_release_into_a_step_is_the_release_then_the_step() {
        for dimension in [1, 31, 32, 1000, 20_001] {
            let mechanism = mechanism(dimension);
            let values: Vec<f32> = (0..dimension).map(|i| (i as f32 * 0.7).sin() * 0.6).collect();
            let sum = || {
                let mut sum = mechanism.begin_in(vec![9.0; 7]);
                sum.add(&values, 2).expect("finite");
                sum
            };
            // One part: its stream is the first fork.
            let mut noise = SeededNoise::from_seed([6; 32]).fork();
            let released = mechanism.release(sum(), &mut noise).expect("in bounds");
            let mut parameters: Vec<f32> = (0..dimension).map(|i| i as f32 * 1e-3).collect();
            let expected: Vec<f32> =
                parameters.iter().zip(&released).map(|(p, r)| p + -0.25 * r).collect();
            let mut noise = SeededNoise::from_seed([6; 32]);
            mechanism
                .release_into(sum(), &mut noise, &mut parameters, -0.25, in_turn)
                .expect("in bounds");
            // Up to a fused multiplication and addition.
            for (found, expected) in parameters.iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1.0));
            }
        }
        let mechanism = mechanism(40);
        let mut noise = SeededNoise::from_seed([6; 32]);
        for (position, value) in [(3, 0.9), (39, -0.9), (39, f32::NAN)] {
            let mut sum = mechanism.begin();
            sum.add_in_place(1, |memory| {
                memory[position] = value;
                Ok::<_, MechanismError>(())
            })
            .expect("small");
            let error = mechanism.release_into(sum, &mut noise, &mut [0.0; 40], 1.0, in_turn);
            let error = error.expect_err("out of bounds");
            match error {
                MechanismError::NotClipped { index, .. } => assert_eq!(index, position),
                MechanismError::Clip(_) => assert!(value.is_nan()),
                other => panic!("{other}"),
            }
        }
        let sum = mechanism.begin();
        let error = mechanism.release_into(sum, &mut noise, &mut [0.0; 41], 1.0, in_turn);
        assert!(matches!(error, Err(MechanismError::Dimension { length: 41, dimension: 40 })));
    }

    /// Random rounding: neither up nor down is preferred, and the whole value decides.
    #[test]
    fn rounding_between_two_grid_points_follows_the_fraction() {
        let gaussian = DiscreteGaussian::new(1000.0).expect("in range");
        let operation = RoundAndAdd { step: 0.25 };
        for value in [0.1_f32, -0.1, 3.2, -1e6 + 0.0625] {
            let mut values = vec![value; 200_000];
            gaussian.round_and_add(&mut SeededNoise::from_seed([8; 32]), &mut values, &operation);
            let mut draws = vec![0; 200_000];
            gaussian.add_to(&mut SeededNoise::from_seed([8; 32]), &mut draws);
            let mut up = 0.0;
            for (rounded, draw) in values.iter().zip(draws) {
                let units = f64::from(*rounded) / 0.25 - draw as f64;
                let above = units - (f64::from(value) / 0.25).floor();
                assert!(above == 0.0 || above == 1.0, "{value}: {above}");
                up += above;
            }
            let fraction = (f64::from(value) / 0.25).rem_euclid(1.0);
            assert!((up / 200_000.0 - fraction).abs() < 5.0 * 0.5 / 447.0, "{value}: {up}");
        }
    }

    #[test]
    fn the_slack_and_the_distance_are_small_at_every_size() {
        for noise_multiplier in [0.01, 0.5, 1.0, 8.0, 400.0] {
            for dimension in [1, 100, 100_000, 1 << 26, 1 << 32] {
                let norm = ClippingNorm::new(0.7).expect("positive");
                let mechanism =
                    NoisyGradientSum::new(norm, noise_multiplier, dimension).expect("valid");
                let slack = 1.0 - mechanism.float_clipping_norm() / 0.7;
                assert!((0.016..0.0215).contains(&slack), "{noise_multiplier} {dimension} {slack}");
                let distance = mechanism.statistical_distance();
                assert!(distance < 2.0_f64.powi(-49), "{noise_multiplier} {dimension}: {distance}");
            }
        }
    }

    #[test]
    fn nothing_is_released_of_bad_input() {
        let mechanism = mechanism(2);
        let mut noise = SeededNoise::from_seed([3; 32]);
        let mut sum = mechanism.begin();
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
}
