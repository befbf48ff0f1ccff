//! The running sums of one round.

use std::collections::BTreeMap;

use tributary_privacy::lattice::{Lattice, ModularSum, PackedSum};
use tributary_protocol::id::{Digest, RoundNumber, TenantId};

use super::AggregationError;
use crate::{
    blobs::BlobStore,
    round::{Aggregation, SecaggTerms},
};

/// The running sums of one round: one for each number of versions that the bases of its updates lie
/// behind, so only one in a synchronous round.
///
/// Updates that count with different weights are in different sums, so every sum stays exact and
/// does not depend on the order of arrival.
#[derive(Debug)]
pub struct RoundSum {
    round: RoundNumber,
    lattice: Lattice,
    dimension: usize,
    sums: BTreeMap<u32, PackedSum>,
    added: BTreeMap<TenantId, Digest>,
}

impl RoundSum {
    /// An empty sum.
    #[must_use]
    pub const fn new(round: RoundNumber, lattice: Lattice, dimension: usize) -> Self {
        Self { round, lattice, dimension, sums: BTreeMap::new(), added: BTreeMap::new() }
    }

    /// The round it belongs to.
    #[must_use]
    pub const fn round(&self) -> RoundNumber {
        self.round
    }

    /// Adds a tenant's stored update; a tenant that was added before is not added again.
    ///
    /// - `staleness`: versions that its base lies behind
    ///
    /// # Errors
    /// [`AggregationError`]; the sum must then be dropped, since part of the update may be in it.
    pub fn add(
        &mut self,
        tenant: &TenantId,
        update: Digest,
        staleness: u32,
        blobs: &BlobStore,
    ) -> Result<(), AggregationError> {
        if self.added.contains_key(tenant) {
            return Ok(());
        }
        let empty = || PackedSum::new(self.lattice, self.dimension);
        let sum = self.sums.entry(staleness).or_insert_with(empty);
        blobs.stream(update, |offset, bytes| {
            sum.add_chunk(offset, bytes)
                .map_err(|source| AggregationError::Update { update, source })
        })?;
        self.added.insert(tenant.clone(), update);
        Ok(())
    }

    /// Completes the sums over exactly these contributors, adding those that a restart forgot.
    ///
    /// - `staleness`: of each contributor whose base was not the newest
    /// - `unmask`: for masked updates, removes what is left of the masks
    /// - returns: each sum in units of the wire, by staleness
    ///
    /// # Errors
    /// [`AggregationError`].
    pub fn finish(
        mut self,
        contributors: &BTreeMap<TenantId, Digest>,
        staleness: &BTreeMap<TenantId, u32>,
        unmask: Option<Unmask<'_>>,
        blobs: &BlobStore,
    ) -> Result<BTreeMap<u32, Vec<f64>>, AggregationError> {
        if self.added.iter().any(|(tenant, update)| contributors.get(tenant) != Some(update)) {
            self = Self::new(self.round, self.lattice, self.dimension);
        }
        for (tenant, &update) in contributors {
            if !self.added.contains_key(tenant) {
                // It arrived before a restart: the disk may have changed it since.
                blobs.verify(update)?;
                let staleness = staleness.get(tenant).copied().unwrap_or_default();
                self.add(tenant, update, staleness, blobs)?;
            }
        }
        let open = |(staleness, sum): (u32, PackedSum)| {
            let mut sum = sum.unpack();
            if let Some(unmask) = unmask
                && staleness == 0
            {
                unmask.apply(&mut sum, contributors.len() as u32)?;
            }
            Ok((staleness, self.lattice.dequantize_sum(sum.values())))
        };
        self.sums.into_iter().map(open).collect()
    }
}

/// Removes the masks of a sum, and checks that honest updates can have made it.
#[derive(Debug, Clone, Copy)]
pub struct Unmask<'a> {
    /// The finished secure aggregation.
    pub aggregation: &'a Aggregation,
    /// What the sum must withstand.
    pub terms: &'a SecaggTerms,
}

impl Unmask<'_> {
    fn apply(&self, sum: &mut ModularSum, survivors: u32) -> Result<(), AggregationError> {
        self.aggregation.server().unmask(sum)?;
        let bound = self.terms.noise.sum_bound(self.aggregation.plan(), sum.lattice());
        bound.check(sum, survivors).map_err(AggregationError::Implausible)
    }
}
