//! Noisy statistics of local data: count, mean, histogram, quantile.

use super::{MechanismError, PrivacyEvent};
use crate::noise::{ExactDiscreteGaussian, NoiseSource};

/// Grid units of one record's largest contribution: noise on such a grid is as good as continuous.
const GRID: f64 = (1u64 << 20) as f64;
/// Records in one statistic, at most: their sum on the grid fits 53 bits.
const RECORDS_MAX: usize = 1 << 32;

/// Differentially private statistics, so that evaluation leaves the site only with noise.
///
/// Every method is one release of the same noise multiplier and costs [`event`](Self::event); debit
/// it before the result is used. Values are clamped to public bounds, brought to an integer grid, and get
/// discrete Gaussian noise.
///
/// - Neighbouring relation: add or remove one record.
/// - Sensitivity: 1 in L2, in units of one record's largest contribution.
#[derive(Debug, Clone)]
pub struct NoisyStatistics {
    noise_multiplier: f64,
    gaussian: ExactDiscreteGaussian,
}

/// A noisy sum and count of values within public bounds, to be added up over several releases.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoisySum {
    /// Sum of the values' distances from the middle of the bounds, in half-widths of the bounds.
    pub centred_sum: f64,
    /// Number of values; may come out negative.
    pub count: f64,
}

/// A noisy mean and what it was computed from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoisyMean {
    /// Within the public bounds.
    pub mean: f64,
    /// The noisy number of records.
    pub count: f64,
}

impl NoisyStatistics {
    /// - `noise_multiplier`: noise deviation over sensitivity, in [0.01, 900]
    ///
    /// # Errors
    /// [`MechanismError::OutOfRange`], NaN included.
    pub fn new(noise_multiplier: f64) -> Result<Self, MechanismError> {
        if !(0.01..=900.0).contains(&noise_multiplier) {
            let (field, range) = ("noise_multiplier", "between 0.01 and 900");
            return Err(MechanismError::OutOfRange { field, value: noise_multiplier, range });
        }
        let gaussian = ExactDiscreteGaussian::new(noise_multiplier * GRID)?;
        Ok(Self { noise_multiplier, gaussian })
    }

    /// What one call of a method costs: what separates noise on a grid from the continuous Gaussian,
    /// and a sampler's distance, are in it. (The sampler here is exact, so that is more than is due.)
    ///
    /// - `numbers`: that the call releases: 2 for a sum or a mean, a number a class for histogram and
    ///   quantile
    #[must_use]
    pub const fn event(&self, numbers: u64) -> PrivacyEvent {
        PrivacyEvent::LatticeGaussian {
            sampling_rate: 1.0,
            noise_multiplier: self.noise_multiplier,
            sigma_share: self.gaussian.sigma(),
            clients: 1,
            dimension: numbers,
            steps: 1,
        }
    }

    /// The number of records; may come out negative.
    pub fn count(&self, records: u32, noise: &mut impl NoiseSource) -> f64 {
        self.noisy(f64::from(records), noise)
    }

    /// The number of records in each of a fixed list of classes, every record in one class.
    pub fn histogram(&self, counts: &[u32], noise: &mut impl NoiseSource) -> Vec<f64> {
        counts.iter().map(|&count| self.count(count, noise)).collect()
    }

    /// The mean of values clamped to public bounds.
    ///
    /// Their [`sum`](Self::sum) and its count; the ratio is post-processing.
    ///
    /// # Errors
    /// [`MechanismError::OutOfRange`] for a value that is NaN, too many values, or bounds without
    /// extent. Nothing is released then.
    pub fn mean(
        &self,
        values: &[f64],
        bounds: (f64, f64),
        noise: &mut impl NoiseSource,
    ) -> Result<NoisyMean, MechanismError> {
        let NoisySum { centred_sum, count } = self.sum(values, bounds, noise)?;
        let (low, high) = bounds;
        let (middle, half) = (0.5 * (low + high), 0.5 * (high - low));
        let ratio = centred_sum / count.max(1.0);
        Ok(NoisyMean { mean: middle + half * ratio.clamp(-1.0, 1.0), count })
    }

    /// The sum and the number of values clamped to public bounds.
    ///
    /// Releases the pair (sum of values scaled to [-1, 1], count), each divided by sqrt(2) so that
    /// one record moves the pair by at most 1. Of what is returned each has noise of
    /// [`sum_deviation`](Self::sum_deviation).
    ///
    /// # Errors
    /// As for [`mean`](Self::mean).
    pub fn sum(
        &self,
        values: &[f64],
        bounds: (f64, f64),
        noise: &mut impl NoiseSource,
    ) -> Result<NoisySum, MechanismError> {
        check_values(values)?;
        let (low, high) = bounds;
        let (middle, half) = (0.5 * (low + high), 0.5 * (high - low));
        if !(half.is_finite() && half > 0.0) {
            let range = "a finite, positive extent";
            return Err(MechanismError::OutOfRange { field: "bounds", value: 2.0 * half, range });
        }
        // Rounded towards zero, record by record: no rounding can exceed the sensitivity.
        let share = std::f64::consts::FRAC_1_SQRT_2 * GRID;
        let on_grid = |value: &f64| (((value - middle) / half).clamp(-1.0, 1.0) * share).trunc();
        let sum = self.noisy(values.iter().map(on_grid).sum::<f64>() / GRID, noise);
        let count = self.noisy(values.len() as f64 * share.trunc() / GRID, noise);
        let root = std::f64::consts::SQRT_2;
        Ok(NoisySum { centred_sum: sum * root, count: count * root })
    }

    /// Standard deviation of the noise in each number of a [`NoisySum`].
    #[must_use]
    pub fn sum_deviation(noise_multiplier: f64) -> f64 {
        std::f64::consts::SQRT_2 * noise_multiplier
    }

    /// A quantile of values, from a noisy histogram over public bins.
    ///
    /// - `edges`: ascending borders of the bins; values beyond them count in the outer bins
    /// - `quantile`: in [0, 1]
    /// - returns: between the first and last edge, linear within a bin
    ///
    /// # Errors
    /// [`MechanismError::OutOfRange`] for NaN, too many values, or edges that do not ascend.
    /// Nothing is released then.
    pub fn quantile(
        &self,
        values: &[f64],
        edges: &[f64],
        quantile: f64,
        noise: &mut impl NoiseSource,
    ) -> Result<f64, MechanismError> {
        check_values(values)?;
        let ascending = edges.len() >= 2
            && edges.iter().all(|edge| edge.is_finite())
            && edges.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending {
            let (value, range) = (edges.len() as f64, "two or more ascending finite numbers");
            return Err(MechanismError::OutOfRange { field: "edges", value, range });
        }
        if !(0.0..=1.0).contains(&quantile) {
            let range = "between 0 and 1";
            return Err(MechanismError::OutOfRange { field: "quantile", value: quantile, range });
        }
        let mut counts = vec![0u32; edges.len() - 1];
        for value in values {
            let bin = edges[1..edges.len() - 1].iter().filter(|&edge| value >= edge).count();
            counts[bin] = counts[bin].saturating_add(1);
        }
        let noisy: Vec<f64> =
            self.histogram(&counts, noise).iter().map(|count| count.max(0.0)).collect();
        let total: f64 = noisy.iter().sum();
        let mut rest = quantile * total;
        for (bin, &count) in noisy.iter().enumerate() {
            if rest <= count && count > 0.0 {
                return Ok(edges[bin] + (edges[bin + 1] - edges[bin]) * rest / count);
            }
            rest -= count;
        }
        Ok(edges[edges.len() - 1])
    }

    /// A value plus noise, both on the grid.
    fn noisy(&self, value: f64, noise: &mut impl NoiseSource) -> f64 {
        let units = (value * GRID).round() as i64;
        (units + self.gaussian.sample(noise)) as f64 / GRID
    }
}

fn check_values(values: &[f64]) -> Result<(), MechanismError> {
    if values.len() > RECORDS_MAX {
        let (value, range) = (values.len() as f64, "at most 2^32");
        return Err(MechanismError::OutOfRange { field: "values", value, range });
    }
    match values.iter().find(|value| value.is_nan()) {
        Some(&value) => {
            let range = "a number";
            Err(MechanismError::OutOfRange { field: "value", value, range })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::SeededNoise;

    fn statistics() -> (NoisyStatistics, SeededNoise) {
        (NoisyStatistics::new(2.0).expect("valid"), SeededNoise::from_seed([8; 32]))
    }

    #[test]
    fn results_are_near_the_truth_and_never_exact() {
        let (statistics, mut noise) = statistics();
        let values: Vec<f64> = (0..10_000).map(|i| f64::from(i) / 10_000.0).collect();
        let count = statistics.count(10_000, &mut noise);
        assert!((count - 10_000.0).abs() < 12.0 && count != 10_000.0);
        let mean = statistics.mean(&values, (0.0, 2.0), &mut noise).expect("valid");
        assert!((mean.mean - 0.5).abs() < 0.005 && (mean.count - 1e4).abs() < 20.0);
        let edges: Vec<f64> = (0..=100).map(|i| f64::from(i) / 100.0).collect();
        let median = statistics.quantile(&values, &edges, 0.5, &mut noise).expect("valid");
        assert!((median - 0.5).abs() < 0.02);
        let histogram = statistics.histogram(&[0, 500, 20], &mut noise);
        for (noisy, truth) in histogram.iter().zip([0.0, 500.0, 20.0]) {
            assert!((noisy - truth).abs() < 12.0);
        }
    }

    #[test]
    fn values_beyond_the_bounds_count_as_the_bound() {
        let (statistics, mut noise) = statistics();
        let values = vec![f64::INFINITY; 10_000];
        let mean = statistics.mean(&values, (-1.0, 1.0), &mut noise).expect("valid");
        assert!(mean.mean > 0.99);
    }

    #[test]
    fn the_event_costs_what_the_continuous_gaussian_costs_and_barely_more() {
        use crate::accountant::{Delta, epsilon};
        let delta = Delta::new(1e-6).expect("valid");
        for noise_multiplier in [0.5, 2.0, 900.0] {
            let statistics = NoisyStatistics::new(noise_multiplier).expect("valid");
            let cost = |event| epsilon(&[event], delta).expect("valid");
            let least = cost(PrivacyEvent::Gaussian { noise_multiplier, count: 1 });
            for numbers in [1, 2, 1000] {
                let ours = cost(statistics.event(numbers));
                assert!(ours > least - 1e-9 && ours < least + 1e-5, "{numbers}: {ours} {least}");
            }
        }
    }

    #[test]
    fn bad_input_releases_nothing() {
        let (statistics, mut noise) = statistics();
        assert!(statistics.mean(&[f64::NAN], (0.0, 1.0), &mut noise).is_err());
        assert!(statistics.mean(&[0.0], (1.0, 1.0), &mut noise).is_err());
        assert!(statistics.quantile(&[0.0], &[1.0, 0.0], 0.5, &mut noise).is_err());
        assert!(statistics.quantile(&[0.0], &[0.0, 1.0], f64::NAN, &mut noise).is_err());
        for noise_multiplier in [0.0, -1.0, f64::NAN, 1e9] {
            assert!(NoisyStatistics::new(noise_multiplier).is_err());
        }
        // Empty data is no error: its emptiness is private too.
        assert!(statistics.mean(&[], (0.0, 1.0), &mut noise).is_ok());
        assert!(statistics.quantile(&[], &[0.0, 1.0], 0.5, &mut noise).is_ok());
    }
}
