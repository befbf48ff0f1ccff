//! Kills the coordinator between any two of its actions and compares with a run that nothing
//! disturbed: the same models, rounds and metrics, to the bit.
//!
//! The core is the one that serves, stepped by hand; its store survives, everything else is built
//! anew from what is durable. The agents answer as real ones do, from bytes that are a function of
//! tenant, round and base, so a wrong base, a lost update or one counted twice shows in the digest.

mod site;
mod world;

use tributary_protocol::{
    id::JobId,
    job::{
        AdaptiveClipping, Adversary, Clipping, EvaluationSpec, JobSpec, Metric, PrivacyUnit,
        SecaggSpec, ServerOptimizerSpec, Trust,
    },
};

use self::world::World;

fn job(name: &str, cohort: u32, rounds: u64) -> JobSpec {
    let mut job = crate::scheduler::tests::job();
    job.name = JobId::new(name).expect("valid");
    (job.round.rounds, job.round.cohort_size, job.round.report_goal) = (rounds, cohort, cohort);
    job
}

/// Two moments, which are files of their own.
fn with_adam(mut job: JobSpec) -> JobSpec {
    job.server_optimizer =
        ServerOptimizerSpec::Adam { server_learning_rate: 0.1, beta1: 0.9, beta2: 0.99, tau: 1e-3 };
    job
}

/// The norm of each round depends on the votes of the one before, and bases are evaluated.
fn adaptive(mut job: JobSpec) -> JobSpec {
    job.privacy.unit = PrivacyUnit::Tenant;
    job.privacy.rotation = true;
    job.privacy.clipping = Clipping::Adaptive(AdaptiveClipping {
        target_quantile: 0.5,
        learning_rate: 0.2,
        count_noise_multiplier: 1.0,
    });
    job.evaluation = Some(EvaluationSpec {
        every_rounds: 2,
        metrics: vec![Metric::Accuracy, Metric::Loss],
        noise_multiplier: 1.0,
        loss_max: 4.0,
    });
    job
}

fn masked(mut job: JobSpec, adversary: Adversary) -> JobSpec {
    (job.privacy.trust, job.privacy.unit) = (Trust::Distributed, PrivacyUnit::Tenant);
    job.round.cohort_size_min = 3;
    job.secagg = Some(SecaggSpec {
        adversary,
        dropout_max: 0.2,
        corrupt_max: 0.2,
        bits: 32,
        step_timeout_ms: 5_000,
    });
    job
}

/// Kills once, at every boundary there is.
fn kill_everywhere(tenants: usize, jobs: &[JobSpec]) {
    let mut undisturbed = World::new(tenants, |_| false);
    let expected = undisturbed.run(jobs);
    let boundaries = undisturbed.boundaries();
    assert!(boundaries > 20, "{boundaries}");
    for at in 0..boundaries {
        let mut world = World::new(tenants, move |boundary| boundary == at);
        let outcome = world.run(jobs);
        assert_eq!(world.deaths(), 1, "the run did not get to boundary {at}");
        assert_eq!(outcome, expected, "killed at boundary {at} of {boundaries}");
    }
}

#[test]
fn a_kill_at_any_boundary_of_several_plain_jobs_changes_nothing() {
    let plain = with_adam(job("plain", 3, 2));
    kill_everywhere(3, &[plain, adaptive(job("adaptive", 3, 2))]);
}

#[test]
fn a_kill_at_any_boundary_of_a_secure_aggregation_changes_nothing() {
    kill_everywhere(4, &[masked(job("masked", 4, 1), Adversary::SemiHonest)]);
}

#[test]
fn a_kill_at_any_boundary_of_one_against_a_lying_coordinator_changes_nothing() {
    kill_everywhere(4, &[masked(job("masked", 4, 1), Adversary::MaliciousCoordinator)]);
}

#[test]
fn a_masked_update_does_not_store_the_whole_aggregation_again() {
    let mut world = World::new(6, |_| false);
    world.run(&[masked(job("masked", 6, 2), Adversary::SemiHonest)]);
    // Once when the uploads of a round begin, once when it is needed no more.
    assert_eq!(world.aggregations_written(), 2 * 2);
}

#[test]
fn kills_again_and_again_change_nothing() {
    let jobs = [
        with_adam(job("plain", 4, 3)),
        adaptive(job("adaptive", 4, 3)),
        masked(job("masked", 4, 2), Adversary::SemiHonest),
    ];
    let expected = World::new(4, |_| false).run(&jobs);
    for interval in [47, 61, 89, 131] {
        let mut world = World::new(4, move |boundary| boundary % interval == interval - 1);
        assert_eq!(world.run(&jobs), expected, "killed every {interval} boundaries");
        assert!(world.deaths() > 3, "{} deaths", world.deaths());
    }
}
