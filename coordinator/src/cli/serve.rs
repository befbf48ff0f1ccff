//! `serve`: the running coordinator.

use std::io::IsTerminal;

use anyhow::Context;
use metrics_exporter_prometheus::PrometheusBuilder;
use quinn::VarInt;
use tokio::net::TcpListener;
use tracing::info;
use tributary_protocol::{
    error_code::ErrorCode,
    id::Digest,
    transport::{endpoint, process, tls},
};

use super::{Common, ListenFlags};
use tributary_coordinator::{
    api::{self, ApiState},
    blobs::BlobStore,
    config::Endpoints,
    driver::{self, Core},
    store::SledStore,
    tenants::authority,
};

pub(super) fn run(
    common: &Common,
    listen: &ListenFlags,
    exit_with_stdin: bool,
) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(
        common,
        listen,
        exit_with_stdin,
    ))
}

async fn serve(common: &Common, listen: &ListenFlags, exit_with_stdin: bool) -> anyhow::Result<()> {
    let stop = process::stop_requested(exit_with_stdin).context("cannot hear the stop signal")?;
    let folder = common.folder();
    let config = folder.config()?;
    let authority = folder.authority()?;
    let identity = authority::server_identity(&folder.server()?, &authority)?;
    let tls = tls::server(identity.clone(), authority.certificate())?;
    let token = Digest::of(folder.admin_token()?.as_bytes());
    let store = SledStore::open(&folder.join("store"))?;
    folder.retract()?;
    let metrics =
        PrometheusBuilder::new().install_recorder().context("metrics are already installed")?;

    let core =
        Core::restore(Box::new(store), BlobStore::open(folder.path())?, authority, identity)?;
    let (core, mut stopped) = core.spawn();
    let quic = endpoint::listen(listen.quic_listen.unwrap_or(config.listen.quic), tls)?;
    let api_address = listen.api_listen.unwrap_or(config.listen.api);
    let api = TcpListener::bind(api_address)
        .await
        .with_context(|| format!("cannot listen on {api_address}"))?;
    let endpoints =
        Endpoints { quic: quic.local_addr()?, api: format!("http://{}", api.local_addr()?) };
    tokio::spawn(driver::listen(quic.clone(), core.clone()));
    tokio::spawn(
        async move { axum::serve(api, api::router(ApiState { core, token, metrics })).await },
    );
    folder.announce(&endpoints)?;
    info!(quic = %endpoints.quic, api = %endpoints.api, "serving");

    let result = tokio::select! {
        core = &mut stopped => core.context("the core task panicked")?.context("stopped"),
        () = stop => Ok(()),
    };
    info!("stopping");
    folder.retract()?;
    quic.close(
        VarInt::from_u32(ErrorCode::ShuttingDown.number().into()),
        b"the coordinator is stopping",
    );
    quic.wait_idle().await;
    result
}
