//! Asynchronous rounds, SCAFFOLD and robust aggregation with real processes.

use serde_json::Value;
use tributary_protocol::message::{Assignment, TransferResponse};
use tributary_tests::{
    agent::{Agent, POLICY},
    coordinator::Coordinator,
    peer::{Peer, offer},
    wait::until,
};

use crate::{credentials, job};

fn committed(coordinator: &Coordinator, job: &str) -> u64 {
    coordinator.get(&format!("/v1/jobs/{job}"))["rounds_committed"].as_u64().expect("a number")
}

fn update_bytes(assignment: &Assignment) -> usize {
    (assignment.job.model.num_parameters() * usize::from(assignment.lattice.bits)).div_ceil(8)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_straggler_counts_in_a_later_asynchronous_round_even_after_a_crash() {
    let mut coordinator = Coordinator::start();
    let slow = credentials(&coordinator, "slow").await;
    let mut agents = ["alpha", "beta"].map(|tenant| Agent::enroll(&coordinator, tenant, POLICY));
    let asynchronous = job("points", 12, 3)
        .replace("cohort_size_min = 3", "cohort_size_min = 1")
        .replace("report_goal = 3", "report_goal = 2");
    let asynchronous = asynchronous + "[round.asynchronous]\nstaleness_max = 16\n";
    let mut straggler = Peer::connect(coordinator.quic(), &slow).await.expect("connects");
    coordinator.submit(&asynchronous);
    let ticket = straggler.assignment().await;
    straggler.accept(&ticket.job.name, ticket.round).await;
    assert_eq!(ticket.base.version, 0);
    for agent in &mut agents {
        agent.run();
    }
    until("rounds without the straggler", 60, || {
        (committed(&coordinator, "points") >= 2).then_some(())
    });
    coordinator.kill();
    coordinator.serve();
    let mut straggler = Peer::connect(coordinator.quic(), &slow).await.expect("connects");
    let again = straggler.assignment().await;
    assert_eq!(
        (again.round, &again.base),
        (ticket.round, &ticket.base),
        "its ticket is still good"
    );
    let update = vec![0; update_bytes(&again)];
    let offered = offer(&again.job.name, again.round, &update, 1);
    assert_eq!(straggler.upload(&offered, &update).await, TransferResponse::Stored);
    coordinator.finish("points", 120);
    let rounds = coordinator.get("/v1/jobs/points/rounds");
    let with_slow = |round: &&Value| !round["contributors"]["slow"].is_null();
    let counted: Vec<&Value> =
        rounds.as_array().expect("a list").iter().filter(with_slow).collect();
    assert_eq!(counted.len(), 1, "counted once: {rounds}");
    assert!(counted[0]["round"].as_u64().expect("a number") > 2, "{}", counted[0]);
}

#[test]
fn scaffold_keeps_a_variate_at_every_site_and_a_job_resumes_from_an_older_version() {
    let coordinator = Coordinator::start();
    let mut agents = ["alpha", "beta"].map(|tenant| Agent::enroll(&coordinator, tenant, POLICY));
    for agent in &mut agents {
        agent.run();
    }
    coordinator.submit(&(job("points", 3, 2) + "[training.algorithm.scaffold]\npopulation = 2\n"));
    coordinator.finish("points", 60);
    for agent in &agents {
        let names: Vec<String> = std::fs::read_dir(agent.path("controls/points"))
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        assert!(names.iter().any(|name| name.starts_with("3-")), "{names:?}");
        assert!(names.len() <= 2, "old ones go: {names:?}");
        assert_eq!(agent.ledger()["entries"].as_array().expect("a list").len(), 3);
    }
    let none = coordinator.command(&["job", "resume", "points", "--from-version", "3"]);
    let message = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(!none.status.success() && message.contains("all 3 rounds"), "{message}");
    let resumed = coordinator.ask(&["job", "resume", "points", "--from-version", "1"]);
    assert_eq!(
        (&resumed["state"], resumed["rounds_committed"].as_u64()),
        (&"running".into(), Some(1))
    );
    coordinator.finish("points", 60);
    for agent in &agents {
        let entries = agent.ledger()["entries"].as_array().expect("a list").len();
        assert_eq!(entries, 5, "the rounds that are run again are debited again");
    }
}

/// The models that a round of four honest zero updates and one hostile one begins and ends with.
async fn attacked(rule: &str) -> (Value, Value) {
    let coordinator = Coordinator::start();
    let mut peers = Vec::new();
    for tenant in ["a", "b", "c", "d", "e"] {
        let credentials = credentials(&coordinator, tenant).await;
        peers.push(Peer::connect(coordinator.quic(), &credentials).await.expect("connects"));
    }
    coordinator.submit(&format!("{}{rule}", job("points", 1, 5)));
    for (index, peer) in peers.iter_mut().enumerate() {
        let assignment = peer.assignment().await;
        peer.accept(&assignment.job.name, assignment.round).await;
        let fill = if index == 2 { 0x5a } else { 0 };
        let update = vec![fill; update_bytes(&assignment)];
        let offered = offer(&assignment.job.name, assignment.round, &update, 1);
        assert_eq!(peer.upload(&offered, &update).await, TransferResponse::Stored);
    }
    coordinator.finish("points", 10);
    let models = coordinator.get("/v1/models");
    let digest = |version: usize| models[version]["digest"].clone();
    (digest(0), digest(1))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_hostile_update_moves_the_mean_and_no_robust_rule() {
    let (before, after) = attacked("").await;
    assert_ne!(before, after, "the mean follows it");
    for rule in [
        "[aggregation.trimmed-mean]\ntrim = 0.2\n",
        "[aggregation.krum]\nbyzantine_max = 1\n",
        "[aggregation.multi-krum]\nbyzantine_max = 1\nselected = 3\n",
    ] {
        let (before, after) = attacked(rule).await;
        assert_eq!(before, after, "{rule}");
    }
}

#[test]
fn what_secure_aggregation_cannot_do_is_refused_with_the_reason() {
    let coordinator = Coordinator::start();
    let masked = job("points", 1, 9)
        .replace("trust = \"local\"", "trust = \"distributed\"")
        .replace("unit = \"record\"", "unit = \"tenant\"")
        + "[secagg]\nadversary = \"semi-honest\"\ndropout_max = 0.1\ncorrupt_max = 0.1\n";
    for (table, expected) in [
        ("[aggregation.krum]\nbyzantine_max = 1\n", "only the sum"),
        ("[round.asynchronous]\nstaleness_max = 2\n", "masks cancel only"),
        ("[training.algorithm.scaffold]\npopulation = 9\n", "masked release"),
    ] {
        let file = coordinator.path("masked.toml");
        std::fs::write(&file, format!("{masked}{table}")).expect("writes");
        let output = coordinator.command(&["job", "submit", file.to_str().expect("text")]);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && message.contains(expected), "{message}");
    }
}
