//! Adapters in and out of PEFT folders.

use std::path::Path;

use tributary_protocol::{
    id::Digest,
    model::{LinearSite, ModelSpec},
};

use super::{Adapter, AdapterError, LowRank};
use crate::model::peft::{PeftFactors, PeftFolder};

impl Adapter {
    /// Reads a PEFT folder as an adapter for a base; layers that it does not name stay unchanged.
    ///
    /// # Errors
    /// [`AdapterError::Peft`] naming the file, key or tensor.
    pub fn import(directory: &Path, spec: &ModelSpec, base: Digest) -> Result<Self, AdapterError> {
        let sites = spec.linear_sites();
        let layers = sites.iter().map(|site| (site.module.clone(), site.inputs, site.outputs));
        let (folder, _) = PeftFolder::open(directory, layers, base)?;
        let PeftFolder { rank, alpha, rank_stabilised, mut factors } = folder;
        let of_site = |site: &LinearSite| {
            let at = factors.iter().position(|factors| factors.module == site.module)?;
            let PeftFactors { a, b, .. } = factors.swap_remove(at);
            Some(LowRank { a, b })
        };
        let layers = sites.iter().map(of_site).collect();
        // Both ways to scale come to a number that is divided by the rank.
        let alpha = if rank_stabilised { alpha * (rank as f64).sqrt() } else { alpha };
        Ok(Self { rank, alpha, base, layers })
    }

    /// Writes a PEFT folder that names its base.
    ///
    /// # Errors
    /// [`AdapterError`] if it does not fit `spec` or cannot be written.
    pub fn export(&self, directory: &Path, spec: &ModelSpec) -> Result<(), AdapterError> {
        self.check_shapes(spec)?;
        let factors = self.changes(spec).map(|(site, layer)| PeftFactors {
            module: site.module,
            a: layer.a.clone(),
            b: layer.b.clone(),
        });
        let folder = PeftFolder {
            rank: self.rank,
            alpha: self.alpha,
            rank_stabilised: false,
            factors: factors.collect(),
        };
        let task_type = match spec {
            ModelSpec::Mlp(_) | ModelSpec::Cnn(_) => None,
            ModelSpec::Encoder(_) => Some("SEQ_CLS"),
            ModelSpec::Decoder(_) => Some("CAUSAL_LM"),
        };
        Ok(folder.save(directory, self.base, task_type)?)
    }
}
