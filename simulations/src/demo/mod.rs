//! The whole system on one machine: a coordinator and several agents as separate processes, on
//! real data, with real privacy.
//!
//! [`Demo::run`] sets everything up in a work folder as an administrator would with the public
//! commands, watches the job through the public HTTP endpoints, and reports. All children stop
//! with it, whatever happens. It waits for nothing without a bound, and says what it waits for.

pub mod agent;
pub mod binaries;
pub mod coordinator;
pub mod documents;
pub mod dropout;
pub mod error;
pub mod evaluation;
pub mod folder;
pub mod http;
pub mod options;
pub mod plan;
pub mod process;
pub mod progress;
pub mod report;
mod serving;
mod setup;
pub mod snapshot;
mod watch;

use std::{path::PathBuf, time::Duration};

use self::{
    binaries::Binaries, error::DemoError, evaluation::PublicTest, folder::WorkFolder,
    options::DemoOptions, plan::DemoPlan, process::Processes, progress::Progress,
    report::DemoReport, watch::Watcher,
};
use crate::{
    data::fetch::Locations,
    deadline::{Deadline, Stop, pause},
};

const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// One demo, from its first file to its last process.
#[derive(Debug)]
pub struct Demo {
    options: DemoOptions,
    plan: DemoPlan,
    binaries: Binaries,
    // Stopped before the folder with their files goes: fields drop in this order.
    processes: Processes,
    folder: WorkFolder,
    stop: Stop,
    progress: Progress,
}

/// A finished demo.
#[derive(Debug)]
pub struct Finished {
    /// What came out.
    pub report: DemoReport,
    /// The same for people.
    pub text: String,
    /// With `--serve`: the running system and the request to try.
    pub serving: Option<Serving>,
}

/// The running system after the job.
#[derive(Debug)]
pub struct Serving {
    demo: Demo,
    /// A shell command that asks an agent for a prediction.
    pub curl: String,
}

impl Demo {
    /// Plans the job and makes the work folder. Ctrl-C, SIGTERM and SIGHUP stop it from here on.
    ///
    /// # Errors
    /// [`DemoError`] naming the option that cannot work.
    pub fn prepare(options: DemoOptions) -> Result<Self, DemoError> {
        let plan = DemoPlan::fit(&options)?;
        let binaries = Binaries::find()?;
        let stop = Stop::default();
        let requested = stop.clone();
        ctrlc::set_handler(move || requested.request()).map_err(DemoError::Signal)?;
        let folder = WorkFolder::open(options.folder.as_deref())?;
        let progress = Progress::on_stderr(Deadline::after(Duration::MAX));
        let processes = Processes::default();
        Ok(Self { options, plan, binaries, processes, folder, stop, progress })
    }

    /// Runs everything and reports.
    ///
    /// # Errors
    /// [`DemoError`]; all processes are stopped, and the work folder is kept for its logs unless
    /// the user interrupted.
    pub fn run(mut self) -> Result<Finished, DemoError> {
        let result = self.run_to_report();
        self.progress.finish();
        match result {
            Ok((report, curl)) => {
                let text = report.text(&self.plan.job);
                let serving = curl.map(|curl| Serving { demo: self, curl });
                Ok(Finished { report, text, serving })
            }
            Err(error) => {
                self.processes.stop();
                if self.stop.is_requested() {
                    return Err(DemoError::Interrupted);
                }
                if self.logs().exists() {
                    let folder = self.folder.keep().display().to_string();
                    self.progress.note(&format!("the work folder with all logs is kept: {folder}"));
                }
                Err(error)
            }
        }
    }

    fn run_to_report(&mut self) -> Result<(DemoReport, Option<String>), DemoError> {
        self.progress.note("looking for Fashion-MNIST (the first time: downloading 31 MB)");
        let dataset = Locations::of_this_machine().find_or_download(&self.stop)?.dataset;
        let test =
            PublicTest::load(&dataset, self.plan.job.model.clone()).map_err(DemoError::TestData)?;
        let mut system = self.set_up(&dataset)?;
        let report = Watcher::new(self, &mut system, &test).watch()?;
        let curl = match self.options.serve {
            true => Some(serving::sample_request(&test, &system, self.folder.path())?),
            false => None,
        };
        Ok((report, curl))
    }

    /// The folder with the log of each process, made before the first one starts.
    fn logs(&self) -> PathBuf {
        self.folder.path().join("logs")
    }

    /// Looks until `look` finds something, for at most `limit`.
    ///
    /// # Errors
    /// [`DemoError::TooSlow`] naming `awaited`, or whatever ends a process or `look` meanwhile.
    fn wait_for<T>(
        &mut self,
        awaited: &str,
        limit: Duration,
        mut look: impl FnMut() -> Result<Option<T>, DemoError>,
    ) -> Result<T, DemoError> {
        let deadline = Deadline::after(limit);
        loop {
            self.check()?;
            if let Some(found) = look()? {
                return Ok(found);
            }
            if deadline.has_passed() {
                let (awaited, seconds) = (awaited.to_owned(), limit.as_secs());
                return Err(DemoError::TooSlow { awaited, seconds });
            }
            pause(POLL_INTERVAL);
        }
    }

    /// Succeeds while nobody asked to stop and every process runs.
    fn check(&mut self) -> Result<(), DemoError> {
        if self.stop.is_requested() {
            return Err(DemoError::Interrupted);
        }
        self.processes.check()
    }
}

impl Serving {
    /// Keeps everything up until the user interrupts, then stops it.
    ///
    /// # Errors
    /// [`DemoError::Exited`] if a process ends before that.
    pub fn until_interrupted(mut self) -> Result<(), DemoError> {
        loop {
            match self.demo.check() {
                Ok(()) => pause(POLL_INTERVAL),
                Err(DemoError::Interrupted) => return Ok(()),
                Err(error) => {
                    self.demo.folder.keep();
                    return Err(error);
                }
            }
        }
    }
}
