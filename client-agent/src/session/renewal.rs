//! Renewing the agent's certificate over its live connection.
//!
//! The connection goes on with the certificate that it showed; the new one is shown by the next, which
//! the session begins as soon as no round is open. A secure aggregation under way keeps its keys.

use std::sync::Arc;

use tributary_protocol::time::Timestamp;

use super::{Failure, Output, Session};
use crate::secagg::TenantKeys;

/// After a refusal, the coordinator is asked again after this long, in milliseconds.
const RETRY_MS: u64 = 60 * 60 * 1000;

/// Where the renewal stands.
#[derive(Debug, Default)]
pub(super) struct Renewal {
    /// When the certificate is to be renewed.
    due: Option<Timestamp>,
    /// Whether the coordinator was asked on this connection.
    asked: bool,
    /// The keys of the new certificate, until a connection shows it.
    renewed: Option<Arc<TenantKeys>>,
}

/// A certificate that is installed.
#[derive(Debug, Clone)]
pub struct Renewed {
    /// What the next connection shows and signs with.
    pub keys: Arc<TenantKeys>,
    /// When it is to be renewed in turn.
    pub due: Timestamp,
}

impl PartialEq for Renewed {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.keys, &other.keys) && self.due == other.due
    }
}

impl Session {
    /// Has the certificate renewed at `due`.
    #[must_use]
    pub fn renewing_at(mut self, due: Timestamp) -> Self {
        self.renewal.due = Some(due);
        self
    }

    /// When the coordinator is asked for the next certificate.
    pub(super) fn renewal_at(&self) -> Option<Timestamp> {
        let may_ask = self.link.is_established() && !self.renewal.asked && !self.stopping;
        self.renewal.due.filter(|_| may_ask && self.renewal.renewed.is_none())
    }

    /// Asks if it is time to, and shows a renewed certificate once no round is open.
    pub(super) fn renew(&mut self, now: Timestamp) {
        if self.renewal_at().is_some_and(|due| now >= due) {
            self.renewal.asked = true;
            self.outputs.push_back(Output::Renew);
        }
        let idle = self.rounds.is_empty() && self.link.is_established();
        if idle && self.renewal.renewed.is_some() {
            self.outputs.push_back(Output::Disconnect);
            let reason = "the renewed certificate is to be shown".to_owned();
            self.lost(now, Failure { reason, lasting: false, jitter: 0.0 });
        }
    }

    /// The certificate is installed, or why not.
    pub(super) fn renewed(&mut self, now: Timestamp, outcome: Result<Renewed, String>) {
        match outcome {
            Ok(Renewed { keys, due }) => {
                self.renewal = Renewal { due: Some(due), asked: false, renewed: Some(keys) };
            }
            Err(reason) => {
                tracing::error!(reason, "the certificate is not renewed");
                self.renewal.asked = false;
                self.renewal.due = Some(now.after_ms(RETRY_MS));
            }
        }
    }

    /// The next connection shows the newest certificate, and asks anew if no answer came.
    pub(super) fn renewal_disconnected(&mut self) {
        self.renewal.asked = false;
        if let Some(keys) = self.renewal.renewed.take() {
            self.keys = keys;
        }
    }
}
