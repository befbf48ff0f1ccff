//! One-time enrolment: an invitation is a secret that works once, for one tenant, for a week.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tributary_protocol::{
    enrollment::EnrollmentToken,
    error_code::ErrorCode,
    id::{Digest, TenantId},
    message::LedgerHead,
    time::Timestamp,
};

use super::{Standing, TenantContext, TenantRecord};

/// How long a token works, in milliseconds: 7 days.
const TOKEN_LIFETIME_MS: u64 = 7 * 24 * 60 * 60 * 1000;

/// The coordinator's side of a token; the secret itself is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invitation {
    /// BLAKE3 of the secret.
    pub secret_hash: Digest,
    /// When it stops to work.
    pub expires: Timestamp,
    /// When it was used.
    pub used: Option<Timestamp>,
}

/// Says why a token does not admit.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EnrollmentError {
    /// No such tenant, or not this secret. The two are not told apart.
    #[error(
        "the enrolment token is not valid here; ask the operator for the output of `tenant add`"
    )]
    Unknown,
    /// Used before.
    #[error(
        "the enrolment token of tenant {tenant} was already used; ask the operator for a new one with `tenant add`"
    )]
    Used {
        /// Whose.
        tenant: TenantId,
    },
    /// Too old.
    #[error(
        "the enrolment token of tenant {tenant} has expired; ask the operator for a new one with `tenant add`"
    )]
    Expired {
        /// Whose.
        tenant: TenantId,
    },
}

impl EnrollmentError {
    /// The code for the peer.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Unknown => ErrorCode::TokenUnknown,
            Self::Used { .. } => ErrorCode::TokenUsed,
            Self::Expired { .. } => ErrorCode::TokenExpired,
        }
    }
}

/// Invites a tenant, or a known one anew: its old token and, once the new one is used, its old
/// certificate stop working. The ledger head stays acknowledged, what was used today stays used, and
/// a suspended tenant stays suspended; a revoked one starts anew.
#[must_use]
pub fn invite(
    context: TenantContext,
    known: Option<&TenantRecord>,
    secret: [u8; 32],
    authority: Digest,
    now: Timestamp,
) -> (TenantRecord, EnrollmentToken) {
    let token = EnrollmentToken { tenant: context.id.clone(), secret, authority };
    let invitation = Invitation {
        secret_hash: Digest::of(&secret),
        expires: now.after_ms(TOKEN_LIFETIME_MS),
        used: None,
    };
    let standing = match known.map(|known| &known.standing) {
        None | Some(Standing::Active | Standing::Revoked { .. }) => Standing::Active,
        Some(suspended @ Standing::Suspended { .. }) => suspended.clone(),
    };
    let record = TenantRecord {
        context,
        standing,
        usage: known.map(|known| known.usage).unwrap_or_default(),
        invitation,
        certificate: known.and_then(|known| known.certificate),
        next_certificate: known.and_then(|known| known.next_certificate),
        acknowledged_head: known.map_or(LedgerHead::EMPTY, |known| known.acknowledged_head),
        added: known.map_or(now, |known| known.added),
    };
    (record, token)
}

impl Invitation {
    /// Whether the secret admits `tenant` now.
    ///
    /// # Errors
    /// [`EnrollmentError`].
    pub fn check(
        &self,
        tenant: &TenantId,
        secret: &[u8; 32],
        now: Timestamp,
    ) -> Result<(), EnrollmentError> {
        // Comparing hashes tells an attacker nothing that a guess of the secret would not.
        if Digest::of(secret) != self.secret_hash {
            return Err(EnrollmentError::Unknown);
        }
        if self.used.is_some() {
            return Err(EnrollmentError::Used { tenant: tenant.clone() });
        }
        if now > self.expires {
            return Err(EnrollmentError::Expired { tenant: tenant.clone() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_works_once_in_time_for_its_secret() {
        let id = TenantId::new("alpha").expect("valid");
        let region = tributary_protocol::id::Region::new("eu").expect("valid");
        let now = Timestamp(1_000);
        let context = TenantContext::new(id.clone(), region);
        let (mut record, token) = invite(context, None, [7; 32], Digest::of(b"ca"), now);
        assert_eq!(record.invitation.check(&id, &token.secret, now), Ok(()));
        assert_eq!(record.invitation.check(&id, &[8; 32], now), Err(EnrollmentError::Unknown));
        let late = now.after_ms(TOKEN_LIFETIME_MS + 1);
        assert!(matches!(
            record.invitation.check(&id, &[7; 32], late),
            Err(EnrollmentError::Expired { .. })
        ));
        record.invitation.used = Some(now);
        assert!(matches!(
            record.invitation.check(&id, &[7; 32], now),
            Err(EnrollmentError::Used { .. })
        ));
    }
}
