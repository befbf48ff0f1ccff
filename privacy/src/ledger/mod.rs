//! The privacy ledger: what each dataset has spent, written durably before anything is released.
//!
//! The file is a [`crate::chain`]: an edit, a removal or a reordering breaks it. What a chain cannot
//! show, a file cut back to an older state, shows in [`Ledger::compare`] with the head that the
//! coordinator acknowledged.
//!
//! Trust: the tenant owns its ledger; the chain guards against accidents and restored backups, not
//! against a tenant that rewrites its own file with its own hands.

mod figures;
mod forecast;
mod record;
mod run;

use std::collections::{HashMap, HashSet};

use figures::Figures;
use run::Composition;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::{
    forecast::{JobRun, JobSpending},
    record::{DebitRequest, LedgerEntry, ReleaseKind},
    run::RunSteps,
};
pub use crate::chain::{ChainHead, ChainStore, DamageReason, MemoryChainStore};
use crate::{
    accountant::{AccountantError, Delta},
    chain::{ChainError, HashChain},
};

const DAY_MS: u64 = 86_400_000;

/// Says why the ledger refuses.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The store failed; whether a record was written is unknown until the ledger is reopened.
    #[error("the ledger's store failed")]
    Store {
        /// What the store said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An earlier store failure left the state unknown.
    #[error("an earlier write failed; reopen the ledger before using it")]
    NeedsReopen,
    /// A line is not a record of this ledger, or its hash is wrong.
    #[error("ledger line {line} is damaged: {reason}")]
    Damaged {
        /// Counted from 1.
        line: u64,
        /// What does not hold.
        reason: DamageReason,
    },
    /// The coordinator acknowledged more than this file holds: it is an older copy.
    #[error(
        "the ledger ends at entry {sequence}, but entry {acknowledged} was acknowledged: this is \
         a restored backup; recover the newer file"
    )]
    RestoredBackup {
        /// The last entry here.
        sequence: u64,
        /// The acknowledged entry.
        acknowledged: u64,
    },
    /// The acknowledged entry is another one than the one here.
    #[error("entry {sequence} is not the one that was acknowledged: two ledgers have diverged")]
    Forked {
        /// The entry in question.
        sequence: u64,
    },
    /// The release would exceed the budget; nothing was written.
    #[error(
        "dataset {dataset:?} has spent epsilon {epsilon_before:.4} and this release would make it \
         {epsilon_after:.4} at delta {delta:e}, above {epsilon_max}"
    )]
    BudgetExceeded {
        /// The dataset.
        dataset: String,
        /// Spent in the window so far.
        epsilon_before: f64,
        /// What it would be.
        epsilon_after: f64,
        /// The limit.
        epsilon_max: f64,
        /// The δ of all three.
        delta: f64,
    },
    /// This round of this job was debited before: send those same bytes again, or nothing.
    #[error("round {round} of job {job:?} was already debited as entry {sequence}")]
    AlreadyDebited {
        /// The job.
        job: String,
        /// The round.
        round: u64,
        /// The entry that holds the debit.
        sequence: u64,
        /// Hash of the bytes that this debit allows to leave.
        release: [u8; 32],
    },
    /// The release is no continuation of its run with correlated noise; nothing was written.
    #[error("run {run} of job {job:?} cannot be debited: {reason}")]
    Run {
        /// The job.
        job: String,
        /// Which of its runs.
        run: u64,
        /// What does not hold.
        reason: &'static str,
    },
    /// The budget's limit is not a positive number.
    #[error("epsilon_max is {epsilon_max}; it must be a positive finite number")]
    Budget {
        /// What was given.
        epsilon_max: f64,
    },
    /// The events or δ cannot be accounted.
    #[error(transparent)]
    Accountant(#[from] AccountantError),
}

impl From<ChainError> for LedgerError {
    fn from(error: ChainError) -> Self {
        match error {
            ChainError::Store { source } => Self::Store { source },
            ChainError::NeedsReopen => Self::NeedsReopen,
            ChainError::Damaged { line, reason } => Self::Damaged { line, reason },
        }
    }
}

/// What a dataset may spend.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// The most ε within the window.
    pub epsilon_max: f64,
    /// The δ at which ε is counted.
    pub delta: f64,
    /// How long a release counts, in days; `None` counts for ever.
    #[serde(default)]
    pub window_days: Option<u32>,
}

/// What a release would cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Quote {
    /// ε in the window without the release.
    pub epsilon_before: f64,
    /// ε in the window with it.
    pub epsilon_after: f64,
}

/// The ledger of one tenant over a durable store.
#[derive(Debug)]
pub struct Ledger<S> {
    chain: HashChain<S>,
    tenant: String,
    entries: Vec<LedgerEntry>,
    /// `hashes[n]` is the chain's hash after n entries.
    hashes: Vec<[u8; 32]>,
    by_round: HashMap<(String, u64, ReleaseKind), usize>,
    figures: Figures,
}

impl<S: ChainStore> Ledger<S> {
    /// Reads and verifies the whole chain.
    ///
    /// A last line without its line feed is an append that never finished, so its release never
    /// happened. If the line is complete in itself it is kept (a crash costs budget, never
    /// privacy), else it is cut off. Any other damage is an error; nothing is ever reset silently.
    ///
    /// # Errors
    /// [`LedgerError::Damaged`] names the line; [`LedgerError::Store`] if the store fails.
    pub fn open(store: S, tenant: &str) -> Result<Self, LedgerError> {
        let genesis = record::genesis(tenant);
        let (mut entries, mut hashes, mut rounds) = (Vec::new(), vec![genesis], HashSet::new());
        let examine = |entry: &LedgerEntry| {
            if entry.tenant != tenant {
                return Err(DamageReason::Tenant);
            }
            let is_new = rounds.insert((entry.job.clone(), entry.round, entry.kind));
            if is_new { Ok(()) } else { Err(DamageReason::Chain) }
        };
        let chain = HashChain::open(store, genesis, examine, |entry: LedgerEntry, hash| {
            entries.push(entry);
            hashes.push(hash);
        })?;
        let place = |(index, entry): (usize, &LedgerEntry)| {
            ((entry.job.clone(), entry.round, entry.kind), index)
        };
        let by_round = entries.iter().enumerate().map(place).collect();
        let (tenant, figures) = (tenant.to_owned(), Figures::default());
        Ok(Self { chain, tenant, entries, hashes, by_round, figures })
    }

    /// The tenant whose ledger this is.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// Where the chain ends: what the coordinator is asked to acknowledge.
    #[must_use]
    pub const fn head(&self) -> ChainHead {
        self.chain.head()
    }

    /// Every debit, oldest first; entry n has sequence number n + 1.
    #[must_use]
    pub fn entries(&self) -> &[LedgerEntry] {
        &self.entries
    }

    /// The debit of a round's update, if there was one.
    #[must_use]
    pub fn release(&self, job: &str, round: u64) -> Option<&LedgerEntry> {
        self.release_of(job, round, ReleaseKind::Update)
    }

    /// The debit of a round for one kind of release, if there was one.
    #[must_use]
    pub fn release_of(&self, job: &str, round: u64, kind: ReleaseKind) -> Option<&LedgerEntry> {
        self.by_round.get(&(job.to_owned(), round, kind)).map(|&index| &self.entries[index])
    }

    /// Checks the chain against a head that the coordinator acknowledged.
    ///
    /// # Errors
    /// [`LedgerError::RestoredBackup`] if that head is ahead of this file,
    /// [`LedgerError::Forked`] if it is not on this chain.
    pub fn compare(&self, acknowledged: ChainHead) -> Result<(), LedgerError> {
        let sequence = self.entries.len() as u64;
        if acknowledged.sequence > sequence {
            let acknowledged = acknowledged.sequence;
            return Err(LedgerError::RestoredBackup { sequence, acknowledged });
        }
        if self.hashes[acknowledged.sequence as usize] != acknowledged.hash {
            return Err(LedgerError::Forked { sequence: acknowledged.sequence });
        }
        Ok(())
    }

    /// The ε of everything that the dataset released within the budget's window.
    ///
    /// Releases of all privacy units are composed together. The figure then holds for a single
    /// record, since hiding a tenant hides each of its records.
    ///
    /// - `now_ms`: milliseconds since the Unix epoch
    ///
    /// # Errors
    /// [`LedgerError::Accountant`] if δ is not between 0 and 1.
    pub fn spent(&self, dataset: &str, now_ms: u64, budget: &Budget) -> Result<f64, LedgerError> {
        let spent = self.composition(dataset, now_ms, budget);
        Ok(self.figures.epsilon(&spent.events, Delta::new(budget.delta)?)?)
    }

    /// What a debit would cost; writes nothing.
    ///
    /// # Errors
    /// [`LedgerError::BudgetExceeded`] if it would not fit, [`LedgerError::Run`] if its steps do not
    /// follow those of its run; else as for [`Self::debit`].
    pub fn quote(
        &self,
        request: &DebitRequest,
        budget: &Budget,
        now_ms: u64,
    ) -> Result<Quote, LedgerError> {
        let epsilon_max = budget.epsilon_max;
        if !(epsilon_max.is_finite() && epsilon_max > 0.0) {
            return Err(LedgerError::Budget { epsilon_max });
        }
        let delta = Delta::new(budget.delta)?;
        self.check_run(request)?;
        let mut spent = self.composition(&request.dataset, now_ms, budget);
        let epsilon_before = self.figures.epsilon(&spent.events, delta)?;
        spent.add(&request.job, &request.events, request.run.as_ref());
        let epsilon_after = self.figures.epsilon(&spent.events, delta)?;
        if epsilon_after > epsilon_max {
            let dataset = request.dataset.clone();
            let delta = budget.delta;
            return Err(LedgerError::BudgetExceeded {
                dataset,
                epsilon_before,
                epsilon_after,
                epsilon_max,
                delta,
            });
        }
        Ok(Quote { epsilon_before, epsilon_after })
    }

    /// Spends: when this returns `Ok`, the record is durable and the bytes hashed in
    /// `request.release` (and only they) may leave.
    ///
    /// - `now_ms`: milliseconds since the Unix epoch; a clock that runs backwards is recorded as
    ///   standing still
    ///
    /// # Errors
    /// [`LedgerError::AlreadyDebited`] for the same job, round and kind of release again,
    /// [`LedgerError::BudgetExceeded`] if it does not fit, [`LedgerError::Run`] if it is no
    /// continuation of its run (nothing is written in these cases);
    /// [`LedgerError::Store`] if it is unknown whether the record was written: nothing may be
    /// released, and the ledger must be reopened.
    pub fn debit(
        &mut self,
        request: DebitRequest,
        budget: &Budget,
        now_ms: u64,
    ) -> Result<&LedgerEntry, LedgerError> {
        self.chain.require_usable()?;
        if let Some(entry) = self.release_of(&request.job, request.round, request.kind) {
            let (sequence, release) = (entry.sequence, entry.release);
            let DebitRequest { job, round, .. } = request;
            return Err(LedgerError::AlreadyDebited { job, round, sequence, release });
        }
        self.quote(&request, budget, now_ms)?;
        let recorded_ms = now_ms.max(self.entries.last().map_or(0, |last| last.recorded_ms));
        let ChainHead { sequence, hash: previous } = self.head();
        let entry =
            LedgerEntry::new(sequence + 1, previous, self.tenant.clone(), recorded_ms, request);
        let ChainHead { hash, .. } = self.chain.append(&entry)?;
        let index = self.entries.len();
        self.by_round.insert((entry.job.clone(), entry.round, entry.kind), index);
        self.hashes.push(hash);
        self.entries.push(entry);
        Ok(&self.entries[index])
    }

    /// What all counted releases of a dataset reveal.
    fn composition(&self, dataset: &str, now_ms: u64, budget: &Budget) -> Composition {
        let mut whole = Composition::default();
        for entry in self.counted(dataset, now_ms, budget) {
            whole.add(&entry.job, &entry.events, entry.run.as_ref());
        }
        whole
    }
}

#[cfg(test)]
mod tests;
