//! Runs with correlated noise: many releases that cost one event together.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{ChainStore, DebitRequest, Ledger, LedgerEntry, LedgerError};
use crate::mechanism::PrivacyEvent;

/// The steps of a run with correlated noise that one release contains.
///
/// The run's event covers all of its steps, so among the releases of a window it counts once,
/// however many of them there are. That is why no step may be released twice: a ledger accepts only
/// the steps that follow those of the run's entry before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSteps {
    /// Which run of the job, from 1.
    pub run: u64,
    /// The first step of the release, from 0.
    pub first_step: u64,
    /// The step after its last one.
    pub end_step: u64,
    /// What the whole run reveals.
    pub event: PrivacyEvent,
}

impl RunSteps {
    /// Steps of the whole run.
    #[must_use]
    pub const fn steps_of_run(&self) -> u64 {
        match self.event {
            PrivacyEvent::BandedMatrix { steps, .. } => steps,
            _ => 0,
        }
    }

    /// Steps of the run that are not released yet.
    #[must_use]
    pub const fn steps_left(&self) -> u64 {
        self.steps_of_run().saturating_sub(self.end_step)
    }

    /// What does not hold of these steps as the successors of the job's newest ones.
    fn mistake(
        &self,
        dataset: &str,
        newest: Option<(&LedgerEntry, &Self)>,
    ) -> Option<&'static str> {
        let PrivacyEvent::BandedMatrix { steps, runs, .. } = self.event else {
            return Some("only noise correlated by a banded matrix has runs");
        };
        if runs != 1 {
            return Some("its event must be that of one run");
        }
        if self.first_step >= self.end_step || self.end_step > steps {
            return Some("its steps must be some of the run's");
        }
        let (run, first_step) = match newest {
            Some((entry, newest)) if newest.run == self.run => {
                if entry.dataset != dataset || newest.event != self.event {
                    return Some("a run keeps its dataset and its event");
                }
                (newest.run, newest.end_step)
            }
            Some((_, newest)) => (newest.run + 1, 0),
            None => (1, 0),
        };
        if (self.run, self.first_step) != (run, first_step) {
            return Some("its steps do not follow those that were released");
        }
        None
    }
}

impl<S: ChainStore> Ledger<S> {
    /// The newest entry of a job's runs with correlated noise.
    #[must_use]
    pub fn newest_of_runs(&self, job: &str) -> Option<(&LedgerEntry, &RunSteps)> {
        let mut newest_first = self.entries.iter().rev();
        newest_first.find_map(|entry| {
            let steps = entry.run.as_ref().filter(|_| entry.job == job)?;
            Some((entry, steps))
        })
    }

    pub(super) fn check_run(&self, request: &DebitRequest) -> Result<(), LedgerError> {
        let Some(steps) = &request.run else { return Ok(()) };
        let newest = self.newest_of_runs(&request.job);
        match steps.mistake(&request.dataset, newest) {
            None => Ok(()),
            Some(reason) => {
                let (job, run) = (request.job.clone(), steps.run);
                Err(LedgerError::Run { job, run, reason })
            }
        }
    }
}

/// Collects the events of releases, each run's but once.
#[derive(Debug, Default)]
pub(super) struct Composition {
    pub(super) events: Vec<PrivacyEvent>,
    runs: HashSet<(String, u64)>,
}

impl Composition {
    /// Adds what one release of a dataset reveals.
    pub(super) fn add(&mut self, job: &str, events: &[PrivacyEvent], run: Option<&RunSteps>) {
        self.events.extend(events.iter().cloned());
        if let Some(steps) = run
            && self.runs.insert((job.to_owned(), steps.run))
        {
            self.events.push(steps.event.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Budget, MemoryChainStore, ReleaseKind},
        *,
    };
    use crate::accountant::{Delta, epsilon};

    const DAY: u64 = 86_400_000;
    const EVER: Budget = Budget { epsilon_max: 8.0, delta: 1e-5, window_days: None };

    fn event(noise_multiplier: f64) -> PrivacyEvent {
        PrivacyEvent::BandedMatrix {
            noise_multiplier,
            sigma: 4096.0 * noise_multiplier,
            dimension: 10,
            bands: 3,
            steps: 12,
            separation: 3,
            participations: 4,
            runs: 1,
        }
    }

    fn part(round: u64, run: u64, first_step: u64, end_step: u64) -> DebitRequest {
        DebitRequest {
            dataset: "digits".into(),
            job: "job".into(),
            round,
            kind: ReleaseKind::Update,
            unit: "record".into(),
            events: Vec::new(),
            run: Some(RunSteps { run, first_step, end_step, event: event(5.0) }),
            release: [round as u8; 32],
        }
    }

    fn cost(runs: u64) -> f64 {
        let events = [event(5.0).with_count(runs)];
        epsilon(&events, Delta::new(1e-5).expect("valid")).expect("valid")
    }

    fn ledger() -> (MemoryChainStore, Ledger<MemoryChainStore>) {
        let store = MemoryChainStore::new();
        let ledger = Ledger::open(store.clone(), "alpha").expect("empty");
        (store, ledger)
    }

    #[test]
    fn a_run_is_paid_once_whatever_part_of_it_is_released() {
        let (store, mut ledger) = ledger();
        for round in 0..3 {
            ledger.debit(part(round, 1, 4 * round, 4 * round + 4), &EVER, 0).expect("paid");
            assert_eq!(ledger.spent("digits", 0, &EVER).expect("valid"), cost(1));
        }
        let reopened = Ledger::open(store, "alpha").expect("intact");
        let (entry, steps) = reopened.newest_of_runs("job").expect("debited");
        assert_eq!((entry.round, steps.end_step, steps.steps_left()), (2, 12, 0));
        assert!(reopened.newest_of_runs("other").is_none());
        ledger.debit(part(3, 2, 0, 4), &EVER, 0).expect("a new run");
        assert_eq!(ledger.spent("digits", 0, &EVER).expect("valid"), cost(2));
        // Of another job, it is another run.
        let other = DebitRequest { job: "other".into(), ..part(0, 1, 0, 4) };
        ledger.debit(other, &EVER, 0).expect("another run");
        assert_eq!(ledger.spent("digits", 0, &EVER).expect("valid"), cost(3));
    }

    /// In every window that holds any of its releases, a run counts as a whole.
    #[test]
    fn a_run_counts_until_its_last_release_has_left_the_window() {
        let month = Budget { window_days: Some(30), ..EVER };
        let (_, mut ledger) = ledger();
        ledger.debit(part(0, 1, 0, 4), &month, 0).expect("paid");
        ledger.debit(part(1, 1, 4, 8), &month, 20 * DAY).expect("the same run");
        for (day, expected) in [(29, cost(1)), (30, cost(1)), (49, cost(1)), (50, 0.0)] {
            assert_eq!(ledger.spent("digits", day * DAY, &month).expect("valid"), expected);
        }
        let quote = ledger.quote(&part(2, 1, 8, 12), &month, 50 * DAY).expect("fits");
        assert_eq!((quote.epsilon_before, quote.epsilon_after), (0.0, cost(1)));
    }

    #[test]
    fn only_the_next_steps_of_the_same_run_are_debited() {
        let (store, mut ledger) = ledger();
        ledger.debit(part(0, 1, 0, 4), &EVER, 0).expect("paid");
        let before = store.bytes();
        let with = |event| {
            let run = Some(RunSteps { run: 1, first_step: 4, end_step: 8, event });
            DebitRequest { run, ..part(1, 1, 4, 8) }
        };
        let plain = PrivacyEvent::Gaussian { noise_multiplier: 5.0, count: 1 };
        let elsewhere = DebitRequest { dataset: "letters".into(), ..part(1, 1, 4, 8) };
        for (request, word) in [
            (part(1, 1, 0, 4), "follow"),
            (part(1, 1, 8, 12), "follow"),
            (part(1, 2, 4, 8), "follow"),
            (part(1, 3, 0, 4), "follow"),
            (part(1, 1, 4, 4), "some of the run's"),
            (part(1, 1, 4, 13), "some of the run's"),
            (with(event(6.0)), "its event"),
            (with(event(5.0).with_count(2)), "one run"),
            (with(plain), "banded matrix"),
            (elsewhere, "its dataset"),
        ] {
            let error = ledger.debit(request, &EVER, 0).map(|_| ()).expect_err(word);
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
        assert_eq!(store.bytes(), before, "nothing was written");
    }

    #[test]
    fn a_forecast_knows_that_the_rest_of_a_run_is_paid() {
        let (_, mut ledger) = ledger();
        ledger.debit(part(0, 1, 0, 4), &EVER, 0).expect("paid");
        let left = |ledger: &Ledger<_>, epsilon_max| {
            let tight = Budget { epsilon_max, ..EVER };
            let jobs = ledger.spent_by_job("digits", 0, &tight).expect("valid");
            let run = jobs[0].run.clone().expect("a run");
            assert_eq!((run.run, run.rounds), (1, 3));
            ledger.rounds_left("digits", &jobs[0], &tight, 0, 100).expect("valid")
        };
        assert_eq!(left(&ledger, cost(1)), 2);
        assert_eq!(left(&ledger, cost(3)), 2 + 2 * 3);
        ledger.debit(part(1, 1, 4, 8), &EVER, 0).expect("paid before");
        assert_eq!(left(&ledger, cost(3)), 1 + 2 * 3);
    }
}
