//! A new base on a thread of its own: measure it, adapt to it, serve it.

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    message::BaseModel,
};

use super::{
    agent::Agent,
    cancel::Cancellation,
    records::Records,
    serving::{NextServed, ServingError, load_base},
};
use crate::{
    adapter::{Adapter, AdapterError, FineTune, fine_tune},
    train::{TrainError, evaluate},
};

/// Serves a base and adapts to it; returns whether that went to its end.
pub(super) async fn run(agent: Arc<Agent>, base: BaseModel, cancellation: Cancellation) -> bool {
    let length_max = 4 * base.model.num_parameters() as u64 + (1 << 20);
    if base.model.validate().is_err() || base.file.length > length_max {
        tracing::error!(job = %base.job, version = base.version, "the base is not usable");
        return true;
    }
    match agent.fetch_base(base.file, &cancellation).await {
        None => return false,
        Some(Err(error)) => {
            tracing::error!(job = %base.job, version = base.version, %error, "no base");
            return true;
        }
        Some(Ok(())) => {}
    }
    let work = move || {
        let complete = adapt(&agent, &base, &cancellation);
        complete.unwrap_or_else(|error| {
            let text = Refusal::from_error(ErrorCode::BaseModelInvalid, &error).message;
            tracing::error!(job = %base.job, version = base.version, error = text, "not served");
            true
        })
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        tracing::error!(%error, "adapting stopped abruptly");
        true
    })
}

fn adapt(
    agent: &Agent,
    base: &BaseModel,
    cancellation: &Cancellation,
) -> Result<bool, ServingError> {
    let mut served = agent.served.lock().unwrap_or_else(PoisonError::into_inner);
    let done = served
        .current
        .as_ref()
        .is_some_and(|current| current.complete && current.base.digest == base.file.digest);
    if done {
        return Ok(true);
    }
    let parameters = load_base(&agent.site, &base.model, base.file.digest)?;
    let records = match agent.load_records(&base.dataset) {
        Ok(records) => Some(agent.with_feedback(base, records)),
        Err(error) => {
            tracing::warn!(dataset = %base.dataset, %error, "the base is served unmeasured");
            None
        }
    };
    let start = served.adapter.as_ref();
    let next = match &records {
        None => NextServed { base_accuracy: None, adapter: None, complete: true },
        Some(records) => {
            let work = Work { agent, base, parameters: &parameters, records, start, cancellation };
            work.fine_tune()
        }
    };
    let complete = next.complete;
    let current = served.replace(&agent.site, &agent.engine, base, &parameters, next)?;
    agent.status.serving(current.base, current.adapter);
    tracing::info!(
        job = %base.job,
        version = base.version,
        base_accuracy = current.base.accuracy,
        adapter_accuracy = current.adapter.and_then(|adapter| adapter.accuracy),
        complete,
        "serving"
    );
    Ok(complete)
}

struct Work<'a> {
    agent: &'a Agent,
    base: &'a BaseModel,
    parameters: &'a [f32],
    records: &'a Records,
    start: Option<&'a Adapter>,
    cancellation: &'a Cancellation,
}

impl Work<'_> {
    /// Accuracy on held-out records; nothing where there are none, or they do not fit.
    fn held_out(&self, adapter: Option<&Adapter>) -> Option<f64> {
        let (data, held_out) = (&self.records.data, &self.records.split.held_out);
        match evaluate(&self.base.model, self.parameters, adapter, data, held_out) {
            Ok(evaluation) => Some(evaluation.accuracy),
            Err(TrainError::NoRecords) => None,
            Err(error) => {
                tracing::warn!(%error, "the model cannot be measured");
                None
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the driver is where clocks are read")]
    fn fine_tune(&self) -> NextServed {
        let base_accuracy = self.held_out(None);
        let plan = &self.agent.config.adapter;
        let deadline = Instant::now() + Duration::from_millis(plan.time_budget_ms);
        let mut cut = false;
        let request = FineTune {
            spec: &self.base.model,
            base: self.parameters,
            base_digest: self.base.file.digest,
            start: self.start,
            data: &self.records.data,
            split: &self.records.split,
            plan,
            // The seed only orders records and starts factors; any number will do.
            seed: getrandom::u64().unwrap_or(self.base.version),
        };
        let outcome = fine_tune(&request, &mut || {
            cut |= self.cancellation.is_cancelled();
            cut || Instant::now() >= deadline
        });
        let complete = !cut;
        match outcome {
            // An adapter that was cut before it learnt anything is still the base.
            Ok(outcome)
                if outcome.accepted
                    && (complete || outcome.validation != outcome.base_validation) =>
            {
                let accuracy = self.held_out(Some(&outcome.adapter));
                let adapter = Some((outcome.adapter, accuracy));
                NextServed { base_accuracy, adapter, complete }
            }
            Ok(_) => NextServed { base_accuracy, adapter: None, complete },
            Err(error) => {
                if !matches!(error, AdapterError::NoRecords { .. }) {
                    let text = Refusal::from_error(ErrorCode::TrainingFailed, &error).message;
                    tracing::warn!(error = text, "no adapter");
                }
                NextServed { base_accuracy, adapter: None, complete: true }
            }
        }
    }
}
