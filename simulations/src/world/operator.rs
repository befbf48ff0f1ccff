//! What the operator of the coordinator does: enrol, submit, suspend, revoke.

use tributary_coordinator::{
    aggregation, registry,
    tenants::{TenantContext, invite},
};
use tributary_protocol::id::{Digest, Region};

use super::{
    Rule,
    certificates::{Certificates, name},
    play::World,
};

impl World {
    /// Adds a tenant that has enrolled.
    pub(super) fn enrol(&mut self, tenant: u32) {
        self.coordinate(|world, process| {
            let now = world.coordinator_clock();
            let region = Region::new("eu").expect("a name");
            let context = TenantContext::new(name(tenant), region);
            let (mut record, _) = invite(context, None, [1; 32], Digest::of(b"authority"), now);
            record.invitation.used = Some(now);
            let identity = Certificates::shared().tenant(tenant);
            record.certificate = Some(Digest::of(&identity.tls.chain[0]));
            process.scheduler.put_tenant(record);
        });
    }

    /// Submits the jobs of the scenario.
    pub(super) fn submit_jobs(&mut self) {
        for (number, plan) in self.scenario.jobs.clone().iter().enumerate() {
            let seed = self.scenario.seed.wrapping_add(number as u64);
            self.coordinate(|world, process| {
                let (spec, now) = (plan.spec(number), world.coordinator_clock());
                let blobs = &world.coordinator.blobs;
                let submitted = aggregation::plan_lattice(&spec).and_then(|lattice| {
                    let initial = registry::initial_model(&spec, seed, now, blobs)?;
                    Ok((lattice, initial))
                });
                let outcome =
                    submitted.map_err(|error| error.to_string()).and_then(|(lattice, initial)| {
                        let submitted = process.scheduler.submit(spec, lattice, initial, seed, now);
                        submitted.map_err(|error| format!("{error:?}"))
                    });
                if let Err(error) = outcome {
                    world.breaks((Rule::Soundness, format!("job {number}: {error}")));
                }
            });
        }
    }

    /// Suspends a tenant, or revokes it for ever.
    pub(super) fn stop_tenant(&mut self, tenant: u32, for_ever: bool) {
        let who = name(tenant);
        self.coordinate(|world, process| {
            let now = world.coordinator_clock();
            let reason = "the world wants it".to_owned();
            let stopped = match for_ever {
                true => process.scheduler.revoke(&who, reason, now),
                false => process.scheduler.suspend(&who, reason, now),
            };
            // A tenant that has not enrolled yet, or was revoked before, cannot be stopped.
            let Ok(refusal) = stopped else { return };
            if let Some(link) = process.sessions.remove(&who) {
                world.close_link(link, Some(refusal));
                process.scheduler.disconnected(&who, now);
            }
        });
    }

    /// Lets a suspended tenant act again.
    pub(super) fn resume_tenant(&mut self, tenant: u32) {
        let who = name(tenant);
        self.coordinate(|world, process| {
            // It may have been revoked meanwhile.
            let _ = process.scheduler.resume(&who, world.coordinator_clock());
        });
    }
}
