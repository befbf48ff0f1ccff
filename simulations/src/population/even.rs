//! Splits that ignore classes, or give each tenant a few blocks of them.

use chacha20::ChaCha8Rng;
use rand::SeedableRng;

use super::{PartitionError, check_alpha, check_size, dirichlet_weights, shuffled};

/// Deals shuffled examples out evenly: everyone has the same mix and the same number (±1).
///
/// # Errors
/// [`PartitionError`] naming the request that cannot be met.
pub fn iid(examples: usize, tenants: usize, seed: u64) -> Result<Vec<Vec<u32>>, PartitionError> {
    check_size(tenants, examples)?;
    let order = shuffled(examples, &mut ChaCha8Rng::seed_from_u64(seed));
    Ok(sorted(cut(&order, &even_sizes(examples, tenants))))
}

/// Sorts the examples by class, cuts them into `shards_per_tenant` blocks a tenant, and deals the
/// blocks out at random: few classes a tenant, equal numbers.
///
/// # Errors
/// [`PartitionError`] naming the request that cannot be met.
///
/// Source: McMahan et al. 2017, arXiv:1602.05629 (section 3).
pub fn shards(
    labels: &[u32],
    tenants: usize,
    shards_per_tenant: usize,
    seed: u64,
) -> Result<Vec<Vec<u32>>, PartitionError> {
    check_size(tenants, labels.len())?;
    let count = tenants.saturating_mul(shards_per_tenant);
    if count == 0 || count > labels.len() {
        return Err(PartitionError::Shards { shards: count, examples: labels.len() });
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut order = shuffled(labels.len(), &mut random);
    // Stable, so that examples of a class stay shuffled.
    order.sort_by_key(|&index| labels[index as usize]);
    let blocks = cut(&order, &even_sizes(labels.len(), count));
    let deal = shuffled(count, &mut random);
    let shares = deal.chunks(shards_per_tenant).map(|chosen| {
        chosen.iter().flat_map(|&block| blocks[block as usize].iter().copied()).collect()
    });
    Ok(sorted(shares.collect()))
}

/// The same class mix for everyone, but numbers of examples in proportions from Dirichlet(α).
///
/// Everyone has at least one example.
///
/// # Errors
/// [`PartitionError`] naming the request that cannot be met.
pub fn quantity_skew(
    examples: usize,
    tenants: usize,
    alpha: f64,
    seed: u64,
) -> Result<Vec<Vec<u32>>, PartitionError> {
    check_size(tenants, examples)?;
    check_alpha(alpha)?;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let order = shuffled(examples, &mut random);
    let weights = dirichlet_weights(alpha, tenants, &mut random);
    let (total, spare) = (weights.iter().sum::<f64>(), (examples - tenants) as f64);
    // Rounded borders, so that the sizes add up.
    let mut before = 0.0;
    let mut border = 0;
    let sizes: Vec<usize> = weights
        .iter()
        .enumerate()
        .map(|(tenant, weight)| {
            before += weight;
            let last = tenant + 1 == tenants;
            let next = if last { spare } else { (before / total * spare).round().min(spare) };
            let size = next as usize - border;
            border = next as usize;
            size + 1
        })
        .collect();
    Ok(sorted(cut(&order, &sizes)))
}

fn even_sizes(examples: usize, parts: usize) -> Vec<usize> {
    (0..parts).map(|part| examples / parts + usize::from(part < examples % parts)).collect()
}

fn cut(order: &[u32], sizes: &[usize]) -> Vec<Vec<u32>> {
    let mut rest = order;
    let part = |&size: &usize| {
        let (part, later) = rest.split_at(size);
        rest = later;
        part.to_vec()
    };
    sizes.iter().map(part).collect()
}

fn sorted(mut shares: Vec<Vec<u32>>) -> Vec<Vec<u32>> {
    shares.iter_mut().for_each(|share| share.sort_unstable());
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_complete(shares: &[Vec<u32>], examples: usize) -> bool {
        let mut all = shares.concat();
        all.sort_unstable();
        all == (0..examples as u32).collect::<Vec<_>>()
    }

    proptest! {
        #[test]
        fn every_example_goes_to_exactly_one_tenant(
            labels in prop::collection::vec(0_u32..7, 1..300),
            tenants in 1_usize..40,
            alpha in prop::sample::select(vec![1e-6, 0.1, 1.0, 1e6]),
            seed: u64,
        ) {
            prop_assume!(2 * tenants <= labels.len());
            let even = iid(labels.len(), tenants, seed).unwrap();
            let skewed = quantity_skew(labels.len(), tenants, alpha, seed).unwrap();
            let blocks = shards(&labels, tenants, 2, seed).unwrap();
            for shares in [&even, &skewed, &blocks] {
                prop_assert_eq!(shares.len(), tenants);
                prop_assert!(is_complete(shares, labels.len()));
                prop_assert!(shares.iter().all(|share| !share.is_empty()));
            }
            let sizes: Vec<usize> = even.iter().map(Vec::len).collect();
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
            prop_assert_eq!(&skewed, &quantity_skew(labels.len(), tenants, alpha, seed).unwrap());
        }
    }

    #[test]
    fn shards_give_few_classes_and_skew_gives_unequal_sizes() {
        let labels: Vec<u32> = (0..1000).map(|index| index % 10).collect();
        for share in shards(&labels, 10, 2, 3).unwrap() {
            let mut classes: Vec<u32> = share.iter().map(|&i| labels[i as usize]).collect();
            classes.sort_unstable();
            classes.dedup();
            assert!(classes.len() <= 4, "{classes:?}");
        }
        let sizes = |alpha| {
            let mut sizes: Vec<_> =
                quantity_skew(1000, 10, alpha, 3).unwrap().iter().map(Vec::len).collect();
            sizes.sort_unstable();
            sizes
        };
        assert!(sizes(0.1)[9] > 3 * sizes(0.1)[4] && sizes(1e6)[9] - sizes(1e6)[0] <= 3);
    }

    #[test]
    fn impossible_requests_are_named() {
        assert_eq!(iid(3, 0, 1), Err(PartitionError::NoTenants));
        assert!(matches!(
            shards(&[0, 1, 2], 2, 2, 1),
            Err(PartitionError::Shards { shards: 4, examples: 3 })
        ));
        assert!(shards(&[0, 1, 2], 2, 0, 1).is_err());
        assert!(quantity_skew(5, 2, f64::NAN, 1).is_err());
    }
}
