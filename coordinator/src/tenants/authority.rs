//! The certificate authority: signs the coordinator's own certificate and those of agents.

use std::{fmt, net::IpAddr, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls::pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, pem::PemObject,
};
use thiserror::Error;
use time::OffsetDateTime;
use tributary_protocol::{
    id::{Digest, IdError, TenantId},
    time::Timestamp,
    transport::{tls::Identity, validity},
};
use x509_parser::extensions::{ExtendedKeyUsage, GeneralName};

const AUTHORITY_DAYS: u64 = 3650;
const SERVER_DAYS: u64 = 825;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Clocks of agents may be behind by this much.
const BACKDATED: Duration = Duration::from_secs(60 * 60);

/// Says why a certificate cannot be made or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// Key or certificate generation failed, or a signing request does not verify.
    #[error("certificate operation failed")]
    Certificate(#[from] rcgen::Error),
    /// A PEM text has no such item.
    #[error("{what} is not readable PEM")]
    Pem {
        /// Which text.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A time is outside of what certificates can say.
    #[error("the clock shows a time that a certificate cannot hold")]
    Time,
    /// A peer certificate cannot be parsed.
    #[error("the peer's certificate cannot be parsed")]
    Parse,
    /// A certificate cannot sign those of a coordinator and its agents.
    #[error("the authority's certificate cannot be used: {reason}")]
    NotAnAuthority {
        /// What it lacks.
        reason: &'static str,
    },
    /// The common name of a peer certificate is not a tenant id.
    #[error("the peer's certificate names no tenant")]
    Name(#[source] IdError),
}

/// A private key and its certificate, both PEM.
#[derive(Clone)]
pub struct PemPair {
    /// Certificate, or chain with the leaf first.
    pub certificate: String,
    /// PKCS#8 key.
    pub key: String,
}

impl fmt::Debug for PemPair {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PemPair")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// The authority, ready to sign.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Authority")
            .field("fingerprint", &self.fingerprint())
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a new authority; its key comes from the operating system's entropy.
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`].
    pub fn generate(now: Timestamp) -> Result<PemPair, AuthorityError> {
        let mut params = parameters("Tributary coordinator authority", now, AUTHORITY_DAYS)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(PemPair { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Reads an authority, generated here or brought along.
    ///
    /// - `pair`: of a root or an intermediate authority; agents trust exactly this certificate, so what
    ///   follows it in a chain is not needed
    ///
    /// # Errors
    /// [`AuthorityError`] if either text is not usable, or they do not belong together.
    pub fn load(pair: &PemPair) -> Result<Self, AuthorityError> {
        let certificate = certificate(&pair.certificate)?;
        let key = KeyPair::from_pem(&pair.key)?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&certificate).map_err(|_| AuthorityError::Parse)?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            let reason = "it belongs to another key";
            return Err(AuthorityError::NotAnAuthority { reason });
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { certificate, issuer })
    }

    /// Whether the authority may and can sign now, which one that was brought along must show.
    ///
    /// # Errors
    /// [`AuthorityError::NotAnAuthority`] saying what it lacks.
    pub fn check(&self, now: Timestamp) -> Result<(), AuthorityError> {
        let (_, parsed) = x509_parser::parse_x509_certificate(&self.certificate)
            .map_err(|_| AuthorityError::Parse)?;
        let lacks = |reason| Err(AuthorityError::NotAnAuthority { reason });
        let constraints = parsed.basic_constraints().map_err(|_| AuthorityError::Parse)?;
        if !constraints.is_some_and(|constraints| constraints.value.ca) {
            return lacks("it is no certificate of an authority (basic constraints)");
        }
        let usage = parsed.key_usage().map_err(|_| AuthorityError::Parse)?;
        if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return lacks("its key usage does not allow it to sign certificates");
        }
        let purposes = parsed.extended_key_usage().map_err(|_| AuthorityError::Parse)?;
        let suits = |purposes: &ExtendedKeyUsage<'_>| {
            purposes.any || purposes.server_auth && purposes.client_auth
        };
        if purposes.is_some_and(|purposes| !suits(purposes.value)) {
            return lacks("its extended key usage does not cover servers and clients");
        }
        let seconds = i64::try_from(now.0 / 1000).map_err(|_| AuthorityError::Time)?;
        let validity = parsed.validity();
        if seconds < validity.not_before.timestamp() || seconds >= validity.not_after.timestamp() {
            return lacks("it is not valid at this time");
        }
        Ok(())
    }

    /// The authority's certificate.
    #[must_use]
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The fingerprint that enrolment tokens carry.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        Digest::of(&self.certificate)
    }

    /// A secret for one purpose, the same at every start.
    #[must_use]
    pub fn secret(&self, purpose: &str) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("tributary 2026 secrets of an authority");
        hasher.update(purpose.as_bytes()).update(&self.issuer.key().serialize_der());
        *hasher.finalize().as_bytes()
    }

    /// Makes the coordinator's own key and certificate for these DNS names and IP addresses.
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`] naming a host that is neither.
    pub fn issue_server(
        &self,
        hosts: &[String],
        now: Timestamp,
    ) -> Result<PemPair, AuthorityError> {
        self.certify_server(&KeyPair::generate()?, hosts, now)
    }

    /// Renews the coordinator's own certificate, for the same key and hosts.
    ///
    /// # Errors
    /// [`AuthorityError`] if the pair cannot be read.
    pub fn renew_server(&self, pair: &PemPair, now: Timestamp) -> Result<PemPair, AuthorityError> {
        self.certify_server(&KeyPair::from_pem(&pair.key)?, &hosts_of(pair)?, now)
    }

    /// Whether the authority signed the pair's certificate.
    ///
    /// # Errors
    /// [`AuthorityError`] if it cannot be read.
    pub fn issued(&self, pair: &PemPair) -> Result<bool, AuthorityError> {
        let leaf = certificate(&pair.certificate)?;
        let parse =
            |der| x509_parser::parse_x509_certificate(der).map_err(|_| AuthorityError::Parse);
        let ((_, leaf), (_, own)) = (parse(&leaf)?, parse(&self.certificate)?);
        Ok(leaf.issuer() == own.subject())
    }

    fn certify_server(
        &self,
        key: &KeyPair,
        hosts: &[String],
        now: Timestamp,
    ) -> Result<PemPair, AuthorityError> {
        let mut params = parameters("Tributary coordinator", now, SERVER_DAYS)?;
        params.subject_alt_names = CertificateParams::new(hosts)?.subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(key, &self.issuer)?;
        Ok(PemPair { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Signs an agent's key. Name and rights come from here, not from the signing request.
    ///
    /// - `signing_request`: DER; its own signature is verified
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`] if the request does not verify.
    pub fn issue_agent(
        &self,
        tenant: &TenantId,
        signing_request: &[u8],
        now: Timestamp,
        valid_days: u32,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let request = CertificateSigningRequestDer::from(signing_request);
        let request = CertificateSigningRequestParams::from_der(&request)?;
        let mut params = parameters(tenant.as_str(), now, valid_days.into())?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params.signed_by(&request.public_key, &self.issuer)?.der().clone())
    }
}

/// Reads the coordinator's own identity; the authority's certificate goes along in the chain, so
/// that an enrolling agent can recognise it.
///
/// # Errors
/// [`AuthorityError::Pem`].
pub fn server_identity(pair: &PemPair, authority: &Authority) -> Result<Identity, AuthorityError> {
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())
        .map_err(|source| AuthorityError::Pem { what: "the coordinator's key", source })?;
    Ok(Identity {
        chain: vec![certificate(&pair.certificate)?, authority.certificate.clone()],
        key,
    })
}

/// Reads a key with its chain of certificates.
///
/// # Errors
/// [`AuthorityError::Pem`].
pub fn identity(pair: &PemPair) -> Result<Identity, AuthorityError> {
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())
        .map_err(|source| AuthorityError::Pem { what: "the key", source })?;
    let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| AuthorityError::Pem { what: "the certificate", source })?;
    Ok(Identity { chain, key })
}

/// When a certificate is to be renewed: after two thirds of its time.
///
/// # Errors
/// [`AuthorityError`] if it cannot be read.
pub fn renewal_due(pair: &PemPair) -> Result<Timestamp, AuthorityError> {
    let certificate = certificate(&pair.certificate)?;
    validity::renewal_due(&certificate).ok_or(AuthorityError::Parse)
}

/// The DNS names and IP addresses that a certificate is for.
///
/// # Errors
/// [`AuthorityError`] if it cannot be read.
pub fn hosts_of(pair: &PemPair) -> Result<Vec<String>, AuthorityError> {
    let certificate = certificate(&pair.certificate)?;
    let (_, parsed) =
        x509_parser::parse_x509_certificate(&certificate).map_err(|_| AuthorityError::Parse)?;
    let names = parsed.subject_alternative_name().map_err(|_| AuthorityError::Parse)?;
    let names = names.map_or(&[][..], |extension| &extension.value.general_names);
    Ok(names.iter().filter_map(host).collect())
}

fn host(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            _ => None,
        },
        _ => None,
    }
}

/// The tenant that a verified client certificate names.
///
/// # Errors
/// [`AuthorityError::Parse`] or [`AuthorityError::Name`].
pub fn tenant_of(certificate: &CertificateDer<'_>) -> Result<TenantId, AuthorityError> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|_| AuthorityError::Parse)?;
    let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    TenantId::new(name.unwrap_or_default()).map_err(AuthorityError::Name)
}

fn certificate(pem: &str) -> Result<CertificateDer<'static>, AuthorityError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|source| AuthorityError::Pem { what: "the certificate", source })
}

fn parameters(
    name: &str,
    now: Timestamp,
    valid_days: u64,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    let seconds = i64::try_from(now.0 / 1000).map_err(|_| AuthorityError::Time)?;
    let now = OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| AuthorityError::Time)?;
    params.not_before = now - BACKDATED;
    params.not_after = now + DAY * u32::try_from(valid_days).map_err(|_| AuthorityError::Time)?;
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn request(name: &str, key: &KeyPair) -> Vec<u8> {
        let params = CertificateParams::new(vec![name.to_owned()]).expect("params");
        params.serialize_request(key).expect("serializes").der().to_vec()
    }

    #[test]
    fn the_certificate_names_the_tenant_not_what_the_request_says() {
        let authority = Authority::load(&Authority::generate(NOW).expect("makes")).expect("loads");
        let key = KeyPair::generate().expect("key");
        let alpha = TenantId::new("alpha").expect("valid");
        let certificate =
            authority.issue_agent(&alpha, &request("beta", &key), NOW, 90).expect("signs");
        assert_eq!(tenant_of(&certificate).expect("parses"), alpha);
    }

    fn outside(change: impl FnOnce(&mut CertificateParams)) -> PemPair {
        let mut params = parameters("Hospital group CA", NOW, 900).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        change(&mut params);
        let key = KeyPair::generate().expect("key");
        let certificate = params.self_signed(&key).expect("signs").pem();
        PemPair { certificate, key: key.serialize_pem() }
    }

    #[test]
    fn an_outside_authority_signs_if_it_may() {
        let pair = outside(|_| {});
        let authority = Authority::load(&pair).expect("loads");
        authority.check(NOW).expect("may sign");
        let server = authority.issue_server(&["localhost".to_owned()], NOW).expect("signs");
        assert_eq!(hosts_of(&server).expect("reads"), ["localhost"]);
        let check = |pair: &PemPair, now| {
            Authority::load(pair).and_then(|it| it.check(now)).expect_err("refused").to_string()
        };
        let late = NOW.after_ms(901 * 24 * 60 * 60 * 1000);
        assert!(check(&pair, late).contains("not valid at this time"));
        assert!(
            check(&outside(|it| it.is_ca = IsCa::ExplicitNoCa), NOW).contains("no certificate of")
        );
        let signs_lists = |it: &mut CertificateParams| {
            it.key_usages = vec![KeyUsagePurpose::CrlSign];
        };
        assert!(check(&outside(signs_lists), NOW).contains("key usage"));
        let servers = |it: &mut CertificateParams| {
            it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        };
        assert!(check(&outside(servers), NOW).contains("extended key usage"));
        let mixed = PemPair { key: outside(|_| {}).key, ..pair };
        assert!(check(&mixed, NOW).contains("another key"));
    }

    #[test]
    fn a_renewed_server_keeps_its_key_and_hosts_and_lasts_longer() {
        let authority = Authority::load(&Authority::generate(NOW).expect("makes")).expect("loads");
        let hosts = ["localhost".to_owned(), "10.1.2.3".to_owned()];
        let pair = authority.issue_server(&hosts, NOW).expect("signs");
        let due = renewal_due(&pair).expect("reads");
        let days = due.since(NOW).as_secs() / 86_400;
        assert!((540..=560).contains(&days), "{days}");
        let renewed = authority.renew_server(&pair, due).expect("signs");
        assert_eq!(renewed.key, pair.key);
        assert_eq!(hosts_of(&renewed).expect("reads"), hosts);
        assert!(renewal_due(&renewed).expect("reads") > due);
    }

    #[test]
    fn a_damaged_signing_request_is_refused() {
        let authority = Authority::load(&Authority::generate(NOW).expect("makes")).expect("loads");
        let key = KeyPair::generate().expect("key");
        let mut bytes = request("alpha", &key);
        *bytes.last_mut().expect("not empty") ^= 1;
        let alpha = TenantId::new("alpha").expect("valid");
        assert!(authority.issue_agent(&alpha, &bytes, NOW, 90).is_err());
        assert!(authority.issue_agent(&alpha, b"garbage", NOW, 90).is_err());
    }
}
