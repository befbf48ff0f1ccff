//! Noise that is correlated over the steps of a run.

use serde::{Deserialize, Serialize};

use super::{JobSpec, JobSpecError, PrivacyUnit, Trust};

/// The bands of a matrix, at most.
const BANDS_MAX: u32 = 1024;
/// The steps of a run, at most.
const STEPS_MAX: u64 = 1 << 20;

/// Noise that is correlated over the steps of a run, so that most of it cancels in their sum
/// (DP-FTRL): for tenants that cannot sample.
///
/// Every agent divides its records into `groups` fixed groups; step t of its run takes all of group
/// t modulo `groups`. So one record takes part once in `groups` steps, and the whole run is paid
/// with its first round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorrelatedNoise {
    /// Bands of the matrix that correlates the noise, from 1 (independent) to 1024. An agent keeps
    /// the gradient sums of so many steps.
    pub bands: u32,
    /// Groups of records, and with it the steps between two participations of one record.
    pub groups: u32,
    /// Rounds of one agent's run, each of `training.local_steps` steps. After them, the next round
    /// begins a new run, which costs as much again.
    pub rounds_max: u64,
}

impl JobSpec {
    /// Steps of one agent's whole run with correlated noise; `None` for independent noise.
    #[must_use]
    pub fn steps_of_run(&self) -> Option<u64> {
        let correlated = self.privacy.correlated.as_ref()?;
        Some(correlated.rounds_max.saturating_mul(self.training.local_steps.into()))
    }

    pub(super) fn validate_correlated(&self) -> Result<(), JobSpecError> {
        let Some(CorrelatedNoise { bands, groups, rounds_max }) = self.privacy.correlated else {
            return Ok(());
        };
        let (trust, unit) = (self.privacy.trust, self.privacy.unit);
        let reason = match (trust, unit) {
            (Trust::Local, PrivacyUnit::Record) => None,
            (Trust::Local, PrivacyUnit::Tenant) => {
                Some("the noise of single steps hides records; use unit \"record\"")
            }
            _ => Some("an agent's noise cancels only in its own later steps; use trust \"local\""),
        };
        if let Some(reason) = reason {
            let what = "`privacy.correlated` with this trust and unit";
            return Err(JobSpecError::Combination { what, reason });
        }
        let (steps, rate) = (self.steps_of_run().unwrap_or(0), self.training.sampling_rate);
        let checks = [
            (
                "privacy.correlated.bands",
                bands.into(),
                (1..=BANDS_MAX).contains(&bands),
                "between 1 and 1024",
            ),
            ("privacy.correlated.groups", groups.into(), groups > 0, "at least 1"),
            (
                "privacy.correlated.rounds_max",
                rounds_max as f64,
                (1..=STEPS_MAX).contains(&steps),
                "at least 1, and at most 2^20 together with `training.local_steps`",
            ),
            (
                "training.sampling_rate",
                rate,
                rate == 1.0,
                "1 with `privacy.correlated`: a step takes all of its group, nothing is sampled",
            ),
        ];
        match checks.into_iter().find(|&(_, _, holds, _)| !holds) {
            Some((field, value, _, range)) => Err(JobSpecError::OutOfRange { field, value, range }),
            None => Ok(()),
        }
    }
}
