//! Numbered error codes: what a peer may know about a failure.
//!
//! The first digit says whose turn it is: 1 and 2 the peer is at fault (protocol, identity), 3 the
//! update or request is at fault, 4 an agent's reason to decline, 5 try again or our bug.
//! Every code has a page in `docs/errors/`.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $slug:literal;)*) => {
        /// A numbered failure, stable on the wire, in logs and in `docs/errors/`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
            /// A code of a newer peer.
            Unknown(u16),
        }

        impl ErrorCode {
            /// Every code this version knows.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The number on the wire.
            #[must_use]
            pub const fn number(self) -> u16 {
                match self { $(Self::$name => $number,)* Self::Unknown(number) => number }
            }

            /// The name in logs, JSON and page titles.
            #[must_use]
            pub const fn slug(self) -> &'static str {
                match self { $(Self::$name => $slug,)* Self::Unknown(_) => "unknown" }
            }

            /// The code with this number.
            #[must_use]
            pub const fn from_number(number: u16) -> Self {
                match number { $($number => Self::$name,)* other => Self::Unknown(other) }
            }
        }
    };
}

error_codes! {
    /// The bytes are not a message of this protocol version.
    MalformedMessage = 1001, "malformed-message";
    /// A message or frame is larger than the limit.
    MessageTooLarge = 1002, "message-too-large";
    /// A valid message at a moment that does not allow it.
    UnexpectedMessage = 1003, "unexpected-message";
    /// No protocol version in common.
    UnsupportedVersion = 1004, "unsupported-version";
    /// The enrolment token was never issued here, or is mistyped.
    TokenUnknown = 2001, "token-unknown";
    /// The enrolment token was used before.
    TokenUsed = 2002, "token-used";
    /// The enrolment token is too old.
    TokenExpired = 2003, "token-expired";
    /// The connection has no client certificate.
    CertificateRequired = 2004, "certificate-required";
    /// The certificate is from this authority, but is not the one registered for its tenant.
    CertificateNotRegistered = 2005, "certificate-not-registered";
    /// The tenant is suspended.
    TenantSuspended = 2006, "tenant-suspended";
    /// The certificate signing request does not verify.
    SigningRequestInvalid = 2007, "signing-request-invalid";
    /// The tenant's certificate was revoked.
    TenantRevoked = 2008, "tenant-revoked";
    /// The tenant has used up a quota of today.
    QuotaExceeded = 2009, "quota-exceeded";
    /// No such job here.
    JobUnknown = 3001, "job-unknown";
    /// The update is for a round that is not open.
    WrongRound = 3002, "wrong-round";
    /// The tenant is not in the round's cohort.
    NotInCohort = 3003, "not-in-cohort";
    /// The update does not have the length that the job's lattice gives.
    UpdateLength = 3004, "update-length";
    /// A chunk or the whole file does not have the announced checksum.
    ChecksumMismatch = 3005, "checksum-mismatch";
    /// A chunk is not the next one, or has a length it cannot have.
    ChunkOutOfOrder = 3006, "chunk-out-of-order";
    /// The tenant already reported another update in this round.
    UpdateConflict = 3007, "update-conflict";
    /// The update is not a lattice vector (bits set beyond the last coordinate).
    UpdateMalformed = 3008, "update-malformed";
    /// No such file here.
    BlobUnknown = 3009, "blob-unknown";
    /// A message of secure aggregation that is malformed, late, or not the one sent before.
    SecaggMessageInvalid = 3010, "secagg-message-invalid";
    /// The tenant's policy does not allow the job.
    PolicyForbids = 4001, "policy-forbids";
    /// The privacy budget does not cover another release.
    BudgetExhausted = 4002, "budget-exhausted";
    /// The agent has no such dataset.
    DatasetMissing = 4003, "dataset-missing";
    /// Training failed at the agent.
    TrainingFailed = 4004, "training-failed";
    /// Training gave NaN or infinite values; nothing was released.
    UpdateNotFinite = 4005, "update-not-finite";
    /// The agent's ledger is behind or beside the head that the coordinator acknowledged.
    LedgerDiverged = 4006, "ledger-diverged";
    /// The base model that the agent received is not usable.
    BaseModelInvalid = 4007, "base-model-invalid";
    /// The job document itself is not usable.
    JobInvalid = 4008, "job-invalid";
    /// The agent does not take part in secure aggregation with this cohort.
    SecaggCohortRefused = 4009, "secagg-cohort-refused";
    /// A check of secure aggregation failed at the agent: a peer or the coordinator cheats.
    SecaggCheckFailed = 4010, "secagg-check-failed";
    /// The agent's texts go through another tokenizer than the job's.
    TokenizerDiffers = 4011, "tokenizer-differs";
    /// The peer is stopping; try again later.
    ShuttingDown = 5001, "shutting-down";
    /// Another connection of the same tenant took over.
    Superseded = 5002, "superseded";
    /// The peer did not answer in time.
    TimedOut = 5003, "timed-out";
    /// Something that is our bug or our machine's fault; details are in the peer's log.
    Internal = 5004, "internal";
    /// The agent restarted and lost its keys of this round of secure aggregation.
    SecaggSessionLost = 5005, "secagg-session-lost";
    /// The round was debited before, and its bytes are gone: the tenant can only take part in others.
    ReleaseLost = 5006, "release-lost";
}

impl ErrorCode {
    /// Whether the same request may succeed later without anybody changing anything.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(self.number(), 5000..=5999)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} E{}", self.slug(), self.number())
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.number().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u16::deserialize(deserializer).map(Self::from_number)
    }
}

/// A refusal as it crosses the wire: the code and a message for the other side's operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Refusal {
    /// The numbered reason.
    pub code: ErrorCode,
    /// What was wrong, where, and what would work.
    pub message: String,
}

impl Refusal {
    /// The longest message in bytes; longer ones are cut.
    pub const MESSAGE_BYTES_MAX: usize = 1024;

    /// Builds a refusal, cutting an overlong message at a character boundary.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl fmt::Display) -> Self {
        let mut message = message.to_string();
        if message.len() > Self::MESSAGE_BYTES_MAX {
            message.truncate(message.floor_char_boundary(Self::MESSAGE_BYTES_MAX));
        }
        Self { code, message }
    }

    /// Builds a refusal from an error and its causes, outermost first.
    #[must_use]
    pub fn from_error(code: ErrorCode, error: &dyn std::error::Error) -> Self {
        let causes = std::iter::successors(Some(error), |error| error.source());
        Self::new(code, causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_round_trip() {
        let mut numbers: Vec<_> = ErrorCode::ALL.iter().map(|code| code.number()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), ErrorCode::ALL.len());
        assert!(ErrorCode::ALL.iter().all(|&code| ErrorCode::from_number(code.number()) == code));
        assert_eq!(ErrorCode::from_number(9).number(), 9);
    }

    #[test]
    fn every_code_has_a_page() {
        let pages = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors");
        let index = std::fs::read_to_string(pages.join("README.md")).expect("an index");
        for code in ErrorCode::ALL {
            let (number, slug) = (code.number(), code.slug());
            let page = pages.join(format!("{number}-{slug}.md"));
            let text = std::fs::read_to_string(&page)
                .unwrap_or_else(|error| panic!("{}: {error}", page.display()));
            assert!(text.starts_with(&format!("# E{number} {slug}\n")), "{}", page.display());
            for part in ["**Whose turn:** ", "## What happened", "## What to do"] {
                let said = text.split(part).nth(1).unwrap_or_default().trim();
                assert!(!said.is_empty() && !said.starts_with('#'), "{}: {part}", page.display());
            }
            let row = format!("| [E{number}]({number}-{slug}.md) | {slug} | ");
            assert!(index.contains(&row), "{row} is not in the index");
        }
        let files = std::fs::read_dir(&pages).expect("lists").count();
        assert_eq!(files, ErrorCode::ALL.len() + 1, "a page for a code that there is not");
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let refusal = Refusal::new(ErrorCode::Internal, "ä".repeat(2000));
        assert!(refusal.message.len() <= Refusal::MESSAGE_BYTES_MAX);
    }
}
