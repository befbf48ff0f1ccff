//! The privacy audit as one of the attacks: planted canaries are guessed.

use tributary_privacy::noise::SeededNoise;
use tributary_protocol::job::PrivacyUnit;

use super::{AttackError, AttackName, Findings, Row, Size};
use crate::audit::{AuditPlan, CanaryKind, CanarySet, PlantedFault};

/// Audits both units, and a build with a planted fault.
///
/// Measures: `epsilon_lower_bound` that the guesses prove at 95 % confidence, `correct` guesses, and
/// `refuted`, 1 where the bound is above the claim.
///
/// # Errors
/// [`AttackError::Audit`].
pub fn run(size: Size, seed: u64) -> Result<Findings, AttackError> {
    let canaries = match size {
        Size::Full => 1_000,
        Size::Small => 300,
    };
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut noise = SeededNoise::from_seed(key);
    let set = CanarySet::new(CanaryKind::Dirac, canaries, None, &mut noise)?;
    let cases = [
        ("record DP", PrivacyUnit::Record, None),
        ("tenant DP", PrivacyUnit::Tenant, None),
        ("record DP, a tenth of the noise", PrivacyUnit::Record, Some(PlantedFault::NoiseTenth)),
    ];
    let mut rows = Vec::new();
    for (name, unit, fault) in cases {
        let plan = AuditPlan { unit, fault, noise_multiplier: 3.0, delta: 1e-5, confidence: 0.95 };
        let report = plan.run(&set, &mut noise)?;
        rows.push(Row {
            defence: name.to_owned(),
            epsilon: Some(report.claimed_epsilon),
            measures: vec![
                ("epsilon_lower_bound", report.lower_bound),
                ("correct", report.correct as f64 / report.guesses.max(1) as f64),
                ("refuted", f64::from(u8::from(report.refuted))),
            ],
        });
    }
    Ok(Findings {
        attack: AttackName::Leakage,
        setting: format!(
            "{canaries} canaries, each put in by a coin; the attacker sees every release and guesses. \
             The epsilon is what the mechanism claims."
        ),
        rows,
        pictures: Vec::new(),
    })
}
