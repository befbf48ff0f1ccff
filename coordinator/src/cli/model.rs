//! `model`: the base models.

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;
use serde::Serialize;
use tributary_protocol::id::Digest;

use super::{Common, client::Client, print, table};
use tributary_coordinator::api::ModelDocument;

#[derive(Debug, Subcommand)]
pub(super) enum ModelCommand {
    /// List model versions.
    List,
    /// Write a model as a safetensors file.
    Export {
        /// A model's digest as `model list` shows it, or a job's name for its newest model.
        model: String,
        /// Where to write it.
        #[arg(long)]
        output: PathBuf,
    },
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
        match self {
            Self::List => print(common, &models, |models| {
                table(
                    ["job", "version", "round", "bytes", "digest"],
                    models.iter().map(|model| {
                        [
                            model.job.to_string(),
                            model.version.to_string(),
                            model.round.to_string(),
                            model.bytes.to_string(),
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
