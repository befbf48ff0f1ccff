//! Cross-entropy as one graph node, summed so that an example's gradient ignores the batch size.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::kernels::{elements, with_elements};

/// The sum over the batch of `-ln softmax(logits)[label]`.
///
/// - `logits`: `[n, classes]`; `labels`: `[n]` (u32)
///
/// # Errors
/// The tensor library's, for labels that do not fit the logits.
pub fn cross_entropy_sum(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let labels = labels.to_vec1::<u32>()?;
    let weights = vec![1.0; labels.len()];
    weighted_cross_entropy_sum(logits, labels, weights)
}

/// The sum over the rows of `-weight · ln softmax(logits)[label]`; rows of weight 0 are not looked at.
pub(super) fn weighted_cross_entropy_sum(
    logits: &Tensor,
    labels: Vec<u32>,
    weights: Vec<f32>,
) -> Result<Tensor> {
    logits.contiguous()?.apply_op1(CrossEntropy { labels, weights })
}

/// Turns each row of logits into probabilities, in place; returns the log of each normaliser.
pub(crate) fn softmax_rows(values: &mut [f32], classes: usize) -> Vec<f32> {
    let rows = values.chunks_exact_mut(classes);
    rows.map(|row| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut total = 0.0;
        for value in row.iter_mut() {
            *value = (*value - largest).exp();
            total += *value;
        }
        for value in row.iter_mut() {
            *value /= total;
        }
        largest + total.ln()
    })
    .collect()
}

struct CrossEntropy {
    labels: Vec<u32>,
    /// As many.
    weights: Vec<f32>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, classes) = layout.shape().dims2()?;
        if rows != self.labels.len() || self.labels.iter().any(|&l| l as usize >= classes) {
            bail!("labels do not fit logits of shape {:?}", layout.shape())
        }
        let logits = elements(logits, layout)?;
        let normalisers = softmax_rows(&mut logits.to_vec(), classes);
        let rows = logits.chunks_exact(classes).zip(&self.labels).zip(normalisers);
        let losses = rows.zip(&self.weights).filter(|(_, weight)| **weight != 0.0).map(
            |(((row, &label), log), &weight)| {
                f64::from(weight) * f64::from(log - row[label as usize])
            },
        );
        let loss = losses.sum::<f64>() as f32;
        Ok((CpuStorage::F32(vec![loss]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _loss: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let scale = gradient.to_scalar::<f32>()?;
        let (_, classes) = logits.dims2()?;
        let mut values = with_elements(logits, <[f32]>::to_vec)?;
        softmax_rows(&mut values, classes);
        let rows = values.chunks_exact_mut(classes).zip(&self.labels).zip(&self.weights);
        for ((row, &label), &weight) in rows {
            row[label as usize] -= 1.0;
            // Not a product with 0, which would let a NaN of a row that does not count through.
            let factor = scale * weight;
            row.iter_mut()
                .for_each(|value| *value = if weight == 0.0 { 0.0 } else { *value * factor });
        }
        Ok(Some(Tensor::from_vec(values, logits.shape(), logits.device())?))
    }
}
