//! Models over the tensor library: built from a [`ModelSpec`] and one flat parameter vector.

pub mod checkpoint;
mod clipping;
pub mod decoder;
mod dense;
mod kernels;
pub mod layer;
mod loss;
mod matmul;
mod tape;

use std::ops::Range;

use candle_core::{Device, Tensor, Var};
use thiserror::Error;
use tributary_protocol::{
    model::ModelSpec,
    tensor_file::{TensorFileError, check_parameters},
};

pub use self::{clipping::ClippingError, loss::cross_entropy_sum, tape::Tape};
pub(crate) use self::{
    dense::Dense,
    kernels::{fractions, with_elements},
    loss::softmax_rows,
};
use self::{
    kernels::AddScaled,
    layer::{Recording, Spans, linear},
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
    layers: Vec<LinearLayer>,
}

/// One fully connected layer and its place in the flat parameter vector.
struct LinearLayer {
    weight: Var,
    bias: Var,
    weight_span: Range<usize>,
    bias_span: Range<usize>,
}

impl Model {
    /// Builds a model from its flat parameters, in the order of [`ModelSpec::tensors`].
    ///
    /// # Errors
    /// [`ModelError`] for impossible sizes, a wrong number of parameters or a non-finite one.
    pub fn new(spec: &ModelSpec, parameters: &[f32]) -> Result<Self, ModelError> {
        check_parameters(spec, parameters)?;
        let mut layers = Vec::new();
        let mut offset = 0;
        let mut next = |shape: &[usize]| -> Result<(Var, Range<usize>), ModelError> {
            let span = offset..offset + shape.iter().product::<usize>();
            offset = span.end;
            let tensor = Tensor::from_slice(&parameters[span.clone()], shape, &Device::Cpu)?;
            Ok((Var::from_tensor(&tensor)?, span))
        };
        let ModelSpec::Mlp(mlp) = spec;
        for (inputs, outputs) in mlp.layers() {
            let (weight, weight_span) = next(&[outputs, inputs])?;
            let (bias, bias_span) = next(&[outputs])?;
            layers.push(LinearLayer { weight, bias, weight_span, bias_span });
        }
        Ok(Self { spec: spec.clone(), layers })
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
        let mut values = with_elements(&self.run(inputs, None)?, <[f32]>::to_vec)?;
        softmax_rows(&mut values, self.spec.num_classes());
        Ok(values)
    }

    /// The flat parameters, in the order of [`ModelSpec::tensors`].
    ///
    /// # Errors
    /// The tensor library's.
    pub fn parameters(&self) -> Result<Vec<f32>, ModelError> {
        let mut parameters = Vec::with_capacity(self.spec.num_parameters());
        for layer in &self.layers {
            for variable in [&layer.weight, &layer.bias] {
                with_elements(variable, |values| parameters.extend_from_slice(values))?;
            }
        }
        Ok(parameters)
    }

    /// Computes the logits `[n, classes]`; with a tape, the backward pass of a loss on them records
    /// there what the gradients of all parameters need.
    ///
    /// # Errors
    /// The tensor library's, for inputs of another width.
    pub fn run(&self, inputs: &Tensor, tape: Option<&Tape>) -> candle_core::Result<Tensor> {
        let mut hidden = inputs.clone();
        for index in 0..self.layers.len() {
            hidden = self.run_layer(index, &hidden, self.has_relu(index), tape)?;
        }
        Ok(hidden)
    }

    /// One layer; without a tape its parameters are constants.
    pub(crate) fn run_layer(
        &self,
        index: usize,
        inputs: &Tensor,
        relu: bool,
        tape: Option<&Tape>,
    ) -> candle_core::Result<Tensor> {
        let layer = &self.layers[index];
        let Some(tape) = tape else {
            let (weight, bias) = (layer.weight.detach(), layer.bias.detach());
            return linear(inputs, &weight, Some(&bias), relu, None);
        };
        let spans =
            Spans { weight: layer.weight_span.clone(), bias: Some(layer.bias_span.clone()) };
        let recording = Recording { tape: tape.clone(), spans };
        linear(inputs, &layer.weight, Some(&layer.bias), relu, Some(recording))
    }

    /// Whether a ReLU follows the layer; the last one's outputs are logits.
    pub(crate) const fn has_relu(&self, index: usize) -> bool {
        index + 1 < self.layers.len()
    }

    /// Number of linear layers.
    pub(crate) const fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Adds `scale * step` to the parameters in place.
    ///
    /// - `step`: `[num_parameters]`
    ///
    /// # Errors
    /// The tensor library's.
    ///
    /// # Panics
    /// If `step` is shorter than the model.
    pub fn add_scaled(&self, step: &[f32], scale: f32) -> candle_core::Result<()> {
        for layer in &self.layers {
            let weight = AddScaled { source: &step[layer.weight_span.clone()], scale };
            layer.weight.inplace_op1(&weight)?;
            let bias = AddScaled { source: &step[layer.bias_span.clone()], scale };
            layer.bias.inplace_op1(&bias)?;
        }
        Ok(())
    }
}

/// Adds `scale * source` to any variable in place; for parameters outside a [`Model`].
pub(crate) fn add_scaled(variable: &Var, source: &[f32], scale: f32) -> candle_core::Result<()> {
    variable.inplace_op1(&AddScaled { source, scale })
}

#[cfg(test)]
mod tests;
