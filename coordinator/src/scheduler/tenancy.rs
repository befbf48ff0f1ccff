//! The scheduler's side of tenants: enrolment, connections, and who may serve which job.

use tributary_protocol::{
    id::{Digest, JobId, TenantId},
    message::{CoordinatorMessage, LedgerHead},
    time::Timestamp,
};

use super::{Action, Scheduler, SchedulerError};
use crate::{
    round::Input,
    store::Batch,
    tenants::{EnrollmentError, TenantContext, TenantRecord},
};

impl Scheduler {
    /// All tenants.
    pub fn tenants(&self) -> impl Iterator<Item = &TenantRecord> {
        self.tenants.values()
    }

    /// One tenant.
    #[must_use]
    pub fn tenant(&self, tenant: &TenantId) -> Option<&TenantRecord> {
        self.tenants.get(tenant)
    }

    /// Whether the tenant's agent is connected.
    #[must_use]
    pub fn is_connected(&self, tenant: &TenantId) -> bool {
        self.connected.contains(tenant)
    }

    /// Adds a tenant or replaces its record.
    pub fn put_tenant(&mut self, record: TenantRecord) {
        let mut batch = Batch::default();
        record.put(&mut batch);
        self.actions.push_back(Action::Persist(batch));
        self.tenants.insert(record.context.id.clone(), record);
    }

    /// Whether a token's secret admits the tenant.
    ///
    /// # Errors
    /// [`SchedulerError::Enrollment`].
    pub fn check_enrollment(
        &self,
        tenant: &TenantId,
        secret: &[u8; 32],
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        let record = self.tenants.get(tenant).ok_or(EnrollmentError::Unknown)?;
        Ok(record.invitation.check(tenant, secret, now)?)
    }

    /// Uses up a tenant's token and registers the certificate that was issued for it.
    ///
    /// # Errors
    /// [`SchedulerError::Enrollment`] if the token does not admit (any more).
    pub fn enrolled(
        &mut self,
        tenant: &TenantId,
        secret: &[u8; 32],
        certificate: Digest,
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        self.check_enrollment(tenant, secret, now)?;
        let mut record = self.tenants[tenant].clone();
        record.invitation.used = Some(now);
        record.certificate = Some(certificate);
        self.put_tenant(record);
        Ok(())
    }

    /// Whether a connection may act for the tenant that its certificate names.
    ///
    /// # Errors
    /// [`SchedulerError::CertificateNotRegistered`].
    pub fn authenticate(
        &self,
        tenant: &TenantId,
        certificate: Digest,
    ) -> Result<TenantContext, SchedulerError> {
        match self.tenants.get(tenant) {
            Some(record) if record.certificate == Some(certificate) => Ok(record.context.clone()),
            _ => Err(SchedulerError::CertificateNotRegistered { tenant: tenant.clone() }),
        }
    }

    /// A tenant's agent said hello: it hears its acknowledged ledger head, the newest base of each
    /// job, and what it still owes.
    pub fn connected(&mut self, tenant: &TenantId, head: LedgerHead, now: Timestamp) {
        let Some(record) = self.tenants.get(tenant) else { return };
        // The head as it was before this hello: the agent compares it with its own.
        self.actions.push_back(Action::Welcome(tenant.clone(), record.acknowledged_head));
        self.acknowledge(tenant, head);
        self.connected.insert(tenant.clone());
        let jobs: Vec<_> =
            self.jobs.keys().filter(|job| self.may_serve(tenant, job)).cloned().collect();
        for id in jobs {
            let job = self.jobs.get_mut(&id).expect("listed above");
            job.refusals.remove(tenant);
            job.round
                .handle(now, Input::Connected(tenant.clone()))
                .expect("connections fit every phase");
            if let Some(version) = self.models.latest(&id).filter(|version| version.version > 0) {
                let base = version.announcement(&job.record().spec);
                self.send(tenant.clone(), CoordinatorMessage::NewBase(base));
            }
        }
        self.settle_all(now);
    }

    /// A tenant's connection ended.
    pub fn disconnected(&mut self, tenant: &TenantId, now: Timestamp) {
        self.connected.remove(tenant);
        self.settle_all(now);
    }

    /// Connected tenants that may take part in a job and have not refused it.
    pub(super) fn eligible(&self, job: &JobId) -> impl Iterator<Item = TenantId> {
        self.connected.iter().filter(|tenant| self.is_willing(tenant, job)).cloned()
    }

    /// How many tenants could take part in a job if all were connected.
    pub(super) fn population(&self, job: &JobId) -> usize {
        self.tenants.keys().filter(|tenant| self.is_willing(tenant, job)).count()
    }

    fn is_willing(&self, tenant: &TenantId, job: &JobId) -> bool {
        self.may_serve(tenant, job) && !self.jobs[job].refusals.contains_key(tenant)
    }

    fn may_serve(&self, tenant: &TenantId, job: &JobId) -> bool {
        let (Some(record), Some(job)) = (self.tenants.get(tenant), self.jobs.get(job)) else {
            return false;
        };
        let regions = &job.record().spec.regions;
        regions.is_empty() || regions.contains(&record.context.region)
    }
}
