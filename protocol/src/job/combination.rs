//! Which choices of a job do not go together, and why.

use crate::model::FederatedPart;

use super::{
    AggregationRule, CohortSampling, JobSpec, JobSpecError, LocalAlgorithm, PrivacyUnit, Trust,
};

impl JobSpec {
    /// Refuses what each table allows by itself, but not with the others.
    pub(super) fn validate_combinations(&self) -> Result<(), JobSpecError> {
        let masked = self.privacy.trust == Trust::Distributed;
        let asynchronous = self.round.asynchronous.is_some();
        let scaffold = matches!(self.training.algorithm, LocalAlgorithm::Scaffold { .. });
        let compares = self.aggregation != AggregationRule::Mean;
        let poisson = self.round.sampling == CohortSampling::Poisson;
        let rules: [(bool, &'static str, &'static str); 13] = [
            (
                masked && compares,
                "`aggregation` other than \"mean\" with trust \"distributed\"",
                "secure aggregation shows the coordinator only the sum, and this rule compares \
                 the updates one by one; use trust \"local\"",
            ),
            (
                masked && asynchronous,
                "`round.asynchronous` with trust \"distributed\"",
                "masks cancel only among a cohort that is fixed before it trains, and a buffer \
                 fills with whoever is ready; use trust \"local\"",
            ),
            (
                masked && poisson,
                "`round.sampling` \"poisson\" with trust \"distributed\"",
                "the shares of noise and the key exchange are sized for `round.cohort_size`, \
                 which a Poisson draw may exceed; use \"fixed\"",
            ),
            (
                masked && scaffold,
                "`training.algorithm.scaffold` with trust \"distributed\"",
                "a tenant's control variate is made of its own release, and a masked release says \
                 nothing even to the tenant's next round; use \"fedprox\" or trust \"local\"",
            ),
            (
                masked
                    && self.privacy.unit == PrivacyUnit::Record
                    && self.training.algorithm != LocalAlgorithm::Sgd,
                "`training.algorithm` other than \"sgd\" with trust \"distributed\" and unit \
                 \"record\"",
                "one gradient at the base itself is summed, which has not drifted",
            ),
            (
                asynchronous && scaffold,
                "`round.asynchronous` with `training.algorithm.scaffold`",
                "a control variate belongs to one base, and the updates of a buffer come from \
                 several; use \"fedprox\"",
            ),
            (
                asynchronous && compares,
                "`round.asynchronous` with `aggregation` other than \"mean\"",
                "updates from different bases are not comparable; use \"mean\"",
            ),
            (
                asynchronous && poisson,
                "`round.asynchronous` with `round.sampling` \"poisson\"",
                "tenants are invited one by one whenever there is room; use \"fixed\"",
            ),
            (
                asynchronous && self.privacy.adaptive().is_some(),
                "`round.asynchronous` with `privacy.clipping.adaptive`",
                "an update is clipped and put on the lattice of its own base, and the sum needs \
                 one lattice; use \"flat\" or \"per-layer\"",
            ),
            (
                self.privacy.rotation && self.aggregation.is_coordinate_wise(),
                "`privacy.rotation` with a coordinate-wise `aggregation`",
                "every coordinate of a rotated update is a mixture of all parameters; use \
                 \"krum\" or \"multi-krum\", which see only distances",
            ),
            (
                compares && scaffold,
                "`training.algorithm.scaffold` with `aggregation` other than \"mean\"",
                "the population's control variate is the mean of its tenants', which a robust \
                 rule does not give",
            ),
            (
                scaffold && self.federated != FederatedPart::All,
                "`training.algorithm.scaffold` with a `federated` part other than \"all\"",
                "control variates travel in the form of the whole model; use \"fedprox\"",
            ),
            (
                self.tokenizer.is_some() && self.model.vocab_size().is_none(),
                "`tokenizer` with a model of numbers",
                "it reads no tokens; leave `tokenizer` out",
            ),
        ];
        match rules.into_iter().find(|&(conflicts, _, _)| conflicts) {
            Some((_, what, reason)) => Err(JobSpecError::Combination { what, reason }),
            None => Ok(()),
        }
    }
}
