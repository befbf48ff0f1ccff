//! What a coordinator that records everything has: nothing about a single update.

use super::world::World;
use crate::secagg::*;

/// The p-value of a chi-square statistic (Wilson and Hilferty 1931).
fn p_value(statistic: f64, degrees: f64) -> f64 {
    let spread = 2.0 / (9.0 * degrees);
    let normal = ((statistic / degrees).cbrt() - (1.0 - spread)) / spread.sqrt();
    libm::erfc(normal / std::f64::consts::SQRT_2) / 2.0
}

/// The p-values of 64 equally likely cells, by the highest and by the lowest six bits.
fn uniformity(values: &[u32], bits: u8) -> [f64; 2] {
    [bits - 6, 0].map(|shift| {
        let mut cells = [0u32; 64];
        values.iter().for_each(|value| cells[(value >> shift & 63) as usize] += 1);
        let expected = values.len() as f64 / 64.0;
        let statistic = cells.iter().map(|&count| (f64::from(count) - expected).powi(2) / expected);
        p_value(statistic.sum(), 63.0)
    })
}

const DIMENSION: u64 = 16_384;

/// A round in which every update is the same extreme: the easiest to recognise.
fn recorded(bits: u8) -> World {
    let plan = SecaggPlan::choose(6, 0.2, 0.17, Adversary::MaliciousCoordinator).expect("possible");
    let mut world = World::new(plan, bits, DIMENSION, u64::from(bits));
    for (member, input) in world.inputs.iter_mut().enumerate() {
        input.fill([0, 1, (1 << (bits - 1)) - 1][member % 3]);
    }
    let everybody: Vec<Member> = (0..6).map(Member).collect();
    for _ in 0..3 {
        world.run_step(everybody.clone()).expect("nobody is lost");
    }
    world
}

fn unpacked(world: &World, member: Member) -> Vec<u32> {
    let mut sum = crate::lattice::ModularSum::new(world.lattice, DIMENSION as usize);
    sum.add_packed(&world.uploads[&member]).expect("well formed");
    sum.values().to_vec()
}

/// Uploads, and sums and differences of any two: 36 vectors a width, two statistics each.
///
/// The seeds are fixed. Of 360 honest tests one fails at this level once in 2,800 choices of seeds;
/// a mask that missed even one bit in a hundred would fail by hundreds of orders of magnitude.
#[test]
fn uploads_are_indistinguishable_from_uniform() {
    let level = 1e-6;
    for bits in [8, 16, 20, 27, 32] {
        let world = recorded(bits);
        let low = u32::MAX >> (32 - bits);
        let uploads: Vec<_> = (0..6).map(|member| unpacked(&world, Member(member))).collect();
        for (first, upload) in uploads.iter().enumerate() {
            let alone = uniformity(upload, bits);
            assert!(alone.iter().all(|&p| p > level), "{bits} bits: {alone:?}");
            for other in &uploads[..first] {
                for sign in [1, u32::MAX] {
                    let joined: Vec<u32> = upload
                        .iter()
                        .zip(other)
                        .map(|(a, b)| a.wrapping_add(b.wrapping_mul(sign)) & low)
                        .collect();
                    let joined = uniformity(&joined, bits);
                    assert!(joined.iter().all(|&p| p > level), "{bits} bits: {joined:?}");
                }
            }
        }
    }
}

/// The test has teeth: the unmasked updates and a mask short of its top bit are told apart.
#[test]
fn the_uniformity_test_recognises_what_is_not_uniform() {
    let world = recorded(20);
    assert!(uniformity(&world.inputs[2], 20)[0] < 1e-100);
    let mut short = unpacked(&world, Member(0));
    short.iter_mut().step_by(10).for_each(|value| *value &= 0x7_ffff);
    assert!(uniformity(&short, 20)[0] < 1e-6);
    assert!((p_value(63.0, 63.0) - 0.476).abs() < 2e-3);
    assert!((p_value(103.4, 63.0) - 1e-3).abs() < 1e-4);
}

/// Everything but the uploads is independent of the updates: with the same keys and other updates,
/// it is the same, byte for byte.
#[test]
fn control_messages_carry_nothing_of_the_updates() {
    let transcript = |flip: u32| {
        let plan =
            SecaggPlan::choose(5, 0.2, 0.2, Adversary::MaliciousCoordinator).expect("possible");
        let mut world = World::new(plan, 16, 8, 3);
        for input in &mut world.inputs {
            input.iter_mut().for_each(|value| *value ^= flip);
        }
        let mut told = Vec::new();
        let everybody: Vec<Member> = (0..5).map(Member).collect();
        for staying in
            [&everybody[..], &everybody, &everybody[1..], &everybody[1..], &everybody[1..]]
        {
            world.run_step(staying.to_vec()).expect("one loss is tolerated");
            told.push(everybody.iter().map(|&member| world.server.message_for(member)).collect());
        }
        assert_eq!(world.unmasked(), world.expected());
        let record = serde_json::to_value(&world.server).expect("serialises");
        let revealed = (record["revealed"].clone(), record["recovered"].clone());
        (told, revealed, world.uploads)
    };
    let (told, revealed, uploads): (Vec<Vec<_>>, _, _) = transcript(0);
    let (told_other, revealed_other, uploads_other) = transcript(0x155);
    assert_eq!((told, revealed), (told_other, revealed_other));
    assert_ne!(uploads, uploads_other);
}

#[test]
fn a_cohort_of_one_or_two_is_refused() {
    for size in 0..3 {
        for adversary in [Adversary::SemiHonest, Adversary::MaliciousCoordinator] {
            let refused = SecaggPlan::choose(size, 0.0, 0.0, adversary);
            assert_eq!(refused, Err(PlanError::CohortTooSmall { cohort_size: size }));
        }
    }
    // And so is every plan under which a sum could be of one or two.
    for size in 3..40 {
        for dropout in 0..size {
            let share = f64::from(dropout) / f64::from(size);
            if let Ok(plan) = SecaggPlan::choose(size, share, 0.0, Adversary::SemiHonest) {
                assert!(plan.survivors_min() >= 3 && plan.honest_survivors_min() >= 2);
            }
        }
    }
}
