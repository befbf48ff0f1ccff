//! The connection's part of a session.

use tributary_protocol::{
    error_code::Refusal,
    message::{AgentMessage, LedgerHead},
    time::Timestamp,
};

use super::{Backoff, Failure, GREETING_TIMEOUT_MS, Output, Session};

/// The longest that an agent stays away because the coordinator says so, in milliseconds: a day.
const REST_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// Where the connection stands.
#[derive(Debug)]
pub(super) enum Link {
    /// Waiting to try again.
    Disconnected {
        retry_at: Timestamp,
        attempt: u32,
        reason: String,
        /// Whether only somebody's action can heal it.
        lasting: bool,
    },
    /// The driver is connecting.
    Connecting { attempt: u32 },
    /// The hello is sent.
    Greeting { deadline: Timestamp, attempt: u32 },
    /// The coordinator welcomed the agent.
    Established,
}

impl Link {
    pub(super) const fn is_established(&self) -> bool {
        matches!(self, Self::Established)
    }

    const fn attempt(&self) -> u32 {
        match self {
            Self::Disconnected { attempt, .. }
            | Self::Connecting { attempt }
            | Self::Greeting { attempt, .. } => *attempt,
            Self::Established => 0,
        }
    }
}

impl Session {
    pub(super) fn connected(&mut self, now: Timestamp, ledger_head: LedgerHead) {
        let Link::Connecting { attempt } = self.link else { return };
        let agent_version = env!("CARGO_PKG_VERSION").to_owned();
        let isolation = self.isolation;
        let hello = AgentMessage::Hello { agent_version, ledger_head, isolation };
        self.outputs.push_back(Output::Send(hello));
        self.link = Link::Greeting { deadline: now.after_ms(GREETING_TIMEOUT_MS), attempt };
    }

    pub(super) fn lost(&mut self, now: Timestamp, failure: Failure) {
        if matches!(self.link, Link::Disconnected { .. }) {
            return;
        }
        let Failure { reason, lasting, jitter } = failure;
        let attempt = self.link.attempt();
        let wait_ms =
            if lasting { Backoff::lasting_ms(jitter) } else { Backoff::wait_ms(attempt, jitter) };
        tracing::warn!(reason, wait_ms, "not connected");
        let retry_at = now.after_ms(wait_ms);
        let attempt = attempt.saturating_add(1);
        self.link = Link::Disconnected { retry_at, attempt, reason, lasting };
        self.renewal_disconnected();
        let exchanges = &self.exchanges;
        self.rounds.disconnected(|key| exchanges.of(key).is_some());
    }

    /// Leaves its place to others, until the coordinator wants to see it again.
    pub(super) fn rest(&mut self, now: Timestamp, after_ms: u64) {
        if !self.link.is_established() {
            return;
        }
        let wait_ms = after_ms.min(REST_MS_MAX);
        tracing::info!(wait_ms, "the coordinator has no work now; coming back later");
        let reason = "the coordinator has no work now, and said when to come back".to_owned();
        let retry_at = now.after_ms(wait_ms);
        self.link = Link::Disconnected { retry_at, attempt: 0, reason, lasting: false };
        let exchanges = &self.exchanges;
        self.rounds.disconnected(|key| exchanges.of(key).is_some());
    }

    pub(super) fn compared(&mut self, outcome: Result<(), Refusal>) {
        if let Err(refusal) = outcome {
            tracing::error!(%refusal, "the ledger diverged; no round is trained");
            self.halted = Some(refusal);
        }
    }
}
