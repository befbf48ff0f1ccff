//! `FedYogi`: Adam whose second moment moves additively, so it forgets large gradients slowly.

/// The next second moment of a coordinate.
///
/// - `second`: the last one, starting at `tau²`
/// - `slope`: the pseudo-gradient
/// - `beta2`: weight of the past, in [0, 1)
///
/// Source: Reddi et al. 2021, arXiv:2003.00295, algorithm 2; Zaheer et al. 2018.
#[must_use]
pub(super) fn second_moment(second: f64, slope: f64, beta2: f64) -> f64 {
    let square = slope * slope;
    // The sign of zero is zero here, unlike `f64::signum`: equal stays equal.
    let toward = f64::from(i8::from(second > square) - i8::from(second < square));
    second - (1.0 - beta2) * square * toward
}
