//! The language that Tributary's agents and coordinator speak.
//!
//! Everything here is a plain value without sockets or clocks, except [`transport`], which puts the
//! values on QUIC. Bytes from the network are untrusted: every decoder is size-limited, returns an
//! error for anything it does not know, and has a fuzz target.
//!
//! | module | what it holds |
//! |---|---|
//! | [`id`] | tenant, job, dataset, region, round, digest |
//! | [`isolation`] | how far tenants are kept apart |
//! | [`job`], [`model`] | the document that a job is |
//! | [`message`] | control messages, transfers, enrolment |
//! | [`codec`] | values to bytes, the only user of bincode |
//! | [`tensor_file`] | models as safetensors |
//! | [`checkpoint`] | model folders of the Hugging Face hub |
//! | [`tensor_stream`] | chunked, checksummed, resumable files |
//! | [`error_code`], [`version`] | numbered refusals, ALPN |
//! | [`enrollment`] | the one-time token |
//! | [`receipt`] | countersigned ledger heads |
//! | [`transport`] | mutual TLS and QUIC |
//!
//! ```
//! use tributary_protocol::{codec, id::Digest, message::TransferRequest};
//!
//! let request = TransferRequest::Download { digest: Digest::of(b"model"), offset: 0 };
//! let bytes = codec::encode(&request)?;
//! assert_eq!(codec::decode::<TransferRequest>(&bytes)?, request);
//! # Ok::<(), codec::CodecError>(())
//! ```

pub mod checkpoint;
pub mod codec;
pub mod enrollment;
pub mod error_code;
pub mod id;
pub mod isolation;
pub mod job;
pub mod message;
pub mod model;
pub mod receipt;
pub mod tensor_file;
pub mod tensor_stream;
pub mod time;
pub mod transport;
pub mod version;
