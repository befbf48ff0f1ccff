//! Secure aggregation (SecAgg+): the coordinator learns the sum of masked updates and nothing else.
//!
//! Both sides are values that are stepped by hand: [`Client`] at each agent, [`Server`] at the
//! coordinator. There is no I/O, no clock and no entropy here; drivers carry the messages.
//!
//! # Trust
//! The coordinator may be curious or lie ([`Adversary`]), and up to a stated share of agents may
//! collude with it. Long-term identities are trusted through [`PeerKeys`] only.
//!
//! Source: Bonawitz et al. 2017 (CCS); Bell et al. 2020 (CCS, ePrint 2020/704).

mod bound;
mod bytes;
mod client;
mod context;
mod error;
mod graph;
mod identity;
mod keys;
mod mask;
mod member;
mod merkle;
mod message;
mod order;
mod plan;
mod server;
mod shamir;
#[cfg(test)]
mod tests;
mod transcript;

pub use self::{
    bound::{Implausible, SumBound},
    bytes::{Blob, ByteArray},
    client::{Client, ClientOutput},
    context::{RoundContext, cohort_root},
    error::{AbandonReason, Finding, SecaggError, Step},
    identity::{Identity, PeerKeys},
    member::{Member, MemberSet},
    message::{
        Advert, ClientMessage, Confirmation, Neighbourhood, Opening, OrderOpening, Peer, Reveal,
        Roster, SealedShares, ServerMessage,
    },
    plan::{Adversary, COHORT_MIN, GraphKind, PlanError, SecaggPlan, sigma_share},
    server::Server,
};
