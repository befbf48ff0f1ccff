//! What the releases that the coordinator counted cost each tenant, from the terms of their jobs.
//!
//! It is what anybody could compute who knows a job's terms and who took part; it guards nothing. An
//! agent's ledger is the authority: it also holds what was released and never counted.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use tributary_privacy::{
    accountant::{self, Delta},
    clip::ClippingNorm,
    lattice::Lattice,
    mechanism::{
        BandedMatrix, ClipVote, CorrelatedGradientSum, NoisyGradientSum, NoisyStatistics,
        NoisyUpdate, ParticipationSchedule, PrivacyEvent,
    },
};
use tributary_protocol::{
    id::{JobId, TenantId},
    job::{CorrelatedNoise, JobSpec, PrivacyUnit},
    message::LatticeSpec,
};

use crate::{aggregation, registry::ModelRegistry, scheduler::RoundSummary};

/// Results that are kept, at most; then all are computed anew.
const CACHE_MAX: usize = 4096;

/// How often a tenant released something that was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Releases {
    /// Updates that became part of a model.
    pub updates: u64,
    /// Noisy metrics of a base, all of one round together.
    pub evaluations: u64,
}

impl Releases {
    /// Of a tenant that is in every round of a job.
    #[must_use]
    pub fn planned(spec: &JobSpec) -> Self {
        let rounds = spec.round.rounds;
        let due = |evaluation: &tributary_protocol::job::EvaluationSpec| {
            rounds.div_ceil(evaluation.every_rounds.max(1))
        };
        Self { updates: rounds, evaluations: spec.evaluation.as_ref().map_or(0, due) }
    }
}

/// The counted releases of every job and tenant.
#[derive(Debug, Clone, Default)]
pub struct Spending {
    jobs: BTreeMap<JobId, BTreeMap<TenantId, Releases>>,
}

impl Spending {
    /// Counts what the history holds.
    ///
    /// - `jobs`, `models`: to know which rounds were evaluated
    #[must_use]
    pub fn restore<'a>(
        rounds: &[RoundSummary],
        jobs: impl IntoIterator<Item = &'a JobSpec>,
        models: &ModelRegistry,
    ) -> Self {
        let mut spending = Self::default();
        for spec in jobs {
            let committed =
                rounds.iter().filter(|round| round.job == spec.name && round.abandoned.is_none());
            for round in committed {
                // Without the model of a round, that it was evaluated is the worse case.
                let base_version = models.base_of(&spec.name, round.round).unwrap_or_default();
                spending.count(spec, base_version, round.contributors.keys());
            }
        }
        spending
    }

    /// Counts a committed round.
    ///
    /// - `base_version`: the version that it started from
    pub fn count<'a>(
        &mut self,
        spec: &JobSpec,
        base_version: u64,
        contributors: impl IntoIterator<Item = &'a TenantId>,
    ) {
        let evaluated =
            spec.evaluation.as_ref().is_some_and(|evaluation| evaluation.is_due(base_version));
        let job = self.jobs.entry(spec.name.clone()).or_default();
        for tenant in contributors {
            let releases = job.entry(tenant.clone()).or_default();
            releases.updates += 1;
            releases.evaluations += u64::from(evaluated);
        }
    }

    /// The tenants of a job that released something.
    pub fn of(&self, job: &JobId) -> impl Iterator<Item = (&TenantId, Releases)> {
        self.jobs.get(job).into_iter().flatten().map(|(tenant, releases)| (tenant, *releases))
    }
}

/// What one round of the job costs a tenant, as its agent debits it; `None` if it cannot be said here.
fn round_events(job: &JobSpec, lattice: LatticeSpec) -> Option<Vec<PrivacyEvent>> {
    if let Some(noise) = aggregation::noise(job) {
        let plan = noise.plan(job.round.cohort_size).ok()?;
        return Some(vec![aggregation::event(job, &plan, lattice, plan.survivors_min())?]);
    }
    let norm = ClippingNorm::new(job.privacy.clipping_norm).ok()?;
    let multiplier = job.privacy.noise_multiplier;
    let lattice = Lattice::new(lattice.step, lattice.bits).ok()?;
    let event = match job.privacy.unit {
        PrivacyUnit::Record => {
            let sum = NoisyGradientSum::new(norm, multiplier, job.federated_dimension()).ok()?;
            sum.event(job.training.sampling_rate).with_count(job.training.local_steps.into())
        }
        PrivacyUnit::Tenant => {
            NoisyUpdate::new(lattice, norm, multiplier, job.wire_dimension()).ok()?.event()
        }
    };
    let vote = match job.privacy.adaptive() {
        Some(adaptive) => {
            let multiplier_of_votes = adaptive.count_noise_multiplier;
            Some(ClipVote::new(lattice, norm, multiplier, multiplier_of_votes).ok()?.event())
        }
        None => None,
    };
    Some([event].into_iter().chain(vote).collect())
}

/// What a whole run with correlated noise costs a tenant; `None` if it cannot be said here.
fn run_event(job: &JobSpec, correlated: CorrelatedNoise) -> Option<PrivacyEvent> {
    let norm = ClippingNorm::new(job.privacy.clipping_norm).ok()?;
    let matrix = BandedMatrix::new(correlated.bands).ok()?;
    let schedule = ParticipationSchedule::cyclic(job.steps_of_run()?, correlated.groups).ok()?;
    let (multiplier, dimension) = (job.privacy.noise_multiplier, job.federated_dimension());
    let run = CorrelatedGradientSum::new(norm, multiplier, dimension, matrix, schedule);
    run.ok().map(|run| run.event())
}

fn events(job: &JobSpec, lattice: LatticeSpec, releases: Releases) -> Option<Vec<PrivacyEvent>> {
    let mut events = Vec::new();
    if releases.updates > 0 {
        // A run is paid as a whole with its first round, and a new one begins after it. That an
        // agent lost the state of one, and began anew, only its own ledger knows.
        let (once, times) = match job.privacy.correlated {
            Some(correlated) => (
                vec![run_event(job, correlated)?],
                releases.updates.div_ceil(correlated.rounds_max.max(1)),
            ),
            None => (round_events(job, lattice)?, releases.updates),
        };
        events.extend(once.iter().map(|event| event.with_count(event.count() * times)));
    }
    if let Some(spec) = &job.evaluation
        && releases.evaluations > 0
    {
        // A sum and a count for each metric.
        let metric = NoisyStatistics::new(spec.noise_multiplier).ok()?.event(2);
        events.push(metric.with_count(spec.metrics.len() as u64 * releases.evaluations));
    }
    Some(events)
}

/// ε of releases, remembered: the same figures are asked for again and again.
#[derive(Debug, Default)]
pub struct EpsilonCache {
    known: Mutex<BTreeMap<String, Option<f64>>>,
}

impl EpsilonCache {
    /// ε at the job's δ; `None` where it cannot be computed here.
    #[must_use]
    pub fn epsilon(&self, job: &JobSpec, lattice: LatticeSpec, releases: Releases) -> Option<f64> {
        let events = events(job, lattice, releases)?;
        if events.is_empty() {
            return Some(0.0);
        }
        let delta = job.privacy.delta;
        let key = format!("{delta:e} {events:?}");
        let locked = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = locked().get(&key) {
            return *known;
        }
        // Not under the lock: two who ask at once compute it twice, and nobody waits.
        let epsilon = Delta::new(delta).and_then(|delta| accountant::epsilon(&events, delta)).ok();
        let epsilon = epsilon.filter(|epsilon| epsilon.is_finite());
        let mut known = locked();
        if known.len() >= CACHE_MAX {
            known.clear();
        }
        known.insert(key, epsilon);
        epsilon
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tributary_protocol::{
        id::{Digest, RoundNumber},
        job::{EvaluationSpec, Metric},
        time::Timestamp,
    };

    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("valid")
    }

    #[test]
    fn only_counted_rounds_cost_and_evaluations_cost_extra() {
        let mut job = crate::scheduler::tests::job();
        job.evaluation = Some(EvaluationSpec {
            every_rounds: 2,
            metrics: vec![Metric::Accuracy],
            noise_multiplier: 10.0,
            loss_max: 4.0,
        });
        let round = |number, names: &[&str], abandoned: Option<&str>| RoundSummary {
            job: job.name.clone(),
            round: RoundNumber(number),
            contributors: names.iter().map(|name| (tenant(name), Digest::of(b"u"))).collect(),
            abandoned: abandoned.map(str::to_owned),
            ended: Timestamp(0),
        };
        let rounds = [
            round(1, &["alpha", "beta"], None),
            round(2, &[], Some("too few")),
            round(3, &["alpha"], None),
            round(4, &["alpha", "beta"], None),
        ];
        let version = |version: u64, round: u64| {
            let file = serde_json::json!({ "digest": Digest::of(b"m"), "length": 1 });
            let record = serde_json::json!({
                "job": job.name, "version": version, "round": round, "created": 0,
                "file": file, "parent": null, "optimizer_state": null,
            });
            serde_json::from_value(record).expect("a record")
        };
        let models =
            ModelRegistry::new(vec![version(0, 0), version(1, 1), version(2, 3), version(3, 4)]);
        let spending = Spending::restore(&rounds, [&job], &models);
        let counted: BTreeMap<_, _> = spending.of(&job.name).collect();
        assert_eq!(counted[&tenant("alpha")], Releases { updates: 3, evaluations: 2 });
        assert_eq!(counted[&tenant("beta")], Releases { updates: 2, evaluations: 2 });
    }

    #[test]
    fn a_run_with_correlated_noise_is_paid_once() {
        let mut job = crate::scheduler::tests::job();
        job.privacy.correlated = Some(CorrelatedNoise { bands: 4, groups: 8, rounds_max: 10 });
        let lattice = aggregation::plan_lattice(&job).expect("fits");
        let cache = EpsilonCache::default();
        let epsilon = |updates| {
            cache.epsilon(&job, lattice, Releases { updates, evaluations: 0 }).expect("computable")
        };
        assert_eq!(epsilon(1), epsilon(10));
        assert!(epsilon(10) < epsilon(11));
        assert_eq!(epsilon(11), epsilon(20));
    }

    #[test]
    fn epsilon_grows_with_every_release_and_is_remembered() {
        let job = crate::scheduler::tests::job();
        let lattice = aggregation::plan_lattice(&job).expect("fits");
        let cache = EpsilonCache::default();
        let epsilon = |updates| {
            cache.epsilon(&job, lattice, Releases { updates, evaluations: 0 }).expect("computable")
        };
        assert_eq!(epsilon(0), 0.0);
        let (one, two) = (epsilon(1), epsilon(2));
        assert!(0.0 < one && one < two && two < 2.0 * one, "{one} {two}");
        assert_eq!(epsilon(1), one);
        assert_eq!(cache.known.lock().expect("not poisoned").len(), 2);
    }
}
