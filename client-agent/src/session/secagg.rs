//! Secure aggregation's part of a session: from a fixed cohort to the shares that unmask its sum.
//!
//! Keys live in memory only. A process that restarts has lost them: it may send a debited release
//! again, byte for byte, but has no part in unmasking.

use std::collections::BTreeMap;

use tributary_privacy::secagg::{ClientMessage, ClientOutput, SecaggError, ServerMessage, Step};
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    message::{AgentMessage, BaseModel, SecaggPayload},
    time::Timestamp,
};

use super::{RoundKey, Seed, Session};
use crate::secagg::{Cohort, Exchange};

/// Every exchange of keys that the agent has a part in.
#[derive(Debug, Default)]
pub(super) struct Exchanges(BTreeMap<RoundKey, Exchange>);

impl Exchanges {
    pub(super) fn of(&self, key: &RoundKey) -> Option<&Exchange> {
        self.0.get(key)
    }

    /// Forgets the secrets of rounds that are over here.
    pub(super) fn retain(&mut self, is_open: impl Fn(&RoundKey) -> bool) {
        self.0.retain(|key, _| is_open(key));
    }

    /// Rounds of an older base than this one: the coordinator has committed them.
    fn outdated(&self, base: &BaseModel) -> Vec<RoundKey> {
        let outdated = self.0.iter().filter(|(key, exchange)| {
            key.job == base.job && exchange.base_version() < base.version
        });
        outdated.map(|(key, _)| key.clone()).collect()
    }
}

impl Session {
    /// The coordinator has fixed the cohort of a round.
    pub(super) fn begin(&mut self, now: Timestamp, key: &RoundKey, cohort: Cohort, seed: Seed) {
        if !self.link.is_established() {
            return;
        }
        if let Some(exchange) = self.exchanges.of(key) {
            if exchange.cohort() != cohort {
                let error = SecaggError::ConflictingRequests { step: Step::AdvertiseKeys };
                return self.cheated(key, &error);
            }
            let message = exchange.advertise(&self.keys, now);
            return self.answer(key, &message);
        }
        let Some(assignment) = self.rounds.joining(key) else {
            return self.lost_keys(key);
        };
        let policy = &self.policy.secagg;
        match Exchange::begin(assignment, cohort, policy, &self.keys, seed.0) {
            Ok(exchange) => {
                let message = exchange.advertise(&self.keys, now);
                self.exchanges.0.insert(key.clone(), exchange);
                self.answer(key, &message);
            }
            Err(refusal) => {
                self.rounds.remove(key);
                self.decline(key, refusal.refusal());
            }
        }
    }

    /// The coordinator asks for a later step.
    pub(super) fn secagg(&mut self, now: Timestamp, key: &RoundKey, payload: &SecaggPayload) {
        if !self.link.is_established() {
            return;
        }
        let message = match payload.decode::<ServerMessage>() {
            Ok(message) => message,
            Err(error) => {
                self.rounds.remove(key);
                return self
                    .decline(key, Refusal::from_error(ErrorCode::SecaggCheckFailed, &error));
            }
        };
        let Some(exchange) = self.exchanges.of(key) else {
            // A release that was debited before a restart goes up again without any keys.
            let resent =
                matches!(message, ServerMessage::Shares(_)) && self.rounds.is_released(key);
            if !resent {
                self.lost_keys(key);
            }
            return;
        };
        match exchange.handle(message, &self.keys, &self.policy.secagg, now) {
            Ok(ClientOutput::Send(message)) => self.answer(key, &message),
            Ok(ClientOutput::Mask) => self.rounds.queue(key, now),
            Err(error) => self.cheated(key, &error),
        }
    }

    /// A new base closes the rounds that led to it, also where the word of that was missed.
    pub(super) fn close_outdated(&mut self, base: &BaseModel) {
        for key in self.exchanges.outdated(base) {
            self.close(&key);
        }
    }

    fn answer(&mut self, key: &RoundKey, message: &ClientMessage) {
        let RoundKey { job, round } = key.clone();
        match SecaggPayload::encode(message) {
            Ok(payload) => self.send(AgentMessage::Secagg { job, round, payload }),
            Err(error) => {
                self.close(key);
                self.decline(key, Refusal::from_error(ErrorCode::Internal, &error));
            }
        }
    }

    fn lost_keys(&mut self, key: &RoundKey) {
        self.rounds.forget_unreleased(key);
        let text = "the agent restarted and has no keys of this round any more";
        self.decline(key, Refusal::new(ErrorCode::SecaggSessionLost, text));
    }

    /// A check failed: nothing more is said in this round, and what is in memory goes.
    fn cheated(&mut self, key: &RoundKey, error: &SecaggError) {
        tracing::error!(job = %key.job, round = %key.round, %error, "secure aggregation: a check failed");
        self.close(key);
        self.decline(key, Refusal::from_error(ErrorCode::SecaggCheckFailed, error));
    }
}
