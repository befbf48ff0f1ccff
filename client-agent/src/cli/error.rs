use std::path::PathBuf;

use thiserror::Error;
use tributary_privacy::ledger::LedgerError;
use tributary_protocol::enrollment::TokenError;

use crate::{
    compute::ComputeError,
    config::ConfigError,
    driver::AgentError,
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
    /// Adapters without a language model.
    #[error("--adapter needs --language-model or [language] in agent.toml")]
    AdapterWithoutModel,
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
