//! Adapters whose folders change while they are served.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use thiserror::Error;
use tributary_protocol::id::Digest;

use super::LanguageModel;
use crate::model::{
    decoder::DecoderAdapter,
    peft::{FILES, PeftError},
};

/// An adapter's folder.
pub(super) struct Followed {
    name: String,
    folder: PathBuf,
    /// What the last look saw.
    seen: Option<Stamp>,
    /// What was last read, whether or not it could be used.
    read: Option<Stamp>,
}

/// Lengths and times of the folder's files: they change with the content.
type Stamp = [(u64, SystemTime); FILES.len()];

/// Why a version is not served.
#[derive(Debug, Error)]
enum NotServed {
    #[error("the folder is not usable")]
    Folder(#[from] PeftError),
    #[error("the process of a tenant has not read it")]
    Process,
    #[error("the folder has changed meanwhile")]
    Changed,
}

impl Followed {
    /// A folder that is about to be read for the first time.
    pub(super) fn new(name: &str, folder: &Path) -> Self {
        let read = stamp(folder);
        Self { name: name.to_owned(), folder: folder.to_owned(), seen: read, read }
    }

    /// Looks at the folder; serves what it holds if that is new and has stopped changing.
    pub(super) fn look(&mut self, models: &[&LanguageModel]) {
        let now = stamp(&self.folder);
        let settled = std::mem::replace(&mut self.seen, now) == now;
        // A folder that is gone is about to come back, or nobody asks for it any more.
        if !settled || now.is_none() || now == self.read {
            return;
        }
        let name = &self.name;
        match self.serve(models) {
            Ok(()) => {}
            Err(error @ (NotServed::Process | NotServed::Changed)) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(adapter = name, error, "the next look tries again");
                return;
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(adapter = name, error, "the version before it goes on");
            }
        }
        self.read = now;
    }

    /// Reads the folder for every model that has the adapter, and only then serves it.
    fn serve(&self, models: &[&LanguageModel]) -> Result<(), NotServed> {
        // Models over one base share the memory.
        let mut read: Vec<(Digest, Arc<DecoderAdapter>)> = Vec::new();
        let mut ready = Vec::new();
        for model in models {
            let Some(place) = model.adapters.get(&self.name) else { continue };
            let known = read.iter().find(|(base, _)| *base == model.base);
            let adapter = match known {
                Some((_, adapter)) => adapter.clone(),
                None => {
                    let adapter = DecoderAdapter::open(&self.folder, &model.config, model.base)?;
                    let adapter = Arc::new(adapter);
                    read.push((model.base, adapter.clone()));
                    adapter
                }
            };
            if place.load().digest() == adapter.digest() {
                continue;
            }
            if model.generator.learn(&self.folder, adapter.digest()) {
                ready.push((place, adapter));
            } else {
                return Err(NotServed::Process);
            }
        }
        // What was read while the files changed could be part of two versions.
        if stamp(&self.folder) != self.seen {
            return Err(NotServed::Changed);
        }
        for (place, adapter) in ready {
            tracing::info!(adapter = self.name, digest = %adapter.digest(), "a new version is served");
            place.store(adapter);
        }
        Ok(())
    }
}

fn stamp(folder: &Path) -> Option<Stamp> {
    let mut stamp = [(0, SystemTime::UNIX_EPOCH); FILES.len()];
    for (place, file) in stamp.iter_mut().zip(FILES) {
        let metadata = fs::metadata(folder.join(file)).ok()?;
        *place = (metadata.len(), metadata.modified().ok()?);
    }
    Some(stamp)
}
