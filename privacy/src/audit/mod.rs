//! One-run canary audits: an empirical lower bound of ε.
//!
//! Canaries are inserted by fair coins; whoever sees only the release guesses which ones are in.
//! The better the guesses, the larger ε must be. A lower bound above the claimed ε proves a fault;
//! one below it proves nothing.
//!
//! Source: Steinke, Nasr, Jagielski 2023, arXiv:2305.08846.

use thiserror::Error;

use crate::{accountant::Delta, noise::NoiseSource};

/// The largest ε that the search considers.
const EPSILON_MAX: f64 = 100.0;

/// Says why an audit has no result.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AuditError {
    /// There is not one score for every canary.
    #[error("{scores} scores for {canaries} canaries")]
    Scores {
        /// Scores given.
        scores: usize,
        /// Canaries inserted or left out.
        canaries: usize,
    },
    /// A score is NaN.
    #[error("the score of canary {canary} is not a number")]
    NotANumber {
        /// Its position.
        canary: usize,
    },
    /// Counts contradict each other.
    #[error("{correct} of {guesses} guesses about {canaries} canaries is impossible")]
    Counts {
        /// Canaries inserted or left out.
        canaries: u32,
        /// Guesses made.
        guesses: u32,
        /// Guesses that were right.
        correct: u32,
    },
    /// The confidence is not between 0 and 1.
    #[error("the confidence must be between 0 and 1")]
    Confidence,
}

/// Which canaries are in the data: one fair coin each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanaryAssignment {
    included: Vec<bool>,
}

impl CanaryAssignment {
    /// Tosses a coin for each canary.
    pub fn draw(canaries: usize, noise: &mut impl NoiseSource) -> Self {
        Self { included: (0..canaries).map(|_| noise.next_u32() & 1 == 1).collect() }
    }

    /// Whether each canary is in.
    #[must_use]
    pub fn included(&self) -> &[bool] {
        &self.included
    }

    /// Guesses "in" for the highest scores, "out" for the lowest, and abstains between.
    ///
    /// - `scores`: of each canary, from the release alone; higher means more likely in
    /// - `guesses`: how many to guess, half of them "in"; fixed before the scores are seen
    ///
    /// # Errors
    /// [`AuditError::Scores`] or [`AuditError::NotANumber`].
    pub fn judge(&self, scores: &[f64], guesses: usize) -> Result<AuditOutcome, AuditError> {
        let canaries = self.included.len();
        if scores.len() != canaries {
            return Err(AuditError::Scores { scores: scores.len(), canaries });
        }
        if let Some(canary) = scores.iter().position(|score| score.is_nan()) {
            return Err(AuditError::NotANumber { canary });
        }
        let mut order: Vec<usize> = (0..canaries).collect();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        let each = guesses.min(canaries) / 2;
        let right_out = order[..each].iter().filter(|&&canary| !self.included[canary]).count();
        let right_in =
            order[canaries - each..].iter().filter(|&&canary| self.included[canary]).count();
        AuditOutcome::new(canaries as u32, 2 * each as u32, (right_out + right_in) as u32)
    }
}

/// How well the guesses went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditOutcome {
    canaries: u32,
    guesses: u32,
    correct: u32,
}

impl AuditOutcome {
    /// # Errors
    /// [`AuditError::Counts`] unless `correct <= guesses <= canaries`.
    pub const fn new(canaries: u32, guesses: u32, correct: u32) -> Result<Self, AuditError> {
        if correct <= guesses && guesses <= canaries {
            Ok(Self { canaries, guesses, correct })
        } else {
            Err(AuditError::Counts { canaries, guesses, correct })
        }
    }

    /// Guesses that were right.
    #[must_use]
    pub const fn correct(&self) -> u32 {
        self.correct
    }

    /// The probability, at most, of so many right guesses from an (ε, δ)-private release.
    ///
    /// With q = e^ε / (1 + e^ε) and B binomial (guesses, q):
    /// `P(B >= v) + 2 m δ · max_i P(v > B >= v - i) / i`.
    ///
    /// Source: Steinke, Nasr, Jagielski 2023, theorem 5.2 and appendix D.
    #[must_use]
    pub fn p_value(&self, epsilon: f64, delta: Delta) -> f64 {
        let success = (1.0 + (-epsilon).exp()).recip();
        let mass = |right: u32| binomial(self.guesses, right, success);
        let tail: f64 = (self.correct..=self.guesses).rev().map(mass).sum();
        let (mut below, mut slope) = (0.0_f64, 0.0_f64);
        for distance in 1..=self.correct {
            below += mass(self.correct - distance);
            slope = slope.max(below / f64::from(distance));
        }
        (tail + slope * delta.value() * 2.0 * f64::from(self.canaries)).min(1.0)
    }

    /// The largest ε that the outcome rules out: with probability `confidence`, the release is not
    /// (ε, δ)-private for any smaller ε.
    ///
    /// # Errors
    /// [`AuditError::Confidence`] unless it is between 0 and 1.
    pub fn epsilon_lower_bound(&self, delta: Delta, confidence: f64) -> Result<f64, AuditError> {
        if !(confidence > 0.0 && confidence < 1.0) {
            return Err(AuditError::Confidence);
        }
        let ruled_out = |epsilon| self.p_value(epsilon, delta) < 1.0 - confidence;
        let (mut low, mut high) = (0.0, EPSILON_MAX);
        if !ruled_out(low) {
            return Ok(0.0);
        }
        while high - low > 1e-6 {
            let middle = 0.5 * (low + high);
            if ruled_out(middle) { low = middle } else { high = middle }
        }
        Ok(low)
    }
}

/// The binomial probability of `right` out of `trials`.
fn binomial(trials: u32, right: u32, success: f64) -> f64 {
    let (n, k) = (f64::from(trials), f64::from(right));
    let log_choose = libm::lgamma(n + 1.0) - libm::lgamma(k + 1.0) - libm::lgamma(n - k + 1.0);
    // 0 · ln 0 is 0 here.
    let power = |count: f64, log: f64| if count == 0.0 { 0.0 } else { count * log };
    (log_choose + power(k, success.ln()) + power(n - k, (-success).ln_1p())).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        accountant::epsilon,
        clip::ClippingNorm,
        lattice::{Lattice, ModularSum},
        mechanism::{NoisyUpdate, PrivacyEvent},
        noise::SeededNoise,
    };

    fn delta() -> Delta {
        Delta::new(1e-5).expect("valid")
    }

    /// Values of the code in the paper's appendix D (scipy), computed separately.
    #[test]
    fn p_values_agree_with_the_papers_code() {
        let outcome = AuditOutcome::new(1000, 100, 75).expect("possible");
        let cases = [
            (0.0, 1e-12, 2.818724388608065e-7),
            (0.0, 1e-5, 5.836533194656424e-4),
            (0.5, 1e-12, 0.004804739583264407),
            (1.0, 1e-5, 0.38450513197497765),
        ];
        for (epsilon, delta, expected) in cases {
            let ours = outcome.p_value(epsilon, Delta::new(delta).expect("valid"));
            assert!((ours / expected - 1.0).abs() < 1e-9, "{epsilon} {delta}: {ours}");
        }
        let perfect = AuditOutcome::new(10, 10, 10).expect("possible");
        let ours = perfect.p_value(0.0, Delta::new(1e-15).expect("valid"));
        assert!((ours - 2.0_f64.powi(-10)).abs() < 1e-10);
    }

    #[test]
    fn impossible_outcomes_are_refused() {
        assert!(AuditOutcome::new(10, 11, 3).is_err());
        assert!(AuditOutcome::new(10, 5, 6).is_err());
        let outcome = AuditOutcome::new(10, 10, 9).expect("possible");
        assert_eq!(outcome.epsilon_lower_bound(delta(), 1.0), Err(AuditError::Confidence));
        let mut noise = SeededNoise::from_seed([1; 32]);
        let assignment = CanaryAssignment::draw(3, &mut noise);
        assert!(assignment.judge(&[0.0; 2], 2).is_err());
        assert!(assignment.judge(&[0.0, f64::NAN, 0.0], 2).is_err());
    }

    /// Audits the real mechanism: every canary is a unit vector of its own coordinate.
    ///
    /// - `gain`: length of a canary over the clipping norm that the noise was sized for
    fn audit(gain: f32, noise_divisor: f64) -> (f64, f64) {
        let canaries = 1000;
        let mut noise = SeededNoise::from_seed([2; 32]);
        let assignment = CanaryAssignment::draw(canaries, &mut noise);
        let (clipping_norm, noise_multiplier) = (1.0, 1.0);
        let lattice = Lattice::new(1e-5, 32).expect("valid");
        let norm = ClippingNorm::new(clipping_norm).expect("positive");
        let released_multiplier = noise_multiplier / noise_divisor;
        let mechanism =
            NoisyUpdate::new(lattice, norm, released_multiplier, canaries).expect("valid");
        // One contribution a canary, summed under a single noise: central release of the sum.
        let mut sum = ModularSum::new(lattice, canaries);
        let pure_noise = mechanism.release(&mut vec![0.0; canaries], &mut noise).expect("finite");
        sum.add_packed(&pure_noise).expect("well formed");
        for (canary, _) in assignment.included().iter().enumerate().filter(|(_, is_in)| **is_in) {
            let mut contribution = vec![0.0; canaries];
            contribution[canary] = gain;
            let unclipped = ClippingNorm::new(f64::from(gain) * 1.001).expect("positive");
            let grid = lattice.quantize(&contribution, unclipped).expect("finite");
            sum.add_packed(&lattice.pack(&grid)).expect("well formed");
        }
        let scores = lattice.dequantize_sum(sum.values());
        // The clearer half: how many canaries the coins included is then no matter.
        let outcome = assignment.judge(&scores, canaries / 2).expect("complete");
        let event = PrivacyEvent::Gaussian { noise_multiplier, count: 1 };
        let claimed = epsilon(&[event], delta()).expect("valid");
        (outcome.epsilon_lower_bound(delta(), 0.95).expect("valid"), claimed)
    }

    #[test]
    fn the_honest_mechanism_passes() {
        let (found, claimed) = audit(1.0, 1.0);
        assert!(found > 0.3 && found < claimed, "{found} {claimed}");
    }

    #[test]
    fn noise_of_a_tenth_is_caught() {
        let (found, claimed) = audit(1.0, 10.0);
        assert!(found > claimed, "{found} {claimed}");
    }

    #[test]
    fn a_skipped_clip_is_caught() {
        let (found, claimed) = audit(10.0, 1.0);
        assert!(found > claimed, "{found} {claimed}");
    }
}
