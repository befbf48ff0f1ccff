use std::path::PathBuf;

use thiserror::Error;
use tributary_privacy::ledger::LedgerError;
use tributary_protocol::{enrollment::TokenError, id::JobId, tensor_file::TensorFileError};

use crate::{
    adapter::{AdapterError, AdapterFolderError, RegistryError},
    compute::ComputeError,
    config::ConfigError,
    driver::{AgentError, records::RecordsError, serving::ServingError},
    durable_file::FileError,
    engine::language::LanguageError,
    feedback::FeedbackError,
    identity::{EnrollError, IdentityError},
    keys::{AccessError, KeyFileError},
    policy::PolicyError,
    receipt_file::ReceiptFileError,
};

/// Says why a command failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CliError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The policy cannot be used.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The token is mistyped.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// There is no certificate.
    #[error("enrolment failed")]
    Enroll(#[from] EnrollError),
    /// The number of threads cannot be set.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// The agent cannot start.
    #[error("the agent cannot start")]
    Agent(#[from] AgentError),
    /// The ledger is damaged.
    #[error("the privacy ledger cannot be used")]
    Ledger(#[from] LedgerError),
    /// The ledger is not the countersigned one.
    #[error("the privacy ledger cannot be relied on")]
    Receipt(#[from] ReceiptFileError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A job file is not a job.
    #[error("{} is not a job: {message}", path.display())]
    Job {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        message: String,
    },
    /// The result cannot be printed.
    #[error("cannot print")]
    Print(#[source] std::io::Error),
    /// The language model cannot be served.
    #[error(transparent)]
    Language(#[from] LanguageError),
    /// Options of a language model without one.
    #[error("--adapter and --device need --language-model or [language] in agent.toml")]
    WithoutLanguageModel,
    /// The adapters cannot be read or changed.
    #[error(transparent)]
    AdapterFolder(Box<AdapterFolderError>),
    /// The adapter cannot be used.
    #[error(transparent)]
    Adapter(Box<AdapterError>),
    /// The adapter cannot be activated.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// What is to be served cannot be.
    #[error(transparent)]
    Serving(Box<ServingError>),
    /// The records cannot be read.
    #[error(transparent)]
    Records(Box<RecordsError>),
    /// The model has no folder that others read.
    #[error("models of family {family:?} have no model folders; leave `--base` out")]
    NoFolder {
        /// The family.
        family: &'static str,
    },
    /// The base cannot be written.
    #[error("the base cannot be written")]
    Base(Box<TensorFileError>),
    /// No base of a job is served.
    #[error("no base of job {job} is served here, so there is nothing to adapt")]
    NothingServed {
        /// The job.
        job: JobId,
    },
    /// Training led to nothing that is worth keeping.
    #[error(
        "no adapter of job {job} did as well as the base alone on the validation records; try more records, another `[adapter]` table or more time"
    )]
    NotBetter {
        /// The job.
        job: JobId,
    },
    /// Callers cannot be told apart.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Keys cannot be read or changed.
    #[error(transparent)]
    Keys(#[from] KeyFileError),
    /// Outcomes of predictions cannot be read or changed.
    #[error(transparent)]
    Feedback(#[from] FeedbackError),
    /// A line from the agent is lost or unknown.
    #[error("a line from the agent {what}")]
    Engine {
        /// What is wrong with it.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The HTTP interface failed.
    #[error("the HTTP interface failed")]
    Api(#[source] std::io::Error),
}

impl From<AdapterFolderError> for CliError {
    fn from(error: AdapterFolderError) -> Self {
        Self::AdapterFolder(Box::new(error))
    }
}

impl From<AdapterError> for CliError {
    fn from(error: AdapterError) -> Self {
        Self::Adapter(Box::new(error))
    }
}

impl From<ServingError> for CliError {
    fn from(error: ServingError) -> Self {
        Self::Serving(Box::new(error))
    }
}

impl From<RecordsError> for CliError {
    fn from(error: RecordsError) -> Self {
        Self::Records(Box::new(error))
    }
}
