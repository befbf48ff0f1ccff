//! Members drop out anywhere: the sum is exact or there is none.

use proptest::prelude::*;

use super::world::World;
use crate::secagg::*;

/// The plans of small cohorts that tolerate as much as they can.
fn small_plans() -> Vec<SecaggPlan> {
    let mut plans = Vec::new();
    for adversary in [Adversary::SemiHonest, Adversary::MaliciousCoordinator] {
        for size in 3..=6u32 {
            for corrupt in [0.0, 0.2] {
                let tolerant = (0..size).rev().find_map(|dropouts| {
                    let share = f64::from(dropouts) / f64::from(size);
                    SecaggPlan::choose(size, share, corrupt, adversary).ok()
                });
                plans.extend(tolerant);
            }
        }
    }
    plans
}

#[test]
fn every_combination_of_dropouts_in_small_cohorts() {
    for plan in small_plans() {
        let world = World::new(plan, 16, 3, 1);
        let everybody = (0..plan.cohort_size()).map(Member).collect();
        let outcomes = explore(&world, everybody, &mut Vec::new());
        let steps = match plan.adversary() {
            Adversary::SemiHonest => 5u64,
            Adversary::MaliciousCoordinator => 6,
        };
        // Each member answers some first steps of the protocol and then no more.
        assert_eq!(outcomes.committed + outcomes.abandoned, steps.pow(plan.cohort_size()));
        assert!(outcomes.committed > 0 && outcomes.abandoned > 0, "{plan:?}");
    }
}

#[derive(Default)]
struct Outcomes {
    committed: u64,
    abandoned: u64,
}

/// Goes on with every subset of those who are still there.
///
/// - `answered`: how many answered each step so far
fn explore(world: &World, there: Vec<Member>, answered: &mut Vec<u32>) -> Outcomes {
    let mut outcomes = Outcomes::default();
    for subset in 0..1u32 << there.len() {
        let staying: Vec<Member> = there
            .iter()
            .enumerate()
            .filter(|(index, _)| subset >> index & 1 == 1)
            .map(|(_, &member)| member)
            .collect();
        let mut world = world.clone();
        answered.push(staying.len() as u32);
        let plan = world.server.context().plan;
        match world.run_step(staying.iter().copied()) {
            Ok(Step::Done) => {
                assert!(may_commit(&plan, answered), "{plan:?} {answered:?}");
                assert_eq!(world.unmasked(), world.expected());
                outcomes.committed += 1;
            }
            Ok(_) => {
                let below = explore(&world, staying, answered);
                outcomes.committed += below.committed;
                outcomes.abandoned += below.abandoned;
            }
            Err(reason) => {
                assert!(!may_commit(&plan, answered), "{plan:?} {answered:?} {reason}");
                assert!(!reason.to_string().is_empty());
                assert_eq!(world.server.close_step(), Err(reason));
                let steps_left = steps(&plan) - answered.len();
                // Whatever those who are left would have done.
                outcomes.abandoned += (steps_left as u64 + 1).pow(staying.len() as u32);
            }
        }
        assert!(world.refusals.is_empty(), "{:?}", world.refusals);
        answered.pop();
    }
    outcomes
}

fn steps(plan: &SecaggPlan) -> usize {
    match plan.adversary() {
        Adversary::SemiHonest => 4,
        Adversary::MaliciousCoordinator => 5,
    }
}

/// Whether so many answers are enough in a complete graph.
///
/// The first three steps need the smallest cohort; the last ones need the threshold of neighbours
/// of each, which is one member more.
fn may_commit(plan: &SecaggPlan, answered: &[u32]) -> bool {
    answered.iter().enumerate().all(|(step, &members)| {
        members >= if step < 3 { plan.survivors_min() } else { plan.threshold() + 1 }
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 12,
        rng_seed: proptest::test_runner::RngSeed::Fixed(4),
        ..ProptestConfig::default()
    })]

    /// Both graphs, both adversaries, losses around what is tolerated.
    #[test]
    fn random_dropouts_in_larger_cohorts(
        size in 7u32..150,
        malicious in any::<bool>(),
        losses in prop::collection::vec(0.0f64..0.05, 6),
        bits in 8u8..=32,
        seed in any::<u64>(),
    ) {
        let adversary = if malicious { Adversary::MaliciousCoordinator } else { Adversary::SemiHonest };
        let plan = SecaggPlan::choose(size, 0.1, 0.1, adversary).expect("possible");
        let mut world = World::new(plan, bits, 20, seed);
        let mut there: Vec<Member> = (0..size).map(Member).collect();
        let mut luck = chacha20::ChaCha20Rng::from_seed([seed as u8; 32]);
        let mut step = 0;
        let outcome = loop {
            there.retain(|_| luck.random::<f64>() >= losses[step.min(5)]);
            step += 1;
            match world.run_step(there.iter().copied()) {
                Ok(Step::Done) => break Ok(()),
                Ok(_) => {}
                Err(reason) => break Err(reason),
            }
        };
        prop_assert!(world.refusals.is_empty(), "{:?}", world.refusals);
        match outcome {
            Ok(()) => prop_assert_eq!(world.unmasked(), world.expected()),
            Err(reason) => {
                let lost = size - there.len() as u32;
                prop_assert!(lost + plan.survivors_min() > size || plan.graph() == GraphKind::Harary,
                    "{} of {} lost and abandoned: {}", lost, size, reason);
            }
        }
    }
}

use rand::{RngExt, SeedableRng};

#[test]
fn a_withheld_opening_draws_the_order_again() {
    let plan = SecaggPlan::choose(80, 0.1, 0.1, Adversary::MaliciousCoordinator).expect("possible");
    let mut world = World::new(plan, 20, 8, 3);
    let everybody: Vec<Member> = (0..80).map(Member).collect();
    assert_eq!(world.run_step(everybody.clone()), Ok(Step::RevealOrder));
    assert_eq!(world.run_step(everybody[1..].to_vec()), Ok(Step::RevealOrder));
    assert_eq!(world.run_step(everybody[3..].to_vec()), Ok(Step::RevealOrder));
    assert_eq!(world.run_step(everybody[3..].to_vec()), Ok(Step::ShareKeys));
    assert_eq!(world.finish(), Ok(world.expected()));
    assert_eq!(world.server.survivors().map(MemberSet::count), Some(77));
    assert!(world.refusals.is_empty());
}

#[test]
fn endless_withholding_is_abandoned() {
    let plan = SecaggPlan::choose(120, 0.1, 0.1, Adversary::SemiHonest).expect("possible");
    let mut world = World::new(plan, 20, 8, 3);
    let everybody: Vec<Member> = (0..120).map(Member).collect();
    world.run_step(everybody.clone()).expect("all advertised");
    let reason = (1..).find_map(|lost| world.run_step(everybody[lost..].to_vec()).err());
    assert_eq!(reason, Some(AbandonReason::OrderAttempts { attempts: 8 }));
}
