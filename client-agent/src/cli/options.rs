use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use tributary_protocol::id::JobId;

use tributary_protocol::id::TenantId;

use crate::{
    compute::DeviceChoice, config::Overrides, feedback::PredictionId, keys::KeyRole, site::Site,
};

/// The Tributary agent: trains on data that stays here, and serves the result.
#[derive(Debug, Parser)]
#[command(name = "tributary-agent", version, about)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a key and exchange a one-time token for a certificate.
    Enroll(EnrollOptions),
    /// Check configuration, policy, data, identity and ledger, or whether a job is allowed.
    Check(CheckOptions),
    /// Take part in rounds and serve predictions.
    Run(RunOptions),
    /// Serve the last base and adapter, or a language model, without a coordinator.
    Serve(ServeOptions),
    /// Show or verify the privacy ledger.
    #[command(subcommand)]
    Privacy(PrivacyCommand),
    /// Train, list, activate and move private adapters; a running agent follows within a second.
    #[command(subcommand)]
    Adapter(AdapterCommand),
    /// Add, list or revoke keys to the HTTP interface.
    #[command(subcommand)]
    Key(KeyCommand),
    /// List, export or delete outcomes of predictions.
    #[command(subcommand)]
    Feedback(FeedbackCommand),
    /// Answer for one tenant on standard input and output; the agent runs this itself.
    #[command(hide = true, name = crate::engine::language::PROCESS_COMMAND)]
    EngineProcess,
}

/// Which agent.
#[derive(Debug, Clone, Args)]
pub struct SiteOptions {
    /// The agent's directory, with agent.toml and policy.toml.
    #[arg(long, value_name = "DIR", env = "TRIBUTARY_DIR", default_value = ".")]
    pub dir: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl SiteOptions {
    /// The directory's files.
    #[must_use]
    pub fn site(&self) -> Site {
        Site::new(&self.dir)
    }
}

/// Values that win over `agent.toml`.
#[derive(Debug, Clone, Args)]
pub struct OverrideOptions {
    /// Where the HTTP interface listens, instead of `api.listen`.
    #[arg(long, value_name = "ADDR:PORT", env = "TRIBUTARY_API_LISTEN")]
    pub api_listen: Option<SocketAddr>,
    /// Threads for training and inference, instead of `compute.threads`.
    #[arg(long, value_name = "N", env = "TRIBUTARY_THREADS")]
    pub threads: Option<usize>,
}

impl OverrideOptions {
    /// As the configuration takes them.
    #[must_use]
    pub const fn overrides(&self) -> Overrides {
        Overrides { api_listen: self.api_listen, threads: self.threads }
    }
}

/// Options of `enroll`.
#[derive(Debug, Args)]
pub struct EnrollOptions {
    /// Which agent.
    #[command(flatten)]
    pub site: SiteOptions,
    /// The coordinator's address for agents.
    #[arg(long, value_name = "HOST:PORT", env = "TRIBUTARY_COORDINATOR")]
    pub coordinator: String,
    /// The text that `tributary-coordinator tenant add` printed.
    #[arg(long, env = "TRIBUTARY_TOKEN", hide_env_values = true)]
    pub token: String,
    /// Replace an existing identity.
    #[arg(long)]
    pub force: bool,
}

/// Options of `check`.
#[derive(Debug, Args)]
pub struct CheckOptions {
    /// Which agent.
    #[command(flatten)]
    pub site: SiteOptions,
    /// Values that win over `agent.toml`.
    #[command(flatten)]
    pub overrides: OverrideOptions,
    /// Also say whether the policy allows the job in this TOML file.
    #[arg(long, value_name = "FILE")]
    pub job: Option<PathBuf>,
}

/// Options of `serve`.
#[derive(Debug, Args)]
pub struct ServeOptions {
    /// What `run` takes too.
    #[command(flatten)]
    pub run: RunOptions,
    /// Folder of a language model to serve, instead of `language.model`.
    #[arg(long, value_name = "DIR")]
    pub language_model: Option<PathBuf>,
    /// What computes for the language model: auto, cpu, cuda or cuda:N; replaces `language.device`.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// A PEFT folder to serve on top of the language model, under a name.
    #[arg(long, value_name = "NAME=DIR", value_parser = named_folder)]
    pub adapter: Vec<(String, PathBuf)>,
}

fn named_folder(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, folder)) if !name.is_empty() && !folder.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(folder)))
        }
        _ => Err("give a name and a folder, as in ash=adapters/ash".to_owned()),
    }
}

/// Options of `run` and `serve`.
#[derive(Debug, Args)]
pub struct RunOptions {
    /// Which agent.
    #[command(flatten)]
    pub site: SiteOptions,
    /// Values that win over `agent.toml`.
    #[command(flatten)]
    pub overrides: OverrideOptions,
    /// Stop when standard input ends.
    #[arg(long, hide = true)]
    pub exit_with_stdin: bool,
}

/// What to do with private adapters.
#[derive(Debug, Subcommand)]
pub enum AdapterCommand {
    /// Train a new version on the served base, from the served adapter; it is served at once if it is
    /// not worse on held-out records.
    Train(AdapterTrainOptions),
    /// List the versions and what is served.
    List(AdapterSite),
    /// Serve a version, on the base that it belongs to.
    Activate(AdapterActivateOptions),
    /// Serve again what was served before.
    Rollback(AdapterSite),
    /// Read a PEFT folder as a new version on the served base.
    Import(AdapterImportOptions),
    /// Write a version as a PEFT folder.
    Export(AdapterExportOptions),
}

/// Which adapters.
#[derive(Debug, Clone, Args)]
pub struct AdapterSite {
    /// Which agent.
    #[command(flatten)]
    pub site: SiteOptions,
    /// Values that win over `agent.toml`.
    #[command(flatten)]
    pub overrides: OverrideOptions,
    /// The job whose base the adapters sit on; the served one if not given.
    #[arg(long, value_name = "NAME")]
    pub job: Option<JobId>,
}

/// Options of `adapter train`.
#[derive(Debug, Args)]
pub struct AdapterTrainOptions {
    /// Which adapters.
    #[command(flatten)]
    pub adapters: AdapterSite,
    /// Stop training after so many milliseconds, instead of `adapter.time_budget_ms`.
    #[arg(long, value_name = "MS")]
    pub time_budget_ms: Option<u64>,
    /// Keep serving what is served.
    #[arg(long)]
    pub no_activate: bool,
}

/// Options of `adapter activate`.
#[derive(Debug, Args)]
pub struct AdapterActivateOptions {
    /// The version, as `adapter list` shows it.
    pub version: u64,
    /// Which adapters.
    #[command(flatten)]
    pub adapters: AdapterSite,
}

/// Options of `adapter import`.
#[derive(Debug, Args)]
pub struct AdapterImportOptions {
    /// The PEFT folder.
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
    /// Which adapters.
    #[command(flatten)]
    pub adapters: AdapterSite,
    /// Serve it at once.
    #[arg(long)]
    pub activate: bool,
}

/// Options of `adapter export`.
#[derive(Debug, Args)]
pub struct AdapterExportOptions {
    /// The version, as `adapter list` shows it.
    pub version: u64,
    /// The PEFT folder to write.
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
    /// Which adapters.
    #[command(flatten)]
    pub adapters: AdapterSite,
    /// Also write the adapter's base here as a model folder with its tokenizer, which `serve
    /// --language-model` takes.
    #[arg(long, value_name = "FOLDER")]
    pub base: Option<PathBuf>,
}

/// What to do with the ledger.
#[derive(Debug, Subcommand)]
pub enum PrivacyCommand {
    /// Show every release and what each dataset has spent and left.
    Show(SiteOptions),
    /// Verify the ledger's hash chain.
    Verify(SiteOptions),
}

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key and print it; nothing else keeps it.
    Add(NewKeyOptions),
    /// Show every key without the key itself.
    List(SiteOptions),
    /// Make a key useless from the next request on.
    Revoke {
        /// The key's id, as `key list` shows it.
        id: String,
        /// Which agent.
        #[command(flatten)]
        site: SiteOptions,
    },
}

/// Options of `key add`.
#[derive(Debug, Args)]
pub struct NewKeyOptions {
    /// Which agent.
    #[command(flatten)]
    pub site: SiteOptions,
    /// Whose requests the key makes.
    #[arg(long)]
    pub tenant: TenantId,
    /// What it may be used for; again for more. Without it: inference, feedback, viewer.
    #[arg(long, value_parser = key_role)]
    pub role: Vec<KeyRole>,
    /// Days until it works no more; without it, it works until it is revoked.
    #[arg(long, value_name = "DAYS")]
    pub expires_days: Option<u32>,
    /// What it is for, shown by `key list`.
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
}

fn key_role(text: &str) -> Result<KeyRole, String> {
    let roles = [KeyRole::Inference, KeyRole::Feedback, KeyRole::Viewer, KeyRole::Operator];
    let role = roles.into_iter().find(|role| role.name() == text);
    role.ok_or_else(|| "roles are inference, feedback, viewer, operator".to_owned())
}

/// What to do with outcomes of predictions.
#[derive(Debug, Subcommand)]
pub enum FeedbackCommand {
    /// Show the newest predictions with an outcome.
    List {
        /// Which agent.
        #[command(flatten)]
        site: SiteOptions,
        /// How many.
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// Write all predictions with an outcome to a file, one JSON document a line.
    Export {
        /// Which agent.
        #[command(flatten)]
        site: SiteOptions,
        /// The file; an existing one is replaced.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Remove a prediction and its outcome. A running agent does it at `DELETE /v1/feedback/{id}`.
    Delete {
        /// Which agent.
        #[command(flatten)]
        site: SiteOptions,
        /// The prediction's id.
        id: PredictionId,
    },
}
