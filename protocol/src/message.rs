//! The messages between agent and coordinator.
//!
//! An agent opens one connection and on it one *control stream* ([`AgentMessage`] one way,
//! [`CoordinatorMessage`] the other). Files travel on streams of their own, which the agent opens
//! with a [`TransferRequest`]: a base model down, an update up. Enrolment is one
//! [`EnrollmentRequest`] on a connection of its own.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    codec::{self, CodecError},
    error_code::Refusal,
    id::{DatasetName, Digest, JobId, RoundNumber, TenantId},
    isolation::Isolation,
    job::{JobSpec, MetricSum},
    model::ModelSpec,
    receipt::Receipt,
};

/// The tip of an agent's privacy ledger, as far as the coordinator needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerHead {
    /// Number of entries.
    pub sequence: u64,
    /// Hash of the last entry; all zero for an empty ledger.
    pub hash: Digest,
}

impl LedgerHead {
    /// The head of a ledger without entries.
    pub const EMPTY: Self = Self { sequence: 0, hash: Digest::from_bytes([0; 32]) };
}

/// A content-addressed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    /// BLAKE3 of the file.
    pub digest: Digest,
    /// Length in bytes.
    pub length: u64,
}

/// One version of a job's base model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseModel {
    /// The job that trains it.
    pub job: JobId,
    /// The dataset it is trained on, by the job's name for it.
    pub dataset: DatasetName,
    /// Family and sizes.
    pub model: ModelSpec,
    /// Version within the job; 0 is the initial model.
    pub version: u64,
    /// The safetensors file.
    pub file: BlobRef,
}

/// The integer lattice that updates of a job live on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LatticeSpec {
    /// Model units per grid unit.
    pub step: f64,
    /// Sums are taken modulo 2^bits.
    pub bits: u8,
}

/// What a cohort member is asked to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// The job, whole: the agent checks it against its policy.
    pub job: JobSpec,
    /// The round.
    pub round: RoundNumber,
    /// The base model to start from.
    pub base: BaseModel,
    /// The lattice for the update.
    pub lattice: LatticeSpec,
    /// Time left to report, in milliseconds; the round may close after it.
    pub report_within_ms: u64,
    /// The population's control variate (SCAFFOLD) as a safetensors file of the model's form; `None`
    /// means zero, and that the tenant's own one begins at zero too.
    pub control: Option<BlobRef>,
}

/// From the agent, on the control stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AgentMessage {
    /// Opens the session.
    Hello {
        /// Version of the agent program, for the operator.
        agent_version: String,
        /// Where the agent's ledger stands.
        ledger_head: LedgerHead,
        /// How far the agent keeps its tenant apart from others that it serves.
        isolation: Isolation,
    },
    /// The policy allows the assignment and training starts.
    Accept {
        /// The job.
        job: JobId,
        /// The round.
        round: RoundNumber,
    },
    /// The agent will not report in this round.
    Decline {
        /// The job.
        job: JobId,
        /// The round.
        round: RoundNumber,
        /// Why.
        refusal: Refusal,
    },
    /// An answer in a step of secure aggregation.
    Secagg {
        /// The job.
        job: JobId,
        /// The round.
        round: RoundNumber,
        /// What the agent's part of the protocol says.
        payload: SecaggPayload,
    },
    /// Asks for the certificate that takes the place of the one that this connection shows.
    Renew {
        /// Certificate signing request for a new key, DER.
        signing_request: Vec<u8>,
    },
}

/// From the coordinator, on the control stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum CoordinatorMessage {
    /// Answers [`AgentMessage::Hello`] with the last ledger head that the coordinator acknowledged
    /// before it, for the tenant that the certificate names.
    Welcome(Box<Receipt>),
    /// Invites the tenant to a round.
    Configure(Box<Assignment>),
    /// A round ended; its work is no longer wanted.
    RoundClosed {
        /// The job.
        job: JobId,
        /// The round.
        round: RoundNumber,
        /// `None` if it committed, else why it was abandoned.
        abandoned: Option<String>,
    },
    /// A base model that tenants of the job should serve and adapt to.
    NewBase(BaseModel),
    /// The session ends.
    Refused(Refusal),
    /// The cohort of a secure aggregation is fixed: asks for fresh keys.
    SecaggBegin {
        /// The job.
        job: JobId,
        /// The round.
        round: RoundNumber,
        /// The tenant's place in the cohort list, from 0.
        member: u32,
        /// Length of the cohort list.
        cohort_size: u32,
        /// Root over the cohort list, which neighbours' certificates are proven to be in.
        cohort_root: Digest,
    },
    /// Begins a later step of secure aggregation; asked again after a reconnection, with the same bytes.
    Secagg {
        /// The job.
        job: JobId,
        /// The round.
        round: RoundNumber,
        /// What the coordinator's part of the protocol says.
        payload: SecaggPayload,
    },
    /// Acknowledges a newer ledger head, durably.
    Receipt(Box<Receipt>),
    /// Answers [`AgentMessage::Renew`]. The certificate before works until the new one is first shown.
    Renewal(EnrollmentResponse),
    /// Nothing is wanted of the agent now and others wait for its place: it should disconnect, and
    /// come back after this time.
    ComeBack {
        /// In milliseconds.
        after_ms: u64,
    },
}

/// A message of the secure aggregation protocol, opaque to the transport.
///
/// - `M`'s encoding has at most [`MESSAGE_BYTES_MAX`] bytes, less what carries it
///
/// [`MESSAGE_BYTES_MAX`]: codec::MESSAGE_BYTES_MAX
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecaggPayload(Vec<u8>);

impl SecaggPayload {
    /// Encodes a message of the protocol.
    ///
    /// # Errors
    /// [`CodecError`] if it is too large.
    pub fn encode<M: Serialize>(message: &M) -> Result<Self, CodecError> {
        codec::encode(message).map(Self)
    }

    /// Decodes the message.
    ///
    /// # Errors
    /// [`CodecError`] if the bytes are no such message.
    pub fn decode<M: DeserializeOwned>(&self) -> Result<M, CodecError> {
        codec::decode(&self.0)
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for SecaggPayload {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "SecaggPayload({} bytes)", self.0.len())
    }
}

/// The first message on a file stream, from the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum TransferRequest {
    /// Asks for a file from `offset` on.
    Download {
        /// Which file.
        digest: Digest,
        /// Bytes that the agent already has.
        offset: u64,
    },
    /// Offers a packed lattice update.
    Upload(UploadOffer),
}

/// What an agent wants to upload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UploadOffer {
    /// The job.
    pub job: JobId,
    /// The round.
    pub round: RoundNumber,
    /// The packed update.
    pub update: BlobRef,
    /// The ledger head after the debit for this release.
    pub ledger_head: LedgerHead,
    /// Noisy metrics of the base, where the job asks for them: debited like the update, and the
    /// same in every offer of it.
    pub evaluation: Vec<MetricSum>,
}

/// The coordinator's answer to a [`TransferRequest`], and to a finished upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransferResponse {
    /// Chunks of the file follow.
    Sending {
        /// Length of the whole file.
        length: u64,
    },
    /// Send chunks from here on.
    SendFrom {
        /// Bytes of the file that are already durable here.
        offset: u64,
    },
    /// The update is durable and counted, now or by an earlier attempt.
    Stored,
    /// Refused.
    Refused(Refusal),
}

/// Asks for a client certificate.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrollmentRequest {
    /// The tenant that the token was issued for.
    pub tenant: TenantId,
    /// The one-time secret.
    pub secret: [u8; 32],
    /// Certificate signing request, DER.
    pub signing_request: Vec<u8>,
}

impl std::fmt::Debug for EnrollmentRequest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("EnrollmentRequest")
            .field("tenant", &self.tenant)
            .finish_non_exhaustive()
    }
}

/// Answers an [`EnrollmentRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrollmentResponse {
    /// The certificate, leaf first, DER.
    Issued {
        /// The chain up to and including the authority.
        certificates: Vec<Vec<u8>>,
    },
    /// Refused.
    Refused(Refusal),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name() -> impl Strategy<Value = String> {
        proptest::string::string_regex("[a-z0-9][a-z0-9-]{0,20}").expect("pattern")
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = codec::decode::<AgentMessage>(&bytes);
            let _ = codec::decode::<CoordinatorMessage>(&bytes);
            let _ = codec::decode::<TransferRequest>(&bytes);
            let _ = codec::decode::<TransferResponse>(&bytes);
            let _ = codec::decode::<EnrollmentRequest>(&bytes);
            let _ = codec::decode::<EnrollmentResponse>(&bytes);
        }

        #[test]
        fn offers_round_trip(job in name(), round: u64, digest: [u8; 32], length: u64, sequence: u64) {
            let digest = Digest::from_bytes(digest);
            let request = TransferRequest::Upload(UploadOffer {
                job: JobId::new(job).expect("valid"),
                round: RoundNumber(round),
                update: BlobRef { digest, length },
                ledger_head: LedgerHead { sequence, hash: digest },
                evaluation: Vec::new(),
            });
            let bytes = codec::encode(&request).expect("encodes");
            prop_assert_eq!(codec::decode::<TransferRequest>(&bytes).expect("decodes"), request);
        }
    }
}
