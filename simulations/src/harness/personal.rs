//! Private adapters of all tenants on the last base model.

use tributary_agent::{
    adapter::{self, AdapterError, FineTune},
    data::{Dataset, Split},
    train::{Evaluation, evaluate},
};
use tributary_protocol::{id::Digest, model::ModelSpec};

use super::{
    HarnessError,
    seeds::{Purpose, Seeds},
};
use crate::experiment::AdaptersSpec;

/// The base on a tenant's held-out records, and what the tenant would serve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Personal {
    /// The base alone.
    pub(super) base: Evaluation,
    /// The base with the adapter, or alone if the adapter does worse on the validation records.
    pub(super) served: Evaluation,
}

/// Each tenant's records in three parts.
pub(super) fn splits(spec: &AdaptersSpec, shares: &[Vec<u32>], seeds: Seeds) -> Vec<Split> {
    let split = |(tenant, share): (usize, &Vec<u32>)| {
        let seed = seeds.number_of(Purpose::Split, 0, tenant as u32);
        let positions = Split::new(share.len(), spec.held_out_fraction, seed)
            .expect("the fraction was checked and an index is a u32");
        let records = |part: Vec<u32>| part.iter().map(|&at| share[at as usize]).collect();
        Split {
            train: records(positions.train),
            validation: records(positions.validation),
            held_out: records(positions.held_out),
        }
    };
    shares.iter().enumerate().map(split).collect()
}

/// What all tenants have in common.
#[derive(Clone, Copy)]
pub(super) struct Personalisation<'a> {
    pub(super) spec: &'a ModelSpec,
    pub(super) adapters: &'a AdaptersSpec,
    pub(super) base: &'a [f32],
    pub(super) data: &'a Dataset,
    pub(super) seeds: Seeds,
}

impl Personalisation<'_> {
    /// Trains one tenant's adapter and measures base and adapter.
    ///
    /// `None` for a tenant without held-out records; one without records to train or validate on
    /// serves the base.
    ///
    /// # Errors
    /// [`HarnessError::Adapter`] or [`HarnessError::Evaluate`].
    pub(super) fn tenant(
        &self,
        tenant: u32,
        split: &Split,
    ) -> Result<Option<Personal>, HarnessError> {
        if split.held_out.is_empty() {
            return Ok(None);
        }
        let measure = |adapter| {
            evaluate(self.spec, self.base, adapter, self.data, &split.held_out)
                .map_err(HarnessError::Evaluate)
        };
        let base = measure(None)?;
        let request = FineTune {
            spec: self.spec,
            base: self.base,
            base_digest: Digest::of(b"simulation"),
            start: None,
            data: self.data,
            split,
            plan: &self.adapters.plan(),
            seed: self.seeds.number_of(Purpose::Adapter, 0, tenant),
        };
        let served = match adapter::fine_tune(&request, &mut || false) {
            Ok(outcome) if outcome.accepted => measure(Some(&outcome.adapter))?,
            Ok(_) | Err(AdapterError::NoRecords { .. }) => base,
            Err(source) => return Err(HarnessError::Adapter { tenant, source: source.into() }),
        };
        Ok(Some(Personal { base, served }))
    }
}
