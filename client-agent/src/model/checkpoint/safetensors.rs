//! Every tensor of one safetensors file, as f32.

use std::collections::HashMap;

use safetensors::SafeTensors;
use thiserror::Error;
use tributary_protocol::checkpoint::floats;

/// The tensors of a file.
#[derive(Debug)]
pub struct SafetensorsFile {
    /// By name.
    pub tensors: HashMap<String, StoredTensor>,
    /// The file's notes.
    pub metadata: HashMap<String, String>,
}

/// One tensor of a file.
#[derive(Debug)]
pub struct StoredTensor {
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub values: Vec<f32>,
}

/// Says why bytes are not usable tensors.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SafetensorsError {
    /// Not a safetensors file, or cut short.
    #[error("not a readable safetensors file")]
    Format(#[from] safetensors::SafeTensorError),
    /// A tensor of another type.
    #[error("tensor {tensor:?} holds {found}; F32, F16 and BF16 are known")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// An element is NaN or infinite.
    #[error("tensor {tensor:?} holds {value} at element {index}; parameters must be finite")]
    NonFinite {
        /// The tensor.
        tensor: String,
        /// Element within it, row-major.
        index: usize,
        /// The value.
        value: f32,
    },
}

/// Reads every tensor of a file.
///
/// # Errors
/// [`SafetensorsError`] naming the tensor.
pub fn read_safetensors(bytes: &[u8]) -> Result<SafetensorsFile, SafetensorsError> {
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let mut tensors = HashMap::new();
    for (name, view) in SafeTensors::deserialize(bytes)?.tensors() {
        let Some(values) = floats(view.dtype(), view.data()) else {
            let found = format!("{:?}", view.dtype());
            return Err(SafetensorsError::Dtype { tensor: name, found });
        };
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let value = values[index];
            return Err(SafetensorsError::NonFinite { tensor: name, index, value });
        }
        tensors.insert(name, StoredTensor { shape: view.shape().to_vec(), values });
    }
    Ok(SafetensorsFile { tensors, metadata })
}
