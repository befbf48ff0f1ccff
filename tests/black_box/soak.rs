//! kill −9 at random times: the models are those of a run that nothing disturbed, to the bit, and no
//! agent spends twice.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;
use tokio::time::{Instant, sleep_until};
use tributary_protocol::enrollment::EnrollmentToken;
use tributary_tests::{
    agent::{Agent, POLICY},
    coordinator::Coordinator,
    peer::{self, Credentials},
    research::ResearchPeer,
    wait::until,
};

use crate::job;

const PLAIN: [&str; 3] = ["plain-a", "plain-b", "plain-c"];
const MASKED: [&str; 4] = ["masked-a", "masked-b", "masked-c", "masked-d"];
const AGENTS: [&str; 3] = ["alpha", "beta", "gamma"];

/// More rounds than any run makes.
const ENDLESS: u32 = 1_000_000;

/// Nothing but a death may decide how a round goes.
const PATIENT: &str = "selection_timeout_ms = 600000
        configuration_timeout_ms = 600000
        report_timeout_ms = 600000
        ";

fn in_region(job: &str, region: &str) -> String {
    let dataset = "dataset = \"points\"";
    job.replace(dataset, &format!("{dataset}\nregions = [\"{region}\"]"))
        .replace("unit = \"record\"", "unit = \"tenant\"")
}

fn plain_job() -> String {
    in_region(&job("plain", ENDLESS, 3), "us") + PATIENT
}

fn masked_job() -> String {
    let secagg = "[secagg]
        adversary = \"semi-honest\"
        dropout_max = 0.25
        corrupt_max = 0.2
        step_timeout_ms = 600000
        ";
    in_region(&job("masked", ENDLESS, 4), "ap")
        .replace("trust = \"local\"", "trust = \"distributed\"")
        .replace("cohort_size_min = 4", "cohort_size_min = 3")
        + PATIENT
        + secagg
}

/// For real agents, which are killed as well: whoever is missing is not waited for.
fn agents_job() -> String {
    let job = job("points", ENDLESS, 3).replace("cohort_size_min = 3", "cohort_size_min = 1");
    let job = job.replace("dataset = \"points\"", "dataset = \"points\"\nregions = [\"eu\"]");
    job + "selection_timeout_ms = 1000
        configuration_timeout_ms = 2000
        report_timeout_ms = 2000
        "
}

async fn enroll(coordinator: &Coordinator, tenant: &str, region: &str) -> Credentials {
    let token = coordinator.add_tenant_in(tenant, region);
    let token: EnrollmentToken = token.parse().expect("a token");
    peer::enroll(coordinator.quic(), &token).await.expect("admitted")
}

fn peers(credentials: &[(&'static str, Credentials)]) -> Vec<ResearchPeer> {
    credentials.iter().map(|(name, credentials)| ResearchPeer::new(name, credentials)).collect()
}

/// The digests of a job's models, by version.
fn models(coordinator: &Coordinator, job: &str) -> BTreeMap<u64, String> {
    let models = coordinator.get("/v1/models");
    let models = models.as_array().expect("a list").iter();
    models
        .filter(|model| model["job"] == job)
        .map(|model| {
            let version = model["version"].as_u64().expect("a number");
            (version, model["digest"].as_str().expect("text").to_owned())
        })
        .collect()
}

fn random(below: u32) -> u32 {
    getrandom::u32().expect("entropy") % below
}

/// Kills processes for a while, and compares with a run that nothing disturbs.
async fn soak(duration: Duration) {
    let mut coordinator = Coordinator::start();
    let mut credentials = Vec::new();
    for (tenants, region) in [(&PLAIN[..], "us"), (&MASKED[..], "ap")] {
        for tenant in tenants {
            credentials.push((*tenant, enroll(&coordinator, tenant, region).await));
        }
    }
    let policy = POLICY.replace("epsilon_max = 50.0", "epsilon_max = 100000.0");
    let mut agents = AGENTS.map(|tenant| Agent::enroll(&coordinator, tenant, &policy));
    for job in [plain_job(), masked_job(), agents_job()] {
        coordinator.submit(&job);
    }
    coordinator.kill();
    let mut undisturbed = coordinator.twin();
    coordinator.serve();

    let mut tenants = peers(&credentials);
    for tenant in &mut tenants {
        tenant.run(coordinator.quic());
    }
    for agent in &mut agents {
        agent.run();
    }
    let (end, mut deaths) = (Instant::now() + duration, 0);
    while Instant::now() < end {
        let pause = Duration::from_millis(u64::from(50 + random(1500)));
        sleep_until((Instant::now() + pause).min(end)).await;
        match random(10) {
            0..6 => {
                coordinator.kill();
                coordinator.serve();
            }
            6..8 => {
                let tenant = &mut tenants[random(PLAIN.len() as u32) as usize];
                tenant.kill().await;
                tenant.run(coordinator.quic());
            }
            _ => {
                let agent = &mut agents[random(AGENTS.len() as u32) as usize];
                agent.kill();
                agent.run();
            }
        }
        deaths += 1;
    }
    let stopped = ["plain", "masked", "points"]
        .map(|job| coordinator.ask(&["job", "stop", job])["rounds_committed"].as_u64());
    let stopped = stopped.map(|rounds| rounds.expect("a number"));
    assert!(deaths > 0 && stopped.iter().all(|&rounds| rounds > 0), "{deaths}: {stopped:?}");
    let disturbed = ["plain", "masked"].map(|job| models(&coordinator, job));
    check_spending(&coordinator, &mut agents);
    check_releases(&coordinator, &tenants);
    for tenant in &mut tenants {
        tenant.kill().await;
    }
    coordinator.kill();

    undisturbed.serve();
    let mut tenants = peers(&credentials);
    for tenant in &mut tenants {
        tenant.run(undisturbed.quic());
    }
    for (job, expected) in ["plain", "masked"].into_iter().zip(&disturbed) {
        let last = *expected.keys().last().expect("version 0");
        let models = until("as many rounds without a death", 60 + 2 * duration.as_secs(), || {
            let models = models(&undisturbed, job);
            models.contains_key(&last).then_some(models)
        });
        for (version, digest) in expected {
            assert_eq!(models[version], *digest, "version {version} of {job}");
        }
    }
    for tenant in &mut tenants {
        tenant.kill().await;
    }
    report(deaths, stopped);
}

/// Every counted update was debited, exactly once, and no round was debited twice.
fn check_spending(coordinator: &Coordinator, agents: &mut [Agent]) {
    let history = coordinator.get("/v1/jobs/points/rounds");
    let history = history.as_array().expect("a list");
    for (tenant, agent) in AGENTS.iter().zip(agents) {
        agent.kill();
        let ledger = agent.ledger();
        let entries = ledger["entries"].as_array().expect("a list");
        let mut debits = BTreeMap::<(u64, String), u32>::new();
        for entry in entries {
            let key = (entry["round"].as_u64().expect("a number"), entry["kind"].to_string());
            *debits.entry(key).or_default() += 1;
        }
        let twice: Vec<_> = debits.iter().filter(|&(_, &count)| count > 1).collect();
        assert!(twice.is_empty(), "{tenant} debited rounds twice: {twice:?}");
        for round in history {
            let Some(update) = round["contributors"][tenant].as_str() else { continue };
            let of_round = |entry: &&Value| entry["round"] == round["round"];
            let debited: Vec<_> = entries
                .iter()
                .filter(of_round)
                .map(|entry| entry["release"].as_str().expect("a digest"))
                .collect();
            assert!(debited.contains(&update), "{tenant} released {update} without a debit");
        }
    }
}

/// What was counted is what the tenants have on their disks.
fn check_releases(coordinator: &Coordinator, tenants: &[ResearchPeer]) {
    for (job, names) in [("plain", &PLAIN[..]), ("masked", &MASKED[..])] {
        let history = coordinator.get(&format!("/v1/jobs/{job}/rounds"));
        for round in history.as_array().expect("a list") {
            let number = round["round"].as_u64().expect("a number");
            for (name, update) in round["contributors"].as_object().expect("a table") {
                assert!(names.contains(&name.as_str()), "{name} is not in the region of {job}");
                let all = PLAIN.iter().chain(&MASKED);
                let place = all.clone().position(|known| known == name).expect("a tenant");
                let released = tenants[place].released(job, number).expect("released");
                assert_eq!(*update, released.to_string(), "{job}/{number} of {name}");
            }
        }
    }
}

#[expect(clippy::print_stderr, reason = "what a long run did")]
fn report(deaths: u32, [plain, masked, points]: [u64; 3]) {
    eprintln!(
        "{deaths} deaths; {plain} plain and {masked} masked rounds equal to the bit, {points} rounds \
         of real agents"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn some_seconds_of_random_kills_leave_the_models_as_they_would_have_been() {
    soak(Duration::from_secs(4)).await;
}

/// `cargo xtask soak` runs it, for as long as asked.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: `cargo xtask soak`"]
async fn minutes_of_random_kills_leave_the_models_as_they_would_have_been() {
    let seconds = std::env::var("TRIBUTARY_SOAK_SECONDS").ok();
    let seconds = seconds.map_or(120, |text| text.parse().expect("a number of seconds"));
    soak(Duration::from_secs(seconds)).await;
}
