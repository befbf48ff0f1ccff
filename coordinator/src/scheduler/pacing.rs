//! Which connected agents give up their place, and when they come back.

use tributary_protocol::{id::TenantId, message::CoordinatorMessage, time::Timestamp};

use super::Scheduler;
use crate::pace::Pace;

impl Scheduler {
    /// Spreads connections over time in this way from now on.
    pub const fn set_pace(&mut self, pace: Pace) {
        self.pace = Some(pace);
    }

    /// Sends agents of whom nothing is wanted away while there are more of them than places: who has
    /// had its turn first, then who came last.
    pub(super) fn steer(&mut self, now: Timestamp) {
        let Some(pace) = self.pace else { return };
        let places = pace.idle_connections_max as usize;
        if self.connected.len() <= places {
            return;
        }
        self.arrivals.retain(|tenant| self.connected.contains(tenant));
        let idle: Vec<TenantId> =
            self.arrivals.iter().filter(|tenant| !self.owes(tenant)).cloned().collect();
        let surplus = idle.len().saturating_sub(places);
        if surplus == 0 {
            return;
        }
        let (served, waiting): (Vec<_>, Vec<_>) =
            idle.into_iter().partition(|tenant| self.served.contains(tenant));
        let population = self.tenants.len();
        for tenant in served.into_iter().chain(waiting.into_iter().rev()).take(surplus) {
            let after_ms = pace.away_ms(&tenant, population, now);
            // It says goodbye itself; until then it has no place and is not invited.
            self.connected.remove(&tenant);
            self.served.remove(&tenant);
            self.arrivals.retain(|other| *other != tenant);
            self.send(tenant, CoordinatorMessage::ComeBack { after_ms });
        }
    }

    /// Whether an open round wants something of the tenant.
    pub(super) fn owes(&self, tenant: &TenantId) -> bool {
        self.jobs.values().any(|job| job.round().phase.assignment_deadline(tenant).is_some())
    }
}

#[cfg(test)]
mod tests {
    use tributary_protocol::message::LedgerHead;

    use super::{
        super::tests::{Bench, NOW, job, sent, tenant},
        *,
    };

    fn came_back(actions: &[crate::scheduler::Action], name: &str) -> Option<u64> {
        sent(actions, name).into_iter().find_map(|message| match message {
            CoordinatorMessage::ComeBack { after_ms } => Some(after_ms),
            _ => None,
        })
    }

    #[test]
    fn a_small_population_stays_and_the_last_of_a_large_one_is_sent_away() {
        let mut bench = Bench::new();
        bench.scheduler.set_pace(Pace { idle_connections_max: 2, turn_ms: 1_000 });
        for name in ["alpha", "beta"] {
            bench.scheduler.connected(&tenant(name), LedgerHead::EMPTY, NOW);
        }
        assert!(
            bench
                .run()
                .iter()
                .all(|action| came_back(std::slice::from_ref(action), "beta").is_none())
        );
        bench.scheduler.connected(&tenant("gamma"), LedgerHead::EMPTY, NOW);
        let actions = bench.run();
        let after = came_back(&actions, "gamma").expect("there is no place");
        // Three tenants for two places of a second each, from half to one and a half of that.
        assert!((750..=2250).contains(&after), "{after}");
        assert!(!bench.scheduler.is_connected(&tenant("gamma")));
        bench.scheduler.disconnected(&tenant("gamma"), NOW);
        bench.scheduler.disconnected(&tenant("alpha"), NOW);
        bench.scheduler.connected(&tenant("gamma"), LedgerHead::EMPTY, NOW);
        assert_eq!(came_back(&bench.run(), "gamma"), None, "a place is free");
    }

    #[test]
    fn who_owes_a_report_stays_and_who_has_reported_makes_room() {
        let mut bench = Bench::new();
        bench.scheduler.set_pace(Pace { idle_connections_max: 1, turn_ms: 1_000 });
        let mut spec = job();
        spec.round.rounds = 1;
        bench.submit_job(spec);
        for name in ["alpha", "beta"] {
            bench.scheduler.connected(&tenant(name), LedgerHead::EMPTY, NOW);
        }
        // Both are needed, though there is one place for the idle.
        assert!(bench.scheduler.owes(&tenant("alpha")) && bench.scheduler.owes(&tenant("beta")));
        assert!(came_back(&bench.run(), "beta").is_none());
        bench.scheduler.connected(&tenant("gamma"), LedgerHead::EMPTY, NOW);
        assert_eq!(came_back(&bench.run(), "gamma"), None);
        bench.play_round(1);
        let (alpha, gamma) = (
            bench.scheduler.is_connected(&tenant("alpha")),
            bench.scheduler.is_connected(&tenant("gamma")),
        );
        assert!(!alpha && gamma, "the served make room for the one that waits");
    }
}
