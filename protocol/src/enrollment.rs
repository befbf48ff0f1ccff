//! The one-time enrolment token that `tenant add` prints.

use std::{fmt, str::FromStr};

use thiserror::Error;

use crate::id::{Digest, TenantId};

const PREFIX: &str = "tributary1";

/// What an operator hands to a tenant out of band: who they are, a one-time secret, and the
/// fingerprint by which the agent recognises the coordinator's authority on first contact.
#[derive(Clone, PartialEq, Eq)]
pub struct EnrollmentToken {
    /// The tenant it was issued for.
    pub tenant: TenantId,
    /// The one-time secret; the coordinator keeps only its hash.
    pub secret: [u8; 32],
    /// BLAKE3 of the authority's certificate, DER.
    pub authority: Digest,
}

/// Says why a text is not an enrolment token.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Wrong prefix, number of parts, alphabet or length.
    #[error(
        "this is not an enrolment token; copy the whole text that `tenant add` printed, starting with {PREFIX}."
    )]
    Malformed,
    /// The checksum does not fit: a character was lost or changed.
    #[error(
        "the enrolment token is damaged (checksum); copy the whole text that `tenant add` printed"
    )]
    Checksum,
}

impl fmt::Display for EnrollmentToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut body = [self.secret, *self.authority.as_bytes()].concat();
        let checksum = checksum(&self.tenant, &body);
        body.extend(checksum);
        write!(
            formatter,
            "{PREFIX}.{}.{}",
            self.tenant,
            data_encoding::BASE64URL_NOPAD.encode(&body)
        )
    }
}

impl fmt::Debug for EnrollmentToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("EnrollmentToken")
            .field("tenant", &self.tenant)
            .finish_non_exhaustive()
    }
}

impl FromStr for EnrollmentToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('.');
        let (Some(PREFIX), Some(tenant), Some(body), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed);
        };
        let tenant = TenantId::new(tenant).map_err(|_| TokenError::Malformed)?;
        let body = data_encoding::BASE64URL_NOPAD
            .decode(body.as_bytes())
            .map_err(|_| TokenError::Malformed)?;
        let (Some(secret), Some(authority), 68) = (
            body.first_chunk::<32>(),
            body.get(32..64).and_then(<[u8]>::first_chunk::<32>),
            body.len(),
        ) else {
            return Err(TokenError::Malformed);
        };
        if checksum(&tenant, &body[..64]) != body[64..] {
            return Err(TokenError::Checksum);
        }
        Ok(Self { tenant, secret: *secret, authority: Digest::from_bytes(*authority) })
    }
}

fn checksum(tenant: &TenantId, body: &[u8]) -> [u8; 4] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(tenant.as_str().as_bytes()).update(body);
    let mut checksum = [0; 4];
    checksum.copy_from_slice(&hasher.finalize().as_bytes()[..4]);
    checksum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn tokens_round_trip_and_damage_is_noticed(secret: [u8; 32], authority: [u8; 32], at in 18..100_usize) {
            let token = EnrollmentToken {
                tenant: TenantId::new("alpha").expect("valid"),
                secret,
                authority: Digest::from_bytes(authority),
            };
            let text = token.to_string();
            prop_assert_eq!(&text.parse::<EnrollmentToken>().expect("own text"), &token);
            let mut damaged = text.into_bytes();
            damaged[at] = if damaged[at] == b'A' { b'B' } else { b'A' };
            prop_assert!(String::from_utf8(damaged).expect("ascii").parse::<EnrollmentToken>().is_err());
        }

        #[test]
        fn any_text_is_refused_without_panic(text in ".{0,200}") {
            prop_assert!(text.parse::<EnrollmentToken>().is_err());
        }
    }
}
