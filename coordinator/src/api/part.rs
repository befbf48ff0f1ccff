//! One tenant's part in the open round of a job, and why it waits.

use serde::{Deserialize, Serialize};
use tributary_protocol::id::TenantId;
use tributary_protocol::time::Timestamp;

use crate::{
    round::{Aggregation, Phase},
    scheduler::{Job, Scheduler},
    tenants::{Standing, TenantRecord, TenantRole},
};

/// One tenant's part in a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TenantState {
    /// Who.
    pub tenant: TenantId,
    /// `offline`, `connected`, `invited`, `accepted`, `reported`, `declined`, `suspended` or `revoked`.
    pub state: String,
    /// Why it waits, or is waited for; for people.
    pub detail: String,
}

impl TenantState {
    pub(super) fn new(
        record: &TenantRecord,
        job: &Job,
        scheduler: &Scheduler,
        now: Timestamp,
    ) -> Self {
        let tenant = &record.context.id;
        let connected = scheduler.is_connected(tenant);
        let (state, detail) =
            match (job.refusals().get(tenant), in_round(&job.round().phase, tenant)) {
                (Some(refusal), _) => ("declined", refusal.to_string()),
                (None, Some((state, detail))) if connected || state == "reported" => {
                    (state, detail)
                }
                (None, Some((state, _))) => ("offline", format!("{state}, connection lost")),
                (None, None) => match &record.standing {
                    Standing::Suspended { reason, .. } | Standing::Revoked { reason, .. } => {
                        (record.standing.name(), reason.clone())
                    }
                    Standing::Active if record.certificate.is_none() => {
                        ("offline", "not enrolled yet".to_owned())
                    }
                    Standing::Active if !connected => ("offline", "not connected".to_owned()),
                    Standing::Active => ("connected", waits(record, job, scheduler, now)),
                },
            };
        Self { tenant: tenant.clone(), state: state.to_owned(), detail }
    }
}

/// Why a connected tenant has no part in the open round.
fn waits(record: &TenantRecord, job: &Job, scheduler: &Scheduler, now: Timestamp) -> String {
    let (tenant, name) = (&record.context.id, &job.record().spec.name);
    if !record.context.roles.contains(&TenantRole::Train) {
        return "its role is to serve only".to_owned();
    }
    if let Some(reason) = scheduler.kept_out(tenant, name, now) {
        return reason;
    }
    match job.round().phase {
        Phase::Selection(_) => "ready for the next cohort",
        Phase::Buffering(_) => "ready for the next place; as many as may train at a time do",
        Phase::Committed { .. } | Phase::Abandoned { .. } => "ready",
        _ => "not in this round's cohort",
    }
    .to_owned()
}

/// What a tenant's part in the phase is called, and what it waits for or owes.
fn in_round(phase: &Phase, tenant: &TenantId) -> Option<(&'static str, String)> {
    let masked = |aggregation: &Aggregation, owes: &str| {
        let detail =
            if aggregation.awaited().contains(tenant) { owes } else { "waits for the others" };
        ("accepted", detail.to_owned())
    };
    let plain = |state, detail: &str| Some((state, detail.to_owned()));
    match phase {
        Phase::Configuration(phase) if phase.accepted().contains(tenant) => {
            plain("accepted", "trains")
        }
        Phase::Configuration(phase) if phase.silent().contains(tenant) => {
            plain("invited", "has not answered the invitation")
        }
        Phase::KeyExchange(phase) if phase.aggregation().members().contains(tenant) => {
            Some(masked(phase.aggregation(), "owes its keys"))
        }
        Phase::Reporting(phase) if phase.reported().contains_key(tenant) => {
            plain("reported", "its update is counted")
        }
        Phase::Reporting(phase) if phase.expected().contains(tenant) => plain(
            "accepted",
            if phase.aggregation().is_some() { "trains and masks" } else { "trains" },
        ),
        Phase::Unmasking(phase) if phase.reported().contains_key(tenant) => {
            let (_, detail) = masked(phase.aggregation(), "owes its part in unmasking the sum");
            Some(("reported", detail))
        }
        Phase::Buffering(phase) if phase.ticket(tenant).is_some() => plain("accepted", "trains"),
        Phase::Buffering(phase) if phase.reported().any(|it| it == tenant) => {
            plain("reported", "its update is counted")
        }
        Phase::Committed { contributors } if contributors.contains_key(tenant) => {
            plain("reported", "its update is in the model")
        }
        _ => None,
    }
}
