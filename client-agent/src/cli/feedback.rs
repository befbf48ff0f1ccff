//! `tributary-agent feedback`: outcomes of predictions, beside a running agent or without one.

use std::process::ExitCode;

use serde_json::{Value, json};
use tributary_protocol::transport::process;

use super::{
    CliError,
    options::{FeedbackCommand, SiteOptions},
    output,
};
use crate::{
    calendar::date,
    config::{Config, Overrides},
    durable_file::{Access, write_durably},
    feedback::{FeedbackStore, Label, Record, read_labelled},
};

pub(super) fn execute(command: FeedbackCommand) -> Result<ExitCode, CliError> {
    match command {
        FeedbackCommand::List { site, limit } => list(&site, limit)?,
        FeedbackCommand::Export { site, file } => {
            let records = labelled(&site)?;
            let lines: Vec<String> =
                records.iter().map(|one| exported(one).to_string() + "\n").collect();
            write_durably(&file, lines.concat().as_bytes(), Access::Owner)?;
            if site.json {
                output::json(&json!({"file": file, "labelled": records.len()}))?;
            } else {
                let (count, file) = (records.len(), file.display());
                output::line(&format!("{count} labelled predictions written to {file}"))?;
            }
        }
        FeedbackCommand::Delete { site, id } => {
            let directory = site.site().feedback();
            let config = Config::load(&site.site(), &Overrides::default())?;
            let retention = config.feedback.unwrap_or_default();
            // While an agent runs it holds the store; the error says which process that is.
            let store = FeedbackStore::open(&directory, retention, process::now())?;
            store.delete(id, process::now())?;
            if site.json {
                output::json(&json!({"id": id, "deleted": true}))?;
            } else {
                output::line(&format!("prediction {id} is gone"))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Labelled records, the oldest prediction first.
fn labelled(site: &SiteOptions) -> Result<Vec<Record>, CliError> {
    let mut records = read_labelled(&site.site().feedback())?;
    records.sort_by_key(|record| record.id);
    Ok(records)
}

fn list(site: &SiteOptions, limit: usize) -> Result<(), CliError> {
    let records = labelled(site)?;
    let shown = records.iter().rev().take(limit);
    if site.json {
        let shown: Vec<Value> = shown.map(summary).collect();
        return output::json(&json!({"labelled": records.len(), "feedback": shown}));
    }
    let row = |record: &Record| {
        vec![
            record.id.to_string(),
            date(record.id.at().0),
            record.dataset.as_ref().map(ToString::to_string).unwrap_or_default(),
            format!("{} ({:.2})", record.class, record.probability),
            record.label.map(|label| label.class.to_string()).unwrap_or_default(),
        ]
    };
    output::table(&["prediction", "made", "dataset", "answered", "true"], shown.map(row).collect())
}

fn summary(record: &Record) -> Value {
    let Record { id, dataset, base, adapter, class, probability, label, .. } = record;
    json!({
        "id": id, "made_ms": id.at(), "dataset": dataset, "base": base, "adapter": adapter,
        "class": class, "probability": probability,
        "label": label.map(|Label { class, .. }| class),
        "told_ms": label.map(|Label { told, .. }| told),
    })
}

fn exported(record: &Record) -> Value {
    let mut document = summary(record);
    document["features"] = record.features.clone().into();
    document
}
