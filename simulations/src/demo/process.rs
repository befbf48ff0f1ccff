//! Child processes that never outlive the demo.
//!
//! Each child holds the read end of a pipe as its standard input and was told to stop when it
//! closes (`--exit-with-stdin`): the system closes it even if the demo is killed.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::error::DemoError;
use crate::{
    command::last_lines,
    deadline::{Deadline, pause},
};

const STOP_LIMIT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(10);
const LOG_LINES: usize = 12;
/// How much of the end of a log is read to find its last lines.
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// A running child with its log file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with both outputs in the file `log`.
    ///
    /// # Errors
    /// [`DemoError`] naming the process or its log.
    pub fn start(name: &str, command: &mut Command, log: PathBuf) -> Result<Self, DemoError> {
        let failed = |source| DemoError::File { path: log.clone(), source };
        let output = File::create(&log).map_err(failed)?;
        command.arg("--exit-with-stdin").stdin(Stdio::piped());
        command.stdout(output.try_clone().map_err(failed)?).stderr(output);
        // In a group of its own, a child does not see the terminal's Ctrl-C: the demo stops
        // everybody in order instead.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(command, 0);
        let child = command
            .spawn()
            .map_err(|source| DemoError::Start { process: name.to_owned(), source })?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// What it is called in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of its log, for an error message.
    #[must_use]
    pub fn last_lines(&self) -> String {
        let text = read_tail(&self.log).unwrap_or_default();
        let lines = last_lines(&text, LOG_LINES);
        lines.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
    }

    /// Succeeds while it runs.
    ///
    /// # Errors
    /// [`DemoError::Exited`] with the end of its log.
    pub fn check(&mut self) -> Result<(), DemoError> {
        let status = self
            .child
            .try_wait()
            .map_err(|source| DemoError::Start { process: self.name.clone(), source })?;
        match status {
            None => Ok(()),
            Some(status) => Err(DemoError::Exited {
                process: self.name.clone(),
                status,
                log: self.log.clone(),
                last_lines: self.last_lines(),
            }),
        }
    }

    fn ask_to_stop(&mut self) {
        drop(self.child.stdin.take());
        #[cfg(unix)]
        if self.is_running() {
            use nix::{sys::signal, unistd::Pid};
            let id = i32::try_from(self.child.id()).expect("process ids are below 2^22");
            // Fails only if it ended by itself meanwhile, which is what is wanted.
            let _ = signal::kill(Pid::from_raw(id), signal::Signal::SIGTERM);
        }
    }

    fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn end(&mut self, deadline: Deadline) {
        while self.is_running() && !deadline.has_passed() {
            pause(POLL_INTERVAL);
        }
        if self.is_running() {
            // Neither can fail for a child that still runs and has not been waited for.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// All children of the demo; dropping stops them, also while a panic unwinds.
#[derive(Debug, Default)]
pub struct Processes(Vec<Process>);

impl Processes {
    /// Takes charge of a child.
    pub fn add(&mut self, process: Process) {
        self.0.push(process);
    }

    /// The child of that name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Process> {
        self.0.iter().find(|process| process.name == name)
    }

    /// Kills the child of that name at once (SIGKILL), and forgets it.
    pub fn kill(&mut self, name: &str) {
        for process in self.0.extract_if(.., |process| process.name == name) {
            let mut process = process;
            // Neither can fail for a child that still runs and has not been waited for.
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }

    /// Succeeds while all of them run.
    ///
    /// # Errors
    /// [`DemoError::Exited`] for the first one that ended.
    pub fn check(&mut self) -> Result<(), DemoError> {
        self.0.iter_mut().try_for_each(Process::check)
    }

    /// Stops all of them, the last started first: politely, then, after a bounded wait, by force.
    pub fn stop(&mut self) {
        self.0.iter_mut().rev().for_each(Process::ask_to_stop);
        let deadline = Deadline::after(STOP_LIMIT);
        self.0.iter_mut().rev().for_each(|process| process.end(deadline));
        self.0.clear();
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.stop();
    }
}

fn read_tail(path: &Path) -> std::io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    /// Starts a shell script; the flag that `start` adds becomes the script's `$0`.
    fn script(folder: &Path, text: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", text]);
        Process::start("script", &mut command, folder.join("script.log")).expect("sh starts")
    }

    fn exists(process: &Process) -> bool {
        Path::new(&format!("/proc/{}", process.child.id())).exists()
    }

    #[test]
    fn an_ended_process_is_reported_with_its_last_lines() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = script(folder.path(), "echo first; echo out of luck >&2; exit 7");
        let deadline = Deadline::after(Duration::from_secs(30));
        let error = loop {
            match process.check() {
                Err(error) => break error.to_string(),
                Ok(()) => assert!(!deadline.has_passed(), "the script never ended"),
            }
            pause(POLL_INTERVAL);
        };
        assert!(error.contains("script ended unexpectedly (exit status: 7)"), "{error}");
        assert!(error.contains("out of luck") && error.contains("script.log"), "{error}");
    }

    #[test]
    fn dropping_stops_the_children() {
        let folder = tempfile::tempdir().unwrap();
        let mut processes = Processes::default();
        processes.add(script(folder.path(), "exec sleep 1000"));
        let id = processes.0[0].child.id();
        assert!(exists(&processes.0[0]));
        drop(processes);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }

    #[test]
    fn closing_standard_input_is_enough_to_stop_a_child() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = script(folder.path(), "cat > /dev/null");
        drop(process.child.stdin.take());
        assert!(process.child.wait().unwrap().success());
    }
}
