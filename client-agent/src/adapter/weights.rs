//! Adapters in and out of safetensors files, with the tensor names of PEFT.

use std::collections::HashMap;

use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use tributary_protocol::{
    id::Digest,
    model::ModelSpec,
    tensor_file::{NamedTensor, TensorFileError, read_tensors, write_tensors},
};

use super::{Adapter, AdapterError, LowRank};
use crate::model::peft::names;

/// The metadata key; one key only, as the order of several is not fixed in the file.
const DESCRIPTION: &str = "tributary_adapter";
const RANK_MAX: usize = 1024;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    rank: usize,
    alpha: f64,
    base: Digest,
}

impl Adapter {
    /// Writes the adapter; equal adapters give equal bytes.
    ///
    /// # Errors
    /// [`AdapterError::Model`] if it does not fit `spec`.
    pub fn to_safetensors(&self, spec: &ModelSpec) -> Result<Vec<u8>, AdapterError> {
        self.check_shapes(spec)?;
        let tensors = self.tensors(spec);
        let description = Description { rank: self.rank, alpha: self.alpha, base: self.base };
        let text = serde_json::to_string(&description)
            .map_err(|_| AdapterError::Metadata { field: DESCRIPTION })?;
        let metadata = HashMap::from([(DESCRIPTION.to_owned(), text)]);
        Ok(write_tensors(&tensors, Some(metadata))?)
    }

    /// The factors by the names that PEFT gives them.
    pub(super) fn tensors(&self, spec: &ModelSpec) -> Vec<NamedTensor> {
        let mut tensors = Vec::new();
        for (site, layer) in self.changes(spec) {
            let [a, b] = names(&site.module);
            let shape = vec![self.rank, site.inputs];
            tensors.push(NamedTensor { name: a, shape, values: layer.a.clone() });
            let shape = vec![site.outputs, self.rank];
            tensors.push(NamedTensor { name: b, shape, values: layer.b.clone() });
        }
        tensors
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
        let sites = spec.linear_sites();
        // A layer that is changed has both factors; one with neither is not changed.
        let is_changed =
            |module: &str| names(module).iter().any(|name| header.info(name).is_some());
        let changed: Vec<bool> = sites.iter().map(|site| is_changed(&site.module)).collect();
        let wanted: Vec<(String, Vec<usize>)> = sites
            .iter()
            .zip(&changed)
            .filter(|(_, changed)| **changed)
            .flat_map(|(site, _)| {
                let [a, b] = names(&site.module);
                [(a, vec![rank, site.inputs]), (b, vec![site.outputs, rank])]
            })
            .collect();
        let wanted: Vec<(&str, &[usize])> =
            wanted.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
        let mut tensors = read_tensors(&wanted, bytes)?.into_iter();
        let mut next = || Some(LowRank { a: tensors.next()?, b: tensors.next()? });
        let layers =
            changed.into_iter().map(|changed| if changed { next() } else { None }).collect();
        Ok(Self { rank, alpha, base, layers })
    }
}
