use std::ops::ControlFlow;

use tributary_protocol::{job::TrainingPlan, model::ModelSpec};

use super::TrainError;
use crate::data::Dataset;

/// One round of local training: from which base, on which records, by which plan.
#[derive(Debug, Clone, Copy)]
pub struct LocalTask<'a> {
    /// What the model is.
    pub spec: &'a ModelSpec,
    /// The flat parameters that the round starts from.
    pub base: &'a [f32],
    /// All records of the tenant.
    pub data: &'a Dataset,
    /// The records that may train; each at most once.
    pub train: &'a [u32],
    /// Steps, sampling rate, public denominator and step size.
    pub plan: &'a TrainingPlan,
}

impl LocalTask<'_> {
    /// Tells of a finished step.
    pub(super) fn report(
        &self,
        step: u32,
        progress: &mut dyn FnMut(u32, u32) -> ControlFlow<()>,
    ) -> Result<(), TrainError> {
        let steps = self.plan.local_steps;
        match progress(step, steps) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(TrainError::Stopped { step, steps }),
        }
    }
}

/// Checks that records and model fit together and that every index names a record.
pub(crate) fn check_data(
    spec: &ModelSpec,
    data: &Dataset,
    indices: &[u32],
) -> Result<(), TrainError> {
    let pairs = [
        ("inputs", spec.num_inputs(), data.num_features()),
        ("classes", spec.num_classes(), data.num_classes() as usize),
    ];
    for (what, model, data) in pairs {
        if model != data {
            return Err(TrainError::DataShape { what, model, data });
        }
    }
    match indices.iter().find(|&&index| index as usize >= data.len()) {
        Some(&index) => Err(TrainError::Index { index, len: data.len() }),
        None => Ok(()),
    }
}
