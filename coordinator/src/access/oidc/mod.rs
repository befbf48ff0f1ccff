//! People who sign in at an OpenID Connect issuer, and programs with its tokens.
//!
//! A token admits if the issuer signed it with a key that it publishes, it is for this coordinator,
//! and it is of now. One of its claims says which role its holder has. Tokens of an issuer can be
//! used until they expire, by whoever has them: their life is bounded, and TLS guards them on the
//! way.
//!
//! | module | what it does |
//! |---|---|
//! | `claims` | decides whether a token admits, and as whom; pure |
//! | `keys` | which published keys there are, and when to ask again; stepped |
//! | `crypto` | RS256, ES256 and EdDSA signatures |
//! | `issuer` | asks the issuer: its own description, its keys, codes for tokens |

mod claims;
mod config;
mod crypto;
mod issuer;
mod keys;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use tracing::{info, warn};
use tributary_protocol::time::Timestamp;

use self::{
    claims::{Claims, Unverified},
    issuer::{Issuer, IssuerError},
    keys::{KeyCache, Lookup},
};
pub use self::{
    config::{OidcConfig, OidcConfigError, RoleRule},
    issuer::Exchange,
};
use super::Principal;

/// Says why a token of the issuer does not admit. The text is for whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OidcError {
    /// It is no signed token.
    #[error("the token is not a signed JWT")]
    Malformed,
    /// Signed in a way that is not accepted, or not at all.
    #[error("the token is signed with {algorithm}; RS256, ES256 and EdDSA are accepted")]
    Algorithm {
        /// What its header says.
        algorithm: String,
    },
    /// It is a token for something else.
    #[error("a token of type {kind} is not for an API")]
    Kind {
        /// What its header says.
        kind: String,
    },
    /// The issuer publishes no such key.
    #[error("the issuer has no key for this token; sign in again")]
    KeyUnknown,
    /// The signature is not the issuer's.
    #[error("the token's signature does not hold")]
    Signature,
    /// A claim that is needed is missing or of the wrong kind.
    #[error("the token's claim `{claim}` is missing or not usable")]
    Claim {
        /// Which.
        claim: String,
    },
    /// Somebody else issued it.
    #[error("the token is of another issuer")]
    Issuer,
    /// It is for somebody else.
    #[error("the token is not for this coordinator: its audience does not name {expected}")]
    Audience {
        /// What it should name.
        expected: String,
    },
    /// It is too old.
    #[error("the token has expired; sign in again")]
    Expired,
    /// It is of the future.
    #[error("the token is not valid yet; are the clocks right?")]
    TooEarly,
    /// It works for longer than is accepted.
    #[error("the token works for {lifetime_s} s; at most {lifetime_max_s} s are accepted")]
    Lifetime {
        /// How long it works.
        lifetime_s: u64,
        /// How long it may.
        lifetime_max_s: u64,
    },
    /// Its holder has no role here.
    #[error(
        "the token gives no role here; `{claim}` must have one of the values that are configured"
    )]
    NoRole {
        /// The claim that gives roles.
        claim: String,
    },
    /// A tenant admin without tenants.
    #[error("the token is of a tenant admin, but `{claim}` names no tenant")]
    NoTenants {
        /// The claim that names tenants.
        claim: String,
    },
    /// It answers another sign-in than the one that was begun.
    #[error("the issuer answered another sign-in; please begin again")]
    Nonce,
    /// The issuer refused a code, or gave no identity for it.
    #[error("the issuer refused: {reason}")]
    Refused {
        /// Its words, bounded.
        reason: String,
    },
    /// The issuer does not answer as it should.
    #[error("the issuer cannot be asked; try again later")]
    Unavailable,
}

impl OidcError {
    /// The code in the error document.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Expired => "oidc-token-expired",
            Self::Unavailable => "oidc-unavailable",
            _ => "oidc-token-invalid",
        }
    }
}

/// The issuer that is trusted; clones share its keys.
#[derive(Debug, Clone)]
pub struct Oidc {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: OidcConfig,
    issuer: Issuer,
    keys: Mutex<KeyCache>,
    /// Whoever holds it asks the issuer; others wait for the answer instead of asking too.
    asking: tokio::sync::Mutex<()>,
}

impl Oidc {
    /// Asks nobody yet: a coordinator starts although its issuer is away.
    ///
    /// - `folder`: what relative paths of the configuration start from
    ///
    /// # Errors
    /// [`OidcConfigError`].
    pub fn new(config: OidcConfig, folder: &std::path::Path) -> Result<Self, OidcConfigError> {
        config.validate()?;
        crypto::install();
        let issuer = Issuer::new(&config, folder)?;
        let (keys, asking) = (Mutex::default(), tokio::sync::Mutex::default());
        Ok(Self { shared: Arc::new(Shared { config, issuer, keys, asking }) })
    }

    /// What is configured.
    #[must_use]
    pub fn config(&self) -> &OidcConfig {
        &self.shared.config
    }

    /// Who holds a token.
    ///
    /// # Errors
    /// [`OidcError`]; nothing about the claims is said before the signature holds.
    pub async fn authenticate(&self, token: &str, now: Timestamp) -> Result<Principal, OidcError> {
        self.verified(token, now).await?.principal(self.config())
    }

    /// The claims of a token that admits.
    async fn verified(&self, token: &str, now: Timestamp) -> Result<Claims, OidcError> {
        let unverified = Unverified::parse(token)?;
        // A statement of its own: the keys are not locked while the issuer is asked.
        let known = self.keys().lookup(unverified.key_id(), unverified.algorithm(), now);
        let key = match known {
            Lookup::Found(key) => Some(key),
            Lookup::Missing => None,
            Lookup::Ask => {
                self.ask(now).await;
                // If the issuer is away, what it published not long ago still holds.
                self.keys().find(unverified.key_id(), unverified.algorithm(), now)
            }
        };
        let Some(key) = key else {
            let answered = self.keys().was_answered();
            return Err(if answered { OidcError::KeyUnknown } else { OidcError::Unavailable });
        };
        unverified.verify(&key, self.config(), now)
    }

    fn keys(&self) -> std::sync::MutexGuard<'_, KeyCache> {
        // No call leaves the keys half changed.
        self.shared.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the keys, unless somebody else just did.
    async fn ask(&self, now: Timestamp) {
        let _asking = self.shared.asking.lock().await;
        if !self.keys().may_ask(now) {
            return;
        }
        let shared = self.shared.clone();
        let answer = tokio::task::spawn_blocking(move || shared.issuer.keys()).await;
        match answer.expect("asking does not panic") {
            Ok(published) => {
                info!(issuer = self.config().issuer, keys = published.len(), "keys of the issuer");
                self.keys().answered(published, now);
            }
            Err(error) => {
                warn!(issuer = self.config().issuer, error = chain(&error), "the issuer's keys");
                self.keys().failed(now);
            }
        }
    }

    /// Where the dashboard sends people to sign in.
    ///
    /// # Errors
    /// [`OidcError::Unavailable`].
    pub async fn authorization_endpoint(&self) -> Result<String, OidcError> {
        let shared = self.shared.clone();
        let found =
            tokio::task::spawn_blocking(move || shared.issuer.authorization_endpoint()).await;
        found.expect("asking does not panic").map_err(|error| self.unavailable(&error))
    }

    /// Trades the code that the issuer gave the dashboard for an ID token that admits.
    ///
    /// # Errors
    /// [`OidcError`].
    pub async fn exchange(&self, exchange: Exchange, now: Timestamp) -> Result<String, OidcError> {
        let nonce = exchange.nonce.clone();
        let shared = self.shared.clone();
        let traded = tokio::task::spawn_blocking(move || shared.issuer.exchange(&exchange)).await;
        let token = traded.expect("asking does not panic").map_err(|error| match error {
            IssuerError::Refused { reason } => OidcError::Refused { reason },
            error => self.unavailable(&error),
        })?;
        let claims = self.verified(&token, now).await?;
        if claims.text("nonce") != Some(nonce.as_str()) {
            return Err(OidcError::Nonce);
        }
        claims.principal(self.config())?;
        Ok(token)
    }

    fn unavailable(&self, error: &IssuerError) -> OidcError {
        warn!(issuer = self.config().issuer, error = chain(error), "the issuer");
        OidcError::Unavailable
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
