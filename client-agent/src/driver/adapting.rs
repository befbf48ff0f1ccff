//! A new base on a thread of its own: measure it, adapt to it, serve it if that is not worse.

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    id::{Digest, JobId},
    message::BaseModel,
    transport::process,
};

use super::{
    agent::Agent,
    cancel::Cancellation,
    records::Records,
    serving::{ServingError, restore},
};
use crate::{
    adapter::{
        Adapter, AdapterError, AdapterFolder, AdapterPlan, AdapterVersion, FineTune, NewestBase,
        Origin, Registry, Served, fine_tune,
    },
    train::{Evaluation, TrainError, evaluate},
};

/// An adaptation that was cut short, from which the next one goes on.
#[derive(Debug)]
pub(super) struct Partial {
    job: JobId,
    base: Digest,
    adapter: Adapter,
}

/// Adapts to a base and serves it if that is not worse; returns whether that went to its end.
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
    let mut partial = agent.partial.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = AdapterFolder::new(&agent.site);
    let registry = folder.of_job(&base.job, &base.dataset, &base.model)?;
    let done = |newest: &NewestBase| newest.complete && newest.base == base.file.digest;
    if registry.newest.as_ref().is_some_and(done) {
        return Ok(true);
    }
    let parameters = folder.read_base(&base.model, base.file.digest)?;
    let records = match agent.load_records(&base.dataset) {
        Ok(records) => Some(agent.with_feedback(base, records)),
        Err(error) => {
            tracing::warn!(dataset = %base.dataset, %error, "the base cannot be measured");
            None
        }
    };
    let bench = Bench { model: &base.model, parameters: &parameters, records: records.as_deref() };
    let start = starting_point(&folder, &registry, base, partial.take());
    let tuned = bench.fine_tune(
        base.file.digest,
        start.as_ref(),
        &agent.config.adapter,
        base.version,
        &mut || cancellation.is_cancelled(),
    );
    let decided = decide(&folder, base, &bench, &tuned)?;
    if !tuned.complete
        && let Some((adapter, _)) = tuned.adapter
    {
        *partial = Some(Partial { job: base.job.clone(), base: base.file.digest, adapter });
    }
    restore(&folder, &agent.engine)?;
    agent.status.serving(&decided);
    let current = decided.current();
    tracing::info!(
        job = %base.job,
        version = base.version,
        base_accuracy = tuned.base_held_out.map(|found| found.accuracy),
        accuracy = current.and_then(|current| current.held_out).map(|found| found.accuracy),
        served = decided.newest.as_ref().is_some_and(|newest| newest.served),
        adapter = current.and_then(|current| current.adapter),
        complete = tuned.complete,
        "adapted"
    );
    Ok(tuned.complete)
}

/// Where the adapter of a base starts: where a cut adaptation to it stopped, else at its newest
/// adapter, else at the one that is served, which is thereby re-based.
fn starting_point(
    folder: &AdapterFolder,
    registry: &Registry,
    base: &BaseModel,
    partial: Option<Partial>,
) -> Option<Adapter> {
    let goes_on = |partial: &Partial| partial.base == base.file.digest && partial.job == base.job;
    if let Some(partial) = partial.filter(goes_on) {
        return Some(partial.adapter);
    }
    let own = registry.versions.iter().rev().find(|known| known.base == base.file.digest);
    let served = || registry.current().and_then(|current| current.adapter);
    let version = own.map(|known| known.version).or_else(served)?;
    match folder.read_adapter(registry, version) {
        Ok(adapter) => Some(adapter),
        Err(error) => {
            tracing::warn!(version, %error, "the adapter starts anew");
            None
        }
    }
}

/// Serves the new pair if it is not worse than what is served, measured now on the same records.
fn decide(
    folder: &AdapterFolder,
    base: &BaseModel,
    bench: &Bench<'_>,
    tuned: &Tuned,
) -> Result<Registry, ServingError> {
    loop {
        // Measuring takes its time, so it happens outside the lock, and again if meanwhile
        // something else is served.
        let seen = folder.of_job(&base.job, &base.dataset, &base.model)?;
        let present = bench.measure_served(folder, &seen);
        let lock = folder.lock()?;
        let mut registry = folder.of_job(&base.job, &base.dataset, &base.model)?;
        if registry.current() != seen.current() {
            continue;
        }
        let before: Vec<Digest> = registry.bases();
        let held_out = match &tuned.adapter {
            Some((_, held_out)) => *held_out,
            None => tuned.base_held_out,
        };
        let serve = is_wanted(&registry, present, held_out, tuned, bench);
        let now_ms = process::now().0;
        let mut adapter_version = None;
        // An adaptation that was cut goes on; only its end, or what is served, is worth a version.
        if let Some((adapter, held_out)) =
            tuned.adapter.as_ref().filter(|_| serve || tuned.complete)
        {
            folder.write_adapter(&registry, adapter)?;
            adapter_version = Some(registry.add(AdapterVersion {
                version: 0,
                base: base.file.digest,
                base_version: base.version,
                origin: Origin::Trained,
                created_ms: now_ms,
                held_out: *held_out,
            }));
        }
        if serve {
            registry.serve(Served {
                base: base.file.digest,
                base_version: base.version,
                base_held_out: tuned.base_held_out,
                adapter: adapter_version,
                held_out,
                since_ms: now_ms,
            });
        }
        registry.newest = Some(NewestBase {
            base: base.file.digest,
            base_version: base.version,
            held_out: tuned.base_held_out,
            complete: tuned.complete,
            served: registry.current().is_some_and(|it| it.base == base.file.digest),
        });
        let registry = folder.commit(registry, serve, &lock)?;
        folder.remove_bases(&before, &lock);
        return Ok(registry);
    }
}

/// Whether the new pair should be served.
fn is_wanted(
    registry: &Registry,
    present: Option<Evaluation>,
    held_out: Option<Evaluation>,
    tuned: &Tuned,
    bench: &Bench<'_>,
) -> bool {
    let Some(current) = registry.current() else { return true };
    match (present, held_out) {
        (Some(present), Some(found)) => found.is_not_worse(&present, bench.model),
        // Without a measure, an adapter is not given up for a base that knows less.
        (None, None) => current.adapter.is_none() || tuned.adapter.is_some(),
        // What is served can no longer be used, or is the only one that could be measured.
        (None, Some(_)) => true,
        (Some(_), None) => false,
    }
}

/// A base and the tenant's records, to train and measure adapters on.
#[derive(Clone, Copy)]
pub(crate) struct Bench<'a> {
    pub(crate) model: &'a tributary_protocol::model::ModelSpec,
    pub(crate) parameters: &'a [f32],
    pub(crate) records: Option<&'a Records>,
}

/// What fine-tuning on a base led to.
pub(crate) struct Tuned {
    /// Of the base alone, on held-out records.
    pub(crate) base_held_out: Option<Evaluation>,
    /// The adapter, if it earned its place over the base alone, measured with it.
    pub(crate) adapter: Option<(Adapter, Option<Evaluation>)>,
    /// Whether it went to its end.
    pub(crate) complete: bool,
}

impl Bench<'_> {
    /// Measures on held-out records, or where there are none on those that stop the training;
    /// nothing where there are none either, or they do not fit.
    pub(crate) fn held_out(
        &self,
        parameters: &[f32],
        adapter: Option<&Adapter>,
    ) -> Option<Evaluation> {
        let Records { data, split } = self.records?;
        let records = match split.held_out.as_slice() {
            [] => &split.validation,
            _ => &split.held_out,
        };
        match evaluate(self.model, parameters, adapter, data, records) {
            Ok(evaluation) => Some(evaluation),
            Err(TrainError::NoRecords) => None,
            Err(error) => {
                tracing::warn!(%error, "the model cannot be measured");
                None
            }
        }
    }

    /// Measures what a registry says is served, on the records as they are now.
    pub(crate) fn measure_served(
        &self,
        folder: &AdapterFolder,
        registry: &Registry,
    ) -> Option<Evaluation> {
        let current = registry.current()?;
        let parameters = folder.read_base(&registry.model, current.base);
        let adapter =
            current.adapter.map(|version| folder.read_adapter(registry, version)).transpose();
        match (parameters, adapter) {
            (Ok(parameters), Ok(adapter)) => self.held_out(&parameters, adapter.as_ref()),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(%error, "what is served cannot be measured");
                None
            }
        }
    }

    /// Fine-tunes an adapter within the plan's time.
    #[expect(clippy::disallowed_methods, reason = "the driver is where clocks are read")]
    pub(crate) fn fine_tune(
        &self,
        base: Digest,
        start: Option<&Adapter>,
        plan: &AdapterPlan,
        seed: u64,
        cancelled: &mut dyn FnMut() -> bool,
    ) -> Tuned {
        let base_held_out = self.held_out(self.parameters, None);
        let Some(records) = self.records else {
            return Tuned { base_held_out, adapter: None, complete: true };
        };
        let deadline = Instant::now() + Duration::from_millis(plan.time_budget_ms);
        let mut cut = false;
        let request = FineTune {
            spec: self.model,
            base: self.parameters,
            base_digest: base,
            start,
            data: &records.data,
            split: &records.split,
            plan,
            // The seed only orders records and starts factors; any number will do.
            seed: getrandom::u64().unwrap_or(seed),
        };
        let outcome = fine_tune(&request, &mut || {
            cut |= cancelled();
            cut || Instant::now() >= deadline
        });
        let complete = !cut;
        match outcome {
            // An adapter that was cut before it learnt anything is still the base.
            Ok(outcome)
                if outcome.accepted
                    && (complete || outcome.validation != outcome.base_validation) =>
            {
                let held_out = self.held_out(self.parameters, Some(&outcome.adapter));
                Tuned { base_held_out, adapter: Some((outcome.adapter, held_out)), complete }
            }
            Ok(_) => Tuned { base_held_out, adapter: None, complete },
            Err(error) => {
                if !matches!(error, AdapterError::NoRecords { .. }) {
                    let text = Refusal::from_error(ErrorCode::TrainingFailed, &error).message;
                    tracing::warn!(error = text, "no adapter");
                }
                Tuned { base_held_out, adapter: None, complete: true }
            }
        }
    }
}
