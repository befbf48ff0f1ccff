//! The `tributary-coordinator` program.

use clap::Parser;
use tributary_coordinator::cli::Cli;

fn main() -> anyhow::Result<()> {
    Cli::parse().run()
}
