//! Virtual time: how long each tenant takes, and when asynchronous rounds are full.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
};

use rand::RngExt;

use super::{
    Report, RoundCohort,
    seeds::{Purpose, Seeds},
};
use crate::experiment::{AsynchronousSpec, ClockSpec, CohortSpec, TrainingSpec};

/// How long each tenant takes from invitation to report, in seconds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Durations(Vec<f64>);

impl Durations {
    /// - `sizes`: training records of each tenant
    pub(super) fn new(
        spec: &ClockSpec,
        training: &TrainingSpec,
        sizes: &[usize],
        seeds: Seeds,
    ) -> Self {
        let count = (spec.straggler_share * sizes.len() as f64).round() as usize;
        let stragglers = seeds.choose(Purpose::Slowness, sizes.len(), count);
        let duration = |(tenant, &size): (usize, &usize)| {
            let steps = training.plan(size).map_or(0, |plan| plan.local_steps);
            let mut random = seeds.fast(Purpose::Slowness, 1, tenant as u32);
            // Twelve uniform numbers add up to nearly a normal one.
            let normal = (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0;
            let slowdown = if stragglers[tenant] { spec.straggler_slowdown } else { 1.0 };
            let ordinary = spec.report_s + spec.step_s * f64::from(steps);
            ordinary * (spec.spread * normal).exp() * slowdown
        };
        Self(sizes.iter().enumerate().map(duration).collect())
    }

    pub(super) fn of(&self, tenant: u32) -> f64 {
        self.0[tenant as usize]
    }
}

/// A tenant at work. Ordered by the time of its report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Task {
    ends_ns: u64,
    /// Breaks ties by the order of starting.
    number: u64,
    tenant: u32,
    version: u64,
    is_lost: bool,
}

/// The buffers of an asynchronous run: who reports into which, begun how many versions ago.
///
/// A function of population, file and seed: training cannot change it. No tenant is twice in one
/// buffer.
pub(super) fn buffers(
    cohort: &CohortSpec,
    spec: &AsynchronousSpec,
    durations: &Durations,
    rounds: u64,
    seeds: Seeds,
) -> Vec<RoundCohort> {
    let mut random = seeds.fast(Purpose::Cohort, 0, 0);
    let mut idle: Vec<u32> = (0..durations.0.len() as u32).collect();
    let (mut tasks, mut number) = (BinaryHeap::new(), 0);
    let mut start = |idle: &mut Vec<u32>, tasks: &mut BinaryHeap<_>, now_ns: u64, version: u64| {
        let tenant = idle.swap_remove(random.random_range(0..idle.len()));
        let is_lost = random.random_bool(cohort.dropout_rate);
        let ends_ns = now_ns + (durations.of(tenant) * 1e9) as u64;
        number += 1;
        tasks.push(Reverse(Task { ends_ns, number, tenant, version, is_lost }));
        tenant
    };
    let (mut version, mut last_ns) = (0, 0);
    let mut invited: Vec<u32> =
        (0..cohort.size).map(|_| start(&mut idle, &mut tasks, 0, 0)).collect();
    let (mut buffer, mut full): (BTreeSet<Report>, _) = (BTreeSet::new(), Vec::new());
    while version < rounds {
        let Reverse(task) = tasks.pop().expect("somebody is always at work");
        let staleness = version - task.version;
        if task.is_lost || staleness > spec.staleness_max.into() {
            idle.push(task.tenant);
        } else {
            buffer.insert(Report { tenant: task.tenant, staleness: staleness as u32 });
        }
        if buffer.len() == cohort.report_goal() as usize {
            let reporting: Vec<Report> = std::mem::take(&mut buffer).into_iter().collect();
            idle.extend(reporting.iter().map(|report| report.tenant));
            let seconds = (task.ends_ns - last_ns) as f64 / 1e9;
            full.push(RoundCohort {
                invited: std::mem::take(&mut invited),
                reporting,
                seconds: Some(seconds),
            });
            (version, last_ns) = (version + 1, task.ends_ns);
        }
        invited.push(start(&mut idle, &mut tasks, task.ends_ns, version));
    }
    full
}

#[cfg(test)]
mod tests {
    use super::*;

    fn durations(straggler_share: f64) -> Durations {
        let spec = ClockSpec {
            step_s: 0.0,
            report_s: 2.0,
            spread: 0.0,
            straggler_share,
            straggler_slowdown: 7.0,
            report_timeout_s: None,
        };
        Durations::new(&spec, &TrainingSpec::Null {}, &[10; 40], Seeds(1))
    }

    fn cohort() -> CohortSpec {
        CohortSpec {
            size: 8,
            report_goal: Some(4),
            size_min: 1,
            dropout_rate: 0.0,
            sampling: Default::default(),
        }
    }

    #[test]
    fn stragglers_are_so_many_and_so_slow() {
        let Durations(durations) = durations(0.25);
        assert_eq!(durations.iter().filter(|&&duration| duration == 14.0).count(), 10);
        assert_eq!(durations.iter().filter(|&&duration| duration == 2.0).count(), 30);
    }

    #[test]
    fn equally_fast_tenants_fill_a_buffer_each_time_half_of_them_report() {
        let spec = AsynchronousSpec { staleness_max: 5, staleness_exponent: 0.5 };
        let buffers = buffers(&cohort(), &spec, &durations(0.0), 6, Seeds(1));
        let times: Vec<f64> = buffers.iter().map(|buffer| buffer.seconds.expect("timed")).collect();
        assert_eq!(times, [2.0, 0.0, 2.0, 0.0, 2.0, 0.0]);
        // They began while the buffer before, or the one before that, was filled.
        let stale =
            |buffer: &RoundCohort| buffer.reporting.iter().all(|r| (1..=2).contains(&r.staleness));
        assert!(buffers[0].reporting.iter().all(|report| report.staleness == 0));
        assert!(buffers[1..].iter().all(stale), "{buffers:?}");
        assert_eq!(spec.weight(0), 1.0);
        assert!((spec.weight(3) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn old_and_lost_updates_do_not_count_and_nobody_counts_twice_in_a_buffer() {
        let spec = AsynchronousSpec { staleness_max: 2, staleness_exponent: 0.5 };
        let lossy = CohortSpec { dropout_rate: 0.3, ..cohort() };
        let buffers = buffers(&lossy, &spec, &durations(0.25), 50, Seeds(2));
        assert_eq!(buffers.len(), 50);
        for buffer in &buffers {
            let tenants: BTreeSet<u32> = buffer.reporting.iter().map(|r| r.tenant).collect();
            assert_eq!(tenants.len(), 4);
            assert!(buffer.reporting.iter().all(|report| report.staleness <= 2));
        }
        let invited: usize = buffers.iter().map(|buffer| buffer.invited.len()).sum();
        assert!(invited > 250, "{invited}: a third of them is lost");
    }
}
