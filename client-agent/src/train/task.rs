use std::ops::ControlFlow;

use tributary_protocol::{job::TrainingPlan, model::ModelSpec};

use super::TrainError;
use crate::data::{Dataset, Texts};

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

fn check_kind(spec: &ModelSpec, data: &Dataset) -> Result<(), TrainError> {
    let family = spec.family();
    let equal = |what, model, data| {
        if model == data { Ok(()) } else { Err(TrainError::DataShape { what, model, data }) }
    };
    let classes = || equal("classes", spec.num_classes(), data.num_classes() as usize);
    let kind = |needed| TrainError::DataKind { family, needed };
    match spec {
        ModelSpec::Mlp(_) | ModelSpec::Cnn(_) => {
            if data.texts().is_some() {
                return Err(kind("tables or images"));
            }
            equal("inputs", spec.num_inputs(), data.num_features())?;
            return classes();
        }
        ModelSpec::Encoder(_) if data.texts().is_none_or(Texts::continued) => {
            return Err(kind("texts with labels"));
        }
        ModelSpec::Encoder(_) => classes()?,
        ModelSpec::Decoder(_) if !data.texts().is_some_and(Texts::continued) => {
            return Err(kind("texts without labels, or prompts with completions"));
        }
        ModelSpec::Decoder(_) => {}
    }
    let Some(texts) = data.texts() else { return Ok(()) };
    let at_most = |what, model, data| {
        if data <= model { Ok(()) } else { Err(TrainError::DataRange { what, model, data }) }
    };
    at_most("tokens of vocabulary", spec.vocab_size().unwrap_or(0), texts.vocab_size())?;
    at_most("tokens a text", spec.num_inputs(), texts.longest_input())
}

/// Checks that records and model fit together and that every index names a record.
pub(crate) fn check_data(
    spec: &ModelSpec,
    data: &Dataset,
    indices: &[u32],
) -> Result<(), TrainError> {
    check_kind(spec, data)?;
    match indices.iter().find(|&&index| index as usize >= data.len()) {
        Some(&index) => Err(TrainError::Index { index, len: data.len() }),
        None => Ok(()),
    }
}
