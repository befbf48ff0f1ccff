//! Signatures with a certificate's own key, checked against the authority: statements that hold
//! outside of the connection on which they were made.

use rustls::{
    SignatureScheme,
    crypto::{WebPkiSupportedAlgorithms, ring},
    pki_types::{CertificateDer, UnixTime},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::tls::Identity;
use crate::time::Timestamp;

/// Every scheme that a certificate's key may sign with, the preferred one first.
const SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// A signature, and how it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The TLS number of the scheme.
    pub scheme: u16,
    /// As the scheme encodes it.
    #[serde(with = "text")]
    pub bytes: Vec<u8>,
}

/// What a certificate was issued for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// A coordinator.
    Server,
    /// A tenant's agent.
    Client,
}

/// Who is said to have signed.
#[derive(Debug, Clone, Copy)]
pub struct Signer<'a> {
    /// Whom the verifier trusts.
    pub authority: &'a CertificateDer<'static>,
    /// The signer's certificates, leaf first.
    pub chain: &'a [CertificateDer<'static>],
    /// What the leaf must have been issued for.
    pub usage: Usage,
    /// When the certificates must have been valid.
    pub at: Timestamp,
}

/// Says why a statement cannot be signed or does not hold.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// The key cannot sign.
    #[error("the key cannot sign")]
    Key(#[source] rustls::Error),
    /// The key is of a kind that no scheme here fits.
    #[error("the key fits no signature scheme of this protocol")]
    KeyKind,
    /// A certificate cannot be read, or does not come from the authority.
    #[error("the signer's certificate is not from the authority, or not for this purpose")]
    Certificate(#[source] webpki::Error),
    /// The scheme is unknown.
    #[error("signature scheme {scheme:#06x} is unknown")]
    Scheme {
        /// Its TLS number.
        scheme: u16,
    },
    /// The bytes were not signed by this key.
    #[error("the signature does not hold")]
    Forged(#[source] webpki::Error),
}

/// Signs `message` with the key of `identity`.
///
/// - `context`: names the kind of statement; one never passes for another
///
/// # Errors
/// [`SignatureError::Key`] or [`SignatureError::KeyKind`].
pub fn sign(
    identity: &Identity,
    context: &str,
    message: &[u8],
) -> Result<Signature, SignatureError> {
    let key = ring::sign::any_supported_type(&identity.key).map_err(SignatureError::Key)?;
    let signer = key.choose_scheme(&SCHEMES).ok_or(SignatureError::KeyKind)?;
    let bytes = signer.sign(&statement(context, message)).map_err(SignatureError::Key)?;
    Ok(Signature { scheme: signer.scheme().into(), bytes })
}

/// Checks that `signer` signed `message` for this `context`, and that the authority issued its
/// certificate for this usage.
///
/// # Errors
/// [`SignatureError`] naming what does not hold.
pub fn verify(
    signer: &Signer<'_>,
    context: &str,
    message: &[u8],
    signature: &Signature,
) -> Result<(), SignatureError> {
    let leaf = leaf_of(signer)?;
    let algorithms = algorithms();
    let scheme = SignatureScheme::from(signature.scheme);
    let known = algorithms.mapping.iter().find(|(known, _)| *known == scheme);
    let unknown = SignatureError::Scheme { scheme: signature.scheme };
    let (_, candidates) = known.ok_or(unknown)?;
    let statement = statement(context, message);
    let mut failure = SignatureError::Scheme { scheme: signature.scheme };
    for candidate in *candidates {
        match leaf.verify_signature(*candidate, &statement, &signature.bytes) {
            Ok(()) => return Ok(()),
            Err(error) => failure = SignatureError::Forged(error),
        }
    }
    Err(failure)
}

/// Checks that the authority issued the signer's certificate for this usage, whatever it signs.
///
/// # Errors
/// [`SignatureError::Certificate`].
pub fn verify_certificate(signer: &Signer<'_>) -> Result<(), SignatureError> {
    leaf_of(signer).map(drop)
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    ring::default_provider().signature_verification_algorithms
}

/// The signer's own certificate, once it is known to be the authority's word.
fn leaf_of<'a>(signer: &Signer<'a>) -> Result<EndEntityCert<'a>, SignatureError> {
    let Signer { authority, chain, usage, at } = *signer;
    let certificate = SignatureError::Certificate;
    let [leaf, intermediates @ ..] = chain else {
        return Err(certificate(webpki::Error::UnknownIssuer));
    };
    let leaf = EndEntityCert::try_from(leaf).map_err(certificate)?;
    let anchor = anchor_from_trusted_cert(authority).map_err(certificate)?;
    let usage = match usage {
        Usage::Server => KeyUsage::server_auth(),
        Usage::Client => KeyUsage::client_auth(),
    };
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_millis(at.0));
    leaf.verify_for_usage(algorithms().all, &[anchor], intermediates, at, usage, None, None)
        .map_err(certificate)?;
    Ok(leaf)
}

/// Bytes that read as base64 in files, for `#[serde(with = "…")]`.
pub mod text {
    use data_encoding::BASE64;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    /// Writes the bytes.
    ///
    /// # Errors
    /// What the serializer reports.
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&BASE64.encode(bytes))
        } else {
            bytes.serialize(serializer)
        }
    }

    /// Reads the bytes.
    ///
    /// # Errors
    /// If the text is not base64.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            BASE64.decode(text.as_bytes()).map_err(D::Error::custom)
        } else {
            Vec::deserialize(deserializer)
        }
    }
}

/// TLS signs bytes that begin with spaces, so no handshake passes for a statement.
fn statement(context: &str, message: &[u8]) -> Vec<u8> {
    [b"tributary statement: ", context.as_bytes(), &[0], message].concat()
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    /// 2024: within the validity that rcgen gives by default.
    pub(crate) const NOW: Timestamp = Timestamp(1_700_000_000_000);

    pub(crate) struct World {
        pub(crate) authority: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    impl World {
        pub(crate) fn new() -> Self {
            let key = KeyPair::generate().expect("key");
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            let authority = params.self_signed(&key).expect("signs").der().clone();
            let issuer = Issuer::from_ca_cert_der(&authority, key).expect("an authority");
            Self { authority, issuer }
        }

        pub(crate) fn coordinator(&self) -> Identity {
            self.identity(ExtendedKeyUsagePurpose::ServerAuth)
        }

        pub(crate) fn agent(&self) -> Identity {
            self.identity(ExtendedKeyUsagePurpose::ClientAuth)
        }

        fn identity(&self, usage: ExtendedKeyUsagePurpose) -> Identity {
            let key = KeyPair::generate().expect("key");
            let mut params = CertificateParams::default();
            params.extended_key_usages = vec![usage];
            let leaf = params.signed_by(&key, &self.issuer).expect("signs").der().clone();
            let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS#8");
            Identity { chain: vec![leaf, self.authority.clone()], key }
        }

        fn signer<'a>(&'a self, identity: &'a Identity, usage: Usage) -> Signer<'a> {
            Signer { authority: &self.authority, chain: &identity.chain, usage, at: NOW }
        }
    }

    #[test]
    fn only_the_same_message_in_the_same_context_verifies() {
        let world = World::new();
        let identity = world.coordinator();
        let signer = world.signer(&identity, Usage::Server);
        let signature = sign(&identity, "receipt", b"head 3").expect("signs");
        verify(&signer, "receipt", b"head 3", &signature).expect("holds");
        let forged = |context, message, signature: &Signature| {
            let outcome = verify(&signer, context, message, signature);
            assert!(matches!(outcome, Err(SignatureError::Forged(_))), "{outcome:?}");
        };
        forged("receipt", b"head 4", &signature);
        forged("another", b"head 3", &signature);
        let mut damaged = signature.clone();
        damaged.bytes.clear();
        forged("receipt", b"head 3", &damaged);
        let unknown = Signature { scheme: 0xffff, ..signature };
        let outcome = verify(&signer, "receipt", b"head 3", &unknown);
        assert!(matches!(outcome, Err(SignatureError::Scheme { scheme: 0xffff })), "{outcome:?}");
    }

    #[test]
    fn strangers_and_other_purposes_are_refused() {
        let (world, other) = (World::new(), World::new());
        let agent = world.agent();
        let signature = sign(&agent, "receipt", b"head 3").expect("signs");
        let refused = |signer: &Signer<'_>| {
            let outcome = verify(signer, "receipt", b"head 3", &signature);
            assert!(matches!(outcome, Err(SignatureError::Certificate(_))), "{outcome:?}");
        };
        verify(&world.signer(&agent, Usage::Client), "receipt", b"head 3", &signature)
            .expect("holds");
        refused(&world.signer(&agent, Usage::Server));
        refused(&other.signer(&agent, Usage::Client));
        refused(&Signer { chain: &[], ..world.signer(&agent, Usage::Client) });
        refused(&Signer { at: Timestamp(u64::MAX), ..world.signer(&agent, Usage::Client) });
    }
}
