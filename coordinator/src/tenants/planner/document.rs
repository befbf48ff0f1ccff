//! What is planned from, and the plan.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tributary_protocol::id::TenantId;

use super::{LEVELS, PlanError, search};
use crate::tenants::{ComputeIsolation, DataIsolation, Isolation, ModelIsolation};

/// A file for `tenant plan`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanDocument {
    /// What the levels of data cost.
    pub data: ResourceCosts,
    /// What the levels of models cost.
    pub model: ResourceCosts,
    /// What the levels of computation cost.
    pub compute: ResourceCosts,
    /// Who is planned for.
    #[serde(rename = "tenant")]
    pub tenants: Vec<TenantDemand>,
}

/// What the levels of one resource cost, in any one unit of money or work.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceCosts {
    /// Overhead of a tenant at level 0, 1 and 2, for each period.
    pub overhead: [f64; LEVELS],
    /// Which part of its demand a tenant at level 0, 1 and 2 puts on what is shared, 0 to 1.
    pub share: [f64; LEVELS],
    /// How much shared demand a period carries, in units of demand.
    pub capacity: f64,
    /// What a unit of demand beyond that costs.
    pub conflict: f64,
}

/// One tenant.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantDemand {
    /// Who.
    pub name: TenantId,
    /// The lowest levels that it accepts; those that are recorded with it if the file has none.
    pub floors: Option<Floors>,
    /// What it asks for in each period.
    pub demand: Demand,
}

/// The lowest levels that a tenant accepts, by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Floors {
    /// Of its data.
    pub data: DataIsolation,
    /// Of its model.
    pub model: ModelIsolation,
    /// Of what computes for it.
    pub compute: ComputeIsolation,
}

impl From<Floors> for Isolation {
    fn from(floors: Floors) -> Self {
        let Floors { data, model, compute } = floors;
        Self { data, model, compute }
    }
}

/// Demand over time, one number a period, in any units; the same periods for every tenant.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demand {
    /// For data.
    pub data: Vec<f64>,
    /// For models.
    pub model: Vec<f64>,
    /// For computation.
    pub compute: Vec<f64>,
}

/// The levels of every tenant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// By tenant, in the order of the document.
    pub tenants: Vec<Allotment>,
    /// What it costs over all periods.
    pub cost: f64,
    /// The part of it that is overhead.
    pub overhead: f64,
    /// The part of it that is conflict over what is shared.
    pub conflict: f64,
    /// What it would cost with every tenant at its floors.
    pub cost_at_floors: f64,
    /// What it would cost with every tenant at the top.
    pub cost_at_top: f64,
    /// Whether every combination was tried; else a cheaper plan may exist.
    pub exhaustive: bool,
}

/// The levels of one tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Allotment {
    /// Who.
    pub name: TenantId,
    /// Its levels.
    pub isolation: Isolation,
}

const DATA: [DataIsolation; LEVELS] =
    [DataIsolation::SharedStore, DataIsolation::OwnKeyspace, DataIsolation::OwnDatabase];
const MODEL: [ModelIsolation; LEVELS] =
    [ModelIsolation::BaseOnly, ModelIsolation::Adapter, ModelIsolation::IndependentCopy];
const COMPUTE: [ComputeIsolation; LEVELS] = [
    ComputeIsolation::SharedQueue,
    ComputeIsolation::DedicatedWorker,
    ComputeIsolation::DedicatedDevice,
];

/// Plans the levels of all tenants.
///
/// - `recorded`: the floors of a tenant of which the document gives none
///
/// # Errors
/// [`PlanError`] naming what does not fit.
pub fn plan(
    document: &PlanDocument,
    recorded: impl Fn(&TenantId) -> Isolation,
) -> Result<Plan, PlanError> {
    let tenants = &document.tenants;
    let first = tenants.first().ok_or(PlanError::Empty)?;
    let mut names = BTreeSet::new();
    if let Some(twice) = tenants.iter().find(|tenant| !names.insert(&tenant.name)) {
        return Err(PlanError::Twice { tenant: twice.name.to_string() });
    }
    let floors: Vec<Isolation> = tenants
        .iter()
        .map(|tenant| tenant.floors.map_or_else(|| recorded(&tenant.name), Isolation::from))
        .collect();
    let solve = |resource,
                 costs: &ResourceCosts,
                 demand: fn(&Demand) -> &Vec<f64>,
                 floor: fn(&Isolation) -> usize| {
        costs.check(resource)?;
        let expected = demand(&first.demand).len();
        if expected == 0 {
            return Err(PlanError::Empty);
        }
        for tenant in tenants {
            let demand = demand(&tenant.demand);
            if demand.len() != expected {
                let (tenant, found) = (tenant.name.to_string(), demand.len());
                return Err(PlanError::Periods { tenant, resource, found, expected });
            }
            let field = || format!("tenant.{}.demand.{resource}", tenant.name);
            demand.iter().try_for_each(|&value| in_range(field, value, f64::MAX, "0 or more"))?;
        }
        let demands = tenants.iter().map(|tenant| demand(&tenant.demand).as_slice()).collect();
        let floors = floors.iter().map(floor).collect();
        Ok(search::Problem { costs, demands, floors }.solve())
    };
    let data = solve("data", &document.data, |demand| &demand.data, |floor| floor.data as usize)?;
    let model =
        solve("model", &document.model, |demand| &demand.model, |floor| floor.model as usize)?;
    let compute = solve(
        "compute",
        &document.compute,
        |demand| &demand.compute,
        |floor| floor.compute as usize,
    )?;
    let allot = |(index, tenant): (usize, &TenantDemand)| Allotment {
        name: tenant.name.clone(),
        isolation: Isolation {
            data: DATA[data.levels[index]],
            model: MODEL[model.levels[index]],
            compute: COMPUTE[compute.levels[index]],
        },
    };
    let all = [&data, &model, &compute];
    let total = |part: fn(&search::Solution) -> f64| all.iter().map(|it| part(it)).sum::<f64>();
    Ok(Plan {
        tenants: tenants.iter().enumerate().map(allot).collect(),
        cost: total(|it| it.overhead + it.conflict),
        overhead: total(|it| it.overhead),
        conflict: total(|it| it.conflict),
        cost_at_floors: total(|it| it.at_floors),
        cost_at_top: total(|it| it.at_top),
        exhaustive: all.iter().all(|it| it.exhaustive),
    })
}

impl ResourceCosts {
    fn check(&self, resource: &str) -> Result<(), PlanError> {
        let field = |name: &'static str| move || format!("{resource}.{name}");
        for overhead in self.overhead {
            in_range(field("overhead"), overhead, f64::MAX, "0 or more")?;
        }
        for share in self.share {
            in_range(field("share"), share, 1.0, "0 to 1")?;
        }
        in_range(field("capacity"), self.capacity, f64::MAX, "0 or more")?;
        in_range(field("conflict"), self.conflict, f64::MAX, "0 or more")
    }
}

fn in_range(
    field: impl FnOnce() -> String,
    value: f64,
    max: f64,
    range: &'static str,
) -> Result<(), PlanError> {
    // NaN is in no range.
    if (0.0..=max).contains(&value) {
        return Ok(());
    }
    Err(PlanError::OutOfRange { field: field(), value, range })
}
