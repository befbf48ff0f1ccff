//! The running agent's side of feedback.

use std::sync::Arc;

use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    message::BaseModel,
    transport::process,
};

use super::{agent::Agent, records::Records};
use crate::{
    feedback::{FeedbackStore, Retention, with_examples},
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
        // Outcomes of texts measure the model, but only features are kept to train on.
        let Some(store) = self.feedback.as_ref().filter(|_| records.data.texts().is_none()) else {
            return records;
        };
        let (features, classes) = (records.data.num_features(), records.data.num_classes());
        match store.examples(&base.dataset, features, classes) {
            Ok(examples) if examples.is_empty() => records,
            Ok(examples) => {
                tracing::info!(examples = examples.len(), "feedback trains the adapter too");
                let parts = (&records.data, &records.split);
                let (data, split) = with_examples(parts, &examples, self.config.held_out_fraction);
                Arc::new(Records { data, split })
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
