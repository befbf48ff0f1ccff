//! `tributary-sim sweep`.

use std::path::{Path, PathBuf};

use clap::Args;
use thiserror::Error;

use super::{
    display::Display,
    output,
    run::{available_threads, stop_on_signal},
};
use crate::sweep::{self, Sweep, SweepError, SweepOptions};

/// Runs an experiment with many settings.
///
/// The same command goes on after an interruption. Several processes may run the same sweep at once,
/// on machines with a common file system too: each takes cells that no other is at work on.
#[derive(Debug, Args)]
pub struct SweepArguments {
    /// A sweep (base experiment, variants, grid) or an experiment, in TOML
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Another axis of the grid, or instead of one: a key with dots, and its values
    #[arg(long, value_name = "KEY=VALUE,VALUE,…")]
    set: Vec<String>,
    /// Where the results go, one folder a cell [default: results/NAME]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Tenants that train at the same time; does not change results [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Only list the cells
    #[arg(long)]
    list: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Says why a sweep gave no result.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SweepCommandError {
    /// The sweep cannot be made, or stopped.
    #[error(transparent)]
    Sweep(#[from] SweepError),
    /// Cells failed; the others have results.
    #[error("{failed} of {cells} cells failed; see the table")]
    Failed {
        /// Cells without a result.
        failed: usize,
        /// All cells.
        cells: usize,
    },
    /// Ctrl-C cannot be watched for.
    #[error("cannot watch for Ctrl-C")]
    Signal(#[from] ctrlc::Error),
    /// The results cannot be printed.
    #[error("cannot write to standard output")]
    Output(#[from] std::io::Error),
}

impl SweepCommandError {
    /// Whether the user asked to stop.
    #[must_use]
    pub const fn is_interruption(&self) -> bool {
        matches!(self, Self::Sweep(SweepError::Interrupted { .. }))
    }
}

impl SweepArguments {
    /// Runs the cells that are left, shows progress on standard error and prints the table.
    ///
    /// # Errors
    /// [`SweepCommandError`]; if only some cells failed, the table was printed.
    pub fn run(self) -> Result<(), SweepCommandError> {
        let mut sweep = Sweep::load(&self.file)?;
        self.set.iter().try_for_each(|setting| sweep.set(setting))?;
        if self.list {
            for cell in sweep.cells()? {
                output::line(&format!("{}  {}", cell.folder, cell.label))?;
            }
            return Ok(());
        }
        let options = SweepOptions {
            folder: self.output.unwrap_or_else(|| Path::new("results").join(&sweep.name)),
            threads: self.threads.unwrap_or_else(available_threads),
            stop: stop_on_signal()?,
            command: output::command_line(),
        };
        let mut display = Display::new();
        let results = sweep::run(&sweep, &options, &mut display);
        display.finish();
        let results = results?;
        if self.json {
            output::json(&results)?;
        } else {
            let folder = options.folder.display();
            output::line(&format!("{}\nresults in {folder}", results.text()))?;
        }
        match (results.failed(), results.cells.len()) {
            (0, _) => Ok(()),
            (failed, cells) => Err(SweepCommandError::Failed { failed, cells }),
        }
    }
}
