//! A tenant's share: virtual time and token quota.

use std::collections::VecDeque;

use tributary_protocol::time::Timestamp;

use super::{Refusal, TenantShare, sequence::Sequence};

const MINUTE_MS: f64 = 60_000.0;

/// One tenant's requests in order of arrival, and what it has had.
pub(super) struct Lane {
    pub(super) share: TenantShare,
    /// Rows had, divided by the weight; the lane that is furthest behind goes first.
    ///
    /// Source: start-time fair queueing, Goyal et al. 1996.
    pub(super) virtual_time: f64,
    pub(super) sequences: VecDeque<Sequence>,
    saved: f64,
    saved_at: Timestamp,
}

impl Lane {
    pub(super) fn new(share: TenantShare, now: Timestamp) -> Self {
        let saved = share.tokens_per_minute.map_or(0.0, |quota| f64::from(quota.get()));
        Self { share, virtual_time: 0.0, sequences: VecDeque::new(), saved, saved_at: now }
    }

    /// Accounts for rows that go into a batch.
    pub(super) fn charge(&mut self, rows: usize) {
        self.virtual_time += rows as f64 / f64::from(self.share.weight.get());
    }

    /// Takes tokens out of the quota.
    pub(super) fn spend(&mut self, now: Timestamp, tokens: usize) -> Result<(), Refusal> {
        let Some(quota) = self.share.tokens_per_minute else { return Ok(()) };
        let (per_minute, wanted) = (quota.get(), tokens as f64);
        let rate = f64::from(per_minute) / MINUTE_MS;
        if wanted > f64::from(per_minute) {
            return Err(Refusal::AboveQuota { tokens, per_minute });
        }
        let passed = now.since(self.saved_at).as_millis() as f64;
        self.saved = (self.saved + passed * rate).min(f64::from(per_minute));
        self.saved_at = now;
        if self.saved < wanted {
            let retry_after_ms = ((wanted - self.saved) / rate).ceil() as u64;
            return Err(Refusal::Quota { per_minute, retry_after_ms });
        }
        self.saved -= wanted;
        Ok(())
    }

    /// Gives back tokens that an answer did not need.
    pub(super) fn refund(&mut self, tokens: usize) {
        if let Some(quota) = self.share.tokens_per_minute {
            self.saved = (self.saved + tokens as f64).min(f64::from(quota.get()));
        }
    }

    /// Requests that have not begun.
    pub(super) fn waiting(&self) -> usize {
        self.sequences.iter().filter(|sequence| sequence.started.is_none()).count()
    }
}
