//! From a tape to the sum of clipped per-example gradients.

use candle_core::{Result, Tensor};
use thiserror::Error;

use super::{
    kernels::{add_assign, sum_of_squares, with_elements},
    linear::LinearSpans,
    tape::{Record, Tape},
};

/// Says why no clipped sum exists.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClippingError {
    /// The gradient of an example is NaN, infinite or so large that f32 clips it wrongly.
    #[error(
        "the gradient of example {example} of the batch is not finite or absurdly large; lower the learning rate or check its features"
    )]
    NonFinite {
        /// Position in the batch, from 0.
        example: usize,
    },
    /// The tensor library failed.
    #[error("the tensor library failed while clipping")]
    Tensor(#[from] candle_core::Error),
}

/// The largest activation, and the largest gradient norm in clipping norms, that is clipped.
///
/// Beyond, a clip factor or a scaled gradient may fall among the denormal f32 numbers, whose
/// rounding error is not relative, and the bound on a contribution would no longer hold.
const MAGNITUDE_MAX: f64 = (1_u64 << 40) as f64;

impl Tape {
    /// Adds the sum of the per-example gradients, each scaled to at most `norm_max`, to `sum`.
    ///
    /// Flat clipping over all recorded layers jointly. The norms are exact to f64 for the recorded
    /// f32 values, so a clipped contribution exceeds `norm_max` by no more than the rounding of its
    /// own f32 factor (2⁻²³ relative).
    ///
    /// - `sum`: `[num_parameters]`, model units; untouched on error
    /// - returns: the norm of each example before clipping
    ///
    /// # Errors
    /// [`ClippingError::NonFinite`] naming the example.
    ///
    /// Source: Abadi et al. 2016, arXiv:1607.00133 (clipping); Bu et al. 2022, arXiv:2210.00038
    /// (norms and sum from activations and output gradients).
    pub(crate) fn add_clipped_sum(
        &self,
        examples: usize,
        norm_max: f64,
        sum: &mut [f32],
    ) -> std::result::Result<Vec<f64>, ClippingError> {
        let records = self.take();
        let mut norms = vec![0.0; examples];
        for record in &records {
            record.add_squared_norms(&mut norms)?;
        }
        let mut factors = Vec::with_capacity(examples);
        for (example, norm) in norms.iter_mut().enumerate() {
            *norm = norm.sqrt();
            if norm.is_nan() || *norm > norm_max * MAGNITUDE_MAX {
                return Err(ClippingError::NonFinite { example });
            }
            factors.push(if *norm > norm_max { (norm_max / *norm) as f32 } else { 1.0 });
        }
        for record in &records {
            record.add_sum(Some(&factors), sum)?;
        }
        Ok(norms)
    }

    /// Adds the plain sum of the per-example gradients to `sum`.
    pub(crate) fn add_sum(&self, sum: &mut [f32]) -> Result<()> {
        self.take().iter().try_for_each(|record| record.add_sum(None, sum))
    }
}

impl Record {
    fn add_squared_norms(&self, squares: &mut [f64]) -> Result<()> {
        match self {
            Self::Linear { spans, activation, gradient } => {
                let bias = if spans.bias.is_some() { 1.0 } else { 0.0 };
                let activation = row_squares(activation, squares.len())?;
                let gradient = row_squares(gradient, squares.len())?;
                for ((square, a), g) in squares.iter_mut().zip(activation).zip(gradient) {
                    let usable = a <= MAGNITUDE_MAX * MAGNITUDE_MAX;
                    *square += if usable { g * (a + bias) } else { f64::NAN };
                }
            }
        }
        Ok(())
    }

    fn add_sum(&self, factors: Option<&[f32]>, sum: &mut [f32]) -> Result<()> {
        match self {
            Self::Linear { spans, activation, gradient } => {
                let scaled = match factors {
                    Some(factors) => scale_rows(gradient, factors)?,
                    None => gradient.clone(),
                };
                add_linear(spans, activation, &scaled, sum)
            }
        }
    }
}

/// Adds `gradientᵀ · activation` and the column sums of `gradient` to the layer's spans.
fn add_linear(
    spans: &LinearSpans,
    activation: &Tensor,
    gradient: &Tensor,
    sum: &mut [f32],
) -> Result<()> {
    if let Some(bias) = &spans.bias {
        let width = bias.len();
        with_elements(gradient, |rows| {
            for row in rows.chunks_exact(width) {
                add_assign(&mut sum[bias.clone()], row);
            }
        })?;
    }
    let weight_gradient = gradient.t()?.matmul(activation)?;
    with_elements(&weight_gradient, |values| add_assign(&mut sum[spans.weight.clone()], values))
}

/// Squared norm of each of `rows` equal parts.
fn row_squares(tensor: &Tensor, rows: usize) -> Result<Vec<f64>> {
    let width = tensor.elem_count() / rows.max(1);
    with_elements(tensor, |values| values.chunks_exact(width).map(sum_of_squares).collect())
}

/// Multiplies each of the first dimension's parts by its factor.
fn scale_rows(tensor: &Tensor, factors: &[f32]) -> Result<Tensor> {
    let width = tensor.elem_count() / factors.len().max(1);
    let mut scaled = Vec::with_capacity(tensor.elem_count());
    with_elements(tensor, |values| {
        for (row, &factor) in values.chunks_exact(width).zip(factors) {
            scaled.extend(row.iter().map(|value| value * factor));
        }
    })?;
    Tensor::from_vec(scaled, tensor.shape(), tensor.device())
}
