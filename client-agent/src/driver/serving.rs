//! Which base and adapter are served: read from disk into the engine, and followed there.

use std::{sync::Arc, time::Duration};

use thiserror::Error;

use super::status::SharedStatus;
use crate::{
    adapter::{Adapter, AdapterFolder, AdapterFolderError, Registry},
    engine::{Engine, EngineError, Serving, language::LanguageServer},
};

/// How often the disk is asked whether something else is to be served.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(300);

/// Says why something cannot be served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServingError {
    /// Base or adapter cannot be read or written.
    #[error(transparent)]
    Folder(Box<AdapterFolderError>),
    /// The engine does not take it.
    #[error("the model cannot be served")]
    Engine(#[from] EngineError),
}

impl From<AdapterFolderError> for ServingError {
    fn from(error: AdapterFolderError) -> Self {
        Self::Folder(Box::new(error))
    }
}

/// Makes ready what a registry says is served now.
///
/// # Errors
/// [`ServingError`] naming what is damaged.
pub fn serving(
    folder: &AdapterFolder,
    registry: &Registry,
) -> Result<Option<Serving>, ServingError> {
    let Some(current) = registry.current() else { return Ok(None) };
    let parameters = folder.read_base(&registry.model, current.base)?;
    let adapter = match current.adapter {
        Some(version) => Some((version, folder.read_adapter(registry, version)?)),
        None => None,
    };
    let on_top: Option<(u64, &Adapter)> =
        adapter.as_ref().map(|(version, adapter)| (*version, adapter));
    let serving = Serving::new(&registry.model, current.base, &parameters, on_top)?;
    Ok(Some(serving.for_dataset(registry.dataset.clone())))
}

/// Puts what was last served into the engine, if there is anything.
///
/// # Errors
/// [`ServingError`] naming what is damaged; the engine then goes on with what it has.
pub fn restore(folder: &AdapterFolder, engine: &Engine) -> Result<Option<Registry>, ServingError> {
    let Some(job) = folder.served_job()? else { return Ok(None) };
    let Some(registry) = folder.find(&job)? else { return Ok(None) };
    let shown = engine.serving().map(|serving| (serving.base(), serving.adapter()));
    let wanted = registry.current().map(|current| (current.base, current.adapter));
    if shown != wanted
        && let Some(serving) = serving(folder, &registry)?
    {
        engine.swap(serving);
    }
    Ok(Some(registry))
}

/// Follows what another process, such as `adapter activate`, makes the site serve, for ever.
pub async fn follow(folder: AdapterFolder, engine: Arc<Engine>, status: Arc<SharedStatus>) {
    let mut interval = tokio::time::interval(FOLLOW_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut seen = None;
    loop {
        interval.tick().await;
        let (folder, engine, status) = (folder.clone(), engine.clone(), status.clone());
        let followed = tokio::task::spawn_blocking(move || {
            let found = folder.fingerprint();
            if found.is_some() && found != seen {
                show(&folder, &engine, &status);
            }
            found
        });
        // Only a panic of the reader could get here; the next tick tries again.
        seen = followed.await.unwrap_or(seen);
    }
}

/// Follows what the folders of a language model's adapters hold, for ever.
pub async fn follow_adapters(server: Arc<LanguageServer>) {
    let mut interval = tokio::time::interval(FOLLOW_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let server = server.clone();
        let looked = tokio::task::spawn_blocking(move || server.look_for_adapters()).await;
        if let Err(error) = looked {
            tracing::error!(%error, "looking for adapters stopped abruptly");
        }
    }
}

fn show(folder: &AdapterFolder, engine: &Engine, status: &SharedStatus) {
    match restore(folder, engine) {
        Ok(Some(registry)) => status.serving(&registry),
        Ok(None) => {}
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "what is to be served cannot be; the engine goes on as it is");
        }
    }
}
