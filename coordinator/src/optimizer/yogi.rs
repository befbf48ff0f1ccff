//! `FedYogi`: Adam whose second moment moves additively, so it forgets large gradients slowly.

use super::moments::SecondMoment;

/// Source: Reddi et al. 2021, arXiv:2003.00295, algorithm 2; Zaheer et al. 2018.
#[derive(Debug, Clone, Copy)]
pub struct Yogi;

impl SecondMoment for Yogi {
    fn next(second: f64, slope: f64, beta2: f64) -> f64 {
        let square = slope * slope;
        // The sign of zero is zero here, unlike `f64::signum`: equal stays equal.
        let toward = f64::from(i8::from(second > square) - i8::from(second < square));
        second - (1.0 - beta2) * square * toward
    }
}
