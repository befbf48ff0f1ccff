//! Exchanging a one-time token for a certificate over a key that never leaves the site.

use std::net::SocketAddr;

use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use thiserror::Error;
use tributary_protocol::{
    enrollment::EnrollmentToken,
    error_code::Refusal,
    id::{Digest, TenantId},
    message::{EnrollmentRequest, EnrollmentResponse},
    transport::{TransportError, endpoint, stream, tls},
};

use super::Coordinator;
use crate::driver::address::{AddressError, resolve, server_name};

/// What an enrolment gives.
#[derive(Debug, Clone)]
pub struct Enrollment {
    /// The private key, PEM.
    pub key_pem: String,
    /// The certificate chain, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The authority's certificate.
    pub authority: CertificateDer<'static>,
    /// Where the agent connects from now on.
    pub coordinator: Coordinator,
}

/// Says why there is no certificate.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EnrollError {
    /// The address names no machine.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Key or signing request cannot be made.
    #[error("the key cannot be made")]
    Key(#[source] rcgen::Error),
    /// The coordinator cannot be reached, or is not the one that the token was issued by.
    #[error("{}", describe(source))]
    Transport {
        /// What happened.
        #[source]
        source: TransportError,
    },
    /// The coordinator refuses.
    #[error("the coordinator refused the enrolment: {0}")]
    Refused(Refusal),
    /// The issued chain does not end in the authority that the token names, or has no leaf.
    #[error("the issued certificate does not come from the authority that the token names")]
    Chain,
}

impl From<TransportError> for EnrollError {
    fn from(source: TransportError) -> Self {
        Self::Transport { source }
    }
}

fn describe(error: &TransportError) -> &'static str {
    match error {
        TransportError::Connection(quinn::ConnectionError::TransportError(_)) => {
            "the coordinator at this address is not the one that the token was issued by, or its \
             certificate does not name this host"
        }
        TransportError::Connection(quinn::ConnectionError::TimedOut) => {
            "the coordinator did not answer; check the address, that it runs, and that UDP passes"
        }
        _ => "the connection to the coordinator failed",
    }
}

/// A fresh key with its signing request.
#[derive(Debug)]
pub struct NewKey {
    key: rcgen::KeyPair,
    request: CertificateSigningRequestDer<'static>,
}

impl NewKey {
    /// Makes an ECDSA P-256 key from the operating system's entropy, and a request for a
    /// certificate that names `tenant`.
    ///
    /// # Errors
    /// [`EnrollError::Key`].
    pub fn generate(tenant: &TenantId) -> Result<Self, EnrollError> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(EnrollError::Key)?;
        let mut parameters = rcgen::CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, tenant.as_str());
        let request = parameters.serialize_request(&key).map_err(EnrollError::Key)?;
        Ok(Self { request: request.der().clone(), key })
    }

    /// The signing request, DER.
    #[must_use]
    pub fn signing_request(&self) -> &[u8] {
        &self.request
    }

    /// The private key, PEM.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }
}

/// Makes a key and has it certified by the coordinator at `address` (`HOST:PORT`).
///
/// # Errors
/// [`EnrollError`]; nothing is written in any case.
pub async fn enroll(address: &str, token: &EnrollmentToken) -> Result<Enrollment, EnrollError> {
    let name = server_name(address)?;
    let remote: SocketAddr = resolve(address).await?;
    let key = NewKey::generate(&token.tenant)?;
    let endpoint = endpoint::client(remote, tls::enrollment(token.authority)?)?;
    let connection = endpoint
        .connect(remote, &name)
        .map_err(TransportError::Connect)?
        .await
        .map_err(TransportError::Connection)?;
    let (mut send, mut receive) = connection.open_bi().await.map_err(TransportError::Connection)?;
    let request = EnrollmentRequest {
        tenant: token.tenant.clone(),
        secret: token.secret,
        signing_request: key.signing_request().to_vec(),
    };
    let exchange = async {
        stream::write_message(&mut send, &request).await?;
        // The answer decides; a peer that does not wait for the end of the stream is fine.
        let _ = send.finish();
        stream::expect_message::<EnrollmentResponse>(&mut receive).await
    };
    let response = exchange.await.map_err(|error| closed_by_peer(&connection, error))?;
    connection.close(0_u32.into(), b"");
    endpoint.wait_idle().await;
    match response {
        EnrollmentResponse::Refused(refusal) => Err(EnrollError::Refused(refusal)),
        EnrollmentResponse::Issued { certificates } => {
            let chain: Vec<_> = certificates.into_iter().map(CertificateDer::from).collect();
            let authority = chain
                .last()
                .filter(|last| chain.len() > 1 && Digest::of(last) == token.authority)
                .ok_or(EnrollError::Chain)?
                .clone();
            let coordinator =
                Coordinator { address: address.to_owned(), tenant: token.tenant.clone() };
            Ok(Enrollment { key_pem: key.key_pem(), chain, authority, coordinator })
        }
    }
}

/// The refusal with which the peer closed the connection says more than the broken stream.
fn closed_by_peer(connection: &quinn::Connection, error: TransportError) -> EnrollError {
    match connection.close_reason().as_ref().and_then(endpoint::refusal) {
        Some(refusal) => EnrollError::Refused(refusal),
        None => error.into(),
    }
}
