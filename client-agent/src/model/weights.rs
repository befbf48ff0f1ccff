//! Parameters in and out of safetensors files.

use std::collections::HashMap;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use tributary_protocol::model::ModelSpec;

use super::{ModelError, check_parameters};

/// A tensor to read or write: its name, shape and row-major elements.
pub(crate) struct NamedTensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// Reads the flat parameters of a model from a safetensors file.
///
/// # Errors
/// [`ModelError`] for a missing, extra, misshapen, mistyped or non-finite tensor.
pub fn parameters_from_safetensors(spec: &ModelSpec, bytes: &[u8]) -> Result<Vec<f32>, ModelError> {
    spec.validate()?;
    let tensors = spec.tensors();
    let wanted: Vec<(&str, &[usize])> =
        tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice())).collect();
    Ok(read_tensors(&wanted, bytes)?.concat())
}

/// Writes flat parameters as a safetensors file; equal parameters give equal bytes.
///
/// # Errors
/// [`ModelError`] for a wrong number of parameters or a non-finite one.
pub fn parameters_to_safetensors(
    spec: &ModelSpec,
    parameters: &[f32],
) -> Result<Vec<u8>, ModelError> {
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

/// Reads exactly the wanted tensors, in the wanted order.
pub(crate) fn read_tensors(
    wanted: &[(&str, &[usize])],
    bytes: &[u8],
) -> Result<Vec<Vec<f32>>, ModelError> {
    let file = SafeTensors::deserialize(bytes).map_err(ModelError::Safetensors)?;
    let mut available: Vec<String> = file.names().iter().map(ToString::to_string).collect();
    available.sort_unstable();
    let unexpected =
        available.iter().find(|name| wanted.iter().all(|&(wanted, _)| wanted != name.as_str()));
    let mut tensors = Vec::with_capacity(wanted.len());
    for &(name, shape) in wanted {
        let view = file.tensor(name).map_err(|_| ModelError::MissingTensor {
            tensor: name.to_owned(),
            available: available.clone(),
        })?;
        tensors.push(read_tensor(name, shape, &view)?);
    }
    match unexpected {
        Some(name) => Err(ModelError::UnexpectedTensor { tensor: name.clone() }),
        None => Ok(tensors),
    }
}

fn read_tensor(name: &str, shape: &[usize], view: &TensorView<'_>) -> Result<Vec<f32>, ModelError> {
    let tensor = || name.to_owned();
    if view.dtype() != Dtype::F32 {
        return Err(ModelError::Dtype { tensor: tensor(), found: format!("{:?}", view.dtype()) });
    }
    if view.shape() != shape {
        let (expected, found) = (shape.to_vec(), view.shape().to_vec());
        return Err(ModelError::Shape { tensor: tensor(), expected, found });
    }
    let (words, _) = view.data().as_chunks::<4>();
    let values: Vec<f32> = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(ModelError::NonFinite { tensor: tensor(), index, value: values[index] }),
        None => Ok(values),
    }
}

/// Writes tensors and free-form metadata.
pub(crate) fn write_tensors(
    tensors: &[NamedTensor],
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>, ModelError> {
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|tensor| tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let views = tensors
        .iter()
        .zip(&data)
        .map(|(tensor, data)| {
            let view = TensorView::new(Dtype::F32, tensor.shape.clone(), data);
            view.map(|view| (tensor.name.as_str(), view)).map_err(ModelError::Safetensors)
        })
        .collect::<Result<Vec<_>, _>>()?;
    safetensors::serialize(views, metadata).map_err(ModelError::Safetensors)
}
