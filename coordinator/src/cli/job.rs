//! `job`: what to train.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use clap::Subcommand;
use serde::Serialize;
use serde_json::Value;
use tributary_protocol::id::{Digest, JobId};

use super::{Common, client::Client, date, pretrained, print, table};
use tributary_coordinator::{
    api::{JobDocument, JobSubmitted, MetricsDocument, NewPriority},
    scheduler::JobState,
};

/// How often `watch` asks.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, Subcommand)]
pub(super) enum JobCommand {
    /// Submit a job file (TOML).
    Submit {
        /// The file.
        file: PathBuf,
        /// Begin with this model (a digest that `model list` shows) instead of a new one.
        #[arg(long)]
        start_from: Option<Digest>,
        /// Begin with the weights of this Hugging Face folder (Llama, Qwen2 or SmolLM decoder, or BERT
        /// classifier). The job file may leave `[model]` out. Works on the coordinator's machine.
        #[arg(long, value_name = "FOLDER", conflicts_with = "start_from")]
        base: Option<PathBuf>,
    },
    /// List jobs.
    List,
    /// Show one job: its round, what it waits for, and each tenant.
    Show {
        /// The job.
        job: JobId,
    },
    /// Finish the open round and begin no further one.
    Pause {
        /// The job.
        job: JobId,
    },
    /// Go on with a paused job, or with any job from an older version of its model.
    Resume {
        /// The job.
        job: JobId,
        /// Begin the next round from this version (`model list` shows them); an open round is given
        /// up, and the rounds after that version are run again.
        #[arg(long)]
        from_version: Option<u64>,
    },
    /// End a job; an open round is given up.
    Stop {
        /// The job.
        job: JobId,
    },
    /// Change who gets tenants first: a tenant that owes a report to one job is not invited by jobs of
    /// lower priority.
    Priority {
        /// The job.
        job: JobId,
        /// From -1000 to 1000; 0 unless changed.
        #[arg(allow_negative_numbers = true)]
        priority: i32,
    },
    /// Follow a job until it ends; one line (or JSON object) for each change.
    Watch {
        /// The job.
        job: JobId,
    },
}

impl JobCommand {
    pub(super) fn run(self, common: &Common) -> anyhow::Result<()> {
        let client = Client::connect(common)?;
        match self {
            Self::Submit { file, start_from, base } => {
                let mut text = std::fs::read_to_string(&file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                let path = match (start_from, base) {
                    (Some(digest), _) => format!("/v1/jobs?start_from={digest}"),
                    (None, Some(folder)) => {
                        let start = pretrained::import(common, &text, &folder)?;
                        text = start.job;
                        format!("/v1/jobs?start_file={}", start.file)
                    }
                    (None, None) => "/v1/jobs".to_owned(),
                };
                let submitted: JobSubmitted = client
                    .post_text(&path, &text)
                    .with_context(|| format!("{} was not accepted", file.display()))?;
                print(common, &submitted, |submitted| format!("submitted job {}", submitted.job));
            }
            Self::List => {
                let jobs: Vec<JobDocument> = client.get("/v1/jobs")?;
                print(common, &jobs, |jobs| {
                    table(
                        ["job", "state", "rounds", "waiting for"],
                        jobs.iter().map(|job| {
                            [
                                job.job.to_string(),
                                state(job).to_owned(),
                                rounds(job),
                                job.waiting_for.clone(),
                            ]
                        }),
                    )
                });
            }
            Self::Show { job } => {
                let job: JobDocument = client.get(&format!("/v1/jobs/{job}"))?;
                print(common, &job, describe);
            }
            Self::Pause { job } => control(common, &client, &job, "pause", &Value::Null)?,
            Self::Resume { job, from_version } => {
                let what = match from_version {
                    Some(version) => format!("resume?from_version={version}"),
                    None => "resume".to_owned(),
                };
                control(common, &client, &job, &what, &Value::Null)?;
            }
            Self::Stop { job } => control(common, &client, &job, "stop", &Value::Null)?,
            Self::Priority { job, priority } => {
                control(common, &client, &job, "priority", &NewPriority { priority })?;
            }
            Self::Watch { job } => watch(common, &client, &job)?,
        }
        Ok(())
    }
}

fn control<B: Serialize>(
    common: &Common,
    client: &Client,
    job: &JobId,
    what: &str,
    body: &B,
) -> anyhow::Result<()> {
    let changed: JobDocument = client.post_json(&format!("/v1/jobs/{job}/{what}"), body)?;
    print(common, &changed, |job| format!("{} ({})", summary(job), state(job)));
    Ok(())
}

fn watch(common: &Common, client: &Client, job: &JobId) -> anyhow::Result<()> {
    let mut last = String::new();
    loop {
        let document: JobDocument = client.get(&format!("/v1/jobs/{job}"))?;
        let line = summary(&document);
        if line != last {
            print(common, &document, summary);
            last = line;
        }
        match document.state {
            JobState::Running | JobState::Paused => std::thread::sleep(WATCH_INTERVAL),
            JobState::Finished => return Ok(()),
            JobState::Stopped => anyhow::bail!("job {job} was stopped"),
            JobState::Failed => anyhow::bail!("job {job} failed: {}", document.waiting_for),
        }
    }
}

const fn state(job: &JobDocument) -> &'static str {
    match job.state {
        JobState::Running => "running",
        JobState::Paused => "paused",
        JobState::Stopped => "stopped",
        JobState::Finished => "finished",
        JobState::Failed => "failed",
    }
}

fn rounds(job: &JobDocument) -> String {
    format!("{}/{}", job.rounds_committed, job.rounds)
}

fn summary(job: &JobDocument) -> String {
    let metrics = job.metrics.last().map(newest_metrics).unwrap_or_default();
    let until = job.waits_until.map_or_else(String::new, |at| format!("; until {}", date(at)));
    let JobDocument { job: name, round, phase, waiting_for, .. } = job;
    format!("{name} {} round {round} {phase}{metrics}: {waiting_for}{until}", rounds(job))
}

/// As ` (version 5: accuracy 0.831 ± 0.004)`.
fn newest_metrics(metrics: &MetricsDocument) -> String {
    let estimates: Vec<String> = metrics
        .estimates
        .iter()
        .map(|estimate| {
            let name = estimate.metric.name();
            match (estimate.value, estimate.standard_error) {
                (Some(value), Some(error)) => format!("{name} {value:.3} ± {error:.3}"),
                _ => format!("{name} below the noise"),
            }
        })
        .collect();
    format!(" (version {}: {})", metrics.version, estimates.join(", "))
}

fn describe(job: &JobDocument) -> String {
    let tenants = job
        .tenants
        .iter()
        .map(|tenant| [tenant.tenant.to_string(), tenant.state.clone(), tenant.detail.clone()]);
    let privacy = job.privacy.as_ref().map_or_else(String::new, |privacy| {
        let written = |epsilon: Option<f64>| {
            epsilon.map_or_else(|| "beyond what can be computed".to_owned(), |it| format!("{it:.3}"))
        };
        format!(
            "the sums so far: epsilon {} (at most {} had more dropped out) at delta {:e}, for adding or removing one {:?}\n",
            written(privacy.epsilon),
            written(privacy.epsilon_worst_case),
            privacy.delta,
            privacy.unit
        )
        .to_lowercase()
    });
    let tenants = table(["tenant", "state", ""], tenants);
    format!("{} ({})\n{privacy}{tenants}", summary(job), state(job))
}
