//! Decides whether a token admits, and as whom. Pure: key and time are given.

use std::collections::BTreeSet;

use jsonwebtoken::{Algorithm, Header, Validation, decode, decode_header, errors::ErrorKind};
use serde_json::{Map, Value};
use tributary_protocol::{id::TenantId, time::Timestamp};

use super::{OidcConfig, OidcError, keys::PublishedKey};
use crate::access::{Principal, Role};

/// The longest token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// The longest name that is taken into logs, in characters.
const NAME_CHARS_MAX: usize = 128;

/// The algorithms that are accepted.
const ALGORITHMS: [Algorithm; 3] = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];

/// A token of which only the header was read.
#[derive(Debug)]
pub(super) struct Unverified<'a> {
    token: &'a str,
    header: Header,
}

impl<'a> Unverified<'a> {
    /// Reads the header.
    pub(super) fn parse(token: &'a str) -> Result<Self, OidcError> {
        if token.len() > TOKEN_BYTES_MAX || token.split('.').count() != 3 {
            return Err(OidcError::Malformed);
        }
        let header = decode_header(token).map_err(|_| unknown_algorithm(token))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(OidcError::Algorithm { algorithm: format!("{:?}", header.alg) });
        }
        // Access tokens and ID tokens; not a message that somebody signed out.
        if let Some(kind) = &header.typ {
            let bare = kind.to_ascii_lowercase();
            let bare = bare.strip_prefix("application/").unwrap_or(&bare);
            if !["jwt", "at+jwt"].contains(&bare) {
                return Err(OidcError::Kind { kind: printable(kind) });
            }
        }
        Ok(Self { token, header })
    }

    pub(super) fn key_id(&self) -> Option<&str> {
        self.header.kid.as_deref()
    }

    pub(super) const fn algorithm(&self) -> Algorithm {
        self.header.alg
    }

    /// Checks the signature first, then for whom and for when the token is.
    pub(super) fn verify(
        &self,
        key: &PublishedKey,
        config: &OidcConfig,
        now: Timestamp,
    ) -> Result<Claims, OidcError> {
        let mut validation = Validation::new(self.header.alg);
        // The claims are checked below, against the time that was given.
        (validation.validate_exp, validation.validate_aud) = (false, false);
        validation.required_spec_claims.clear();
        let data = decode::<Map<String, Value>>(self.token, key.key(), &validation);
        let claims = data.map_err(|error| match error.kind() {
            ErrorKind::InvalidAlgorithm => {
                OidcError::Algorithm { algorithm: format!("{:?}", self.header.alg) }
            }
            ErrorKind::Json(_) | ErrorKind::Base64(_) | ErrorKind::Utf8(_) => OidcError::Malformed,
            _ => OidcError::Signature,
        })?;
        let claims = Claims(claims.claims);
        claims.check(config, now)?;
        Ok(claims)
    }
}

/// Names an algorithm that the header has and nobody knows, `none` among them.
fn unknown_algorithm(token: &str) -> OidcError {
    let header = token.split('.').next().unwrap_or_default();
    let bytes = data_encoding::BASE64URL_NOPAD.decode(header.as_bytes()).unwrap_or_default();
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(Value::Object(header)) => match header.get("alg").and_then(Value::as_str) {
            Some(algorithm) => OidcError::Algorithm { algorithm: printable(algorithm) },
            None => OidcError::Malformed,
        },
        _ => OidcError::Malformed,
    }
}

/// The claims of a token that was issued for now and for this coordinator.
#[derive(Debug)]
pub(super) struct Claims(Map<String, Value>);

impl Claims {
    fn check(&self, config: &OidcConfig, now: Timestamp) -> Result<(), OidcError> {
        if self.text("iss") != Some(config.issuer.as_str()) {
            return Err(OidcError::Issuer);
        }
        let audience = texts(self.0.get("aud"));
        let named = |name: &str| audience.iter().any(|audience| audience == name);
        if !named(&config.audience) && !config.client_id.as_deref().is_some_and(named) {
            return Err(OidcError::Audience { expected: config.audience.clone() });
        }
        // An ID token for several parties says which of them asked for it.
        if let (false, Some(client), Some(party)) =
            (named(&config.audience), config.client_id.as_deref(), self.text("azp"))
            && party != client
        {
            return Err(OidcError::Audience { expected: config.audience.clone() });
        }
        let now_s = now.0 as f64 / 1000.0;
        let skew_s = config.clock_skew_s as f64;
        let (expires, issued) = (self.time("exp")?, self.time("iat")?);
        if now_s >= expires + skew_s {
            return Err(OidcError::Expired);
        }
        if issued > now_s + skew_s {
            return Err(OidcError::TooEarly);
        }
        if self.0.contains_key("nbf") && self.time("nbf")? > now_s + skew_s {
            return Err(OidcError::TooEarly);
        }
        let lifetime_max_s = config.lifetime_max_s;
        if expires - issued > lifetime_max_s as f64 {
            let lifetime_s = (expires - issued) as u64;
            return Err(OidcError::Lifetime { lifetime_s, lifetime_max_s });
        }
        Ok(())
    }

    /// Who holds the token.
    pub(super) fn principal(&self, config: &OidcConfig) -> Result<Principal, OidcError> {
        let values = texts(self.at(&config.role_claim));
        let rule = config.roles.iter().find(|rule| values.contains(&rule.value));
        let role = rule.map(|rule| rule.role);
        let role = role.ok_or_else(|| OidcError::NoRole { claim: config.role_claim.clone() })?;
        let tenants = match role {
            Role::TenantAdmin => Some(self.tenants(config)?),
            _ => None,
        };
        let unusable = || OidcError::Claim { claim: config.name_claim.clone() };
        let name = self.at(&config.name_claim).and_then(Value::as_str).map(printable);
        let name = name.filter(|name| !name.is_empty()).ok_or_else(unusable)?;
        // No access token's name has a colon, so nobody is taken for somebody else.
        Ok(Principal { name: format!("oidc:{name}"), role, tenants })
    }

    fn tenants(&self, config: &OidcConfig) -> Result<BTreeSet<TenantId>, OidcError> {
        let claim = || config.tenants_claim.clone();
        let names = texts(self.at(&config.tenants_claim));
        let tenants: Result<BTreeSet<_>, _> = names.into_iter().map(TenantId::new).collect();
        match tenants {
            Ok(tenants) if tenants.is_empty() => Err(OidcError::NoTenants { claim: claim() }),
            Ok(tenants) => Ok(tenants),
            Err(_) => Err(OidcError::Claim { claim: claim() }),
        }
    }

    /// A claim that is text.
    pub(super) fn text(&self, claim: &str) -> Option<&str> {
        self.0.get(claim).and_then(Value::as_str)
    }

    /// A claim that is a time, in seconds since the Unix epoch.
    fn time(&self, claim: &str) -> Result<f64, OidcError> {
        let time = self.0.get(claim).and_then(Value::as_f64);
        time.filter(|time| time.is_finite() && *time >= 0.0)
            .ok_or_else(|| OidcError::Claim { claim: claim.to_owned() })
    }

    /// A claim by its name or, failing that, by the path through tables.
    fn at(&self, path: &str) -> Option<&Value> {
        if let Some(value) = self.0.get(path) {
            return Some(value);
        }
        let (first, rest) = path.split_once('.')?;
        rest.split('.').try_fold(self.0.get(first)?, |value, part| value.get(part))
    }
}

/// One text, or a list of them; anything else counts for nothing.
fn texts(value: Option<&Value>) -> Vec<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match value {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(list)) => list.iter().filter_map(text).collect(),
        _ => Vec::new(),
    }
}

/// Fit for a line of a log: bounded, and without what moves the cursor.
fn printable(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).take(NAME_CHARS_MAX).collect()
}
