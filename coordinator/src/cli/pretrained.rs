//! Pretrained models as the start of a job.

use std::path::Path;

use anyhow::{Context, ensure};
use tributary_coordinator::{blobs::BlobStore, registry::initial_parameters};
use tributary_protocol::{
    checkpoint::{read_parameters, read_spec},
    id::Digest,
    model::ModelSpec,
    tensor_file,
};

use super::Common;

/// A job's text and the file that its model starts with.
pub(super) struct Pretrained {
    /// The job, with its model.
    pub(super) job: String,
    /// Among the coordinator's files.
    pub(super) file: Digest,
}

/// Puts the weights of a Hugging Face folder among the coordinator's files, and the model into the
/// job where it is not written there.
pub(super) fn import(common: &Common, job: &str, folder: &Path) -> anyhow::Result<Pretrained> {
    let spec = read_spec(folder)?;
    spec.validate().with_context(|| format!("{} cannot be trained", folder.display()))?;
    let mut table: toml::Table = job.parse().context("the job is not TOML")?;
    let job = match table.get("model") {
        Some(model) => {
            let named: ModelSpec = model.clone().try_into().context("`model` is not usable")?;
            ensure!(
                named == spec,
                "`model` of the job is not the model of {}; leave it out to take that one",
                folder.display()
            );
            job.to_owned()
        }
        None => {
            table.insert("model".to_owned(), toml::Value::try_from(&spec)?);
            toml::to_string(&table)?
        }
    };
    // What a folder leaves open, such as the head of a model that was only pretrained, starts as in a
    // new model; the number is public.
    let start = initial_parameters(&spec, 0);
    let parameters = read_parameters(folder, &spec, start)?;
    let blobs = BlobStore::open(common.folder().path())?;
    let file = blobs.put(&tensor_file::write(&spec, &parameters)?)?;
    Ok(Pretrained { job, file })
}
