//! The dashboard in a real browser, on a real coordinator with real agents and a running job.
//!
//! `TRIBUTARY_SCREENSHOTS=FOLDER` keeps pictures of what the tests saw.

mod access;
mod look;
mod operate;
mod sign_in;

use serde_json::Value;
use tributary_tests::{
    agent::{Agent, POLICY},
    browser::{Browser, Key},
    coordinator::Coordinator,
};

/// A job whose cohort says how good its bases are.
fn job(name: &str, rounds: u32) -> String {
    format!(
        "name = \"{name}\"
        dataset = \"points\"
        [model.mlp]
        inputs = 2
        hidden = [8]
        classes = 2
        [training]
        local_steps = 4
        sampling_rate = 0.1
        batch_size_expected = 32
        client_learning_rate = 0.5
        [privacy]
        trust = \"local\"
        unit = \"record\"
        clipping_norm = 1.0
        noise_multiplier = 2.0
        delta = 1e-5
        [round]
        rounds = {rounds}
        cohort_size = 3
        cohort_size_min = 2
        report_goal = 3
        [evaluation]
        every_rounds = 2
        metrics = [\"accuracy\", \"loss\"]
        noise_multiplier = 2.0
        "
    )
}

/// A coordinator, agents that run, and somebody who looks.
struct World {
    coordinator: Coordinator,
    agents: Vec<Agent>,
    browser: Browser,
}

impl World {
    /// Starts all; none without a browser.
    fn start(tenants: &[&str]) -> Option<Self> {
        let browser = Browser::start()?;
        let coordinator = Coordinator::start();
        let policy = POLICY.replace("epsilon_max = 50.0", "epsilon_max = 900.0");
        let policy = format!("{policy}evaluation_noise_multiplier_min = 0.5\n");
        let mut agents: Vec<_> =
            tenants.iter().map(|name| Agent::enroll(&coordinator, name, &policy)).collect();
        agents.iter_mut().for_each(Agent::run);
        Some(Self { coordinator, agents, browser })
    }

    /// Signs in with a token of this role.
    fn enter(&self, role: &str) {
        let mut wish = vec!["token", "add", role, "--role", role];
        if role == "tenant-admin" {
            wish.extend(["--tenant", "alpha"]);
        }
        let added = self.coordinator.ask(&wish);
        self.enter_with(added["token"].as_str().expect("text"));
    }

    /// Signs in with a token.
    fn enter_with(&self, token: &str) {
        self.browser.go(self.coordinator.api());
        self.browser.see("h1", "Tributary");
        self.browser.type_text(token);
        self.browser.press(Key::Enter);
        self.browser.see("nav.places", "Jobs");
    }

    /// Waits until the job has this many rounds.
    fn committed(&self, job: &str, rounds: u64) -> Value {
        tributary_tests::wait::until(&format!("{rounds} rounds of {job}"), 60, || {
            let document = self.coordinator.get(&format!("/v1/jobs/{job}"));
            (document["rounds_committed"].as_u64()? >= rounds).then_some(document)
        })
    }

    /// Fails if the page complained about anything.
    fn no_complaints(&self) {
        let complaints = self.browser.console();
        assert!(complaints.is_empty(), "{complaints:#?}");
    }
}
