//! What a run leaves behind, row by row.

use serde::{Deserialize, Serialize};

/// File with a [`RoundRow`] a line.
pub(crate) const ROUNDS: &str = "rounds.csv";
/// File with a [`TenantRow`] a line.
pub(crate) const TENANTS: &str = "tenants.csv";
/// File with a [`Timing`] a line.
pub(crate) const TIMING: &str = "timing.csv";
/// File of the [`RunSummary`]: there once a run is finished.
pub(crate) const RESULT: &str = "result.json";
/// File of the last base model.
pub(crate) const MODEL: &str = "model.safetensors";

/// One round. The same seed gives the same row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundRow {
    /// Its number, from 1; 0 is the initial model.
    pub round: u64,
    /// Tenants that got the model.
    pub invited: usize,
    /// Tenants whose updates are in the sum; none if the round was abandoned.
    pub reported: usize,
    /// Fraction of test records whose class is right, where measured.
    pub accuracy: Option<f64>,
    /// Mean cross-entropy on the test records in nats, where measured.
    pub loss: Option<f64>,
    /// ε of the tenant that took part most often so far, where measured and there is noise.
    pub epsilon: Option<f64>,
    /// Bytes from the coordinator so far.
    pub bytes_down: u64,
    /// Bytes to the coordinator so far.
    pub bytes_up: u64,
    /// Virtual time so far in seconds, if there is a clock.
    #[serde(default)]
    pub virtual_s: Option<f64>,
    /// The round's clipping norm in model units, where it adapts.
    #[serde(default)]
    pub clipping_norm: Option<f64>,
}

/// How long a round took; different every time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// The round, from 1.
    pub round: u64,
    /// Wall time without measuring the model, in seconds.
    pub wall_s: f64,
    /// Processor time of all threads without measuring the model, in seconds.
    pub cpu_s: f64,
}

/// One tenant's part in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TenantRow {
    /// Its name.
    pub tenant: String,
    /// Records it holds.
    pub num_examples: usize,
    /// Rounds whose sums have its update.
    pub participations: u32,
    /// What these cost it, if there is noise.
    pub epsilon: Option<f64>,
    /// Whether it attacks.
    pub attacker: bool,
    /// Accuracy of the last base model on its own records, if asked for.
    pub accuracy: Option<f64>,
    /// Loss of the last base model on its own records, if asked for.
    pub loss: Option<f64>,
    /// Accuracy of the last base model on its held-out records, with adapters.
    #[serde(default)]
    pub held_out_accuracy: Option<f64>,
    /// Accuracy there of what it would serve: the base with its adapter, unless that does worse on
    /// its validation records.
    #[serde(default)]
    pub adapter_accuracy: Option<f64>,
    /// Of a decoder, the perplexity of the last base model a token of its held-out records, with
    /// adapters.
    #[serde(default)]
    pub held_out_perplexity: Option<f64>,
    /// Perplexity there of what it would serve.
    #[serde(default)]
    pub adapter_perplexity: Option<f64>,
}

/// The result of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    /// Name of the experiment.
    pub name: String,
    /// The seed.
    pub seed: u64,
    /// Rounds.
    pub rounds: u64,
    /// Size of the population.
    pub tenants: usize,
    /// Accuracy of the last base model on the test records.
    pub accuracy: f64,
    /// Its loss.
    pub loss: f64,
    /// Who adds noise: `none`, `local`, `central` or `distributed`.
    pub trust: String,
    /// Whose presence the noise hides.
    pub unit: Option<String>,
    /// ε of the tenant that took part most often (add-or-remove-one).
    pub epsilon: Option<f64>,
    /// The δ of ε.
    pub delta: Option<f64>,
    /// Noise deviation of the protected sum over clipping norm.
    pub noise_multiplier: Option<f64>,
    /// Bytes from the coordinator.
    pub bytes_down: u64,
    /// Bytes to the coordinator.
    pub bytes_up: u64,
    /// Virtual time in seconds, if there is a clock.
    #[serde(default)]
    pub virtual_s: Option<f64>,
    /// Accuracy of the last base model on held-out records, with adapters: the mean over tenants.
    #[serde(default)]
    pub held_out_accuracy: Option<f64>,
    /// The same of what the tenants would serve.
    #[serde(default)]
    pub adapter_accuracy: Option<f64>,
    /// Of a decoder, perplexity of the last base model on held-out records, with adapters: the mean
    /// over tenants.
    #[serde(default)]
    pub held_out_perplexity: Option<f64>,
    /// The same of what the tenants would serve.
    #[serde(default)]
    pub adapter_perplexity: Option<f64>,
    /// BLAKE3 of the last model's file.
    pub model: String,
    /// BLAKE3 of the experiment and the seed.
    pub run: String,
}
