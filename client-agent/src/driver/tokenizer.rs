//! Whether the agent's texts become tokens as the job's do.

use thiserror::Error;
use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    id::{DatasetName, Digest},
    job::JobSpec,
};

use crate::{
    data::{DataSource, TokenizerSource},
    durable_file::FileError,
    refusals::Declined,
};

/// Says why the agent's tokens are not the job's.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// Another tokenizer.
    #[error("the job's tokenizer is {asked}, that of the agent's `data.{dataset}` is {found}")]
    Differs {
        /// The dataset.
        dataset: DatasetName,
        /// The job's.
        asked: Digest,
        /// The agent's.
        found: Digest,
    },
    /// No tokenizer.
    #[error("the job's tokenizer is {asked}, but the agent's `data.{dataset}` is not texts")]
    NotTexts {
        /// The dataset.
        dataset: DatasetName,
        /// The job's.
        asked: Digest,
    },
    /// The agent's tokenizer cannot be read.
    #[error("the tokenizer of the agent's `data.{dataset}` cannot be read")]
    Unreadable {
        /// The dataset.
        dataset: DatasetName,
        /// Why.
        #[source]
        source: FileError,
    },
}

/// Compares the tokenizer of a dataset with the job's, where the job names one.
///
/// # Errors
/// [`TokenizerError`] naming both.
pub fn check_tokenizer(job: &JobSpec, source: Option<&DataSource>) -> Result<(), TokenizerError> {
    let Some(asked) = job.tokenizer else { return Ok(()) };
    let dataset = job.dataset.clone();
    let Some(DataSource::Jsonl(source)) = source else {
        return Err(TokenizerError::NotTexts { dataset, asked });
    };
    match source.tokenizer.digest() {
        Ok(found) if found == asked => Ok(()),
        Ok(found) => Err(TokenizerError::Differs { dataset, asked, found }),
        Err(source) => Err(TokenizerError::Unreadable { dataset, source }),
    }
}

impl TokenizerError {
    /// The refusal for the coordinator, and for the tenant what would work.
    #[must_use]
    pub fn declined(&self) -> Declined {
        let (Self::Differs { dataset, asked, .. } | Self::NotTexts { dataset, asked }) = self
        else {
            tracing::error!(error = self as &dyn std::error::Error, "no tokenizer");
            // The name of the file is the tenant's own business.
            let refusal = Refusal::new(ErrorCode::TokenizerDiffers, self.to_string());
            let remedy = "a readable tokenizer.json; the agent's log names the file".to_owned();
            return Declined { refusal, remedy };
        };
        let of_bytes = TokenizerSource::Bytes.digest().is_ok_and(|bytes| bytes == *asked);
        let value = if of_bytes {
            "\"bytes\"".to_owned()
        } else {
            format!(
                "{{ folder = \"DIR\" }}, where DIR/tokenizer.json has the BLAKE3 digest {asked}"
            )
        };
        let remedy =
            format!("`tokenizer` in `[data.{dataset}.jsonl]` of agent.toml set to {value}");
        Declined { refusal: Refusal::from_error(ErrorCode::TokenizerDiffers, self), remedy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "name = \"job\"\ndataset = \"plays\"\n\
        training = { local_steps = 1, sampling_rate = 0.5, batch_size_expected = 4, client_learning_rate = 0.1 }\n\
        privacy = { trust = \"local\", unit = \"record\", clipping_norm = 1.0, noise_multiplier = 1.0, delta = 1e-5 }\n\
        round = { rounds = 1, cohort_size = 1, cohort_size_min = 1, report_goal = 1, \
        selection_timeout_ms = 1, configuration_timeout_ms = 1, report_timeout_ms = 1 }\n\
        [model.decoder]\nvocab_size = 300\nhidden_size = 8\nintermediate_size = 12\n\
        num_layers = 1\nnum_heads = 2\ncontext_max = 16\n";

    fn source(more: &str) -> DataSource {
        toml::from_str(&format!("[jsonl]\npath = \"texts.jsonl\"\n{more}")).expect("valid")
    }

    #[test]
    fn only_the_jobs_own_tokenizer_trains_and_both_are_named() {
        let mut job: JobSpec = toml::from_str(JOB).expect("valid");
        job.validate().expect("a job");
        let folder = tempfile::tempdir().expect("temporary directory");
        let of_folder = source(&format!("tokenizer = {{ folder = {:?} }}", folder.path()));
        // A job that says nothing takes any.
        check_tokenizer(&job, Some(&source(""))).expect("not compared");
        check_tokenizer(&job, Some(&of_folder)).expect("not compared");

        let bytes = TokenizerSource::Bytes.digest().expect("no file");
        job.tokenizer = Some(bytes);
        check_tokenizer(&job, Some(&source(""))).expect("the same");
        let error = check_tokenizer(&job, Some(&of_folder)).expect_err("no file");
        let told = error.declined().refusal.message;
        assert!(!told.contains(&folder.path().display().to_string()), "{told}");

        std::fs::write(folder.path().join("tokenizer.json"), "another").expect("writes");
        let own = Digest::of(b"another");
        let declined = check_tokenizer(&job, Some(&of_folder)).expect_err("differs").declined();
        assert_eq!(declined.refusal.code, ErrorCode::TokenizerDiffers);
        let told = &declined.refusal.message;
        assert!(told.contains(&bytes.to_string()) && told.contains(&own.to_string()), "{told}");
        assert!(declined.remedy.contains("\"bytes\""), "{}", declined.remedy);

        job.tokenizer = Some(own);
        check_tokenizer(&job, Some(&of_folder)).expect("the same");
        let declined = check_tokenizer(&job, Some(&source(""))).expect_err("bytes").declined();
        let remedy = &declined.remedy;
        assert!(remedy.contains("folder") && remedy.contains(&own.to_string()), "{remedy}");
        let table: DataSource =
            toml::from_str("[idx]\nimages = \"a\"\nlabels = \"b\"\nclasses = 2").expect("valid");
        for source in [None, Some(&table)] {
            let error = check_tokenizer(&job, source).expect_err("no texts").to_string();
            assert!(error.contains("is not texts") && error.contains("plays"), "{error}");
        }
    }
}
