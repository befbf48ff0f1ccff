//! Attacks, each as the attacker would carry it out, and the name that it is detected by.

mod agent;
mod coordinator;

use super::world::{MacKeys, World};
use crate::secagg::*;

const MALICIOUS: Adversary = Adversary::MaliciousCoordinator;

fn everybody(world: &World) -> Vec<Member> {
    (0..world.clients.len() as u32).map(Member).collect()
}

/// A cohort of six that has come to `step`, nobody lost.
fn world_at(step: Step, adversary: Adversary) -> World {
    let plan = SecaggPlan::choose(6, 0.2, 0.17, adversary).expect("possible");
    advance(World::new(plan, 20, 16, 11), step)
}

/// A sparse cohort that has come to `step`.
fn sparse_world_at(step: Step) -> World {
    let plan = SecaggPlan::choose(64, 0.1, 0.1, MALICIOUS).expect("possible");
    advance(World::new(plan, 20, 16, 12), step)
}

fn advance(mut world: World, step: Step) -> World {
    while world.server.step() != step {
        world.run_step(everybody(&world)).expect("nobody is lost");
    }
    world
}

/// What a member of the world says to a message.
fn answer(
    world: &mut World,
    member: u32,
    message: ServerMessage,
) -> Result<ClientOutput, SecaggError> {
    let index = member as usize;
    world.clients[index].handle(message, &world.identities[index], &MacKeys)
}

fn survivors(members: impl IntoIterator<Item = u32>) -> MemberSet {
    MemberSet::of(6, members.into_iter().map(Member))
}
