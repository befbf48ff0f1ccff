//! Adapters in and out of safetensors files, with the tensor names of PEFT.

use std::collections::HashMap;

use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use tributary_protocol::{
    id::Digest,
    model::ModelSpec,
    tensor_file::{NamedTensor, TensorFileError, read_tensors, write_tensors},
};

use super::{Adapter, AdapterError, LowRank, lora::layer_sizes};

/// The metadata key; one key only, as the order of several is not fixed in the file.
const DESCRIPTION: &str = "tributary_adapter";
const RANK_MAX: usize = 256;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    rank: usize,
    alpha: f64,
    base: Digest,
}

fn names(layer: usize) -> [String; 2] {
    ["lora_A", "lora_B"].map(|part| format!("base_model.model.layers.{layer}.{part}.weight"))
}

impl Adapter {
    /// Writes the adapter; equal adapters give equal bytes.
    ///
    /// # Errors
    /// [`AdapterError::Model`] if it does not fit `spec`.
    pub fn to_safetensors(&self, spec: &ModelSpec) -> Result<Vec<u8>, AdapterError> {
        self.check_shapes(spec)?;
        let mut tensors = Vec::new();
        for (index, (layer, (inputs, outputs))) in
            self.layers.iter().zip(layer_sizes(spec)).enumerate()
        {
            let [a, b] = names(index);
            let shape = vec![self.rank, inputs];
            tensors.push(NamedTensor { name: a, shape, values: layer.a.clone() });
            let shape = vec![outputs, self.rank];
            tensors.push(NamedTensor { name: b, shape, values: layer.b.clone() });
        }
        let description = Description { rank: self.rank, alpha: self.alpha, base: self.base };
        let text = serde_json::to_string(&description)
            .map_err(|_| AdapterError::Metadata { field: DESCRIPTION })?;
        let metadata = HashMap::from([(DESCRIPTION.to_owned(), text)]);
        Ok(write_tensors(&tensors, Some(metadata))?)
    }

    /// Reads an adapter for a model.
    ///
    /// # Errors
    /// [`AdapterError`] for a file without description, or tensors that do not fit `spec`.
    pub fn from_safetensors(spec: &ModelSpec, bytes: &[u8]) -> Result<Self, AdapterError> {
        let (_, header) =
            SafeTensors::read_metadata(bytes).map_err(TensorFileError::Safetensors)?;
        let description = header
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get(DESCRIPTION))
            .and_then(|text| serde_json::from_str::<Description>(text).ok())
            .filter(|found| (1..=RANK_MAX).contains(&found.rank) && found.alpha.is_finite())
            .ok_or(AdapterError::Metadata { field: DESCRIPTION })?;
        let Description { rank, alpha, base } = description;
        let wanted: Vec<(String, Vec<usize>)> = layer_sizes(spec)
            .into_iter()
            .enumerate()
            .flat_map(|(index, (inputs, outputs))| {
                let [a, b] = names(index);
                [(a, vec![rank, inputs]), (b, vec![outputs, rank])]
            })
            .collect();
        let wanted: Vec<(&str, &[usize])> =
            wanted.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
        let mut tensors = read_tensors(&wanted, bytes)?.into_iter();
        let mut layers = Vec::new();
        while let (Some(a), Some(b)) = (tensors.next(), tensors.next()) {
            layers.push(LowRank { a, b });
        }
        Ok(Self { rank, alpha, base, layers })
    }
}
