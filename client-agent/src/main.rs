//! Entry point of `tributary-agent`.

use std::{io::Write, process::ExitCode};

use clap::Parser;
use tributary_agent::{
    cli::{Arguments, execute},
    durable_file::{FULL_DISK, is_full_disk},
};
use tributary_protocol::transport::log::{self, LogFormat};

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            // Without standard error there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            if error.chain().any(is_full_disk) {
                let _ = writeln!(std::io::stderr(), "hint: {FULL_DISK}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    log::install(LogFormat::from_environment()?);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(execute(arguments));
    // Training that is under way ends with the process: what is not debited never happened.
    runtime.shutdown_background();
    Ok(outcome?)
}
