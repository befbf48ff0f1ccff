//! The way to a connected agent, as the core sees it.

use tokio::sync::mpsc;
use tributary_protocol::{error_code::Refusal, message::CoordinatorMessage, transport::endpoint};

/// Control messages waiting for a slow agent; past that its connection is closed.
const QUEUE: usize = 256;

/// What the core does with a connection. Tests of the core have lines without sockets.
pub trait Line: Send {
    /// Queues a control message; false if the agent does not read what it was sent before.
    fn send(&self, message: CoordinatorMessage) -> bool;

    /// Ends the connection with a reason that the agent can show.
    fn close(&self, refusal: &Refusal);
}

/// A QUIC connection; a task of its own writes what is queued.
#[derive(Debug)]
pub struct QuicLine {
    /// Of pointers: a channel keeps room for some of what goes through it.
    outbox: mpsc::Sender<Box<CoordinatorMessage>>,
    connection: quinn::Connection,
}

impl QuicLine {
    /// A line on `connection`, and where its control messages come out.
    #[must_use]
    pub fn new(connection: quinn::Connection) -> (Self, mpsc::Receiver<Box<CoordinatorMessage>>) {
        let (outbox, messages) = mpsc::channel(QUEUE);
        (Self { outbox, connection }, messages)
    }
}

impl Line for QuicLine {
    fn send(&self, message: CoordinatorMessage) -> bool {
        self.outbox.try_send(Box::new(message)).is_ok()
    }

    fn close(&self, refusal: &Refusal) {
        endpoint::close(&self.connection, refusal);
    }
}
