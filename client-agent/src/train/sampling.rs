//! Poisson sampling: every record joins a batch independently of all others.

use rand::Rng;

/// Draws a batch: each of `records` joins with probability `sampling_rate`.
///
/// The decision compares 64 random bits with `sampling_rate · 2⁶⁴` rounded down, so the true
/// probability is never above the accounted one (and below it by less than 2⁻⁶⁴).
pub(super) fn poisson_batch(
    records: &[u32],
    sampling_rate: f64,
    source: &mut impl Rng,
) -> Vec<u32> {
    if sampling_rate >= 1.0 {
        return records.to_vec();
    }
    // Scaling by a power of two is exact; the cast truncates.
    let threshold = (sampling_rate * 2.0_f64.powi(64)) as u64;
    let expected = sampling_rate * records.len() as f64;
    let mut batch = Vec::with_capacity((expected + 4.0 * expected.sqrt()) as usize + 1);
    batch.extend(records.iter().filter(|_| source.next_u64() < threshold));
    batch
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

    use super::*;

    #[test]
    fn records_join_independently_with_the_given_rate() {
        const RECORDS: u32 = 400;
        const BATCHES: u32 = 2_000;
        let records: Vec<u32> = (0..RECORDS).collect();
        let mut source = Xoshiro256PlusPlus::seed_from_u64(3);
        let (mut sizes, mut pair, mut first) = (Vec::new(), 0_u32, 0_u32);
        for _ in 0..BATCHES {
            let batch = poisson_batch(&records, 0.1, &mut source);
            sizes.push(batch.len() as f64);
            first += u32::from(batch.contains(&0));
            pair += u32::from(batch.contains(&0) && batch.contains(&1));
        }
        let mean = sizes.iter().sum::<f64>() / f64::from(BATCHES);
        let variance =
            sizes.iter().map(|size| (size - mean).powi(2)).sum::<f64>() / f64::from(BATCHES - 1);
        // Binomial: mean 40, variance 36; bounds of about five standard errors.
        assert!((39.3..40.7).contains(&mean), "{mean}");
        assert!((30.0..42.0).contains(&variance), "{variance}");
        assert!((130..270).contains(&first), "{first}");
        assert!((2..45).contains(&pair), "{pair}");
    }

    #[test]
    fn extreme_rates_take_all_or_nearly_nothing() {
        let mut source = Xoshiro256PlusPlus::seed_from_u64(3);
        assert_eq!(poisson_batch(&[4, 5], 1.0, &mut source), [4, 5]);
        assert!(poisson_batch(&[], 0.5, &mut source).is_empty());
        assert!(poisson_batch(&[4, 5], 1e-18, &mut source).is_empty());
    }
}
