//! `tributary-agent run` and `serve`.

use std::{process::ExitCode, sync::Arc};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::json;
use tokio::{net::TcpListener, sync::watch};
use tributary_protocol::transport::process;

use super::{CliError, options::RunOptions, privacy};
use crate::{
    api::{self, ApiState},
    compute::set_threads,
    config::Config,
    driver::{self, Agent, AgentError, serving::Served, status::SharedStatus},
    durable_file::{Access, write_durably},
    engine::Engine,
    identity::Identity,
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
    let listen = config.api_listen;
    let agent = Arc::new(Agent::open(site.clone(), config, policy, &identity)?);
    let state = ApiState { engine: agent.engine(), status: agent.status(), metrics };
    let api = Api::start(&site, listen, state).await?;
    tracing::info!(%tenant, address = identity.coordinator.address, "agent runs");
    driver::run(agent, identity, stop).await;
    api.stop(&site).await
}

/// Serves what was last served, without a coordinator.
pub(super) async fn serve(options: RunOptions) -> Result<ExitCode, CliError> {
    let site = options.site.site();
    let config = Config::load(&site, &options.overrides.overrides())?;
    let identity = Identity::load(&site)?;
    set_threads(config.threads)?;
    let stop = process::stop_requested(options.exit_with_stdin).map_err(AgentError::Signal)?;
    let metrics = install_metrics()?;
    let engine = Arc::new(Engine::new());
    let served =
        Served::restore(&site, &engine).map_err(|error| AgentError::Serving(Box::new(error)))?;
    let status = Arc::new(SharedStatus::new(identity.coordinator.tenant, Phase::Serving));
    match (privacy::Copy::read(&site), Policy::load(&site)) {
        (Ok(copy), Ok(policy)) => status.spent(&copy.ledger, &policy, process::now().0),
        // Serving spends nothing, so it does not depend on either.
        (Err(error), _) => tracing::warn!(%error, "the ledger cannot be shown"),
        (_, Err(error)) => tracing::warn!(%error, "the ledger cannot be shown"),
    }
    let detail = match &served.current {
        Some(current) => {
            status.serving(current.base, current.adapter);
            format!("version {} of {}", current.base_version, current.job)
        }
        None => "no base has arrived yet; use `run` first".to_owned(),
    };
    let phase = Phase::Serving;
    status.show(View { phase, detail, round: None, refused: None, connected: false });
    let api = Api::start(&site, config.api_listen, ApiState { engine, status, metrics }).await?;
    stop.await;
    api.stop(&site).await
}

/// The running HTTP interface.
struct Api {
    task: tokio::task::JoinHandle<std::io::Result<()>>,
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
        let task = tokio::spawn(api::serve(listener, Arc::new(state), async move {
            // An error means that the sender is gone, which is a reason to stop too.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        }));
        let document = json!({"api": format!("http://{bound}")}).to_string();
        write_durably(&site.endpoints(), document.as_bytes(), Access::Shared)?;
        if !bound.ip().is_loopback() {
            tracing::warn!(api = %bound, "the interface has no passwords; keep it inside the site");
        }
        tracing::info!(api = %bound, "serving");
        Ok(Self { task, stop })
    }

    async fn stop(self, site: &Site) -> Result<ExitCode, CliError> {
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);
        self.stop.send_replace(true);
        // Whoever reads a leftover address finds nobody there, so failing to remove it is no harm.
        let _ = std::fs::remove_file(site.endpoints());
        match tokio::time::timeout(PATIENCE, self.task).await {
            Ok(Ok(outcome)) => outcome.map_err(CliError::Api).map(|()| ExitCode::SUCCESS),
            // Requests in flight may be cut after that.
            Ok(Err(_)) | Err(_) => Ok(ExitCode::SUCCESS),
        }
    }
}

fn install_metrics() -> Result<PrometheusHandle, AgentError> {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(AgentError::Metrics)?;
    metrics::describe_counter!("tributary_predictions", "Inputs answered");
    metrics::describe_counter!("tributary_rounds_released", "Updates debited for release");
    metrics::describe_counter!("tributary_update_bytes_sent", "Bytes of updates sent");
    metrics::describe_gauge!("tributary_epsilon_spent", "Epsilon spent, by dataset");
    metrics::describe_gauge!("tributary_connected", "1 while the coordinator has welcomed us");
    Ok(handle)
}
