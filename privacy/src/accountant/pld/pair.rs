//! Dominating pairs of one release, and their privacy loss on a grid.

use super::{mixture::Mixture, replace::ReplaceOne};

/// Grid points of one release's privacy loss, at most.
const POINTS_MAX: f64 = (1u64 << 19) as f64;
/// Quadrature nodes per deviation of the noise, at least.
const NODES_PER_SIGMA: f64 = 8.0;
const NODES_MIN: f64 = 1000.0;
const NODES_MAX: f64 = 200_000.0;

/// Quadrature nodes for an interval of so many deviations.
pub(super) fn node_count(deviations: f64) -> u32 {
    (deviations * NODES_PER_SIGMA).clamp(NODES_MIN, NODES_MAX).ceil() as u32
}

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
    Poisson(Direction, Mixture),
    /// A fixed-size sample of which one member is replaced: the divergence at ε >= 0 is that of
    /// (M, A), at ε < 0 that of (A, M).
    ///
    /// Source: Zhu, Dong, Wang 2022, arXiv:2106.08567, theorem 11 (3).
    WithoutReplacement(Mixture),
    /// A Poisson sample of which one possible member is replaced by an opposite one.
    ReplaceOne(ReplaceOne),
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
            return Self::Poisson(direction, Mixture { sampling_rate, sigma });
        }
        // Without noise a sampled record is seen for certain.
        let missed = 1.0 - sampling_rate;
        Self::Atoms(match direction {
            _ if missed == 0.0 => vec![],
            Direction::Remove => vec![(missed, (-sampling_rate).ln_1p())],
            Direction::Add => vec![(1.0, -(-sampling_rate).ln_1p())],
        })
    }

    /// The pair of a Poisson-subsampled Gaussian release under replace-one, rate in (0, 1).
    pub(super) fn replace_one(sampling_rate: f64, sigma: f64) -> Self {
        if sigma > 0.0 {
            Self::ReplaceOne(ReplaceOne { sampling_rate, sigma })
        } else {
            Self::Atoms(vec![(1.0 - sampling_rate, 0.0)])
        }
    }

    /// The pair of a Gaussian release on a fixed-size sample under replace-one, rate in (0, 1).
    ///
    /// - `noise_multiplier`: deviation over clipping norm, half of the sensitivity
    pub(super) fn without_replacement(sampling_rate: f64, noise_multiplier: f64) -> Self {
        if noise_multiplier > 0.0 {
            Self::WithoutReplacement(Mixture { sampling_rate, sigma: noise_multiplier / 2.0 })
        } else {
            Self::Atoms(vec![(1.0 - sampling_rate, 0.0)])
        }
    }

    /// Integer outcomes with these probabilities against the same shifted by `shift`.
    ///
    /// - `log_mass`: of outcomes `-(n - 1)..n` as a symmetric function of `0..n`, increasingly rare
    pub(super) fn shifted_integers(log_mass: &[f64], shift: usize) -> Self {
        let at = |outcome: i64| log_mass.get(outcome.unsigned_abs() as usize).copied();
        let reach = log_mass.len() as i64;
        let shift = shift as i64;
        // Outcomes that Q cannot be shown to reach count as an infinite loss.
        let atom = |outcome: i64| Some((at(outcome)?.exp(), at(outcome)? - at(outcome + shift)?));
        Self::Atoms((-reach..reach).filter_map(atom).collect())
    }

    /// Weighted losses under P for planning; carries no guarantee.
    pub(super) fn nodes(&self, tail: f64) -> Vec<(f64, f64)> {
        match self {
            Self::Poisson(direction, mixture) => mixture.nodes(*direction, tail),
            Self::WithoutReplacement(mixture) => mixture.nodes(Direction::Remove, tail),
            Self::ReplaceOne(pair) => pair.nodes(tail),
            Self::Atoms(atoms) => {
                // Neighbours with nearly the same loss count as one.
                let together = atoms.len().div_ceil(NODES_MIN as usize * 4).max(1);
                let joined = atoms.chunks(together).map(|group| {
                    let mass: f64 = group.iter().map(|&(mass, _)| mass).sum();
                    let loss: f64 = group.iter().map(|&(mass, loss)| mass * loss).sum();
                    (mass, loss / mass)
                });
                joined.filter(|&(mass, _)| mass > 0.0).collect()
            }
        }
    }

    /// The upper end of the loss; infinity if it has none.
    pub(super) fn loss_max(&self) -> f64 {
        match self {
            Self::Poisson(Direction::Add, mixture) => -(-mixture.sampling_rate).ln_1p(),
            Self::Poisson(Direction::Remove, _)
            | Self::WithoutReplacement(_)
            | Self::ReplaceOne(_) => f64::INFINITY,
            Self::Atoms(atoms) => {
                let total: f64 = atoms.iter().map(|&(mass, _)| mass).sum();
                let losses = atoms.iter().map(|&(_, loss)| loss);
                if total < 1.0 { f64::INFINITY } else { losses.fold(f64::NEG_INFINITY, f64::max) }
            }
        }
    }

    /// The smallest step that keeps the grid within bounds.
    pub(super) fn step_min(&self, limits: Limits) -> f64 {
        let (low, high) = match self {
            Self::Poisson(direction, mixture) => mixture.losses(*direction, limits),
            Self::WithoutReplacement(mixture) => {
                let (_, high) = mixture.losses(Direction::Remove, limits);
                let (_, low) = mixture.losses(Direction::Add, limits);
                (-low, high)
            }
            Self::ReplaceOne(pair) => pair.losses(limits),
            Self::Atoms(atoms) => {
                let losses = atoms.iter().map(|&(_, loss)| loss);
                losses.fold((0.0, 0.0), |(low, high), loss| (loss.min(low), loss.max(high)))
            }
        };
        (high - low) / POINTS_MAX
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
            Self::Poisson(direction, mixture) => mixture.on_grid(*direction, step, limits),
            Self::WithoutReplacement(mixture) => joined(
                &mixture.on_grid(Direction::Add, step, limits),
                &mixture.on_grid(Direction::Remove, step, limits),
            ),
            Self::ReplaceOne(pair) => pair.on_grid(step, limits),
            Self::Atoms(atoms) => atoms_on_grid(atoms, step),
        }
    }
}

/// The grid whose divergence is that of `lower` below loss 0 and that of `upper` above.
///
/// The mass at a grid point depends on the divergence there and at its two neighbours only, so the
/// masses off 0 are the given ones; 0 takes the rest.
fn joined(lower: &LossGrid, upper: &LossGrid) -> LossGrid {
    let first = lower.first.min(-1);
    let last = (upper.first + upper.masses.len() as i64 - 1).max(1);
    let mut masses = vec![0.0; (last - first + 1) as usize];
    for (grid, side) in [(lower, -1), (upper, 1)] {
        for (index, &mass) in (grid.first..).zip(&grid.masses) {
            if index.signum() == side {
                masses[(index - first) as usize] = mass;
            }
        }
    }
    let rest = 1.0 - upper.infinite - masses.iter().sum::<f64>();
    masses[-first as usize] = rest.max(0.0);
    LossGrid { first, masses, infinite: upper.infinite }
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
