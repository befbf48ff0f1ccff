//! Layer and root-mean-square normalisation over the last dimension, with trainable scale.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::{
    super::{
        kernels::{add_assign, elements, with_elements},
        tape::Record,
    },
    Recording,
};

/// Applies `(x − mean) / sqrt(variance + epsilon) · scale + bias` along the last dimension.
///
/// - `inputs`: `[n, ..., width]`; `scale`, `bias`: `[width]`
///
/// # Errors
/// The tensor library's, for shapes that do not fit together.
///
/// Source: Ba et al. 2016, arXiv:1607.06450.
pub fn layer_norm(
    inputs: &Tensor,
    scale: &Tensor,
    bias: &Tensor,
    epsilon: f64,
    recording: Option<Recording>,
) -> Result<Tensor> {
    let inputs = inputs.contiguous()?;
    let needs_graph = recording.is_some() || inputs.track_op();
    let op = Norm { centred: true, epsilon, recording };
    if needs_graph {
        inputs.apply_op3(scale, bias, op)
    } else {
        inputs.apply_op3_no_bwd(scale, bias, &op)
    }
}

/// Applies `x / sqrt(mean(x²) + epsilon) · scale` along the last dimension.
///
/// - `inputs`: `[n, ..., width]`; `scale`: `[width]`
///
/// # Errors
/// The tensor library's, for shapes that do not fit together.
///
/// Source: Zhang and Sennrich 2019, arXiv:1910.07467.
pub fn rms_norm(
    inputs: &Tensor,
    scale: &Tensor,
    epsilon: f64,
    recording: Option<Recording>,
) -> Result<Tensor> {
    let inputs = inputs.contiguous()?;
    let needs_graph = recording.is_some() || inputs.track_op();
    let op = Norm { centred: false, epsilon, recording };
    if needs_graph { inputs.apply_op2(scale, op) } else { inputs.apply_op2_no_bwd(scale, &op) }
}

struct Norm {
    centred: bool,
    epsilon: f64,
    recording: Option<Recording>,
}

impl Norm {
    /// Mean (0 if not centred) and the factor that normalises a row.
    fn moments(&self, row: &[f32]) -> (f32, f32) {
        let count = row.len() as f64;
        let total: f64 = row.iter().map(|&value| f64::from(value)).sum();
        let mean = if self.centred { total / count } else { 0.0 };
        let squares: f64 = row.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum();
        (mean as f32, (1.0 / (squares / count + self.epsilon).sqrt()) as f32)
    }

    fn forward(
        &self,
        (inputs, layout): (&CpuStorage, &Layout),
        scale: &[f32],
        bias: Option<&[f32]>,
    ) -> Result<(CpuStorage, Shape)> {
        let width = scale.len();
        if layout.dims().last() != Some(&width) || bias.is_some_and(|bias| bias.len() != width) {
            bail!("a scale of {width} on inputs of shape {:?}", layout.shape())
        }
        let mut values = elements(inputs, layout)?.to_vec();
        for row in values.chunks_exact_mut(width) {
            let (mean, factor) = self.moments(row);
            for (value, scale) in row.iter_mut().zip(scale) {
                *value = (*value - mean) * factor * scale;
            }
            if let Some(bias) = bias {
                add_assign(row, bias);
            }
        }
        Ok((CpuStorage::F32(values), layout.shape().clone()))
    }

    /// Gradient of the inputs; the per-example gradients of scale and bias go to the tape.
    fn backward(&self, inputs: &Tensor, scale: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let (width, examples) = (scale.elem_count(), inputs.dim(0)?);
        let mut inputs_gradient = Vec::with_capacity(inputs.elem_count());
        let mut scale_gradients = vec![0.0; examples * width];
        let mut bias_gradients = vec![0.0; examples * width];
        let rows_each = (inputs.elem_count() / width / examples.max(1)).max(1);
        with_elements(scale, |scale| {
            with_elements(inputs, |inputs| {
                with_elements(gradient, |gradient| {
                    let rows = inputs.chunks_exact(width).zip(gradient.chunks_exact(width));
                    for (index, (row, gradient)) in rows.enumerate() {
                        let of_example = index / rows_each * width;
                        let of_example = of_example..of_example + width;
                        self.backward_row(
                            (row, gradient, scale),
                            &mut scale_gradients[of_example.clone()],
                            &mut bias_gradients[of_example],
                            &mut inputs_gradient,
                        );
                    }
                })
            })
        })???;
        if let Some(Recording { tape, spans }) = &self.recording {
            let dense = |span, values| -> Result<Record> {
                let gradients = Tensor::from_vec(values, (examples, width), inputs.device())?;
                Ok(Record::PerExample { span, gradients })
            };
            tape.push(dense(spans.weight.clone(), scale_gradients)?);
            if let Some(bias) = &spans.bias {
                tape.push(dense(bias.clone(), bias_gradients)?);
            }
        }
        Tensor::from_vec(inputs_gradient, inputs.shape(), inputs.device())
    }

    fn backward_row(
        &self,
        (row, gradient, scale): (&[f32], &[f32], &[f32]),
        scale_gradient: &mut [f32],
        bias_gradient: &mut [f32],
        inputs_gradient: &mut Vec<f32>,
    ) {
        let (mean, factor) = self.moments(row);
        let (mut total, mut aligned) = (0.0_f64, 0.0_f64);
        for (index, &g) in gradient.iter().enumerate() {
            let normal = (row[index] - mean) * factor;
            scale_gradient[index] += g * normal;
            bias_gradient[index] += g;
            let scaled = f64::from(g * scale[index]);
            total += scaled;
            aligned += scaled * f64::from(normal);
        }
        let count = row.len() as f64;
        let mean_gradient = if self.centred { (total / count) as f32 } else { 0.0 };
        let aligned = (aligned / count) as f32;
        inputs_gradient.extend((0..row.len()).map(|index| {
            let normal = (row[index] - mean) * factor;
            factor * (gradient[index] * scale[index] - mean_gradient - normal * aligned)
        }));
    }
}

impl CustomOp2 for Norm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        inputs: &CpuStorage,
        inputs_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((inputs, inputs_layout), elements(scale, scale_layout)?, None)
    }

    fn bwd(
        &self,
        inputs: &Tensor,
        scale: &Tensor,
        _outputs: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let inputs_gradient = self.backward(inputs, scale, gradient)?;
        Ok((inputs.track_op().then_some(inputs_gradient), None))
    }
}

impl CustomOp3 for Norm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        inputs: &CpuStorage,
        inputs_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let scale = elements(scale, scale_layout)?;
        let bias = elements(bias, bias_layout)?;
        self.forward((inputs, inputs_layout), scale, Some(bias))
    }

    fn bwd(
        &self,
        inputs: &Tensor,
        scale: &Tensor,
        _bias: &Tensor,
        _outputs: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let inputs_gradient = self.backward(inputs, scale, gradient)?;
        Ok((inputs.track_op().then_some(inputs_gradient), None, None))
    }
}
