//! What was spent, by job, and what still fits: answers for people, nothing is written.

use serde::Serialize;

use super::{
    Budget, ChainStore, Composition, DAY_MS, DebitRequest, Ledger, LedgerEntry, LedgerError,
    RunSteps,
};
use crate::{
    accountant::{Delta, coalesced},
    mechanism::PrivacyEvent,
};

/// What one job has spent of one dataset's budget.
#[derive(Debug, Clone, PartialEq)]
pub struct JobSpending {
    /// The job.
    pub job: String,
    /// The privacy unit of its newest release.
    pub unit: String,
    /// Rounds with a debit within the window.
    pub rounds: u64,
    /// ε of this job's releases alone. The figures of several jobs do not add up to the ε of all:
    /// composition is cheaper than addition.
    pub epsilon_alone: f64,
    /// What its newest round cost, beside its run.
    pub round_events: Vec<PrivacyEvent>,
    /// Its newest run with correlated noise, if it has one.
    pub run: Option<JobRun>,
}

/// How far a job's newest run with correlated noise is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobRun {
    /// Which run of the job, from 1.
    pub run: u64,
    /// Rounds of a whole run, each with as many steps as the newest one.
    pub rounds: u64,
    /// Rounds that are left of this run, at no further cost.
    pub rounds_left: u64,
    /// What a whole run costs.
    pub event: PrivacyEvent,
}

impl From<&RunSteps> for JobRun {
    fn from(steps: &RunSteps) -> Self {
        let of_round = steps.end_step.saturating_sub(steps.first_step).max(1);
        Self {
            run: steps.run,
            rounds: (steps.steps_of_run() / of_round).max(1),
            rounds_left: steps.steps_left() / of_round,
            event: steps.event.clone(),
        }
    }
}

impl<S: ChainStore> Ledger<S> {
    /// The debits of a dataset that count now, oldest first.
    pub fn counted(
        &self,
        dataset: &str,
        now_ms: u64,
        budget: &Budget,
    ) -> impl Iterator<Item = &LedgerEntry> {
        let dataset = dataset.to_owned();
        let window_days = budget.window_days;
        self.entries.iter().filter(move |entry| {
            let leaves = leaves_at(entry, window_days);
            entry.dataset == dataset && leaves.is_none_or(|leaves| leaves > now_ms)
        })
    }

    /// When the oldest counted release of a dataset leaves its window, in milliseconds since the
    /// Unix epoch; `None` if nothing ever does.
    #[must_use]
    pub fn next_leaves(&self, dataset: &str, now_ms: u64, budget: &Budget) -> Option<u64> {
        let oldest = self.counted(dataset, now_ms, budget).next()?;
        leaves_at(oldest, budget.window_days)
    }

    /// The spending of a dataset by job, in order of first appearance.
    ///
    /// # Errors
    /// [`LedgerError::Accountant`] if δ is not between 0 and 1.
    pub fn spent_by_job(
        &self,
        dataset: &str,
        now_ms: u64,
        budget: &Budget,
    ) -> Result<Vec<JobSpending>, LedgerError> {
        let delta = Delta::new(budget.delta)?;
        let mut jobs: Vec<(JobSpending, u64, Composition)> = Vec::new();
        for entry in self.counted(dataset, now_ms, budget) {
            let known = jobs.iter().position(|(job, ..)| job.job == entry.job);
            let index = known.unwrap_or_else(|| {
                let (job, unit) = (entry.job.clone(), entry.unit.clone());
                let (rounds, epsilon_alone, round_events) = (0, 0.0, Vec::new());
                let run = None;
                let spending = JobSpending { job, unit, rounds, epsilon_alone, round_events, run };
                jobs.push((spending, u64::MAX, Composition::default()));
                jobs.len() - 1
            });
            let (spending, newest_round, whole) = &mut jobs[index];
            if *newest_round != entry.round {
                *newest_round = entry.round;
                spending.rounds += 1;
                spending.round_events.clear();
            }
            spending.unit.clone_from(&entry.unit);
            spending.round_events.extend(entry.events.iter().cloned());
            if let Some(steps) = &entry.run {
                spending.run = Some(JobRun::from(steps));
            }
            whole.add(&entry.job, &entry.events, entry.run.as_ref());
        }
        let finish = |(mut spending, _, whole): (JobSpending, u64, Composition)| {
            spending.epsilon_alone = self.figures.epsilon(&whole.events, delta)?;
            Ok(spending)
        };
        jobs.into_iter().map(finish).collect()
    }

    /// How many more rounds like a job's newest one fit the budget if nothing else is released and
    /// nothing leaves the window; at most `rounds_max` are tried.
    ///
    /// Rounds of a run that was begun cost nothing more; after its end, a new one is paid as a whole.
    ///
    /// # Errors
    /// [`LedgerError::Accountant`] if δ or an event cannot be accounted.
    pub fn rounds_left(
        &self,
        dataset: &str,
        spending: &JobSpending,
        budget: &Budget,
        now_ms: u64,
        rounds_max: u64,
    ) -> Result<u64, LedgerError> {
        let delta = Delta::new(budget.delta)?;
        let spent = coalesced(&self.composition(dataset, now_ms, budget).events);
        let times = |event: &PrivacyEvent, times: u64| {
            event.with_count(event.count().saturating_mul(times))
        };
        let fits = |rounds: u64| -> Result<bool, LedgerError> {
            let mut events = spent.clone();
            events.extend(spending.round_events.iter().map(|event| times(event, rounds)));
            if let Some(run) = &spending.run {
                let new_runs = rounds.saturating_sub(run.rounds_left).div_ceil(run.rounds);
                events.push(times(&run.event, new_runs));
            }
            Ok(crate::accountant::epsilon(&coalesced(&events), delta)? <= budget.epsilon_max)
        };
        // Doubling, then halving: ε grows with the number of rounds.
        let (mut low, mut high) = (0, 1);
        while high <= rounds_max && fits(high)? {
            (low, high) = (high, high * 2);
        }
        if high > rounds_max {
            if fits(rounds_max)? {
                return Ok(rounds_max);
            }
            high = rounds_max;
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(middle)? { low = middle } else { high = middle }
        }
        Ok(low)
    }

    /// The first moment at which a debit fits if nothing else is released until then, in
    /// milliseconds since the Unix epoch; `None` if it never does.
    ///
    /// # Errors
    /// As for [`Ledger::quote`], but for [`LedgerError::BudgetExceeded`].
    pub fn fits_from(
        &self,
        request: &DebitRequest,
        budget: &Budget,
        now_ms: u64,
    ) -> Result<Option<u64>, LedgerError> {
        let fits = |at: u64| match self.quote(request, budget, at) {
            Ok(_) => Ok(true),
            Err(LedgerError::BudgetExceeded { .. }) => Ok(false),
            Err(error) => Err(error),
        };
        let departures = self
            .counted(&request.dataset, now_ms, budget)
            .filter_map(|entry| leaves_at(entry, budget.window_days));
        let moments: Vec<u64> = std::iter::once(now_ms).chain(departures).collect();
        // What has left stays away, so the moments that fit are the last ones.
        let (mut low, mut high) = (0, moments.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if fits(moments[middle])? { high = middle } else { low = middle + 1 }
        }
        Ok(moments.get(low).copied())
    }
}

/// When a debit stops to count; `None` if never.
pub(super) fn leaves_at(entry: &LedgerEntry, window_days: Option<u32>) -> Option<u64> {
    window_days.map(|days| entry.recorded_ms.saturating_add(u64::from(days) * DAY_MS))
}
