//! `policy.toml`: what the tenant allows, whatever a coordinator asks for.
//!
//! A policy is checked before anything is loaded or trained. What it does not mention about a
//! dataset it does not allow: a dataset without a section takes part in nothing.

mod check;
mod refusal;
mod secagg;

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;
use thiserror::Error;
use tributary_privacy::ledger::Budget;
use tributary_protocol::{
    id::{DatasetName, Region},
    job::{PrivacyUnit, Trust},
};

pub(crate) use self::check::unit_name;
pub use self::{check::Approved, refusal::PolicyRefusal, secagg::SecaggPolicy};
use crate::{
    durable_file::{FileError, read_text},
    site::Site,
};

/// What a tenant allows.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// A job that names regions may name only these; absent, any.
    pub regions: Option<Vec<Region>>,
    /// With whom the tenant hides in a sum, where a dataset trusts `distributed`.
    #[serde(default)]
    pub secagg: SecaggPolicy,
    /// The datasets that may take part.
    #[serde(default)]
    pub datasets: BTreeMap<DatasetName, DatasetPolicy>,
}

/// What a tenant allows with one dataset.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetPolicy {
    /// The most ε that may be spent within the window.
    pub epsilon_max: f64,
    /// The δ at which ε is counted; a job may not ask for a larger one.
    pub delta: f64,
    /// How long a release counts, in days; absent, for ever.
    pub window_days: Option<u32>,
    /// Privacy units that a job may use.
    pub units: Vec<PrivacyUnit>,
    /// Who may be trusted with the noise.
    #[serde(default = "trusts_default")]
    pub trusts: Vec<Trust>,
    /// Model families that may be trained.
    pub families: Vec<String>,
    /// The least noise multiplier.
    pub noise_multiplier_min: f64,
    /// The least noise multiplier of metrics of the base that leave the site; absent, none leave.
    pub evaluation_noise_multiplier_min: Option<f64>,
    /// The smallest clipping norm, in model units; absent, any. A job whose norm adapts is held to
    /// it in every round.
    pub clipping_norm_min: Option<f64>,
    /// The largest clipping norm, in model units; absent, any.
    pub clipping_norm_max: Option<f64>,
    /// The most records that are used: the first of the file; absent, all.
    pub examples_max: Option<usize>,
    /// The largest sampling rate; absent, any. Jobs with correlated noise do not sample.
    pub sampling_rate_max: Option<f64>,
    /// The most bands of a matrix that correlates noise; absent, no job with correlated noise. Of so
    /// many steps the agent keeps gradient sums in the folder `runs`, 16 bytes a parameter each.
    pub correlated_bands_max: Option<u32>,
    /// The most local steps in a round; absent, any.
    pub local_steps_max: Option<u32>,
    /// The most parameters of a model; absent, any.
    pub parameters_max: Option<u64>,
    /// The fewest updates with which a round may commit; absent, any.
    pub cohort_size_min: Option<u32>,
}

fn trusts_default() -> Vec<Trust> {
    vec![Trust::Local]
}

/// Says which key of the policy cannot work.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("the policy cannot be read; `policy.toml` belongs in the agent's directory")]
    Read(#[from] FileError),
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("{} is not usable: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and key.
        message: String,
    },
    /// A number lies outside its range.
    #[error("{}: `{table}.{key}` is {value}; it must be {range}", path.display())]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The table.
        table: String,
        /// The key.
        key: &'static str,
        /// What was given.
        value: f64,
        /// What would work.
        range: &'static str,
    },
}

impl Policy {
    /// Reads and checks a site's policy.
    ///
    /// # Errors
    /// [`PolicyError`] naming file and key.
    pub fn load(site: &Site) -> Result<Self, PolicyError> {
        Self::parse(&read_text(&site.policy())?, site)
    }

    /// Checks the text of a policy.
    ///
    /// # Errors
    /// [`PolicyError`] naming file and key.
    pub fn parse(text: &str, site: &Site) -> Result<Self, PolicyError> {
        let path = site.policy();
        let policy: Self = toml::from_str(text).map_err(|error| PolicyError::Parse {
            path: path.clone(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        let datasets = policy
            .datasets
            .iter()
            .map(|(name, dataset)| (format!("datasets.{name}"), dataset.mistake()));
        let secagg = std::iter::once(("secagg".to_owned(), policy.secagg.mistake()));
        for (table, mistake) in datasets.chain(secagg) {
            if let Some((key, value, range)) = mistake {
                return Err(PolicyError::OutOfRange { path, table, key, value, range });
            }
        }
        Ok(policy)
    }
}

impl DatasetPolicy {
    /// What the ledger holds this dataset to.
    #[must_use]
    pub const fn budget(&self) -> Budget {
        Budget { epsilon_max: self.epsilon_max, delta: self.delta, window_days: self.window_days }
    }

    /// The first number out of its range: key, value, range.
    fn mistake(&self) -> Option<(&'static str, f64, &'static str)> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let rate = self.sampling_rate_max.unwrap_or(1.0);
        let examples = self.examples_max.unwrap_or(usize::MAX);
        let evaluation = self.evaluation_noise_multiplier_min.unwrap_or(1.0);
        let norm_min = self.clipping_norm_min.unwrap_or(f64::MIN_POSITIVE);
        let norm_max = self.clipping_norm_max.unwrap_or(f64::MAX);
        let bands = self.correlated_bands_max.unwrap_or(1);
        let window = self.window_days.unwrap_or(u32::MAX);
        let (above_zero, at_least_one) = ("a finite number above 0", "at least 1");
        let checks = [
            ("epsilon_max", self.epsilon_max, positive(self.epsilon_max), above_zero),
            ("delta", self.delta, self.delta > 0.0 && self.delta < 1.0, "between 0 and 1"),
            (
                "noise_multiplier_min",
                self.noise_multiplier_min,
                positive(self.noise_multiplier_min),
                above_zero,
            ),
            ("evaluation_noise_multiplier_min", evaluation, positive(evaluation), above_zero),
            ("clipping_norm_min", norm_min, positive(norm_min), above_zero),
            (
                "clipping_norm_max",
                norm_max,
                positive(norm_max) && norm_max >= norm_min,
                "at least `clipping_norm_min`",
            ),
            ("sampling_rate_max", rate, rate > 0.0 && rate <= 1.0, "in (0, 1]"),
            ("correlated_bands_max", f64::from(bands), bands > 0, at_least_one),
            ("examples_max", examples as f64, examples > 0, at_least_one),
            ("window_days", f64::from(window), window > 0, at_least_one),
            (
                "units",
                self.units.len() as f64,
                !self.units.is_empty(),
                "a list with \"record\" or \"tenant\"",
            ),
            (
                "families",
                self.families.len() as f64,
                !self.families.is_empty(),
                "a list of model families, as \"mlp\"",
            ),
        ];
        let wrong = checks.into_iter().find(|&(_, _, holds, _)| !holds);
        wrong.map(|(key, value, _, range)| (key, value, range))
    }
}

#[cfg(test)]
mod tests;
