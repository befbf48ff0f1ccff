//! All access tokens that a running coordinator knows.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use thiserror::Error;
use tributary_protocol::{
    id::{Digest, TokenName},
    time::Timestamp,
};

use super::{AccessToken, Principal, Role, TokenRecord, oidc::OidcError};

/// Says why a token does not admit.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AccessError {
    /// No token, or not one of this coordinator.
    #[error("send an access token of this coordinator as `authorization: Bearer …`")]
    Unknown,
    /// It is too old.
    #[error("the access token {name} has expired; ask the administrator for a new one")]
    Expired {
        /// Which.
        name: TokenName,
    },
    /// A token of the issuer that does not admit.
    #[error(transparent)]
    Oidc(#[from] OidcError),
    /// It was revoked.
    #[error("the access token {name} was revoked; ask the administrator for a new one")]
    Revoked {
        /// Which.
        name: TokenName,
    },
}

impl AccessError {
    /// The code in the error document.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "unauthorized",
            Self::Oidc(error) => error.code(),
            Self::Expired { .. } => "access-token-expired",
            Self::Revoked { .. } => "access-token-revoked",
        }
    }
}

/// Tells who holds a token; clones share the tokens.
#[derive(Debug, Clone)]
pub struct Keyring {
    administrator: Digest,
    tokens: Arc<Mutex<BTreeMap<TokenName, TokenRecord>>>,
}

impl Keyring {
    /// - `administrator`: BLAKE3 of the folder's own token
    /// - `tokens`: as the store returns them
    #[must_use]
    pub fn new(administrator: Digest, tokens: Vec<TokenRecord>) -> Self {
        let tokens = tokens.into_iter().map(|record| (record.name.clone(), record)).collect();
        Self { administrator, tokens: Arc::new(Mutex::new(tokens)) }
    }

    /// Who holds the token that a request brought.
    ///
    /// # Errors
    /// [`AccessError`]; that a token has expired or was revoked is told only to who knows its secret.
    pub fn authenticate(
        &self,
        token: Option<&str>,
        now: Timestamp,
    ) -> Result<Principal, AccessError> {
        let token = token.ok_or(AccessError::Unknown)?;
        // The comparison of `blake3::Hash` takes constant time.
        let administrator = blake3::Hash::from_bytes(*self.administrator.as_bytes());
        if blake3::hash(token.as_bytes()) == administrator {
            let name = "admin".to_owned();
            return Ok(Principal { name, role: Role::Administrator, tenants: None });
        }
        let token: AccessToken = token.parse().map_err(|_| AccessError::Unknown)?;
        let tokens = self.locked();
        let record = tokens.get(&token.name).filter(|record| record.matches(&token));
        let record = record.ok_or(AccessError::Unknown)?;
        let name = record.name.clone();
        if record.revoked.is_some() {
            return Err(AccessError::Revoked { name });
        }
        if !record.is_active(now) {
            return Err(AccessError::Expired { name });
        }
        let tenants = (record.role == Role::TenantAdmin).then(|| record.tenants.clone());
        Ok(Principal { name: name.to_string(), role: record.role, tenants })
    }

    /// Every token, revoked and expired ones included, by name.
    #[must_use]
    pub fn tokens(&self) -> Vec<TokenRecord> {
        self.locked().values().cloned().collect()
    }

    /// One token.
    #[must_use]
    pub fn token(&self, name: &TokenName) -> Option<TokenRecord> {
        self.locked().get(name).cloned()
    }

    /// Takes over a record that is to become durable.
    pub(crate) fn insert(&self, record: TokenRecord) {
        self.locked().insert(record.name.clone(), record);
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<TokenName, TokenRecord>> {
        // No call leaves the map half changed.
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const NOW: Timestamp = Timestamp(1_000);

    #[test]
    fn each_token_admits_as_what_it_is_and_only_while_it_works() {
        let token = AccessToken::new(TokenName::new("eve").expect("valid"), [3; 32]);
        let alpha = BTreeSet::from(["alpha".parse().expect("valid")]);
        let record =
            TokenRecord::new(&token, Role::TenantAdmin, alpha.clone(), 1, NOW).expect("valid");
        let keyring = Keyring::new(Digest::of(b"root"), vec![record.clone()]);
        let holder = keyring.authenticate(Some(&token.reveal()), NOW).expect("admitted");
        assert_eq!((holder.role, holder.tenants), (Role::TenantAdmin, Some(alpha)));
        let root = keyring.authenticate(Some("root"), NOW).expect("admitted");
        assert_eq!((root.role, root.tenants), (Role::Administrator, None));
        let guess = AccessToken::new(token.name.clone(), [4; 32]).reveal();
        for wrong in [None, Some("eve"), Some(""), Some("root2"), Some(guess.as_str())] {
            assert_eq!(keyring.authenticate(wrong, NOW), Err(AccessError::Unknown), "{wrong:?}");
        }
        let late = NOW.after_ms(2 * 86_400_000);
        let expired = keyring.authenticate(Some(&token.reveal()), late);
        assert!(matches!(expired, Err(AccessError::Expired { .. })));
        let mut record = record;
        record.revoked = Some(NOW);
        keyring.insert(record);
        let revoked = keyring.authenticate(Some(&token.reveal()), NOW);
        assert!(matches!(revoked, Err(AccessError::Revoked { .. })));
        assert_eq!(keyring.authenticate(Some(&guess), late), Err(AccessError::Unknown));
    }
}
