//! What the cohorts' noisy metrics say about each base.

use serde::{Deserialize, Serialize};
use tributary_privacy::mechanism::NoisyStatistics;
use tributary_protocol::{
    id::Digest,
    job::{EvaluationSpec, Metric, MetricSum},
};

/// The sums of all releases about one base.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseMetrics {
    /// The version that was evaluated.
    pub version: u64,
    /// Its file.
    pub base: Digest,
    /// How many tenants' releases are added up.
    pub releases: u32,
    /// One sum a metric.
    pub sums: Vec<MetricSum>,
}

/// A metric over all tenants that released it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MetricEstimate {
    /// What was measured.
    pub metric: Metric,
    /// The mean over all units, within the metric's clipping range; `None` where the noise drowns
    /// the count.
    pub value: Option<f64>,
    /// Standard error of the value by the noise alone; the sampling error of finitely many records
    /// comes on top.
    pub standard_error: Option<f64>,
}

impl BaseMetrics {
    /// No release yet.
    #[must_use]
    pub fn new(version: u64, base: Digest, spec: &EvaluationSpec) -> Self {
        let zero = |&metric: &Metric| MetricSum { metric, centred_sum: 0.0, count: 0.0 };
        Self { version, base, releases: 0, sums: spec.metrics.iter().map(zero).collect() }
    }

    /// Adds one tenant's release, which `is_usable` accepted.
    pub fn add(&mut self, release: &[MetricSum]) {
        self.releases += 1;
        for (total, addend) in self.sums.iter_mut().zip(release) {
            total.centred_sum += addend.centred_sum;
            total.count += addend.count;
        }
    }

    /// The means and their standard errors.
    ///
    /// With S and N the noisy sum and count of k releases, each with deviation d, the mean of the
    /// centred values is S / N, and to first order its variance `k d² (1 + (S / N)²) / N²`.
    #[must_use]
    pub fn estimates(&self, spec: &EvaluationSpec) -> Vec<MetricEstimate> {
        let deviation = NoisyStatistics::sum_deviation(spec.noise_multiplier);
        let estimate = |sum: &MetricSum| {
            let (low, high) = spec.bounds(sum.metric);
            let (middle, half) = (0.5 * (low + high), 0.5 * (high - low));
            let noise = deviation * f64::from(self.releases).sqrt();
            // Below two deviations of its noise a count says nothing.
            if sum.count < 2.0 * noise.max(f64::MIN_POSITIVE) {
                return MetricEstimate { metric: sum.metric, value: None, standard_error: None };
            }
            let ratio = (sum.centred_sum / sum.count).clamp(-1.0, 1.0);
            MetricEstimate {
                metric: sum.metric,
                value: Some(middle + half * ratio),
                standard_error: Some(half * noise * (1.0 + ratio * ratio).sqrt() / sum.count),
            }
        };
        self.sums.iter().map(estimate).collect()
    }
}

/// Whether a tenant's release is what the job asks for in a round from this base; an agent whose
/// release is lost sends none.
#[must_use]
pub(super) fn is_usable(
    release: &[MetricSum],
    spec: Option<&EvaluationSpec>,
    base_version: u64,
) -> bool {
    let Some(spec) = spec.filter(|spec| spec.is_due(base_version)) else {
        return release.is_empty();
    };
    // Far beyond any dataset, and far from where sums of tenants would lose precision.
    let sane = |value: f64| value.abs() <= 1e12;
    let metrics = release.iter().map(|sum| sum.metric);
    release.is_empty()
        || metrics.eq(spec.metrics.iter().copied())
            && release.iter().all(|sum| sane(sum.centred_sum) && sane(sum.count))
}

#[cfg(test)]
mod tests {
    use tributary_privacy::noise::SecureNoise;

    use super::*;

    fn spec() -> EvaluationSpec {
        EvaluationSpec {
            every_rounds: 5,
            metrics: vec![Metric::Accuracy, Metric::Loss],
            noise_multiplier: 10.0,
            loss_max: 4.0,
        }
    }

    fn sum(metric: Metric, centred_sum: f64, count: f64) -> MetricSum {
        MetricSum { metric, centred_sum, count }
    }

    #[test]
    fn the_error_that_is_stated_is_the_one_that_is_made() {
        let (spec, statistics) = (spec(), NoisyStatistics::new(10.0).expect("valid"));
        let mut noise = SecureNoise::new().expect("entropy");
        let values: Vec<f64> = (0..400).map(|index| f64::from(u8::from(index % 4 > 0))).collect();
        let (mut squares, mut stated, trials) = (0.0, 0.0, 300);
        for _ in 0..trials {
            let mut metrics = BaseMetrics::new(5, Digest::of(b"base"), &spec);
            for _ in 0..3 {
                let noisy = statistics.sum(&values, (0.0, 1.0), &mut noise).expect("valid");
                metrics.add(&[sum(Metric::Accuracy, noisy.centred_sum, noisy.count)]);
            }
            let estimate = metrics.estimates(&spec)[0];
            squares += (estimate.value.expect("far above the noise") - 0.75).powi(2);
            stated += estimate.standard_error.expect("far above the noise");
        }
        let (made, stated) = ((squares / f64::from(trials)).sqrt(), stated / f64::from(trials));
        // Five standard errors of a deviation of 300 draws.
        assert!((made / stated - 1.0).abs() < 0.21, "{made} is not {stated}");
    }

    #[test]
    fn noise_alone_gives_no_figure() {
        let spec = spec();
        let mut metrics = BaseMetrics::new(5, Digest::of(b"base"), &spec);
        metrics.add(&[sum(Metric::Accuracy, 3.0, 5.0), sum(Metric::Loss, 3.0, -5.0)]);
        for estimate in metrics.estimates(&spec) {
            assert_eq!((estimate.value, estimate.standard_error), (None, None));
        }
    }

    #[test]
    fn only_what_the_job_asks_for_is_usable() {
        let spec = spec();
        let good = [sum(Metric::Accuracy, 1.0, 2.0), sum(Metric::Loss, 1.0, 2.0)];
        assert!(is_usable(&good, Some(&spec), 10) && is_usable(&[], Some(&spec), 10));
        assert!(is_usable(&[], None, 10));
        assert!(!is_usable(&good, Some(&spec), 11), "not due");
        assert!(!is_usable(&good, None, 10));
        assert!(!is_usable(&good[..1], Some(&spec), 10));
        for bad in [f64::NAN, f64::INFINITY, 1e13] {
            assert!(!is_usable(&[sum(Metric::Accuracy, bad, 1.0), good[1]], Some(&spec), 10));
            assert!(!is_usable(&[sum(Metric::Accuracy, 1.0, bad), good[1]], Some(&spec), 10));
        }
    }
}
