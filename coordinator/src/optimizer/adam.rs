//! `FedAdam`: the second moment is an exponential average too.

use super::moments::SecondMoment;

/// Source: Reddi et al. 2021, arXiv:2003.00295, algorithm 2 (no bias correction; the second moment
/// starts at `tau²`).
#[derive(Debug, Clone, Copy)]
pub struct Adam;

impl SecondMoment for Adam {
    fn next(second: f64, slope: f64, beta2: f64) -> f64 {
        beta2 * second + (1.0 - beta2) * slope * slope
    }
}
