//! Clipping, lattice, exact noise, mechanisms, accountants, the privacy ledger and audits.
//!
//! Everything here is pure: no sockets, no clock, no async, no files. Randomness comes from a
//! [`noise::NoiseSource`] that the caller passes in, durability from a [`chain::ChainStore`].
//!
//! # Trust
//! The agent of a tenant runs this code on its own data. What a mechanism returns may be seen by
//! anyone; what goes into it, and every intermediate value, must not leave the process. A release
//! may leave only after [`ledger::Ledger::debit`] returned `Ok` for the hash of its bytes.
//!
//! # Map
//! - [`clip`]: L2 bounds, flat, per layer, and adapting to a quantile
//! - [`lattice`]: the integer grid of the wire: rotation, quantisation, packing, modular sums
//! - [`noise`]: the operating system's entropy, and discrete Gaussian samplers
//! - [`mechanism`]: noisy gradient sums, client updates and statistics, and what they cost
//! - [`accountant`]: ε of many releases, by privacy loss distributions and by Rényi divergences
//! - [`chain`]: append-only hash-chained records
//! - [`secagg`]: masked sums: the coordinator learns the sum only
//! - [`distributed`]: how large noise shares, lattice and sums are under secure aggregation
//! - [`ledger`]: what was spent, durably and tamper-evidently
//! - [`audit`]: an empirical lower bound of ε from planted canaries
//!
//! # Example
//! ```
//! use tributary_privacy::{
//!     accountant::{Delta, epsilon},
//!     clip::ClippingNorm,
//!     mechanism::{NoisyGradientSum, PrivacyEvent},
//!     noise::SecureNoise,
//! };
//!
//! let mechanism = NoisyGradientSum::new(ClippingNorm::new(1.0)?, 1.1, 3)?;
//! // Two per-example gradients, clipped in f32 to `mechanism.float_clipping_norm()` and summed.
//! let mut batch = mechanism.begin();
//! batch.add(&[0.5, -0.2, 0.9], 2)?;
//! let noisy = mechanism.release(batch, &mut SecureNoise::new()?)?;
//! assert_eq!(noisy.len(), 3);
//!
//! // A thousand such steps on Poisson samples of 1 %:
//! let event =
//!     PrivacyEvent::PoissonGaussian { sampling_rate: 0.01, noise_multiplier: 1.1, steps: 1000 };
//! let spent = epsilon(&[event], Delta::new(1e-5)?)?;
//! assert!(spent > 1.51 && spent < 1.52);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod accountant;
pub mod audit;
pub mod chain;
pub mod clip;
pub mod distributed;
pub mod lattice;
pub mod ledger;
pub mod mechanism;
pub mod noise;
pub mod secagg;
