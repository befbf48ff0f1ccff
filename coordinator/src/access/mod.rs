//! People and programs that use the HTTP API: roles, bearer tokens, rate limits.
//!
//! A token is shown once and kept only as a hash. Each has one role; a tenant admin's token names
//! its tenants. The token in the coordinator's folder, `admin.token`, belongs to whoever owns the
//! machine: it may do everything, and only it may add and revoke tokens.

mod keyring;
mod limit;
pub mod oidc;
mod token;

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use tributary_protocol::id::TenantId;

pub use self::{
    keyring::{AccessError, Keyring},
    limit::{RateLimit, RateLimits},
    token::{AccessToken, AccessTokenError, TokenRecord},
};
use crate::audit::Actor;

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Looks at jobs, tenants and models.
    Viewer,
    /// Runs jobs, admits and suspends tenants, promotes models.
    Operator,
    /// Looks after some tenants: sees them and the jobs, may suspend and revoke them.
    TenantAdmin,
    /// Reads everything, the audit log and the list of tokens included; changes nothing.
    Auditor,
    /// Owns the coordinator's folder; never given to a token.
    Administrator,
}

impl Role {
    /// The roles that a token can have.
    pub const GRANTABLE: [Self; 4] =
        [Self::Viewer, Self::Operator, Self::TenantAdmin, Self::Auditor];

    /// The name in JSON and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::TenantAdmin => "tenant-admin",
            Self::Auditor => "auditor",
            Self::Administrator => "administrator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Role {
    type Err = AccessTokenError;

    fn from_str(text: &str) -> Result<Self, AccessTokenError> {
        let named = Self::GRANTABLE.into_iter().find(|role| role.name() == text);
        named.ok_or_else(|| AccessTokenError::Role { text: text.chars().take(63).collect() })
    }
}

/// Who sent a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The token's name; `admin` for the folder's own.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The only tenants that it may see; all if `None`.
    pub tenants: Option<BTreeSet<TenantId>>,
}

impl Principal {
    /// Whether it may know about a tenant.
    #[must_use]
    pub fn may_see(&self, tenant: &TenantId) -> bool {
        self.tenants.as_ref().is_none_or(|tenants| tenants.contains(tenant))
    }

    /// How the audit log names it.
    #[must_use]
    pub fn actor(&self) -> Actor {
        Actor { name: self.name.clone(), role: self.role.name().to_owned() }
    }
}
