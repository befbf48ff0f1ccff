//! Correlated noise: DP-FTRL by banded matrix factorisation, for agents that cannot sample.

mod matrix;
mod state;

use std::collections::VecDeque;

use zeroize::Zeroizing;

pub use self::matrix::{BandedMatrix, ParticipationSchedule};
use super::{GradientSum, MechanismError, NoisyGradientSum, PrivacyEvent};
use crate::{
    clip::ClippingNorm,
    noise::{DiscreteGaussian, NoiseSource, SIGMA_MAX},
};

/// A run of noisy gradient sums whose noises are correlated, so that they cancel in prefix sums.
///
/// With C the lower-triangular [`BandedMatrix`] and G the integer sums of all steps, step t releases
/// the integers `y_t = Σ_j c_j G_(t-j) + z_t` with fresh discrete Gaussian noise `z_t`. What the
/// optimizer gets is the solution ĝ of `C ĝ = y`: post-processing of what is private already, so
/// its floating point needs no argument. `ĝ = G + C^-1 z`: the noise of one step is larger than
/// `z_t / c_0`, that of a sum of steps much smaller.
///
/// - Neighbouring relation: one record contributes or not (a zero gradient in its place), with the
///   steps of all other records unchanged. So the groups must not depend on how many records there
///   are before a record; see [`ParticipationSchedule`].
/// - Sensitivity: each participation moves one `G_t` by an integer vector of norm at most
///   `clipping_norm / step`, by the argument of [`NoisyGradientSum`]; the run by
///   [`BandedMatrix::sensitivity`] times that. Later gradients may depend on earlier releases in
///   any way: for Gaussian noise the adaptive stream costs what the fixed one costs (Denisov,
///   McMahan, Rush, Smith, Thakurta 2022, arXiv:2202.08312, theorem 2.1).
/// - Randomness: the [`NoiseSource`] given to [`release`](Self::release).
///
/// The value holds raw sums of the last steps. Those are *not* private: they must stay in the
/// process, or in a file as secret as the records ([`to_secret_bytes`](Self::to_secret_bytes)).
/// Resuming an older state and releasing again spends the run's ε again.
///
/// Sources: Kalinin, Lampert 2024, arXiv:2405.13763 (banded square root); Choquette-Choo et al.
/// 2023, arXiv:2306.08153 (banded matrices and participation).
#[derive(Debug)]
pub struct CorrelatedGradientSum {
    sums: NoisyGradientSum,
    matrix: BandedMatrix,
    schedule: ParticipationSchedule,
    noise: WideGaussian,
    /// Steps released so far.
    step: u64,
    /// G of the last steps, newest first, in grid units.
    raw: VecDeque<Zeroizing<Vec<i64>>>,
    /// ĝ of the last steps, newest first, in grid units.
    solved: VecDeque<Vec<f64>>,
}

impl CorrelatedGradientSum {
    /// Plans a run.
    ///
    /// - `clipping_norm`: L2 bound of one example's gradient, model units
    /// - `noise_multiplier`: deviation of `z_t / c_0` over clipping norm, in [0.01, 400]
    /// - `dimension`: number of parameters
    ///
    /// # Errors
    /// [`MechanismError::OutOfRange`] names the parameter that cannot work.
    pub fn new(
        clipping_norm: ClippingNorm,
        noise_multiplier: f64,
        dimension: usize,
        matrix: BandedMatrix,
        schedule: ParticipationSchedule,
    ) -> Result<Self, MechanismError> {
        let sums = NoisyGradientSum::new(clipping_norm, noise_multiplier, dimension)?;
        let noise = WideGaussian::new(sums.sigma() * f64::from(BandedMatrix::SCALE))?;
        let (raw, solved) = (VecDeque::new(), VecDeque::new());
        Ok(Self { sums, matrix, schedule, noise, step: 0, raw, solved })
    }

    /// What the whole run costs, however many of its steps are released.
    #[must_use]
    pub fn event(&self) -> PrivacyEvent {
        PrivacyEvent::BandedMatrix {
            noise_multiplier: self.sums.noise_multiplier(),
            sigma: self.noise.sigma,
            dimension: self.sums.dimension() as u64,
            bands: self.matrix.coefficients().len() as u32,
            steps: self.schedule.steps(),
            separation: self.schedule.separation(),
            participations: self.schedule.participations(),
            runs: 1,
        }
    }

    /// The noise multiplier of the one Gaussian release that costs as much as the whole run.
    #[must_use]
    pub fn run_multiplier(&self) -> f64 {
        self.sums.noise_multiplier() / self.matrix.sensitivity(&self.schedule)
    }

    /// The clipping norm, the slack and the dimension, as for independent noise.
    #[must_use]
    pub const fn sums(&self) -> &NoisyGradientSum {
        &self.sums
    }

    /// When a unit may take part.
    #[must_use]
    pub const fn schedule(&self) -> &ParticipationSchedule {
        &self.schedule
    }

    /// Steps released so far: the next one is of this number, counted from 0.
    #[must_use]
    pub const fn step(&self) -> u64 {
        self.step
    }

    /// Starts the sum of the next step's group.
    ///
    /// # Errors
    /// [`MechanismError::RunFinished`] after the last step.
    pub fn begin(&self) -> Result<GradientSum, MechanismError> {
        let steps = self.schedule.steps();
        if self.step < steps {
            Ok(self.sums.begin())
        } else {
            Err(MechanismError::RunFinished { steps })
        }
    }

    /// Rounds the sum to the grid, adds its correlated noise, and returns it in model units.
    ///
    /// - `sum`: of gradients clipped to [`NoisyGradientSum::float_clipping_norm`], of the group of
    ///   this step
    /// - returns: shape `[dimension]`
    ///
    /// # Errors
    /// As for [`begin`](Self::begin) and [`NoisyGradientSum::release`]; nothing is released and no
    /// step is taken then.
    pub fn release(
        &mut self,
        sum: GradientSum,
        noise: &mut impl NoiseSource,
    ) -> Result<Vec<f32>, MechanismError> {
        let steps = self.schedule.steps();
        if self.step >= steps {
            return Err(MechanismError::RunFinished { steps });
        }
        self.raw.push_front(Zeroizing::new(self.sums.on_grid(sum, noise)?));
        let mut released = vec![0i64; self.sums.dimension()];
        for (&coefficient, raw) in self.matrix.coefficients().iter().zip(&self.raw) {
            for (value, units) in released.iter_mut().zip(raw.iter()) {
                *value += i64::from(coefficient) * units;
            }
        }
        self.noise.add_to(noise, &mut released);
        // From here on everything is post-processing.
        let mut solved: Vec<f64> = released.into_iter().map(|units| units as f64).collect();
        let [diagonal, below @ ..] = self.matrix.coefficients() else {
            unreachable!("a matrix has a diagonal");
        };
        for (&coefficient, earlier) in below.iter().zip(&self.solved) {
            for (value, before) in solved.iter_mut().zip(earlier) {
                *value -= f64::from(coefficient) * before;
            }
        }
        let unit = self.sums.step();
        for value in &mut solved {
            *value /= f64::from(*diagonal);
        }
        let result = solved.iter().map(|value| (value * unit) as f32).collect();
        self.solved.push_front(solved);
        self.raw.truncate(below.len());
        self.solved.truncate(below.len());
        self.step += 1;
        Ok(result)
    }
}

/// The discrete Gaussian also beyond the sampler's range: `x_1 + m x_2`, as the sampler itself
/// composes wide draws. With deviations of a billion the sum is exact but for `exp(-10^17)`.
#[derive(Debug)]
struct WideGaussian {
    sigma: f64,
    part: DiscreteGaussian,
    /// m; 0 if one part is enough.
    stride: i64,
}

impl WideGaussian {
    fn new(sigma: f64) -> Result<Self, MechanismError> {
        if sigma <= SIGMA_MAX {
            return Ok(Self { sigma, part: DiscreteGaussian::new(sigma)?, stride: 0 });
        }
        let stride = (sigma / SIGMA_MAX).ceil();
        // The factor rounds up, never down.
        let part = sigma / (1.0 + stride * stride).sqrt() * (1.0 + 4.0 * f64::EPSILON);
        Ok(Self { sigma, part: DiscreteGaussian::new(part)?, stride: stride as i64 })
    }

    fn add_to(&self, noise: &mut impl NoiseSource, values: &mut [i64]) {
        self.part.add_to(noise, values);
        if self.stride == 0 {
            return;
        }
        let mut wide = Zeroizing::new(vec![0i64; values.len()]);
        self.part.add_to(noise, &mut wide);
        for (value, &drawn) in values.iter_mut().zip(wide.iter()) {
            *value += self.stride * drawn;
        }
    }
}

#[cfg(test)]
mod tests;
