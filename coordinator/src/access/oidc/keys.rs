//! The keys that the issuer publishes: which there are, and when to ask again. Stepped: asking and
//! the time are outside.

use std::fmt;

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde_json::Value;
use tributary_protocol::time::Timestamp;

/// A key that was withdrawn is used at most this long, while the issuer answers.
const FRESH_MS: u64 = 15 * 60_000;

/// While it does not answer, the keys of its last answer hold this long.
const STALE_MS: u64 = 24 * 60 * 60_000;

/// Unknown keys do not make the coordinator ask more often than this.
const PAUSE_MS: u64 = 30_000;

/// Keys of one issuer, at most.
const KEYS_MAX: usize = 64;

/// A key that verifies signatures of one algorithm.
#[derive(Clone)]
pub(super) struct PublishedKey {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl fmt::Debug for PublishedKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PublishedKey({:?}, {:?})", self.id, self.algorithm)
    }
}

impl PublishedKey {
    pub(super) const fn key(&self) -> &DecodingKey {
        &self.key
    }

    /// The keys of a published set that can be used here; others, and damaged ones, are left out.
    pub(super) fn all(set: &Value) -> Option<Vec<Self>> {
        let keys = set.get("keys")?.as_array()?;
        Some(keys.iter().filter_map(Self::new).take(KEYS_MAX).collect())
    }

    fn new(value: &Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                Algorithm::ES256
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                Algorithm::EdDSA
            }
            // Secrets, and curves that nothing here verifies.
            _ => return None,
        };
        let named = match algorithm {
            Algorithm::RS256 => KeyAlgorithm::RS256,
            Algorithm::ES256 => KeyAlgorithm::ES256,
            _ => KeyAlgorithm::EdDSA,
        };
        let fits = jwk.common.key_algorithm.is_none_or(|algorithm| algorithm == named);
        let signs = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
        let key = DecodingKey::from_jwk(&jwk).ok().filter(|_| fits && signs)?;
        Some(Self { id: jwk.common.key_id, algorithm, key })
    }
}

/// What is known of a token's key.
#[derive(Debug)]
pub(super) enum Lookup {
    /// This one.
    Found(PublishedKey),
    /// Ask the issuer, then look again.
    Ask,
    /// There is none, and the issuer was asked just now.
    Missing,
}

/// What the issuer last published.
#[derive(Debug, Default)]
pub(super) struct KeyCache {
    keys: Vec<PublishedKey>,
    answered: Option<Timestamp>,
    asked: Option<Timestamp>,
}

impl KeyCache {
    pub(super) fn lookup(&self, id: Option<&str>, algorithm: Algorithm, now: Timestamp) -> Lookup {
        let fresh = self.answered.is_some_and(|at| now.since(at).as_millis() < FRESH_MS.into());
        match self.find(id, algorithm, now) {
            Some(key) if fresh || !self.may_ask(now) => Lookup::Found(key),
            _ if self.may_ask(now) => Lookup::Ask,
            _ => Lookup::Missing,
        }
    }

    /// The key of a token: by its id, or, where the token names none, the only one that fits.
    pub(super) fn find(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
        now: Timestamp,
    ) -> Option<PublishedKey> {
        let usable = self.answered.is_some_and(|at| now.since(at).as_millis() < STALE_MS.into());
        let mut fitting = self.keys.iter().filter(|key| {
            usable && key.algorithm == algorithm && (id.is_none() || key.id.as_deref() == id)
        });
        let first = fitting.next()?;
        // Trying one key after another would hide which of them is meant.
        fitting.next().is_none().then(|| first.clone())
    }

    /// Whether the last question is long enough ago.
    pub(super) fn may_ask(&self, now: Timestamp) -> bool {
        self.asked.is_none_or(|at| now.since(at).as_millis() >= PAUSE_MS.into())
    }

    /// Whether the last question was answered.
    pub(super) fn was_answered(&self) -> bool {
        self.answered.is_some() && self.answered == self.asked
    }

    pub(super) fn answered(&mut self, keys: Vec<PublishedKey>, now: Timestamp) {
        self.keys = keys;
        (self.answered, self.asked) = (Some(now), Some(now));
    }

    pub(super) const fn failed(&mut self, now: Timestamp) {
        self.asked = Some(now);
    }
}
