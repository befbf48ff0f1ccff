//! What an agent tries.

use rand::SeedableRng;

use super::{MALICIOUS, answer, everybody, sparse_world_at, world_at};
use crate::secagg::{
    bytes::{Blob, ByteArray},
    keys::Secrets,
    shamir::random_scalar,
    tests::world::{Mac, MacKeys, World},
    transcript::confirmation_bytes,
    *,
};

#[test]
fn an_agent_deals_malformed_shares() {
    let mut world = world_at(Step::ShareKeys, MALICIOUS);
    for member in everybody(&world) {
        let request = world.server.message_for(member).expect("asked");
        let output = answer(&mut world, member.0, request);
        let Ok(ClientOutput::Send(ClientMessage::ShareKeys(mut sealed))) = output else { panic!() };
        if member == Member(2) {
            // To member 0 something that cannot be decrypted.
            sealed[0].ciphertext.0[9] ^= 1;
            let long = ClientMessage::ShareKeys([&sealed[..], &sealed[..1]].concat());
            assert_eq!(
                world.server.handle(member, long, &MacKeys),
                Err(SecaggError::ShareCount { member, count: 6, expected: 5 })
            );
        }
        world.server.handle(member, ClientMessage::ShareKeys(sealed), &MacKeys).expect("taken");
    }
    world.server.close_step().expect("nobody is lost");
    assert_eq!(world.finish(), Ok(world.expected()));
    let named = Finding::MalformedDeal { dealer: Member(2), holder: Member(0) };
    assert_eq!(world.clients[0].findings(), std::slice::from_ref(&named));
    assert_eq!(world.server.findings(), [named]);
}

#[test]
fn an_agent_shares_something_else_than_its_secret() {
    let mut world = world_at(Step::ShareKeys, MALICIOUS);
    let digest = world.server.context().digest();
    let secrets = Secrets::new(digest, Member(2), &world.seeds[2]);
    let Some(ServerMessage::Neighbourhood(told)) = world.server.message_for(Member(2)) else {
        panic!("a neighbourhood")
    };
    let mut entropy = chacha20::ChaCha20Rng::from_seed([4; 32]);
    // Every share is decrypted and as committed to, but together they are no secret.
    let sealed = told.peers.iter().map(|peer| {
        let (first, second) = (random_scalar(&mut entropy), random_scalar(&mut entropy));
        secrets.seal(peer.member, &peer.advert.channel_key, &first, &second).expect("good key")
    });
    let deal = ClientMessage::ShareKeys(sealed.collect());
    let request = world.server.message_for(Member(2)).expect("asked");
    answer(&mut world, 2, request).expect("honest");
    world.server.handle(Member(2), deal, &MacKeys).expect("cannot be seen");
    for member in [0, 1, 3, 4, 5] {
        world.act(Member(member));
    }
    world.server.close_step().expect("nobody is lost");
    let named = AbandonReason::FalseSecret { member: Member(2) };
    assert_eq!(world.finish(), Err(named.clone()));
    assert_eq!(world.server.abandoned(), Some(&named));
}

#[test]
fn an_agent_reveals_malformed_shares() {
    let mut world = world_at(Step::Unmask, MALICIOUS);
    let member = Member(1);
    let request = world.server.message_for(member).expect("asked");
    let output = answer(&mut world, 1, request);
    let Ok(ClientOutput::Send(ClientMessage::Unmask(mut shares))) = output else { panic!() };
    let short = ClientMessage::Unmask(shares[1..].to_vec());
    assert_eq!(
        world.server.handle(member, short, &MacKeys),
        Err(SecaggError::ShareCount { member, count: 4, expected: 5 })
    );
    // One flipped bit, and one that is not even a scalar.
    shares[0].as_mut().expect("a share").0[0] ^= 1;
    shares[3] = Some(ByteArray([255; 32]));
    let answer = ClientMessage::Unmask(shares);
    world.server.handle(member, answer, &MacKeys).expect("taken, but for two shares");
    for other in [0, 2, 3, 4, 5] {
        world.act(Member(other));
    }
    assert_eq!(world.server.close_step(), Ok(Step::Done));
    assert_eq!(world.unmasked(), world.expected());
    assert_eq!(
        world.server.findings(),
        [0, 4].map(|dealer| Finding::MalformedShare { dealer: Member(dealer), holder: member })
    );
}

#[test]
fn too_many_malformed_shares_end_the_round() {
    let mut world = world_at(Step::Unmask, MALICIOUS);
    let threshold = world.server.context().plan.threshold();
    for member in everybody(&world) {
        let request = world.server.message_for(member).expect("asked");
        let output = answer(&mut world, member.0, request);
        let Ok(ClientOutput::Send(ClientMessage::Unmask(mut shares))) = output else { panic!() };
        if member.0 > 3 {
            shares[0] = Some(ByteArray([1; 32]));
        }
        let answer = ClientMessage::Unmask(shares);
        world.server.handle(member, answer, &MacKeys).expect("taken");
    }
    assert!(!world.server.is_complete());
    assert_eq!(
        world.server.close_step(),
        Err(AbandonReason::TooFewShares { member: Member(0), shares: 3, shares_min: threshold })
    );
}

#[test]
fn vectors_of_wrong_length_or_range_are_refused() {
    let mut world = world_at(Step::MaskedInput, MALICIOUS);
    let request = world.server.message_for(Member(0)).expect("asked");
    answer(&mut world, 0, request).expect("honest");
    let mask = |world: &mut World, update: &mut [u32]| world.clients[0].mask(update);
    assert_eq!(
        mask(&mut world, &mut [0; 15]),
        Err(SecaggError::WrongLength { length: 15, expected: 16 })
    );
    // 20 bits: the most negative value has no positive counterpart; a 21st bit is not on the wire.
    let largest = (1 << 19) - 1;
    for (value, centred) in [(1u32 << 19, -(1 << 19)), ((1 << 20) + 3, 3)] {
        let mut update = [0; 16];
        update[5] = value;
        let error = SecaggError::OutOfRange { index: 5, value: centred, coordinate_max: largest };
        assert_eq!(mask(&mut world, &mut update), Err(error));
        assert_eq!(update[5], value);
    }
    let digest = ByteArray([1; 32]);
    assert_eq!(
        world.server.uploaded(Member(0), 39, digest),
        Err(SecaggError::WrongLength { length: 39, expected: 40 })
    );
    assert_eq!(world.server.uploaded(Member(0), 40, digest), Ok(()));
    let stranger = Member(6);
    assert_eq!(
        world.server.uploaded(stranger, 40, digest),
        Err(SecaggError::NotInCohort { member: stranger })
    );
}

#[test]
fn an_agent_sends_two_inputs() {
    // The agent's own process refuses to mask a second vector: the difference would be visible.
    let mut world = world_at(Step::MaskedInput, MALICIOUS);
    let request = world.server.message_for(Member(0)).expect("asked");
    answer(&mut world, 0, request).expect("honest");
    let (mut first, mut again, mut second) = ([3; 16], [3; 16], [4; 16]);
    assert_eq!(world.clients[0].mask(&mut first), Ok(()));
    assert_eq!(world.clients[0].mask(&mut again), Ok(()));
    assert_eq!(first, again);
    let named = Err(SecaggError::TwoInputs { member: Member(0) });
    assert_eq!(world.clients[0].mask(&mut second), named);
    assert_eq!(second, [4; 16]);
    // The coordinator refuses a second upload, whatever the agent's program is.
    assert_eq!(world.server.uploaded(Member(0), 40, ByteArray([1; 32])), Ok(()));
    assert_eq!(world.server.uploaded(Member(0), 40, ByteArray([2; 32])), named);
    assert_eq!(world.server.uploaded(Member(0), 40, ByteArray([1; 32])), Ok(()));
}

#[test]
fn an_agent_answers_twice_or_late() {
    let plan = SecaggPlan::choose(6, 0.2, 0.17, MALICIOUS).expect("possible");
    let mut world = World::new(plan, 20, 16, 11);
    let step = Step::AdvertiseKeys;
    let member = Member(0);
    let advert = world.clients[0].advertise(&Mac(0));
    world.server.handle(member, advert.clone(), &MacKeys).expect("the first");
    world.server.handle(member, advert, &MacKeys).expect("the same");
    let credential = Blob(0u32.to_le_bytes().to_vec());
    let terms = world.server.context().clone();
    let mut other = Client::new(terms, member, credential, [77; 32]).expect("valid");
    let second = other.advertise(&Mac(0));
    assert_eq!(
        world.server.handle(member, second, &MacKeys),
        Err(SecaggError::ConflictingAnswers { member, step })
    );
    // Member 5 is late.
    let late = world.clients[5].advertise(&Mac(5));
    world.run_step((0..5).map(Member)).expect("one loss is tolerated");
    assert_eq!(
        world.server.handle(Member(5), late, &MacKeys),
        Err(SecaggError::OutOfTurn { step: Step::ShareKeys })
    );
    assert_eq!(world.server.message_for(Member(5)), None);
    assert_eq!(world.finish(), Ok(world.expected()));
}

#[test]
fn an_agent_opens_something_else_than_it_committed_to() {
    let mut world = sparse_world_at(Step::RevealOrder);
    let member = Member(9);
    let request = world.server.message_for(member).expect("asked");
    let Ok(ClientOutput::Send(ClientMessage::Opening(mut opening))) =
        answer(&mut world, 9, request)
    else {
        panic!("an opening")
    };
    opening.value.0[0] ^= 1;
    assert_eq!(
        world.server.handle(member, ClientMessage::Opening(opening), &MacKeys),
        Err(SecaggError::OpeningMismatch { member })
    );
}

#[test]
fn an_agent_forges_its_confirmation() {
    let mut world = world_at(Step::ConsistencyCheck, MALICIOUS);
    let request = world.server.message_for(Member(1)).expect("asked");
    let Ok(ClientOutput::Send(ClientMessage::Confirm(signed))) = answer(&mut world, 1, request)
    else {
        panic!("a confirmation")
    };
    let member = Member(2);
    assert_eq!(
        world.server.handle(member, ClientMessage::Confirm(signed.clone()), &MacKeys),
        Err(SecaggError::ForgedConfirmation { member })
    );
    let digest = ByteArray([0; 32]);
    let message = confirmation_bytes(&digest);
    let other = Confirmation { digest, signature: Blob(Mac(2).sign(&message)) };
    assert_eq!(
        world.server.handle(member, ClientMessage::Confirm(other), &MacKeys),
        Err(SecaggError::SurvivorsDiffer { member })
    );
}
