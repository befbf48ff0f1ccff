//! What the tensor library computes with: how many threads, and on which device.

mod device;

use thiserror::Error;

pub use self::device::{ComputeDevice, DeviceChoice, DeviceError, DeviceNameError, Precision};

/// Says why the number of compute threads cannot be set.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ComputeError {
    /// The number is not usable.
    #[error("`compute.threads` is {threads}; it must be between 1 and {THREADS_MAX}")]
    Threads {
        /// What was given.
        threads: usize,
    },
    /// Something computed before the number was set.
    #[error("the compute threads are already running; set their number first")]
    AlreadyRunning(#[source] rayon::ThreadPoolBuildError),
}

/// The largest number of compute threads.
pub const THREADS_MAX: usize = 1024;

/// Bounds the threads of every matrix product of this process.
///
/// The tensor library splits products into as many parts as the environment variable
/// `RAYON_NUM_THREADS` says (or the machine has cores), but runs the parts on the process-wide
/// pool that this call makes. Call it once, before the first model is built.
///
/// # Errors
/// [`ComputeError`] for a number out of range or a pool that already runs.
pub fn set_threads(threads: usize) -> Result<(), ComputeError> {
    if !(1..=THREADS_MAX).contains(&threads) {
        return Err(ComputeError::Threads { threads });
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("compute-{index}"))
        .build_global()
        .map_err(ComputeError::AlreadyRunning)
}

/// Into how many parts a large matrix product of this process may be split.
#[must_use]
pub fn threads() -> usize {
    candle_core::utils::get_num_threads()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_numbers_are_named() {
        for threads in [0, THREADS_MAX + 1] {
            let error = set_threads(threads).expect_err("out of range").to_string();
            assert!(error.contains("compute.threads"), "{error}");
        }
    }
}
