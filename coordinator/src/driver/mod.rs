//! The thin layer around [`crate::scheduler`]: sockets, disk, clock and entropy.
//!
//! ```text
//! agents ──QUIC──▶ listener ──▶ session / transfer / enrollment ─┐
//! operators ─HTTP─▶ api ─────────────────────────────────────────┴▶ core (one task, owns the state)
//! ```

pub mod core;
mod enrollment;
pub mod line;
mod listener;
mod peers;
pub mod rotation;
mod session;
mod transfer;

pub use self::{
    core::{Core, CoreError, CoreHandle},
    listener::listen,
};
