//! Plain loops over CPU tensors, where the tensor library would copy or allocate more than once.

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

/// Sum of squares, exact to far below f32 rounding: products and sums in f64, eight lanes.
pub(crate) fn sum_of_squares(values: &[f32]) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0.0_f64; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest: f64 = chunks.remainder().iter().map(|&value| f64::from(value).powi(2)).sum();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            let value = f64::from(value);
            *lane += value * value;
        }
    }
    lanes.iter().sum::<f64>() + rest
}

/// `sum += values`, element by element.
pub(crate) fn add_assign(sum: &mut [f32], values: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += value;
    }
}

/// `sum += factor * values`, element by element.
pub(crate) fn add_scaled_assign(sum: &mut [f32], values: &[f32], factor: f32) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += factor * value;
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
