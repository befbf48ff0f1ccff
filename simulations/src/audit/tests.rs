use tributary_privacy::noise::SeededNoise;

use super::*;

const RECORD: PrivacyUnit = PrivacyUnit::Record;
const TENANT: PrivacyUnit = PrivacyUnit::Tenant;

fn audit(
    unit: PrivacyUnit,
    kind: CanaryKind,
    canaries: usize,
    fault: Option<PlantedFault>,
) -> AuditReport {
    let mut noise = SeededNoise::from_seed([11; 32]);
    let set = CanarySet::new(kind, canaries, None, &mut noise).expect("valid");
    let plan = AuditPlan { unit, fault, noise_multiplier: 3.0, delta: 1e-5, confidence: 0.95 };
    plan.run(&set, &mut noise).expect("runs")
}

/// The honest build passes though the attacker learns something; both faults are caught.
fn assert_sound(unit: PrivacyUnit, kind: CanaryKind, canaries: usize) {
    let honest = audit(unit, kind, canaries, None);
    assert!(!honest.refuted && honest.lower_bound > 0.0, "{honest}");
    for fault in [PlantedFault::NoiseTenth, PlantedFault::ClipSkipped] {
        let faulty = audit(unit, kind, canaries, Some(fault));
        assert!(faulty.refuted && faulty.claimed_epsilon == honest.claimed_epsilon, "{faulty}");
    }
}

#[test]
fn gradient_canaries_judge_the_record_trainer() {
    assert_sound(RECORD, CanaryKind::Dirac, 500);
    assert_sound(RECORD, CanaryKind::Random, 600);
}

#[test]
fn gradient_canaries_judge_the_tenant_release() {
    assert_sound(TENANT, CanaryKind::Dirac, 300);
    assert_sound(TENANT, CanaryKind::Random, 300);
}

#[test]
fn the_loss_alone_judges_both() {
    assert_sound(RECORD, CanaryKind::Blank, 400);
    assert_sound(TENANT, CanaryKind::Blank, 350);
}

#[test]
fn a_seed_repeats_an_audit() {
    let run = || audit(RECORD, CanaryKind::Blank, 50, None);
    assert_eq!(run(), run());
}

#[test]
fn impossible_audits_are_named() {
    let mut noise = SeededNoise::from_seed([1; 32]);
    let mut message = |kind, canaries| {
        CanarySet::new(kind, canaries, None, &mut noise).expect_err("impossible").to_string()
    };
    assert!(message(CanaryKind::Dirac, 9).contains("10 to 5000"));
    assert!(message(CanaryKind::Dirac, usize::MAX).contains("10 to 5000"));
    assert!(message(CanaryKind::Mislabelled, 50).contains("from 0 images"));
    let set = CanarySet::new(CanaryKind::Blank, 20, None, &mut noise).expect("valid");
    let honest = AuditPlan {
        unit: RECORD,
        fault: None,
        noise_multiplier: 3.0,
        delta: 1e-5,
        confidence: 0.95,
    };
    for plan in [
        AuditPlan { noise_multiplier: 0.0, ..honest },
        AuditPlan { noise_multiplier: f64::NAN, unit: TENANT, ..honest },
        AuditPlan { delta: 1.0, ..honest },
        AuditPlan { confidence: 1.0, ..honest },
        AuditPlan { confidence: -1.0, ..honest },
    ] {
        assert!(plan.run(&set, &mut noise).is_err(), "{plan:?}");
    }
}
