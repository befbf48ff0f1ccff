//! `tributary-agent enroll`.

use std::process::ExitCode;

use serde_json::json;
use tributary_protocol::enrollment::EnrollmentToken;

use super::{CliError, options::EnrollOptions, output};
use crate::{
    durable_file::{FileError, create_directory},
    identity::{Identity, enroll},
    receipt_file::ReceiptFile,
    site::Site,
};

pub(super) async fn execute(options: &EnrollOptions) -> Result<ExitCode, CliError> {
    let site = options.site.site();
    let token: EnrollmentToken = options.token.parse()?;
    if !options.force {
        // Before the one-time token is used up.
        Identity::expect_none(&site)?;
    }
    create_directory(site.directory())?;
    let enrollment = enroll(&options.coordinator, &token).await?;
    Identity::save(&site, &enrollment, options.force)?;
    let identity = Identity::load(&site)?;
    set_aside_foreign_receipt(&site, &identity)?;
    let (tenant, address) = (&identity.coordinator.tenant, &identity.coordinator.address);
    if options.site.json {
        output::json(&json!({
            "tenant": tenant, "coordinator": address, "certificate_expires_ms": identity.expires,
        }))?;
    } else {
        output::line(&format!("enrolled as tenant {tenant} with the coordinator at {address}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Another authority's receipt proves nothing to the new one; it stays readable beside it.
fn set_aside_foreign_receipt(site: &Site, identity: &Identity) -> Result<(), CliError> {
    let (path, tenant) = (site.receipt(), identity.coordinator.tenant.clone());
    if ReceiptFile::new(path.clone(), tenant, &identity.authority).newest().is_err() {
        std::fs::rename(&path, path.with_extension("previous.json"))
            .map_err(FileError::on("set aside", &path))?;
    }
    Ok(())
}
