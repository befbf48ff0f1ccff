//! What a job's counted releases cost each tenant.

use axum::{
    Extension, Json,
    extract::{Path, State},
};
use serde::{Deserialize, Serialize};
use tributary_protocol::{
    id::{JobId, TenantId},
    job::{JobSpec, PrivacyUnit},
    message::LatticeSpec,
};

use super::{ApiError, ApiState, routes::not_found};
use crate::{
    access::Principal,
    spending::{EpsilonCache, Releases},
};

/// The privacy that a job has cost its tenants, computed from its terms. Neighbours differ by adding
/// or removing one unit.
///
/// Agents' own ledgers decide: they also hold releases that no model contains (a round that was
/// abandoned, a report that came too late), other jobs, and the budget of the tenant's policy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SpendingDocument {
    /// `record` or `tenant`.
    pub unit: PrivacyUnit,
    /// The δ of every ε here.
    pub delta: f64,
    /// ε of a tenant that is in every round of the job; null where it cannot be computed here.
    pub epsilon_planned: Option<f64>,
    /// Every tenant with a counted release.
    pub tenants: Vec<TenantSpending>,
}

/// One tenant's part of [`SpendingDocument`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TenantSpending {
    /// Who.
    pub tenant: TenantId,
    /// Its updates that became part of a model.
    pub updates: u64,
    /// Its noisy metrics that were counted.
    pub evaluations: u64,
    /// ε of all of them together; null where it cannot be computed here.
    pub epsilon: Option<f64>,
    /// Entries of its ledger, over all its jobs, that the coordinator has countersigned.
    pub ledger_sequence: u64,
}

pub(super) async fn spending(
    State(state): State<ApiState>,
    Extension(who): Extension<Principal>,
    Path(job): Path<String>,
) -> Result<Json<SpendingDocument>, ApiError> {
    let job = JobId::new(job).map_err(|error| ApiError::invalid_id(&error))?;
    let counted = state.core.call(move |core, _| {
        let record = core.scheduler.job(&job).map_err(|error| not_found(&error))?.record();
        let seen = core.spending().of(&job).filter(|(tenant, _)| who.may_see(tenant));
        let tenants = seen.map(|(tenant, releases)| {
            let known = core.scheduler.tenant(tenant);
            let sequence = known.map_or(0, |record| record.acknowledged_head.sequence);
            (tenant.clone(), releases, sequence)
        });
        Ok((record.spec.clone(), record.lattice, tenants.collect::<Vec<_>>()))
    });
    let (spec, lattice, tenants) = counted.await.map_err(ApiError::stopping)??;
    let epsilons = state.epsilons.clone();
    // Composing thousands of releases takes a moment; other requests do not wait for it.
    let document =
        tokio::task::spawn_blocking(move || document(&spec, lattice, tenants, &epsilons));
    Ok(Json(document.await.expect("accounting does not panic")))
}

fn document(
    spec: &JobSpec,
    lattice: LatticeSpec,
    tenants: Vec<(TenantId, Releases, u64)>,
    epsilons: &EpsilonCache,
) -> SpendingDocument {
    let row = |(tenant, releases, ledger_sequence): (TenantId, Releases, u64)| TenantSpending {
        tenant,
        updates: releases.updates,
        evaluations: releases.evaluations,
        epsilon: epsilons.epsilon(spec, lattice, releases),
        ledger_sequence,
    };
    SpendingDocument {
        unit: spec.privacy.unit,
        delta: spec.privacy.delta,
        epsilon_planned: epsilons.epsilon(spec, lattice, Releases::planned(spec)),
        tenants: tenants.into_iter().map(row).collect(),
    }
}
