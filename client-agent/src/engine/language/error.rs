use thiserror::Error;
use tributary_protocol::id::TenantId;

use crate::{
    compute::DeviceError,
    engine::generation::ProcessError,
    model::{checkpoint::CheckpointError, peft::PeftError},
};

/// Says why a language model cannot be served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LanguageError {
    /// The model's folder cannot be used.
    #[error("the language model cannot be loaded")]
    Checkpoint(#[from] CheckpointError),
    /// An adapter cannot be used.
    #[error("adapter {name:?} cannot be loaded")]
    Adapter {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: PeftError,
    },
    /// An adapter has the name of the base.
    #[error("an adapter is named {name:?} like the base")]
    Name {
        /// The name.
        name: String,
    },
    /// A tenant is to use an adapter that is not there.
    #[error("tenant {tenant} may use adapter {name:?}, which is not configured")]
    UnknownAdapter {
        /// The tenant.
        tenant: TenantId,
        /// The adapter.
        name: String,
    },
    /// The cache holds less than one block.
    #[error("a cache of {bytes} bytes has no room for a single block")]
    Cache {
        /// The limit.
        bytes: usize,
    },
    /// The device cannot be used.
    #[error("the language model has no device to run on")]
    Device(#[from] DeviceError),
    /// The device has no room for weights or cache.
    #[error("weights and cache cannot be put on {device}")]
    Memory {
        /// The device.
        device: String,
        /// Why.
        #[source]
        source: candle_core::Error,
    },
    /// There is no thread for the engine.
    #[error("the engine's thread cannot start")]
    Thread(#[source] std::io::Error),
    /// A tenant's own threads cannot start.
    #[error("the engine's compute threads cannot start")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// A tenant's own process cannot start.
    #[error("the process of tenant {tenant} cannot start")]
    Process {
        /// The tenant.
        tenant: TenantId,
        /// Why.
        #[source]
        source: ProcessError,
    },
}
