//! What the accountant answers, for people and for programs.

use std::fmt;

use serde::Serialize;
use tributary_privacy::mechanism::Neighbouring;

use super::{Accountant, Mechanism, neighbouring_name};

/// The cost of some releases.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AccountAnswer {
    /// An upper bound of ε; `null` in JSON if it is infinite.
    pub epsilon: f64,
    /// The δ of that ε.
    pub delta: f64,
    /// How the results are made.
    pub mechanism: Mechanism,
    /// Which datasets count as neighbours.
    pub neighbouring: Neighbouring,
    /// How it was computed.
    pub accountant: Accountant,
}

/// The noise for a wanted ε.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CalibrateAnswer {
    /// Noise standard deviation over clipping norm.
    pub noise_multiplier: f64,
    /// The ε that this noise costs, at most the wanted one.
    pub epsilon: f64,
    /// The δ of that ε.
    pub delta: f64,
    /// How the results are made.
    pub mechanism: Mechanism,
    /// Which datasets count as neighbours.
    pub neighbouring: Neighbouring,
}

impl fmt::Display for AccountAnswer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epsilon, delta, mechanism, accountant, .. } = self;
        let neighbouring = neighbouring_name(self.neighbouring);
        write!(
            formatter,
            "ε ≤ {epsilon:.6} at δ = {delta:e} ({mechanism}, neighbouring relation {neighbouring}, {accountant} accountant)"
        )
    }
}

impl fmt::Display for CalibrateAnswer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { noise_multiplier, epsilon, delta, mechanism, .. } = self;
        let neighbouring = neighbouring_name(self.neighbouring);
        write!(
            formatter,
            "noise multiplier {noise_multiplier:.6} gives ε ≤ {epsilon:.6} at δ = {delta:e} ({mechanism}, neighbouring relation {neighbouring})"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_name_mechanism_and_neighbouring_relation() {
        let account = AccountAnswer {
            epsilon: 1.5,
            delta: 1e-5,
            mechanism: Mechanism::PoissonGaussian,
            neighbouring: Neighbouring::AddOrRemoveOne,
            accountant: Accountant::Pld,
        };
        let calibrate = CalibrateAnswer {
            noise_multiplier: 1.1,
            epsilon: 1.5,
            delta: 1e-5,
            mechanism: Mechanism::PoissonGaussian,
            neighbouring: Neighbouring::AddOrRemoveOne,
        };
        for text in [account.to_string(), calibrate.to_string()] {
            assert!(text.contains("poisson-gaussian"), "{text}");
            assert!(text.contains("add-or-remove-one"), "{text}");
        }
    }
}
