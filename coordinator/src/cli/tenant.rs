//! `tenant`: who may take part.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tributary_protocol::id::{Region, TenantId};

use super::{Common, client::Client, print, table};
use tributary_coordinator::{
    api::{NewTenant, StopTenant, TenantAdded, TenantDocument, TenantTerms},
    tenants::{
        ComputeIsolation, DataIsolation, Isolation, ModelIsolation, TenantRole,
        planner::{self, Allotment, Plan, PlanDocument},
    },
};

#[derive(Debug, Subcommand)]
pub(super) enum TenantCommand {
    /// Admit a tenant, or invite a known one anew; prints a one-time enrolment token.
    Add {
        /// Its id: lower-case letters, digits and '-'.
        tenant: TenantId,
        /// Where its agent and data are.
        #[arg(long)]
        region: Region,
    },
    /// List tenants.
    List,
    /// Stop a tenant until it is resumed; cuts its connection at once.
    Suspend {
        /// Its id.
        tenant: TenantId,
        /// Why; the tenant hears it.
        #[arg(long)]
        reason: String,
    },
    /// Let a suspended tenant act again.
    Resume {
        /// Its id.
        tenant: TenantId,
    },
    /// End a tenant's certificate and invitation; cuts its connection at once.
    Revoke {
        /// Its id.
        tenant: TenantId,
        /// Why; the tenant hears it.
        #[arg(long)]
        reason: String,
    },
    /// Change what a tenant may do and use; what is not named stays.
    Set {
        /// Its id.
        tenant: TenantId,
        #[command(flatten)]
        terms: Terms,
    },
    /// Choose the cheapest isolation levels that meet every tenant's floors, for a demand that changes
    /// over time. Changes nothing; needs no coordinator if the file gives all floors.
    Plan {
        /// Costs, demands and floors, as in examples/tenancy/plan.toml.
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(super) struct Terms {
    /// What it takes part in: train, serve; repeat for both.
    #[arg(long = "role", value_parser = named::<TenantRole>)]
    roles: Vec<TenantRole>,
    /// Bytes of model and update files a day, or `none`.
    #[arg(long)]
    bytes_per_day: Option<Quota>,
    /// Rounds that it is invited to a day, or `none`.
    #[arg(long)]
    rounds_per_day: Option<Quota>,
    /// Connections, answers and transfers a day, or `none`.
    #[arg(long)]
    requests_per_day: Option<Quota>,
    /// Its data, at least: shared-store, own-keyspace, own-database.
    #[arg(long, value_parser = named::<DataIsolation>)]
    data_isolation: Option<DataIsolation>,
    /// Its model, at least: base-only, adapter, independent-copy.
    #[arg(long, value_parser = named::<ModelIsolation>)]
    model_isolation: Option<ModelIsolation>,
    /// What computes for it, at least: shared-queue, dedicated-worker, dedicated-device.
    #[arg(long, value_parser = named::<ComputeIsolation>)]
    compute_isolation: Option<ComputeIsolation>,
}

/// A number, or `none` for no limit.
#[derive(Debug, Clone, Copy)]
struct Quota(Option<u64>);

impl FromStr for Quota {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(if text == "none" { None } else { Some(text.parse()?) }))
    }
}

/// Reads one of the names that the documents use too.
fn named<T: DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    serde_json::from_value(text.into())
}

impl Terms {
    fn apply(self, terms: &mut TenantTerms) {
        if !self.roles.is_empty() {
            terms.roles = self.roles.into_iter().collect();
        }
        let TenantTerms { quotas, isolation, .. } = terms;
        for (wish, quota) in [
            (self.bytes_per_day, &mut quotas.bytes_per_day),
            (self.rounds_per_day, &mut quotas.rounds_per_day),
            (self.requests_per_day, &mut quotas.requests_per_day),
        ] {
            *quota = wish.map_or(*quota, |Quota(wish)| wish);
        }
        isolation.data = self.data_isolation.unwrap_or(isolation.data);
        isolation.model = self.model_isolation.unwrap_or(isolation.model);
        isolation.compute = self.compute_isolation.unwrap_or(isolation.compute);
    }
}

/// Plans isolation levels from a file, and from the coordinator's records where it gives no floors.
fn plan(common: &Common, file: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file);
    let text = text.with_context(|| format!("cannot read {}", file.display()))?;
    let document: PlanDocument =
        toml::from_str(&text).with_context(|| format!("{} is not valid", file.display()))?;
    let mut recorded = BTreeMap::new();
    if document.tenants.iter().any(|tenant| tenant.floors.is_none()) {
        let tenants: Vec<TenantDocument> = Client::connect(common)?.get("/v1/tenants")?;
        recorded.extend(tenants.into_iter().map(|tenant| (tenant.tenant, tenant.isolation)));
    }
    let floors = |tenant: &TenantId| recorded.get(tenant).copied().unwrap_or_default();
    let plan = planner::plan(&document, floors)?;
    print(common, &plan, |plan| {
        let row = |allotment: &Allotment| {
            let Isolation { data, model, compute } = allotment.isolation;
            [allotment.name.to_string(), name(&data), name(&model), name(&compute)]
        };
        let rows = table(["tenant", "data", "model", "compute"], plan.tenants.iter().map(row));
        let Plan { cost, overhead, conflict, cost_at_floors, cost_at_top, exhaustive, .. } = plan;
        let proof = if *exhaustive {
            "no combination of levels is cheaper"
        } else {
            "too many tenants to try every combination; a cheaper plan may exist"
        };
        format!(
            "{rows}\ncosts {cost:.2}: {overhead:.2} of overhead, {conflict:.2} of conflict \
             (everybody at the floors: {cost_at_floors:.2}, at the top: {cost_at_top:.2}); {proof}"
        )
    });
    Ok(())
}

/// A level as the documents name it.
fn name<T: Serialize>(level: &T) -> String {
    let value = serde_json::to_value(level).expect("a name");
    value.as_str().unwrap_or_default().to_owned()
}

fn change<B: Serialize>(
    common: &Common,
    client: &Client,
    tenant: &TenantId,
    what: &str,
    body: &B,
) -> anyhow::Result<()> {
    let changed: TenantDocument =
        client.post_json(&format!("/v1/tenants/{tenant}/{what}"), body)?;
    print(common, &changed, describe);
    Ok(())
}

fn describe(tenant: &TenantDocument) -> String {
    let because = tenant.reason.as_ref().map_or_else(String::new, |why| format!(": {why}"));
    format!("{} is {}{because}; used today: {}", tenant.tenant, tenant.standing, used(tenant))
}

fn row(tenant: &TenantDocument) -> [String; 7] {
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    [
        tenant.tenant.to_string(),
        tenant.region.to_string(),
        tenant.standing.clone(),
        yes(tenant.enrolled),
        yes(tenant.connected),
        tenant.ledger_sequence.to_string(),
        used(tenant),
    ]
}

fn used(tenant: &TenantDocument) -> String {
    let TenantDocument { used, quotas, .. } = tenant;
    [
        (used.bytes, quotas.bytes_per_day, "bytes"),
        (used.rounds, quotas.rounds_per_day, "rounds"),
        (used.requests, quotas.requests_per_day, "requests"),
    ]
    .map(|(used, quota, unit)| match quota {
        Some(quota) => format!("{used} of {quota} {unit}"),
        None => format!("{used} {unit}"),
    })
    .join(", ")
}

impl TenantCommand {
    pub(super) fn run(self, common: &Common) -> anyhow::Result<()> {
        if let Self::Plan { file } = &self {
            return plan(common, file);
        }
        let client = Client::connect(common)?;
        match self {
            Self::Plan { .. } => unreachable!("answered above"),
            Self::Add { tenant, region } => {
                let added: TenantAdded =
                    client.post_json("/v1/tenants", &NewTenant { tenant, region })?;
                print(common, &added, |added| {
                    format!(
                        "one-time enrolment token of {} (7 days):\n{}\nat its site: tributary-agent enroll --dir DIR --coordinator HOST:PORT --token TOKEN",
                        added.tenant, added.token
                    )
                });
            }
            Self::List => {
                let tenants: Vec<TenantDocument> = client.get("/v1/tenants")?;
                print(common, &tenants, |tenants| {
                    let header = [
                        "tenant",
                        "region",
                        "standing",
                        "enrolled",
                        "connected",
                        "ledger entries",
                        "used today",
                    ];
                    table(header, tenants.iter().map(row))
                });
            }
            Self::Suspend { tenant, reason } => {
                change(common, &client, &tenant, "suspend", &StopTenant { reason })?;
            }
            Self::Resume { tenant } => {
                change(common, &client, &tenant, "resume", &Value::Null)?;
            }
            Self::Revoke { tenant, reason } => {
                change(common, &client, &tenant, "revoke", &StopTenant { reason })?;
            }
            Self::Set { tenant, terms } => {
                let tenants: Vec<TenantDocument> = client.get("/v1/tenants")?;
                let known = tenants.into_iter().find(|known| known.tenant == tenant);
                let known = known.with_context(|| {
                    format!("there is no tenant {tenant}; `tenant list` shows who there is")
                })?;
                let TenantDocument { roles, quotas, isolation, .. } = known;
                let mut wish = TenantTerms { roles, quotas, isolation };
                terms.apply(&mut wish);
                let path = format!("/v1/tenants/{tenant}");
                let changed: TenantDocument = client.put_json(&path, &wish)?;
                print(common, &changed, describe);
            }
        }
        Ok(())
    }
}
