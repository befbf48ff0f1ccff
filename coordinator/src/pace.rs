//! Pace steering: how many agents are connected at a time, and when the others come back.
//!
//! A small population stays connected, so that a full cohort is there at once. Of a larger one only
//! a part has a place; the others are told to come back after a random time that grows with the
//! population, so that everybody gets a turn and the load is even. An agent that has reported gives
//! its place to the next; one that owes something keeps it.
//!
//! Source: Bonawitz et al. 2019, arXiv:1902.01046, section 2.3.

use serde::{Deserialize, Serialize};
use tributary_protocol::{
    id::{Digest, TenantId},
    time::Timestamp,
};

/// The longest that an agent is told to stay away, in milliseconds: a day.
const AWAY_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// How connections are spread over time, `[pace]` of `coordinator.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pace {
    /// Agents that may be connected while nothing is wanted of them, at least 1. Default 2000.
    pub idle_connections_max: u32,
    /// How long an agent should have its place, in milliseconds, at least 1: about the time of a
    /// round. Default 60 000.
    pub turn_ms: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { idle_connections_max: 2000, turn_ms: 60_000 }
    }
}

impl Pace {
    /// How many milliseconds an agent without a place should stay away.
    ///
    /// On average as many turns as there are tenants for a place, from half to one and a half of
    /// that. The draw depends on who, when and how many only, so a replay gives the same.
    ///
    /// - `population`: tenants that may connect
    #[must_use]
    pub fn away_ms(&self, tenant: &TenantId, population: usize, now: Timestamp) -> u64 {
        let places = f64::from(self.idle_connections_max.max(1));
        let mean = self.turn_ms as f64 * (population as f64 / places).max(1.0);
        let name = tenant.as_str().as_bytes();
        let digest = Digest::of(&[&now.0.to_le_bytes()[..], name].concat());
        let bits =
            digest.as_bytes()[..8].iter().fold(0_u64, |bits, &byte| bits << 8 | u64::from(byte));
        let uniform = bits as f64 / u64::MAX as f64;
        ((mean * (0.5 + uniform)) as u64).clamp(1, AWAY_MS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(9);

    fn tenant(index: usize) -> TenantId {
        TenantId::new(format!("t{index}")).expect("valid")
    }

    #[test]
    fn agents_come_back_evenly_spread_and_later_the_more_there_are() {
        let pace = Pace { idle_connections_max: 100, turn_ms: 1_000 };
        for (population, mean) in [(50, 1_000), (100, 1_000), (10_000, 100_000)] {
            let away: Vec<u64> =
                (0..2_000).map(|index| pace.away_ms(&tenant(index), population, NOW)).collect();
            assert!(away.iter().all(|&ms| ms >= mean / 2 && ms <= mean * 3 / 2));
            // A tenth of the window gets a tenth of the agents: five standard errors.
            for part in 0..10 {
                let (from, to) = (mean / 2 + part * mean / 10, mean / 2 + (part + 1) * mean / 10);
                let share = away.iter().filter(|&&ms| ms >= from && ms < to).count();
                assert!((130..=270).contains(&share), "{share} of 2000 come in part {part}");
            }
        }
    }

    #[test]
    fn nobody_is_sent_away_for_more_than_a_day_or_for_no_time() {
        let crowded = Pace { idle_connections_max: 1, turn_ms: u64::MAX };
        assert_eq!(crowded.away_ms(&tenant(1), usize::MAX, NOW), AWAY_MS_MAX);
        let hasty = Pace { idle_connections_max: 1, turn_ms: 0 };
        assert_eq!(hasty.away_ms(&tenant(1), 1, NOW), 1);
    }
}
