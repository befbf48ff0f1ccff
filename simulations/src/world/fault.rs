//! What goes wrong in a world, and when.

use std::fmt;

use serde::Serialize;

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// When, in milliseconds after the start.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub kind: FaultKind,
}

/// What goes wrong. Tenants are counted from 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "fault")]
pub enum FaultKind {
    /// An agent's process dies: what it had not made durable is lost.
    CrashAgent {
        /// Whose.
        tenant: u32,
        /// How long it stays down, in milliseconds.
        down_ms: u64,
    },
    /// The next debit of an agent is torn off after some bytes, and its process dies there.
    TornDebit {
        /// Whose.
        tenant: u32,
        /// Bytes of the record that still reach the disk.
        bytes: usize,
        /// How long it stays down, in milliseconds.
        down_ms: u64,
    },
    /// The coordinator's process dies in the middle of what it has to do.
    CrashCoordinator {
        /// Persists, sends and commits that are still carried out.
        after_actions: u32,
        /// How long it stays down, in milliseconds.
        down_ms: u64,
    },
    /// Nothing passes between a tenant and the coordinator.
    Partition {
        /// Whose.
        tenant: u32,
        /// How long, in milliseconds.
        for_ms: u64,
    },
    /// A connection breaks; what was under way on it is lost.
    Reset {
        /// Whose.
        tenant: u32,
    },
    /// A tenant's packets are lost and sent again.
    Loss {
        /// Whose.
        tenant: u32,
        /// How long, in milliseconds.
        for_ms: u64,
        /// How likely each of them is lost.
        percent: u32,
    },
    /// Every durable write of the coordinator takes its time.
    SlowDisk {
        /// How long, in milliseconds.
        for_ms: u64,
        /// Time of one write, in milliseconds.
        write_ms: u64,
    },
    /// A tenant's clock steps.
    TenantClock {
        /// Whose.
        tenant: u32,
        /// By how much, in milliseconds.
        step_ms: i64,
    },
    /// The coordinator's clock steps.
    CoordinatorClock {
        /// By how much, in milliseconds.
        step_ms: i64,
    },
    /// A further tenant enrols.
    Enrol {
        /// Which.
        tenant: u32,
    },
    /// A tenant is revoked, for ever.
    Revoke {
        /// Which.
        tenant: u32,
    },
    /// A tenant is suspended for a while.
    Suspend {
        /// Which.
        tenant: u32,
        /// How long, in milliseconds.
        for_ms: u64,
    },
}

impl Fault {
    /// When its last effect is over, in milliseconds after the start.
    #[must_use]
    pub const fn over_ms(&self) -> u64 {
        self.at_ms
            + match self.kind {
                FaultKind::CrashAgent { down_ms, .. }
                | FaultKind::TornDebit { down_ms, .. }
                | FaultKind::CrashCoordinator { down_ms, .. } => down_ms,
                FaultKind::Partition { for_ms, .. }
                | FaultKind::Loss { for_ms, .. }
                | FaultKind::SlowDisk { for_ms, .. }
                | FaultKind::Suspend { for_ms, .. } => for_ms,
                FaultKind::Reset { .. }
                | FaultKind::TenantClock { .. }
                | FaultKind::CoordinatorClock { .. }
                | FaultKind::Enrol { .. }
                | FaultKind::Revoke { .. } => 0,
            }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ms: {:?}", self.at_ms, self.kind)
    }
}
