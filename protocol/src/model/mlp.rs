use serde::{Deserialize, Serialize};

use super::{Initialization, ModelSpecError, TensorSpec};

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

impl MlpSpec {
    /// `(inputs, outputs)` of each layer, first to last.
    #[must_use]
    pub fn layers(&self) -> Vec<(usize, usize)> {
        let mut widths = vec![self.inputs as usize];
        widths.extend(self.hidden.iter().map(|&width| width as usize));
        widths.push(self.classes as usize);
        widths.windows(2).map(|pair| (pair[0], pair[1])).collect()
    }

    pub(super) fn validate(&self) -> Result<(), ModelSpecError> {
        let sizes = std::iter::once(("inputs".to_owned(), self.inputs, 1))
            .chain(self.hidden.iter().enumerate().map(|(i, &w)| (format!("hidden[{i}]"), w, 1)))
            .chain(std::iter::once(("classes".to_owned(), self.classes, 2)));
        for (field, value, min) in sizes {
            if value < min {
                return Err(ModelSpecError::TooSmall { field, value, min });
            }
        }
        Ok(())
    }

    pub(super) fn tensors(&self) -> Vec<TensorSpec> {
        let layers = self.layers().into_iter().enumerate();
        let linear = |(index, (inputs, outputs))| {
            let start = Initialization::he(inputs);
            TensorSpec::linear(&format!("layers.{index}"), [inputs, outputs], start)
        };
        layers.flat_map(linear).collect()
    }
}
