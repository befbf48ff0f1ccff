//! Safetensors files of any float type, single or in shards, as f32.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use thiserror::Error;
use tributary_protocol::id::Digest;

use super::CheckpointError;
use crate::{
    durable_file::read_bytes,
    model::decoder::{DecoderConfig, Weights},
};

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

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
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
        let data = view.data();
        let values: Vec<f32> = match view.dtype() {
            Dtype::F32 => {
                data.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
            }
            Dtype::BF16 => data
                .as_chunks::<2>()
                .0
                .iter()
                .map(|&bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16))
                .collect(),
            Dtype::F16 => data
                .as_chunks::<2>()
                .0
                .iter()
                .map(|&bytes| half::f16::from_le_bytes(bytes).to_f32())
                .collect(),
            other => {
                return Err(SafetensorsError::Dtype { tensor: name, found: format!("{other:?}") });
            }
        };
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let value = values[index];
            return Err(SafetensorsError::NonFinite { tensor: name, index, value });
        }
        tensors.insert(name, StoredTensor { shape: view.shape().to_vec(), values });
    }
    Ok(SafetensorsFile { tensors, metadata })
}

/// Reads the parameters of a decoder from a folder, one shard in memory at a time.
///
/// Returns them with the digest of configuration and files.
pub(super) fn read(
    directory: &Path,
    config: &DecoderConfig,
    config_text: &[u8],
) -> Result<(Weights, Digest), CheckpointError> {
    let wanted: HashMap<String, Vec<usize>> = config.tensors().into_iter().collect();
    let mut digests = Digest::of(config_text).as_bytes().to_vec();
    let mut weights = Weights::new();
    for path in files(directory)? {
        let bytes = read_bytes(&path)?;
        digests.extend_from_slice(Digest::of(&bytes).as_bytes());
        let file = read_safetensors(&bytes)
            .map_err(|source| CheckpointError::Weights { path: path.clone(), source })?;
        for (tensor, StoredTensor { shape: found, values }) in file.tensors {
            let Some(expected) = wanted.get(&tensor) else {
                // Old exports hold the rotary frequencies, and a copy of a tied head.
                let derived = tensor.ends_with("rotary_emb.inv_freq")
                    || (config.tied && tensor == "lm_head.weight");
                if derived {
                    continue;
                }
                return Err(CheckpointError::Unexpected { path, tensor });
            };
            if *expected != found {
                let expected = expected.clone();
                return Err(CheckpointError::Shape { path, tensor, expected, found });
            }
            if weights.insert(tensor.clone(), values).is_some() {
                return Err(CheckpointError::Twice { path, tensor });
            }
        }
    }
    for (tensor, _) in config.tensors() {
        if !weights.contains_key(&tensor) {
            return Err(CheckpointError::Missing { directory: directory.to_owned(), tensor });
        }
    }
    Ok((weights, Digest::of(&digests)))
}

/// The files with weights, in the order of their names.
fn files(directory: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let single = directory.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let path = directory.join("model.safetensors.index.json");
    if !path.exists() {
        return Err(CheckpointError::NoWeights { directory: directory.to_owned() });
    }
    let index: Index = serde_json::from_slice(&read_bytes(&path)?)
        .map_err(|source| CheckpointError::Index { path: path.clone(), source })?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    let outside =
        |name: &&String| Path::new(name).file_name().is_none_or(|file| file != name.as_str());
    if let Some(name) = names.iter().find(outside) {
        return Err(CheckpointError::ShardName { path, name: name.clone() });
    }
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}
