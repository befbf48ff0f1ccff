//! `FedAdam`: the second moment is an exponential average too.

/// The next second moment of a coordinate.
///
/// - `second`: the last one, starting at `tau²`
/// - `slope`: the pseudo-gradient
/// - `beta2`: weight of the past, in [0, 1)
///
/// Source: Reddi et al. 2021, arXiv:2003.00295, algorithm 2 (no bias correction; the second moment
/// starts at `tau²`).
#[must_use]
pub(super) fn second_moment(second: f64, slope: f64, beta2: f64) -> f64 {
    beta2 * second + (1.0 - beta2) * slope * slope
}
