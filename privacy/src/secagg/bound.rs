//! How large an honest sum can be.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::lattice::ModularSum;

/// Why a sum cannot come from honest updates alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Implausible {
    /// One coordinate is too large.
    #[error("coordinate {index} is {value} grid units, beyond {bound}")]
    Coordinate {
        /// Which.
        index: usize,
        /// Its value, centred.
        value: i32,
        /// The largest magnitude.
        bound: u32,
    },
    /// The whole is too long.
    #[error("its L2 norm is {norm} grid units, beyond {bound}")]
    Norm {
        /// The norm, rounded up.
        norm: u64,
        /// The largest.
        bound: u64,
    },
}

/// How large the sum of honest updates can be, but for a stated probability.
///
/// `m` updates of norm `C` and independent noise of deviation `s` a coordinate have a sum whose
/// signal is at most `m C`, in norm and in every coordinate. Its noise is sub-Gaussian of variance
/// `v = m s²`: with probability `1 - p` each, no coordinate exceeds `sqrt(2 v ln(2 d / p))`, and
/// the squared norm stays below `v (d + 2 sqrt(d ln(1/p)) + 2 ln(1/p))`.
///
/// The check finds a sum that was blown up. One agent that stays within the bound of all `m`
/// together is not found: with masks on, nobody sees a single update.
///
/// Source: Hsu, Kakade, Zhang 2012, arXiv:1110.2842 (norm of sub-Gaussian vectors).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SumBound {
    /// L2 norm of one update before noise, in grid units.
    pub norm_max: f64,
    /// Deviation of the noise that each update carries, in grid units.
    pub noise_sigma: f64,
    /// The accepted probability of refusing an honest sum, above 0 and below 1.
    pub false_alarm_max: f64,
}

impl SumBound {
    /// Checks a sum of `survivors` updates, taken as centred.
    ///
    /// # Errors
    /// [`Implausible`] with the bound that is exceeded.
    pub fn check(&self, sum: &ModularSum, survivors: u32) -> Result<(), Implausible> {
        let (dimension, updates) = (sum.values().len() as f64, f64::from(survivors));
        // Each of the two bounds may fail with half of the probability.
        let chance = self.false_alarm_max / 2.0;
        let variance = updates * self.noise_sigma * self.noise_sigma;
        let signal = updates * self.norm_max;
        let peak = signal + (2.0 * variance * (2.0 * dimension / chance).ln()).sqrt();
        let odds = chance.recip().ln();
        let length =
            signal + (variance * (dimension + 2.0 * (dimension * odds).sqrt() + 2.0 * odds)).sqrt();

        let unused = 32 - u32::from(sum.lattice().bits());
        let mut squared = 0u128;
        for (index, &value) in sum.values().iter().enumerate() {
            let value = (value << unused).cast_signed() >> unused;
            if f64::from(value.unsigned_abs()) > peak {
                return Err(Implausible::Coordinate { index, value, bound: peak as u32 });
            }
            squared += u128::from(value.unsigned_abs()).pow(2);
        }
        let norm = (squared as f64).sqrt();
        if norm > length {
            return Err(Implausible::Norm { norm: norm.ceil() as u64, bound: length as u64 });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        lattice::Lattice,
        noise::{DiscreteGaussian, SeededNoise},
    };

    fn sum_of(values: &[i64]) -> ModularSum {
        let lattice = Lattice::new(1.0, 24).expect("valid");
        let mut sum = ModularSum::new(lattice, values.len());
        sum.add_packed(&lattice.pack(values)).expect("well formed");
        sum
    }

    #[test]
    fn honest_sums_pass_and_blown_up_ones_are_named() {
        let bound = SumBound { norm_max: 100.0, noise_sigma: 20.0, false_alarm_max: 1e-9 };
        let noise = DiscreteGaussian::new(20.0 * 5f64.sqrt()).expect("in range");
        for seed in 0..50 {
            let mut source = SeededNoise::from_seed([seed; 32]);
            let mut honest: Vec<i64> = (0..1000).map(|_| noise.sample(&mut source)).collect();
            honest[3] += 500;
            assert_eq!(bound.check(&sum_of(&honest), 5), Ok(()));
            honest[7] -= 1200;
            let error = bound.check(&sum_of(&honest), 5).expect_err("one coordinate");
            assert!(matches!(error, Implausible::Coordinate { index: 7, .. }));
        }
        // No coordinate stands out, but all together are too much.
        let error = bound.check(&sum_of(&[100; 1000]), 5).expect_err("the norm");
        assert!(matches!(error, Implausible::Norm { norm: 3163, .. }));
    }

    #[test]
    fn without_noise_the_bound_is_certain() {
        let bound = SumBound { norm_max: 10.0, noise_sigma: 0.0, false_alarm_max: 1e-9 };
        assert_eq!(bound.check(&sum_of(&[30, 0, 0]), 3), Ok(()));
        assert!(bound.check(&sum_of(&[-31, 0, 0]), 3).is_err());
        assert!(bound.check(&sum_of(&[29, 29, 0]), 3).is_err());
        assert_eq!(bound.check(&sum_of(&[]), 3), Ok(()));
    }
}
