//! What the tenant has spent, has left and refused: one document for `privacy show`.

use serde::Serialize;
use tributary_privacy::{
    ledger::{
        Budget, ChainHead, ChainStore, JobRun, JobSpending, Ledger, LedgerEntry, LedgerError,
    },
    mechanism::PrivacyEvent,
};
use tributary_protocol::{id::DatasetName, receipt::Receipt, time::Timestamp};

use crate::{policy::Policy, refusals::RefusalRecord};

/// A forecast does not look further ahead than this many rounds.
pub const FORECAST_ROUNDS_MAX: u64 = 100_000;

/// Everything that `privacy show` shows.
#[derive(Debug, Clone, Serialize)]
pub struct Statement {
    /// Whose.
    pub tenant: String,
    /// When it was drawn up, in milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// What neighbouring data sets are.
    pub neighbouring_relation: &'static str,
    /// Where the ledger ends.
    pub head: ChainHead,
    /// The newest head that the coordinator countersigned, if any.
    pub receipt: Option<ReceiptLine>,
    /// By dataset of the policy.
    pub datasets: Vec<DatasetStatement>,
    /// Why the last assignments were declined, oldest first.
    pub refusals: Vec<RefusalRecord>,
    /// Every debit, oldest first.
    pub entries: Vec<LedgerEntry>,
}

/// A countersigned head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ReceiptLine {
    /// Entries that it covers.
    pub sequence: u64,
    /// When the coordinator signed.
    pub signed_ms: Timestamp,
}

impl From<&Receipt> for ReceiptLine {
    fn from(receipt: &Receipt) -> Self {
        Self { sequence: receipt.head.sequence, signed_ms: receipt.signed }
    }
}

/// What one dataset has spent and left.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DatasetStatement {
    /// The dataset.
    pub dataset: DatasetName,
    /// ε of all its releases in the window.
    pub epsilon_spent: f64,
    /// What the policy allows.
    pub epsilon_max: f64,
    /// The difference.
    pub epsilon_left: f64,
    /// At which δ.
    pub delta: f64,
    /// Length of the window; `None` counts for ever.
    pub window_days: Option<u32>,
    /// Where the window begins: the first release without a window; `None` if there is none.
    pub window_start_ms: Option<u64>,
    /// When the oldest counted release leaves the window.
    pub next_leaves_ms: Option<u64>,
    /// By job, in order of first appearance.
    pub jobs: Vec<JobStatement>,
}

/// What one job has spent of a dataset, and what more of it would fit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobStatement {
    /// The job.
    pub job: String,
    /// Its privacy unit.
    pub unit: String,
    /// Its rounds in the window.
    pub rounds: u64,
    /// ε of its releases alone; the figures of several jobs do not add up.
    pub epsilon_alone: f64,
    /// What its newest round cost, beside its run.
    pub round_events: Vec<PrivacyEvent>,
    /// Its newest run with correlated noise, if it has one: paid as a whole with its first round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<JobRun>,
    /// Further rounds that fit if nothing else is released, up to [`FORECAST_ROUNDS_MAX`].
    pub rounds_left: u64,
}

impl Statement {
    /// Draws up the statement of a ledger under a policy.
    ///
    /// # Errors
    /// [`LedgerError`] if an event cannot be accounted.
    pub fn new<S: ChainStore>(
        ledger: &Ledger<S>,
        policy: &Policy,
        receipt: Option<&Receipt>,
        refusals: Vec<RefusalRecord>,
        now: Timestamp,
    ) -> Result<Self, LedgerError> {
        let datasets = policy
            .datasets
            .iter()
            .map(|(name, dataset)| DatasetStatement::new(ledger, name, &dataset.budget(), now.0))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            tenant: ledger.tenant().to_owned(),
            now_ms: now.0,
            neighbouring_relation: "add-or-remove-one",
            head: ledger.head(),
            receipt: receipt.map(ReceiptLine::from),
            datasets,
            refusals,
            entries: ledger.entries().to_vec(),
        })
    }
}

impl DatasetStatement {
    fn new<S: ChainStore>(
        ledger: &Ledger<S>,
        name: &DatasetName,
        budget: &Budget,
        now_ms: u64,
    ) -> Result<Self, LedgerError> {
        const DAY_MS: u64 = 86_400_000;
        let dataset = name.as_str();
        let epsilon_spent = ledger.spent(dataset, now_ms, budget)?;
        let first = ledger.counted(dataset, now_ms, budget).next().map(|entry| entry.recorded_ms);
        let window_start_ms = match budget.window_days {
            Some(days) => Some(now_ms.saturating_sub(u64::from(days) * DAY_MS)),
            None => first,
        };
        let job = |spending: JobSpending| {
            let rounds_left =
                ledger.rounds_left(dataset, &spending, budget, now_ms, FORECAST_ROUNDS_MAX)?;
            let JobSpending { job, unit, rounds, epsilon_alone, round_events, run } = spending;
            Ok(JobStatement { job, unit, rounds, epsilon_alone, round_events, run, rounds_left })
        };
        let jobs = ledger.spent_by_job(dataset, now_ms, budget)?;
        Ok(Self {
            dataset: name.clone(),
            epsilon_spent,
            epsilon_max: budget.epsilon_max,
            epsilon_left: (budget.epsilon_max - epsilon_spent).max(0.0),
            delta: budget.delta,
            window_days: budget.window_days,
            window_start_ms,
            next_leaves_ms: ledger.next_leaves(dataset, now_ms, budget),
            jobs: jobs.into_iter().map(job).collect::<Result<_, LedgerError>>()?,
        })
    }
}
