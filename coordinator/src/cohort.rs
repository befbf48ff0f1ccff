//! Chooses who takes part in a round.

use std::collections::BTreeSet;

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
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

/// Lets each available tenant join by itself, with probability `cohort_size` over the population.
///
/// The draw depends only on the set and the seed. No privacy amplification is claimed from it: the
/// coordinator sees the sample.
///
/// - `population`: tenants that could be available, so that absence does not raise the probability
#[must_use]
pub fn choose_poisson(
    available: &BTreeSet<TenantId>,
    cohort_size: usize,
    population: usize,
    seed: u64,
) -> BTreeSet<TenantId> {
    let rate = cohort_size as f64 / population.max(available.len()).max(1) as f64;
    if rate >= 1.0 {
        return available.clone();
    }
    let mut draw = StdRng::seed_from_u64(seed);
    available.iter().filter(|_| draw.random_bool(rate)).cloned().collect()
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

    #[test]
    fn poisson_draws_are_independent_and_count_the_absent() {
        let all = tenants(100);
        let sizes: Vec<usize> =
            (0..400).map(|seed| choose_poisson(&all, 20, 100, seed).len()).collect();
        let mean = sizes.iter().sum::<usize>() as f64 / 400.0;
        let variance = sizes.iter().map(|&size| (size as f64 - mean).powi(2)).sum::<f64>() / 399.0;
        // Binomial: mean 20, variance 16; five standard errors of 400 draws.
        assert!((mean - 20.0).abs() < 1.0 && (variance - 16.0).abs() < 5.7, "{mean}, {variance}");
        let half = (0..400).map(|seed| choose_poisson(&all, 20, 200, seed).len()).sum::<usize>();
        assert!((half as f64 / 400.0 - 10.0).abs() < 0.8, "{half}");
        assert_eq!(choose_poisson(&all, 20, 100, 7), choose_poisson(&all, 20, 100, 7));
        assert_eq!(choose_poisson(&all, 100, 100, 7), all);
    }
}
