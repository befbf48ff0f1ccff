//! Matrix products with weights laid out in panels, every element summed in one fixed order.
//!
//! The library's products choose their blocking by the number of rows, so a row's result depends on
//! which rows share the batch. Here each element is one running sum along the inner dimension,
//! whatever the tile or the width of the registers: a request's tokens are the same alone and in any
//! batch. In a panel the columns of one inner step lie side by side, so a register holds sums of as
//! many outputs and none has to be summed across; weights stream from memory in one sequence.

use candle_core::{Device, Result, Tensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::model::with_elements;

/// Outputs of a panel: a multiple of three registers, whatever their width.
const PANEL: usize = 48;
/// Registers of one row of a tile.
const TILE: usize = 3;
/// Rows of inputs in one tile: with [`TILE`] and operands they fill 16 registers.
const ROWS: usize = 4;
/// The same for 32 registers.
const WIDE_ROWS: usize = 8;
/// Elements of inputs that stay in the second-level cache while the weights stream past.
const RESIDENT: usize = 1 << 17;
/// Multiplications below which a second thread costs more than it saves.
const PARALLEL_MIN: usize = 1 << 16;

/// Lays a weight out in panels.
///
/// - `weight`: `[outputs, width]`
/// - returns: `[panels, width, PANEL]`, with zeros behind the last output
///
/// # Errors
/// The tensor library's.
pub(super) fn in_panels(weight: &Tensor) -> Result<Tensor> {
    let (outputs, width) = weight.dims2()?;
    let panels = outputs.div_ceil(PANEL);
    let mut values = vec![0.0; panels * width * PANEL];
    with_elements(weight, |weight| {
        let rows = weight.par_chunks(PANEL * width);
        values.par_chunks_mut(PANEL * width).zip(rows).for_each(|(panel, rows)| {
            for (column, row) in rows.chunks_exact(width).enumerate() {
                for (place, &value) in panel[column..].iter_mut().step_by(PANEL).zip(row) {
                    *place = value;
                }
            }
        });
    })?;
    Tensor::from_vec(values, (panels, width, PANEL), &Device::Cpu)
}

/// Copies a row of a weight out of its panels.
///
/// - `panels`: `[panels, width, PANEL]`; `row`: `[width]`
pub(crate) fn row_of_panels(panels: &[f32], index: usize, row: &mut [f32]) {
    let panel = panels.chunks_exact(row.len() * PANEL).nth(index / PANEL);
    let values = panel.map(|panel| panel[index % PANEL..].iter().step_by(PANEL));
    row.iter_mut().zip(values.into_iter().flatten()).for_each(|(place, &value)| *place = value);
}

/// Computes `inputs · weightᵀ`.
///
/// - `inputs`: `[rows, width]`; `panels`: the weight `[panels, width, PANEL]`
/// - returns: `[rows, outputs]`
pub(crate) fn panel_product(
    inputs: &[f32],
    panels: &[f32],
    width: usize,
    outputs: usize,
) -> Vec<f32> {
    let rows = inputs.len() / width;
    let threads = rayon::current_num_threads();
    let mut values = vec![0.0; rows * outputs];
    if rows == 0 || outputs == 0 {
        return values;
    }
    if threads == 1 || rows * outputs * width < PARALLEL_MIN {
        let mut rows: Vec<&mut [f32]> = values.chunks_exact_mut(outputs).collect();
        Product { inputs, panels, width, rows: &mut rows }.run();
        return values;
    }
    // Several pieces a thread, so that a busy core does not hold up the other.
    let piece = outputs.div_ceil(PANEL).div_ceil(4 * threads);
    let count = outputs.div_ceil(piece * PANEL);
    let mut pieces: Vec<Vec<&mut [f32]>> = (0..count).map(|_| Vec::with_capacity(rows)).collect();
    for row in values.chunks_exact_mut(outputs) {
        for (rows, part) in pieces.iter_mut().zip(row.chunks_mut(piece * PANEL)) {
            rows.push(part);
        }
    }
    pieces.par_iter_mut().zip(panels.par_chunks(piece * PANEL * width)).for_each(
        |(rows, panels)| {
            Product { inputs, panels, width, rows }.run();
        },
    );
    values
}

/// The product on one thread, with the widest registers that the machine has.
struct Product<'a, 'b> {
    inputs: &'a [f32],
    panels: &'a [f32],
    width: usize,
    /// What goes where: `[outputs]` of every row.
    rows: &'a mut [&'b mut [f32]],
}

impl Product<'_, '_> {
    fn run(self) {
        Arch::new().dispatch(self);
    }

    #[inline(always)]
    fn tiled<S: Simd, const R: usize>(self, simd: S) {
        let Self { inputs, panels, width, rows } = self;
        let resident = (RESIDENT / width).next_multiple_of(R);
        for (inputs, rows) in inputs.chunks(resident * width).zip(rows.chunks_mut(resident)) {
            // With few rows several panels side by side: sums that do not wait for each other, and
            // more than one stream from memory.
            let together = match 2 * rows.len() {
                few if few <= R / 2 => 4,
                few if few <= R => 2,
                _ => 1,
            };
            for (index, group) in panels.chunks(together * width * PANEL).enumerate() {
                let first = index * together;
                let whole = group.len() == together * width * PANEL;
                let place = Place { panels: group, width, first };
                match together {
                    4 if whole => place.fill::<S, R, 4>(simd, inputs, rows),
                    2 if whole => place.fill::<S, R, 2>(simd, inputs, rows),
                    _ => {
                        for (at, panels) in group.chunks_exact(width * PANEL).enumerate() {
                            let place = Place { panels, width, first: first + at };
                            place.fill::<S, R, 1>(simd, inputs, rows);
                        }
                    }
                }
            }
        }
    }
}

impl WithSimd for Product<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 {
            self.tiled::<S, WIDE_ROWS>(simd);
        } else {
            self.tiled::<S, ROWS>(simd);
        }
    }
}

/// Panels whose outputs are computed together.
struct Place<'a> {
    /// `[panels, width, PANEL]`.
    panels: &'a [f32],
    width: usize,
    /// Index of the first of them.
    first: usize,
}

impl Place<'_> {
    /// Computes the outputs of all rows, up to `R` at a time, with `P` panels.
    #[inline(always)]
    fn fill<S: Simd, const R: usize, const P: usize>(
        &self,
        simd: S,
        inputs: &[f32],
        rows: &mut [&mut [f32]],
    ) {
        for part in 0..PANEL / (TILE * S::F32_LANES) {
            for (inputs, rows) in inputs.chunks(R * self.width).zip(rows.chunks_mut(R)) {
                // Counts that cannot be are no cases: each would be compiled.
                match rows.len() {
                    8 if P == 1 && R >= 8 => self.tile::<S, 8, P>(simd, part, inputs, rows),
                    7 if P == 1 && R >= 8 => self.tile::<S, 7, P>(simd, part, inputs, rows),
                    6 if P == 1 && R >= 8 => self.tile::<S, 6, P>(simd, part, inputs, rows),
                    5 if P == 1 && R >= 8 => self.tile::<S, 5, P>(simd, part, inputs, rows),
                    4 if P <= 2 => self.tile::<S, 4, P>(simd, part, inputs, rows),
                    3 if P <= 2 => self.tile::<S, 3, P>(simd, part, inputs, rows),
                    2 => self.tile::<S, 2, P>(simd, part, inputs, rows),
                    _ => self.tile::<S, 1, P>(simd, part, inputs, rows),
                }
            }
        }
    }

    /// Computes one tile: a part of each panel in `R` rows.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const P: usize>(
        &self,
        simd: S,
        part: usize,
        inputs: &[f32],
        rows: &mut [&mut [f32]],
    ) {
        let width = self.width;
        let parts = PANEL / (TILE * S::F32_LANES);
        let inputs: [&[f32]; R] = std::array::from_fn(|row| &inputs[row * width..][..width]);
        let panels: [&[[S::f32s; TILE]]; P] = std::array::from_fn(|panel| {
            let panel = &self.panels[panel * width * PANEL..][..width * PANEL];
            &S::as_simd_f32s(panel).0.as_chunks::<TILE>().0[..width * parts]
        });
        let mut sums = [[[simd.splat_f32s(0.0); TILE]; P]; R];
        for step in 0..width {
            let columns: [_; P] = std::array::from_fn(|panel| panels[panel][step * parts + part]);
            for r in 0..R {
                let input = simd.splat_f32s(inputs[r][step]);
                for p in 0..P {
                    for t in 0..TILE {
                        sums[r][p][t] = simd.mul_add_e_f32s(input, columns[p][t], sums[r][p][t]);
                    }
                }
            }
        }
        // Loops of constant length, or the sums would have to lie in memory.
        for (r, sums) in sums.iter().enumerate() {
            for (p, sums) in sums.iter().enumerate() {
                for (t, sum) in sums.iter().enumerate() {
                    let register = (self.first + p) * PANEL / S::F32_LANES + part * TILE + t;
                    if let Some(places) = rows[r].get_mut(register * S::F32_LANES..) {
                        let count = places.len().min(S::F32_LANES);
                        simd.partial_store_f32s(&mut places[..count], *sum);
                    }
                }
            }
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

    fn panels(weight: &[f32], width: usize) -> Vec<f32> {
        let shape = (weight.len() / width, width);
        let weight = Tensor::from_slice(weight, shape, &Device::Cpu).unwrap();
        with_elements(&in_panels(&weight).unwrap(), <[f32]>::to_vec).unwrap()
    }

    proptest! {
        #[test]
        fn a_row_is_the_same_in_any_batch(
            rows in 1_usize..80, outputs in 1_usize..120, width in 1_usize..150, seed: u32,
        ) {
            let (inputs, weight) = (values(rows * width, seed), values(outputs * width, !seed));
            let panels = panels(&weight, width);
            let together = panel_product(&inputs, &panels, width, outputs);
            for (row, found) in inputs.chunks(width).zip(together.chunks(outputs)) {
                prop_assert_eq!(&panel_product(row, &panels, width, outputs), found);
                for (weight, found) in weight.chunks(width).zip(found) {
                    let exact: f64 = row
                        .iter()
                        .zip(weight)
                        .map(|(x, w)| f64::from(*x) * f64::from(*w))
                        .sum();
                    prop_assert!((exact - f64::from(*found)).abs() < 1e-4, "{exact} {found}");
                }
            }
            for (index, weight) in weight.chunks(width).enumerate() {
                let mut row = vec![0.0; width];
                row_of_panels(&panels, index, &mut row);
                prop_assert_eq!(row, weight);
            }
        }
    }

    #[test]
    fn pieces_for_threads_change_nothing() {
        let (width, outputs) = (96, 1003);
        let inputs = values(3000 * width, 1);
        let panels = panels(&values(outputs * width, 2), width);
        let with = |threads, rows: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| panel_product(&inputs[..rows * width], &panels, width, outputs))
        };
        let whole = with(1, 3000);
        for rows in [1, 5, 63, 64, 3000] {
            assert!(with(3, rows) == whole[..rows * outputs], "{rows} rows");
        }
    }
}
