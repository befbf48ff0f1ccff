//! Developer commands: `cargo xtask COMMAND`. Needs nothing but cargo and a C compiler.

mod build;
mod commands;
mod reference;
mod shell;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Developer commands of the workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Formatting, lints and documentation, all without a single warning
    Check,
    /// All tests; the binaries are built first, because black-box tests start them
    Test {
        /// Passed on to the test runner, for example the name of a test
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The whole system on this machine, from release binaries
    Demo {
        /// Passed on to `tributary-sim demo`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// All benchmarks
    Bench {
        /// Passed on to the benchmarks, for example the name of one
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Kills coordinator and agents at random times, and compares with a run without deaths
    Soak {
        /// For how long, in seconds
        #[arg(long, default_value_t = 120)]
        seconds: u64,
    },
    /// One fuzz target, with cargo-fuzz
    Fuzz {
        /// Name of the target, a file in `fuzz/fuzz_targets`
        target: String,
        /// Passed on to the fuzzer, for example `-max_total_time=60`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Writes docs/configuration.md anew, from the types that read the files
    Reference,
    /// Experiments shared by processes of `mpirun`; needs Open MPI and libclang
    MpiTest,
    /// Exactly what continuous integration runs: `check`, the public test data, `test`
    Ci,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Check => commands::check(),
        Command::Test { arguments } => commands::test(&arguments),
        Command::Demo { arguments } => commands::demo(&arguments),
        Command::Bench { arguments } => commands::bench(&arguments),
        Command::Soak { seconds } => commands::soak(seconds),
        Command::Fuzz { target, arguments } => commands::fuzz(&target, &arguments),
        Command::Reference => reference::write(),
        Command::MpiTest => commands::mpi_test(),
        Command::Ci => commands::ci(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            shell::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
