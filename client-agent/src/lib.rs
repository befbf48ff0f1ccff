//! The agent at a tenant's site: policy, private training, adapters and serving.

pub mod adapter;
pub mod compute;
pub mod data;
pub mod engine;
pub mod model;
pub mod train;
