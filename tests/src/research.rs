//! A tenant for research: every byte that it releases follows from its name and from what it is told, so
//! that two runs can be compared to the bit. Its noise is seeded: it protects nobody.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::task::JoinHandle;
use tributary_privacy::{
    clip::{ClippingNorm, clip_l2},
    lattice::Lattice,
    mechanism::NoisyUpdate,
    noise::SeededNoise,
    secagg::{Blob, Client, ClientMessage, ClientOutput, Member, ServerMessage},
};
use tributary_protocol::{
    id::{Digest, JobId, RoundNumber},
    message::{
        AgentMessage, Assignment, BlobRef, CoordinatorMessage, LedgerHead, SecaggPayload,
        TransferResponse, UploadOffer,
    },
    tensor_file,
    transport::TransportError,
};

use crate::{
    peer::{Credentials, Peer},
    secagg,
};

/// A lost connection is tried again after this long.
const RETRY: Duration = Duration::from_millis(20);

/// A coordinator that does not answer is tried again after this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

type Key = (JobId, RoundNumber);

/// What survives the tenant's process.
#[derive(Debug, Default)]
struct Disk {
    /// Debited releases: one a round, for ever.
    releases: BTreeMap<Key, Vec<u8>>,
}

/// A tenant that connects, trains and uploads until it is killed.
#[derive(Debug)]
pub struct ResearchPeer {
    name: String,
    credentials: Credentials,
    disk: Arc<Mutex<Disk>>,
    task: Option<JoinHandle<()>>,
}

impl ResearchPeer {
    /// A tenant that has released nothing yet.
    #[must_use]
    pub fn new(name: &str, credentials: &Credentials) -> Self {
        let (name, credentials) = (name.to_owned(), credentials.clone());
        Self { name, credentials, disk: Arc::default(), task: None }
    }

    /// Starts (again), with what is on its disk.
    pub fn run(&mut self, coordinator: SocketAddr) {
        let process = Process {
            name: self.name.clone(),
            credentials: self.credentials.clone(),
            disk: self.disk.clone(),
            rounds: BTreeMap::new(),
        };
        self.task = Some(tokio::spawn(process.live(coordinator)));
    }

    /// Ends it in whatever it does.
    ///
    /// # Panics
    /// If it panicked before.
    pub async fn kill(&mut self) {
        let Some(task) = self.task.take() else { return };
        task.abort();
        match task.await {
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            _ => {}
        }
    }

    /// The release of a round, if there is one.
    #[must_use]
    pub fn released(&self, job: &str, round: u64) -> Option<Digest> {
        let key = (JobId::new(job).ok()?, RoundNumber(round));
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        disk.releases.get(&key).map(|release| Digest::of(release))
    }
}

/// What is lost with the process.
struct Process {
    name: String,
    credentials: Credentials,
    disk: Arc<Mutex<Disk>>,
    rounds: BTreeMap<Key, Taken>,
}

/// A round that it takes part in.
struct Taken {
    assignment: Assignment,
    base: Vec<f32>,
    client: Option<Client>,
}

impl Process {
    async fn live(mut self, coordinator: SocketAddr) {
        loop {
            let connecting = Peer::connect(coordinator, &self.credentials);
            if let Ok(Ok(mut peer)) = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
                // However it ends: the next connection hears again what is wanted.
                let _ = self.serve(&mut peer).await;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn serve(&mut self, peer: &mut Peer) -> Result<(), TransportError> {
        loop {
            match peer.next().await? {
                CoordinatorMessage::Configure(assignment) => {
                    self.assigned(peer, *assignment).await?;
                }
                CoordinatorMessage::SecaggBegin {
                    job,
                    round,
                    member,
                    cohort_size,
                    cohort_root,
                } => {
                    let leaf = Blob(self.credentials.identity.chain[0].to_vec());
                    let Some(taken) = self.rounds.get_mut(&(job.clone(), round)) else { continue };
                    let seed = seed(&self.name, "keys", &taken.assignment);
                    let client = taken.client.get_or_insert_with(|| {
                        let context = secagg::context(&taken.assignment, cohort_size, cohort_root);
                        Client::new(context, Member(member), leaf, seed).expect("well-formed")
                    });
                    let advert = client.advertise(&self.credentials);
                    say(peer, &job, round, &advert).await?;
                }
                CoordinatorMessage::Secagg { job, round, payload } => {
                    let message: ServerMessage = payload.decode().map_err(TransportError::Codec)?;
                    let credentials = self.credentials.clone();
                    let taken = self.rounds.get_mut(&(job.clone(), round));
                    let Some(client) = taken.and_then(|taken| taken.client.as_mut()) else {
                        continue;
                    };
                    let output = client.handle(message, &credentials, &credentials);
                    match output.expect("an honest coordinator") {
                        ClientOutput::Send(message) => say(peer, &job, round, &message).await?,
                        ClientOutput::Mask => self.upload(peer, &job, round).await?,
                    }
                }
                CoordinatorMessage::RoundClosed { job, round, .. } => {
                    self.rounds.remove(&(job, round));
                }
                _ => {}
            }
        }
    }

    async fn assigned(
        &mut self,
        peer: &mut Peer,
        assignment: Assignment,
    ) -> Result<(), TransportError> {
        let (job, round) = (assignment.job.name.clone(), assignment.round);
        let masked = assignment.job.secagg.is_some();
        let key = (job.clone(), round);
        if !self.rounds.contains_key(&key) {
            let file = peer.try_download(assignment.base.file).await?;
            let base = tensor_file::read(&assignment.job.model, &file).expect("a model");
            self.rounds.insert(key.clone(), Taken { assignment, base, client: None });
        }
        let accept = AgentMessage::Accept { job: job.clone(), round };
        peer.try_say(&accept).await?;
        if masked { Ok(()) } else { self.upload(peer, &job, round).await }
    }

    /// Debits a release the first time, and sends the very same bytes ever after.
    async fn upload(
        &mut self,
        peer: &Peer,
        job: &JobId,
        round: RoundNumber,
    ) -> Result<(), TransportError> {
        let key = (job.clone(), round);
        let Some(taken) = self.rounds.get_mut(&key) else { return Ok(()) };
        let (release, debits) = {
            let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
            let name = &self.name;
            let release = disk.releases.entry(key).or_insert_with(|| release(name, taken)).clone();
            (release, disk.releases.len() as u64)
        };
        let update = BlobRef { digest: Digest::of(&release), length: release.len() as u64 };
        let ledger_head = LedgerHead { sequence: debits, hash: update.digest };
        let evaluation = Vec::new();
        let offer = UploadOffer { job: job.clone(), round, update, ledger_head, evaluation };
        match peer.try_upload(&offer, &release).await? {
            TransferResponse::Stored | TransferResponse::Refused(_) => Ok(()),
            other => panic!("unexpected answer to an upload: {other:?}"),
        }
    }
}

async fn say(
    peer: &mut Peer,
    job: &JobId,
    round: RoundNumber,
    message: &ClientMessage,
) -> Result<(), TransportError> {
    let payload = SecaggPayload::encode(message)?;
    peer.try_say(&AgentMessage::Secagg { job: job.clone(), round, payload }).await
}

/// 256 bits that follow from tenant, purpose, round and base.
fn seed(name: &str, purpose: &str, assignment: &Assignment) -> [u8; 32] {
    let Assignment { job, round, base, .. } = assignment;
    let text = format!("{name} {purpose} {} {round} {}", job.name, base.file.digest);
    *Digest::of(text.as_bytes()).as_bytes()
}

/// A step from the base towards the tenant's own target, clipped, with seeded noise.
fn release(name: &str, taken: &mut Taken) -> Vec<u8> {
    let Taken { assignment, base, client } = taken;
    let (privacy, spec) = (&assignment.job.privacy, assignment.lattice);
    let lattice = Lattice::new(spec.step, spec.bits).expect("planned");
    let norm = ClippingNorm::new(privacy.clipping_norm).expect("valid");
    let phase = f32::from(Digest::of(name.as_bytes()).as_bytes()[0]);
    let target = |index: usize| ((index as f32 * 37.0 + phase) % 200.0) / 100.0 - 1.0;
    let mut update: Vec<f32> =
        base.iter().enumerate().map(|(index, value)| (target(index) - value) * 0.1).collect();
    clip_l2(&mut update, norm).expect("finite");
    let mut noise = SeededNoise::from_seed(seed(name, "noise", assignment));
    let Some(client) = client else {
        let dimension = update.len();
        let mechanism = NoisyUpdate::new(lattice, norm, privacy.noise_multiplier, dimension);
        let grid = mechanism.expect("valid").noised(&mut update, &mut noise).expect("noised");
        return lattice.pack(&grid);
    };
    let grid = lattice.quantize(&update, norm).expect("within the norm");
    let plan = client.context().plan;
    let share = secagg::noise(assignment).add_share(&plan, lattice, grid, &mut noise);
    let mut share = share.expect("noised");
    client.mask(&mut share).expect("in range");
    lattice.pack(&share.into_iter().map(i64::from).collect::<Vec<_>>())
}
