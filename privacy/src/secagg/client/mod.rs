//! One agent in one round, as a value that is stepped by hand.

use std::fmt;

use super::{
    ClientMessage, Finding, Identity, Member, PeerKeys, RoundContext, SecaggError, ServerMessage,
    Step, bytes::Blob,
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
/// Its secrets live in memory only and are zeroised: a process that crashed has dropped out. Within
/// a process, the same request again (after a reconnect) gives the same answer; a different one is
/// an attack and is refused by name. After any error, stop and treat the round as lost.
pub struct Client {
    context: RoundContext,
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
        _member: Member,
        _credential: Blob,
        _seed: [u8; 32],
    ) -> Result<Self, SecaggError> {
        Ok(Self { context })
    }

    /// The terms of the round.
    #[must_use]
    pub const fn context(&self) -> &RoundContext {
        &self.context
    }

    /// Where this agent stands.
    #[must_use]
    pub fn step(&self) -> Step {
        unimplemented!("skeleton")
    }

    /// The first message; may be asked for again. Send it before anything else.
    pub fn advertise(&mut self, _identity: &dyn Identity) -> ClientMessage {
        unimplemented!("skeleton")
    }

    /// Takes a message of the coordinator.
    ///
    /// # Errors
    /// [`SecaggError`] names the attack. Nothing further must be sent in this round.
    pub fn handle(
        &mut self,
        _message: ServerMessage,
        _identity: &dyn Identity,
        _peers: &dyn PeerKeys,
    ) -> Result<ClientOutput, SecaggError> {
        unimplemented!("skeleton")
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
    pub fn mask(&mut self, _update: &mut [u32]) -> Result<(), SecaggError> {
        unimplemented!("skeleton")
    }

    /// What was wrong with other members so far, without harm to the round.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &[]
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Client").field("round", &self.context.round).finish_non_exhaustive()
    }
}
