//! A tenant's certificate as its credential towards other tenants: who signs, and with which key.

use rustls::pki_types::CertificateDer;

use super::{
    signature::{self, Signature, SignatureError, Signer, Usage},
    tls::Identity,
};
use crate::{codec, id::TenantId, time::Timestamp};

/// Kind of statement that tenants sign in secure aggregation.
const CONTEXT: &str = "secure aggregation";

/// Recognises the certificates that one authority issued to tenants.
#[derive(Debug, Clone, Copy)]
pub struct Recognizer<'a> {
    /// Whose word on tenants counts.
    pub authority: &'a CertificateDer<'static>,
    /// When the certificates must be valid.
    pub at: Timestamp,
}

impl Recognizer<'_> {
    /// The tenant to which the authority issued a certificate; `None` if it did not.
    ///
    /// - `certificate`: DER
    #[must_use]
    pub fn tenant(&self, certificate: &[u8]) -> Option<TenantId> {
        let chain = [CertificateDer::from(certificate.to_vec())];
        signature::verify_certificate(&self.signer(&chain)).ok()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let name = parsed.subject().iter_common_name().next()?.as_str().ok()?;
        TenantId::new(name).ok()
    }

    /// Whether the holder of a certificate of the authority signed `message`.
    #[must_use]
    pub fn verifies(&self, certificate: &[u8], message: &[u8], signed: &[u8]) -> bool {
        let Ok(signed) = codec::decode::<Signature>(signed) else { return false };
        let chain = [CertificateDer::from(certificate.to_vec())];
        signature::verify(&self.signer(&chain), CONTEXT, message, &signed).is_ok()
    }

    const fn signer<'a>(&'a self, chain: &'a [CertificateDer<'static>]) -> Signer<'a> {
        Signer { authority: self.authority, chain, usage: Usage::Client, at: self.at }
    }
}

/// Signs `message` with a tenant's key.
///
/// # Errors
/// [`SignatureError`] if the key cannot sign.
///
/// # Panics
/// Never: a signature has an encoding.
pub fn sign(identity: &Identity, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
    let signature = signature::sign(identity, CONTEXT, message)?;
    Ok(codec::encode(&signature).expect("a signature fits into a message"))
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    struct Authority {
        certificate: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Authority {
        fn new() -> Self {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&key).expect("a certificate").der().clone();
            Self { certificate, issuer: Issuer::new(params, key) }
        }

        fn issue(&self, tenant: &str) -> Identity {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, tenant);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            let leaf = params.signed_by(&key, &self.issuer).expect("a certificate").der().clone();
            let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS#8");
            Identity { chain: vec![leaf], key }
        }
    }

    #[test]
    fn a_tenant_is_recognised_by_its_authority_alone_and_signs_for_itself_alone() {
        let at = Timestamp(1_800_000_000_000);
        let (ours, others) = (Authority::new(), Authority::new());
        let (ash, elm) = (ours.issue("ash"), ours.issue("elm"));
        let recognizer = Recognizer { authority: &ours.certificate, at };
        assert_eq!(recognizer.tenant(&ash.chain[0]).expect("issued").as_str(), "ash");
        assert_eq!(recognizer.tenant(&others.issue("ash").chain[0]), None);
        assert_eq!(recognizer.tenant(b"no certificate"), None);
        let signed = sign(&ash, b"keys").expect("signs");
        assert!(recognizer.verifies(&ash.chain[0], b"keys", &signed));
        assert!(!recognizer.verifies(&elm.chain[0], b"keys", &signed));
        assert!(!recognizer.verifies(&ash.chain[0], b"other keys", &signed));
        assert!(!recognizer.verifies(&ash.chain[0], b"keys", b"garbage"));
        let stranger = Recognizer { authority: &others.certificate, at };
        assert!(!stranger.verifies(&ash.chain[0], b"keys", &signed));
    }
}
