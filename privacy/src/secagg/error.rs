//! What goes wrong, each attack by its name.

use thiserror::Error;

use super::member::Member;

/// A step of the protocol.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Agents send fresh keys.
    AdvertiseKeys,
    /// Agents open their commitments, which fixes the order of the sparse graph.
    RevealOrder,
    /// Agents share their secrets among their neighbours.
    ShareKeys,
    /// Agents upload masked updates.
    MaskedInput,
    /// Agents sign the set of survivors.
    ConsistencyCheck,
    /// Agents reveal the shares that remove what is left of the masks.
    Unmask,
    /// The masks can be removed.
    Done,
}

/// Why an agent or the coordinator refuses a message. After an error an agent takes no further part
/// in the round; the coordinator ignores the message and goes on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SecaggError {
    /// The terms of the round contradict themselves.
    #[error("the terms of the round contradict themselves")]
    Context,
    /// Someone who is not in the cohort.
    #[error("member {member} is not in the cohort")]
    NotInCohort {
        /// The claimed place.
        member: Member,
    },
    /// A message that does not belong to the current step.
    #[error("a message out of turn; the round is at {step:?}")]
    OutOfTurn {
        /// Where the round is.
        step: Step,
    },
    /// A second, different answer where one is allowed.
    #[error("member {member} answered {step:?} twice, differently")]
    ConflictingAnswers {
        /// Who.
        member: Member,
        /// What was answered.
        step: Step,
    },
    /// The coordinator asked the same step again with other content.
    #[error("the coordinator asked for {step:?} again with different content")]
    ConflictingRequests {
        /// What was asked.
        step: Step,
    },
    /// Keys of an earlier or other round.
    #[error("the keys of member {member} are those of round {round}: replayed")]
    ReplayedKeys {
        /// Whose keys.
        member: Member,
        /// The round they were made for.
        round: u64,
    },
    /// A peer was told another base model.
    #[error("member {member} starts from another base model")]
    BaseModelDiffers {
        /// Who.
        member: Member,
    },
    /// A peer was told other terms: job, cohort, plan or lattice.
    #[error("member {member} was told other terms of the round")]
    TermsDiffer {
        /// Who.
        member: Member,
    },
    /// Keys without the tenant's signature.
    #[error("the keys of member {member} are not signed by its tenant: substituted")]
    SubstitutedKeys {
        /// Whose keys.
        member: Member,
    },
    /// A credential that the agent does not trust.
    #[error("the credential of member {member} is not trusted")]
    UntrustedPeer {
        /// Who.
        member: Member,
    },
    /// One tenant twice in a cohort.
    #[error("members {first} and {second} are the same tenant")]
    SameTenant {
        /// One place.
        first: Member,
        /// The other.
        second: Member,
    },
    /// A key that is not one (a point of low order).
    #[error("a key of member {member} is unusable")]
    BadKey {
        /// Whose key.
        member: Member,
    },
    /// Too few members for the sum to hide one.
    #[error("{members} members at {step:?}; at least {members_min} are needed: the cohort shrank")]
    CohortShrank {
        /// When.
        step: Step,
        /// How many there are.
        members: u32,
        /// How many are needed.
        members_min: u32,
    },
    /// Too few neighbours for secrets to be safe and recoverable.
    #[error("{neighbours} neighbours at {step:?}; at least {neighbours_min} are needed")]
    TooFewNeighbours {
        /// When.
        step: Step,
        /// How many there are.
        neighbours: u32,
        /// How many are needed.
        neighbours_min: u32,
    },
    /// The neighbours are not those of the jointly random graph.
    #[error("the neighbours are not those of the joint random order")]
    WrongNeighbours,
    /// Credentials or adverts, perhaps this agent's own, differ from the lists that were fixed.
    #[error(
        "the cohort list or the adverts, this agent's own included, are not those that were fixed"
    )]
    NotInRoster,
    /// The openings do not match the commitments.
    #[error("the order of the graph does not follow from the commitments")]
    OrderNotCommitted,
    /// Opens something else than was committed to.
    #[error("member {member} opened something else than it had committed to")]
    OpeningMismatch {
        /// Who.
        member: Member,
    },
    /// Both shares of one agent were asked for.
    #[error("both shares of member {member} were asked for: as a survivor and as a dropout")]
    BothShares {
        /// Of whom.
        member: Member,
    },
    /// The coordinator told different survivors to different agents.
    #[error("member {member} was told other survivors: the coordinator lies about them")]
    SurvivorsDiffer {
        /// Who was told others.
        member: Member,
    },
    /// A confirmation without a valid signature.
    #[error("the confirmation of member {member} is not signed by its tenant: forged")]
    ForgedConfirmation {
        /// Whose.
        member: Member,
    },
    /// A survivor that never shared its keys with this neighbour.
    #[error("member {member} is called a survivor but had dropped out before")]
    UnknownSurvivor {
        /// Who.
        member: Member,
    },
    /// Asked to unmask a sum without its own update.
    #[error("this agent's update is not among the survivors")]
    NotASurvivor,
    /// A vector of the wrong length.
    #[error("a vector of {length} where {expected} are expected")]
    WrongLength {
        /// What was given.
        length: u64,
        /// What is needed.
        expected: u64,
    },
    /// A second, different vector under the same masks: their difference would be visible.
    #[error("a second, different vector was to be masked or uploaded by member {member}")]
    TwoInputs {
        /// By whom.
        member: Member,
    },
    /// A coordinate outside the range that the lattice was sized for.
    #[error("coordinate {index} is {value} grid units, beyond {coordinate_max}")]
    OutOfRange {
        /// Which.
        index: usize,
        /// Its value, centred.
        value: i32,
        /// The largest magnitude.
        coordinate_max: u32,
    },
    /// The wrong number of shares.
    #[error("member {member} sent {count} shares where {expected} are expected")]
    ShareCount {
        /// Who.
        member: Member,
        /// What was sent.
        count: usize,
        /// What is needed.
        expected: usize,
    },
}

/// Something wrong that the round survives.
#[derive(Debug, Clone, PartialEq, Eq, Error, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum Finding {
    /// A dealer's shares cannot be decrypted or are not what it committed to.
    #[error("the shares of member {dealer} for member {holder} are malformed")]
    MalformedDeal {
        /// Who dealt them.
        dealer: Member,
        /// For whom.
        holder: Member,
    },
    /// A holder revealed something else than it was dealt.
    #[error("member {holder} revealed a malformed share of member {dealer}")]
    MalformedShare {
        /// Whose share.
        dealer: Member,
        /// Who revealed it.
        holder: Member,
    },
}

/// Why a round ends without a sum.
#[derive(Debug, Clone, PartialEq, Eq, Error, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AbandonReason {
    /// Too few members answered.
    #[error("{members} members answered {step:?}; at least {members_min} are needed")]
    TooFewMembers {
        /// Which step.
        step: Step,
        /// How many answered.
        members: u32,
        /// How many are needed.
        members_min: u32,
    },
    /// Too many attempts at the joint order.
    #[error("members dropped out in each of {attempts} attempts at the order of the graph")]
    OrderAttempts {
        /// How many were made.
        attempts: u32,
    },
    /// A secret cannot be reconstructed.
    #[error("{shares} valid shares of member {member}; {shares_min} are needed")]
    TooFewShares {
        /// Whose secret.
        member: Member,
        /// How many there are.
        shares: u32,
        /// How many are needed.
        shares_min: u32,
    },
    /// Enough shares, each as dealt, but they are not those of the advertised secret.
    #[error("the secret that member {member} shared is not the one it advertised")]
    FalseSecret {
        /// Who cheated.
        member: Member,
    },
    /// The sum is larger than honest updates can make it.
    #[error("the sum is implausible: {detail}")]
    Implausible {
        /// Which bound it exceeds.
        detail: super::Implausible,
    },
}
