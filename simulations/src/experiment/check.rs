//! What an experiment must fulfil beyond being well formed.

use tributary_protocol::{
    job::{AggregationRule, LocalAlgorithm},
    model::FederatedPart,
};

use super::{
    AdaptersSpec, Attack, ClockSpec, Experiment, ExperimentError, PrivacySpec, TrainingSpec,
};

impl Experiment {
    /// Refuses what cannot run.
    pub(super) fn check(&self) -> Result<(), ExperimentError> {
        self.model.validate()?;
        self.federated.validate(&self.model)?;
        self.server_optimizer.validate()?;
        self.privacy.check(self)?;
        self.check_algorithms()?;
        self.secagg.as_ref().map_or(Ok(()), |secagg| secagg.check(self))?;
        self.clock.as_ref().map_or(Ok(()), ClockSpec::check)?;
        self.asynchronous.as_ref().map_or(Ok(()), |asynchronous| asynchronous.check(self))?;
        self.adapters.as_ref().map_or(Ok(()), AdaptersSpec::check)?;
        self.check_ranges()
    }

    /// Refuses numbers outside their ranges.
    fn check_ranges(&self) -> Result<(), ExperimentError> {
        let (cohort, positive) = (&self.cohort, "a finite number above 0");
        let at_least_one = |field, value: f64| (field, value, value >= 1.0, "at least 1");
        let mut checks = vec![
            at_least_one("seeds", self.seeds.len() as f64),
            at_least_one("rounds", self.rounds as f64),
            at_least_one("checkpoint_every", self.checkpoint_every as f64),
            at_least_one("evaluation.every", self.evaluation.every as f64),
            at_least_one("cohort.size", cohort.size.into()),
            at_least_one("cohort.size_min", cohort.size_min.into()),
            (
                "cohort.report_goal",
                cohort.report_goal().into(),
                (cohort.size_min..=cohort.size).contains(&cohort.report_goal()),
                "from `cohort.size_min` to `cohort.size`",
            ),
            (
                "cohort.dropout_rate",
                cohort.dropout_rate,
                (0.0..1.0).contains(&cohort.dropout_rate),
                "at least 0 and below 1",
            ),
        ];
        match &self.training {
            TrainingSpec::Epochs(epochs) => checks.extend([
                at_least_one("training.epochs.batch_size", epochs.batch_size.into()),
                at_least_one("training.epochs.local_epochs", epochs.local_epochs.into()),
                (
                    "training.epochs.client_learning_rate",
                    epochs.client_learning_rate,
                    is_positive(epochs.client_learning_rate),
                    positive,
                ),
            ]),
            TrainingSpec::Steps(plan) => checks.extend([
                at_least_one("training.steps.local_steps", plan.local_steps.into()),
                at_least_one("training.steps.batch_size_expected", plan.batch_size_expected.into()),
                (
                    "training.steps.sampling_rate",
                    plan.sampling_rate,
                    plan.sampling_rate > 0.0 && plan.sampling_rate <= 1.0,
                    "in (0, 1]",
                ),
                (
                    "training.steps.client_learning_rate",
                    plan.client_learning_rate,
                    is_positive(plan.client_learning_rate),
                    positive,
                ),
                (
                    "training.steps.update_norm_max",
                    plan.update_norm_max,
                    is_positive(plan.update_norm_max),
                    positive,
                ),
            ]),
            TrainingSpec::Null {} => {}
        }
        if let Some(adversary) = &self.adversary {
            let share = adversary.share;
            checks.push(("adversary.share", share, (0.0..=1.0).contains(&share), "from 0 to 1"));
            if let Attack::SignFlip { scale } = adversary.attack {
                let scale = f64::from(scale);
                checks.push(("adversary.attack.scale", scale, is_positive(scale), positive));
            }
        }
        for (field, value, holds, range) in checks {
            if !holds {
                return Err(ExperimentError::OutOfRange { field, value, range });
            }
        }
        Ok(())
    }

    /// Refuses algorithms and rules that do not go with the rest, as a job does.
    fn check_algorithms(&self) -> Result<(), ExperimentError> {
        let conflict = |field, problem| Err(ExperimentError::Conflict { field, problem });
        self.aggregation.validate(self.cohort.size_min)?;
        let algorithm = match &self.training {
            TrainingSpec::Epochs(epochs) => epochs.algorithm,
            TrainingSpec::Steps(plan) => plan.algorithm,
            TrainingSpec::Null {} => LocalAlgorithm::Sgd,
        };
        algorithm.validate(self.cohort.size)?;
        let scaffold = matches!(algorithm, LocalAlgorithm::Scaffold { .. });
        let compares = self.aggregation != AggregationRule::Mean;
        let summed =
            matches!(self.privacy, PrivacySpec::Central { .. } | PrivacySpec::Distributed { .. });
        if scaffold && matches!(self.training, TrainingSpec::Epochs(_)) {
            let problem = "SCAFFOLD needs `training.steps`: the population's control variate \
                           follows from one public number of steps";
            return conflict("training.epochs.algorithm", problem);
        }
        if scaffold && self.federated != FederatedPart::All {
            let problem = "SCAFFOLD's control variates have the form of the whole model; remove \
                           `federated`";
            return conflict("training.steps.algorithm", problem);
        }
        if compares && (summed || self.secagg.is_some()) {
            let problem = "only the mean goes with `privacy.central`, `privacy.distributed` and \
                           `secagg`: noise and masks are made for the sum";
            return conflict("aggregation", problem);
        }
        if scaffold && (summed || self.secagg.is_some()) {
            let problem = "SCAFFOLD goes with `privacy.none` and `privacy.local`: a tenant's control \
                           variate is made of its own release";
            return conflict("training.steps.algorithm", problem);
        }
        if self.asynchronous.is_some() && (compares || scaffold) {
            let problem = "goes with the mean and without SCAFFOLD only: updates from different \
                           bases are not comparable";
            return conflict("asynchronous", problem);
        }
        if compares && scaffold {
            let problem =
                "only the mean goes with SCAFFOLD, whose variate of the population is a mean";
            return conflict("aggregation", problem);
        }
        Ok(())
    }
}

pub(super) fn is_positive(value: f64) -> bool {
    value.is_finite() && value > 0.0
}
