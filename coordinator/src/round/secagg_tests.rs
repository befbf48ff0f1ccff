//! Rounds with secure aggregation, against real agents' machines in the same process.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use tributary_privacy::{
    distributed::DistributedNoise,
    lattice::{Lattice, ModularSum},
    secagg::{
        Adversary, Blob, ByteArray, Client, ClientOutput, Identity, Member, PeerKeys, RoundContext,
        ServerMessage,
    },
};
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    id::JobId,
    message::LatticeSpec,
};

use super::*;

const START: Timestamp = Timestamp(1_000_000);
const DIMENSION: usize = 3;
const COHORT: usize = 5;

/// Signs with a key that everybody knows: the tests of the machines cover forgery.
struct Mac;

impl PeerKeys for Mac {
    fn name(&self, credential: &[u8]) -> Option<String> {
        String::from_utf8(credential.to_vec()).ok()
    }

    fn verify(&self, credential: &[u8], message: &[u8], signature: &[u8]) -> bool {
        sign(credential, message) == signature
    }
}

struct Signer(TenantId);

impl Identity for Signer {
    fn sign(&self, message: &[u8]) -> Vec<u8> {
        sign(self.0.as_str().as_bytes(), message)
    }
}

fn sign(credential: &[u8], message: &[u8]) -> Vec<u8> {
    blake3::keyed_hash(&blake3::derive_key("test", credential), message).as_bytes().to_vec()
}

fn tenant(index: usize) -> TenantId {
    TenantId::new(format!("t{index}")).expect("valid")
}

fn terms(adversary: Adversary) -> SecaggTerms {
    SecaggTerms {
        job: JobId::new("job").expect("valid"),
        noise: DistributedNoise {
            dimension: DIMENSION as u64,
            norm_max: 1000.0,
            noise_sigma: 10.0,
            survivors_min: 3,
            cohort_size_max: COHORT as u32,
            dropout_max: if adversary == Adversary::SemiHonest { 0.4 } else { 0.2 },
            corrupt_max: 0.2,
            adversary,
        },
        lattice: LatticeSpec { step: 1.0, bits: 20 },
        terms: Digest::of(b"terms"),
        step_timeout_ms: 5_000,
    }
}

fn plan() -> RoundPlan {
    RoundPlan {
        rounds: 1,
        cohort_size: COHORT as u32,
        cohort_size_min: 3,
        report_goal: COHORT as u32,
        selection_timeout_ms: 1_000,
        configuration_timeout_ms: 2_000,
        report_timeout_ms: 10_000,
        sampling: tributary_protocol::job::CohortSampling::Fixed,
        asynchronous: None,
    }
}

/// One agent's process.
struct Agent {
    tenant: TenantId,
    client: Option<Client>,
    /// How often the process started: each start makes other keys.
    starts: u8,
    alive: bool,
    inbox: VecDeque<Request>,
    /// Kept on its disk.
    masked: Option<Vec<u8>>,
}

impl Agent {
    fn update(&self) -> Vec<i64> {
        let seed = i64::from(self.tenant.as_str().as_bytes()[1]);
        (0..DIMENSION as i64).map(|index| seed * (index + 1) - 150).collect()
    }
}

struct World {
    round: Round,
    terms: SecaggTerms,
    durable: RoundRecord,
    now: Timestamp,
    agents: Vec<Agent>,
    outputs: Vec<Output>,
}

impl World {
    fn new(adversary: Adversary) -> Self {
        let terms = terms(adversary);
        let base = Digest::of(b"base");
        let round = Round::new(RoundNumber(1), base, plan(), Some(terms.clone()), 42, START);
        let agents = (0..COHORT).map(|index| Agent {
            tenant: tenant(index),
            client: None,
            starts: 1,
            alive: true,
            inbox: VecDeque::new(),
            masked: None,
        });
        let durable = round.record().clone();
        let mut world =
            Self { round, terms, durable, now: START, agents: agents.collect(), outputs: vec![] };
        let tenants: BTreeSet<_> = (0..COHORT).map(tenant).collect();
        let available = Input::Available { tenants, population: COHORT };
        world.round.handle(START, available).expect("selects");
        world.carry_out();
        for index in 0..COHORT {
            world.accept(index);
        }
        assert_eq!(world.phase(), "key_exchange");
        world
    }

    fn phase(&self) -> &'static str {
        self.round.record().phase.name()
    }

    fn accept(&mut self, index: usize) {
        let tenant = self.agents[index].tenant.clone();
        let credential = Some(Blob(tenant.as_str().as_bytes().to_vec()));
        let _ = self.round.handle(self.now, Input::Accepted { tenant, credential });
        self.carry_out();
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.round.poll_output() {
            match &output {
                Output::Persist(record) => {
                    // Through the form that the store keeps.
                    let text = serde_json::to_string(record).expect("serialises");
                    self.durable = serde_json::from_str(&text).expect("the same");
                    assert_eq!(self.durable, **record);
                }
                Output::Note(answer) => {
                    let text = serde_json::to_string(answer).expect("serialises");
                    let answer = serde_json::from_str(&text).expect("the same");
                    assert!(self.durable.take(&answer), "it was just taken");
                }
                Output::Ask(tenant, request) => {
                    let agent = self.agents.iter_mut().find(|agent| agent.tenant == *tenant);
                    let agent = agent.expect("in the cohort");
                    assert_eq!(
                        self.durable.phase.name(),
                        self.round.record().phase.name(),
                        "asked before it was durable"
                    );
                    if agent.alive {
                        agent.inbox.push_back(request.clone());
                    }
                }
                Output::Commit { .. } => self.check_sum(&output),
                _ => {}
            }
            self.outputs.push(output);
        }
    }

    /// The sum is exactly that of the contributors.
    fn check_sum(&self, commit: &Output) {
        let Output::Commit { contributors, unmask } = commit else { return };
        let spec = self.terms.lattice;
        let lattice = Lattice::new(spec.step, spec.bits).expect("a lattice");
        let mut sum = ModularSum::new(lattice, DIMENSION);
        let mut expected = vec![0.0; DIMENSION];
        assert!(contributors.len() >= 3);
        for agent in &self.agents {
            let Some(&digest) = contributors.get(&agent.tenant) else { continue };
            let masked = agent.masked.as_ref().expect("uploaded");
            assert_eq!(Digest::of(masked), digest);
            sum.add_packed(masked).expect("a packed vector");
            for (expected, value) in expected.iter_mut().zip(agent.update()) {
                *expected += value as f64;
            }
        }
        let aggregation = unmask.as_ref().expect("the updates are masked");
        aggregation.server().unmask(&mut sum).expect("finished");
        assert_eq!(lattice.dequantize_sum(sum.values()), expected);
    }

    /// Lets an agent answer the oldest request in its inbox.
    fn deliver(&mut self, index: usize) {
        let Some(request) = self.agents[index].inbox.pop_front() else { return };
        let tenant = self.agents[index].tenant.clone();
        let signer = Signer(tenant.clone());
        let message = match request {
            Request::Begin { member, cohort_size, cohort_root } => {
                let context = self.context(cohort_size, cohort_root);
                let agent = &mut self.agents[index];
                let seed = [agent.starts * 16 + index as u8; 32];
                let client = agent.client.get_or_insert_with(|| {
                    let credential = Blob(tenant.as_str().as_bytes().to_vec());
                    Client::new(context, Member(member), credential, seed).expect("a member")
                });
                client.advertise(&signer)
            }
            Request::Step(message) => {
                let shares = matches!(*message, ServerMessage::Shares(_));
                let agent = &mut self.agents[index];
                match agent.client.as_mut().map(|client| client.handle(*message, &signer, &Mac)) {
                    Some(Ok(ClientOutput::Send(message))) => message,
                    Some(Ok(ClientOutput::Mask)) => return self.report(index),
                    // After a restart, only what is on the disk can be sent.
                    None if shares && agent.masked.is_some() => return self.report(index),
                    None | Some(Err(_)) => return self.decline(index),
                }
            }
        };
        let outcome = self.round.secagg(self.now, &tenant, message, &Mac);
        // An answer that comes after its step is no fault, as the scheduler has it.
        if outcome.is_err_and(|error| error.code() == ErrorCode::SecaggMessageInvalid) {
            self.decline(index);
        }
        self.carry_out();
    }

    fn report(&mut self, index: usize) {
        let spec = self.terms.lattice;
        let lattice = Lattice::new(spec.step, spec.bits).expect("a lattice");
        let agent = &mut self.agents[index];
        if agent.masked.is_none() {
            let mask = (1 << spec.bits) - 1;
            let mut values: Vec<u32> =
                agent.update().into_iter().map(|value| value as u32 & mask).collect();
            agent.client.as_mut().expect("keys").mask(&mut values).expect("in range");
            let values: Vec<i64> = values.into_iter().map(i64::from).collect();
            agent.masked = Some(lattice.pack(&values));
        }
        let digest = Digest::of(agent.masked.as_ref().expect("just masked"));
        let tenant = agent.tenant.clone();
        let _ = self.round.handle(self.now, Input::Reported(tenant, digest));
        self.carry_out();
    }

    fn decline(&mut self, index: usize) {
        let refusal = Refusal::new(ErrorCode::SecaggSessionLost, "gone");
        let tenant = self.agents[index].tenant.clone();
        let _ = self.round.handle(self.now, Input::Declined(tenant, refusal));
        self.carry_out();
    }

    fn context(&self, cohort_size: u32, cohort_root: Digest) -> RoundContext {
        let lattice = Lattice::new(1.0, 20).expect("a lattice");
        let plan = self.terms.noise.plan(cohort_size).expect("a plan");
        RoundContext {
            job: "job".to_owned(),
            round: 1,
            base_digest: ByteArray(*Digest::of(b"base").as_bytes()),
            terms_digest: ByteArray(*Digest::of(b"terms").as_bytes()),
            cohort_root: ByteArray(*cohort_root.as_bytes()),
            plan,
            bits: 20,
            dimension: DIMENSION as u64,
            coordinate_max: self.terms.noise.coordinate_max(&plan, lattice),
        }
    }

    /// An agent's connection breaks and comes back; what it had answered it answers again.
    fn reconnect(&mut self, index: usize) {
        if !self.agents[index].alive {
            return;
        }
        let agent = &mut self.agents[index];
        let has_answered = agent.inbox.is_empty() && agent.client.is_some();
        agent.inbox.clear();
        let tenant = agent.tenant.clone();
        self.round.handle(self.now, Input::Connected(tenant)).expect("fits every phase");
        let configured = matches!(self.round.outputs.back(), Some(Output::Configure(..)));
        self.carry_out();
        if configured {
            self.accept(index);
        }
        if has_answered {
            self.deliver(index);
        }
    }

    /// The agent's process dies with all that it knows but its disk.
    fn kill(&mut self, index: usize) {
        let agent = &mut self.agents[index];
        (agent.alive, agent.client) = (false, None);
        agent.inbox.clear();
    }

    fn restart(&mut self, index: usize) {
        if !self.agents[index].alive {
            (self.agents[index].alive, self.agents[index].starts) = (true, 2);
            self.reconnect(index);
        }
    }

    /// The coordinator's process dies and comes back; then all agents do.
    fn crash(&mut self) {
        self.round = Round::restore(self.durable.clone(), self.now);
        self.carry_out();
        for index in 0..COHORT {
            self.reconnect(index);
        }
    }

    fn deadline(&mut self) {
        self.now = self.round.poll_timeout().unwrap_or(self.now);
        self.round.handle_timeout(self.now);
        self.carry_out();
    }

    /// Everybody answers everything; then the deadlines decide.
    fn settle(&mut self) {
        for _ in 0..20 {
            while let Some(index) = (0..COHORT).find(|&at| !self.agents[at].inbox.is_empty()) {
                self.deliver(index);
            }
            if matches!(self.phase(), "committed" | "abandoned") {
                return;
            }
            self.deadline();
        }
        panic!("the round never ends: {}", self.round.waiting_for());
    }

    fn play(&mut self, event: Event) {
        match event {
            Event::Deliver(who) => self.deliver(who),
            Event::Reconnect(who) => self.reconnect(who),
            Event::Kill(who) => self.kill(who),
            Event::Restart(who) => self.restart(who),
            Event::Decline(who) => self.decline(who),
            Event::Deadline => self.deadline(),
            Event::Crash => self.crash(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Deliver(usize),
    Reconnect(usize),
    Kill(usize),
    Restart(usize),
    Decline(usize),
    Deadline,
    Crash,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => (0..COHORT).prop_map(Event::Deliver),
        1 => (0..COHORT).prop_map(Event::Reconnect),
        1 => (0..COHORT).prop_map(Event::Kill),
        1 => (0..COHORT).prop_map(Event::Restart),
        1 => (0..COHORT).prop_map(Event::Decline),
        1 => Just(Event::Deadline),
        1 => Just(Event::Crash),
    ]
}

fn adversary() -> impl Strategy<Value = Adversary> {
    prop_oneof![Just(Adversary::SemiHonest), Just(Adversary::MaliciousCoordinator)]
}

fn contributors(world: &World) -> Option<BTreeMap<TenantId, Digest>> {
    match &world.round.record().phase {
        Phase::Committed { contributors } => Some(contributors.clone()),
        _ => None,
    }
}

#[test]
fn an_undisturbed_round_sums_everybody() {
    for adversary in [Adversary::SemiHonest, Adversary::MaliciousCoordinator] {
        let mut world = World::new(adversary);
        world.settle();
        assert_eq!(contributors(&world).expect("commits").len(), COHORT);
        let told = world.outputs.last();
        assert!(
            matches!(told, Some(Output::Close { tenants, abandoned: None }) if tenants.len() == COHORT),
            "{told:?}"
        );
    }
}

#[test]
fn too_many_dropouts_abandon_the_round_with_the_reason() {
    let mut world = World::new(Adversary::MaliciousCoordinator);
    for index in [1, 3] {
        world.kill(index);
    }
    world.settle();
    let Phase::Abandoned { reason } = &world.round.record().phase else { panic!("not abandoned") };
    assert!(reason.contains("3 members") && reason.contains("at least 4"), "{reason}");
}

#[test]
fn the_round_says_which_step_it_waits_in_and_for_whom() {
    let mut world = World::new(Adversary::SemiHonest);
    for index in 0..COHORT - 1 {
        world.deliver(index);
    }
    assert_eq!(world.round.waiting_for(), "advertising keys: waiting for t4");
    world.deliver(4);
    assert!(world.round.waiting_for().starts_with("sharing keys: waiting for t0"));
}

#[test]
fn a_commit_that_was_not_durable_is_repeated_after_a_restart() {
    let mut world = World::new(Adversary::SemiHonest);
    world.settle();
    let before = world.outputs.iter().filter(|it| matches!(it, Output::Commit { .. })).count();
    world.crash();
    let after = world.outputs.iter().filter(|it| matches!(it, Output::Commit { .. })).count();
    assert_eq!((before, after), (1, 2), "the record before the commit says that all is there");
    assert_eq!(world.phase(), "committed");
}

#[test]
fn a_sum_that_cannot_be_unmasked_abandons_the_round_for_everybody() {
    let mut world = World::new(Adversary::SemiHonest);
    world.settle();
    // The driver found the sum implausible.
    world
        .round
        .outputs
        .push_back(Output::Close { tenants: (0..COHORT).map(tenant).collect(), abandoned: None });
    world.round.abandon_commit("implausible".to_owned());
    world.carry_out();
    let told = world.outputs.last();
    assert!(
        matches!(told, Some(Output::Close { tenants, abandoned: Some(_) }) if tenants.len() == COHORT),
        "{told:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_history_ends_in_the_exact_sum_or_in_none(
        adversary in adversary(),
        events in proptest::collection::vec(event(), 0..80),
    ) {
        let mut world = World::new(adversary);
        for event in events {
            world.play(event);
        }
        world.settle();
        let survivors = contributors(&world).map(|contributors| contributors.len());
        prop_assert!(survivors.is_none_or(|survivors| survivors >= 3));
    }

    #[test]
    fn a_restarted_coordinator_ends_where_it_would_have_without(
        adversary in adversary(),
        events in proptest::collection::vec(event(), 0..80),
    ) {
        // Deadlines are armed anew by a restart; an agent that dies with the coordinator cannot
        // repeat an answer that was not durable.
        let events = events.into_iter().filter(|event| {
            !matches!(event, Event::Deadline | Event::Kill(_) | Event::Restart(_))
        });
        let (mut crashed, mut undisturbed) = (World::new(adversary), World::new(adversary));
        for event in events {
            crashed.play(event);
            if !matches!(event, Event::Crash) {
                undisturbed.play(event);
            }
        }
        crashed.settle();
        undisturbed.settle();
        prop_assert_eq!(crashed.phase(), undisturbed.phase());
        prop_assert_eq!(contributors(&crashed), contributors(&undisturbed));
    }
}
