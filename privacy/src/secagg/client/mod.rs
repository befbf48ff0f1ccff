//! One agent in one round, as a value that is stepped by hand.

mod advertise;
mod mask;
mod share;
mod unmask;

use std::{collections::BTreeMap, fmt, mem};

use zeroize::{Zeroize, Zeroizing};

use self::{advertise::Advertised, mask::Masking, share::Dealt, unmask::Confirming};
use super::{
    Adversary, ClientMessage, Finding, Identity, Member, PeerKeys, RoundContext, SecaggError,
    ServerMessage, Step,
    bytes::{Blob, ByteArray},
    keys::Secrets,
    message::Advert,
};

/// What the agent's driver does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientOutput {
    /// Send this to the coordinator.
    Send(ClientMessage),
    /// Call [`Client::mask`] when the noised update is ready, and upload the result.
    Mask,
}

/// One agent in one round of secure aggregation.
///
/// Its secrets live in memory only and are zeroised after the last answer, or when it is dropped: a
/// process that crashed has dropped out of the round. Within
/// a process, the same request again (after a reconnect) gives the same answer; a different one is
/// an attack and is refused by name. After any error it stops: the round is lost to it.
#[cfg_attr(test, derive(Clone))]
pub struct Client {
    own: Own,
    advert: Option<Advert>,
    phase: Phase,
    /// What was asked and answered, so that it can be repeated but not changed.
    answers: BTreeMap<(Step, u32), (ByteArray<32>, ClientOutput)>,
    findings: Vec<Finding>,
}

/// What does not change during a round.
#[cfg_attr(test, derive(Clone))]
struct Own {
    context: RoundContext,
    digest: ByteArray<32>,
    member: Member,
    credential: Blob,
    secrets: Secrets,
}

/// Where the agent stands. Each phase owns only its own data; a transition consumes the old one.
#[cfg_attr(test, derive(Clone))]
enum Phase {
    /// Keys are out.
    Advertised(Advertised),
    /// The secrets are shared among the neighbours.
    Dealt(Dealt),
    /// The neighbours' shares are here and the update may be masked.
    Masking(Masking),
    /// The survivors are signed.
    Confirming(Confirming),
    /// Everything is answered.
    Finished {
        /// The neighbours it answered for: each with whether it was called a survivor.
        answered: Vec<(Member, bool)>,
    },
    /// An attack was met.
    Stopped(SecaggError),
}

impl Client {
    /// Starts a round.
    ///
    /// - `context`: the terms, checked against the agent's policy before
    /// - `member`: the agent's own place in the cohort list
    /// - `credential`: the agent's own, as it must stand in the cohort list
    /// - `seed`: 256 fresh bits from the operating system; all secrets of the round derive from it
    ///
    /// # Errors
    /// [`SecaggError::Context`] or [`SecaggError::NotInCohort`].
    pub fn new(
        context: RoundContext,
        member: Member,
        credential: Blob,
        seed: [u8; 32],
    ) -> Result<Self, SecaggError> {
        if !context.is_well_formed() {
            return Err(SecaggError::Context);
        }
        if member.0 >= context.plan.cohort_size() {
            return Err(SecaggError::NotInCohort { member });
        }
        let digest = context.digest();
        let secrets = Secrets::new(digest, member, &Zeroizing::new(seed));
        Ok(Self {
            own: Own { context, digest, member, credential, secrets },
            advert: None,
            phase: Phase::Advertised(Advertised::default()),
            answers: BTreeMap::new(),
            findings: Vec::new(),
        })
    }

    /// The terms of the round.
    #[must_use]
    pub const fn context(&self) -> &RoundContext {
        &self.own.context
    }

    /// What this agent does or waits for; `None` after an attack.
    #[must_use]
    pub const fn step(&self) -> Option<Step> {
        match &self.phase {
            Phase::Advertised(advertised) if advertised.was_asked() => Some(Step::RevealOrder),
            Phase::Advertised(_) => Some(Step::AdvertiseKeys),
            Phase::Dealt(_) => Some(Step::ShareKeys),
            Phase::Masking(_) => Some(Step::MaskedInput),
            Phase::Confirming(_) => Some(Step::ConsistencyCheck),
            Phase::Finished { .. } => Some(Step::Done),
            Phase::Stopped(_) => None,
        }
    }

    /// The first message; may be asked for again. Send it before anything else.
    pub fn advertise(&mut self, identity: &dyn Identity) -> ClientMessage {
        let own = &self.own;
        let advert = self.advert.get_or_insert_with(|| advertise::advert(own, identity));
        ClientMessage::Advertise(Box::new(advert.clone()))
    }

    /// Takes a message of the coordinator.
    ///
    /// # Errors
    /// [`SecaggError`] names the attack. Nothing further must be sent in this round; every later
    /// call gives the same error.
    pub fn handle(
        &mut self,
        message: ServerMessage,
        identity: &dyn Identity,
        peers: &dyn PeerKeys,
    ) -> Result<ClientOutput, SecaggError> {
        let key = key_of(&message);
        let fingerprint = fingerprint(&message);
        if let Some((asked, answer)) = self.answers.get(&key) {
            return if *asked == fingerprint {
                Ok(answer.clone())
            } else {
                Err(self.stop(self.conflict(&message)))
            };
        }
        let phase = mem::replace(&mut self.phase, Phase::Stopped(SecaggError::Context));
        match self.advance(phase, message, identity, peers) {
            Ok((phase, output)) => {
                if matches!(phase, Phase::Finished { .. }) {
                    self.own.secrets.zeroize();
                }
                self.phase = phase;
                self.answers.insert(key, (fingerprint, output.clone()));
                Ok(output)
            }
            Err(error) => Err(self.stop(error)),
        }
    }

    fn advance(
        &mut self,
        phase: Phase,
        message: ServerMessage,
        identity: &dyn Identity,
        peers: &dyn PeerKeys,
    ) -> Result<(Phase, ClientOutput), SecaggError> {
        let (own, advert) = (&self.own, self.advert.as_ref());
        let advert = advert.ok_or(SecaggError::OutOfTurn { step: Step::AdvertiseKeys })?;
        let send = ClientOutput::Send;
        match (phase, message) {
            (Phase::Stopped(error), _) => Err(error),
            (Phase::Advertised(advertised), ServerMessage::Reveal(reveal)) => {
                let (advertised, opening) = advertised.reveal(own, reveal)?;
                Ok((Phase::Advertised(advertised), send(ClientMessage::Opening(opening))))
            }
            (Phase::Advertised(advertised), ServerMessage::Neighbourhood(neighbourhood)) => {
                let dealt = advertised.meet(own, advert, neighbourhood, peers)?;
                let (dealt, sealed) = dealt.deal(own)?;
                Ok((Phase::Dealt(dealt), send(ClientMessage::ShareKeys(sealed))))
            }
            (Phase::Dealt(dealt), ServerMessage::Shares(shares)) => {
                let masking = dealt.hold(own, shares, &mut self.findings)?;
                Ok((Phase::Masking(masking), ClientOutput::Mask))
            }
            (Phase::Masking(masking), ServerMessage::Survivors(survivors)) => {
                let confirming = masking.survive(own, survivors)?;
                Ok(match own.context.plan.adversary() {
                    Adversary::SemiHonest => confirming.unmask(),
                    Adversary::MaliciousCoordinator => {
                        let confirmation = confirming.confirm(identity);
                        let confirm = ClientMessage::Confirm(confirmation);
                        (Phase::Confirming(confirming), send(confirm))
                    }
                })
            }
            (Phase::Confirming(confirming), ServerMessage::Confirmations(confirmations)) => {
                confirming.check(own, &confirmations, peers)?;
                Ok(confirming.unmask())
            }
            (phase, _) => {
                self.phase = phase;
                let step = self.step().unwrap_or(Step::Done);
                Err(SecaggError::OutOfTurn { step })
            }
        }
    }

    /// Masks the noised update in place.
    ///
    /// Checks first that every coordinate is within the range of the context. The same vector again
    /// gives the same result; another one is refused, because the difference would be visible.
    ///
    /// - `update`: shape `[dimension]`, grid units modulo `2^bits`
    ///
    /// # Errors
    /// [`SecaggError::OutOfTurn`], [`SecaggError::WrongLength`], [`SecaggError::OutOfRange`] or
    /// [`SecaggError::TwoInputs`]; the vector is then unchanged.
    pub fn mask(&mut self, update: &mut [u32]) -> Result<(), SecaggError> {
        match &mut self.phase {
            Phase::Masking(masking) => masking.mask(&self.own, update),
            Phase::Stopped(error) => Err(error.clone()),
            _ => Err(SecaggError::OutOfTurn { step: self.step().unwrap_or(Step::Done) }),
        }
    }

    /// What was wrong with other members so far, without harm to the round.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    fn stop(&mut self, error: SecaggError) -> SecaggError {
        self.phase = Phase::Stopped(error.clone());
        self.answers.clear();
        error
    }

    /// Names what a second, different request for the same step is after.
    fn conflict(&self, message: &ServerMessage) -> SecaggError {
        let (step, _) = key_of(message);
        let ServerMessage::Survivors(survivors) = message else {
            return SecaggError::ConflictingRequests { step };
        };
        let told = match &self.phase {
            Phase::Confirming(confirming) => confirming.told(),
            Phase::Finished { answered } => answered.clone(),
            _ => Vec::new(),
        };
        let changed =
            told.iter().find(|&&(member, survived)| survivors.contains(member) != survived);
        match changed {
            Some(&(member, _)) => SecaggError::BothShares { member },
            None => SecaggError::ConflictingRequests { step },
        }
    }
}

/// Which question a message asks.
const fn key_of(message: &ServerMessage) -> (Step, u32) {
    match message {
        ServerMessage::Reveal(reveal) => (Step::RevealOrder, reveal.attempt),
        ServerMessage::Neighbourhood(_) => (Step::ShareKeys, 0),
        ServerMessage::Shares(_) => (Step::MaskedInput, 0),
        ServerMessage::Survivors(_) => (Step::ConsistencyCheck, 0),
        ServerMessage::Confirmations(_) => (Step::Unmask, 0),
    }
}

fn fingerprint(message: &ServerMessage) -> ByteArray<32> {
    let bytes = serde_json::to_vec(message).expect("messages have a JSON form");
    ByteArray(*blake3::hash(&bytes).as_bytes())
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Client")
            .field("member", &self.own.member)
            .field("round", &self.own.context.round)
            .field("step", &self.step())
            .finish_non_exhaustive()
    }
}
