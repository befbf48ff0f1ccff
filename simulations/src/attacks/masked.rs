//! One upload under secure aggregation, as the coordinator gets it.

use ed25519_dalek::SigningKey;
use tributary_privacy::{
    lattice::Lattice,
    secagg::{
        Adversary, Blob, ByteArray, Client, ClientOutput, Member, RoundContext, SecaggError,
        SecaggPlan, Server, Step, cohort_root,
    },
};
use tributary_protocol::id::Digest;

use crate::identity::{PublicKeys, TenantKey};

/// Exchanges the keys of a cohort and masks the update of its first member.
///
/// - `grid`: of the first member, shape `[dimension]`
/// - returns: what it uploads, each below `2^bits`
///
/// # Errors
/// [`SecaggError`]; all members are honest, so it is a mistake here.
pub(super) fn upload(
    grid: &[i64],
    lattice: Lattice,
    cohort_size: u32,
    seed: u64,
) -> Result<Vec<u32>, SecaggError> {
    let secret = |purpose: &str, member: u32| {
        *Digest::of(format!("{purpose} {member} {seed}").as_bytes()).as_bytes()
    };
    let keys: Vec<TenantKey> = (0..cohort_size)
        .map(|member| TenantKey(SigningKey::from_bytes(&secret("key", member))))
        .collect();
    let credentials: Vec<Blob> =
        keys.iter().map(|key| Blob(key.0.verifying_key().to_bytes().to_vec())).collect();
    let plan = SecaggPlan::choose(cohort_size, 0.3, 0.0, Adversary::SemiHonest)
        .map_err(|_| SecaggError::Context)?;
    let context = RoundContext {
        job: "attacked".to_owned(),
        round: 1,
        base_digest: ByteArray(*Digest::of(b"base").as_bytes()),
        terms_digest: ByteArray(*Digest::of(b"terms").as_bytes()),
        cohort_root: cohort_root(&credentials),
        plan,
        bits: lattice.bits(),
        dimension: grid.len() as u64,
        coordinate_max: (1 << (lattice.bits() - 1)) - 1,
    };
    let mut clients = (0..cohort_size)
        .map(|member| {
            let own = credentials[member as usize].clone();
            Client::new(context.clone(), Member(member), own, secret("masks", member))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut server = Server::new(context, credentials)?;
    loop {
        let step = server.step();
        for (member, (client, key)) in (0..).zip(clients.iter_mut().zip(&keys)) {
            let answer = match server.message_for(Member(member)) {
                None if step == Step::AdvertiseKeys => client.advertise(key),
                None => continue,
                Some(message) => match client.handle(message, key, &PublicKeys)? {
                    ClientOutput::Send(answer) => answer,
                    ClientOutput::Mask => continue,
                },
            };
            server.handle(Member(member), answer, &PublicKeys)?;
        }
        if step == Step::MaskedInput {
            break;
        }
        server.close_step().map_err(|_| SecaggError::Context)?;
    }
    let mask = u32::MAX >> (32 - u32::from(lattice.bits()));
    let mut update: Vec<u32> = grid.iter().map(|&value| value as u32 & mask).collect();
    clients[0].mask(&mut update)?;
    Ok(update)
}
