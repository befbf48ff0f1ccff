//! Secure aggregation of a round: agents' and coordinator's machines in one process.

use std::sync::{Mutex, MutexGuard, PoisonError};

use ed25519_dalek::SigningKey;
use tributary_privacy::{
    lattice::{Lattice, ModularSum},
    secagg::{
        Blob, ByteArray, Client, ClientMessage, Member, RoundContext, SecaggError, SecaggPlan,
        Server, ServerMessage, Step, cohort_root,
    },
};
use tributary_protocol::{codec, id::Digest};

use super::{
    HarnessError, RoundCohort,
    pool::share,
    seeds::{Purpose, Seeds},
};
use crate::{
    experiment::{Experiment, ExperimentError},
    identity::{PublicKeys, TenantKey},
};

/// Steps in which a tenant that does not report may be lost.
const LOST_IN: [Step; 3] = [Step::AdvertiseKeys, Step::ShareKeys, Step::MaskedInput];

/// Graph and thresholds of every cohort of an experiment.
///
/// # Errors
/// [`ExperimentError`] if there are none, or the round would not wait for enough updates.
pub(super) fn plan(experiment: &Experiment) -> Result<Option<SecaggPlan>, ExperimentError> {
    let Some(spec) = &experiment.secagg else { return Ok(None) };
    let cohort = &experiment.cohort;
    let cohort_size = cohort.size;
    let refused = |source| ExperimentError::Secagg { cohort_size, source };
    let plan = SecaggPlan::choose(cohort_size, spec.dropout_max, spec.corrupt_max, spec.adversary)
        .map_err(refused)?;
    let survivors_min = plan.survivors_min().max(cohort.size_min);
    let report_goal = cohort.report_goal();
    if report_goal < survivors_min {
        return Err(ExperimentError::SecaggGoal { report_goal, cohort_size, survivors_min });
    }
    plan.with_survivors_min(survivors_min).map(Some).map_err(refused)
}

/// One round: everybody has the neighbours' shares, and updates may be masked.
pub(super) struct SecureRound {
    round: u64,
    lattice: Lattice,
    invited: Vec<u32>,
    agents: Vec<Mutex<Agent>>,
    server: Server,
    threads: usize,
    /// Bytes of the protocol's messages, updates not included.
    pub(super) bytes_down: u64,
    pub(super) bytes_up: u64,
}

struct Agent {
    client: Client,
    key: TenantKey,
    /// The first step in which it says nothing more.
    lost_in: Option<Step>,
    /// Length and digest of what it uploaded.
    upload: Option<(u64, ByteArray<32>)>,
}

/// What a round of secure aggregation is about.
pub(super) struct Terms<'a> {
    pub(super) experiment: &'a Experiment,
    pub(super) plan: SecaggPlan,
    pub(super) lattice: Lattice,
    pub(super) base: &'a [f32],
    pub(super) seeds: Seeds,
    pub(super) threads: usize,
}

impl SecureRound {
    /// Exchanges keys and shares.
    ///
    /// # Errors
    /// [`HarnessError::Secagg`]; none of these tenants does anything wrong, so it is a mistake here.
    pub(super) fn begin(
        terms: &Terms<'_>,
        round: u64,
        cohort: &RoundCohort,
    ) -> Result<Self, HarnessError> {
        let Terms { experiment, plan, lattice, base, seeds, threads } = *terms;
        let key = |&tenant: &u32| {
            TenantKey(SigningKey::from_bytes(&seeds.key(Purpose::Identity, 0, tenant)))
        };
        let keys: Vec<TenantKey> = cohort.invited.iter().map(key).collect();
        let credential = |key: &TenantKey| Blob(key.0.verifying_key().to_bytes().to_vec());
        let credentials: Vec<Blob> = keys.iter().map(credential).collect();
        let base: Vec<u8> = base.iter().flat_map(|value| value.to_le_bytes()).collect();
        let context = RoundContext {
            job: experiment.name.clone(),
            round,
            base_digest: ByteArray(*Digest::of(&base).as_bytes()),
            terms_digest: ByteArray(*Digest::of(b"simulation").as_bytes()),
            cohort_root: cohort_root(&credentials),
            plan,
            bits: lattice.bits(),
            dimension: experiment.federated.dimension(&experiment.model) as u64,
            coordinate_max: (1 << (lattice.bits() - 1)) - 1,
        };
        let failed = |source| HarnessError::Secagg { round, source };
        let agents = (0..).zip(keys.into_iter().zip(&credentials)).map(|(place, (key, own))| {
            let tenant = cohort.invited[place as usize];
            let reports = cohort.reporting.iter().any(|report| report.tenant == tenant);
            let lost = seeds.fast(Purpose::LostStep, round, tenant);
            let lost_in = (!reports).then(|| LOST_IN[pick(lost, LOST_IN.len())]);
            let seed = seeds.key(Purpose::Masks, round, tenant);
            let client = Client::new(context.clone(), Member(place), own.clone(), seed)?;
            Ok(Mutex::new(Agent { client, key, lost_in, upload: None }))
        });
        let agents = agents.collect::<Result<_, _>>().map_err(failed)?;
        let server = Server::new(context, credentials).map_err(failed)?;
        let mut own = Self {
            round,
            lattice,
            invited: cohort.invited.clone(),
            agents,
            server,
            threads,
            bytes_down: 0,
            bytes_up: 0,
        };
        while own.server.step() < Step::MaskedInput {
            own.exchange()?;
            if own.server.close_step().is_err() {
                return Ok(own);
            }
        }
        // Hands out the shares; what comes back is masked later.
        own.exchange()?;
        Ok(own)
    }

    /// Masks one tenant's released update, each coordinate below `2^bits`; returns it packed.
    ///
    /// # Errors
    /// [`HarnessError::Secagg`].
    pub(super) fn mask(&self, tenant: u32, update: &mut [u32]) -> Result<Vec<u8>, HarnessError> {
        let place = self.invited.binary_search(&tenant).expect("only the invited report");
        let mut agent = lock(&self.agents[place]);
        agent
            .client
            .mask(update)
            .map_err(|source| HarnessError::Secagg { round: self.round, source })?;
        let values: Vec<i64> = update.iter().map(|&value| value.into()).collect();
        let packed = self.lattice.pack(&values);
        agent.upload = Some((packed.len() as u64, ByteArray(*Digest::of(&packed).as_bytes())));
        Ok(packed)
    }

    /// Takes the rest of the masks off the sum; false if the round is abandoned.
    ///
    /// # Errors
    /// [`HarnessError::Secagg`].
    pub(super) fn unmask(&mut self, sum: &mut ModularSum) -> Result<bool, HarnessError> {
        if self.server.abandoned().is_some() {
            return Ok(false);
        }
        let round = self.round;
        let failed = |source| HarnessError::Secagg { round, source };
        let length = self.lattice.packed_len(sum.values().len()) as u64;
        for (place, agent) in (0..).zip(&self.agents) {
            let mut agent = lock(agent);
            if agent.lost_in.is_none() {
                if agent.upload.is_none() {
                    // Another process masked and uploaded; the machine here goes through it too.
                    agent.client.mask(&mut vec![0; sum.values().len()]).map_err(failed)?;
                }
                // An upload is compared with itself alone, so any digest stands for the other's.
                let (length, digest) = agent.upload.unwrap_or((length, ByteArray([0; 32])));
                self.server.uploaded(Member(place), length, digest).map_err(failed)?;
            }
        }
        loop {
            if self.server.close_step().is_err() {
                return Ok(false);
            }
            if self.server.step() == Step::Done {
                break;
            }
            self.exchange()?;
        }
        self.server.unmask(sum).map_err(failed)?;
        Ok(true)
    }

    /// One step: tells the members what they need, and takes their answers.
    fn exchange(&mut self) -> Result<(), HarnessError> {
        let step = self.server.step();
        let told: Vec<Option<ServerMessage>> = (0..self.agents.len() as u32)
            .map(|place| self.server.message_for(Member(place)))
            .collect();
        let told: Vec<Mutex<Option<ServerMessage>>> = told.into_iter().map(Mutex::new).collect();
        let answers: Vec<Mutex<Option<ClientMessage>>> =
            self.agents.iter().map(|_| Mutex::new(None)).collect();
        let (mut bytes, round) = (vec![0; self.threads], self.round);
        let failed = |source| HarnessError::Secagg { round, source };
        share(&mut bytes, self.agents.len(), |bytes, place| -> Result<(), HarnessError> {
            let mut agent = lock(&self.agents[place]);
            let told = lock(&told[place]).take();
            *bytes += told.as_ref().map_or(0, encoded_len);
            if agent.lost_in.is_some_and(|lost_in| lost_in <= step) {
                return Ok(());
            }
            *lock(&answers[place]) = agent.answer(step, told).map_err(failed)?;
            Ok(())
        })?;
        self.bytes_down += bytes.iter().sum::<u64>();
        for (place, answer) in (0..).zip(answers) {
            if let Some(answer) = answer.into_inner().unwrap_or_else(PoisonError::into_inner) {
                self.bytes_up += encoded_len(&answer);
                self.server.handle(Member(place), answer, &PublicKeys).map_err(failed)?;
            }
        }
        Ok(())
    }
}

impl Agent {
    fn answer(
        &mut self,
        step: Step,
        told: Option<ServerMessage>,
    ) -> Result<Option<ClientMessage>, SecaggError> {
        use tributary_privacy::secagg::ClientOutput::{Mask, Send};
        match told {
            None if step == Step::AdvertiseKeys => Ok(Some(self.client.advertise(&self.key))),
            None => Ok(None),
            Some(told) => match self.client.handle(told, &self.key, &PublicKeys)? {
                Send(answer) => Ok(Some(answer)),
                Mask => Ok(None),
            },
        }
    }
}

fn encoded_len(message: &impl serde::Serialize) -> u64 {
    codec::encode(message).map_or(0, |bytes| bytes.len() as u64)
}

fn pick(mut random: impl rand::Rng, count: usize) -> usize {
    rand::RngExt::random_range(&mut random, 0..count)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
