//! Convolution as patches and a linear layer with a time axis, channels last.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::{
    super::kernels::{add_assign, elements, with_elements},
    Recording, linear,
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
    let (examples, height, width, channels) = inputs.dims4()?;
    let patches = Patches::new(geometry, height, width, channels)?;
    let (rows, columns) = (patches.rows, patches.columns);
    let inputs = inputs.contiguous()?;
    let patches = inputs.apply_op1(patches)?;
    let outputs = linear(&patches, weight, bias, relu, recording)?;
    outputs.reshape((examples, rows, columns, weight.dim(0)?))
}

/// Copies each patch into a row: `[n, height, width, c]` to `[n, rows · columns, k · k · c]`.
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
}

impl CustomOp1 for Patches {
    fn name(&self) -> &'static str {
        "patches"
    }

    fn cpu_fwd(&self, images: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let images = elements(images, layout)?;
        let examples = images.len() / self.image_len().max(1);
        let mut patches = vec![0.0; examples * self.patches_len()];
        let pairs =
            images.chunks_exact(self.image_len()).zip(patches.chunks_exact_mut(self.patches_len()));
        for (image, patches) in pairs {
            self.for_each_run(|from, to, length| {
                patches[to..to + length].copy_from_slice(&image[from..from + length]);
            });
        }
        let shape = (examples, self.rows * self.columns, self.patch_len());
        Ok((CpuStorage::F32(patches), Shape::from(shape)))
    }

    fn bwd(&self, images: &Tensor, _patches: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
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
        Ok(Some(Tensor::from_vec(sums, images.shape(), images.device())?))
    }
}
