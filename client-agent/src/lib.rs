//! The agent at a tenant's site: policy, private training, adapters and serving.
//!
//! The agent is the authority over its tenant's data. Whatever a coordinator asks for is checked
//! against the tenant's own [`policy`] before anything is read, and the privacy ledger is debited
//! durably before a single noisy byte leaves ([`update`]). The conversation itself is a value that
//! is stepped by hand ([`session`]); sockets, threads and clocks are in [`driver`].
//!
//! | module | what it holds |
//! |---|---|
//! | [`site`], [`config`], [`policy`], [`identity`] | the files of a tenant's directory |
//! | [`data`], [`text`], [`model`], [`train`], [`adapter`], [`engine`], [`compute`] | records, models, training, serving |
//! | [`ledger_file`], [`receipt_file`], [`update`] | the durable path of a release |
//! | [`refusals`], [`statement`], [`calendar`] | what was declined and spent, for people |
//! | [`keys`] | who may ask the HTTP interface for what |
//! | [`feedback`] | outcomes of predictions, kept at the site |
//! | [`session`], [`driver`] | rounds with the coordinator |
//! | [`api`], [`cli`] | the tenant's own interfaces |
//!
//! Trust: the agent trusts its own machine and its tenant's files. The coordinator is trusted with
//! availability only: what leaves the site is already differentially private.
//!
//! ```
//! use tributary_agent::{policy::Policy, site::Site};
//!
//! let text = r#"
//!     [datasets.adult]
//!     epsilon_max = 4.0
//!     delta = 1e-5
//!     units = ["record"]
//!     families = ["mlp"]
//!     noise_multiplier_min = 0.8
//! "#;
//! let policy = Policy::parse(text, &Site::new("."))?;
//! assert_eq!(policy.datasets.values().next().map(|dataset| dataset.epsilon_max), Some(4.0));
//! # Ok::<(), tributary_agent::policy::PolicyError>(())
//! ```

pub mod adapter;
pub mod api;
pub mod calendar;
pub mod cli;
pub mod compute;
pub mod config;
pub mod data;
pub mod driver;
pub mod durable_file;
pub mod engine;
pub mod feedback;
pub mod identity;
pub mod keys;
pub mod ledger_file;
pub mod model;
pub mod policy;
pub mod receipt_file;
pub mod refusals;
pub mod secagg;
pub mod session;
pub mod site;
pub mod statement;
pub mod text;
pub mod train;
pub mod update;
