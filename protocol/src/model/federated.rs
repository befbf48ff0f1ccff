//! Which part of a model is federated: the dimension of an update, where it starts, how it is merged.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{LinearSite, ModelSpec, ModelSpecError, layer_lengths};

/// What the tenants of a job train together. The rest of the base stays as it was at the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum FederatedPart {
    /// Every parameter.
    #[default]
    All,
    /// The last layer, on top of frozen features.
    Head,
    /// Low-rank changes of the linear layers, merged into the base when a round commits.
    Lora(SharedLora),
}

/// Low-rank changes that are trained together: a layer computes with `W + (alpha / rank) · B · A`.
///
/// Every round starts with B zero and A as a public draw that is the same in all rounds, so the
/// server optimizer's memory stays meaningful. Where A is frozen, the mean of the tenants' products
/// is the product of their mean, and noise enters linearly.
///
/// Source: Hu et al. 2021, arXiv:2106.09685; Sun et al. 2024, arXiv:2403.12313 (A frozen).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedLora {
    /// Rank of every layer's change.
    pub rank: u32,
    /// The change is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Whether A stays as drawn and only B is trained: half the dimension, and no product of two
    /// noises in the base.
    #[serde(default)]
    pub freeze_a: bool,
}

/// One linear layer's factors within the federated part.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRankSite {
    /// The layer.
    pub site: LinearSite,
    /// A as every round starts, `[rank, inputs]`.
    pub a: Vec<f32>,
    /// Where A lies in the federated part; nothing if it is frozen.
    pub a_span: Option<Range<usize>>,
    /// Where B, `[outputs, rank]`, lies.
    pub b_span: Range<usize>,
}

/// The largest rank of a shared change.
const RANK_MAX: u32 = 256;

impl FederatedPart {
    /// Checks that the model has such a part.
    ///
    /// # Errors
    /// [`ModelSpecError`] naming the key and what would work.
    pub fn validate(&self, model: &ModelSpec) -> Result<(), ModelSpecError> {
        let unfit = |field, value, range| Err(ModelSpecError::Unfit { field, value, range });
        match self {
            Self::All => Ok(()),
            Self::Head => model.head().map(|_| ()),
            Self::Lora(lora) if !(1..=RANK_MAX).contains(&lora.rank) => {
                unfit("federated.lora.rank", lora.rank.into(), "between 1 and 256")
            }
            Self::Lora(lora) if !(lora.alpha.is_finite() && lora.alpha > 0.0) => {
                unfit("federated.lora.alpha", lora.alpha, "a finite number above 0")
            }
            Self::Lora(_) => Ok(()),
        }
    }

    /// The name in logs and messages.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Head => "head",
            Self::Lora(_) => "lora",
        }
    }

    /// Number of parameters that an update has.
    #[must_use]
    pub fn dimension(&self, model: &ModelSpec) -> usize {
        match self {
            Self::All => model.num_parameters(),
            Self::Head => self.span(model).map_or(0, |span| span.len()),
            Self::Lora(lora) => {
                let width =
                    |site: LinearSite| site.outputs + if lora.freeze_a { 0 } else { site.inputs };
                model.linear_sites().into_iter().map(width).sum::<usize>() * lora.rank as usize
            }
        }
    }

    /// Number of elements of each layer of an update: what per-layer clipping shares its norm over.
    #[must_use]
    pub fn layer_lengths(&self, model: &ModelSpec) -> Vec<usize> {
        match self {
            Self::All => model.layer_lengths(),
            Self::Head => {
                let Some(head) = self.span(model) else { return Vec::new() };
                let spans = model.spans().into_iter().filter(|(_, span)| span.start >= head.start);
                layer_lengths(spans.map(|(name, span)| (name, span.len())))
            }
            Self::Lora(lora) => low_rank_sites(model, *lora)
                .map(|(a, b, _)| a.map_or(0, |a| a.len()) + b.len())
                .collect(),
        }
    }

    /// The range of the flat parameters that is federated as it is; nothing for low-rank changes.
    #[must_use]
    pub fn span(&self, model: &ModelSpec) -> Option<Range<usize>> {
        match self {
            Self::All => Some(0..model.num_parameters()),
            Self::Head => model.head().ok(),
            Self::Lora(_) => None,
        }
    }

    /// The factors of every linear layer; none unless low-rank changes are federated.
    #[must_use]
    pub fn factors(&self, model: &ModelSpec) -> Vec<LowRankSite> {
        let Self::Lora(lora) = *self else { return Vec::new() };
        let sites = low_rank_sites(model, lora);
        sites
            .map(|(a_span, b_span, site)| {
                let a = public_draw(&site, lora.rank as usize);
                LowRankSite { a, a_span, b_span, site }
            })
            .collect()
    }

    /// The federated parameters as a round starts with them.
    ///
    /// - `base`: all parameters of the model
    ///
    /// # Panics
    /// If `base` has another length than the model.
    #[must_use]
    pub fn start(&self, model: &ModelSpec, base: &[f32]) -> Vec<f32> {
        assert_eq!(base.len(), model.num_parameters(), "the base is that of the model");
        if let Some(span) = self.span(model) {
            return base[span].to_vec();
        }
        let mut start = vec![0.0; self.dimension(model)];
        for LowRankSite { a, a_span, .. } in self.factors(model) {
            if let Some(span) = a_span {
                start[span].copy_from_slice(&a);
            }
        }
        start
    }

    /// Puts trained federated parameters into the base.
    ///
    /// # Panics
    /// If either has another length than the model and this part.
    pub fn merge(&self, model: &ModelSpec, base: &mut [f32], trained: &[f32]) {
        assert_eq!(base.len(), model.num_parameters(), "the base is that of the model");
        if let Some(span) = self.span(model) {
            base[span].copy_from_slice(trained);
            return;
        }
        let Self::Lora(lora) = *self else { return };
        assert_eq!(trained.len(), self.dimension(model), "the part is that of the model");
        let (rank, scale) = (lora.rank as usize, (lora.alpha / f64::from(lora.rank)) as f32);
        for LowRankSite { site, a, a_span, b_span } in self.factors(model) {
            let a = a_span.map_or(a.as_slice(), |span| &trained[span]);
            let rows = base[site.weight].chunks_exact_mut(site.inputs);
            for (row, b) in rows.zip(trained[b_span].chunks_exact(rank)) {
                for (factor, a) in b.iter().zip(a.chunks_exact(site.inputs)) {
                    row.iter_mut().zip(a).for_each(|(w, a)| *w += scale * factor * a);
                }
            }
        }
    }
}

/// Spans of A and B in flat order, with the layer.
fn low_rank_sites(
    model: &ModelSpec,
    lora: SharedLora,
) -> impl Iterator<Item = (Option<Range<usize>>, Range<usize>, LinearSite)> + use<> {
    let mut end = 0;
    let mut next = move |length: usize| {
        let start = end;
        end += length;
        start..end
    };
    let rank = lora.rank as usize;
    model.linear_sites().into_iter().map(move |site| {
        let a = (!lora.freeze_a).then(|| next(rank * site.inputs));
        (a, next(site.outputs * rank), site)
    })
}

/// A of a layer as every round starts: uniform in ±1/√inputs, drawn from the layer's name, so that
/// everybody has the same without sending it.
fn public_draw(site: &LinearSite, rank: usize) -> Vec<f32> {
    let mut hasher = blake3::Hasher::new_derive_key("tributary 2026 start of a shared low-rank A");
    hasher.update(site.module.as_bytes());
    let mut reader = hasher.finalize_xof();
    let bound = 1.0 / (site.inputs as f32).sqrt();
    let mut draw = || {
        let mut bytes = [0; 4];
        reader.fill(&mut bytes);
        // 24 bits are exact in f32.
        let unit = (u32::from_le_bytes(bytes) >> 8) as f32 / (1_u32 << 23) as f32 - 1.0;
        unit * bound
    };
    (0..rank * site.inputs).map(|_| draw()).collect()
}
