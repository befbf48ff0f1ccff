//! Exact coin tosses on machine integers.

use rand::Rng;

/// Draws a uniform integer in `0..bound` by rejection, without any bias.
pub(super) fn uniform_below(bound: u128, source: &mut (impl Rng + ?Sized)) -> u128 {
    debug_assert!(bound > 0, "an empty range has no element");
    if bound <= 1 << 64 {
        let bits = (bound - 1).checked_ilog2().map_or(0, |log| log + 1);
        if bits == 0 {
            return 0;
        }
        loop {
            let draw = u128::from(source.next_u64() >> (64 - bits));
            if draw < bound {
                return draw;
            }
        }
    }
    let bits = (bound - 1).ilog2() + 1;
    loop {
        let wide = (u128::from(source.next_u64()) << 64) | u128::from(source.next_u64());
        let draw = wide >> (128 - bits);
        if draw < bound {
            return draw;
        }
    }
}

/// Tosses a coin that shows heads with probability exactly `exp(-numerator / denominator)`.
///
/// Source: Canonne, Kamath, Steinke 2020, arXiv:2004.00010, algorithm 1.
pub(super) fn bernoulli_exp(
    mut numerator: u128,
    denominator: u128,
    source: &mut (impl Rng + ?Sized),
) -> bool {
    while numerator > denominator {
        if !bernoulli_exp_fraction(1, 1, source) {
            return false;
        }
        numerator -= denominator;
    }
    bernoulli_exp_fraction(numerator, denominator, source)
}

/// The same for `numerator <= denominator`.
fn bernoulli_exp_fraction(
    numerator: u128,
    denominator: u128,
    source: &mut (impl Rng + ?Sized),
) -> bool {
    let mut factor = 1;
    // Heads with probability numerator / (denominator * factor), until the first tails.
    while uniform_below(denominator * factor, source) < numerator {
        factor += 1;
    }
    factor % 2 == 1
}
