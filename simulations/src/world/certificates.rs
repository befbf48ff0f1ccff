//! Certificates for the tenants of all worlds of this process: made once, as they take their time.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ED25519,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tributary_agent::identity::{Coordinator, Identity};
use tributary_protocol::{
    id::{Digest, TenantId},
    time::Timestamp,
    transport::tls,
};

/// One authority, its coordinator, and as many tenants as were ever asked for.
///
/// Keys follow from the names, and Ed25519 signs the same bytes every time: a cohort's random order
/// depends on certificates, and a seed must repeat a world in any process.
pub(super) struct Certificates {
    pub(super) authority: CertificateDer<'static>,
    pub(super) coordinator: tls::Identity,
    issuer: Issuer<'static, KeyPair>,
    tenants: Mutex<Vec<Arc<Identity>>>,
}

/// The name of a tenant of a world.
pub(super) fn name(index: u32) -> TenantId {
    TenantId::new(format!("t{index:05}")).expect("a name of letters and digits")
}

impl Certificates {
    /// Those of this process.
    pub(super) fn shared() -> &'static Self {
        static SHARED: OnceLock<Certificates> = OnceLock::new();
        SHARED.get_or_init(Self::new)
    }

    fn new() -> Self {
        let key = key("authority");
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = parameters.self_signed(&key).expect("signs itself").der().clone();
        let issuer = Issuer::new(parameters, key);
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        let coordinator = issue(&issuer, "coordinator", usage);
        Self { authority, coordinator, issuer, tenants: Mutex::new(Vec::new()) }
    }

    /// The identity of a tenant.
    pub(super) fn tenant(&self, index: u32) -> Arc<Identity> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        while tenants.len() <= index as usize {
            let tenant = name(tenants.len() as u32);
            let usage = ExtendedKeyUsagePurpose::ClientAuth;
            let tls = issue(&self.issuer, tenant.as_str(), usage);
            let coordinator = Coordinator { address: "coordinator:7443".to_owned(), tenant };
            let (authority, expires) = (self.authority.clone(), Timestamp(u64::MAX));
            tenants.push(Arc::new(Identity { coordinator, tls, authority, expires }));
        }
        tenants[index as usize].clone()
    }
}

fn issue(
    issuer: &Issuer<'_, KeyPair>,
    name: &str,
    usage: ExtendedKeyUsagePurpose,
) -> tls::Identity {
    let key = key(name);
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.extended_key_usages = vec![usage];
    let leaf = parameters.signed_by(&key, issuer).expect("the authority signs").der().clone();
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS#8");
    tls::Identity { chain: vec![leaf], key }
}

/// The key of whoever has this name.
fn key(name: &str) -> KeyPair {
    // PKCS#8 of an Ed25519 key, RFC 8410, before its 32 bytes.
    const PREFIX: [u8; 16] = [
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04,
        0x20,
    ];
    let seed = Digest::of(format!("a key of the worlds: {name}").as_bytes());
    let document = PrivatePkcs8KeyDer::from([PREFIX.as_slice(), seed.as_bytes()].concat());
    KeyPair::from_pkcs8_der_and_sign_algo(&document, &PKCS_ED25519).expect("any 32 bytes are a key")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_the_same_in_every_process() {
        let (one, other) = (Certificates::new(), Certificates::new());
        assert_eq!(one.authority, other.authority);
        for tenant in 0..3 {
            assert_eq!(one.tenant(tenant).tls.chain, other.tenant(tenant).tls.chain);
        }
    }
}
