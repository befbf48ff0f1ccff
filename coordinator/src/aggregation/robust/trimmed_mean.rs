//! The mean of each coordinate without its extremes.

/// The mean without the `floor(trim n)` smallest and as many largest of n values.
///
/// - `trim`: below 0.5, so that something is left
///
/// Source: Yin et al. 2018, arXiv:1803.01498.
pub(super) fn trimmed_mean(values: &mut [i32], trim: f64) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let cut = ((trim * values.len() as f64) as usize).min((values.len() - 1) / 2);
    values.sort_unstable();
    let kept = &values[cut..values.len() - cut];
    kept.iter().copied().map(i64::from).sum::<i64>() as f64 / kept.len() as f64
}
