//! Bounded waiting and interruption: the only clock of this crate.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// A point in time after which waiting is given up.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    started: Instant,
    limit: Duration,
}

impl Deadline {
    /// Starts waiting now, for at most `limit`.
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        Self { started: now(), limit }
    }

    /// Whether the limit has passed.
    #[must_use]
    pub fn has_passed(&self) -> bool {
        self.elapsed() >= self.limit
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        now().duration_since(self.started)
    }

    /// The limit it was made with.
    #[must_use]
    pub const fn limit(&self) -> Duration {
        self.limit
    }

    /// The same limit, counted from now.
    #[must_use]
    pub fn restarted(&self) -> Self {
        Self::after(self.limit)
    }
}

#[expect(clippy::disallowed_methods, reason = "the one clock of the simulator's drivers")]
fn now() -> Instant {
    Instant::now()
}

/// Set once somebody asks the program to stop.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks everybody who holds a clone to stop.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Pauses between two looks at something that is awaited.
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
