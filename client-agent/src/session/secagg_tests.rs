//! Whole sessions in secure aggregation with each other, the coordinator's machine between them.

use std::{collections::BTreeMap, sync::Arc};

use tributary_privacy::{
    lattice::{Lattice, ModularSum},
    secagg::{
        Blob, ByteArray, ClientMessage, Member, PeerKeys, RoundContext, Server, ServerMessage,
        cohort_root,
    },
};
use tributary_protocol::{
    codec,
    error_code::ErrorCode,
    id::{DatasetName, Digest, RoundNumber},
    message::{
        AgentMessage, Assignment, BaseModel, BlobRef, CoordinatorMessage, LatticeSpec, LedgerHead,
        SecaggPayload,
    },
    time::Timestamp,
};

use super::{tests::receipt, *};
use crate::{
    policy::Policy,
    secagg::{Cohort, Exchange, TenantKeys, noise, tests::cohort_keys},
    site::Site,
    update::{Release, Standing},
};

const TENANTS: [&str; 4] = ["ash", "birch", "cedar", "elm"];
const NOW: Timestamp = Timestamp(1_800_000_000_000);
const JOB: &str = "name = \"census\"\ndataset = \"adult\"\n[model.mlp]\ninputs = 2\nclasses = 2\n\
    [training]\nlocal_steps = 1\nsampling_rate = 0.1\nbatch_size_expected = 8\n\
    client_learning_rate = 0.1\n[privacy]\ntrust = \"distributed\"\nunit = \"tenant\"\n\
    clipping_norm = 1.0\nnoise_multiplier = 1.0\ndelta = 1e-5\n[round]\nrounds = 3\n\
    cohort_size = 4\ncohort_size_min = 3\nreport_goal = 4\n[secagg]\n\
    adversary = \"malicious-coordinator\"\ndropout_max = 0.25\ncorrupt_max = 0.0\n";
const POLICY: &str = "[datasets.adult]\nepsilon_max = 80.0\ndelta = 1e-5\nunits = [\"tenant\"]\n\
    trusts = [\"distributed\"]\nfamilies = [\"mlp\"]\nnoise_multiplier_min = 0.5\n";

fn assignment() -> Box<Assignment> {
    let job: tributary_protocol::job::JobSpec = toml::from_str(JOB).unwrap();
    let file = BlobRef { digest: Digest::of(b"base"), length: 8 };
    let (name, dataset, model) = (job.name.clone(), job.dataset.clone(), job.model.clone());
    let base = BaseModel { job: name, dataset, model, version: 0, file };
    let lattice = LatticeSpec { step: 1e-6, bits: 32 };
    Box::new(Assignment {
        job,
        round: RoundNumber(1),
        base,
        lattice,
        report_within_ms: 60_000,
        control: None,
    })
}

fn key() -> RoundKey {
    RoundKey::of(&assignment())
}

struct Everybody;

impl PeerKeys for Everybody {
    fn name(&self, credential: &[u8]) -> Option<String> {
        Some(Digest::of(credential).to_string())
    }

    fn verify(&self, _credential: &[u8], _message: &[u8], _signature: &[u8]) -> bool {
        true
    }
}

/// Sessions of a cohort, and what each was given to mask.
struct Cast {
    sessions: Vec<Session>,
    server: Server,
    cohort: Cohort,
    exchanges: BTreeMap<usize, Exchange>,
    sum: ModularSum,
}

impl Cast {
    fn new() -> Self {
        let keys = cohort_keys(&TENANTS);
        let assignment = assignment();
        let credentials: Vec<Blob> = keys.iter().map(|keys| keys.credential()).collect();
        let root = cohort_root(&credentials);
        let lattice = Lattice::new(assignment.lattice.step, assignment.lattice.bits).unwrap();
        let noise = noise(&assignment.job).unwrap();
        let plan = noise.plan(4).unwrap();
        let terms = codec::encode(&(&assignment.job, assignment.lattice)).unwrap();
        let context = RoundContext {
            job: "census".to_owned(),
            round: 1,
            base_digest: ByteArray(*assignment.base.file.digest.as_bytes()),
            terms_digest: ByteArray(*Digest::of(&terms).as_bytes()),
            cohort_root: root,
            plan,
            bits: 32,
            dimension: noise.dimension,
            coordinate_max: noise.coordinate_max(&plan, lattice),
        };
        let server = Server::new(context, credentials).unwrap();
        let cohort = Cohort { member: 0, size: 4, root: Digest::from_bytes(root.0) };
        let sum = ModularSum::new(lattice, noise.dimension as usize);
        let sessions = keys.into_iter().map(session).collect();
        Self { sessions, server, cohort, exchanges: BTreeMap::new(), sum }
    }

    fn give(&mut self, index: usize, input: Input) -> Vec<Output> {
        let session = &mut self.sessions[index];
        session.handle(NOW, input);
        std::iter::from_fn(|| session.poll_output()).collect()
    }

    fn begin(&mut self, index: usize) -> Vec<Output> {
        let cohort = Cohort { member: index as u32, ..self.cohort };
        let seed = Seed([index as u8 + 1; 32]);
        self.give(index, Input::Begin { key: key(), cohort, seed })
    }

    fn ask(&mut self, index: usize, message: &ServerMessage) -> Vec<Output> {
        let payload = SecaggPayload::encode(message).unwrap();
        let RoundKey { job, round } = key();
        self.give(index, Input::Message(CoordinatorMessage::Secagg { job, round, payload }))
    }

    /// Takes an agent's answer to the coordinator's machine.
    fn answer(&mut self, index: usize, outputs: &[Output]) {
        let message = said(outputs);
        self.server.handle(Member(index as u32), message, &Everybody).unwrap();
    }

    /// Asks all of these for the open step, and closes it.
    fn step(&mut self, indices: &[usize]) {
        for &index in indices {
            let message = self.server.message_for(Member(index as u32)).unwrap();
            let outputs = self.ask(index, &message);
            match &outputs[..] {
                [Output::Train(_, _, Some(exchange))] => {
                    self.exchanges.insert(index, exchange.clone());
                    self.report(index);
                }
                outputs => self.answer(index, outputs),
            }
        }
        self.server.close_step().unwrap();
    }

    /// The driver masks, debits and uploads.
    fn report(&mut self, index: usize) {
        let mut update = vec![index as u32 + 1; 6];
        self.exchanges[&index].mask(&mut update).unwrap();
        let values: Vec<i64> = update.into_iter().map(i64::from).collect();
        let packed = self.sum.lattice().pack(&values);
        let digest = Digest::of(&packed);
        self.sum.add_packed(&packed).unwrap();
        let member = Member(index as u32);
        self.server.uploaded(member, packed.len() as u64, ByteArray(*digest.as_bytes())).unwrap();
        let update = BlobRef { digest, length: packed.len() as u64 };
        let release = Release { job: key().job, round: key().round, update };
        let outputs = self.give(index, Input::Trained { key: key(), outcome: Ok(release) });
        assert!(matches!(outputs[..], [Output::Upload(_)]), "{outputs:?}");
        self.give(index, Input::Uploaded { key: key(), outcome: UploadEnd::Stored });
    }

    fn reconnect(&mut self, index: usize) {
        let reason = "gone".to_owned();
        let failure = Failure { reason, lasting: false, jitter: 0.0 };
        self.give(index, Input::ConnectionFailed(failure));
        let session = &mut self.sessions[index];
        session.handle_timeout(NOW.after_ms(60_000));
        while session.poll_output().is_some() {}
        welcome(session);
        let outputs = self.give(index, Input::Message(CoordinatorMessage::Configure(assignment())));
        let accepts = |output: &Output| matches!(output, Output::Send(AgentMessage::Accept { .. }));
        assert!(outputs.iter().any(accepts), "a round with keys goes on: {outputs:?}");
    }
}

fn welcome(session: &mut Session) {
    session.handle(NOW, Input::Connected { ledger_head: LedgerHead::EMPTY });
    session.handle(NOW, Input::Message(CoordinatorMessage::Welcome(receipt())));
    while session.poll_output().is_some() {}
}

/// A session that has accepted the assignment.
fn session(keys: Arc<TenantKeys>) -> Session {
    let policy = Policy::parse(POLICY, &Site::new("/site")).unwrap();
    let mut session = Session::new(policy, vec![DatasetName::new("adult").unwrap()], keys);
    while session.poll_output().is_some() {}
    welcome(&mut session);
    session.handle(NOW, Input::Message(CoordinatorMessage::Configure(assignment())));
    session.handle(NOW, Input::Examined { key: key(), outcome: Ok(Standing::Fresh) });
    while session.poll_output().is_some() {}
    assert_eq!(session.view().detail, "exchanging keys with the cohort");
    session
}

fn said(outputs: &[Output]) -> ClientMessage {
    match outputs {
        [Output::Send(AgentMessage::Secagg { payload, .. })] => payload.decode().unwrap(),
        other => panic!("no answer: {other:?}"),
    }
}

fn declined(outputs: &[Output]) -> ErrorCode {
    let code = outputs.iter().find_map(|output| match output {
        Output::Send(AgentMessage::Decline { refusal, .. }) => Some(refusal.code),
        _ => None,
    });
    code.unwrap_or_else(|| panic!("not declined: {outputs:?}"))
}

#[test]
fn a_cohort_of_sessions_shows_its_sum_though_one_drops_out_and_one_reconnects() {
    let mut cast = Cast::new();
    for index in 0..4 {
        let outputs = cast.begin(index);
        cast.answer(index, &outputs);
    }
    cast.server.close_step().unwrap();
    cast.step(&[0, 1, 2, 3]);
    // The last one never masks; the first loses its connection before it unmasks.
    cast.step(&[0, 1, 2]);
    cast.reconnect(0);
    cast.step(&[0, 1, 2]);
    cast.step(&[0, 1, 2]);
    cast.server.unmask(&mut cast.sum).unwrap();
    assert_eq!(cast.sum.values(), [1 + 2 + 3; 6]);

    // Told that it is over, the agents forget their keys.
    let RoundKey { job, round } = key();
    let closed = CoordinatorMessage::RoundClosed { job, round, abandoned: None };
    cast.give(1, Input::Message(closed));
    let again = cast.ask(1, &ServerMessage::Confirmations(Vec::new()));
    assert_eq!(declined(&again), ErrorCode::SecaggSessionLost);
}

#[test]
fn the_same_question_gets_the_same_answer_and_another_one_none() {
    let mut cast = Cast::new();
    let first = said(&cast.begin(2));
    cast.reconnect(2);
    assert_eq!(said(&cast.begin(2)), first);
    cast.cohort.size = 3;
    assert_eq!(declined(&cast.begin(2)), ErrorCode::SecaggCheckFailed);
    assert_eq!(declined(&cast.begin(2)), ErrorCode::SecaggSessionLost, "nothing more is said");
}

#[test]
fn a_newer_base_closes_the_round_that_led_to_it() {
    let mut cast = Cast::new();
    cast.begin(0);
    let base = BaseModel { version: 1, ..assignment().base };
    cast.give(0, Input::Message(CoordinatorMessage::NewBase(base)));
    assert_eq!(declined(&cast.begin(0)), ErrorCode::SecaggSessionLost);
}
