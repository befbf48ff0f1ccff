use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tributary_protocol::{
    id::{Digest, Region, TenantId},
    isolation::{Isolation, ModelIsolation},
    time::Timestamp,
};

use super::{KeyFile, KeyFileError, KeyRecord, KeyRole};
use crate::{
    durable_file::{FileError, read_text},
    engine::generation::TenantShare,
};

/// Characters of a key in a file of its own, at least.
const KEY_LENGTH_MIN: usize = 16;

/// Who a tenant is to this agent, and what it may have here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantContext {
    /// Who.
    pub id: TenantId,
    /// Where its requests may be answered; without it, anywhere.
    pub region: Option<Region>,
    /// How far it is kept apart from the others.
    pub isolation: Isolation,
    /// Its share of the engine.
    pub share: TenantShare,
    /// Language adapters that it may use; nothing means all there are.
    pub adapters: Option<BTreeSet<String>>,
}

impl TenantContext {
    /// A tenant without adapters or quotas, at the lowest isolation levels.
    #[must_use]
    pub fn new(id: TenantId) -> Self {
        let (isolation, share) = (Isolation::default(), TenantShare::default());
        Self { id, region: None, isolation, share, adapters: Some(BTreeSet::new()) }
    }

    /// The agent's own tenant: everything that is not given to others.
    #[must_use]
    pub fn own(id: TenantId) -> Self {
        let isolation = Isolation { model: ModelIsolation::Adapter, ..Isolation::default() };
        Self { isolation, adapters: None, ..Self::new(id) }
    }

    /// Whether it may use an adapter of this name.
    #[must_use]
    pub fn may_use(&self, adapter: &str) -> bool {
        self.isolation.model > ModelIsolation::BaseOnly
            && self.adapters.as_ref().is_none_or(|allowed| allowed.contains(adapter))
    }
}

/// Who may ask, as it is configured.
#[derive(Debug, Clone)]
pub struct Tenancy {
    /// The agent's own tenant.
    pub own: TenantId,
    /// Tenants with a configuration of their own.
    pub contexts: Vec<TenantContext>,
    /// Files that each hold one tenant's key.
    pub key_files: Vec<(TenantId, PathBuf)>,
    /// `keys.json`.
    pub keys: KeyFile,
}

/// Whose request it is and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The tenant.
    pub tenant: Arc<TenantContext>,
    /// What its key is for.
    pub roles: BTreeSet<KeyRole>,
    /// The key's id; none for keys in files of their own, and where no keys are needed.
    pub key: Option<String>,
}

/// Says why a request is not answered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Denied {
    /// No key.
    #[error("an API key is needed; send it as `Authorization: Bearer KEY`")]
    Missing,
    /// A key that nobody has.
    #[error("the API key is unknown or revoked; `tributary-agent key list` shows those that work")]
    Unknown,
    /// A key whose time is over.
    #[error("the API key has expired; ask for a new one")]
    Expired,
    /// A key for something else.
    #[error("the API key is not for this: it lacks the role `{needed}`")]
    Role {
        /// The role that would do.
        needed: &'static str,
    },
    /// Something that belongs to another tenant.
    #[error("this belongs to another tenant than the API key")]
    Tenant,
}

/// Says why nobody can be told apart.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AccessError {
    /// `keys.json` cannot be used.
    #[error("the API keys cannot be read")]
    Keys(#[from] KeyFileError),
    /// A key file cannot be read.
    #[error("the API key of tenant {tenant} cannot be read")]
    KeyFile {
        /// The tenant.
        tenant: TenantId,
        /// Why.
        #[source]
        source: FileError,
    },
    /// A key is too short to be a secret, or two tenants have the same one.
    #[error("the API key of tenant {tenant} must be its own and have at least 16 characters")]
    Key {
        /// The tenant.
        tenant: TenantId,
    },
}

/// Tells callers apart.
#[derive(Debug)]
pub struct Access {
    own: Arc<TenantContext>,
    contexts: BTreeMap<TenantId, Arc<TenantContext>>,
    from_files: HashMap<Digest, TenantId>,
    keys: KeyFile,
    loaded: Mutex<Loaded>,
}

/// `keys.json` as it was last read.
#[derive(Debug, Default)]
struct Loaded {
    /// What told that version of the file from others.
    mark: Option<Mark>,
    /// Nothing if the file did not exist.
    records: Option<HashMap<Digest, KeyRecord>>,
}

/// Tells versions of a file apart.
#[derive(Debug, PartialEq)]
struct Mark {
    modified: SystemTime,
    length: u64,
    node: u64,
}

impl Access {
    /// Reads all keys.
    ///
    /// # Errors
    /// [`AccessError`] naming what cannot be used.
    pub fn open(tenancy: Tenancy) -> Result<Self, AccessError> {
        let Tenancy { own, contexts, key_files, keys } = tenancy;
        let mut from_files = HashMap::new();
        for (tenant, file) in key_files {
            let key = read_text(&file)
                .map_err(|source| AccessError::KeyFile { tenant: tenant.clone(), source })?;
            let key = key.trim();
            let taken = from_files.insert(Digest::of(key.as_bytes()), tenant.clone());
            if key.len() < KEY_LENGTH_MIN || taken.is_some() {
                return Err(AccessError::Key { tenant });
            }
        }
        let contexts: BTreeMap<_, _> =
            contexts.into_iter().map(|context| (context.id.clone(), Arc::new(context))).collect();
        let own = contexts.get(&own).cloned().unwrap_or_else(|| Arc::new(TenantContext::own(own)));
        let mark = mark(&keys);
        let loaded = Mutex::new(Loaded { mark, records: read(&keys)? });
        Ok(Self { own, contexts, from_files, keys, loaded })
    }

    /// Whether requests need a key: once there is a tenant with a key file or a `keys.json`, even
    /// if every key in it was revoked.
    #[must_use]
    pub fn needs_key(&self) -> bool {
        !self.from_files.is_empty() || self.with_records(|records| records.is_some())
    }

    /// The agent's own tenant.
    #[must_use]
    pub fn own(&self) -> &TenantId {
        &self.own.id
    }

    /// Who asks with this key, or without one.
    ///
    /// # Errors
    /// [`Denied`] if nobody has the key.
    pub fn caller(&self, key: Option<&str>, now: Timestamp) -> Result<Caller, Denied> {
        let Some(key) = key else {
            if self.needs_key() {
                return Err(Denied::Missing);
            }
            let roles = KeyRole::of_tenant().into_iter().chain([KeyRole::Operator]).collect();
            return Ok(Caller { tenant: self.own.clone(), roles, key: None });
        };
        let digest = Digest::of(key.as_bytes());
        if let Some(tenant) = self.from_files.get(&digest) {
            let tenant = self.context(tenant);
            return Ok(Caller { tenant, roles: KeyRole::of_tenant(), key: None });
        }
        let record = self.with_records(|records| records.as_ref()?.get(&digest).cloned());
        match record {
            Some(record) if record.expires.is_some_and(|expires| expires <= now) => {
                Err(Denied::Expired)
            }
            Some(KeyRecord { id, tenant, roles, .. }) => {
                Ok(Caller { tenant: self.context(&tenant), roles, key: Some(id) })
            }
            // Clients of OpenAI's interface always send some key.
            None if !self.needs_key() => self.caller(None, now),
            None => Err(Denied::Unknown),
        }
    }

    fn context(&self, tenant: &TenantId) -> Arc<TenantContext> {
        if *tenant == self.own.id {
            return self.own.clone();
        }
        let known = self.contexts.get(tenant).cloned();
        known.unwrap_or_else(|| Arc::new(TenantContext::new(tenant.clone())))
    }

    /// Looks at the newest readable version of the file.
    fn with_records<T>(&self, look: impl FnOnce(&Option<HashMap<Digest, KeyRecord>>) -> T) -> T {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = mark(&self.keys);
        if mark != loaded.mark {
            loaded.mark = mark;
            match read(&self.keys) {
                // A file that is gone opens nothing to strangers before a restart.
                Ok(None) if loaded.records.is_some() => loaded.records = Some(HashMap::new()),
                Ok(records) => loaded.records = records,
                Err(error) => tracing::error!(%error, "the keys that were read before still count"),
            }
        }
        look(&loaded.records)
    }
}

impl Caller {
    /// Whether the key is for this. Whoever operates the agent may also view.
    ///
    /// # Errors
    /// [`Denied::Role`] if it is not.
    pub fn require(&self, role: KeyRole) -> Result<(), Denied> {
        let operates = role == KeyRole::Viewer && self.roles.contains(&KeyRole::Operator);
        let has = operates || self.roles.contains(&role);
        has.then_some(()).ok_or(Denied::Role { needed: role.name() })
    }
}

fn read(keys: &KeyFile) -> Result<Option<HashMap<Digest, KeyRecord>>, KeyFileError> {
    let by_digest =
        |records: Vec<KeyRecord>| records.into_iter().map(|one| (one.digest, one)).collect();
    Ok(keys.read()?.map(by_digest))
}

/// A file is replaced whole, so time, length and node tell every version from the one before.
fn mark(keys: &KeyFile) -> Option<Mark> {
    let metadata = std::fs::metadata(keys.path()).ok()?;
    #[cfg(unix)]
    let node = std::os::unix::fs::MetadataExt::ino(&metadata);
    #[cfg(not(unix))]
    let node = 0;
    Some(Mark { modified: metadata.modified().ok()?, length: metadata.len(), node })
}
