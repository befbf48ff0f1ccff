//! Chooses who takes part in a round.

use std::collections::BTreeSet;

use rand::{SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tributary_protocol::id::TenantId;

/// Draws `cohort_size` of the available tenants uniformly without replacement; all of them if
/// they are fewer.
///
/// The draw depends only on the set and the seed, so a replayed round chooses the same cohort. No
/// privacy amplification is claimed from it: the coordinator sees the sample.
#[must_use]
pub fn choose(available: &BTreeSet<TenantId>, cohort_size: usize, seed: u64) -> BTreeSet<TenantId> {
    let candidates: Vec<_> = available.iter().collect();
    let mut draw = StdRng::seed_from_u64(seed);
    candidates.sample(&mut draw, cohort_size).map(|&tenant| tenant.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenants(count: usize) -> BTreeSet<TenantId> {
        (0..count).map(|i| TenantId::new(format!("t{i}")).expect("valid")).collect()
    }

    #[test]
    fn the_draw_is_repeatable_and_within_the_population() {
        let all = tenants(50);
        let cohort = choose(&all, 10, 7);
        assert_eq!(cohort.len(), 10);
        assert!(cohort.is_subset(&all));
        assert_eq!(cohort, choose(&all, 10, 7));
        assert_ne!(cohort, choose(&all, 10, 8));
        assert_eq!(choose(&all, 99, 7), all);
    }
}
