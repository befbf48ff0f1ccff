//! `tributary-agent privacy show|verify`: reads a copy, so it works beside a running agent.

mod draw;

use std::{
    io::{IsTerminal, stdout},
    process::ExitCode,
};

use serde_json::json;
use tributary_privacy::ledger::{Ledger, MemoryChainStore};
use tributary_protocol::{receipt::Receipt, transport::process};

use super::{
    CliError,
    options::{PrivacyCommand, SiteOptions},
    output,
};
use crate::{
    calendar::moment, durable_file::read_bytes, identity::Identity, policy::Policy,
    receipt_file::ReceiptFile, refusals::RefusalFile, site::Site, statement::Statement,
};

pub(super) fn execute(command: &PrivacyCommand) -> Result<ExitCode, CliError> {
    match command {
        PrivacyCommand::Show(options) => show(options),
        PrivacyCommand::Verify(options) => verify(options),
    }
}

/// A verified copy of a site's ledger.
pub(super) struct Copy {
    /// The ledger.
    pub(super) ledger: Ledger<MemoryChainStore>,
    /// Whether the file ends in an unfinished record.
    pub(super) torn: bool,
    receipts: ReceiptFile,
}

impl Copy {
    /// Reads the ledger and verifies its chain.
    pub(super) fn read(site: &Site) -> Result<Self, CliError> {
        let identity = Identity::load(site)?;
        let tenant = identity.coordinator.tenant;
        let path = site.ledger();
        let bytes = if path.exists() { read_bytes(&path)? } else { Vec::new() };
        let length = bytes.len();
        let store = MemoryChainStore::with_bytes(bytes);
        let ledger = Ledger::open(store.clone(), tenant.as_str())?;
        let receipts = ReceiptFile::new(site.receipt(), tenant, &identity.authority);
        Ok(Self { ledger, torn: store.bytes().len() != length, receipts })
    }

    /// The newest receipt, after comparing the ledger with it: an older copy is an error.
    pub(super) fn receipt(&self) -> Result<Option<Receipt>, CliError> {
        Ok(self.receipts.check(&self.ledger)?)
    }
}

fn show(options: &SiteOptions) -> Result<ExitCode, CliError> {
    let site = options.site();
    let copy = Copy::read(&site)?;
    let policy = Policy::load(&site)?;
    // What is spent is shown in any case; a ledger that is too old is said with it.
    let receipt = copy.receipt();
    let kept = receipt.as_ref().ok().and_then(Option::as_ref);
    let refusals = RefusalFile::new(site.refusals()).read()?;
    let statement = Statement::new(&copy.ledger, &policy, kept, refusals, process::now())?;
    if options.json {
        output::json(&statement)?;
    } else {
        let screen = draw::Screen::of(stdout().is_terminal());
        output::line(draw::statement(&statement, screen).trim_end())?;
    }
    receipt.map(|_| ExitCode::SUCCESS)
}

fn verify(options: &SiteOptions) -> Result<ExitCode, CliError> {
    let copy = Copy::read(&options.site())?;
    let receipt = copy.receipt()?;
    let (head, torn) = (copy.ledger.head(), copy.torn);
    if options.json {
        output::json(&json!({
            "valid": true, "entries": head.sequence, "head": head, "unfinished_record": torn,
            "receipt": receipt.map(|receipt| json!({
                "sequence": receipt.head.sequence, "signed_ms": receipt.signed,
            })),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let note =
        if torn { "; an unfinished last record will be settled on the next start" } else { "" };
    let hash = data_encoding::HEXLOWER.encode(&head.hash);
    output::line(&format!("the ledger's {} entries are whole, head {hash}{note}", head.sequence))?;
    output::line(&match receipt {
        Some(receipt) => format!(
            "the coordinator countersigned entry {} on {}",
            receipt.head.sequence,
            moment(receipt.signed.0)
        ),
        None => "the coordinator has countersigned nothing yet".to_owned(),
    })?;
    Ok(ExitCode::SUCCESS)
}
