//! Matrix products into memory that is already there.

use gemm::Parallelism;
use rayon::prelude::*;

use super::dots::{self, Dots};

/// Products of fewer terms stay on the calling thread.
const TERMS_MIN: usize = 1 << 20;

/// A view of f32 values as a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// The first `rows · columns` values, row by row.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        let values = &values[..rows * columns];
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// The transpose, without a copy.
    pub(crate) const fn t(self) -> Self {
        let Self { values, rows, columns, row_stride, column_stride } = self;
        let (rows, columns) = (columns, rows);
        Self { values, rows, columns, row_stride: column_stride, column_stride: row_stride }
    }
}

/// What the destination of a product holds before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// Anything; it is overwritten.
    Ignored,
    /// A term of the result.
    Added,
}

/// `destination = scale · left · right`, plus what it held if asked for; row by row.
///
/// The terms of an element are added in an order that follows from the shapes and the processor's
/// vectors, whatever the number of threads.
///
/// - `threads`: at most so many; 1 stays on the calling thread
///
/// # Panics
/// If the shapes do not fit together.
pub(crate) fn multiply(
    left: Matrix<'_>,
    right: Matrix<'_>,
    scale: f32,
    destination: &mut [f32],
    before: Before,
    threads: usize,
) {
    let (rows, inner, columns) = (left.rows, left.columns, right.columns);
    assert_eq!(inner, right.rows, "the inner dimensions agree");
    assert_eq!(destination.len(), rows * columns, "the destination has the product's size");
    let rows_with_rows = left.column_stride == 1 && right.row_stride == 1;
    if rows_with_rows && rows <= dots::ROWS_MAX && inner >= dots::INNER_MIN {
        let added = before == Before::Added;
        let part = |left, destination| {
            let right = right.values;
            Dots { left, right, inner, columns, scale, added, destination }.run();
        };
        if threads == 1 || columns == 0 || rows * inner * columns < TERMS_MIN {
            part(left.values, destination);
        } else {
            let share = rows.div_ceil(threads);
            left.values
                .par_chunks(share * inner)
                .zip(destination.par_chunks_mut(share * columns))
                .for_each(|(left, destination)| part(left, destination));
        }
        return;
    }
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    let (added, alpha) = (before == Before::Added, 1.0);
    #[expect(unsafe_code, reason = "the product works on pointers; all bounds are checked here")]
    // SAFETY: a `Matrix` holds `rows · columns` values and its strides are those of one row-major
    // order or its transpose, so every index is in bounds; the destination was checked above, is
    // row-major, and cannot overlap the others as it is borrowed uniquely.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            destination.as_mut_ptr(),
            1,
            columns.cast_signed(),
            added,
            left.values.as_ptr(),
            left.column_stride.cast_signed(),
            left.row_stride.cast_signed(),
            right.values.as_ptr(),
            right.column_stride.cast_signed(),
            right.row_stride.cast_signed(),
            alpha,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_agree_with_the_definition() {
        let values = |count: usize| (0..count).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>();
        let general = [(1, 1, 1), (3, 5, 7), (20, 784, 200), (200, 20, 31)];
        let of_rows = [(1, 64, 1), (2, 77, 13), (7, 100, 4), (64, 65, 9), (65, 300, 70)];
        for (rows, inner, columns) in general.into_iter().chain(of_rows) {
            let (left, right) = (values(rows * inner), values(inner * columns));
            // Both matrices stored transposed, too.
            let transposed = |values: &[f32], width: usize| {
                let column = |column| values.iter().skip(column).step_by(width).copied();
                (0..width).flat_map(column).collect::<Vec<_>>()
            };
            let (left_turned, right_turned) =
                (transposed(&left, inner), transposed(&right, columns));
            let lefts =
                [Matrix::new(&left, rows, inner), Matrix::new(&left_turned, inner, rows).t()];
            let rights = [
                Matrix::new(&right, inner, columns),
                Matrix::new(&right_turned, columns, inner).t(),
            ];
            for (left_view, right_view) in lefts.into_iter().flat_map(|a| rights.map(|b| (a, b))) {
                for before in [Before::Ignored, Before::Added] {
                    let product = |threads| {
                        let mut found = vec![2.0; rows * columns];
                        multiply(left_view, right_view, -0.5, &mut found, before, threads);
                        found
                    };
                    let found = product(1);
                    assert_eq!(found, product(2));
                    for (index, found) in found.into_iter().enumerate() {
                        let (row, column) = (index / columns, index % columns);
                        let product: f32 = (0..inner)
                            .map(|k| left[row * inner + k] * right[k * columns + column])
                            .sum();
                        let start = if before == Before::Added { 2.0 } else { 0.0 };
                        let expected = start - 0.5 * product;
                        assert!((found - expected).abs() < 1e-3, "{found} is not {expected}");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "inner dimensions")]
    fn shapes_that_do_not_fit_panic() {
        let values = [0.0; 6];
        let (a, b) = (Matrix::new(&values, 2, 3), Matrix::new(&values, 2, 3));
        multiply(a, b, 1.0, &mut [0.0; 6], Before::Ignored, 1);
    }
}
