//! `agent.toml`: where the records lie and how the agent serves them.

mod feedback;
mod language;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use serde::Deserialize;
use thiserror::Error;
use tributary_protocol::{
    id::{DatasetName, IdError, TenantId},
    isolation::{ComputeIsolation, DataIsolation, Isolation, ModelIsolation},
};

pub use self::language::{TenantSectionError, serve_folder};
use crate::{
    adapter::{AdapterError, AdapterPlan},
    data::DataSource,
    durable_file::{FileError, read_text},
    engine::language::LanguageOptions,
    feedback::Retention,
    site::Site,
};

/// What the agent runs with, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where the tenant's own HTTP interface listens; port 0 takes any free port.
    pub api_listen: SocketAddr,
    /// Threads for training and inference.
    pub threads: usize,
    /// The tenant's datasets, with paths resolved.
    pub datasets: BTreeMap<DatasetName, DataSource>,
    /// The part of each dataset that measures and never trains.
    pub held_out_fraction: f64,
    /// How the private adapter is trained.
    pub adapter: AdapterPlan,
    /// The language model to serve, if there is one.
    pub language: Option<LanguageOptions>,
    /// How long predictions and their outcomes are kept; without it, they are not.
    pub feedback: Option<Retention>,
}

/// Values that override `agent.toml`, from environment or command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Replaces `api.listen`.
    pub api_listen: Option<SocketAddr>,
    /// Replaces `compute.threads`.
    pub threads: Option<usize>,
}

/// Says which file and key of the configuration cannot work.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration cannot be read; `agent.toml` belongs in the agent's directory")]
    Read(#[from] FileError),
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("{} is not usable: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and key.
        message: String,
    },
    /// A dataset has a name that no job can use.
    #[error("{}: `data.{name}` is not a dataset name", path.display())]
    Dataset {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: IdError,
    },
    /// A number lies outside its range.
    #[error("{}: `{key}` is {value}; it must be {range}", path.display())]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What was given.
        value: f64,
        /// What would work.
        range: &'static str,
    },
    /// The language model's tenants cannot be served as they are configured.
    #[error("{}: {error}", path.display())]
    Language {
        /// The file.
        path: PathBuf,
        /// Which key.
        error: TenantSectionError,
    },
    /// The adapter plan cannot work.
    #[error("{} is not usable", path.display())]
    Adapter {
        /// The file.
        path: PathBuf,
        /// Which key.
        #[source]
        source: Box<AdapterError>,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    #[serde(default)]
    api: ApiSection,
    #[serde(default)]
    compute: ComputeSection,
    /// The tenant's datasets, by the names that jobs use.
    #[serde(default)]
    data: BTreeMap<String, DataSource>,
    #[serde(default)]
    held_out: HeldOutSection,
    #[serde(default)]
    adapter: AdapterPlan,
    language: Option<language::LanguageSection>,
    #[serde(default)]
    feedback: feedback::FeedbackSection,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ApiSection {
    /// The HTTP interface: predictions, feedback, language, status, metrics. Without keys, whoever reaches it
    /// may ask: keep it on loopback. Default 127.0.0.1:7710.
    listen: SocketAddr,
}

impl Default for ApiSection {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 7710)) }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ComputeSection {
    /// Threads for training and inference, 1 to 1024. Default all of the machine's.
    threads: usize,
}

impl Default for ComputeSection {
    fn default() -> Self {
        Self { threads: std::thread::available_parallelism().map_or(1, Into::into) }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HeldOutSection {
    /// The part of each dataset that measures the base and the adapter and never trains, at least 0 and
    /// below 1.
    fraction: f64,
}

impl Default for HeldOutSection {
    fn default() -> Self {
        Self { fraction: 0.2 }
    }
}

impl Config {
    /// Reads and checks a site's configuration.
    ///
    /// # Errors
    /// [`ConfigError`] naming file and key.
    pub fn load(site: &Site, overrides: &Overrides) -> Result<Self, ConfigError> {
        Self::parse(&read_text(&site.config())?, site, overrides)
    }

    /// Checks the text of a configuration.
    ///
    /// # Errors
    /// [`ConfigError`] naming file and key.
    pub fn parse(text: &str, site: &Site, overrides: &Overrides) -> Result<Self, ConfigError> {
        let path = site.config();
        let file: ConfigFile = toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.clone(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        let fraction = file.held_out.fraction;
        if !(0.0..1.0).contains(&fraction) {
            let (key, range) = ("held_out.fraction", "at least 0 and below 1");
            return Err(ConfigError::OutOfRange { path, key, value: fraction, range });
        }
        let threads = overrides.threads.unwrap_or(file.compute.threads);
        if !(1..=1024).contains(&threads) {
            let (key, range) = ("compute.threads", "between 1 and 1024");
            return Err(ConfigError::OutOfRange { path, key, value: threads as f64, range });
        }
        if let Err(source) = file.adapter.validate() {
            return Err(ConfigError::Adapter { path, source: Box::new(source) });
        }
        let mut datasets = BTreeMap::new();
        for (name, source) in file.data {
            let id = DatasetName::new(name.clone()).map_err(|source| ConfigError::Dataset {
                path: path.clone(),
                name,
                source,
            })?;
            datasets.insert(id, source.relative_to(site.directory()));
        }
        Ok(Self {
            api_listen: overrides.api_listen.unwrap_or(file.api.listen),
            threads,
            datasets,
            held_out_fraction: fraction,
            adapter: file.adapter,
            language: match file.language {
                Some(section) => {
                    let refused = |error| ConfigError::Language { path: path.clone(), error };
                    Some(section.options(site.directory()).map_err(refused)?)
                }
                None => None,
            },
            feedback: file.feedback.retention(),
        })
    }
}

impl Config {
    /// How far this agent keeps its own tenant apart from others, as the coordinator hears it.
    ///
    /// An agent keeps no data of guests, so the data level is the highest. Without a language model
    /// nobody else is answered by this process. With one, others may be at any time (a key is enough), so
    /// the levels are those of the tenant's own table, and never a process of its own.
    #[must_use]
    pub fn isolation(&self, own: &TenantId) -> Isolation {
        let data = DataIsolation::OwnDatabase;
        let Some(language) = &self.language else {
            let (model, compute) =
                (ModelIsolation::IndependentCopy, ComputeIsolation::DedicatedDevice);
            return Isolation { data, model, compute };
        };
        let table = language.tenants.iter().find(|tenant| tenant.context.id == *own);
        let levels = table.map(|tenant| tenant.context.isolation);
        let Isolation { model, compute, .. } =
            levels.unwrap_or(Isolation { model: ModelIsolation::Adapter, ..Isolation::default() });
        // Training and `/v1/predict` run in the process that answers guests.
        Isolation { data, model, compute: compute.min(ComputeIsolation::DedicatedWorker) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = r#"
        [api]
        listen = "127.0.0.1:0"
        [compute]
        threads = 1
        [data.fashion-mnist.idx]
        images = "images.gz"
        labels = "labels.gz"
        classes = 10
        [held_out]
        fraction = 0.3
        [adapter]
        rank = 4
        [language]
        model = "models/small"
        cache_mib = 64
        [language.adapters]
        ash = "adapters/ash"
        [language.tenants.ash]
        key_file = "keys/ash"
        adapters = ["ash"]
        tokens_per_minute = 6000
        [language.tenants.elm]
        threads = 2
        cache_mib = 16
        [language.tenants.elm.isolation]
        compute = "dedicated-worker"
        [feedback]
        age_max_days = 7
        count_max = 100
        max_mib = 1
    "#;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, &Site::new("/site"), &Overrides::default())
    }

    #[test]
    fn paths_are_relative_to_the_site() {
        let config = parse(EXAMPLE).unwrap();
        let name = DatasetName::new("fashion-mnist").unwrap();
        let DataSource::Idx(idx) = &config.datasets[&name] else { panic!("IDX") };
        assert_eq!(idx.images, PathBuf::from("/site/images.gz"));
        assert_eq!((config.threads, config.adapter.rank), (1, 4));
        let language = config.language.unwrap();
        assert_eq!((language.name.as_str(), language.limits.cache_bytes), ("small", 64 << 20));
        assert_eq!(language.adapters["ash"], PathBuf::from("/site/adapters/ash"));
        let [ash, elm] = &language.tenants[..] else { panic!("two tenants") };
        assert_eq!(ash.key_file, Some(PathBuf::from("/site/keys/ash")));
        assert!(ash.context.may_use("ash"), "listing adapters asks for the level that has them");
        assert!(!elm.context.may_use("ash"));
        assert_eq!((elm.threads, elm.cache_bytes), (2, Some(16 << 20)));
        let feedback = config.feedback.unwrap();
        assert_eq!((feedback.age_max_ms, feedback.bytes_max), (7 * 86_400_000, 1 << 20));
        assert_eq!(parse("[feedback]\nkeep = false").unwrap().feedback, None);
    }

    #[test]
    fn the_levels_that_the_coordinator_hears_follow_from_who_else_is_served() {
        let own = |name: &str| TenantId::new(name).unwrap();
        let (model, compute) = (ModelIsolation::IndependentCopy, ComputeIsolation::DedicatedDevice);
        let alone = Isolation { data: DataIsolation::OwnDatabase, model, compute };
        assert_eq!(parse("").unwrap().isolation(&own("oak")), alone);
        let config = parse(EXAMPLE).unwrap();
        let shared = Isolation {
            model: ModelIsolation::Adapter,
            compute: ComputeIsolation::SharedQueue,
            ..alone
        };
        assert_eq!(config.isolation(&own("oak")), shared);
        let base_only = Isolation {
            model: ModelIsolation::BaseOnly,
            compute: ComputeIsolation::DedicatedWorker,
            ..alone
        };
        assert_eq!(config.isolation(&own("elm")), base_only);
        let device = EXAMPLE.replace("dedicated-worker", "dedicated-device");
        assert_eq!(parse(&device).unwrap().isolation(&own("elm")), base_only);
    }

    #[test]
    fn the_sample_is_a_configuration() {
        let config = parse(include_str!("../../../examples/config/agent.toml")).unwrap();
        assert!(!config.datasets.is_empty());
    }

    #[test]
    fn overrides_win_over_the_file() {
        let overrides =
            Overrides { api_listen: Some(SocketAddr::from(([127, 0, 0, 1], 9))), threads: Some(3) };
        let config = Config::parse(EXAMPLE, &Site::new("/site"), &overrides).unwrap();
        assert_eq!((config.api_listen.port(), config.threads), (9, 3));
    }

    #[test]
    fn an_empty_file_has_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config.api_listen.port(), 7710);
        assert!(config.datasets.is_empty() && config.threads >= 1);
    }

    #[test]
    fn mistakes_name_file_and_key() {
        for (from, to, wanted) in [
            ("threads = 1", "thread = 1", "thread"),
            ("[compute]", "[computer]", "computer"),
            ("fraction = 0.3", "fraction = 1.0", "held_out.fraction"),
            ("threads = 1", "threads = 0", "compute.threads"),
            ("rank = 4", "rank = 0", "adapter.rank"),
            ("cache_mib = 64", "cache_mib = 0", "cache_mib"),
            ("key_file", "key", "key"),
            ("threads = 2", "threads = 0", "threads"),
            ("dedicated-worker", "worker", "worker"),
            ("dedicated-worker", "shared-queue", "language.tenants.elm.cache_mib"),
            ("adapters = [\"ash\"]", "adapters = []\nmodel = \"x\"", "language.tenants.ash.model"),
            ("tokens_per_minute = 6000", "region = \"eu\"", "language.tenants.ash.region"),
            ("tokens_per_minute = 6000", "isolation = { model = \"base-only\" }", "adapters"),
            ("tokens_per_minute = 6000", "isolation = { data = \"own-database\" }", "data"),
            ("count_max = 100", "count_max = 0", "count_max"),
            ("fashion-mnist", "Fashion", "data.Fashion"),
            ("127.0.0.1:0", "nowhere", "listen"),
        ] {
            let error = parse(&EXAMPLE.replace(from, to)).unwrap_err();
            let mut text = error.to_string();
            if let Some(source) = std::error::Error::source(&error) {
                text += &source.to_string();
            }
            assert!(text.contains(wanted) && text.contains("agent.toml"), "{wanted}: {text}");
        }
    }
}
