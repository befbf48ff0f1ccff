//! Products of few rows with rows: both sides lie along the inner dimension.
//!
//! A general product first copies its sides into the order in which it reads them. With a small
//! batch that copy of a weight matrix costs as much as the product; here rows are read where they
//! are.

use std::array::from_fn;

use pulp::{Simd, WithSimd};

/// The largest number of rows for which this is faster than the general product.
pub(super) const ROWS_MAX: usize = 64;
/// The smallest inner dimension with which adding up the lanes does not show.
pub(super) const INNER_MIN: usize = 64;

/// `destination[r, c] = scale · Σₖ left[r, k] · right[c, k]`, plus what it held if asked for.
///
/// The terms of an element are added in one order, whatever the numbers of rows and columns.
pub(super) struct Dots<'a> {
    /// Shape `[rows, inner]`.
    pub(super) left: &'a [f32],
    /// Shape `[columns, inner]`.
    pub(super) right: &'a [f32],
    /// At least [`INNER_MIN`], which no vector is wider than.
    pub(super) inner: usize,
    pub(super) columns: usize,
    pub(super) scale: f32,
    pub(super) added: bool,
    /// Shape `[rows, columns]`.
    pub(super) destination: &'a mut [f32],
}

impl WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // As many sums as the registers hold beside the rows that they are made of.
        if S::REGISTER_COUNT >= 32 {
            self.in_tiles::<S, 4, 6>(simd);
        } else {
            self.in_tiles::<S, 3, 4>(simd);
        }
    }
}

impl Dots<'_> {
    /// Does it with the processor's widest vectors.
    pub(super) fn run(self) {
        pulp::Arch::new().dispatch(self);
    }

    /// All of it, in tiles of at most `H` rows and `W` columns; rows of `right` stay in the fast
    /// cache.
    #[inline(always)]
    fn in_tiles<S: Simd, const H: usize, const W: usize>(mut self, simd: S) {
        let (mut column, rows) = (0, self.left.len() / self.inner);
        while column < self.columns {
            let width = if self.columns - column >= W { W } else { 1 };
            for row in (0..rows).step_by(H) {
                match (rows - row, width == W) {
                    (1, true) => self.tile::<S, 1, W>(simd, row, column),
                    (1, false) => self.tile::<S, 1, 1>(simd, row, column),
                    (2, true) => self.tile::<S, 2, W>(simd, row, column),
                    (2, false) => self.tile::<S, 2, 1>(simd, row, column),
                    (3, true) => self.tile::<S, 3, W>(simd, row, column),
                    (3, false) => self.tile::<S, 3, 1>(simd, row, column),
                    (_, true) => self.tile::<S, H, W>(simd, row, column),
                    (_, false) => self.tile::<S, H, 1>(simd, row, column),
                }
            }
            column += width;
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const H: usize, const W: usize>(
        &mut self,
        simd: S,
        row: usize,
        column: usize,
    ) {
        let (inner, whole) = (self.inner, self.inner / S::F32_LANES);
        let left: [&[f32]; H] = from_fn(|r| &self.left[(row + r) * inner..][..inner]);
        let right: [&[f32]; W] = from_fn(|c| &self.right[(column + c) * inner..][..inner]);
        let left_vectors: [&[S::f32s]; H] = from_fn(|r| &S::as_simd_f32s(left[r]).0[..whole]);
        let right_vectors: [&[S::f32s]; W] = from_fn(|c| &S::as_simd_f32s(right[c]).0[..whole]);
        let zero = simd.splat_f32s(0.0);
        let mut sums = [[zero; W]; H];
        for k in 0..whole {
            let x: [S::f32s; H] = from_fn(|r| left_vectors[r][k]);
            for c in 0..W {
                let y = right_vectors[c][k];
                for r in 0..H {
                    sums[r][c] = simd.mul_add_e_f32s(x[r], y, sums[r][c]);
                }
            }
        }
        let rest = inner % S::F32_LANES;
        if rest > 0 {
            // The last whole vector, of which only what was not counted counts.
            let first = inner - S::F32_LANES;
            let (start, end) = ((S::F32_LANES - rest) as u32, S::F32_LANES as u32);
            let mask = simd.mask_between_m32s(start, end).mask();
            let mut x = [zero; H];
            for r in 0..H {
                let last = S::as_simd_f32s(&left[r][first..]).0[0];
                x[r] = simd.select_f32s(mask, last, zero);
            }
            for c in 0..W {
                let y = S::as_simd_f32s(&right[c][first..]).0[0];
                for r in 0..H {
                    sums[r][c] = simd.mul_add_e_f32s(x[r], y, sums[r][c]);
                }
            }
        }
        // A copy that may lie in memory, so that the sums themselves stay in registers.
        let mut done = [[zero; W]; H];
        for r in 0..H {
            for c in 0..W {
                done[r][c] = sums[r][c];
            }
        }
        for (r, sums) in done.iter().enumerate() {
            let out = &mut self.destination[(row + r) * self.columns + column..][..W];
            for (out, &sum) in out.iter_mut().zip(sums) {
                let sum = self.scale * simd.reduce_sum_f32s(sum);
                *out = if self.added { *out + sum } else { sum };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<S: Simd>(simd: S) {
        let values = |count: usize| (0..count).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>();
        for (rows, inner, columns) in [(1, 64, 1), (2, 77, 13), (3, 80, 7), (9, 131, 12)] {
            let (left, right) = (values(rows * inner), values(columns * inner));
            let mut found = vec![f32::NAN; rows * columns];
            let destination = &mut found[..];
            let (scale, added) = (2.0, false);
            let (left, right) = (&left[..], &right[..]);
            simd.vectorize(Dots { left, right, inner, columns, scale, added, destination });
            for (index, found) in found.into_iter().enumerate() {
                let row = &left[index / columns * inner..][..inner];
                let column = &right[index % columns * inner..][..inner];
                let expected = 2.0 * row.iter().zip(column).map(|(a, b)| a * b).sum::<f32>();
                assert!((found - expected).abs() < 1e-3, "{found} is not {expected}");
            }
        }
    }

    /// Those of other processors than this one, too.
    #[test]
    fn every_kind_of_vectors_gives_the_products() {
        check(pulp::Scalar::new());
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            check(simd);
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V4::try_new() {
            check(simd);
        }
    }
}
