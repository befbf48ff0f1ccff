//! How updates become what the coordinator sums, and what that costs.

mod calibrate;
mod plan;

use tributary_privacy::{
    accountant::{Delta, epsilon},
    clip::{ClippingNorm, clip_l2},
    lattice::{Lattice, ModularSum},
    mechanism::{NoisyGradientSum, NoisyUpdate, PrivacyEvent},
    noise::{DiscreteGaussian, NoiseSource},
};

use self::plan::{central, contributors_max};
use super::{HarnessError, Ranks, adaptive::AdaptiveNorm, secure::SecureRound};
use crate::experiment::Experiment;

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
        let norm_max = match &self.path {
            Path::Plain { norm_max }
            | Path::Record { norm_max, .. }
            | Path::Central { clipping_norm: norm_max, .. } => *norm_max,
            Path::Noised { mechanism } => {
                return match secure {
                    None => Ok(sum.add_packed(&mechanism.release(update, noise)?)?),
                    Some(secure) => {
                        self.add_masked(sum, mechanism.noised(update, noise)?, tenant, secure)
                    }
                };
            }
        };
        // Most updates need no clipping, and their norm is found on the way into the sum.
        let added = match secure {
            None => sum.add_unclipped(update, norm_max),
            Some(_) => None,
        };
        let clip = |update: &mut [f32]| {
            let clipped = |source| HarnessError::Clip { tenant, round, source };
            clip_l2(update, norm_max).map_err(clipped)
        };
        let norm = added.map_or_else(|| clip(update), Ok)?;
        if let Some(adaptive) = &self.adaptive {
            adaptive.vote(norm);
        }
        match (added, secure) {
            (Some(_), _) => Ok(()),
            (None, None) => Ok(sum.add_update(update, norm_max)?),
            (None, Some(secure)) => {
                self.add_masked(sum, self.lattice.quantize(update, norm_max)?, tenant, secure)
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
