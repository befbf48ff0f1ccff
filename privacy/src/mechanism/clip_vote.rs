//! One tenant's vote on the clipping norm, beside its update on the lattice.

use super::{MechanismError, PrivacyEvent, noisy_update::ROUNDING_DISTANCE_MAX};
use crate::{
    clip::ClippingNorm,
    lattice::Lattice,
    noise::{DiscreteGaussian, NoiseSource},
};

/// The Gaussian mechanism on one vote: +1 if the update was within the clipping norm, -1 if not.
///
/// The vote is one more coordinate of the lattice vector. A vote of 1 is as many grid units as keep
/// both it and its noise within what every other coordinate may reach, so the plan of the lattice
/// for one coordinate more covers it.
///
/// - Neighbouring relation: add or remove the tenant (its vote is ±1 or 0).
/// - Sensitivity: 1 vote.
/// - Cost: [`event`](Self::event), beside that of the update.
/// - Randomness: the [`NoiseSource`] given to [`cast`](Self::cast).
///
/// Source: Andrew, Thakkar, McMahan, Ramaswamy 2021, arXiv:1905.03871, algorithm 1, whose bits in
/// {0, 1} are centred here.
#[derive(Debug, Clone)]
pub struct ClipVote {
    units: i64,
    noise_multiplier: f64,
    gaussian: DiscreteGaussian,
}

impl ClipVote {
    /// Sizes the vote on the lattice of the update; voters and counter get the same.
    ///
    /// - `update_noise_multiplier`: noise deviation of the update / clipping norm
    /// - `noise_multiplier`: noise deviation of a vote, in votes
    ///
    /// # Errors
    /// [`MechanismError::OutOfRange`] names the number that cannot work,
    /// [`MechanismError::TooCoarse`] a lattice too coarse for the noise to be accounted as
    /// continuous.
    pub fn new(
        lattice: Lattice,
        clipping_norm: ClippingNorm,
        update_noise_multiplier: f64,
        noise_multiplier: f64,
    ) -> Result<Self, MechanismError> {
        for (field, value) in [
            ("noise_multiplier", update_noise_multiplier),
            ("count_noise_multiplier", noise_multiplier),
        ] {
            if !(value.is_finite() && value > 0.0) {
                let range = "a positive finite number";
                return Err(MechanismError::OutOfRange { field, value, range });
            }
        }
        let share = (update_noise_multiplier / noise_multiplier).min(1.0);
        let units = (clipping_norm.value() / lattice.step() * share).floor();
        let sigma = units * noise_multiplier * (1.0 + 4.0 * f64::EPSILON);
        let sigma_min = (1e-3 / ROUNDING_DISTANCE_MAX).powf(0.25);
        if !(1.0..=(1u64 << 52) as f64).contains(&units) || sigma < sigma_min {
            return Err(MechanismError::TooCoarse { sigma, sigma_min });
        }
        let gaussian = DiscreteGaussian::new(sigma)?;
        Ok(Self { units: units as i64, noise_multiplier, gaussian })
    }

    /// What one vote costs; the grid and the sampler's distance are in it.
    #[must_use]
    pub const fn event(&self) -> PrivacyEvent {
        PrivacyEvent::LatticeGaussian {
            sampling_rate: 1.0,
            noise_multiplier: self.noise_multiplier,
            sigma_share: self.gaussian.sigma(),
            clients: 1,
            dimension: 1,
            steps: 1,
        }
    }

    /// The coordinate that may leave, in grid units.
    pub fn cast(&self, unclipped: bool, noise: &mut impl NoiseSource) -> i64 {
        let mut grid = [if unclipped { self.units } else { -self.units }];
        self.gaussian.add_to(noise, &mut grid);
        grid[0]
    }

    /// The noisy number of votes for minus votes against, from the coordinate of the sum.
    ///
    /// - `sum`: in model units, as [`Lattice::dequantize_sum`] gives it
    #[must_use]
    pub fn count(&self, lattice: Lattice, sum: f64) -> f64 {
        sum / lattice.step() / self.units as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{lattice::ModularSum, noise::SeededNoise};

    #[test]
    fn votes_add_up_on_the_lattice_with_the_accounted_noise() {
        let lattice = Lattice::new(1e-4, 24).expect("valid");
        let norm = ClippingNorm::new(0.5).expect("positive");
        for (update, count) in [(1.0, 4.0), (4.0, 1.0)] {
            let vote = ClipVote::new(lattice, norm, update, count).expect("fine enough");
            let mut noise = SeededNoise::from_seed([3; 32]);
            let (mut squares, tallies) = (0.0, 2_000);
            for _ in 0..tallies {
                let mut sum = ModularSum::new(lattice, 1);
                for voter in 0..5 {
                    let cast = vote.cast(voter > 0, &mut noise);
                    sum.add_packed(&lattice.pack(&[cast])).expect("well formed");
                }
                let noisy = vote.count(lattice, lattice.dequantize_sum(sum.values())[0]);
                squares += (noisy - 3.0).powi(2);
            }
            // Four to one, and five shares of noise; five standard errors of a variance.
            let variance = squares / f64::from(tallies);
            let expected = 5.0 * count * count;
            let error = 5.0 * expected * (2.0 / f64::from(tallies)).sqrt();
            assert!((variance - expected).abs() < error, "{variance} is not {expected}");
        }
    }

    #[test]
    fn coarse_lattices_and_bad_numbers_are_refused() {
        let norm = ClippingNorm::new(1.0).expect("positive");
        let coarse = Lattice::new(0.5, 8).expect("valid");
        assert!(matches!(
            ClipVote::new(coarse, norm, 1.0, 1.0),
            Err(MechanismError::TooCoarse { .. })
        ));
        let fine = Lattice::new(1e-5, 24).expect("valid");
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(ClipVote::new(fine, norm, 1.0, bad).is_err());
            assert!(ClipVote::new(fine, norm, bad, 1.0).is_err());
        }
    }
}
