//! Long-term keys of tenants that share a process: no certificates stand between them.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use tributary_privacy::secagg::{Identity, PeerKeys};
use tributary_protocol::id::Digest;

/// A tenant's long-term key.
pub(crate) struct TenantKey(pub(crate) SigningKey);

impl Identity for TenantKey {
    fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).to_bytes().to_vec()
    }
}

/// Credentials are the public keys themselves.
pub(crate) struct PublicKeys;

impl PeerKeys for PublicKeys {
    fn name(&self, credential: &[u8]) -> Option<String> {
        Some(Digest::of(credential).to_string())
    }

    fn verify(&self, credential: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let key = credential.try_into().ok().and_then(|key| VerifyingKey::from_bytes(key).ok());
        let signature = Signature::from_slice(signature).ok();
        key.zip(signature)
            .is_some_and(|(key, signature)| key.verify_strict(message, &signature).is_ok())
    }
}
