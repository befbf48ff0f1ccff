//! Choosing lattice and noise of a run.

use tributary_privacy::{
    accountant::{Delta, epsilon},
    clip::ClippingNorm,
    lattice::{Lattice, LatticeError, LatticeRequest},
    mechanism::{NoisyGradientSum, NoisyUpdate, PrivacyEvent},
    noise::DiscreteGaussian,
    secagg::SecaggPlan,
};
use tributary_protocol::job::{PrivacyUnit, TrainingPlan};

use super::{
    super::{
        HarnessError, Schedule,
        adaptive::{AdaptiveNorm, with_votes, without_votes},
    },
    Cost, Path, Release,
    calibrate::{multiplier, smallest},
};
use crate::experiment::{
    CohortSampling, Experiment, ExperimentError, NoiseSpec, PrivacySpec, TrainingSpec,
};

/// Width of the modulus with noise, as for production jobs.
const LATTICE_BITS: u8 = 24;
/// Width of the modulus without noise, where the grid itself is the only error.
const PLAIN_BITS: u8 = 32;
/// The accepted probability that any coordinate of a round's sum wraps.
const WRAP_PROBABILITY_MAX: f64 = 1.0 / (1_u64 << 40) as f64;

impl Release {
    /// Plans lattice and noise of a run.
    pub(in crate::harness) fn plan(
        experiment: &Experiment,
        schedule: &Schedule,
        tenants: usize,
        secagg: Option<SecaggPlan>,
    ) -> Result<Self, HarnessError> {
        let Some(noise) = experiment.privacy.noise() else {
            let PrivacySpec::None { update_norm_max } = experiment.privacy else {
                unreachable!("every other mode has noise")
            };
            return Self::without_noise(experiment, tenants, update_norm_max);
        };
        let planning = Planning {
            experiment,
            tenants,
            noise,
            delta: Delta::new(noise.delta)?,
            clipping_norm: ClippingNorm::new(noise.clipping_norm)?,
            dimension: experiment.federated.dimension(&experiment.model),
            contributors_max: contributors_max(experiment, tenants),
            schedule,
        };
        match &experiment.privacy {
            PrivacySpec::None { .. } => unreachable!("handled above"),
            PrivacySpec::Local { unit: PrivacyUnit::Record, .. } => planning.record(),
            PrivacySpec::Local { unit: PrivacyUnit::Tenant, .. } => planning.tenant(),
            PrivacySpec::Central { .. } => planning.central(),
            PrivacySpec::Distributed { corrupt_max, .. } => {
                // Whatever the round commits with, so many honest shares are in the sum.
                let honest_min = secagg.map_or(experiment.cohort.size_min - corrupt_max, |plan| {
                    plan.honest_survivors_min()
                });
                planning.distributed(honest_min)
            }
        }
    }

    fn without_noise(
        experiment: &Experiment,
        tenants: usize,
        update_norm_max: f64,
    ) -> Result<Self, HarnessError> {
        let dimension = experiment.federated.dimension(&experiment.model);
        let contributors_max = contributors_max(experiment, tenants);
        Ok(Self {
            lattice: lattice(dimension, update_norm_max, 0.0, contributors_max, PLAIN_BITS)?,
            path: Path::Plain { norm_max: ClippingNorm::new(update_norm_max)? },
            noise_multiplier: None,
            adaptive: None,
            cost: Cost::Nothing,
        })
    }
}

/// What all modes with noise are planned from.
struct Planning<'a> {
    experiment: &'a Experiment,
    tenants: usize,
    noise: NoiseSpec,
    delta: Delta,
    clipping_norm: ClippingNorm,
    dimension: usize,
    contributors_max: u32,
    schedule: &'a Schedule,
}

impl Planning<'_> {
    /// DP-SGD at every tenant.
    fn record(&self) -> Result<Release, HarnessError> {
        let TrainingSpec::Steps(plan) = &self.experiment.training else {
            unreachable!("the experiment was checked")
        };
        let TrainingPlan { sampling_rate, local_steps, update_norm_max, .. } = *plan;
        let per_round = u64::from(local_steps);
        let multiplier = multiplier(&self.noise, self.delta, sampling_rate, || {
            let releases = self.releases();
            (releases * per_round, releases)
        })?;
        let mechanism = NoisyGradientSum::new(self.clipping_norm, multiplier, self.dimension)?;
        let event = mechanism.event(sampling_rate);
        let norm_max = ClippingNorm::new(update_norm_max)?;
        Ok(Release {
            lattice: self.lattice(update_norm_max, 0.0)?,
            path: Path::Record { mechanism, norm_max },
            noise_multiplier: Some(multiplier),
            adaptive: None,
            cost: Cost::Participation { event, per_round, delta: self.delta },
        })
    }

    /// Every update noised for itself.
    fn tenant(&self) -> Result<Release, HarnessError> {
        let multiplier = multiplier(&self.noise, self.delta, 1.0, || {
            let releases = self.releases();
            (releases, releases)
        })?;
        let norm = self.clipping_norm.value();
        let lattice = self.lattice(norm, norm * multiplier)?;
        let mechanism = NoisyUpdate::new(lattice, self.clipping_norm, multiplier, self.dimension)?;
        let event = mechanism.event();
        Ok(Release {
            lattice,
            path: Path::Noised { mechanism },
            noise_multiplier: Some(multiplier),
            adaptive: None,
            cost: Cost::Participation { event, per_round: 1, delta: self.delta },
        })
    }

    /// The sum noised by the coordinator.
    fn central(&self) -> Result<Release, HarnessError> {
        let (noise, delta) = (&self.noise, self.delta);
        let (cohort, privacy) = (&self.experiment.cohort, &self.experiment.privacy);
        // The coordinator is trusted and nobody else sees who takes part, so a Poisson sample may be
        // amplified; a fixed-size one is accounted as if it were known.
        let sampling_rate = match cohort.sampling {
            CohortSampling::Fixed => 1.0,
            CohortSampling::Poisson => f64::from(cohort.size) / self.tenants as f64,
        };
        let total = multiplier(noise, delta, sampling_rate, || {
            let releases = match cohort.sampling {
                CohortSampling::Fixed => self.releases(),
                CohortSampling::Poisson => self.experiment.rounds,
            };
            (releases, releases)
        })?;
        let votes = privacy.adaptive();
        // What the sum itself gets, and what it costs together with the votes.
        let (multiplier, total) = match (votes, noise.epsilon) {
            (None, _) => (total, total),
            (Some(votes), None) => (total, with_votes(total, votes.count_noise_multiplier)),
            (Some(votes), Some(epsilon)) => {
                let (given, needed) = (votes.count_noise_multiplier, total);
                let left = without_votes(total, given);
                let left = left.ok_or(ExperimentError::Votes { epsilon, given, needed })?;
                (left, total)
            }
        };
        let norm = self.clipping_norm.value();
        let adaptive =
            votes.map(|votes| AdaptiveNorm::new(votes, norm, cohort.report_goal())).transpose()?;
        let (lattice, path) =
            central(self.clipping_norm, multiplier, self.contributors_max, self.dimension)?;
        let cost = match cohort.sampling {
            CohortSampling::Fixed => Cost::Participation {
                event: PrivacyEvent::Gaussian { noise_multiplier: total, count: 1 },
                per_round: 1,
                delta,
            },
            CohortSampling::Poisson => Cost::Round {
                event: PrivacyEvent::PoissonGaussian {
                    sampling_rate,
                    noise_multiplier: total,
                    steps: 1,
                },
                delta,
            },
        };
        Ok(Release { lattice, path, noise_multiplier: Some(multiplier), adaptive, cost })
    }

    /// A share of the noise in every update.
    ///
    /// - `honest_min`: shares that are in any sum
    fn distributed(&self, honest_min: u32) -> Result<Release, HarnessError> {
        let norm = self.clipping_norm.value();
        let plan = |multiplier: f64| -> Result<(Lattice, f64, PrivacyEvent), HarnessError> {
            let share = multiplier / f64::from(honest_min).sqrt();
            let lattice = self.lattice(norm, norm * share)?;
            let event = PrivacyEvent::LatticeGaussian {
                sampling_rate: 1.0,
                noise_multiplier: multiplier,
                sigma_share: share * norm / lattice.step(),
                clients: honest_min,
                dimension: self.dimension as u64,
                steps: 1,
            };
            Ok((lattice, share, event))
        };
        let multiplier = match (self.noise.noise_multiplier, self.noise.epsilon) {
            (None, Some(target)) => {
                let releases = self.releases();
                smallest(target, releases, |multiplier| {
                    let (.., event) = plan(multiplier)?;
                    Ok(epsilon(&[event.with_count(releases)], self.delta)?)
                })?
            }
            (given, _) => given.expect("the experiment was checked"),
        };
        let (lattice, share, event) = plan(multiplier)?;
        let mechanism = NoisyUpdate::new(lattice, self.clipping_norm, share, self.dimension)?;
        Ok(Release {
            lattice,
            path: Path::Noised { mechanism },
            noise_multiplier: Some(multiplier),
            adaptive: None,
            cost: Cost::Participation { event, per_round: 1, delta: self.delta },
        })
    }

    /// How often the tenant that takes part most often does so.
    fn releases(&self) -> u64 {
        self.schedule.participations_max(self.experiment.rounds).max(1)
    }

    fn lattice(&self, norm_max: f64, noise_sigma: f64) -> Result<Lattice, LatticeError> {
        lattice(self.dimension, norm_max, noise_sigma, self.contributors_max, LATTICE_BITS)
    }
}

/// The most updates that a sum may have.
pub(super) fn contributors_max(experiment: &Experiment, tenants: usize) -> u32 {
    match experiment.cohort.sampling {
        CohortSampling::Fixed => experiment.cohort.report_goal(),
        CohortSampling::Poisson => tenants as u32,
    }
}

fn lattice(
    dimension: usize,
    norm_max: f64,
    noise_sigma: f64,
    contributors_max: u32,
    bits: u8,
) -> Result<Lattice, LatticeError> {
    Lattice::plan(&LatticeRequest {
        dimension,
        norm_max,
        noise_sigma,
        contributors_max,
        bits,
        wrap_probability_max: WRAP_PROBABILITY_MAX,
    })
}

/// Lattice and noise of a round whose sum the coordinator noises.
pub(super) fn central(
    clipping_norm: ClippingNorm,
    multiplier: f64,
    contributors_max: u32,
    dimension: usize,
) -> Result<(Lattice, Path), HarnessError> {
    let norm = clipping_norm.value();
    let share = norm * multiplier / f64::from(contributors_max).sqrt();
    let lattice = lattice(dimension, norm, share, contributors_max, LATTICE_BITS)?;
    let sigma = multiplier * norm / lattice.step();
    Ok((lattice, Path::Central { clipping_norm, noise: DiscreteGaussian::new(sigma)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is planned for nine tenants, eight of whom make a round.
    fn distributed(noise: &str, more: &str) -> Release {
        let text = format!(
            r#"
            name = "shares"
            rounds = 2
            tenants = 9
            [dataset.synthetic]
            examples = 90
            features = 8
            classes = 4
            [cohort]
            size = 8
            size_min = 5
            [model.mlp]
            inputs = 8
            classes = 4
            [training.null]
            [privacy.distributed]
            clipping_norm = 0.5
            {noise}
            delta = 1e-5
            {more}
            "#
        );
        let experiment = Experiment::parse(&text, std::path::Path::new("")).expect("valid");
        let schedule = Schedule::new(&experiment, &[10; 9], 1);
        Release::plan(&experiment, &schedule, 9, None).expect("plans")
    }

    /// The share of the noise and the number of shares that are accounted.
    fn shares(more: &str) -> (f64, u32) {
        let release = distributed("noise_multiplier = 1.2", more);
        let Cost::Participation {
            event: PrivacyEvent::LatticeGaussian { sigma_share, clients, .. },
            ..
        } = release.cost
        else {
            panic!("shares of lattice noise")
        };
        (sigma_share * release.lattice.step(), clients)
    }

    #[test]
    fn shares_are_sized_for_the_smallest_honest_set() {
        let (share, clients) = shares("");
        assert!((share - 0.5 * 1.2 / 5.0_f64.sqrt()).abs() < 1e-9 && clients == 5);
        let (share, clients) = shares("corrupt_max = 4");
        assert!((share - 0.5 * 1.2).abs() < 1e-9 && clients == 1);
    }

    #[test]
    fn shares_meet_a_target_from_below_as_closely_as_the_accountant_can_tell() {
        // Both rounds have all eight, so some tenant takes part twice.
        let reached = |epsilon: f64| {
            let release = distributed(&format!("epsilon = {epsilon:?}"), "");
            release.epsilon(2, 2).expect("accounted").expect("noise costs something")
        };
        for target in [0.5, 8.0, 40.0] {
            let found = reached(target);
            assert!(found <= target && found > 0.995 * target, "{found} for {target}");
        }
        // More than that no noise is certified to cost: the sampler's own distance uses up δ.
        let (most, beyond) = (reached(64.0), reached(1e4));
        assert!(most > 50.0 && most <= 64.0 && (most / beyond - 1.0).abs() < 0.005, "{most}");
    }
}
