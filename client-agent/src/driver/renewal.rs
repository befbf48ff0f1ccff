//! Keys and files of a certificate's renewal.

use std::sync::Arc;

use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    message::{AgentMessage, EnrollmentResponse},
};

use super::Driver;
use crate::{
    identity::{NewKey, RenewalError},
    secagg::TenantKeys,
    session::{Input, Renewed},
};

impl Driver {
    /// Makes a key, and asks for its certificate.
    pub(super) fn renew(&mut self) {
        match NewKey::generate(&self.identity.coordinator.tenant) {
            Ok(key) => {
                let signing_request = key.signing_request().to_vec();
                self.renewing = Some(key);
                if let Some(link) = &self.link {
                    link.send(AgentMessage::Renew { signing_request });
                }
            }
            Err(error) => {
                let reason = Refusal::from_error(ErrorCode::Internal, &error).message;
                self.step(Input::Renewed(Err(reason)));
            }
        }
    }

    /// Puts the issued certificate in the place of the old one.
    pub(super) fn install(&mut self, answer: EnrollmentResponse) {
        let outcome = self
            .installed(answer)
            .map_err(|error| Refusal::from_error(ErrorCode::Internal, &error).message);
        self.step(Input::Renewed(outcome));
    }

    fn installed(&mut self, answer: EnrollmentResponse) -> Result<Renewed, RenewalError> {
        let key = self.renewing.take().ok_or(RenewalError::Unasked)?;
        let certificates = match answer {
            EnrollmentResponse::Issued { certificates } => certificates,
            EnrollmentResponse::Refused(refusal) => return Err(RenewalError::Refused(refusal)),
        };
        self.identity = self.identity.renewed(&self.agent.site, &key, certificates)?;
        tracing::info!("the certificate is renewed");
        let keys = Arc::new(TenantKeys::of(&self.identity));
        Ok(Renewed { keys, due: self.identity.renewal_due() })
    }
}
