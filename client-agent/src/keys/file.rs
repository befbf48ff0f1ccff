use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tributary_protocol::{
    id::{Digest, TenantId},
    time::Timestamp,
};

use crate::{
    durable_file::{Access as FileAccess, FileError, read_text, write_durably},
    ledger_file::{LedgerFileError, lock},
};

/// What a key may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyRole {
    /// Ask models: completions, embeddings, predictions, model lists.
    Inference,
    /// Tell and delete outcomes of predictions, and see their quality.
    Feedback,
    /// See the status, and the tenant's own metrics.
    Viewer,
    /// See every tenant's metrics.
    Operator,
}

impl KeyRole {
    /// The name in files, options and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inference => "inference",
            Self::Feedback => "feedback",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        }
    }

    /// What a key has unless somebody says otherwise: everything of its own tenant.
    #[must_use]
    pub fn of_tenant() -> BTreeSet<Self> {
        BTreeSet::from([Self::Inference, Self::Feedback, Self::Viewer])
    }
}

/// A key, without the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    /// Names it in commands; not a secret.
    pub id: String,
    /// Whose requests it makes.
    pub tenant: TenantId,
    /// What it may be used for.
    pub roles: BTreeSet<KeyRole>,
    /// The BLAKE3 digest of the key.
    pub digest: Digest,
    /// When it was made.
    pub created: Timestamp,
    /// Until when it works; without it, until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// What it is for, in its maker's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What a new key is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    /// Whose.
    pub tenant: TenantId,
    /// For what.
    pub roles: BTreeSet<KeyRole>,
    /// Until when.
    pub expires: Option<Timestamp>,
    /// What it is for.
    pub note: Option<String>,
}

/// Says why keys cannot be read or changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another command changes it.
    #[error("the keys are being changed by another command; try again")]
    InUse(#[source] LedgerFileError),
    /// The file is no list of keys.
    #[error("{} is damaged; restore it, or delete it and add keys anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the parser met.
        #[source]
        source: serde_json::Error,
    },
    /// There is no such key.
    #[error("there is no key {id:?}; `tributary-agent key list` shows them")]
    Unknown {
        /// The id.
        id: String,
    },
    /// There is no entropy for a key.
    #[error("the system has no random numbers for a key")]
    Entropy(#[source] getrandom::Error),
}

/// `keys.json`: once it exists, requests need a key.
#[derive(Debug, Clone)]
pub struct KeyFile {
    path: PathBuf,
}

impl KeyFile {
    /// Names the file; touches nothing.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The keys in order of their making; nothing if there is no file.
    ///
    /// # Errors
    /// [`KeyFileError`] if the file is there and cannot be used.
    pub fn read(&self) -> Result<Option<Vec<KeyRecord>>, KeyFileError> {
        if !self.path.exists() {
            return Ok(None);
        }
        let text = read_text(&self.path)?;
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|source| KeyFileError::Damaged { path: self.path.clone(), source })
    }

    /// Makes a key and keeps its digest durably; returns the key, which is nowhere else.
    ///
    /// - `now`: the time that is written into the record
    ///
    /// # Errors
    /// [`KeyFileError`]; then there is no new key.
    pub fn add(&self, new: NewKey, now: Timestamp) -> Result<(KeyRecord, String), KeyFileError> {
        let mut random = [0; 36];
        getrandom::fill(&mut random).map_err(KeyFileError::Entropy)?;
        let (name, secret) = random.split_at(4);
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        let id = hex(name);
        let key = format!("tributary-{id}-{}", hex(secret));
        let NewKey { tenant, roles, expires, note } = new;
        let digest = Digest::of(key.as_bytes());
        let record = KeyRecord { id, tenant, roles, digest, created: now, expires, note };
        self.change(|records| {
            records.push(record.clone());
            Ok(())
        })?;
        Ok((record, key))
    }

    /// Removes a key; a running agent refuses it from its next request on.
    ///
    /// # Errors
    /// [`KeyFileError::Unknown`] for an id without a key, or the disk's.
    pub fn revoke(&self, id: &str) -> Result<KeyRecord, KeyFileError> {
        let mut revoked = None;
        self.change(|records| {
            let at = records.iter().position(|record| record.id == id);
            let at = at.ok_or_else(|| KeyFileError::Unknown { id: id.to_owned() })?;
            revoked = Some(records.remove(at));
            Ok(())
        })?;
        Ok(revoked.expect("found, or an error"))
    }

    fn change(
        &self,
        change: impl FnOnce(&mut Vec<KeyRecord>) -> Result<(), KeyFileError>,
    ) -> Result<(), KeyFileError> {
        let _lock = lock(&self.path.with_extension("lock")).map_err(KeyFileError::InUse)?;
        let mut records = self.read()?.unwrap_or_default();
        change(&mut records)?;
        let text = serde_json::to_string_pretty(&records).expect("records have only text keys");
        Ok(write_durably(&self.path, text.as_bytes(), FileAccess::Owner)?)
    }
}
