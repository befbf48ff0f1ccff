//! QUIC and TLS helpers, signatures and the process's host: the one place in this crate that links
//! a runtime and reads a clock.
//!
//! Every connection is TLS 1.3. An agent's connection authenticates both ends by certificates of
//! the coordinator's authority ([`tls::server`], [`tls::agent`]); an enrolment authenticates the
//! coordinator by the fingerprint in the token ([`tls::enrollment`]) and the agent by its secret.

pub mod credential;
pub mod endpoint;
pub mod log;
pub mod process;
pub mod signature;
mod sparing;
pub mod stream;
pub mod tls;
pub mod validity;

use thiserror::Error;

use crate::{codec::CodecError, error_code::ErrorCode, tensor_stream::TensorStreamError};

/// Says why a connection or a stream on it failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TransportError {
    /// Certificates or keys cannot be used together.
    #[error("TLS configuration is not usable")]
    Tls(#[source] rustls::Error),
    /// The verifier for peer certificates cannot be built.
    #[error("the authority's certificate is not usable")]
    Authority(#[source] rustls::server::VerifierBuilderError),
    /// The TLS configuration lacks what QUIC needs.
    #[error("the TLS configuration has no QUIC cipher suite")]
    CipherSuite(#[source] quinn::crypto::rustls::NoInitialCipherSuite),
    /// A UDP socket cannot be bound.
    #[error("cannot listen on {address}")]
    Bind {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection cannot be attempted.
    #[error("cannot connect")]
    Connect(#[source] quinn::ConnectError),
    /// The connection ended or never came to be.
    #[error("connection failed")]
    Connection(#[source] quinn::ConnectionError),
    /// Writing failed.
    #[error("cannot send")]
    Write(#[source] quinn::WriteError),
    /// Reading failed.
    #[error("cannot receive")]
    Read(#[source] quinn::ReadError),
    /// The peer ended the stream in the middle of a message or file.
    #[error("the stream ended early")]
    EndedEarly,
    /// The stream was finished twice (our bug).
    #[error("the stream is already closed")]
    Closed,
    /// A frame announces more bytes than a message may have.
    #[error("a frame announces {length} bytes; at most {max} are allowed")]
    FrameTooLarge {
        /// Announced length in bytes.
        length: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// A message does not encode or decode.
    #[error("invalid message")]
    Codec(#[from] CodecError),
    /// A chunk is not the next one of its file.
    #[error("invalid chunk")]
    Chunk(#[from] TensorStreamError),
    /// The local file behind a stream failed.
    #[error("cannot read or write the file behind the stream")]
    File(#[source] std::io::Error),
    /// The peer sent nothing for too long.
    #[error("nothing was received for {seconds} s")]
    Idle {
        /// How long.
        seconds: u64,
    },
}

impl TransportError {
    /// The code that tells the peer what it did wrong.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::FrameTooLarge { .. } | Self::Codec(CodecError::TooLarge { .. }) => {
                ErrorCode::MessageTooLarge
            }
            Self::Codec(_) | Self::EndedEarly => ErrorCode::MalformedMessage,
            Self::Chunk(TensorStreamError::Checksum { .. }) => ErrorCode::ChecksumMismatch,
            Self::Chunk(_) => ErrorCode::ChunkOutOfOrder,
            Self::Idle { .. } => ErrorCode::TimedOut,
            _ => ErrorCode::Internal,
        }
    }

    /// Whether the peer sent something it must not (as against a broken connection).
    #[must_use]
    pub const fn is_peer_at_fault(&self) -> bool {
        !matches!(self.code(), ErrorCode::Internal | ErrorCode::TimedOut)
    }
}
