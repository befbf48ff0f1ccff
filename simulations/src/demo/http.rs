//! Reads the loopback HTTP endpoints of the children.

use std::time::Duration;

use serde::de::DeserializeOwned;
use thiserror::Error;

const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest model the demo downloads.
const BODY_BYTES_MAX: u64 = 1 << 30;

/// Says why an endpoint gave no usable answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HttpError {
    /// No answer, or one with an error status.
    #[error("GET {url} failed")]
    Request {
        /// The address.
        url: String,
        /// What went wrong.
        #[source]
        source: Box<ureq::Error>,
    },
    /// The answer is not the agreed document.
    #[error("the answer of GET {url} is not understood; are all binaries of the same build?")]
    Document {
        /// The address.
        url: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// One server, with the token that it wants.
#[derive(Debug, Clone)]
pub struct Endpoint {
    client: ureq::Agent,
    base: String,
    authorization: Option<String>,
}

impl Endpoint {
    /// Talks to the server at `base` (`http://HOST:PORT`).
    #[must_use]
    pub fn new(base: &str, token: Option<&str>) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            // Loopback only: a proxy from the environment must not see it.
            .proxy(None)
            .build();
        Self {
            client: config.into(),
            base: base.trim_end_matches('/').to_owned(),
            authorization: token.map(|token| format!("Bearer {}", token.trim())),
        }
    }

    /// The server's address, `http://HOST:PORT`.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Fetches a JSON document.
    ///
    /// # Errors
    /// [`HttpError`] naming the address.
    pub fn document<T: DeserializeOwned>(&self, path: &str) -> Result<T, HttpError> {
        let bytes = self.bytes(path)?;
        serde_json::from_slice(&bytes)
            .map_err(|source| HttpError::Document { url: self.url(path), source })
    }

    /// Fetches a file.
    ///
    /// # Errors
    /// [`HttpError::Request`] naming the address.
    pub fn bytes(&self, path: &str) -> Result<Vec<u8>, HttpError> {
        let failed = |source| HttpError::Request { url: self.url(path), source: Box::new(source) };
        let mut request = self.client.get(self.url(path));
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let mut response = request.call().map_err(failed)?;
        response.body_mut().with_config().limit(BODY_BYTES_MAX).read_to_vec().map_err(failed)
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }
}
