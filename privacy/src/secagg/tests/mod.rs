//! Whole rounds: honest, interrupted, attacked and restarted.

mod attacks;
mod dropouts;
mod recovery;
mod robustness;
mod visibility;
mod world;
