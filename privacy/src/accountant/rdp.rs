//! Rényi accounting: closed formulas, never far off, independent of the PLD accountant.

use super::{
    AccountantError, Delta, distributed_discrete_gaussian_rho,
    lattice::{Slack, run_multiplier, share_log_ratio},
    validate,
};
use crate::mechanism::PrivacyEvent;

/// Every integer order up to here is tried, with tenths in between.
const DENSE_ORDER_MAX: u32 = 64;
/// The largest order that is tried; the steps up to it are geometric.
const ORDER_MAX: u32 = 1 << 12;
/// The order nearest to 1, as a power of 1/2 above it; such orders matter where ε is huge.
const HALVINGS_MAX: i32 = 14;
/// Covers the rounding of the sums below, which is far smaller.
const ROUNDING: f64 = 1.0 + 1e-9;

/// The ε of all `events` together at `delta` by Rényi accounting: an upper bound.
///
/// With `K(α) = (α - 1) · RDP(α)`, the logarithm of the α-th moment of the likelihood ratio:
/// - Gaussian: `K(α) = α (α - 1) / (2 σ²)`;
/// - Poisson-subsampled Gaussian under add-or-remove-one, integer α:
///   `K(α) = ln Σ_k C(α, k) (1 - q)^(α - k) q^k exp(k (k - 1) / (2 σ²))`, which also bounds the
///   other direction.
///
/// *The lattice changes nothing.* The k-th moment of the ratio of two discrete Gaussians whose
/// centres differ by an integer vector s is `Σ_x ρ(x) exp(k (2⟨x, s⟩ - ‖s‖²) / (2 σ²)) / Σ_x ρ(x)`
/// with `ρ(x) = exp(-‖x‖² / (2 σ²))`. Completing the square turns the numerator into
/// `exp(k (k - 1) ‖s‖² / (2 σ²)) Σ_x ρ(x - k s)`, and for integer k the last sum is a permutation
/// of the denominator's. So all integer moments, and with them the binomial sum above, equal those
/// of the continuous Gaussian exactly.
///
/// - Poisson-subsampled Gaussian under replace-one: the moment of its dominating pair, integrated
///   numerically;
/// - sampling without replacement and Skellam noise: published bounds at integer orders.
///
/// *Orders in between.* The small ones are integrated numerically: the trapezoid rule on the
/// analytic integrand converges so fast that its error is far below rounding. For the others the
/// chord between two integer orders is taken: K is convex in α with `K(1) = 0` (it is a cumulant
/// generating function), so the chord lies above it.
///
/// Conversion to (ε, δ): `ε = (K(α) - ln(α δ)) / (α - 1) + ln(1 - 1 / α)`, least over the orders.
///
/// # Errors
/// [`AccountantError::OutOfRange`] names the parameter of an event that cannot be.
///
/// Source: Mironov, Talwar, Zhang 2019, arXiv:1908.10530 (moments); Canonne, Kamath, Steinke 2020,
/// arXiv:2004.00010, proposition 12 (conversion).
pub fn epsilon_rdp(events: &[PrivacyEvent], delta: Delta) -> Result<f64, AccountantError> {
    validate(events)?;
    Slack::of_sampler(events).widen(delta, |delta| Ok(ideal_epsilon(events, delta)))
}

/// The same with a perfect sampler.
fn ideal_epsilon(events: &[PrivacyEvent], delta: Delta) -> f64 {
    if events.iter().all(|event| log_moment(event, 2.0) == 0.0) {
        return 0.0;
    }
    let log_moments = |order: f64| -> f64 {
        events.iter().map(|event| log_moment(event, order)).sum::<f64>() * ROUNDING
    };
    let exact_order_max = fractional_order_max(events);
    let mut best = f64::INFINITY;
    if exact_near_1(events) {
        for halvings in 1..=HALVINGS_MAX {
            let order = 1.0 + f64::from(-halvings).exp2();
            best = best.min(convert(order, log_moments(order), delta));
        }
    }
    let mut low = (1, 0.0);
    while low.0 < ORDER_MAX {
        let order = if low.0 < DENSE_ORDER_MAX { low.0 + 1 } else { low.0 + low.0 / 4 };
        let high = (order, log_moments(f64::from(order)));
        for tenth in 1..=10 {
            let weight = f64::from(tenth) / 10.0;
            let order = f64::from(low.0) * (1.0 - weight) + f64::from(high.0) * weight;
            let moment = if tenth == 10 {
                high.1
            } else if order <= exact_order_max {
                log_moments(order)
            } else {
                low.1 * (1.0 - weight) + high.1 * weight
            };
            best = best.min(convert(order, moment, delta));
        }
        low = high;
    }
    best.max(0.0)
}

/// The orders that numerical integration is used for: those where it is quick for all events.
fn fractional_order_max(events: &[PrivacyEvent]) -> f64 {
    let smallest = events.iter().fold(f64::INFINITY, |smallest, event| match *event {
        PrivacyEvent::PoissonGaussian { noise_multiplier, sampling_rate, .. }
            if sampling_rate < 1.0 =>
        {
            noise_multiplier.min(smallest)
        }
        PrivacyEvent::PoissonGaussianReplaceOne { noise_multiplier, sampling_rate, .. }
            if sampling_rate < 1.0 =>
        {
            noise_multiplier.min(smallest)
        }
        // Known at integer orders only.
        PrivacyEvent::LatticeGaussian { sampling_rate, .. } if sampling_rate < 1.0 => 0.0,
        PrivacyEvent::WithoutReplacementGaussian { .. } | PrivacyEvent::Skellam { .. } => 0.0,
        _ => smallest,
    });
    if smallest >= 0.2 { 16.0 } else { 0.0 }
}

/// Whether orders just above 1 are known for all events, and quickly.
fn exact_near_1(events: &[PrivacyEvent]) -> bool {
    events.iter().all(|event| match *event {
        PrivacyEvent::PoissonGaussian { sampling_rate, noise_multiplier, .. }
        | PrivacyEvent::PoissonGaussianReplaceOne { sampling_rate, noise_multiplier, .. } => {
            sampling_rate == 1.0 || noise_multiplier >= 0.02
        }
        PrivacyEvent::LatticeGaussian { sampling_rate, .. } => sampling_rate == 1.0,
        PrivacyEvent::WithoutReplacementGaussian { .. } | PrivacyEvent::Skellam { .. } => false,
        _ => true,
    })
}

/// ε at δ from one moment; NaN never wins a minimum.
pub(super) fn convert(order: f64, log_moment: f64, delta: Delta) -> f64 {
    (log_moment - (order * delta.value()).ln()) / (order - 1.0) + (-1.0 / order).ln_1p()
}

/// `K(order)` of all releases of one event.
fn log_moment(event: &PrivacyEvent, order: f64) -> f64 {
    if event.reveals_nothing() {
        return 0.0;
    }
    let gaussian =
        |noise_multiplier: f64| 0.5 * order * (order - 1.0) / (noise_multiplier * noise_multiplier);
    let single = match (event.as_gaussian(), event) {
        (Some(noise_multiplier), _) => gaussian(noise_multiplier),
        (None, &PrivacyEvent::PoissonGaussian { sampling_rate, noise_multiplier, .. }) => {
            if noise_multiplier == 0.0 {
                f64::INFINITY
            } else {
                sampled_log_moment(sampling_rate, noise_multiplier, order)
            }
        }
        (None, lattice @ PrivacyEvent::LatticeGaussian { .. }) => {
            lattice_log_moment(lattice, order)
        }
        // Integer noise has the divergences of continuous noise or less, at every order.
        (None, run @ PrivacyEvent::BandedMatrix { .. }) => gaussian(run_multiplier(run)),
        (None, &PrivacyEvent::DiscreteGaussian { sigma, sensitivity, .. }) => {
            gaussian(sigma / f64::from(sensitivity))
        }
        (
            None,
            &PrivacyEvent::WithoutReplacementGaussian {
                batch_size,
                num_examples,
                noise_multiplier,
                ..
            },
        ) if noise_multiplier > 0.0 && order.fract() == 0.0 => {
            let sampling_rate = batch_size as f64 / num_examples as f64;
            fixed_size_log_moment(sampling_rate, noise_multiplier / 2.0, order as u32)
        }
        (
            None,
            &PrivacyEvent::PoissonGaussianReplaceOne { sampling_rate, noise_multiplier, .. },
        ) if noise_multiplier > 0.0 => {
            replace_one_log_moment(sampling_rate, noise_multiplier, order)
        }
        (None, &PrivacyEvent::Skellam { variance, sensitivity, .. }) if order.fract() == 0.0 => {
            (order - 1.0) * skellam_divergence(variance, sensitivity, order)
        }
        // Without noise, or at an order that is not known.
        (None, _) => f64::INFINITY,
    };
    event.count() as f64 * single
}

/// `K(order)` of one release with lattice noise; infinite for orders that are not integers.
///
/// The lesser of two bounds: that of the sampled discrete Gaussian, widened by the pointwise factor
/// `e^t` of the sum of shares to `K + (2 α - 1) t`; and that of the sum of shares without sampling,
/// whose divergence Kairouz, Liu and Steinke bound directly.
fn lattice_log_moment(event: &PrivacyEvent, order: f64) -> f64 {
    let &PrivacyEvent::LatticeGaussian {
        sampling_rate,
        noise_multiplier,
        sigma_share,
        clients,
        dimension,
        ..
    } = event
    else {
        return f64::INFINITY;
    };
    let sensitivity = f64::from(clients).sqrt() * sigma_share / noise_multiplier;
    let whole = distributed_discrete_gaussian_rho(clients, sigma_share, sensitivity, dimension)
        .map_or(f64::INFINITY, |rho| rho * order * (order - 1.0));
    if sampling_rate == 1.0 || order.fract() != 0.0 {
        return whole;
    }
    let log_ratio = dimension as f64 * share_log_ratio(clients, sigma_share);
    let sampled = integer_log_moment(sampling_rate, noise_multiplier, order as u32);
    whole.min((2.0 * order - 1.0).mul_add(log_ratio, sampled))
}

/// `K(order)` of one Poisson-subsampled Gaussian release.
fn sampled_log_moment(sampling_rate: f64, noise_multiplier: f64, order: f64) -> f64 {
    if order.fract() == 0.0 {
        integer_log_moment(sampling_rate, noise_multiplier, order as u32)
    } else {
        integrated_log_moment(sampling_rate, noise_multiplier, order)
    }
}

/// The trapezoid rule on `N(0, σ²)(x) · (1 - q + q exp((2 x - 1) / (2 σ²)))^α`.
///
/// The integrand is analytic within `π σ²` of the real line, so with nodes `σ min(σ, 1) / 4` apart
/// the error is a factor `exp(-8 π²)` below the integral.
fn integrated_log_moment(sampling_rate: f64, noise_multiplier: f64, order: f64) -> f64 {
    let sigma = noise_multiplier;
    let width = sigma * sigma.min(1.0) / 4.0;
    let (low, high) = (-12.0 * sigma, order + 12.0 * sigma);
    let nodes = ((high - low) / width).ceil() as u32;
    let exponents = (0..=nodes).map(|node| {
        let x = width.mul_add(f64::from(node), low);
        let shift = (2.0 * x - 1.0) / (2.0 * sigma * sigma);
        let ratio = if shift > 30.0 {
            shift
                + sampling_rate.ln()
                + ((1.0 - sampling_rate) / sampling_rate * (-shift).exp()).ln_1p()
        } else {
            (sampling_rate * shift.exp_m1()).ln_1p()
        };
        // The moment minus 1, as α ln(ratio) may be tiny: exp(a) - 1 against the same density.
        (-0.5 * (x / sigma).powi(2), order * ratio)
    });
    // Σ density (e^g - 1), scaled by the largest term of Σ density e^g where that overflows.
    let exponents: Vec<(f64, f64)> = exponents.collect();
    let largest = exponents.iter().map(|&(d, g)| d + g).fold(0.0, f64::max);
    let scale = width / (sigma * std::f64::consts::TAU.sqrt());
    if largest < 600.0 {
        return (scale * exponents.iter().map(|&(d, g)| d.exp() * g.exp_m1()).sum::<f64>()).ln_1p();
    }
    largest + (scale * exponents.iter().map(|&(d, g)| (d + g - largest).exp()).sum::<f64>()).ln()
}

/// `K(order)` of one Poisson-subsampled Gaussian release under replace-one; infinite for orders
/// that take too long.
///
/// The trapezoid rule on the moment of `P = (1 - q) N(0, σ²) + q N(1, σ²)` against its mirror image
/// Q, with nodes as in [`integrated_log_moment`]. Since `E_Q[P / Q - 1] = 0`, the moment minus 1 is
/// the integral of `Q ((P / Q)^α - 1 - α (P / Q - 1))`, whose integrand is never negative and of
/// order q²: few digits are lost at small rates. A pair that dominates in hockey-stick divergence
/// does so in Rényi divergence.
fn replace_one_log_moment(sampling_rate: f64, noise_multiplier: f64, order: f64) -> f64 {
    /// Nodes of one integral, at most.
    const NODES_MAX: f64 = (1u64 << 18) as f64;
    let sigma = noise_multiplier;
    let width = sigma * sigma.min(1.0) / 4.0;
    let (low, high) = (-1.0 - 12.0 * sigma, 2.0 * order + 12.0 * sigma);
    let nodes = ((high - low) / width).ceil();
    if nodes.is_nan() || nodes > NODES_MAX {
        return f64::INFINITY;
    }
    // ln of the mixture's density over that of N(0, σ²).
    let mixture = |x: f64| {
        let shift = (2.0 * x - 1.0) / (2.0 * sigma * sigma);
        if shift > 30.0 {
            shift
                + sampling_rate.ln()
                + ((1.0 - sampling_rate) / sampling_rate * (-shift).exp()).ln_1p()
        } else {
            (sampling_rate * shift.exp_m1()).ln_1p()
        }
    };
    let terms: Vec<(f64, f64)> = (0..=nodes as u32)
        .map(|node| {
            let x = width.mul_add(f64::from(node), low);
            let (one, other) = (mixture(x), mixture(-x));
            (other - 0.5 * (x / sigma).powi(2), one - other)
        })
        .collect();
    let scale = width / (sigma * std::f64::consts::TAU.sqrt());
    let largest = terms.iter().map(|&(mass, loss)| mass + order * loss).fold(0.0, f64::max);
    if largest < 600.0 {
        let excess = |loss: f64| (order * loss).exp_m1() - order * loss.exp_m1();
        let sum: f64 = terms
            .iter()
            .filter(|&&(mass, _)| mass > -700.0)
            .map(|&(mass, loss)| mass.exp() * excess(loss))
            .sum();
        // Far out, one factor may overflow where the product does not.
        if sum.is_finite() {
            return (scale * sum).ln_1p();
        }
    }
    let sum: f64 = terms.iter().map(|&(mass, loss)| (mass + order * loss - largest).exp()).sum();
    largest + (scale * sum).ln()
}

/// The Rényi divergence of one integer with Skellam noise, at most, at an integer order.
///
/// `α Δ² / (2 μ) + min(((2 α - 1) Δ² + 6 Δ) / (4 μ²), 3 Δ / (2 μ))` with variance μ.
///
/// Source: Agarwal, Kairouz, Liu 2021, arXiv:2110.04995, corollary 3.6.
fn skellam_divergence(variance: f64, sensitivity: u32, order: f64) -> f64 {
    let shift = f64::from(sensitivity);
    let squared = shift * shift;
    let fine = ((2.0 * order - 1.0) * squared + 6.0 * shift) / (4.0 * variance * variance);
    order * squared / (2.0 * variance) + fine.min(1.5 * shift / variance)
}

/// The binomial sum.
///
/// The binomial weights sum to 1, so the moment minus 1 is the same sum with `exp(..) - 1`, whose
/// terms are all positive: no digits are lost where the moment is close to 1.
fn integer_log_moment(sampling_rate: f64, noise_multiplier: f64, order: u32) -> f64 {
    let exponent = 0.5 / (noise_multiplier * noise_multiplier);
    let alpha = f64::from(order);
    let log_odds = sampling_rate.ln() - (-sampling_rate).ln_1p();
    let mut log_weight = alpha * (-sampling_rate).ln_1p();
    let mut terms = Vec::with_capacity(order as usize);
    for k in 1..=order {
        let k = f64::from(k);
        log_weight += ((alpha - k + 1.0) / k).ln() + log_odds;
        let gain = k * (k - 1.0) * exponent;
        // ln(exp(gain) - 1), also where exp overflows.
        let log_gain =
            if gain > 1.0 { gain + (-(-gain).exp()).ln_1p() } else { gain.exp_m1().ln() };
        terms.push(log_weight + log_gain);
    }
    let largest = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = terms.iter().map(|term| (term - largest).exp()).sum();
    let log_excess = largest + sum.ln();
    if log_excess > 30.0 { log_excess + (-log_excess).exp() } else { log_excess.exp().ln_1p() }
}

/// `K(order)` of one Gaussian release on a sample of fixed size, under replace-one.
///
/// `ln(1 + q² C(α, 2) min(4 (e^ρ(2) - 1), 2 e^ρ(2)) + Σ_{k > 2} 2 q^k C(α, k) e^((k - 1) ρ(k)))`
/// with the unsampled `ρ(k) = k / (2 σ²)`.
///
/// - `sigma`: deviation over the replace-one sensitivity, which is twice the clipping norm
///
/// Source: Wang, Balle, Kasiviswanathan 2019, arXiv:1808.00087, theorem 9.
fn fixed_size_log_moment(sampling_rate: f64, sigma: f64, order: u32) -> f64 {
    let divergence = |k: f64| k / (2.0 * sigma * sigma);
    let mut log_weight = 0.0;
    let mut log_sum = f64::NEG_INFINITY;
    for k in 1..=order {
        let k = f64::from(k);
        log_weight += ((f64::from(order) - k + 1.0) / k).ln() + sampling_rate.ln();
        let log_gain = if k < 2.0 {
            continue;
        } else if k == 2.0 {
            let twice = divergence(2.0);
            // ln(e^x - 1) without overflow.
            let excess = twice + (-(-twice).exp_m1()).ln();
            (4.0_f64.ln() + excess).min(2.0_f64.ln() + twice)
        } else {
            2.0_f64.ln() + (k - 1.0) * divergence(k)
        };
        let term = log_weight + log_gain;
        let (large, small) = if term > log_sum { (term, log_sum) } else { (log_sum, term) };
        log_sum = large + (small - large).exp().ln_1p();
    }
    if log_sum > 30.0 { log_sum + (-log_sum).exp() } else { log_sum.exp().ln_1p() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poisson(sampling_rate: f64, noise_multiplier: f64, steps: u64) -> PrivacyEvent {
        PrivacyEvent::PoissonGaussian { sampling_rate, noise_multiplier, steps }
    }

    fn delta(value: f64) -> Delta {
        Delta::new(value).expect("valid")
    }

    /// Values of dp_accounting 0.4's RdpAccountant (fractional orders), rows of
    /// `tests/vectors/privacy_accounting.csv`; ours is an upper bound close above.
    #[test]
    fn figures_agree_with_an_independent_accountant() {
        let rows = [
            (poisson(0.01, 1.0, 1000), 1e-5, 2.101322131),
            (poisson(0.01, 1.0, 10_000), 1e-5, 6.712271761),
            (poisson(0.001, 0.8, 10_000), 1e-6, 1.703625278),
            (poisson(0.1, 4.0, 1000), 1e-6, 4.148619514),
            (PrivacyEvent::Gaussian { noise_multiplier: 2.0, count: 10 }, 1e-5, 8.079406222),
        ];
        for (event, at, expected) in rows {
            let ours = epsilon_rdp(std::slice::from_ref(&event), delta(at)).expect("valid");
            let ratio = ours / expected;
            assert!((0.9999..1.02).contains(&ratio), "{event:?}: {ours} for {expected}");
        }
    }

    #[test]
    fn the_edges_are_what_they_must_be() {
        let epsilon = |event| epsilon_rdp(&[event], delta(1e-5)).expect("valid");
        assert_eq!(epsilon(poisson(0.0, 1.0, 1000)), 0.0);
        assert_eq!(epsilon(poisson(0.01, 1.0, 0)), 0.0);
        assert_eq!(epsilon(poisson(0.01, 0.0, 1)), f64::INFINITY);
        assert_eq!(epsilon_rdp(&[], delta(1e-5)), Ok(0.0));
        assert!(epsilon(poisson(1e-6, 0.05, 100_000)).is_finite());
        for bad in [poisson(1.1, 1.0, 1), poisson(f64::NAN, 1.0, 1), poisson(0.1, -1.0, 1)] {
            assert!(epsilon_rdp(&[bad], delta(1e-5)).is_err());
        }
    }
}
