//! A cohort and its coordinator in one process; time stands still between steps.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};

use crate::{
    lattice::{Lattice, ModularSum},
    secagg::*,
};

/// Signatures that cost nothing: whoever knows the credential could forge them, but nobody does.
#[derive(Debug, Clone)]
pub(super) struct Mac(pub(super) u32);

impl Identity for Mac {
    fn sign(&self, message: &[u8]) -> Vec<u8> {
        blake3::keyed_hash(&mac_key(&self.0.to_le_bytes()), message).as_bytes().to_vec()
    }
}

fn mac_key(credential: &[u8]) -> [u8; 32] {
    blake3::derive_key("test", credential)
}

/// Verifies [`Mac`].
#[derive(Debug, Clone, Copy)]
pub(super) struct MacKeys;

impl PeerKeys for MacKeys {
    fn name(&self, credential: &[u8]) -> Option<String> {
        Some(format!("{credential:?}"))
    }

    fn verify(&self, credential: &[u8], message: &[u8], signature: &[u8]) -> bool {
        blake3::keyed_hash(&mac_key(credential), message).as_bytes() == signature
    }
}

/// The terms of a round of the cohort with these credentials.
pub(super) fn context(
    plan: SecaggPlan,
    credentials: &[Blob],
    bits: u8,
    dimension: u64,
) -> RoundContext {
    RoundContext {
        job: "census".to_owned(),
        round: 7,
        base_digest: ByteArray([1; 32]),
        terms_digest: ByteArray([2; 32]),
        cohort_root: cohort_root(credentials),
        plan,
        bits,
        dimension,
        coordinate_max: (1 << (bits - 1)) - 1,
    }
}

/// A cohort in one round.
#[derive(Clone)]
pub(super) struct World {
    pub(super) server: Server,
    pub(super) clients: Vec<Client>,
    pub(super) identities: Vec<Mac>,
    /// What each member masks, modulo `2^bits`.
    pub(super) inputs: Vec<Vec<u32>>,
    /// What each member uploaded, packed.
    pub(super) uploads: BTreeMap<Member, Vec<u8>>,
    /// Errors of clients, by member.
    pub(super) refusals: BTreeMap<Member, SecaggError>,
    pub(super) lattice: Lattice,
    /// The seed of each client.
    pub(super) seeds: Vec<[u8; 32]>,
    /// Whether the server is restored from its record after every input, and agents asked twice.
    pub(super) interrupted: bool,
}

impl World {
    pub(super) fn new(plan: SecaggPlan, bits: u8, dimension: u64, seed: u64) -> Self {
        let size = plan.cohort_size();
        let identities: Vec<Mac> = (0..size).map(Mac).collect();
        let credentials: Vec<Blob> =
            (0..size).map(|member| Blob(member.to_le_bytes().to_vec())).collect();
        let context = context(plan, &credentials, bits, dimension);
        let mut entropy = chacha20::ChaCha20Rng::seed_from_u64(seed);
        let seeds: Vec<[u8; 32]> = (0..size)
            .map(|_| {
                let mut seed = [0; 32];
                entropy.fill_bytes(&mut seed);
                seed
            })
            .collect();
        let clients = credentials.iter().zip(0..).map(|(credential, member)| {
            let seed = seeds[member as usize];
            Client::new(context.clone(), Member(member), credential.clone(), seed).expect("valid")
        });
        let clients = clients.collect();
        // Half of the range, so that no input is the one value below -coordinate_max.
        let inputs = (0..size).map(|_| {
            let centred =
                (0..dimension).map(|_| (entropy.next_u32() >> (32 - bits)).saturating_sub(1));
            centred
                .map(|value| value.wrapping_sub((1 << (bits - 1)) - 1) & (u32::MAX >> (32 - bits)))
                .collect()
        });
        Self {
            inputs: inputs.collect(),
            server: Server::new(context, credentials).expect("valid"),
            clients,
            identities,
            uploads: BTreeMap::new(),
            refusals: BTreeMap::new(),
            lattice: Lattice::new(1.0, bits).expect("valid"),
            seeds,
            interrupted: false,
        }
    }

    /// Gives the coordinator an honest message.
    fn tell(&mut self, member: Member, message: ClientMessage) {
        self.server.handle(member, message.clone(), &MacKeys).expect("honest");
        if self.interrupted {
            self.restart();
            let before = self.server.clone();
            self.server.handle(member, message, &MacKeys).expect("the same again");
            assert_eq!(self.server, before);
        }
    }

    /// Restores the coordinator from its record.
    fn restart(&mut self) {
        let record = serde_json::to_string(&self.server).expect("serialises");
        self.server = serde_json::from_str(&record).expect("the same");
    }

    /// Lets one member do its part of the current step.
    pub(super) fn act(&mut self, member: Member) {
        let message = match self.server.step() {
            Step::AdvertiseKeys => {
                let index = member.index();
                let message = self.clients[index].advertise(&self.identities[index]);
                self.tell(member, message);
                return;
            }
            _ => self.server.message_for(member),
        };
        if let Some(message) = message {
            self.deliver(member, message);
        }
    }

    /// As [`act`](Self::act), with the answer damaged on the way; the coordinator may refuse it.
    pub(super) fn act_damaged(
        &mut self,
        member: Member,
        damage: impl FnOnce(&ClientMessage) -> Option<ClientMessage>,
    ) {
        let index = member.index();
        let (client, identity) = (&mut self.clients[index], &self.identities[index]);
        let answer = match (self.server.step(), self.server.message_for(member)) {
            (Step::AdvertiseKeys, _) => client.advertise(identity),
            (_, None) => return,
            (_, Some(message)) => match client.handle(message, identity, &MacKeys) {
                Ok(ClientOutput::Send(answer)) => answer,
                Ok(ClientOutput::Mask) => return self.upload(member),
                Err(error) => {
                    self.refusals.insert(member, error);
                    return;
                }
            },
        };
        if let Some(answer) = damage(&answer) {
            let _ = self.server.handle(member, answer, &MacKeys);
        }
    }

    /// Gives a message to a member and its answer to the coordinator.
    pub(super) fn deliver(&mut self, member: Member, message: ServerMessage) {
        let index = member.index();
        let client = &mut self.clients[index];
        let output = client.handle(message.clone(), &self.identities[index], &MacKeys);
        if self.interrupted {
            let again = client.handle(message, &self.identities[index], &MacKeys);
            assert_eq!(again, output);
        }
        match output {
            Ok(ClientOutput::Send(answer)) => self.tell(member, answer),
            Ok(ClientOutput::Mask) => self.upload(member),
            Err(error) => {
                self.refusals.insert(member, error);
            }
        }
    }

    fn upload(&mut self, member: Member) {
        let mut update = self.inputs[member.index()].clone();
        self.clients[member.index()].mask(&mut update).expect("in range");
        let packed = self.pack(&update);
        let digest = ByteArray(*blake3::hash(&packed).as_bytes());
        self.server.uploaded(member, packed.len() as u64, digest).expect("in turn");
        if self.interrupted {
            self.restart();
            self.server.uploaded(member, packed.len() as u64, digest).expect("the same again");
            let mut again = self.inputs[member.index()].clone();
            self.clients[member.index()].mask(&mut again).expect("the same again");
            assert_eq!(again, update);
        }
        self.uploads.insert(member, packed);
    }

    pub(super) fn pack(&self, update: &[u32]) -> Vec<u8> {
        self.lattice.pack(&update.iter().map(|&value| i64::from(value)).collect::<Vec<_>>())
    }

    /// Lets these members act, and closes the step.
    pub(super) fn run_step(
        &mut self,
        members: impl IntoIterator<Item = Member>,
    ) -> Result<Step, AbandonReason> {
        members.into_iter().for_each(|member| self.act(member));
        let outcome = self.server.close_step();
        if self.interrupted {
            self.restart();
        }
        outcome
    }

    /// Everybody, to the end.
    pub(super) fn finish(&mut self) -> Result<Vec<u32>, AbandonReason> {
        while self.server.step() != Step::Done {
            self.run_step(MemberSet::full(self.clients.len() as u32).iter())?;
        }
        Ok(self.unmasked())
    }

    /// The sum of the survivors' uploads without masks.
    pub(super) fn unmasked(&self) -> Vec<u32> {
        let dimension = self.server.context().dimension as usize;
        let mut sum = ModularSum::new(self.lattice, dimension);
        for member in self.server.survivors().expect("uploads are closed").iter() {
            sum.add_packed(&self.uploads[&member]).expect("well formed");
        }
        self.server.unmask(&mut sum).expect("done");
        sum.values().to_vec()
    }

    /// What the sum must be.
    pub(super) fn expected(&self) -> Vec<u32> {
        let low = u32::MAX >> (32 - self.lattice.bits());
        let survivors = self.server.survivors().expect("uploads are closed");
        let zero = vec![0u32; self.server.context().dimension as usize];
        survivors.iter().fold(zero, |sum, member| {
            let add = |(sum, value): (u32, &u32)| sum.wrapping_add(*value) & low;
            sum.into_iter().zip(&self.inputs[member.index()]).map(add).collect()
        })
    }
}
