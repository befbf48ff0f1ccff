//! One round of a coordinator and its agents, and what it takes.

use std::{fs, sync::Arc, time::Instant};

use bytes::Bytes;
use tokio::{
    runtime::Runtime,
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
};
use tributary_protocol::{
    enrollment::EnrollmentToken,
    transport::{endpoint, tls},
};
use tributary_tests::{
    coordinator::Coordinator,
    peer::{self, Credentials},
    usage::Usage,
};

use crate::agent::NullAgent;

/// Agents that enrol or connect at the same time.
const AT_ONCE: usize = 32;

/// What was measured; memory in bytes, times in seconds.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) connections: usize,
    pub(crate) update_bytes: usize,
    pub(crate) base_bytes: u64,
    /// Resident memory of the coordinator that knows every tenant.
    pub(crate) idle: u64,
    /// With every agent connected.
    pub(crate) connected: u64,
    /// The most during the round.
    pub(crate) peak: u64,
    /// When it was over.
    pub(crate) after: u64,
    /// Processor time of both sides to connect all agents.
    pub(crate) connecting_processor: f64,
    /// The coordinator's for the round.
    pub(crate) coordinator_processor: f64,
    /// That of all agents for the round.
    pub(crate) agents_processor: f64,
    pub(crate) round_seconds: f64,
}

/// Runs a round.
pub(crate) fn measure(connections: usize, parameters: usize) -> Figures {
    let runtime = Runtime::new().expect("a runtime");
    let mut coordinator = Coordinator::start();
    let credentials = runtime.block_on(enroll(&coordinator, connections));
    // What enrolment left in the allocator is not what is measured.
    coordinator.kill();
    coordinator.serve();
    runtime.block_on(play(&coordinator, &credentials, parameters))
}

async fn enroll(coordinator: &Coordinator, connections: usize) -> Vec<Credentials> {
    let admin = fs::read_to_string(coordinator.path("admin.token")).expect("a token");
    let tenants = format!("{}/v1/tenants", coordinator.api());
    let tokens = spawn_blocking(move || {
        let http = ureq::Agent::new_with_defaults();
        let add = |number: usize| {
            let tenant = format!("tenant-{number:05}");
            let request =
                http.post(&tenants).header("authorization", format!("Bearer {}", admin.trim()));
            let body = serde_json::json!({ "tenant": tenant, "region": "eu" });
            let mut added = request.send_json(body).expect("admits");
            let added: serde_json::Value = added.body_mut().read_json().expect("JSON");
            added["token"].as_str().expect("text").parse().expect("a token")
        };
        (0..connections).map(add).collect::<Vec<EnrollmentToken>>()
    });
    let (tokens, address) = (tokens.await.expect("adds"), coordinator.quic());
    each_at_once(tokens, move |_, token| async move {
        peer::enroll(address, &token).await.expect("admitted")
    })
    .await
}

/// Runs `run` for each, [`AT_ONCE`] at a time; returns the results in order.
async fn each_at_once<T, R, F>(items: Vec<T>, run: impl Fn(u64, T) -> F) -> Vec<R>
where
    R: Send + 'static,
    F: Future<Output = R> + Send + 'static,
{
    let (places, mut tasks) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
    for (number, item) in items.into_iter().enumerate() {
        let place = places.clone().acquire_owned().await.expect("open");
        let task = run(number as u64, item);
        tasks.spawn(async move {
            let done = task.await;
            drop(place);
            (number, done)
        });
    }
    let mut done = tasks.join_all().await;
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, done)| done).collect()
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
async fn play(
    coordinator: &Coordinator,
    credentials: &[Credentials],
    parameters: usize,
) -> Figures {
    let (there, here) = (Usage::of(coordinator.process()), Usage::own());
    let idle = there.resident_bytes();
    let connecting = there.processor_seconds() + here.processor_seconds();
    let first = &credentials[0];
    let tls = tls::agent(first.identity.clone(), &first.authority).expect("TLS");
    let address = coordinator.quic();
    let endpoint = endpoint::client(address, tls).expect("a socket");
    let agents = each_at_once(credentials.to_vec(), |number, credentials| {
        let endpoint = endpoint.clone();
        async move { NullAgent::connect(number, &endpoint, address, &credentials).await }
    })
    .await;
    let connecting_processor = there.processor_seconds() + here.processor_seconds() - connecting;
    let connected = there.resident_bytes();

    let (job, update) = job(credentials.len(), parameters);
    let update = Arc::new(update);
    there.reset_peak();
    let before = (there.processor_seconds(), here.processor_seconds(), Instant::now());
    let mut tasks = JoinSet::new();
    for agent in agents {
        tasks.spawn(agent.play(update.clone()));
    }
    tokio::task::block_in_place(|| coordinator.submit(&job));
    let bases = tasks.join_all().await;
    let round_seconds = before.2.elapsed().as_secs_f64();
    Figures {
        connections: credentials.len(),
        update_bytes: update.len(),
        base_bytes: bases[0].length,
        idle,
        connected,
        peak: there.peak_bytes(),
        after: there.resident_bytes(),
        connecting_processor,
        coordinator_processor: there.processor_seconds() - before.0,
        agents_processor: here.processor_seconds() - before.1,
        round_seconds,
    }
}

/// The bits of the job's lattice.
const BITS: usize = 24;

/// A job of one round, and an update of the right length.
fn job(cohort: usize, parameters: usize) -> (String, Bytes) {
    // One hidden layer of a width W and two classes: W for each input, each bias and each class.
    let width = (parameters / 100).clamp(1, 1000);
    let inputs = (parameters / width).saturating_sub(3).max(1);
    let parameters = width * (inputs + 3) + 2;
    let job = format!(
        "name = \"load\"
        dataset = \"points\"
        [model.mlp]
        inputs = {inputs}
        hidden = [{width}]
        classes = 2
        [training]
        local_steps = 1
        sampling_rate = 0.1
        batch_size_expected = 32
        client_learning_rate = 0.5
        [privacy]
        trust = \"local\"
        unit = \"record\"
        clipping_norm = 1.0
        noise_multiplier = 1.0
        delta = 1e-5
        lattice_bits = {BITS}
        [round]
        rounds = 1
        cohort_size = {cohort}
        cohort_size_min = {cohort}
        report_goal = {cohort}
        "
    );
    (job, Bytes::from(vec![0; (parameters * BITS).div_ceil(8)]))
}
