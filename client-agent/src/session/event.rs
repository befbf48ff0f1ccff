//! What goes into a session and what comes out of it.

use tributary_protocol::{
    error_code::{ErrorCode, Refusal},
    id::{Digest, JobId, RoundNumber},
    message::{
        AgentMessage, Assignment, BaseModel, CoordinatorMessage, EnrollmentResponse, LedgerHead,
    },
    receipt::Receipt,
};

use super::Renewed;
use crate::{
    policy::Approved,
    refusals::Declined,
    secagg::{Cohort, Exchange},
    update::{Release, Standing},
};

/// One round of one job.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoundKey {
    /// The job.
    pub job: JobId,
    /// The round.
    pub round: RoundNumber,
}

impl RoundKey {
    /// The round of an assignment.
    #[must_use]
    pub fn of(assignment: &Assignment) -> Self {
        Self { job: assignment.job.name.clone(), round: assignment.round }
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// For people: what happened and what would help.
    pub reason: String,
    /// Whether only somebody's action can heal it, so that trying again fast is no use.
    pub lasting: bool,
    /// Uniform in [0, 1), spreads the retries of many agents.
    pub jitter: f64,
}

impl Failure {
    /// The coordinator ended the session.
    #[must_use]
    pub fn refused(refusal: &Refusal) -> Self {
        let lasting = match refusal.code {
            ErrorCode::Superseded => true,
            code => !code.is_transient(),
        };
        Self { reason: refusal.to_string(), lasting, jitter: 1.0 }
    }
}

/// 256 fresh bits from the operating system, for the keys of one round.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed(pub [u8; 32]);

impl std::fmt::Debug for Seed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Seed")
    }
}

/// How training ended without a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrainingEnd {
    /// It was cancelled before the debit.
    Cancelled,
    /// The coordinator does not send what to train from; it is told, and nothing is wrong here.
    NoBase(Refusal),
    /// It failed; the coordinator is told.
    Failed(Refusal),
}

/// How an upload ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadEnd {
    /// The update is counted.
    Stored,
    /// The coordinator does not want it.
    Refused(Refusal),
    /// The connection broke; it is tried again.
    Interrupted,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The connection is up and its control stream open.
    Connected {
        /// Where the agent's ledger stands.
        ledger_head: LedgerHead,
    },
    /// There is no connection, or no longer.
    ConnectionFailed(Failure),
    /// The coordinator said something.
    Message(CoordinatorMessage),
    /// The coordinator has fixed the cohort of a secure aggregation.
    Begin {
        /// Which round.
        key: RoundKey,
        /// The agent's place, and the others.
        cohort: Cohort,
        /// What the keys of the round are made from.
        seed: Seed,
    },
    /// Answers [`Output::CompareLedger`].
    LedgerCompared(Result<(), Refusal>),
    /// Answers [`Output::Examine`].
    Examined {
        /// Which round.
        key: RoundKey,
        /// What the ledger says.
        outcome: Result<Standing, Declined>,
    },
    /// Answers [`Output::Train`]; a release is debited.
    Trained {
        /// Which round.
        key: RoundKey,
        /// The release, if there is one.
        outcome: Result<Release, TrainingEnd>,
    },
    /// Answers [`Output::Upload`].
    Uploaded {
        /// Which round.
        key: RoundKey,
        /// How it ended.
        outcome: UploadEnd,
    },
    /// Answers [`Output::Adapt`].
    Adapted {
        /// Digest of the base.
        base: Digest,
        /// False if it was cut short by [`Output::CancelAdapting`] and should go on later.
        complete: bool,
    },
    /// Answers [`Output::Install`].
    Renewed(Result<Renewed, String>),
    /// The agent is asked to stop.
    Shutdown,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Connect to the coordinator; answered by `Connected` or `ConnectionFailed`.
    Connect,
    /// Drop the connection; not answered.
    Disconnect,
    /// Say something on the control stream.
    Send(AgentMessage),
    /// Compare the ledger with what the coordinator acknowledged, and keep its receipt.
    CompareLedger(Box<Receipt>),
    /// Keep on record that an assignment was declined, and why.
    RecordDecline(RoundKey, Declined),
    /// Ask the ledger about a round.
    Examine(Box<Assignment>, Approved),
    /// Train a round, mask its update if it has an exchange, store its release and debit it.
    Train(Box<Assignment>, Approved, Option<Exchange>),
    /// A round is no longer wanted: stop, or drop the result without a debit.
    CancelTraining(RoundKey),
    /// Upload a debited release.
    Upload(Release),
    /// Serve a base and adapt to it.
    Adapt(BaseModel),
    /// Cut the adaptation short.
    CancelAdapting,
    /// Make a key and ask the coordinator for its certificate.
    Renew,
    /// Keep the certificate that the coordinator issued, if it is one for the key; the next connection
    /// shows it. Answered by `Renewed`.
    Install(EnrollmentResponse),
    /// End the process once everything before is done.
    Stop,
}
