//! Convolution as patches and a linear layer with a time axis, channels last.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::{
    super::kernels::{add_assign, elements, with_elements},
    Recording,
    linear::Linear,
};

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

/// Patches and product as one node, so that the patches, many times the size of the images, and
/// their gradient live only within it. The backward pass copies the patches once more.
struct Conv {
    patches: Patches,
    linear: Linear,
}

impl Conv {
    fn forward(
        &self,
        (inputs, layout): (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let patches = CpuStorage::F32(self.patches.gather(elements(inputs, layout)?));
        let shape = self.patches.shape(layout.dims()[0]);
        let (outputs, shape) =
            self.linear.forward((&patches, &Layout::contiguous(shape)), weight, bias)?;
        let (examples, _, width) = shape.dims3()?;
        let shape = (examples, self.patches.rows, self.patches.columns, width);
        Ok((outputs, Shape::from(shape)))
    }

    fn backward(
        &self,
        inputs: &Tensor,
        weight: &Tensor,
        outputs: &Tensor,
        gradient: &Tensor,
    ) -> Result<Option<Tensor>> {
        let (examples, width) = (inputs.dim(0)?, weight.dim(0)?);
        let patches = with_elements(inputs, |images| self.patches.gather(images))?;
        let shape = self.patches.shape(examples);
        let patches = Tensor::from_vec(patches, shape, inputs.device())?;
        let rows = (examples, shape.1, width);
        let (outputs, gradient) = (outputs.reshape(rows)?, gradient.contiguous()?.reshape(rows)?);
        let wanted = inputs.track_op();
        let gradient = self.linear.backward(&patches, weight, &outputs, &gradient, wanted)?;
        gradient.map(|gradient| self.patches.scatter(&gradient, inputs)).transpose()
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

    /// `[examples, rows · columns, kernel · kernel · channels]`.
    const fn shape(&self, examples: usize) -> (usize, usize, usize) {
        (examples, self.rows * self.columns, self.patch_len())
    }

    /// The patches of all images.
    fn gather(&self, images: &[f32]) -> Vec<f32> {
        let examples = images.len() / self.image_len().max(1);
        let mut patches = vec![0.0; examples * self.patches_len()];
        let pairs =
            images.chunks_exact(self.image_len()).zip(patches.chunks_exact_mut(self.patches_len()));
        for (image, patches) in pairs {
            self.for_each_run(|from, to, length| {
                patches[to..to + length].copy_from_slice(&image[from..from + length]);
            });
        }
        patches
    }

    /// The gradient of the images: each pixel's sum over the patches that it is in.
    fn scatter(&self, gradient: &Tensor, images: &Tensor) -> Result<Tensor> {
        let mut sums = vec![0.0; images.elem_count()];
        with_elements(gradient, |gradient| {
            let pairs = sums
                .chunks_exact_mut(self.image_len())
                .zip(gradient.chunks_exact(self.patches_len()));
            for (image, patches) in pairs {
                self.for_each_run(|to, from, length| {
                    add_assign(&mut image[to..to + length], &patches[from..from + length]);
                });
            }
        })?;
        Tensor::from_vec(sums, images.shape(), images.device())
    }
}
