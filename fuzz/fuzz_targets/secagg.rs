//! Any message at any step of secure aggregation is taken or refused; whatever an agent sends, the
//! sum stays exact. (A coordinator that lies to agents may well spoil its own sum.)
#![no_main]

use libfuzzer_sys::fuzz_target;
use tributary_privacy::{
    lattice::{Lattice, ModularSum},
    secagg::{
        Adversary, Blob, ByteArray, Client, ClientMessage, ClientOutput, Identity, Member,
        PeerKeys, RoundContext, SecaggPlan, Server, ServerMessage, Step, cohort_root,
    },
};
use tributary_protocol::codec;

const SIZE: u32 = 4;

struct Tenant;

impl Identity for Tenant {
    fn sign(&self, _: &[u8]) -> Vec<u8> {
        vec![1]
    }
}

/// Believes everything, so that the fuzzer gets past signatures.
struct Gullible;

impl PeerKeys for Gullible {
    fn name(&self, credential: &[u8]) -> Option<String> {
        Some(format!("{credential:?}"))
    }

    fn verify(&self, _: &[u8], _: &[u8], _: &[u8]) -> bool {
        true
    }
}

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (strike, member, bytes) = input;
    let victim = Member(u32::from(member) % SIZE);
    let plan = SecaggPlan::choose(SIZE, 0.25, 0.0, Adversary::MaliciousCoordinator)
        .expect("a threshold of two");
    let credentials: Vec<Blob> = (0..SIZE as u8).map(|place| Blob(vec![place])).collect();
    let context = RoundContext {
        job: "fuzz".to_owned(),
        round: 1,
        base_digest: ByteArray([0; 32]),
        terms_digest: ByteArray([0; 32]),
        cohort_root: cohort_root(&credentials),
        plan,
        bits: 8,
        dimension: 1,
        coordinate_max: 31,
    };
    let mut server = Server::new(context.clone(), credentials.clone()).expect("valid");
    let mut clients: Vec<Client> = (0..SIZE)
        .zip(credentials)
        .map(|(place, credential)| {
            Client::new(context.clone(), Member(place), credential, [place as u8; 32])
                .expect("valid")
        })
        .collect();
    let lattice = Lattice::new(1.0, 8).expect("valid");
    let mut uploads = vec![Vec::new(); SIZE as usize];
    let mut lied = false;
    for step in 0u8.. {
        if step == strike % 6 {
            if let Ok(message) = codec::decode::<ClientMessage>(bytes) {
                let _ = server.handle(victim, message, &Gullible);
            }
            if let Ok(message) = codec::decode::<ServerMessage>(bytes) {
                let _ = clients[victim.index()].handle(message, &Tenant, &Gullible);
                lied = true;
            }
        }
        for member in (0..SIZE).map(Member) {
            let client = &mut clients[member.index()];
            let output = match server.message_for(member) {
                None if server.step() == Step::AdvertiseKeys => {
                    Ok(ClientOutput::Send(client.advertise(&Tenant)))
                }
                None => continue,
                Some(message) => client.handle(message, &Tenant, &Gullible),
            };
            match output {
                Ok(ClientOutput::Send(answer)) => {
                    let _ = server.handle(member, answer, &Gullible);
                }
                Ok(ClientOutput::Mask) => {
                    let mut update = [3];
                    client.mask(&mut update).expect("in range");
                    uploads[member.index()] = lattice.pack(&[i64::from(update[0])]);
                    let _ = server.uploaded(member, 1, ByteArray([member.0 as u8; 32]));
                }
                Err(_) => {}
            }
        }
        match server.close_step() {
            Ok(Step::Done) => break,
            Ok(_) => {}
            Err(_) => return,
        }
    }
    let survivors = server.survivors().expect("done").clone();
    let mut sum = ModularSum::new(lattice, 1);
    for member in survivors.iter() {
        sum.add_packed(&uploads[member.index()]).expect("well formed");
    }
    server.unmask(&mut sum).expect("done");
    assert!(lied || sum.values() == [3 * survivors.count()]);
});
