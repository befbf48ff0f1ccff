//! A member of a secure aggregation whose update the test chooses.

use std::net::SocketAddr;

use tributary_privacy::{
    distributed::DistributedNoise,
    lattice::{Lattice, ModularSum},
    secagg::{
        self, Blob, ByteArray, Client, ClientMessage, ClientOutput, Member, RoundContext,
        SecaggError, ServerMessage,
    },
};
use tributary_protocol::{
    codec,
    id::Digest,
    job::{Adversary, UpdateBound},
    message::{AgentMessage, Assignment, CoordinatorMessage, SecaggPayload, TransferResponse},
    transport::{
        credential::{self, Recognizer},
        process,
    },
};

use crate::peer::{Credentials, Peer, offer};

impl secagg::Identity for Credentials {
    fn sign(&self, message: &[u8]) -> Vec<u8> {
        credential::sign(&self.identity, message).expect("signs")
    }
}

impl secagg::PeerKeys for Credentials {
    fn name(&self, credential: &[u8]) -> Option<String> {
        let recognizer = Recognizer { authority: &self.authority, at: process::now() };
        recognizer.tenant(credential).map(|tenant| tenant.to_string())
    }

    fn verify(&self, credential: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let recognizer = Recognizer { authority: &self.authority, at: process::now() };
        recognizer.verifies(credential, message, signature)
    }
}

/// A connected member of a cohort.
#[derive(Debug)]
pub struct SecaggPeer {
    /// Its connection.
    pub peer: Peer,
    credentials: Credentials,
    /// What it was assigned.
    pub assignment: Assignment,
    client: Option<Client>,
    /// The masked update, packed; the same bytes for every attempt.
    masked: Option<Vec<u8>>,
}

/// How far a member goes in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Until {
    /// It has accepted, and answers nothing more.
    Accepted,
    /// It has advertised its keys.
    Advertised,
    /// It has shared its secrets.
    Shared,
    /// Its masked update is stored.
    Uploaded,
    /// It has confirmed the survivors (against a malicious coordinator only).
    Confirmed,
    /// It has helped to unmask.
    Unmasked,
}

impl SecaggPeer {
    /// Connects, waits for an assignment, and accepts it.
    ///
    /// # Panics
    /// If the connection fails.
    pub async fn join(address: SocketAddr, credentials: &Credentials) -> Self {
        let mut peer = Peer::connect(address, credentials).await.expect("connects");
        let assignment = peer.assignment().await;
        peer.accept(&assignment.job.name, assignment.round).await;
        let credentials = credentials.clone();
        Self { peer, credentials, assignment, client: None, masked: None }
    }

    /// Connects again with the keys that it has in memory.
    ///
    /// # Panics
    /// If the connection fails.
    pub async fn rejoin(self, address: SocketAddr) -> Self {
        let Self { credentials, client, masked, .. } = self;
        let again = Self::join(address, &credentials).await;
        Self { client, masked, ..again }
    }

    /// The coordinates of its packed, masked update.
    ///
    /// # Panics
    /// If it has not masked yet.
    #[must_use]
    pub fn masked(&self) -> &[u8] {
        self.masked.as_deref().expect("masked")
    }

    /// Answers the coordinator until it has done as much as `until`.
    ///
    /// - `update`: its lattice vector, grid units
    ///
    /// # Errors
    /// [`SecaggError`] if its own checks fail.
    ///
    /// # Panics
    /// If the connection ends.
    pub async fn play(&mut self, update: &[i64], until: Until) -> Result<(), SecaggError> {
        let mut done = Until::Accepted;
        while done < until {
            match self.peer.next().await.expect("a message") {
                CoordinatorMessage::SecaggBegin { member, cohort_size, cohort_root, .. } => {
                    let message = self.begin(member, cohort_size, cohort_root)?;
                    self.say(&message).await;
                    done = Until::Advertised;
                }
                CoordinatorMessage::Secagg { payload, .. } => {
                    let message: ServerMessage = payload.decode().expect("decodes");
                    done = self.step(message, update).await?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn step(&mut self, message: ServerMessage, update: &[i64]) -> Result<Until, SecaggError> {
        let credentials = self.credentials.clone();
        let client = self.client.as_mut().expect("keys come first");
        match client.handle(message, &credentials, &credentials)? {
            ClientOutput::Mask => {
                self.upload(update).await?;
                Ok(Until::Uploaded)
            }
            ClientOutput::Send(message) => {
                self.say(&message).await;
                Ok(match message {
                    ClientMessage::Advertise(_) | ClientMessage::Opening(_) => Until::Advertised,
                    ClientMessage::ShareKeys(_) => Until::Shared,
                    ClientMessage::Confirm(_) => Until::Confirmed,
                    ClientMessage::Unmask(_) => Until::Unmasked,
                })
            }
        }
    }

    async fn upload(&mut self, update: &[i64]) -> Result<(), SecaggError> {
        let lattice = self.lattice();
        if self.masked.is_none() {
            let mask = u32::MAX >> (32 - u32::from(lattice.bits()));
            let mut values: Vec<u32> = update.iter().map(|&value| value as u32 & mask).collect();
            self.client.as_mut().expect("keys come first").mask(&mut values)?;
            let values: Vec<i64> = values.into_iter().map(i64::from).collect();
            self.masked = Some(lattice.pack(&values));
        }
        let masked = self.masked();
        let Assignment { job, round, .. } = &self.assignment;
        let stored = self.peer.upload(&offer(&job.name, *round, masked, 1), masked).await;
        assert!(matches!(stored, TransferResponse::Stored), "{stored:?}");
        Ok(())
    }

    /// The lattice of the job.
    ///
    /// # Panics
    /// If the coordinator sent none.
    #[must_use]
    pub fn lattice(&self) -> Lattice {
        let spec = self.assignment.lattice;
        Lattice::new(spec.step, spec.bits).expect("a lattice")
    }

    /// The values of a packed vector of this job, each below `2^bits`.
    ///
    /// # Panics
    /// If it is not one.
    #[must_use]
    pub fn unpacked(&self, packed: &[u8]) -> Vec<u32> {
        let dimension = self.assignment.job.model.num_parameters();
        let mut sum = ModularSum::new(self.lattice(), dimension);
        sum.add_packed(packed).expect("a packed vector");
        sum.values().to_vec()
    }

    /// Sends one message of the protocol.
    ///
    /// # Panics
    /// If the connection ends.
    pub async fn say(&mut self, message: &ClientMessage) {
        let payload = SecaggPayload::encode(message).expect("encodes");
        let Assignment { job, round, .. } = &self.assignment;
        let (job, round) = (job.name.clone(), *round);
        self.peer.say(&AgentMessage::Secagg { job, round, payload }).await;
    }

    fn begin(
        &mut self,
        member: u32,
        cohort_size: u32,
        cohort_root: Digest,
    ) -> Result<ClientMessage, SecaggError> {
        let credentials = self.credentials.clone();
        if self.client.is_none() {
            let context = context(&self.assignment, cohort_size, cohort_root);
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).expect("entropy");
            let leaf = Blob(credentials.identity.chain[0].to_vec());
            self.client = Some(Client::new(context, Member(member), leaf, seed)?);
        }
        Ok(self.client.as_mut().expect("just made").advertise(&credentials))
    }
}

/// The noise of a masked job.
///
/// # Panics
/// If the job has no secure aggregation.
#[must_use]
pub fn noise(assignment: &Assignment) -> DistributedNoise {
    let job = &assignment.job;
    let spec = job.secagg.as_ref().expect("a job with secure aggregation");
    let UpdateBound { norm_max, noise_sigma } = job.update_bound();
    DistributedNoise {
        dimension: job.model.num_parameters() as u64,
        norm_max,
        noise_sigma,
        survivors_min: job.round.cohort_size_min,
        cohort_size_max: job.round.cohort_size,
        dropout_max: spec.dropout_max,
        corrupt_max: spec.corrupt_max,
        adversary: match spec.adversary {
            Adversary::SemiHonest => secagg::Adversary::SemiHonest,
            Adversary::MaliciousCoordinator => secagg::Adversary::MaliciousCoordinator,
        },
    }
}

/// The terms of a cohort, derived from the assignment alone.
///
/// # Panics
/// If the coordinator sent what has no plan or lattice.
#[must_use]
pub fn context(assignment: &Assignment, cohort_size: u32, cohort_root: Digest) -> RoundContext {
    let Assignment { job, lattice, base, round, .. } = assignment;
    let noise = noise(assignment);
    let plan = noise.plan(cohort_size).expect("a plan");
    let terms = codec::encode(&(job, *lattice)).expect("encodes");
    let grid = Lattice::new(lattice.step, lattice.bits).expect("a lattice");
    RoundContext {
        job: job.name.to_string(),
        round: round.0,
        base_digest: ByteArray(*base.file.digest.as_bytes()),
        terms_digest: ByteArray(*Digest::of(&terms).as_bytes()),
        cohort_root: ByteArray(*cohort_root.as_bytes()),
        plan,
        bits: lattice.bits,
        dimension: noise.dimension,
        coordinate_max: noise.coordinate_max(&plan, grid),
    }
}
