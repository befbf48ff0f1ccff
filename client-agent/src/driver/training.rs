//! One round on a thread of its own: base, training, release.

use std::{ops::ControlFlow, sync::Arc};

use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    id::Digest,
    job::LocalAlgorithm,
    message::Assignment,
    transport::process,
};

use super::{
    agent::Agent,
    cancel::Cancellation,
    records::{Records, RecordsError},
    transfer::DownloadError,
};
use crate::{
    adapter::AdapterFolder,
    durable_file::{FULL_DISK, is_full_disk},
    policy::Approved,
    secagg::Exchange,
    session::TrainingEnd,
    train::{correction, move_control},
    update::{
        ControlFiles, Release, RoundData, RunUpdate, Standing, UpdateError, correlated_update,
        masked_update, noisy_evaluation, noisy_update, release, release_evaluation, release_run,
        released_update,
    },
};

/// A private update in memory.
enum Trained {
    /// That stands alone.
    Packed(Vec<u8>),
    /// Whose noise is correlated with that of other rounds.
    PartOfRun(RunUpdate),
}

impl Trained {
    /// The bytes that would be released.
    fn packed(&self) -> &[u8] {
        match self {
            Self::Packed(packed) => packed,
            Self::PartOfRun(update) => &update.packed,
        }
    }
}

/// Carries out an approved assignment up to its debited release.
pub(super) async fn run(
    agent: Arc<Agent>,
    assignment: Box<Assignment>,
    approved: Approved,
    exchange: Option<Exchange>,
    cancellation: Cancellation,
) -> Result<Release, TrainingEnd> {
    for file in [Some(assignment.base.file), assignment.control].into_iter().flatten() {
        match agent.fetch_base(file, &cancellation).await {
            None => return Err(TrainingEnd::Cancelled),
            Some(Err(error @ DownloadError::Refused(_))) => {
                return Err(TrainingEnd::NoBase(error.refusal()));
            }
            Some(Err(error)) => return Err(TrainingEnd::Failed(error.refusal())),
            Some(Ok(())) => {}
        }
    }
    let work = move || train(&agent, &assignment, &approved, exchange.as_ref(), &cancellation);
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => {
            tracing::error!(%error, "training stopped abruptly");
            let text = "training stopped abruptly; see the agent's log";
            Err(TrainingEnd::Failed(Refusal::new(ErrorCode::TrainingFailed, text)))
        }
    }
}

fn train(
    agent: &Agent,
    assignment: &Assignment,
    approved: &Approved,
    exchange: Option<&Exchange>,
    cancellation: &Cancellation,
) -> Result<Release, TrainingEnd> {
    let span = tracing::info_span!(
        "round",
        job = %assignment.job.name,
        round = %assignment.round
    );
    let _entered = span.enter();
    // Another round may have been debited since this one was examined.
    let failed = TrainingEnd::Failed;
    let standing =
        agent.examine(assignment, approved).map_err(|declined| failed(declined.refusal))?;
    if let Standing::Released(release) = standing {
        return Ok(release);
    }
    let base = AdapterFolder::new(&agent.site)
        .read_base(&assignment.job.model, assignment.base.file.digest)
        .map_err(|error| Refusal::from_error(ErrorCode::BaseModelInvalid, &error))
        .map_err(failed)?;
    let records = agent
        .records
        .load(&agent.config, &approved.dataset, approved.examples_max)
        .map_err(|error| failed(records_refusal(&error)))?;
    let (ledger, files) = (&agent.ledger, &agent.releases);
    let controls = Controls::load(agent, assignment)?;
    let round = RoundData {
        base: &base,
        data: &records.data,
        train: &records.split.train,
        correction: &controls.as_ref().map_or_else(Vec::new, Controls::correction),
    };
    let progress = &mut |step, steps| {
        agent.status.training(step, steps);
        if cancellation.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let update = match exchange {
        None if approved.run.is_some() => {
            correlated_update(ledger, files, assignment, approved, round, progress)
                .map(|update| (Trained::PartOfRun(update), approved.clone()))
        }
        None => noisy_update(assignment, round, progress)
            .map(|packed| (Trained::Packed(packed), approved.clone())),
        Some(exchange) => masked_update(assignment, round, exchange, progress).map(|masked| {
            // The cohort is known now, and with it the fewest that may be in its sum.
            let approved = Approved { events: vec![masked.event], ..approved.clone() };
            (Trained::Packed(masked.packed), approved)
        }),
    };
    let outcome = update.and_then(|(trained, approved)| {
        if cancellation.is_cancelled() {
            return Err(UpdateError::Cancelled);
        }
        evaluate(agent, assignment, &approved, &base, &records)?;
        if let Some(controls) = controls {
            controls.keep(agent, assignment, trained.packed())?;
        }
        let (cancelled, now_ms) = (&|| cancellation.is_cancelled(), process::now().0);
        match trained {
            Trained::Packed(packed) => {
                release(ledger, files, assignment, &approved, &packed, cancelled, now_ms)
            }
            Trained::PartOfRun(update) => {
                release_run(ledger, files, assignment, &approved, &update, cancelled, now_ms)
            }
        }
    });
    match outcome {
        Ok(release) => {
            agent.status.spent(&agent.ledger.lock(), &agent.policy, process::now().0);
            metrics::counter!("tributary_rounds_released").increment(1);
            tracing::info!(bytes = release.update.length, "update debited");
            Ok(release)
        }
        Err(UpdateError::Cancelled) => {
            tracing::info!("round closed while training; nothing was debited");
            Err(TrainingEnd::Cancelled)
        }
        Err(error) => {
            let causes = Refusal::from_error(error.code(), &error);
            let hint = is_full_disk(&error).then_some(FULL_DISK);
            tracing::error!(error = causes.message, hint, "no update");
            Err(failed(error.refusal()))
        }
    }
}

/// The control variates of a round of SCAFFOLD.
struct Controls {
    population: Vec<f32>,
    own: Vec<f32>,
}

impl Controls {
    /// Reads both; `None` if the job has none.
    fn load(agent: &Agent, assignment: &Assignment) -> Result<Option<Self>, TrainingEnd> {
        let job = &assignment.job;
        if !matches!(job.training.algorithm, LocalAlgorithm::Scaffold { .. }) {
            return Ok(None);
        }
        let zero = || vec![0.0; job.model.num_parameters()];
        let Some(file) = assignment.control else {
            return Ok(Some(Self { population: zero(), own: zero() }));
        };
        let refused = |code, error: &dyn std::error::Error| {
            TrainingEnd::Failed(Refusal::from_error(code, error))
        };
        let population = AdapterFolder::new(&agent.site)
            .read_base(&job.model, file.digest)
            .map_err(|error| refused(ErrorCode::BaseModelInvalid, &error))?;
        let path = agent.site.model(file.digest);
        // Every round has another one.
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::debug!(%error, file = %path.display(), "control variate not removed");
        }
        let files = ControlFiles::new(agent.site.controls());
        let own = files
            .newest(&job.name, &job.model, &agent.ledger)
            .map_err(|error| refused(ErrorCode::Internal, &error))?;
        Ok(Some(Self { population, own: own.unwrap_or_else(zero) }))
    }

    fn correction(&self) -> Vec<f32> {
        correction(&self.population, &self.own)
    }

    /// Keeps the tenant's next variate, which follows from the packed update.
    fn keep(
        mut self,
        agent: &Agent,
        assignment: &Assignment,
        packed: &[u8],
    ) -> Result<(), UpdateError> {
        let update = released_update(assignment, packed)?;
        move_control(&mut self.own, &self.population, &update, &assignment.job.training);
        let files = ControlFiles::new(agent.site.controls());
        files.put(assignment, Digest::of(packed), &self.own)
    }
}

/// Measures the base and debits its noisy metrics, where the job asks for them in this round.
fn evaluate(
    agent: &Agent,
    assignment: &Assignment,
    approved: &Approved,
    base: &[f32],
    records: &Records,
) -> Result<(), UpdateError> {
    let job = &assignment.job;
    let Some(spec) = job.evaluation.as_ref().filter(|_| !approved.evaluation.is_empty()) else {
        return Ok(());
    };
    let held_out = &records.split.held_out;
    let agreements = agent.feedback.as_ref().map(|store| store.agreements(&job.dataset));
    let agreements = agreements.unwrap_or_default();
    let metrics = noisy_evaluation(job, spec, base, &records.data, held_out, &agreements)?;
    let now_ms = process::now().0;
    release_evaluation(&agent.ledger, &agent.releases, assignment, approved, &metrics, now_ms)
}

fn records_refusal(error: &RecordsError) -> Refusal {
    tracing::error!(%error, "the dataset cannot be used");
    // Rows and file names are the tenant's own business.
    Refusal::new(
        ErrorCode::DatasetMissing,
        "the agent's dataset cannot be read; its own log says why",
    )
}
