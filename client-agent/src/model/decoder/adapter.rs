//! Private adapters of decoders: low-rank changes of any linear layer, in and out of PEFT folders.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tributary_protocol::{
    id::Digest,
    tensor_file::{NamedTensor, TensorFileError, write_tensors},
};

use super::{DecoderConfig, Site};
use crate::{
    durable_file::{Access, FileError, create_directory, read_bytes, write_durably},
    model::checkpoint::{SafetensorsError, read_safetensors},
};

/// File of a PEFT folder that says what the factors are.
const CONFIG: &str = "adapter_config.json";
/// File of a PEFT folder with the factors.
const WEIGHTS: &str = "adapter_model.safetensors";
/// Metadata key under which this crate's own exports name the base they were trained on.
const BASE: &str = "tributary_base";
const RANK_MAX: usize = 1024;

/// An adapter: the change `scale · B · A` of some linear layers.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderAdapter {
    rank: usize,
    alpha: f64,
    rank_stabilised: bool,
    digest: Digest,
    sites: BTreeMap<Site, LowRankFactors>,
}

/// The two factors of one layer's change.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRankFactors {
    /// `[rank, inputs]`.
    pub(crate) a: Vec<f32>,
    /// B transposed, `[rank, outputs]`: a row's change is a sum of its rows.
    pub(crate) b: Vec<f32>,
    /// Rows of both.
    pub(crate) rank: usize,
}

/// Says why a folder is not an adapter of the model.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AdapterFolderError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// `adapter_config.json` is not readable.
    #[error("adapter_config.json cannot be read")]
    Config(#[source] serde_json::Error),
    /// A kind of adapter that is not built.
    #[error("adapter_config.json: `{key}` = {found} is not supported; {known} is")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// What was given.
        found: String,
        /// What would work.
        known: &'static str,
    },
    /// The file of factors cannot be used.
    #[error("adapter_model.safetensors cannot be used")]
    Weights(#[from] SafetensorsError),
    /// A tensor that is no factor of one of the model's linear layers.
    #[error("adapter tensor {tensor:?} belongs to no linear layer of this model")]
    Unexpected {
        /// Its name.
        tensor: String,
    },
    /// A layer has only one of its factors.
    #[error("adapter tensor {tensor:?} is missing")]
    Missing {
        /// Its name.
        tensor: String,
    },
    /// A factor has another shape.
    #[error(
        "adapter tensor {tensor:?} has shape {found:?}; this model needs {expected:?}: the adapter belongs to another base"
    )]
    Shape {
        /// Its name.
        tensor: String,
        /// The shape needed.
        expected: Vec<usize>,
        /// The file's shape.
        found: Vec<usize>,
    },
    /// The adapter names another base.
    #[error("the adapter was trained on base {found}; this is base {expected}")]
    Base {
        /// This base.
        expected: Digest,
        /// The adapter's.
        found: String,
    },
    /// The file has no factors.
    #[error("adapter_model.safetensors holds no factors")]
    Empty,
    /// The factors cannot be written.
    #[error("the factors cannot be written")]
    Write(#[from] TensorFileError),
}

/// The keys of `adapter_config.json` that matter, as PEFT writes them.
#[derive(Debug, Serialize, Deserialize)]
struct ConfigFile {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    target_modules: serde_json::Value,
    #[serde(default)]
    task_type: Option<String>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default = "none")]
    bias: String,
    #[serde(default)]
    rank_pattern: HashMap<String, serde_json::Value>,
    #[serde(default)]
    alpha_pattern: HashMap<String, serde_json::Value>,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
}

fn none() -> String {
    "none".to_owned()
}

impl LowRankFactors {
    /// Takes A `[rank, inputs]` and B transposed, `[rank, outputs]`.
    #[must_use]
    pub const fn new(a: Vec<f32>, b: Vec<f32>, rank: usize) -> Self {
        Self { a, b, rank }
    }

    /// A `[rank, inputs]` and B `[outputs, rank]` as the tensor library takes them.
    pub(super) fn tensors(&self) -> candle_core::Result<(Tensor, Tensor)> {
        let shape = |values: &[f32]| (self.rank, values.len() / self.rank);
        let a = Tensor::from_slice(&self.a, shape(&self.a), &Device::Cpu)?;
        let b = Tensor::from_slice(&self.b, shape(&self.b), &Device::Cpu)?;
        Ok((a, b.t()?.contiguous()?))
    }
}

impl DecoderAdapter {
    /// Makes an adapter of factors.
    #[must_use]
    pub fn new(rank: usize, alpha: f64, sites: BTreeMap<Site, LowRankFactors>) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(&alpha.to_le_bytes());
        for (site, factors) in &sites {
            hash.update(site.to_string().as_bytes());
            for value in factors.a.iter().chain(&factors.b) {
                hash.update(&value.to_le_bytes());
            }
        }
        let digest = Digest::of(hash.finalize().as_bytes());
        Self { rank, alpha, rank_stabilised: false, digest, sites }
    }

    /// Reads a PEFT folder.
    ///
    /// - `base`: the digest of the checkpoint; compared where the adapter names one
    ///
    /// # Errors
    /// [`AdapterFolderError`] naming the file, key or tensor.
    pub fn open(
        directory: &Path,
        config: &DecoderConfig,
        base: Digest,
    ) -> Result<Self, AdapterFolderError> {
        let text = read_bytes(&directory.join(CONFIG))?;
        let file: ConfigFile = serde_json::from_slice(&text).map_err(AdapterFolderError::Config)?;
        file.check()?;
        let bytes = read_bytes(&directory.join(WEIGHTS))?;
        let found = read_safetensors(&bytes)?;
        if let Some(named) = found.metadata.get(BASE).filter(|named| **named != base.to_string()) {
            return Err(AdapterFolderError::Base { expected: base, found: named.clone() });
        }
        let mut tensors = found.tensors;
        let mut sites = BTreeMap::new();
        for site in config.sites() {
            let [a_name, b_name] = names(site);
            if !tensors.contains_key(&a_name) && !tensors.contains_key(&b_name) {
                continue;
            }
            let (inputs, outputs) = config.sizes(site.projection);
            let mut take = |name: String, expected: Vec<usize>| match tensors.remove(&name) {
                Some(tensor) if tensor.shape == expected => Ok(tensor.values),
                Some(tensor) => {
                    let found = tensor.shape;
                    Err(AdapterFolderError::Shape { tensor: name, expected, found })
                }
                None => Err(AdapterFolderError::Missing { tensor: name }),
            };
            let a = take(a_name, vec![file.r, inputs])?;
            let b = transposed(&take(b_name, vec![outputs, file.r])?, file.r);
            sites.insert(site, LowRankFactors { a, b, rank: file.r });
        }
        if let Some(tensor) = tensors.into_keys().min() {
            return Err(AdapterFolderError::Unexpected { tensor });
        }
        if sites.is_empty() {
            return Err(AdapterFolderError::Empty);
        }
        let digest = Digest::of(&[text, bytes].concat());
        let rank_stabilised = file.use_rslora;
        Ok(Self { rank: file.r, alpha: file.lora_alpha, rank_stabilised, digest, sites })
    }

    /// Writes a PEFT folder that names its base.
    ///
    /// # Errors
    /// [`AdapterFolderError`] naming the file.
    pub fn save(&self, directory: &Path, base: Digest) -> Result<(), AdapterFolderError> {
        create_directory(directory)?;
        let mut tensors = Vec::new();
        for (&site, factors) in &self.sites {
            let [a_name, b_name] = names(site);
            let (inputs, outputs) = (factors.a.len() / self.rank, factors.b.len() / self.rank);
            let shape = vec![self.rank, inputs];
            tensors.push(NamedTensor { name: a_name, shape, values: factors.a.clone() });
            let (shape, values) = (vec![outputs, self.rank], transposed(&factors.b, outputs));
            tensors.push(NamedTensor { name: b_name, shape, values });
        }
        let metadata = HashMap::from([(BASE.to_owned(), base.to_string())]);
        let bytes = write_tensors(&tensors, Some(metadata))?;
        write_durably(&directory.join(WEIGHTS), &bytes, Access::Owner)?;
        let mut modules: Vec<&str> = self
            .sites
            .keys()
            .filter_map(|site| site.projection.path().split('.').next_back())
            .collect();
        modules.sort_unstable();
        modules.dedup();
        let file = ConfigFile {
            peft_type: "LORA".to_owned(),
            r: self.rank,
            lora_alpha: self.alpha,
            target_modules: modules.into(),
            task_type: Some("CAUSAL_LM".to_owned()),
            use_rslora: self.rank_stabilised,
            use_dora: false,
            fan_in_fan_out: false,
            bias: none(),
            rank_pattern: HashMap::new(),
            alpha_pattern: HashMap::new(),
            modules_to_save: None,
        };
        let text = serde_json::to_vec_pretty(&file).map_err(AdapterFolderError::Config)?;
        Ok(write_durably(&directory.join(CONFIG), &text, Access::Owner)?)
    }

    /// The factors of a layer, if the adapter changes it.
    #[must_use]
    pub fn factors(&self, site: Site) -> Option<&LowRankFactors> {
        self.sites.get(&site)
    }

    /// What the product of the factors is multiplied with.
    #[must_use]
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rank_stabilised { rank.sqrt() } else { rank }) as f32
    }

    /// Names the content: its configuration and factors.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }
}

impl ConfigFile {
    fn check(&self) -> Result<(), AdapterFolderError> {
        let refusals = [
            ("peft_type", self.peft_type != "LORA", self.peft_type.clone(), "LORA"),
            ("r", !(1..=RANK_MAX).contains(&self.r), self.r.to_string(), "1 to 1024"),
            ("lora_alpha", !self.lora_alpha.is_finite(), self.lora_alpha.to_string(), "a number"),
            ("use_dora", self.use_dora, "true".to_owned(), "false"),
            ("fan_in_fan_out", self.fan_in_fan_out, "true".to_owned(), "false"),
            ("bias", self.bias != "none", self.bias.clone(), "none"),
            ("rank_pattern", !self.rank_pattern.is_empty(), "a table".to_owned(), "one rank"),
            ("alpha_pattern", !self.alpha_pattern.is_empty(), "a table".to_owned(), "one alpha"),
            (
                "modules_to_save",
                self.modules_to_save.as_ref().is_some_and(|modules| !modules.is_empty()),
                "a list".to_owned(),
                "null",
            ),
        ];
        match refusals.into_iter().find(|(_, refused, ..)| *refused) {
            Some((key, _, found, known)) => {
                Err(AdapterFolderError::Unsupported { key, found, known })
            }
            None => Ok(()),
        }
    }
}

fn names(site: Site) -> [String; 2] {
    ["lora_A", "lora_B"].map(|part| format!("base_model.model.{site}.{part}.weight"))
}

/// Rows of `width` elements to columns.
fn transposed(values: &[f32], width: usize) -> Vec<f32> {
    (0..width).flat_map(|column| values.iter().skip(column).step_by(width).copied()).collect()
}
