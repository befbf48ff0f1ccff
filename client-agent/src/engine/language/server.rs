use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use tributary_protocol::{
    id::{Digest, TenantId},
    isolation::{ComputeIsolation, Isolation, ModelIsolation},
};

use super::{
    LanguageError, LanguageModel, LanguageOptions, ProcessOptions, TenantOptions, follow::Followed,
};
use crate::{
    compute::ComputeDevice,
    engine::generation::{Generator, Limits, Program, Ready, Scheduler, TenantShare},
    model::{
        checkpoint::{Checkpoint, GenerationDefaults},
        decoder::{Decoder, DecoderAdapter, DecoderConfig},
        peft::PeftError,
    },
    text::{ChatTemplate, Tokenizer},
};

/// The hidden command that a dedicated process runs.
pub const PROCESS_COMMAND: &str = "engine-process";

/// The language models of an agent: one that tenants share, and those of tenants kept apart.
pub struct LanguageServer {
    shared: Arc<LanguageModel>,
    dedicated: BTreeMap<TenantId, Arc<LanguageModel>>,
    followed: Mutex<Vec<Followed>>,
}

/// What is read from folders.
#[derive(Clone)]
struct Loaded {
    name: String,
    base: Digest,
    decoder: Arc<Decoder>,
    device: ComputeDevice,
    tokenizer: Arc<Tokenizer>,
    chat_template: Option<Arc<ChatTemplate>>,
    generation: GenerationDefaults,
    adapters: BTreeMap<String, Arc<DecoderAdapter>>,
}

impl LanguageServer {
    /// Loads everything and starts the engines.
    ///
    /// # Errors
    /// [`LanguageError`] naming what cannot be used.
    pub fn start(options: LanguageOptions) -> Result<Self, LanguageError> {
        let device = ComputeDevice::open(options.device, options.precision)?;
        tracing::info!(%device, "language models compute");
        // Looked at before they are read, so that a change from now on shows.
        let followed = options.adapters.iter().map(|(name, folder)| Followed::new(name, folder));
        let followed = Mutex::new(followed.collect());
        let loaded =
            Loaded::read(&options.model, options.name.clone(), &options.adapters, &device)?;
        for tenant in &options.tenants {
            let unknown = |name: &&String| !options.adapters.contains_key(*name);
            if let Some(name) = tenant.context.adapters.iter().flatten().find(unknown) {
                let (tenant, name) = (tenant.context.id.clone(), name.clone());
                return Err(LanguageError::UnknownAdapter { tenant, name });
            }
        }
        let (apart, together): (Vec<TenantOptions>, Vec<TenantOptions>) =
            options.tenants.iter().cloned().partition(is_apart);
        let shares = together.into_iter().map(|tenant| (tenant.context.id, tenant.context.share));
        let start = Start { options: &options, loaded: &loaded };
        let shared = start.queue(&loaded, options.limits, shares.collect(), None)?;
        let mut dedicated = BTreeMap::new();
        for tenant in apart {
            let id = tenant.context.id.clone();
            let model = start.dedicated(tenant)?;
            tracing::info!(tenant = %id, context_max = model.context_max, "served apart");
            dedicated.insert(id, Arc::new(model));
        }
        Ok(Self { shared: Arc::new(shared), dedicated, followed })
    }

    /// The model that answers a tenant.
    #[must_use]
    pub fn of(&self, tenant: &TenantId) -> &Arc<LanguageModel> {
        self.dedicated.get(tenant).unwrap_or(&self.shared)
    }

    /// The model of tenants that share.
    #[must_use]
    pub const fn shared(&self) -> &Arc<LanguageModel> {
        &self.shared
    }

    /// Looks whether adapters' folders have changed, and serves what is new in them. Blocks while an
    /// adapter is read; requests go on meanwhile.
    ///
    /// A change counts once two looks in a row have seen the same, as a folder's files appear one
    /// after the other. What cannot be read leaves the version before it serving.
    pub fn look_for_adapters(&self) {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let models: Vec<&LanguageModel> = self.models().map(AsRef::as_ref).collect();
        followed.iter_mut().for_each(|followed| followed.look(&models));
    }

    fn models(&self) -> impl Iterator<Item = &Arc<LanguageModel>> {
        std::iter::once(&self.shared).chain(self.dedicated.values())
    }

    /// Refuses new requests and waits until those that were taken have ended.
    pub async fn drain(&self) {
        // All refuse from now on; waiting for one after the other loses nothing.
        let waits: Vec<_> = self.models().map(|model| model.generator.drain()).collect();
        for drained in waits {
            drained.await;
        }
    }
}

/// Whether a tenant has a queue of its own. An independent copy cannot share batches.
fn is_apart(tenant: &TenantOptions) -> bool {
    let Isolation { model, compute, .. } = tenant.context.isolation;
    model == ModelIsolation::IndependentCopy || compute > ComputeIsolation::SharedQueue
}

struct Start<'a> {
    options: &'a LanguageOptions,
    loaded: &'a Loaded,
}

impl Start<'_> {
    fn dedicated(&self, tenant: TenantOptions) -> Result<LanguageModel, LanguageError> {
        let Isolation { model, compute, .. } = tenant.context.isolation;
        let own = |name: &String| tenant.context.may_use(name);
        let in_process = compute == ComputeIsolation::DedicatedDevice;
        let own_device = tenant.device.filter(|_| !in_process);
        let loaded = if model == ModelIsolation::IndependentCopy || own_device.is_some() {
            let folder = tenant.model.as_ref().unwrap_or(&self.options.model);
            let device = match own_device {
                Some(choice) => ComputeDevice::open(choice, self.options.precision)?,
                // The process has the weights; here only its texts and adapters' names are read.
                None if in_process => ComputeDevice::cpu(),
                None => self.loaded.device.clone(),
            };
            let mut adapters = self.options.adapters.clone();
            adapters.retain(|name, _| own(name));
            Loaded::read(folder, self.options.name.clone(), &adapters, &device)?
        } else {
            let mut loaded = self.loaded.clone();
            loaded.adapters.retain(|name, _| own(name));
            loaded
        };
        let cache_bytes = tenant.cache_bytes.unwrap_or(self.options.limits.cache_bytes);
        let limits = Limits { cache_bytes, ..self.options.limits };
        if in_process {
            return self.process(tenant, loaded, limits);
        }
        let shares = HashMap::from([(tenant.context.id.clone(), tenant.context.share)]);
        let threads = (compute == ComputeIsolation::DedicatedWorker).then_some(tenant.threads);
        self.queue(&loaded, limits, shares, threads)
    }

    /// A queue over what is loaded.
    ///
    /// - `threads`: of compute threads of its own; without it, it uses the process's
    fn queue(
        &self,
        loaded: &Loaded,
        limits: Limits,
        shares: HashMap<TenantId, TenantShare>,
        threads: Option<usize>,
    ) -> Result<LanguageModel, LanguageError> {
        let (decoder, tokenizer) = (loaded.decoder.clone(), loaded.tokenizer.clone());
        let scheduler = Scheduler::new(decoder, tokenizer, loaded.base, limits, shares)
            .map_err(|source| no_room(&loaded.device, source))?;
        let context_max = scheduler.context_max();
        if context_max == 0 {
            return Err(LanguageError::Cache { bytes: limits.cache_bytes });
        }
        let pool = match threads {
            Some(threads) => Some(rayon::ThreadPoolBuilder::new().num_threads(threads).build()?),
            None => None,
        };
        let generator = Generator::start(scheduler, pool).map_err(LanguageError::Thread)?;
        Ok(self.served(loaded.clone(), generator, context_max))
    }

    /// A process of its own, which reads weights and adapters itself.
    fn process(
        &self,
        tenant: TenantOptions,
        loaded: Loaded,
        limits: Limits,
    ) -> Result<LanguageModel, LanguageError> {
        let TenantOptions { context, model, device, threads, .. } = tenant;
        let copy = context.isolation.model == ModelIsolation::IndependentCopy;
        let folder = model.filter(|_| copy).unwrap_or_else(|| self.options.model.clone());
        let id = context.id.clone();
        let adapters = loaded.adapters.keys().map(|name| self.options.adapters[name].clone());
        let options = ProcessOptions {
            adapters: adapters.collect(),
            model: folder,
            tenant: context,
            device: device.unwrap_or(self.options.device),
            precision: self.options.precision,
            limits,
            threads,
        };
        let program = Program {
            path: self.options.program.clone(),
            arguments: vec![PROCESS_COMMAND.to_owned()],
            greeting: serde_json::to_string(&options).expect("options have only text keys"),
            tenant: id.clone(),
        };
        let (generator, ready) = Generator::start_process(program)
            .map_err(|source| LanguageError::Process { tenant: id, source })?;
        debug_assert_eq!(ready.base, loaded.base, "both read the same folder");
        Ok(self.served(loaded, generator, ready.context_max))
    }

    /// What answers requests, wherever its generator runs.
    fn served(&self, loaded: Loaded, generator: Generator, context_max: usize) -> LanguageModel {
        let Loaded { name, base, decoder, tokenizer, chat_template, generation, adapters, .. } =
            loaded;
        let adapters = adapters.into_iter().map(|(name, it)| (name, ArcSwap::new(it))).collect();
        LanguageModel {
            name,
            base,
            tokenizer,
            chat_template,
            generation,
            generator,
            answer_timeout_ms: self.options.answer_timeout_ms,
            context_max,
            config: decoder.config().clone(),
            adapters,
        }
    }
}

/// The engine of a dedicated process.
pub struct LanguageProcess {
    /// Answers requests.
    pub generator: Generator,
    /// What the agent is told of it.
    pub ready: Ready,
    config: DecoderConfig,
    /// By folder the version that was read last and, for requests on their way, the one before.
    adapters: Mutex<BTreeMap<PathBuf, Vec<Arc<DecoderAdapter>>>>,
}

impl LanguageProcess {
    /// Loads everything and starts the engine.
    ///
    /// # Errors
    /// [`LanguageError`] naming what cannot be used.
    pub fn start(options: &ProcessOptions) -> Result<Self, LanguageError> {
        let ProcessOptions { tenant, model, adapters, device, precision, limits, threads: _ } =
            options;
        let device = ComputeDevice::open(*device, *precision)?;
        let Checkpoint { digest: base, decoder, tokenizer, .. } = Checkpoint::open(model)?;
        let decoder = on(decoder, &device)?;
        let config = decoder.config().clone();
        let mut by_folder = BTreeMap::new();
        for folder in adapters {
            let adapter = DecoderAdapter::open(folder, &config, base).map_err(|source| {
                LanguageError::Adapter { name: folder.display().to_string(), source }
            })?;
            by_folder.insert(folder.clone(), vec![Arc::new(adapter)]);
        }
        let shares = HashMap::from([(tenant.id.clone(), tenant.share)]);
        let (decoder, tokenizer) = (Arc::new(decoder), Arc::new(tokenizer));
        let scheduler = Scheduler::new(decoder, tokenizer, base, *limits, shares)
            .map_err(|source| no_room(&device, source))?;
        let context_max = scheduler.context_max();
        if context_max == 0 {
            return Err(LanguageError::Cache { bytes: limits.cache_bytes });
        }
        let generator = Generator::start(scheduler, None).map_err(LanguageError::Thread)?;
        let (ready, adapters) = (Ready { base, context_max }, Mutex::new(by_folder));
        Ok(Self { generator, ready, config, adapters })
    }

    /// The adapter that a digest names.
    #[must_use]
    pub fn adapter(&self, digest: Digest) -> Option<Arc<DecoderAdapter>> {
        let adapters = self.adapters.lock().unwrap_or_else(PoisonError::into_inner);
        adapters.values().flatten().find(|adapter| adapter.digest() == digest).cloned()
    }

    /// Reads an adapter's folder anew; returns the digest of what can be used from now on.
    ///
    /// # Errors
    /// [`PeftError`] naming what cannot be read; nothing has changed then.
    pub fn read_adapter(&self, folder: &Path) -> Result<Digest, PeftError> {
        let adapter = DecoderAdapter::open(folder, &self.config, self.ready.base)?;
        let digest = adapter.digest();
        let mut adapters = self.adapters.lock().unwrap_or_else(PoisonError::into_inner);
        let versions = adapters.entry(folder.to_owned()).or_default();
        if versions.last().is_none_or(|last| last.digest() != digest) {
            versions.push(Arc::new(adapter));
            versions.drain(..versions.len().saturating_sub(2));
        }
        Ok(digest)
    }
}

/// A decoder with its weights where it computes.
fn on(decoder: Decoder, device: &ComputeDevice) -> Result<Decoder, LanguageError> {
    decoder.on(device).map_err(|source| no_room(device, source))
}

fn no_room(device: &ComputeDevice, source: candle_core::Error) -> LanguageError {
    LanguageError::Memory { device: device.to_string(), source }
}

impl Loaded {
    fn read(
        folder: &Path,
        name: String,
        folders: &BTreeMap<String, PathBuf>,
        device: &ComputeDevice,
    ) -> Result<Self, LanguageError> {
        let Checkpoint { digest, decoder, tokenizer, chat_template, generation } =
            Checkpoint::open(folder)?;
        let mut adapters = BTreeMap::new();
        for (adapter, folder) in folders {
            if *adapter == name {
                return Err(LanguageError::Name { name });
            }
            match DecoderAdapter::open(folder, decoder.config(), digest) {
                Ok(found) => adapters.insert(adapter.clone(), Arc::new(found)),
                Err(source) => {
                    return Err(LanguageError::Adapter { name: adapter.clone(), source });
                }
            };
        }
        Ok(Self {
            name,
            base: digest,
            decoder: Arc::new(on(decoder, device)?),
            device: device.clone(),
            tokenizer: Arc::new(tokenizer),
            chat_template: chat_template.map(Arc::new),
            generation,
            adapters,
        })
    }
}
