//! Experiment files: everything that decides a simulation's result, in TOML.

mod adapters;
mod check;
mod clock;
mod data;
mod error;
mod privacy;
mod secagg;
mod speakers;
mod spec;

pub use self::{
    adapters::AdaptersSpec,
    clock::{AsynchronousSpec, ClockSpec},
    data::{DatasetSpec, FilesSpec, PartitionSpec, Records, SyntheticSpec},
    error::ExperimentError,
    privacy::{NoiseSpec, PrivacySpec},
    secagg::SecaggSpec,
    speakers::SpeakersSpec,
    spec::{
        AdversarySpec, Attack, CohortSampling, CohortSpec, EpochsSpec, EvaluationSpec, Experiment,
        TrainingSpec,
    },
};
