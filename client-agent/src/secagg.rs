//! The agent's part in secure aggregation: what it checks, and whom it recognises.
//!
//! Everything that sizes masks and noise is computed here from the job that the policy allowed and
//! the size of the cohort; the coordinator's word is taken for neither.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::pki_types::CertificateDer;
use thiserror::Error;
use tributary_privacy::{
    distributed::{DistributedError, DistributedNoise},
    lattice::{Lattice, LatticeError},
    mechanism::PrivacyEvent,
    secagg::{
        self, Blob, ByteArray, Client, ClientMessage, ClientOutput, Member, RoundContext,
        SecaggError, SecaggPlan, ServerMessage,
    },
};
use tributary_protocol::{
    codec,
    error_code::{ErrorCode, Refusal},
    id::{Digest, TenantId},
    job::{Adversary, JobSpec, PrivacyUnit, UpdateBound},
    message::Assignment,
    time::Timestamp,
    transport::{
        credential::{self, Recognizer},
        tls,
    },
};

use crate::{identity::Identity, policy::SecaggPolicy};

/// The cohort as the coordinator announces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cohort {
    /// The agent's place in the cohort list.
    pub member: u32,
    /// Length of the list.
    pub size: u32,
    /// Root over the list.
    pub root: Digest,
}

/// Says why an agent takes no part with a cohort.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum CohortRefusal {
    /// The job has no secure aggregation.
    #[error("the job has no secure aggregation")]
    NotAsked,
    /// Too few to hide among.
    #[error("the cohort has {size} tenants, but the policy's `secagg.cohort_size_min` is {min}")]
    TooSmall {
        /// Tenants in the cohort.
        size: u32,
        /// The policy's least.
        min: u32,
    },
    /// Another authority vouches for the others than the policy lists.
    #[error("the authority {authority} is not among the policy's `secagg.authorities`")]
    Authority {
        /// Fingerprint of the authority that the agent is enrolled with.
        authority: Digest,
    },
    /// No protection for such a cohort.
    #[error("this cohort cannot aggregate securely")]
    Plan(#[from] DistributedError),
    /// The lattice is none.
    #[error("the lattice of the assignment is not usable")]
    Lattice(#[from] LatticeError),
    /// The terms contradict themselves.
    #[error("the terms of the round are not usable")]
    Terms(#[from] SecaggError),
}

impl CohortRefusal {
    /// The refusal as it is sent and shown.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        Refusal::from_error(ErrorCode::SecaggCohortRefused, self)
    }
}

/// What a job asks of its sums; `None` where every update is private by itself.
#[must_use]
pub fn noise(job: &JobSpec) -> Option<DistributedNoise> {
    let spec = job.secagg.as_ref()?;
    let UpdateBound { norm_max, noise_sigma } = job.update_bound();
    Some(DistributedNoise {
        dimension: job.federated_dimension() as u64,
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
    })
}

/// What a sum of the job reveals in the worst case that the plan allows.
#[must_use]
pub fn event(
    job: &JobSpec,
    noise: &DistributedNoise,
    plan: &SecaggPlan,
    lattice: Lattice,
) -> PrivacyEvent {
    let sampling_rate = match job.privacy.unit {
        PrivacyUnit::Record => job.training.sampling_rate,
        PrivacyUnit::Tenant => 1.0,
    };
    noise.event(plan, lattice, sampling_rate, job.privacy.noise_multiplier, None)
}

/// The agent's key and certificate, and the authority that it is enrolled with.
#[derive(Debug)]
pub struct TenantKeys {
    tls: tls::Identity,
    authority: CertificateDer<'static>,
}

impl TenantKeys {
    /// Of an enrolled agent.
    #[must_use]
    pub fn of(identity: &Identity) -> Self {
        Self { tls: identity.tls.clone(), authority: identity.authority.clone() }
    }

    pub(crate) fn credential(&self) -> Blob {
        Blob(self.tls.chain.first().map(|leaf| leaf.to_vec()).unwrap_or_default())
    }
}

/// The keys at one time, with the peers that the policy pins.
struct Peers<'a> {
    keys: &'a TenantKeys,
    pinned: Option<&'a [TenantId]>,
    at: Timestamp,
}

impl Peers<'_> {
    fn recognizer(&self) -> Recognizer<'_> {
        Recognizer { authority: &self.keys.authority, at: self.at }
    }
}

impl secagg::PeerKeys for Peers<'_> {
    fn name(&self, credential: &[u8]) -> Option<String> {
        let tenant = self.recognizer().tenant(credential)?;
        let own = self.keys.tls.chain.first().is_some_and(|leaf| **leaf == *credential);
        let trusted = own || self.pinned.is_none_or(|pinned| pinned.contains(&tenant));
        trusted.then(|| tenant.to_string())
    }

    fn verify(&self, credential: &[u8], message: &[u8], signature: &[u8]) -> bool {
        self.recognizer().verifies(credential, message, signature)
    }
}

impl secagg::Identity for Peers<'_> {
    fn sign(&self, message: &[u8]) -> Vec<u8> {
        // Nobody accepts an empty signature: the round then fails by name at the first peer.
        credential::sign(&self.keys.tls, message).unwrap_or_default()
    }
}

/// One round's part in secure aggregation. Its secrets are zeroised with the last clone.
#[derive(Debug, Clone)]
pub struct Exchange {
    cohort: Cohort,
    /// Version of the base that the round starts from.
    base_version: u64,
    client: Arc<Mutex<Client>>,
}

impl PartialEq for Exchange {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.client, &other.client)
    }
}

impl Exchange {
    /// Checks the cohort, and makes fresh keys.
    ///
    /// - `seed`: 256 fresh bits from the operating system
    ///
    /// # Errors
    /// [`CohortRefusal`]; no key was made.
    pub fn begin(
        assignment: &Assignment,
        cohort: Cohort,
        policy: &SecaggPolicy,
        keys: &TenantKeys,
        seed: [u8; 32],
    ) -> Result<Self, CohortRefusal> {
        let job = &assignment.job;
        let noise = noise(job).ok_or(CohortRefusal::NotAsked)?;
        let min = policy.cohort_size_min;
        if cohort.size < min {
            return Err(CohortRefusal::TooSmall { size: cohort.size, min });
        }
        let authority = Digest::of(&keys.authority);
        if policy.authorities.as_ref().is_some_and(|listed| !listed.contains(&authority)) {
            return Err(CohortRefusal::Authority { authority });
        }
        let plan = noise.plan(cohort.size)?;
        if plan.survivors_min() < min {
            return Err(CohortRefusal::TooSmall { size: plan.survivors_min(), min });
        }
        let lattice = Lattice::new(assignment.lattice.step, assignment.lattice.bits)?;
        let terms = codec::encode(&(job, assignment.lattice));
        let terms = terms.expect("an assignment that came in a message fits into one");
        let context = RoundContext {
            job: job.name.to_string(),
            round: assignment.round.0,
            base_digest: ByteArray(*assignment.base.file.digest.as_bytes()),
            terms_digest: ByteArray(*Digest::of(&terms).as_bytes()),
            cohort_root: ByteArray(*cohort.root.as_bytes()),
            plan,
            bits: lattice.bits(),
            dimension: noise.dimension,
            coordinate_max: noise.coordinate_max(&plan, lattice),
        };
        let client = Client::new(context, Member(cohort.member), keys.credential(), seed)?;
        let base_version = assignment.base.version;
        Ok(Self { cohort, base_version, client: Arc::new(Mutex::new(client)) })
    }

    /// The cohort that the keys were made for.
    #[must_use]
    pub const fn cohort(&self) -> Cohort {
        self.cohort
    }

    /// Version of the base that the round starts from.
    #[must_use]
    pub const fn base_version(&self) -> u64 {
        self.base_version
    }

    /// Graph, threshold and fewest survivors.
    #[must_use]
    pub fn plan(&self) -> SecaggPlan {
        self.client().context().plan
    }

    /// The first message; the same one when asked again.
    pub(crate) fn advertise(&self, keys: &TenantKeys, at: Timestamp) -> ClientMessage {
        self.client().advertise(&Peers { keys, pinned: None, at })
    }

    /// Takes a step that the coordinator asks for.
    ///
    /// # Errors
    /// [`SecaggError`] names what is wrong; the agent must say nothing more in this round.
    pub(crate) fn handle(
        &self,
        message: ServerMessage,
        keys: &TenantKeys,
        policy: &SecaggPolicy,
        at: Timestamp,
    ) -> Result<ClientOutput, SecaggError> {
        let peers = Peers { keys, pinned: policy.peers.as_deref(), at };
        self.client().handle(message, &peers, &peers)
    }

    /// Masks a noised update in place; the same update gives the same bytes.
    ///
    /// # Errors
    /// [`SecaggError`]; the update is then unchanged and must not leave.
    pub fn mask(&self, update: &mut [u32]) -> Result<(), SecaggError> {
        self.client().mask(update)
    }

    fn client(&self) -> MutexGuard<'_, Client> {
        // A client that panicked half way refuses what does not fit; it never reveals more.
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    /// An authority of its own and a tenant of it.
    pub(crate) fn keys(tenant: &str) -> Arc<TenantKeys> {
        cohort_keys(&[tenant]).remove(0)
    }

    /// Tenants of one authority.
    pub(crate) fn cohort_keys(tenants: &[&str]) -> Vec<Arc<TenantKeys>> {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = parameters.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(parameters, key);
        let issue = |tenant: &&str| {
            let key = KeyPair::generate().unwrap();
            let mut parameters = CertificateParams::default();
            parameters.distinguished_name = rcgen::DistinguishedName::new();
            parameters.distinguished_name.push(DnType::CommonName, *tenant);
            parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            let leaf = parameters.signed_by(&key, &issuer).unwrap().der().clone();
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let tls = tls::Identity { chain: vec![leaf], key };
            Arc::new(TenantKeys { tls, authority: authority.clone() })
        };
        tenants.iter().map(issue).collect()
    }
}
