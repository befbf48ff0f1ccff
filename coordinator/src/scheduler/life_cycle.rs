//! What happens to tenants: suspension, revocation, quotas.

use std::collections::BTreeSet;

use tributary_protocol::{
    error_code::Refusal,
    id::{Digest, JobId, TenantId},
    time::Timestamp,
};

use super::{Action, Job, JobState, Scheduler, SchedulerError};
use crate::{
    round::{Input, grouped},
    store::Batch,
    tenants::{QuotaUsedUp, Standing, TenantContext, TenantRecord},
};

impl Scheduler {
    /// Stops a tenant until it is resumed: it leaves its open rounds and is not invited again.
    ///
    /// - returns: the refusal with which the driver closes its connection
    ///
    /// # Errors
    /// [`SchedulerError::TenantUnknown`] or [`SchedulerError::TenantRevoked`].
    pub fn suspend(
        &mut self,
        tenant: &TenantId,
        reason: String,
        now: Timestamp,
    ) -> Result<Refusal, SchedulerError> {
        let mut record = self.known_tenant(tenant)?.clone();
        if let Standing::Revoked { reason, .. } = record.standing {
            return Err(SchedulerError::TenantRevoked { tenant: tenant.clone(), reason });
        }
        record.standing = Standing::Suspended { reason, since: now };
        Ok(self.stop(record, now))
    }

    /// Lets a suspended tenant act again; it may reconnect with its certificate.
    ///
    /// # Errors
    /// [`SchedulerError::TenantUnknown`] or [`SchedulerError::TenantRevoked`].
    pub fn resume(&mut self, tenant: &TenantId, now: Timestamp) -> Result<(), SchedulerError> {
        let mut record = self.known_tenant(tenant)?.clone();
        if let Standing::Revoked { reason, .. } = record.standing {
            return Err(SchedulerError::TenantRevoked { tenant: tenant.clone(), reason });
        }
        record.standing = Standing::Active;
        self.put_tenant(record);
        self.settle_all(now);
        Ok(())
    }

    /// Ends a tenant: its certificate and its invitation stop to work. What it reported before stays
    /// counted, and the acknowledged head of its ledger stays known.
    ///
    /// - returns: the refusal with which the driver closes its connection
    ///
    /// # Errors
    /// [`SchedulerError::TenantUnknown`].
    pub fn revoke(
        &mut self,
        tenant: &TenantId,
        reason: String,
        now: Timestamp,
    ) -> Result<Refusal, SchedulerError> {
        let mut record = self.known_tenant(tenant)?.clone();
        record.standing = Standing::Revoked { reason, since: now };
        (record.certificate, record.next_certificate) = (None, None);
        record.invitation.used.get_or_insert(now);
        Ok(self.stop(record, now))
    }

    /// Changes what a tenant may do and use.
    ///
    /// # Errors
    /// [`SchedulerError::TenantUnknown`].
    pub fn set_context(
        &mut self,
        context: TenantContext,
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        let known = self.known_tenant(&context.id)?.clone();
        let record = TenantRecord { context, ..known };
        self.put_tenant(record);
        self.settle_all(now);
        Ok(())
    }

    /// Whether the tenant is known and may act.
    ///
    /// # Errors
    /// [`SchedulerError`] saying what it is instead.
    pub fn require_active(&self, tenant: &TenantId) -> Result<(), SchedulerError> {
        let who = || tenant.clone();
        match self.tenants.get(tenant).map(|record| &record.standing) {
            Some(Standing::Active) => Ok(()),
            Some(Standing::Suspended { reason, .. }) => {
                Err(SchedulerError::TenantSuspended { tenant: who(), reason: reason.clone() })
            }
            Some(Standing::Revoked { reason, .. }) => {
                Err(SchedulerError::TenantRevoked { tenant: who(), reason: reason.clone() })
            }
            None => Err(SchedulerError::CertificateNotRegistered { tenant: who() }),
        }
    }

    /// A tenant asks for `bytes` of a model file; they count against its quota.
    ///
    /// # Errors
    /// [`SchedulerError::QuotaExceeded`], unless an open round waits for this tenant to train on
    /// this file; [`SchedulerError::ModelUnknown`] if no job that the tenant may take part in has it.
    pub fn download(
        &mut self,
        tenant: &TenantId,
        file: Digest,
        bytes: u64,
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        self.require_active(tenant)?;
        let reachable = self
            .models
            .iter()
            .any(|model| model.has_file(file) && self.is_in_region(tenant, &model.job));
        if !reachable {
            return Err(SchedulerError::ModelUnknown { file });
        }
        let owed = self.jobs.values().any(|job| {
            let base = self.models.with_file(&job.record().spec.name, job.round().base_of(tenant));
            base.is_some_and(|base| base.has_file(file))
                && job.round().phase.assignment_deadline(tenant).is_some()
        });
        let record = self.known_tenant(tenant)?;
        let room = record.context.quotas.check_bytes(record.usage, bytes, now);
        if let Err(quota) = room
            && !owed
        {
            return Err(SchedulerError::QuotaExceeded { tenant: tenant.clone(), quota });
        }
        self.count_bytes(tenant, bytes, now);
        Ok(())
    }

    /// A tenant opens a connection, answers an invitation, or opens a transfer.
    ///
    /// # Errors
    /// [`SchedulerError::QuotaExceeded`], unless an open round waits for this tenant: what a release
    /// has cost in privacy is not thrown away for a quota.
    pub fn count_request(
        &mut self,
        tenant: &TenantId,
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        let owes =
            self.jobs.values().any(|job| job.round().phase.assignment_deadline(tenant).is_some());
        let Some(record) = self.tenants.get_mut(tenant) else { return Ok(()) };
        match record.context.quotas.check_requests(record.usage, 1, now) {
            Err(quota) if !owes => {
                Err(SchedulerError::QuotaExceeded { tenant: tenant.clone(), quota })
            }
            _ => {
                // Becomes durable with the next bytes or round: a flush for each message would cost
                // more than the message.
                record.usage.add_request(now);
                self.unsettled |= record.context.quotas.are_set();
                Ok(())
            }
        }
    }

    pub(super) fn count_bytes(&mut self, tenant: &TenantId, bytes: u64, now: Timestamp) {
        if let Some(record) = self.tenants.get_mut(tenant) {
            record.usage.add_bytes(bytes, now);
            self.unsettled |= record.context.quotas.are_set();
            let mut batch = Batch::default();
            record.put(&mut batch);
            self.actions.push_back(Action::Persist(batch));
        }
    }

    pub(super) fn count_round(&mut self, invited: &BTreeSet<TenantId>, now: Timestamp) {
        let mut batch = Batch::default();
        for tenant in invited {
            if let Some(record) = self.tenants.get_mut(tenant) {
                record.usage.add_round(now);
                record.put(&mut batch);
            }
        }
        if !batch.is_empty() {
            self.actions.push_back(Action::Persist(batch));
        }
    }

    /// Whether a whole round of the job fits into the tenant's quotas.
    pub(super) fn check_room(
        &self,
        tenant: &TenantId,
        job: &JobId,
        now: Timestamp,
    ) -> Result<(), QuotaUsedUp> {
        let (Some(record), Some(job)) = (self.tenants.get(tenant), self.jobs.get(job)) else {
            return Ok(());
        };
        let base = self.models.latest(&job.record().spec.name);
        let bytes = job.update_bytes() + base.map_or(0, |base| base.file.length);
        record.context.quotas.check_round(record.usage, bytes, now)
    }

    /// Whether every job's round fits into a tenant's quotas.
    pub(super) fn has_room(&self, record: &TenantRecord, now: Timestamp) -> bool {
        self.jobs.keys().all(|job| self.check_room(&record.context.id, job, now).is_ok())
    }

    /// One line for people: what a job waits for, and which tenants it cannot invite.
    #[must_use]
    pub fn waiting_for(&self, job: &Job, now: Timestamp) -> String {
        let (mut line, name) = (job.waiting_for(), &job.record().spec.name);
        if job.record().state != JobState::Running {
            return line;
        }
        let candidates =
            self.tenants.values().filter(|record| self.is_in_region(&record.context.id, name));
        let kept_out = candidates.filter_map(|record| {
            let tenant = &record.context.id;
            match &record.standing {
                Standing::Active => Some((tenant, self.kept_out(tenant, name, now)?)),
                Standing::Suspended { .. } => Some((tenant, "suspended".to_owned())),
                Standing::Revoked { .. } => None,
            }
        });
        for (tenants, reason) in grouped(kept_out) {
            line += &format!("; {tenants}: {reason}");
        }
        line
    }

    /// Why a tenant without part in a job's round is not invited, if there is a reason.
    #[must_use]
    pub fn kept_out(&self, tenant: &TenantId, job: &JobId, now: Timestamp) -> Option<String> {
        if let Some(below) = self.below_floor(tenant) {
            return Some(below.to_string());
        }
        self.check_room(tenant, job, now).err().map(|quota| quota.to_string())
    }

    fn known_tenant(&self, tenant: &TenantId) -> Result<&TenantRecord, SchedulerError> {
        let unknown = || SchedulerError::TenantUnknown { tenant: tenant.clone() };
        self.tenants.get(tenant).ok_or_else(unknown)
    }

    /// Takes a tenant out of everything that is open.
    fn stop(&mut self, record: TenantRecord, now: Timestamp) -> Refusal {
        let tenant = record.context.id.clone();
        self.put_tenant(record);
        let refusal = self.require_active(&tenant).expect_err("it was just stopped").refusal();
        self.connected.remove(&tenant);
        for job in self.jobs.values_mut() {
            job.refusals.remove(&tenant);
            // Whoever is not in the cohort has nothing to leave.
            let _ = job.round.handle(now, Input::Declined(tenant.clone(), refusal.clone()));
        }
        self.settle_all(now);
        refusal
    }
}
