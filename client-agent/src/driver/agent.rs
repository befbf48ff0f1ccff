//! What all tasks of a running agent share.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use quinn::Connection;
use thiserror::Error;
use tokio::sync::watch;
use tributary_privacy::ledger::LedgerError;
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    id::DatasetName,
    message::{Assignment, BlobRef},
    receipt::Receipt,
    transport::process,
};

use super::{
    adapting::Partial,
    cancel::Cancellation,
    feedback::open_feedback,
    records::{Records, RecordsCache, RecordsError},
    serving::restore,
    status::SharedStatus,
    tokenizer::check_tokenizer,
    transfer::{DownloadError, download},
};
use crate::{
    adapter::AdapterFolder,
    calendar::date,
    config::Config,
    durable_file::{FULL_DISK, FileError, create_directory, is_full_disk},
    engine::Engine,
    feedback::FeedbackStore,
    identity::Identity,
    ledger_file::{FileLedgerStore, LedgerFileError},
    policy::{Approved, Policy},
    receipt_file::{ReceiptFile, ReceiptFileError},
    refusals::{Declined, RefusalFile},
    session::Phase,
    site::Site,
    update::{ReleaseFiles, SharedLedger, Standing, UpdateError, fits_from, standing},
};

/// One tenant's agent: its files, ledger, records and engine.
pub struct Agent {
    pub(super) site: Site,
    pub(super) config: Config,
    pub(super) policy: Policy,
    pub(super) ledger: SharedLedger<FileLedgerStore>,
    pub(super) receipts: ReceiptFile,
    pub(super) refusals: RefusalFile,
    pub(super) releases: ReleaseFiles,
    pub(super) engine: Arc<Engine>,
    pub(super) status: Arc<SharedStatus>,
    pub(super) feedback: Option<Arc<FeedbackStore>>,
    pub(super) records: RecordsCache,
    /// What a cut adaptation leaves to the next; held while one adapts.
    pub(super) partial: Mutex<Option<Partial>>,
    pub(super) connection: watch::Sender<Option<Connection>>,
}

/// Says why an agent cannot start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The ledger's file is in use or unreadable.
    #[error(transparent)]
    LedgerFile(#[from] LedgerFileError),
    /// The ledger is damaged.
    #[error("the privacy ledger cannot be used")]
    Ledger(#[from] LedgerError),
    /// A directory cannot be made.
    #[error(transparent)]
    File(#[from] FileError),
    /// What was served before cannot be served again.
    #[error("there is nothing to serve")]
    Serving(#[source] Box<super::serving::ServingError>),
    /// The HTTP interface cannot listen.
    #[error("cannot listen on {address} (`api.listen`)")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Metrics cannot be recorded.
    #[error("metrics cannot be recorded")]
    Metrics(#[source] metrics::SetRecorderError<metrics_exporter_prometheus::PrometheusRecorder>),
    /// The stop signal cannot be heard.
    #[error("cannot listen for the stop signal")]
    Signal(#[source] std::io::Error),
}

impl Agent {
    /// Opens the ledger, which keeps every other process out, and serves what was last served.
    ///
    /// # Errors
    /// [`AgentError`] if the ledger is in use or damaged.
    pub fn open(
        site: Site,
        config: Config,
        policy: Policy,
        identity: &Identity,
    ) -> Result<Self, AgentError> {
        let tenant = &identity.coordinator.tenant;
        let store = FileLedgerStore::open(&site.ledger())?;
        let ledger = SharedLedger::open(store, tenant.as_str())?;
        let refusals = RefusalFile::new(site.refusals());
        let receipts = ReceiptFile::new(site.receipt(), tenant.clone(), &identity.authority);
        if let Err(error) = receipts.check(&ledger.lock()) {
            let text = Refusal::from_error(ErrorCode::LedgerDiverged, &error).message;
            tracing::error!(error = text, "no round will be trained");
        }
        let releases = ReleaseFiles::open(site.releases(), site.runs())?;
        create_directory(&site.models())?;
        let engine = Arc::new(Engine::new());
        let status = Arc::new(SharedStatus::new(tenant.clone(), Phase::Connecting));
        serve_again(&site, &engine, &status);
        status.spent(&ledger.lock(), &policy, process::now().0);
        let feedback = open_feedback(&site, config.feedback);
        Ok(Self {
            site,
            config,
            policy,
            ledger,
            receipts,
            refusals,
            releases,
            engine,
            status,
            feedback,
            records: RecordsCache::default(),
            partial: Mutex::new(None),
            connection: watch::Sender::new(None),
        })
    }

    /// Answers predictions.
    #[must_use]
    pub fn engine(&self) -> Arc<Engine> {
        self.engine.clone()
    }

    /// What the agent does, for its HTTP interface.
    #[must_use]
    pub fn status(&self) -> Arc<SharedStatus> {
        self.status.clone()
    }

    /// The datasets that the agent has files for.
    pub(super) fn configured(&self) -> Vec<DatasetName> {
        self.config.datasets.keys().cloned().collect()
    }

    pub(super) fn load_records(&self, name: &DatasetName) -> Result<Arc<Records>, RecordsError> {
        let policy = self.policy.datasets.get(name);
        let examples_max = policy.and_then(|policy| policy.examples_max);
        self.records.load(&self.config, name, examples_max)
    }

    /// Compares the ledger with a receipt of the coordinator and with the newest one kept, and
    /// keeps the newer durably.
    pub(super) fn compare_ledger(&self, receipt: &Receipt) -> Result<(), Refusal> {
        self.receipts.take(receipt, &self.ledger.lock()).map_err(|error| {
            let code = match error {
                ReceiptFileError::File(_) => ErrorCode::Internal,
                _ => ErrorCode::LedgerDiverged,
            };
            Refusal::from_error(code, &error)
        })
    }

    pub(super) fn examine(
        &self,
        assignment: &Assignment,
        approved: &Approved,
    ) -> Result<Standing, Declined> {
        let job = &assignment.job;
        check_tokenizer(job, self.config.datasets.get(&job.dataset))
            .map_err(|error| error.declined())?;
        let now_ms = process::now().0;
        standing(&self.ledger, &self.releases, assignment, approved, now_ms).map_err(|error| {
            let refusal = error.refusal();
            match &error {
                UpdateError::Ledger(LedgerError::BudgetExceeded { epsilon_after, .. }) => {
                    let fits =
                        fits_from(&self.ledger, &self.releases, assignment, approved, now_ms);
                    Declined { remedy: budget_remedy(*epsilon_after, fits), refusal }
                }
                _ => refusal.into(),
            }
        })
    }

    /// Waits until a base is on this machine.
    ///
    /// - returns: `None` if cancelled first
    pub(super) async fn fetch_base(
        &self,
        blob: BlobRef,
        cancellation: &Cancellation,
    ) -> Option<Result<(), DownloadError>> {
        tokio::select! {
            outcome = self.fetch(blob) => Some(outcome),
            () = cancellation.cancelled() => None,
        }
    }

    async fn fetch(&self, blob: BlobRef) -> Result<(), DownloadError> {
        const RETRY: Duration = Duration::from_millis(500);
        // Every attempt counts against the tenant's quotas.
        const FULL_DISK_RETRY: Duration = Duration::from_secs(5);
        let path = self.site.model(blob.digest);
        let mut connections = self.connection.subscribe();
        while !path.exists() {
            let connection = match connections.wait_for(Option::is_some).await {
                Ok(connection) => connection.clone().expect("waited for one"),
                // The sender lives in `self`.
                Err(_) => continue,
            };
            match download(&connection, blob, &path).await {
                Err(error) if error.may_heal() => {
                    let (is_full, base) = (is_full_disk(&error), blob.digest.short());
                    let causes = Refusal::from_error(ErrorCode::Internal, &error).message;
                    let hint = is_full.then_some(FULL_DISK);
                    tracing::warn!(%base, error = causes, hint, "download goes on later");
                    let pause = if is_full { FULL_DISK_RETRY } else { RETRY };
                    tokio::time::sleep(pause).await;
                }
                outcome => return outcome,
            }
        }
        Ok(())
    }
}

/// Serves what was last served; damage there is no reason not to start.
fn serve_again(site: &Site, engine: &Engine, status: &SharedStatus) {
    match restore(&AdapterFolder::new(site), engine) {
        Ok(Some(registry)) => status.serving(&registry),
        Ok(None) => {}
        Err(error) => {
            let refusal = Refusal::from_error(ErrorCode::Internal, &error);
            let error = refusal.message;
            tracing::warn!(error, "what was served before cannot be served again");
        }
    }
}

/// What would make room for a round that does not fit the budget.
fn budget_remedy(epsilon_after: f64, fits_from_ms: Option<u64>) -> String {
    let larger = format!(
        "an `epsilon_max` of at least {} in policy.toml, or a job with more noise",
        (epsilon_after * 100.0).ceil() / 100.0
    );
    match fits_from_ms {
        Some(moment) => {
            format!(
                "waiting until {}, when older releases have left the window; or {larger}",
                date(moment)
            )
        }
        None => larger,
    }
}
