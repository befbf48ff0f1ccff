//! The Dirichlet partition: as many examples for everyone, a class mix of one's own.
//!
//! Every tenant receives the same number of examples (±1), and its own mix of classes drawn from a
//! symmetric Dirichlet distribution: small concentrations give each tenant few classes, large ones
//! give everyone the same mix. A pure function of labels and seed.
//!
//! Source: Hsu, Qi and Brown 2019, arXiv:1909.06335 (section 3); tenants take turns here, so that
//! a class that runs out is missing from all later turns and not from the last tenants alone.

use chacha20::ChaCha8Rng;
use rand::SeedableRng;

use super::{PartitionError, shuffled, unit_interval};

/// How to split a dataset.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DirichletPartition {
    /// Number of tenants, at least 1.
    pub tenants: usize,
    /// Concentration α of the class mix, within [`ALPHA_MIN`](super::ALPHA_MIN) and [`ALPHA_MAX`](super::ALPHA_MAX).
    pub alpha: f64,
    /// The split is the same for the same seed.
    pub seed: u64,
}

impl DirichletPartition {
    /// Assigns every example to exactly one tenant.
    ///
    /// - `labels`: the class of each example, below `classes`
    /// - returns: for each tenant the ascending indices of its examples
    ///
    /// # Errors
    /// [`PartitionError`] naming the request that cannot be met.
    pub fn assign(&self, labels: &[u8], classes: usize) -> Result<Vec<Vec<u32>>, PartitionError> {
        self.check(labels.len())?;
        if let Some(index) = labels.iter().position(|&label| usize::from(label) >= classes) {
            return Err(PartitionError::Label { index, label: labels[index], classes });
        }
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let mut pools = shuffled_pools(labels, classes, &mut random);
        let mixes: Vec<Vec<f64>> = (0..self.tenants)
            .map(|_| super::dirichlet_weights(self.alpha, classes, &mut random))
            .collect();
        let mut shares = vec![Vec::with_capacity(labels.len() / self.tenants + 1); self.tenants];
        for turn in 0..labels.len() {
            let tenant = turn % self.tenants;
            let class = draw_class(&mixes[tenant], &pools, unit_interval(&mut random));
            let example = pools[class].pop().expect("only classes with examples left are drawn");
            shares[tenant].push(example);
        }
        for share in &mut shares {
            share.sort_unstable();
        }
        Ok(shares)
    }

    /// Checks the request for a dataset of `examples`, before anything is loaded.
    ///
    /// # Errors
    /// [`PartitionError`] naming the request that cannot be met.
    pub fn check(&self, examples: usize) -> Result<(), PartitionError> {
        super::check_size(self.tenants, examples)?;
        super::check_alpha(self.alpha)
    }
}

/// The examples of each class in random order.
fn shuffled_pools(labels: &[u8], classes: usize, random: &mut ChaCha8Rng) -> Vec<Vec<u32>> {
    let mut pools = vec![Vec::new(); classes];
    for index in shuffled(labels.len(), random) {
        pools[usize::from(labels[index as usize])].push(index);
    }
    pools
}

/// The class at quantile `at` of the tenant's mix over the classes that have examples left.
///
/// Once all classes of the mix are used up (or their probabilities underflow), the largest pool
/// serves: somebody has to take the remaining examples.
fn draw_class(mix: &[f64], pools: &[Vec<u32>], at: f64) -> usize {
    let available = |class: &usize| !pools[*class].is_empty() && mix[*class] > 0.0;
    let total: f64 = (0..mix.len()).filter(available).map(|class| mix[class]).sum();
    let mut remaining = at * total;
    let mut drawn = None;
    for class in (0..mix.len()).filter(available) {
        drawn = Some(class);
        remaining -= mix[class];
        if remaining < 0.0 {
            break;
        }
    }
    drawn.unwrap_or_else(|| {
        (0..pools.len()).max_by_key(|&class| pools[class].len()).expect("at least one class")
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{ALPHA_MAX, ALPHA_MIN},
        *,
    };

    fn split(tenants: usize, alpha: f64, seed: u64) -> DirichletPartition {
        DirichletPartition { tenants, alpha, seed }
    }

    /// The largest share of one class among a tenant's examples, averaged over tenants.
    fn concentration(shares: &[Vec<u32>], labels: &[u8]) -> f64 {
        let largest = |share: &Vec<u32>| {
            let mut counts = [0_usize; 10];
            share.iter().for_each(|&index| counts[usize::from(labels[index as usize])] += 1);
            *counts.iter().max().unwrap() as f64 / share.len() as f64
        };
        shares.iter().map(largest).sum::<f64>() / shares.len() as f64
    }

    proptest! {
        #[test]
        fn every_example_goes_to_exactly_one_tenant(
            labels in prop::collection::vec(0_u8..7, 1..400),
            tenants in 1_usize..40,
            alpha in prop::sample::select(vec![ALPHA_MIN, 1e-3, 0.3, 1.0, 50.0, ALPHA_MAX]),
            seed: u64,
        ) {
            prop_assume!(tenants <= labels.len());
            let shares = split(tenants, alpha, seed).assign(&labels, 7).unwrap();
            prop_assert_eq!(shares.len(), tenants);
            let mut all: Vec<u32> = shares.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..labels.len() as u32).collect::<Vec<_>>());
            let sizes: Vec<usize> = shares.iter().map(Vec::len).collect();
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
        }

        #[test]
        fn the_same_seed_gives_the_same_split(
            labels in prop::collection::vec(0_u8..5, 8..200), seed: u64,
        ) {
            let first = split(4, 0.3, seed).assign(&labels, 5).unwrap();
            prop_assert_eq!(first, split(4, 0.3, seed).assign(&labels, 5).unwrap());
        }

        #[test]
        fn concentrations_outside_their_range_are_named(alpha in prop::num::f64::ANY) {
            let result = split(2, alpha, 1).assign(&[0, 1, 0], 2);
            if (ALPHA_MIN..=ALPHA_MAX).contains(&alpha) {
                prop_assert!(result.is_ok());
            } else {
                prop_assert!(result.unwrap_err().to_string().contains("alpha"));
            }
        }
    }

    #[test]
    fn small_concentrations_give_tenants_few_classes() {
        let labels: Vec<u8> = (0..20_000_u32).map(|index| (index % 10) as u8).collect();
        let measure =
            |alpha| concentration(&split(5, alpha, 3).assign(&labels, 10).unwrap(), &labels);
        let (skewed, usual, even) = (measure(0.01), measure(0.3), measure(1000.0));
        assert!(skewed > usual && usual > even, "{skewed} {usual} {even}");
        assert!(even < 0.13, "{even}");
    }

    #[test]
    fn this_seed_gives_this_split_on_every_machine() {
        let labels: Vec<u8> = (0..12).map(|index| index % 3).collect();
        let shares = split(3, 0.3, 42).assign(&labels, 3).unwrap();
        assert_eq!(shares, [[2, 7, 8, 11], [0, 5, 6, 9], [1, 3, 4, 10]]);
    }

    #[test]
    fn impossible_requests_are_named() {
        let assign = |tenants, labels: &[u8]| split(tenants, 0.3, 1).assign(labels, 3);
        assert_eq!(assign(0, &[0, 1]), Err(PartitionError::NoTenants));
        assert_eq!(
            assign(3, &[0, 1]),
            Err(PartitionError::TooFewExamples { tenants: 3, examples: 2 })
        );
        assert_eq!(
            assign(1, &[0, 3]),
            Err(PartitionError::Label { index: 1, label: 3, classes: 3 })
        );
        let nan = split(1, f64::NAN, 1).assign(&[0], 3).unwrap_err();
        assert!(nan.to_string().contains("alpha is NaN"), "{nan}");
    }
}
