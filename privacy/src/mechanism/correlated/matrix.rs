//! The banded factor of the prefix-sum matrix, in integers, and its sensitivity.

use super::super::MechanismError;

/// The bands of a factor, at most.
const BANDS_MAX: u32 = 1024;
/// The steps of a run, at most.
const STEPS_MAX: u64 = 1 << 20;

/// How often, and how far apart, one unit may take part in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParticipationSchedule {
    steps: u64,
    separation: u32,
    participations: u32,
}

impl ParticipationSchedule {
    /// - `steps`: of the whole run, fixed beforehand
    /// - `separation`: two participations of one unit are at least so many steps apart
    /// - `participations`: of one unit, at most
    ///
    /// # Errors
    /// [`MechanismError::OutOfRange`] names the number that cannot be, among them more
    /// participations than fit.
    pub fn new(steps: u64, separation: u32, participations: u32) -> Result<Self, MechanismError> {
        let check = |field, value: f64, holds: bool, range| {
            if holds { Ok(()) } else { Err(MechanismError::OutOfRange { field, value, range }) }
        };
        check("steps", steps as f64, (1..=STEPS_MAX).contains(&steps), "between 1 and 2^20")?;
        check("separation", f64::from(separation), separation >= 1, "at least 1")?;
        let fit = steps.div_ceil(u64::from(separation.max(1)));
        let holds = participations >= 1 && u64::from(participations) <= fit;
        let range = "at least 1, and as many as fit into the steps at this separation";
        check("participations", f64::from(participations), holds, range)?;
        Ok(Self { steps, separation, participations })
    }

    /// The data is divided into `groups` fixed groups, and step t takes all of group t modulo
    /// `groups`.
    ///
    /// # Errors
    /// [`MechanismError::OutOfRange`] for no step, no group or too many steps.
    pub fn cyclic(steps: u64, groups: u32) -> Result<Self, MechanismError> {
        let participations = steps.min(STEPS_MAX).div_ceil(u64::from(groups.max(1))) as u32;
        Self::new(steps, groups, participations)
    }

    /// Steps of the whole run.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.steps
    }

    /// The least distance of two participations of one unit, in steps.
    #[must_use]
    pub const fn separation(&self) -> u32 {
        self.separation
    }

    /// Participations of one unit, at most.
    #[must_use]
    pub const fn participations(&self) -> u32 {
        self.participations
    }
}

/// A lower-triangular Toeplitz matrix with few bands and integer coefficients, close to the square
/// root of the prefix-sum matrix.
///
/// The square root has the coefficients `c_0 = 1`, `c_j = c_{j-1} (2 j - 1) / (2 j)`. The first
/// `bands` of them are taken, times [`SCALE`](Self::SCALE), rounded to integers; the others are 0.
/// Rounding a falling sequence leaves it falling, which is all that the sensitivity needs.
///
/// Sources: Fichtenberger, Henzinger, Upadhyay 2023, arXiv:2202.11205 (coefficients); Kalinin,
/// Lampert 2024, arXiv:2405.13763 (the banded square root and its sensitivity).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BandedMatrix {
    coefficients: Vec<u32>,
}

impl BandedMatrix {
    /// The coefficient on the diagonal.
    pub const SCALE: u32 = 256;

    /// - `bands`: 1 for independent noise, up to 1024
    ///
    /// # Errors
    /// [`MechanismError::OutOfRange`].
    pub fn new(bands: u32) -> Result<Self, MechanismError> {
        if !(1..=BANDS_MAX).contains(&bands) {
            let (field, range) = ("bands", "between 1 and 1024");
            return Err(MechanismError::OutOfRange { field, value: f64::from(bands), range });
        }
        let exact = (0..bands).scan(1.0, |coefficient, j| {
            if j > 0 {
                *coefficient *= f64::from(2 * j - 1) / f64::from(2 * j);
            }
            Some(*coefficient)
        });
        let coefficients =
            exact.map(|coefficient| (coefficient * f64::from(Self::SCALE)).round() as u32);
        Ok(Self { coefficients: coefficients.collect() })
    }

    /// One column from the diagonal downwards, in units of 1 / [`SCALE`](Self::SCALE).
    #[must_use]
    pub fn coefficients(&self) -> &[u32] {
        &self.coefficients
    }

    /// How far the released vectors of a whole run move in L2, in clipping norms.
    ///
    /// With non-negative coefficients the worst contributions all point the same way, and with
    /// falling ones the worst pattern is as early and as dense as the schedule allows: steps 0, b,
    /// 2 b... (Kalinin, Lampert 2024, theorem 2). So this is the L2 norm of the sum of those
    /// columns, in integer arithmetic.
    #[must_use]
    pub fn sensitivity(&self, schedule: &ParticipationSchedule) -> f64 {
        let bands = self.coefficients.len() as u64;
        let separation = u64::from(schedule.separation);
        // Sums of every `separation`-th coefficient, up to each position.
        let mut strided: Vec<u64> = Vec::with_capacity(self.coefficients.len());
        for (position, &coefficient) in (0u64..).zip(&self.coefficients) {
            let before = position.checked_sub(separation).map_or(0, |at| strided[at as usize]);
            strided.push(before + u64::from(coefficient));
        }
        // Σ_m c_(row - m separation), over all m.
        let unlimited = |row: u64| {
            let beyond = (row + 1).saturating_sub(bands).div_ceil(separation);
            row.checked_sub(beyond * separation).map_or(0, |at| strided[at as usize])
        };
        let ended = u64::from(schedule.participations) * separation;
        let squared: u128 = (0..schedule.steps)
            .map(|row| {
                let all = unlimited(row) - row.checked_sub(ended).map_or(0, unlimited);
                u128::from(all).pow(2)
            })
            .sum();
        // The factor covers the two roundings.
        (squared as f64).sqrt() / f64::from(Self::SCALE) * (1.0 + 4.0 * f64::EPSILON)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(steps: u64, separation: u32, participations: u32) -> ParticipationSchedule {
        ParticipationSchedule::new(steps, separation, participations).expect("valid")
    }

    /// All participation patterns of short runs, one by one.
    #[test]
    fn no_pattern_moves_the_run_by_more_than_the_sensitivity() {
        for bands in [1, 2, 3, 5, 9] {
            let matrix = BandedMatrix::new(bands).expect("valid");
            for steps in 1..=11u64 {
                for separation in 1..=5u32 {
                    for participations in 1..=steps.div_ceil(u64::from(separation)) as u32 {
                        let worst = (0u32..1 << steps)
                            .filter(|pattern| {
                                let set: Vec<u32> =
                                    (0..steps as u32).filter(|at| pattern >> at & 1 == 1).collect();
                                set.len() <= participations as usize
                                    && set.windows(2).all(|pair| pair[1] - pair[0] >= separation)
                            })
                            .map(|pattern| moved(&matrix, steps as usize, pattern))
                            .max()
                            .expect("the empty pattern");
                        let worst = (worst as f64).sqrt() / f64::from(BandedMatrix::SCALE);
                        let bound =
                            matrix.sensitivity(&schedule(steps, separation, participations));
                        assert!((bound / worst - 1.0).abs() < 1e-14 && bound >= worst);
                    }
                }
            }
        }
    }

    /// The squared length of the sum of the columns in `pattern`.
    fn moved(matrix: &BandedMatrix, steps: usize, pattern: u32) -> u64 {
        let mut rows = vec![0u64; steps];
        for column in (0..steps).filter(|at| pattern >> at & 1 == 1) {
            for (row, &coefficient) in rows[column..].iter_mut().zip(matrix.coefficients()) {
                *row += u64::from(coefficient);
            }
        }
        rows.iter().map(|row| row * row).sum()
    }

    /// jax-privacy 2.0.0, `toeplitz.minsep_sensitivity_squared` and
    /// `toeplitz.optimal_max_error_strategy_coefs`, for these very integer coefficients.
    #[test]
    fn coefficients_and_sensitivities_agree_with_an_independent_implementation() {
        let rows = [
            (1, 1000, 100, 10, 3.162_277_660_168_379_5),
            (8, 100, 8, 13, 4.703_352_102_075_046),
            (8, 64, 10, 3, 2.271_191_303_374_385),
            (32, 2000, 20, 100, 17.478_808_842_278_752),
            (100, 1000, 50, 20, 8.461_701_222_168_163),
            (4, 9, 1, 9, 5.956_220_487_859_73),
            (512, 1000, 10, 100, 70.388_922_335_643_43),
        ];
        for (bands, steps, separation, participations, expected) in rows {
            let matrix = BandedMatrix::new(bands).expect("valid");
            let ours = matrix.sensitivity(&schedule(steps, separation, participations));
            assert!((ours / expected - 1.0).abs() < 1e-13, "{bands} {steps}: {ours} {expected}");
        }
        let matrix = BandedMatrix::new(8).expect("valid");
        assert_eq!(matrix.coefficients(), [256, 128, 96, 80, 70, 63, 58, 54]);
    }

    #[test]
    fn impossible_matrices_and_schedules_are_named() {
        assert!(BandedMatrix::new(0).is_err() && BandedMatrix::new(1025).is_err());
        for (steps, separation, participations) in
            [(0, 1, 1), (1 << 21, 1, 1), (10, 0, 1), (10, 3, 5), (10, 3, 0), (10, u32::MAX, 2)]
        {
            assert!(ParticipationSchedule::new(steps, separation, participations).is_err());
        }
        assert_eq!(ParticipationSchedule::cyclic(10, 3), Ok(schedule(10, 3, 4)));
        assert!(ParticipationSchedule::cyclic(10, 0).is_err());
        assert!(ParticipationSchedule::cyclic(u64::MAX, 1).is_err());
    }
}
