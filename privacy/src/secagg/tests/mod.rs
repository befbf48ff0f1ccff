//! Whole rounds: honest, interrupted, attacked and restarted.

mod attacks;
mod dropouts;
mod recovery;
mod visibility;
mod world;
