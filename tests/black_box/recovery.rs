//! kill −9 in the middle: nothing committed is lost, nothing is counted or spent twice.

use std::collections::BTreeSet;

use tributary_privacy::lattice::Lattice;
use tributary_protocol::{
    message::TransferResponse,
    model::{MlpSpec, ModelSpec},
    tensor_file,
};
use tributary_tests::{
    agent::{Agent, POLICY},
    coordinator::Coordinator,
    peer::{Peer, offer},
    wait::until,
};

use crate::{credentials, job};

#[tokio::test]
async fn a_killed_coordinator_counts_every_update_exactly_once() {
    let mut coordinator = Coordinator::start();
    let tenants =
        [credentials(&coordinator, "alpha").await, credentials(&coordinator, "beta").await];
    coordinator.submit(&job("points", 1, 2));
    let mut alpha = Peer::connect(coordinator.quic(), &tenants[0]).await.expect("connects");
    let mut beta = Peer::connect(coordinator.quic(), &tenants[1]).await.expect("connects");
    let assignment = alpha.assignment().await;
    beta.assignment().await;
    let (name, round) = (&assignment.job.name, assignment.round);
    alpha.accept(name, round).await;
    beta.accept(name, round).await;
    let lattice = Lattice::new(assignment.lattice.step, assignment.lattice.bits).expect("planned");
    let dimension = assignment.job.model.num_parameters();
    let values =
        |sign: i64| -> Vec<i64> { (0..dimension as i64).map(|i| sign * (1000 * i + 7)).collect() };
    let updates = [values(1), values(-3)].map(|values| lattice.pack(&values));
    let stored = alpha.upload(&offer(name, round, &updates[0], 1), &updates[0]).await;
    assert_eq!(stored, TransferResponse::Stored);

    coordinator.kill();
    coordinator.serve();

    // Alpha never learnt whether its update arrived, so it sends the same bytes again, twice.
    let alpha = Peer::connect(coordinator.quic(), &tenants[0]).await.expect("reconnects");
    for _ in 0..2 {
        let again = alpha.upload(&offer(name, round, &updates[0], 1), &updates[0]).await;
        assert_eq!(again, TransferResponse::Stored);
    }
    let mut beta = Peer::connect(coordinator.quic(), &tenants[1]).await.expect("reconnects");
    assert_eq!(beta.assignment().await.round, round, "beta is asked again");
    let stored = beta.upload(&offer(name, round, &updates[1], 1), &updates[1]).await;
    assert_eq!(stored, TransferResponse::Stored);
    coordinator.finish("points", 10);

    let models = coordinator.get("/v1/models");
    let parameters = |version: usize| {
        let digest = models[version]["digest"].as_str().expect("text");
        let spec = ModelSpec::Mlp(MlpSpec { inputs: 2, hidden: vec![8], classes: 2 });
        tensor_file::read(&spec, &coordinator.get_bytes(&format!("/v1/models/{digest}")))
            .expect("a model")
    };
    let (before, after) = (parameters(0), parameters(1));
    for (index, (before, after)) in before.iter().zip(&after).enumerate() {
        let sum = f64::from(-2 * (1000 * index as i32 + 7));
        let expected = (f64::from(*before) + sum * lattice.step() / 2.0) as f32;
        assert_eq!(*after, expected, "parameter {index}");
    }
}

#[test]
fn a_job_survives_kills_of_the_coordinator_and_the_agents() {
    let mut coordinator = Coordinator::start();
    let mut agents =
        ["alpha", "beta", "gamma"].map(|tenant| Agent::enroll(&coordinator, tenant, POLICY));
    for agent in &mut agents {
        agent.run();
    }
    let rounds = 12;
    coordinator.submit(&job("points", rounds, 3));
    let committed = |coordinator: &Coordinator| {
        coordinator.get("/v1/jobs/points")["rounds_committed"].as_u64().expect("a number")
    };
    for (after, victim) in [(1, None), (3, Some(0)), (5, Some(1)), (6, None), (8, Some(2))] {
        until("more rounds", 60, || (committed(&coordinator) >= after).then_some(()));
        match victim {
            None => {
                coordinator.kill();
                coordinator.serve();
            }
            Some(index) => {
                let agent: &mut Agent = &mut agents[index];
                agent.kill();
                agent.run();
            }
        }
    }
    coordinator.finish("points", 120);

    let history = coordinator.get("/v1/jobs/points/rounds");
    let history = history.as_array().expect("a list");
    let commits = history.iter().filter(|round| round["abandoned"].is_null());
    assert_eq!(commits.count(), rounds as usize);
    for (tenant, agent) in ["alpha", "beta", "gamma"].iter().zip(&mut agents) {
        agent.kill();
        let ledger = agent.ledger();
        let entries = ledger["entries"].as_array().expect("a list");
        let keys: Vec<_> =
            entries.iter().map(|entry| entry["round"].as_u64().expect("a number")).collect();
        assert_eq!(
            keys.len(),
            keys.iter().collect::<BTreeSet<_>>().len(),
            "a round was debited twice: {keys:?}"
        );
        let released: BTreeSet<_> = entries
            .iter()
            .map(|entry| entry["release"].as_str().expect("a digest").to_owned())
            .collect();
        for round in history {
            if let Some(update) = round["contributors"][tenant].as_str() {
                assert!(released.contains(update), "{tenant} released {update} without a debit");
            }
        }
    }
}
