//! The Gaussian mechanism without sampling: closed formulas.

use super::normal::upper_tail;

/// The least ε at which Gaussian releases of total precision `Σ 1 / noise_multiplier²` are
/// (ε, δ)-differentially private; rounded up.
///
/// All Gaussians of one composition act as a single one with the summed precision. With
/// `m = sqrt(precision)`, `δ(ε) = Φ(m / 2 - ε / m) - e^ε Φ(-m / 2 - ε / m)`.
///
/// Source: Balle, Wang 2018, arXiv:1805.06530, theorem 8.
pub(super) fn gaussian_epsilon(precision: f64, delta: f64) -> f64 {
    if precision == 0.0 {
        return 0.0;
    }
    if !precision.is_finite() {
        return f64::INFINITY;
    }
    let m = precision.sqrt();
    if divergence(m, 0.0) <= delta {
        return 0.0;
    }
    let mut high = m * m / 2.0 + m;
    while divergence(m, high) > delta {
        high *= 2.0;
    }
    let mut low = 0.0;
    while high - low > 1e-13 * high {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if divergence(m, middle) > delta { low = middle } else { high = middle }
    }
    // Covers the rounding of the divergence.
    high * (1.0 + 1e-7)
}

fn divergence(m: f64, epsilon: f64) -> f64 {
    let (near, far) = (epsilon / m - m / 2.0, epsilon / m + m / 2.0);
    // e^ε times a tail that may be far below the smallest f64, by logarithms.
    upper_tail(near) - (epsilon + log_upper_tail(far)).exp()
}

/// `ln P(Z > z)` for z >= 0, by the continued fraction where the tail underflows.
fn log_upper_tail(z: f64) -> f64 {
    if z < 20.0 {
        return upper_tail(z).ln();
    }
    let mut fraction = z;
    for k in (1..=40).rev() {
        fraction = z + f64::from(k) / fraction;
    }
    -0.5 * z * z - (std::f64::consts::TAU.sqrt() * fraction).ln()
}
