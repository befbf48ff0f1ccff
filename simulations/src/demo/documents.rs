//! The JSON documents that coordinator and agents publish, as far as the demo reads them.

use serde::Deserialize;

/// `endpoints.json` of the coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct CoordinatorEndpoints {
    /// `HOST:PORT` for agents.
    pub quic: String,
    /// `http://HOST:PORT` for people.
    pub api: String,
}

/// `endpoints.json` of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AgentEndpoints {
    /// `http://HOST:PORT`, for the tenant's own people.
    pub api: String,
}

/// Answer of `tenant add --json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Enrolment {
    /// One-time token.
    pub token: String,
}

/// Answer of `job submit --json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Submission {
    /// The job's name.
    pub job: String,
}

/// `GET /v1/jobs/{job}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct JobStatus {
    /// Whether it still runs.
    pub state: JobState,
    /// Rounds that made it into the base.
    pub rounds_committed: u64,
    /// Rounds that the job asked for.
    pub rounds: u64,
    /// The round in progress.
    #[serde(default)]
    pub round: Option<u64>,
    /// The phase of that round.
    #[serde(default)]
    pub phase: Option<String>,
    /// What the coordinator waits for.
    #[serde(default)]
    pub waiting_for: Option<String>,
    /// Digest of the newest base.
    #[serde(default)]
    pub model: Option<String>,
    /// The job's tenants.
    #[serde(default)]
    pub tenants: Vec<TenantStatus>,
}

/// Whether a job still runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Rounds are being scheduled.
    Running,
    /// All rounds are committed.
    Finished,
    /// Stopped by somebody.
    Stopped,
    /// Given up by the coordinator.
    Failed,
}

/// One tenant as the coordinator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TenantStatus {
    /// The tenant.
    pub tenant: String,
    /// `connected`, `invited`, `accepted`, `reported`, `declined` or `offline`.
    pub state: String,
    /// More about it.
    #[serde(default)]
    pub detail: Option<String>,
}

/// One entry of `GET /v1/models`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ModelVersion {
    /// Counted from 0, the initial model.
    pub version: u64,
    /// The job that made it.
    pub job: String,
    /// The round that made it.
    #[serde(default)]
    pub round: Option<u64>,
    /// Names its file.
    pub digest: String,
}

/// `GET /v1/status` of an agent.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct AgentStatus {
    /// What it does: `idle`, `training`, `uploading`, `adapting`, …
    pub phase: String,
    /// More about it.
    #[serde(default)]
    pub detail: Option<String>,
    /// Steps done in this phase.
    #[serde(default)]
    pub step: u64,
    /// Steps of this phase in all.
    #[serde(default)]
    pub steps: u64,
    /// The base it serves.
    #[serde(default)]
    pub base: Option<BaseStatus>,
    /// The private adapter it serves.
    #[serde(default)]
    pub adapter: Option<AdapterStatus>,
    /// The newest base, and what it made of it.
    #[serde(default)]
    pub newest: Option<NewestStatus>,
    /// What its ledger says is spent.
    #[serde(default)]
    pub epsilon: f64,
    /// The δ of that ε.
    #[serde(default)]
    pub delta: f64,
    /// Bytes of updates sent.
    #[serde(default)]
    pub bytes_sent: u64,
    /// Why its policy refused the job.
    #[serde(default)]
    pub refused: Option<String>,
}

/// The newest base that an agent heard of.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct NewestStatus {
    /// Names its file.
    pub digest: String,
    /// Of the base alone, on the tenant's own held-out records.
    pub accuracy: Option<f64>,
    /// Whether adapting to it went to its end.
    pub complete: bool,
}

/// The base that an agent serves.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BaseStatus {
    /// Names its file.
    pub digest: String,
    /// On the tenant's own held-out data.
    #[serde(default)]
    pub accuracy: Option<f64>,
}

/// The private adapter that an agent serves.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct AdapterStatus {
    /// Counted by the agent.
    pub version: u64,
    /// Of base and adapter on the tenant's own held-out data.
    #[serde(default)]
    pub accuracy: Option<f64>,
}
