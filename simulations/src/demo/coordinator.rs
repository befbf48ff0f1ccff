//! Sets up, starts and asks the coordinator.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde::de::DeserializeOwned;
use tributary_protocol::id::{Region, TenantId};

use super::{
    documents::{CoordinatorEndpoints, Enrolment, JobStatus, ModelVersion, Submission},
    error::DemoError,
    http::{Endpoint, HttpError},
    process::Process,
};
use crate::{
    command::{run_to_end, workspace_program},
    deadline::Stop,
};

/// Name of the process in messages.
pub const NAME: &str = "coordinator";
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// Runs the coordinator's commands on one folder.
#[derive(Debug, Clone)]
pub struct CoordinatorCommands {
    program: PathBuf,
    folder: PathBuf,
    stop: Stop,
}

impl CoordinatorCommands {
    /// Runs `program` on `folder`.
    #[must_use]
    pub const fn new(program: PathBuf, folder: PathBuf, stop: Stop) -> Self {
        Self { program, folder, stop }
    }

    /// Makes its identity and configuration, on free loopback ports.
    ///
    /// # Errors
    /// [`DemoError::Command`] with the program's last words.
    pub fn init(&self) -> Result<(), DemoError> {
        let mut command = self.command(&["init", "--host", "localhost", "--host", "127.0.0.1"]);
        command.args(["--quic-listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0"]);
        self.run("setting up the coordinator", command).map(|_| ())
    }

    /// Starts to serve.
    ///
    /// # Errors
    /// [`DemoError`] if the process cannot be started.
    pub fn serve(&self, log: PathBuf) -> Result<Process, DemoError> {
        Process::start(NAME, &mut self.command(&["serve"]), log)
    }

    /// The file that appears once it serves.
    #[must_use]
    pub fn endpoints_file(&self) -> PathBuf {
        self.folder.join("endpoints.json")
    }

    /// Admits a tenant; returns its one-time token.
    ///
    /// # Errors
    /// [`DemoError`] with the program's last words.
    pub fn add_tenant(&self, tenant: &TenantId, region: &Region) -> Result<String, DemoError> {
        let region = region.as_str();
        let command =
            self.command(&["tenant", "add", tenant.as_str(), "--region", region, "--json"]);
        let answer: Enrolment = self.ask(&format!("adding the tenant {tenant}"), command)?;
        Ok(answer.token)
    }

    /// Submits a job; returns its name.
    ///
    /// # Errors
    /// [`DemoError`] with the program's last words.
    pub fn submit(&self, file: &Path) -> Result<String, DemoError> {
        let mut command = self.command(&["job", "submit"]);
        command.arg(file).arg("--json");
        let answer: Submission = self.ask("submitting the job", command)?;
        Ok(answer.job)
    }

    /// Connects to its HTTP interface with the administrator's token.
    ///
    /// # Errors
    /// [`DemoError::File`] if there is no token.
    pub fn connect(&self, endpoints: &CoordinatorEndpoints) -> Result<CoordinatorApi, DemoError> {
        let path = self.folder.join("admin.token");
        let token = fs::read_to_string(&path).map_err(|source| DemoError::File { path, source })?;
        Ok(CoordinatorApi { endpoint: Endpoint::new(&endpoints.api, Some(&token)) })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = workspace_program(&self.program);
        command.args(arguments).arg("--dir").arg(&self.folder);
        command
    }

    fn run(&self, step: &str, mut command: Command) -> Result<String, DemoError> {
        run_to_end(&mut command, COMMAND_LIMIT, &self.stop)
            .map_err(|source| DemoError::Command { step: step.to_owned(), source })
    }

    fn ask<T: DeserializeOwned>(&self, step: &str, command: Command) -> Result<T, DemoError> {
        let answer = self.run(step, command)?;
        serde_json::from_str(&answer).map_err(|source| DemoError::Document {
            origin: format!("the answer when {step}"),
            source,
        })
    }
}

/// The coordinator's HTTP interface.
#[derive(Debug, Clone)]
pub struct CoordinatorApi {
    endpoint: Endpoint,
}

impl CoordinatorApi {
    /// How a job stands.
    ///
    /// # Errors
    /// [`HttpError`] naming the address.
    pub fn job(&self, job: &str) -> Result<JobStatus, HttpError> {
        self.endpoint.document(&format!("/v1/jobs/{job}"))
    }

    /// All models of a job, oldest first.
    ///
    /// # Errors
    /// [`HttpError`] naming the address.
    pub fn models(&self, job: &str) -> Result<Vec<ModelVersion>, HttpError> {
        let mut models: Vec<ModelVersion> = self.endpoint.document("/v1/models")?;
        models.retain(|model| model.job == job);
        models.sort_by_key(|model| model.version);
        Ok(models)
    }

    /// The safetensors file of a model.
    ///
    /// # Errors
    /// [`HttpError`] naming the address.
    pub fn model_file(&self, digest: &str) -> Result<Vec<u8>, HttpError> {
        self.endpoint.bytes(&format!("/v1/models/{digest}"))
    }
}
