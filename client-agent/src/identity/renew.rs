//! Putting a renewed certificate in the place of the old one.

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use thiserror::Error;
use tributary_protocol::{
    error_code::Refusal,
    transport::{TransportError, credential::Recognizer, process, tls},
};

use super::{Enrollment, Identity, IdentityError, NewKey};
use crate::site::Site;

/// Says why the certificate stays as it is.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RenewalError {
    /// The coordinator sent a certificate that nobody asked for.
    #[error("the coordinator sent a certificate that was not asked for")]
    Unasked,
    /// The coordinator refuses.
    #[error("the coordinator does not renew the certificate: {0}")]
    Refused(Refusal),
    /// The certificate is another tenant's, or not of the authority.
    #[error("the renewed certificate is not this tenant's, of the authority it is enrolled with")]
    Foreign,
    /// Certificate and key do not go together.
    #[error("the renewed certificate does not fit its key")]
    Unfit(#[source] TransportError),
    /// The key cannot be read back (our bug).
    #[error("the new key cannot be read")]
    Key(#[source] rustls::pki_types::pem::Error),
    /// The files cannot be written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl Identity {
    /// Checks a certificate that was issued for `key`, and saves both in the place of the old ones.
    ///
    /// - `certificates`: DER, leaf first
    ///
    /// # Errors
    /// [`RenewalError`]; the old identity is then still in its place.
    pub fn renewed(
        &self,
        site: &Site,
        key: &NewKey,
        certificates: Vec<Vec<u8>>,
    ) -> Result<Self, RenewalError> {
        let recognizer = Recognizer { authority: &self.authority, at: process::now() };
        let leaf = certificates.first().ok_or(RenewalError::Foreign)?;
        if recognizer.tenant(leaf).as_ref() != Some(&self.coordinator.tenant) {
            return Err(RenewalError::Foreign);
        }
        let chain: Vec<_> = certificates.into_iter().map(CertificateDer::from).collect();
        let key_pem = key.key_pem();
        let private =
            PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(RenewalError::Key)?;
        let identity = tls::Identity { chain: chain.clone(), key: private };
        tls::agent(identity, &self.authority).map_err(RenewalError::Unfit)?;
        let (authority, coordinator) = (self.authority.clone(), self.coordinator.clone());
        Self::save(site, &Enrollment { key_pem, chain, authority, coordinator }, true)?;
        Ok(Self::load(site)?)
    }
}
