//! Answers that change nothing but who is listed where.

use serde::{Deserialize, Serialize};
use tributary_privacy::secagg::Blob;
use tributary_protocol::id::{Digest, TenantId};

use super::Input;

/// What a cohort member answered while the round waits for others: small enough to be stored by
/// itself, where the record of a large cohort would be written again for each of its members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// It starts training.
    Accepted {
        /// Who.
        tenant: TenantId,
        /// What its signatures are verified with, where the round needs that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        credential: Option<Blob>,
    },
    /// Its update is durable at the coordinator.
    Reported {
        /// Who.
        tenant: TenantId,
        /// The update.
        update: Digest,
    },
}

impl Answer {
    /// The answer that an input is, if it is one.
    pub(super) fn of(input: &Input) -> Option<Self> {
        Some(match input.clone() {
            Input::Accepted { tenant, credential } => Self::Accepted { tenant, credential },
            Input::Reported(tenant, update) => Self::Reported { tenant, update },
            Input::Available { .. } | Input::Connected(_) | Input::Declined(..) => return None,
        })
    }

    /// Whose it is.
    #[must_use]
    pub const fn tenant(&self) -> &TenantId {
        match self {
            Self::Accepted { tenant, .. } | Self::Reported { tenant, .. } => tenant,
        }
    }
}

impl From<Answer> for Input {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Accepted { tenant, credential } => Self::Accepted { tenant, credential },
            Answer::Reported { tenant, update } => Self::Reported(tenant, update),
        }
    }
}
