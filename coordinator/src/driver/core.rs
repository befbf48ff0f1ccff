//! The task that owns all state and carries out the scheduler's actions in order.

mod actions;
mod sessions;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
    sync::Arc,
};

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};
use tributary_privacy::chain::ChainHead;
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    id::{Digest, JobId, RoundNumber, TenantId},
    message::{SecaggPayload, UploadOffer},
    time::Timestamp,
    transport::{process, tls::Identity},
};

use self::sessions::Session;
use super::{peers::Peers, progress::Progress, telemetry};
use crate::{
    access::{Keyring, TokenRecord},
    aggregation::{AggregationError, RoundSums},
    audit::{Act, Actor, AuditError, AuditEvent, AuditLog},
    backup::{self, BackupError, Manifest},
    blobs::{BlobError, BlobStore, Keyspace},
    config::Agents,
    registry::ModelRegistry,
    scheduler::{JobRecord, OfferAnswer, RoundSummary, Scheduler, SchedulerError},
    spending::Spending,
    store::{self, Batch, Store, StoreError, Table},
    tenants::authority::Authority,
};

/// Requests waiting for the core; senders wait when it is full.
const QUEUE: usize = 1024;

/// Requests that become durable with one flush of the disk, if so many wait.
const GROUP_MAX: usize = 64;

/// Says why the coordinator had to stop. What is durable stays as it is.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CoreError {
    /// Records cannot be read or written.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// A model or update file cannot be read or written.
    #[error("a file failed")]
    Blob(#[from] BlobError),
    /// An unfinished snapshot cannot be removed.
    #[error(transparent)]
    Backup(#[from] Box<BackupError>),
    /// An update that an open round has counted is damaged.
    #[error(
        "an open round has counted an update whose file is damaged; without a backup of the file, \
         remove it: the round is then given up at the next start"
    )]
    Update {
        /// Which file.
        #[source]
        source: BlobError,
    },
    /// The audit log cannot be used.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The core has stopped; its own error says why.
    #[error("the coordinator is stopping")]
    Stopped,
}

/// State and everything needed to act on it.
pub struct Core {
    /// The stepped state.
    pub scheduler: Scheduler,
    /// Model and update files.
    pub blobs: BlobStore,
    /// Signs agents' certificates.
    pub authority: Arc<Authority>,
    /// How long certificates of agents are valid, in days.
    pub certificate_days: u32,
    /// The coordinator's own certificate and key; signs receipts.
    identity: Identity,
    /// Who may use the HTTP API.
    pub keyring: Keyring,
    store: Box<dyn Store>,
    audit: AuditLog,
    /// The coordinator's own folder.
    folder: PathBuf,
    /// Events of the current request; recorded before anything that it changed becomes durable.
    events: VecDeque<AuditEvent>,
    /// Records that the current request changed outside of the scheduler.
    unsaved: Batch,
    /// Whether anything happened that the observers of progress have not been told of.
    unseen: bool,
    /// The head of the audit log as the store has it.
    noted: Option<ChainHead>,
    /// Refused sessions that are in the log already: an agent tries again and again.
    refused: BTreeSet<(TenantId, u16)>,
    sums: RoundSums,
    /// The counted releases of every tenant.
    spending: Spending,
    progress: Progress,
    /// What the metrics last said of each tenant's context.
    pub(super) told: BTreeMap<TenantId, telemetry::ContextLabels>,
    sessions: BTreeMap<TenantId, Session>,
    sessions_opened: u64,
}

type Answer = Box<dyn FnOnce() + Send>;
type Request = Box<dyn FnOnce(&mut Core, Timestamp) -> Answer + Send>;

/// Lets other tasks run code on the core.
#[derive(Clone)]
pub struct CoreHandle {
    requests: mpsc::Sender<Request>,
}

impl CoreHandle {
    /// Runs `request` on the core; everything that it changed is durable when this returns.
    ///
    /// # Errors
    /// [`CoreError::Stopped`].
    pub async fn call<R: Send + 'static>(
        &self,
        request: impl FnOnce(&mut Core, Timestamp) -> R + Send + 'static,
    ) -> Result<R, CoreError> {
        let (answer, answered) = oneshot::channel();
        let request: Request = Box::new(move |core, now| {
            let result = request(core, now);
            Box::new(move || drop(answer.send(result)))
        });
        self.requests.send(request).await.map_err(|_| CoreError::Stopped)?;
        answered.await.map_err(|_| CoreError::Stopped)
    }
}

impl Core {
    /// Continues from what the store holds.
    ///
    /// - `administrator`: BLAKE3 of the folder's own access token
    /// - `folder`: where the audit log is
    /// - `now`: what the deadlines of open rounds are counted from
    ///
    /// # Errors
    /// [`CoreError::Store`] if a record is damaged, [`CoreError::Audit`] if the audit log is;
    /// nothing is reset.
    pub fn restore(
        store: Box<dyn Store>,
        blobs: BlobStore,
        authority: Authority,
        identity: Identity,
        administrator: Digest,
        folder: &Path,
        now: Timestamp,
    ) -> Result<Self, CoreError> {
        let noted = store::load(&*store, Table::Audit)?.pop();
        let audit = AuditLog::open(folder, authority.fingerprint(), noted)?;
        let start = AuditEvent::done(
            Actor::coordinator(),
            Act::CoordinatorStart,
            "",
            env!("CARGO_PKG_VERSION"),
        );
        let tenants = store::load(&*store, Table::Tenants)?;
        let mut jobs = JobRecord::load_all(&*store)?;
        let models = ModelRegistry::load(&*store)?;
        for job in &jobs {
            info!(job = %job.spec.name, round = %job.round.number, phase = job.round.phase.name(), "restored");
        }
        let rounds: Vec<RoundSummary> = store::load(&*store, Table::Rounds)?;
        let spending = Spending::restore(&rounds, jobs.iter().map(|job| &job.spec), &models);
        let keyring = Keyring::new(administrator, store::load(&*store, Table::Tokens)?);
        let (mut events, mut unsaved) = (VecDeque::from([start]), Batch::default());
        give_up_lost(&mut jobs, &blobs, &mut events, &mut unsaved, now)?;
        let scheduler = Scheduler::restore(tenants, jobs, models, now);
        verify_files(&scheduler, &blobs)?;
        // What an interrupted `backup` left.
        backup::discard(folder).map_err(Box::new)?;
        blobs.retain(&scheduler.referenced_files())?;
        blobs.retain_staged(scheduler.jobs().flat_map(|job| {
            let rounds = job.round().open_rounds().into_iter();
            rounds.map(|round| (&job.record().spec.name, round))
        }))?;
        Ok(Self {
            scheduler,
            blobs,
            authority: Arc::new(authority),
            certificate_days: Agents::default().certificate_days,
            identity,
            keyring,
            store,
            audit,
            folder: folder.to_owned(),
            events,
            unsaved,
            unseen: true,
            noted,
            refused: BTreeSet::new(),
            sums: RoundSums::default(),
            spending,
            progress: Progress::default(),
            told: BTreeMap::new(),
            sessions: BTreeMap::new(),
            sessions_opened: 0,
        })
    }

    /// Starts the core's task. It ends with an error when something durable fails, or with `Ok`
    /// when every handle is gone.
    #[must_use]
    pub fn spawn(mut self) -> (CoreHandle, tokio::task::JoinHandle<Result<(), CoreError>>) {
        let (requests, mut inbox) = mpsc::channel::<Request>(QUEUE);
        let task = tokio::spawn(async move {
            tokio::task::block_in_place(|| self.settle(process::now()))?;
            loop {
                let wait =
                    self.scheduler.poll_timeout().map(|deadline| deadline.since(process::now()));
                let request = tokio::select! {
                    request = inbox.recv() => match request {
                        Some(request) => Some(request),
                        None => return Ok(()),
                    },
                    () = sleep(wait) => None,
                };
                tokio::task::block_in_place(|| {
                    let now = process::now();
                    let mut answers: Vec<Answer> = Vec::new();
                    answers.extend(request.map(|request| request(&mut self, now)));
                    while answers.len() < GROUP_MAX && self.may_wait() {
                        let Ok(request) = inbox.try_recv() else { break };
                        answers.push(request(&mut self, now));
                    }
                    self.scheduler.handle_timeout(now);
                    self.settle(now)?;
                    answers.into_iter().for_each(|answer| answer());
                    Ok::<(), CoreError>(())
                })
                .inspect_err(|error| error!(%error, "the coordinator must stop"))?;
            }
        });
        (CoreHandle { requests }, task)
    }

    /// Takes a tenant's answer in a step of secure aggregation.
    ///
    /// # Errors
    /// [`SchedulerError`] if it is refused.
    pub fn secagg(
        &mut self,
        tenant: &TenantId,
        job: &JobId,
        round: RoundNumber,
        payload: &SecaggPayload,
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        self.scheduler.count_request(tenant, now)?;
        let peers = Peers::new(self.authority.certificate(), now);
        self.scheduler.secagg(tenant, job, round, payload, &peers, now)
    }

    /// Whether an offered update is wanted.
    ///
    /// # Errors
    /// The refusal for the agent.
    pub fn offered(&self, tenant: &TenantId, offer: &UploadOffer) -> Result<OfferAnswer, Refusal> {
        self.scheduler.offered(tenant, offer).map_err(|error| error.refusal())
    }

    /// Where a tenant's updates lie by themselves, if its data isolation asks for it.
    ///
    /// # Errors
    /// [`BlobError`].
    pub fn keyspace(&self, tenant: &TenantId) -> Result<Option<Arc<Keyspace>>, BlobError> {
        let record = self.scheduler.tenant(tenant);
        let level = record.map(|record| record.context.isolation.data).unwrap_or_default();
        self.blobs.keyspace(tenant, level)
    }

    /// How the rounds of a job ended, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn rounds(&self, job: &JobId) -> Result<Vec<RoundSummary>, StoreError> {
        let mut rounds: Vec<RoundSummary> = store::load(&*self.store, Table::Rounds)?;
        rounds.retain(|round| round.job == *job);
        Ok(rounds)
    }

    /// Counts an update whose file is complete.
    ///
    /// # Errors
    /// The refusal for the agent; the update is then not counted.
    pub fn reported(
        &mut self,
        tenant: &TenantId,
        offer: &UploadOffer,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let counted = self.count_report(tenant, offer, now);
        if counted.is_err() {
            // Nothing would ever remove it: files of rounds go with what their record lists.
            self.discard(offer.update.digest);
        }
        counted?;
        telemetry::count_update(tenant, offer);
        Ok(())
    }

    fn count_report(
        &mut self,
        tenant: &TenantId,
        offer: &UploadOffer,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        if self.offered(tenant, offer)? == OfferAnswer::Receive {
            self.add_to_sum(tenant, offer)?;
        }
        self.scheduler.reported(tenant, offer, now).map_err(|error| error.refusal())
    }

    /// Removes a file that somebody has named, unless a record refers to it.
    fn discard(&self, file: Digest) {
        if !self.scheduler.referenced_files().contains(&file)
            && let Err(error) = self.blobs.remove(file)
        {
            warn!(%error, "a refused update stays until the next start");
        }
    }

    /// Records an act in the audit log, before anything that the current request changed becomes
    /// durable.
    pub fn record(&mut self, event: AuditEvent) {
        self.events.push_back(event);
    }

    /// Adds an access token, or replaces its record.
    pub fn put_token(&mut self, record: TokenRecord) {
        record.put(&mut self.unsaved);
        self.keyring.insert(record);
    }

    /// The audit log.
    #[must_use]
    pub const fn audit(&self) -> &AuditLog {
        &self.audit
    }

    /// Shows another certificate of the coordinator's from now on.
    pub fn replace_identity(&mut self, identity: Identity) {
        let detail = identity.chain.first().map(|leaf| format!("certificate {}", Digest::of(leaf)));
        let (actor, detail) = (Actor::coordinator(), detail.unwrap_or_default());
        self.record(AuditEvent::done(actor, Act::CoordinatorRenew, "", detail));
        self.identity = identity;
    }

    /// Takes a snapshot of everything that is durable, in the coordinator's own folder.
    ///
    /// # Errors
    /// [`BackupError`].
    pub fn snapshot(&self, now: Timestamp) -> Result<Manifest, BackupError> {
        let (head, authority) = (self.audit.head(), self.authority.fingerprint());
        backup::snapshot(&self.folder, &*self.store, &self.blobs, head, authority, now)
    }

    /// The counted releases of every job and tenant.
    #[must_use]
    pub const fn spending(&self) -> &Spending {
        &self.spending
    }

    /// Since when the rounds are in their phases, and that something changed.
    #[must_use]
    pub const fn progress(&self) -> &Progress {
        &self.progress
    }

    fn add_to_sum(&mut self, tenant: &TenantId, offer: &UploadOffer) -> Result<(), Refusal> {
        let job = self.scheduler.job(&offer.job).expect("offers are checked before");
        match self.sums.add(job, tenant, offer, &self.blobs) {
            Ok(()) => Ok(()),
            // The commit adds anew what was in the sum.
            Err(error @ AggregationError::Update { .. }) => {
                Err(Refusal::from_error(ErrorCode::UpdateMalformed, &error))
            }
            Err(error) => Err(Refusal::from_error(ErrorCode::Internal, &error)),
        }
    }
}

/// Gives up open rounds that counted an update whose file is gone, which is how an operator answers
/// to a damaged one. A damaged file stops the start.
fn give_up_lost(
    jobs: &mut [JobRecord],
    blobs: &BlobStore,
    events: &mut VecDeque<AuditEvent>,
    unsaved: &mut Batch,
    now: Timestamp,
) -> Result<(), CoreError> {
    for job in jobs {
        for (tenant, update) in job.awaiting_sum() {
            match blobs.verify(update) {
                Ok(()) => {}
                Err(BlobError::Missing { .. }) => {
                    let (name, round) = (&job.spec.name, job.round.number);
                    let reason =
                        format!("the file {update} of tenant {tenant}'s update is missing");
                    warn!(job = %name, %round, %tenant, reason, "round abandoned");
                    events.push_back(job.abandon_lost(reason, now, unsaved));
                    break;
                }
                Err(source) => return Err(CoreError::Update { source }),
            }
        }
    }
    Ok(())
}

/// Checks the files that rounds go on from; older models are only looked for.
fn verify_files(scheduler: &Scheduler, blobs: &BlobStore) -> Result<(), BlobError> {
    for job in scheduler.jobs() {
        let models = scheduler.models();
        let latest = models.latest(&job.record().spec.name).expect("every job has version 0");
        for file in [latest.file.digest].into_iter().chain(latest.side_files()) {
            blobs.verify(file)?;
        }
    }
    let missing = scheduler.models().iter().find(|model| !blobs.contains(model.file.digest));
    match missing {
        Some(model) => Err(BlobError::Missing { path: blobs.path(model.file.digest) }),
        None => Ok(()),
    }
}

async fn sleep(wait: Option<std::time::Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod crash_tests;
