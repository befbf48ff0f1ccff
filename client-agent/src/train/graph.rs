//! Any family and any federated part, over the tensor library's graph.

use std::ops::Range;

use tributary_privacy::mechanism::Held;
use tributary_protocol::model::{FederatedPart, ModelSpec};

use super::{TrainError, learner::Learner};
use crate::{
    data::Dataset,
    model::{ExampleClip, Factors, KEPT_ELEMENTS_MAX, Model, Tape, add_scaled_assign},
};

/// A model in training whose backward pass leaves records of what every example's gradient needs.
pub(super) struct Graph {
    spec: ModelSpec,
    part: FederatedPart,
    /// Of the federated part.
    layers: Vec<usize>,
    /// Where the federated part lies in the model; nothing for low-rank changes.
    span: Option<Range<usize>>,
    /// Nothing before the first base.
    model: Option<(Model, Option<Factors>)>,
    /// The federated parameters, as the model's variables hold them.
    parameters: Vec<f32>,
}

impl Graph {
    pub(super) fn new(spec: &ModelSpec, part: FederatedPart) -> Self {
        Self {
            layers: part.layer_lengths(spec),
            span: part.span(spec),
            model: None,
            parameters: vec![0.0; part.dimension(spec)],
            spec: spec.clone(),
            part,
        }
    }

    /// Runs the records forth and back; the tape holds what their gradients need.
    fn record(&mut self, data: &Dataset, indices: &[u32]) -> Result<Tape, TrainError> {
        if self.model.is_none() {
            self.load(&vec![0.0; self.spec.num_parameters()])?;
        }
        let (model, factors) = self.model.as_ref().expect("a base was loaded");
        let (batch, tape) = (data.examples(indices)?, Tape::default());
        let flow = match (factors, &self.span) {
            (Some(factors), _) => model.frozen().with_factors(factors, Some(&tape)),
            (None, Some(span)) => model.frozen().recording(&tape, span),
            (None, None) => model.frozen(),
        };
        let outputs = model.outputs(&batch.inputs, flow)?;
        batch.loss(&outputs)?.backward()?;
        Ok(tape)
    }
}

impl Learner for Graph {
    fn load(&mut self, base: &[f32]) -> Result<(), TrainError> {
        let factors = Factors::shared(&self.spec, self.part)?;
        self.model = Some((Model::new(&self.spec, base)?, factors));
        self.parameters = self.part.start(&self.spec, base);
        Ok(())
    }

    fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    /// What keeps the largest layer's per-example gradients and the activations in memory.
    fn micro_batch_max(&self) -> usize {
        let largest = self.layers.iter().copied().max().unwrap_or(1).max(1);
        (KEPT_ELEMENTS_MAX / largest).clamp(1, self.plain_batch_max())
    }

    fn plain_batch_max(&self) -> usize {
        match self.spec {
            ModelSpec::Mlp(_) => 256,
            ModelSpec::Cnn(_) => 64,
            ModelSpec::Encoder(_) | ModelSpec::Decoder(_) => 16,
        }
    }

    fn descend(&mut self, data: &Dataset, indices: &[u32], rate: f32) -> Result<bool, TrainError> {
        let mut sum = vec![0.0; self.parameters.len()];
        self.add_sum(data, indices, &mut sum)?;
        let finite = sum.iter().all(|value| value.is_finite());
        if finite {
            self.add_scaled(&sum, -rate)?;
        }
        Ok(finite)
    }

    fn add_sum(
        &mut self,
        data: &Dataset,
        indices: &[u32],
        sum: &mut [f32],
    ) -> Result<(), TrainError> {
        Ok(self.record(data, indices)?.add_sum(sum)?)
    }

    fn add_clipped_sum(
        &mut self,
        data: &Dataset,
        indices: &[u32],
        (clip, norm_max): (ExampleClip, f64),
        step: u32,
        sum: &mut [f32],
        held: Held,
    ) -> Result<(), TrainError> {
        if held == Held::Anything {
            sum.fill(0.0);
        }
        let tape = self.record(data, indices)?;
        let examples = indices.len();
        let clipped = match clip {
            ExampleClip::Flat => tape.add_clipped_sum(examples, norm_max, sum).map(|_| ()),
            ExampleClip::PerLayer => {
                tape.add_clipped_sum_by_layer(&self.layers, examples, norm_max, sum)
            }
        };
        clipped.map_err(|error| TrainError::from_clipping(error, step))
    }

    /// The model's variables hold them too.
    fn in_place(&mut self) -> Option<(&mut [f32], usize)> {
        None
    }

    fn add_scaled(&mut self, step: &[f32], scale: f32) -> Result<(), TrainError> {
        let Some((model, factors)) = &self.model else { return Ok(()) };
        match (factors, &self.span) {
            (Some(factors), _) => factors.add_scaled(step, scale)?,
            (None, Some(span)) => model.add_scaled_from(span.start, step, scale)?,
            (None, None) => {}
        }
        add_scaled_assign(&mut self.parameters, step, scale);
        Ok(())
    }
}
