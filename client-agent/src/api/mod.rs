//! The tenant's own HTTP interface: predictions and status. It stays at the site.

mod error;
mod openai;
mod predict;
mod server;

pub use self::{
    error::ApiError,
    server::{ApiState, router, serve},
};

#[cfg(test)]
mod tests;
