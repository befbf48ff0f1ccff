//! A linear layer with bias and ReLU as one graph node.
//!
//! The backward pass of the node does not form the weight's gradient. It records the input
//! activation and the output gradient on a [`Tape`], from which the sum, or the clipped sum, of the
//! per-example gradients follows with a single matrix product and no second backward pass.
//!
//! Source: Bu et al. 2022, arXiv:2210.00038 (book-keeping).

use candle_core::{
    CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, backend::BackendStorage, bail,
};

use super::{
    super::{
        kernels::{elements, finish_rows, mask, relu, with_elements},
        tape::Record,
    },
    Recording,
};

/// Applies `relu(inputs · weightᵀ + bias)`; bias and ReLU are optional.
///
/// - `inputs`: `[n, k]` or `[n, time, k]`; `weight`: `[m, k]`; `bias`: `[m]`
/// - `recording`: where the backward pass leaves its record; without it the parameters are frozen
///
/// # Errors
/// The tensor library's, for shapes that do not fit together.
pub fn linear(
    inputs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    relu: bool,
    recording: Option<Recording>,
) -> Result<Tensor> {
    let inputs = inputs.contiguous()?;
    let needs_graph = recording.is_some() || inputs.track_op();
    let op = Linear { relu, recording };
    match (bias, needs_graph) {
        (Some(bias), true) => inputs.apply_op3(weight, bias, op),
        (Some(bias), false) => inputs.apply_op3_no_bwd(weight, bias, &op),
        (None, true) => inputs.apply_op2(weight, op),
        (None, false) => inputs.apply_op2_no_bwd(weight, &op),
    }
}

/// The node; also the inner part of a convolution.
pub(super) struct Linear {
    pub(super) relu: bool,
    pub(super) recording: Option<Recording>,
}

impl Linear {
    pub(super) fn forward(
        &self,
        (inputs, inputs_layout): (&CpuStorage, &Layout),
        (weight, weight_layout): (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let (outputs, width) = weight_layout.shape().dims2()?;
        let mut dims = inputs_layout.dims().to_vec();
        if dims.len() < 2 || dims.last() != Some(&width) || !inputs_layout.is_contiguous() {
            bail!("linear layer of width {width} got inputs of shape {dims:?}")
        }
        let rows = dims[..dims.len() - 1].iter().product();
        let flat = Layout::contiguous_with_offset((rows, width), inputs_layout.start_offset());
        let sizes = (1, rows, outputs, width);
        let mut product = inputs.matmul(weight, sizes, &flat, &weight_layout.transpose(0, 1)?)?;
        if let CpuStorage::F32(values) = &mut product {
            let bias = bias.map(|(bias, layout)| elements(bias, layout)).transpose()?;
            if let Some(bias) = bias.filter(|bias| bias.len() != outputs) {
                bail!("a bias of {} on {outputs} outputs", bias.len())
            }
            match (bias, self.relu) {
                (Some(bias), with_relu) => finish_rows(values, bias, with_relu),
                (None, true) => relu(values),
                (None, false) => {}
            }
        }
        dims.pop();
        dims.push(outputs);
        Ok((product, Shape::from(dims)))
    }

    /// Leaves the record and returns the gradient of the inputs, if it is wanted.
    pub(super) fn backward(
        &self,
        inputs: &Tensor,
        weight: &Tensor,
        outputs: &Tensor,
        gradient: &Tensor,
        wants_inputs: bool,
    ) -> Result<Option<Tensor>> {
        let gradient =
            if self.relu { relu_backward(outputs, gradient)? } else { gradient.contiguous()? };
        let inputs_gradient = if wants_inputs {
            let (width, _) = weight.dims2()?;
            let flat = gradient.reshape(((), width))?;
            Some(flat.matmul(&weight.detach())?.reshape(inputs.shape())?)
        } else {
            None
        };
        if let Some(recording) = &self.recording {
            recording.tape.push(Record::Linear {
                spans: recording.spans.clone(),
                activation: inputs.detach(),
                gradient: gradient.detach(),
            });
        }
        Ok(inputs_gradient)
    }
}

/// Zeroes the gradient where the output of the ReLU is zero.
fn relu_backward(outputs: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    let mut masked = with_elements(gradient, <[f32]>::to_vec)?;
    with_elements(outputs, |outputs| mask(&mut masked, outputs))?;
    Tensor::from_vec(masked, gradient.shape(), gradient.device())
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        inputs: &CpuStorage,
        inputs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((inputs, inputs_layout), (weight, weight_layout), None)
    }

    fn bwd(
        &self,
        inputs: &Tensor,
        weight: &Tensor,
        outputs: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let wanted = inputs.track_op();
        Ok((self.backward(inputs, weight, outputs, gradient, wanted)?, None))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear-bias"
    }

    fn cpu_fwd(
        &self,
        inputs: &CpuStorage,
        inputs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((inputs, inputs_layout), (weight, weight_layout), Some((bias, bias_layout)))
    }

    fn bwd(
        &self,
        inputs: &Tensor,
        weight: &Tensor,
        _bias: &Tensor,
        outputs: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let wanted = inputs.track_op();
        Ok((self.backward(inputs, weight, outputs, gradient, wanted)?, None, None))
    }
}
