//! Jobs with real agents: what is allowed runs, what is not is refused at both ends.

use tributary_tests::{
    agent::{Agent, POLICY},
    coordinator::Coordinator,
    wait::until,
};

use crate::job;

#[test]
fn both_privacy_units_train_and_the_agent_serves_base_and_adapter() {
    let coordinator = Coordinator::start();
    let mut agents = ["alpha", "beta"].map(|tenant| Agent::enroll(&coordinator, tenant, POLICY));
    for agent in &mut agents {
        agent.run();
    }
    coordinator.submit(&job("by-record", 2, 2));
    coordinator.submit(&job("by-tenant", 2, 2).replace("unit = \"record\"", "unit = \"tenant\""));
    coordinator.finish("by-record", 60);
    coordinator.finish("by-tenant", 60);
    let status = until("an adapter", 60, || {
        let status = agents[0].status();
        (!status["adapter"].is_null() && !status["base"].is_null()).then_some(status)
    });
    assert!(status["epsilon"].as_f64().expect("a number") > 0.0, "{status}");
    assert!(status["base"]["accuracy"].as_f64().is_some(), "{status}");
    let entries = agents[0].ledger()["entries"].as_array().expect("a list").len();
    assert_eq!(entries, 4, "one debit a round of each job");
}

#[test]
fn a_job_that_the_policy_forbids_is_refused_before_training_and_shown_at_both_ends() {
    let coordinator = Coordinator::start();
    let strict = POLICY.replace("noise_multiplier_min = 0.5", "noise_multiplier_min = 3.0");
    let mut agent = Agent::enroll(&coordinator, "alpha", &strict);
    agent.run();
    coordinator.submit(&job("points", 1, 1));
    let waiting = until("the refusal at the coordinator", 30, || {
        let document = coordinator.get("/v1/jobs/points");
        let waiting = document["waiting_for"].as_str()?.to_owned();
        waiting.contains("alpha refuses").then_some(waiting)
    });
    assert!(waiting.contains("noise_multiplier") && waiting.contains('3'), "{waiting}");
    let shown = until("the refusal at the agent", 30, || {
        agent.status()["refused"].as_str().map(str::to_owned)
    });
    assert!(shown.contains("noise_multiplier"), "{shown}");
    agent.kill();
    assert!(agent.ledger()["entries"].as_array().expect("a list").is_empty(), "nothing was spent");
}

#[test]
fn unknown_keys_and_bad_values_of_a_job_are_named() {
    let coordinator = Coordinator::start();
    for (text, expected) in [
        (job("points", 1, 1).replace("local_steps", "lokal_steps"), "lokal_steps"),
        (job("points", 1, 1).replace("delta = 1e-5", "delta = 2.0"), "privacy.delta"),
        (
            job("points", 1, 1).replace("noise_multiplier = 1.0", "noise_multiplier = nan"),
            "noise_multiplier",
        ),
    ] {
        let file = coordinator.path("bad.toml");
        std::fs::write(&file, text).expect("writes");
        let output = coordinator.command(&["job", "submit", file.to_str().expect("text")]);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && message.contains(expected), "{message}");
    }
    assert_eq!(coordinator.get("/v1/jobs"), serde_json::json!([]));
}

#[test]
fn a_wrong_token_leaves_no_identity_behind() {
    let coordinator = Coordinator::start();
    let agent = Agent::prepare(POLICY);
    let token = coordinator.add_tenant("alpha");
    let damaged = token.replace(&token[30..32], if &token[30..32] == "xx" { "yy" } else { "xx" });
    let output = agent.enroll_with(&coordinator, &damaged);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("tenant add"));
    assert!(agent.enroll_with(&coordinator, &token).status.success(), "the right one still works");
    let again = agent.enroll_with(&coordinator, &token);
    assert!(!again.status.success(), "neither a used token nor an enrolled agent");
}
