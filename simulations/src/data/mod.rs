//! Public datasets: where they are, whether they are whole, and how they are cut into tenants.

pub mod debian;
pub mod fashion_mnist;
pub mod fetch;
pub mod idx;
pub mod partition;
