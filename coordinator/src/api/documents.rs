//! The JSON documents of the API; the command line reads and prints the same ones.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tributary_privacy::chain::ChainHead;
use tributary_protocol::{
    id::{Digest, JobId, Region, TenantId, TokenName},
    job::PrivacyUnit,
    time::Timestamp,
};

use super::{part::TenantState, terms::JobTerms};
use crate::{
    access::{Principal, Role, TokenRecord},
    backup::Manifest,
    driver::Core,
    registry::ModelVersion,
    scheduler::{BaseMetrics, Job, JobRecord, JobState, MetricEstimate, Scheduler},
    tenants::{Isolation, Quotas, Standing, TenantContext, TenantRecord, TenantRole},
};

/// An error.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorDocument {
    error: ErrorBody,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct ErrorBody {
    code: String,
    message: String,
}

impl ErrorDocument {
    /// Builds the document.
    #[must_use]
    pub fn new(code: &str, message: String) -> Self {
        Self { error: ErrorBody { code: code.to_owned(), message } }
    }
}

impl std::fmt::Display for ErrorDocument {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} ({})", self.error.message, self.error.code)
    }
}

/// Asks to add a tenant, or to invite a known one anew.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewTenant {
    /// Who.
    pub tenant: TenantId,
    /// Where.
    pub region: Region,
}

/// Answers [`NewTenant`].
#[derive(Clone, Serialize, Deserialize)]
pub struct TenantAdded {
    /// Who.
    pub tenant: TenantId,
    /// The one-time token, shown once.
    pub token: String,
    /// When it stops to work.
    pub expires: Timestamp,
}

/// A tenant in a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TenantDocument {
    /// Who.
    pub tenant: TenantId,
    /// Where.
    pub region: Region,
    /// Whether its agent has a certificate.
    pub enrolled: bool,
    /// Whether its agent is connected now.
    pub connected: bool,
    /// Entries of its privacy ledger that it has reported.
    pub ledger_sequence: u64,
    /// `active`, `suspended` or `revoked`.
    pub standing: String,
    /// Why it is suspended or revoked.
    pub reason: Option<String>,
    /// What it takes part in.
    pub roles: BTreeSet<TenantRole>,
    /// How much of it, per day (UTC).
    pub quotas: Quotas,
    /// What it has used today.
    pub used: UsedDocument,
    /// How far it is kept apart from others, at least.
    pub isolation: Isolation,
}

/// What a tenant has used today.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct UsedDocument {
    /// Bytes of model and update files.
    pub bytes: u64,
    /// Rounds that it was invited to.
    pub rounds: u64,
    /// Connections, answers and transfers.
    pub requests: u64,
}

impl TenantDocument {
    /// Describes a tenant.
    #[must_use]
    pub fn new(record: &TenantRecord, connected: bool, now: Timestamp) -> Self {
        let [bytes, rounds, requests] = record.usage.today(now).counts();
        let TenantContext { id, region, roles, quotas, isolation } = record.context.clone();
        Self {
            tenant: id,
            region,
            enrolled: record.certificate.is_some(),
            connected,
            ledger_sequence: record.acknowledged_head.sequence,
            standing: record.standing.name().to_owned(),
            reason: match &record.standing {
                Standing::Active => None,
                Standing::Suspended { reason, .. } | Standing::Revoked { reason, .. } => {
                    Some(reason.clone())
                }
            },
            roles,
            quotas,
            used: UsedDocument { bytes, rounds, requests },
            isolation,
        }
    }
}

/// Says why a tenant is suspended or revoked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopTenant {
    /// For the tenant's operator; it hears this.
    pub reason: String,
}

/// Replaces what a tenant may do and use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantTerms {
    /// What it takes part in.
    pub roles: BTreeSet<TenantRole>,
    /// How much of it.
    pub quotas: Quotas,
    /// How far it is kept apart from others, at least.
    pub isolation: Isolation,
}

/// Changes a job's priority.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPriority {
    /// From -1000 to 1000.
    pub priority: i32,
}

/// Answers a submission.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobSubmitted {
    /// The job.
    pub job: JobId,
}

/// A job and what it waits for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobDocument {
    /// The job.
    pub job: JobId,
    /// Whether it still trains.
    pub state: JobState,
    /// Jobs of higher priority get tenants first.
    pub priority: i32,
    /// Rounds that became models.
    pub rounds_committed: u64,
    /// Rounds in all.
    pub rounds: u64,
    /// The open round, or the last one.
    pub round: u64,
    /// Its phase.
    pub phase: String,
    /// Since when the round is in its phase; of a phase from before a restart, since the restart.
    pub phase_since: Option<Timestamp>,
    /// One line: what the round waits for.
    pub waiting_for: String,
    /// When it stops to wait, if ever.
    pub waits_until: Option<Timestamp>,
    /// The newest model.
    pub model: Option<Digest>,
    /// L2 bound of one unit's contribution; the open round's where it adapts.
    pub clipping_norm: f64,
    /// What the cohorts said about the bases, with noise, oldest first; empty unless the job asks.
    pub metrics: Vec<MetricsDocument>,
    /// What the committed sums revealed; with distributed noise only.
    pub privacy: Option<PrivacyDocument>,
    /// Why the job failed, if it did.
    pub failure: Option<String>,
    /// When it was submitted.
    pub submitted: Timestamp,
    /// What is trained, how and under which privacy.
    pub terms: JobTerms,
    /// Every tenant that the job's regions allow.
    pub tenants: Vec<TenantState>,
}

/// What cohorts said about one base.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MetricsDocument {
    /// The version that was evaluated.
    pub version: u64,
    /// Its file.
    pub base: Digest,
    /// How many tenants' noisy releases are added up.
    pub releases: u32,
    /// One estimate a metric.
    pub estimates: Vec<MetricEstimate>,
}

impl MetricsDocument {
    fn all(record: &JobRecord) -> Vec<Self> {
        let Some(spec) = &record.spec.evaluation else { return Vec::new() };
        let document = |metrics: &BaseMetrics| Self {
            version: metrics.version,
            base: metrics.base,
            releases: metrics.releases,
            estimates: metrics.estimates(spec),
        };
        record.metrics.iter().map(document).collect()
    }
}

/// The privacy of a job's sums. Neighbours differ by adding or removing one unit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PrivacyDocument {
    /// `record` or `tenant`.
    pub unit: PrivacyUnit,
    /// ε of what happened: with the honest survivors that each sum really had; `None` if it is
    /// beyond what can be computed.
    pub epsilon: Option<f64>,
    /// ε of the worst case that the protocol allowed in the same rounds, which agents debit; `None`
    /// likewise.
    pub epsilon_worst_case: Option<f64>,
    /// The δ of both.
    pub delta: f64,
}

impl JobDocument {
    /// Describes a job.
    ///
    /// - `who`: sees only its own tenants
    #[must_use]
    pub fn new(job: &Job, core: &Core, who: &Principal, now: Timestamp) -> Self {
        let (record, round, scheduler) = (job.record(), job.round(), &core.scheduler);
        let regions = &record.spec.regions;
        let allowed = scheduler
            .tenants()
            .filter(|tenant| regions.is_empty() || regions.contains(&tenant.context.region))
            .filter(|tenant| who.may_see(&tenant.context.id));
        Self {
            job: record.spec.name.clone(),
            state: record.state,
            priority: record.priority,
            rounds_committed: record.rounds_committed,
            rounds: record.spec.round.rounds,
            round: round.number.0,
            phase: round.phase.name().to_owned(),
            phase_since: core.progress().phase_since(&record.spec.name),
            // The line names tenants, so who may not see all of them sees the phase only.
            waiting_for: match &who.tenants {
                None => scheduler.waiting_for(job, now),
                Some(_) => format!("the round is in {}", round.phase.name()),
            },
            waits_until: job.waits_until(),
            model: scheduler.models().latest(&record.spec.name).map(|model| model.file.digest),
            clipping_norm: record.spec.privacy.clipping_norm,
            metrics: MetricsDocument::all(record),
            privacy: record.revealed.as_ref().map(|revealed| PrivacyDocument {
                unit: record.spec.privacy.unit,
                epsilon: revealed.epsilon,
                epsilon_worst_case: revealed.epsilon_worst_case,
                delta: revealed.delta,
            }),
            failure: record.failure.clone(),
            submitted: record.submitted,
            terms: JobTerms::new(&record.spec),
            tenants: allowed.map(|tenant| TenantState::new(tenant, job, scheduler, now)).collect(),
        }
    }
}

/// A model version.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ModelDocument {
    /// The job that made it.
    pub job: JobId,
    /// Version within the job.
    pub version: u64,
    /// The round that committed it; 0 for the initial model.
    pub round: u64,
    /// The file.
    pub digest: Digest,
    /// Length of the file, in bytes.
    pub bytes: u64,
    /// The file of the version before.
    pub parent: Option<Digest>,
    /// The version that it was trained from; of another job, where this one started from its model.
    pub parent_version: Option<VersionName>,
    /// When it was committed.
    pub created_ms: Timestamp,
    /// Whether agents serve it.
    pub served: bool,
    /// Whether somebody chose that agents serve it, so that they do not follow newer versions.
    pub pinned: bool,
    /// How many tenants' noisy releases the metrics come from.
    pub releases: u32,
    /// What the cohort that started from it said about it, with noise; empty unless the job asks.
    pub metrics: Vec<MetricEstimate>,
}

/// Names a model version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionName {
    /// The job that made it.
    pub job: JobId,
    /// Version within the job.
    pub version: u64,
}

impl std::fmt::Display for VersionName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.job, self.version)
    }
}

/// Chooses the version that agents serve.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPromotion {
    /// The version; null follows the newest.
    pub version: Option<u64>,
}

impl ModelDocument {
    /// Describes a version.
    #[must_use]
    pub fn new(version: &ModelVersion, scheduler: &Scheduler) -> Self {
        let models = scheduler.models();
        let served = models.served(&version.job) == Some(version);
        let record = scheduler.job(&version.job).ok().map(Job::record);
        let said = record.and_then(|record| {
            let of_it = |metrics: &&BaseMetrics| metrics.version == version.version;
            record.metrics.iter().rev().find(of_it).zip(record.spec.evaluation.as_ref())
        });
        Self {
            job: version.job.clone(),
            version: version.version,
            round: version.round.0,
            digest: version.file.digest,
            bytes: version.file.length,
            parent: version.parent,
            parent_version: models
                .parent(version)
                .map(|parent| VersionName { job: parent.job.clone(), version: parent.version }),
            created_ms: version.created,
            served,
            pinned: served && models.is_pinned(&version.job),
            releases: said.map_or(0, |(metrics, _)| metrics.releases),
            metrics: said.map(|(metrics, spec)| metrics.estimates(spec)).unwrap_or_default(),
        }
    }
}

/// Who a token belongs to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Whoami {
    /// The token's name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The only tenants that it may see; all if `None`.
    pub tenants: Option<BTreeSet<TenantId>>,
}

/// Asks for an access token.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// Its name.
    pub name: TokenName,
    /// What it may do.
    pub role: Role,
    /// The tenants that a tenant admin looks after.
    #[serde(default)]
    pub tenants: BTreeSet<TenantId>,
    /// How long it works.
    pub days: u32,
}

/// Answers [`NewToken`].
#[derive(Clone, Serialize, Deserialize)]
pub struct TokenAdded {
    /// Its name.
    pub name: TokenName,
    /// What it may do.
    pub role: Role,
    /// The token, shown once.
    pub token: String,
    /// When it stops to work.
    pub expires: Timestamp,
}

/// An access token in a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenDocument {
    /// Its name.
    pub name: TokenName,
    /// What it may do.
    pub role: Role,
    /// The tenants that a tenant admin looks after.
    pub tenants: BTreeSet<TenantId>,
    /// Whether it works now.
    pub active: bool,
    /// When it was made.
    pub created: Timestamp,
    /// When it stops to work.
    pub expires: Timestamp,
    /// When it was revoked.
    pub revoked: Option<Timestamp>,
}

impl TokenDocument {
    /// Describes a token.
    #[must_use]
    pub fn new(record: &TokenRecord, now: Timestamp) -> Self {
        Self {
            name: record.name.clone(),
            role: record.role,
            tenants: record.tenants.clone(),
            active: record.is_active(now),
            created: record.created,
            expires: record.expires,
            revoked: record.revoked,
        }
    }
}

/// Where the audit log ends. An auditor who notes it can later see whether the log was rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditHead {
    /// Number of entries.
    pub sequence: u64,
    /// Hash of the last one.
    pub hash: Digest,
}

impl AuditHead {
    /// Describes a head.
    #[must_use]
    pub const fn new(head: ChainHead) -> Self {
        Self { sequence: head.sequence, hash: Digest::from_bytes(head.hash) }
    }
}

/// A snapshot that `backup` copies elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotTaken {
    /// When.
    pub made: Timestamp,
    /// How many records it holds.
    pub records: u64,
    /// How many model and update files.
    pub files: u64,
}

impl SnapshotTaken {
    /// Describes a snapshot.
    #[must_use]
    pub fn new(manifest: &Manifest) -> Self {
        let Manifest { made, records, ref files, .. } = *manifest;
        Self { made, records, files: files.len() as u64 }
    }
}
