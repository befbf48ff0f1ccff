//! Adapters as the PEFT library stores them: a folder with a configuration and the factors.

use std::{collections::HashMap, path::Path};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tributary_protocol::{
    id::Digest,
    tensor_file::{NamedTensor, TensorFileError, write_tensors},
};

use super::checkpoint::{SafetensorsError, read_safetensors};
use crate::durable_file::{Access, FileError, create_directory, read_bytes, write_durably};

/// File of a PEFT folder that says what the factors are.
const CONFIG: &str = "adapter_config.json";
/// File of a PEFT folder with the factors.
const WEIGHTS: &str = "adapter_model.safetensors";
/// The files of a PEFT folder.
pub(crate) const FILES: [&str; 2] = [CONFIG, WEIGHTS];
/// Metadata key under which this crate's own exports name the base they were trained on.
const BASE: &str = "tributary_base";
const RANK_MAX: usize = 1024;

/// A folder's content: one rank, and the factors of some linear layers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PeftFolder {
    pub(crate) rank: usize,
    pub(crate) alpha: f64,
    /// Whether the change is scaled by `alpha / sqrt(rank)` instead of `alpha / rank`.
    pub(crate) rank_stabilised: bool,
    pub(crate) factors: Vec<PeftFactors>,
}

/// The factors of one layer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PeftFactors {
    /// Path of the module.
    pub(crate) module: String,
    /// `[rank, inputs]`.
    pub(crate) a: Vec<f32>,
    /// `[outputs, rank]`.
    pub(crate) b: Vec<f32>,
}

/// Says why a folder is not an adapter of the model.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PeftError {
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

impl PeftFolder {
    /// Reads a folder for a model with these linear layers: `(module, inputs, outputs)`.
    ///
    /// - `base`: the digest of the model; compared where the adapter names one
    /// - returns: the content, and the digest of both files
    ///
    /// # Errors
    /// [`PeftError`] naming the file, key or tensor.
    pub(crate) fn open(
        directory: &Path,
        layers: impl IntoIterator<Item = (String, usize, usize)>,
        base: Digest,
    ) -> Result<(Self, Digest), PeftError> {
        let text = read_bytes(&directory.join(CONFIG))?;
        let file: ConfigFile = serde_json::from_slice(&text).map_err(PeftError::Config)?;
        file.check()?;
        let bytes = read_bytes(&directory.join(WEIGHTS))?;
        let found = read_safetensors(&bytes)?;
        if let Some(named) = found.metadata.get(BASE).filter(|named| **named != base.to_string()) {
            return Err(PeftError::Base { expected: base, found: named.clone() });
        }
        let mut tensors = found.tensors;
        let mut factors = Vec::new();
        for (module, inputs, outputs) in layers {
            let [a_name, b_name] = names(&module);
            if !tensors.contains_key(&a_name) && !tensors.contains_key(&b_name) {
                continue;
            }
            let mut take = |name: String, expected: Vec<usize>| match tensors.remove(&name) {
                Some(tensor) if tensor.shape == expected => Ok(tensor.values),
                Some(tensor) => {
                    let found = tensor.shape;
                    Err(PeftError::Shape { tensor: name, expected, found })
                }
                None => Err(PeftError::Missing { tensor: name }),
            };
            let a = take(a_name, vec![file.r, inputs])?;
            let b = take(b_name, vec![outputs, file.r])?;
            factors.push(PeftFactors { module, a, b });
        }
        if let Some(tensor) = tensors.into_keys().min() {
            return Err(PeftError::Unexpected { tensor });
        }
        if factors.is_empty() {
            return Err(PeftError::Empty);
        }
        let digest = Digest::of(&[text, bytes].concat());
        let (rank, alpha, rank_stabilised) = (file.r, file.lora_alpha, file.use_rslora);
        Ok((Self { rank, alpha, rank_stabilised, factors }, digest))
    }

    /// Writes a folder that names its base.
    ///
    /// - `task_type`: as PEFT calls what the model does
    ///
    /// # Errors
    /// [`PeftError`] naming the file.
    pub(crate) fn save(
        &self,
        directory: &Path,
        base: Digest,
        task_type: Option<&str>,
    ) -> Result<(), PeftError> {
        create_directory(directory)?;
        let mut tensors = Vec::new();
        for PeftFactors { module, a, b } in &self.factors {
            let [a_name, b_name] = names(module);
            let shape = vec![self.rank, a.len() / self.rank];
            tensors.push(NamedTensor { name: a_name, shape, values: a.clone() });
            let shape = vec![b.len() / self.rank, self.rank];
            tensors.push(NamedTensor { name: b_name, shape, values: b.clone() });
        }
        let metadata = HashMap::from([(BASE.to_owned(), base.to_string())]);
        let bytes = write_tensors(&tensors, Some(metadata))?;
        write_durably(&directory.join(WEIGHTS), &bytes, Access::Owner)?;
        let mut modules: Vec<&str> =
            self.factors.iter().filter_map(|it| it.module.split('.').next_back()).collect();
        modules.sort_unstable();
        modules.dedup();
        let file = ConfigFile {
            peft_type: "LORA".to_owned(),
            r: self.rank,
            lora_alpha: self.alpha,
            target_modules: modules.into(),
            task_type: task_type.map(str::to_owned),
            use_rslora: self.rank_stabilised,
            use_dora: false,
            fan_in_fan_out: false,
            bias: none(),
            rank_pattern: HashMap::new(),
            alpha_pattern: HashMap::new(),
            modules_to_save: None,
        };
        let text = serde_json::to_vec_pretty(&file).map_err(PeftError::Config)?;
        Ok(write_durably(&directory.join(CONFIG), &text, Access::Owner)?)
    }
}

impl ConfigFile {
    fn check(&self) -> Result<(), PeftError> {
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
            Some((key, _, found, known)) => Err(PeftError::Unsupported { key, found, known }),
            None => Ok(()),
        }
    }
}

/// The names of a layer's factors.
pub(crate) fn names(module: &str) -> [String; 2] {
    ["lora_A", "lora_B"].map(|part| format!("base_model.model.{module}.{part}.weight"))
}
