//! Who may begin a handshake, and how many connections a tenant may have: limits that hold before
//! anything of a peer costs memory.
//!
//! | what | limit |
//! |---|---|
//! | handshakes and enrolments under way | [`HANDSHAKES_MAX`] |
//! | of them from one address | [`HANDSHAKES_PER_ADDRESS_MAX`] |
//! | from which number on an address is validated first | [`VALIDATED_FROM`] |
//! | connections of one tenant | [`CONNECTIONS_PER_TENANT_MAX`] |

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tributary_protocol::id::TenantId;

/// Handshakes and enrolments under way at once.
const HANDSHAKES_MAX: usize = 256;

/// Of them from one address, so that others have room left.
const HANDSHAKES_PER_ADDRESS_MAX: usize = 64;

/// With so many under way a peer must show first that it receives what is sent to its address (a
/// Retry, which costs the coordinator no memory): invented addresses then take nobody's room.
const VALIDATED_FROM: usize = 32;

/// Connections of one tenant: the one that counts, and those that are about to take its place.
const CONNECTIONS_PER_TENANT_MAX: usize = 4;

/// What becomes of a first packet.
#[derive(Debug)]
pub(super) enum Entry {
    /// The handshake begins.
    Begin(Pass<IpAddr>),
    /// The peer must show that the address is its own.
    Validate,
    /// There is no room.
    Refuse,
}

/// Counts handshakes and connections.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate {
    handshakes: Counts<IpAddr>,
    connections: Counts<TenantId>,
}

impl Gate {
    /// Decides on a first packet.
    ///
    /// - `validated`: whether the peer has shown that it receives what is sent to `address`
    pub(super) fn enter(&self, address: IpAddr, validated: bool) -> Entry {
        let network = network(address);
        let mut counts = self.handshakes.lock();
        if counts.total >= HANDSHAKES_MAX || counts.of(&network) >= HANDSHAKES_PER_ADDRESS_MAX {
            return Entry::Refuse;
        }
        if counts.total >= VALIDATED_FROM && !validated {
            return Entry::Validate;
        }
        counts.add(network);
        drop(counts);
        Entry::Begin(Pass { counts: self.handshakes.clone(), key: network })
    }

    /// Takes a place of a tenant; `None` if it has none left.
    pub(super) fn admit(&self, tenant: &TenantId) -> Option<Pass<TenantId>> {
        let mut counts = self.connections.lock();
        if counts.of(tenant) >= CONNECTIONS_PER_TENANT_MAX {
            return None;
        }
        counts.add(tenant.clone());
        drop(counts);
        Some(Pass { counts: self.connections.clone(), key: tenant.clone() })
    }
}

/// What one peer may have many addresses of: with IPv6, the network of a customer.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let bits = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        }
        address @ IpAddr::V4(_) => address,
    }
}

/// How many there are of each; nothing is kept of what there is none of.
#[derive(Debug)]
struct Counts<K>(Arc<Mutex<Counted<K>>>);

#[derive(Debug)]
struct Counted<K> {
    by_key: BTreeMap<K, usize>,
    total: usize,
}

impl<K> Clone for Counts<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Counted { by_key: BTreeMap::new(), total: 0 })))
    }
}

impl<K> Counts<K> {
    fn lock(&self) -> MutexGuard<'_, Counted<K>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Ord> Counted<K> {
    fn of(&self, key: &K) -> usize {
        self.by_key.get(key).copied().unwrap_or_default()
    }

    fn add(&mut self, key: K) {
        *self.by_key.entry(key).or_default() += 1;
        self.total += 1;
    }

    fn remove(&mut self, key: &K) {
        self.total -= 1;
        if let Some(count) = self.by_key.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.by_key.remove(key);
            }
        }
    }
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Pass<K: Ord> {
    counts: Counts<K>,
    key: K,
}

impl<K: Ord> Drop for Pass<K> {
    fn drop(&mut self) {
        self.counts.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn begun(entry: Entry) -> Pass<IpAddr> {
        match entry {
            Entry::Begin(pass) => pass,
            other => panic!("not begun: {other:?}"),
        }
    }

    #[test]
    fn one_address_leaves_room_for_others_and_gives_it_back() {
        let gate = Gate::default();
        let held: Vec<_> =
            (0..HANDSHAKES_PER_ADDRESS_MAX).map(|_| begun(gate.enter(address(1), true))).collect();
        assert!(matches!(gate.enter(address(1), true), Entry::Refuse));
        let other = begun(gate.enter(address(2), true));
        drop(held);
        let again = begun(gate.enter(address(1), true));
        drop((other, again));
        let counts = gate.handshakes.lock();
        assert!(counts.by_key.is_empty() && counts.total == 0);
    }

    #[test]
    fn under_load_an_address_is_validated_and_in_the_end_refused() {
        let gate = Gate::default();
        let mut held: Vec<_> = (0..VALIDATED_FROM)
            .map(|index| begun(gate.enter(address(index as u8), false)))
            .collect();
        assert!(matches!(gate.enter(address(250), false), Entry::Validate));
        held.extend(
            (VALIDATED_FROM..HANDSHAKES_MAX)
                .map(|index| begun(gate.enter(address((index % 200) as u8), true))),
        );
        assert!(matches!(gate.enter(address(250), true), Entry::Refuse));
        held.pop();
        begun(gate.enter(address(250), true));
    }

    #[test]
    fn a_customer_with_many_addresses_counts_as_one() {
        let of = |text: &str| network(text.parse().expect("an address"));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), address(1));
    }

    #[test]
    fn a_tenant_has_a_few_connections() {
        let gate = Gate::default();
        let (one, two): (TenantId, TenantId) =
            ("one".parse().expect("valid"), "two".parse().expect("valid"));
        let held: Vec<_> = (0..CONNECTIONS_PER_TENANT_MAX)
            .map(|_| gate.admit(&one).expect("there is room"))
            .collect();
        assert!(gate.admit(&one).is_none());
        assert!(gate.admit(&two).is_some());
        drop(held);
        assert!(gate.admit(&one).is_some());
    }
}
