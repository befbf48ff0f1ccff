//! Models over the tensor library: built from a [`ModelSpec`] and one flat parameter vector.

mod clipping;
mod kernels;
pub mod layer;
mod loss;
mod tape;
mod weights;

use std::ops::Range;

use candle_core::{Device, Tensor, Var};
use thiserror::Error;
use tributary_protocol::model::{ModelSpec, ModelSpecError};

pub use self::{
    clipping::ClippingError,
    loss::cross_entropy_sum,
    tape::Tape,
    weights::{parameters_from_safetensors, parameters_to_safetensors},
};
use self::{
    kernels::AddScaled,
    layer::{Recording, Spans, linear},
};
pub(crate) use self::{
    kernels::with_elements,
    loss::softmax_rows,
    weights::{NamedTensor, read_tensors, write_tensors},
};

/// Says why parameters are not a model.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The sizes of the model are not usable.
    #[error("the model cannot be built")]
    Spec(#[from] ModelSpecError),
    /// The parameter vector has the wrong length.
    #[error("{found} parameters given for a model of {expected}")]
    ParameterCount {
        /// Parameters of the model.
        expected: usize,
        /// Parameters given.
        found: usize,
    },
    /// A parameter is NaN or infinite.
    #[error("tensor {tensor:?} holds {value} at element {index}; parameters must be finite")]
    NonFinite {
        /// Name of the tensor.
        tensor: String,
        /// Element within it, row-major.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The bytes are not a safetensors file.
    #[error("not a readable safetensors file")]
    Safetensors(#[source] safetensors::SafeTensorError),
    /// A tensor of the model is not in the file.
    #[error("tensor {tensor:?} is missing; the file has {available:?}")]
    MissingTensor {
        /// Name of the tensor.
        tensor: String,
        /// What the file has.
        available: Vec<String>,
    },
    /// A tensor of the file is not in the model.
    #[error("tensor {tensor:?} does not belong to this model; remove it or name the right model")]
    UnexpectedTensor {
        /// Name of the tensor.
        tensor: String,
    },
    /// A tensor has another shape than the model's.
    #[error("tensor {tensor:?} has shape {found:?}; the model needs {expected:?}")]
    Shape {
        /// Name of the tensor.
        tensor: String,
        /// The model's shape.
        expected: Vec<usize>,
        /// The file's shape.
        found: Vec<usize>,
    },
    /// A tensor holds another type than f32.
    #[error("tensor {tensor:?} holds {found}; only F32 is supported, convert the file")]
    Dtype {
        /// Name of the tensor.
        tensor: String,
        /// The file's type.
        found: String,
    },
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

/// Checks the length of a parameter vector and that each value is finite.
///
/// # Errors
/// [`ModelError`] naming the tensor and element.
pub fn check_parameters(spec: &ModelSpec, parameters: &[f32]) -> Result<(), ModelError> {
    spec.validate()?;
    let expected = spec.num_parameters();
    if parameters.len() != expected {
        return Err(ModelError::ParameterCount { expected, found: parameters.len() });
    }
    let Some(position) = parameters.iter().position(|value| !value.is_finite()) else {
        return Ok(());
    };
    let mut start = 0;
    for tensor in spec.tensors() {
        let end = start + tensor.num_elements();
        if position < end {
            let (index, value) = (position - start, parameters[position]);
            return Err(ModelError::NonFinite { tensor: tensor.name, index, value });
        }
        start = end;
    }
    unreachable!("the tensors cover every parameter")
}

/// Adds `scale * source` to any variable in place; for parameters outside a [`Model`].
pub(crate) fn add_scaled(variable: &Var, source: &[f32], scale: f32) -> candle_core::Result<()> {
    variable.inplace_op1(&AddScaled { source, scale })
}

#[cfg(test)]
mod tests;
