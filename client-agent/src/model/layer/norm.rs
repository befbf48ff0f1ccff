//! Layer and root-mean-square normalisation over the last dimension, with trainable scale.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::{
    super::{
        kernels::{elements, vectorized, with_elements},
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
    #[inline(always)]
    fn moments(&self, row: &[f32]) -> (f32, f32) {
        let count = row.len() as f64;
        let mean = if self.centred { total(row, |value| value) / count } else { 0.0 };
        let squares = total(row, |value| (value - mean) * (value - mean));
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
        normalize(self, &mut values, scale, bias.unwrap_or(&[]));
        Ok((CpuStorage::F32(values), layout.shape().clone()))
    }

    /// Gradient of the inputs; the per-example gradients of scale and bias go to the tape.
    fn backward(&self, inputs: &Tensor, scale: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let (width, examples) = (scale.elem_count(), inputs.dim(0)?);
        let mut inputs_gradient = vec![0.0; inputs.elem_count()];
        let mut scale_gradients = vec![0.0; examples * width];
        let mut bias_gradients = vec![0.0; examples * width];
        with_elements(scale, |scale| {
            with_elements(inputs, |inputs| {
                with_elements(gradient, |gradient| {
                    pull_back(
                        self,
                        (inputs, gradient, scale),
                        (&mut scale_gradients, &mut bias_gradients),
                        &mut inputs_gradient,
                    );
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

    #[inline(always)]
    fn backward_row(
        &self,
        (row, gradient, scale): (&[f32], &[f32], &[f32]),
        scale_gradient: &mut [f32],
        bias_gradient: &mut [f32],
        inputs_gradient: &mut [f32],
    ) {
        const LANES: usize = 16;
        let (mean, factor) = self.moments(row);
        // The slot of the inputs' gradient holds the scaled gradient until both sums are known.
        let (mut totals, mut products) = ([0.0_f64; LANES], [0.0_f64; LANES]);
        for (start, row) in (0..).step_by(LANES).zip(row.chunks(LANES)) {
            let end = start + row.len();
            let lanes = row.iter().zip(&gradient[start..end]).zip(&scale[start..end]);
            let sums = scale_gradient[start..end].iter_mut().zip(&mut bias_gradient[start..end]);
            let sums = sums.zip(&mut inputs_gradient[start..end]);
            let totals = totals.iter_mut().zip(&mut products);
            for ((((value, &g), scale), ((of_scale, of_bias), scaled)), (total, product)) in
                lanes.zip(sums).zip(totals)
            {
                let normal = (value - mean) * factor;
                *of_scale += g * normal;
                *of_bias += g;
                *scaled = g * scale;
                *total += f64::from(*scaled);
                *product += f64::from(*scaled) * f64::from(normal);
            }
        }
        let count = row.len() as f64;
        let total: f64 = totals.iter().sum();
        let mean_gradient = if self.centred { (total / count) as f32 } else { 0.0 };
        let aligned = (products.iter().sum::<f64>() / count) as f32;
        for (scaled, value) in inputs_gradient.iter_mut().zip(row) {
            let normal = (value - mean) * factor;
            *scaled = factor * (*scaled - mean_gradient - normal * aligned);
        }
    }
}

/// The sum of `f` over a row, in f64 and several lanes.
#[inline(always)]
fn total(row: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    const LANES: usize = 16;
    let mut lanes = [0.0_f64; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f(f64::from(value));
        }
    }
    rest.iter().fold(lanes.iter().sum(), |sum, &value| sum + f(f64::from(value)))
}

vectorized! {
    /// Normalises every row in place; an empty bias is none.
    fn normalize(of: &'a Norm, values: &'a mut [f32], scale: &'a [f32], bias: &'a [f32]) {
        for row in values.chunks_exact_mut(scale.len()) {
            let (mean, factor) = of.moments(row);
            for (value, scale) in row.iter_mut().zip(scale) {
                *value = (*value - mean) * factor * scale;
            }
            for (value, bias) in row.iter_mut().zip(bias) {
                *value += bias;
            }
        }
    }

    /// Adds the per-example gradients of scale and bias, and sets that of the inputs.
    fn pull_back(
        of: &'a Norm,
        forward: (&'a [f32], &'a [f32], &'a [f32]),
        sums: (&'a mut [f32], &'a mut [f32]),
        inputs_gradient: &'a mut [f32]
    ) {
        let ((inputs, gradient, scale), (of_scale, of_bias)) = (forward, sums);
        let width = scale.len();
        let examples = (of_scale.len() / width).max(1);
        let example_len = (inputs.len() / examples).max(1);
        let slots = inputs_gradient.chunks_exact_mut(example_len);
        let sums = of_scale.chunks_exact_mut(width).zip(of_bias.chunks_exact_mut(width));
        let pairs = inputs.chunks_exact(example_len).zip(gradient.chunks_exact(example_len));
        for (((inputs, gradient), (of_scale, of_bias)), slots) in pairs.zip(sums).zip(slots) {
            let rows = inputs.chunks_exact(width).zip(gradient.chunks_exact(width));
            for ((row, gradient), slot) in rows.zip(slots.chunks_exact_mut(width)) {
                of.backward_row((row, gradient, scale), of_scale, of_bias, slot);
            }
        }
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
