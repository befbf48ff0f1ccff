//! `audit`: what was done and decided. Works on the folder, beside a running coordinator or without
//! one.

use std::str::FromStr;

use anyhow::Context;
use clap::Subcommand;
use tributary_privacy::chain::ChainHead;
use tributary_protocol::{id::Digest, time::Timestamp};

use super::{Common, date, print, table};
use tributary_coordinator::{
    api::AuditHead,
    audit::{AuditEntry, AuditReader, Outcome},
};

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Verify every entry: an edited, removed or reordered line is found and named.
    Verify {
        /// A head that an earlier `audit verify` printed: finds a log that was cut or rewritten.
        #[arg(long, value_name = "SEQUENCE:HASH")]
        head: Option<NotedHead>,
    },
    /// Show the newest entries.
    Show {
        /// How many.
        #[arg(long, default_value_t = 50)]
        last: usize,
    },
}

/// A head as `SEQUENCE:HASH`.
#[derive(Debug, Clone, Copy)]
pub(super) struct NotedHead(ChainHead);

impl FromStr for NotedHead {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (sequence, hash) = text.split_once(':').context("a head looks like SEQUENCE:HASH")?;
        let hash: Digest = hash.parse()?;
        let sequence = sequence.parse().context("a head begins with a number")?;
        Ok(Self(ChainHead { sequence, hash: *hash.as_bytes() }))
    }
}

impl AuditCommand {
    pub(super) fn run(self, common: &Common) -> anyhow::Result<()> {
        let folder = common.folder();
        folder.config()?;
        let authority = folder.authority()?.fingerprint();
        let reader = |noted| AuditReader::new(folder.path(), authority, noted);
        match self {
            Self::Verify { head } => {
                let head = reader(head.map(|NotedHead(head)| head)).verify()?;
                print(common, &AuditHead::new(head), |head| {
                    let AuditHead { sequence, hash } = head;
                    format!("the audit log's {sequence} entries are whole, head {sequence}:{hash}")
                });
            }
            Self::Show { last } => {
                let entries = reader(None).tail(last)?;
                print(common, &entries, |entries| {
                    let header = ["entry", "when", "who", "what", "on", "outcome", ""];
                    table(header, entries.iter().map(row))
                });
            }
        }
        Ok(())
    }
}

fn row(entry: &AuditEntry) -> [String; 7] {
    let act = serde_json::to_value(entry.act).expect("a name");
    let outcome = match entry.outcome {
        Outcome::Done => "done",
        Outcome::Refused => "refused",
    };
    [
        entry.sequence.to_string(),
        date(Timestamp(entry.recorded_ms)),
        format!("{} ({})", entry.actor.name, entry.actor.role),
        act.as_str().unwrap_or_default().to_owned(),
        entry.subject.clone(),
        outcome.to_owned(),
        entry.detail.clone(),
    ]
}
