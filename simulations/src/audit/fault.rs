use std::fmt;

use serde::Serialize;
use tributary_privacy::clip::{ClipError, ClippingNorm};

/// A fault planted on purpose, to see whether the audit finds it.
///
/// It exists in the simulator alone: it changes the numbers that the production mechanisms are
/// built with, not the mechanisms, so neither the agent nor the privacy crate has a way to be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum PlantedFault {
    /// The noise has a tenth of the claimed deviation
    NoiseTenth,
    /// Nothing is clipped; the noise is that of the claimed clipping norm
    ClipSkipped,
}

/// How much longer than claimed a contribution may be where clipping is skipped: longer than any
/// canary's gradient, so the clip never acts.
const UNCLIPPED: f64 = 64.0;

/// The numbers that a mechanism is built with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Parameters {
    pub(super) clipping_norm: ClippingNorm,
    pub(super) noise_multiplier: f64,
}

impl Parameters {
    /// The claimed numbers, or what a fault makes of them.
    pub(super) fn built(
        clipping_norm: f64,
        noise_multiplier: f64,
        fault: Option<PlantedFault>,
    ) -> Result<Self, ClipError> {
        let (norm, noise_multiplier) = match fault {
            None => (clipping_norm, noise_multiplier),
            Some(PlantedFault::NoiseTenth) => (clipping_norm, noise_multiplier / 10.0),
            // The absolute deviation stays the same.
            Some(PlantedFault::ClipSkipped) => {
                (clipping_norm * UNCLIPPED, noise_multiplier / UNCLIPPED)
            }
        };
        Ok(Self { clipping_norm: ClippingNorm::new(norm)?, noise_multiplier })
    }
}

impl fmt::Display for PlantedFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NoiseTenth => "noise-tenth",
            Self::ClipSkipped => "clip-skipped",
        })
    }
}
