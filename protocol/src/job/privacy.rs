//! What is promised, to whom, and how.

use serde::{Deserialize, Serialize};

use super::{Clipping, CorrelatedNoise};

/// Who is trusted to add the noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// Nobody: every tenant's own release is differentially private.
    Local,
    /// Nobody alone: every tenant adds a share of the noise, and secure aggregation shows the
    /// coordinator only the sum, which is differentially private.
    Distributed,
}

impl Trust {
    /// The name in files, logs and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Distributed => "distributed",
        }
    }
}

/// Whose presence the noise hides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrivacyUnit {
    /// One record of one tenant; neighbours differ by adding or removing it.
    Record,
    /// All data of one tenant; neighbours differ by adding or removing the tenant's update.
    Tenant,
}

/// The differential privacy of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrivacyPlan {
    /// Who adds the noise.
    pub trust: Trust,
    /// What one unit of privacy is.
    pub unit: PrivacyUnit,
    /// L2 bound of one unit's contribution: a per-example gradient (`record`) or the whole client
    /// update (`tenant`), in model units.
    pub clipping_norm: f64,
    /// Noise standard deviation divided by the clipping norm.
    pub noise_multiplier: f64,
    /// The δ at which ε is reported.
    pub delta: f64,
    /// How contributions are clipped to the norm.
    #[serde(default)]
    pub clipping: Clipping,
    /// Whether updates are rotated by a public random rotation before they go on the grid, which
    /// spreads them evenly over the coordinates.
    #[serde(default)]
    pub rotation: bool,
    /// Width of the modulus of a sum with trust `local`, in bits, 8 to 32.
    #[serde(default = "lattice_bits_default")]
    pub lattice_bits: u8,
    /// Whether the noise is correlated over an agent's steps, and how; absent, every step has noise
    /// of its own on a fresh Poisson sample.
    #[serde(default)]
    pub correlated: Option<CorrelatedNoise>,
}

const fn lattice_bits_default() -> u8 {
    24
}
