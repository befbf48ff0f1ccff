//! The command line.
//!
//! `init`, `serve` and `audit` work on the coordinator's folder; every other command asks the running
//! coordinator through its HTTP API, with the administrator's token from the same folder or another
//! one.

mod audit;
mod backup;
mod client;
mod init;
mod job;
mod memory;
mod model;
mod pretrained;
mod serve;
mod tenant;
mod token;

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tributary_protocol::{
    time::Timestamp,
    transport::log::{self, LogFormat},
};

pub(crate) use self::memory::bound_memory;
use tributary_coordinator::config::Folder;

/// Schedules federated learning rounds and keeps the shared base models.
#[derive(Debug, Parser)]
#[command(name = "tributary-coordinator", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Common {
    /// The coordinator's folder.
    #[arg(long, env = "TRIBUTARY_COORDINATOR_DIR", default_value = "coordinator", global = true)]
    dir: PathBuf,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    /// A file with the access token to use, instead of the administrator's in the folder.
    #[arg(long, env = "TRIBUTARY_TOKEN_FILE", global = true)]
    token_file: Option<PathBuf>,
    /// The API of a coordinator on another machine, as https://HOST:PORT; needs --token-file and
    /// --authority.
    #[arg(long, env = "TRIBUTARY_API", global = true)]
    api: Option<String>,
    /// The authority (PEM) that signed that API's certificate: authority.pem of its folder, or
    /// another if its certificate comes from elsewhere.
    #[arg(long, env = "TRIBUTARY_AUTHORITY", global = true)]
    authority: Option<PathBuf>,
}

impl Common {
    fn folder(&self) -> Folder {
        Folder::new(self.dir.clone())
    }
}

#[derive(Debug, Args)]
struct ListenFlags {
    /// QUIC address for agents; overrides coordinator.toml.
    #[arg(long, env = "TRIBUTARY_QUIC_LISTEN")]
    quic_listen: Option<SocketAddr>,
    /// HTTP address for operators; overrides coordinator.toml.
    #[arg(long, env = "TRIBUTARY_API_LISTEN")]
    api_listen: Option<SocketAddr>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new coordinator: authority, certificate, configuration.
    Init {
        /// A DNS name or IP address under which agents reach it; repeat for more.
        #[arg(long = "host", default_values_t = [String::from("localhost"), String::from("127.0.0.1")])]
        hosts: Vec<String>,
        #[command(flatten)]
        listen: ListenFlags,
        #[command(flatten)]
        outside: init::OutsideAuthority,
        #[command(flatten)]
        common: Common,
    },
    /// Run the coordinator.
    Serve {
        #[command(flatten)]
        listen: ListenFlags,
        /// Stop when standard input closes (for a parent process).
        #[arg(long, hide = true)]
        exit_with_stdin: bool,
        /// Lines for people (text), or one JSON object a line (json).
        #[arg(long, env = log::FORMAT_VARIABLE, default_value_t)]
        log_format: LogFormat,
        #[command(flatten)]
        common: Common,
    },
    /// Admit tenants.
    Tenant {
        #[command(subcommand)]
        command: tenant::TenantCommand,
        #[command(flatten)]
        common: Common,
    },
    /// Submit and watch jobs.
    Job {
        #[command(subcommand)]
        command: job::JobCommand,
        #[command(flatten)]
        common: Common,
    },
    /// Make and revoke access tokens for people and programs.
    Token {
        #[command(subcommand)]
        command: token::TokenCommand,
        #[command(flatten)]
        common: Common,
    },
    /// Verify and show the audit log.
    Audit {
        #[command(subcommand)]
        command: audit::AuditCommand,
        #[command(flatten)]
        common: Common,
    },
    /// Copy the whole coordinator to a new folder, also while it runs.
    Backup {
        /// A folder that does not exist yet; it will hold keys.
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
        #[command(flatten)]
        common: Common,
    },
    /// Make a coordinator's folder from a backup.
    Restore {
        /// What `backup` made.
        #[arg(long, value_name = "FOLDER")]
        from: PathBuf,
        /// How many rounds each job leaves out: at least as many as may have been run after the
        /// backup, because agents have spent budget on their numbers.
        #[arg(long, default_value_t = 1000)]
        skip_rounds: u64,
        /// The folder that is replaced, if its audit log can still be read: names the rounds that
        /// are lost.
        #[arg(long, value_name = "FOLDER")]
        newer: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// List and export models.
    Model {
        #[command(subcommand)]
        command: model::ModelCommand,
        #[command(flatten)]
        common: Common,
    },
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// Whatever the command meets, as a chain of causes ending in a hint where there is one.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Init { hosts, listen, outside, common } => {
                init::run(&common, &hosts, &listen, &outside)
            }
            Command::Serve { listen, exit_with_stdin, log_format, common } => {
                #[cfg(feature = "otel")]
                log::install_beside(
                    tributary_coordinator::driver::traces::Collector::from_environment()
                        .map(|collector| Box::new(collector.layer()) as _),
                    log_format,
                );
                #[cfg(not(feature = "otel"))]
                log::install(log_format);
                serve::run(&common, &listen, exit_with_stdin)
            }
            Command::Tenant { command, common } => command.run(&common),
            Command::Job { command, common } => command.run(&common),
            Command::Backup { to, common } => backup::backup(&common, &to),
            Command::Restore { from, skip_rounds, newer, common } => {
                backup::restore(&common, &from, skip_rounds, newer.as_deref())
            }
            Command::Token { command, common } => command.run(&common),
            Command::Audit { command, common } => command.run(&common),
            Command::Model { command, common } => command.run(&common),
        }
    }
}

/// Prints a document as JSON, or as the given lines.
fn print<T: Serialize>(common: &Common, document: &T, text: impl FnOnce(&T) -> String) {
    let text = if common.json {
        serde_json::to_string(document).expect("documents are plain data")
    } else {
        text(document)
    };
    print_line(&text);
}

/// Prints an error with its causes in one line: a backtrace would scroll it away.
#[expect(clippy::print_stderr, reason = "the answer of a command that failed")]
pub(crate) fn print_error(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
    if error.chain().any(is_full_disk) {
        eprintln!(
            "hint: the disk is full, or a file may not grow: make room, then start again; whatever was \
             answered is durable"
        );
    }
}

fn is_full_disk(cause: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::{Error, ErrorKind};
    let kind = cause.downcast_ref::<Error>().map(Error::kind).or_else(|| {
        match cause.downcast_ref::<sled::Error>() {
            Some(sled::Error::Io(error)) => Some(error.kind()),
            _ => None,
        }
    });
    matches!(
        kind,
        Some(ErrorKind::StorageFull | ErrorKind::FileTooLarge | ErrorKind::QuotaExceeded)
    )
}

#[expect(clippy::print_stdout, reason = "the answer of a command")]
fn print_line(text: &str) {
    println!("{text}");
}

/// A time in UTC, to the second.
fn date(at: Timestamp) -> String {
    let seconds = i64::try_from(at.0 / 1000).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| at.to_string())
}

fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header(header).add_rows(rows);
    table.to_string()
}
