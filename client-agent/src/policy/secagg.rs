use serde::Deserialize;
use tributary_protocol::{
    id::{Digest, TenantId},
    job::{Adversary, JobSpec},
};

use super::PolicyRefusal;

/// With whom the tenant hides in a sum.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecaggPolicy {
    /// The fewest tenants whose sum may be revealed, this one included.
    pub cohort_size_min: u32,
    /// The least fraction of a cohort that a job must expect to collude with the coordinator.
    pub corrupt_min: f64,
    /// What a job may assume of the coordinator.
    pub adversaries: Vec<Adversary>,
    /// The only tenants with which this one takes part; absent, any of the coordinator's authority.
    pub peers: Option<Vec<TenantId>>,
    /// Fingerprints of the authorities whose word on other tenants counts; absent, the one that the
    /// agent is enrolled with.
    pub authorities: Option<Vec<Digest>>,
}

impl Default for SecaggPolicy {
    fn default() -> Self {
        Self {
            cohort_size_min: 3,
            corrupt_min: 0.0,
            adversaries: vec![Adversary::SemiHonest, Adversary::MaliciousCoordinator],
            peers: None,
            authorities: None,
        }
    }
}

impl SecaggPolicy {
    /// The first value out of its range: key, value, range.
    pub(super) fn mistake(&self) -> Option<(&'static str, f64, &'static str)> {
        let checks = [
            (
                "cohort_size_min",
                f64::from(self.cohort_size_min),
                self.cohort_size_min >= 3,
                "at least 3: of two, each learns the other's part",
            ),
            (
                "corrupt_min",
                self.corrupt_min,
                (0.0..1.0).contains(&self.corrupt_min),
                "at least 0 and below 1",
            ),
            (
                "adversaries",
                self.adversaries.len() as f64,
                !self.adversaries.is_empty(),
                "a list with \"semi-honest\" or \"malicious-coordinator\"",
            ),
        ];
        let wrong = checks.into_iter().find(|&(_, _, holds, _)| !holds);
        wrong.map(|(key, value, _, range)| (key, value, range))
    }

    /// Decides about a job document, before there is a cohort.
    pub(super) fn check_job(&self, job: &JobSpec) -> Result<(), PolicyRefusal> {
        let Some(secagg) = &job.secagg else { return Ok(()) };
        if !self.adversaries.contains(&secagg.adversary) {
            let names: Vec<_> = self.adversaries.iter().map(|&it| format!("{it:?}")).collect();
            return Err(PolicyRefusal::NotAllowed {
                key: "secagg.adversaries",
                asked: format!("adversary {:?}", secagg.adversary),
                allowed: names.join(", "),
            });
        }
        let at_least = |asked_key, asked: f64, key, min: f64| {
            if asked >= min {
                Ok(())
            } else {
                Err(PolicyRefusal::BelowMin { asked_key, asked, key, min })
            }
        };
        at_least("secagg.corrupt_max", secagg.corrupt_max, "secagg.corrupt_min", self.corrupt_min)?;
        at_least(
            "round.cohort_size_min",
            job.round.cohort_size_min.into(),
            "secagg.cohort_size_min",
            self.cohort_size_min.into(),
        )
    }
}
