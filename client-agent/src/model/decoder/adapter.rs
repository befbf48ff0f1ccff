//! Private adapters of decoders: low-rank changes of any linear layer, in and out of PEFT folders.

use std::{collections::BTreeMap, path::Path};

use candle_core::{Device, Tensor};
use tributary_protocol::id::Digest;

use super::{DecoderConfig, Site};
use crate::model::peft::{PeftError, PeftFactors, PeftFolder};

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
    /// [`PeftError`] naming the file, key or tensor.
    pub fn open(directory: &Path, config: &DecoderConfig, base: Digest) -> Result<Self, PeftError> {
        let layers = config.sites().map(|site| {
            let (inputs, outputs) = config.sizes(site.projection);
            (site.to_string(), inputs, outputs)
        });
        let (folder, digest) = PeftFolder::open(directory, layers, base)?;
        let PeftFolder { rank, alpha, rank_stabilised, factors } = folder;
        let mut by_module: BTreeMap<String, PeftFactors> =
            factors.into_iter().map(|factors| (factors.module.clone(), factors)).collect();
        let sites = config.sites().filter_map(|site| {
            let PeftFactors { a, b, .. } = by_module.remove(&site.to_string())?;
            Some((site, LowRankFactors { a, b: transposed(&b, rank), rank }))
        });
        let sites = sites.collect();
        Ok(Self { rank, alpha, rank_stabilised, digest, sites })
    }

    /// Writes a PEFT folder that names its base.
    ///
    /// # Errors
    /// [`PeftError`] naming the file.
    pub fn save(&self, directory: &Path, base: Digest) -> Result<(), PeftError> {
        let factors = self.sites.iter().map(|(site, factors)| {
            let outputs = factors.b.len() / self.rank;
            let (a, b) = (factors.a.clone(), transposed(&factors.b, outputs));
            PeftFactors { module: site.to_string(), a, b }
        });
        let folder = PeftFolder {
            rank: self.rank,
            alpha: self.alpha,
            rank_stabilised: self.rank_stabilised,
            factors: factors.collect(),
        };
        folder.save(directory, base, Some("CAUSAL_LM"))
    }

    /// The factors of a layer, if the adapter changes it.
    #[must_use]
    pub fn factors(&self, site: Site) -> Option<&LowRankFactors> {
        self.sites.get(&site)
    }

    /// Rows of every factor A.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) const fn rank(&self) -> usize {
        self.rank
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

/// Rows of `width` elements to columns.
fn transposed(values: &[f32], width: usize) -> Vec<f32> {
    (0..width).flat_map(|column| values.iter().skip(column).step_by(width).copied()).collect()
}
