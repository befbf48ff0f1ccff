//! Where a round stands.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tributary_protocol::{
    id::{Digest, TenantId},
    time::Timestamp,
};

use super::{Aggregation, Buffering, Configuration, KeyExchange, Reporting, Selection, Unmasking};

/// Where a round stands. Each phase owns only its own data; a transition consumes the old phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waiting for enough tenants.
    Selection(Selection),
    /// Invitations are out.
    Configuration(Configuration),
    /// The cohort of a secure aggregation makes keys and shares its secrets.
    KeyExchange(KeyExchange),
    /// Tenants train and upload.
    Reporting(Reporting),
    /// Tenants train from different bases; their updates fill a buffer.
    Buffering(Buffering),
    /// The masks of the sum are removed.
    Unmasking(Unmasking),
    /// The aggregate of these updates is to become the next model. Final.
    Committed {
        /// The update of each contributor.
        contributors: BTreeMap<TenantId, Digest>,
    },
    /// Given up; no update of it is ever used. Final.
    Abandoned {
        /// Why, for people.
        reason: String,
    },
}

impl Phase {
    /// The names of all phases, in the order in which a round may go through them.
    pub const NAMES: [&str; 8] = [
        "selection",
        "configuration",
        "key_exchange",
        "reporting",
        "buffering",
        "unmasking",
        "committed",
        "abandoned",
    ];

    /// Whether it needs to know who is there.
    pub(crate) const fn invites(&self) -> bool {
        matches!(self, Self::Selection(_) | Self::Buffering(_))
    }

    /// The phase's name in JSON, logs and metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Selection(_) => "selection",
            Self::Configuration(_) => "configuration",
            Self::KeyExchange(_) => "key_exchange",
            Self::Reporting(_) => "reporting",
            Self::Buffering(_) => "buffering",
            Self::Unmasking(_) => "unmasking",
            Self::Committed { .. } => "committed",
            Self::Abandoned { .. } => "abandoned",
        }
    }

    /// When the tenant's report is due, if the round still wants something of it.
    pub(crate) fn assignment_deadline(&self, tenant: &TenantId) -> Option<Timestamp> {
        match self {
            Self::Configuration(configuration) => configuration.assignment_deadline(tenant),
            Self::KeyExchange(exchange) => {
                let asked = exchange.aggregation().request(tenant).is_some();
                asked.then_some(exchange.deadline)
            }
            Self::Reporting(reporting) => reporting.assignment_deadline(tenant),
            Self::Buffering(buffering) => buffering.ticket(tenant).map(|ticket| ticket.due),
            Self::Unmasking(unmasking) => {
                let awaited = unmasking.aggregation().awaited().contains(tenant);
                awaited.then_some(unmasking.deadline)
            }
            Self::Selection(_) | Self::Committed { .. } | Self::Abandoned { .. } => None,
        }
    }

    /// Everyone who was asked; once committed, the contributors. Of an asynchronous round nobody:
    /// every tenant is told of its own ticket.
    pub(crate) fn invited(&self) -> BTreeSet<TenantId> {
        match self {
            Self::Configuration(configuration) => configuration.invited().cloned().collect(),
            Self::KeyExchange(exchange) => {
                exchange.aggregation().members().iter().cloned().collect()
            }
            Self::Reporting(reporting) => reporting.invited().cloned().collect(),
            Self::Unmasking(unmasking) => {
                unmasking.aggregation().members().iter().cloned().collect()
            }
            Self::Committed { contributors } => contributors.keys().cloned().collect(),
            Self::Selection(_) | Self::Buffering(_) | Self::Abandoned { .. } => BTreeSet::new(),
        }
    }

    /// The secure aggregation under way, if there is one.
    #[must_use]
    pub fn aggregation(&self) -> Option<&Aggregation> {
        match self {
            Self::KeyExchange(exchange) => Some(exchange.aggregation()),
            Self::Reporting(reporting) => reporting.aggregation(),
            Self::Unmasking(unmasking) => Some(unmasking.aggregation()),
            Self::Selection(_)
            | Self::Configuration(_)
            | Self::Buffering(_)
            | Self::Committed { .. }
            | Self::Abandoned { .. } => None,
        }
    }
}
