//! One line of the ledger: its fields.

use serde::{Deserialize, Serialize};

use super::RunSteps;
use crate::{
    chain::{ChainRecord, hex},
    mechanism::PrivacyEvent,
};

/// Separates the hashes of this format from all others.
const GENESIS_CONTEXT: &str = "tributary 2026 privacy ledger, version 1, genesis";

/// What leaves in a round; each kind is debited once a round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReleaseKind {
    /// The client update.
    #[default]
    Update,
    /// Metrics of the base on the tenant's records.
    Evaluation,
}

impl ReleaseKind {
    /// Whether the record may leave the kind out.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
    const fn is_update(&self) -> bool {
        matches!(self, Self::Update)
    }
}

/// A debit that is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct DebitRequest {
    /// The dataset that pays.
    pub dataset: String,
    /// The job that asks.
    pub job: String,
    /// Its round.
    pub round: u64,
    /// What is to leave.
    pub kind: ReleaseKind,
    /// The privacy unit: `record` or `tenant`.
    pub unit: String,
    /// Everything that the release reveals beside its run.
    pub events: Vec<PrivacyEvent>,
    /// Its steps of a run with correlated noise, if it is part of one.
    pub run: Option<RunSteps>,
    /// BLAKE3 hash of the bytes that are to leave.
    pub release: [u8; 32],
}

/// A debit that was recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LedgerEntry {
    /// Counts from 1.
    pub sequence: u64,
    /// Hash of the record before.
    #[serde(with = "hex")]
    pub previous: [u8; 32],
    /// When it was recorded, in milliseconds since the Unix epoch; never decreases.
    pub recorded_ms: u64,
    /// The owner of the ledger.
    pub tenant: String,
    /// The dataset that paid.
    pub dataset: String,
    /// The job that asked.
    pub job: String,
    /// Its round.
    pub round: u64,
    /// What left; absent in a line for the update.
    #[serde(default, skip_serializing_if = "ReleaseKind::is_update")]
    pub kind: ReleaseKind,
    /// The privacy unit: `record` or `tenant`.
    pub unit: String,
    /// Everything that the release reveals beside its run.
    pub events: Vec<PrivacyEvent>,
    /// Its steps of a run with correlated noise; absent in a line if it is part of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunSteps>,
    /// BLAKE3 hash of the bytes that may leave.
    #[serde(with = "hex")]
    pub release: [u8; 32],
}

impl LedgerEntry {
    pub(super) fn new(
        sequence: u64,
        previous: [u8; 32],
        tenant: String,
        recorded_ms: u64,
        request: DebitRequest,
    ) -> Self {
        let DebitRequest { dataset, job, round, kind, unit, events, run, release } = request;
        Self {
            sequence,
            previous,
            recorded_ms,
            tenant,
            dataset,
            job,
            round,
            kind,
            unit,
            events,
            run,
            release,
        }
    }
}

impl ChainRecord for LedgerEntry {
    fn sequence(&self) -> u64 {
        self.sequence
    }

    fn previous(&self) -> [u8; 32] {
        self.previous
    }
}

/// The hash that the first record of a tenant's ledger follows.
pub(super) fn genesis(tenant: &str) -> [u8; 32] {
    blake3::derive_key(GENESIS_CONTEXT, tenant.as_bytes())
}
