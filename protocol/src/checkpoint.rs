//! Model folders as the Hugging Face hub has them, as the start of a job: what the model is, and its
//! parameters.

mod config;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use thiserror::Error;

pub use self::config::{config, read_spec};
use crate::{id::Digest, model::ModelSpec};

/// Says why a folder is not a model that a job can start from.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not the JSON that it should be.
    #[error("{} cannot be used", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A family or feature that jobs do not train.
    #[error("{}: `{key}` = {found} is not supported; {known} is", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What it says.
        found: String,
        /// What would work.
        known: &'static str,
    },
    /// An index names a file outside the folder.
    #[error("{} names the file {name:?}; shards lie in the same folder", path.display())]
    ShardName {
        /// The index.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A file of weights is damaged.
    #[error("{} is not a readable safetensors file", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// A tensor is of another type or shape.
    #[error("{}: tensor {tensor:?} is {found}; config.json makes it {expected}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What it is.
        found: String,
        /// What would work.
        expected: String,
    },
    /// There are no weights.
    #[error("{} has neither model.safetensors nor model.safetensors.index.json", directory.display())]
    NoWeights {
        /// The folder.
        directory: PathBuf,
    },
    /// A parameter is in two files.
    #[error("{} has the tensor {tensor:?} a second time", path.display())]
    Twice {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A parameter is NaN or infinite.
    #[error("{}: tensor {tensor:?} holds {value} at element {index}; parameters must be finite", path.display())]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Element within it, row-major.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A tensor that the model does not have.
    #[error("{} has the tensor {tensor:?}, which the model of config.json does not have", path.display())]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A parameter is in no file.
    #[error("{} has no tensor {tensor:?}", directory.display())]
    Missing {
        /// The folder.
        directory: PathBuf,
        /// The tensor.
        tensor: String,
    },
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Digest of the folder's `tokenizer.json`, by which tenants agree on their tokens; `None` if there
/// is no such file.
///
/// # Errors
/// [`CheckpointError::Read`] naming the file.
pub fn tokenizer_digest(directory: &Path) -> Result<Option<Digest>, CheckpointError> {
    let path = directory.join("tokenizer.json");
    if path.exists() { read(&path).map(|bytes| Some(Digest::of(&bytes))) } else { Ok(None) }
}

/// Reads the flat parameters of a model from a folder, in the order of [`ModelSpec::tensors`].
///
/// - `spec`: was checked
/// - `start`: the parameters that a new model would have, which stay where the folder has no head
///
/// # Errors
/// Those of [`read_tensors`].
pub fn read_parameters(
    directory: &Path,
    spec: &ModelSpec,
    start: Vec<f32>,
) -> Result<Vec<f32>, CheckpointError> {
    let spans: HashMap<String, std::ops::Range<usize>> = spec.spans().into_iter().collect();
    let mut parameters = start;
    read_tensors(directory, spec, |name, values| {
        parameters[spans[&name].clone()].copy_from_slice(&values);
    })?;
    Ok(parameters)
}

/// Reads the parameters of a model from a folder one by one, in any order; F16 and BF16 become F32,
/// and shards are in memory one at a time.
///
/// The classification head of an encoder may be absent, as in a model that was only pretrained.
///
/// - `spec`: was checked
/// - `take`: gets the name and the elements, row-major, of each tensor of [`ModelSpec::tensors`]
/// - returns: the digest of `config.json` and of the files with weights
///
/// # Errors
/// [`CheckpointError`] naming file and tensor.
pub fn read_tensors(
    directory: &Path,
    spec: &ModelSpec,
    mut take: impl FnMut(String, Vec<f32>),
) -> Result<Digest, CheckpointError> {
    let mut wanted: BTreeMap<String, Vec<usize>> = spec
        .tensors()
        .into_iter()
        .zip(spec.spans())
        .map(|(it, (name, _))| (name, it.shape))
        .collect();
    let all: BTreeSet<String> = wanted.keys().cloned().collect();
    let mut digests = Digest::of(&read(&directory.join("config.json"))?).as_bytes().to_vec();
    for path in files(directory)? {
        let bytes = read(&path)?;
        digests.extend_from_slice(Digest::of(&bytes).as_bytes());
        let failed = |source| CheckpointError::Safetensors { path: path.clone(), source };
        for (tensor, view) in SafeTensors::deserialize(&bytes).map_err(failed)?.tensors() {
            let Some(shape) = wanted.remove(&tensor) else {
                if all.contains(&tensor) {
                    return Err(CheckpointError::Twice { path, tensor });
                }
                if is_derived(spec, &tensor) {
                    continue;
                }
                return Err(CheckpointError::Unexpected { path, tensor });
            };
            let describe = |kind: &str, shape: &[usize]| format!("{kind} of shape {shape:?}");
            let wrong = || CheckpointError::Tensor {
                path: path.clone(),
                tensor: tensor.clone(),
                found: describe(&format!("{:?}", view.dtype()), view.shape()),
                expected: describe("F32, F16 or BF16", &shape),
            };
            if view.shape() != shape {
                return Err(wrong());
            }
            let values = floats(view.dtype(), view.data()).ok_or_else(wrong)?;
            if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                let value = values[index];
                return Err(CheckpointError::NonFinite { path, tensor, index, value });
            }
            take(tensor, values);
        }
    }
    let head =
        |name: &str| matches!(spec, ModelSpec::Encoder(_)) && name.starts_with("classifier.");
    match wanted.into_keys().find(|name| !head(name)) {
        Some(tensor) => Err(CheckpointError::Missing { directory: directory.to_owned(), tensor }),
        None => Ok(Digest::of(&digests)),
    }
}

/// Old exports hold rotary frequencies, positions, and a copy of a tied head.
fn is_derived(spec: &ModelSpec, tensor: &str) -> bool {
    let tied = matches!(spec, ModelSpec::Decoder(decoder) if decoder.tied);
    tensor.ends_with("rotary_emb.inv_freq")
        || tensor.ends_with("embeddings.position_ids")
        || (tied && tensor == "lm_head.weight")
}

/// The elements of a tensor of little-endian floats; `None` for a type other than F32, F16 and BF16.
#[must_use]
pub fn floats(dtype: Dtype, data: &[u8]) -> Option<Vec<f32>> {
    let halves = || data.as_chunks::<2>().0.iter().map(|&bytes| u16::from_le_bytes(bytes));
    Some(match dtype {
        Dtype::F32 => {
            data.as_chunks::<4>().0.iter().map(|&word| f32::from_le_bytes(word)).collect()
        }
        Dtype::BF16 => halves().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect(),
        Dtype::F16 => halves().map(half).collect(),
        _ => return None,
    })
}

/// A number of IEEE 754 binary16.
fn half(bits: u16) -> f32 {
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff));
    sign * match exponent {
        0 => fraction * 2.0_f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2.0_f32.powi(exponent - 25),
    }
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
    let index: Index = json(&path)?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    let outside =
        |name: &&String| Path::new(name).file_name().is_none_or(|file| file != name.as_str());
    match names.iter().find(outside) {
        Some(name) => Err(CheckpointError::ShardName { name: name.clone(), path }),
        None => Ok(names.into_iter().map(|name| directory.join(name)).collect()),
    }
}

fn json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, CheckpointError> {
    let text = read(path)?;
    serde_json::from_slice(&text)
        .map_err(|source| CheckpointError::Json { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    fs::read(path).map_err(|source| CheckpointError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../client-agent/tests/fixtures/language")
            .join(name)
    }

    #[test]
    fn folders_of_every_family_are_read_single_or_in_shards() {
        for (name, family) in
            [("llama", "decoder"), ("qwen2", "decoder"), ("smollm", "decoder"), ("bert", "encoder")]
        {
            let spec = read_spec(&fixture(name)).expect("known");
            spec.validate().expect("valid");
            assert_eq!(spec.family(), family);
            let start = vec![f32::NAN; spec.num_parameters()];
            let parameters = read_parameters(&fixture(name), &spec, start).expect("whole");
            assert!(parameters.iter().all(|value| value.is_finite()), "{name}");
        }
    }

    #[test]
    fn a_written_configuration_is_read_as_the_same_model() {
        for name in ["llama", "qwen2", "smollm", "bert"] {
            let spec = read_spec(&fixture(name)).expect("known");
            let directory = tempfile::tempdir().expect("temporary directory");
            let text = config(&spec).expect("a folder's family").to_string();
            fs::write(directory.path().join("config.json"), text).expect("writes");
            let again = read_spec(directory.path()).expect("known");
            // A folder may leave open what follows from the rest.
            let (again, spec) = match (again, spec) {
                (ModelSpec::Decoder(again), ModelSpec::Decoder(mut spec)) => {
                    spec.num_kv_heads = Some(spec.kv_heads() as u32);
                    spec.head_dim = Some(spec.head_width() as u32);
                    (ModelSpec::Decoder(again), ModelSpec::Decoder(spec))
                }
                pair => pair,
            };
            assert_eq!(again, spec);
        }
    }

    #[test]
    fn folders_that_cannot_be_used_are_named() {
        let config = fs::read_to_string(fixture("qwen2/config.json")).expect("reads");
        for (from, to, wanted) in [
            ("Qwen2ForCausalLM", "GPT2LMHeadModel", "architectures"),
            ("\"silu\"", "\"gelu\"", "hidden_act"),
            ("{", "[", "config.json"),
            ("\"vocab_size\"", "\"vocabulary\"", "config.json"),
            ("\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"yarn\"}", "yarn"),
            ("\"use_sliding_window\": false", "\"use_sliding_window\": true", "use_sliding_window"),
            (
                "\"use_cache\": true",
                "\"quantization_config\": {\"bits\": 4}",
                "quantization_config",
            ),
        ] {
            let directory = tempfile::tempdir().expect("temporary directory");
            let text = config.replacen(from, to, 1);
            fs::write(directory.path().join("config.json"), text).expect("writes");
            let error = read_spec(directory.path()).expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{wanted}: {error}");
        }
        for (from, to, wanted) in [
            ("\"hidden_size\": 16", "\"hidden_size\": 0", "hidden_size"),
            ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "num_kv_heads"),
            ("1e-06", "-1.0", "rms_norm_eps"),
            ("1000000.0", "0.0", "rope_theta"),
            ("\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"linear\"}", "rope_scaling"),
        ] {
            let directory = tempfile::tempdir().expect("temporary directory");
            let text = config.replacen(from, to, 1);
            fs::write(directory.path().join("config.json"), text).expect("writes");
            let spec = read_spec(directory.path()).expect("a known family");
            let error = spec.validate().expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{wanted}: {error}");
        }
        let directory = tempfile::tempdir().expect("temporary directory");
        for shard in ["a.safetensors", "b.safetensors"] {
            let path = directory.path().join(shard);
            fs::copy(fixture("qwen2/model.safetensors"), path).expect("copies");
        }
        fs::write(directory.path().join("config.json"), &config).expect("writes");
        let index = br#"{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}"#;
        fs::write(directory.path().join("model.safetensors.index.json"), index).expect("writes");
        let spec = read_spec(directory.path()).expect("known");
        let twice = read_tensors(directory.path(), &spec, |_, _| {}).expect_err("twice");
        assert!(matches!(twice, CheckpointError::Twice { .. }), "{twice}");

        let (llama, qwen) = (fixture("llama"), fixture("qwen2"));
        let spec = read_spec(&llama).expect("known");
        let start = || vec![0.0; spec.num_parameters()];
        let error = read_parameters(&qwen, &spec, start()).expect_err("another model").to_string();
        assert!(
            error.contains("does not have") || error.contains("config.json makes it"),
            "{error}"
        );
        let directory = tempfile::tempdir().expect("temporary directory");
        let error =
            read_parameters(directory.path(), &spec, start()).expect_err("empty").to_string();
        assert!(error.contains("config.json"), "{error}");
        fs::copy(llama.join("config.json"), directory.path().join("config.json")).expect("copies");
        let error = read_parameters(directory.path(), &spec, start()).expect_err("no weights");
        assert!(matches!(error, CheckpointError::NoWeights { .. }), "{error}");
        let index = br#"{"weight_map": {"a": "../secret"}}"#;
        fs::write(directory.path().join("model.safetensors.index.json"), index).expect("writes");
        let error = read_parameters(directory.path(), &spec, start()).expect_err("outside");
        assert!(matches!(error, CheckpointError::ShardName { .. }), "{error}");
    }

    #[test]
    fn half_precision_numbers_are_exact() {
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x3555, 0.333_251_95),
            (0x0001, 5.960_464_5e-8),
            (0x7bff, 65504.0),
            (0x7c00, f32::INFINITY),
        ] {
            assert_eq!(half(bits), value);
        }
        assert!(half(0x7e00).is_nan());
    }
}
