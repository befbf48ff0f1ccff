//! What the sums of a job with distributed noise revealed.

use serde::{Deserialize, Serialize};
use tributary_privacy::{
    accountant::{self, Delta},
    mechanism::PrivacyEvent,
    secagg::SecaggPlan,
};
use tributary_protocol::{job::JobSpec, message::LatticeSpec};

use crate::aggregation;

/// The privacy of a job's committed sums, towards whoever sees them.
///
/// Agents debit the worst case that the protocol allows, as they cannot know more before a round
/// ends; the coordinator knows how many survived.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revealed {
    /// ε of what happened: with the honest survivors that every sum really had; `None` if it is
    /// beyond what can be computed.
    pub epsilon: Option<f64>,
    /// ε of the worst case that the protocol allowed in the same rounds; `None` likewise.
    pub epsilon_worst_case: Option<f64>,
    /// The δ of both.
    pub delta: f64,
    happened: Vec<PrivacyEvent>,
    allowed: Vec<PrivacyEvent>,
}

impl Revealed {
    /// Adds one committed sum.
    pub(super) fn add(
        &mut self,
        job: &JobSpec,
        plan: &SecaggPlan,
        lattice: LatticeSpec,
        survivors: u32,
    ) {
        let events = |survivors| aggregation::event(job, plan, lattice, survivors);
        let (Some(happened), Some(allowed)) = (events(survivors), events(plan.survivors_min()))
        else {
            return;
        };
        count(&mut self.happened, happened);
        count(&mut self.allowed, allowed);
        self.delta = job.privacy.delta;
        self.epsilon = epsilon(&self.happened, self.delta);
        self.epsilon_worst_case = epsilon(&self.allowed, self.delta);
    }
}

/// Equal rounds are one event with a count.
fn count(events: &mut Vec<PrivacyEvent>, event: PrivacyEvent) {
    let known = events.iter_mut().find(|known| known.with_count(1) == event);
    match known {
        Some(known) => *known = known.with_count(known.count() + 1),
        None => events.push(event),
    }
}

/// Finite, since no document can hold an infinity.
fn epsilon(events: &[PrivacyEvent], delta: f64) -> Option<f64> {
    let epsilon = Delta::new(delta).and_then(|delta| accountant::epsilon(events, delta));
    epsilon.ok().filter(|epsilon| epsilon.is_finite())
}

#[cfg(test)]
mod tests {
    use tributary_protocol::job::{Adversary, PrivacyUnit, SecaggSpec, Trust};

    use super::*;

    #[test]
    fn fewer_dropouts_than_tolerated_reveal_less() {
        let mut job = crate::scheduler::tests::job();
        (job.privacy.trust, job.privacy.unit) = (Trust::Distributed, PrivacyUnit::Tenant);
        (job.round.cohort_size, job.round.report_goal, job.round.cohort_size_min) = (10, 10, 3);
        job.secagg = Some(SecaggSpec {
            adversary: Adversary::SemiHonest,
            dropout_max: 0.3,
            corrupt_max: 0.1,
            bits: 32,
            step_timeout_ms: 1_000,
        });
        let lattice = aggregation::plan_lattice(&job).expect("fits");
        let plan = aggregation::noise(&job).expect("distributed").plan(10).expect("possible");
        let mut revealed = Revealed::default();
        revealed.add(&job, &plan, lattice, 7);
        assert_eq!(revealed.epsilon, revealed.epsilon_worst_case);
        for _ in 0..3 {
            revealed.add(&job, &plan, lattice, 10);
        }
        let (epsilon, worst) = (revealed.epsilon, revealed.epsilon_worst_case);
        assert!(epsilon.expect("known") < worst.expect("known"), "{revealed:?}");
        assert_eq!((revealed.happened.len(), revealed.allowed.len()), (2, 1));
        assert_eq!(revealed.allowed[0].count(), 4);
    }

    #[test]
    fn a_record_survives_an_epsilon_that_cannot_be_computed() {
        let mut revealed = Revealed { epsilon: epsilon(&[], 2.0), ..Revealed::default() };
        let text = serde_json::to_string(&revealed).expect("a document");
        assert_eq!(serde_json::from_str::<Revealed>(&text).expect("the same"), revealed);
        revealed.epsilon = epsilon(&[], 1e-5);
        assert_eq!(revealed.epsilon, Some(0.0));
    }
}
