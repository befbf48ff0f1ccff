//! The command line of `tributary-sim`.

pub mod account;
pub mod attack;
pub mod audit;
pub mod bench;
pub mod data;
pub mod demo;
mod display;
pub mod mpi;
mod output;
pub mod report;
pub mod run;
pub mod sweep;
pub mod world;

use clap::{Parser, Subcommand};

/// The Tributary research simulator and demo.
#[derive(Debug, Parser)]
#[command(name = "tributary-sim", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the whole system on this machine: a coordinator, agents, real data, real privacy
    Demo(demo::DemoArguments),
    /// Run an experiment file: thousands of tenants in this process, repeatable to the bit
    Run(run::RunArguments),
    /// Run an experiment with many settings: variants and a grid; goes on after interruptions
    Sweep(sweep::SweepArguments),
    /// Show runs and sweeps on one HTML page that needs nothing else; with CSV and JSON
    Report(report::ReportArguments),
    /// Measure the harness: processor time, start-up, memory and accuracy of a fixed experiment
    Bench(bench::BenchArguments),
    /// Find, download and split public datasets
    Data(data::DataArguments),
    /// Compute the ε of a sequence of noisy releases
    Account(account::AccountArguments),
    /// Find the noise multiplier for a wanted ε
    Calibrate(account::CalibrateArguments),
    /// Audit the trainer that agents run: plant canaries, guess them, bound ε from below
    Audit(audit::AuditArguments),
    /// Attack releases and shared models: inversion, membership, poisoning, backdoor; each defence
    Attack(attack::AttackArguments),
    /// Play whole deployments in virtual time: crashes, partitions, torn writes; the rules are
    /// checked at every step
    World(world::WorldArguments),
}
