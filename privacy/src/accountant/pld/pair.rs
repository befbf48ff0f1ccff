//! Dominating pairs of one release, and their privacy loss on a grid.

use super::super::normal::{Edge, density, quantile_bound};

/// Grid points of one release's privacy loss, at most.
const POINTS_MAX: f64 = (1u64 << 19) as f64;
/// Quadrature nodes per deviation of the noise, at least.
const NODES_PER_SIGMA: f64 = 8.0;
const NODES_MIN: f64 = 1000.0;
const NODES_MAX: f64 = 200_000.0;

/// What the neighbouring dataset lacks or has in addition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// P has the record, Q lacks it.
    Remove,
    /// P lacks the record, Q has it.
    Add,
}

/// Two distributions whose hockey-stick divergences bound those of one release.
#[derive(Debug, Clone)]
pub(super) enum Pair {
    /// `A = N(0, σ²)` against `M = (1 - q) N(0, σ²) + q N(1, σ²)`: (M, A) to remove, (A, M) to add.
    Poisson { direction: Direction, sampling_rate: f64, sigma: f64 },
    /// Finitely many outcomes, as (probability under P, loss); the rest of P has infinite loss.
    Atoms(Vec<(f64, f64)>),
}

/// What of the privacy loss need not be resolved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The probability that may count as infinite loss, at most.
    pub(super) tail: f64,
    /// The loss, below 0, up to which all lower ones are raised.
    pub(super) floor: f64,
}

/// The privacy loss of one release under P, on multiples of a step.
#[derive(Debug, Clone)]
pub(super) struct LossGrid {
    /// The loss of `masses[0]`, in steps.
    pub(super) first: i64,
    pub(super) masses: Vec<f64>,
    /// Probability under P of an unbounded loss.
    pub(super) infinite: f64,
}

impl Pair {
    /// The pair of a Poisson-subsampled Gaussian release with sampling rate in (0, 1].
    pub(super) fn poisson(direction: Direction, sampling_rate: f64, sigma: f64) -> Self {
        if sigma > 0.0 {
            return Self::Poisson { direction, sampling_rate, sigma };
        }
        // Without noise a sampled record is seen for certain.
        let missed = 1.0 - sampling_rate;
        Self::Atoms(match direction {
            _ if missed == 0.0 => vec![],
            Direction::Remove => vec![(missed, (-sampling_rate).ln_1p())],
            Direction::Add => vec![(1.0, -(-sampling_rate).ln_1p())],
        })
    }

    /// Weighted losses under P for planning; carries no guarantee.
    pub(super) fn nodes(&self, tail: f64) -> Vec<(f64, f64)> {
        let &Self::Poisson { direction, sampling_rate, sigma } = self else {
            let Self::Atoms(atoms) = self else { unreachable!("there are two kinds") };
            return atoms.clone();
        };
        let mixture = Mixture { sampling_rate, sigma };
        let (low, high) = mixture.range(tail);
        let count = ((high - low) / sigma * NODES_PER_SIGMA).clamp(NODES_MIN, NODES_MAX).ceil();
        let width = (high - low) / count;
        (0..=count as usize)
            .map(|node| {
                let x = width.mul_add(node as f64, low);
                let plain = density(x / sigma) * width / sigma;
                let shifted = density((x - 1.0) / sigma) * width / sigma;
                let loss = mixture.loss(x);
                match direction {
                    Direction::Remove => {
                        ((1.0 - sampling_rate) * plain + sampling_rate * shifted, loss)
                    }
                    Direction::Add => (plain, -loss),
                }
            })
            .collect()
    }

    /// The upper end of the loss; infinity if it has none.
    pub(super) fn loss_max(&self) -> f64 {
        match self {
            &Self::Poisson { direction: Direction::Add, sampling_rate, .. } => {
                -(-sampling_rate).ln_1p()
            }
            Self::Poisson { direction: Direction::Remove, .. } => f64::INFINITY,
            Self::Atoms(atoms) => {
                let total: f64 = atoms.iter().map(|&(mass, _)| mass).sum();
                let losses = atoms.iter().map(|&(_, loss)| loss);
                if total < 1.0 { f64::INFINITY } else { losses.fold(f64::NEG_INFINITY, f64::max) }
            }
        }
    }

    /// The smallest step that keeps the grid within bounds.
    pub(super) fn step_min(&self, limits: Limits) -> f64 {
        match *self {
            Self::Poisson { direction, sampling_rate, sigma } => {
                let (low, high) = Mixture { sampling_rate, sigma }.losses(direction, limits);
                (high - low) / POINTS_MAX
            }
            Self::Atoms(_) => 0.0,
        }
    }

    /// Puts the privacy loss on multiples of `step`, pessimistically.
    ///
    /// The mass of P and Q between two neighbouring grid points goes to these two points, in the
    /// one way that keeps both masses ("connecting the dots" of the hockey-stick curve). The new
    /// pair's divergence is the exact one at the grid points and the chord above the convex exact
    /// one in between, so it dominates. What lies beyond the grid moves up: to its lowest point, or
    /// to infinity.
    pub(super) fn on_grid(&self, step: f64, limits: Limits) -> LossGrid {
        match self {
            &Self::Poisson { direction, sampling_rate, sigma } => {
                Mixture { sampling_rate, sigma }.on_grid(direction, step, limits)
            }
            Self::Atoms(atoms) => atoms_on_grid(atoms, step),
        }
    }
}

fn atoms_on_grid(atoms: &[(f64, f64)], step: f64) -> LossGrid {
    let index = |loss: f64| (loss / step).floor() as i64;
    let first = atoms.iter().map(|&(_, loss)| index(loss)).min().unwrap_or(0);
    let last = atoms.iter().map(|&(_, loss)| index(loss)).max().unwrap_or(0) + 1;
    let mut masses = vec![0.0; (last - first + 1) as usize];
    for &(mass, loss) in atoms {
        let below = index(loss);
        let upper = (mass * (below as f64).mul_add(step, -loss).exp_m1() / (-step).exp_m1())
            .clamp(0.0, mass);
        masses[(below - first) as usize] += mass - upper;
        masses[(below - first) as usize + 1] += upper;
    }
    let infinite = (1.0 - atoms.iter().map(|&(mass, _)| mass).sum::<f64>()).max(0.0);
    LossGrid { first, masses, infinite }
}

/// `M = (1 - q) N(0, σ²) + q N(1, σ²)` against `A = N(0, σ²)`.
#[derive(Clone, Copy)]
struct Mixture {
    sampling_rate: f64,
    sigma: f64,
}

impl Mixture {
    /// `ln(M(x) / A(x))`, increasing in x.
    fn loss(self, x: f64) -> f64 {
        let exponent = (2.0 * x - 1.0) / (2.0 * self.sigma * self.sigma);
        let rate = self.sampling_rate;
        if exponent > 30.0 {
            exponent + rate.ln() + ((1.0 - rate) / rate * (-exponent).exp()).ln_1p()
        } else if rate == 1.0 {
            exponent
        } else {
            (rate * exponent.exp_m1()).ln_1p()
        }
    }

    /// The x of a loss; minus infinity if no x has so low a loss.
    fn position(self, loss: f64) -> f64 {
        let rate = self.sampling_rate;
        let exponent = if rate == 1.0 {
            loss
        } else if loss > 30.0 {
            loss - rate.ln() + (-(1.0 - rate) * (-loss).exp()).ln_1p()
        } else {
            let ratio = loss.exp_m1() / rate;
            if ratio <= -1.0 {
                return f64::NEG_INFINITY;
            }
            ratio.ln_1p()
        };
        self.sigma * self.sigma * exponent + 0.5
    }

    /// An interval outside of which M and A each have at most `2 tail`.
    fn range(self, tail: f64) -> (f64, f64) {
        let reach = self.sigma * quantile_bound(tail);
        let sampled = self.sigma * quantile_bound((tail / self.sampling_rate).min(0.5));
        (-reach, reach.max(1.0 + sampled))
    }

    /// The interval of `ln(M / A)` that has to be resolved.
    fn losses(self, direction: Direction, limits: Limits) -> (f64, f64) {
        let (low, high) = self.range(limits.tail);
        let (low, high) = (self.loss(low), self.loss(high));
        match direction {
            Direction::Remove => (low.max(limits.floor), high),
            Direction::Add => (low, high.min(-limits.floor)),
        }
    }

    fn on_grid(self, direction: Direction, step: f64, limits: Limits) -> LossGrid {
        let (rate, sigma) = (self.sampling_rate, self.sigma);
        let (low, high) = self.losses(direction, limits);
        let first = (low / step).floor() as i64;
        let last = (high / step).ceil() as i64;
        let edges = |index: i64| {
            let x = self.position(index as f64 * step);
            (Edge::new(x / sigma), Edge::new((x - 1.0) / sigma))
        };
        let mix = |plain: f64, shifted: f64| (1.0 - rate) * plain + rate * shifted;
        let mut masses = vec![0.0; (last - first + 1) as usize];
        let top = masses.len() - 1;
        let mut left = edges(first);
        let infinite;
        match direction {
            Direction::Remove => masses[0] += mix(left.0.below(), left.1.below()),
            Direction::Add => {}
        }
        let below = left.0.below();
        let scale = -(-step).exp_m1();
        for offset in 0..top {
            let right = edges(first + offset as i64 + 1);
            let plain = left.0.until(right.0);
            let shifted = left.1.until(right.1);
            left = right;
            match direction {
                Direction::Remove => {
                    // P - e^l Q over the interval, written without cancellation at small rates.
                    let lower = (first + offset as i64) as f64 * step;
                    let total = mix(plain, shifted);
                    let excess = rate * shifted - plain * (rate + lower.exp_m1());
                    let upper = (excess / scale).clamp(0.0, total);
                    masses[offset] += total - upper;
                    masses[offset + 1] += upper;
                }
                Direction::Add => {
                    // The loss is mirrored: from -(index + 1) to -index.
                    let upper_loss = (first + offset as i64 + 1) as f64 * step;
                    let excess = ((rate + upper_loss.exp_m1()) * plain - rate * shifted)
                        * (-upper_loss).exp();
                    let upper = (excess / scale).clamp(0.0, plain);
                    let index = top - offset - 1;
                    masses[index] += plain - upper;
                    masses[index + 1] += upper;
                }
            }
        }
        let first = match direction {
            Direction::Remove => {
                infinite = mix(left.0.above(), left.1.above());
                first
            }
            Direction::Add => {
                masses[0] += left.0.above();
                infinite = below;
                -last
            }
        };
        LossGrid { first, masses, infinite }
    }
}
