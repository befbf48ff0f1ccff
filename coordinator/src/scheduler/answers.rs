//! What the members of a cohort answer.

use tributary_privacy::secagg::{Blob, ClientMessage, PeerKeys};
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    id::{JobId, RoundNumber, TenantId},
    message::{CoordinatorMessage, SecaggPayload, UploadOffer},
    time::Timestamp,
};

use super::{Action, OfferAnswer, Scheduler, SchedulerError, metrics};
use crate::{
    audit::{Act, Actor, AuditEvent},
    round::Input,
};

impl Scheduler {
    /// A cohort member starts training, or goes on after a reconnection.
    ///
    /// - `credential`: the certificate that its connection showed, DER
    ///
    /// # Errors
    /// [`SchedulerError`] if the round is over or the tenant is not in it.
    pub fn accepted(
        &mut self,
        tenant: &TenantId,
        job: &JobId,
        round: RoundNumber,
        credential: &[u8],
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        let masked = self.job(job)?.record().spec.secagg.is_some();
        let credential = masked.then(|| Blob(credential.to_owned()));
        let accepted = Input::Accepted { tenant: tenant.clone(), credential };
        self.step(tenant, job, round, accepted, now)
    }

    /// A cohort member answers in a step of secure aggregation. What does not fit ends its part in
    /// the round, and it is told why.
    ///
    /// - `peers`: recognises the signatures of the cohort
    ///
    /// # Errors
    /// [`SchedulerError`] if the answer is refused.
    pub fn secagg(
        &mut self,
        tenant: &TenantId,
        job: &JobId,
        round: RoundNumber,
        payload: &SecaggPayload,
        peers: &dyn PeerKeys,
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        self.require_active(tenant)?;
        let open = self
            .jobs
            .get_mut(job)
            .ok_or_else(|| SchedulerError::JobUnknown { job: job.clone() })?;
        open.require_round(tenant, round)?;
        let outcome = payload
            .decode::<ClientMessage>()
            .map_err(|source| SchedulerError::SecaggMalformed { source: source.into() })
            .and_then(|message| Ok(open.round.secagg(now, tenant, message, peers)?));
        if let Err(error) = &outcome
            && error.code() == ErrorCode::SecaggMessageInvalid
        {
            let declined = Input::Declined(tenant.clone(), error.refusal());
            // Whoever is not in the cohort has nothing to leave.
            if open.round.handle(now, declined).is_ok() {
                let (actor, subject) = (Actor::tenant(tenant), format!("{job}/{round}"));
                let refusal = error.refusal();
                let event = AuditEvent::refused(actor, Act::RoundDecline, subject, refusal);
                self.actions.push_back(Action::Audit(event));
                let abandoned = Some(error.refusal().to_string());
                let (job, tenant) = (job.clone(), tenant.clone());
                self.send(tenant, CoordinatorMessage::RoundClosed { job, round, abandoned });
            }
        }
        self.settle_all(now);
        outcome
    }

    /// A cohort member will not report. Unless the reason is transient, it is not invited to this
    /// job again before it reconnects.
    ///
    /// # Errors
    /// [`SchedulerError`] if the round is over or the tenant is not in it.
    pub fn declined(
        &mut self,
        tenant: &TenantId,
        job: &JobId,
        round: RoundNumber,
        refusal: Refusal,
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        if !refusal.code.is_transient()
            && let Some(job) = self.jobs.get_mut(job)
            // A base that is not usable says nothing of another round's, as after a restored backup.
            // A policy refuses them all, also when it does so late.
            && (refusal.code != ErrorCode::BaseModelInvalid
                || job.require_round(tenant, round).is_ok())
        {
            job.refusals.insert(tenant.clone(), refusal.clone());
            self.unsettled = true;
        }
        let (actor, subject) = (Actor::tenant(tenant), format!("{job}/{round}"));
        let event = AuditEvent::refused(actor, Act::RoundDecline, subject, &refusal);
        let before = self.actions.len();
        self.step(tenant, job, round, Input::Declined(tenant.clone(), refusal), now)?;
        self.actions.insert(before, Action::Audit(event));
        Ok(())
    }

    /// Whether an update that a tenant offers is wanted.
    ///
    /// # Errors
    /// [`SchedulerError`] naming what does not fit.
    pub fn offered(
        &self,
        tenant: &TenantId,
        offer: &UploadOffer,
    ) -> Result<OfferAnswer, SchedulerError> {
        self.require_active(tenant)?;
        let job = self.job(&offer.job)?;
        let (length, expected) = (offer.update.length, job.update_bytes());
        if length != expected {
            return Err(SchedulerError::UpdateLength {
                job: offer.job.clone(),
                offered: length,
                expected,
            });
        }
        job.offered(tenant, offer.round, offer.update.digest)
    }

    /// An offered update is durable here and well-formed.
    ///
    /// # Errors
    /// [`SchedulerError`] if the round closed in the meantime.
    pub fn reported(
        &mut self,
        tenant: &TenantId,
        offer: &UploadOffer,
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        self.acknowledge(tenant, offer.ledger_head);
        if self.offered(tenant, offer)? == OfferAnswer::Stored {
            return Ok(());
        }
        self.take_metrics(tenant, offer)?;
        self.count_bytes(tenant, offer.update.length, now);
        self.served.insert(tenant.clone());
        self.step(
            tenant,
            &offer.job,
            offer.round,
            Input::Reported(tenant.clone(), offer.update.digest),
            now,
        )
    }

    /// Adds the metrics of an update that is about to be counted: both become durable together.
    fn take_metrics(
        &mut self,
        tenant: &TenantId,
        offer: &UploadOffer,
    ) -> Result<(), SchedulerError> {
        let job = self.jobs.get_mut(&offer.job).expect("the offer was checked");
        let base = job.round().base_of(tenant);
        let base = self.models.with_file(&offer.job, base).expect("bases are registered");
        let spec = job.record().spec.evaluation.as_ref();
        if !metrics::is_usable(&offer.evaluation, spec, base.version) {
            return Err(SchedulerError::Metrics { job: offer.job.clone() });
        }
        job.evaluated(base, &offer.evaluation);
        Ok(())
    }

    fn step(
        &mut self,
        tenant: &TenantId,
        job: &JobId,
        round: RoundNumber,
        input: Input,
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        let job = self
            .jobs
            .get_mut(job)
            .ok_or_else(|| SchedulerError::JobUnknown { job: job.clone() })?;
        job.require_round(tenant, round)?;
        job.round.handle(now, input)?;
        self.settle_all(now);
        Ok(())
    }
}
