//! A backup that is taken while rounds run, and what becomes of the agents after it is restored.

use std::collections::BTreeSet;

use tributary_tests::{
    agent::{Agent, POLICY},
    coordinator::Coordinator,
    wait::until,
};

use crate::job;

const TENANTS: [&str; 2] = ["alpha", "beta"];

fn committed(coordinator: &Coordinator) -> u64 {
    coordinator.get("/v1/jobs/points")["rounds_committed"].as_u64().expect("a number")
}

#[test]
fn a_restored_coordinator_goes_on_with_agents_that_have_gone_further() {
    let mut coordinator = Coordinator::start();
    let mut agents = TENANTS.map(|tenant| Agent::enroll(&coordinator, tenant, POLICY));
    for agent in &mut agents {
        agent.run();
    }
    coordinator.submit(&job("points", 1000, 2));
    until("some rounds", 60, || (committed(&coordinator) >= 2).then_some(()));
    let folder = tempfile::tempdir().expect("a folder");
    let (copy, restored) = (folder.path().join("copy"), folder.path().join("restored"));
    let copy = copy.to_str().expect("text");
    let manifest = coordinator.ask(&["backup", "--to", copy]);
    let at_copy = manifest["jobs"][0]["rounds_committed"].as_u64().expect("a number");
    assert!(!coordinator.path("snapshot").exists(), "the links are gone");
    until("more rounds", 60, || (committed(&coordinator) >= at_copy + 2).then_some(()));
    coordinator.kill();

    let old = coordinator.path("").display().to_string();
    let restore = |to: &str| {
        let mut command = tributary_tests::program("tributary-coordinator");
        command.args(["restore", "--from", copy, "--newer", &old, "--json", "--dir", to]);
        command.output().expect("the program runs")
    };
    let refused = restore(&old);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && message.contains("already holds"), "{message}");
    let answer = restore(restored.to_str().expect("text"));
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&answer.stdout).expect("JSON");
    let lost = answer["lost_rounds"].as_array().expect("a list");
    assert!(lost.len() >= 2 && lost[0].as_str().expect("text").starts_with("points/"), "{answer}");

    let new = tempfile::tempdir().expect("a folder");
    std::fs::remove_dir(new.path()).expect("removes");
    std::fs::rename(&restored, new.path()).expect("moves");
    let mut second = Coordinator::in_folder(new, &coordinator);
    second.serve();
    assert_eq!(committed(&second), at_copy);
    until("rounds after the restore", 60, || (committed(&second) >= at_copy + 2).then_some(()));
    let history = second.get("/v1/jobs/points/rounds");
    let history = history.as_array().expect("a list");
    let leap = history.iter().find(|round| !round["abandoned"].is_null()).expect("given up");
    assert!(leap["abandoned"].as_str().expect("text").contains("restored"), "{leap}");
    let newest = history.last().expect("rounds")["round"].as_u64().expect("a number");
    assert!(newest > 1000, "rounds go on past those that may be lost");
    assert!(second.command(&["audit", "verify"]).status.success());
    for (tenant, agent) in TENANTS.iter().zip(&mut agents) {
        agent.kill();
        let ledger = agent.ledger();
        let entries = ledger["entries"].as_array().expect("a list");
        let rounds: BTreeSet<_> = entries.iter().map(|entry| entry["round"].as_u64()).collect();
        assert_eq!(rounds.len(), entries.len(), "{tenant} debited a round twice");
    }
}
