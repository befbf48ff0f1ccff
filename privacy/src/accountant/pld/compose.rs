//! Composition by one FFT of the tilted loss.

use realfft::{RealFftPlanner, num_complex::Complex64};

use super::{
    Component,
    pair::{Limits, LossGrid},
    plan::{Cumulants, Reach, Tilted},
};

/// The share of δ that cut-off tails of single releases may take.
const TAIL_SHARE: f64 = 1e-8;
/// The share of δ beyond the window, as planned; the true one is bounded afterwards.
const WINDOW_SHARE: f64 = 1e-8;
/// The share of δ that both together may take before the window must grow.
const LOST_SHARE_MAX: f64 = 1e-4;
/// Losses that the tilt suppresses by more than this exponent are not resolved.
const FLOOR_EXPONENT: f64 = 60.0;
/// Points of the FFT while the place is still searched.
const COARSE_SIZE: usize = 1 << 16;
/// Points of the FFT at most.
const FINE_SIZE_MAX: usize = 1 << 20;
/// The share of a release's variance that the grid may add.
const VARIANCE_SHARE: f64 = 1e-4;
/// Spectral values smaller than `e` to the negative of this are taken for 0.
const NEGLIGIBLE_EXPONENT: f64 = 60.0;
/// Attempts at a better centre or a wider window.
const ATTEMPTS: usize = 8;

/// An upper bound of the least ε at which the hockey-stick divergence of the composed pairs is at
/// most `delta`; infinite if there is none. Not computed if it is certain to be below `floor`, which
/// is then returned. The flag says whether the FFT had all the points that the accuracy takes.
pub(super) fn epsilon(components: &[Component], delta: f64, floor: f64) -> (f64, bool) {
    // The loss itself may have an upper end.
    let end: f64 =
        components.iter().map(|component| component.pair.loss_max() * component.count as f64).sum();
    if end <= floor {
        return (floor, true);
    }
    let releases: f64 = components.iter().map(|component| component.count as f64).sum();
    let tail = (delta * TAIL_SHARE / releases).max(1e-290);
    let cumulants = Cumulants::new(components, tail);
    let unit = cumulants.tilt_unit();
    let mut center = cumulants.at(cumulants.tilt_for_delta(delta, unit));
    let mut widening = 1.0;
    let mut best = end;
    for _ in 0..ATTEMPTS {
        let window = Window::around(&cumulants, center, delta, unit, widening);
        match Composed::new(components, center, window, tail, COARSE_SIZE).crossing(delta) {
            Crossing::At(epsilon) => {
                best = best.min(epsilon);
                let distance = (epsilon - center.mean).abs();
                if epsilon == 0.0 || distance <= 2.0 * center.variance.sqrt() {
                    break;
                }
                center = cumulants.at(cumulants.tilt_for_mean(epsilon, unit));
            }
            Crossing::Below(low) if low < center.mean => {
                center = cumulants.at(cumulants.tilt_for_mean(low, unit));
            }
            Crossing::Below(_) | Crossing::Lost => widening *= 2.0,
            Crossing::Never => return (best.max(floor), best.is_finite()),
        }
    }
    if best <= floor {
        return (floor, true);
    }
    // Once more around the right place, with all the points that the accuracy takes.
    let window = Window::around(&cumulants, center, delta, unit, widening);
    let step = step_wanted(cumulants.bulk_variance() / releases);
    let size = ((window.high - window.low) / step).min(FINE_SIZE_MAX as f64) as usize;
    let mut fine = step * COARSE_SIZE as f64 >= window.high - window.low;
    if size > COARSE_SIZE {
        let size = size.next_power_of_two();
        let composed = Composed::new(components, center, window, tail, size);
        fine = composed.step <= 2.0 * step;
        if let Crossing::At(epsilon) = composed.crossing(delta) {
            best = best.min(epsilon);
        }
    }
    (best.max(floor), fine)
}

/// The step with which connecting the dots adds little variance to each release.
///
/// - `variance`: of one release's loss
fn step_wanted(variance: f64) -> f64 {
    // A step h adds at most h² / 4 to the variance, about h² / 6 where the mass is spread.
    (6.0 * VARIANCE_SHARE * variance).sqrt()
}

/// A quick estimate of the same, without any guarantee.
pub(super) fn estimate(components: &[Component], delta: f64) -> f64 {
    let cumulants = Cumulants::new(components, delta * 1e-6);
    let unit = cumulants.tilt_unit();
    cumulants.at(cumulants.tilt_for_delta(delta, unit)).mean
}

/// The losses that the FFT covers.
#[derive(Debug, Clone, Copy)]
struct Window {
    low: f64,
    high: f64,
    /// The tilt of the Chernoff bound for what lies above.
    high_tilt: f64,
}

impl Window {
    fn around(cumulants: &Cumulants, center: Tilted, delta: f64, unit: f64, widening: f64) -> Self {
        let Reach { low, high, tilt } = cumulants.reach(center, delta * WINDOW_SHARE, unit);
        // Always some room, also for a loss that has no spread at all.
        let spread = center.variance.sqrt().max(1e-12);
        Self {
            low: center.mean - (center.mean - low).max(spread) * widening,
            high: center.mean + (high - center.mean).max(spread) * widening,
            high_tilt: tilt,
        }
    }
}

enum Crossing {
    At(f64),
    /// Somewhere below the window, which starts here.
    Below(f64),
    /// Too much lies beyond the window.
    Lost,
    /// More than δ has infinite loss.
    Never,
}

/// The composed loss, tilted, on the grid.
struct Composed {
    step: f64,
    /// The loss of the first element, in steps.
    first: i64,
    /// Probabilities under the tilted distribution.
    masses: Vec<f64>,
    tilt: f64,
    /// Logarithm of the moment that the tilt divided by.
    log_moment: f64,
    /// Probability under P of infinite loss.
    infinite: f64,
    /// Bound of the probability under P of a loss above the window.
    beyond: f64,
}

impl Composed {
    fn new(
        components: &[Component],
        center: Tilted,
        window: Window,
        tail: f64,
        size: usize,
    ) -> Self {
        let limits = Limits { tail, floor: -FLOOR_EXPONENT / center.tilt };
        let step_min =
            components.iter().map(|component| component.pair.step_min(limits)).fold(0.0, f64::max);
        let step = ((window.high - window.low) / (size - 2) as f64).max(step_min);
        let first = (window.low / step).floor() as i64;
        let top = (first + size as i64 - 1) as f64 * step;
        let mut planner = RealFftPlanner::<f64>::new();
        let forward = planner.plan_fft_forward(size);
        let mut product = vec![Complex64::new(1.0, 0.0); size / 2 + 1];
        let mut spectrum = forward.make_output_vec();
        let (mut log_moment, mut log_steeper, mut infinite) = (0.0, 0.0, 0.0);
        for component in components {
            let grid = component.pair.on_grid(step, limits);
            let count = component.count as f64;
            infinite += count * grid.infinite;
            log_steeper += count * log_sum(&grid, step, window.high_tilt);
            let (mut wrapped, log_total) = tilted(&grid, step, center.tilt, size);
            log_moment += count * log_total;
            forward.process(&mut wrapped, &mut spectrum).expect("buffers of the planned length");
            multiply_power(&mut product, &spectrum, component.count);
        }
        // Both are real, but for rounding.
        product[0].im = 0.0;
        product[size / 2].im = 0.0;
        let inverse = planner.plan_fft_inverse(size);
        let mut masses = inverse.make_output_vec();
        inverse.process(&mut product, &mut masses).expect("buffers of the planned length");
        // The loss at index 0 is that of `first`.
        masses.rotate_left(first.rem_euclid(size as i64) as usize);
        let scale = (size as f64).recip();
        for mass in &mut masses {
            *mass = (*mass * scale).max(0.0);
        }
        let beyond = window.high_tilt.mul_add(-top, log_steeper).exp();
        Self { step, first, masses, tilt: center.tilt, log_moment, infinite, beyond }
    }

    /// Where the divergence, summed from above, reaches δ.
    ///
    /// With `f_k` the untilted masses, the divergence at grid point j is
    /// `D_j = Σ_{k > j} f_k (1 - e^{L_j - L_k})`; it obeys `D_j = e^-h D_{j+1} + (1 - e^-h) A_{j+1}`
    /// with `A_j = Σ_{k >= j} f_k`, all of whose terms are positive. Between grid points it is
    /// linear in `e^ε`.
    fn crossing(&self, delta: f64) -> Crossing {
        if self.infinite >= delta {
            return Crossing::Never;
        }
        let rest = delta - self.infinite - self.beyond;
        if self.beyond.is_nan() || self.beyond > (delta - self.infinite) * LOST_SHARE_MAX {
            return Crossing::Lost;
        }
        let reference = self.loss(self.masses.len() / 2);
        let target = (rest.ln() - self.log_moment + self.tilt * reference).exp();
        let (keep, gain) = ((-self.step).exp(), -(-self.step).exp_m1());
        let (mut divergence, mut above) = (0.0, 0.0);
        let mut untilt = Powers::new(self.tilt * self.step);
        for index in (0..self.masses.len()).rev() {
            let loss = self.loss(index);
            // The divergence at this grid point, from the one above.
            let next = keep * divergence + gain * above;
            if next > target {
                let share = ((next - target) / (next - divergence)).clamp(0.0, 1.0);
                let epsilon = loss + (share * self.step.exp_m1()).ln_1p();
                return Crossing::At(epsilon.max(0.0));
            }
            if loss <= 0.0 {
                return Crossing::At(0.0);
            }
            divergence = next;
            above += self.masses[index] * untilt.next(|| -self.tilt * (loss - reference));
        }
        Crossing::Below(self.loss(0))
    }

    fn loss(&self, index: usize) -> f64 {
        (self.first + index as i64) as f64 * self.step
    }
}

/// `e^x` for arguments that grow by a constant: exact again and again, by products in between.
struct Powers {
    factor: f64,
    value: f64,
    /// Products until the next exact value.
    left: u32,
}

impl Powers {
    /// Products between two exact values; their rounding adds up to less than 1e-14.
    const STRETCH: u32 = 32;

    fn new(increment: f64) -> Self {
        Self { factor: increment.exp(), value: 0.0, left: 0 }
    }

    /// The next power.
    ///
    /// - `argument`: x, which is one increment above the one before
    fn next(&mut self, argument: impl FnOnce() -> f64) -> f64 {
        if self.left == 0 {
            self.left = Self::STRETCH;
            self.value = argument().exp();
        } else {
            self.value *= self.factor;
        }
        self.left -= 1;
        self.value
    }
}

/// `ln Σ mass e^{tilt loss}`.
fn log_sum(grid: &LossGrid, step: f64, tilt: f64) -> f64 {
    let largest = largest_exponent(grid, step, tilt);
    let mut powers = Powers::new(tilt * step);
    let term = |(index, &mass): (usize, &f64)| {
        mass * powers.next(|| exponent(grid, step, tilt, index) - largest)
    };
    largest + grid.masses.iter().enumerate().map(term).sum::<f64>().ln()
}

fn exponent(grid: &LossGrid, step: f64, tilt: f64, index: usize) -> f64 {
    tilt * (grid.first + index as i64) as f64 * step
}

/// The exponent at whichever end of the grid it is largest.
fn largest_exponent(grid: &LossGrid, step: f64, tilt: f64) -> f64 {
    let last = grid.masses.len() - 1;
    exponent(grid, step, tilt, 0).max(exponent(grid, step, tilt, last))
}

/// The tilted masses, summing to 1, wrapped around `size`; and the logarithm of their sum before.
fn tilted(grid: &LossGrid, step: f64, tilt: f64, size: usize) -> (Vec<f64>, f64) {
    let log_total = log_sum(grid, step, tilt);
    let mut wrapped = vec![0.0; size];
    let mut position = grid.first.rem_euclid(size as i64) as usize;
    let mut powers = Powers::new(tilt * step);
    for (index, &mass) in grid.masses.iter().enumerate() {
        wrapped[position] += mass * powers.next(|| exponent(grid, step, tilt, index) - log_total);
        position = if position + 1 == size { 0 } else { position + 1 };
    }
    (wrapped, log_total)
}

/// Multiplies every element by the power of another, by its polar form.
fn multiply_power(product: &mut [Complex64], values: &[Complex64], count: u64) {
    let exponent = count as f64;
    // Far below the rounding of the largest element, which is 1.
    let negligible = (-2.0 * NEGLIGIBLE_EXPONENT / exponent).exp();
    for (factor, value) in product.iter_mut().zip(values) {
        let squared = value.norm_sqr();
        if squared <= negligible {
            *factor = Complex64::new(0.0, 0.0);
        } else if count == 1 {
            *factor *= value;
        } else {
            let norm = (0.5 * exponent * squared.ln()).exp();
            *factor *= Complex64::from_polar(norm, value.arg() * exponent);
        }
    }
}
