use tributary_privacy::{
    clip::ClippingNorm,
    distributed::DistributedNoise,
    lattice::{Lattice, LatticeRequest},
    ledger::Budget,
    mechanism::{ClippedGradientSum, NoisyGradientSum, NoisyStatistics, NoisyUpdate, PrivacyEvent},
};
use tributary_protocol::{
    id::{DatasetName, Region},
    job::{JobSpec, PrivacyUnit, UpdateBound},
    message::Assignment,
};

use super::{DatasetPolicy, Policy, PolicyRefusal};
use crate::{
    secagg,
    update::{clip_vote, planned_run},
};

/// How likely the sum of a cohort may be to wrap on a lattice that is still accepted. Wrapping
/// spoils the shared model, never privacy, so the planner of the coordinator may be stricter.
const WRAP_PROBABILITY_MAX: f64 = 1e-3;

/// The smallest share of distributed noise, in grid units: from there on the sum of shares is, to
/// within 1e-6 in every coordinate, the Gaussian that it is accounted as.
const SHARE_UNITS_MIN: f64 = 1.0;

/// A job that the policy allows: what training and the ledger need to know of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Approved {
    /// The dataset that pays.
    pub dataset: DatasetName,
    /// What it may spend.
    pub budget: Budget,
    /// What one round's update costs, beside its run.
    pub events: Vec<PrivacyEvent>,
    /// With correlated noise, what all rounds of one run cost together.
    pub run: Option<PrivacyEvent>,
    /// What the round's evaluation of its base costs; empty if none is due.
    pub evaluation: Vec<PrivacyEvent>,
    /// The most records that may be used.
    pub examples_max: Option<usize>,
}

impl Policy {
    /// Decides whether an assignment may be carried out; pure, before anything is loaded.
    ///
    /// - `configured`: the datasets that the agent has files for
    ///
    /// # Errors
    /// [`PolicyRefusal`] naming the key, what was asked and what is allowed.
    pub fn check(
        &self,
        assignment: &Assignment,
        configured: &[DatasetName],
    ) -> Result<Approved, PolicyRefusal> {
        let (job, base) = (&assignment.job, &assignment.base);
        let dataset = self.check_terms(job, configured)?;
        if base.job != job.name || base.dataset != job.dataset || base.model != job.model {
            return Err(PolicyRefusal::BaseMismatch);
        }
        let mut approved = dataset.approve(job, check_lattice(assignment)?)?;
        if job.evaluation.as_ref().is_some_and(|spec| !spec.is_due(base.version)) {
            approved.evaluation.clear();
        }
        Ok(approved)
    }

    /// Decides about a job document alone, as `check --job` does; its rounds are taken to be ones
    /// that evaluate the base, if any do, on the finest lattice that the agent accepts.
    ///
    /// # Errors
    /// [`PolicyRefusal`] naming the key, what was asked and what is allowed.
    pub fn check_job(
        &self,
        job: &JobSpec,
        configured: &[DatasetName],
    ) -> Result<Approved, PolicyRefusal> {
        self.check_terms(job, configured)?.approve(job, finest_lattice(job, None)?)
    }

    /// Checks what the job says of itself, and finds the dataset that pays.
    fn check_terms(
        &self,
        job: &JobSpec,
        configured: &[DatasetName],
    ) -> Result<&DatasetPolicy, PolicyRefusal> {
        job.validate().map_err(PolicyRefusal::Job)?;
        let dataset = self.datasets.get(&job.dataset).ok_or_else(|| {
            let allowed = self.datasets.keys().cloned().collect();
            PolicyRefusal::DatasetUnknown { dataset: job.dataset.clone(), allowed }
        })?;
        if !configured.contains(&job.dataset) {
            let (dataset, configured) = (job.dataset.clone(), configured.to_vec());
            return Err(PolicyRefusal::DatasetMissing { dataset, configured });
        }
        self.check_regions(&job.regions)?;
        dataset.check_choices(job)?;
        dataset.check_numbers(job)?;
        self.secagg.check_job(job)?;
        Ok(dataset)
    }

    fn check_regions(&self, regions: &[Region]) -> Result<(), PolicyRefusal> {
        let Some(allowed) = &self.regions else { return Ok(()) };
        match regions.iter().find(|region| !allowed.contains(region)) {
            Some(region) => Err(PolicyRefusal::NotAllowed {
                key: "regions",
                asked: format!("region {region:?}", region = region.as_str()),
                allowed: listed(allowed.iter().map(Region::as_str)),
            }),
            None => Ok(()),
        }
    }
}

impl DatasetPolicy {
    /// What a checked job may do and what it costs on its lattice.
    fn approve(&self, job: &JobSpec, lattice: Lattice) -> Result<Approved, PolicyRefusal> {
        Ok(Approved {
            dataset: job.dataset.clone(),
            budget: self.budget(),
            events: events(job, lattice)?,
            run: planned_run(job).map_err(PolicyRefusal::Mechanism)?.map(|run| run.event()),
            evaluation: evaluation_events(job)?,
            examples_max: self.examples_max,
        })
    }

    fn check_choices(&self, job: &JobSpec) -> Result<(), PolicyRefusal> {
        let (unit, trust) = (job.privacy.unit, job.privacy.trust);
        let not_allowed =
            |key, asked, allowed| Err(PolicyRefusal::NotAllowed { key, asked, allowed });
        if !self.units.contains(&unit) {
            let allowed = listed(self.units.iter().map(|&unit| unit_name(unit)));
            return not_allowed("units", format!("privacy unit {:?}", unit_name(unit)), allowed);
        }
        if !self.trusts.contains(&trust) {
            let allowed = listed(self.trusts.iter().map(|trust| trust.name()));
            return not_allowed("trusts", format!("trust {:?}", trust.name()), allowed);
        }
        let family = job.model.family();
        if job.evaluation.is_some() && self.evaluation_noise_multiplier_min.is_none() {
            return not_allowed(
                "evaluation_noise_multiplier_min",
                "noisy metrics of the base".to_owned(),
                "none unless it is set".to_owned(),
            );
        }
        if job.privacy.correlated.is_some() && self.correlated_bands_max.is_none() {
            return not_allowed(
                "correlated_bands_max",
                "correlated noise, which keeps gradient sums on the agent's disk".to_owned(),
                "none unless it is set".to_owned(),
            );
        }
        if !self.families.iter().any(|allowed| allowed == family) {
            let allowed = listed(self.families.iter().map(String::as_str));
            return not_allowed("families", format!("model family {family:?}"), allowed);
        }
        Ok(())
    }

    fn check_numbers(&self, job: &JobSpec) -> Result<(), PolicyRefusal> {
        let (privacy, training) = (&job.privacy, &job.training);
        let at_least = |asked_key, asked: f64, key, min: f64| {
            if asked >= min {
                Ok(())
            } else {
                Err(PolicyRefusal::BelowMin { asked_key, asked, key, min })
            }
        };
        let at_most = |asked_key, asked: f64, key, max: Option<f64>| match max {
            Some(max) if asked > max => Err(PolicyRefusal::AboveMax { asked_key, asked, key, max }),
            _ => Ok(()),
        };
        at_least(
            "privacy.noise_multiplier",
            combined_noise_multiplier(job)?,
            "noise_multiplier_min",
            self.noise_multiplier_min,
        )?;
        at_least(
            "privacy.clipping_norm",
            privacy.clipping_norm,
            "clipping_norm_min",
            self.clipping_norm_min.unwrap_or(0.0),
        )?;
        at_most(
            "privacy.clipping_norm",
            privacy.clipping_norm,
            "clipping_norm_max",
            self.clipping_norm_max,
        )?;
        if let (Some(spec), Some(min)) = (&job.evaluation, self.evaluation_noise_multiplier_min) {
            at_least(
                "evaluation.noise_multiplier",
                spec.noise_multiplier,
                "evaluation_noise_multiplier_min",
                min,
            )?;
        }
        at_most("privacy.delta", privacy.delta, "delta", Some(self.delta))?;
        if let Some(correlated) = &privacy.correlated {
            at_most(
                "privacy.correlated.bands",
                correlated.bands.into(),
                "correlated_bands_max",
                self.correlated_bands_max.map(f64::from),
            )?;
        } else {
            at_most(
                "training.sampling_rate",
                training.sampling_rate,
                "sampling_rate_max",
                self.sampling_rate_max,
            )?;
        }
        at_most(
            "training.local_steps",
            training.local_steps.into(),
            "local_steps_max",
            self.local_steps_max.map(f64::from),
        )?;
        at_most(
            "model",
            job.model.num_parameters() as f64,
            "parameters_max",
            self.parameters_max.map(|max| max as f64),
        )?;
        at_least(
            "round.cohort_size_min",
            job.round.cohort_size_min.into(),
            "cohort_size_min",
            self.cohort_size_min.unwrap_or(0).into(),
        )
    }
}

/// The noise multiplier of the one Gaussian release that costs as much as a round's update and its
/// vote on the clipping norm together; or with correlated noise, as all rounds of a run.
fn combined_noise_multiplier(job: &JobSpec) -> Result<f64, PolicyRefusal> {
    let privacy = &job.privacy;
    if let Some(run) = planned_run(job).map_err(PolicyRefusal::Mechanism)? {
        return Ok(run.run_multiplier());
    }
    Ok(match privacy.adaptive() {
        None => privacy.noise_multiplier,
        Some(adaptive) => {
            let precision = |multiplier: f64| multiplier.powi(-2);
            let votes = precision(adaptive.count_noise_multiplier);
            (precision(privacy.noise_multiplier) + votes).powf(-0.5)
        }
    })
}

/// What releasing the metrics of a base costs one tenant: each is one noisy pair of sum and count
/// on all of its held-out records.
fn evaluation_events(job: &JobSpec) -> Result<Vec<PrivacyEvent>, PolicyRefusal> {
    let Some(spec) = &job.evaluation else { return Ok(Vec::new()) };
    let statistics =
        NoisyStatistics::new(spec.noise_multiplier).map_err(PolicyRefusal::Mechanism)?;
    Ok(vec![statistics.event(2).with_count(spec.metrics.len() as u64)])
}

/// What one round of the job costs one tenant: with distributed noise, in the worst case that the
/// protocol allows a full cohort.
///
/// The mechanisms say it themselves, so that the sampler's statistical distance and the difference
/// between integer and continuous noise are in the debit.
fn events(job: &JobSpec, lattice: Lattice) -> Result<Vec<PrivacyEvent>, PolicyRefusal> {
    let (privacy, dimension) = (&job.privacy, job.federated_dimension());
    if let Some(noise) = secagg::noise(job) {
        let plan = noise.plan(job.round.cohort_size).map_err(PolicyRefusal::Distributed)?;
        return Ok(vec![secagg::event(job, &noise, &plan, lattice)]);
    }
    if privacy.correlated.is_some() {
        // The run pays.
        return Ok(Vec::new());
    }
    let (norm, multiplier) = (clipping_norm(job)?, privacy.noise_multiplier);
    let event = match privacy.unit {
        PrivacyUnit::Record => NoisyGradientSum::new(norm, multiplier, dimension).map(|sum| {
            sum.event(job.training.sampling_rate).with_count(job.training.local_steps.into())
        }),
        PrivacyUnit::Tenant => {
            NoisyUpdate::new(lattice, norm, multiplier, job.wire_dimension()).map(|it| it.event())
        }
    };
    let mut events = vec![event.map_err(PolicyRefusal::Mechanism)?];
    let vote = clip_vote(job, lattice).map_err(PolicyRefusal::Mechanism)?;
    events.extend(vote.map(|vote| vote.event()));
    Ok(events)
}

fn clipping_norm(job: &JobSpec) -> Result<ClippingNorm, PolicyRefusal> {
    ClippingNorm::new(job.privacy.clipping_norm)
        .map_err(|error| PolicyRefusal::Mechanism(error.into()))
}

/// The finest lattice that holds the sum of every possible cohort of the job.
///
/// - `bits`: width of the modulus; `None` takes the job's
fn finest_lattice(job: &JobSpec, bits: Option<u8>) -> Result<Lattice, PolicyRefusal> {
    if let (Some(noise), Some(spec)) = (secagg::noise(job), &job.secagg) {
        let bits = bits.unwrap_or(spec.bits);
        return noise.lattice(bits, WRAP_PROBABILITY_MAX).map_err(PolicyRefusal::Distributed);
    }
    let UpdateBound { norm_max, noise_sigma } = job.update_bound();
    let request = LatticeRequest {
        dimension: job.wire_dimension(),
        norm_max,
        noise_sigma,
        contributors_max: job.round.cohort_size,
        bits: bits.unwrap_or(job.privacy.lattice_bits),
        wrap_probability_max: WRAP_PROBABILITY_MAX,
    };
    Lattice::plan(&request).map_err(PolicyRefusal::Lattice)
}

/// The assigned lattice, if the cohort's sum fits it and it is fine enough for the job.
fn check_lattice(assignment: &Assignment) -> Result<Lattice, PolicyRefusal> {
    let (job, spec) = (&assignment.job, assignment.lattice);
    let lattice = Lattice::new(spec.step, spec.bits).map_err(PolicyRefusal::Lattice)?;
    let (step, step_min) = (spec.step, finest_lattice(job, Some(spec.bits))?.step());
    if step < step_min * (1.0 - 1e-9) {
        let cohort_size = job.round.cohort_size;
        return Err(PolicyRefusal::LatticeWraps { step, step_min, cohort_size });
    }
    if let Some(noise) = secagg::noise(job) {
        check_shares(job, &noise, step)?;
        return Ok(lattice);
    }
    clip_vote(job, lattice).map_err(PolicyRefusal::Mechanism)?;
    let norm = job.update_bound().norm_max;
    if step > norm {
        return Err(PolicyRefusal::LatticeCoarse { step, norm });
    }
    Ok(lattice)
}

/// Whether each share of noise and each clipped gradient is fine enough on the grid.
fn check_shares(job: &JobSpec, noise: &DistributedNoise, step: f64) -> Result<(), PolicyRefusal> {
    let plan = noise.plan(job.round.cohort_size).map_err(PolicyRefusal::Distributed)?;
    if job.privacy.unit == PrivacyUnit::Record {
        ClippedGradientSum::new(clipping_norm(job)?, step, job.federated_dimension())
            .map_err(PolicyRefusal::Mechanism)?;
    }
    // Below this many grid units the shares do not add up to what they are accounted as.
    let share = noise.share_sigma(&plan);
    if share / step < SHARE_UNITS_MIN {
        return Err(PolicyRefusal::LatticeCoarse { step, norm: share });
    }
    Ok(())
}

/// The unit as policies, ledgers and messages write it.
pub(crate) const fn unit_name(unit: PrivacyUnit) -> &'static str {
    match unit {
        PrivacyUnit::Record => "record",
        PrivacyUnit::Tenant => "tenant",
    }
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(|name| format!("{name:?}")).collect();
    format!("[{}]", names.join(", "))
}
