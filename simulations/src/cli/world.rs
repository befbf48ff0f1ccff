//! `tributary-sim world`.

use std::{
    num::NonZeroUsize,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use clap::Args;
use serde::Serialize;
use thiserror::Error;

use super::output;
use crate::world::{Scenario, Summary, Violation, play, shrink};

/// Plays whole deployments in virtual time, and checks the rules at every step.
#[derive(Debug, Args)]
pub struct WorldArguments {
    /// The first seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// How many seeds to play
    #[arg(long, value_name = "N", default_value_t = 1)]
    seeds: u64,
    /// Play only these faults of the seed, by their place in its list
    #[arg(long, value_name = "PLACES", value_delimiter = ',')]
    faults: Option<Vec<usize>>,
    /// Play a world of so many tenants with one job, instead of a small one with several
    #[arg(long, value_name = "N")]
    tenants: Option<u32>,
    /// Rounds of the job of a large world
    #[arg(long, value_name = "N", default_value_t = 5, requires = "tenants")]
    rounds: u64,
    /// Worlds that are played at the same time [default: one a core]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Print one JSON object a world
    #[arg(long)]
    json: bool,
}

/// Says why a world was not played to a good end.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WorldCommandError {
    /// A rule was broken.
    #[error(
        "{broken} of {seeds} worlds broke a rule; the first: {first}\nrepeat it with `{repeat}`"
    )]
    Broken {
        /// Worlds that broke one.
        broken: usize,
        /// Worlds that were played.
        seeds: u64,
        /// The broken rule of the lowest seed.
        first: Box<Violation>,
        /// The command that shows it again, with the faults that it needs.
        repeat: String,
    },
    /// The result cannot be printed.
    #[error("cannot write to standard output")]
    Output(#[from] std::io::Error),
}

/// A failure, as a program reads it.
#[derive(Serialize)]
struct Failure<'a> {
    violation: &'a Violation,
    /// Places of the faults that it needs.
    faults: &'a [usize],
    scenario: &'a Scenario,
}

impl WorldArguments {
    /// Plays the seeds.
    ///
    /// # Errors
    /// [`WorldCommandError::Broken`] with the command that repeats the failure.
    pub fn run(self) -> Result<(), WorldCommandError> {
        let outcomes = self.play_all();
        let mut failures = Vec::new();
        let mut total = Totals::default();
        for (seed, outcome) in outcomes {
            match outcome {
                Ok(summary) => {
                    total.add(&summary);
                    if self.json {
                        output::json(&summary)?;
                    }
                }
                Err(violation) => failures.push((seed, violation)),
            }
        }
        if !self.json {
            output::line(&total.to_string())?;
        }
        let Some((seed, violation)) = failures.first() else { return Ok(()) };
        let scenario = self.scenario(*seed);
        let needed = match &self.faults {
            Some(faults) => faults.clone(),
            None => shrink(&scenario, violation.rule),
        };
        let first = play(&scenario.only(&needed)).err().unwrap_or_else(|| violation.clone());
        if self.json {
            let failure = Failure { violation: &first, faults: &needed, scenario: &scenario };
            output::json(&failure)?;
        } else {
            for place in &needed {
                output::note(&format!("fault {place}: {}", scenario.faults[*place]))?;
            }
            output::note(&first.trace.join("\n"))?;
        }
        let repeat = self.repeat(*seed, &needed);
        let (broken, seeds, first) = (failures.len(), self.seeds, Box::new(first));
        Err(WorldCommandError::Broken { broken, seeds, first, repeat })
    }

    fn scenario(&self, seed: u64) -> Scenario {
        match self.tenants {
            Some(tenants) => Scenario::crowd(seed, tenants.max(4), self.rounds),
            None => Scenario::from_seed(seed),
        }
    }

    fn repeat(&self, seed: u64, faults: &[usize]) -> String {
        let places: Vec<_> = faults.iter().map(ToString::to_string).collect();
        let large = self.tenants.map_or_else(String::new, |tenants| {
            format!(" --tenants {tenants} --rounds {}", self.rounds)
        });
        format!("tributary-sim world --seed {seed}{large} --faults {}", places.join(","))
    }

    fn play_all(&self) -> Vec<(u64, Result<Summary, Violation>)> {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = self.threads.map_or(cores, NonZeroUsize::get);
        let (next, outcomes) = (AtomicU64::new(0), Mutex::new(Vec::new()));
        let work = || {
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed);
                if place >= self.seeds {
                    return;
                }
                let seed = self.seed.wrapping_add(place);
                let scenario = self.scenario(seed);
                let scenario = match &self.faults {
                    Some(faults) => scenario.only(faults),
                    None => scenario,
                };
                let outcome = play(&scenario);
                outcomes.lock().unwrap_or_else(PoisonError::into_inner).push((seed, outcome));
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(work);
            }
        });
        let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
        outcomes.sort_by_key(|(seed, _)| *seed);
        outcomes
    }
}

/// What all good worlds had together.
#[derive(Default)]
struct Totals {
    worlds: u64,
    jobs: usize,
    committed: u64,
    unmasked: u64,
    abandoned: u64,
    updates: u64,
    debits: u64,
    faults: usize,
    events: u64,
    virtual_ms: u64,
}

impl Totals {
    fn add(&mut self, summary: &Summary) {
        self.worlds += 1;
        self.jobs += summary.jobs_finished;
        self.committed += summary.rounds_committed;
        self.unmasked += summary.rounds_unmasked;
        self.abandoned += summary.rounds_abandoned;
        self.updates += summary.updates_counted;
        self.debits += summary.debits;
        self.faults += summary.faults;
        self.events += summary.events;
        self.virtual_ms += summary.virtual_ms;
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hours = self.virtual_ms as f64 / 3.6e6;
        write!(
            formatter,
            "{} worlds kept every rule: {} jobs, {} rounds committed ({} unmasked), {} abandoned, {} \
             updates counted of {} debits, {} faults, {} events in {hours:.1} virtual hours",
            self.worlds,
            self.jobs,
            self.committed,
            self.unmasked,
            self.abandoned,
            self.updates,
            self.debits,
            self.faults,
            self.events
        )
    }
}
