//! Plain loops over CPU tensors, where the tensor library would copy or allocate more than once.
//!
//! Each is compiled for every width of vector instructions and chooses the processor's widest.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, bail};

/// Calls `f` with the tensor's elements in row-major order, without a copy where possible.
pub(crate) fn with_elements<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    {
        let (storage, layout) = tensor.storage_and_layout();
        if let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) =
            (&*storage, layout.contiguous_offsets())
        {
            return Ok(f(&values[start..end]));
        }
    }
    Ok(f(&tensor.flatten_all()?.to_vec1::<f32>()?))
}

/// The elements of a contiguous f32 CPU storage.
pub(super) fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else { bail!("only f32 tensors are supported") };
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("only contiguous tensors are supported")
    };
    Ok(&values[start..end])
}

/// Defines functions whose bodies are compiled for each instruction set that matters and chosen
/// when they run. A body is inlined there whole, so it must not call what is not inlined itself.
macro_rules! vectorized {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),*) $(-> $output:ty)? $body:block)*) => {$(
        $(#[$meta])*
        $vis fn $name<'a>($($arg: $type),*) $(-> $output)? {
            struct Call<'a> { $($arg: $type),* }
            impl<'a> pulp::WithSimd for Call<'a> {
                type Output = vectorized!(@output $($output)?);
                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _simd: S) -> Self::Output {
                    let Call { $($arg),* } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Call { $($arg),* })
        }
    )*};
    (@output) => { () };
    (@output $output:ty) => { $output };
}
pub(super) use vectorized;

/// e to the `x`, for `x` from -87 to 88 and beyond as there; NaN stays. Relative error below 2e-7.
///
/// Source: Cephes, `expf`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding it rounds to a whole number, which then lies in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let rest = x - whole * LN_2.0 - whole * LN_2.1;
    let mut sum = 1.987_569_1e-4;
    for term in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        sum = sum * rest + term;
    }
    let power = (shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits());
    (sum * rest * rest + rest + 1.0) * f32::from_bits(power)
}

/// The sum of squares of [`sum_of_squares`], for use inside another loop.
#[inline(always)]
fn squares(values: &[f32]) -> f64 {
    const LANES: usize = 32;
    let mut lanes = [0.0_f64; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            let value = f64::from(value);
            *lane += value * value;
        }
    }
    let rest: f64 = rest.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    lanes.iter().sum::<f64>() + rest
}

vectorized! {
    /// Sum of squares, exact to far below f32 rounding: products and sums in f64.
    pub(crate) fn sum_of_squares(values: &'a [f32]) -> f64 {
        squares(values)
    }

    /// The sum of squares of each row.
    pub(crate) fn squares_of_rows(rows: &'a [f32], width: usize, sums: &'a mut [f64]) {
        for (sum, row) in sums.iter_mut().zip(rows.chunks_exact(width)) {
            *sum = squares(row);
        }
    }

    /// `sum += values`, element by element.
    pub(crate) fn add_assign(sum: &'a mut [f32], values: &'a [f32]) {
        for (sum, value) in sum.iter_mut().zip(values) {
            *sum += value;
        }
    }

    /// `sum += factor * values`, element by element.
    pub(crate) fn add_scaled_assign(sum: &'a mut [f32], values: &'a [f32], factor: f32) {
        for (sum, value) in sum.iter_mut().zip(values) {
            *sum += factor * value;
        }
    }

    /// `values = silu(gates) * ups`, element by element.
    pub(crate) fn gate(gates: &'a [f32], ups: &'a [f32], values: &'a mut [f32]) {
        for ((value, &gate), up) in values.iter_mut().zip(gates).zip(ups) {
            *value = gate / (1.0 + exp(-gate)) * up;
        }
    }

    /// Adds `factor` times every row to one row.
    pub(crate) fn add_scaled_rows_to_one(sum: &'a mut [f32], rows: &'a [f32], factor: f32) {
        for row in rows.chunks_exact(sum.len()) {
            for (sum, value) in sum.iter_mut().zip(row) {
                *sum += factor * value;
            }
        }
    }

    /// Multiplies every row by its factor.
    pub(crate) fn scale_rows_in_place(rows: &'a mut [f32], width: usize, factors: &'a [f32]) {
        for (row, &factor) in rows.chunks_exact_mut(width).zip(factors) {
            for value in row {
                *value *= factor;
            }
        }
    }

    /// Adds the bias to every row, and applies ReLU if asked for.
    pub(crate) fn finish_rows(rows: &'a mut [f32], bias: &'a [f32], relu: bool) {
        // Not `max`, which would turn NaN into 0 and hide it from the finite checks.
        let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
        for row in rows.chunks_exact_mut(bias.len()) {
            for (value, bias) in row.iter_mut().zip(bias) {
                let sum = *value + bias;
                *value = if sum < floor { floor } else { sum };
            }
        }
    }

    /// Applies ReLU in place; NaN stays.
    pub(crate) fn relu(values: &'a mut [f32]) {
        for value in values {
            *value = if *value < 0.0 { 0.0 } else { *value };
        }
    }

    /// Zeroes the gradient where the output of the ReLU is zero.
    pub(crate) fn mask(gradient: &'a mut [f32], outputs: &'a [f32]) {
        for (gradient, &output) in gradient.iter_mut().zip(outputs) {
            *gradient = if output == 0.0 { 0.0 } else { *gradient };
        }
    }

    /// Whether no element is NaN or infinite.
    pub(crate) fn all_finite(values: &'a [f32]) -> bool {
        values.iter().fold(true, |all, value| all & (value.abs() < f32::INFINITY))
    }

    /// Bytes as fractions of 255, rounded as a division would be.
    pub(crate) fn fractions(bytes: &'a [u8], values: &'a mut [f32]) {
        for (value, &byte) in values.iter_mut().zip(bytes) {
            *value = (f64::from(byte) * (1.0 / 255.0)) as f32;
        }
    }
}

/// Adds `scale * source` to a parameter where it lies.
pub(super) struct AddScaled<'a> {
    pub(super) source: &'a [f32],
    pub(super) scale: f32,
}

impl InplaceOp1 for AddScaled<'_> {
    fn name(&self) -> &'static str {
        "add-scaled"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CpuStorage::F32(values) = storage else { bail!("only f32 parameters are supported") };
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("only contiguous parameters are supported")
        };
        if end - start != self.source.len() {
            bail!("step of {} values on {} parameters", self.source.len(), end - start)
        }
        add_scaled_assign(&mut values[start..end], self.source, self.scale);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_those_of_a_division() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut values = vec![0.0; 256];
        fractions(&bytes, &mut values);
        for (byte, value) in bytes.iter().zip(values) {
            assert_eq!(value, f32::from(*byte) / 255.0);
        }
    }

    #[test]
    fn exponentials_are_those_of_the_library() {
        for step in -8700..=8800 {
            let x = step as f32 * 0.01;
            let (found, wanted) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found / wanted - 1.0).abs() < 2e-7, "{x}: {found} is not {wanted}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(f32::INFINITY) > 1e38);
    }

    #[test]
    fn nan_and_infinity_are_not_finite() {
        let mut values = vec![1.0; 77];
        assert!(all_finite(&values));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            values[70] = bad;
            assert!(!all_finite(&values));
        }
    }
}
