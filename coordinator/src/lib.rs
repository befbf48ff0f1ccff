//! The Tributary coordinator.
pub mod aggregation;
pub mod blobs;
pub mod cohort;
pub mod optimizer;
pub mod registry;
pub mod round;
pub mod scheduler;
pub mod store;
pub mod tenants;
