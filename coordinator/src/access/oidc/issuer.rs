//! Asks the issuer over HTTPS: where things are, its keys, and tokens for codes. Blocking: callers run
//! it beside the runtime.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;
use ureq::{
    Agent,
    http::Response,
    tls::{Certificate, RootCerts, TlsConfig},
};

use super::{OidcConfig, OidcConfigError, config::is_guarded, keys::PublishedKey};

const TIMEOUT: Duration = Duration::from_secs(10);

/// The largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// The longest reason of a refusal that is passed on, in characters.
const REASON_CHARS_MAX: usize = 200;

/// Says why the issuer gave no usable answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(super) enum IssuerError {
    #[error("{address} does not answer")]
    Request {
        address: String,
        #[source]
        source: Box<ureq::Error>,
    },
    #[error("{address} answers with status {status}")]
    Status { address: String, status: u16 },
    #[error("the answer of {address} is not the expected document: {problem}")]
    Document { address: String, problem: &'static str },
    #[error("{reason}")]
    Refused { reason: String },
}

/// A code that the issuer gave the dashboard, to be traded for an ID token.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exchange {
    /// The code, which works once.
    pub code: String,
    /// What the dashboard kept to itself when it began.
    pub code_verifier: String,
    /// What the ID token must repeat.
    pub nonce: String,
    /// Where the issuer sent the code.
    pub redirect_uri: String,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("Exchange");
        shown.field("redirect_uri", &self.redirect_uri).finish_non_exhaustive()
    }
}

/// What the issuer says of itself.
#[derive(Debug, Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
}

/// The issuer, as an address to ask.
#[derive(Debug)]
pub(super) struct Issuer {
    agent: Agent,
    name: String,
    client_id: Option<String>,
    client_secret: Option<PathBuf>,
}

impl Issuer {
    pub(super) fn new(config: &OidcConfig, folder: &Path) -> Result<Self, OidcConfigError> {
        let roots = match &config.authority {
            None => RootCerts::WebPki,
            Some(file) => {
                let path = folder.join(file);
                let unusable =
                    |source| OidcConfigError::File { key: "authority", path: path.clone(), source };
                let pem = std::fs::read(&path).map_err(|error| unusable(error.into()))?;
                let root = Certificate::from_pem(&pem).map_err(|error| unusable(error.into()))?;
                RootCerts::from(std::iter::once(root))
            }
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls =
            TlsConfig::builder().unversioned_rustls_crypto_provider(provider).root_certs(roots);
        let mut builder = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            // Keys come from where the issuer says, not from where that place points to.
            .max_redirects(0)
            .timeout_global(Some(TIMEOUT));
        if config.issuer.starts_with("http:") {
            // Loopback: no proxy of the environment reaches it.
            builder = builder.proxy(None);
        }
        Ok(Self {
            agent: builder.build().into(),
            name: config.issuer.clone(),
            client_id: config.client_id.clone(),
            client_secret: config.client_secret_file.as_ref().map(|file| folder.join(file)),
        })
    }

    /// The keys that it publishes now.
    pub(super) fn keys(&self) -> Result<Vec<PublishedKey>, IssuerError> {
        let address = self.discover()?.jwks_uri;
        let answer = self.get(&address)?;
        PublishedKey::all(&answer)
            .ok_or(IssuerError::Document { address, problem: "it has no list `keys`" })
    }

    /// Where people sign in.
    pub(super) fn authorization_endpoint(&self) -> Result<String, IssuerError> {
        self.discover()?.authorization_endpoint.ok_or_else(|| self.lacks("authorization_endpoint"))
    }

    /// Trades a code for an ID token, which is not verified here.
    pub(super) fn exchange(&self, exchange: &Exchange) -> Result<String, IssuerError> {
        let address = self.discover()?.token_endpoint;
        let address = address.ok_or_else(|| self.lacks("token_endpoint"))?;
        let mut form = BTreeMap::from([
            ("grant_type", "authorization_code"),
            ("code", exchange.code.as_str()),
            ("code_verifier", &exchange.code_verifier),
            ("redirect_uri", &exchange.redirect_uri),
            ("client_id", self.client_id.as_deref().unwrap_or_default()),
        ]);
        let secret = match &self.client_secret {
            Some(file) => std::fs::read_to_string(file).map_err(|_| IssuerError::Document {
                address: file.display().to_string(),
                problem: "the client's secret cannot be read",
            })?,
            None => String::new(),
        };
        if !secret.is_empty() {
            form.insert("client_secret", secret.trim());
        }
        let sent = self.agent.post(&address).send_form(form);
        let mut response = sent.map_err(|source| request(&address, source))?;
        let status = response.status();
        let answer = read(&address, &mut response);
        if !status.is_success() {
            let answer = answer.unwrap_or_default();
            let words = answer.get("error_description").or_else(|| answer.get("error"));
            let reason = words.and_then(Value::as_str).unwrap_or("it gives no reason");
            let printable = reason.chars().filter(|char| !char.is_control());
            return Err(IssuerError::Refused {
                reason: printable.take(REASON_CHARS_MAX).collect(),
            });
        }
        let token = answer?.get("id_token").and_then(Value::as_str).map(str::to_owned);
        token.ok_or(IssuerError::Document { address, problem: "it has no `id_token`" })
    }

    /// Asked anew every time: keys are asked for rarely, and an issuer may move them.
    fn discover(&self) -> Result<Discovery, IssuerError> {
        let address = self.discovery_address();
        let problem = |problem| IssuerError::Document { address: address.clone(), problem };
        let discovery: Discovery = serde_json::from_value(self.get(&address)?)
            .map_err(|_| problem("it is no description of an issuer"))?;
        if discovery.issuer != self.name {
            return Err(problem("it describes another issuer"));
        }
        let places = [Some(&discovery.jwks_uri), discovery.token_endpoint.as_ref()];
        let places = places.into_iter().chain([discovery.authorization_endpoint.as_ref()]);
        if !places.flatten().all(|place| is_guarded(place)) {
            return Err(problem("it names an address without https"));
        }
        Ok(discovery)
    }

    fn discovery_address(&self) -> String {
        format!("{}/.well-known/openid-configuration", self.name.trim_end_matches('/'))
    }

    fn lacks(&self, key: &'static str) -> IssuerError {
        let problem = match key {
            "token_endpoint" => "it has no `token_endpoint`",
            _ => "it has no `authorization_endpoint`",
        };
        IssuerError::Document { address: self.discovery_address(), problem }
    }

    fn get(&self, address: &str) -> Result<Value, IssuerError> {
        let mut response =
            self.agent.get(address).call().map_err(|source| request(address, source))?;
        let status = response.status();
        if !status.is_success() {
            let (address, status) = (address.to_owned(), status.as_u16());
            return Err(IssuerError::Status { address, status });
        }
        read(address, &mut response)
    }
}

fn request(address: &str, source: ureq::Error) -> IssuerError {
    IssuerError::Request { address: address.to_owned(), source: Box::new(source) }
}

fn read(address: &str, response: &mut Response<ureq::Body>) -> Result<Value, IssuerError> {
    response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_json().map_err(|_| {
        IssuerError::Document { address: address.to_owned(), problem: "it is not JSON" }
    })
}
