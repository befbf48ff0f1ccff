use std::{borrow::Cow, num::NonZeroU32, sync::Arc};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tributary_protocol::{id::TenantId, time::Timestamp};

use super::Sampling;
use crate::model::decoder::DecoderAdapter;

/// Names a request within one scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// Bounds of a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of cached keys and values.
    pub cache_bytes: usize,
    /// Tokens of a block of the cache.
    pub block_tokens: usize,
    /// Rows of one batch.
    pub batch_rows_max: usize,
    /// Requests in one batch.
    pub batch_requests_max: usize,
    /// Rows of one request in one batch: how long others wait for a prompt at most.
    pub prompt_rows_max: usize,
    /// Requests of one tenant that have not begun.
    pub queue_max: usize,
    /// Tokens of one request, prompt and answer.
    pub context_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cache_bytes: 512 << 20,
            block_tokens: 16,
            batch_rows_max: 256,
            batch_requests_max: 32,
            prompt_rows_max: 128,
            queue_max: 64,
            context_max: usize::MAX,
        }
    }
}

/// What a tenant may have of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantShare {
    /// Share of the rows in proportion to those of other tenants that wait.
    pub weight: NonZeroU32,
    /// Tokens a minute, prompt and answer, with a minute's worth of savings; without it, any number.
    pub tokens_per_minute: Option<NonZeroU32>,
}

impl Default for TenantShare {
    fn default() -> Self {
        Self { weight: NonZeroU32::MIN, tokens_per_minute: None }
    }
}

/// What goes into the scheduler.
#[derive(Debug)]
pub enum Input {
    /// A request.
    Submit(Box<GenerationRequest>),
    /// Whoever asked is gone.
    Cancel(RequestId),
    /// Take nothing new; finish what is there.
    Drain,
}

/// A request.
#[derive(Debug)]
pub struct GenerationRequest {
    /// Its name.
    pub id: RequestId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The adapter on top of the base; the request keeps it to its end.
    pub adapter: Option<Arc<DecoderAdapter>>,
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// What is wanted.
    pub work: Work,
    /// When it is no longer wanted.
    pub deadline: Option<Timestamp>,
}

/// What is wanted of a prompt.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Text that goes on from it.
    Generate {
        /// Tokens of the answer, at most.
        tokens_max: usize,
        /// How they are drawn.
        sampling: Sampling,
        /// Strings that end the answer and are not part of it.
        stops: Vec<String>,
        /// Tokens that end the answer.
        end_tokens: Vec<u32>,
    },
    /// The mean of its last hidden states, of length 1.
    Embed,
}

/// Why a request is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Refusal {
    /// Too many of the tenant's requests wait.
    #[error("{waiting} requests wait already; try again in {retry_after_ms} ms")]
    QueueFull {
        /// How many.
        waiting: usize,
        /// When there may be room, in milliseconds.
        retry_after_ms: u64,
    },
    /// The tenant's tokens are used up for now.
    #[error(
        "the quota of {per_minute} tokens a minute is used up; try again in {retry_after_ms} ms"
    )]
    Quota {
        /// The quota.
        per_minute: u32,
        /// When the request fits, in milliseconds.
        retry_after_ms: u64,
    },
    /// The request never fits the tenant's quota.
    #[error("the request may need {tokens} tokens; the quota is {per_minute} a minute")]
    AboveQuota {
        /// What it may need.
        tokens: usize,
        /// The quota.
        per_minute: u32,
    },
    /// The request never fits the model or the cache.
    #[error("prompt and answer are {tokens} tokens; at most {tokens_max} fit")]
    TooLong {
        /// What it may need.
        tokens: usize,
        /// What fits.
        tokens_max: usize,
    },
    /// There is no prompt.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A token has no row.
    #[error("the prompt holds the token {token}; the model has {vocab_size}")]
    Token {
        /// The token.
        token: u32,
        /// Tokens of the model.
        vocab_size: usize,
    },
    /// A sampling value cannot work.
    #[error("`{name}` must be {range}")]
    Sampling {
        /// Which.
        name: Cow<'static, str>,
        /// What would work.
        range: Cow<'static, str>,
    },
    /// The deadline has passed.
    #[error("the deadline has passed already")]
    Late,
    /// The engine stops.
    #[error("the engine is stopping and takes no new requests")]
    Draining,
}

impl Refusal {
    /// The name of the reason in metrics.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::QueueFull { .. } => "queue_full",
            Self::Quota { .. } => "quota",
            Self::AboveQuota { .. } => "above_quota",
            Self::TooLong { .. } => "too_long",
            Self::EmptyPrompt | Self::Token { .. } | Self::Sampling { .. } => "invalid",
            Self::Late => "deadline",
            Self::Draining => "stopping",
        }
    }
}

/// Something that happened to a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Which.
    pub request: RequestId,
    /// What.
    pub event: Event,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The answer goes on.
    Text(String),
    /// The embedding, `[hidden]`.
    Embedding(Vec<f32>),
    /// The last event of a request.
    Finished(Finished),
}

impl Event {
    /// The end of a request that nobody works on any more.
    #[must_use]
    pub const fn failed() -> Self {
        Self::Finished(Finished::without_work(FinishReason::Failed))
    }
}

impl Finished {
    /// The end of a request of whose work nothing is known.
    #[must_use]
    pub const fn without_work(reason: FinishReason) -> Self {
        Self {
            reason,
            prompt_tokens: 0,
            cached_tokens: 0,
            answer: Vec::new(),
            queued_ms: 0,
            first_token_ms: 0,
            total_ms: 0,
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were in the cache.
    pub cached_tokens: usize,
    /// Tokens of the answer.
    pub answer: Vec<u32>,
    /// From arrival to the first batch, in milliseconds.
    pub queued_ms: u64,
    /// From arrival to the first token, in milliseconds.
    pub first_token_ms: u64,
    /// From arrival to the end, in milliseconds.
    pub total_ms: u64,
}

/// Why a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end token or a stop string, or an embedding that is done.
    Stop,
    /// The answer is as long as it may be.
    Length,
    /// The deadline passed.
    Deadline,
    /// Whoever asked is gone.
    Cancelled,
    /// The model failed on the batch.
    Failed,
}
