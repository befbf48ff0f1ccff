//! An agent that answers as real ones do, from deterministic bytes.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use rustls::pki_types::CertificateDer;
use tributary_privacy::{
    lattice::Lattice,
    secagg::{
        self, Blob, ByteArray, Client, ClientMessage, ClientOutput, Member, PeerKeys, RoundContext,
        ServerMessage,
    },
};
use tributary_protocol::{
    error_code::Refusal,
    id::{Digest, JobId, RoundNumber, TenantId},
    job::MetricSum,
    message::{Assignment, BlobRef, CoordinatorMessage, LedgerHead, SecaggPayload, UploadOffer},
    transport::{
        credential::{self, Recognizer},
        tls::Identity,
    },
};

use super::world::NOW;
use crate::{aggregation, driver::line::Line};

/// What the coordinator sent and the agent has not read.
pub(super) type Inbox = Arc<Mutex<VecDeque<CoordinatorMessage>>>;

/// A line that ends in an inbox.
pub(super) struct InboxLine(pub(super) Inbox);

impl Line for InboxLine {
    fn send(&self, message: CoordinatorMessage) -> bool {
        self.0.lock().expect("nobody panics").push_back(message);
        true
    }

    fn close(&self, refusal: &Refusal) {
        panic!("the coordinator closed a connection: {refusal}");
    }
}

/// What an agent says.
pub(super) enum Says {
    Accept(JobId, RoundNumber),
    Secagg(JobId, RoundNumber, SecaggPayload),
    Upload(UploadOffer, Vec<u8>),
}

/// A process that never dies; its bytes of a round are made once.
pub(super) struct Site {
    pub(super) tenant: TenantId,
    pub(super) identity: Identity,
    pub(super) inbox: Inbox,
    pub(super) session: Option<u64>,
    authority: CertificateDer<'static>,
    rounds: BTreeMap<(JobId, RoundNumber), Taken>,
}

/// A round that it takes part in.
struct Taken {
    assignment: Assignment,
    client: Option<Client>,
    release: Option<Vec<u8>>,
}

impl Site {
    pub(super) fn new(
        tenant: TenantId,
        identity: Identity,
        authority: CertificateDer<'static>,
    ) -> Self {
        let inbox = Inbox::default();
        Self { tenant, identity, inbox, session: None, authority, rounds: BTreeMap::new() }
    }

    /// How many releases it debited: one for each round that it has bytes for.
    pub(super) fn head(&self) -> LedgerHead {
        let debited = self.rounds.values().filter(|taken| taken.release.is_some()).count() as u64;
        let hash = Digest::of(format!("{} {debited}", self.tenant).as_bytes());
        if debited == 0 { LedgerHead::EMPTY } else { LedgerHead { sequence: debited, hash } }
    }

    /// The releases that it has debited.
    pub(super) fn debited(&self, job: &JobId, round: RoundNumber) -> Option<Digest> {
        let taken = self.rounds.get(&(job.clone(), round))?;
        taken.release.as_ref().map(|release| Digest::of(release))
    }

    pub(super) fn hear(&mut self, message: CoordinatorMessage) -> Vec<Says> {
        match message {
            CoordinatorMessage::Configure(assignment) => self.assigned(*assignment),
            CoordinatorMessage::SecaggBegin { job, round, member, cohort_size, cohort_root } => {
                let peers = self.peers();
                let Some(taken) = self.rounds.get_mut(&(job.clone(), round)) else { return vec![] };
                let credential = Blob(self.identity.chain[0].to_vec());
                let client = taken.client.get_or_insert_with(|| {
                    let seed =
                        *Digest::of(format!("{} {job} {round}", self.tenant).as_bytes()).as_bytes();
                    let context = context(&taken.assignment, cohort_size, cohort_root);
                    Client::new(context, Member(member), credential, seed).expect("well-formed")
                });
                vec![said(&job, round, &client.advertise(&peers))]
            }
            CoordinatorMessage::Secagg { job, round, payload } => {
                let message: ServerMessage = payload.decode().expect("decodes");
                let peers = self.peers();
                let Some(client) = self
                    .rounds
                    .get_mut(&(job.clone(), round))
                    .and_then(|taken| taken.client.as_mut())
                else {
                    return vec![];
                };
                match client.handle(message, &peers, &peers).expect("an honest coordinator") {
                    ClientOutput::Send(message) => vec![said(&job, round, &message)],
                    ClientOutput::Mask => vec![self.upload(&job, round)],
                }
            }
            CoordinatorMessage::RoundClosed { job, round, abandoned } => {
                assert_eq!(abandoned, None, "{job}/{round} was abandoned");
                vec![]
            }
            CoordinatorMessage::Refused(refusal) => panic!("refused: {refusal}"),
            CoordinatorMessage::Welcome(_)
            | CoordinatorMessage::Receipt(_)
            | CoordinatorMessage::NewBase(_)
            | CoordinatorMessage::Renewal(_)
            | CoordinatorMessage::ComeBack { .. } => vec![],
        }
    }

    fn assigned(&mut self, assignment: Assignment) -> Vec<Says> {
        let (job, round) = (assignment.job.name.clone(), assignment.round);
        let masked = assignment.job.secagg.is_some();
        let taken = Taken { assignment: assignment.clone(), client: None, release: None };
        let known = self.rounds.entry((job.clone(), round)).or_insert(taken);
        assert_eq!(known.assignment.base, assignment.base, "{job}/{round} has two bases");
        assert_eq!(known.assignment.job, assignment.job, "{job}/{round} has two documents");
        let mut says = vec![Says::Accept(job.clone(), round)];
        if !masked {
            says.push(self.upload(&job, round));
        }
        says
    }

    /// Makes the round's bytes the first time, and offers the same ever after.
    fn upload(&mut self, job: &JobId, round: RoundNumber) -> Says {
        let tenant = self.tenant.clone();
        let taken = self.rounds.get_mut(&(job.clone(), round)).expect("assigned before");
        let assignment = &taken.assignment;
        let spec = assignment.lattice;
        let lattice = Lattice::new(spec.step, spec.bits).expect("planned");
        let release = taken.release.get_or_insert_with(|| {
            let values = values(&tenant, assignment);
            let Some(client) = &mut taken.client else { return lattice.pack(&values) };
            let width = u32::MAX >> (32 - u32::from(lattice.bits()));
            let mut grid: Vec<u32> = values.iter().map(|&value| value as u32 & width).collect();
            client.mask(&mut grid).expect("in range");
            lattice.pack(&grid.into_iter().map(i64::from).collect::<Vec<_>>())
        });
        let release = release.clone();
        let evaluation = evaluation(&tenant, assignment);
        let update = BlobRef { digest: Digest::of(&release), length: release.len() as u64 };
        let ledger_head = self.head();
        Says::Upload(
            UploadOffer { job: job.clone(), round, update, ledger_head, evaluation },
            release,
        )
    }

    fn peers(&self) -> Keys {
        Keys { identity: self.identity.clone(), authority: self.authority.clone() }
    }
}

fn said(job: &JobId, round: RoundNumber, message: &ClientMessage) -> Says {
    Says::Secagg(job.clone(), round, SecaggPayload::encode(message).expect("encodes"))
}

/// A function of tenant, round, base and clipping norm.
fn values(tenant: &TenantId, assignment: &Assignment) -> Vec<i64> {
    let Assignment { job, round, base, .. } = assignment;
    let norm = job.privacy.clipping_norm.to_bits();
    let text = format!("{tenant} {} {round} {} {norm}", job.name, base.file.digest);
    let mut hasher = blake3::Hasher::new();
    hasher.update(text.as_bytes());
    let mut bytes = vec![0; 2 * job.wire_dimension()];
    hasher.finalize_xof().fill(&mut bytes);
    let (pairs, _) = bytes.as_chunks::<2>();
    pairs.iter().map(|&pair| i64::from(i16::from_le_bytes(pair)) / 16).collect()
}

/// Whole numbers, so that their sum does not depend on the order.
fn evaluation(tenant: &TenantId, assignment: &Assignment) -> Vec<MetricSum> {
    let Some(spec) = &assignment.job.evaluation else { return vec![] };
    if !spec.is_due(assignment.base.version) {
        return vec![];
    }
    let seed = f64::from(values(tenant, assignment)[0] as i32);
    let sum = |&metric| MetricSum { metric, centred_sum: seed, count: seed.abs() + 50.0 };
    spec.metrics.iter().map(sum).collect()
}

/// The terms of a cohort, derived from the assignment alone.
fn context(assignment: &Assignment, cohort_size: u32, cohort_root: Digest) -> RoundContext {
    let Assignment { job, lattice, base, round, .. } = assignment;
    let terms = aggregation::terms(job, *lattice).expect("masked");
    let plan = terms.noise.plan(cohort_size).expect("possible");
    let grid = Lattice::new(lattice.step, lattice.bits).expect("planned");
    RoundContext {
        job: job.name.to_string(),
        round: round.0,
        base_digest: ByteArray(*base.file.digest.as_bytes()),
        terms_digest: ByteArray(*terms.terms.as_bytes()),
        cohort_root: ByteArray(*cohort_root.as_bytes()),
        plan,
        bits: lattice.bits,
        dimension: terms.noise.dimension,
        coordinate_max: terms.noise.coordinate_max(&plan, grid),
    }
}

/// The agent's own key, and whose word on the others counts.
struct Keys {
    identity: Identity,
    authority: CertificateDer<'static>,
}

impl secagg::Identity for Keys {
    fn sign(&self, message: &[u8]) -> Vec<u8> {
        credential::sign(&self.identity, message).expect("signs")
    }
}

impl PeerKeys for Keys {
    fn name(&self, credential: &[u8]) -> Option<String> {
        let recognizer = Recognizer { authority: &self.authority, at: NOW };
        recognizer.tenant(credential).map(|tenant| tenant.to_string())
    }

    fn verify(&self, credential: &[u8], message: &[u8], signature: &[u8]) -> bool {
        Recognizer { authority: &self.authority, at: NOW }.verifies(credential, message, signature)
    }
}
