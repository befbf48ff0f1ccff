//! The coordinator's folder and its configuration file.

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use tributary_protocol::{
    time::Timestamp,
    transport::endpoint::{IDLE_TIMEOUT, IDLE_TIMEOUT_MIN},
};

use crate::{
    access::oidc::OidcConfig,
    pace::Pace,
    tenants::authority::{self, Authority, AuthorityError, PemPair},
};

/// The machine's own names, in the certificate that the authority makes for the API.
const LOCAL_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Says why the folder cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file cannot be read or written.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The folder is not a coordinator's.
    #[error(
        "{path} is not a coordinator's folder; make one with `tributary-coordinator init --dir {path}`"
    )]
    NotInitialized {
        /// The folder.
        path: PathBuf,
    },
    /// The folder is a coordinator's already.
    #[error("{path} already holds a coordinator; nothing was changed, choose another folder")]
    AlreadyInitialized {
        /// The folder.
        path: PathBuf,
    },
    /// The configuration does not parse.
    #[error("{path} is not valid")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// Access tokens would cross a network in the clear.
    #[error(
        "the API would listen on {address} without TLS; set `tls = \"authority\"` in [api], or \
         listen on a loopback address"
    )]
    PlainApi {
        /// Where.
        address: SocketAddr,
    },
    /// Nobody could ask anything.
    #[error("`api.requests_per_minute` is 0; it must be at least 1")]
    NoRequests,
    /// Agents would be cut off, or never missed.
    #[error("`agents.idle_timeout_s` is {seconds}; it must be 5 to 300")]
    IdleTimeout {
        /// What it is.
        seconds: u32,
    },
    /// Certificates would never work, or for too long.
    #[error("`agents.certificate_days` is {days}; it must be 1 to 825")]
    CertificateDays {
        /// What it is.
        days: u32,
    },
    /// Nobody could stay connected.
    #[error("`pace.{key}` is 0; it must be at least 1")]
    NoPace {
        /// The key.
        key: &'static str,
    },
    /// Key or certificate are not usable.
    #[error("the authority or the coordinator's certificate is not usable")]
    Authority(#[from] AuthorityError),
}

/// `coordinator.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to listen.
    pub listen: Listen,
    /// The HTTP API.
    #[serde(default)]
    pub api: Api,
    /// Connections of agents.
    #[serde(default)]
    pub agents: Agents,
    /// How agents' connections are spread over time.
    #[serde(default)]
    pub pace: Pace,
}

/// Connections of agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Agents {
    /// An agent that is silent for this long counts as gone, in seconds, 5 to 300. Default 10.
    pub idle_timeout_s: u32,
    /// How long their certificates are valid, in days, 1 to 825; they renew them after two thirds of
    /// it. Default 365.
    pub certificate_days: u32,
}

impl Default for Agents {
    fn default() -> Self {
        Self { idle_timeout_s: IDLE_TIMEOUT.as_secs() as u32, certificate_days: 365 }
    }
}

impl Agents {
    /// [`Self::idle_timeout_s`] as a duration.
    #[must_use]
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.idle_timeout_s.into())
    }
}

/// The HTTP API, for people and monitoring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// Whether it speaks TLS, and with which certificate.
    pub tls: ApiTls,
    /// Requests of each access token, in requests a minute; as many may come at once. Default 6000.
    pub requests_per_minute: u32,
    /// An issuer whose tokens are accepted beside the coordinator's own. None by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oidc: Option<OidcConfig>,
}

impl Default for Api {
    fn default() -> Self {
        Self { tls: ApiTls::default(), requests_per_minute: 6000, oidc: None }
    }
}

/// The certificate of the HTTP API.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ApiTls {
    /// Plain HTTP, on a loopback address only. The default.
    #[default]
    Off,
    /// A certificate of the coordinator's own authority, made anew at every start, at SIGHUP, and after
    /// two thirds of its time.
    Authority,
    /// A certificate from elsewhere, read again at SIGHUP, and every hour after two thirds of its time.
    Files {
        /// PEM, leaf first.
        certificate: PathBuf,
        /// PEM, PKCS#8.
        key: PathBuf,
    },
}

/// Addresses; port 0 takes a free one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// QUIC, for agents.
    pub quic: SocketAddr,
    /// HTTP, for people and monitoring; beyond loopback it needs TLS (`api.tls`).
    pub api: SocketAddr,
}

/// Where a running coordinator can be reached, as `endpoints.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// Address of the QUIC socket.
    pub quic: SocketAddr,
    /// Base URL of the HTTP API.
    pub api: String,
}

/// The folder that holds everything of one coordinator.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Names the folder.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file or folder inside.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Replaces the coordinator's own certificate, durably and at once; its key stays.
    ///
    /// # Errors
    /// [`ConfigError`]; the certificate before is then still there.
    pub fn replace_server_certificate(&self, pem: &str) -> Result<(), ConfigError> {
        let replace = || {
            let mut file = fs::File::create(self.join("server.pem.new"))?;
            file.write_all(pem.as_bytes())?;
            file.sync_all()?;
            fs::rename(self.join("server.pem.new"), self.join("server.pem"))?;
            fs::File::open(&self.path)?.sync_all()
        };
        replace().map_err(|source| self.error("replace", "server.pem", source))
    }

    /// Fills a new folder: configuration, authority, own certificate, administrator's token.
    ///
    /// # Errors
    /// [`ConfigError`]; an existing coordinator is never overwritten.
    pub fn initialize(
        &self,
        config: &Config,
        authority: &PemPair,
        server: &PemPair,
        admin_token: &str,
    ) -> Result<(), ConfigError> {
        if self.join("coordinator.toml").exists() || self.join("authority.key").exists() {
            return Err(ConfigError::AlreadyInitialized { path: self.path.clone() });
        }
        fs::create_dir_all(&self.path).map_err(|source| self.error("create", "", source))?;
        self.write_secret("authority.key", &authority.key)?;
        self.write("authority.pem", &authority.certificate)?;
        self.write_secret("server.key", &server.key)?;
        self.write("server.pem", &server.certificate)?;
        self.write_secret("admin.token", admin_token)?;
        // Last, because it makes the folder a coordinator's.
        let text = toml::to_string_pretty(config).expect("plain tables and strings");
        self.write("coordinator.toml", &text)
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file, line and key.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let path = self.join("coordinator.toml");
        if !path.exists() {
            return Err(ConfigError::NotInitialized { path: self.path.clone() });
        }
        let config: Config = toml::from_str(&self.read("coordinator.toml")?)
            .map_err(|source| ConfigError::Parse { path, source: Box::new(source) })?;
        let range = IDLE_TIMEOUT_MIN..=Duration::from_secs(300);
        if !range.contains(&config.agents.idle_timeout()) {
            let seconds = config.agents.idle_timeout_s;
            return Err(ConfigError::IdleTimeout { seconds });
        }
        let days = config.agents.certificate_days;
        if !(1..=825).contains(&days) {
            return Err(ConfigError::CertificateDays { days });
        }
        if config.api.requests_per_minute == 0 {
            return Err(ConfigError::NoRequests);
        }
        let Pace { idle_connections_max, turn_ms } = config.pace;
        let counts = [("idle_connections_max", idle_connections_max.into()), ("turn_ms", turn_ms)];
        if let Some((key, _)) = counts.into_iter().find(|&(_, value)| value == 0) {
            return Err(ConfigError::NoPace { key });
        }
        Ok(config)
    }

    /// Reads the authority.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn authority(&self) -> Result<Authority, ConfigError> {
        Ok(Authority::load(&self.pair("authority")?)?)
    }

    /// Reads the coordinator's own key and certificate.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn server(&self) -> Result<PemPair, ConfigError> {
        self.pair("server")
    }

    /// The API's certificate and key, or `None` for plain HTTP.
    ///
    /// - `address`: where it listens
    ///
    /// # Errors
    /// [`ConfigError::PlainApi`] for plain HTTP beyond loopback; else if a file is not usable.
    pub fn api_pair(
        &self,
        tls: &ApiTls,
        address: SocketAddr,
        authority: &Authority,
        now: Timestamp,
    ) -> Result<Option<PemPair>, ConfigError> {
        let pair = match tls {
            ApiTls::Off if address.ip().is_loopback() => return Ok(None),
            ApiTls::Off => return Err(ConfigError::PlainApi { address }),
            ApiTls::Authority => {
                let mut hosts = authority::hosts_of(&self.server()?)?;
                hosts.extend(LOCAL_HOSTS.map(str::to_owned));
                if !address.ip().is_unspecified() {
                    hosts.push(address.ip().to_string());
                }
                hosts.sort();
                hosts.dedup();
                authority.issue_server(&hosts, now)?
            }
            ApiTls::Files { certificate, key } => {
                let read = |path: &Path| {
                    let path = self.path.join(path);
                    fs::read_to_string(&path).map_err(|source| ConfigError::File {
                        action: "read",
                        path,
                        source,
                    })
                };
                PemPair { certificate: read(certificate)?, key: read(key)? }
            }
        };
        Ok(Some(pair))
    }

    /// Reads the administrator's token.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn admin_token(&self) -> Result<String, ConfigError> {
        Ok(self.read("admin.token")?.trim().to_owned())
    }

    /// Announces where the coordinator listens: the file appears whole, once it does.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn announce(&self, endpoints: &Endpoints) -> Result<(), ConfigError> {
        let text = serde_json::to_string(endpoints).expect("plain strings");
        self.write("endpoints.json.new", &text)?;
        fs::rename(self.join("endpoints.json.new"), self.join("endpoints.json"))
            .map_err(|source| self.error("write", "endpoints.json", source))
    }

    /// Takes back [`Self::announce`].
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn retract(&self) -> Result<(), ConfigError> {
        match fs::remove_file(self.join("endpoints.json")) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(self.error("remove", "endpoints.json", source))
            }
            _ => Ok(()),
        }
    }

    fn pair(&self, name: &str) -> Result<PemPair, ConfigError> {
        let certificate = self.read(&format!("{name}.pem"))?;
        Ok(PemPair { certificate, key: self.read(&format!("{name}.key"))? })
    }

    fn read(&self, name: &str) -> Result<String, ConfigError> {
        fs::read_to_string(self.join(name)).map_err(|source| self.error("read", name, source))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), ConfigError> {
        fs::write(self.join(name), text).map_err(|source| self.error("write", name, source))
    }

    fn write_secret(&self, name: &str, text: &str) -> Result<(), ConfigError> {
        let mut options = fs::File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file =
            options.open(self.join(name)).map_err(|source| self.error("create", name, source))?;
        file.write_all(text.as_bytes()).map_err(|source| self.error("write", name, source))
    }

    fn error(&self, action: &'static str, name: &str, source: std::io::Error) -> ConfigError {
        ConfigError::File { action, path: self.join(name), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_configuration_is_valid() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/config/coordinator.toml");
        let text = fs::read_to_string(path).expect("sample");
        toml::from_str::<Config>(&text).expect("valid");
    }

    #[test]
    fn unknown_keys_are_named_with_their_line() {
        let text = "[listen]\nquic = '0.0.0.0:1'\napi = '127.0.0.1:2'\ntls = true\n";
        let error = toml::from_str::<Config>(text).expect_err("typo").to_string();
        assert!(error.contains("tls") && error.contains("line 4"), "{error}");
    }
}
