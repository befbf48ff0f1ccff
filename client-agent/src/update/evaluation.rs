//! Noisy metrics of a round's base, which leave with the update.

use tributary_privacy::{
    ledger::{ChainStore, DebitRequest, LedgerError, ReleaseKind},
    mechanism::{NoisyStatistics, NoisySum},
    noise::SecureNoise,
};
use tributary_protocol::{
    codec,
    id::{Digest, JobId, RoundNumber},
    job::{EvaluationSpec, JobSpec, Metric, MetricSum, PrivacyUnit},
    message::Assignment,
};

use super::{ReleaseFiles, SharedLedger, UpdateError, release::request};
use crate::{data::Dataset, model::Outcome, policy::Approved, train::outcomes};

/// Measures a base on a tenant's held-out records, and its predictions by their outcomes, and adds
/// noise to each metric's sum and count.
///
/// - `agreements`: for each prediction with a known outcome, whether it was right
/// - `record` unit: every record's value counts once. `tenant` unit: the tenant's mean is its one
///   value, so the noise hides the tenant as a whole.
/// - Without records the release is noise around nothing: that there are none is private too.
/// - Randomness: the operating system's CSPRNG.
///
/// Nothing is released by calling this; see [`release_evaluation`].
///
/// # Errors
/// [`UpdateError`] if base or records do not fit the job, or the noise cannot be made.
pub fn noisy_evaluation(
    job: &JobSpec,
    spec: &EvaluationSpec,
    base: &[f32],
    data: &Dataset,
    held_out: &[u32],
    agreements: &[bool],
) -> Result<Vec<MetricSum>, UpdateError> {
    let outcomes = outcomes(&job.model, base, data, held_out)?;
    let statistics = NoisyStatistics::new(spec.noise_multiplier)?;
    let mut noise = SecureNoise::new()?;
    let sum = |&metric: &Metric| {
        let (low, high) = spec.bounds(metric);
        let of_records = |value: fn(&Outcome) -> f64| outcomes.iter().map(value).collect();
        let mut values: Vec<f64> = match metric {
            Metric::Accuracy => of_records(|outcome| outcome.accuracy),
            Metric::Loss => of_records(|outcome| outcome.loss),
            Metric::FeedbackAccuracy => {
                agreements.iter().map(|&right| f64::from(u8::from(right))).collect()
            }
        };
        // Clipped before the mean, so that no single record moves a tenant's mean by more.
        values.iter_mut().for_each(|value| *value = value.clamp(low, high));
        if job.privacy.unit == PrivacyUnit::Tenant && !values.is_empty() {
            values = vec![values.iter().sum::<f64>() / values.len() as f64];
        }
        let NoisySum { centred_sum, count } = statistics.sum(&values, (low, high), &mut noise)?;
        Ok(MetricSum { metric, centred_sum, count })
    };
    spec.metrics.iter().map(sum).collect()
}

/// The debit that a round's evaluation asks for.
pub(super) fn evaluation_request(
    assignment: &Assignment,
    approved: &Approved,
    release: Digest,
) -> DebitRequest {
    let events = approved.evaluation.clone();
    DebitRequest { kind: ReleaseKind::Evaluation, events, ..request(assignment, approved, release) }
}

/// Stores noisy metrics and debits the ledger for them; on `Ok`, both are durable and the metrics
/// may leave. A round that was evaluated before keeps what it has.
///
/// # Errors
/// [`UpdateError`]; then the metrics must not leave.
pub fn release_evaluation<S: ChainStore + Clone>(
    ledger: &SharedLedger<S>,
    files: &ReleaseFiles,
    assignment: &Assignment,
    approved: &Approved,
    metrics: &[MetricSum],
    now_ms: u64,
) -> Result<(), UpdateError> {
    let bytes = codec::encode(&metrics).map_err(UpdateError::Encode)?;
    let file = files.put(&bytes)?;
    let request = evaluation_request(assignment, approved, file.digest);
    let debit = ledger.lock().debit(request, &approved.budget, now_ms).map(|_| ());
    match debit {
        Ok(()) | Err(LedgerError::AlreadyDebited { .. }) => Ok(()),
        Err(error) => {
            if matches!(error, LedgerError::Store { .. } | LedgerError::NeedsReopen) {
                ledger.reopen()?;
            }
            let found = evaluated(ledger, &assignment.job.name, assignment.round);
            if found == Some(file.digest) { Ok(()) } else { Err(error.into()) }
        }
    }
}

/// What a round's evaluation released: the same metrics at every call, and none where there was no
/// debit or its file is lost.
#[must_use]
pub fn released_evaluation<S: ChainStore + Clone>(
    ledger: &SharedLedger<S>,
    files: &ReleaseFiles,
    job: &JobId,
    round: RoundNumber,
) -> Vec<MetricSum> {
    let bytes = evaluated(ledger, job, round).and_then(|digest| files.read(digest));
    bytes.and_then(|bytes| codec::decode(&bytes).ok()).unwrap_or_default()
}

/// The digest of what a round's evaluation may send, if it was debited.
pub(super) fn evaluated<S: ChainStore + Clone>(
    ledger: &SharedLedger<S>,
    job: &JobId,
    round: RoundNumber,
) -> Option<Digest> {
    let ledger = ledger.lock();
    let entry = ledger.release_of(job.as_str(), round.0, ReleaseKind::Evaluation)?;
    Some(Digest::from_bytes(entry.release))
}
