//! The agent's side of the conversation, as a value that is stepped by hand.
//!
//! [`Session::handle`] takes what happened, [`Session::poll_output`] says what to do next,
//! [`Session::poll_timeout`] when to come back. Nothing here opens a socket, reads a clock or
//! touches a disk, so a test can step through any order of events.
//!
//! Rounds come first: an adaptation is cut short when an assignment arrives, and goes on when no
//! round is open. Where rounds follow each other so closely that this never happens, an adaptation
//! becomes *overdue* a minute after the last completed one (or after the first base was heard of).
//! It then starts as soon as the worker is free, before queued rounds, and neither an assignment nor
//! a newer base cuts it; its own time budget bounds it.
//!
//! Training goes on across a lost connection; its release is uploaded after the next welcome. An
//! [`Output::Upload`] follows only from an input that says the release is debited.

mod backoff;
mod event;
mod failures;
mod link;
mod renewal;
#[cfg(test)]
mod renewal_tests;
mod rounds;
mod secagg;
#[cfg(test)]
mod secagg_tests;
mod view;

use std::{collections::VecDeque, sync::Arc};

use tributary_protocol::{
    error_code::Refusal,
    id::{DatasetName, Digest},
    isolation::Isolation,
    message::{AgentMessage, BaseModel, CoordinatorMessage},
    time::Timestamp,
};

pub use self::{
    backoff::Backoff,
    event::{Failure, Input, Output, RoundKey, Seed, TrainingEnd, UploadEnd},
    renewal::Renewed,
    view::{Phase, View},
};
use self::{failures::Failures, link::Link, renewal::Renewal, rounds::Rounds, secagg::Exchanges};
use crate::{policy::Policy, secagg::TenantKeys};

/// How long the coordinator may take to answer the hello, in milliseconds.
const GREETING_TIMEOUT_MS: u64 = 15_000;

/// The longest that rounds may keep the agent from adapting to a base, in milliseconds.
const ADAPTATION_INTERVAL_MS_MAX: u64 = 60_000;

/// How long no round must have followed a new base before adapting to it starts, in milliseconds:
/// the next assignment of a running job comes at once, and would cut the adaptation short.
const ADAPTATION_DELAY_MS: u64 = 500;

/// One agent's session with its coordinator, across connections.
#[derive(Debug)]
pub struct Session {
    policy: Policy,
    configured: Vec<DatasetName>,
    keys: Arc<TenantKeys>,
    isolation: Isolation,
    link: Link,
    renewal: Renewal,
    rounds: Rounds,
    failures: Failures,
    exchanges: Exchanges,
    /// The newest base that is not fully adapted to.
    wanted: Option<BaseModel>,
    /// When the newest base has waited long enough for an assignment that would replace it.
    settled_at: Option<Timestamp>,
    adapting: Option<Adapting>,
    /// When the last adaptation was completed; before that, when the first base was heard of.
    adapted_at: Option<Timestamp>,
    /// Why this agent takes part in nothing until it is restarted.
    halted: Option<Refusal>,
    /// Why the last assignment was declined.
    refused: Option<Refusal>,
    stopping: bool,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Adapting {
    base: BaseModel,
    cut: bool,
}

impl Session {
    /// A session that connects at once.
    ///
    /// - `configured`: the datasets that the agent has files for
    /// - `keys`: what it signs with in secure aggregation, and whose word on other tenants counts
    #[must_use]
    pub fn new(policy: Policy, configured: Vec<DatasetName>, keys: Arc<TenantKeys>) -> Self {
        Self {
            policy,
            configured,
            keys,
            isolation: Isolation::default(),
            link: Link::Connecting { attempt: 0 },
            renewal: Renewal::default(),
            rounds: Rounds::default(),
            failures: Failures::default(),
            exchanges: Exchanges::default(),
            wanted: None,
            settled_at: None,
            adapting: None,
            adapted_at: None,
            halted: None,
            refused: None,
            stopping: false,
            outputs: VecDeque::from([Output::Connect]),
        }
    }

    /// Tells the coordinator how far this agent keeps its tenant apart; the lowest levels otherwise.
    #[must_use]
    pub const fn at_isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// The next thing to do; outputs are carried out in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let link = match &self.link {
            Link::Disconnected { retry_at, .. } => Some(*retry_at),
            Link::Greeting { deadline, .. } => Some(*deadline),
            Link::Connecting { .. } | Link::Established => None,
        };
        let work = self.overdue_at().into_iter().chain(self.quiet_at());
        link.into_iter().chain(self.renewal_at()).chain(work).min()
    }

    /// When adapting to the wanted base starts if no assignment comes.
    fn quiet_at(&self) -> Option<Timestamp> {
        let waits = self.wanted.is_some() && self.adapting.is_none() && self.rounds.leaves_time();
        self.settled_at.filter(|_| waits && !self.stopping)
    }

    /// When the wanted base will not wait for rounds any longer, if the worker is free then.
    fn overdue_at(&self) -> Option<Timestamp> {
        let waits =
            self.wanted.is_some() && self.adapting.is_none() && self.rounds.training().is_none();
        let since = self.adapted_at.filter(|_| waits && !self.stopping)?;
        Some(since.after_ms(ADAPTATION_INTERVAL_MS_MAX))
    }

    fn is_overdue(&self, now: Timestamp) -> bool {
        self.adapted_at.is_some_and(|since| now >= since.after_ms(ADAPTATION_INTERVAL_MS_MAX))
    }

    /// Acts on a moment that has come.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        match self.link {
            Link::Disconnected { retry_at, attempt, .. } if now >= retry_at => {
                self.link = Link::Connecting { attempt };
                self.outputs.push_back(Output::Connect);
            }
            Link::Greeting { deadline, .. } if now >= deadline => {
                self.outputs.push_back(Output::Disconnect);
                let reason = "the coordinator did not answer the hello".to_owned();
                self.lost(now, Failure { reason, lasting: false, jitter: 1.0 });
            }
            _ => {}
        }
        self.schedule(now);
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Timestamp, input: Input) {
        match input {
            Input::Connected { ledger_head } => self.connected(now, ledger_head),
            Input::ConnectionFailed(failure) => self.lost(now, failure),
            Input::Message(message) => self.message(now, message),
            Input::Begin { key, cohort, seed } => self.begin(now, &key, cohort, seed),
            Input::LedgerCompared(outcome) => self.compared(outcome),
            Input::Examined { key, outcome } => self.examined(&key, outcome),
            Input::Trained { key, outcome } => self.trained(now, &key, outcome),
            Input::Uploaded { key, outcome } => self.uploaded(now, &key, outcome),
            Input::Adapted { base, complete } => self.adapted(now, base, complete),
            Input::Renewed(outcome) => self.renewed(now, outcome),
            Input::Shutdown => self.shutdown(),
        }
        let rounds = &self.rounds;
        self.exchanges.retain(|key| rounds.contains(key));
        self.schedule(now);
    }

    fn message(&mut self, now: Timestamp, message: CoordinatorMessage) {
        match message {
            CoordinatorMessage::Welcome(receipt) => {
                if matches!(self.link, Link::Greeting { .. }) {
                    self.link = Link::Established;
                    self.outputs.push_back(Output::CompareLedger(receipt));
                }
            }
            CoordinatorMessage::Receipt(receipt) if self.link.is_established() => {
                self.outputs.push_back(Output::CompareLedger(receipt));
            }
            CoordinatorMessage::Receipt(_) => {}
            CoordinatorMessage::Configure(assignment) => self.configure(now, assignment),
            CoordinatorMessage::RoundClosed { job, round, abandoned } => {
                let key = RoundKey { job, round };
                tracing::info!(job = %key.job, round = %key.round, abandoned, "round closed");
                self.close(&key);
            }
            CoordinatorMessage::NewBase(base) => {
                self.close_outdated(&base);
                self.want(now, base);
            }
            CoordinatorMessage::Refused(refusal) => {
                self.outputs.push_back(Output::Disconnect);
                self.lost(now, Failure::refused(&refusal));
            }
            CoordinatorMessage::ComeBack { after_ms } => {
                self.outputs.push_back(Output::Disconnect);
                self.rest(now, after_ms);
            }
            CoordinatorMessage::Secagg { job, round, payload } => {
                self.secagg(now, &RoundKey { job, round }, &payload);
            }
            CoordinatorMessage::Renewal(answer) => self.outputs.push_back(Output::Install(answer)),
            // The driver adds the entropy that this needs, see `Input::Begin`.
            CoordinatorMessage::SecaggBegin { .. } => {}
        }
    }

    fn shutdown(&mut self) {
        self.stopping = true;
        if let Some(key) = self.rounds.training() {
            self.outputs.push_back(Output::CancelTraining(key));
        }
        self.cut_adapting();
        self.outputs.push_back(Output::Stop);
    }

    /// Notes a base to serve and adapt to; only the last announced counts, which may be an older version
    /// that was promoted.
    fn want(&mut self, now: Timestamp, base: BaseModel) {
        let known = self.wanted.as_ref().or(self.adapting.as_ref().map(|adapting| &adapting.base));
        if known == Some(&base) {
            return;
        }
        if !self.is_overdue(now) {
            self.cut_adapting();
        }
        self.adapted_at.get_or_insert(now);
        self.settled_at = Some(now.after_ms(ADAPTATION_DELAY_MS));
        self.wanted = Some(base);
    }

    fn adapted(&mut self, now: Timestamp, base: Digest, complete: bool) {
        let Some(adapting) = self.adapting.take_if(|adapting| adapting.base.file.digest == base)
        else {
            return;
        };
        if complete {
            self.adapted_at = Some(now);
        }
        // What was cut short goes on later, unless something newer has arrived meanwhile.
        if !complete && adapting.cut && self.wanted.is_none() {
            self.wanted = Some(adapting.base);
        }
    }

    fn cut_adapting(&mut self) {
        if let Some(adapting) = self.adapting.as_mut().filter(|adapting| !adapting.cut) {
            adapting.cut = true;
            self.outputs.push_back(Output::CancelAdapting);
        }
    }

    /// Starts whatever may start now: one thing at a time, rounds first.
    fn schedule(&mut self, now: Timestamp) {
        if self.stopping {
            return;
        }
        self.renew(now);
        if self.rounds.has_work() && !self.is_overdue(now) {
            self.cut_adapting();
        }
        if self.is_overdue(now) && self.rounds.training().is_none() {
            self.start_adapting();
        }
        if self.adapting.is_none() {
            for key in self.rounds.drop_expired(now) {
                self.decline_late(key);
            }
            if let Some((key, assignment, approved)) = self.rounds.start_next() {
                let exchange = self.exchanges.of(&key).cloned();
                self.outputs.push_back(Output::Train(assignment, approved, exchange));
            }
        }
        if self.link.is_established() {
            for release in self.rounds.take_uploads() {
                self.outputs.push_back(Output::Upload(release));
            }
        }
        if self.quiet_at().is_some_and(|quiet_at| now >= quiet_at) {
            self.start_adapting();
        }
    }

    fn start_adapting(&mut self) {
        if self.adapting.is_none()
            && let Some(base) = self.wanted.take()
        {
            self.outputs.push_back(Output::Adapt(base.clone()));
            self.adapting = Some(Adapting { base, cut: false });
        }
    }

    fn send(&mut self, message: AgentMessage) {
        if self.link.is_established() {
            self.outputs.push_back(Output::Send(message));
        }
    }
}

#[cfg(test)]
mod tests;
