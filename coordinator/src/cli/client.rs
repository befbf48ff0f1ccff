//! Asks the running coordinator.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use serde::{Serialize, de::DeserializeOwned};
use ureq::{
    Agent, Body,
    http::Response,
    tls::{Certificate, RootCerts, TlsConfig},
};

use super::Common;
use tributary_coordinator::{api::ErrorDocument, config::Endpoints};

const TIMEOUT: Duration = Duration::from_secs(60);

/// The running coordinator's API.
pub(super) struct Client {
    agent: Agent,
    base: String,
    authorization: String,
}

impl Client {
    /// Finds the coordinator that runs on the folder.
    pub(super) fn connect(common: &Common) -> anyhow::Result<Self> {
        if let Some(api) = &common.api {
            let authority = common.authority.as_deref().context("--api needs --authority")?;
            anyhow::ensure!(common.token_file.is_some(), "--api needs --token-file");
            return Self::new(common, api.trim_end_matches('/').to_owned(), authority);
        }
        let folder = common.folder();
        folder.config()?;
        let dir = folder.path().display().to_string();
        let not_running = || {
            format!(
                "no coordinator runs on {dir}; start it with `tributary-coordinator serve --dir {dir}`"
            )
        };
        let text =
            std::fs::read_to_string(folder.join("endpoints.json")).with_context(not_running)?;
        let endpoints: Endpoints =
            serde_json::from_str(&text).context("endpoints.json is damaged")?;
        let authority = folder.join("authority.pem");
        Self::new(common, endpoints.api, common.authority.as_deref().unwrap_or(&authority))
    }

    fn new(common: &Common, base: String, authority: &Path) -> anyhow::Result<Self> {
        let token = match &common.token_file {
            Some(file) => read(file)?.trim().to_owned(),
            None => common.folder().admin_token()?,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let root = Certificate::from_pem(read(authority)?.as_bytes())
            .context("the authority's certificate is not readable PEM")?;
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(provider)
            .root_certs(RootCerts::from(std::iter::once(root)));
        // Tokens go to the coordinator, whatever proxy the environment names.
        let config = Agent::config_builder()
            .proxy(None)
            .tls_config(tls.build())
            .http_status_as_error(false)
            .timeout_global(Some(TIMEOUT))
            .build();
        Ok(Self { agent: config.into(), base, authorization: format!("Bearer {token}") })
    }

    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        parse(self.read(path)?)
    }

    pub(super) fn bytes(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let mut response = accept(self.read(path)?)?;
        Ok(response.body_mut().with_config().limit(u64::MAX).read_to_vec()?)
    }

    pub(super) fn post_json<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> anyhow::Result<T> {
        let request = self.agent.post(self.url(path)).header("authorization", &self.authorization);
        parse(request.send_json(body).with_context(|| self.unreachable())?)
    }

    pub(super) fn put_json<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> anyhow::Result<T> {
        let request = self.agent.put(self.url(path)).header("authorization", &self.authorization);
        parse(request.send_json(body).with_context(|| self.unreachable())?)
    }

    pub(super) fn post_text<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &str,
    ) -> anyhow::Result<T> {
        let request = self.agent.post(self.url(path)).header("authorization", &self.authorization);
        parse(
            request
                .content_type("application/toml")
                .send(body)
                .with_context(|| self.unreachable())?,
        )
    }

    fn read(&self, path: &str) -> anyhow::Result<Response<Body>> {
        let request = self.agent.get(self.url(path)).header("authorization", &self.authorization);
        request.call().with_context(|| self.unreachable())
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn unreachable(&self) -> String {
        format!(
            "no coordinator answers at {}; is `tributary-coordinator serve` running?",
            self.base
        )
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn accept(mut response: Response<Body>) -> anyhow::Result<Response<Body>> {
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    match response.body_mut().read_json::<ErrorDocument>() {
        Ok(error) => bail!("{error}"),
        Err(_) => bail!("the coordinator answered {status}"),
    }
}

fn parse<T: DeserializeOwned>(response: Response<Body>) -> anyhow::Result<T> {
    accept(response)?
        .body_mut()
        .read_json()
        .context("the coordinator's answer is not the expected document")
}
