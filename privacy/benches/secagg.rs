//! What secure aggregation costs: processor time and bytes of agents and coordinator.
//!
//! `cargo bench -p tributary-privacy --bench secagg [-- model|scale]`; without an argument both.
//! `model` is a model of a million parameters in the complete graph, `scale` a small vector in
//! cohorts up to 10,000, every agent and the coordinator in this process. Times are of this thread.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use nix::time::{ClockId, clock_gettime};
use tributary_privacy::{
    lattice::{Lattice, ModularSum},
    secagg::*,
};

/// Processor time of this thread, in seconds.
fn cpu_time() -> f64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every thread has one");
    time.tv_sec() as f64 + time.tv_nsec() as f64 * 1e-9
}

/// Adds the processor time of `run` to `total`.
fn timed<T>(total: &mut f64, run: impl FnOnce() -> T) -> T {
    let start = cpu_time();
    let value = run();
    *total += cpu_time() - start;
    value
}

struct Tenant(SigningKey);

impl Identity for Tenant {
    fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).to_bytes().to_vec()
    }
}

/// Credentials are ed25519 keys, filled up to the size of a certificate.
struct Keys;

const CREDENTIAL_BYTES: usize = 600;

impl PeerKeys for Keys {
    fn name(&self, credential: &[u8]) -> Option<String> {
        credential.get(..8).map(|name| format!("{name:?}"))
    }

    fn verify(&self, credential: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let key = credential.first_chunk().and_then(|key| VerifyingKey::from_bytes(key).ok());
        let signature = Signature::from_slice(signature).ok();
        key.zip(signature)
            .is_some_and(|(key, signature)| key.verify_strict(message, &signature).is_ok())
    }
}

/// Bytes of a message; lengths and places count two bytes each.
fn advert_bytes(advert: &Advert) -> usize {
    8 + 5 * 32 + 16 + 2 + advert.signature.0.len()
}

fn sent_bytes(message: &ClientMessage) -> usize {
    1 + match message {
        ClientMessage::Advertise(advert) => advert_bytes(advert),
        ClientMessage::Opening(_) => 17,
        ClientMessage::ShareKeys(sealed) => 2 + 144 * sealed.len(),
        ClientMessage::Confirm(confirmation) => 34 + confirmation.signature.0.len(),
        ClientMessage::Unmask(shares) => 2 + 33 * shares.len(),
    }
}

fn told_bytes(message: &ServerMessage) -> usize {
    let set = |set: &MemberSet| 4 + set.as_bytes().len();
    let roster = |roster: &Roster| set(&roster.advertised) + 64;
    1 + match message {
        ServerMessage::Reveal(reveal) => roster(&reveal.roster) + 1 + set(&reveal.asked),
        ServerMessage::Neighbourhood(told) => {
            let order = told.order.as_ref().map_or(1, |order| {
                6 + set(&order.asked) + 16 * (order.openings.len() + order.commitments.len())
            });
            let peer = |peer: &Peer| 4 + peer.credential.0.len() + advert_bytes(&peer.advert);
            let proofs = 4 + 32 * (told.cohort_proof.len() + told.adverts_proof.len());
            roster(&told.roster) + order + told.peers.iter().map(peer).sum::<usize>() + proofs
        }
        ServerMessage::Shares(shares) => 2 + 146 * shares.len(),
        ServerMessage::Survivors(survivors) => set(survivors),
        ServerMessage::Confirmations(confirmations) => {
            let one = |(_, signed): &(Member, Confirmation)| 36 + signed.signature.0.len();
            2 + confirmations.iter().map(one).sum::<usize>()
        }
    }
}

/// Totals over all agents that finished the round, and of the coordinator.
#[derive(Default)]
struct Costs {
    keys: f64,
    mask: f64,
    unmask: f64,
    sent: usize,
    told: usize,
    server_steps: f64,
    server_unmask: f64,
}

/// One round with `dropouts` agents lost after they shared their keys: the costliest moment.
fn round(plan: SecaggPlan, bits: u8, dimension: usize, dropouts: u32) -> Costs {
    let size = plan.cohort_size();
    let tenants: Vec<Tenant> = (0..size)
        .map(|number| {
            Tenant(SigningKey::from_bytes(blake3::hash(&number.to_le_bytes()).as_bytes()))
        })
        .collect();
    let credentials: Vec<Blob> = tenants
        .iter()
        .map(|tenant| {
            let mut credential = tenant.0.verifying_key().to_bytes().to_vec();
            credential.resize(CREDENTIAL_BYTES, 0);
            Blob(credential)
        })
        .collect();
    let context = RoundContext {
        job: "bench".to_owned(),
        round: 1,
        base_digest: ByteArray([1; 32]),
        terms_digest: ByteArray([2; 32]),
        cohort_root: cohort_root(&credentials),
        plan,
        bits,
        dimension: dimension as u64,
        coordinate_max: (1 << (bits - 1)) - 1,
    };
    let mut costs = Costs::default();
    let mut server =
        timed(&mut costs.server_steps, || Server::new(context.clone(), credentials.clone()))
            .expect("valid");
    let mut clients: Vec<Client> = (0..size)
        .zip(credentials)
        .map(|(member, credential)| {
            let seed = *blake3::keyed_hash(&[7; 32], &member.to_le_bytes()).as_bytes();
            timed(&mut costs.keys, || {
                Client::new(context.clone(), Member(member), credential, seed)
            })
            .expect("valid")
        })
        .collect();
    let lattice = Lattice::new(1.0, bits).expect("valid");
    let mut sum = ModularSum::new(lattice, dimension);
    while server.step() != Step::Done {
        let step = server.step();
        let first = if step >= Step::MaskedInput { dropouts } else { 0 };
        for member in (first..size).map(Member) {
            let (client, tenant) = (&mut clients[member.index()], &tenants[member.index()]);
            let told = timed(&mut costs.server_steps, || server.message_for(member));
            costs.told += told.as_ref().map_or(0, told_bytes);
            let spent = if step <= Step::MaskedInput { &mut costs.keys } else { &mut costs.unmask };
            let output = match told {
                None if step == Step::AdvertiseKeys => {
                    ClientOutput::Send(timed(spent, || client.advertise(tenant)))
                }
                None => continue,
                Some(told) => timed(spent, || client.handle(told, tenant, &Keys)).expect("honest"),
            };
            match output {
                ClientOutput::Send(answer) => {
                    costs.sent += sent_bytes(&answer);
                    timed(&mut costs.server_steps, || server.handle(member, answer, &Keys))
                        .expect("honest");
                }
                ClientOutput::Mask => {
                    let mut update = vec![1; dimension];
                    timed(&mut costs.mask, || client.mask(&mut update)).expect("in range");
                    let update: Vec<i64> = update.into_iter().map(i64::from).collect();
                    let packed = lattice.pack(&update);
                    sum.add_packed(&packed).expect("well formed");
                    let digest = ByteArray(*blake3::hash(&packed).as_bytes());
                    server.uploaded(member, packed.len() as u64, digest).expect("in turn");
                }
            }
        }
        timed(&mut costs.server_steps, || server.close_step()).expect("few dropouts");
    }
    timed(&mut costs.server_unmask, || server.unmask(&mut sum)).expect("done");
    let survivors = (size - dropouts) & (u32::MAX >> (32 - bits));
    assert!(sum.values().iter().all(|&value| value == survivors), "the sum is exact");
    costs
}

fn report(plan: &SecaggPlan, bits: u8, dimension: usize, dropouts: u32, costs: &Costs) {
    let (size, left) = (f64::from(plan.cohort_size()), f64::from(plan.cohort_size() - dropouts));
    let upload = (dimension * usize::from(bits)).div_ceil(8);
    let masked = (f64::from(plan.neighbours()) + 1.0) * upload as f64 * left;
    let adversary = match plan.adversary() {
        Adversary::SemiHonest => "semi-honest",
        Adversary::MaliciousCoordinator => "malicious",
    };
    println!(
        "{:>6} {adversary:>11} {:>4} {:>4} {bits:>3} {:>9.2} {:>9.2} {:>6.2} {:>9.2} {:>8.1} {:>9.1} \
         {:>7.2} {:>9.3} {:>9.3}",
        plan.cohort_size(),
        plan.neighbours(),
        plan.threshold(),
        costs.keys / size * 1e3,
        costs.mask / left * 1e3,
        masked / costs.mask / 1e9,
        costs.unmask / left * 1e3,
        costs.sent as f64 / size / 1e3,
        costs.told as f64 / size / 1e3,
        costs.sent as f64 / size / upload as f64 * 1e2,
        costs.server_steps,
        costs.server_unmask,
    );
}

fn heading(text: &str) {
    println!("\n{text}");
    println!(
        "{:>6} {:>11} {:>4} {:>4} {:>3} {:>9} {:>9} {:>6} {:>9} {:>8} {:>9} {:>7} {:>9} {:>9}",
        "cohort",
        "adversary",
        "k",
        "t",
        "b",
        "keys ms",
        "mask ms",
        "GB/s",
        "unmask ms",
        "up kB",
        "down kB",
        "up %",
        "server s",
        "unmask s"
    );
}

fn main() {
    let asked = std::env::args().nth(1).filter(|argument| !argument.starts_with('-'));
    let asked = asked.as_deref();
    let adversaries = [Adversary::SemiHonest, Adversary::MaliciousCoordinator];
    if asked.is_none_or(|name| name == "model") {
        heading("complete graph, 1,000,000 parameters, 10 % dropouts, 10 % corrupt");
        for size in [10, 100] {
            for adversary in adversaries {
                for bits in [20, 24, 28, 32] {
                    let plan = SecaggPlan::complete(size, 0.1, 0.1, adversary).expect("possible");
                    let costs = round(plan, bits, 1_000_000, size / 10);
                    report(&plan, bits, 1_000_000, size / 10, &costs);
                }
            }
        }
    }
    if asked.is_none_or(|name| name == "scale") {
        heading("64 parameters, 5 % dropouts, 5 % corrupt (bytes are of control messages)");
        for size in [60, 100, 300, 1000, 3000, 10_000] {
            for adversary in adversaries {
                let plan = SecaggPlan::choose(size, 0.05, 0.05, adversary).expect("possible");
                let costs = round(plan, 24, 64, size / 40);
                report(&plan, 24, 64, size / 40, &costs);
            }
        }
    }
}
