//! Pretrained models as the start of a job.

use std::path::Path;

use anyhow::{Context, ensure};
use tributary_coordinator::{blobs::BlobStore, registry::initial_parameters};
use tributary_protocol::{
    checkpoint::{read_parameters, read_spec, tokenizer_digest},
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

/// Puts the weights of a Hugging Face folder among the coordinator's files, and the model and the
/// digest of its tokenizer into the job where they are not written there.
pub(super) fn import(common: &Common, job: &str, folder: &Path) -> anyhow::Result<Pretrained> {
    let spec = read_spec(folder)?;
    spec.validate().with_context(|| format!("{} cannot be trained", folder.display()))?;
    let job = completed(job, folder, &spec)?;
    // What a folder leaves open, such as the head of a model that was only pretrained, starts as in a
    // new model; the number is public.
    let start = initial_parameters(&spec, 0);
    let parameters = read_parameters(folder, &spec, start)?;
    let blobs = BlobStore::open(common.folder().path())?;
    let file = blobs.put(&tensor_file::write(&spec, &parameters)?)?;
    Ok(Pretrained { job, file })
}

/// The job with what it leaves to the folder; what it does not must be the folder's.
fn completed(job: &str, folder: &Path, spec: &ModelSpec) -> anyhow::Result<String> {
    let mut table: toml::Table = job.parse().context("the job is not TOML")?;
    match table.get("model") {
        Some(model) => {
            let named: ModelSpec = model.clone().try_into().context("`model` is not usable")?;
            ensure!(
                named == *spec,
                "`model` of the job is not the model of {}; leave it out to take that one",
                folder.display()
            );
        }
        None => {
            table.insert("model".to_owned(), toml::Value::try_from(spec)?);
        }
    }
    if let Some(own) = tokenizer_digest(folder)? {
        match table.get("tokenizer") {
            Some(named) => ensure!(
                named.as_str() == Some(own.to_string().as_str()),
                "`tokenizer` of the job is {named}, that of {} is {own}; leave it out to take that \
                 one",
                folder.display()
            ),
            None => {
                table.insert("tokenizer".to_owned(), own.to_string().into());
            }
        }
    }
    Ok(toml::to_string(&table)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_takes_model_and_tokenizer_of_the_folder_or_names_the_same() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../client-agent/tests/fixtures/language/smollm");
        let spec = read_spec(&folder).expect("a known model");
        let file = std::fs::read(folder.join("tokenizer.json")).expect("reads");
        let own = Digest::of(&file).to_string();
        let job = completed("name = \"job\"", &folder, &spec).expect("completes");
        let table: toml::Table = job.parse().expect("TOML");
        assert_eq!(table["tokenizer"].as_str(), Some(own.as_str()));
        let model: ModelSpec = table["model"].clone().try_into().expect("a model");
        assert_eq!(model, spec);
        // Naming the same changes nothing.
        assert_eq!(completed(&job, &folder, &spec).expect("the same"), job);

        let other = Digest::of(b"other").to_string();
        let error = completed(&job.replace(&own, &other), &folder, &spec).expect_err("another");
        let error = error.to_string();
        assert!(error.contains(&own) && error.contains(&other), "{error}");
        let smaller = job.replace("num_layers = 2", "num_layers = 1");
        assert_ne!(smaller, job);
        let error = completed(&smaller, &folder, &spec).expect_err("another model").to_string();
        assert!(error.contains("is not the model of"), "{error}");
    }
}
