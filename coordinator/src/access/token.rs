//! Access tokens: `NAME.SECRET`, 32 bytes of entropy, kept as a hash.

use std::{collections::BTreeSet, fmt, str::FromStr};

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tributary_protocol::{
    id::{Digest, IdError, TenantId, TokenName},
    time::Timestamp,
};

use super::Role;
use crate::store::{Batch, Table};

/// Says why a token, or the wish for one, is not usable.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AccessTokenError {
    /// Not `NAME.SECRET`.
    #[error("this is not an access token; it looks like NAME.SECRET")]
    Form,
    /// The part before the point is not a name.
    #[error(transparent)]
    Name(#[from] IdError),
    /// No such role.
    #[error("there is no role {text:?}; use viewer, operator, tenant-admin or auditor")]
    Role {
        /// What was given.
        text: String,
    },
    /// Tenants and role do not fit.
    #[error("a tenant-admin needs the tenants that it looks after; other roles have none")]
    Tenants,
    /// The life time cannot be.
    #[error("a token lives for 1 to {max} days, not {days}")]
    Lifetime {
        /// What was given.
        days: u32,
        /// The longest.
        max: u32,
    },
}

/// A token as its holder has it.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken {
    /// Its name.
    pub name: TokenName,
    secret: [u8; 32],
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AccessToken").field("name", &self.name).finish_non_exhaustive()
    }
}

impl AccessToken {
    /// - `secret`: fresh from the operating system's entropy
    #[must_use]
    pub const fn new(name: TokenName, secret: [u8; 32]) -> Self {
        Self { name, secret }
    }

    /// The text for the holder; shown once.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{}.{}", self.name, BASE64URL_NOPAD.encode(&self.secret))
    }
}

impl FromStr for AccessToken {
    type Err = AccessTokenError;

    fn from_str(text: &str) -> Result<Self, AccessTokenError> {
        let (name, secret) = text.split_once('.').ok_or(AccessTokenError::Form)?;
        let secret = BASE64URL_NOPAD.decode(secret.as_bytes()).ok();
        let secret =
            secret.and_then(|bytes| bytes.try_into().ok()).ok_or(AccessTokenError::Form)?;
        Ok(Self { name: TokenName::new(name)?, secret })
    }
}

/// The coordinator's side of a token, durably; the secret itself is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// Its name.
    pub name: TokenName,
    /// What it may do.
    pub role: Role,
    /// The only tenants that it may see, for a tenant admin.
    pub tenants: BTreeSet<TenantId>,
    /// BLAKE3 of the secret: 32 random bytes need no slow hash.
    secret_hash: Digest,
    /// When it was made.
    pub created: Timestamp,
    /// When it stops to work.
    pub expires: Timestamp,
    /// When it was revoked.
    pub revoked: Option<Timestamp>,
}

impl TokenRecord {
    /// The longest life, in days.
    pub const LIFETIME_DAYS_MAX: u32 = 730;

    /// The record of a new token.
    ///
    /// - `days`: how long it works
    ///
    /// # Errors
    /// [`AccessTokenError`] if role and tenants do not fit, or the life time cannot be.
    pub fn new(
        token: &AccessToken,
        role: Role,
        tenants: BTreeSet<TenantId>,
        days: u32,
        now: Timestamp,
    ) -> Result<Self, AccessTokenError> {
        let max = Self::LIFETIME_DAYS_MAX;
        if !(1..=max).contains(&days) {
            return Err(AccessTokenError::Lifetime { days, max });
        }
        if !Role::GRANTABLE.contains(&role) {
            return Err(AccessTokenError::Role { text: role.to_string() });
        }
        if (role == Role::TenantAdmin) == tenants.is_empty() {
            return Err(AccessTokenError::Tenants);
        }
        let expires = now.after_ms(u64::from(days) * 24 * 60 * 60 * 1000);
        let (name, secret_hash) = (token.name.clone(), Digest::of(&token.secret));
        Ok(Self { name, role, tenants, secret_hash, created: now, expires, revoked: None })
    }

    /// Whether the token is this one's; takes the same time for every wrong secret.
    #[must_use]
    pub fn matches(&self, token: &AccessToken) -> bool {
        // The comparison of `blake3::Hash` takes constant time.
        blake3::hash(&token.secret) == blake3::Hash::from_bytes(*self.secret_hash.as_bytes())
    }

    /// Whether it works at all.
    #[must_use]
    pub fn is_active(&self, now: Timestamp) -> bool {
        self.revoked.is_none() && now < self.expires
    }

    /// Adds the record to a batch.
    pub fn put(&self, batch: &mut Batch) {
        batch.put(Table::Tokens, self.name.as_str(), self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000);

    fn token(secret: u8) -> AccessToken {
        AccessToken::new(TokenName::new("grafana").expect("valid"), [secret; 32])
    }

    #[test]
    fn the_text_round_trips_and_only_its_secret_matches() {
        let text = token(7).reveal();
        assert_eq!(text.parse(), Ok(token(7)));
        let record =
            TokenRecord::new(&token(7), Role::Viewer, BTreeSet::new(), 90, NOW).expect("valid");
        assert!(record.matches(&token(7)) && !record.matches(&token(8)));
        let kept = serde_json::to_string(&record).expect("serialises");
        let secret = text.split_once('.').expect("two parts").1;
        assert!(!kept.contains(secret) && !format!("{:?}", token(7)).contains(secret));
        for bad in ["", "x", "grafana", "grafana.", ".abc", "Grafana.AAAA", &format!("{text}A")] {
            assert!(bad.parse::<AccessToken>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn it_stops_at_its_expiry_and_when_revoked() {
        let mut record =
            TokenRecord::new(&token(7), Role::Auditor, BTreeSet::new(), 1, NOW).expect("valid");
        assert!(record.is_active(NOW.after_ms(86_399_999)));
        assert!(!record.is_active(NOW.after_ms(86_400_000)));
        record.revoked = Some(NOW);
        assert!(!record.is_active(NOW));
    }

    #[test]
    fn role_tenants_and_life_time_must_fit() {
        let alpha = BTreeSet::from([TenantId::new("alpha").expect("valid")]);
        let make = |role, tenants: &BTreeSet<_>, days| {
            TokenRecord::new(&token(1), role, tenants.clone(), days, NOW).err()
        };
        assert_eq!(make(Role::TenantAdmin, &alpha, 1), None);
        let none = BTreeSet::new();
        assert_eq!(make(Role::TenantAdmin, &none, 1), Some(AccessTokenError::Tenants));
        assert_eq!(make(Role::Operator, &alpha, 1), Some(AccessTokenError::Tenants));
        for days in [0, TokenRecord::LIFETIME_DAYS_MAX + 1] {
            let error = make(Role::Viewer, &none, days);
            assert!(matches!(error, Some(AccessTokenError::Lifetime { .. })), "{error:?}");
        }
        let error = make(Role::Administrator, &none, 1);
        assert!(matches!(error, Some(AccessTokenError::Role { .. })), "{error:?}");
        assert!("administrator".parse::<Role>().is_err());
    }
}
