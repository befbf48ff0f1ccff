//! The table `[api.oidc]` of `coordinator.toml`.

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::access::Role;

/// The largest difference between clocks that is allowed for.
const CLOCK_SKEW_MAX_S: u64 = 300;

/// The longest life of a token that can be allowed: a day.
const LIFETIME_LIMIT_S: u64 = 86_400;

/// An OpenID Connect issuer whose tokens are accepted beside the coordinator's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcConfig {
    /// The issuer, exactly as its tokens name it; `https`, or `http` on loopback.
    pub issuer: String,
    /// What tokens must name in `aud`.
    pub audience: String,
    /// Which value of the role claim gives which role; the first that a token has counts.
    pub roles: Vec<RoleRule>,
    /// The claim with the values; dots go into tables, as `realm_access.roles`. Default `roles`.
    #[serde(default = "role_claim_default")]
    pub role_claim: String,
    /// The claim with the tenants of a tenant admin. Default `tenants`.
    #[serde(default = "tenants_claim_default")]
    pub tenants_claim: String,
    /// The claim that names people in logs; take one that they cannot change. Default `sub`.
    #[serde(default = "name_claim_default")]
    pub name_claim: String,
    /// The dashboard's client at the issuer; with it the dashboard offers to sign in there, and ID
    /// tokens of this client are accepted too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// File with the client's secret, if the issuer gave it one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret_file: Option<PathBuf>,
    /// What the dashboard asks for. Default `openid profile`.
    #[serde(default = "scope_default")]
    pub scope: String,
    /// By how much the issuer's clock may differ, in seconds, at most 300. Default 30.
    #[serde(default = "clock_skew_default")]
    pub clock_skew_s: u64,
    /// The longest life of a token, in seconds, at most a day. Default 12 hours.
    #[serde(default = "lifetime_max_default")]
    pub lifetime_max_s: u64,
    /// PEM file of the authority that signed the issuer's TLS certificate, if it is not a public one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<PathBuf>,
}

/// A value of the role claim, and the role that it gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleRule {
    /// The value.
    pub value: String,
    /// The role.
    pub role: Role,
}

fn role_claim_default() -> String {
    "roles".to_owned()
}

fn tenants_claim_default() -> String {
    "tenants".to_owned()
}

fn name_claim_default() -> String {
    "sub".to_owned()
}

fn scope_default() -> String {
    "openid profile".to_owned()
}

const fn clock_skew_default() -> u64 {
    30
}

const fn lifetime_max_default() -> u64 {
    12 * 3600
}

/// Says what of `[api.oidc]` cannot work.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OidcConfigError {
    /// Tokens and keys would cross a network in the clear.
    #[error("`api.oidc.issuer` is {issuer:?}; it must be an https address, or http on loopback")]
    Issuer {
        /// What was given.
        issuer: String,
    },
    /// A key that must say something is empty.
    #[error("`api.oidc.{key}` is empty")]
    Empty {
        /// Which.
        key: &'static str,
    },
    /// A role that no token can have.
    #[error(
        "`api.oidc.roles` gives {value:?} the role {role}; it can be viewer, operator, tenant-admin or auditor"
    )]
    Role {
        /// The value.
        value: String,
        /// The role.
        role: Role,
    },
    /// A number outside its range.
    #[error("`api.oidc.{key}` is {value}; it must be {range}")]
    OutOfRange {
        /// Which.
        key: &'static str,
        /// What was given.
        value: u64,
        /// What would work.
        range: &'static str,
    },
    /// A file that is named cannot be used.
    #[error("`api.oidc.{key}` names {path}, which cannot be used")]
    File {
        /// Which key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl OidcConfig {
    pub(super) fn validate(&self) -> Result<(), OidcConfigError> {
        if !is_guarded(&self.issuer) {
            return Err(OidcConfigError::Issuer { issuer: self.issuer.clone() });
        }
        let texts = [
            ("audience", self.audience.as_str()),
            ("role_claim", &self.role_claim),
            ("tenants_claim", &self.tenants_claim),
            ("name_claim", &self.name_claim),
            ("scope", &self.scope),
            ("client_id", self.client_id.as_deref().unwrap_or("absent")),
        ];
        if let Some((key, _)) = texts.into_iter().find(|(_, text)| text.trim().is_empty()) {
            return Err(OidcConfigError::Empty { key });
        }
        if self.roles.is_empty() {
            return Err(OidcConfigError::Empty { key: "roles" });
        }
        let wrong = |rule: &&RoleRule| !Role::GRANTABLE.contains(&rule.role);
        if let Some(RoleRule { value, role }) = self.roles.iter().find(wrong) {
            return Err(OidcConfigError::Role { value: value.clone(), role: *role });
        }
        let numbers = [
            ("clock_skew_s", self.clock_skew_s, self.clock_skew_s <= CLOCK_SKEW_MAX_S, "0 to 300"),
            (
                "lifetime_max_s",
                self.lifetime_max_s,
                (60..=LIFETIME_LIMIT_S).contains(&self.lifetime_max_s),
                "60 to 86400",
            ),
        ];
        match numbers.into_iter().find(|&(_, _, holds, _)| !holds) {
            Some((key, value, _, range)) => Err(OidcConfigError::OutOfRange { key, value, range }),
            None => Ok(()),
        }
    }
}

/// Whether an address is `https`, or `http` on this machine.
pub(super) fn is_guarded(address: &str) -> bool {
    let host = |rest: &str| {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        // Names before an @ are not the host.
        (!authority.is_empty() && !authority.contains('@')).then(|| authority.to_owned())
    };
    if let Some(rest) = address.strip_prefix("https://") {
        return host(rest).is_some();
    }
    let Some(authority) = address.strip_prefix("http://").and_then(host) else { return false };
    let name = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
