//! Recognises the tenants of a cohort by the certificates that the own authority issued.

use rustls::pki_types::CertificateDer;
use tributary_privacy::secagg::PeerKeys;
use tributary_protocol::{time::Timestamp, transport::credential::Recognizer};

/// The tenants of one authority, at one time.
pub(super) struct Peers<'a>(Recognizer<'a>);

impl<'a> Peers<'a> {
    pub(super) const fn new(authority: &'a CertificateDer<'static>, at: Timestamp) -> Self {
        Self(Recognizer { authority, at })
    }
}

impl PeerKeys for Peers<'_> {
    fn name(&self, credential: &[u8]) -> Option<String> {
        self.0.tenant(credential).map(|tenant| tenant.to_string())
    }

    fn verify(&self, credential: &[u8], message: &[u8], signature: &[u8]) -> bool {
        self.0.verifies(credential, message, signature)
    }
}
