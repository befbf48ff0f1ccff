//! What a coordinator tries.

use super::{MALICIOUS, advance, answer, everybody, sparse_world_at, survivors, world_at};
use crate::secagg::{
    bytes::{Blob, ByteArray},
    context::cohort_leaf,
    keys::Secrets,
    merkle::Tree,
    tests::world::{Mac, MacKeys, World, context},
    *,
};

fn neighbourhood(world: &World, member: u32) -> Neighbourhood {
    match world.server.message_for(Member(member)) {
        Some(ServerMessage::Neighbourhood(neighbourhood)) => neighbourhood,
        other => panic!("not a neighbourhood: {other:?}"),
    }
}

/// Rebuilds roster and proofs of a complete graph around changed adverts, as a lying coordinator
/// would, so that only what agents check for themselves is left.
fn rebuilt(world: &World, member: u32, mut change: impl FnMut(&mut Peer)) -> ServerMessage {
    let mut told = neighbourhood(world, member);
    told.peers.iter_mut().for_each(&mut change);
    // Everybody but the victim is a peer, and the victim's own leaf is in anybody else's message.
    let other = neighbourhood(world, if member == 0 { 1 } else { 0 });
    let own = other.peers.iter().find(|peer| peer.member == Member(member)).expect("a peer");
    let mut leaves: Vec<_> =
        told.peers.iter().chain([own]).map(|peer| (peer.member, peer.advert.leaf())).collect();
    leaves.sort_unstable();
    told.roster.adverts_root = Tree::new(leaves.into_iter().map(|(_, leaf)| leaf).collect()).root();
    ServerMessage::Neighbourhood(told)
}

#[test]
fn a_coordinator_asks_for_both_shares_of_one_agent() {
    for adversary in [Adversary::SemiHonest, MALICIOUS] {
        let mut world = world_at(Step::MaskedInput, adversary);
        world.run_step(everybody(&world)).expect("nobody is lost");
        let all = ServerMessage::Survivors(survivors(0..6));
        assert!(matches!(answer(&mut world, 0, all), Ok(ClientOutput::Send(_))));
        let without = ServerMessage::Survivors(survivors([0, 1, 2, 3, 5]));
        let named = SecaggError::BothShares { member: Member(4) };
        assert_eq!(answer(&mut world, 0, without.clone()), Err(named.clone()));
        // It says so for good, even to what it had answered before.
        let all = ServerMessage::Survivors(survivors(0..6));
        assert_eq!(answer(&mut world, 0, all), Err(named.clone()));
        assert_eq!(world.clients[0].step(), None);
    }
}

#[test]
fn a_coordinator_asks_again_after_the_answer() {
    let mut world = world_at(Step::Unmask, MALICIOUS);
    let request = world.server.message_for(Member(0)).expect("asked");
    let first = answer(&mut world, 0, request.clone()).expect("honest");
    assert_eq!(answer(&mut world, 0, request), Ok(first));
    let without = ServerMessage::Survivors(survivors([0, 2, 3, 4, 5]));
    assert_eq!(answer(&mut world, 0, without), Err(SecaggError::BothShares { member: Member(1) }));

    let mut world = world_at(Step::Unmask, MALICIOUS);
    let request = world.server.message_for(Member(0)).expect("asked");
    answer(&mut world, 0, request.clone()).expect("honest");
    let ServerMessage::Confirmations(mut fewer) = request else { panic!("confirmations") };
    fewer.pop();
    assert_eq!(
        answer(&mut world, 0, ServerMessage::Confirmations(fewer)),
        Err(SecaggError::ConflictingRequests { step: Step::Unmask })
    );
}

#[test]
fn a_coordinator_lies_about_survivors_to_different_agents() {
    let mut world = world_at(Step::ConsistencyCheck, MALICIOUS);
    // Half of the cohort is told that member 5 dropped out, so that both its secrets come out.
    let mut signed = Vec::new();
    for member in 0..6u32 {
        let told = if member < 3 { survivors(0..6) } else { survivors(0..5) };
        match answer(&mut world, member, ServerMessage::Survivors(told)) {
            Ok(ClientOutput::Send(ClientMessage::Confirm(confirmation))) => {
                signed.push((Member(member), confirmation));
            }
            other => assert_eq!((member, other), (5, Err(SecaggError::NotASurvivor))),
        }
    }
    for victim in [0u32, 4] {
        let others: Vec<_> =
            signed.iter().filter(|(member, _)| member.0 != victim).cloned().collect();
        let first = if victim == 0 { 3 } else { 0 };
        assert_eq!(
            answer(&mut world, victim, ServerMessage::Confirmations(others)),
            Err(SecaggError::SurvivorsDiffer { member: Member(first) })
        );
    }
    // Hiding those who disagree leaves too few.
    let agreeing: Vec<_> =
        signed[..3].iter().filter(|(member, _)| member.0 != 1).cloned().collect();
    assert!(matches!(
        answer(&mut world, 1, ServerMessage::Confirmations(agreeing)),
        Err(SecaggError::TooFewNeighbours { step: Step::ConsistencyCheck, neighbours: 2, .. })
    ));
    // And what somebody else signed cannot be passed off as theirs.
    let forged = ServerMessage::Confirmations(
        [0, 1, 3, 4].map(|member| (Member(member), signed[0].1.clone())).to_vec(),
    );
    assert_eq!(
        answer(&mut world, 2, forged),
        Err(SecaggError::ForgedConfirmation { member: Member(1) })
    );
}

#[test]
fn a_coordinator_lets_one_agent_confirm_many_times() {
    let mut world = world_at(Step::Unmask, MALICIOUS);
    let request = world.server.message_for(Member(0)).expect("asked");
    let ServerMessage::Confirmations(confirmations) = request else { panic!("confirmations") };
    let same = vec![confirmations[0].clone(); 5];
    assert_eq!(
        answer(&mut world, 0, ServerMessage::Confirmations(same)),
        Err(SecaggError::WrongNeighbours)
    );
}

#[test]
fn a_coordinator_replays_the_keys_of_an_old_round() {
    let mut world = world_at(Step::ShareKeys, MALICIOUS);
    // Member 3's genuine keys of the round before, with its genuine signature.
    let before = RoundContext { round: 6, ..world.server.context().clone() };
    let credential = Blob(3u32.to_le_bytes().to_vec());
    let mut past = Client::new(before, Member(3), credential, [8; 32]).expect("valid");
    let ClientMessage::Advertise(old) = past.advertise(&Mac(3)) else { panic!("an advert") };
    let told = rebuilt(&world, 0, |peer| {
        if peer.member == Member(3) {
            peer.advert = (*old).clone();
        }
    });
    let named = SecaggError::ReplayedKeys { member: Member(3), round: 6 };
    assert_eq!(answer(&mut world, 0, told), Err(named.clone()));
    // The coordinator itself does not fall for an agent that replays either.
    let mut world = world_at(Step::AdvertiseKeys, MALICIOUS);
    assert_eq!(world.server.handle(Member(3), ClientMessage::Advertise(old), &MacKeys), Err(named));
}

#[test]
fn a_coordinator_substitutes_keys() {
    let world = world_at(Step::ShareKeys, MALICIOUS);
    let own_key = Secrets::new(ByteArray([0; 32]), Member(0), &[9; 32]);
    let changes: [fn(&mut Advert, ByteArray<32>); 3] = [
        |advert, key| advert.mask_key = key,
        |advert, key| advert.channel_key = key,
        |advert, key| advert.self_mask_commitment = key,
    ];
    for change in changes {
        let told = rebuilt(&world, 0, |peer| {
            if peer.member == Member(2) {
                change(&mut peer.advert, own_key.mask_key_public());
            }
        });
        let named = SecaggError::SubstitutedKeys { member: Member(2) };
        assert_eq!(answer(&mut world.clone(), 0, told), Err(named));
    }
    // The victim's own keys replaced in what everybody is shown: its leaf is not in the tree.
    let ServerMessage::Neighbourhood(mut told) = rebuilt(&world, 1, |_| {}) else { panic!() };
    assert!(answer(&mut world.clone(), 1, ServerMessage::Neighbourhood(told.clone())).is_ok());
    told.roster.adverts_root.0[0] ^= 1;
    let told = ServerMessage::Neighbourhood(told);
    assert_eq!(answer(&mut world.clone(), 1, told), Err(SecaggError::NotInRoster));
    // One member's signed keys under another's name.
    let stolen = neighbourhood(&world, 0).peers[0].advert.clone();
    let told = rebuilt(&world, 0, |peer| {
        if peer.member == Member(4) {
            peer.advert = stolen.clone();
        }
    });
    let named = SecaggError::SubstitutedKeys { member: Member(4) };
    assert_eq!(answer(&mut world.clone(), 0, told), Err(named));
}

#[test]
fn a_coordinator_puts_a_stranger_or_a_twin_in_the_cohort() {
    let mut world = world_at(Step::ShareKeys, MALICIOUS);
    let ServerMessage::Neighbourhood(mut told) = rebuilt(&world, 0, |_| {}) else { panic!() };
    told.peers[2].credential = Blob(vec![7]);
    let told = ServerMessage::Neighbourhood(told);
    assert_eq!(answer(&mut world, 0, told), Err(SecaggError::NotInRoster));

    // A cohort list that was so from the start.
    let plan = SecaggPlan::choose(6, 0.2, 0.17, MALICIOUS).expect("possible");
    for (twin, expected) in [
        (1u32, SecaggError::SameTenant { first: Member(1), second: Member(3) }),
        (9, SecaggError::UntrustedPeer { member: Member(3) }),
    ] {
        let credentials: Vec<Blob> = (0..6u32)
            .map(|member| Blob((if member == 3 { twin } else { member }).to_le_bytes().to_vec()))
            .collect();
        let context = context(plan, &credentials, 20, 16);
        let advert = |member: u32, signer: u32| {
            let credential = credentials[member as usize].clone();
            let client =
                Client::new(context.clone(), Member(member), credential, [member as u8; 32]);
            let mut client = client.expect("valid");
            let ClientMessage::Advertise(advert) = client.advertise(&Mac(signer)) else { panic!() };
            (client, *advert)
        };
        let peers: Vec<Peer> = (0..6u32)
            .map(|member| Peer {
                member: Member(member),
                credential: credentials[member as usize].clone(),
                advert: advert(member, if member == 3 { twin } else { member }).1,
            })
            .collect();
        let leaves = |leaf: fn(&Peer) -> ByteArray<32>| Tree::new(peers.iter().map(leaf).collect());
        let told = Neighbourhood {
            roster: Roster {
                advertised: MemberSet::full(6),
                adverts_root: leaves(|peer| peer.advert.leaf()).root(),
                order_digest: ByteArray([0; 32]),
            },
            order: None,
            peers: peers[1..].to_vec(),
            cohort_proof: Vec::new(),
            adverts_proof: Vec::new(),
        };
        assert_eq!(leaves(|peer| cohort_leaf(&peer.credential)).root(), context.cohort_root);
        let (mut victim, _) = advert(0, 0);
        let outcome = victim.handle(ServerMessage::Neighbourhood(told), &Mac(0), &KnowsSix);
        assert_eq!(outcome, Err(expected));
    }
}

/// Trusts the members 0 to 5 only.
struct KnowsSix;

impl PeerKeys for KnowsSix {
    fn name(&self, credential: &[u8]) -> Option<String> {
        MacKeys.name(credential).filter(|_| credential[0] < 6)
    }

    fn verify(&self, credential: &[u8], message: &[u8], signature: &[u8]) -> bool {
        MacKeys.verify(credential, message, signature)
    }
}

#[test]
fn a_coordinator_shrinks_the_cohort() {
    // Five of six must survive. At every step somebody is hidden, then somebody more.
    let mut world = world_at(Step::ShareKeys, MALICIOUS);
    let mut told = neighbourhood(&world, 0);
    told.roster.advertised = survivors([0, 1, 2, 3]);
    told.peers.truncate(3);
    assert_eq!(
        answer(&mut world, 0, ServerMessage::Neighbourhood(told)),
        Err(SecaggError::CohortShrank { step: Step::AdvertiseKeys, members: 4, members_min: 5 })
    );
    let mut world = world_at(Step::MaskedInput, MALICIOUS);
    let request = world.server.message_for(Member(0)).expect("asked");
    let ServerMessage::Shares(mut shares) = request else { panic!("shares") };
    shares.truncate(2);
    assert!(matches!(
        answer(&mut world, 0, ServerMessage::Shares(shares)),
        Err(SecaggError::TooFewNeighbours { step: Step::ShareKeys, neighbours: 2, .. })
    ));
    for adversary in [Adversary::SemiHonest, MALICIOUS] {
        let mut world = world_at(Step::MaskedInput, adversary);
        world.run_step(everybody(&world)).expect("nobody is lost");
        for few in [survivors([0]), survivors([0, 1, 2, 3])] {
            let members = few.count();
            assert_eq!(
                answer(&mut world.clone(), 0, ServerMessage::Survivors(few)),
                Err(SecaggError::CohortShrank { step: Step::MaskedInput, members, members_min: 5 })
            );
        }
        assert_eq!(
            answer(&mut world, 0, ServerMessage::Survivors(survivors(1..6))),
            Err(SecaggError::NotASurvivor)
        );
    }
    // Another cohort size than the terms say.
    let mut world = world_at(Step::MaskedInput, MALICIOUS);
    world.run_step(everybody(&world)).expect("nobody is lost");
    assert_eq!(
        answer(&mut world, 0, ServerMessage::Survivors(MemberSet::full(5))),
        Err(SecaggError::NotInRoster)
    );
    let mut world = world_at(Step::ShareKeys, MALICIOUS);
    let mut told = neighbourhood(&world, 0);
    told.roster.advertised = MemberSet::full(5);
    assert_eq!(
        answer(&mut world, 0, ServerMessage::Neighbourhood(told)),
        Err(SecaggError::NotInRoster)
    );
}

#[test]
fn a_coordinator_revives_a_dropout() {
    // Member 5 advertised but never dealt: nobody masked with it.
    let mut world = world_at(Step::ShareKeys, MALICIOUS);
    world.run_step((0..5).map(Member)).expect("one loss is tolerated");
    world.run_step((0..5).map(Member)).expect("one loss is tolerated");
    assert_eq!(
        answer(&mut world, 0, ServerMessage::Survivors(survivors(0..6))),
        Err(SecaggError::UnknownSurvivor { member: Member(5) })
    );
}

#[test]
fn a_coordinator_gives_another_base_model_or_other_terms_to_some_tenants() {
    let world = world_at(Step::ShareKeys, MALICIOUS);
    let terms = world.server.context();
    let member = Member(2);
    let poisoned = RoundContext { base_digest: ByteArray([66; 32]), ..terms.clone() };
    let other_job = RoundContext { job: "lottery".to_owned(), ..terms.clone() };
    let wider = RoundContext { coordinate_max: 1, ..terms.clone() };
    for (other, named) in [
        (poisoned, SecaggError::BaseModelDiffers { member }),
        (other_job, SecaggError::TermsDiffer { member }),
        (wider, SecaggError::TermsDiffer { member }),
    ] {
        let credential = Blob(2u32.to_le_bytes().to_vec());
        let mut elsewhere = Client::new(other, member, credential, [5; 32]).expect("valid");
        let ClientMessage::Advertise(advert) = elsewhere.advertise(&Mac(2)) else { panic!() };
        let told = rebuilt(&world, 0, |peer| {
            if peer.member == member {
                peer.advert = (*advert).clone();
            }
        });
        assert_eq!(answer(&mut world.clone(), 0, told), Err(named.clone()));
        // An honest coordinator notices as well.
        let mut fresh = world_at(Step::AdvertiseKeys, MALICIOUS);
        let refused = fresh.server.handle(member, ClientMessage::Advertise(advert), &MacKeys);
        assert_eq!(refused, Err(named));
    }
}

#[test]
fn a_coordinator_chooses_the_neighbours() {
    // In the complete graph it leaves one out.
    let mut world = world_at(Step::ShareKeys, MALICIOUS);
    let mut told = neighbourhood(&world, 0);
    told.peers.pop();
    assert_eq!(
        answer(&mut world, 0, ServerMessage::Neighbourhood(told)),
        Err(SecaggError::WrongNeighbours)
    );
    // In the sparse graph it swaps one, changes an opening, or claims an earlier attempt.
    let world = sparse_world_at(Step::ShareKeys);
    let honest = neighbourhood(&world, 0);
    let absent =
        (1..64).map(Member).find(|&other| honest.peers.iter().all(|peer| peer.member != other));
    let mut told = honest.clone();
    told.peers[0].member = absent.expect("not everybody's neighbour");
    told.peers.sort_by_key(|peer| peer.member);
    let told = ServerMessage::Neighbourhood(told);
    assert_eq!(answer(&mut world.clone(), 0, told), Err(SecaggError::WrongNeighbours));
    let lies: [fn(&mut Neighbourhood); 5] = [
        |told| told.order.as_mut().expect("sparse").openings[5].0[0] ^= 1,
        |told| told.order.as_mut().expect("sparse").attempt = 2,
        |told| told.order = None,
        |told| told.roster.order_digest.0[0] ^= 1,
        |told| {
            let order = told.order.as_mut().expect("sparse");
            order.asked = MemberSet::of(64, (0..63).map(Member));
            order.openings.pop();
            order.commitments.push(ByteArray([0; 16]));
        },
    ];
    for lie in lies {
        let mut told = honest.clone();
        lie(&mut told);
        let told = ServerMessage::Neighbourhood(told);
        assert_eq!(answer(&mut world.clone(), 0, told), Err(SecaggError::OrderNotCommitted));
    }
    assert!(answer(&mut world.clone(), 0, ServerMessage::Neighbourhood(honest)).is_ok());
}

#[test]
fn a_coordinator_draws_the_order_until_it_likes_it() {
    let world = sparse_world_at(Step::RevealOrder);
    let Some(ServerMessage::Reveal(first)) = world.server.message_for(Member(0)) else { panic!() };
    let conflict = Err(SecaggError::ConflictingRequests { step: Step::RevealOrder });
    // A second draw with everybody again, one out of turn, one with somebody put back.
    let without = |members: std::ops::Range<u32>| MemberSet::of(64, members.map(Member));
    let ask = |attempt, asked: MemberSet| {
        ServerMessage::Reveal(Reveal { attempt, asked, ..first.clone() })
    };
    let mut clients = world.clone();
    assert!(answer(&mut clients, 0, ask(1, MemberSet::full(64))).is_ok());
    assert_eq!(answer(&mut clients.clone(), 0, ask(2, MemberSet::full(64))), conflict);
    assert_eq!(answer(&mut clients.clone(), 0, ask(1, without(0..63))), conflict);
    assert_eq!(answer(&mut clients.clone(), 0, ask(3, without(0..63))), conflict);
    assert!(answer(&mut clients, 0, ask(2, without(0..63))).is_ok());
    assert_eq!(answer(&mut clients.clone(), 0, ask(3, MemberSet::full(64))), conflict);
    assert_eq!(
        answer(&mut clients.clone(), 0, ask(3, without(0..50))),
        Err(SecaggError::CohortShrank { step: Step::RevealOrder, members: 50, members_min: 58 })
    );
    // Not before the roster is fixed, and not with another roster afterwards.
    assert_eq!(answer(&mut world.clone(), 0, ask(2, without(0..63))), conflict);
    let mut other = first.clone();
    other.roster.adverts_root.0[0] ^= 1;
    let other = Reveal { attempt: 3, asked: without(0..62), ..other };
    assert_eq!(answer(&mut clients, 0, ServerMessage::Reveal(other)), conflict);
}

#[test]
fn a_coordinator_skips_steps() {
    let mut world = world_at(Step::AdvertiseKeys, MALICIOUS);
    let early = ServerMessage::Survivors(survivors(0..6));
    let out_of_turn = Err(SecaggError::OutOfTurn { step: Step::AdvertiseKeys });
    assert_eq!(answer(&mut world, 0, early), out_of_turn);

    // Unmasking before the update is masked, and without confirmations.
    let mut world = world_at(Step::MaskedInput, MALICIOUS);
    let request = world.server.message_for(Member(0)).expect("asked");
    assert_eq!(answer(&mut world, 0, request), Ok(ClientOutput::Mask));
    assert_eq!(
        answer(&mut world, 0, ServerMessage::Survivors(survivors(0..6))),
        Err(SecaggError::OutOfTurn { step: Step::MaskedInput })
    );
    let mut world = world_at(Step::ConsistencyCheck, MALICIOUS);
    assert!(matches!(
        answer(&mut world, 0, ServerMessage::Confirmations(Vec::new())),
        Err(SecaggError::OutOfTurn { step: Step::MaskedInput })
    ));
}

#[test]
fn a_key_of_low_order_is_refused_by_both_sides() {
    let plan = SecaggPlan::choose(6, 0.2, 0.17, MALICIOUS).expect("possible");
    let mut world = World::new(plan, 20, 16, 11);
    // Member 3 makes and signs a useless key, so that everybody's masks with it are public.
    let ClientMessage::Advertise(mut advert) = world.clients[3].advertise(&Mac(3)) else {
        panic!()
    };
    advert.mask_key = ByteArray([0; 32]);
    advert.signature = Blob(Mac(3).sign(&advert.signed_bytes(Member(3))));
    let named = SecaggError::BadKey { member: Member(3) };
    let refused =
        world.server.handle(Member(3), ClientMessage::Advertise(advert.clone()), &MacKeys);
    assert_eq!(refused, Err(named.clone()));
    let mut world = advance(world, Step::ShareKeys);
    let told = rebuilt(&world, 0, |peer| {
        if peer.member == Member(3) {
            peer.advert = (*advert).clone();
        }
    });
    answer(&mut world, 0, told).expect("the mask key is not used yet");
    let shares = world_at(Step::MaskedInput, MALICIOUS).server.message_for(Member(0));
    assert_eq!(answer(&mut world, 0, shares.expect("asked")), Err(named));
}
