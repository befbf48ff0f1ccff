//! The privacy map of the unsampled integer mechanisms, from opendp.

use std::sync::Arc;

use opendp::{
    domains::{AtomDomain, VectorDomain},
    measurements::make_gaussian,
    measures::ZeroConcentratedDivergence,
    metrics::L2Distance,
};

use super::MechanismError;

/// The ρ of ρ-zCDP that discrete Gaussian noise gives an integer vector, rounded up.
///
/// opendp's own map of its discrete Gaussian measurement, computed in exact rationals: an
/// independent second opinion on `sensitivity² / (2 sigma²)`. Only the map is used; the noise
/// comes from this crate's sampler.
///
/// - `sensitivity`: L2 distance of the integer vectors of two neighbours, at least 0
/// - `sigma`: noise deviation, above 0
///
/// # Errors
/// [`MechanismError::OutOfRange`] without noise, [`MechanismError::PrivacyMap`] if opendp refuses
/// the numbers.
pub fn discrete_gaussian_rho(sensitivity: f64, sigma: f64) -> Result<f64, MechanismError> {
    if !(sigma.is_finite() && sigma > 0.0) {
        let (field, range) = ("sigma", "a positive finite number");
        return Err(MechanismError::OutOfRange { field, value: sigma, range });
    }
    let measurement = make_gaussian::<_, _, ZeroConcentratedDivergence>(
        VectorDomain::new(AtomDomain::<i64>::default()),
        L2Distance::<f64>::default(),
        sigma,
        None,
    );
    measurement
        .and_then(|measurement| measurement.map(&sensitivity))
        .map_err(|error| MechanismError::PrivacyMap { sensitivity, sigma, source: Arc::new(error) })
}

#[cfg(test)]
mod tests {
    use opendp::combinators::make_zCDP_to_approxDP;

    use super::*;
    use crate::accountant::{Delta, epsilon_rdp, zcdp_epsilon};
    use crate::mechanism::PrivacyEvent;

    #[test]
    fn the_map_is_the_textbook_formula_rounded_up() {
        for (sensitivity, sigma) in [(1.0, 1.0), (2.5, 1.25), (1000.3, 777.7), (1e9, 1e9)] {
            let rho = discrete_gaussian_rho(sensitivity, sigma).expect("valid");
            let formula = 0.5 * (sensitivity / sigma).powi(2);
            assert!(rho >= formula * (1.0 - 1e-15) && rho <= formula * (1.0 + 1e-12));
        }
        assert!(discrete_gaussian_rho(-1.0, 1.0).is_err());
        assert!(discrete_gaussian_rho(1.0, f64::NAN).is_err());
    }

    /// Our conversion and our RDP accountant against opendp's conversion.
    #[test]
    fn conversions_agree_with_opendp() {
        for (sigma, at) in [(1.0, 1e-5), (4.0, 1e-6), (0.8, 1e-9)] {
            let measurement = make_gaussian::<_, _, ZeroConcentratedDivergence>(
                VectorDomain::new(AtomDomain::<i64>::default()),
                L2Distance::<f64>::default(),
                sigma,
                None,
            );
            let curve = make_zCDP_to_approxDP(measurement.expect("valid"))
                .and_then(|approximate| approximate.map(&1.0))
                .expect("valid");
            let reference = curve.epsilon(at).expect("valid");
            let delta = Delta::new(at).expect("valid");
            let ours = zcdp_epsilon(0.5 / (sigma * sigma), delta).expect("valid");
            assert!((ours / reference - 1.0).abs() < 1e-6, "{ours} {reference}");
            let event = PrivacyEvent::Gaussian { noise_multiplier: sigma, count: 1 };
            let by_rdp = epsilon_rdp(&[event], delta).expect("valid");
            assert!(by_rdp >= reference * (1.0 - 1e-9) && by_rdp < reference * 1.01);
        }
    }
}
