//! Black-box tests: real processes over real QUIC.

mod algorithms;
mod backup;
mod correlated;
mod damage;
mod hostile;
mod identity;
mod isolation;
mod jobs;
mod life_cycle;
mod metrics;
mod packaging;
mod people;
mod recovery;
mod rotation;
mod samples;
mod secagg;
mod soak;
mod uploads;

use tributary_protocol::{
    enrollment::EnrollmentToken,
    error_code::ErrorCode,
    transport::{TransportError, endpoint},
};
use tributary_tests::{coordinator::Coordinator, peer};

/// A job on the synthetic points of the test agents.
fn job(name: &str, rounds: u32, cohort: u32) -> String {
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
        noise_multiplier = 1.0
        delta = 1e-5
        [round]
        rounds = {rounds}
        cohort_size = {cohort}
        cohort_size_min = {cohort}
        report_goal = {cohort}
        "
    )
}

/// Enrols a hand-driven peer.
async fn credentials(coordinator: &Coordinator, tenant: &str) -> peer::Credentials {
    let token: EnrollmentToken = coordinator.add_tenant(tenant).parse().expect("a token");
    peer::enroll(coordinator.quic(), &token).await.expect("admitted")
}

/// The code with which the coordinator closed a connection.
fn refused(error: TransportError) -> ErrorCode {
    let connection = match error {
        TransportError::Read(quinn::ReadError::ConnectionLost(error))
        | TransportError::Connection(error) => error,
        other => panic!("not refused: {other:?}"),
    };
    let refusal = endpoint::refusal(&connection);
    refusal.unwrap_or_else(|| panic!("no refusal: {connection}")).code
}
