//! Named tensors in safetensors files, the form in which models are stored and travel.
//!
//! Writing is deterministic: equal values give equal bytes, so a file's digest names its content.

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use thiserror::Error;

use crate::model::ModelSpec;

/// Says why a file does not hold the tensors that were expected.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TensorFileError {
    /// The bytes are not a safetensors file.
    #[error("not a readable safetensors file")]
    Unreadable(#[source] safetensors::SafeTensorError),
    /// A tensor is not in the file.
    #[error("tensor {tensor:?} is missing")]
    Missing {
        /// Its name.
        tensor: String,
    },
    /// The file holds a tensor that was not expected.
    #[error("tensor {tensor:?} does not belong to this model")]
    Unexpected {
        /// Its name.
        tensor: String,
    },
    /// A tensor has another shape or element type.
    #[error("tensor {tensor:?} is {found}; {expected} is needed")]
    Form {
        /// Its name.
        tensor: String,
        /// Type and shape needed.
        expected: String,
        /// Type and shape in the file.
        found: String,
    },
    /// An element is NaN or infinite.
    #[error("tensor {tensor:?} holds {value} at element {index}; all values must be finite")]
    NonFinite {
        /// Name of the tensor.
        tensor: String,
        /// Element within it, row-major.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The number of values is not the model's number of parameters.
    #[error("{found} values were given for a model of {expected} parameters")]
    Count {
        /// Parameters of the model.
        expected: usize,
        /// Values given.
        found: usize,
    },
}

/// Writes the flat parameters of a model.
///
/// - `parameters`: shape `[num_parameters]`, in the order of [`ModelSpec::tensors`]
///
/// # Errors
/// [`TensorFileError::Count`] or [`TensorFileError::NonFinite`].
pub fn write(spec: &ModelSpec, parameters: &[f32]) -> Result<Vec<u8>, TensorFileError> {
    let expected = spec.num_parameters();
    if parameters.len() != expected {
        return Err(TensorFileError::Count { expected, found: parameters.len() });
    }
    let mut rest = parameters;
    let mut encoded = Vec::new();
    for tensor in spec.tensors() {
        let (values, tail) = rest.split_at(tensor.num_elements());
        rest = tail;
        require_finite(&tensor.name, values)?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        encoded.push((tensor.name, tensor.shape, bytes));
    }
    let views = encoded
        .iter()
        .map(|(name, shape, bytes)| {
            Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(TensorFileError::Unreadable)?;
    safetensors::serialize(views, None).map_err(TensorFileError::Unreadable)
}

/// Reads the flat parameters of a model: every tensor, no other, all finite.
///
/// # Errors
/// [`TensorFileError`] naming the tensor.
pub fn read(spec: &ModelSpec, bytes: &[u8]) -> Result<Vec<f32>, TensorFileError> {
    let file = SafeTensors::deserialize(bytes).map_err(TensorFileError::Unreadable)?;
    let tensors = spec.tensors();
    if let Some(name) =
        file.names().into_iter().find(|name| tensors.iter().all(|t| t.name != **name))
    {
        return Err(TensorFileError::Unexpected { tensor: name.to_owned() });
    }
    let mut parameters = Vec::with_capacity(spec.num_parameters());
    for tensor in tensors {
        let view = file
            .tensor(&tensor.name)
            .map_err(|_| TensorFileError::Missing { tensor: tensor.name.clone() })?;
        if view.dtype() != Dtype::F32 || view.shape() != tensor.shape {
            let expected = format!("F32 {:?}", tensor.shape);
            let found = format!("{:?} {:?}", view.dtype(), view.shape());
            return Err(TensorFileError::Form { tensor: tensor.name, expected, found });
        }
        let (words, _) = view.data().as_chunks::<4>();
        let start = parameters.len();
        parameters.extend(words.iter().map(|&word| f32::from_le_bytes(word)));
        require_finite(&tensor.name, &parameters[start..])?;
    }
    Ok(parameters)
}

fn require_finite(tensor: &str, values: &[f32]) -> Result<(), TensorFileError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(TensorFileError::NonFinite {
            tensor: tensor.to_owned(),
            index,
            value: values[index],
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MlpSpec;

    fn spec() -> ModelSpec {
        ModelSpec::Mlp(MlpSpec { inputs: 3, hidden: vec![2], classes: 2 })
    }

    #[test]
    fn parameters_round_trip_and_bytes_repeat() {
        let parameters: Vec<f32> = (0..spec().num_parameters()).map(|i| i as f32 / 7.0).collect();
        let bytes = write(&spec(), &parameters).expect("writes");
        assert_eq!(bytes, write(&spec(), &parameters).expect("writes"));
        assert_eq!(read(&spec(), &bytes).expect("reads"), parameters);
    }

    #[test]
    fn damage_is_named() {
        let mut parameters = vec![0.5; spec().num_parameters()];
        let bytes = write(&spec(), &parameters).expect("writes");
        let other = ModelSpec::Mlp(MlpSpec { inputs: 4, hidden: vec![2], classes: 2 });
        assert!(
            matches!(read(&other, &bytes), Err(TensorFileError::Form { tensor, .. }) if tensor == "layers.0.weight")
        );
        assert!(matches!(read(&spec(), &bytes[..40]), Err(TensorFileError::Unreadable(_))));
        assert!(matches!(write(&spec(), &parameters[1..]), Err(TensorFileError::Count { .. })));
        parameters[6] = f32::NAN;
        assert!(
            matches!(write(&spec(), &parameters), Err(TensorFileError::NonFinite { tensor, index: 0, .. }) if tensor == "layers.0.bias")
        );
    }
}
