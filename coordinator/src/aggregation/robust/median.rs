//! The median of each coordinate.

/// The middle value, or the mean of the two in the middle.
///
/// Source: Yin et al. 2018, arXiv:1803.01498.
pub(super) fn median(values: &mut [i32]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let (middle, is_even) = (values.len() / 2, values.len().is_multiple_of(2));
    let (below, &mut upper, _) = values.select_nth_unstable(middle);
    match below.iter().max() {
        Some(&lower) if is_even => (i64::from(lower) + i64::from(upper)) as f64 / 2.0,
        _ => f64::from(upper),
    }
}
