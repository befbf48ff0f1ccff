//! The one door between a chain and a disk.

/// Durable bytes that only grow, apart from cutting off an append that never finished.
pub trait ChainStore {
    /// What can go wrong.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Reads everything; nothing written yet reads as empty.
    ///
    /// # Errors
    /// Whatever keeps the store from reading.
    fn read(&mut self) -> Result<Vec<u8>, Self::Error>;

    /// Appends `record` and returns once it would survive a loss of power.
    ///
    /// # Errors
    /// After an error any prefix of `record` may have been written.
    fn append_durably(&mut self, record: &[u8]) -> Result<(), Self::Error>;

    /// Cuts the store back to `length` bytes, durably.
    ///
    /// # Errors
    /// After an error the store is either cut or as before.
    fn truncate_durably(&mut self, length: u64) -> Result<(), Self::Error>;
}
