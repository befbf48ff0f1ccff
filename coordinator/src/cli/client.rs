//! Asks the running coordinator.

use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Serialize, de::DeserializeOwned};
use ureq::{Agent, Body, http::Response};

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
        // The API is on this machine, whatever proxy the environment names.
        let config = Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .timeout_global(Some(TIMEOUT))
            .build();
        let authorization = format!("Bearer {}", folder.admin_token()?);
        Ok(Self { agent: config.into(), base: endpoints.api, authorization })
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
