//! Sets up, starts and asks one agent.

use std::{path::PathBuf, process::Command, time::Duration};

use serde::Serialize;
use tributary_protocol::{
    id::{Region, TenantId},
    job::JobSpec,
};

use super::{
    documents::{AgentEndpoints, AgentStatus},
    error::DemoError,
    folder::write,
    http::{Endpoint, HttpError},
    plan::EPSILON_MAX,
    process::Process,
};
use crate::{
    command::{run_to_end, workspace_program},
    data::{
        fashion_mnist::{CLASSES, TRAIN_EXAMPLES},
        partition::{IMAGES_FILE, LABELS_FILE},
    },
    deadline::Stop,
};

const ENROL_LIMIT: Duration = Duration::from_secs(60);

/// Runs an agent's commands on its folder.
#[derive(Debug, Clone)]
pub struct AgentCommands {
    program: PathBuf,
    folder: PathBuf,
    tenant: TenantId,
    stop: Stop,
}

impl AgentCommands {
    /// Runs `program` on the tenant's `folder`.
    #[must_use]
    pub const fn new(program: PathBuf, folder: PathBuf, tenant: TenantId, stop: Stop) -> Self {
        Self { program, folder, tenant, stop }
    }

    /// Name of the process in messages.
    #[must_use]
    pub fn name(&self) -> String {
        format!("agent {}", self.tenant)
    }

    /// Whose agent it is.
    #[must_use]
    pub const fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Its folder; the tenant's data files belong there.
    #[must_use]
    pub const fn folder(&self) -> &PathBuf {
        &self.folder
    }

    /// The file that appears once it serves.
    #[must_use]
    pub fn endpoints_file(&self) -> PathBuf {
        self.folder.join("endpoints.json")
    }

    /// Writes `agent.toml` and `policy.toml`: what the tenant's own administrator would write.
    ///
    /// # Errors
    /// [`DemoError::File`] naming the file.
    pub fn configure(&self, job: &JobSpec, region: &Region) -> Result<(), DemoError> {
        let config = format!(
            "[api]\nlisten = \"127.0.0.1:0\"\n\n[compute]\nthreads = 1\n\n\
             [data.{dataset}.idx]\nimages = \"{IMAGES_FILE}\"\nlabels = \"{LABELS_FILE}\"\n\
             classes = {CLASSES}\n\n[held_out]\nfraction = 0.2\n\n[adapter]\nrank = 8\n",
            dataset = job.dataset
        );
        let trust = job.privacy.trust.name();
        let secagg = match &job.secagg {
            Some(_) => format!("\n[secagg]\ncohort_size_min = {}\n", job.round.cohort_size_min),
            None => String::new(),
        };
        let policy = format!(
            "regions = [\"{region}\"]\n\n[datasets.{dataset}]\nepsilon_max = {EPSILON_MAX:?}\n\
             delta = {delta:e}\nunits = [\"record\"]\ntrusts = [\"{trust}\"]\nnoise_multiplier_min = 0.5\n\
             examples_max = {TRAIN_EXAMPLES}\nfamilies = [\"{family}\"]\n{secagg}",
            dataset = job.dataset,
            delta = job.privacy.delta,
            family = job.model.family()
        );
        write(&self.folder.join("agent.toml"), &config)?;
        write(&self.folder.join("policy.toml"), &policy)
    }

    /// Makes the agent's key and exchanges the one-time token for a certificate.
    ///
    /// # Errors
    /// [`DemoError::Command`] with the program's last words.
    pub fn enroll(&self, coordinator: &str, token: &str) -> Result<(), DemoError> {
        let mut command = self.command("enroll");
        command.args(["--coordinator", coordinator, "--token", token]);
        run_to_end(&mut command, ENROL_LIMIT, &self.stop).map(|_| ()).map_err(|source| {
            DemoError::Command { step: format!("enrolling {}", self.name()), source }
        })
    }

    /// Starts the daemon.
    ///
    /// # Errors
    /// [`DemoError`] if the process cannot be started.
    pub fn run(&self, log: PathBuf) -> Result<Process, DemoError> {
        Process::start(&self.name(), &mut self.command("run"), log)
    }

    fn command(&self, subcommand: &str) -> Command {
        let mut command = workspace_program(&self.program);
        command.arg(subcommand).arg("--dir").arg(&self.folder);
        command
    }
}

/// An agent's HTTP interface, open to the tenant's own people.
#[derive(Debug, Clone)]
pub struct AgentApi {
    /// Whose agent it is.
    pub tenant: TenantId,
    endpoint: Endpoint,
}

/// A prediction request as `/v1/predict` takes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PredictRequest {
    /// One row of features for each wanted prediction.
    pub inputs: Vec<Vec<f32>>,
}

impl AgentApi {
    /// Talks to the agent that wrote `endpoints`.
    #[must_use]
    pub fn new(tenant: TenantId, endpoints: &AgentEndpoints) -> Self {
        Self { tenant, endpoint: Endpoint::new(&endpoints.api, None) }
    }

    /// Address of the prediction endpoint.
    #[must_use]
    pub fn predict_url(&self) -> String {
        format!("{}/v1/predict", self.endpoint.base())
    }

    /// What the agent does and has.
    ///
    /// # Errors
    /// [`HttpError`] naming the address.
    pub fn status(&self) -> Result<AgentStatus, HttpError> {
        self.endpoint.document("/v1/status")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_files_are_toml() {
        let folder = tempfile::tempdir().unwrap();
        let commands = AgentCommands::new(
            "tributary-agent".into(),
            folder.path().to_owned(),
            TenantId::new("ash").unwrap(),
            Stop::default(),
        );
        let job: JobSpec =
            toml::from_str(include_str!("../../experiments/fashion-mnist-demo.toml")).unwrap();
        commands.configure(&job, &Region::new("eu").unwrap()).unwrap();
        let read = |name| -> toml::Table {
            let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
            toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"))
        };
        let policy = read("policy.toml");
        let dataset = &policy["datasets"]["fashion-mnist"];
        assert_eq!(dataset["epsilon_max"].as_float(), Some(8.0));
        assert_eq!(dataset["delta"].as_float(), Some(1e-5));
        assert_eq!(
            read("agent.toml")["data"]["fashion-mnist"]["idx"]["classes"].as_integer(),
            Some(10)
        );
    }
}
