//! `tributary-agent key`: keys to the HTTP interface.

use std::process::ExitCode;

use serde_json::{Value, json};
use tributary_protocol::{time::Timestamp, transport::process};

use super::{
    CliError,
    options::{KeyCommand, NewKeyOptions},
    output,
};
use crate::{
    calendar::date,
    keys::{KeyFile, KeyRecord, KeyRole, NewKey},
};

const DAY_MS: u64 = 24 * 3_600_000;

pub(super) fn execute(command: KeyCommand) -> Result<ExitCode, CliError> {
    match command {
        KeyCommand::Add(options) => add(options)?,
        KeyCommand::List(options) => {
            let records = KeyFile::new(options.site().keys()).read()?.unwrap_or_default();
            list(&records, options.json)?;
        }
        KeyCommand::Revoke { id, site } => {
            let record = KeyFile::new(site.site().keys()).revoke(&id)?;
            if site.json {
                output::json(&document(&record, process::now()))?;
            } else {
                output::line(&format!("key {id} of tenant {} works no more", record.tenant))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn add(options: NewKeyOptions) -> Result<(), CliError> {
    let NewKeyOptions { site, tenant, role, expires_days, note } = options;
    let roles = if role.is_empty() { KeyRole::of_tenant() } else { role.into_iter().collect() };
    let now = process::now();
    let expires = expires_days.map(|days| now.after_ms(u64::from(days) * DAY_MS));
    let new = NewKey { tenant, roles, expires, note };
    let (record, key) = KeyFile::new(site.site().keys()).add(new, now)?;
    if site.json {
        let mut document = document(&record, now);
        document["key"] = key.into();
        return output::json(&document);
    }
    output::line(&key)
}

fn list(records: &[KeyRecord], as_json: bool) -> Result<(), CliError> {
    let now = process::now();
    if as_json {
        let keys: Vec<Value> = records.iter().map(|record| document(record, now)).collect();
        return output::json(&json!({"keys": keys}));
    }
    let row = |record: &KeyRecord| {
        let until = match record.expires {
            None => "revoked".to_owned(),
            Some(expires) if expires <= now => format!("{}, over", date(expires.0)),
            Some(expires) => date(expires.0),
        };
        vec![
            record.id.clone(),
            record.tenant.to_string(),
            record.roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(" "),
            date(record.created.0),
            until,
            record.note.clone().unwrap_or_default(),
        ]
    };
    let rows = records.iter().map(row).collect();
    output::table(&["key", "tenant", "roles", "made", "works until", "note"], rows)
}

fn document(record: &KeyRecord, now: Timestamp) -> Value {
    let KeyRecord { id, tenant, roles, created, expires, note, .. } = record;
    json!({
        "id": id, "tenant": tenant, "roles": roles, "created_ms": created, "expires_ms": expires,
        "expired": expires.is_some_and(|expires| expires <= now), "note": note,
    })
}
