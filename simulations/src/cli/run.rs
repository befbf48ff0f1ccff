//! `tributary-sim run`.

use std::path::{Path, PathBuf};

use clap::Args;
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use thiserror::Error;

use super::{display::Display, output};
use crate::{
    deadline::Stop,
    experiment::{Experiment, ExperimentError},
    harness::{Alone, HarnessError, Ranks, RecordsCache, RunOptions, Series, run_series},
};

/// Runs an experiment file.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// The experiment, in TOML
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Where the results go, one folder a seed [default: results/NAME]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Only this seed, whatever the file says
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Tenants that train at the same time; does not change results [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Go on where an interrupted run stopped; finished seeds are kept
    #[arg(long)]
    resume: bool,
    /// Share the cohorts with the other processes that `mpirun` started; needs the feature `mpi`
    #[arg(long)]
    mpi: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Says why an experiment gave no result.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunCommandError {
    /// The file cannot work.
    #[error("{} cannot be run", path.display())]
    Experiment {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<ExperimentError>,
    },
    /// A run stopped.
    #[error(transparent)]
    Harness(Box<HarnessError>),
    /// There are no processes to share with.
    #[error(transparent)]
    Mpi(#[from] super::mpi::MpiError),
    /// Ctrl-C cannot be watched for.
    #[error("cannot watch for Ctrl-C")]
    Signal(#[from] ctrlc::Error),
    /// The results cannot be printed or written.
    #[error("cannot write the results")]
    Output(#[from] std::io::Error),
}

impl RunCommandError {
    /// Whether the user asked to stop.
    #[must_use]
    pub fn is_interruption(&self) -> bool {
        matches!(self, Self::Harness(error) if matches!(**error, HarnessError::Interrupted { .. }))
    }
}

impl RunArguments {
    /// Runs all seeds, shows progress on standard error and prints the results.
    ///
    /// # Errors
    /// [`RunCommandError`] naming the key, file or tenant.
    pub fn run(self) -> Result<(), RunCommandError> {
        if self.mpi {
            return super::mpi::with_ranks(|ranks| self.run_on(ranks))?;
        }
        self.run_on(&Alone)
    }

    fn run_on(&self, ranks: &dyn Ranks) -> Result<(), RunCommandError> {
        let mut experiment = load(&self.file)?;
        let stop = stop_on_signal()?;
        if let Some(seed) = self.seed {
            experiment.seeds = vec![seed];
        }
        let default = || Path::new("results").join(&experiment.name);
        let options = RunOptions {
            folder: self.output.clone().unwrap_or_else(default),
            threads: self.threads.unwrap_or_else(|| available_threads().div_ceil(ranks.count())),
            resume: self.resume,
            stop,
            ranks,
        };
        let mut display = if ranks.rank() == 0 { Display::new() } else { Display::silent() };
        let (command, mut cache) = (output::command_line(), RecordsCache::default());
        let series = run_series(&experiment, &options, &command, &mut cache, &mut display)
            .map_err(|error| match error {
                HarnessError::Experiment(source) => {
                    let (path, source) = (self.file.clone(), source.into());
                    RunCommandError::Experiment { path, source }
                }
                other => RunCommandError::Harness(other.into()),
            })?;
        display.finish();
        match (ranks.rank(), self.json) {
            (0, true) => output::json(&series)?,
            (0, false) => output::line(&text(&series))?,
            _ => {}
        }
        Ok(())
    }
}

/// Reads an experiment file.
fn load(file: &Path) -> Result<Experiment, RunCommandError> {
    Experiment::load(file).map_err(|source| RunCommandError::Experiment {
        path: file.to_owned(),
        source: source.into(),
    })
}

/// A request to stop that Ctrl-C makes.
pub(super) fn stop_on_signal() -> Result<Stop, ctrlc::Error> {
    let stop = Stop::default();
    let request = stop.clone();
    ctrlc::set_handler(move || request.request())?;
    Ok(stop)
}

pub(super) fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn text(series: &Series) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let adapters = series.runs.iter().any(|run| run.adapter_accuracy.is_some());
    let mut header = vec!["seed", "accuracy", "loss", "ε", "sent up"];
    let perplexities = series.runs.iter().any(|run| run.adapter_perplexity.is_some());
    if adapters {
        header.extend(["held out: base", "with adapters"]);
    }
    if perplexities {
        header.extend(["perplexity: base", "with adapters"]);
    }
    let numbers = header.len();
    header.push("model");
    table.set_header(header);
    for run in &series.runs {
        let optional = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
        };
        let mut row = vec![
            run.seed.to_string(),
            format!("{:.4}", run.accuracy),
            format!("{:.4}", run.loss),
            optional(run.epsilon, 2),
            format!("{:.1} MB", run.bytes_up as f64 / 1e6),
        ];
        if adapters {
            row.extend([optional(run.held_out_accuracy, 4), optional(run.adapter_accuracy, 4)]);
        }
        if perplexities {
            let found = [run.held_out_perplexity, run.adapter_perplexity];
            row.extend(found.map(|value| optional(value, 2)));
        }
        row.push(run.model[..12].to_owned());
        table.add_row(row);
    }
    table.column_iter_mut().take(numbers).for_each(|column| {
        column.set_cell_alignment(CellAlignment::Right);
    });
    format!(
        "{table}\naccuracy {:.4} ± {:.4}, results in {}",
        series.accuracy_mean,
        series.accuracy_deviation,
        series.folder.display()
    )
}
