//! `serve`: the running coordinator.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use anyhow::Context;
use quinn::VarInt;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tracing::info;
use tributary_protocol::{
    error_code::ErrorCode,
    id::Digest,
    transport::{
        endpoint::{self, Listening},
        process, tls,
    },
};

use super::{Common, ListenFlags};
use tributary_coordinator::{
    access::{RateLimit, RateLimits, oidc::Oidc},
    api::{self, ApiState, TlsListener},
    blobs::BlobStore,
    config::Endpoints,
    driver::{
        self, Core,
        rotation::{self, ApiRotation, Rotation},
    },
    store::SledStore,
    tenants::authority,
};

/// Threads that wait for the disk. Each keeps memory of its own for good, so their number must not
/// follow that of the agents; a disk serves no more requests at once.
const BLOCKING_THREADS_MAX: usize = 16;

pub(super) fn run(
    common: &Common,
    listen: &ListenFlags,
    exit_with_stdin: bool,
) -> anyhow::Result<()> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all().max_blocking_threads(BLOCKING_THREADS_MAX);
    runtime.build()?.block_on(serve(common, listen, exit_with_stdin))
}

async fn serve(common: &Common, listen: &ListenFlags, exit_with_stdin: bool) -> anyhow::Result<()> {
    let stop = process::stop_requested(exit_with_stdin).context("cannot hear the stop signal")?;
    let folder = common.folder();
    let config = folder.config()?;
    let authority = folder.authority()?;
    rotation::renew_if_due(&folder, &authority, process::now())?;
    let identity = authority::server_identity(&folder.server()?, &authority)?;
    let tls = tls::server(identity.clone(), authority.certificate())?;
    // Of the authority's key, which outlives the coordinator's own.
    let reset_secret = authority.secret("stateless reset");
    let administrator = Digest::of(folder.admin_token()?.as_bytes());
    let api_address = listen.api_listen.unwrap_or(config.listen.api);
    let api_pair = folder.api_pair(&config.api.tls, api_address, &authority, process::now())?;
    let api_tls = match &api_pair {
        Some(pair) => Some(Arc::new(tls::https(authority::identity(pair)?)?)),
        None => None,
    };
    let oidc = match config.api.oidc.clone() {
        Some(oidc) => Some(Oidc::new(oidc, folder.path())?),
        None => None,
    };
    let store = SledStore::open(&folder.join("store"))?;
    folder.retract()?;
    let metrics = driver::install_metrics().context("metrics cannot be collected")?;

    let blobs = BlobStore::open(folder.path())?;
    let (store, now) = (Box::new(store), process::now());
    let mut core =
        Core::restore(store, blobs, authority, identity, administrator, folder.path(), now)?;
    core.certificate_days = config.agents.certificate_days;
    core.scheduler.set_pace(config.pace);
    let keyring = core.keyring.clone();
    let (core, mut stopped) = core.spawn();
    let listening =
        Listening { idle_timeout: config.agents.idle_timeout(), reset_secret: Some(reset_secret) };
    let quic = endpoint::listen(listen.quic_listen.unwrap_or(config.listen.quic), tls, &listening)?;
    let api = TcpListener::bind(api_address)
        .await
        .with_context(|| format!("cannot listen on {api_address}"))?;
    let scheme = if api_tls.is_some() { "https" } else { "http" };
    let endpoints = Endpoints {
        quic: quic.local_addr()?,
        api: format!("{scheme}://{}", reachable(api.local_addr()?)),
    };
    tokio::spawn(driver::listen(quic.clone(), core.clone()));
    let rotating = core.clone();
    let limit = RateLimit { requests_per_minute: config.api.requests_per_minute };
    let limits = Arc::new(RateLimits::new(limit));
    let router = api::router(ApiState {
        core,
        keyring,
        oidc,
        limits,
        metrics,
        epsilons: Arc::default(),
        watchers: Arc::new(Semaphore::new(api::WATCHERS_MAX)),
    });
    let api_rotation = match (api_tls, &api_pair) {
        (Some(config_now), Some(pair)) => {
            let (shown, seen) = watch::channel(config_now);
            let listener = TlsListener::new(api, seen)?;
            tokio::spawn(async move { axum::serve(listener, router).await });
            let (tls, due) = (config.api.tls.clone(), authority::renewal_due(pair)?);
            Some(ApiRotation { tls, address: api_address, due, shown })
        }
        _ => {
            tokio::spawn(async move { axum::serve(api, router).await });
            None
        }
    };
    let rotation = Rotation {
        folder: folder.clone(),
        quic: quic.clone(),
        core: rotating,
        listening,
        api: api_rotation,
    };
    tokio::spawn(rotation.run(hangup()?));
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

/// Each SIGHUP, which asks for the certificate to be read again.
fn hangup() -> anyhow::Result<tokio::sync::mpsc::Receiver<()>> {
    let (heard, hangups) = tokio::sync::mpsc::channel(1);
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut signals = signal(SignalKind::hangup()).context("cannot hear SIGHUP")?;
        tokio::spawn(async move {
            while signals.recv().await.is_some() && heard.send(()).await.is_ok() {}
        });
    }
    Ok(hangups)
}

/// An address on which this machine reaches a socket that listens on all of them.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if !ip.is_unspecified() => address,
        IpAddr::V4(_) => (Ipv4Addr::LOCALHOST, address.port()).into(),
        IpAddr::V6(_) => (Ipv6Addr::LOCALHOST, address.port()).into(),
    }
}
