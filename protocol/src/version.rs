//! Protocol versions, negotiated by ALPN inside the TLS handshake.

/// The version of messages, framing and tensor streams; raised on any incompatible change.
pub const PROTOCOL: u16 = 2;

/// ALPN of an enrolled agent's connection: a client certificate is required.
pub const ALPN_AGENT: &[u8] = b"tributary/2";

/// ALPN of an enrolment: no client certificate yet, a one-time token instead.
pub const ALPN_ENROLLMENT: &[u8] = b"tributary-enroll/2";
