//! `model`: the base models.

use std::{collections::BTreeMap, path::PathBuf, str::FromStr};

use anyhow::Context;
use clap::Subcommand;
use serde::Serialize;
use serde_json::Value;
use tributary_protocol::id::{Digest, JobId};

use super::{Common, client::Client, date, print, table};
use tributary_coordinator::api::{ModelDocument, NewPromotion};

#[derive(Debug, Subcommand)]
pub(super) enum ModelCommand {
    /// List model versions.
    List,
    /// Have agents serve a version, instead of the newest; training goes on from the newest.
    Promote {
        /// The job.
        job: JobId,
        /// The version as `model list` shows it, or `latest` to follow the newest again.
        version: Wanted,
    },
    /// Have agents serve the version before the one they serve now.
    Rollback {
        /// The job.
        job: JobId,
    },
    /// Show what a model came from, version by version, back to the first one; also across jobs.
    Lineage {
        /// The job.
        job: JobId,
        /// A version; the newest unless given.
        #[arg(long)]
        version: Option<u64>,
    },
    /// Write a model as a safetensors file.
    Export {
        /// A model's digest as `model list` shows it, or a job's name for its newest model.
        model: String,
        /// Where to write it.
        #[arg(long)]
        output: PathBuf,
    },
}

/// A version, or the newest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted(Option<u64>);

impl FromStr for Wanted {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(if text == "latest" { None } else { Some(text.parse()?) }))
    }
}

#[derive(Serialize)]
struct Exported {
    digest: Digest,
    file: PathBuf,
    bytes: usize,
}

impl ModelCommand {
    pub(super) fn run(self, common: &Common) -> anyhow::Result<()> {
        let client = Client::connect(common)?;
        let models: Vec<ModelDocument> = client.get("/v1/models")?;
        let served = |model: &ModelDocument| {
            format!("agents serve version {} of {}", model.version, model.job)
        };
        match self {
            Self::Promote { job, version: Wanted(version) } => {
                let path = format!("/v1/jobs/{job}/promote");
                let model: ModelDocument = client.post_json(&path, &NewPromotion { version })?;
                print(common, &model, served);
            }
            Self::Rollback { job } => {
                let path = format!("/v1/jobs/{job}/rollback");
                let model: ModelDocument = client.post_json(&path, &Value::Null)?;
                print(common, &model, served);
            }
            Self::List => print(common, &models, |models| {
                table(
                    ["job", "version", "round", "metrics", "bytes", "served", "digest"],
                    models.iter().map(|model| {
                        [
                            model.job.to_string(),
                            model.version.to_string(),
                            model.round.to_string(),
                            metrics(model),
                            model.bytes.to_string(),
                            if model.served { "yes" } else { "" }.to_owned(),
                            model.digest.to_string(),
                        ]
                    }),
                )
            }),
            Self::Lineage { job, version } => {
                let line = lineage(&models, &job, version)?;
                print(common, &line, |line| {
                    table(
                        ["model", "round", "metrics", "committed", "digest"],
                        line.iter().map(|model| {
                            [
                                format!("{}/{}", model.job, model.version),
                                model.round.to_string(),
                                metrics(model),
                                date(model.created_ms),
                                model.digest.to_string(),
                            ]
                        }),
                    )
                });
            }
            Self::Export { model, output } => {
                let named = |found: &&ModelDocument| {
                    found.job.as_str() == model || found.digest.to_string() == model
                };
                let found = models.iter().rev().find(named).with_context(|| {
                    format!("no model is named {model:?}; `model list` shows jobs and digests")
                })?;
                let bytes = client.bytes(&format!("/v1/models/{}", found.digest))?;
                anyhow::ensure!(
                    Digest::of(&bytes) == found.digest,
                    "the file was damaged on its way; try again"
                );
                std::fs::write(&output, &bytes)
                    .with_context(|| format!("cannot write {}", output.display()))?;
                let exported = Exported { digest: found.digest, file: output, bytes: bytes.len() };
                print(common, &exported, |exported| {
                    format!("wrote {} ({} bytes)", exported.file.display(), exported.bytes)
                });
            }
        }
        Ok(())
    }
}

/// A version and everything that it came from, newest first.
fn lineage<'a>(
    models: &'a [ModelDocument],
    job: &JobId,
    version: Option<u64>,
) -> anyhow::Result<Vec<&'a ModelDocument>> {
    let named = |model: &&ModelDocument| {
        model.job == *job && version.is_none_or(|version| model.version == version)
    };
    let first = models.iter().rev().find(named).with_context(|| match version {
        Some(version) => format!("job {job} has no version {version}; `model list` shows them"),
        None => format!("no model is of a job named {job}; `model list` shows them"),
    })?;
    let by_name: BTreeMap<_, _> =
        models.iter().map(|model| ((&model.job, model.version), model)).collect();
    let parent = |model: &&ModelDocument| {
        let parent = model.parent_version.as_ref()?;
        by_name.get(&(&parent.job, parent.version)).copied()
    };
    // No longer than the list, whatever a coordinator answers.
    Ok(std::iter::successors(Some(first), parent).take(models.len()).collect())
}

fn metrics(model: &ModelDocument) -> String {
    let known = model.metrics.iter().filter_map(|estimate| {
        let (value, error) = (estimate.value?, estimate.standard_error?);
        Some(format!("{} {value:.3} ± {error:.3}", estimate.metric.name()))
    });
    known.collect::<Vec<_>>().join(", ")
}
