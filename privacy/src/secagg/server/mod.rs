//! The coordinator in one round, as a value that is stepped by hand and can be persisted.

use serde::{Deserialize, Serialize};

use super::{
    AbandonReason, ClientMessage, Finding, Member, MemberSet, PeerKeys, RoundContext, SecaggError,
    ServerMessage, Step,
    bytes::{Blob, ByteArray},
};
use crate::lattice::ModularSum;

/// The coordinator in one round of secure aggregation.
///
/// Serialise it after [`handle`](Self::handle), [`uploaded`](Self::uploaded) and
/// [`close_step`](Self::close_step), and make that durable before anybody is told; what was
/// restored goes on as if nothing had happened. It holds no secrets until agents unmask, and then
/// only those that the sum needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    context: RoundContext,
}

impl Server {
    /// Starts a round.
    ///
    /// - `context`: the terms; its cohort root must be that of `credentials`
    /// - `credentials`: of the cohort, in the order of the cohort list
    ///
    /// # Errors
    /// [`SecaggError::Context`].
    pub fn new(context: RoundContext, _credentials: Vec<Blob>) -> Result<Self, SecaggError> {
        Ok(Self { context })
    }

    /// The terms of the round.
    #[must_use]
    pub const fn context(&self) -> &RoundContext {
        &self.context
    }

    /// Which answers are awaited.
    #[must_use]
    pub fn step(&self) -> Step {
        unimplemented!("skeleton")
    }

    /// Members that may still answer in this step and have not: whom the round waits for.
    #[must_use]
    pub fn awaited(&self) -> MemberSet {
        unimplemented!("skeleton")
    }

    /// Members that answered in this step.
    #[must_use]
    pub fn answered(&self) -> MemberSet {
        unimplemented!("skeleton")
    }

    /// Whether closing the step now loses nobody, or (unmasking) nothing more is needed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        unimplemented!("skeleton")
    }

    /// Takes a message of a member; the same message again changes nothing.
    ///
    /// # Errors
    /// [`SecaggError`] names what is wrong; the state is then unchanged.
    pub fn handle(
        &mut self,
        _member: Member,
        _message: ClientMessage,
        _peers: &dyn PeerKeys,
    ) -> Result<(), SecaggError> {
        unimplemented!("skeleton")
    }

    /// Notes that a member's masked update is complete and verified. The caller adds exactly the
    /// updates of [`survivors`](Self::survivors) to the sum.
    ///
    /// - `packed_length`: bytes of the packed vector
    /// - `digest`: of the packed vector
    ///
    /// # Errors
    /// [`SecaggError::WrongLength`], [`SecaggError::TwoInputs`], [`SecaggError::OutOfTurn`],
    /// [`SecaggError::NotInCohort`]; the state is then unchanged.
    pub fn uploaded(
        &mut self,
        _member: Member,
        _packed_length: u64,
        _digest: ByteArray<32>,
    ) -> Result<(), SecaggError> {
        unimplemented!("skeleton")
    }

    /// Ends the step with those who answered; everybody else has dropped out.
    ///
    /// # Errors
    /// [`AbandonReason`] if too few are left; the round is then over.
    pub fn close_step(&mut self) -> Result<Step, AbandonReason> {
        unimplemented!("skeleton")
    }

    /// What `member` is to be told in this step, at first and after every reconnect; `None` if it
    /// has dropped out or nothing is to be told.
    #[must_use]
    pub fn message_for(&self, _member: Member) -> Option<ServerMessage> {
        unimplemented!("skeleton")
    }

    /// Whose updates are in the sum; `None` before the step of masked updates was closed.
    #[must_use]
    pub fn survivors(&self) -> Option<&MemberSet> {
        unimplemented!("skeleton")
    }

    /// Removes what is left of the masks from the sum of the survivors' updates.
    ///
    /// # Errors
    /// [`AbandonReason`] if it cannot be done; the sum is then unchanged.
    ///
    /// # Panics
    /// If `sum` has another dimension or modulus than the context, or the step is not
    /// [`Step::Done`]: mistakes of the caller.
    pub fn unmask(&self, _sum: &mut ModularSum) -> Result<(), AbandonReason> {
        unimplemented!("skeleton")
    }

    /// What was wrong with members so far, without harm to the round.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &[]
    }
}
