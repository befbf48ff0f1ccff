//! `tributary-sim run`.

use std::{
    fs,
    io::IsTerminal,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use indicatif::{ProgressBar, ProgressStyle};
use thiserror::Error;

use super::output;
use crate::{
    deadline::{Deadline, Stop},
    experiment::{Experiment, ExperimentError, Records},
    harness::{self, HarnessError, Progress, RoundRow, RunOptions, RunSummary},
};

/// Plain progress lines are this far apart, at least.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

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
    /// Ctrl-C cannot be watched for.
    #[error("cannot watch for Ctrl-C")]
    Signal(#[from] ctrlc::Error),
    /// The results cannot be printed or written.
    #[error("cannot write the results")]
    Output(#[from] std::io::Error),
}

impl From<HarnessError> for RunCommandError {
    fn from(error: HarnessError) -> Self {
        Self::Harness(error.into())
    }
}

impl RunCommandError {
    /// Whether the user asked to stop.
    #[must_use]
    pub fn is_interruption(&self) -> bool {
        matches!(self, Self::Harness(error) if matches!(**error, HarnessError::Interrupted { .. }))
    }
}

/// The results of all seeds.
#[derive(Debug, serde::Serialize)]
pub(super) struct Answer {
    name: String,
    folder: PathBuf,
    accuracy_mean: f64,
    accuracy_deviation: f64,
    runs: Vec<RunSummary>,
}

impl RunArguments {
    /// Runs all seeds, shows progress on standard error and prints the results.
    ///
    /// # Errors
    /// [`RunCommandError`] naming the key, file or tenant.
    pub fn run(self) -> Result<(), RunCommandError> {
        let experiment = load(&self.file)?;
        let stop = stop_on_signal()?;
        let folder = self.output.unwrap_or_else(|| Path::new("results").join(&experiment.name));
        let seeds = self.seed.map_or_else(|| experiment.seeds.clone(), |seed| vec![seed]);
        let threads = self.threads.unwrap_or_else(available_threads);
        let answer =
            run_seeds(&self.file, &experiment, &seeds, folder, threads, self.resume, &stop)?;
        if self.json {
            output::json(&answer)?
        } else {
            output::line(&answer.text())?
        }
        Ok(())
    }
}

/// Reads an experiment file.
pub(super) fn load(file: &Path) -> Result<Experiment, RunCommandError> {
    Experiment::load(file).map_err(|source| RunCommandError::Experiment {
        path: file.to_owned(),
        source: source.into(),
    })
}

/// A request to stop that Ctrl-C makes.
pub(super) fn stop_on_signal() -> Result<Stop, RunCommandError> {
    let stop = Stop::default();
    let request = stop.clone();
    ctrlc::set_handler(move || request.request())?;
    Ok(stop)
}

pub(super) fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Runs one experiment with all its seeds.
pub(super) fn run_seeds(
    file: &Path,
    experiment: &Experiment,
    seeds: &[u64],
    folder: PathBuf,
    threads: usize,
    resume: bool,
    stop: &Stop,
) -> Result<Answer, RunCommandError> {
    let mut runs = Vec::new();
    for &seed in seeds {
        let records = Records::load(experiment, seed).map_err(|source| {
            RunCommandError::Experiment { path: file.to_owned(), source: source.into() }
        })?;
        let options = RunOptions {
            folder: folder.join(format!("seed-{seed}")),
            threads,
            resume,
            stop: stop.clone(),
        };
        let mut progress = Display::new(&format!("{} seed {seed}", experiment.name));
        let summary = harness::run(experiment, &records, seed, &options, &mut progress)?;
        progress.finish();
        runs.push(summary);
    }
    let accuracies: Vec<f64> = runs.iter().map(|run| run.accuracy).collect();
    let count = accuracies.len() as f64;
    let mean = accuracies.iter().sum::<f64>() / count;
    let squares: f64 = accuracies.iter().map(|accuracy| (accuracy - mean).powi(2)).sum();
    let answer = Answer {
        name: experiment.name.clone(),
        accuracy_mean: mean,
        accuracy_deviation: (squares / (count - 1.0).max(1.0)).sqrt(),
        runs,
        folder,
    };
    let text = toml::to_string(experiment).map_err(std::io::Error::other)?;
    fs::write(answer.folder.join("experiment.toml"), text)?;
    fs::write(
        answer.folder.join("results.json"),
        serde_json::to_vec_pretty(&answer).map_err(std::io::Error::from)?,
    )?;
    Ok(answer)
}

impl Answer {
    fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        table.set_header(["seed", "accuracy", "loss", "ε", "sent up", "model"]);
        for run in &self.runs {
            let epsilon = run.epsilon.map_or_else(|| "–".to_owned(), |e| format!("{e:.2}"));
            table.add_row([
                run.seed.to_string(),
                format!("{:.4}", run.accuracy),
                format!("{:.4}", run.loss),
                epsilon,
                format!("{:.1} MB", run.bytes_up as f64 / 1e6),
                run.model[..12].to_owned(),
            ]);
        }
        table.column_iter_mut().take(5).for_each(|column| {
            column.set_cell_alignment(CellAlignment::Right);
        });
        let (mean, deviation) = (self.accuracy_mean, self.accuracy_deviation);
        format!(
            "{table}\naccuracy {mean:.4} ± {deviation:.4}, results in {}",
            self.folder.display()
        )
    }
}

/// A bar on terminals, a line now and then elsewhere.
struct Display {
    bar: Option<ProgressBar>,
    title: String,
    last: Option<Deadline>,
}

impl Display {
    fn new(title: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template(
                "{prefix} {wide_bar} round {pos}/{len} {msg} ETA {eta}",
            );
            bar.set_style(style.expect("a valid template"));
            bar.set_prefix(title.to_owned());
            bar
        });
        Self { bar, title: title.to_owned(), last: None }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Display {
    fn round(&mut self, row: &RoundRow, rounds: u64) {
        let epsilon = row.epsilon.map(|epsilon| format!(" ε {epsilon:.2}")).unwrap_or_default();
        let message = row.accuracy.map(|accuracy| format!("accuracy {accuracy:.4}{epsilon}"));
        if let Some(bar) = &self.bar {
            bar.set_length(rounds);
            bar.set_position(row.round);
            if let Some(message) = message {
                bar.set_message(message);
            }
            return;
        }
        let due = self.last.is_none_or(|last| last.has_passed()) || row.round == rounds;
        if let (Some(message), true) = (message, due) {
            self.last = Some(Deadline::after(LINE_INTERVAL));
            let line = format!("{}: round {}/{rounds} {message}", self.title, row.round);
            // Progress is no result; a closed standard error must not end the run.
            let _ = output::note(&line);
        }
    }
}
