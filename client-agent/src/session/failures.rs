//! How long a job whose training fails here is left alone.

use std::collections::BTreeMap;

use tributary_protocol::{error_code::Refusal, id::JobId, time::Timestamp};

/// The wait after the first failure, in milliseconds.
const FIRST_MS: u64 = 10_000;
/// The longest wait, in milliseconds.
const LONGEST_MS: u64 = 1_800_000;

/// Jobs whose last training gave no release: a full disk, say, would make every round train in vain.
#[derive(Debug, Default)]
pub(super) struct Failures {
    jobs: BTreeMap<JobId, Failing>,
}

#[derive(Debug)]
struct Failing {
    in_a_row: u32,
    /// Nothing is trained before.
    until: Timestamp,
    last: Refusal,
}

impl Failures {
    /// Training gave no release: the next one waits, twice as long as after the failure before.
    pub(super) fn failed(&mut self, job: &JobId, refusal: Refusal, now: Timestamp) {
        let before = self.jobs.get(job).map_or(0, |failing| failing.in_a_row);
        let wait = FIRST_MS.saturating_mul(1 << before.min(20)).min(LONGEST_MS);
        let until = now.after_ms(wait);
        let failing = Failing { in_a_row: before.saturating_add(1), until, last: refusal };
        self.jobs.insert(job.clone(), failing);
    }

    /// Training gave a release.
    pub(super) fn succeeded(&mut self, job: &JobId) {
        self.jobs.remove(job);
    }

    /// Why a job is not trained now, if it is not.
    pub(super) fn refusal(&self, job: &JobId, now: Timestamp) -> Option<Refusal> {
        let Failing { in_a_row, until, last } = self.jobs.get(job).filter(|it| now < it.until)?;
        let text = format!(
            "the last {in_a_row} trainings of this job failed here, at last because: {}; the next try \
             is in {} s",
            last.message,
            until.since(now).as_secs() + 1
        );
        Some(Refusal::new(last.code, text))
    }
}

#[cfg(test)]
mod tests {
    use tributary_protocol::error_code::ErrorCode;

    use super::*;

    #[test]
    fn waits_double_to_a_bound_and_end_with_a_release() {
        let mut failures = Failures::default();
        let (job, other) = (JobId::new("census").unwrap(), JobId::new("other").unwrap());
        let full = || Refusal::new(ErrorCode::Internal, "the disk is full");
        let mut now = Timestamp(1_000_000);
        for wait_ms in [10_000, 20_000, 40_000, 80_000] {
            failures.failed(&job, full(), now);
            let refusal = failures.refusal(&job, now.after_ms(wait_ms - 1)).unwrap();
            assert_eq!(refusal.code, ErrorCode::Internal);
            assert!(refusal.message.contains("the disk is full"), "{refusal}");
            assert_eq!(failures.refusal(&other, now), None);
            now = now.after_ms(wait_ms);
            assert_eq!(failures.refusal(&job, now), None);
        }
        for _ in 0..40 {
            failures.failed(&job, full(), now);
        }
        assert!(failures.refusal(&job, now.after_ms(LONGEST_MS - 1)).is_some());
        assert_eq!(failures.refusal(&job, now.after_ms(LONGEST_MS)), None);
        failures.succeeded(&job);
        failures.failed(&job, full(), now);
        assert_eq!(failures.refusal(&job, now.after_ms(10_000)), None);
    }
}
