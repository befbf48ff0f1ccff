use proptest::prelude::*;
use tributary_protocol::{
    error_code::ErrorCode,
    id::{DatasetName, Digest, JobId, RoundNumber},
    job::JobSpec,
    message::{Assignment, BlobRef, LatticeSpec, LedgerHead},
    receipt::Receipt,
    transport::signature::Signature,
};

use super::*;
use crate::{
    site::Site,
    update::{Release, Standing},
};

fn policy() -> Policy {
    let text = r#"
        [datasets.adult]
        epsilon_max = 8.0
        delta = 1e-5
        units = ["record"]
        families = ["mlp"]
        noise_multiplier_min = 0.5
    "#;
    Policy::parse(text, &Site::new("/site")).unwrap()
}

fn assignment(round: u64, noise_multiplier: f64) -> Box<Assignment> {
    let text = format!(
        "name = \"census\"\ndataset = \"adult\"\n[model.mlp]\ninputs = 10\nclasses = 2\n\
         [training]\nlocal_steps = 10\nsampling_rate = 0.02\nbatch_size_expected = 64\n\
         client_learning_rate = 0.1\n[privacy]\ntrust = \"local\"\nunit = \"record\"\n\
         clipping_norm = 1.0\nnoise_multiplier = {noise_multiplier:?}\ndelta = 1e-5\n[round]\n\
         rounds = 3\ncohort_size = 4\ncohort_size_min = 2\nreport_goal = 3\n"
    );
    let job: JobSpec = toml::from_str(&text).unwrap();
    let lattice = LatticeSpec { step: 1e-5, bits: 32 };
    let round = RoundNumber(round);
    let base = base(round.0 - 1);
    Box::new(Assignment { job, round, base, lattice, report_within_ms: 60_000, control: None })
}

fn base(version: u64) -> BaseModel {
    let job: JobId = JobId::new("census").unwrap();
    let model = tributary_protocol::model::ModelSpec::Mlp(tributary_protocol::model::MlpSpec {
        inputs: 10,
        hidden: vec![],
        classes: 2,
    });
    let file = BlobRef { digest: Digest::of(&version.to_le_bytes()), length: 8 };
    let dataset = DatasetName::new("adult").unwrap();
    BaseModel { job, dataset, model, version, file }
}

fn key(round: u64) -> RoundKey {
    RoundKey { job: JobId::new("census").unwrap(), round: RoundNumber(round) }
}

fn release(round: u64) -> Release {
    let RoundKey { job, round } = key(round);
    Release { job, round, update: BlobRef { digest: Digest::of(b"update"), length: 6 } }
}

const NOW: Timestamp = Timestamp(1_000_000);

/// The driver checks signatures; a session only passes receipts on.
pub(super) fn receipt() -> Box<Receipt> {
    Box::new(Receipt {
        tenant: tributary_protocol::id::TenantId::new("ash").unwrap(),
        head: LedgerHead::EMPTY,
        signed: Timestamp(1),
        certificate: Vec::new(),
        signature: Signature { scheme: 0, bytes: Vec::new() },
    })
}

pub(super) struct Stage {
    pub(super) session: Session,
    pub(super) now: Timestamp,
}

impl Stage {
    pub(super) fn new() -> Self {
        let datasets = vec![DatasetName::new("adult").unwrap()];
        let mut stage = Self {
            session: Session::new(policy(), datasets, crate::secagg::tests::keys("ash")),
            now: NOW,
        };
        assert_eq!(stage.outputs(), [Output::Connect]);
        stage
    }

    fn welcomed() -> Self {
        let mut stage = Self::new();
        stage.connect();
        stage
    }

    pub(super) fn connect(&mut self) {
        let outputs = self.give(Input::Connected { ledger_head: LedgerHead::EMPTY });
        assert!(matches!(outputs[..], [Output::Send(AgentMessage::Hello { .. })]));
        let outputs = self.give(Input::Message(CoordinatorMessage::Welcome(receipt())));
        assert_eq!(outputs[0], Output::CompareLedger(receipt()));
    }

    pub(super) fn give(&mut self, input: Input) -> Vec<Output> {
        self.session.handle(self.now, input);
        self.outputs()
    }

    pub(super) fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.session.poll_output()).collect()
    }

    pub(super) fn configure(&mut self, round: u64) -> Vec<Output> {
        self.give(Input::Message(CoordinatorMessage::Configure(assignment(round, 1.0))))
    }

    fn examined(&mut self, round: u64) -> Vec<Output> {
        self.give(Input::Examined { key: key(round), outcome: Ok(Standing::Fresh) })
    }

    pub(super) fn closed(&mut self, round: u64) -> Vec<Output> {
        let RoundKey { job, round } = key(round);
        self.give(Input::Message(CoordinatorMessage::RoundClosed { job, round, abandoned: None }))
    }

    /// Lets the delay pass in which an assignment may follow a new base.
    fn rest(&mut self) -> Vec<Output> {
        self.now = self.now.after_ms(ADAPTATION_DELAY_MS);
        self.session.handle_timeout(self.now);
        self.outputs()
    }

    pub(super) fn lose(&mut self) -> Vec<Output> {
        let reason = "gone".to_owned();
        self.give(Input::ConnectionFailed(Failure { reason, lasting: false, jitter: 0.5 }))
    }
}

fn accept(round: u64) -> Output {
    let RoundKey { job, round } = key(round);
    Output::Send(AgentMessage::Accept { job, round })
}

#[test]
fn a_round_goes_from_check_to_stored_and_then_the_new_base_is_adapted_to() {
    let mut stage = Stage::welcomed();
    assert!(matches!(stage.configure(1)[..], [Output::Examine(..)]));
    let outputs = stage.examined(1);
    assert_eq!(outputs[0], accept(1));
    assert!(matches!(outputs[1], Output::Train(..)));
    assert_eq!(stage.session.view().phase, Phase::Training);
    let outputs = stage.give(Input::Trained { key: key(1), outcome: Ok(release(1)) });
    assert_eq!(outputs, [Output::Upload(release(1))]);
    assert_eq!(stage.give(Input::Uploaded { key: key(1), outcome: UploadEnd::Stored }), []);
    let new_base = Input::Message(CoordinatorMessage::NewBase(base(1)));
    assert_eq!(stage.give(new_base), [], "the round is still open");
    assert_eq!(stage.closed(1), [], "the next assignment may follow at once");
    assert_eq!(stage.rest(), [Output::Adapt(base(1))]);
    let done = Input::Adapted { base: base(1).file.digest, complete: true };
    assert_eq!(stage.give(done), []);
    assert_eq!(stage.session.view().phase, Phase::Idle);
}

#[test]
fn an_agent_that_is_told_to_come_back_leaves_and_returns_at_that_time() {
    let mut stage = Stage::welcomed();
    let rest = |after_ms| Input::Message(CoordinatorMessage::ComeBack { after_ms });
    assert_eq!(stage.give(rest(5_000)), [Output::Disconnect]);
    assert_eq!(stage.session.poll_timeout(), Some(NOW.after_ms(5_000)));
    assert!(!stage.session.view().connected);
    stage.now = NOW.after_ms(5_000);
    stage.session.handle_timeout(stage.now);
    assert_eq!(stage.outputs(), [Output::Connect]);
    stage.connect();
    // Not for ever, whatever the coordinator says.
    assert_eq!(stage.give(rest(u64::MAX)), [Output::Disconnect]);
    assert_eq!(stage.session.poll_timeout(), Some(stage.now.after_ms(24 * 60 * 60 * 1000)));
}

#[test]
fn a_forbidden_job_is_declined_before_the_ledger_is_even_asked() {
    let mut stage = Stage::welcomed();
    let outputs = stage.give(Input::Message(CoordinatorMessage::Configure(assignment(1, 0.1))));
    let [Output::RecordDecline(..), Output::Send(AgentMessage::Decline { refusal, .. })] =
        &outputs[..]
    else {
        panic!("{outputs:?}")
    };
    assert_eq!(refusal.code, ErrorCode::PolicyForbids);
    assert!(stage.session.view().refused.unwrap().contains("noise_multiplier_min"));
}

#[test]
fn an_exhausted_budget_declines_before_training() {
    let mut stage = Stage::welcomed();
    stage.configure(1);
    let refusal = Refusal::new(ErrorCode::BudgetExhausted, "spent");
    let outputs = stage.give(Input::Examined { key: key(1), outcome: Err(refusal.into()) });
    assert!(matches!(
        outputs[..],
        [Output::RecordDecline(..), Output::Send(AgentMessage::Decline { .. })]
    ));
}

#[test]
fn rounds_cut_an_adaptation_short_and_it_goes_on_later() {
    let mut stage = Stage::welcomed();
    assert_eq!(stage.give(Input::Message(CoordinatorMessage::NewBase(base(1)))), []);
    assert_eq!(stage.rest(), [Output::Adapt(base(1))]);
    let outputs = stage.configure(2);
    assert!(outputs.contains(&Output::CancelAdapting));
    assert_eq!(stage.examined(2), [accept(2)], "the worker is still busy");
    let outputs = stage.give(Input::Adapted { base: base(1).file.digest, complete: false });
    assert!(matches!(outputs[..], [Output::Train(..)]));
    let outputs = stage.closed(2);
    assert_eq!(outputs, [Output::CancelTraining(key(2))]);
    let outputs = stage.give(Input::Trained { key: key(2), outcome: Err(TrainingEnd::Cancelled) });
    assert_eq!(outputs, [Output::Adapt(base(1))]);
}

#[test]
fn a_job_that_fails_here_is_not_trained_again_at_once() {
    let mut stage = Stage::welcomed();
    let full = Refusal::new(ErrorCode::Internal, "the disk is full");
    stage.configure(1);
    stage.examined(1);
    let outcome = Err(TrainingEnd::Failed(full.clone()));
    let outputs = stage.give(Input::Trained { key: key(1), outcome });
    assert!(matches!(outputs[..], [Output::RecordDecline(..), Output::Send(_)]), "{outputs:?}");
    let outputs = stage.configure(2);
    let [Output::RecordDecline(_, _), Output::Send(AgentMessage::Decline { refusal, .. })] =
        &outputs[..]
    else {
        panic!("{outputs:?}")
    };
    assert_eq!(refusal.code, full.code);
    assert!(refusal.message.contains("the disk is full"), "{refusal}");
    stage.now = stage.now.after_ms(10_000);
    assert!(matches!(stage.configure(3)[..], [Output::Examine(..)]));
    stage.examined(3);
    assert_eq!(
        stage.give(Input::Trained { key: key(3), outcome: Ok(release(3)) }),
        [Output::Upload(release(3))]
    );
    assert!(matches!(stage.configure(4)[..], [Output::Examine(..)]), "it works again");
}

#[test]
fn a_base_that_the_coordinator_does_not_send_leaves_the_next_round_alone() {
    let mut stage = Stage::welcomed();
    stage.configure(1);
    stage.examined(1);
    let unknown = Refusal::new(ErrorCode::BaseModelInvalid, "there is no such model file");
    let outcome = Err(TrainingEnd::NoBase(unknown));
    let outputs = stage.give(Input::Trained { key: key(1), outcome });
    assert!(matches!(outputs[..], [Output::RecordDecline(..), Output::Send(_)]), "{outputs:?}");
    assert!(matches!(stage.configure(2)[..], [Output::Examine(..)]));
}

#[test]
fn an_overdue_adaptation_comes_before_rounds_and_is_not_cut() {
    let mut stage = Stage::welcomed();
    let digest = |version| base(version).file.digest;
    // The first base is heard of while a round trains, and the next round follows at once.
    stage.configure(1);
    stage.examined(1);
    stage.give(Input::Message(CoordinatorMessage::NewBase(base(1))));
    assert_eq!(stage.session.poll_timeout(), None, "the worker is not free");
    stage.now = stage.now.after_ms(ADAPTATION_INTERVAL_MS_MAX - 1);
    assert_eq!(stage.configure(2)[0], Output::CancelTraining(key(1)));
    stage.examined(2);
    stage.now = stage.now.after_ms(1);
    let cancelled = Input::Trained { key: key(1), outcome: Err(TrainingEnd::Cancelled) };
    assert_eq!(stage.give(cancelled), [Output::Adapt(base(1))], "before the queued round");
    assert_eq!(stage.configure(2), [accept(2)], "nothing is cut");
    assert_eq!(stage.give(Input::Message(CoordinatorMessage::NewBase(base(2)))), []);
    let done = Input::Adapted { base: digest(1), complete: true };
    assert!(matches!(stage.give(done)[..], [Output::Train(..)]), "rounds come first again");

    // An update that is in does not hold an overdue adaptation up either.
    let trained = Input::Trained { key: key(2), outcome: Ok(release(2)) };
    assert_eq!(stage.give(trained), [Output::Upload(release(2))]);
    assert_eq!(stage.give(Input::Uploaded { key: key(2), outcome: UploadEnd::Stored }), []);
    let overdue = stage.now.after_ms(ADAPTATION_INTERVAL_MS_MAX);
    assert_eq!(stage.session.poll_timeout(), Some(overdue));
    stage.session.handle_timeout(overdue);
    assert_eq!(stage.outputs(), [Output::Adapt(base(2))]);
    assert_eq!(stage.session.poll_timeout(), None);
}

#[test]
fn only_the_last_announced_base_is_adapted_to() {
    let mut stage = Stage::welcomed();
    stage.give(Input::Message(CoordinatorMessage::NewBase(base(1))));
    assert_eq!(stage.rest(), [Output::Adapt(base(1))]);
    let outputs = stage.give(Input::Message(CoordinatorMessage::NewBase(base(2))));
    assert_eq!(outputs, [Output::CancelAdapting]);
    assert_eq!(stage.give(Input::Message(CoordinatorMessage::NewBase(base(3)))), []);
    assert_eq!(stage.give(Input::Message(CoordinatorMessage::NewBase(base(3)))), []);
    assert_eq!(stage.give(Input::Adapted { base: base(1).file.digest, complete: false }), []);
    assert_eq!(stage.rest(), [Output::Adapt(base(3))]);
    // A rollback: an older version is announced last.
    let outputs = stage.give(Input::Message(CoordinatorMessage::NewBase(base(2))));
    assert_eq!(outputs, [Output::CancelAdapting]);
    assert_eq!(stage.give(Input::Adapted { base: base(3).file.digest, complete: false }), []);
    assert_eq!(stage.rest(), [Output::Adapt(base(2))]);
}

#[test]
fn training_goes_on_across_a_disconnect_and_is_uploaded_after_it() {
    let mut stage = Stage::welcomed();
    stage.configure(1);
    stage.examined(1);
    assert_eq!(stage.lose(), []);
    let retry = stage.session.poll_timeout().expect("it tries again");
    assert!(retry > NOW && retry <= NOW.after_ms(250));
    assert_eq!(stage.give(Input::Trained { key: key(1), outcome: Ok(release(1)) }), []);
    assert_eq!(stage.session.view().phase, Phase::Uploading);
    stage.session.handle_timeout(retry);
    assert_eq!(stage.outputs(), [Output::Connect]);
    stage.give(Input::Connected { ledger_head: LedgerHead::EMPTY });
    let welcome = CoordinatorMessage::Welcome(receipt());
    assert!(stage.give(Input::Message(welcome)).contains(&Output::Upload(release(1))));
    assert_eq!(stage.configure(1), [accept(1)], "invited again: nothing is trained twice");
}

#[test]
fn a_round_that_was_released_before_a_restart_is_sent_again() {
    let mut stage = Stage::welcomed();
    stage.configure(1);
    let outcome = Ok(Standing::Released(release(1)));
    let outputs = stage.give(Input::Examined { key: key(1), outcome });
    assert_eq!(outputs, [accept(1), Output::Upload(release(1))]);
}

#[test]
fn an_invitation_closes_the_rounds_before_it() {
    let mut stage = Stage::welcomed();
    stage.configure(1);
    stage.examined(1);
    assert_eq!(stage.configure(2)[0], Output::CancelTraining(key(1)));
    assert_eq!(stage.examined(2), [accept(2)], "the worker is still busy");
    let outputs = stage.give(Input::Trained { key: key(1), outcome: Ok(release(1)) });
    assert!(matches!(outputs[..], [Output::Train(..)]), "the old release stays here");
}

#[test]
fn a_diverged_ledger_refuses_all_training() {
    let mut stage = Stage::welcomed();
    let refusal = Refusal::new(ErrorCode::LedgerDiverged, "restored backup");
    stage.give(Input::LedgerCompared(Err(refusal)));
    let outputs = stage.configure(1);
    let [Output::RecordDecline(..), Output::Send(AgentMessage::Decline { refusal, .. })] =
        &outputs[..]
    else {
        panic!("{outputs:?}")
    };
    assert_eq!(refusal.code, ErrorCode::LedgerDiverged);
    assert_eq!(stage.session.view().phase, Phase::Halted);
}

#[test]
fn refusals_that_cannot_heal_are_retried_slowly() {
    for (code, slow) in [
        (ErrorCode::CertificateNotRegistered, true),
        (ErrorCode::TenantSuspended, true),
        (ErrorCode::Superseded, true),
        (ErrorCode::ShuttingDown, false),
    ] {
        let mut stage = Stage::welcomed();
        let refused = CoordinatorMessage::Refused(Refusal::new(code, "no"));
        assert_eq!(stage.give(Input::Message(refused)), [Output::Disconnect]);
        let wait = stage.session.poll_timeout().unwrap().since(NOW);
        assert_eq!(wait.as_secs() > 60, slow, "{code}");
        let view = stage.session.view();
        assert!(view.detail.contains(code.slug()));
        assert_eq!(view.refused.is_some(), slow, "{code}");
    }
}

#[test]
fn a_coordinator_that_does_not_welcome_is_left() {
    let mut stage = Stage::new();
    stage.give(Input::Connected { ledger_head: LedgerHead::EMPTY });
    let deadline = stage.session.poll_timeout().unwrap();
    stage.session.handle_timeout(deadline);
    assert_eq!(stage.outputs(), [Output::Disconnect]);
    assert!(stage.session.poll_timeout().unwrap() > deadline);
}

/// Any event at any time, as a confused driver or coordinator might send it.
fn any_input() -> impl Strategy<Value = Input> {
    let round = 1..4_u64;
    prop_oneof![
        Just(Input::Connected { ledger_head: LedgerHead::EMPTY }),
        Just(Input::Message(CoordinatorMessage::Welcome(receipt()))),
        Just(Input::Message(CoordinatorMessage::Receipt(receipt()))),
        any::<bool>().prop_map(|lasting| Input::ConnectionFailed(Failure {
            reason: "gone".to_owned(),
            lasting,
            jitter: 0.5
        })),
        round.clone().prop_map(|round| Input::Message(CoordinatorMessage::Configure(assignment(
            round, 1.0
        )))),
        round
            .clone()
            .prop_map(|round| Input::Examined { key: key(round), outcome: Ok(Standing::Fresh) }),
        round.clone().prop_map(|round| Input::Trained {
            key: key(round),
            outcome: Err(TrainingEnd::Cancelled)
        }),
        round
            .clone()
            .prop_map(|round| Input::Trained { key: key(round), outcome: Ok(release(round)) }),
        (round.clone(), 0..3_u8).prop_map(|(round, end)| Input::Uploaded {
            key: key(round),
            outcome: match end {
                0 => UploadEnd::Stored,
                1 => UploadEnd::Interrupted,
                _ => UploadEnd::Refused(Refusal::new(ErrorCode::WrongRound, "late")),
            }
        }),
        round.clone().prop_map(|round| Input::Message(CoordinatorMessage::RoundClosed {
            job: key(round).job,
            round: RoundNumber(round),
            abandoned: None
        })),
        round
            .clone()
            .prop_map(|version| Input::Message(CoordinatorMessage::NewBase(base(version)))),
        (round, any::<bool>()).prop_map(|(version, complete)| Input::Adapted {
            base: base(version).file.digest,
            complete
        }),
        Just(Input::LedgerCompared(Ok(()))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_order_of_events_panics_or_uploads_what_was_not_debited(
        inputs in prop::collection::vec((any_input(), 0..20_000_u64), 0..120),
    ) {
        let mut stage = Stage::new();
        let mut debited = std::collections::BTreeSet::new();
        let mut working = 0_i32;
        let mut now = NOW;
        for (input, wait_ms) in inputs {
            now = now.after_ms(wait_ms);
            if stage.session.poll_timeout().is_some_and(|timeout| timeout <= now) {
                stage.session.handle_timeout(now);
                let next = stage.session.poll_timeout();
                prop_assert!(next.is_none_or(|next| next > now), "no busy waiting");
                for output in stage.outputs() {
                    working += i32::from(matches!(output, Output::Train(..) | Output::Adapt(..)));
                }
            }
            let answers_train = matches!(&input, Input::Trained { key, .. }
                if stage.session.rounds.training().as_ref() == Some(key));
            let answers_adapt = matches!(&input, Input::Adapted { base, .. }
                if stage.session.adapting.as_ref().is_some_and(|on| on.base.file.digest == *base));
            working -= i32::from(answers_train) + i32::from(answers_adapt);
            if let Input::Trained { key, outcome: Ok(_) } = &input {
                debited.insert(key.clone());
            }
            stage.session.handle(now, input);
            for output in stage.outputs() {
                match output {
                    Output::Upload(release) => {
                        let key = RoundKey { job: release.job, round: release.round };
                        prop_assert!(debited.contains(&key));
                    }
                    Output::Train(..) | Output::Adapt(..) => working += 1,
                    Output::Send(message) => {
                        let hello = matches!(message, AgentMessage::Hello { .. });
                        prop_assert!(hello || stage.session.link.is_established());
                    }
                    _ => {}
                }
            }
            prop_assert!((0..=1).contains(&working), "one thing at a time");
            let _ = stage.session.view();
        }
    }
}
