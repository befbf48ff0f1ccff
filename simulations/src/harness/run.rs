//! Drives a run: checkpoints, measurements, result files.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use nix::sys::resource::{UsageWho, getrusage};
use serde::Serialize;
use tributary_protocol::{id::Digest, tensor_file};

use super::{
    HarnessError, Ranks, RoundOutcome, RoundRow, RunSummary, Simulation, Timing,
    results::{MODEL, RESULT, ROUNDS, TENANTS, TIMING},
    state::Checkpoint,
};
use crate::{
    deadline::{Deadline, Stop},
    experiment::{Experiment, Records},
};

/// File of the checkpoint in a run's folder.
const CHECKPOINT: &str = "checkpoint";
/// File that the process at work holds locked; it stays, since removing it would race.
const LOCK: &str = ".lock";

/// How to run.
#[derive(Debug, Clone)]
pub struct RunOptions<'a> {
    /// Where this run's files go.
    pub folder: PathBuf,
    /// Tenants that train at the same time in this process.
    pub threads: usize,
    /// Whether to go on from a checkpoint in the folder.
    pub resume: bool,
    /// Ends the run after the current round.
    pub stop: Stop,
    /// The processes that share the work.
    pub ranks: &'a dyn Ranks,
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
/// [`HarnessError`]; after [`HarnessError::Interrupted`] the run can be continued, and while another
/// process works in the folder it is [`HarnessError::Busy`].
pub fn run(
    experiment: &Experiment,
    records: &Records,
    seed: u64,
    options: &RunOptions<'_>,
    progress: &mut dyn Progress,
) -> Result<RunSummary, HarnessError> {
    let (folder, ranks) = (&options.folder, options.ranks);
    // Held until the run is over.
    let lock = if ranks.rank() == 0 { lock(folder).map(Some) } else { Ok(None) };
    if ranks.any(lock.is_err()) {
        lock?;
        return Err(HarnessError::OtherRank);
    }
    if let Some(finished) = finished(experiment, seed, folder, options.resume)? {
        return Ok(finished);
    }
    let path = folder.join(CHECKPOINT);
    let identity = identity(experiment, seed);
    let mut simulation =
        Simulation::new(experiment, records, seed, options.threads)?.with_ranks(ranks);
    let (mut rows, mut timing) = (Vec::new(), Vec::new());
    match Checkpoint::read(&path)? {
        Some(_) if !options.resume => {
            let found = "an unfinished run";
            return Err(HarnessError::Occupied { path: folder.clone(), found });
        }
        Some(checkpoint) if checkpoint.run == identity => {
            (rows, timing) = (checkpoint.rows, checkpoint.timing);
            simulation.restore(checkpoint.state)?;
        }
        Some(_) => {
            let problem = "belongs to another experiment or seed";
            return Err(HarnessError::Checkpoint { path, problem });
        }
        None => rows.push(measured(&simulation, None, &[])?),
    }
    let checkpoint = |simulation: &Simulation<'_>, rows: &[RoundRow], timing: &[Timing]| {
        if ranks.rank() > 0 {
            return Ok(());
        }
        let (rows, timing, state) = (rows.to_vec(), timing.to_vec(), simulation.state());
        Checkpoint { run: identity, rows, timing, state }.write(&path)
    };
    while simulation.round() < experiment.rounds {
        if ranks.any(options.stop.is_requested()) {
            checkpoint(&simulation, &rows, &timing)?;
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
            checkpoint(&simulation, &rows, &timing)?;
        }
    }
    let summary = finish(experiment, &simulation, seed, &rows, &timing, options)?;
    if ranks.rank() == 0 {
        match fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(HarnessError::File { path, source });
            }
            _ => {}
        }
    }
    Ok(summary)
}

/// The result of a finished run of the same experiment and seed, if the folder has one.
///
/// - `resume`: whether it may be taken for the run that is asked for
///
/// # Errors
/// [`HarnessError::Occupied`] if the folder has another result, or this one must not be kept.
pub(super) fn finished(
    experiment: &Experiment,
    seed: u64,
    folder: &Path,
    resume: bool,
) -> Result<Option<RunSummary>, HarnessError> {
    let path = folder.join(RESULT);
    if folder.join(CHECKPOINT).exists() || !path.exists() {
        return Ok(None);
    }
    let bytes =
        fs::read(&path).map_err(|source| HarnessError::File { path: path.clone(), source })?;
    let result: Option<RunSummary> = serde_json::from_slice(&bytes).ok();
    let same = |result: &RunSummary| result.run == identity(experiment, seed).to_string();
    match result.filter(same) {
        Some(finished) if resume => Ok(Some(finished)),
        _ => {
            let found = "the results of a run";
            Err(HarnessError::Occupied { path: folder.to_owned(), found })
        }
    }
}

/// Makes the folder and keeps other processes out of it.
fn lock(folder: &Path) -> Result<File, HarnessError> {
    let failed = |source| HarnessError::File { path: folder.to_owned(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    let file = File::create(folder.join(LOCK)).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(HarnessError::Busy { path: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
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
    own.digest()
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
        virtual_s: outcome.virtual_s,
        clipping_norm: outcome.clipping_norm,
    }
}

fn measured(
    simulation: &Simulation<'_>,
    outcome: Option<RoundOutcome>,
    rows: &[RoundRow],
) -> Result<RoundRow, HarnessError> {
    let nothing = RoundOutcome {
        round: 0,
        invited: 0,
        reported: 0,
        bytes_down: 0,
        bytes_up: 0,
        virtual_s: simulation.virtual_s(),
        clipping_norm: None,
    };
    let evaluation = simulation.evaluate()?;
    Ok(RoundRow {
        accuracy: Some(evaluation.accuracy),
        loss: Some(evaluation.loss),
        epsilon: simulation.epsilon()?,
        ..unmeasured(outcome.unwrap_or(nothing), rows)
    })
}

fn finish(
    experiment: &Experiment,
    simulation: &Simulation<'_>,
    seed: u64,
    rows: &[RoundRow],
    timing: &[Timing],
    options: &RunOptions<'_>,
) -> Result<RunSummary, HarnessError> {
    let model = tensor_file::write(&experiment.model, simulation.base())?;
    let tenants = simulation.tenants()?;
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
        virtual_s: last.virtual_s,
        held_out_accuracy: mean(tenants.iter().filter_map(|tenant| tenant.held_out_accuracy)),
        adapter_accuracy: mean(tenants.iter().filter_map(|tenant| tenant.adapter_accuracy)),
        held_out_perplexity: mean(tenants.iter().filter_map(|tenant| tenant.held_out_perplexity)),
        adapter_perplexity: mean(tenants.iter().filter_map(|tenant| tenant.adapter_perplexity)),
        model: Digest::of(&model).to_string(),
        run: identity(experiment, seed).to_string(),
    };
    if options.ranks.rank() > 0 {
        return Ok(summary);
    }
    let folder = &options.folder;
    write(&folder.join(MODEL), &model)?;
    write_csv(&folder.join(ROUNDS), rows)?;
    write_csv(&folder.join(TENANTS), &tenants)?;
    write_csv(&folder.join(TIMING), timing)?;
    let path = folder.join(RESULT);
    let json = serde_json::to_vec_pretty(&summary)
        .map_err(|error| HarnessError::File { path: path.clone(), source: error.into() })?;
    // The last file: with it the run is finished.
    write(&path, &json)?;
    Ok(summary)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0_u32), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
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
