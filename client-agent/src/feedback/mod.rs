//! What became of predictions: kept at the site, durably, within limits, deleted on request.
//!
//! Every prediction is kept with its features under an id until its outcome is known or it is too
//! old. The outcome turns it into a labelled example for the private adapter and into a figure for
//! the quality of what is served. Nothing here leaves the site; the one way out is the noisy
//! evaluation of a round, which debits the ledger first
//! ([`crate::update::noisy_evaluation`]).
//!
//! - [`FeedbackStore`]: two journals, predictions that wait for an outcome and labelled ones. A
//!   label is on the disk before it is acknowledged; a prediction is written at once and made
//!   durable by the next label or sweep, so a loss of power costs the newest predictions at most.
//! - [`Quality`]: accuracy over time and drift.
//! - [`Examples`]: labelled data for an adapter. It never enters federated training.

mod error;
mod examples;
mod id;
mod journal;
mod quality;
mod record;
mod store;

pub use self::{
    error::FeedbackError,
    examples::{Examples, with_examples},
    id::{PredictionId, PredictionIdError},
    quality::{DayQuality, Drift, Quality, Seen, quality},
    record::{Label, Record},
    store::{FeedbackStore, Labelling, Retention, read_examples, read_labelled},
};

#[cfg(test)]
mod tests;
