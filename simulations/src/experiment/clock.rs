//! Virtual time: how long tenants take, and whether rounds wait for them.

use serde::{Deserialize, Serialize};

use super::{CohortSampling, Experiment, ExperimentError, PrivacySpec, check::is_positive};

/// How long tenants take in virtual time; nobody waits for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockSpec {
    /// A local step of an ordinary tenant, in seconds.
    #[serde(default = "default_step_s")]
    pub step_s: f64,
    /// Everything beside training, transfers for example, in seconds.
    #[serde(default = "default_report_s")]
    pub report_s: f64,
    /// Deviation of the logarithm of a tenant's slowness; a tenant keeps its own for the whole run.
    #[serde(default)]
    pub spread: f64,
    /// Share of the population that is slower still.
    #[serde(default)]
    pub straggler_share: f64,
    /// How many times slower these are.
    #[serde(default = "default_straggler_slowdown")]
    pub straggler_slowdown: f64,
    /// After so long a synchronous round goes on with the updates that came, in seconds.
    #[serde(default)]
    pub report_timeout_s: Option<f64>,
}

/// Buffered asynchronous rounds: `cohort.size` tenants train at any time, each from the base of
/// when it began, and the base moves whenever `cohort.report_goal` updates have come.
///
/// Source: Nguyen et al. 2022, arXiv:2106.06639 (FedBuff).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AsynchronousSpec {
    /// Updates that began more versions ago are thrown away.
    #[serde(default = "default_staleness_max")]
    pub staleness_max: u32,
    /// An update that began s versions ago counts `(1 + s)` to the minus this.
    #[serde(default = "default_staleness_exponent")]
    pub staleness_exponent: f64,
}

const fn default_step_s() -> f64 {
    0.05
}

const fn default_report_s() -> f64 {
    1.0
}

const fn default_straggler_slowdown() -> f64 {
    10.0
}

const fn default_staleness_max() -> u32 {
    10
}

const fn default_staleness_exponent() -> f64 {
    0.5
}

impl AsynchronousSpec {
    /// What an update that began so many versions ago counts.
    #[must_use]
    pub fn weight(&self, staleness: u32) -> f64 {
        (1.0 + f64::from(staleness)).powf(-self.staleness_exponent)
    }
}

impl ClockSpec {
    pub(super) fn check(&self) -> Result<(), ExperimentError> {
        let not_negative = |value: f64| value.is_finite() && value >= 0.0;
        let positive = "a finite number above 0";
        let checks = [
            ("clock.step_s", self.step_s, not_negative(self.step_s), "at least 0"),
            ("clock.report_s", self.report_s, is_positive(self.report_s), positive),
            ("clock.spread", self.spread, not_negative(self.spread), "at least 0"),
            (
                "clock.straggler_share",
                self.straggler_share,
                (0.0..=1.0).contains(&self.straggler_share),
                "from 0 to 1",
            ),
            (
                "clock.straggler_slowdown",
                self.straggler_slowdown,
                self.straggler_slowdown.is_finite() && self.straggler_slowdown >= 1.0,
                "at least 1",
            ),
            (
                "clock.report_timeout_s",
                self.report_timeout_s.unwrap_or(1.0),
                self.report_timeout_s.is_none_or(is_positive),
                positive,
            ),
        ];
        match checks.into_iter().find(|&(_, _, holds, _)| !holds) {
            Some((field, value, _, range)) => {
                Err(ExperimentError::OutOfRange { field, value, range })
            }
            None => Ok(()),
        }
    }
}

impl AsynchronousSpec {
    pub(super) fn check(&self, experiment: &Experiment) -> Result<(), ExperimentError> {
        let exponent = self.staleness_exponent;
        if !(exponent.is_finite() && exponent >= 0.0) {
            return Err(ExperimentError::OutOfRange {
                field: "asynchronous.staleness_exponent",
                value: exponent,
                range: "at least 0",
            });
        }
        let conflict = |problem| ExperimentError::Conflict { field: "asynchronous", problem };
        if experiment.clock.is_none() {
            return Err(conflict("needs `[clock]`: without time everybody is equally fast"));
        }
        if experiment.cohort.sampling == CohortSampling::Poisson {
            return Err(conflict("keeps `cohort.size` tenants busy; remove `cohort.sampling`"));
        }
        if experiment.secagg.is_some() {
            return Err(conflict(
                "members of a secure sum must start together; remove `[secagg]` or this",
            ));
        }
        match experiment.privacy {
            PrivacySpec::None { .. } | PrivacySpec::Local { .. } => Ok(()),
            PrivacySpec::Central { .. } | PrivacySpec::Distributed { .. } => Err(conflict(
                "weighs updates by their age, and the noise of a sum is planned for equal weights; \
                 use `privacy.local` or `privacy.none`",
            )),
        }
    }
}
