//! Experiment files: everything that decides a simulation's result, in TOML.

mod data;
mod error;
mod privacy;
mod spec;

pub use self::{
    data::{DatasetSpec, FilesSpec, PartitionSpec, Records, SyntheticSpec},
    error::ExperimentError,
    privacy::{NoiseSpec, PrivacySpec},
    spec::{
        AdversarySpec, Attack, CohortSampling, CohortSpec, EpochsSpec, EvaluationSpec, Experiment,
        TrainingSpec,
    },
};
