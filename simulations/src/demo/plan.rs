//! The job that the demo submits: the experiment file, fitted to what the user asked for.

use thiserror::Error;
use tributary_privacy::{
    accountant::{self, AccountantError},
    mechanism::PrivacyEvent,
};
use tributary_protocol::job::{JobSpec, JobSpecError};

use super::options::DemoOptions;
use crate::data::fashion_mnist::TRAIN_EXAMPLES;

const EXPERIMENT: &str = include_str!("../../experiments/fashion-mnist-demo.toml");
const SECAGG_EXPERIMENT: &str = include_str!("../../experiments/fashion-mnist-secagg.toml");

/// Concentration of the class mixes: strongly non-IID.
pub const ALPHA: f64 = 0.3;
/// The most ε that the demo's tenants let their data spend.
pub const EPSILON_MAX: f64 = 8.0;
const QUICK_ROUNDS: u64 = 5;
const QUICK_SHARE: u32 = 5;

/// Says why no job can be planned.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The experiment file is wrong.
    #[error("the demo's experiment file cannot be used")]
    Experiment(#[source] toml::de::Error),
    /// The request makes an impossible job.
    #[error("no job can be made with these options")]
    Job(#[from] JobSpecError),
    /// The job cannot be written as TOML.
    #[error("the job cannot be written")]
    Write(#[from] toml::ser::Error),
    /// The privacy of the job cannot be computed.
    #[error("the privacy of {rounds} rounds cannot be planned")]
    Privacy {
        /// Rounds asked for.
        rounds: u64,
        /// Why.
        #[source]
        source: AccountantError,
    },
    /// There must be somebody to train (with secure aggregation, enough to hide among and to lose
    /// one), and few enough to start.
    #[error("the demo runs with {min} to {max} tenants, not {tenants}")]
    Tenants {
        /// What was asked for.
        tenants: usize,
        /// The fewest that work.
        min: u32,
        /// The most that works.
        max: u32,
    },
}

/// The most agents that one demo starts.
const TENANTS_MAX: u32 = 64;
/// The fewest agents of a demo that kills one of them.
const SECAGG_TENANTS_MIN: u32 = 5;

/// A fitted job.
#[derive(Debug, Clone, PartialEq)]
pub struct DemoPlan {
    /// What is submitted.
    pub job: JobSpec,
    /// Training examples that the tenants share.
    pub examples: u32,
    /// The experiment file's noise multiplier, if more noise was needed to stay in the budget.
    pub noise_raised_from: Option<f64>,
}

impl DemoPlan {
    /// Fits the experiment file to the options.
    ///
    /// Every tenant is invited to every round. The public batch size keeps its ratio to the
    /// tenants' shares, so that the learning rate still fits; more rounds than the budget allows
    /// at the file's noise get more noise, never more ε.
    ///
    /// # Errors
    /// [`PlanError`] naming the option that cannot work.
    pub fn fit(options: &DemoOptions) -> Result<Self, PlanError> {
        let experiment = if options.secagg { SECAGG_EXPERIMENT } else { EXPERIMENT };
        let mut job: JobSpec = toml::from_str(experiment).map_err(PlanError::Experiment)?;
        let min = if options.secagg { SECAGG_TENANTS_MIN } else { 1 };
        let tenants = u32::try_from(options.tenants)
            .ok()
            .filter(|tenants| (min..=TENANTS_MAX).contains(tenants))
            .ok_or(PlanError::Tenants { tenants: options.tenants, min, max: TENANTS_MAX })?;
        let examples = if options.quick { TRAIN_EXAMPLES / QUICK_SHARE } else { TRAIN_EXAMPLES };
        let smaller = f64::from(job.round.cohort_size) / f64::from(tenants)
            * (f64::from(examples) / f64::from(TRAIN_EXAMPLES));
        let batch_size = (f64::from(job.training.batch_size_expected) * smaller).round();
        job.training.batch_size_expected = (batch_size as u32).max(1);
        job.round.cohort_size = tenants;
        let fewest = match &job.secagg {
            // One agent is killed; more than the noise is sized for may not be lost.
            Some(_) => tenants - 1,
            None => job.round.cohort_size_min.min(tenants),
        };
        job.round.cohort_size_min = fewest;
        job.round.report_goal = tenants;
        let quick_rounds = options.quick.then_some(QUICK_ROUNDS);
        job.round.rounds = options.rounds.or(quick_rounds).unwrap_or(job.round.rounds);
        job.validate()?;
        let noise_raised_from = fit_noise(&mut job)?;
        Ok(Self { job, examples, noise_raised_from })
    }

    /// The job as the file that `job submit` takes.
    ///
    /// # Errors
    /// [`PlanError::Write`], if a value has no TOML form.
    pub fn job_file(&self) -> Result<String, PlanError> {
        Ok(toml::to_string(&self.job)?)
    }
}

fn fit_noise(job: &mut JobSpec) -> Result<Option<f64>, PlanError> {
    let rounds = job.round.rounds;
    let failed = |source| PlanError::Privacy { rounds, source };
    let steps = rounds.saturating_mul(job.training.local_steps.into());
    let delta = accountant::Delta::new(job.privacy.delta).map_err(failed)?;
    let (sampling_rate, noise_multiplier) =
        (job.training.sampling_rate, job.privacy.noise_multiplier);
    let event = PrivacyEvent::PoissonGaussian { sampling_rate, noise_multiplier, steps };
    if accountant::epsilon(&[event], delta).map_err(failed)? <= EPSILON_MAX {
        return Ok(None);
    }
    job.privacy.noise_multiplier =
        accountant::calibrate_noise_multiplier(EPSILON_MAX, delta, sampling_rate, steps)
            .map_err(failed)?;
    Ok(Some(noise_multiplier))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(tenants: usize, rounds: Option<u64>, quick: bool) -> DemoOptions {
        DemoOptions { tenants, rounds, seed: 1, folder: None, serve: false, quick, secagg: false }
    }

    #[test]
    fn the_experiment_file_is_the_default_plan() {
        let plan = DemoPlan::fit(&options(4, None, false)).unwrap();
        let file: JobSpec = toml::from_str(EXPERIMENT).unwrap();
        assert_eq!(plan.job, file, "the file itself must stay within the budget");
        assert_eq!(plan.noise_raised_from, None);
    }

    #[test]
    fn tenants_and_rounds_are_fitted_and_written() {
        let plan = DemoPlan::fit(&options(8, Some(2), true)).unwrap();
        let whole: JobSpec = toml::from_str(EXPERIMENT).unwrap();
        assert_eq!(plan.job.round.report_goal, 8);
        assert_eq!(plan.job.round.rounds, 2);
        let ratio = f64::from(whole.training.batch_size_expected)
            / f64::from(plan.job.training.batch_size_expected);
        assert!((ratio - 10.0).abs() < 0.5, "{ratio}");
        let read: JobSpec = toml::from_str(&plan.job_file().unwrap()).unwrap();
        assert_eq!(read, plan.job);
    }

    #[test]
    fn more_rounds_get_more_noise_and_never_more_epsilon() {
        let plan = DemoPlan::fit(&options(4, Some(2000), false)).unwrap();
        assert!(plan.job.privacy.noise_multiplier > plan.noise_raised_from.unwrap());
        let mut again = plan.job.clone();
        assert_eq!(fit_noise(&mut again).unwrap(), None, "the raised noise fits the budget");
    }

    #[test]
    fn secure_aggregation_has_an_experiment_of_its_own_and_five_tenants_at_least() {
        let plan = DemoPlan::fit(&DemoOptions { secagg: true, ..options(5, None, false) }).unwrap();
        let file: JobSpec = toml::from_str(SECAGG_EXPERIMENT).unwrap();
        assert_eq!(plan.job, file, "the file itself must stay within the budget");
        let error = DemoPlan::fit(&DemoOptions { secagg: true, ..options(4, None, false) });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("5 to 64 tenants"), "{error}");
    }

    #[test]
    fn impossible_populations_are_named() {
        for tenants in [0, 65] {
            let error = DemoPlan::fit(&options(tenants, None, false)).unwrap_err().to_string();
            assert!(error.contains("1 to 64 tenants"), "{error}");
        }
        assert!(DemoPlan::fit(&options(4, Some(0), false)).is_err());
    }
}
