//! Entry point of `tributary-sim`.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use tributary_sim::{
    cli::{Cli, Command, run::RunCommandError, sweep::SweepCommandError},
    demo::error::DemoError,
};

/// What shells expect of a program that ended by Ctrl-C.
const EXIT_INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing can be done if standard error is closed; the exit code still tells.
            let _ = writeln!(io::stderr(), "error: {}", chain(&error));
            let interrupted = matches!(error.downcast_ref(), Some(DemoError::Interrupted))
                || error.downcast_ref().is_some_and(RunCommandError::is_interruption)
                || error.downcast_ref().is_some_and(SweepCommandError::is_interruption);
            if interrupted { ExitCode::from(EXIT_INTERRUPTED) } else { ExitCode::FAILURE }
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Demo(arguments) => arguments.run()?,
        Command::Run(arguments) => arguments.run()?,
        Command::Sweep(arguments) => arguments.run()?,
        Command::Report(arguments) => arguments.run()?,
        Command::Bench(arguments) => arguments.run()?,
        Command::Data(arguments) => arguments.run()?,
        Command::Account(arguments) => arguments.run()?,
        Command::Calibrate(arguments) => arguments.run()?,
        Command::Audit(arguments) => arguments.run()?,
        Command::Attack(arguments) => arguments.run()?,
        Command::World(arguments) => arguments.run()?,
    }
    Ok(())
}

fn chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        text += &format!("\n  because {cause}");
    }
    text
}
