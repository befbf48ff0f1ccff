//! What runs and sweeps left in their folders.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::{
    harness::{
        RoundRow, RunSummary, TenantRow, Timing,
        results::{RESULT, ROUNDS, TENANTS, TIMING},
        series::{COMMANDS, EXPERIMENT},
    },
    sweep::{self, SweepResults},
};

/// Everything that a report shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Results {
    /// What is compared, in order.
    pub entries: Vec<Entry>,
    /// The keys of a sweep, where there is just one.
    pub columns: Vec<String>,
    /// Name of the sweep, where there is just one.
    pub sweep: Option<String>,
}

/// One experiment with all its seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// Its name, unlike that of all others.
    pub label: String,
    /// The values of a sweep's keys.
    pub settings: Vec<serde_json::Value>,
    /// The commands that ran it.
    pub commands: Vec<String>,
    /// The experiment, in TOML.
    pub experiment: String,
    /// One a seed.
    pub runs: Vec<SeedResults>,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeedResults {
    /// Its result.
    pub summary: RunSummary,
    /// Round by round.
    pub rounds: Vec<RoundRow>,
    /// Tenant by tenant.
    pub tenants: Vec<TenantRow>,
    /// How long the rounds took.
    pub timing: Vec<Timing>,
}

/// Says why there is no report.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The folder has nothing to show.
    #[error(
        "{} has no finished run; name a folder that `tributary-sim run` or `sweep` wrote, or finish \
         the run with --resume",
        path.display()
    )]
    NoResults {
        /// The folder.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what a run writes.
    #[error("{} is not what a run writes; run it again", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Results {
    /// Reads the folders of runs, of single seeds and of sweeps.
    ///
    /// # Errors
    /// [`ReportError`] naming the folder or file.
    pub fn load(folders: &[PathBuf]) -> Result<Self, ReportError> {
        let mut own = Self { entries: Vec::new(), columns: Vec::new(), sweep: None };
        for folder in folders {
            own.add(folder)?;
        }
        if folders.len() > 1 {
            (own.columns, own.sweep) = (Vec::new(), None);
        }
        let labels: Vec<String> = own.entries.iter().map(|entry| entry.label.clone()).collect();
        for (place, entry) in own.entries.iter_mut().enumerate() {
            let earlier = labels[..place].iter().filter(|label| **label == entry.label).count();
            if earlier > 0 {
                entry.label = format!("{} ({})", entry.label, earlier + 1);
            }
        }
        Ok(own)
    }

    /// A title for a page of them.
    #[must_use]
    pub fn title(&self) -> String {
        match &self.entries[..] {
            _ if self.sweep.is_some() => self.sweep.clone().unwrap_or_default(),
            [one] => one.label.clone(),
            [first, .., last] => format!("{} to {}", first.label, last.label),
            [] => String::new(),
        }
    }

    fn add(&mut self, folder: &Path) -> Result<(), ReportError> {
        let path = folder.join(sweep::RESULTS);
        if path.exists() {
            let results: SweepResults = read_json(&path)?;
            for cell in results.cells.iter().filter(|cell| cell.series.is_some()) {
                let mut entry = entry(&folder.join(&cell.folder))?;
                (entry.label, entry.settings) = (cell.label.clone(), cell.settings.clone());
                self.entries.push(entry);
            }
            (self.columns, self.sweep) = (results.columns, Some(results.name));
            return match self.entries.is_empty() {
                true => Err(ReportError::NoResults { path: folder.to_owned() }),
                false => Ok(()),
            };
        }
        self.entries.push(entry(folder)?);
        Ok(())
    }
}

/// The folder of an experiment or of one of its seeds.
fn entry(folder: &Path) -> Result<Entry, ReportError> {
    let (seeds, home) = if folder.join(RESULT).exists() {
        (vec![folder.to_owned()], folder.parent().unwrap_or(folder))
    } else {
        (seed_folders(folder)?, folder)
    };
    let runs: Vec<SeedResults> = seeds.iter().map(|seed| run(seed)).collect::<Result<_, _>>()?;
    let Some(first) = runs.first() else {
        return Err(ReportError::NoResults { path: folder.to_owned() });
    };
    // Both are for people; a run that was copied without them is still shown.
    let text = |name: &str| fs::read_to_string(home.join(name)).unwrap_or_default();
    Ok(Entry {
        label: first.summary.name.clone(),
        settings: Vec::new(),
        commands: text(COMMANDS).lines().map(str::to_owned).collect(),
        experiment: text(EXPERIMENT),
        runs,
    })
}

/// The finished seeds of an experiment, by number.
fn seed_folders(folder: &Path) -> Result<Vec<PathBuf>, ReportError> {
    let failed = |source| ReportError::File { path: folder.to_owned(), source };
    let mut seeds = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let seed = name.strip_prefix("seed-").and_then(|seed| seed.parse::<u64>().ok());
        if let Some(seed) = seed.filter(|_| path.join(RESULT).exists()) {
            seeds.push((seed, path));
        }
    }
    seeds.sort();
    Ok(seeds.into_iter().map(|(_, path)| path).collect())
}

fn run(folder: &Path) -> Result<SeedResults, ReportError> {
    Ok(SeedResults {
        summary: read_json(&folder.join(RESULT))?,
        rounds: read_csv(&folder.join(ROUNDS))?,
        tenants: read_csv(&folder.join(TENANTS))?,
        timing: read_csv(&folder.join(TIMING))?,
    })
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, ReportError> {
    let bytes =
        fs::read(path).map_err(|source| ReportError::File { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes)
        .map_err(|error| ReportError::Malformed { path: path.to_owned(), source: error.into() })
}

fn read_csv<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, ReportError> {
    let malformed =
        |error: csv::Error| ReportError::Malformed { path: path.to_owned(), source: error.into() };
    let mut reader = csv::Reader::from_path(path).map_err(malformed)?;
    reader.deserialize().collect::<Result<_, _>>().map_err(malformed)
}
