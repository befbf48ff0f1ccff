//! Whether a job's noisy metric says that it should end.

use tributary_protocol::job::{EarlyStop, EvaluationSpec, Metric};

use super::BaseMetrics;

/// Why the job should end now, if it should.
///
/// A base whose metric drowns in its noise says nothing, neither for nor against.
///
/// - `metrics`: of the evaluated bases, oldest first
pub(super) fn reason<'a>(
    rule: &EarlyStop,
    evaluation: &EvaluationSpec,
    metrics: impl Iterator<Item = &'a BaseMetrics>,
) -> Option<String> {
    // So that larger is better.
    let sign = match rule.metric {
        Metric::Accuracy | Metric::FeedbackAccuracy => 1.0,
        Metric::Loss => -1.0,
    };
    let name = rule.metric.name();
    let (mut best, mut since) = (None, 0);
    let mut reason = None;
    for base in metrics {
        let estimates = base.estimates(evaluation);
        let estimate = estimates.iter().find(|estimate| estimate.metric == rule.metric);
        let Some(value) = estimate.and_then(|estimate| estimate.value) else { continue };
        let version = base.version;
        reason = None;
        if let Some(target) = rule.target.filter(|target| sign * value >= sign * target) {
            reason = Some(format!(
                "{name} {value:.4} of version {version} has reached the target of {target}"
            ));
        }
        match best {
            Some((known, _)) if sign * (value - known) <= rule.min_change => since += 1,
            _ => (best, since) = (Some((value, version)), 0),
        }
        if let Some((known, from)) = best
            && since >= rule.patience
        {
            reason.get_or_insert_with(|| {
                format!(
                    "{name} has not become better than {known:.4}, of version {from}, in \
                     {since} evaluations"
                )
            });
        }
    }
    reason
}

#[cfg(test)]
mod tests {
    use tributary_protocol::{id::Digest, job::MetricSum};

    use super::*;

    fn evaluation(metric: Metric) -> EvaluationSpec {
        EvaluationSpec {
            every_rounds: 1,
            metrics: vec![metric],
            noise_multiplier: 1.0,
            loss_max: 4.0,
        }
    }

    /// What stands after evaluations of these values; NaN drowns in its noise.
    fn after(rule: EarlyStop, values: &[f64]) -> Option<String> {
        let spec = evaluation(rule.metric);
        let (low, high) = spec.bounds(rule.metric);
        let metrics: Vec<BaseMetrics> = values
            .iter()
            .enumerate()
            .map(|(version, value)| {
                let mut metrics = BaseMetrics::new(version as u64, Digest::of(b"base"), &spec);
                let centred = (value - 0.5 * (low + high)) / (0.5 * (high - low));
                let count = if value.is_nan() { 0.0 } else { 1e6 };
                let centred_sum = if value.is_nan() { 0.0 } else { centred * count };
                metrics.add(&[MetricSum { metric: rule.metric, centred_sum, count }]);
                metrics
            })
            .collect();
        reason(&rule, &spec, metrics.iter())
    }

    fn rule(metric: Metric) -> EarlyStop {
        EarlyStop { metric, patience: 2, min_change: 0.01, target: None }
    }

    #[test]
    fn accuracy_must_rise_and_loss_must_fall() {
        let rising = [0.1, 0.3, 0.5, 0.7];
        assert_eq!(after(rule(Metric::Accuracy), &rising), None);
        let stopped = after(rule(Metric::Loss), &rising).expect("the loss only rises");
        assert!(
            stopped.contains("better than 0.1000, of version 0, in 3 evaluations"),
            "{stopped}"
        );
        let falling = [0.7, 0.5, 0.3, 0.1];
        assert_eq!(after(rule(Metric::Loss), &falling), None);
        assert!(after(rule(Metric::Accuracy), &falling).is_some());
    }

    #[test]
    fn patience_counts_evaluations_in_a_row_and_small_changes_are_none() {
        let rule = rule(Metric::Accuracy);
        assert_eq!(after(rule, &[0.5, 0.505]), None, "one is within patience");
        assert!(after(rule, &[0.5, 0.505, 0.509]).is_some());
        assert_eq!(after(rule, &[0.5, 0.505, 0.52, 0.51]), None, "a real change starts anew");
        assert_eq!(after(rule, &[0.5, f64::NAN, f64::NAN, f64::NAN]), None, "noise says nothing");
        assert!(after(rule, &[0.5, 0.4, f64::NAN, 0.4]).is_some());
        assert_eq!(after(rule, &[]), None);
    }

    #[test]
    fn a_target_ends_the_job_at_once() {
        let target = Some(0.8);
        let accuracy = EarlyStop { target, ..rule(Metric::Accuracy) };
        assert_eq!(after(accuracy, &[0.5, 0.79]), None);
        assert!(after(accuracy, &[0.81]).expect("reached").contains("target of 0.8"));
        let loss = EarlyStop { target, ..rule(Metric::Loss) };
        assert_eq!(after(loss, &[1.5]), None);
        assert!(after(loss, &[1.5, 0.7]).is_some());
    }
}
