//! Jobs with correlated noise, by real processes: one run a tenant, paid once, through kill −9 on
//! both sides.

use std::fs;

use serde_json::Value;
use tributary_tests::{
    agent::{Agent, POLICY},
    coordinator::Coordinator,
    wait::until,
};

use crate::job;

fn correlated(rounds: u32, cohort: u32, rounds_max: u32) -> String {
    job("points", rounds, cohort)
        .replace("sampling_rate = 0.1", "sampling_rate = 1.0")
        .replace("noise_multiplier = 1.0", "noise_multiplier = 4.0")
        .replace(
            "delta = 1e-5",
            &format!(
                "delta = 1e-5\n\
                 correlated = {{ bands = 8, groups = 10, rounds_max = {rounds_max} }}"
            ),
        )
}

fn policy() -> String {
    format!("{POLICY}correlated_bands_max = 16\n")
}

/// (run, first step, end step) of every entry.
fn steps(ledger: &Value) -> Vec<[u64; 3]> {
    let entries = ledger["entries"].as_array().expect("a list");
    let step = |entry: &Value| {
        ["run", "first_step", "end_step"]
            .map(|field| entry["run"][field].as_u64().unwrap_or_else(|| panic!("{field}: {entry}")))
    };
    entries.iter().map(step).collect()
}

#[test]
fn one_run_is_paid_once_through_kills_on_both_sides() {
    let mut coordinator = Coordinator::start();
    let mut agents = ["alpha", "beta"].map(|tenant| Agent::enroll(&coordinator, tenant, &policy()));
    for agent in &mut agents {
        agent.run();
    }
    coordinator.submit(&correlated(6, 2, 20));
    let committed = |coordinator: &Coordinator| {
        coordinator.get("/v1/jobs/points")["rounds_committed"].as_u64().expect("a number")
    };
    for (after, victim) in [(1, Some(0)), (2, None), (3, Some(1))] {
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
    for (tenant, agent) in ["alpha", "beta"].iter().zip(&mut agents) {
        agent.kill();
        let ledger = agent.ledger();
        let found = steps(&ledger);
        assert!(found.len() >= 6, "{found:?}");
        for (index, &step) in (0..).zip(&found) {
            assert_eq!(step, [1, 4 * index, 4 * index + 4], "no step twice, and none left out");
        }
        // The whole run was paid with the first round: the job alone, and all of the dataset.
        let dataset = &ledger["datasets"][0];
        let job = &dataset["jobs"][0];
        assert_eq!(job["epsilon_alone"], dataset["epsilon_spent"]);
        assert_eq!(job["run"]["rounds"], 20);
        assert_eq!(job["run"]["rounds_left"], 20 - found.len() as u64);
        // What was counted is what was debited, byte for byte.
        let entries = ledger["entries"].as_array().expect("a list");
        for round in history.as_array().expect("a list") {
            if let Some(update) = round["contributors"][tenant].as_str() {
                let debited = entries.iter().any(|entry| entry["release"] == update);
                assert!(debited, "{tenant} released {update} without a debit");
            }
        }
    }
}

#[test]
fn a_lost_state_begins_a_run_that_is_paid_anew() {
    let coordinator = Coordinator::start();
    let mut agents = ["alpha", "beta"].map(|tenant| Agent::enroll(&coordinator, tenant, &policy()));
    agents[0].run();
    agents[1].run();
    coordinator.submit(&correlated(40, 2, 50));
    let debits = |agent: &Agent| steps(&agent.ledger());
    until("a round", 60, || (!debits(&agents[0]).is_empty()).then_some(()));
    agents[1].kill();
    agents[0].kill();
    let before = debits(&agents[0]);
    fs::remove_dir_all(agents[0].path("runs")).expect("removes");
    let spent = |agent: &Agent| agent.ledger()["datasets"][0]["epsilon_spent"].as_f64();
    let once = spent(&agents[0]).expect("a number");
    agents[0].run();
    agents[1].run();
    coordinator.finish("points", 60);
    agents[0].kill();
    let after = debits(&agents[0]);
    assert!(before.iter().all(|step| step[0] == 1) && after.starts_with(&before), "{after:?}");
    assert_eq!(after[before.len()], [2, 0, 4], "a new run: {after:?}");
    assert!(spent(&agents[0]).expect("a number") > 1.2 * once, "which is paid anew");
}

#[test]
fn a_tenant_that_does_not_allow_it_keeps_no_state_and_says_which_key() {
    let coordinator = Coordinator::start();
    let mut agent = Agent::enroll(&coordinator, "alpha", POLICY);
    agent.run();
    coordinator.submit(&correlated(1, 1, 20));
    let shown = until("the refusal at the agent", 30, || {
        agent.status()["refused"].as_str().map(str::to_owned)
    });
    assert!(shown.contains("correlated_bands_max"), "{shown}");
    agent.kill();
    assert!(agent.ledger()["entries"].as_array().expect("a list").is_empty(), "nothing was spent");
}

#[test]
fn what_cannot_be_correlated_is_refused_where_it_is_submitted() {
    let coordinator = Coordinator::start();
    for (from, to, expected) in [
        ("bands = 8", "bands = 0", "privacy.correlated.bands"),
        ("groups = 10", "groups = 0", "privacy.correlated.groups"),
        ("rounds_max = 20", "rounds_max = 0", "privacy.correlated.rounds_max"),
        ("groups = 10", "groups = 10, colour = 1", "colour"),
        ("sampling_rate = 1.0", "sampling_rate = 0.1", "training.sampling_rate"),
        ("unit = \"record\"", "unit = \"tenant\"", "privacy.correlated"),
    ] {
        let file = coordinator.path("wrong.toml");
        fs::write(&file, correlated(1, 2, 20).replace(from, to)).expect("writes");
        let refused = coordinator.command(&["job", "submit", file.to_str().expect("a text path")]);
        assert!(!refused.status.success(), "{to}");
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(text.contains(expected), "{to}: {text}");
    }
}
