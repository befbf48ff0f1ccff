//! `tributary-sim demo`.

use std::path::PathBuf;

use clap::Args;

use super::output;
use crate::demo::{Demo, error::DemoError, options::DemoOptions};

/// Runs the whole system on this machine.
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// Number of tenants, each with an agent process of its own [default: 4, or 5 with --secagg]
    #[arg(long, value_name = "N")]
    tenants: Option<usize>,
    /// Rounds to run [default: the experiment's]
    #[arg(long, value_name = "N")]
    rounds: Option<u64>,
    /// Seed of the split of the data over tenants; noise and batches never come from a seed
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Work folder to make and keep [default: a temporary one, removed at the end]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Keep all processes up at the end, until Ctrl-C
    #[arg(long)]
    serve: bool,
    /// A fifth of the data and five rounds, to see that everything works
    #[arg(long)]
    quick: bool,
    /// Show the coordinator only sums: masked updates, distributed noise, and an agent that is
    /// killed during a round
    #[arg(long)]
    secagg: bool,
    /// Print one JSON object last on standard output, instead of the table
    #[arg(long)]
    json: bool,
}

impl DemoArguments {
    /// Runs the demo and prints its result; progress goes to standard error.
    ///
    /// # Errors
    /// [`DemoError`] saying what stopped it and where to look.
    pub fn run(self) -> Result<(), DemoError> {
        let options = DemoOptions {
            tenants: self.tenants.unwrap_or(if self.secagg { 5 } else { 4 }),
            rounds: self.rounds,
            seed: self.seed,
            folder: self.dir,
            serve: self.serve,
            quick: self.quick,
            secagg: self.secagg,
        };
        let finished = Demo::prepare(options)?.run()?;
        let printed = match self.json {
            true => output::json(&finished.report),
            false => output::line(&finished.text),
        };
        printed.map_err(DemoError::Output)?;
        let Some(serving) = finished.serving else { return Ok(()) };
        let hint = format!(
            "Everything stays up until Ctrl-C. Ask a tenant's agent for a prediction:\n{}",
            serving.curl
        );
        // The JSON object stays the last thing on standard output.
        let say = if self.json { output::note } else { output::line };
        say(&hint).map_err(DemoError::Output)?;
        serving.until_interrupted()
    }
}
