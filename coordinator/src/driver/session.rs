//! One agent's connection: its control stream, and a task for each file it transfers.

use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use tokio::{
    runtime,
    sync::{mpsc, oneshot},
};
use tracing::{
    Instrument, Span, debug,
    field::{self, Empty},
    info, info_span, warn,
};
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    id::{Digest, TenantId},
    isolation::{ComputeIsolation, Isolation},
    message::{AgentMessage, CoordinatorMessage, LedgerHead},
    transport::{TransportError, endpoint::close, stream},
};

use super::{
    CoreError, CoreHandle, enrollment,
    gate::Gate,
    line::QuicLine,
    room::Room,
    throttle::Throttle,
    transfer::{self, Transfers},
};
use crate::tenants::{TenantContext, TenantRole, authority};

/// After the handshake, a hello must come within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Says why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Core(#[from] CoreError),
    #[error("the tenant's own thread cannot be started")]
    Worker { source: std::io::Error },
    #[error("{0}")]
    Refused(Refusal),
}

impl SessionError {
    fn refusal(&self) -> Refusal {
        match self {
            Self::Transport(error) => Refusal::from_error(error.code(), error),
            Self::Core(error) => Refusal::from_error(ErrorCode::ShuttingDown, error),
            Self::Worker { .. } => Refusal::from_error(ErrorCode::Internal, self),
            Self::Refused(refusal) => refusal.clone(),
        }
    }
}

pub(super) async fn run(
    connection: Connection,
    certificate: CertificateDer<'static>,
    core: CoreHandle,
    gate: &Gate,
    room: Room,
) {
    let remote = connection.remote_address();
    let tenant = match authority::tenant_of(&certificate) {
        Ok(tenant) => tenant,
        Err(error) => {
            warn!(%remote, %error, "connection refused");
            return close(
                &connection,
                &Refusal::from_error(ErrorCode::CertificateNotRegistered, &error),
            );
        }
    };
    let span =
        info_span!("session", %tenant, region = Empty, roles = Empty, isolation = Empty, %remote);
    async {
        if let Err(error) = serve(&connection, tenant, certificate, core, gate, room).await {
            end(&connection, Err(error));
        }
    }
    .instrument(span)
    .await;
}

/// Says why a session ended, to the peer too if it was not the peer who ended it.
fn end(connection: &Connection, result: Result<(), SessionError>) {
    match (result, connection.close_reason()) {
        (Ok(()), _) => info!("disconnected"),
        (Err(_), Some(reason)) => info!(%reason, "disconnected"),
        (Err(error), None) => {
            let refusal = error.refusal();
            warn!(code = %refusal.code, reason = %refusal.message, "closing the connection");
            close(connection, &refusal);
        }
    }
}

/// Runs a session that the tenant may have.
///
/// # Errors
/// [`SessionError`] if it may not.
async fn serve(
    connection: &Connection,
    tenant: TenantId,
    certificate: CertificateDer<'static>,
    core: CoreHandle,
    gate: &Gate,
    room: Room,
) -> Result<(), SessionError> {
    let (who, shown) = (tenant.clone(), Digest::of(&certificate));
    let context = core.call(move |core, now| {
        let context = core.scheduler.authenticate(&who, shown, now);
        context.map_err(|error| error.refusal()).inspect_err(|r| core.session_refused(&who, r))
    });
    let context = context.await?.map_err(SessionError::Refused)?;
    let TenantContext { region, roles, isolation, .. } = &context;
    Span::current()
        .record("region", field::display(region))
        .record("roles", TenantRole::names(roles))
        .record("isolation", isolation.to_string());
    let Some(_pass) = gate.admit(&tenant) else {
        let message = "this tenant has as many connections as one may have; close some";
        return Err(SessionError::Refused(Refusal::new(ErrorCode::Superseded, message)));
    };
    let alone = isolation.compute > ComputeIsolation::SharedQueue;
    let attending = attend(connection.clone(), tenant.clone(), certificate, core, room, context);
    if alone {
        return on_own_thread(&tenant, attending).await;
    }
    attending.await;
    Ok(())
}

/// Runs everything that one connection needs on a thread of its own: what arrives is received, sealed,
/// checked and stored there, and waits for nobody else's.
async fn on_own_thread(
    tenant: &TenantId,
    attending: impl Future<Output = ()> + Send + 'static,
) -> Result<(), SessionError> {
    let (ended, end) = oneshot::channel();
    let attending = attending.instrument(Span::current());
    let run = move || {
        let runtime =
            runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
        let result = runtime.map(|runtime| runtime.block_on(attending));
        let result = result.map_err(|source| SessionError::Worker { source });
        // Nobody waits for it if the coordinator stops.
        let _ = ended.send(result);
    };
    let thread = std::thread::Builder::new().name(format!("tenant-{tenant}")).spawn(run);
    thread.map_err(|source| SessionError::Worker { source })?;
    end.await.unwrap_or(Err(SessionError::Core(CoreError::Stopped)))
}

/// Attends to a connection until it ends, and says why it did.
async fn attend(
    connection: Connection,
    tenant: TenantId,
    certificate: CertificateDer<'static>,
    core: CoreHandle,
    room: Room,
    context: TenantContext,
) {
    let mut control = None;
    let transfers = Transfers { connection: connection.clone(), tenant, core, room };
    let result = converse(&mut control, &transfers, &certificate, &context).await;
    // Before the control stream is dropped: that finishes it, and an agent could read its end in place
    // of the reason.
    end(&connection, result);
}

/// - `control`: where the control stream is put, which outlives the conversation
async fn converse(
    control: &mut Option<(SendStream, RecvStream)>,
    transfers: &Transfers,
    certificate: &CertificateDer<'static>,
    context: &TenantContext,
) -> Result<(), SessionError> {
    let Transfers { connection, tenant, core, .. } = transfers;
    let greeting = tokio::time::timeout(HELLO_TIMEOUT, async {
        let streams = connection.accept_bi().await.map_err(TransportError::Connection)?;
        let (send, receive) = control.insert(streams);
        let (head, isolation) = greet(receive).await?;
        Ok((send, receive, head, isolation))
    });
    let (send, receive, head, isolation) =
        greeting.await.unwrap_or(Err(TransportError::Idle { seconds: HELLO_TIMEOUT.as_secs() }))?;
    let shown = Digest::of(certificate);
    let (who, (line, outbox)) = (tenant.clone(), QuicLine::new(connection.clone()));
    let opened = core.call(move |core, now| {
        // It may have been suspended, or enrolled anew, while it took its time to say hello.
        core.scheduler.check_certificate(&who, shown).map_err(|error| error.refusal())?;
        core.scheduler.keeps_apart(&who, isolation);
        Ok(core.open_session(&who, Box::new(line), head, now))
    });
    let session = opened.await?.map_err(SessionError::Refused)?;
    info!(region = %context.region, ledger = head.sequence, "connected");
    let throttle = Throttle::new();
    let result = tokio::select! {
        result = read_control(receive, tenant, certificate, core, &throttle) => result,
        result = write_control(send, outbox) => result.map_err(SessionError::from),
        result = accept_transfers(transfers, &throttle) => result.map_err(SessionError::from),
    };
    let who = tenant.clone();
    core.call(move |core, now| core.close_session(&who, session, now)).await?;
    result
}

async fn greet(receive: &mut RecvStream) -> Result<(LedgerHead, Isolation), TransportError> {
    match stream::expect_message(receive).await? {
        AgentMessage::Hello { agent_version, ledger_head, isolation } => {
            debug!(agent_version, %isolation, "hello");
            Ok((ledger_head, isolation))
        }
        AgentMessage::Accept { .. }
        | AgentMessage::Decline { .. }
        | AgentMessage::Secagg { .. }
        | AgentMessage::Renew { .. } => Err(TransportError::EndedEarly),
    }
}

async fn read_control(
    receive: &mut RecvStream,
    tenant: &TenantId,
    certificate: &CertificateDer<'static>,
    core: &CoreHandle,
    throttle: &Throttle,
) -> Result<(), SessionError> {
    while let Some(message) = stream::read_message::<AgentMessage>(receive).await? {
        throttle.request(cost(&message)).await;
        let who = tenant.clone();
        let result = match message {
            AgentMessage::Hello { .. } => {
                let refusal = Refusal::new(ErrorCode::UnexpectedMessage, "hello was already said");
                return Err(SessionError::Refused(refusal));
            }
            AgentMessage::Accept { job, round } => {
                let credential = certificate.clone();
                core.call(move |core, now| {
                    core.scheduler.count_request(&who, now)?;
                    core.scheduler.accepted(&who, &job, round, &credential, now)
                })
                .await?
            }
            AgentMessage::Decline { job, round, refusal } => {
                // The reason is the peer's text: bounded before it is stored and shown.
                let refusal = Refusal::new(refusal.code, refusal.message);
                warn!(%job, %round, code = %refusal.code, reason = %refusal.message, "the agent declines");
                core.call(move |core, now| {
                    core.scheduler.count_request(&who, now)?;
                    core.scheduler.declined(&who, &job, round, refusal, now)
                })
                .await?
            }
            AgentMessage::Renew { signing_request } => {
                core.call(move |core, now| {
                    core.scheduler.count_request(&who, now)?;
                    enrollment::renew(core, &who, &signing_request, now);
                    Ok(())
                })
                .await?
            }
            AgentMessage::Secagg { job, round, payload } => {
                let named = job.clone();
                let answered =
                    core.call(move |core, now| core.secagg(&who, &job, round, &payload, now));
                let result = answered.await?;
                // An answer that comes after its step is no fault.
                if let Err(error) = &result
                    && error.code() == ErrorCode::SecaggMessageInvalid
                {
                    let refusal = error.refusal();
                    warn!(job = %named, %round, code = %refusal.code, reason = %refusal.message, "secure aggregation refuses a message");
                }
                result
            }
        };
        // An answer to a round that closed in the meantime is no fault.
        if let Err(error) = result {
            debug!(%error, "answer ignored");
        }
    }
    Ok(())
}

async fn write_control(
    send: &mut SendStream,
    mut outbox: mpsc::Receiver<Box<CoordinatorMessage>>,
) -> Result<(), TransportError> {
    while let Some(message) = outbox.recv().await {
        stream::write_message(send, &*message).await?;
    }
    // A newer connection of the tenant took over; the close frame says so.
    std::future::pending().await
}

/// Of how many requests a message is worth.
const fn cost(message: &AgentMessage) -> u32 {
    match message {
        // A certificate is signed, and both that and a refusal stay in the audit log for ever.
        AgentMessage::Renew { .. } | AgentMessage::Decline { .. } => 50,
        AgentMessage::Hello { .. } | AgentMessage::Accept { .. } | AgentMessage::Secagg { .. } => 1,
    }
}

async fn accept_transfers(each: &Transfers, throttle: &Throttle) -> Result<(), TransportError> {
    let mut transfers = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            streams = each.connection.accept_bi() => {
                let (send, receive) = streams.map_err(TransportError::Connection)?;
                throttle.request(1).await;
                // An upload says later what it is for.
                let span = info_span!("transfer", job = Empty, round = Empty);
                let transfer = transfer::run(send, receive, each.clone());
                transfers.spawn(transfer.instrument(span));
            }
            Some(_) = transfers.join_next() => {}
        }
    }
}
