//! The scheduler's side of tenants: enrolment, connections, and who may serve which job.

use tributary_protocol::{
    error_code::Refusal,
    id::{Digest, JobId, TenantId},
    isolation::{BelowFloor, Isolation},
    message::{CoordinatorMessage, EnrollmentResponse, LedgerHead},
    time::Timestamp,
};

use super::{Action, Scheduler, SchedulerError};
use crate::{
    round::Input,
    store::Batch,
    tenants::{EnrollmentError, Standing, TenantContext, TenantRecord, TenantRole},
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

    /// How many tenants' agents are connected.
    #[must_use]
    pub fn connected_count(&self) -> usize {
        self.connected.len()
    }

    /// Adds a tenant or replaces its record.
    pub fn put_tenant(&mut self, record: TenantRecord) {
        let mut batch = Batch::default();
        record.put(&mut batch);
        self.actions.push_back(Action::Persist(batch));
        self.tenants.insert(record.context.id.clone(), record);
        self.unsettled = true;
    }

    /// Whether a token's secret admits the tenant.
    ///
    /// # Errors
    /// [`SchedulerError::Enrollment`]; [`SchedulerError::TenantSuspended`] if the secret is right.
    pub fn check_enrollment(
        &self,
        tenant: &TenantId,
        secret: &[u8; 32],
        now: Timestamp,
    ) -> Result<(), SchedulerError> {
        let record = self.tenants.get(tenant).ok_or(EnrollmentError::Unknown)?;
        record.invitation.check(tenant, secret, now)?;
        self.require_active(tenant)
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
        (record.certificate, record.next_certificate) = (Some(certificate), None);
        self.put_tenant(record);
        Ok(())
    }

    /// Registers the certificate that takes the place of a tenant's, and hands it over. The one before
    /// works until the new one is first shown, so nothing is lost if the answer is.
    ///
    /// - `chain`: DER, leaf first
    pub fn renewed(&mut self, tenant: &TenantId, chain: Vec<Vec<u8>>) {
        let (Some(record), Some(leaf)) = (self.tenants.get(tenant), chain.first()) else { return };
        let record = TenantRecord { next_certificate: Some(Digest::of(leaf)), ..record.clone() };
        self.put_tenant(record);
        let answer = EnrollmentResponse::Issued { certificates: chain };
        self.send(tenant.clone(), CoordinatorMessage::Renewal(answer));
    }

    /// Tells a tenant why its certificate is not renewed.
    pub fn renewal_refused(&mut self, tenant: &TenantId, refusal: Refusal) {
        let answer = EnrollmentResponse::Refused(refusal);
        self.send(tenant.clone(), CoordinatorMessage::Renewal(answer));
    }

    /// Whether a connection may act for the tenant that its certificate names. Counts as a request.
    ///
    /// # Errors
    /// [`SchedulerError`] if the certificate is not the registered one, the tenant may not act, or
    /// its quota has no room.
    pub fn authenticate(
        &mut self,
        tenant: &TenantId,
        certificate: Digest,
        now: Timestamp,
    ) -> Result<TenantContext, SchedulerError> {
        let context = self.check_certificate(tenant, certificate)?;
        self.count_request(tenant, now)?;
        let record = &self.tenants[tenant];
        if record.next_certificate == Some(certificate) {
            let (certificate, next_certificate) = (record.next_certificate, None);
            self.put_tenant(TenantRecord { certificate, next_certificate, ..record.clone() });
        }
        Ok(context)
    }

    /// Whether the tenant may act, and this is its current certificate.
    ///
    /// # Errors
    /// [`SchedulerError`] if not.
    pub fn check_certificate(
        &self,
        tenant: &TenantId,
        certificate: Digest,
    ) -> Result<TenantContext, SchedulerError> {
        self.require_active(tenant)?;
        let is_shown = |known: Option<Digest>| known == Some(certificate);
        let record = self
            .tenants
            .get(tenant)
            .filter(|record| is_shown(record.certificate) || is_shown(record.next_certificate));
        let record = record
            .ok_or_else(|| SchedulerError::CertificateNotRegistered { tenant: tenant.clone() })?;
        Ok(record.context.clone())
    }

    /// A tenant's agent says how far it keeps the tenant apart from others; one that has not said so
    /// does not at all. A tenant whose agent is below its floors is not invited.
    pub fn keeps_apart(&mut self, tenant: &TenantId, levels: Isolation) {
        self.levels.insert(tenant.clone(), levels);
    }

    /// Where a tenant's agent is below the tenant's floors, as far as is known.
    #[must_use]
    pub fn below_floor(&self, tenant: &TenantId) -> Option<BelowFloor> {
        let floors = self.tenants.get(tenant)?.context.isolation;
        let is_connected = self.connected.contains(tenant);
        let levels = self.levels.get(tenant).copied();
        levels.or(is_connected.then(Isolation::default))?.below(floors)
    }

    /// A tenant's agent said hello: it hears its acknowledged ledger head, the newest base of each
    /// job, and what it still owes.
    pub fn connected(&mut self, tenant: &TenantId, head: LedgerHead, now: Timestamp) {
        let Some(record) = self.tenants.get(tenant) else { return };
        // The head as it was before this hello: the agent compares it with its own.
        self.actions.push_back(Action::Welcome(tenant.clone(), record.acknowledged_head));
        self.acknowledge(tenant, head);
        self.connected.insert(tenant.clone());
        self.arrivals.retain(|other| other != tenant);
        self.arrivals.push(tenant.clone());
        self.served.remove(tenant);
        let jobs: Vec<_> = self.jobs.keys().cloned().collect();
        for id in jobs {
            let serves = self.may_serve(tenant, &id);
            let job = self.jobs.get_mut(&id).expect("listed above");
            job.refusals.remove(tenant);
            job.round
                .handle(now, Input::Connected(tenant.clone()))
                .expect("connections fit every phase");
            let pinned = self.models.is_pinned(&id);
            let served = self.models.served(&id).filter(|served| pinned || served.version > 0);
            if let Some(version) = served.filter(|_| serves) {
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
    pub(super) fn eligible(&self, job: &JobId, now: Timestamp) -> impl Iterator<Item = TenantId> {
        let may_invite = self.jobs.get(job).is_some_and(super::Job::may_invite);
        self.connected
            .iter()
            .filter(move |tenant| may_invite && self.is_willing(tenant, job, now))
            .filter(move |tenant| !self.is_busy_above(tenant, job))
            .cloned()
    }

    /// Whether the tenant owes a report to a job of higher priority.
    fn is_busy_above(&self, tenant: &TenantId, job: &JobId) -> bool {
        let priority = self.jobs[job].record().priority;
        self.jobs.values().any(|other| {
            other.record().priority > priority
                && other.round().phase.assignment_deadline(tenant).is_some()
        })
    }

    /// Connected tenants that hear of a job's base models.
    pub(super) fn listeners(&self, job: &JobId) -> impl Iterator<Item = TenantId> {
        self.connected.iter().filter(|tenant| self.may_serve(tenant, job)).cloned()
    }

    /// How many tenants could take part in a job if all were connected.
    pub(super) fn population(&self, job: &JobId, now: Timestamp) -> usize {
        self.tenants.keys().filter(|tenant| self.is_willing(tenant, job, now)).count()
    }

    fn is_willing(&self, tenant: &TenantId, job: &JobId, now: Timestamp) -> bool {
        self.may_train(tenant, job)
            && !self.jobs[job].refusals.contains_key(tenant)
            && self.below_floor(tenant).is_none()
            && self.check_room(tenant, job, now).is_ok()
    }

    fn may_train(&self, tenant: &TenantId, job: &JobId) -> bool {
        self.has_role(tenant, job, TenantRole::Train)
    }

    fn may_serve(&self, tenant: &TenantId, job: &JobId) -> bool {
        self.has_role(tenant, job, TenantRole::Serve)
    }

    /// Whether the tenant is active, where the job's data may be, and has the role.
    fn has_role(&self, tenant: &TenantId, job: &JobId, role: TenantRole) -> bool {
        self.tenants.get(tenant).is_some_and(|record| {
            record.standing == Standing::Active && record.context.roles.contains(&role)
        }) && self.is_in_region(tenant, job)
    }

    /// Whether the tenant is where the job's models may be.
    pub(super) fn is_in_region(&self, tenant: &TenantId, job: &JobId) -> bool {
        let (Some(record), Some(job)) = (self.tenants.get(tenant), self.jobs.get(job)) else {
            return false;
        };
        let regions = &job.record().spec.regions;
        regions.is_empty() || regions.contains(&record.context.region)
    }
}
