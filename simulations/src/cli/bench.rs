//! `tributary-sim bench`.

use std::{path::Path, time::Duration};

use clap::{Args, ValueEnum};
use nix::sys::resource::{UsageWho, getrusage};
use serde::Serialize;
use thiserror::Error;

use super::{output, run::available_threads};
use crate::{
    deadline::Deadline,
    experiment::{Experiment, ExperimentError, Records},
    harness::{HarnessError, Simulation, cpu_seconds},
};

const NON_IID: &str = include_str!("../../experiments/fedavg-non-iid.toml");
const IID: &str = include_str!("../../experiments/fedavg-iid.toml");

/// Measures the harness itself.
///
/// If not told otherwise 100 tenants, 10 a round; MLP 784-200-200-10, SGD 0.1, batch 20, one local epoch, Fashion-MNIST.
#[derive(Debug, Args)]
pub struct BenchArguments {
    /// How the images are split
    #[arg(long, value_enum, default_value_t = Split::NonIid)]
    partition: Split,
    /// Tenants that train at the same time [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Size of the population
    #[arg(long, value_name = "N", default_value_t = 100)]
    tenants: usize,
    /// Tenants that are invited to a round
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    cohort_size: u32,
    /// Also time tenants that do not train, with 10 thousand and 10 million parameters
    #[arg(long)]
    null: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A split by its name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Split {
    /// Dirichlet(0.3)
    NonIid,
    /// Everybody the same mix
    Iid,
}

/// Says why nothing was measured.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The data cannot be loaded.
    #[error(transparent)]
    Experiment(Box<ExperimentError>),
    /// A round failed.
    #[error(transparent)]
    Harness(Box<HarnessError>),
    /// The system does not say what was used.
    #[error("the system does not say how much memory was used")]
    Usage(#[from] nix::Error),
    /// The result cannot be printed.
    #[error("cannot write to standard output")]
    Output(#[from] std::io::Error),
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Figures {
    /// Processor time of all threads in rounds, over the updates summed.
    cpu_ms_per_client_round: f64,
    /// The same in wall time.
    wall_ms_per_client_round: f64,
    /// From the start of the command to that of the first round.
    startup_s: f64,
    /// Largest memory of the process, data included.
    peak_rss_mib: f64,
    /// On the 10,000 test images after the last round.
    accuracy: f64,
    threads: usize,
    tenants: usize,
    cohort_size: u32,
    rounds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    null_cpu_ms_per_client_round_10k: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    null_cpu_ms_per_client_round_10m: Option<f64>,
}

impl From<ExperimentError> for BenchError {
    fn from(error: ExperimentError) -> Self {
        Self::Experiment(error.into())
    }
}

impl From<HarnessError> for BenchError {
    fn from(error: HarnessError) -> Self {
        Self::Harness(error.into())
    }
}

impl BenchArguments {
    /// Runs the fixed experiment and prints its figures; measuring the model is off the clock.
    ///
    /// # Errors
    /// [`BenchError`] if the data is not here.
    pub fn run(self) -> Result<(), BenchError> {
        let clock = Deadline::after(Duration::MAX);
        let threads = self.threads.unwrap_or_else(available_threads);
        let text = match self.partition {
            Split::NonIid => NON_IID,
            Split::Iid => IID,
        };
        let mut experiment = Experiment::parse(text, Path::new(""))?;
        experiment.tenants = Some(self.tenants);
        experiment.cohort.size = self.cohort_size;
        let records = Records::load(&experiment, 1)?;
        let mut simulation = Simulation::new(&experiment, &records, 1, threads)?;
        let startup_s = clock.elapsed().as_secs_f64();
        let (cpu_ms, wall_ms) = time_rounds(&mut simulation, experiment.rounds)?;
        let accuracy = simulation.evaluate()?.accuracy;
        let peak_rss_mib = getrusage(UsageWho::RUSAGE_SELF)?.max_rss() as f64 / 1024.0;
        let null = |hidden: &str| -> Result<Option<f64>, BenchError> {
            if self.null { null_ms(hidden, threads).map(Some) } else { Ok(None) }
        };
        let figures = Figures {
            cpu_ms_per_client_round: cpu_ms,
            wall_ms_per_client_round: wall_ms,
            startup_s,
            peak_rss_mib,
            accuracy,
            threads,
            tenants: self.tenants,
            cohort_size: self.cohort_size,
            rounds: experiment.rounds,
            null_cpu_ms_per_client_round_10k: null("96, 93")?,
            null_cpu_ms_per_client_round_10m: null("3158, 3158")?,
        };
        if self.json {
            output::json(&figures)?
        } else {
            output::line(&figures.text())?
        }
        Ok(())
    }
}

impl Figures {
    fn text(&self) -> String {
        let mut text = format!(
            "{:.2} ms of processor time a client-round ({:.2} ms wall, {} threads), start-up {:.2} s, \
             peak memory {:.0} MiB, accuracy {:.4} after {} rounds",
            self.cpu_ms_per_client_round,
            self.wall_ms_per_client_round,
            self.threads,
            self.startup_s,
            self.peak_rss_mib,
            self.accuracy,
            self.rounds
        );
        for (size, ms) in [
            ("10 thousand", self.null_cpu_ms_per_client_round_10k),
            ("10 million", self.null_cpu_ms_per_client_round_10m),
        ] {
            if let Some(ms) = ms {
                text += &format!("\nno training, {size} parameters: {ms:.4} ms a client-round");
            }
        }
        text
    }
}

/// Processor and wall milliseconds per summed update.
fn time_rounds(simulation: &mut Simulation<'_>, rounds: u64) -> Result<(f64, f64), BenchError> {
    let (clock, before) = (Deadline::after(Duration::MAX), cpu_seconds());
    let mut updates = 0;
    for _ in 0..rounds {
        updates += simulation.step()?.reported;
    }
    let each = 1e3 / updates as f64;
    Ok(((cpu_seconds() - before) * each, clock.elapsed().as_secs_f64() * each))
}

/// Processor milliseconds of a tenant that sends an update without training.
fn null_ms(hidden: &str, threads: usize) -> Result<f64, BenchError> {
    let text = format!(
        r#"
        name = "null"
        rounds = 20
        tenants = 100
        training = {{ null = {{}} }}
        privacy = {{ none = {{}} }}
        [dataset.synthetic]
        examples = 100
        features = 8
        classes = 2
        [cohort]
        size = 10
        [model.mlp]
        inputs = 8
        hidden = [{hidden}]
        classes = 2
        "#
    );
    let experiment = Experiment::parse(&text, Path::new(""))?;
    let records = Records::load(&experiment, 1)?;
    let mut simulation = Simulation::new(&experiment, &records, 1, threads)?;
    // The first round makes the memory.
    simulation.step()?;
    Ok(time_rounds(&mut simulation, experiment.rounds)?.0)
}
