//! The Tributary coordinator: schedules rounds, sums updates, keeps tenants and base models.
//!
//! It is trusted to schedule and to add correctly; with local trust it sees only updates that are
//! already differentially private. It never sees data, adapters or accuracies, and links no tensor
//! library.
//!
//! | module | what it holds |
//! |---|---|
//! | [`round`] | one round, stepped by hand |
//! | [`scheduler`] | jobs, tenants and models, stepped by hand |
//! | [`aggregation`], [`optimizer`] | from packed updates to the next base model |
//! | [`cohort`], [`pace`], [`registry`], [`tenants`] | who takes part and when, model versions, identities |
//! | [`store`], [`blobs`], [`backup`] | durable records, content-addressed files, copies of both |
//! | [`audit`] | what was done and decided, tamper-evidently |
//! | [`spending`] | what counted releases cost each tenant, by the terms of the jobs |
//! | [`access`] | roles and tokens of people |
//! | [`driver`], [`api`], [`config`] | sockets, clock, people; the API also serves the dashboard |
//!
//! ```
//! use tributary_coordinator::round::{Input, Output, Round};
//! use tributary_protocol::{id::{Digest, RoundNumber, TenantId}, job::RoundPlan, time::Timestamp};
//!
//! let plan: RoundPlan = toml::from_str("rounds = 1\ncohort_size = 1\ncohort_size_min = 1\nreport_goal = 1")?;
//! let now = Timestamp(0);
//! let mut round = Round::new(RoundNumber(1), Digest::of(b"base"), plan, None, 7, now);
//! let tenant = TenantId::new("alpha")?;
//! round.handle(now, Input::Available { tenants: [tenant.clone()].into(), population: 1 })?;
//! round.handle(now, Input::Reported(tenant, Digest::of(b"update")))?;
//! let outputs: Vec<_> = std::iter::from_fn(|| round.poll_output()).collect();
//! assert!(matches!(outputs[outputs.len() - 2], Output::Commit { .. }));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod access;
pub mod aggregation;
pub mod api;
pub mod audit;
pub mod backup;
pub mod blobs;
pub mod cohort;
pub mod config;
mod dashboard;
pub mod driver;
pub mod optimizer;
pub mod pace;
pub mod registry;
pub mod round;
pub mod scheduler;
pub mod spending;
pub mod store;
pub mod tenants;
