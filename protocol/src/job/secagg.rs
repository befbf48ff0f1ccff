//! Secure aggregation.

use serde::{Deserialize, Serialize};

/// What secure aggregation must withstand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecaggSpec {
    /// What the coordinator may do.
    pub adversary: Adversary,
    /// The fraction of a cohort that may drop out, in [0, 1). A round with more dropouts is
    /// abandoned, and the noise is sized for it.
    pub dropout_max: f64,
    /// The fraction of a cohort that may collude with the coordinator, in [0, 1). Their noise does
    /// not count.
    pub corrupt_max: f64,
    /// Width of the modulus of the sum, in bits, 8 to 32.
    #[serde(default = "secagg_bits_default")]
    pub bits: u8,
    /// How long the cohort may take for each step but the masked update itself, in milliseconds.
    #[serde(default = "secagg_step_timeout_default")]
    pub step_timeout_ms: u64,
}

/// What the coordinator may do, beside colluding with some of the cohort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Adversary {
    /// It follows the protocol, and looks at everything that it receives.
    SemiHonest,
    /// It does what it likes.
    MaliciousCoordinator,
}

const fn secagg_bits_default() -> u8 {
    32
}

const fn secagg_step_timeout_default() -> u64 {
    30_000
}
