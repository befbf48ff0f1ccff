//! Convolution as patches and matrix products, channels last, image by image.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::{
    super::{
        clipping::KEPT_ELEMENTS_MAX,
        kernels::{add_scaled_rows_to_one, elements, finish_rows, mask, relu, with_elements},
        matmul::{Before, Matrix, multiply},
        tape::Record,
    },
    Recording,
    linear::Linear,
};
use crate::compute;

/// A square kernel's size and steps, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvGeometry {
    /// Height and width of the kernel.
    pub kernel: usize,
    /// Distance between patches.
    pub stride: usize,
    /// Rows and columns of zeros around the image.
    pub padding: usize,
}

/// Applies a two-dimensional convolution with optional bias and ReLU.
///
/// - `inputs`: `[n, height, width, channels]`
/// - `weight`: `[outputs, kernel · kernel · channels]`, each row in the order row, column, channel
///   (the other libraries' `[outputs, channels, kernel, kernel]` permuted to `0, 2, 3, 1`)
/// - returns: `[n, height', width', outputs]`
///
/// # Errors
/// The tensor library's, for shapes that do not fit together or a kernel larger than the image.
pub fn conv2d(
    inputs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    geometry: ConvGeometry,
    relu: bool,
    recording: Option<Recording>,
) -> Result<Tensor> {
    let (_, height, width, channels) = inputs.dims4()?;
    let patches = Patches::new(geometry, height, width, channels)?;
    let inputs = inputs.contiguous()?;
    let needs_graph = recording.is_some() || inputs.track_op();
    let op = Conv { patches, linear: Linear { relu, recording } };
    match (bias, needs_graph) {
        (Some(bias), true) => inputs.apply_op3(weight, bias, op),
        (Some(bias), false) => inputs.apply_op3_no_bwd(weight, bias, &op),
        (None, true) => inputs.apply_op2(weight, op),
        (None, false) => inputs.apply_op2_no_bwd(weight, &op),
    }
}

/// Patches and product as one node. The patches, many times the size of the images, exist for one
/// image at a time, in memory that stays in the processor's cache; the backward pass makes them once
/// more.
struct Conv {
    patches: Patches,
    linear: Linear,
}

impl Conv {
    fn forward(
        &self,
        (inputs, layout): (&CpuStorage, &Layout),
        (weight, weight_layout): (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let (outputs, width) = weight_layout.shape().dims2()?;
        let bias = bias.map(|(bias, layout)| elements(bias, layout)).transpose()?;
        if width != self.patches.patch_len() || bias.is_some_and(|bias| bias.len() != outputs) {
            bail!("a kernel of shape {:?} on patches of {width} values", weight_layout.shape())
        }
        let (images, weight) = (elements(inputs, layout)?, elements(weight, weight_layout)?);
        let examples = layout.dims()[0];
        let mut values = vec![0.0; examples * self.patches.places() * outputs];
        let part = Forward { conv: self, weight, bias, outputs, images, values: &mut values };
        part.run(compute::threads());
        let shape = (examples, self.patches.rows, self.patches.columns, outputs);
        Ok((CpuStorage::F32(values), Shape::from(shape)))
    }

    fn backward(
        &self,
        inputs: &Tensor,
        weight: &Tensor,
        outputs: &Tensor,
        gradient: &Tensor,
    ) -> Result<Option<Tensor>> {
        let (examples, (width, patch)) = (inputs.dim(0)?, weight.dims2()?);
        if examples * width * patch > KEPT_ELEMENTS_MAX {
            return self.backward_at_once(inputs, weight, outputs, gradient);
        }
        let wanted = if inputs.track_op() { inputs.elem_count() } else { 0 };
        let mut gradients = with_elements(gradient, <[f32]>::to_vec)?;
        let mut inputs_gradient = vec![0.0; wanted];
        let mut weights = vec![0.0; examples * width * patch];
        let mut biases = vec![0.0; examples * width];
        with_elements(inputs, |images| {
            with_elements(outputs, |outputs| {
                with_elements(weight, |weight| {
                    let part = Backward {
                        conv: self,
                        weight,
                        width,
                        images,
                        outputs,
                        gradients: &mut gradients,
                        weights: &mut weights,
                        biases: &mut biases,
                        inputs_gradient: &mut inputs_gradient,
                    };
                    part.run(compute::threads());
                })
            })
        })???;
        if let Some(Recording { tape, spans }) = &self.linear.recording {
            let device = inputs.device();
            let gradients = Tensor::from_vec(weights, (examples, width * patch), device)?;
            tape.push(Record::PerExample { span: spans.weight.clone(), gradients });
            if let Some(span) = spans.bias.clone() {
                let gradients = Tensor::from_vec(biases, (examples, width), device)?;
                tape.push(Record::PerExample { span, gradients });
            }
        }
        let shape = inputs.shape();
        let to_tensor = |values| Tensor::from_vec(values, shape, inputs.device());
        inputs.track_op().then(|| to_tensor(inputs_gradient)).transpose()
    }

    /// With the patches of all images in memory, for kernels so large that the gradients of every
    /// example are not.
    fn backward_at_once(
        &self,
        inputs: &Tensor,
        weight: &Tensor,
        outputs: &Tensor,
        gradient: &Tensor,
    ) -> Result<Option<Tensor>> {
        let (examples, width) = (inputs.dim(0)?, weight.dim(0)?);
        let shape = (examples, self.patches.places(), self.patches.patch_len());
        let mut patches = vec![0.0; shape.0 * shape.1 * shape.2];
        with_elements(inputs, |images| {
            let images = images.chunks_exact(self.patches.image_len());
            for (image, patches) in images.zip(patches.chunks_exact_mut(shape.1 * shape.2)) {
                self.patches.gather(image, patches);
            }
        })?;
        let patches = Tensor::from_vec(patches, shape, inputs.device())?;
        let rows = (examples, shape.1, width);
        let (outputs, gradient) = (outputs.reshape(rows)?, gradient.contiguous()?.reshape(rows)?);
        let wanted = inputs.track_op();
        let gradient = self.linear.backward(&patches, weight, &outputs, &gradient, wanted)?;
        let Some(gradient) = gradient else { return Ok(None) };
        let mut sums = vec![0.0; inputs.elem_count()];
        with_elements(&gradient, |gradient| {
            let images = sums.chunks_exact_mut(self.patches.image_len());
            for (image, patches) in images.zip(gradient.chunks_exact(shape.1 * shape.2)) {
                self.patches.scatter(patches, image);
            }
        })?;
        Ok(Some(Tensor::from_vec(sums, inputs.shape(), inputs.device())?))
    }
}

/// The forward pass of some of the images.
struct Forward<'a> {
    conv: &'a Conv,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    outputs: usize,
    images: &'a [f32],
    values: &'a mut [f32],
}

impl Forward<'_> {
    fn run(self, threads: usize) {
        let (patches, outputs) = (self.conv.patches, self.outputs);
        let (image_len, places) = (patches.image_len(), patches.places());
        let half = self.images.len() / image_len / 2;
        if threads > 1 && half > 0 {
            let (images, more_images) = self.images.split_at(half * image_len);
            let (values, more_values) = self.values.split_at_mut(half * places * outputs);
            let one = Forward { images, values, ..self };
            let other = Forward { images: more_images, values: more_values, ..self };
            let threads = [threads / 2, threads - threads / 2];
            rayon::join(|| one.run(threads[0]), || other.run(threads[1]));
            return;
        }
        let mut scratch = vec![0.0; patches.patches_len()];
        let weight = Matrix::new(self.weight, outputs, patches.patch_len()).t();
        let values = self.values.chunks_exact_mut(places * outputs);
        for (image, values) in self.images.chunks_exact(image_len).zip(values) {
            patches.gather(image, &mut scratch);
            let scratch = Matrix::new(&scratch, places, patches.patch_len());
            multiply(scratch, weight, 1.0, values, Before::Ignored, 1);
            match (self.bias, self.conv.linear.relu) {
                (Some(bias), with_relu) => finish_rows(values, bias, with_relu),
                (None, true) => relu(values),
                (None, false) => {}
            }
        }
    }
}

/// The backward pass of some of the images.
struct Backward<'a> {
    conv: &'a Conv,
    weight: &'a [f32],
    /// Output channels.
    width: usize,
    images: &'a [f32],
    outputs: &'a [f32],
    /// Of the outputs; masked on the way.
    gradients: &'a mut [f32],
    /// Of every example, `[width, patch]`.
    weights: &'a mut [f32],
    /// Of every example, `[width]`.
    biases: &'a mut [f32],
    /// Empty if nobody wants it.
    inputs_gradient: &'a mut [f32],
}

impl Backward<'_> {
    fn run(self, threads: usize) {
        let (patches, width) = (self.conv.patches, self.width);
        let (image_len, patch) = (patches.image_len(), patches.patch_len());
        let outputs_len = patches.places() * width;
        let half = self.images.len() / image_len / 2;
        let wanted = !self.inputs_gradient.is_empty();
        if threads > 1 && half > 0 {
            let (images, more_images) = self.images.split_at(half * image_len);
            let (outputs, more_outputs) = self.outputs.split_at(half * outputs_len);
            let (gradients, more_gradients) = self.gradients.split_at_mut(half * outputs_len);
            let (weights, more_weights) = self.weights.split_at_mut(half * width * patch);
            let (biases, more_biases) = self.biases.split_at_mut(half * width);
            let middle = if wanted { half * image_len } else { 0 };
            let (inputs_gradient, more_inputs) = self.inputs_gradient.split_at_mut(middle);
            let (conv, weight) = (self.conv, self.weight);
            let one = Backward {
                conv,
                weight,
                width,
                images,
                outputs,
                gradients,
                weights,
                biases,
                inputs_gradient,
            };
            let other = Backward {
                conv,
                weight,
                width,
                images: more_images,
                outputs: more_outputs,
                gradients: more_gradients,
                weights: more_weights,
                biases: more_biases,
                inputs_gradient: more_inputs,
            };
            let threads = [threads / 2, threads - threads / 2];
            rayon::join(|| one.run(threads[0]), || other.run(threads[1]));
            return;
        }
        let mut scratch = vec![0.0; patches.patches_len()];
        let mut pulled = vec![0.0; if wanted { patches.patches_len() } else { 0 }];
        let weight = Matrix::new(self.weight, width, patch);
        for (example, image) in self.images.chunks_exact(image_len).enumerate() {
            let of_outputs = example * outputs_len..(example + 1) * outputs_len;
            let gradient = &mut self.gradients[of_outputs.clone()];
            if self.conv.linear.relu {
                mask(gradient, &self.outputs[of_outputs]);
            }
            patches.gather(image, &mut scratch);
            let of_weight = &mut self.weights[example * width * patch..][..width * patch];
            let rows = Matrix::new(gradient, patches.places(), width);
            let inputs = Matrix::new(&scratch, patches.places(), patch);
            multiply(rows.t(), inputs, 1.0, of_weight, Before::Ignored, 1);
            add_scaled_rows_to_one(&mut self.biases[example * width..][..width], gradient, 1.0);
            if wanted {
                multiply(rows, weight, 1.0, &mut pulled, Before::Ignored, 1);
                let sums = &mut self.inputs_gradient[example * image_len..][..image_len];
                patches.scatter(&pulled, sums);
            }
        }
    }
}

impl CustomOp2 for Conv {
    fn name(&self) -> &'static str {
        "conv"
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
        Ok((self.backward(inputs, weight, outputs, gradient)?, None))
    }
}

impl CustomOp3 for Conv {
    fn name(&self) -> &'static str {
        "conv-bias"
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
        Ok((self.backward(inputs, weight, outputs, gradient)?, None, None))
    }
}

/// Where each patch lies: `[n, height, width, c]` to `[n, rows · columns, k · k · c]`.
#[derive(Clone, Copy)]
struct Patches {
    geometry: ConvGeometry,
    height: usize,
    width: usize,
    channels: usize,
    rows: usize,
    columns: usize,
}

impl Patches {
    fn new(geometry: ConvGeometry, height: usize, width: usize, channels: usize) -> Result<Self> {
        let ConvGeometry { kernel, stride, padding } = geometry;
        let count = |size: usize| {
            (size + 2 * padding).checked_sub(kernel).filter(|_| kernel > 0 && stride > 0)
        };
        let (Some(down), Some(across)) = (count(height), count(width)) else {
            bail!("{geometry:?} does not fit images of {height} by {width} pixels")
        };
        let (rows, columns) = (down / stride + 1, across / stride + 1);
        Ok(Self { geometry, height, width, channels, rows, columns })
    }

    /// Calls `f(start in the image, start in the patch row, length)` for each run of pixels of one
    /// image that is contiguous in both, skipping the padding.
    fn for_each_run(&self, mut f: impl FnMut(usize, usize, usize)) {
        let ConvGeometry { kernel, stride, padding } = self.geometry;
        let patch = kernel * kernel * self.channels;
        for row in 0..self.rows {
            for column in 0..self.columns {
                let left = (column * stride).max(padding) - padding;
                let skipped = left + padding - column * stride;
                let right = (column * stride + kernel).saturating_sub(padding).min(self.width);
                let length = right.saturating_sub(left) * self.channels;
                let start = (row * self.columns + column) * patch;
                for y in 0..kernel {
                    let line = row * stride + y;
                    if line < padding || line - padding >= self.height || length == 0 {
                        continue;
                    }
                    let from = ((line - padding) * self.width + left) * self.channels;
                    f(from, start + (y * kernel + skipped) * self.channels, length);
                }
            }
        }
    }

    const fn image_len(&self) -> usize {
        self.height * self.width * self.channels
    }

    const fn patches_len(&self) -> usize {
        self.rows * self.columns * self.patch_len()
    }

    const fn patch_len(&self) -> usize {
        self.geometry.kernel * self.geometry.kernel * self.channels
    }

    /// Places that the kernel is laid on.
    const fn places(&self) -> usize {
        self.rows * self.columns
    }

    /// The patches of one image; what lies in the padding is left as it is: zero.
    fn gather(&self, image: &[f32], patches: &mut [f32]) {
        self.for_each_run(|from, to, length| {
            patches[to..to + length].copy_from_slice(&image[from..from + length]);
        });
    }

    /// Adds to every pixel the values of all patches that it is in.
    fn scatter(&self, patches: &[f32], image: &mut [f32]) {
        self.for_each_run(|to, from, length| {
            let (image, patches) = (&mut image[to..to + length], &patches[from..from + length]);
            for (sum, value) in image.iter_mut().zip(patches) {
                *sum += value;
            }
        });
    }
}
