//! Drives a run: checkpoints, measurements, result files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::sys::resource::{UsageWho, getrusage};
use serde::Serialize;
use tributary_protocol::{id::Digest, tensor_file};

use super::{
    HarnessError, RoundOutcome, RoundRow, RunSummary, Simulation, Timing, state::Checkpoint,
};
use crate::{
    deadline::{Deadline, Stop},
    experiment::{Experiment, Records},
};

/// File of the checkpoint in a run's folder.
const CHECKPOINT: &str = "checkpoint";

/// File of the result in a run's folder.
const RESULT: &str = "result.json";

/// How to run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Where this run's files go.
    pub folder: PathBuf,
    /// Tenants that train at the same time.
    pub threads: usize,
    /// Whether to go on from a checkpoint in the folder.
    pub resume: bool,
    /// Ends the run after the current round.
    pub stop: Stop,
}

/// Who wants to know how a run gets on.
pub trait Progress {
    /// A round is over; `row` has what was measured after it.
    fn round(&mut self, row: &RoundRow, rounds: u64);
}

/// Runs an experiment with one seed and writes its files.
///
/// `rounds.csv`, `tenants.csv`, `result.json` and `model.safetensors` are the same bytes for the same
/// seed; `timing.csv` never is.
///
/// # Errors
/// [`HarnessError`]; after [`HarnessError::Interrupted`] the run can be continued.
pub fn run(
    experiment: &Experiment,
    records: &Records,
    seed: u64,
    options: &RunOptions,
    progress: &mut dyn Progress,
) -> Result<RunSummary, HarnessError> {
    let folder = &options.folder;
    let failed = |source| HarnessError::File { path: folder.clone(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    let path = folder.join(CHECKPOINT);
    let identity = identity(experiment, seed);
    let mut simulation = Simulation::new(experiment, records, seed, options.threads)?;
    let mut rows: Vec<RoundRow> = Vec::new();
    match Checkpoint::read(&path)? {
        Some(_) if !options.resume => {
            let found = "an unfinished run";
            return Err(HarnessError::Occupied { path: folder.clone(), found });
        }
        None if folder.join(RESULT).exists() => {
            let finished = read_result(&folder.join(RESULT))?;
            let same = finished.run == identity.to_string();
            return match same && options.resume {
                true => Ok(finished),
                false => {
                    let found = "the results of a run";
                    Err(HarnessError::Occupied { path: folder.clone(), found })
                }
            };
        }
        Some(checkpoint) if checkpoint.run == identity => {
            rows = checkpoint.rows;
            simulation.restore(checkpoint.state);
        }
        Some(_) => {
            let problem = "belongs to another experiment or seed";
            return Err(HarnessError::Checkpoint { path, problem });
        }
        None => rows.push(measured(&simulation, None, &[])?),
    }
    let mut timing = Vec::new();
    while simulation.round() < experiment.rounds {
        if options.stop.is_requested() {
            write_checkpoint(&simulation, &rows, identity, &path)?;
            return Err(HarnessError::Interrupted { round: simulation.round() });
        }
        let clock = Deadline::after(std::time::Duration::MAX);
        let before = cpu_seconds();
        let outcome = simulation.step()?;
        let (wall_s, cpu_s) = (clock.elapsed().as_secs_f64(), cpu_seconds() - before);
        timing.push(Timing { round: outcome.round, wall_s, cpu_s });
        let last = outcome.round == experiment.rounds;
        let row = match last || outcome.round % experiment.evaluation.every == 0 {
            true => measured(&simulation, Some(outcome), &rows)?,
            false => unmeasured(outcome, &rows),
        };
        progress.round(&row, experiment.rounds);
        rows.push(row);
        if !last && outcome.round % experiment.checkpoint_every == 0 {
            write_checkpoint(&simulation, &rows, identity, &path)?;
        }
    }
    let summary = finish(experiment, &simulation, seed, &rows, &timing, folder)?;
    match fs::remove_file(&path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(HarnessError::File { path, source })
        }
        _ => Ok(summary),
    }
}

/// Processor seconds of this process, all threads.
#[must_use]
pub fn cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a process may ask about itself");
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// What a checkpoint belongs to: everything in the file that decides the result, and the seed.
fn identity(experiment: &Experiment, seed: u64) -> Digest {
    let mut own = experiment.clone();
    own.seeds = vec![seed];
    Digest::of(&serde_json::to_vec(&own).expect("an experiment has no map with odd keys"))
}

fn unmeasured(outcome: RoundOutcome, rows: &[RoundRow]) -> RoundRow {
    let (down, up) = rows.last().map_or((0, 0), |row| (row.bytes_down, row.bytes_up));
    RoundRow {
        round: outcome.round,
        invited: outcome.invited,
        reported: outcome.reported,
        accuracy: None,
        loss: None,
        epsilon: None,
        bytes_down: down + outcome.bytes_down,
        bytes_up: up + outcome.bytes_up,
    }
}

fn measured(
    simulation: &Simulation<'_>,
    outcome: Option<RoundOutcome>,
    rows: &[RoundRow],
) -> Result<RoundRow, HarnessError> {
    let nothing = RoundOutcome { round: 0, invited: 0, reported: 0, bytes_down: 0, bytes_up: 0 };
    let evaluation = simulation.evaluate()?;
    Ok(RoundRow {
        accuracy: Some(evaluation.accuracy),
        loss: Some(evaluation.loss),
        epsilon: simulation.epsilon()?,
        ..unmeasured(outcome.unwrap_or(nothing), rows)
    })
}

fn write_checkpoint(
    simulation: &Simulation<'_>,
    rows: &[RoundRow],
    run: Digest,
    path: &Path,
) -> Result<(), HarnessError> {
    Checkpoint { run, rows: rows.to_vec(), state: simulation.state() }.write(path)
}

fn finish(
    experiment: &Experiment,
    simulation: &Simulation<'_>,
    seed: u64,
    rows: &[RoundRow],
    timing: &[Timing],
    folder: &Path,
) -> Result<RunSummary, HarnessError> {
    let model = tensor_file::write(&experiment.model, simulation.base())?;
    write(&folder.join("model.safetensors"), &model)?;
    let tenants = simulation.tenants()?;
    write_csv(&folder.join("rounds.csv"), rows)?;
    write_csv(&folder.join("tenants.csv"), &tenants)?;
    write_csv(&folder.join("timing.csv"), timing)?;
    let last = rows.last().expect("the initial model has a row");
    let summary = RunSummary {
        name: experiment.name.clone(),
        seed,
        rounds: simulation.round(),
        tenants: tenants.len(),
        accuracy: last.accuracy.expect("the last round is measured"),
        loss: last.loss.expect("the last round is measured"),
        trust: experiment.privacy.name().to_owned(),
        unit: simulation.unit().map(str::to_owned),
        epsilon: last.epsilon,
        delta: experiment.privacy.noise().map(|noise| noise.delta),
        noise_multiplier: simulation.noise_multiplier(),
        bytes_down: last.bytes_down,
        bytes_up: last.bytes_up,
        model: Digest::of(&model).to_string(),
        run: identity(experiment, seed).to_string(),
    };
    let path = folder.join(RESULT);
    let json = serde_json::to_vec_pretty(&summary)
        .map_err(|error| HarnessError::File { path: path.clone(), source: error.into() })?;
    write(&path, &json)?;
    Ok(summary)
}

fn read_result(path: &Path) -> Result<RunSummary, HarnessError> {
    let failed = |source| HarnessError::File { path: path.to_owned(), source };
    let bytes = fs::read(path).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), HarnessError> {
    fs::write(path, bytes).map_err(|source| HarnessError::File { path: path.to_owned(), source })
}

fn write_csv(path: &Path, rows: &[impl Serialize]) -> Result<(), HarnessError> {
    let failed = |error: csv::Error| HarnessError::File {
        path: path.to_owned(),
        source: std::io::Error::other(error),
    };
    let mut writer = csv::Writer::from_path(path).map_err(failed)?;
    rows.iter().try_for_each(|row| writer.serialize(row)).map_err(failed)?;
    writer.flush().map_err(|error| failed(error.into()))
}
