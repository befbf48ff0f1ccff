//! The last assignments that the agent declined, kept durably for `privacy show`.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use tributary_protocol::{
    error_code::Refusal,
    id::{JobId, RoundNumber},
    time::Timestamp,
};

use crate::durable_file::{Access, FileError, read_text, write_durably};

/// Refusals kept; the oldest go first.
const KEPT: usize = 20;

/// Why an assignment is declined, and what would be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declined {
    /// For the coordinator too.
    pub refusal: Refusal,
    /// For the tenant alone: what would work.
    pub remedy: String,
}

impl From<Refusal> for Declined {
    fn from(refusal: Refusal) -> Self {
        use tributary_protocol::error_code::ErrorCode;
        let remedy = match refusal.code {
            ErrorCode::LedgerDiverged => {
                "recover the newest ledger.jsonl (`tributary-agent privacy verify` says which), \
                 then restart the agent"
            }
            ErrorCode::DatasetMissing => {
                "name the dataset's files in agent.toml; `tributary-agent check` tries them"
            }
            ErrorCode::UpdateNotFinite => {
                "a job with a lower learning rate, or records without damaged values"
            }
            ErrorCode::TimedOut => "a longer `round.report_timeout_ms`, or fewer local steps",
            ErrorCode::BudgetExhausted => {
                "a larger `epsilon_max` in policy.toml, or a job with more noise"
            }
            code if code.is_transient() => "nothing to do: the next round may work",
            _ => "a job that the coordinator's operator corrects",
        };
        Self { refusal, remedy: remedy.to_owned() }
    }
}

/// One declined assignment, or several of the same kind in a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusalRecord {
    /// When it was last declined.
    pub declined_ms: Timestamp,
    /// The job.
    pub job: JobId,
    /// The round that was last declined.
    pub round: RoundNumber,
    /// The number and name of the reason.
    pub code: String,
    /// Why.
    pub reason: String,
    /// What would work.
    pub remedy: String,
    /// How often in a row.
    pub times: u64,
}

/// `refusals.json`.
#[derive(Debug)]
pub struct RefusalFile {
    path: PathBuf,
    writing: Mutex<()>,
}

impl RefusalFile {
    /// Names the file; touches nothing.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self { path, writing: Mutex::new(()) }
    }

    /// The refusals, oldest first. A file that cannot be parsed counts as empty: it informs, and
    /// nothing depends on it.
    ///
    /// # Errors
    /// [`FileError`] if the file is there and cannot be read.
    pub fn read(&self) -> Result<Vec<RefusalRecord>, FileError> {
        if !self.path.exists() {
            return Ok(Vec::new());
        }
        let text = read_text(&self.path)?;
        Ok(serde_json::from_str(&text).unwrap_or_else(|error| {
            tracing::warn!(%error, file = %self.path.display(), "refusals cannot be shown");
            Vec::new()
        }))
    }

    /// Adds a refusal, durably; one that repeats the newest only counts.
    ///
    /// # Errors
    /// [`FileError`] if the disk fails.
    pub fn add(
        &self,
        job: &JobId,
        round: RoundNumber,
        declined: &Declined,
        now: Timestamp,
    ) -> Result<(), FileError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut records = self.read()?;
        let Declined { refusal, remedy } = declined;
        let (code, reason) = (refusal.code.to_string(), refusal.message.clone());
        match records.last_mut() {
            Some(last) if last.job == *job && last.code == code && last.reason == reason => {
                (last.declined_ms, last.round, last.times) = (now, round, last.times + 1);
            }
            _ => records.push(RefusalRecord {
                declined_ms: now,
                job: job.clone(),
                round,
                code,
                reason,
                remedy: remedy.clone(),
                times: 1,
            }),
        }
        let surplus = records.len().saturating_sub(KEPT);
        let text = serde_json::to_string_pretty(&records[surplus..]).expect("only text keys");
        write_durably(&self.path, text.as_bytes(), Access::Shared)
    }
}

#[cfg(test)]
mod tests {
    use tributary_protocol::error_code::ErrorCode;

    use super::*;

    #[test]
    fn the_newest_are_kept_and_repetitions_counted() {
        let directory = tempfile::tempdir().unwrap();
        let file = RefusalFile::new(directory.path().join("refusals.json"));
        assert_eq!(file.read().unwrap(), []);
        let job = JobId::new("census").unwrap();
        let declined = |text: &str| Declined::from(Refusal::new(ErrorCode::PolicyForbids, text));
        for round in 1..=3 {
            file.add(&job, RoundNumber(round), &declined("no"), Timestamp(round)).unwrap();
        }
        let records = file.read().unwrap();
        assert_eq!((records.len(), records[0].times, records[0].round), (1, 3, RoundNumber(3)));
        for round in 4..40 {
            let text = format!("no {round}");
            file.add(&job, RoundNumber(round), &declined(&text), Timestamp(round)).unwrap();
        }
        let records = file.read().unwrap();
        assert_eq!((records.len(), records[KEPT - 1].reason.as_str()), (KEPT, "no 39"));
        std::fs::write(directory.path().join("refusals.json"), "[{").unwrap();
        assert_eq!(file.read().unwrap(), [], "a torn file informs nobody and stops nothing");
    }
}
