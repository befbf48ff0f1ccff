//! One connection to the coordinator: handshake, control stream, and what its failures mean.

use std::time::Duration;

use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use tokio::sync::mpsc;
use tributary_protocol::{
    message::{AgentMessage, CoordinatorMessage},
    transport::{TransportError, endpoint, process, stream, tls},
};

use super::address;
use crate::{identity::Identity, session::Failure};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection with its control stream.
pub(super) struct Link {
    pub(super) connection: Connection,
    endpoint: quinn::Endpoint,
    outgoing: mpsc::UnboundedSender<AgentMessage>,
}

impl Link {
    /// Queues a control message; if the connection is gone, its reader reports that.
    pub(super) fn send(&self, message: AgentMessage) {
        let _ = self.outgoing.send(message);
    }

    /// Says goodbye, and waits a little until it is out.
    pub(super) async fn leave(self) {
        self.connection.close(0_u32.into(), b"the agent stops");
        let _ = tokio::time::timeout(LEAVE_TIMEOUT, self.endpoint.wait_idle()).await;
    }
}

/// What the control stream brings.
pub(super) enum LinkEvent {
    Connected(Link),
    Message(CoordinatorMessage),
    Failed(Failure),
}

/// Connects and reads the control stream until it ends.
pub(super) async fn run(identity: Identity, events: impl Fn(LinkEvent)) {
    if identity.is_expired(process::now()) {
        events(LinkEvent::Failed(failure(EXPIRED.to_owned(), true)));
        return;
    }
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, establish(&identity));
    let (link, mut incoming, writer) = match connecting.await {
        Ok(Ok(established)) => established,
        Ok(Err(failure)) => return events(LinkEvent::Failed(failure)),
        Err(_) => {
            let reason = format!("no answer from {}", identity.coordinator.address);
            return events(LinkEvent::Failed(failure(reason, false)));
        }
    };
    let connection = link.connection.clone();
    events(LinkEvent::Connected(link));
    tokio::spawn(writer);
    let end = loop {
        match stream::read_message::<CoordinatorMessage>(&mut incoming).await {
            Ok(Some(message)) => events(LinkEvent::Message(message)),
            Ok(None) => break failure("the coordinator ended the session".to_owned(), false),
            Err(error) => break explain(&error, &connection),
        }
    };
    connection.close(0_u32.into(), b"the control stream ended");
    events(LinkEvent::Failed(end));
}

async fn establish(
    identity: &Identity,
) -> Result<(Link, RecvStream, impl Future<Output = ()> + use<>), Failure> {
    let address = &identity.coordinator.address;
    let name = address::server_name(address).map_err(|error| chain(&error))?;
    let remote = address::resolve(address).await.map_err(|error| chain(&error))?;
    let tls = tls::agent(identity.tls.clone(), &identity.authority).map_err(|e| chain(&e))?;
    let endpoint = endpoint::client(remote, tls).map_err(|error| chain(&error))?;
    let connecting = endpoint.connect(remote, &name).map_err(|error| chain(&error))?;
    let connection = connecting.await.map_err(|error| explain_connection(&error))?;
    let (send, receive) = connection.open_bi().await.map_err(|e| explain_connection(&e))?;
    let (outgoing, messages) = mpsc::unbounded_channel();
    let link = Link { connection, endpoint, outgoing };
    Ok((link, receive, write(send, messages)))
}

async fn write(mut stream: SendStream, mut messages: mpsc::UnboundedReceiver<AgentMessage>) {
    while let Some(message) = messages.recv().await {
        if let Err(error) = stream::write_message(&mut stream, &message).await {
            // The reader of the same connection reports the loss.
            tracing::debug!(%error, "control message not sent");
            return;
        }
    }
}

const EXPIRED: &str = "this agent's certificate has expired; enrol again with a new token from \
                       `tributary-coordinator tenant add` (`tributary-agent enroll --force`)";
const FOREIGN: &str = "the coordinator does not accept this agent's certificate: it comes from \
                       another authority; enrol again with a new token (`tributary-agent enroll \
                       --force`)";
const UNTRUSTED: &str = "the coordinator's certificate is not from the authority this agent is \
                         enrolled with, or does not name this host; check the address, or enrol \
                         again with a new token (`tributary-agent enroll --force`)";
const VERSION: &str = "agent and coordinator speak no common protocol version; update the older";

/// A number uniform in [0, 1), to spread the retries of many agents.
fn jitter() -> f64 {
    // Without entropy every agent waits the full time, which is only less polite.
    getrandom::u32().map_or(1.0, |bits| f64::from(bits) / 4_294_967_296.0)
}

fn failure(reason: String, lasting: bool) -> Failure {
    Failure { reason, lasting, jitter: jitter() }
}

fn chain(error: &dyn std::error::Error) -> Failure {
    let causes = std::iter::successors(Some(error), |error| error.source());
    failure(causes.map(ToString::to_string).collect::<Vec<_>>().join(": "), false)
}

/// Prefers what the connection knows: the coordinator's refusal, or a TLS alert.
fn explain(error: &TransportError, connection: &Connection) -> Failure {
    match connection.close_reason() {
        Some(reason) => explain_connection(&reason),
        None => chain(error),
    }
}

fn explain_connection(error: &ConnectionError) -> Failure {
    if let Some(refusal) = endpoint::refusal(error) {
        return Failure { jitter: jitter(), ..Failure::refused(&refusal) };
    }
    let (code, ours) = match error {
        ConnectionError::ConnectionClosed(close) => (u64::from(close.error_code), false),
        ConnectionError::TransportError(error) => (u64::from(error.code), true),
        _ => return chain(error),
    };
    // QUIC carries TLS alerts as 0x100 + alert (RFC 9001, section 4.8).
    let alert = code.checked_sub(0x100).filter(|alert| *alert < 0x100);
    match (alert, ours) {
        (Some(120), _) => failure(VERSION.to_owned(), true),
        (Some(42..=49 | 51), true) => failure(format!("{UNTRUSTED} ({error})"), true),
        (Some(45), false) => failure(EXPIRED.to_owned(), true),
        (Some(42..=49 | 51 | 116), false) => failure(format!("{FOREIGN} ({error})"), true),
        _ => chain(error),
    }
}
