//! Named tensors in safetensors files, the form in which models and adapters are stored and travel.
//!
//! Writing is deterministic: equal values give equal bytes, so a file's digest names its content.
//! Reading accepts exactly the tensors that are expected, and only finite `f32` values.

use std::collections::HashMap;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use thiserror::Error;

use crate::model::{ModelSpec, ModelSpecError};

/// Says why values or a file are not what was expected.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TensorFileError {
    /// The sizes of the model are not usable.
    #[error("the model cannot be built")]
    Spec(#[from] ModelSpecError),
    /// The bytes are not a safetensors file.
    #[error("not a readable safetensors file")]
    Safetensors(#[source] safetensors::SafeTensorError),
    /// A tensor is not in the file.
    #[error("tensor {tensor:?} is missing; the file has {available:?}")]
    Missing {
        /// Its name.
        tensor: String,
        /// What the file has.
        available: Vec<String>,
    },
    /// The file holds a tensor that was not expected.
    #[error("tensor {tensor:?} does not belong to this model; remove it or name the right model")]
    Unexpected {
        /// Its name.
        tensor: String,
    },
    /// A tensor has another shape.
    #[error("tensor {tensor:?} has shape {found:?}; the model needs {expected:?}")]
    Shape {
        /// Its name.
        tensor: String,
        /// The shape needed.
        expected: Vec<usize>,
        /// The file's shape.
        found: Vec<usize>,
    },
    /// A tensor holds another type than f32.
    #[error("tensor {tensor:?} holds {found}; only F32 is supported, convert the file")]
    Dtype {
        /// Its name.
        tensor: String,
        /// The file's type.
        found: String,
    },
    /// An element is NaN or infinite.
    #[error("tensor {tensor:?} holds {value} at element {index}; parameters must be finite")]
    NonFinite {
        /// Name of the tensor.
        tensor: String,
        /// Element within it, row-major.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The parameter vector has the wrong length.
    #[error("{found} parameters given for a model of {expected}")]
    ParameterCount {
        /// Parameters of the model.
        expected: usize,
        /// Parameters given.
        found: usize,
    },
}

/// A tensor to write: its name, shape and row-major elements.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Its name.
    pub name: String,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its elements.
    pub values: Vec<f32>,
}

/// Writes the flat parameters of a model.
///
/// - `parameters`: shape `[num_parameters]`, in the order of [`ModelSpec::tensors`]
///
/// # Errors
/// [`TensorFileError`] for a wrong number of parameters or a non-finite one.
pub fn write(spec: &ModelSpec, parameters: &[f32]) -> Result<Vec<u8>, TensorFileError> {
    check_parameters(spec, parameters)?;
    let mut rest = parameters;
    let mut tensors = Vec::new();
    for tensor in spec.tensors() {
        let (values, tail) = rest.split_at(tensor.num_elements());
        tensors.push(NamedTensor {
            name: tensor.name,
            shape: tensor.shape,
            values: values.to_vec(),
        });
        rest = tail;
    }
    write_tensors(&tensors, None)
}

/// Reads the flat parameters of a model: every tensor, no other, all finite.
///
/// # Errors
/// [`TensorFileError`] naming the tensor.
pub fn read(spec: &ModelSpec, bytes: &[u8]) -> Result<Vec<f32>, TensorFileError> {
    spec.validate()?;
    let tensors = spec.tensors();
    let wanted: Vec<(&str, &[usize])> =
        tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice())).collect();
    Ok(read_tensors(&wanted, bytes)?.concat())
}

/// Checks the length of a parameter vector and that each value is finite.
///
/// # Errors
/// [`TensorFileError`] naming the tensor and element.
pub fn check_parameters(spec: &ModelSpec, parameters: &[f32]) -> Result<(), TensorFileError> {
    spec.validate()?;
    let expected = spec.num_parameters();
    if parameters.len() != expected {
        return Err(TensorFileError::ParameterCount { expected, found: parameters.len() });
    }
    let mut rest = parameters;
    for tensor in spec.tensors() {
        let (values, tail) = rest.split_at(tensor.num_elements());
        require_finite(&tensor.name, values)?;
        rest = tail;
    }
    Ok(())
}

/// Reads exactly the wanted tensors, in the wanted order.
///
/// - `wanted`: names and shapes
///
/// # Errors
/// [`TensorFileError`] naming the tensor.
pub fn read_tensors(
    wanted: &[(&str, &[usize])],
    bytes: &[u8],
) -> Result<Vec<Vec<f32>>, TensorFileError> {
    let file = SafeTensors::deserialize(bytes).map_err(TensorFileError::Safetensors)?;
    let mut available: Vec<String> = file.names().iter().map(ToString::to_string).collect();
    available.sort_unstable();
    let unexpected =
        available.iter().find(|name| wanted.iter().all(|&(wanted, _)| wanted != name.as_str()));
    let mut tensors = Vec::with_capacity(wanted.len());
    for &(name, shape) in wanted {
        let view = file.tensor(name).map_err(|_| TensorFileError::Missing {
            tensor: name.to_owned(),
            available: available.clone(),
        })?;
        tensors.push(read_tensor(name, shape, &view)?);
    }
    match unexpected {
        Some(name) => Err(TensorFileError::Unexpected { tensor: name.clone() }),
        None => Ok(tensors),
    }
}

fn read_tensor(
    name: &str,
    shape: &[usize],
    view: &TensorView<'_>,
) -> Result<Vec<f32>, TensorFileError> {
    let tensor = || name.to_owned();
    if view.dtype() != Dtype::F32 {
        return Err(TensorFileError::Dtype {
            tensor: tensor(),
            found: format!("{:?}", view.dtype()),
        });
    }
    if view.shape() != shape {
        let (expected, found) = (shape.to_vec(), view.shape().to_vec());
        return Err(TensorFileError::Shape { tensor: tensor(), expected, found });
    }
    let (words, _) = view.data().as_chunks::<4>();
    let values: Vec<f32> = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
    require_finite(name, &values)?;
    Ok(values)
}

fn require_finite(tensor: &str, values: &[f32]) -> Result<(), TensorFileError> {
    if all_finite(values) {
        return Ok(());
    }
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => {
            let (tensor, value) = (tensor.to_owned(), values[index]);
            Err(TensorFileError::NonFinite { tensor, index, value })
        }
    }
}

/// Whether no element is NaN or infinite, many at a time.
#[must_use]
pub fn all_finite(values: &[f32]) -> bool {
    // Without a way out of the loop, which vector instructions cannot take.
    let all = |values: &[f32]| values.iter().fold(true, |all, value| all & value.is_finite());
    values.chunks(4096).all(all)
}

/// Writes tensors and free-form metadata; bytes repeat as long as there is at most one metadata key.
///
/// # Errors
/// [`TensorFileError::Safetensors`] if a shape does not fit its values.
pub fn write_tensors(
    tensors: &[NamedTensor],
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>, TensorFileError> {
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|tensor| tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let views = tensors
        .iter()
        .zip(&data)
        .map(|(tensor, data)| {
            let view = TensorView::new(Dtype::F32, tensor.shape.clone(), data);
            view.map(|view| (tensor.name.as_str(), view)).map_err(TensorFileError::Safetensors)
        })
        .collect::<Result<Vec<_>, _>>()?;
    safetensors::serialize(views, metadata).map_err(TensorFileError::Safetensors)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::MlpSpec;

    fn spec() -> ModelSpec {
        ModelSpec::Mlp(MlpSpec { inputs: 32, hidden: vec![10], classes: 25 })
    }

    fn parameters() -> Vec<f32> {
        (0..spec().num_parameters()).map(|index| (index as f32).sin()).collect()
    }

    #[test]
    fn safetensors_round_trip_and_repeat() {
        let flat = parameters();
        let bytes = write(&spec(), &flat).expect("valid");
        assert_eq!(read(&spec(), &bytes).expect("valid"), flat);
        assert_eq!(write(&spec(), &flat).expect("valid"), bytes);
    }

    #[test]
    fn files_that_are_not_the_model_are_named() {
        let named = |name: &str, shape: &[usize], value: f32| NamedTensor {
            name: name.to_owned(),
            shape: shape.to_vec(),
            values: vec![value; shape.iter().product()],
        };
        let spec = ModelSpec::Mlp(MlpSpec { inputs: 2, hidden: vec![], classes: 3 });
        let (weight, bias) = ("layers.0.weight", "layers.0.bias");
        let cases = [
            (vec![named(weight, &[3, 2], 1.0)], "\"layers.0.bias\" is missing"),
            (vec![named(weight, &[2, 3], 1.0), named(bias, &[3], 1.0)], "shape [2, 3]"),
            (
                vec![named(weight, &[3, 2], f32::NAN), named(bias, &[3], 1.0)],
                "holds NaN at element 0",
            ),
            (
                vec![
                    named(weight, &[3, 2], 1.0),
                    named(bias, &[3], 1.0),
                    named("extra", &[1], 1.0),
                ],
                "\"extra\" does not belong",
            ),
        ];
        for (tensors, wanted) in cases {
            let bytes = write_tensors(&tensors, None).expect("valid file");
            let error = read(&spec, &bytes).expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{error} lacks {wanted}");
        }
        for bytes in [&b""[..], b"GIF89a", &[0xff; 64]] {
            let error = read(&spec, bytes).expect_err("no safetensors file");
            assert!(matches!(error, TensorFileError::Safetensors(_)), "{error}");
        }
    }

    proptest! {
        #[test]
        fn damaged_files_are_errors_or_finite_parameters(
            position in 0_usize..2_600,
            value: u8,
            length in 0_usize..2_700,
        ) {
            let flat = parameters();
            let mut bytes = write(&spec(), &flat).expect("valid");
            let position = position.min(bytes.len() - 1);
            bytes[position] = value;
            bytes.truncate(length);
            if let Ok(read) = read(&spec(), &bytes) {
                prop_assert!(check_parameters(&spec(), &read).is_ok());
            }
        }
    }
}
