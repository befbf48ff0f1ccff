//! The thin layer around [`crate::scheduler`]: sockets, disk, clock and entropy.
//!
//! ```text
//! agents ──QUIC──▶ listener ──▶ session / transfer / enrollment ─┐
//! operators ─HTTP─▶ api ─────────────────────────────────────────┴▶ core (one task, owns the state)
//! ```

pub mod core;
mod enrollment;
mod gate;
pub mod line;
mod listener;
mod peers;
mod process_usage;
mod progress;
mod room;
pub mod rotation;
mod session;
mod shelf;
pub(crate) mod telemetry;
mod throttle;
#[cfg(any(test, feature = "otel"))]
pub mod traces;
mod transfer;

pub use self::{
    core::{Core, CoreError, CoreHandle},
    listener::listen,
    progress::Progress,
    telemetry::install as install_metrics,
};
