//! The coordinator's signed word on where a tenant's privacy ledger stood.
//!
//! A ledger that was cut back to an older copy is whole in itself; only somebody else can tell. The
//! coordinator signs every head that an agent reports, and the agent keeps the newest receipt: from
//! then on a ledger that is older shows itself, with or without a coordinator at hand.

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    id::TenantId,
    message::LedgerHead,
    time::Timestamp,
    transport::{
        signature::{self, Signature, SignatureError, Signer, Usage},
        tls::Identity,
    },
};

/// Separates receipts from all other statements of a coordinator.
const CONTEXT: &str = "privacy ledger receipt, version 1";

/// A countersigned ledger head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Whose ledger.
    pub tenant: TenantId,
    /// Where it stood.
    pub head: LedgerHead,
    /// When the coordinator signed.
    pub signed: Timestamp,
    /// The coordinator's certificate, DER.
    #[serde(with = "signature::text")]
    pub certificate: Vec<u8>,
    /// Over all of the above but the certificate.
    pub signature: Signature,
}

/// Says why a receipt proves nothing.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReceiptError {
    /// It is about somebody else's ledger.
    #[error("the receipt is for the ledger of tenant {found}, not of {expected}")]
    Tenant {
        /// Whose it should be.
        expected: TenantId,
        /// Whose it is.
        found: TenantId,
    },
    /// The coordinator of this authority did not sign it.
    #[error("the receipt does not come from the coordinator that this agent is enrolled with")]
    Signature(#[from] SignatureError),
}

impl Receipt {
    /// Countersigns a head.
    ///
    /// - `identity`: the coordinator's; its leaf is issued by the authority directly
    ///
    /// # Errors
    /// [`SignatureError`] if the key cannot sign.
    pub fn sign(
        identity: &Identity,
        tenant: TenantId,
        head: LedgerHead,
        signed: Timestamp,
    ) -> Result<Self, SignatureError> {
        let signature = signature::sign(identity, CONTEXT, &statement(&tenant, head, signed))?;
        let certificate = identity.chain.first().map(|leaf| leaf.to_vec()).unwrap_or_default();
        Ok(Self { tenant, head, signed, certificate, signature })
    }

    /// Checks that a coordinator of `authority` signed this for `tenant`. The certificate needs to
    /// have been valid at that time only, so an old receipt keeps its worth.
    ///
    /// # Errors
    /// [`ReceiptError`] naming what does not hold.
    pub fn verify(
        &self,
        authority: &CertificateDer<'static>,
        tenant: &TenantId,
    ) -> Result<(), ReceiptError> {
        if self.tenant != *tenant {
            let (expected, found) = (tenant.clone(), self.tenant.clone());
            return Err(ReceiptError::Tenant { expected, found });
        }
        let chain = [CertificateDer::from(self.certificate.clone())];
        let signer = Signer { authority, chain: &chain, usage: Usage::Server, at: self.signed };
        let statement = statement(&self.tenant, self.head, self.signed);
        Ok(signature::verify(&signer, CONTEXT, &statement, &self.signature)?)
    }
}

/// What is signed: the name with its length, then fixed-width little-endian fields.
fn statement(tenant: &TenantId, head: LedgerHead, signed: Timestamp) -> Vec<u8> {
    let name = tenant.as_str().as_bytes();
    let mut bytes = vec![name.len() as u8];
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(&head.sequence.to_le_bytes());
    bytes.extend_from_slice(head.hash.as_bytes());
    bytes.extend_from_slice(&signed.0.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id::Digest, transport::signature::tests::World};

    #[test]
    fn every_field_is_covered_and_only_coordinators_may_sign() {
        let world = World::new();
        let coordinator = world.coordinator();
        let alpha: TenantId = "alpha".parse().expect("valid");
        let head = LedgerHead { sequence: 3, hash: Digest::of(b"three") };
        let signed = crate::transport::signature::tests::NOW;
        let receipt = Receipt::sign(&coordinator, alpha.clone(), head, signed).expect("signs");
        receipt.verify(&world.authority, &alpha).expect("holds");
        let text = serde_json::to_string(&receipt).expect("serialises");
        assert_eq!(serde_json::from_str::<Receipt>(&text).expect("parses"), receipt);

        let beta: TenantId = "beta".parse().expect("valid");
        let error = receipt.verify(&world.authority, &beta).expect_err("another tenant");
        assert!(matches!(error, ReceiptError::Tenant { .. }), "{error}");
        let forged = [
            Receipt { tenant: beta.clone(), ..receipt.clone() },
            Receipt { head: LedgerHead { sequence: 2, ..head }, ..receipt.clone() },
            Receipt { head: LedgerHead { hash: Digest::of(b"x"), ..head }, ..receipt.clone() },
            Receipt { signed: Timestamp(signed.0 + 1), ..receipt.clone() },
            Receipt::sign(&world.agent(), alpha.clone(), head, signed).expect("signs"),
            Receipt::sign(&World::new().coordinator(), alpha, head, signed).expect("signs"),
        ];
        for receipt in forged {
            let error = receipt.verify(&world.authority, &receipt.tenant).expect_err("forged");
            assert!(matches!(error, ReceiptError::Signature(_)), "{error}");
        }
    }
}
