//! Secure aggregation over real QUIC: the coordinator learns the sum of the survivors, or nothing.

use std::collections::BTreeSet;

use serde_json::Value;
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    message::AgentMessage,
    model::{MlpSpec, ModelSpec},
    tensor_file,
};
use tributary_tests::{
    agent::{Agent, POLICY},
    coordinator::Coordinator,
    peer::Credentials,
    secagg::{SecaggPeer, Until},
    wait::until,
};

use crate::{credentials, job};

const TENANTS: [&str; 5] = ["alpha", "beta", "delta", "epsilon", "gamma"];

/// The test job with distributed noise: 2 of 5 may drop out, 1 may collude.
fn masked_job(rounds: u32, adversary: &str, timeout_ms: u64) -> String {
    let dropout_max = if adversary == "semi-honest" { 0.4 } else { 0.2 };
    job("points", rounds, 5)
        .replace("trust = \"local\"", "trust = \"distributed\"")
        .replace("unit = \"record\"", "unit = \"tenant\"")
        .replace("cohort_size_min = 5", "cohort_size_min = 3")
        + &format!(
            "report_timeout_ms = {timeout_ms}
        [secagg]
        adversary = \"{adversary}\"
        dropout_max = {dropout_max}
        corrupt_max = 0.2
        step_timeout_ms = {timeout_ms}
        "
        )
}

async fn cohort(coordinator: &Coordinator) -> Vec<Credentials> {
    let mut cohort = Vec::new();
    for tenant in TENANTS {
        cohort.push(credentials(coordinator, tenant).await);
    }
    cohort
}

/// A known update of every member, within the clipping norm of 1.
fn known_update(peer: &SecaggPeer, member: i64) -> Vec<i64> {
    let dimension = peer.assignment.job.model.num_parameters();
    let unit = (0.02 / peer.lattice().step()) as i64;
    (0..dimension as i64).map(|index| (member - 1) * unit + 7 * index - 3 * member).collect()
}

fn parameters(coordinator: &Coordinator, version: usize) -> Vec<f32> {
    let models = coordinator.get("/v1/models");
    let digest = models[version]["digest"].as_str().expect("text");
    let spec = ModelSpec::Mlp(MlpSpec { inputs: 2, hidden: vec![8], classes: 2 });
    tensor_file::read(&spec, &coordinator.get_bytes(&format!("/v1/models/{digest}")))
        .expect("a model")
}

/// Checks that version 1 is version 0 plus the sum of these updates over the public denominator 5.
fn assert_committed(coordinator: &Coordinator, step: f64, updates: &[Vec<i64>]) {
    let (before, after) = (parameters(coordinator, 0), parameters(coordinator, 1));
    for (index, (before, after)) in before.iter().zip(&after).enumerate() {
        let sum: i64 = updates.iter().map(|update| update[index]).sum();
        let expected = (f64::from(*before) + sum as f64 * step / 5.0) as f32;
        assert_eq!(*after, expected, "parameter {index}");
    }
}

/// Joins all members; each plays its part, the last ones only as far as their `until`.
async fn play(
    coordinator: &Coordinator,
    cohort: &[Credentials],
    dropouts: &[Until],
) -> (f64, Vec<Vec<i64>>) {
    let mut members = tokio::task::JoinSet::new();
    let faithful = cohort.len() - dropouts.len();
    for (index, credentials) in cohort.iter().enumerate() {
        let until = index.checked_sub(faithful).map_or(Until::Unmasked, |late| dropouts[late]);
        // A round is configured once everybody is there.
        let (address, credentials) = (coordinator.quic(), credentials.clone());
        members.spawn(async move {
            let mut peer = SecaggPeer::join(address, &credentials).await;
            let update = known_update(&peer, index as i64);
            peer.play(&update, until).await.expect("an honest coordinator");
            if until < Until::Unmasked {
                // Gone for good: it says so, as a process that is killed cannot.
                let refusal = Refusal::new(ErrorCode::SecaggSessionLost, "dropped out");
                let (job, round) = (peer.assignment.job.name.clone(), peer.assignment.round);
                peer.peer.say(&AgentMessage::Decline { job, round, refusal }).await;
            }
            (index, until, update, peer)
        });
    }
    let mut played = members.join_all().await;
    played.sort_by_key(|(index, ..)| *index);
    let step = played[0].3.lattice().step();
    // The connections stay open until the job is finished, so nobody is asked twice.
    coordinator.finish("points", 60);
    let counted = played.into_iter().filter(|(_, until, ..)| *until >= Until::Uploaded);
    (step, counted.map(|(_, _, update, _)| update).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropouts_at_each_step_leave_exactly_the_sum_of_the_survivors() {
    for (adversary, dropouts) in [
        ("semi-honest", &[][..]),
        ("semi-honest", &[Until::Accepted][..]),
        ("semi-honest", &[Until::Advertised, Until::Shared][..]),
        ("semi-honest", &[Until::Shared, Until::Uploaded][..]),
        ("malicious-coordinator", &[Until::Shared][..]),
        ("malicious-coordinator", &[Until::Uploaded][..]),
        ("malicious-coordinator", &[Until::Confirmed][..]),
    ] {
        let coordinator = Coordinator::start();
        let cohort = cohort(&coordinator).await;
        coordinator.submit(&masked_job(1, adversary, 30_000));
        let (step, updates) = play(&coordinator, &cohort, dropouts).await;
        assert_committed(&coordinator, step, &updates);
    }
}
