//! Who takes part in which round.

use std::collections::BTreeSet;

use rand::{Rng, RngExt};
use tributary_coordinator::cohort;
use tributary_protocol::id::TenantId;

use super::{
    clock::{self, Durations},
    seeds::{Purpose, Seeds},
};
use crate::experiment::{CohortSampling, CohortSpec, Experiment};

/// The cohorts of all rounds: a function of population, file and seed, never of data.
#[derive(Debug, Clone)]
pub struct Schedule {
    spec: CohortSpec,
    ids: BTreeSet<TenantId>,
    seeds: Seeds,
    /// Virtual time, and after how much of it a round goes on.
    clock: Option<(Durations, Option<f64>)>,
    /// All rounds, where they overlap.
    buffers: Option<Vec<RoundCohort>>,
}

/// Who takes part in one round.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundCohort {
    /// Tenants that get the model.
    pub invited: Vec<u32>,
    /// The updates that are summed, by tenant; none if the round is abandoned.
    pub reporting: Vec<Report>,
    /// How long the round takes in virtual time, if there is a clock.
    pub seconds: Option<f64>,
}

/// An update that is summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Report {
    /// Whose.
    pub tenant: u32,
    /// How many versions of the base ago it began; 0 where rounds wait for each other.
    pub staleness: u32,
}

/// A survivor of a round: when it reports, an order among equals, who.
type Arrival = (f64, u64, u32);

impl Schedule {
    /// - `sizes`: training records of each tenant
    /// - `seed`: of the run
    #[must_use]
    pub fn new(experiment: &Experiment, sizes: &[usize], seed: u64) -> Self {
        let (spec, seeds) = (experiment.cohort.clone(), Seeds(seed));
        // Zero-padded, so that the ids sort as the numbers.
        let id = |tenant| TenantId::new(format!("{tenant:010}")).expect("made of digits");
        let clock = experiment.clock.as_ref().map(|clock| {
            let durations = Durations::new(clock, &experiment.training, sizes, seeds);
            (durations, clock.report_timeout_s)
        });
        let buffers = experiment.asynchronous.as_ref().map(|asynchronous| {
            let (durations, _) = clock.as_ref().expect("the experiment was checked");
            clock::buffers(&spec, asynchronous, durations, experiment.rounds, seeds)
        });
        Self { spec, ids: (0..sizes.len()).map(id).collect(), seeds, clock, buffers }
    }

    /// Abandons rounds with fewer updates than this, whatever the file says.
    #[must_use]
    pub fn with_size_min(mut self, size_min: u32) -> Self {
        self.spec.size_min = self.spec.size_min.max(size_min);
        self
    }

    /// The cohort of a round, from 1.
    #[must_use]
    pub fn round(&self, round: u64) -> RoundCohort {
        if let Some(buffers) = &self.buffers {
            return buffers[round as usize - 1].clone();
        }
        let invited = self.invited(round);
        // Who reports first is random, or a matter of time.
        let mut random = self.seeds.fast(Purpose::Dropout, round, 0);
        let mut survivors: Vec<Arrival> = Vec::with_capacity(invited.len());
        for &tenant in &invited {
            let order = random.next_u64();
            if !random.random_bool(self.spec.dropout_rate) {
                let seconds = self.clock.as_ref().map_or(0.0, |(clock, _)| clock.of(tenant));
                survivors.push((seconds, order, tenant));
            }
        }
        survivors.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let is_complete = survivors.len() == invited.len();
        let seconds = self.clock.as_ref().map(|(_, timeout_s)| {
            self.close(&mut survivors, is_complete, timeout_s.unwrap_or(f64::INFINITY))
        });
        // Later reports than the goal are not waited for.
        if self.spec.sampling == CohortSampling::Fixed {
            survivors.truncate(self.spec.report_goal() as usize);
        }
        if survivors.len() < self.spec.size_min as usize {
            survivors.clear();
        }
        let report = |(_, _, tenant)| Report { tenant, staleness: 0 };
        let mut reporting: Vec<Report> = survivors.into_iter().map(report).collect();
        reporting.sort_unstable();
        RoundCohort { invited, reporting, seconds }
    }

    fn invited(&self, round: u64) -> Vec<u32> {
        let size = self.spec.size as usize;
        match self.spec.sampling {
            CohortSampling::Fixed => {
                let seed = self.seeds.number(Purpose::Cohort, round);
                let chosen = cohort::choose(&self.ids, size, seed);
                chosen.iter().map(|id| id.as_str().parse().expect("made of digits")).collect()
            }
            CohortSampling::Poisson => {
                let rate = size as f64 / self.ids.len() as f64;
                let mut random = self.seeds.fast(Purpose::Cohort, round, 0);
                (0..self.ids.len() as u32).filter(|_| random.random_bool(rate)).collect()
            }
        }
    }

    /// Drops who is too late; returns when the round goes on.
    ///
    /// Nobody knows who will never report: unless the goal is reached or everybody reported, the
    /// whole time is waited, or if there is no limit, as long as somebody still comes.
    fn close(&self, survivors: &mut Vec<Arrival>, is_complete: bool, timeout_s: f64) -> f64 {
        let goal = match self.spec.sampling {
            CohortSampling::Fixed => self.spec.report_goal() as usize,
            CohortSampling::Poisson => usize::MAX,
        };
        let came = survivors.len();
        survivors.retain(|(seconds, ..)| *seconds <= timeout_s);
        let is_complete = is_complete && survivors.len() == came;
        let last = survivors.last().map_or(0.0, |(seconds, ..)| *seconds);
        match survivors.get(goal.wrapping_sub(1)) {
            Some((seconds, ..)) => *seconds,
            None if is_complete => last,
            None if timeout_s.is_finite() => timeout_s,
            None => last,
        }
    }

    /// How often the tenant that takes part most often does so in the first `rounds` rounds.
    #[must_use]
    pub fn participations_max(&self, rounds: u64) -> u64 {
        let mut counts = vec![0_u64; self.ids.len()];
        for round in 1..=rounds {
            for report in self.round(round).reporting {
                counts[report.tenant as usize] += 1;
            }
        }
        counts.into_iter().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn schedule(cohort: &str, tenants: usize, seed: u64) -> Schedule {
        let text = format!(
            r#"
            name = "schedule"
            rounds = 200
            tenants = {tenants}
            training = {{ null = {{}} }}
            privacy = {{ none = {{}} }}
            dataset = {{ synthetic = {{ examples = 100, features = 8, classes = 2 }} }}
            model = {{ mlp = {{ inputs = 8, classes = 2 }} }}
            [cohort]
            {cohort}
            "#
        );
        let experiment = Experiment::parse(&text, Path::new("")).expect("valid");
        Schedule::new(&experiment, &vec![10; tenants], seed)
    }

    fn tenants(cohort: &RoundCohort) -> Vec<u32> {
        cohort.reporting.iter().map(|report| report.tenant).collect()
    }

    #[test]
    fn fixed_cohorts_have_their_size_and_repeat() {
        let fixed = schedule("size = 10", 50, 3);
        let cohort = fixed.round(7);
        assert_eq!((cohort.invited.len(), &cohort.invited), (10, &tenants(&cohort)));
        assert_eq!(cohort, schedule("size = 10", 50, 3).round(7));
        assert_ne!(cohort, fixed.round(8));
        assert_ne!(cohort, schedule("size = 10", 50, 4).round(7));
    }

    #[test]
    fn dropouts_goals_and_minima_shape_the_reports() {
        let lossy = schedule("size = 100\ndropout_rate = 0.5\nreport_goal = 30", 100, 1);
        assert!((1..=5).all(|round| lossy.round(round).reporting.len() == 30));
        let strict = lossy.with_size_min(31);
        assert!(strict.round(1).reporting.is_empty());
        let strict = "size = 100\ndropout_rate = 0.5\nsize_min = 90\nreport_goal = 95";
        assert!(schedule(strict, 100, 1).round(1).reporting.is_empty());
    }

    #[test]
    fn poisson_cohorts_have_the_size_on_average() {
        let poisson = schedule("size = 20\nsampling = \"poisson\"", 100, 1);
        let sizes: Vec<usize> = (1..=200).map(|round| poisson.round(round).invited.len()).collect();
        let mean = sizes.iter().sum::<usize>() as f64 / 200.0;
        assert!((18.5..21.5).contains(&mean) && sizes.iter().any(|&size| size != 20), "{mean}");
        let most = poisson.participations_max(200);
        assert!((45..80).contains(&most), "{most}");
    }

    #[test]
    fn a_round_goes_on_at_the_goal_or_when_time_is_up() {
        let clock = "\n[clock]\nreport_s = 2.0\nstraggler_share = 0.3\nstraggler_slowdown = 4.0";
        let (slow, fast) = (8.0, 2.0);
        let all = schedule(&format!("size = 100{clock}"), 100, 1).round(1);
        assert_eq!((all.reporting.len(), all.seconds), (100, Some(slow)));
        let most = schedule(&format!("size = 100\nreport_goal = 70{clock}"), 100, 1).round(1);
        assert_eq!((most.reporting.len(), most.seconds), (70, Some(fast)));
        let timed = format!("size = 100{clock}\nreport_timeout_s = 5.0");
        let timed = schedule(&timed, 100, 1).round(1);
        assert_eq!((timed.reporting.len(), timed.seconds), (70, Some(5.0)));
        assert_eq!(tenants(&timed), tenants(&most), "those that are not stragglers");
        let lossy = format!("size = 100\ndropout_rate = 0.5{clock}\nreport_timeout_s = 20.0");
        assert_eq!(schedule(&lossy, 100, 1).round(1).seconds, Some(20.0));
    }
}
