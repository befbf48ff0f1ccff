//! TLS 1.3 configurations for the three kinds of connection.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::WebPkiClientVerifier,
    version::TLS13,
};

use super::TransportError;
use crate::{
    id::Digest,
    version::{ALPN_AGENT, ALPN_ENROLLMENT},
};

/// A certificate chain (leaf first) and the leaf's private key.
#[derive(Debug)]
pub struct Identity {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(authority: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, TransportError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).map_err(TransportError::Tls)?;
    Ok(Arc::new(roots))
}

/// The coordinator's side. Client certificates must come from `authority`; a connection without
/// one completes the handshake, because enrolment has none, and must be confined to enrolment.
///
/// # Errors
/// [`TransportError`] if key and certificates do not fit together.
pub fn server(
    identity: Identity,
    authority: &CertificateDer<'static>,
) -> Result<rustls::ServerConfig, TransportError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(authority)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(TransportError::Authority)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TransportError::Tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain, identity.key)
        .map_err(TransportError::Tls)?;
    config.alpn_protocols = vec![ALPN_AGENT.to_vec(), ALPN_ENROLLMENT.to_vec()];
    Ok(config)
}

/// The side of an HTTPS server: shows `identity`, asks for no client certificate.
///
/// # Errors
/// [`TransportError`] if key and certificates do not fit together.
pub fn https(identity: Identity) -> Result<rustls::ServerConfig, TransportError> {
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TransportError::Tls)?
        .with_no_client_auth()
        .with_single_cert(identity.chain, identity.key)
        .map_err(TransportError::Tls)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// An enrolled agent's side: trusts `authority` and shows `identity`.
///
/// # Errors
/// [`TransportError`] if key and certificates do not fit together.
pub fn agent(
    identity: Identity,
    authority: &CertificateDer<'static>,
) -> Result<rustls::ClientConfig, TransportError> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TransportError::Tls)?
        .with_root_certificates(roots(authority)?)
        .with_client_auth_cert(identity.chain, identity.key)
        .map_err(TransportError::Tls)?;
    config.alpn_protocols = vec![ALPN_AGENT.to_vec()];
    Ok(config)
}

/// An agent's side before it has a certificate: accepts a coordinator whose chain ends in the
/// authority with this fingerprint.
///
/// # Errors
/// [`TransportError`] if TLS 1.3 is not available.
pub fn enrollment(authority: Digest) -> Result<rustls::ClientConfig, TransportError> {
    let provider = provider();
    let verifier = PinnedAuthority {
        authority,
        algorithms: provider.signature_verification_algorithms,
        provider: provider.clone(),
    };
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(TransportError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_ENROLLMENT.to_vec()];
    Ok(config)
}

/// Verifies a server's chain against the one authority whose certificate has a known hash.
#[derive(Debug)]
struct PinnedAuthority {
    authority: Digest,
    algorithms: WebPkiSupportedAlgorithms,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| Digest::of(certificate) == self.authority)
            .ok_or(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}
