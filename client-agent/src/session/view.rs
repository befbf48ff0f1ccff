//! What a session is doing, for people.

use serde::{Deserialize, Serialize};

use super::{RoundKey, Session, link::Link};

/// What the agent is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Not connected, with nothing else to do.
    Disconnected,
    /// Connecting, or waiting for the welcome.
    Connecting,
    /// Connected, with nothing to do.
    Idle,
    /// A round waits for the ledger or the worker.
    Checking,
    /// A round trains.
    Training,
    /// A release goes up, or waits for a connection.
    Uploading,
    /// The private adapter is trained.
    Adapting,
    /// The agent takes part in nothing until somebody acts.
    Halted,
    /// Serving what is on disk, without a coordinator.
    Serving,
}

/// A session at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// What it does.
    pub phase: Phase,
    /// More about it.
    pub detail: String,
    /// The round it works for.
    pub round: Option<RoundKey>,
    /// Why the last assignment was declined, or why the coordinator does not want the agent.
    pub refused: Option<String>,
    /// Whether the coordinator has welcomed the agent.
    pub connected: bool,
}

impl Session {
    /// What the session is doing now.
    #[must_use]
    pub fn view(&self) -> View {
        let (phase, detail, round) = self.activity();
        let refused = match &self.link {
            Link::Disconnected { reason, lasting: true, .. } => Some(reason.clone()),
            _ => self.halted.as_ref().or(self.refused.as_ref()).map(ToString::to_string),
        };
        View { phase, detail, round, refused, connected: self.link.is_established() }
    }

    fn activity(&self) -> (Phase, String, Option<RoundKey>) {
        if let Some(key) = self.rounds.training() {
            return (Phase::Training, "training on the tenant's records".to_owned(), Some(key));
        }
        if let Some(key) = self.rounds.examining() {
            return (Phase::Checking, "preparing the round".to_owned(), Some(key));
        }
        if let Some(key) = self.rounds.waiting_for_keys() {
            let detail = "exchanging keys with the cohort".to_owned();
            return (Phase::Checking, detail, Some(key));
        }
        if let Some(key) = self.rounds.uploading() {
            let detail = if self.link.is_established() {
                "sending the debited update"
            } else {
                "holding the debited update until the coordinator is back"
            };
            return (Phase::Uploading, detail.to_owned(), Some(key));
        }
        if let Some(base) = self.adapting.as_ref().map(|adapting| &adapting.base) {
            let detail = format!("adapting to version {} of {}", base.version, base.job);
            return (Phase::Adapting, detail, None);
        }
        match &self.link {
            Link::Disconnected { reason, .. } => {
                (Phase::Disconnected, format!("{reason}; trying again"), None)
            }
            Link::Connecting { .. } => (Phase::Connecting, "connecting".to_owned(), None),
            Link::Greeting { .. } => {
                (Phase::Connecting, "waiting for the welcome".to_owned(), None)
            }
            Link::Established => match &self.halted {
                Some(_) => (Phase::Halted, "no round is trained".to_owned(), None),
                None => self.waiting(),
            },
        }
    }

    fn waiting(&self) -> (Phase, String, Option<RoundKey>) {
        let reported = self.rounds.reported();
        match &self.wanted {
            Some(base) if reported.is_none() => {
                (Phase::Adapting, format!("a new base of {} waits", base.job), None)
            }
            _ => {
                let detail = match &reported {
                    Some(_) => "the update is in; waiting for the round to end",
                    None => "waiting for an assignment",
                };
                (Phase::Idle, detail.to_owned(), reported)
            }
        }
    }
}
