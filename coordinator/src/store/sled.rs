//! Records in sled, an embedded store: the default of a single coordinator.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use super::{
    Batch, Store, StoreError, Table,
    integrity::{Seal, Witness},
};

/// The key of the seal; no table's name begins like it.
const SEAL: &str = "!seal";

/// One sled database; keys are `table/key`.
#[derive(Debug)]
pub struct SledStore {
    path: PathBuf,
    database: sled::Db,
    seal: Seal,
    witness: Witness,
}

impl SledStore {
    /// Opens or creates the database, and compares every record with the seal.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another process has it, [`StoreError::Corrupt`] if it is damaged
    /// or fell back to an earlier state; it is then left as it is.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let corrupt = |reason: String| StoreError::Corrupt { path: path.to_owned(), reason };
        // sled panics on some kinds of damage.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let database = sled::Config::new().path(path).cache_capacity(8 << 20).open()?;
            let seals = seals(&database)?;
            Ok((database, seals))
        }));
        let (database, (noted, found)) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(source @ sled::Error::Io(_))) if source.to_string().contains("lock") => {
                return Err(StoreError::Locked { path: path.to_owned(), source });
            }
            Ok(Err(source @ sled::Error::Io(_))) => {
                return Err(StoreError::Backend { path: path.to_owned(), source });
            }
            Ok(Err(source)) => return Err(corrupt(source.to_string())),
            Err(_) => return Err(corrupt("it cannot be read".to_owned())),
        };
        let witness = Witness::path(path);
        let (witness, sequence) = Witness::open(path).map_err(|source| StoreError::Backend {
            path: witness,
            source: sled::Error::Io(source),
        })?;
        let seal = check(noted, found, sequence).map_err(corrupt)?;
        Ok(Self { path: path.to_owned(), database, seal, witness })
    }

    fn backend(&self, source: sled::Error) -> StoreError {
        StoreError::Backend { path: self.path.clone(), source }
    }
}

/// The seal that the database has, and the one that fits its records.
fn seals(database: &sled::Db) -> sled::Result<(Option<Seal>, Seal)> {
    let (mut noted, mut found) = (None, Seal::default());
    for row in database.iter() {
        let (key, value) = row?;
        if *key == *SEAL.as_bytes() {
            // What does not parse is as good as lost.
            noted = serde_json::from_slice(&value).ok();
        } else {
            found.add(&key, &value);
        }
    }
    Ok((noted, found))
}

/// - `witness`: how many batches were applied, as far as the file beside the store knows
fn check(noted: Option<Seal>, found: Seal, witness: Option<u64>) -> Result<Seal, String> {
    let records = found.records;
    let Some(seal) = noted else {
        return match (records, witness) {
            (0, None | Some(0)) => Ok(found),
            _ => Err(format!("its seal is lost, with {records} records left")),
        };
    };
    if !seal.fits(&found) {
        return Err(format!("it was sealed with {} records, and {records} are left", seal.records)
            + " or some were changed");
    }
    match witness {
        Some(witness) if witness > seal.sequence => Err(format!(
            "it ends at change {}, but change {witness} was made: it lost its end, or is an older \
             copy",
            seal.sequence
        )),
        _ => Ok(seal),
    }
}

fn prefix(table: Table) -> String {
    format!("{}/", table.name())
}

impl Store for SledStore {
    fn scan(&self, table: Table) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let prefix = prefix(table);
        let strip = |row: sled::Result<(sled::IVec, sled::IVec)>| {
            let (key, value) = row.map_err(|source| self.backend(source))?;
            let key = String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
            Ok((key, value.to_vec()))
        };
        self.database.scan_prefix(&prefix).map(strip).collect()
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let mut seal = self.seal;
        seal.sequence += 1;
        let mut writes = std::collections::BTreeMap::new();
        for (table, key, value) in &batch.writes {
            writes.insert((prefix(*table) + key).into_bytes(), value.as_slice());
        }
        let mut sealed = sled::Batch::default();
        for (key, value) in writes {
            if let Some(old) = self.database.get(&key).map_err(|source| self.backend(source))? {
                seal.remove(&key, &old);
            }
            seal.add(&key, value);
            sealed.insert(key, value);
        }
        let text = serde_json::to_vec(&seal).expect("plain numbers");
        sealed.insert(SEAL.as_bytes(), text);
        self.database
            .apply_batch(sealed)
            .and_then(|()| self.database.flush())
            .map_err(|source| self.backend(source))?;
        self.seal = seal;
        self.witness.note(seal.sequence).map_err(|source| StoreError::Backend {
            path: Witness::path(&self.path),
            source: sled::Error::Io(source),
        })
    }
}
