//! Records in memory: tests and simulations.

use std::collections::BTreeMap;

use super::{Batch, Store, StoreError, Table};

/// Forgets everything when dropped.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    records: BTreeMap<(Table, String), Vec<u8>>,
}

impl Store for MemoryStore {
    fn scan(&self, table: Table) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let rows = self.records.iter().filter(|((of, _), _)| *of == table);
        Ok(rows.map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), StoreError> {
        for (table, key, value) in &batch.writes {
            self.records.insert((*table, key.clone()), value.clone());
        }
        Ok(())
    }
}
