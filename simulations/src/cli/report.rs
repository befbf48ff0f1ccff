//! `tributary-sim report`.

use std::path::PathBuf;

use clap::Args;
use thiserror::Error;

use super::output;
use crate::report::{self, ReportError, Results};

/// Writes one HTML page of one or more runs or sweeps, and their rows as CSV and JSON.
///
/// The page needs nothing else, not even a network.
#[derive(Debug, Args)]
pub struct ReportArguments {
    /// Folders that `run` or `sweep` wrote; several are compared
    #[arg(value_name = "DIR", required = true)]
    folders: Vec<PathBuf>,
    /// The page; the rows go beside it, with .csv and .json at their end [default: DIR/report.html]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Title of the page
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
    /// Print one JSON object that names the files
    #[arg(long)]
    json: bool,
}

/// Says why there is no report.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReportCommandError {
    /// Results cannot be read, or the page not written.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The answer cannot be printed.
    #[error("cannot write to standard output")]
    Output(#[from] std::io::Error),
}

impl ReportArguments {
    /// Writes the files and prints where they are.
    ///
    /// # Errors
    /// [`ReportCommandError`] naming the folder or file.
    pub fn run(self) -> Result<(), ReportCommandError> {
        let results = Results::load(&self.folders)?;
        let title = self.title.unwrap_or_else(|| results.title());
        let path = self.output.unwrap_or_else(|| self.folders[0].join("report.html"));
        let files = report::write(&results, &title, &path)?;
        if self.json {
            output::json(&files)?;
        } else {
            output::line(&format!(
                "{}\nrows: {}, {}",
                files.page.display(),
                files.csv.display(),
                files.json.display()
            ))?;
        }
        Ok(())
    }
}
