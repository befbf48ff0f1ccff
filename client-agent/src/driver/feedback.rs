//! The running agent's side of feedback.

use std::sync::Arc;

use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    message::BaseModel,
    transport::process,
};

use super::{agent::Agent, records::Records};
use crate::{
    feedback::{FeedbackStore, Retention},
    site::Site,
};

/// Opens a site's feedback, if it keeps any. A store that cannot be used costs the ids of
/// predictions, not the predictions.
#[must_use]
pub fn open_feedback(site: &Site, retention: Option<Retention>) -> Option<Arc<FeedbackStore>> {
    match FeedbackStore::open(&site.feedback(), retention?, process::now()) {
        Ok(store) => Some(Arc::new(store)),
        Err(error) => {
            let causes = Refusal::from_error(ErrorCode::Internal, &error).message;
            tracing::error!(error = causes, "predictions are answered without ids");
            None
        }
    }
}

impl Agent {
    /// A dataset's records with the labelled predictions behind them. For the private adapter alone:
    /// federated training never sees feedback.
    pub(super) fn with_feedback(&self, base: &BaseModel, records: Arc<Records>) -> Arc<Records> {
        let Some(store) = &self.feedback else { return records };
        match store.examples(&base.dataset, &records.data) {
            Ok(examples) if examples.is_empty() => records,
            Ok(examples) => {
                tracing::info!(examples = examples.len(), "feedback trains the adapter too");
                Arc::new(records.with_examples(&examples, self.config.held_out_fraction))
            }
            Err(error) => {
                tracing::warn!(%error, "the adapter is trained without feedback");
                records
            }
        }
    }

    /// The store of predictions and outcomes, for the HTTP interface.
    #[must_use]
    pub fn feedback(&self) -> Option<Arc<FeedbackStore>> {
        self.feedback.clone()
    }
}
