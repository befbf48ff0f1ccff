//! The sum of a round's updates, on its way off the lattice.

use std::ops::Range;

use tributary_privacy::lattice::ModularSum;

/// The sum of a round's updates.
pub(super) enum Total {
    /// Sums that are still on the lattice, each with its weight.
    Lattice(Vec<(f64, ModularSum)>),
    /// Shape `[dimension]`, model units.
    Values(Vec<f64>),
}

impl Total {
    /// Writes some of its coordinates, in model units.
    pub(super) fn read(&self, range: Range<usize>, block: &mut [f64]) {
        let sums = match self {
            Self::Values(values) => return block.copy_from_slice(&values[range]),
            Self::Lattice(sums) => sums,
        };
        let ((weight, first), others) = sums.split_first().expect("an update was summed");
        first.lattice().dequantize_sum_into(&first.values()[range.clone()], block);
        if *weight != 1.0 {
            block.iter_mut().for_each(|value| *value *= weight);
        }
        for (weight, other) in others {
            let addends = other.lattice().dequantize_sum(&other.values()[range.clone()]);
            block.iter_mut().zip(addends).for_each(|(value, addend)| *value += weight * addend);
        }
    }

    /// All of it, where somebody looks at it before the base moves.
    pub(super) fn into_values(self, dimension: usize) -> Vec<f64> {
        match self {
            Self::Values(values) => values,
            Self::Lattice(_) => {
                let mut values = vec![0.0; dimension];
                self.read(0..dimension, &mut values);
                values
            }
        }
    }

    /// The memory of a sum, empty, for the next round.
    pub(super) fn into_empty(self) -> Option<ModularSum> {
        match self {
            Self::Values(_) => None,
            Self::Lattice(sums) => sums.into_iter().next().map(|(_, mut sum)| {
                sum.clear();
                sum
            }),
        }
    }
}
