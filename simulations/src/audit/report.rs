use std::fmt;

use serde::Serialize;
use tributary_protocol::job::PrivacyUnit;

use super::{CanaryKind, PlantedFault, View};

/// What an audit found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AuditReport {
    /// Whose presence was guessed.
    pub unit: PrivacyUnit,
    /// What the canaries look like.
    pub canary: CanaryKind,
    /// What the attacker saw.
    pub view: View,
    /// The fault in the build under audit.
    pub fault: Option<PlantedFault>,
    /// Canaries, each in or out by a fair coin.
    pub canaries: usize,
    /// About how many the attacker guessed.
    pub guesses: usize,
    /// How often he was right.
    pub correct: u32,
    /// The ε that the accountant claims; `null` in JSON if it is infinite.
    pub claimed_epsilon: f64,
    /// The ε that the guesses prove at least.
    pub lower_bound: f64,
    /// The δ of both.
    pub delta: f64,
    /// Probability that the lower bound holds.
    pub confidence: f64,
    /// Noise deviation over clipping norm, as claimed.
    pub noise_multiplier: f64,
    /// Whether the bound is above the claim: then the build does not keep its promise.
    pub refuted: bool,
}

impl fmt::Display for AuditReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            PrivacyUnit::Record => "record",
            PrivacyUnit::Tenant => "tenant",
        };
        let fault = self.fault.map(|fault| format!(", planted fault {fault}")).unwrap_or_default();
        writeln!(formatter, "{unit} unit, {} canaries, {}{fault}", self.canaries, self.view)?;
        writeln!(
            formatter,
            "claimed      epsilon {:.3} at delta {:e} (add-or-remove-one, noise multiplier {})",
            self.claimed_epsilon, self.delta, self.noise_multiplier
        )?;
        writeln!(
            formatter,
            "proven       epsilon at least {:.3}, confidence {}",
            self.lower_bound, self.confidence
        )?;
        writeln!(formatter, "guesses      {} of {} right", self.correct, self.guesses)?;
        let verdict = match self.refuted {
            true => "REFUTED: the build leaks more than it claims",
            false => "consistent with the claim",
        };
        write!(formatter, "verdict      {verdict}")
    }
}
