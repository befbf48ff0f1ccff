//! Matrix products with an adapter's few rows, whose every element is summed in one fixed order.
//!
//! A row's result does not depend on which rows share the batch, as in the panels of whole weights;
//! but factors of rank 8 would fill a sixth of a panel. Here a register runs along the inner dimension.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Rows of inputs in one register tile.
const INPUTS: usize = 4;
/// Rows of weights in one register tile: with [`INPUTS`] and operands it fills 16 registers.
const TILE: usize = 3;
/// The same for 32 registers.
const WIDE_TILE: usize = 6;
/// Inputs that stay in the second-level cache while the weights stream past.
const ROWS_RESIDENT: usize = 64;
/// Multiplications below which a second thread costs more than it saves.
const PARALLEL_MIN: usize = 1 << 16;

/// Computes `inputs · weightᵀ`.
///
/// - `inputs`: `[rows, width]`; `weight`: `[outputs, width]`; both row-major
/// - returns: `[rows, outputs]`
pub(crate) fn product(inputs: &[f32], weight: &[f32], width: usize) -> Vec<f32> {
    let (rows, outputs) = (inputs.len() / width, weight.len() / width);
    let threads = rayon::current_num_threads();
    let mut values = vec![0.0; rows * outputs];
    if rows == 0 || outputs == 0 {
        return values;
    }
    if threads == 1 || rows * outputs * width < PARALLEL_MIN {
        Product { inputs, weight, width, values: &mut values }.run();
    } else if rows == 1 {
        // Several pieces a thread, so that a busy core does not hold up the other.
        let piece = outputs.div_ceil(4 * threads).next_multiple_of(WIDE_TILE);
        values
            .par_chunks_mut(piece)
            .zip(weight.par_chunks(piece * width))
            .for_each(|(values, weight)| Product { inputs, weight, width, values }.run());
    } else if rows < ROWS_RESIDENT {
        let piece = outputs.div_ceil(2 * threads).next_multiple_of(WIDE_TILE);
        let columns: Vec<(usize, Vec<f32>)> = weight
            .par_chunks(piece * width)
            .map(|weight| {
                let mut values = vec![0.0; rows * (weight.len() / width)];
                Product { inputs, weight, width, values: &mut values }.run();
                (weight.len() / width, values)
            })
            .collect();
        for (row, values) in values.chunks_exact_mut(outputs).enumerate() {
            let mut rest = values;
            for (count, piece) in &columns {
                let (here, tail) = rest.split_at_mut(*count);
                here.copy_from_slice(&piece[row * count..(row + 1) * count]);
                rest = tail;
            }
        }
    } else {
        let piece = rows.div_ceil(2 * threads).next_multiple_of(INPUTS);
        values
            .par_chunks_mut(piece * outputs)
            .zip(inputs.par_chunks(piece * width))
            .for_each(|(values, inputs)| Product { inputs, weight, width, values }.run());
    }
    values
}

/// The product on one thread, with the widest registers that the machine has.
struct Product<'a> {
    inputs: &'a [f32],
    weight: &'a [f32],
    width: usize,
    values: &'a mut [f32],
}

impl Product<'_> {
    fn run(self) {
        Arch::new().dispatch(self);
    }

    #[inline(always)]
    fn tiled<S: Simd, const COLUMNS: usize>(self, simd: S) {
        let Self { inputs, weight, width, values } = self;
        let outputs = weight.len() / width;
        let resident = ROWS_RESIDENT * width;
        for (inputs, values) in
            inputs.chunks(resident).zip(values.chunks_mut(ROWS_RESIDENT * outputs))
        {
            for (tile, weights) in weight.chunks(COLUMNS * width).enumerate() {
                let column = tile * COLUMNS;
                for (inputs, values) in
                    inputs.chunks(INPUTS * width).zip(values.chunks_mut(INPUTS * outputs))
                {
                    let place = (values, outputs, column);
                    let rows = inputs.len() / width;
                    if weights.len() < COLUMNS * width {
                        ragged(simd, inputs, weights, width, place);
                    } else if rows == INPUTS {
                        dots::<S, INPUTS, COLUMNS>(simd, inputs, weights, width, place);
                    } else if rows == 3 {
                        dots::<S, 3, COLUMNS>(simd, inputs, weights, width, place);
                    } else if rows == 2 {
                        dots::<S, 2, COLUMNS>(simd, inputs, weights, width, place);
                    } else {
                        dots::<S, 1, COLUMNS>(simd, inputs, weights, width, place);
                    }
                }
            }
        }
    }
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 {
            self.tiled::<S, WIDE_TILE>(simd);
        } else {
            self.tiled::<S, TILE>(simd);
        }
    }
}

/// A tile that is not whole: two elements at a time, summed in the same order.
#[inline(always)]
fn ragged<S: Simd>(
    simd: S,
    inputs: &[f32],
    weights: &[f32],
    width: usize,
    (values, outputs, column): (&mut [f32], usize, usize),
) {
    for (row, input) in inputs.chunks_exact(width).enumerate() {
        for (pair, weights) in weights.chunks(2 * width).enumerate() {
            let place = (&mut values[row * outputs..], outputs, column + 2 * pair);
            if weights.len() == 2 * width {
                dots::<S, 1, 2>(simd, input, weights, width, place);
            } else {
                dots::<S, 1, 1>(simd, input, weights, width, place);
            }
        }
    }
}

/// `R` rows of inputs with `C` rows of weights.
#[inline(always)]
fn dots<S: Simd, const R: usize, const C: usize>(
    simd: S,
    inputs: &[f32],
    weights: &[f32],
    width: usize,
    (values, outputs, column): (&mut [f32], usize, usize),
) {
    let split = |slice: &'_ [f32], row: usize| -> (usize, usize) {
        debug_assert!(slice.len() >= (row + 1) * width);
        (row * width, (row + 1) * width)
    };
    let input: [_; R] = std::array::from_fn(|row| {
        let (start, end) = split(inputs, row);
        S::as_simd_f32s(&inputs[start..end])
    });
    let weight: [_; C] = std::array::from_fn(|row| {
        let (start, end) = split(weights, row);
        S::as_simd_f32s(&weights[start..end])
    });
    let mut sums = [[simd.splat_f32s(0.0); C]; R];
    let steps = input[0].0.len();
    let heads_in: [_; R] = std::array::from_fn(|row| &input[row].0[..steps]);
    let heads_weight: [_; C] = std::array::from_fn(|row| &weight[row].0[..steps]);
    for step in 0..steps {
        let columns: [_; C] = std::array::from_fn(|c| heads_weight[c][step]);
        for r in 0..R {
            let x = heads_in[r][step];
            for c in 0..C {
                sums[r][c] = simd.mul_add_e_f32s(x, columns[c], sums[r][c]);
            }
        }
    }
    if !input[0].1.is_empty() {
        let columns: [_; C] = std::array::from_fn(|c| simd.partial_load_f32s(weight[c].1));
        for r in 0..R {
            let x = simd.partial_load_f32s(input[r].1);
            for c in 0..C {
                sums[r][c] = simd.mul_add_e_f32s(x, columns[c], sums[r][c]);
            }
        }
    }
    for r in 0..R {
        for c in 0..C {
            values[r * outputs + column + c] = simd.reduce_sum_f32s(sums[r][c]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_769).wrapping_add(1);
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(next).collect()
    }

    proptest! {
        #[test]
        fn a_row_is_the_same_in_any_batch(
            rows in 1_usize..80, outputs in 1_usize..40, width in 1_usize..150, seed: u32,
        ) {
            let (inputs, weight) = (values(rows * width, seed), values(outputs * width, !seed));
            let together = product(&inputs, &weight, width);
            for (row, found) in inputs.chunks(width).zip(together.chunks(outputs)) {
                prop_assert_eq!(&product(row, &weight, width), found);
                for (weight, found) in weight.chunks(width).zip(found) {
                    let exact: f64 = row
                        .iter()
                        .zip(weight)
                        .map(|(x, w)| f64::from(*x) * f64::from(*w))
                        .sum();
                    prop_assert!((exact - f64::from(*found)).abs() < 1e-4, "{exact} {found}");
                }
            }
        }
    }

    #[test]
    fn pieces_for_threads_change_nothing() {
        let width = 96;
        let (inputs, weight) = (values(70 * width, 1), values(203 * width, 2));
        let whole = product(&inputs, &weight, width);
        for rows in [1, 5, 63, 64] {
            assert_eq!(product(&inputs[..rows * width], &weight, width), whole[..rows * 203]);
        }
    }
}
