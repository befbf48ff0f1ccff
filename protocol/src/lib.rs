//! Ids, messages, codec, framing, versions, error codes and QUIC+TLS helpers.
pub mod id;
pub mod job;
pub mod model;
