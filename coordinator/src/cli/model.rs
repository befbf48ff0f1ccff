//! `model`: the base models.

use std::{path::PathBuf, str::FromStr};

use anyhow::Context;
use clap::Subcommand;
use serde::Serialize;
use serde_json::Value;
use tributary_protocol::id::{Digest, JobId};

use super::{Common, client::Client, print, table};
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
                    ["job", "version", "round", "bytes", "served", "digest"],
                    models.iter().map(|model| {
                        [
                            model.job.to_string(),
                            model.version.to_string(),
                            model.round.to_string(),
                            model.bytes.to_string(),
                            if model.served { "yes" } else { "" }.to_owned(),
                            model.digest.to_string(),
                        ]
                    }),
                )
            }),
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
