//! What a model is, without any tensor library: the family, its sizes and its parameter layout.
//!
//! Both ends derive the same flat parameter order from a [`ModelSpec`], so an update is one vector
//! and the coordinator never needs the engine that trains or serves the model.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The largest number of parameters a job may federate.
pub const PARAMETERS_MAX: u64 = 1 << 31;

/// The model that a job trains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ModelSpec {
    /// Fully connected layers with ReLU between them; no hidden layer gives logistic regression.
    Mlp(MlpSpec),
}

/// Sizes of a multi-layer perceptron.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlpSpec {
    /// Number of input features.
    pub inputs: u32,
    /// Width of each hidden layer, first to last.
    #[serde(default)]
    pub hidden: Vec<u32>,
    /// Number of classes (output logits).
    pub classes: u32,
}

/// How a tensor starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Initialization {
    /// All zero.
    Zeros,
    /// Uniform in `[-bound, bound]`.
    Uniform {
        /// Half the width of the interval.
        bound: f32,
    },
}

/// One named tensor of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Name as in the safetensors file.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// How the coordinator fills it for version 0.
    pub initialization: Initialization,
}

impl TensorSpec {
    /// Number of elements.
    #[must_use]
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Says why a model cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ModelSpecError {
    /// A layer has no width, or fewer than two classes are asked for.
    #[error("model size `{field}` is {value}; it must be at least {min}")]
    TooSmall {
        /// The config key.
        field: String,
        /// What was given.
        value: u32,
        /// The least that works.
        min: u32,
    },
    /// The model has more parameters than [`PARAMETERS_MAX`].
    #[error("the model has {parameters} parameters; at most {PARAMETERS_MAX} are supported")]
    TooLarge {
        /// Number of parameters asked for.
        parameters: u128,
    },
}

impl ModelSpec {
    /// Checks that every size is usable.
    ///
    /// # Errors
    /// [`ModelSpecError`] naming the size and what would work.
    pub fn validate(&self) -> Result<(), ModelSpecError> {
        match self {
            Self::Mlp(mlp) => mlp.validate(),
        }
    }

    /// The tensors in their flat parameter order.
    #[must_use]
    pub fn tensors(&self) -> Vec<TensorSpec> {
        match self {
            Self::Mlp(mlp) => mlp.tensors(),
        }
    }

    /// Number of elements of each layer in the flat parameter order: tensors whose names differ in
    /// their last part only, as weight and bias, are one layer.
    #[must_use]
    pub fn layer_lengths(&self) -> Vec<usize> {
        let mut layers: Vec<(String, usize)> = Vec::new();
        for tensor in self.tensors() {
            let name =
                tensor.name.rsplit_once('.').map_or(tensor.name.as_str(), |(layer, _)| layer);
            match layers.last_mut() {
                Some((last, length)) if last == name => *length += tensor.num_elements(),
                _ => layers.push((name.to_owned(), tensor.num_elements())),
            }
        }
        layers.into_iter().map(|(_, length)| length).collect()
    }

    /// Total number of parameters, the dimension of a client update.
    #[must_use]
    pub fn num_parameters(&self) -> usize {
        self.tensors().iter().map(TensorSpec::num_elements).sum()
    }

    /// Number of input features.
    #[must_use]
    pub const fn num_inputs(&self) -> usize {
        match self {
            Self::Mlp(mlp) => mlp.inputs as usize,
        }
    }

    /// Number of classes.
    #[must_use]
    pub const fn num_classes(&self) -> usize {
        match self {
            Self::Mlp(mlp) => mlp.classes as usize,
        }
    }

    /// The family's name as policies and logs write it.
    #[must_use]
    pub const fn family(&self) -> &'static str {
        match self {
            Self::Mlp(_) => "mlp",
        }
    }
}

impl MlpSpec {
    /// `(inputs, outputs)` of each layer, first to last.
    #[must_use]
    pub fn layers(&self) -> Vec<(usize, usize)> {
        let mut widths = vec![self.inputs as usize];
        widths.extend(self.hidden.iter().map(|&width| width as usize));
        widths.push(self.classes as usize);
        widths.windows(2).map(|pair| (pair[0], pair[1])).collect()
    }

    fn validate(&self) -> Result<(), ModelSpecError> {
        let sizes = std::iter::once(("inputs".to_owned(), self.inputs, 1))
            .chain(self.hidden.iter().enumerate().map(|(i, &w)| (format!("hidden[{i}]"), w, 1)))
            .chain(std::iter::once(("classes".to_owned(), self.classes, 2)));
        for (field, value, min) in sizes {
            if value < min {
                return Err(ModelSpecError::TooSmall { field, value, min });
            }
        }
        let parameters = self.layers().iter().map(|&(i, o)| (i as u128 + 1) * o as u128).sum();
        if parameters > u128::from(PARAMETERS_MAX) {
            return Err(ModelSpecError::TooLarge { parameters });
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<TensorSpec> {
        let mut tensors = Vec::new();
        for (index, (inputs, outputs)) in self.layers().into_iter().enumerate() {
            // He-uniform keeps the activations' variance through ReLU layers (He et al. 2015).
            let bound = (6.0 / inputs as f32).sqrt();
            tensors.push(TensorSpec {
                name: format!("layers.{index}.weight"),
                shape: vec![outputs, inputs],
                initialization: Initialization::Uniform { bound },
            });
            tensors.push(TensorSpec {
                name: format!("layers.{index}.bias"),
                shape: vec![outputs],
                initialization: Initialization::Zeros,
            });
        }
        tensors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mlp(inputs: u32, hidden: &[u32], classes: u32) -> ModelSpec {
        ModelSpec::Mlp(MlpSpec { inputs, hidden: hidden.to_vec(), classes })
    }

    #[test]
    fn parameters_are_counted_with_biases() {
        assert_eq!(mlp(784, &[200, 200], 10).num_parameters(), 199_210);
        assert_eq!(mlp(4, &[], 3).num_parameters(), 15);
        assert_eq!(mlp(4, &[5], 3).layer_lengths(), [25, 18]);
    }

    #[test]
    fn impossible_sizes_are_named() {
        let error = mlp(4, &[8, 0], 3).validate().expect_err("zero width").to_string();
        assert!(error.contains("hidden[1]"), "{error}");
        assert!(mlp(4, &[], 1).validate().is_err());
        assert!(mlp(u32::MAX, &[u32::MAX], 10).validate().is_err());
    }
}
