//! What agents and coordinator say to each other.
//!
//! ```text
//! agent                                  coordinator
//!   Advertise          ──▶
//!                      ◀──  Reveal            (sparse graph only, perhaps repeated)
//!   Opening            ──▶
//!                      ◀──  Neighbourhood
//!   ShareKeys          ──▶
//!                      ◀──  Shares
//!   the masked update, packed, as a file ──▶
//!                      ◀──  Survivors
//!   Confirm            ──▶                    (malicious coordinator only)
//!                      ◀──  Confirmations
//!   Unmask             ──▶
//! ```

use serde::{Deserialize, Serialize};

use super::{
    bytes::{Blob, ByteArray},
    member::{Member, MemberSet},
};

/// From an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientMessage {
    /// Fresh keys.
    Advertise(Box<Advert>),
    /// What it committed itself to for the order of the graph.
    Opening(Opening),
    /// Its secrets in encrypted shares, one for each neighbour that takes part, by ascending place.
    ShareKeys(Vec<SealedShares>),
    /// A signature over the survivors that it was told.
    Confirm(Confirmation),
    /// For each neighbour that it holds shares of, by ascending place: the share that removes what
    /// is left of that neighbour's masks, `None` if the dealer's share was malformed.
    Unmask(Vec<Option<ByteArray<32>>>),
}

/// The fresh keys of one agent for one round, signed with its long-term key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advert {
    /// The round that it is for.
    pub round: u64,
    /// The base model that it was told.
    pub base_digest: ByteArray<32>,
    /// Digest of the whole [`RoundContext`](super::RoundContext).
    pub context: ByteArray<32>,
    /// X25519 public key for pairwise masks; its secret is shared with the neighbours.
    pub mask_key: ByteArray<32>,
    /// X25519 public key that shares are encrypted to; its secret never leaves.
    pub channel_key: ByteArray<32>,
    /// Commitment to the seed of the self mask.
    pub self_mask_commitment: ByteArray<32>,
    /// Commitment to openings for the order of the graph.
    pub order_commitment: ByteArray<16>,
    /// Over all of these and the member's place in the cohort.
    pub signature: Blob,
}

/// One opening of the commitment for the order of the graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// Which attempt it is for, from 1.
    pub attempt: u32,
    /// What the commitment was made from, hashed once less in every attempt.
    pub value: ByteArray<16>,
}

/// A dealer's two shares for one neighbour, encrypted, and commitments to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedShares {
    /// The share of the mask key, the share of the self mask seed, and a tag.
    pub ciphertext: ByteArray<80>,
    /// Commitment to the share of the mask key.
    pub mask_key_share: ByteArray<32>,
    /// Commitment to the share of the self mask's seed.
    pub self_mask_share: ByteArray<32>,
}

/// An agent's signature over the survivors that it was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// Digest of the round, its adverts and the survivors.
    pub digest: ByteArray<32>,
    /// Over the digest.
    pub signature: Blob,
}

/// From the coordinator, to one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerMessage {
    /// All adverts are fixed; asks for an opening.
    Reveal(Reveal),
    /// The neighbours' adverts.
    Neighbourhood(Neighbourhood),
    /// The neighbours' shares for this agent, by ascending place; asks for the masked update.
    Shares(Vec<(Member, SealedShares)>),
    /// Whose masked updates are in the sum.
    Survivors(MemberSet),
    /// Neighbours' signatures over the survivors.
    Confirmations(Vec<(Member, Confirmation)>),
}

/// Everything that was advertised, in digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roster {
    /// Who advertised keys.
    pub advertised: MemberSet,
    /// Root over the adverts of the whole cohort.
    pub adverts_root: ByteArray<32>,
    /// Digest of all commitments for the order; zero for the complete graph.
    pub order_digest: ByteArray<32>,
}

/// Asks for an opening.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reveal {
    /// What is fixed from now on.
    pub roster: Roster,
    /// Counts from 1; whoever does not answer one attempt is not in the next.
    pub attempt: u32,
    /// Who is asked.
    pub asked: MemberSet,
}

/// An agent's neighbours and the proof that nobody chose them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbourhood {
    /// The same roster for everybody.
    pub roster: Roster,
    /// How the order came about; `None` for the complete graph.
    pub order: Option<OrderOpening>,
    /// The neighbours that take part, by ascending place.
    pub peers: Vec<Peer>,
    /// Proves that the credentials of peers and self are in the cohort list.
    pub cohort_proof: Vec<ByteArray<32>>,
    /// Proves that the adverts of peers and self are in the roster.
    pub adverts_proof: Vec<ByteArray<32>>,
}

/// All openings of the last attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderOpening {
    /// The attempt that everybody who was asked answered.
    pub attempt: u32,
    /// Who was asked.
    pub asked: MemberSet,
    /// Their openings, by ascending place.
    pub openings: Vec<ByteArray<16>>,
    /// Commitments of those who advertised but were not asked, by ascending place.
    pub commitments: Vec<ByteArray<16>>,
}

/// A neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its place in the cohort list.
    pub member: Member,
    /// What its signatures are verified with.
    pub credential: Blob,
    /// Its keys.
    pub advert: Advert,
}
