//! One entry of the audit log: who did what, with which outcome.

use serde::{Deserialize, Serialize};
use tributary_privacy::chain::{ChainHead, ChainRecord, hex};
use tributary_protocol::{id::TenantId, time::Timestamp};

/// The longest `subject` or `detail`, in bytes; longer ones are cut.
const TEXT_BYTES_MAX: usize = 1024;

/// Who acts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Actor {
    /// A token's name, a tenant's id, or `coordinator`.
    pub name: String,
    /// A role of people, `tenant`, or `coordinator`.
    pub role: String,
}

impl Actor {
    /// The coordinator itself.
    #[must_use]
    pub fn coordinator() -> Self {
        Self { name: "coordinator".to_owned(), role: "coordinator".to_owned() }
    }

    /// A tenant's agent.
    #[must_use]
    pub fn tenant(tenant: &TenantId) -> Self {
        Self { name: tenant.to_string(), role: "tenant".to_owned() }
    }
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Act {
    /// The coordinator started.
    CoordinatorStart,
    /// The coordinator's own certificate was replaced.
    CoordinatorRenew,
    /// The coordinator was copied.
    CoordinatorBackup,
    /// The coordinator was restored from a copy.
    CoordinatorRestore,
    /// A tenant was admitted or invited anew.
    TenantAdd,
    /// What a tenant may do and use was changed.
    TenantSet,
    /// A tenant was stopped for a while.
    TenantSuspend,
    /// A suspended tenant may act again.
    TenantResume,
    /// A tenant was ended.
    TenantRevoke,
    /// An agent exchanged its token for a certificate.
    TenantEnroll,
    /// An agent exchanged its certificate for the next one.
    TenantRenew,
    /// An agent was refused a session.
    TenantConnect,
    /// A job was submitted.
    JobSubmit,
    /// A job was paused.
    JobPause,
    /// A paused job was resumed.
    JobResume,
    /// A job was ended by somebody.
    JobStop,
    /// A job's priority was changed.
    JobPriority,
    /// A model version was chosen for agents to serve.
    ModelPromote,
    /// Agents went back to the version before.
    ModelRollback,
    /// A model was handed out over the HTTP API.
    ModelExport,
    /// An access token was made.
    TokenAdd,
    /// An access token was revoked.
    TokenRevoke,
    /// A request was refused because of its role.
    Request,
    /// A tenant declined a round: its policy, budget or data say no.
    RoundDecline,
    /// A round became a model.
    RoundCommit,
    /// A round was given up.
    RoundAbandon,
    /// A job ended because its model cannot be made.
    JobFail,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was refused; nothing changed.
    Refused,
}

/// An act that is to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEvent {
    /// Who.
    pub actor: Actor,
    /// What.
    pub act: Act,
    /// On what: a tenant, a job, a round as `job/number`, a token.
    pub subject: String,
    /// How it ended.
    pub outcome: Outcome,
    /// More about it, for people.
    pub detail: String,
}

impl AuditEvent {
    /// An act that was done.
    #[must_use]
    pub fn done(actor: Actor, act: Act, subject: impl ToString, detail: impl ToString) -> Self {
        Self::new(actor, act, &subject, Outcome::Done, &detail)
    }

    /// An act that was refused, and why.
    #[must_use]
    pub fn refused(actor: Actor, act: Act, subject: impl ToString, reason: impl ToString) -> Self {
        Self::new(actor, act, &subject, Outcome::Refused, &reason)
    }

    fn new(
        actor: Actor,
        act: Act,
        subject: &dyn ToString,
        outcome: Outcome,
        detail: &dyn ToString,
    ) -> Self {
        let (subject, detail) = (bounded(subject.to_string()), bounded(detail.to_string()));
        Self { actor, act, subject, outcome, detail }
    }
}

/// Peers and people choose these texts, so their length is bounded.
fn bounded(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    }
    text
}

/// An act that was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditEntry {
    /// Counts from 1.
    pub sequence: u64,
    /// Hash of the entry before.
    #[serde(with = "hex")]
    pub previous: [u8; 32],
    /// When, in milliseconds since the Unix epoch; never decreases.
    pub recorded_ms: u64,
    /// Who.
    pub actor: Actor,
    /// What.
    pub act: Act,
    /// On what.
    pub subject: String,
    /// How it ended.
    pub outcome: Outcome,
    /// More about it, for people.
    pub detail: String,
}

impl AuditEntry {
    pub(super) fn new(head: ChainHead, recorded: Timestamp, event: AuditEvent) -> Self {
        let AuditEvent { actor, act, subject, outcome, detail } = event;
        let (sequence, previous, recorded_ms) = (head.sequence + 1, head.hash, recorded.0);
        Self { sequence, previous, recorded_ms, actor, act, subject, outcome, detail }
    }
}

impl ChainRecord for AuditEntry {
    fn sequence(&self) -> u64 {
        self.sequence
    }

    fn previous(&self) -> [u8; 32] {
        self.previous
    }
}
