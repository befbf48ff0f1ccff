//! Runs the cells of a sweep.

use std::{collections::VecDeque, error::Error, fs, path::PathBuf, time::Duration};

use super::{Cell, CellResult, Sweep, SweepError, SweepResults};
use crate::{
    deadline::{Stop, pause},
    harness::{Alone, HarnessError, RecordsCache, RunOptions, SeriesProgress, run_series},
};

/// How often cells that other processes work on are looked at.
const BUSY_INTERVAL: Duration = Duration::from_millis(200);

/// How to run a sweep.
#[derive(Debug, Clone)]
pub struct SweepOptions {
    /// Where the results go, one folder a cell.
    pub folder: PathBuf,
    /// Tenants that train at the same time.
    pub threads: usize,
    /// Ends the sweep after the current round.
    pub stop: Stop,
    /// What ran it, for people who want to repeat it.
    pub command: String,
}

/// Who wants to know how a sweep gets on.
pub trait SweepProgress: SeriesProgress {
    /// So many cells are done, and the next one begins.
    fn cell(&mut self, cell: &Cell, done: usize, cells: usize);
    /// The cells left are all worked on by other processes.
    fn waiting(&mut self, cells: usize);
}

/// Runs what is left of a sweep; finished cells are kept, begun ones go on.
///
/// A cell that fails is noted in the results, and the others run.
///
/// # Errors
/// [`SweepError`]; after [`SweepError::Interrupted`] the sweep can be continued.
pub fn run(
    sweep: &Sweep,
    options: &SweepOptions,
    progress: &mut dyn SweepProgress,
) -> Result<SweepResults, SweepError> {
    let cells = sweep.cells()?;
    let folder = &options.folder;
    let failed = |source| SweepError::File { path: folder.clone(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    let mut results: Vec<Option<CellResult>> = vec![None; cells.len()];
    let mut left: VecDeque<usize> = (0..cells.len()).collect();
    let mut cache = RecordsCache::default();
    // Cells in a row that another process was at work on.
    let mut busy = 0;
    while let Some(index) = left.pop_front() {
        let (cell, done) = (&cells[index], results.iter().flatten().count());
        let interrupted = SweepError::Interrupted { done, cells: cells.len() };
        if options.stop.is_requested() {
            return Err(interrupted);
        }
        progress.cell(cell, done, cells.len());
        let run_options = RunOptions {
            folder: folder.join(&cell.folder),
            threads: options.threads,
            resume: true,
            stop: options.stop.clone(),
            ranks: &Alone,
        };
        let outcome =
            run_series(&cell.experiment, &run_options, &options.command, &mut cache, progress);
        results[index] = match outcome {
            Ok(series) => Some(CellResult::new(cell, Ok(series))),
            Err(HarnessError::Interrupted { .. }) => return Err(interrupted),
            Err(HarnessError::Busy { .. }) => {
                left.push_back(index);
                busy += 1;
                if busy >= left.len() {
                    progress.waiting(left.len());
                    pause(BUSY_INTERVAL);
                }
                continue;
            }
            // A full disk is not the cell's fault.
            Err(error @ HarnessError::File { .. }) => {
                return Err(SweepError::Harness(error.into()));
            }
            Err(error) => Some(CellResult::new(cell, Err(chain(&error)))),
        };
        busy = 0;
    }
    let results = SweepResults {
        name: sweep.name.clone(),
        columns: cells[0].settings.iter().map(|(key, _)| key.clone()).collect(),
        cells: results.into_iter().flatten().collect(),
    };
    results.write(folder).map_err(failed)?;
    Ok(results)
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
