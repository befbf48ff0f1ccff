//! The processes that `mpirun` started.

use thiserror::Error;

use crate::harness::Ranks;

/// Says why there are no processes to share with.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MpiError {
    /// The program was built without MPI.
    #[error(
        "this program has no MPI; build it with `cargo build --release -p tributary-sim --features \
         mpi` (needs Open MPI and libclang)"
    )]
    NotBuilt,
    /// MPI does not start.
    #[error("MPI does not start, or was started before in this process")]
    Start,
}

/// Does `work` as one of the processes of `mpirun`.
#[cfg(feature = "mpi")]
pub(super) fn with_ranks<T>(work: impl FnOnce(&dyn Ranks) -> T) -> Result<T, MpiError> {
    // Only the main thread talks to the others.
    let (universe, _) =
        mpi::initialize_with_threading(mpi::Threading::Funneled).ok_or(MpiError::Start)?;
    Ok(work(&crate::harness::MpiRanks::new(universe.world())))
}

/// Does `work` as one of the processes of `mpirun`.
#[cfg(not(feature = "mpi"))]
pub(super) fn with_ranks<T>(_: impl FnOnce(&dyn Ranks) -> T) -> Result<T, MpiError> {
    Err(MpiError::NotBuilt)
}
