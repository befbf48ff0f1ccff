//! Text generation for many tenants at once.
//!
//! [`Scheduler`] is a value stepped by hand: requests go in with the time, each step runs one batch
//! of rows through the decoder, events come out. Rows of different tenants and adapters share the
//! batch; blocks of the cache are shared only within one tenant, base and adapter version.
//! [`Generator`] drives it on a thread of its own, or in a process of its own.

mod attend;
mod backend;
mod blocks;
mod cache;
#[cfg(any(test, feature = "cuda"))]
mod device;
mod fair;
mod pass;
mod process;
mod request;
mod sampling;
mod scheduler;
mod sequence;
mod worker;

pub use self::{
    blocks::{BlockId, BlockPool},
    process::{FromProcess, ProcessError, Program, Ready, Submission, ToProcess},
    request::{
        Event, FinishReason, Finished, GenerationRequest, Input, Limits, Output, Refusal,
        RequestId, TenantShare, Work,
    },
    sampling::{Sampler, Sampling},
    scheduler::Scheduler,
    worker::{Generator, SubmitError, Ticket},
};

#[cfg(test)]
mod tests;
