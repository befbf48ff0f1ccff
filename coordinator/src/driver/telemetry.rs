//! The metrics for Prometheus: their names, what counts, and what is measured when somebody asks.

use std::{collections::BTreeMap, time::Duration};

use metrics::{counter, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tributary_protocol::{
    id::{JobId, TenantId},
    isolation::Isolation,
    message::UploadOffer,
    time::Timestamp,
};

use super::{Core, process_usage::ProcessUsage};
use crate::{
    audit::{Act, AuditEvent},
    round::Phase,
    scheduler::{Job, JobState},
    spending::{EpsilonCache, Releases},
    tenants::{TenantContext, TenantRole},
};

/// How a metric behaves.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    /// Of seconds, with these upper bounds of its buckets.
    Histogram(&'static [f64]),
}

/// From a quick answer to one that somebody waits for.
const REQUEST_S: &[f64] = &[0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];
/// From a test on one machine to a day between two reports.
const ROUND_S: &[f64] = &[0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0];

use Kind::{Counter, Gauge, Histogram};

/// Every metric of the coordinator: name, kind, and what it says.
const METRICS: &[(&str, Kind, &str)] = &[
    ("tributary_build_info", Gauge, "1; the label names the version that runs"),
    ("tributary_connected_tenants", Gauge, "Tenants whose agents are connected"),
    ("tributary_tenants", Gauge, "Tenants by standing"),
    ("tributary_tenant_connected", Gauge, "1 while the tenant's agent is connected"),
    (
        "tributary_tenant_ledger_entries",
        Gauge,
        "Ledger entries of the tenant that are countersigned",
    ),
    (
        "tributary_tenant_info",
        Gauge,
        "1; the labels are the tenant's context: region, roles, isolation levels it needs at least",
    ),
    (
        "tributary_tenant_below_floor",
        Gauge,
        "1 while the tenant's agent runs below an isolation level that the tenant needs",
    ),
    (
        "tributary_tenant_allowed_a_day",
        Gauge,
        "The tenant's quotas for a day; +Inf is without limit",
    ),
    (
        "tributary_tenant_used_today",
        Gauge,
        "What counts against the tenant's quotas since 00:00 UTC",
    ),
    (
        "tributary_tenant_epsilon",
        Gauge,
        "Epsilon of the tenant's counted releases to the job, from its terms",
    ),
    ("tributary_jobs", Gauge, "Jobs by state"),
    ("tributary_job_rounds_committed", Gauge, "Rounds of the job that became models"),
    ("tributary_job_rounds_planned", Gauge, "Rounds of the job in all"),
    ("tributary_job_phase", Gauge, "1 for the phase that the job's round is in"),
    (
        "tributary_job_phase_started_seconds",
        Gauge,
        "Unix time at which the round entered its phase",
    ),
    (
        "tributary_job_deadline_seconds",
        Gauge,
        "Unix time until which the round waits; 0 without deadline",
    ),
    (
        "tributary_job_epsilon",
        Gauge,
        "Epsilon that the job's sums revealed, with distributed noise",
    ),
    (
        "tributary_job_epsilon_planned",
        Gauge,
        "Epsilon of a tenant that is in every round of the job",
    ),
    ("tributary_job_clipping_norm", Gauge, "L2 bound of one unit's contribution"),
    ("tributary_job_metric", Gauge, "Newest noisy estimate of a metric of the base"),
    (
        "tributary_job_metric_standard_error",
        Gauge,
        "Standard error of the estimate, by the noise alone",
    ),
    ("tributary_audit_entries", Gauge, "Entries of the audit log"),
    ("tributary_updates_total", Counter, "Updates that were counted"),
    ("tributary_update_bytes_total", Counter, "Bytes of the updates that were counted"),
    ("tributary_download_bytes_total", Counter, "Bytes of model files that tenants asked for"),
    ("tributary_rounds_committed_total", Counter, "Rounds that became models"),
    ("tributary_rounds_abandoned_total", Counter, "Rounds that were given up"),
    ("tributary_declines_total", Counter, "Invitations that tenants declined"),
    ("tributary_api_request_seconds", Histogram(REQUEST_S), "Time until the HTTP API answered"),
    ("tributary_persist_seconds", Histogram(REQUEST_S), "Time until a change was durable"),
    (
        "tributary_aggregation_seconds",
        Histogram(REQUEST_S),
        "Time to make a model of a round's sum",
    ),
    ("tributary_round_phase_seconds", Histogram(ROUND_S), "Time that rounds spent in a phase"),
    (
        "tributary_round_seconds",
        Histogram(ROUND_S),
        "Time from the opening of a round to the next one's",
    ),
    ("process_resident_memory_bytes", Gauge, "Memory of the process"),
    ("process_cpu_seconds_total", Counter, "Processor time of the process"),
    ("process_open_fds", Gauge, "Open file descriptors of the process"),
];

/// Collects the metrics of this process from now on.
///
/// # Errors
/// [`BuildError`] if somebody collects them already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for &(name, kind, _) in METRICS {
        if let Histogram(bounds) = kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), bounds)?;
        }
    }
    let handle = builder.install_recorder()?;
    for &(name, kind, text) in METRICS {
        match kind {
            Counter => metrics::describe_counter!(name, text),
            Gauge => metrics::describe_gauge!(name, text),
            Histogram(_) => metrics::describe_histogram!(name, metrics::Unit::Seconds, text),
        }
    }
    gauge!("tributary_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}

pub(super) fn count_update(tenant: &TenantId, offer: &UploadOffer) {
    let labels = [("tenant", tenant.to_string()), ("job", offer.job.to_string())];
    counter!("tributary_updates_total", &labels).increment(1);
    counter!("tributary_update_bytes_total", &labels).increment(offer.update.length);
}

pub(super) fn count_download(tenant: &TenantId, bytes: u64) {
    counter!("tributary_download_bytes_total", "tenant" => tenant.to_string()).increment(bytes);
}

pub(super) fn count_commit(job: &JobId) {
    counter!("tributary_rounds_committed_total", "job" => job.to_string()).increment(1);
}

/// Counts what the scheduler has recorded of a round.
pub(super) fn count_event(event: &AuditEvent) {
    let job = || event.subject.split('/').next().unwrap_or_default().to_owned();
    match event.act {
        Act::RoundAbandon => {
            counter!("tributary_rounds_abandoned_total", "job" => job()).increment(1);
        }
        Act::RoundDecline => {
            let labels = [("tenant", event.actor.name.clone()), ("job", job())];
            counter!("tributary_declines_total", &labels).increment(1);
        }
        _ => {}
    }
}

pub(super) fn observe_persist(took: Duration) {
    histogram!("tributary_persist_seconds").record(took);
}

pub(super) fn observe_aggregation(job: &JobId, took: Duration) {
    histogram!("tributary_aggregation_seconds", "job" => job.to_string()).record(took);
}

pub(super) fn observe_phase(job: &JobId, phase: &'static str, took: Duration) {
    histogram!("tributary_round_phase_seconds", "job" => job.to_string(), "phase" => phase)
        .record(took);
}

pub(super) fn observe_round(job: &JobId, took: Duration) {
    histogram!("tributary_round_seconds", "job" => job.to_string()).record(took);
}

/// - `path`: the route, not what was asked for: names in paths would make a series each
pub(crate) fn observe_request(method: &str, path: &str, status: u16, took: Duration) {
    let labels =
        [("method", method.to_owned()), ("path", path.to_owned()), ("status", status.to_string())];
    histogram!("tributary_api_request_seconds", &labels).record(took);
}

/// What is still to be computed beside the core.
pub(crate) struct EpsilonsDue(Vec<JobReleases>);

struct JobReleases {
    spec: tributary_protocol::job::JobSpec,
    lattice: tributary_protocol::message::LatticeSpec,
    tenants: Vec<(TenantId, Releases)>,
}

/// Measures what is measured when somebody asks; quick, since the core waits.
pub(crate) fn measure(core: &mut Core, now: Timestamp) -> EpsilonsDue {
    tell_contexts(core);
    measure_tenants(core, now);
    let mut states = BTreeMap::new();
    let mut due = Vec::new();
    for job in core.scheduler.jobs() {
        let record = job.record();
        *states.entry(state_name(record.state)).or_insert(0_u32) += 1;
        measure_job(job, core.progress().phase_since(&record.spec.name));
        let releases = core.spending().of(&record.spec.name);
        let tenants = releases.map(|(tenant, releases)| (tenant.clone(), releases)).collect();
        due.push(JobReleases { spec: record.spec.clone(), lattice: record.lattice, tenants });
    }
    for state in ["running", "paused", "stopped", "finished", "failed"] {
        let jobs = states.get(state).copied().unwrap_or_default();
        gauge!("tributary_jobs", "state" => state).set(jobs);
    }
    gauge!("tributary_audit_entries").set(core.audit().head().sequence as f64);
    EpsilonsDue(due)
}

const fn state_name(state: JobState) -> &'static str {
    match state {
        JobState::Running => "running",
        JobState::Paused => "paused",
        JobState::Stopped => "stopped",
        JobState::Finished => "finished",
        JobState::Failed => "failed",
    }
}

/// The labels of a tenant's context: region, roles, and levels for data, model and computation.
pub(super) type ContextLabels = [(&'static str, String); 5];

/// Says what each tenant's context is, and no more what it was.
fn tell_contexts(core: &mut Core) {
    let set = |tenant: &TenantId, labels: &ContextLabels, value: f64| {
        let mut labels = labels.to_vec();
        labels.push(("tenant", tenant.to_string()));
        gauge!("tributary_tenant_info", &labels).set(value);
    };
    for record in core.scheduler.tenants() {
        let TenantContext { id, region, roles, isolation, .. } = &record.context;
        let Isolation { data, model, compute } = isolation;
        let labels = [
            ("region", region.to_string()),
            ("roles", TenantRole::names(roles)),
            ("data", data.name().to_owned()),
            ("model", model.name().to_owned()),
            ("compute", compute.name().to_owned()),
        ];
        if let Some(before) = core.told.insert(id.clone(), labels.clone())
            && before != labels
        {
            set(id, &before, 0.0);
        }
        set(id, &labels, 1.0);
    }
}

fn measure_tenants(core: &Core, now: Timestamp) {
    gauge!("tributary_connected_tenants").set(core.scheduler.connected_count() as f64);
    let mut standings = BTreeMap::from([("active", 0_u32), ("suspended", 0), ("revoked", 0)]);
    for record in core.scheduler.tenants() {
        *standings.entry(record.standing.name()).or_default() += 1;
        let tenant = record.context.id.to_string();
        let connected = core.scheduler.is_connected(&record.context.id);
        gauge!("tributary_tenant_connected", "tenant" => tenant.clone())
            .set(f64::from(u8::from(connected)));
        gauge!("tributary_tenant_ledger_entries", "tenant" => tenant.clone())
            .set(record.acknowledged_head.sequence as f64);
        let is_below = core.scheduler.below_floor(&record.context.id).is_some();
        gauge!("tributary_tenant_below_floor", "tenant" => tenant.clone())
            .set(f64::from(u8::from(is_below)));
        let used = record.usage.today(now).counts();
        let allowed = record.context.quotas.per_day();
        let resources = ["bytes", "rounds", "requests"].into_iter().zip(used).zip(allowed);
        for ((resource, used), allowed) in resources {
            let labels = [("tenant", tenant.clone()), ("resource", resource.to_owned())];
            gauge!("tributary_tenant_used_today", &labels).set(used as f64);
            let allowed = allowed.map_or(f64::INFINITY, |allowed| allowed as f64);
            gauge!("tributary_tenant_allowed_a_day", &labels).set(allowed);
        }
    }
    for (standing, tenants) in standings {
        gauge!("tributary_tenants", "standing" => standing).set(tenants);
    }
}

fn measure_job(job: &Job, since: Option<Timestamp>) {
    let (record, name) = (job.record(), job.record().spec.name.to_string());
    let set = |metric: &'static str, value: f64| gauge!(metric, "job" => name.clone()).set(value);
    let seconds = |at: Timestamp| at.0 as f64 / 1000.0;
    set("tributary_job_rounds_committed", record.rounds_committed as f64);
    set("tributary_job_rounds_planned", record.spec.round.rounds as f64);
    set("tributary_job_clipping_norm", record.spec.privacy.clipping_norm);
    set("tributary_job_deadline_seconds", job.waits_until().map_or(0.0, seconds));
    if let Some(since) = since {
        set("tributary_job_phase_started_seconds", seconds(since));
    }
    if let Some(revealed) = &record.revealed {
        set("tributary_job_epsilon", revealed.epsilon.unwrap_or(f64::INFINITY));
    }
    for phase in Phase::NAMES {
        let here = job.round().phase.name() == phase;
        gauge!("tributary_job_phase", "job" => name.clone(), "phase" => phase)
            .set(f64::from(u8::from(here)));
    }
    let Some((newest, evaluation)) = record.metrics.last().zip(record.spec.evaluation.as_ref())
    else {
        return;
    };
    for estimate in newest.estimates(evaluation) {
        let labels = [("job", name.clone()), ("metric", estimate.metric.name().to_owned())];
        if let (Some(value), Some(error)) = (estimate.value, estimate.standard_error) {
            gauge!("tributary_job_metric", &labels).set(value);
            gauge!("tributary_job_metric_standard_error", &labels).set(error);
        }
    }
}

impl EpsilonsDue {
    /// Computes what takes a moment, and asks the system about this process.
    pub(crate) fn measure(self, epsilons: &EpsilonCache) {
        for JobReleases { spec, lattice, tenants } in self.0 {
            let job = spec.name.to_string();
            for (tenant, releases) in tenants {
                if let Some(epsilon) = epsilons.epsilon(&spec, lattice, releases) {
                    let labels = [("tenant", tenant.to_string()), ("job", job.clone())];
                    gauge!("tributary_tenant_epsilon", &labels).set(epsilon);
                }
            }
            if let Some(planned) = epsilons.epsilon(&spec, lattice, Releases::planned(&spec)) {
                gauge!("tributary_job_epsilon_planned", "job" => job).set(planned);
            }
        }
        if let Some(usage) = ProcessUsage::read() {
            gauge!("process_resident_memory_bytes").set(usage.resident_bytes as f64);
            gauge!("process_open_fds").set(usage.open_files as f64);
            counter!("process_cpu_seconds_total").absolute(usage.processor_s);
        }
    }
}
