//! The Tributary coordinator.
pub mod cohort;
pub mod round;
