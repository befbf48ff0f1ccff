//! Restarts and reconnects change nothing.

use proptest::prelude::*;

use super::world::World;
use crate::secagg::*;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 10,
        rng_seed: proptest::test_runner::RngSeed::Fixed(5),
        ..ProptestConfig::default()
    })]

    /// A coordinator that is restored from its record after every message, and agents that are
    /// asked everything twice, end as those that never were interrupted.
    #[test]
    fn a_restored_server_goes_on_as_if_nothing_had_happened(
        size in 4u32..9,
        sparse in any::<bool>(),
        malicious in any::<bool>(),
        lost in 0u32..3,
        seed in any::<u64>(),
    ) {
        let adversary = if malicious { Adversary::MaliciousCoordinator } else { Adversary::SemiHonest };
        let size = if sparse { 61 + size } else { size };
        let plan = SecaggPlan::choose(size, 0.1, 0.05, adversary).expect("possible");
        let mut steady = World::new(plan, 17, 5, seed);
        let mut restarted = steady.clone();
        restarted.interrupted = true;
        let mut there: Vec<Member> = (0..size).map(Member).collect();
        loop {
            let outcome = steady.run_step(there.clone());
            prop_assert_eq!(&outcome, &restarted.run_step(there.clone()));
            prop_assert_eq!(&steady.server, &restarted.server);
            for member in (0..size).map(Member) {
                let message = steady.server.message_for(member);
                prop_assert_eq!(message, restarted.server.message_for(member));
            }
            match outcome {
                Ok(Step::Done) => {
                    prop_assert_eq!(restarted.unmasked(), steady.expected());
                    break;
                }
                Ok(_) => {}
                Err(_) => break,
            }
            if there.len() as u32 + lost > size {
                there.remove(seed as usize % there.len());
            }
        }
    }
}

#[test]
fn answers_to_the_same_request_are_the_same() {
    let plan = SecaggPlan::choose(4, 0.25, 0.0, Adversary::SemiHonest).expect("possible");
    let mut world = World::new(plan, 16, 4, 9);
    let everybody: Vec<Member> = (0..4).map(Member).collect();
    assert_eq!(
        world.clients[0].advertise(&world.identities[0]),
        world.clients[0].advertise(&world.identities[0])
    );
    world.interrupted = true;
    while world.run_step(everybody.clone()).expect("nobody is lost") != Step::Done {}
    assert_eq!(world.unmasked(), world.expected());
}
