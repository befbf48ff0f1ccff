//! Runs another program to its end, for a bounded time.

use std::{
    fs::File,
    io::{Read, Seek},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use thiserror::Error;

use crate::deadline::{Deadline, Stop, pause};

const POLL_INTERVAL: Duration = Duration::from_millis(10);
const LAST_LINES: usize = 6;

/// Says why a program did not do its work.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The program cannot be started.
    #[error("cannot start `{program}`")]
    Start {
        /// What was started.
        program: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The program cannot be watched.
    #[error("lost touch with `{program}`")]
    Watch {
        /// What was started.
        program: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The program ended with a failure.
    #[error("`{program}` failed ({status}){}", said(last_words))]
    Failed {
        /// What was started.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed on stderr.
        last_words: String,
    },
    /// The program did not end in time and was stopped.
    #[error("`{program}` was not done after {limit_s} s and was stopped{}", said(last_words))]
    TooSlow {
        /// What was started.
        program: String,
        /// How long it was given.
        limit_s: u64,
        /// The end of what it printed on stderr.
        last_words: String,
    },
    /// The user asked to stop.
    #[error("interrupted while `{program}` ran")]
    Interrupted {
        /// What was started.
        program: String,
    },
}

fn said(last_words: &str) -> String {
    if last_words.is_empty() { String::new() } else { format!(": {last_words}") }
}

/// A program of the workspace, free of settings that the user's environment holds for others.
#[must_use]
pub fn workspace_program(path: &Path) -> Command {
    let mut command = Command::new(path);
    // Its log is a file, and its last words appear in our messages.
    command.env("NO_COLOR", "1");
    // Backtraces of panics help; those of ordinary errors only bury the message.
    command.env("RUST_LIB_BACKTRACE", "0");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TRIBUTARY_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs `command` without standard input and returns what it printed on stdout.
///
/// Both outputs go through files, so that a program that prints much cannot block.
///
/// # Errors
/// [`CommandError`] naming the program and the end of what it said; the program is not left running.
pub fn run_to_end(
    command: &mut Command,
    limit: Duration,
    stop: &Stop,
) -> Result<String, CommandError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let watch = |source| CommandError::Watch { program: program.clone(), source };
    let (stdout, stderr) = (tempfile::tempfile(), tempfile::tempfile());
    let (mut stdout, mut stderr) = (stdout.map_err(watch)?, stderr.map_err(watch)?);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().map_err(watch)?)
        .stderr(stderr.try_clone().map_err(watch)?)
        .spawn()
        .map_err(|source| CommandError::Start { program: program.clone(), source })?;
    match wait(&mut child, limit, stop).map_err(watch)? {
        Ending::Exited(status) if status.success() => read_back(&mut stdout).map_err(watch),
        Ending::Exited(status) => {
            let last_words = last_lines(&read_back(&mut stderr).map_err(watch)?, LAST_LINES);
            Err(CommandError::Failed { program, status, last_words })
        }
        Ending::TooSlow => {
            let last_words = last_lines(&read_back(&mut stderr).map_err(watch)?, LAST_LINES);
            Err(CommandError::TooSlow { program, limit_s: limit.as_secs(), last_words })
        }
        Ending::Interrupted => Err(CommandError::Interrupted { program }),
    }
}

enum Ending {
    Exited(ExitStatus),
    TooSlow,
    Interrupted,
}

fn wait(child: &mut Child, limit: Duration, stop: &Stop) -> std::io::Result<Ending> {
    let deadline = Deadline::after(limit);
    loop {
        if let Some(status) = child.try_wait()? {
            // A program that shares the terminal may have been ended by the same Ctrl-C.
            let interrupted = !status.success() && stop.is_requested();
            return Ok(if interrupted { Ending::Interrupted } else { Ending::Exited(status) });
        }
        let ending = match (stop.is_requested(), deadline.has_passed()) {
            (true, _) => Ending::Interrupted,
            (false, true) => Ending::TooSlow,
            (false, false) => {
                pause(POLL_INTERVAL);
                continue;
            }
        };
        child.kill()?;
        child.wait()?;
        return Ok(ending);
    }
}

fn read_back(file: &mut File) -> std::io::Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last `count` lines that are not blank, without surrounding space.
#[must_use]
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration, stop: &Stop) -> Result<String, CommandError> {
        run_to_end(Command::new("sh").args(["-c", script]), limit, stop)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn output_is_returned_even_when_it_is_long() {
        let output = shell("seq 1 100000", LONG, &Stop::default()).unwrap();
        assert!(output.ends_with("99999\n100000\n"));
    }

    #[test]
    fn failures_carry_the_last_words() {
        let error = shell("echo because >&2; exit 3", LONG, &Stop::default()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("`sh` failed") && text.contains("because"), "{text}");
    }

    #[test]
    fn slow_and_interrupted_programs_are_ended() {
        let slow = shell("sleep 100", Duration::from_millis(30), &Stop::default()).unwrap_err();
        assert!(matches!(slow, CommandError::TooSlow { .. }), "{slow}");
        let stop = Stop::default();
        stop.request();
        let interrupted = shell("sleep 100", LONG, &stop).unwrap_err();
        assert!(matches!(interrupted, CommandError::Interrupted { .. }), "{interrupted}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let mut command = Command::new("tributary-no-such-program");
        let error = run_to_end(&mut command, LONG, &Stop::default()).unwrap_err();
        assert!(error.to_string().contains("tributary-no-such-program"));
    }
}
