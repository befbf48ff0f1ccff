//! The command line.

mod adapter;
mod check;
mod engine_process;
mod enroll;
mod error;
mod feedback;
mod key;
mod model_folder;
mod options;
mod output;
mod privacy;
mod run;

use std::process::ExitCode;

pub use self::{
    error::CliError,
    options::{Arguments, Command, SiteOptions},
};

/// Carries out a command.
///
/// # Errors
/// [`CliError`] naming what failed.
pub async fn execute(arguments: Arguments) -> Result<ExitCode, CliError> {
    match arguments.command {
        Command::Enroll(options) => enroll::execute(&options).await,
        Command::Check(options) => check::execute(&options),
        Command::Run(options) => run::run(options).await,
        Command::Serve(options) => run::serve(options).await,
        Command::Privacy(command) => privacy::execute(&command),
        Command::Adapter(command) => {
            // Training keeps its thread busy for as long as it takes.
            tokio::task::block_in_place(|| adapter::execute(&command))
        }
        Command::Key(command) => key::execute(command),
        Command::Feedback(command) => feedback::execute(command),
        Command::EngineProcess => engine_process::execute().await,
    }
}
