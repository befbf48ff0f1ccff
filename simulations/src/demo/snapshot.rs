//! How the demo stands at one moment: everything that the progress display shows.

use std::time::Duration;

use super::documents::{AgentStatus, JobStatus};

/// How many phases a tenant's part of a round has for the estimate of the time that is left: local
/// training dominates, the rest is the last share.
const TRAINING_SHARE: f64 = 0.9;

/// One look at coordinator and agents.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Rounds that are part of the base.
    pub rounds_committed: u64,
    /// Rounds of the job.
    pub rounds: u64,
    /// The round in progress.
    pub round: Option<u64>,
    /// Its phase.
    pub phase: String,
    /// What the coordinator waits for.
    pub waiting_for: String,
    /// Accuracy of the newest base on the public test images.
    pub base_accuracy: Option<f64>,
    /// One entry for each tenant.
    pub tenants: Vec<TenantSnapshot>,
}

/// One look at one agent.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantSnapshot {
    /// The tenant.
    pub tenant: String,
    /// What the coordinator says about it.
    pub state: String,
    /// What the agent says about itself.
    pub status: AgentStatus,
}

impl Snapshot {
    /// Joins the answers of the coordinator and the agents.
    #[must_use]
    pub fn new(
        job: &JobStatus,
        agents: Vec<(String, AgentStatus)>,
        base_accuracy: Option<f64>,
    ) -> Self {
        let state = |tenant: &str| {
            let known = job.tenants.iter().find(|known| known.tenant == tenant);
            known.map_or_else(|| "unknown".to_owned(), |known| known.state.clone())
        };
        let tenants = agents
            .into_iter()
            .map(|(tenant, status)| TenantSnapshot { state: state(&tenant), tenant, status })
            .collect();
        Self {
            rounds_committed: job.rounds_committed,
            rounds: job.rounds,
            round: job.round,
            phase: job.phase.clone().unwrap_or_default(),
            waiting_for: job.waiting_for.clone().unwrap_or_default(),
            base_accuracy,
            tenants,
        }
    }

    /// Whether all rounds are committed.
    #[must_use]
    pub const fn is_committed(&self) -> bool {
        self.rounds_committed >= self.rounds
    }

    /// The largest ε that any tenant has spent.
    #[must_use]
    pub fn epsilon(&self) -> f64 {
        self.tenants.iter().map(|tenant| tenant.status.epsilon).fold(0.0, f64::max)
    }

    /// The part of the job that is done, from 0 to 1, with the agents' steps in this round.
    #[must_use]
    pub fn fraction(&self) -> f64 {
        if self.is_committed() {
            return 1.0;
        }
        let parts = self.tenants.iter().map(TenantSnapshot::round_fraction);
        let of_round = parts.sum::<f64>() / self.tenants.len().max(1) as f64;
        ((self.rounds_committed as f64 + of_round) / self.rounds as f64).min(1.0)
    }

    /// The time that is left if the rest is as fast as the part done in `elapsed`.
    #[must_use]
    pub fn time_left(&self, elapsed: Duration) -> Option<Duration> {
        let fraction = self.fraction();
        // Before that, starting up outweighs the work itself.
        (fraction > 0.01).then(|| elapsed.mul_f64((1.0 - fraction) / fraction))
    }
}

impl TenantSnapshot {
    fn round_fraction(&self) -> f64 {
        match (self.state.as_str(), self.status.phase.as_str()) {
            ("reported", _) => 1.0,
            (_, "training") if self.status.steps > 0 => {
                TRAINING_SHARE * self.status.step as f64 / self.status.steps as f64
            }
            (_, "uploading") => TRAINING_SHARE,
            _ => 0.0,
        }
    }

    /// What the tenant does, in one line.
    #[must_use]
    pub fn line(&self) -> String {
        let status = &self.status;
        let activity = match (&status.refused, status.steps) {
            (Some(reason), _) => format!("refused: {reason}"),
            (None, 0) => status.phase.clone(),
            (None, steps) => format!("{} {}/{steps}", status.phase, status.step),
        };
        let mut line = format!(
            "{:<9} {activity:<15} ε {:.3}  {:>8} sent",
            self.state,
            status.epsilon,
            bytes(status.bytes_sent)
        );
        if let Some(accuracy) = status.base.as_ref().and_then(|base| base.accuracy) {
            line += &format!("  own data {}", percent(accuracy));
            if let Some(adapter) = status.adapter.as_ref().and_then(|adapter| adapter.accuracy) {
                line += &format!(", adapted {}", percent(adapter));
            }
        }
        line
    }
}

/// A fraction as people read it.
#[must_use]
pub fn percent(fraction: f64) -> String {
    format!("{:.1} %", fraction * 100.0)
}

/// A number of bytes as people read it.
#[must_use]
pub fn bytes(count: u64) -> String {
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.1} GB", count as f64 / 1e9),
    }
}

/// A duration as people read it.
#[must_use]
pub fn duration(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..100 => format!("{seconds} s"),
        seconds => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A snapshot after `committed` of 10 rounds, with tenants at `(coordinator's state, phase, step)`
    /// of 20 steps.
    pub(in crate::demo) fn snapshot(committed: u64, tenants: &[(&str, &str, u64)]) -> Snapshot {
        let tenant = |(index, &(state, phase, step)): (usize, &(&str, &str, u64))| TenantSnapshot {
            tenant: format!("tenant-{index}"),
            state: state.to_owned(),
            status: AgentStatus {
                phase: phase.to_owned(),
                detail: None,
                step,
                steps: 20,
                base: None,
                adapter: None,
                newest: None,
                epsilon: index as f64,
                delta: 1e-5,
                bytes_sent: 1_500_000,
                refused: None,
            },
        };
        Snapshot {
            rounds_committed: committed,
            rounds: 10,
            round: Some(committed + 1),
            phase: "reporting".to_owned(),
            waiting_for: "1 of 2 updates".to_owned(),
            base_accuracy: Some(0.812),
            tenants: tenants.iter().enumerate().map(tenant).collect(),
        }
    }

    #[test]
    fn the_fraction_counts_steps_within_the_round() {
        let half = snapshot(4, &[("reported", "idle", 0), ("accepted", "idle", 0)]);
        assert!((half.fraction() - 0.45).abs() < 1e-9);
        let training = snapshot(4, &[("accepted", "training", 10)]);
        assert!((training.fraction() - 0.445).abs() < 1e-9);
        assert_eq!(snapshot(10, &[]).fraction(), 1.0);
    }

    #[test]
    fn the_time_left_is_proportional() {
        let half = snapshot(5, &[("connected", "idle", 0)]);
        assert_eq!(half.time_left(Duration::from_secs(30)), Some(Duration::from_secs(30)));
        assert_eq!(snapshot(0, &[("connected", "idle", 0)]).time_left(Duration::ZERO), None);
    }

    #[test]
    fn lines_say_what_a_tenant_does() {
        let snapshot = snapshot(0, &[("accepted", "training", 7), ("reported", "idle", 0)]);
        let line = snapshot.tenants[0].line();
        assert!(line.contains("training 7/20") && line.contains("1.5 MB"), "{line}");
        assert_eq!(snapshot.epsilon(), 1.0);
        let mut refusing = snapshot.tenants[1].clone();
        refusing.status.refused = Some("too little noise".to_owned());
        assert!(refusing.line().contains("refused: too little noise"));
    }
}
