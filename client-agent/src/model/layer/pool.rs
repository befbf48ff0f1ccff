//! Max pooling; the tensor library's own has a wrong backward pass (a quarter of the gradient).

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::super::kernels::{elements, vectorized, with_elements};

/// The largest value of each `size` by `size` square; rows and columns left over are dropped.
///
/// - `inputs`: `[n, height, width, channels]`; returns `[n, height / size, width / size, channels]`
///
/// # Errors
/// The tensor library's, for other ranks or a size of 0 or beyond the image.
pub fn max_pool2d(inputs: &Tensor, size: usize) -> Result<Tensor> {
    let (_, height, width, channels) = inputs.dims4()?;
    if size == 0 || size > height.min(width) {
        bail!("squares of {size} pixels do not fit images of {height} by {width}")
    }
    inputs.contiguous()?.apply_op1(MaxPool { size, height, width, channels })
}

struct MaxPool {
    size: usize,
    height: usize,
    width: usize,
    channels: usize,
}

impl MaxPool {
    #[inline(always)]
    fn for_each_cell(&self, mut f: impl FnMut(usize, [usize; 2])) {
        let (rows, columns) = (self.height / self.size, self.width / self.size);
        for row in 0..rows {
            for column in 0..columns {
                let corner = [row * self.size, column * self.size];
                f((row * columns + column) * self.channels, corner);
            }
        }
    }

    #[inline(always)]
    fn for_each_pixel(&self, [top, left]: [usize; 2], mut f: impl FnMut(usize)) {
        for y in top..top + self.size {
            for x in left..left + self.size {
                f((y * self.width + x) * self.channels);
            }
        }
    }

    const fn image_len(&self) -> usize {
        self.height * self.width * self.channels
    }

    const fn pooled_len(&self) -> usize {
        (self.height / self.size) * (self.width / self.size) * self.channels
    }
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max-pool"
    }

    fn cpu_fwd(&self, images: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let images = elements(images, layout)?;
        let examples = images.len() / self.image_len();
        let mut pooled = vec![f32::NEG_INFINITY; examples * self.pooled_len()];
        pool(self, images, &mut pooled);
        let (rows, columns) = (self.height / self.size, self.width / self.size);
        Ok((CpuStorage::F32(pooled), Shape::from((examples, rows, columns, self.channels))))
    }

    fn bwd(&self, images: &Tensor, pooled: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let mut sums = vec![0.0; images.elem_count()];
        with_elements(images, |images| {
            with_elements(pooled, |pooled| {
                with_elements(gradient, |gradient| {
                    unpool(self, images, pooled, gradient, &mut sums)
                })
            })
        })???;
        Ok(Some(Tensor::from_vec(sums, images.shape(), images.device())?))
    }
}

vectorized! {
    fn pool(of: &'a MaxPool, images: &'a [f32], pooled: &'a mut [f32]) {
        let pairs =
            images.chunks_exact(of.image_len()).zip(pooled.chunks_exact_mut(of.pooled_len()));
        for (image, pooled) in pairs {
            of.for_each_cell(|cell, corner| {
                let largest = &mut pooled[cell..cell + of.channels];
                of.for_each_pixel(corner, |pixel| {
                    let pixel = &image[pixel..pixel + of.channels];
                    for (largest, &value) in largest.iter_mut().zip(pixel) {
                        // NaN wins, so that it is not hidden from the finite checks.
                        let wins = value > *largest || value.is_nan();
                        *largest = if wins { value } else { *largest };
                    }
                });
            });
        }
    }

    fn unpool(
        of: &'a MaxPool,
        images: &'a [f32],
        pooled: &'a [f32],
        gradient: &'a [f32],
        sums: &'a mut [f32]
    ) {
        let mut rest = vec![0.0; of.channels];
        let images = images.chunks_exact(of.image_len());
        let pooled = pooled.chunks_exact(of.pooled_len());
        let gradient = gradient.chunks_exact(of.pooled_len());
        let sums = sums.chunks_exact_mut(of.image_len());
        for (((image, pooled), gradient), sums) in images.zip(pooled).zip(gradient).zip(sums) {
            of.for_each_cell(|cell, corner| {
                let pooled = &pooled[cell..cell + of.channels];
                rest.copy_from_slice(&gradient[cell..cell + of.channels]);
                of.for_each_pixel(corner, |pixel| {
                    let values = &image[pixel..pixel + of.channels];
                    let sums = &mut sums[pixel..pixel + of.channels];
                    let lanes = sums.iter_mut().zip(values).zip(pooled).zip(&mut rest);
                    // The first of equal pixels takes it all.
                    for (((sum, value), largest), rest) in lanes {
                        let mask = 0_u32.wrapping_sub(u32::from(value == largest));
                        let open = rest.to_bits();
                        *sum = f32::from_bits(open & mask);
                        *rest = f32::from_bits(open & !mask);
                    }
                });
            });
        }
    }
}
