//! How large an honest sum can be.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::lattice::ModularSum;

/// Why a sum cannot come from honest updates alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Implausible {
    /// One coordinate is too large.
    #[error("coordinate {index} is {value} grid units, beyond {bound}")]
    Coordinate {
        /// Which.
        index: usize,
        /// Its value, centred.
        value: i32,
        /// The largest magnitude.
        bound: u32,
    },
    /// The whole is too long.
    #[error("its L2 norm is {norm} grid units, beyond {bound}")]
    Norm {
        /// The norm, rounded up.
        norm: u64,
        /// The largest.
        bound: u64,
    },
}

/// The largest sum that honest updates make, but for a stated probability.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SumBound {
    /// L2 norm of one update before noise, in grid units.
    pub norm_max: f64,
    /// Deviation of the noise that each update carries, in grid units.
    pub noise_sigma: f64,
    /// The accepted probability of refusing an honest sum.
    pub false_alarm_max: f64,
}

impl SumBound {
    /// Checks a sum of `survivors` updates.
    ///
    /// # Errors
    /// [`Implausible`] with the bound that is exceeded.
    pub fn check(&self, _sum: &ModularSum, _survivors: u32) -> Result<(), Implausible> {
        unimplemented!("skeleton")
    }
}
