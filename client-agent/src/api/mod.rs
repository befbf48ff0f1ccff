//! The HTTP interface of a site: predictions, their outcomes, language, status, metrics.

mod access;
mod error;
mod feedback;
mod openai;
mod predict;
mod predict_input;
mod server;

pub use self::{
    error::ApiError,
    server::{ApiState, router, serve},
};

#[cfg(test)]
mod feedback_tests;
#[cfg(test)]
mod tests;
