//! Everything that can stop the demo.

use std::{path::PathBuf, process::ExitStatus};

use thiserror::Error;

use super::{evaluation::EvaluationError, http::HttpError, plan::PlanError};
use crate::{
    command::CommandError,
    data::{fashion_mnist::DatasetError, fetch::FetchError, partition::WriteError},
    population::PartitionError,
};

/// Says why the demo stopped and where to look.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DemoError {
    /// Ctrl-C, SIGTERM or SIGHUP.
    #[error("interrupted; all processes of the demo have been stopped")]
    Interrupted,
    /// The signal handler cannot be set.
    #[error("cannot watch for Ctrl-C")]
    Signal(#[source] ctrlc::Error),
    /// A program of the workspace has not been built.
    #[error(
        "cannot find `{program}` beside {} nor on PATH; build it with `cargo build --release`",
        beside.display()
    )]
    MissingProgram {
        /// The program.
        program: &'static str,
        /// The demo's own executable.
        beside: PathBuf,
    },
    /// The work folder is in use.
    #[error("{} is not empty; name a new or empty folder with --dir", path.display())]
    FolderInUse {
        /// The folder.
        path: PathBuf,
    },
    /// A file or folder cannot be read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The data is not on this machine.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The data changed while the demo started.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The data cannot be split over so many tenants.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// The tenants' files cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The job cannot be planned as asked.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A command of the coordinator or an agent failed.
    #[error("{step} failed")]
    Command {
        /// What was being done.
        step: String,
        /// Why it failed.
        #[source]
        source: CommandError,
    },
    /// A command or file holds something else than agreed.
    #[error("{origin} is not understood; are all binaries of the same build?")]
    Document {
        /// Where the text came from.
        origin: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A process ended before it was told to.
    #[error(
        "{process} ended unexpectedly ({status}); its log is {}\n{last_lines}",
        log.display()
    )]
    Exited {
        /// The process.
        process: String,
        /// How it ended.
        status: ExitStatus,
        /// Its whole log.
        log: PathBuf,
        /// The end of its log.
        last_lines: String,
    },
    /// A process cannot be started.
    #[error("cannot start {process}")]
    Start {
        /// The process.
        process: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A process does not answer.
    #[error("{process} has not answered for {seconds} s; its log is {}\n{last_lines}", log.display())]
    Silent {
        /// The process.
        process: String,
        /// How long.
        seconds: u64,
        /// Its whole log.
        log: PathBuf,
        /// The end of its log.
        last_lines: String,
        /// The last failed attempt.
        #[source]
        source: HttpError,
    },
    /// Something did not happen in time.
    #[error("gave up after {seconds} s of waiting for {awaited}")]
    TooSlow {
        /// What was awaited, and what the processes say they are doing.
        awaited: String,
        /// How long the demo waited.
        seconds: u64,
    },
    /// The coordinator gave up on the job.
    #[error("the job ended as `{state}` after {committed} of {rounds} rounds: {reason}")]
    JobEnded {
        /// Its last state.
        state: String,
        /// Rounds that were committed.
        committed: u64,
        /// Rounds that were asked for.
        rounds: u64,
        /// Why.
        reason: String,
    },
    /// A base model cannot be evaluated.
    #[error("cannot evaluate the base of round {round}")]
    Evaluation {
        /// The model's round.
        round: u64,
        /// What is wrong with it.
        #[source]
        source: EvaluationError,
    },
    /// The public test images cannot be loaded.
    #[error("cannot load the public test images")]
    TestData(#[source] EvaluationError),
    /// The results cannot be printed.
    #[error("cannot write to standard output")]
    Output(#[source] std::io::Error),
}
