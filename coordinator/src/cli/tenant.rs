//! `tenant`: who may take part.

use clap::Subcommand;
use tributary_protocol::id::{Region, TenantId};

use super::{Common, client::Client, print, table};
use tributary_coordinator::api::{NewTenant, TenantAdded, TenantDocument};

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
}

impl TenantCommand {
    pub(super) fn run(self, common: &Common) -> anyhow::Result<()> {
        let client = Client::connect(common)?;
        match self {
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
                    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
                    table(
                        ["tenant", "region", "enrolled", "connected", "ledger entries"],
                        tenants.iter().map(|tenant| {
                            [
                                tenant.tenant.to_string(),
                                tenant.region.to_string(),
                                yes(tenant.enrolled),
                                yes(tenant.connected),
                                tenant.ledger_sequence.to_string(),
                            ]
                        }),
                    )
                });
            }
        }
        Ok(())
    }
}
