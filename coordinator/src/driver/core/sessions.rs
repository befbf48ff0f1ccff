//! The connected agents.

use tracing::{error, warn};
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    id::TenantId,
    message::{CoordinatorMessage, LedgerHead},
    receipt::Receipt,
    time::Timestamp,
};

use super::Core;
use crate::{
    audit::{Act, Actor, AuditEvent},
    driver::line::Line,
};

/// A connected agent.
pub(super) struct Session {
    number: u64,
    line: Box<dyn Line>,
}

impl Core {
    /// Records that a tenant's connection was refused, once until it connects.
    pub fn session_refused(&mut self, tenant: &TenantId, refusal: &Refusal) {
        if self.refused.insert((tenant.clone(), refusal.code.number())) {
            let actor = Actor::tenant(tenant);
            self.record(AuditEvent::refused(actor, Act::TenantConnect, tenant, refusal));
        }
    }

    /// Registers a tenant's connection, in place of an earlier one, and greets it.
    pub fn open_session(
        &mut self,
        tenant: &TenantId,
        line: Box<dyn Line>,
        head: LedgerHead,
        now: Timestamp,
    ) -> u64 {
        self.sessions_opened += 1;
        let number = self.sessions_opened;
        let session = Session { number, line };
        if let Some(earlier) = self.sessions.insert(tenant.clone(), session) {
            let refusal =
                Refusal::new(ErrorCode::Superseded, "a newer connection of this tenant took over");
            earlier.line.close(&refusal);
        }
        self.refused.retain(|(refused, _)| refused != tenant);
        self.scheduler.connected(tenant, head, now);
        number
    }

    /// Forgets a connection, unless a newer one took its place.
    pub fn close_session(&mut self, tenant: &TenantId, number: u64, now: Timestamp) {
        if self.sessions.get(tenant).is_some_and(|session| session.number == number) {
            self.sessions.remove(tenant);
            self.scheduler.disconnected(tenant, now);
        }
    }

    /// Closes the connection of a tenant whose certificate was replaced.
    pub fn drop_session(&mut self, tenant: &TenantId, refusal: &Refusal, now: Timestamp) {
        if let Some(session) = self.sessions.remove(tenant) {
            session.line.close(refusal);
            self.scheduler.disconnected(tenant, now);
        }
    }

    /// Countersigns a ledger head for a connected tenant.
    pub(super) fn send_receipt(
        &mut self,
        tenant: TenantId,
        head: LedgerHead,
        now: Timestamp,
        message: fn(Box<Receipt>) -> CoordinatorMessage,
    ) {
        if !self.sessions.contains_key(&tenant) {
            return;
        }
        match Receipt::sign(&self.identity, tenant.clone(), head, now) {
            Ok(receipt) => self.send(&tenant, message(Box::new(receipt))),
            Err(error) => {
                let refusal = Refusal::from_error(ErrorCode::Internal, &error);
                error!(%tenant, reason = refusal.message, "a ledger head cannot be signed");
                self.drop_session(&tenant, &refusal, now);
            }
        }
    }

    pub(super) fn send(&mut self, tenant: &TenantId, message: CoordinatorMessage) {
        let Some(session) = self.sessions.get(tenant) else { return };
        if !session.line.send(message) {
            warn!(%tenant, "the agent does not read its messages; closing its connection");
            let refusal = Refusal::new(ErrorCode::TimedOut, "control messages were not read");
            session.line.close(&refusal);
        }
    }
}
