//! A coordinator that announces cohorts nobody can hide in, or asks what it must not.

use tributary_privacy::secagg::{MemberSet, ServerMessage};
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    id::Digest,
    message::{AgentMessage, CoordinatorMessage, LedgerHead, SecaggPayload},
};

use super::*;

/// The conversation's job with distributed noise, on a lattice that fits it.
fn configure_masked(round: u64) -> CoordinatorMessage {
    let text = JOB
        .replace("\"local\"", "\"distributed\"")
        .replace("local_steps = 2", "local_steps = 1")
        .replace("cohort_size_min = 2", "cohort_size_min = 3")
        + "[secagg]\nadversary = \"malicious-coordinator\"\ndropout_max = 0.25\ncorrupt_max = 0.0\n";
    let CoordinatorMessage::Configure(mut assignment) = configure(round) else { unreachable!() };
    assignment.job = toml::from_str(&text).unwrap();
    assignment.lattice = LatticeSpec { step: 1e-5, bits: 32 };
    CoordinatorMessage::Configure(assignment)
}

fn begin(round: u64, cohort_size: u32) -> CoordinatorMessage {
    CoordinatorMessage::SecaggBegin {
        job: job().name,
        round: RoundNumber(round),
        member: 0,
        cohort_size,
        cohort_root: Digest::of(b"a list"),
    }
}

fn ask(round: u64, message: &ServerMessage) -> CoordinatorMessage {
    let payload = SecaggPayload::encode(message).unwrap();
    CoordinatorMessage::Secagg { job: job().name, round: RoundNumber(round), payload }
}

async fn accepted(session: &mut Session, round: u64) {
    session.tell(configure_masked(round)).await;
    let answer = session.hear().await;
    assert!(matches!(answer, AgentMessage::Accept { .. }), "{answer:?}");
}

async fn refused(session: &mut Session) -> Refusal {
    match session.hear().await {
        AgentMessage::Decline { refusal, .. } => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_hides_in_no_small_cohort_and_answers_nothing_out_of_turn() {
    let conversation = async {
        let stage = Stage::enrolled().await;
        let policy = POLICY.to_owned() + "trusts = [\"distributed\"]\n";
        std::fs::write(stage.directory.path().join("policy.toml"), policy).unwrap();
        let running = stage.run();
        let mut session = stage.coordinator.welcome(LedgerHead::EMPTY).await;

        for (round, size) in [(1, 1), (2, 2)] {
            accepted(&mut session, round).await;
            session.tell(begin(round, size)).await;
            let refusal = refused(&mut session).await;
            assert_eq!(refusal.code, ErrorCode::SecaggCohortRefused, "{refusal}");
            assert!(refusal.message.contains("cohort_size_min"), "{refusal}");
        }

        // Asked again, the agent shows the same keys; with another cohort it shows none.
        accepted(&mut session, 3).await;
        session.tell(begin(3, 4)).await;
        let first = session.hear().await;
        assert!(matches!(first, AgentMessage::Secagg { .. }), "{first:?}");
        session.tell(begin(3, 4)).await;
        assert_eq!(session.hear().await, first);
        session.tell(begin(3, 5)).await;
        let refusal = refused(&mut session).await;
        assert_eq!(refusal.code, ErrorCode::SecaggCheckFailed, "{refusal}");

        // Survivors before anybody has masked anything.
        accepted(&mut session, 4).await;
        session.tell(begin(4, 4)).await;
        assert!(matches!(session.hear().await, AgentMessage::Secagg { .. }));
        session.tell(ask(4, &ServerMessage::Survivors(MemberSet::full(4)))).await;
        let refusal = refused(&mut session).await;
        assert_eq!(refusal.code, ErrorCode::SecaggCheckFailed, "{refusal}");
        assert!(refusal.message.contains("out of turn"), "{refusal}");

        // Without keys, as after a restart of the agent.
        accepted(&mut session, 5).await;
        session.tell(ask(5, &ServerMessage::Shares(Vec::new()))).await;
        assert_eq!(refused(&mut session).await.code, ErrorCode::SecaggSessionLost);
        running.stop().await;
        assert_eq!(stage.ledger_lines(), 0, "nothing was spent");
    };
    timeout(LIMIT, conversation).await.expect("in time");
}
