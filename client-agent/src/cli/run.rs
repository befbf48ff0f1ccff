//! `tributary-agent run` and `serve`.

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::json;
use tokio::{net::TcpListener, sync::watch};
use tributary_protocol::{
    id::TenantId,
    transport::{log, process},
};

use super::{
    CliError,
    options::{RunOptions, ServeOptions},
    privacy,
};
use crate::{
    adapter::AdapterFolder,
    api::{self, ApiState},
    compute::set_threads,
    config::{Config, serve_folder},
    data::TextReaders,
    driver::{
        self, Agent, AgentError,
        serving::{follow, follow_adapters, restore},
        status::SharedStatus,
    },
    durable_file::{Access, write_durably},
    engine::{
        Engine,
        language::{LanguageOptions, LanguageServer},
    },
    feedback::FeedbackStore,
    identity::Identity,
    keys::{Access as KeyAccess, KeyFile, Tenancy},
    policy::Policy,
    session::{Phase, View},
    site::Site,
};

/// Takes part in rounds and serves predictions until it is asked to stop.
pub(super) async fn run(options: RunOptions) -> Result<ExitCode, CliError> {
    let site = options.site.site();
    let config = Config::load(&site, &options.overrides.overrides())?;
    let policy = Policy::load(&site)?;
    let identity = Identity::load(&site)?;
    set_threads(config.threads)?;
    let stop = process::stop_requested(options.exit_with_stdin).map_err(AgentError::Signal)?;
    let metrics = install_metrics()?;
    let tenant = identity.coordinator.tenant.clone();
    log::name_tenant(&tenant);
    let listen = config.api_listen;
    let access = access(&site, config.language.as_ref(), tenant.clone())?;
    let language = start_language(config.language.clone())?;
    let texts = TextReaders::new(&config.datasets);
    let agent = Arc::new(Agent::open(site.clone(), config, policy, &identity)?);
    let (engine, status) = (agent.engine(), agent.status());
    let following = follow(AdapterFolder::new(&site), engine.clone(), status.clone());
    let following = tokio::spawn(following);
    let state = ApiState {
        engine: agent.engine(),
        texts,
        language,
        access,
        feedback: agent.feedback(),
        stopping: AtomicBool::new(false),
        status: agent.status(),
        metrics,
    };
    let api = Api::start(&site, listen, state).await?;
    tracing::info!(%tenant, address = identity.coordinator.address, "agent runs");
    driver::run(agent, identity, stop).await;
    following.abort();
    api.stop(&site).await
}

/// Serves what was last served, or a language model, without a coordinator.
pub(super) async fn serve(options: ServeOptions) -> Result<ExitCode, CliError> {
    let ServeOptions { run: options, language_model, device, adapter } = options;
    let site = options.site.site();
    let overrides = options.overrides.overrides();
    // A language model can be served before anything is set up.
    let alone = language_model.is_some() && !site.config().exists();
    let mut config = if alone {
        Config::parse("", &site, &overrides)?
    } else {
        Config::load(&site, &overrides)?
    };
    if let Some(folder) = language_model {
        let named = serve_folder(&folder);
        let configured = config.language.take();
        config.language = Some(match configured {
            Some(options) => LanguageOptions { model: named.model, name: named.name, ..options },
            None => named,
        });
    }
    match &mut config.language {
        Some(language) => {
            language.adapters.extend(adapter);
            language.device = device.unwrap_or(language.device);
        }
        None if adapter.is_empty() && device.is_none() => {}
        None => return Err(CliError::WithoutLanguageModel),
    }
    let tenant = match Identity::load(&site) {
        Ok(identity) => identity.coordinator.tenant,
        Err(error) => match &config.language {
            Some(_) if !site.identity().exists() => TenantId::new("local").expect("a valid name"),
            _ => return Err(error.into()),
        },
    };
    set_threads(config.threads)?;
    let stop = process::stop_requested(options.exit_with_stdin).map_err(AgentError::Signal)?;
    let metrics = install_metrics()?;
    let access = access(&site, config.language.as_ref(), tenant.clone())?;
    let feedback = driver::open_feedback(&site, config.feedback);
    let language = start_language(config.language)?;
    let engine = Arc::new(Engine::new());
    let folder = AdapterFolder::new(&site);
    let served = restore(&folder, &engine).map_err(|error| AgentError::Serving(Box::new(error)))?;
    let status = Arc::new(SharedStatus::new(tenant, Phase::Serving));
    match (privacy::Copy::read(&site), Policy::load(&site)) {
        (Ok(copy), Ok(policy)) => status.spent(&copy.ledger, &policy, process::now().0),
        // Serving spends nothing, so it does not depend on either.
        (Err(error), _) => tracing::warn!(%error, "the ledger cannot be shown"),
        (_, Err(error)) => tracing::warn!(%error, "the ledger cannot be shown"),
    }
    let current = served.as_ref().and_then(|registry| Some((registry, registry.current()?)));
    let detail = match current {
        Some((registry, current)) => {
            status.serving(registry);
            format!("version {} of {}", current.base_version, registry.job)
        }
        None if language.is_some() => "a language model".to_owned(),
        None => "no base has arrived yet; use `run` first".to_owned(),
    };
    let phase = Phase::Serving;
    status.show(View { phase, detail, round: None, refused: None, connected: false });
    let following = tokio::spawn(follow(folder, engine.clone(), status.clone()));
    let stopping = AtomicBool::new(false);
    let texts = TextReaders::new(&config.datasets);
    let state = ApiState { engine, texts, language, access, feedback, stopping, status, metrics };
    let api = Api::start(&site, config.api_listen, state).await?;
    stop.await;
    following.abort();
    api.stop(&site).await
}

/// The running HTTP interface.
struct Api {
    state: Arc<ApiState>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
    sweeper: tokio::task::JoinHandle<()>,
    /// Follows the language model's adapters, if there is one.
    following: Option<tokio::task::JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

impl Api {
    async fn start(
        site: &Site,
        address: std::net::SocketAddr,
        state: ApiState,
    ) -> Result<Self, CliError> {
        // An earlier run that was killed left its address; nothing answers there.
        let _ = std::fs::remove_file(site.endpoints());
        let failed = |source| AgentError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let (stop, mut stopped) = watch::channel(false);
        let state = Arc::new(state);
        let task = tokio::spawn(api::serve(listener, state.clone(), async move {
            // An error means that the sender is gone, which is a reason to stop too.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        }));
        let sweeper = tokio::spawn(sweep(state.feedback.clone()));
        let following = state.language.clone().map(|it| tokio::spawn(follow_adapters(it)));
        let document = json!({"api": format!("http://{bound}")}).to_string();
        write_durably(&site.endpoints(), document.as_bytes(), Access::Shared)?;
        if !bound.ip().is_loopback() && !state.access.needs_key() {
            tracing::warn!(api = %bound, "anyone may ask: `tributary-agent key add` makes a key");
        }
        tracing::info!(api = %bound, "serving");
        Ok(Self { state, task, sweeper, following, stop })
    }

    /// Finishes what is under way. New requests are refused with 503 as long as that takes, so that
    /// whoever sends them knows to go elsewhere.
    async fn stop(self, site: &Site) -> Result<ExitCode, CliError> {
        const PATIENCE: Duration = Duration::from_secs(2);
        const DRAIN: Duration = Duration::from_secs(30);
        self.state.stopping.store(true, Ordering::Relaxed);
        if let Some(following) = &self.following {
            following.abort();
        }
        if let Some(language) = &self.state.language {
            // What does not end in time is cut.
            let _ = tokio::time::timeout(DRAIN, language.drain()).await;
        }
        self.stop.send_replace(true);
        self.sweeper.abort();
        // Whoever reads a leftover address finds nobody there, so failing to remove it is no harm.
        let _ = std::fs::remove_file(site.endpoints());
        match tokio::time::timeout(PATIENCE, self.task).await {
            Ok(Ok(outcome)) => outcome.map_err(CliError::Api).map(|()| ExitCode::SUCCESS),
            // Requests in flight may be cut after that.
            Ok(Err(_)) | Err(_) => Ok(ExitCode::SUCCESS),
        }
    }
}

/// Drops predictions that have become too old, and makes the others durable.
async fn sweep(feedback: Option<Arc<FeedbackStore>>) {
    let Some(store) = feedback else { return };
    let mut minutes = tokio::time::interval(Duration::from_secs(60));
    loop {
        minutes.tick().await;
        let store = store.clone();
        let swept = tokio::task::spawn_blocking(move || store.sweep(process::now())).await;
        if let Ok(Err(error)) = swept {
            tracing::error!(%error, "the feedback cannot be tidied");
        }
    }
}

/// Who may ask: tenants of `[language]` and the keys of the site.
fn access(
    site: &Site,
    language: Option<&LanguageOptions>,
    own: TenantId,
) -> Result<KeyAccess, CliError> {
    let keys = KeyFile::new(site.keys());
    let tenancy = match language {
        Some(options) => options.tenancy(own, keys),
        None => Tenancy { own, contexts: Vec::new(), key_files: Vec::new(), keys },
    };
    Ok(KeyAccess::open(tenancy)?)
}

/// Loads and starts the language model, if there is one.
fn start_language(
    options: Option<LanguageOptions>,
) -> Result<Option<Arc<LanguageServer>>, CliError> {
    let Some(options) = options else { return Ok(None) };
    let server = LanguageServer::start(options)?;
    let model = server.shared();
    let (name, base) = (&model.name, model.base.short());
    tracing::info!(name, base, context_max = model.context_max, "language model loaded");
    Ok(Some(Arc::new(server)))
}

fn install_metrics() -> Result<PrometheusHandle, AgentError> {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(AgentError::Metrics)?;
    metrics::describe_counter!("tributary_predictions", "Inputs answered");
    metrics::describe_counter!("tributary_rounds_released", "Updates debited for release");
    metrics::describe_counter!("tributary_update_bytes_sent", "Bytes of updates sent");
    metrics::describe_gauge!("tributary_epsilon_spent", "Epsilon spent, by dataset");
    metrics::describe_counter!("tributary_requests", "Language requests, by tenant and outcome");
    metrics::describe_counter!("tributary_tokens", "Tokens, by tenant and kind");
    metrics::describe_histogram!("tributary_queue_seconds", "Arrival to first batch, by tenant");
    metrics::describe_histogram!(
        "tributary_first_token_seconds",
        "Arrival to first token, by tenant"
    );
    metrics::describe_histogram!(
        "tributary_answer_tokens_per_second",
        "Tokens a second of one answer after the first, by tenant"
    );
    metrics::describe_gauge!("tributary_requests_held", "Requests taken and not ended, by tenant");
    metrics::describe_gauge!("tributary_cache_blocks_held", "Blocks in use, by tenant");
    metrics::describe_counter!("tributary_rejections", "Requests refused, by tenant and reason");
    metrics::describe_counter!("tributary_feedback", "Outcomes told, by whether they were new");
    metrics::describe_gauge!("tributary_predictions_kept", "Predictions kept, by outcome");
    metrics::describe_gauge!("tributary_feedback_accuracy", "Part of predictions that was right");
    metrics::describe_gauge!("tributary_prediction_shift", "Shift of predicted classes");
    metrics::describe_gauge!("tributary_connected", "1 while the coordinator has welcomed us");
    Ok(handle)
}
