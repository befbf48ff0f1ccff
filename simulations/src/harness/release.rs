//! How updates become what the coordinator sums, and what that costs.

use tributary_privacy::{
    accountant::{Delta, calibrate_noise_multiplier, epsilon},
    clip::{ClippingNorm, clip_l2},
    lattice::{Lattice, LatticeError, LatticeRequest, ModularSum},
    mechanism::{NoisyGradientSum, NoisyUpdate, PrivacyEvent},
    noise::{DiscreteGaussian, NoiseSource},
    secagg::SecaggPlan,
};
use tributary_protocol::job::{PrivacyUnit, TrainingPlan};

use super::{
    HarnessError, Ranks, Schedule,
    adaptive::{AdaptiveNorm, with_votes, without_votes},
    secure::SecureRound,
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

/// The path of an update into the sum.
pub(super) struct Release {
    pub(super) lattice: Lattice,
    pub(super) path: Path,
    /// Noise deviation of the protected sum over clipping norm.
    pub(super) noise_multiplier: Option<f64>,
    /// Where the clipping norm follows the updates' norms.
    adaptive: Option<AdaptiveNorm>,
    cost: Cost,
}

/// Whose update is added, in which round, and with which masks.
#[derive(Clone, Copy)]
pub(super) struct Sender<'a> {
    pub(super) tenant: u32,
    pub(super) round: u64,
    pub(super) secure: Option<&'a SecureRound>,
}

/// What happens to an update on its way.
pub(super) enum Path {
    /// Clipped to a generous norm that sizes the lattice.
    Plain { norm_max: ClippingNorm },
    /// DP-SGD: the update is private before it is clipped to the lattice's norm.
    Record { mechanism: NoisyGradientSum, norm_max: ClippingNorm },
    /// Clipped and noised by the tenant: all of the noise, or a share of it.
    Noised { mechanism: NoisyUpdate },
    /// Clipped by the tenant; the coordinator noises the sum.
    Central { clipping_norm: ClippingNorm, noise: DiscreteGaussian },
}

/// What the releases of a run cost.
enum Cost {
    Nothing,
    /// One event a participation.
    Participation {
        event: PrivacyEvent,
        per_round: u64,
        delta: Delta,
    },
    /// One event a round, whoever takes part: the sample is secret.
    Round {
        event: PrivacyEvent,
        delta: Delta,
    },
}

impl Release {
    /// Plans lattice and noise of a run.
    pub(super) fn plan(
        experiment: &Experiment,
        schedule: &Schedule,
        tenants: usize,
        secagg: Option<SecaggPlan>,
    ) -> Result<Self, HarnessError> {
        let dimension = experiment.federated.dimension(&experiment.model);
        let cohort = &experiment.cohort;
        let contributors_max = contributors_max(experiment, tenants);
        let lattice = |norm_max: f64, noise_sigma: f64, bits: u8| {
            lattice(dimension, norm_max, noise_sigma, contributors_max, bits)
        };
        let Some(noise) = experiment.privacy.noise() else {
            let PrivacySpec::None { update_norm_max } = experiment.privacy else {
                unreachable!("every other mode has noise")
            };
            let lattice = lattice(update_norm_max, 0.0, PLAIN_BITS)?;
            let path = Path::Plain { norm_max: ClippingNorm::new(update_norm_max)? };
            return Ok(Self {
                lattice,
                path,
                noise_multiplier: None,
                adaptive: None,
                cost: Cost::Nothing,
            });
        };
        let delta = Delta::new(noise.delta)?;
        let clipping_norm = ClippingNorm::new(noise.clipping_norm)?;
        let norm = clipping_norm.value();
        let releases = || schedule.participations_max(experiment.rounds).max(1);
        match &experiment.privacy {
            PrivacySpec::None { .. } => unreachable!("handled above"),
            PrivacySpec::Local { unit: PrivacyUnit::Record, .. } => {
                let TrainingSpec::Steps(plan) = &experiment.training else {
                    unreachable!("the experiment was checked")
                };
                let TrainingPlan { sampling_rate, local_steps, update_norm_max, .. } = *plan;
                let per_round = u64::from(local_steps);
                let multiplier = multiplier(&noise, delta, sampling_rate, || {
                    (releases() * per_round, releases())
                })?;
                let mechanism = NoisyGradientSum::new(clipping_norm, multiplier, dimension)?;
                let event = mechanism.event(sampling_rate);
                let norm_max = ClippingNorm::new(update_norm_max)?;
                Ok(Self {
                    lattice: lattice(update_norm_max, 0.0, LATTICE_BITS)?,
                    path: Path::Record { mechanism, norm_max },
                    noise_multiplier: Some(multiplier),
                    adaptive: None,
                    cost: Cost::Participation { event, per_round, delta },
                })
            }
            PrivacySpec::Local { unit: PrivacyUnit::Tenant, .. } => {
                let multiplier = multiplier(&noise, delta, 1.0, || (releases(), releases()))?;
                let lattice = lattice(norm, norm * multiplier, LATTICE_BITS)?;
                let mechanism = NoisyUpdate::new(lattice, clipping_norm, multiplier, dimension)?;
                let event = mechanism.event();
                Ok(Self {
                    lattice,
                    path: Path::Noised { mechanism },
                    noise_multiplier: Some(multiplier),
                    adaptive: None,
                    cost: Cost::Participation { event, per_round: 1, delta },
                })
            }
            PrivacySpec::Central { .. } => {
                // The coordinator is trusted and nobody else sees who takes part, so a Poisson
                // sample may be amplified; a fixed-size one is accounted as if it were known.
                let (sampling_rate, releases) = match cohort.sampling {
                    CohortSampling::Fixed => (1.0, releases()),
                    CohortSampling::Poisson => {
                        (f64::from(cohort.size) / tenants as f64, experiment.rounds)
                    }
                };
                let total = multiplier(&noise, delta, sampling_rate, || (releases, releases))?;
                let votes = experiment.privacy.adaptive();
                // What the sum itself gets, and what it costs together with the votes.
                let (multiplier, total) = match (votes, noise.epsilon) {
                    (None, _) => (total, total),
                    (Some(votes), None) => (total, with_votes(total, votes.count_noise_multiplier)),
                    (Some(votes), Some(epsilon)) => {
                        let given = votes.count_noise_multiplier;
                        let needed = total;
                        let left = without_votes(total, given).ok_or(ExperimentError::Votes {
                            epsilon,
                            given,
                            needed,
                        })?;
                        (left, total)
                    }
                };
                let adaptive = votes
                    .map(|votes| AdaptiveNorm::new(votes, norm, cohort.report_goal()))
                    .transpose()?;
                let (lattice, path) =
                    central(clipping_norm, multiplier, contributors_max, dimension)?;
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
                Ok(Self { lattice, path, noise_multiplier: Some(multiplier), adaptive, cost })
            }
            PrivacySpec::Distributed { corrupt_max, .. } => {
                // Whatever the round commits with, so many honest shares are in the sum.
                let honest_min = secagg
                    .map_or(cohort.size_min - corrupt_max, |plan| plan.honest_survivors_min());
                let plan = |multiplier: f64| -> Result<(Lattice, f64, PrivacyEvent), HarnessError> {
                    let share = multiplier / f64::from(honest_min).sqrt();
                    let lattice = lattice(norm, norm * share, LATTICE_BITS)?;
                    let event = PrivacyEvent::LatticeGaussian {
                        sampling_rate: 1.0,
                        noise_multiplier: multiplier,
                        sigma_share: share * norm / lattice.step(),
                        clients: honest_min,
                        dimension: dimension as u64,
                        steps: 1,
                    };
                    Ok((lattice, share, event))
                };
                let multiplier = match (noise.noise_multiplier, noise.epsilon) {
                    (None, Some(target)) => {
                        let releases = releases();
                        smallest(target, releases, |multiplier| {
                            let (.., event) = plan(multiplier)?;
                            Ok(epsilon(&[event.with_count(releases)], delta)?)
                        })?
                    }
                    (given, _) => given.expect("the experiment was checked"),
                };
                let (lattice, share, event) = plan(multiplier)?;
                let mechanism = NoisyUpdate::new(lattice, clipping_norm, share, dimension)?;
                Ok(Self {
                    lattice,
                    path: Path::Noised { mechanism },
                    noise_multiplier: Some(multiplier),
                    adaptive: None,
                    cost: Cost::Participation { event, per_round: 1, delta },
                })
            }
        }
    }

    /// Clips, noises and adds one update, or masks and adds it.
    ///
    /// - `update`: in model units; of no use afterwards
    pub(super) fn add(
        &self,
        sum: &mut ModularSum,
        update: &mut [f32],
        noise: &mut impl NoiseSource,
        sender: &Sender<'_>,
    ) -> Result<(), HarnessError> {
        let Sender { tenant, round, secure } = *sender;
        let clipped = |source| HarnessError::Clip { tenant, round, source };
        let norm_max = match &self.path {
            Path::Plain { norm_max }
            | Path::Record { norm_max, .. }
            | Path::Central { clipping_norm: norm_max, .. } => {
                let norm = clip_l2(update, *norm_max).map_err(clipped)?;
                if let Some(adaptive) = &self.adaptive {
                    adaptive.vote(norm);
                }
                norm_max
            }
            Path::Noised { mechanism } => {
                return match secure {
                    None => Ok(sum.add_packed(&mechanism.release(update, noise)?)?),
                    Some(secure) => {
                        self.add_masked(sum, mechanism.noised(update, noise)?, tenant, secure)
                    }
                };
            }
        };
        match secure {
            None => Ok(sum.add_update(update, *norm_max)?),
            Some(secure) => {
                self.add_masked(sum, self.lattice.quantize(update, *norm_max)?, tenant, secure)
            }
        }
    }

    fn add_masked(
        &self,
        sum: &mut ModularSum,
        grid: Vec<i64>,
        tenant: u32,
        secure: &SecureRound,
    ) -> Result<(), HarnessError> {
        let mask = u32::MAX >> (32 - u32::from(self.lattice.bits()));
        let mut values: Vec<u32> = grid.into_iter().map(|units| units as u32 & mask).collect();
        Ok(sum.add_packed(&secure.mask(tenant, &mut values)?)?)
    }

    /// The ε after some rounds, for a tenant that took part so often.
    pub(super) fn epsilon(
        &self,
        rounds: u64,
        participations: u64,
    ) -> Result<Option<f64>, HarnessError> {
        Ok(match &self.cost {
            Cost::Nothing => None,
            Cost::Participation { event, per_round, delta } => {
                Some(epsilon(&[event.with_count(participations * per_round)], *delta)?)
            }
            Cost::Round { event, delta } => Some(epsilon(&[event.with_count(rounds)], *delta)?),
        })
    }

    /// The clipping norm of the open round, where it adapts.
    pub(super) fn adaptive_norm(&self) -> Option<f64> {
        self.adaptive.as_ref().map(|adaptive| adaptive.norm().value())
    }

    /// Ends a round: the next one clips and noises with the norm that the votes lead to.
    ///
    /// - `committed`: whether the round became a model; else its votes are forgotten
    /// - returns: whether lattice and noise are others now
    pub(super) fn adapt(
        &mut self,
        experiment: &Experiment,
        tenants: usize,
        committed: bool,
        ranks: &dyn Ranks,
        noise: &mut impl NoiseSource,
    ) -> Result<bool, HarnessError> {
        let Some(adaptive) = &mut self.adaptive else { return Ok(false) };
        if !committed {
            adaptive.forget();
            return Ok(false);
        }
        let norm = adaptive.follow(ranks, noise);
        self.clip_to(norm, experiment, tenants)?;
        Ok(true)
    }

    /// Goes on with a norm that an earlier part of the run adapted.
    pub(super) fn restore_norm(
        &mut self,
        norm: f64,
        experiment: &Experiment,
        tenants: usize,
    ) -> Result<(), HarnessError> {
        let norm = ClippingNorm::new(norm)?;
        if let Some(votes) = experiment.privacy.adaptive() {
            let contributors = experiment.cohort.report_goal();
            self.adaptive = Some(AdaptiveNorm::new(votes, norm.value(), contributors)?);
        }
        self.clip_to(norm, experiment, tenants)
    }

    fn clip_to(
        &mut self,
        norm: ClippingNorm,
        experiment: &Experiment,
        tenants: usize,
    ) -> Result<(), HarnessError> {
        let multiplier = self.noise_multiplier.expect("only noised sums adapt");
        let dimension = experiment.federated.dimension(&experiment.model);
        let contributors_max = contributors_max(experiment, tenants);
        (self.lattice, self.path) = central(norm, multiplier, contributors_max, dimension)?;
        Ok(())
    }

    /// Adds the coordinator's noise to the sum of a round, where that is its task.
    pub(super) fn finish(
        &self,
        sum: &mut ModularSum,
        noise: &mut impl NoiseSource,
    ) -> Result<(), HarnessError> {
        if let Path::Central { noise: gaussian, .. } = &self.path {
            let mut grid = vec![0; sum.values().len()];
            gaussian.add_to(noise, &mut grid);
            sum.add_grid(&grid)?;
        }
        Ok(())
    }
}

/// The most updates that a sum may have.
fn contributors_max(experiment: &Experiment, tenants: usize) -> u32 {
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
fn central(
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

/// The noise multiplier as given, or as the wanted ε needs.
///
/// - `releases`: events of the tenant that takes part most often, and its participations
fn multiplier(
    noise: &NoiseSpec,
    delta: Delta,
    sampling_rate: f64,
    releases: impl FnOnce() -> (u64, u64),
) -> Result<f64, HarnessError> {
    match (noise.noise_multiplier, noise.epsilon) {
        (None, Some(epsilon)) => {
            let (steps, releases) = releases();
            calibrate_noise_multiplier(epsilon, delta, sampling_rate, steps)
                .map_err(|source| ExperimentError::Unreachable { epsilon, releases, source }.into())
        }
        (given, _) => Ok(given.expect("the experiment was checked")),
    }
}

/// The smallest multiplier (up to a thousandth above) that reaches an ε.
///
/// - `reached`: ε by multiplier
fn smallest(
    target: f64,
    releases: u64,
    reached: impl Fn(f64) -> Result<f64, HarnessError>,
) -> Result<f64, HarnessError> {
    let (mut low, mut high) = (0.05_f64, 0.1_f64);
    let mut least = f64::INFINITY;
    loop {
        match reached(high) {
            Ok(epsilon) if epsilon <= target => break,
            Ok(epsilon) => {
                least = epsilon;
                (low, high) = (high, high * 2.0);
            }
            // More noise than the lattice can hold.
            Err(HarnessError::Lattice(_)) if least.is_finite() => {
                let epsilon = target;
                return Err(ExperimentError::TooMuchNoise { epsilon, releases, least }.into());
            }
            Err(error) => return Err(error),
        }
    }
    while high / low > 1.001 {
        let middle = (low * high).sqrt();
        if reached(middle)? <= target { high = middle } else { low = middle }
    }
    Ok(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The share of the noise and the number of shares that are accounted.
    fn shares(more: &str) -> (f64, u32) {
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
            noise_multiplier = 1.2
            delta = 1e-5
            {more}
            "#
        );
        let experiment = Experiment::parse(&text, std::path::Path::new("")).expect("valid");
        let schedule = Schedule::new(&experiment, &[10; 9], 1);
        let release = Release::plan(&experiment, &schedule, 9, None).expect("plans");
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
}
