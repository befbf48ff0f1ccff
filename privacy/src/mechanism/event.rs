//! What the accountants count.

use serde::{Deserialize, Serialize};

/// One accounted release, or many equal ones.
///
/// The noise multiplier is the noise standard deviation divided by the L2 sensitivity under
/// add-or-remove-one (the clipping norm); the neighbouring relation of every variant is
/// add-or-remove-one unless its name says otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum PrivacyEvent {
    /// The Gaussian mechanism on the whole data.
    Gaussian {
        /// Noise deviation over L2 sensitivity.
        noise_multiplier: f64,
        /// How many such releases.
        count: u64,
    },
    /// The Gaussian mechanism on a Poisson sample: every unit joins independently.
    PoissonGaussian {
        /// Probability with which each unit joins.
        sampling_rate: f64,
        /// Noise deviation over L2 sensitivity.
        noise_multiplier: f64,
        /// How many such releases, each with a fresh sample.
        steps: u64,
    },
}
