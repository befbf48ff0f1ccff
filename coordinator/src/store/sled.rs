//! Records in sled, an embedded store: the default of a single coordinator.

use std::path::Path;

use super::{Batch, Store, StoreError, Table};

/// One sled database; keys are `table/key`.
#[derive(Debug)]
pub struct SledStore {
    database: sled::Db,
}

impl SledStore {
    /// Opens or creates the database.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another process has it, [`StoreError::Backend`] if it is damaged.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let open = sled::Config::new().path(path).cache_capacity(8 << 20).open();
        match open {
            Ok(database) => Ok(Self { database }),
            Err(source @ sled::Error::Io(_)) if source.to_string().contains("lock") => {
                Err(StoreError::Locked { path: path.to_owned(), source })
            }
            Err(source) => Err(StoreError::Backend(source)),
        }
    }
}

fn prefix(table: Table) -> String {
    format!("{}/", table.name())
}

impl Store for SledStore {
    fn scan(&self, table: Table) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let prefix = prefix(table);
        let strip = |row: sled::Result<(sled::IVec, sled::IVec)>| {
            let (key, value) = row.map_err(StoreError::Backend)?;
            let key = String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
            Ok((key, value.to_vec()))
        };
        self.database.scan_prefix(&prefix).map(strip).collect()
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let mut writes = sled::Batch::default();
        for (table, key, value) in &batch.writes {
            writes.insert((prefix(*table) + key).into_bytes(), value.as_slice());
        }
        self.database.apply_batch(writes).map_err(StoreError::Backend)?;
        self.database.flush().map(|_| ()).map_err(StoreError::Backend)
    }
}
