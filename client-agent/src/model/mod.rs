//! Models over the tensor library: built from a [`ModelSpec`] and one flat parameter vector.

mod aligned;
mod attention;
mod batch;
pub mod checkpoint;
mod clipping;
mod cnn;
pub mod decoder;
mod dense;
mod dots;
mod encoder;
mod factors;
mod flow;
mod kernels;
pub mod layer;
mod loss;
mod matmul;
mod mlp;
mod parameters;
pub mod peft;
mod tape;

use candle_core::Tensor;
use thiserror::Error;
use tributary_protocol::{
    model::ModelSpec,
    tensor_file::{TensorFileError, check_parameters},
};

pub(crate) use self::{
    batch::most_probable,
    clipping::KEPT_ELEMENTS_MAX,
    dense::Dense,
    factors::{FactorStart, Factors},
    flow::Flow,
    kernels::{add_scaled_assign, all_finite, exp, fractions, gate, with_elements},
    loss::softmax_rows,
    matmul::{Before, Matrix, multiply},
};
pub use self::{
    batch::{Batch, Inputs, Outcome},
    clipping::ClippingError,
    dense::ExampleClip,
    loss::cross_entropy_sum,
    tape::Tape,
};
use self::{
    decoder::{Decoder, DecoderConfig},
    parameters::Parameters,
};

/// Says why parameters are not a model.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The parameters are not those of the model.
    #[error(transparent)]
    Parameters(#[from] TensorFileError),
    /// The tensor library failed.
    #[error("the tensor library failed")]
    Tensor(#[from] candle_core::Error),
}

/// A model with its parameters, ready to train or to answer.
pub struct Model {
    spec: ModelSpec,
    parameters: Parameters,
    /// The order of a decoder's steps, over the same parameters.
    decoder: Option<Decoder>,
}

impl Model {
    /// Builds a model from its flat parameters, in the order of [`ModelSpec::tensors`].
    ///
    /// # Errors
    /// [`ModelError`] for impossible sizes, a wrong number of parameters or a non-finite one.
    pub fn new(spec: &ModelSpec, parameters: &[f32]) -> Result<Self, ModelError> {
        check_parameters(spec, parameters)?;
        let parameters = Parameters::new(spec, parameters)?;
        let decoder = match spec {
            ModelSpec::Decoder(decoder) => {
                let take = |name: &str| Some(parameters.find(name)?.tensor().clone());
                Some(Decoder::of(DecoderConfig::of_spec(decoder), take))
            }
            _ => None,
        };
        Ok(Self { spec: spec.clone(), parameters, decoder })
    }

    /// What this model is.
    #[must_use]
    pub const fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Computes the logits `[n, classes]` of inputs `[n, features]`, keeping nothing for training.
    ///
    /// # Errors
    /// The tensor library's, for inputs of another width.
    pub fn forward(&self, inputs: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.run(inputs, None)?)
    }

    /// Computes the class probabilities `[n, classes]`, row-major.
    ///
    /// # Errors
    /// The tensor library's, for inputs of another width.
    pub fn predict(&self, inputs: &Tensor) -> Result<Vec<f32>, ModelError> {
        self.probabilities(&Inputs::Features(inputs.clone()))
    }

    /// Computes the class probabilities of any inputs, row-major: `[n, classes]`, or for decoders
    /// `[n, time, classes]`.
    ///
    /// # Errors
    /// The tensor library's, for inputs of another kind or width.
    pub fn probabilities(&self, inputs: &Inputs) -> Result<Vec<f32>, ModelError> {
        let outputs = self.outputs(inputs, self.frozen())?;
        let mut values = with_elements(&outputs, <[f32]>::to_vec)?;
        softmax_rows(&mut values, self.spec.num_classes());
        Ok(values)
    }

    /// The flat parameters, in the order of [`ModelSpec::tensors`].
    ///
    /// # Errors
    /// The tensor library's.
    pub fn parameters(&self) -> Result<Vec<f32>, ModelError> {
        Ok(self.parameters.flat()?)
    }

    /// Computes the logits `[n, classes]`; with a tape, the backward pass of a loss on them records
    /// there what the gradients of all parameters need.
    ///
    /// # Errors
    /// The tensor library's, for inputs of another width.
    pub fn run(&self, inputs: &Tensor, tape: Option<&Tape>) -> candle_core::Result<Tensor> {
        let flow = self.frozen();
        let all = 0..self.spec.num_parameters();
        let flow = tape.map_or(flow, |tape| flow.recording(tape, &all));
        self.outputs(&Inputs::Features(inputs.clone()), flow)
    }

    /// A pass in which all parameters are constants.
    pub(crate) const fn frozen(&self) -> Flow<'_> {
        Flow::frozen(&self.parameters)
    }

    /// Computes the logits of any inputs: `[n, classes]`, or for decoders `[n, time, vocabulary]`.
    pub(crate) fn outputs(&self, inputs: &Inputs, flow: Flow<'_>) -> candle_core::Result<Tensor> {
        match (&self.spec, inputs) {
            (ModelSpec::Mlp(mlp), Inputs::Features(rows)) => {
                mlp::logits(mlp.hidden.len() + 1, rows, flow)
            }
            (ModelSpec::Cnn(cnn), Inputs::Features(rows)) => cnn::logits(cnn, rows, flow),
            (ModelSpec::Encoder(encoder), Inputs::Tokens { ids, lengths }) => {
                encoder::logits(encoder, ids, lengths, flow)
            }
            (ModelSpec::Decoder(_), Inputs::Tokens { ids, .. }) => {
                let decoder = self.decoder.as_ref().expect("a decoder has its steps");
                decoder::logits(decoder, ids, flow)
            }
            (spec, _) => candle_core::bail!("a model {} got inputs of another kind", spec.family()),
        }
    }

    /// Adds `scale * step` to the parameters in place.
    ///
    /// - `step`: `[num_parameters]`
    ///
    /// # Errors
    /// The tensor library's.
    pub fn add_scaled(&self, step: &[f32], scale: f32) -> candle_core::Result<()> {
        self.add_scaled_from(0, step, scale)
    }

    /// The same for the flat parameters from `start` on.
    pub(crate) fn add_scaled_from(
        &self,
        start: usize,
        step: &[f32],
        scale: f32,
    ) -> candle_core::Result<()> {
        self.parameters.add_scaled(start, step, scale)
    }
}

#[cfg(test)]
mod encoder_tests;
#[cfg(test)]
mod tests;
