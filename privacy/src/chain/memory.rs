//! A store in memory that can be made to crash at any byte.

use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

use super::ChainStore;

/// The failure that [`MemoryChainStore::crash_after`] ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the store crashed")]
pub struct MemoryChainError;

/// A store for tests and simulations; clones share the same "disk".
#[derive(Debug, Clone, Default)]
pub struct MemoryChainStore(Arc<Mutex<Disk>>);

#[derive(Debug, Default)]
struct Disk {
    bytes: Vec<u8>,
    /// Bytes that may still be written before the crash.
    allowance: Option<usize>,
    crashed: bool,
}

impl MemoryChainStore {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A disk with these bytes on it.
    #[must_use]
    pub fn with_bytes(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Disk { bytes, ..Disk::default() })))
    }

    /// Orders a crash: the write that goes past `bytes` more bytes stops there and fails, even if
    /// it fits exactly; from then on every call fails until [`restart`](Self::restart). A cut
    /// counts as one byte.
    pub fn crash_after(&self, bytes: usize) {
        self.disk(|disk| disk.allowance = Some(bytes));
    }

    /// Lets the disk work again, with whatever survived.
    pub fn restart(&self) {
        self.disk(|disk| {
            disk.allowance = None;
            disk.crashed = false;
        });
    }

    /// Everything on the disk.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.disk(|disk| disk.bytes.clone())
    }

    fn disk<T>(&self, change: impl FnOnce(&mut Disk) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Disk {
    /// How much of a write of `length` survives.
    fn admit(&mut self, length: usize) -> (usize, Result<(), MemoryChainError>) {
        match self.allowance {
            _ if self.crashed => (0, Err(MemoryChainError)),
            Some(allowance) if length >= allowance => {
                self.crashed = true;
                (allowance, Err(MemoryChainError))
            }
            Some(allowance) => {
                self.allowance = Some(allowance - length);
                (length, Ok(()))
            }
            None => (length, Ok(())),
        }
    }
}

impl ChainStore for MemoryChainStore {
    type Error = MemoryChainError;

    fn read(&mut self) -> Result<Vec<u8>, MemoryChainError> {
        self.disk(|disk| if disk.crashed { Err(MemoryChainError) } else { Ok(disk.bytes.clone()) })
    }

    fn append_durably(&mut self, record: &[u8]) -> Result<(), MemoryChainError> {
        self.disk(|disk| {
            let (written, result) = disk.admit(record.len());
            disk.bytes.extend_from_slice(&record[..written]);
            result
        })
    }

    fn truncate_durably(&mut self, length: u64) -> Result<(), MemoryChainError> {
        self.disk(|disk| {
            let (written, result) = disk.admit(1);
            if written == 1 {
                disk.bytes.truncate(length as usize);
            }
            result
        })
    }
}
