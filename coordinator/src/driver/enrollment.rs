//! Exchanges a one-time token for a client certificate, and a certificate for its successor.

use std::time::Duration;

use quinn::Connection;
use tracing::{info, warn};
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    id::{Digest, TenantId},
    message::{EnrollmentRequest, EnrollmentResponse},
    transport::{TransportError, stream},
};

use super::{Core, CoreHandle};
use crate::audit::{Act, Actor, AuditEvent};
use tributary_protocol::time::Timestamp;

/// An enrolment, from connection to answer, may take this long.
const ENROLLMENT_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) async fn run(connection: Connection, core: CoreHandle) {
    match tokio::time::timeout(ENROLLMENT_TIMEOUT, answer(&connection, core)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(remote = %connection.remote_address(), %error, "enrolment failed"),
        Err(_) => warn!(remote = %connection.remote_address(), "enrolment timed out"),
    }
    connection.close(quinn::VarInt::from_u32(0), b"");
}

async fn answer(connection: &Connection, core: CoreHandle) -> Result<(), TransportError> {
    let (mut send, mut receive) =
        connection.accept_bi().await.map_err(TransportError::Connection)?;
    let request: EnrollmentRequest = stream::expect_message(&mut receive).await?;
    let response = match core.call(move |core, now| enroll(core, &request, now)).await {
        Ok(Ok(certificates)) => EnrollmentResponse::Issued { certificates },
        Ok(Err(refusal)) => EnrollmentResponse::Refused(refusal),
        Err(error) => {
            EnrollmentResponse::Refused(Refusal::from_error(ErrorCode::ShuttingDown, &error))
        }
    };
    stream::write_message(&mut send, &response).await?;
    send.finish().map_err(|_| TransportError::Closed)?;
    // The agent closes once it has the answer.
    connection.closed().await;
    Ok(())
}

fn enroll(
    core: &mut Core,
    request: &EnrollmentRequest,
    now: Timestamp,
) -> Result<Vec<Vec<u8>>, Refusal> {
    let tenant = &request.tenant;
    if let Err(error) = core.scheduler.check_enrollment(tenant, &request.secret, now) {
        warn!(%tenant, %error, "enrolment refused");
        let refusal = error.refusal();
        // Anybody can guess a secret; only a real one is worth a line that stays for ever.
        if refusal.code != ErrorCode::TokenUnknown {
            let actor = Actor::tenant(tenant);
            core.record(AuditEvent::refused(actor, Act::TenantEnroll, tenant, &refusal));
        }
        return Err(refusal);
    }
    let certificate = core
        .authority
        .issue_agent(tenant, &request.signing_request, now, core.certificate_days)
        .map_err(|error| Refusal::from_error(ErrorCode::SigningRequestInvalid, &error))?;
    let fingerprint = Digest::of(&certificate);
    core.scheduler
        .enrolled(tenant, &request.secret, fingerprint, now)
        .map_err(|error| error.refusal())?;
    let detail = format!("certificate {fingerprint}");
    core.record(AuditEvent::done(Actor::tenant(tenant), Act::TenantEnroll, tenant, detail));
    let replaced = Refusal::new(ErrorCode::CertificateNotRegistered, "the tenant enrolled anew");
    core.drop_session(tenant, &replaced, now);
    info!(%tenant, "enrolled");
    Ok(vec![certificate.to_vec(), core.authority.certificate().to_vec()])
}

/// Answers an agent that asks for the successor of its certificate over its connection.
pub(super) fn renew(core: &mut Core, tenant: &TenantId, signing_request: &[u8], now: Timestamp) {
    let (actor, days) = (Actor::tenant(tenant), core.certificate_days);
    match core.authority.issue_agent(tenant, signing_request, now, days) {
        Ok(certificate) => {
            let detail = format!("certificate {}", Digest::of(&certificate));
            core.record(AuditEvent::done(actor, Act::TenantRenew, tenant, detail));
            let authority = core.authority.certificate().to_vec();
            core.scheduler.renewed(tenant, vec![certificate.to_vec(), authority]);
            info!(%tenant, "certificate renewed");
        }
        Err(error) => {
            let refusal = Refusal::from_error(ErrorCode::SigningRequestInvalid, &error);
            warn!(%tenant, reason = %refusal.message, "certificate not renewed");
            core.record(AuditEvent::refused(actor, Act::TenantRenew, tenant, &refusal));
            core.scheduler.renewal_refused(tenant, refusal);
        }
    }
}
