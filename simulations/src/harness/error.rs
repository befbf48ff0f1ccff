use std::path::PathBuf;

use thiserror::Error;
use tributary_agent::{adapter::AdapterError, train::TrainError};
use tributary_privacy::{
    accountant::AccountantError, clip::ClipError, lattice::LatticeError, mechanism::MechanismError,
    noise::NoiseError, secagg::SecaggError,
};
use tributary_protocol::tensor_file::TensorFileError;

use crate::experiment::ExperimentError;

/// Says why an experiment stopped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HarnessError {
    /// The experiment cannot work.
    #[error(transparent)]
    Experiment(#[from] ExperimentError),
    /// A tenant could not train.
    #[error("tenant {tenant} could not train in round {round}")]
    Train {
        /// Its number.
        tenant: u32,
        /// The round, from 1.
        round: u64,
        /// Why.
        #[source]
        source: TrainError,
    },
    /// The base model cannot be measured.
    #[error("the base model cannot be measured")]
    Evaluate(#[source] TrainError),
    /// An update cannot be clipped.
    #[error("the update of tenant {tenant} cannot be clipped in round {round}")]
    Clip {
        /// Its number.
        tenant: u32,
        /// The round, from 1.
        round: u64,
        /// Why.
        #[source]
        source: ClipError,
    },
    /// The norms and noise fit no lattice, or an update does not go on it.
    #[error("the updates do not fit the lattice")]
    Lattice(#[from] LatticeError),
    /// The updates are needed one by one, and are spread over processes.
    #[error("robust aggregation and SCAFFOLD run in one process; start without `mpirun`")]
    OneProcess,
    /// A clipping norm is not usable.
    #[error(transparent)]
    Norm(#[from] ClipError),
    /// A mechanism refuses.
    #[error("the privacy mechanism cannot be used")]
    Mechanism(#[from] MechanismError),
    /// The noise cannot be drawn.
    #[error("the noise cannot be drawn")]
    Noise(#[from] NoiseError),
    /// The privacy cannot be accounted.
    #[error("the privacy cannot be accounted")]
    Accountant(#[from] AccountantError),
    /// Secure aggregation refuses.
    #[error("secure aggregation failed in round {round}")]
    Secagg {
        /// The round, from 1.
        round: u64,
        /// Why.
        #[source]
        source: SecaggError,
    },
    /// An adapter cannot be trained.
    #[error("tenant {tenant} could not train its adapter")]
    Adapter {
        /// Its number.
        tenant: u32,
        /// Why.
        #[source]
        source: Box<AdapterError>,
    },
    /// Another process of the run failed and says why.
    #[error("another process of this run failed; see its message")]
    OtherRank,
    /// Another process works in the folder.
    #[error("{} is in use by another process", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// The new base model is not finite.
    #[error("the base model is not finite after round {round}; lower the learning rates")]
    Diverged {
        /// The round, from 1.
        round: u64,
    },
    /// The model cannot be written.
    #[error("the model cannot be written")]
    Model(#[from] TensorFileError),
    /// A result file cannot be written or read.
    #[error("cannot use {}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The output folder holds another run.
    #[error(
        "{} holds {found}; continue it with --resume, or name another folder with --output",
        path.display()
    )]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// What it holds.
        found: &'static str,
    },
    /// A checkpoint is damaged or belongs to another experiment.
    #[error("{} {problem}; remove it to start anew", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: &'static str,
    },
    /// The user asked to stop; the run can be continued.
    #[error("interrupted after round {round}; continue with --resume")]
    Interrupted {
        /// The last finished round.
        round: u64,
    },
}
