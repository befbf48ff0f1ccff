//! `token`: who may use the HTTP API.

use clap::Subcommand;
use serde_json::Value;
use tributary_protocol::id::{TenantId, TokenName};

use super::{Common, client::Client, date, print, table};
use tributary_coordinator::{
    access::Role,
    api::{NewToken, TokenAdded, TokenDocument},
};

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make an access token; it is shown once.
    Add {
        /// Its name: lower-case letters, digits and '-'.
        name: TokenName,
        /// What it may do: viewer, operator, tenant-admin or auditor.
        #[arg(long)]
        role: Role,
        /// A tenant that a tenant-admin looks after; repeat for more.
        #[arg(long = "tenant")]
        tenants: Vec<TenantId>,
        /// How many days it works.
        #[arg(long, default_value_t = 90)]
        days: u32,
    },
    /// List access tokens, without their secrets.
    List,
    /// Stop an access token at once.
    Revoke {
        /// Its name.
        name: TokenName,
    },
}

impl TokenCommand {
    pub(super) fn run(self, common: &Common) -> anyhow::Result<()> {
        let client = Client::connect(common)?;
        match self {
            Self::Add { name, role, tenants, days } => {
                let tenants = tenants.into_iter().collect();
                let wish = NewToken { name, role, tenants, days };
                let added: TokenAdded = client.post_json("/v1/tokens", &wish)?;
                print(common, &added, |added| {
                    format!(
                        "access token of {} ({}), until {}:\n{}\nsend it as: authorization: Bearer TOKEN",
                        added.name,
                        added.role,
                        date(added.expires),
                        added.token
                    )
                });
            }
            Self::List => {
                let tokens: Vec<TokenDocument> = client.get("/v1/tokens")?;
                print(common, &tokens, |tokens| {
                    table(["name", "role", "tenants", "until", "state"], tokens.iter().map(row))
                });
            }
            Self::Revoke { name } => {
                let revoked: TokenDocument =
                    client.post_json(&format!("/v1/tokens/{name}/revoke"), &Value::Null)?;
                print(common, &revoked, |revoked| format!("revoked {}", revoked.name));
            }
        }
        Ok(())
    }
}

fn row(token: &TokenDocument) -> [String; 5] {
    let tenants: Vec<_> = token.tenants.iter().map(ToString::to_string).collect();
    let state = match (token.active, token.revoked) {
        (true, _) => "active",
        (false, Some(_)) => "revoked",
        (false, None) => "expired",
    };
    [
        token.name.to_string(),
        token.role.to_string(),
        tenants.join(", "),
        date(token.expires),
        state.to_owned(),
    ]
}
