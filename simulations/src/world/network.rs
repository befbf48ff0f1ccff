//! Connections in virtual time.
//!
//! A connection behaves like QUIC: what one stream carries arrives in order and once, or not at all if
//! the connection breaks first; lost packets only make it late; streams overtake each other. A peer
//! that dies or cannot be reached is noticed when nothing was heard for [`IDLE_MS`].

use std::{collections::BTreeMap, sync::Arc};

use rand::{RngExt, rngs::Xoshiro256PlusPlus};
use tributary_coordinator::scheduler::OfferAnswer;
use tributary_protocol::{
    error_code::Refusal,
    message::{AgentMessage, BlobRef, CoordinatorMessage, UploadOffer},
    time::Timestamp,
};

/// After this long without a packet a connection is given up, in milliseconds.
pub(super) const IDLE_MS: u64 = 20_000;
/// How long an agent waits for a handshake, in milliseconds.
pub(super) const CONNECT_TIMEOUT_MS: u64 = 10_000;
/// How long it takes to send a lost packet again, in milliseconds.
const RETRANSMISSION_MS: u64 = 300;

/// From an agent.
#[derive(Debug, Clone)]
pub(super) enum Up {
    Control(AgentMessage),
    Download(BlobRef),
    Offer(UploadOffer),
    Payload(UploadOffer, Vec<u8>),
}

/// From the coordinator.
#[derive(Debug, Clone)]
pub(super) enum Down {
    Control(CoordinatorMessage),
    /// A model's bytes.
    Base(BlobRef, Result<Arc<[u8]>, Refusal>),
    Offered(UploadOffer, Result<OfferAnswer, Refusal>),
    Stored(UploadOffer, Result<(), Refusal>),
}

/// One stream of a connection, in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stream {
    ControlUp,
    ControlDown,
    /// Files, each on a stream of its own.
    File,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) tenant: u32,
    /// Whether what is under way still arrives.
    pub(super) open: bool,
    /// When the last message of each direction of the control stream arrives.
    last: BTreeMap<Stream, Timestamp>,
}

/// What lies between the tenants and the coordinator.
#[derive(Debug)]
pub(super) struct Network {
    delay_ms: (u64, u64),
    links: Vec<Link>,
    /// Tenants that are cut off, until when.
    cut: BTreeMap<u32, Timestamp>,
    /// Tenants whose packets get lost: until when, and how likely.
    lossy: BTreeMap<u32, (Timestamp, u32)>,
}

impl Network {
    pub(super) const fn new(delay_ms: (u64, u64)) -> Self {
        Self { delay_ms, links: Vec::new(), cut: BTreeMap::new(), lossy: BTreeMap::new() }
    }

    /// A new connection of a tenant.
    pub(super) fn open(&mut self, tenant: u32) -> usize {
        self.links.push(Link { tenant, open: true, last: BTreeMap::new() });
        self.links.len() - 1
    }

    pub(super) fn link(&self, link: usize) -> &Link {
        &self.links[link]
    }

    /// What is under way on a connection is lost; says whether it was open.
    pub(super) fn close(&mut self, link: usize) -> bool {
        std::mem::replace(&mut self.links[link].open, false)
    }

    pub(super) fn cut(&mut self, tenant: u32, until: Timestamp) {
        let end = self.cut.entry(tenant).or_insert(until);
        *end = until.max(*end);
    }

    pub(super) fn is_cut(&self, tenant: u32, now: Timestamp) -> bool {
        self.cut.get(&tenant).is_some_and(|&until| now < until)
    }

    pub(super) fn lose(&mut self, tenant: u32, until: Timestamp, percent: u32) {
        self.lossy.insert(tenant, (until, percent));
    }

    /// One way, in milliseconds.
    pub(super) fn delay_ms(
        &self,
        tenant: u32,
        now: Timestamp,
        draw: &mut Xoshiro256PlusPlus,
    ) -> u64 {
        let (shortest, longest) = self.delay_ms;
        let mut delay_ms = draw.random_range(shortest..=longest);
        if let Some(&(until, percent)) = self.lossy.get(&tenant)
            && now < until
        {
            while draw.random_ratio(percent, 100) {
                delay_ms += RETRANSMISSION_MS;
            }
        }
        delay_ms
    }

    /// When something sent now arrives: behind what the stream carries already, and after the tenant
    /// can be reached again.
    pub(super) fn arrival(
        &mut self,
        link: usize,
        stream: Stream,
        now: Timestamp,
        draw: &mut Xoshiro256PlusPlus,
    ) -> Timestamp {
        let tenant = self.links[link].tenant;
        let start = self.cut.get(&tenant).map_or(now, |&until| until.max(now));
        let mut at = start.after_ms(self.delay_ms(tenant, now, draw));
        if stream != Stream::File {
            let last = self.links[link].last.entry(stream).or_insert(at);
            at = at.max(*last);
            *last = at;
        }
        at
    }
}
