//! All seeds of an experiment.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{HarnessError, Progress, RunOptions, RunSummary, run};
use crate::experiment::{Experiment, Records};

/// File of a series: the experiment as it was run.
pub(crate) const EXPERIMENT: &str = "experiment.toml";
/// File of a series: the commands that ran it, a line each.
pub(crate) const COMMANDS: &str = "commands.txt";
/// File of a series: its [`Series`].
const RESULTS: &str = "results.json";

/// The results of all seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Name of the experiment.
    pub name: String,
    /// Where the files are, one folder a seed.
    pub folder: PathBuf,
    /// Mean accuracy over seeds.
    pub accuracy_mean: f64,
    /// Standard deviation of the accuracy over seeds.
    pub accuracy_deviation: f64,
    /// One result a seed.
    pub runs: Vec<RunSummary>,
}

/// Who wants to know how a series gets on.
pub trait SeriesProgress {
    /// The run of a seed begins.
    fn seed(&mut self, experiment: &Experiment, seed: u64) -> Box<dyn Progress + '_>;
}

/// The records that were loaded last; most experiments of a sweep share them.
#[derive(Debug, Default)]
pub struct RecordsCache(Option<(Vec<u8>, Records)>);

impl RecordsCache {
    /// The records of an experiment and a seed.
    ///
    /// # Errors
    /// Those of [`Records::load`].
    pub fn load(&mut self, experiment: &Experiment, seed: u64) -> Result<&Records, HarnessError> {
        let key = experiment.data_key(seed);
        if self.0.as_ref().is_none_or(|(known, _)| *known != key) {
            // First the old ones go, so that memory never holds both.
            self.0 = None;
            self.0 = Some((key, Records::load(experiment, seed)?));
        }
        let (_, records) = self.0.as_ref().expect("just loaded");
        records.check(experiment)?;
        Ok(records)
    }
}

/// Runs an experiment with all its seeds and writes the files of the series.
///
/// - `options`: the folder is that of the series
/// - `command`: what ran it, for people who want to repeat it
///
/// # Errors
/// Those of [`run`](super::run()).
pub fn run_series(
    experiment: &Experiment,
    options: &RunOptions<'_>,
    command: &str,
    cache: &mut RecordsCache,
    progress: &mut dyn SeriesProgress,
) -> Result<Series, HarnessError> {
    let folder = &options.folder;
    let mut runs = Vec::new();
    for &seed in &experiment.seeds {
        let own = RunOptions { folder: folder.join(format!("seed-{seed}")), ..options.clone() };
        if let Some(finished) = run::finished(experiment, seed, &own.folder, own.resume)? {
            runs.push(finished);
            continue;
        }
        let records = cache.load(experiment, seed)?;
        let mut progress = progress.seed(experiment, seed);
        runs.push(run::run(experiment, records, seed, &own, &mut *progress)?);
    }
    let accuracies: Vec<f64> = runs.iter().map(|run| run.accuracy).collect();
    let count = accuracies.len() as f64;
    let mean = accuracies.iter().sum::<f64>() / count;
    let squares: f64 = accuracies.iter().map(|accuracy| (accuracy - mean).powi(2)).sum();
    let series = Series {
        name: experiment.name.clone(),
        folder: folder.clone(),
        accuracy_mean: mean,
        accuracy_deviation: (squares / (count - 1.0).max(1.0)).sqrt(),
        runs,
    };
    if options.ranks.rank() == 0 {
        let failed = |source| HarnessError::File { path: folder.clone(), source };
        series.write(experiment, folder, command).map_err(failed)?;
    }
    Ok(series)
}

impl Series {
    /// The mean of a number over seeds.
    #[must_use]
    pub fn mean(&self, value: impl Fn(&RunSummary) -> f64) -> f64 {
        self.runs.iter().map(value).sum::<f64>() / self.runs.len() as f64
    }

    /// The mean of a number that all seeds have or none has.
    #[must_use]
    pub fn mean_of(&self, value: impl Fn(&RunSummary) -> Option<f64>) -> Option<f64> {
        let values: Option<Vec<f64>> = self.runs.iter().map(value).collect();
        values.map(|values| values.iter().sum::<f64>() / values.len() as f64)
    }

    /// The largest ε of a seed, if there is noise.
    #[must_use]
    pub fn epsilon(&self) -> Option<f64> {
        self.runs.iter().filter_map(|run| run.epsilon).reduce(f64::max)
    }

    fn write(&self, experiment: &Experiment, folder: &Path, command: &str) -> io::Result<()> {
        let text = toml::to_string(experiment).map_err(io::Error::other)?;
        fs::write(folder.join(EXPERIMENT), text)?;
        fs::write(folder.join(RESULTS), serde_json::to_vec_pretty(self)?)?;
        let path = folder.join(COMMANDS);
        let known = fs::read_to_string(&path).unwrap_or_default();
        if known.lines().any(|line| line == command) {
            return Ok(());
        }
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        writeln!(file, "{command}")
    }
}
