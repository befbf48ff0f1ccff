//! Zero-concentrated differential privacy: conversion, and distributed discrete noise.

use super::{
    AccountantError, Delta,
    lattice::{Slack, run_multiplier, share_log_ratio},
    rdp::convert,
    validate,
};
use crate::mechanism::PrivacyEvent;

/// The ε of all `events` together at `delta` by zero-concentrated privacy: an upper bound.
///
/// Every release counts as if nothing were sampled: sampling only hides more, but this accountant
/// cannot say how much.
///
/// # Errors
/// [`AccountantError::OutOfRange`] names the parameter of an event that cannot be;
/// [`AccountantError::NoBound`] a kind of event for which there is no bound of this form.
pub fn epsilon_zcdp(events: &[PrivacyEvent], delta: Delta) -> Result<f64, AccountantError> {
    validate(events)?;
    let mut rho = 0.0;
    for event in events.iter().filter(|event| !event.reveals_nothing()) {
        rho += event.count() as f64 * release_rho(event)?;
    }
    if rho == f64::INFINITY {
        return Ok(f64::INFINITY);
    }
    Slack::of_sampler(events).widen(delta, |delta| zcdp_epsilon(rho, delta))
}

/// The ρ of one release.
fn release_rho(event: &PrivacyEvent) -> Result<f64, AccountantError> {
    let gaussian = |ratio: f64| Ok(0.5 / (ratio * ratio));
    match *event {
        PrivacyEvent::Gaussian { noise_multiplier, .. }
        | PrivacyEvent::PoissonGaussian { noise_multiplier, .. } => gaussian(noise_multiplier),
        PrivacyEvent::GaussianReplaceOne { noise_multiplier, .. }
        | PrivacyEvent::PoissonGaussianReplaceOne { noise_multiplier, .. }
        | PrivacyEvent::WithoutReplacementGaussian { noise_multiplier, .. } => {
            gaussian(noise_multiplier / 2.0)
        }
        PrivacyEvent::DiscreteGaussian { sigma, sensitivity, .. } => {
            gaussian(sigma / f64::from(sensitivity))
        }
        PrivacyEvent::LatticeGaussian {
            noise_multiplier, sigma_share, clients, dimension, ..
        } => {
            let sensitivity = f64::from(clients).sqrt() * sigma_share / noise_multiplier;
            distributed_discrete_gaussian_rho(clients, sigma_share, sensitivity, dimension)
        }
        PrivacyEvent::BandedMatrix { .. } => gaussian(run_multiplier(event)),
        PrivacyEvent::Skellam { .. } => Err(AccountantError::NoBound {
            accountant: "zcdp",
            mechanism: "skellam",
            instead: "pld or rdp",
        }),
    }
}

/// The ε at `delta` of a ρ-zCDP mechanism: an upper bound.
///
/// The least of `ρ α - ln(α δ) / (α - 1) + ln(1 - 1 / α)` over the orders α > 1. The minimum is
/// searched by golden section in `ln(α - 1)`; any order gives an upper bound, so an imperfect
/// search is still sound.
///
/// # Errors
/// [`AccountantError::OutOfRange`] unless `rho` is finite and not negative.
///
/// Source: Canonne, Kamath, Steinke 2020, arXiv:2004.00010, proposition 12.
pub fn zcdp_epsilon(rho: f64, delta: Delta) -> Result<f64, AccountantError> {
    if !(rho.is_finite() && rho >= 0.0) {
        let (field, range) = ("rho", "a finite number, at least 0");
        return Err(AccountantError::OutOfRange { field, value: rho, range });
    }
    if rho == 0.0 {
        return Ok(0.0);
    }
    let at = |position: f64| {
        let order = 1.0 + position.exp();
        convert(order, rho * order * (order - 1.0), delta)
    };
    let golden = 0.5 * (5.0_f64.sqrt() - 1.0);
    let (mut low, mut high) = (-10.0, 30.0);
    for _ in 0..100 {
        let left = high - golden * (high - low);
        let right = low + golden * (high - low);
        if at(left) < at(right) { high = right } else { low = left }
    }
    Ok(at(0.5 * (low + high)).max(0.0))
}

/// The ρ (zCDP, add-or-remove-one) of a sum to which `clients` each add discrete Gaussian noise.
///
/// A sum of discrete Gaussians is not a discrete Gaussian; the price is
/// `τ = 10 Σ_k exp(-2 π² σ² k / (k + 1))` for k = 1 .. clients - 1, per coordinate. Then
/// `ρ = ε² / 2` with `ε = min(sqrt(Δ² / (n σ²) + τ d / 2), Δ / (sqrt(n) σ) + τ sqrt(d))`.
///
/// - `clients`: surviving honest clients, at least 1
/// - `sigma`: noise deviation of each, in grid units, at least 0.5
/// - `sensitivity`: L2 norm Δ of a client's integer vector, in grid units
/// - `dimension`: number of coordinates d
///
/// # Errors
/// [`AccountantError::OutOfRange`] names the parameter that cannot be.
///
/// Source: Kairouz, Liu, Steinke 2021, arXiv:2102.06387, theorem 1 and proposition 14.
pub fn distributed_discrete_gaussian_rho(
    clients: u32,
    sigma: f64,
    sensitivity: f64,
    dimension: u64,
) -> Result<f64, AccountantError> {
    let check = |field, value: f64, holds: bool, range| {
        if holds { Ok(()) } else { Err(AccountantError::OutOfRange { field, value, range }) }
    };
    check("clients", f64::from(clients), clients > 0, "at least 1")?;
    check("sigma", sigma, sigma.is_finite() && sigma >= 0.5, "a finite number, at least 0.5")?;
    let holds = sensitivity.is_finite() && sensitivity >= 0.0;
    check("sensitivity", sensitivity, holds, "a finite number, at least 0")?;
    let tau = share_log_ratio(clients, sigma);
    let ratio = sensitivity / (f64::from(clients).sqrt() * sigma);
    let dimension = dimension as f64;
    let joint = (ratio * ratio + 0.5 * tau * dimension).sqrt();
    let apart = ratio + tau * dimension.sqrt();
    Ok(0.5 * joint.min(apart).powi(2))
}
