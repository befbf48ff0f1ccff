//! Matrix products into memory that is already there.

use gemm::Parallelism;

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
/// The terms of an element are added in the order of the inner dimension, in blocks, whatever the
/// number of threads.
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
        for (rows, inner, columns) in [(1, 1, 1), (3, 5, 7), (20, 784, 200), (200, 20, 31)] {
            let (left, right) = (values(rows * inner), values(inner * columns));
            // The left matrix stored transposed, too.
            let mut turned = vec![0.0; rows * inner];
            for row in 0..rows {
                for column in 0..inner {
                    turned[column * rows + row] = left[row * inner + column];
                }
            }
            for threads in [1, 2] {
                for before in [Before::Ignored, Before::Added] {
                    let mut found = vec![2.0; rows * columns];
                    let mut also = found.clone();
                    let (a, b) =
                        (Matrix::new(&left, rows, inner), Matrix::new(&right, inner, columns));
                    multiply(a, b, -0.5, &mut found, before, threads);
                    let a = Matrix::new(&turned, inner, rows).t();
                    multiply(a, b, -0.5, &mut also, before, threads);
                    for (index, (found, also)) in found.iter().zip(also).enumerate() {
                        let (row, column) = (index / columns, index % columns);
                        let product: f32 = (0..inner)
                            .map(|k| left[row * inner + k] * right[k * columns + column])
                            .sum();
                        let start = if before == Before::Added { 2.0 } else { 0.0 };
                        let expected = start - 0.5 * product;
                        assert!((found - expected).abs() < 1e-3, "{found} is not {expected}");
                        assert!((also - expected).abs() < 1e-3, "{also} is not {expected}");
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
