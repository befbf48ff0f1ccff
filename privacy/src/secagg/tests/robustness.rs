//! Damaged messages at every step: refused or taken, never a panic and never a wrong sum.

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use super::world::{MacKeys, World};
use crate::secagg::*;

/// Damages one place of a message: a number, some bytes, or an element of a list.
fn damage(value: &mut Value, luck: &mut impl Rng) {
    let below = |luck: &mut dyn FnMut() -> u32, count: usize| luck() as usize % count.max(1);
    let mut draw = || luck.next_u32();
    match value {
        Value::Number(number) => {
            let old = number.as_u64().unwrap_or(0);
            let choices = [0, 1, old + 1, old.wrapping_sub(1), 63, u64::from(u32::MAX), u64::MAX];
            *value = choices[below(&mut draw, choices.len())].into();
        }
        Value::String(text) => {
            let position = below(&mut draw, text.len());
            if text.is_ascii() && !text.is_empty() {
                let other = ["A", "/", "B", "", "AAAA"][below(&mut draw, 5)];
                text.replace_range(position..=position, other);
            } else {
                text.push('A');
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let index = below(&mut draw, items.len());
            match below(&mut draw, 8) {
                0 => drop(items.remove(index)),
                1 => items.push(items[index].clone()),
                2 => items.swap(0, index),
                3 => items.clear(),
                _ => damage(&mut items[index], luck),
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            let index = below(&mut draw, fields.len());
            let field = fields.values_mut().nth(index).expect("within the object");
            damage(field, luck);
        }
        other => *other = Value::Null,
    }
}

/// A message with one place damaged, if it is still one.
fn damaged<T: serde::Serialize + serde::de::DeserializeOwned>(
    message: &T,
    luck: &mut impl Rng,
) -> Option<T> {
    let mut value = serde_json::to_value(message).expect("messages have a JSON form");
    damage(&mut value, luck);
    serde_json::from_value(value).ok()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        rng_seed: proptest::test_runner::RngSeed::Fixed(6),
        ..ProptestConfig::default()
    })]

    #[test]
    fn damaged_messages_never_panic_nor_spoil_the_sum(
        sparse in prop::bool::weighted(0.2),
        malicious in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let adversary = if malicious { Adversary::MaliciousCoordinator } else { Adversary::SemiHonest };
        let size = if sparse { 61 } else { 6 };
        let plan = SecaggPlan::choose(size, 0.2, 0.1, adversary).expect("possible");
        let mut world = World::new(plan, 12, 6, seed);
        let mut luck = chacha20::ChaCha20Rng::seed_from_u64(seed);
        while world.server.step() != Step::Done {
            // Damaged requests go to copies of the agents, damaged answers to the coordinator.
            for member in (0..size).map(Member) {
                let Some(message) = world.server.message_for(member) else { continue };
                for _ in 0..40 / size + 1 {
                    let Some(damaged) = damaged(&message, &mut luck) else { continue };
                    let mut agent = world.clients[member.index()].clone();
                    let identity = &world.identities[member.index()];
                    let output = agent.handle(damaged, identity, &MacKeys);
                    if let (Ok(ClientOutput::Send(answer)), true) = (output, member.0 == 0) {
                        for _ in 0..20 {
                            // One place changed may also be nobody's business, as a nonce is.
                            let Some(answer) = self::damaged(&answer, &mut luck) else { continue };
                            let mut server = world.server.clone();
                            let _ = server.handle(member, answer, &MacKeys);
                        }
                    }
                }
            }
            world.run_step((0..size).map(Member)).expect("nobody is lost");
        }
        prop_assert!(world.refusals.is_empty());
        prop_assert_eq!(world.unmasked(), world.expected());
    }

    /// One agent's answers are damaged on the way: the sum is exact or abandoned with the reason.
    #[test]
    fn a_broken_agent_costs_the_round_at_most(
        malicious in any::<bool>(),
        broken_step in 0usize..6,
        seed in any::<u64>(),
    ) {
        let adversary = if malicious { Adversary::MaliciousCoordinator } else { Adversary::SemiHonest };
        let plan = SecaggPlan::choose(6, 0.2, 0.1, adversary).expect("possible");
        let mut world = World::new(plan, 12, 6, seed);
        let mut luck = chacha20::ChaCha20Rng::seed_from_u64(seed);
        let mut step = 0;
        let outcome = loop {
            for member in (0..6).map(Member) {
                if member.0 == 2 && step >= broken_step {
                    world.act_damaged(member, |answer| damaged(answer, &mut luck));
                } else {
                    world.act(member);
                }
            }
            step += 1;
            match world.server.close_step() {
                Ok(Step::Done) => break Ok(()),
                Ok(_) => {}
                Err(reason) => break Err(reason),
            }
        };
        match outcome {
            Ok(()) => prop_assert_eq!(world.unmasked(), world.expected()),
            Err(reason) => prop_assert!(!reason.to_string().is_empty()),
        }
    }
}
