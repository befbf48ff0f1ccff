//! Whatever numbers come in: a named error that says what would work, no panic, nothing released.

use tributary_privacy::{
    accountant::{
        AccountantError, Delta, calibrate, calibrate_noise_multiplier,
        distributed_discrete_gaussian_rho, epsilon_pld, epsilon_rdp, epsilon_zcdp, zcdp_epsilon,
    },
    audit::{AuditError, AuditOutcome, CanaryAssignment},
    clip::ClippingNorm,
    lattice::Lattice,
    mechanism::{
        BandedMatrix, CorrelatedGradientSum, MechanismError, NoisyGradientSum, NoisyStatistics,
        NoisyUpdate, ParticipationSchedule, PrivacyEvent, discrete_gaussian_rho,
    },
    noise::SecureNoise,
};

/// Not a number, beyond all numbers, and on the wrong side of zero.
const NEVER: [f64; 4] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0];

fn delta() -> Delta {
    Delta::new(1e-5).expect("valid")
}

/// The field that every accountant names in its refusal.
fn refused(event: &PrivacyEvent) -> &'static str {
    let events = std::slice::from_ref(event);
    let fields = [epsilon_pld, epsilon_rdp, epsilon_zcdp].map(|accountant| {
        match accountant(events, delta()) {
            Err(AccountantError::OutOfRange { field, .. }) => field,
            other => panic!("{event:?}: {other:?}"),
        }
    });
    assert!(fields.iter().all(|&field| field == fields[0]));
    fields[0]
}

fn poisson(sampling_rate: f64, noise_multiplier: f64) -> PrivacyEvent {
    PrivacyEvent::PoissonGaussian { sampling_rate, noise_multiplier, steps: 10 }
}

#[test]
fn deltas_outside_0_to_1_are_refused() {
    for value in NEVER.into_iter().chain([0.0, 1.0, 2.0, -0.0]) {
        let error = Delta::new(value).expect_err("impossible").to_string();
        assert!(error.contains("`delta`") && error.contains("below 1"), "{error}");
    }
}

#[test]
fn events_with_impossible_rates_or_noise_are_refused() {
    for value in NEVER {
        for rate in [value, 1.1] {
            assert_eq!(refused(&poisson(rate, 1.0)), "sampling_rate");
            let replaced = PrivacyEvent::PoissonGaussianReplaceOne {
                sampling_rate: rate,
                noise_multiplier: 1.0,
                steps: 1,
            };
            assert_eq!(refused(&replaced), "sampling_rate");
        }
        for event in [
            poisson(0.1, value),
            PrivacyEvent::Gaussian { noise_multiplier: value, count: 1 },
            PrivacyEvent::GaussianReplaceOne { noise_multiplier: value, count: 1 },
            PrivacyEvent::WithoutReplacementGaussian {
                batch_size: 1,
                num_examples: 10,
                noise_multiplier: value,
                steps: 1,
            },
        ] {
            assert_eq!(refused(&event), "noise_multiplier");
        }
        let discrete = PrivacyEvent::DiscreteGaussian { sigma: value, sensitivity: 1, count: 1 };
        assert_eq!(refused(&discrete), "sigma");
        let skellam = PrivacyEvent::Skellam { variance: value, sensitivity: 1, count: 1 };
        assert_eq!(refused(&skellam), "variance");
    }
    let sensitive = PrivacyEvent::DiscreteGaussian { sigma: 1.0, sensitivity: u32::MAX, count: 1 };
    assert_eq!(refused(&sensitive), "sensitivity");
    for (batch_size, num_examples, field) in [(11, 10, "batch_size"), (0, 0, "num_examples")] {
        let event = PrivacyEvent::WithoutReplacementGaussian {
            batch_size,
            num_examples,
            noise_multiplier: 1.0,
            steps: 1,
        };
        assert_eq!(refused(&event), field);
    }
}

#[test]
fn lattice_noise_and_runs_with_impossible_plans_are_refused() {
    let lattice = |sampling_rate, noise_multiplier, sigma_share, clients, dimension| {
        refused(&PrivacyEvent::LatticeGaussian {
            sampling_rate,
            noise_multiplier,
            sigma_share,
            clients,
            dimension,
            steps: 1,
        })
    };
    for value in NEVER.into_iter().chain([0.0]) {
        assert_eq!(lattice(1.0, value, 1.0, 1, 1), "noise_multiplier");
        assert_eq!(lattice(1.0, 1.0, value, 1, 1), "sigma_share");
    }
    assert_eq!(lattice(1.5, 1.0, 1.0, 1, 1), "sampling_rate");
    assert_eq!(lattice(1.0, 1.0, 1.0, 0, 1), "clients");
    assert_eq!(lattice(1.0, 1.0, 1.0, 1, 0), "dimension");
    let run = |noise_multiplier, sigma, bands, steps, separation, participations| {
        refused(&PrivacyEvent::BandedMatrix {
            noise_multiplier,
            sigma,
            dimension: 1,
            bands,
            steps,
            separation,
            participations,
            runs: 1,
        })
    };
    for value in NEVER {
        assert_eq!(run(value, 1e6, 1, 10, 1, 1), "noise_multiplier");
        assert_eq!(run(1.0, value, 1, 10, 1, 1), "sigma");
    }
    assert_eq!(run(1.0, 1e6, 0, 10, 1, 1), "bands");
    assert_eq!(run(1.0, 1e6, u32::MAX, 10, 1, 1), "bands");
    assert_eq!(run(1.0, 1e6, 1, u64::MAX, 1, 1), "steps");
    assert_eq!(run(1.0, 1e6, 1, 10, 0, 1), "separation");
    assert_eq!(run(1.0, 1e6, 1, 10, 5, 3), "participations");
}

/// Absurd but possible numbers have an answer.
#[test]
fn absurd_counts_and_dimensions_have_an_answer() {
    let steps = u64::MAX;
    for event in [
        PrivacyEvent::PoissonGaussian { sampling_rate: 0.5, noise_multiplier: 1e-300, steps },
        PrivacyEvent::PoissonGaussian { sampling_rate: 1e-300, noise_multiplier: 1e300, steps },
        PrivacyEvent::Gaussian { noise_multiplier: 1e300, count: steps },
        PrivacyEvent::GaussianReplaceOne { noise_multiplier: f64::MIN_POSITIVE, count: 1 },
        PrivacyEvent::LatticeGaussian {
            sampling_rate: 1.0,
            noise_multiplier: 1.0,
            sigma_share: 0.5,
            clients: u32::MAX,
            dimension: u64::MAX,
            steps,
        },
        PrivacyEvent::BandedMatrix {
            noise_multiplier: 1.0,
            sigma: 0.5,
            dimension: u64::MAX,
            bands: 1024,
            steps: 1 << 20,
            separation: 1,
            participations: 1 << 20,
            runs: steps,
        },
    ] {
        for accountant in [epsilon_pld, epsilon_rdp, epsilon_zcdp] {
            let figure = accountant(std::slice::from_ref(&event), delta()).expect("an answer");
            assert!(figure >= 0.0, "{event:?}: {figure}");
        }
    }
}

#[test]
fn relations_do_not_mix() {
    let mixed =
        [poisson(0.1, 1.0), PrivacyEvent::GaussianReplaceOne { noise_multiplier: 1.0, count: 1 }];
    for accountant in [epsilon_pld, epsilon_rdp, epsilon_zcdp] {
        assert_eq!(accountant(&mixed, delta()), Err(AccountantError::MixedNeighbouring));
    }
}

#[test]
fn conversions_and_calibrations_refuse_impossible_numbers() {
    for value in NEVER {
        assert!(zcdp_epsilon(value, delta()).is_err());
        assert!(distributed_discrete_gaussian_rho(1, value, 1.0, 1).is_err());
        assert!(distributed_discrete_gaussian_rho(1, 1.0, value, 1).is_err());
        assert!(discrete_gaussian_rho(value, 1.0).is_err());
        assert!(discrete_gaussian_rho(1.0, value).is_err());
        assert!(calibrate_noise_multiplier(value, delta(), 0.1, 1).is_err());
        assert!(calibrate_noise_multiplier(1.0, delta(), value, 1).is_err());
        assert!(calibrate(1.0, delta(), |noise| poisson(value, noise)).is_err());
    }
    assert!(calibrate_noise_multiplier(0.0, delta(), 0.1, 1).is_err());
    assert!(distributed_discrete_gaussian_rho(0, 1.0, 1.0, 1).is_err());
    assert!(discrete_gaussian_rho(1.0, 0.0).is_err());
    assert!(matches!(
        calibrate_noise_multiplier(1e-9, Delta::new(1e-300).expect("valid"), 1.0, u64::MAX),
        Err(AccountantError::Unreachable { .. })
    ));
}

#[test]
fn mechanisms_refuse_impossible_plans() {
    for value in NEVER.into_iter().chain([0.0]) {
        assert!(ClippingNorm::new(value).is_err());
        assert!(NoisyStatistics::new(value).is_err());
    }
    let norm = ClippingNorm::new(1.0).expect("positive");
    let lattice = Lattice::new(1e-4, 32).expect("valid");
    let field = |result: Result<(), MechanismError>| match result {
        Err(MechanismError::OutOfRange { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    let run = |noise_multiplier, dimension| {
        let matrix = BandedMatrix::new(4).expect("valid");
        let schedule = ParticipationSchedule::cyclic(8, 4).expect("valid");
        CorrelatedGradientSum::new(norm, noise_multiplier, dimension, matrix, schedule).map(drop)
    };
    for value in NEVER.into_iter().chain([0.0]) {
        assert_eq!(field(NoisyUpdate::new(lattice, norm, value, 1).map(drop)), "noise_multiplier");
        assert_eq!(field(NoisyGradientSum::new(norm, value, 1).map(drop)), "noise_multiplier");
        assert_eq!(field(run(value, 1)), "noise_multiplier");
    }
    for dimension in [0, usize::MAX] {
        assert_eq!(field(NoisyUpdate::new(lattice, norm, 1.0, dimension).map(drop)), "dimension");
        assert_eq!(field(NoisyGradientSum::new(norm, 1.0, dimension).map(drop)), "dimension");
        assert_eq!(field(run(1.0, dimension)), "dimension");
    }
}

#[test]
fn bad_vectors_release_nothing_and_empty_ones_only_noise() {
    let norm = ClippingNorm::new(1.0).expect("positive");
    let lattice = Lattice::new(1e-4, 32).expect("valid");
    let mut noise = SecureNoise::new().expect("entropy");
    let update = NoisyUpdate::new(lattice, norm, 1.0, 2).expect("valid");
    let sums = NoisyGradientSum::new(norm, 1.0, 2).expect("valid");
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(update.release(&mut [0.0, value], &mut noise).is_err());
        assert!(sums.begin().add(&[0.0, value], 1).is_err());
    }
    assert!(update.release(&mut [], &mut noise).is_err());
    assert!(sums.begin().add(&[], 1).is_err());
    // A zero update and an empty batch are as private as any other: noise alone.
    assert!(update.release(&mut [0.0; 2], &mut noise).is_ok());
    assert!(sums.release(sums.begin(), &mut noise).is_ok_and(|released| released.len() == 2));
}

#[test]
fn audits_refuse_impossible_outcomes() {
    assert!(matches!(AuditOutcome::new(1, 2, 0), Err(AuditError::Counts { .. })));
    assert!(matches!(AuditOutcome::new(2, 1, 2), Err(AuditError::Counts { .. })));
    let outcome = AuditOutcome::new(10, 10, 9).expect("possible");
    for confidence in NEVER.into_iter().chain([0.0, 1.0]) {
        assert_eq!(outcome.epsilon_lower_bound(delta(), confidence), Err(AuditError::Confidence));
    }
    for value in NEVER {
        let p_value = outcome.p_value(value, delta());
        assert!((0.0..=1.0).contains(&p_value), "{value}: {p_value}");
    }
    let nobody = AuditOutcome::new(0, 0, 0).expect("possible");
    assert_eq!(nobody.epsilon_lower_bound(delta(), 0.95), Ok(0.0));
    let mut noise = SecureNoise::new().expect("entropy");
    let assignment = CanaryAssignment::draw(2, &mut noise);
    assert!(matches!(assignment.judge(&[0.0], 2), Err(AuditError::Scores { .. })));
    assert!(matches!(assignment.judge(&[0.0, f64::NAN], 2), Err(AuditError::NotANumber { .. })));
    assert!(assignment.judge(&[0.0, f64::INFINITY], usize::MAX).is_ok());
    let empty = CanaryAssignment::draw(0, &mut noise);
    assert!(empty.judge(&[], 10).is_ok());
}
