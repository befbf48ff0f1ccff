use std::sync::{Mutex, MutexGuard, PoisonError};

use tributary_privacy::ledger::{ChainStore, DebitRequest, Ledger, LedgerError, ReleaseKind};
use tributary_protocol::{
    id::{Digest, JobId, RoundNumber},
    message::{Assignment, BlobRef, LedgerHead},
};

use super::{
    Release, ReleaseFiles, RunUpdate, UpdateError, correlated::RunPosition, evaluation::evaluated,
};
use crate::policy::{Approved, unit_name};

/// The ledger, shared by the threads of one agent.
#[derive(Debug)]
pub struct SharedLedger<S> {
    store: S,
    tenant: String,
    ledger: Mutex<Ledger<S>>,
}

impl<S: ChainStore + Clone> SharedLedger<S> {
    /// Opens and verifies a tenant's ledger.
    ///
    /// - `store`: a handle whose clones share one disk
    ///
    /// # Errors
    /// [`LedgerError`] if it is damaged or the store fails.
    pub fn open(store: S, tenant: &str) -> Result<Self, LedgerError> {
        let ledger = Mutex::new(Ledger::open(store.clone(), tenant)?);
        Ok(Self { store, tenant: tenant.to_owned(), ledger })
    }

    /// The ledger, for this thread alone.
    pub fn lock(&self) -> MutexGuard<'_, Ledger<S>> {
        // A panic between two ledger calls leaves the ledger itself whole.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the ledger ends, as the wire has it: a ledger without entries has no hash.
    pub fn head(&self) -> LedgerHead {
        let head = self.lock().head();
        match head.sequence {
            0 => LedgerHead::EMPTY,
            sequence => LedgerHead { sequence, hash: Digest::from_bytes(head.hash) },
        }
    }

    /// Reads the ledger again after a store failure, which shows whether the last record was
    /// written.
    pub(super) fn reopen(&self) -> Result<(), LedgerError> {
        let mut ledger = self.lock();
        *ledger = Ledger::open(self.store.clone(), &self.tenant)?;
        Ok(())
    }
}

/// What the ledger says about a round before anything is trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It was never debited, and the budget covers it.
    Fresh,
    /// It was debited: these very bytes may leave again.
    Released(Release),
}

/// The debit that a round of an approved assignment asks for, beside its steps of a run.
#[must_use]
pub fn request(assignment: &Assignment, approved: &Approved, release: Digest) -> DebitRequest {
    DebitRequest {
        dataset: approved.dataset.to_string(),
        job: assignment.job.name.to_string(),
        round: assignment.round.0,
        kind: ReleaseKind::Update,
        unit: unit_name(assignment.job.privacy.unit).to_owned(),
        events: approved.events.clone(),
        run: None,
        release: *release.as_bytes(),
    }
}

/// Says whether a round may be trained, or what was released for it before.
///
/// # Errors
/// [`UpdateError::Lost`] if it was debited and its bytes are gone; [`UpdateError::Ledger`] if the
/// budget does not cover it.
pub fn standing<S: ChainStore + Clone>(
    ledger: &SharedLedger<S>,
    files: &ReleaseFiles,
    assignment: &Assignment,
    approved: &Approved,
    now_ms: u64,
) -> Result<Standing, UpdateError> {
    let (job, round) = (&assignment.job.name, assignment.round);
    if let Some(digest) = debited(ledger, job, round) {
        let (job, round) = (job.clone(), round);
        return match files.find(digest) {
            Some(update) => Ok(Standing::Released(Release { job, round, update })),
            None => Err(UpdateError::Lost { job, round }),
        };
    }
    let request = whole_request(ledger, files, assignment, approved);
    ledger.lock().quote(&request, &approved.budget, now_ms)?;
    Ok(Standing::Fresh)
}

/// When a round that the budget does not cover fits it, in milliseconds since the Unix epoch.
#[must_use]
pub fn fits_from<S: ChainStore + Clone>(
    ledger: &SharedLedger<S>,
    files: &ReleaseFiles,
    assignment: &Assignment,
    approved: &Approved,
    now_ms: u64,
) -> Option<u64> {
    let request = whole_request(ledger, files, assignment, approved);
    ledger.lock().fits_from(&request, &approved.budget, now_ms).ok().flatten()
}

/// Everything that a round may still debit, as one request.
fn whole_request<S: ChainStore + Clone>(
    ledger: &SharedLedger<S>,
    files: &ReleaseFiles,
    assignment: &Assignment,
    approved: &Approved,
) -> DebitRequest {
    let mut whole = request(assignment, approved, Digest::from_bytes([0; 32]));
    if evaluated(ledger, &assignment.job.name, assignment.round).is_none() {
        whole.events.extend(approved.evaluation.iter().cloned());
    }
    if let Some(event) = &approved.run {
        let position = RunPosition::find(ledger, files, assignment, approved, event);
        whole.run = Some(position.steps);
    }
    whole
}

fn debited<S: ChainStore + Clone>(
    ledger: &SharedLedger<S>,
    job: &JobId,
    round: RoundNumber,
) -> Option<Digest> {
    let ledger = ledger.lock();
    ledger.release(job.as_str(), round.0).map(|entry| Digest::from_bytes(entry.release))
}

/// Stores packed bytes and debits the ledger for them; on `Ok`, both are durable and the bytes may
/// leave.
///
/// - `cancelled`: asked once, before anything durable happens
///
/// # Errors
/// [`UpdateError`]; then the bytes must not leave. Whether the debit was written decides itself
/// when the ledger is read again, and [`standing`] tells.
pub fn release<S: ChainStore + Clone>(
    ledger: &SharedLedger<S>,
    files: &ReleaseFiles,
    assignment: &Assignment,
    approved: &Approved,
    packed: &[u8],
    cancelled: &dyn Fn() -> bool,
    now_ms: u64,
) -> Result<Release, UpdateError> {
    if cancelled() {
        return Err(UpdateError::Cancelled);
    }
    let update = files.put(packed)?;
    let request = request(assignment, approved, update.digest);
    commit(ledger, files, assignment, approved, (update, request), now_ms)
}

/// The same for a round that is part of a run with correlated noise: what the run's next round needs
/// is durable before the debit.
///
/// # Errors
/// As for [`release`]; [`LedgerError::Run`] among them if the ledger meanwhile holds these steps.
pub fn release_run<S: ChainStore + Clone>(
    ledger: &SharedLedger<S>,
    files: &ReleaseFiles,
    assignment: &Assignment,
    approved: &Approved,
    round: &RunUpdate,
    cancelled: &dyn Fn() -> bool,
    now_ms: u64,
) -> Result<Release, UpdateError> {
    if cancelled() {
        return Err(UpdateError::Cancelled);
    }
    let update = files.put(&round.packed)?;
    if let Some(state) = &round.state {
        files.put_state(update.digest, state)?;
    }
    let run = Some(round.steps.clone());
    let request = DebitRequest { run, ..request(assignment, approved, update.digest) };
    commit(ledger, files, assignment, approved, (update, request), now_ms)
}

/// Debits durable bytes.
fn commit<S: ChainStore + Clone>(
    ledger: &SharedLedger<S>,
    files: &ReleaseFiles,
    assignment: &Assignment,
    approved: &Approved,
    (update, request): (BlobRef, DebitRequest),
    now_ms: u64,
) -> Result<Release, UpdateError> {
    let debit = ledger.lock().debit(request, &approved.budget, now_ms).map(|_| ());
    if let Err(error) = debit {
        if matches!(error, LedgerError::Store { .. } | LedgerError::NeedsReopen) {
            ledger.reopen()?;
        }
        if debited(ledger, &assignment.job.name, assignment.round) != Some(update.digest) {
            return Err(error.into());
        }
    }
    if let Err(error) = files.retain(&newest_releases(ledger)) {
        // The release itself is durable; the leftovers go with the next one.
        tracing::warn!(%error, "old releases cannot be removed");
    }
    Ok(Release { job: assignment.job.name.clone(), round: assignment.round, update })
}

/// The newest release of every kind of every job: older ones are never asked for again.
fn newest_releases<S: ChainStore + Clone>(ledger: &SharedLedger<S>) -> Vec<Digest> {
    let ledger = ledger.lock();
    let mut newest = std::collections::HashMap::new();
    for entry in ledger.entries() {
        newest.insert((entry.job.clone(), entry.kind), Digest::from_bytes(entry.release));
    }
    newest.into_values().collect()
}
