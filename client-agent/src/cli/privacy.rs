//! `tributary-agent privacy show|verify`: reads a copy, so it works beside a running agent.

use std::process::ExitCode;

use serde_json::{Value, json};
use tributary_privacy::ledger::{Ledger, MemoryLedgerStore};
use tributary_protocol::transport::process;

use super::{
    CliError,
    options::{PrivacyCommand, SiteOptions},
    output,
};
use crate::{durable_file::read_bytes, identity::Identity, policy::Policy, site::Site};

pub(super) fn execute(command: &PrivacyCommand) -> Result<ExitCode, CliError> {
    match command {
        PrivacyCommand::Show(options) => show(options),
        PrivacyCommand::Verify(options) => verify(options),
    }
}

/// A verified copy of a site's ledger, and whether its file ends in an unfinished record.
pub(super) fn copy(site: &Site) -> Result<(Ledger<MemoryLedgerStore>, bool), CliError> {
    let tenant = Identity::load(site)?.coordinator.tenant;
    let path = site.ledger();
    let bytes = if path.exists() { read_bytes(&path)? } else { Vec::new() };
    let length = bytes.len();
    let store = MemoryLedgerStore::with_bytes(bytes);
    let ledger = Ledger::open(store.clone(), tenant.as_str())?;
    Ok((ledger, store.bytes().len() != length))
}

fn show(options: &SiteOptions) -> Result<ExitCode, CliError> {
    let site = options.site();
    let (ledger, _) = copy(&site)?;
    let policy = Policy::load(&site)?;
    let now_ms = process::now().0;
    let mut datasets = Vec::new();
    for (name, dataset) in &policy.datasets {
        let budget = dataset.budget();
        let spent = ledger.spent(name.as_str(), now_ms, &budget)?;
        datasets.push((name, budget, spent));
    }
    if options.json {
        let datasets: Vec<Value> = datasets
            .iter()
            .map(|(name, budget, spent)| {
                json!({
                    "dataset": name, "epsilon_spent": spent, "epsilon_max": budget.epsilon_max,
                    "epsilon_left": (budget.epsilon_max - spent).max(0.0), "delta": budget.delta,
                    "window_days": budget.window_days,
                })
            })
            .collect();
        output::json(&json!({
            "tenant": ledger.tenant(), "head": ledger.head(), "datasets": datasets,
            "neighbouring_relation": "add-or-remove-one", "entries": ledger.entries(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = datasets.iter().map(|(name, budget, spent)| {
        let left = (budget.epsilon_max - spent).max(0.0);
        let window =
            budget.window_days.map_or_else(|| "for ever".to_owned(), |days| format!("{days} days"));
        vec![
            name.to_string(),
            format!("{spent:.4}"),
            format!("{left:.4}"),
            format!("{}", budget.epsilon_max),
            format!("{:e}", budget.delta),
            window,
        ]
    });
    output::line("Spent (neighbours differ by adding or removing one unit):")?;
    let header = ["dataset", "epsilon spent", "left", "allowed", "delta", "counted"];
    output::table(&header, rows.collect())?;
    let rows = ledger.entries().iter().map(|entry| {
        vec![
            entry.sequence.to_string(),
            entry.recorded_ms.to_string(),
            entry.dataset.clone(),
            entry.job.clone(),
            entry.round.to_string(),
            entry.unit.clone(),
            data_encoding::HEXLOWER.encode(&entry.release[..6]),
        ]
    });
    let header = ["entry", "recorded (ms)", "dataset", "job", "round", "unit", "release"];
    output::table(&header, rows.collect())?;
    Ok(ExitCode::SUCCESS)
}

fn verify(options: &SiteOptions) -> Result<ExitCode, CliError> {
    let (ledger, torn) = copy(&options.site())?;
    let head = ledger.head();
    if options.json {
        output::json(&json!({
            "valid": true, "entries": head.sequence, "head": head, "unfinished_record": torn,
        }))?;
    } else {
        let note =
            if torn { "; an unfinished last record will be settled on the next start" } else { "" };
        let hash = data_encoding::HEXLOWER.encode(&head.hash);
        output::line(&format!(
            "the ledger's {} entries are whole, head {hash}{note}",
            head.sequence
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
