use serde::{Deserialize, Serialize};

use super::{Initialization, ModelSpecError, TensorSpec, at_least};

/// Sizes of a convolutional network: convolutions with ReLU and max pooling, then linear layers.
///
/// An image is `[height, width, channels]`, channels last; IDX images of grey pixels are that with
/// one channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CnnSpec {
    /// Rows of pixels.
    pub height: u32,
    /// Pixels of a row.
    pub width: u32,
    /// Values of a pixel.
    #[serde(default = "one")]
    pub channels: u32,
    /// The convolutions, first to last.
    pub convolutions: Vec<ConvolutionSpec>,
    /// Width of each hidden linear layer behind them.
    #[serde(default)]
    pub hidden: Vec<u32>,
    /// Number of classes.
    pub classes: u32,
}

/// One convolution, its ReLU and its pooling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvolutionSpec {
    /// Channels that come out.
    pub channels: u32,
    /// Side of the square kernel.
    #[serde(default = "three")]
    pub kernel: u32,
    /// Pixels between two places of the kernel.
    #[serde(default = "one")]
    pub stride: u32,
    /// Rows and columns of zeros around the image.
    #[serde(default = "one")]
    pub padding: u32,
    /// Side of the squares of which only the largest value stays; 1 keeps all.
    #[serde(default = "two")]
    pub pool: u32,
}

const fn one() -> u32 {
    1
}

const fn two() -> u32 {
    2
}

const fn three() -> u32 {
    3
}

/// Sizes above which an image is taken for a mistake.
const SIZE_MAX: u32 = 1 << 14;

impl CnnSpec {
    /// Height, width and channels behind each convolution and its pooling; nothing behind one that
    /// does not fit.
    fn shapes(&self) -> Vec<Option<[u32; 3]>> {
        let mut shape = Some([self.height, self.width, self.channels]);
        let after = |convolution: &ConvolutionSpec| {
            let [height, width, _] = shape?;
            let side = |size: u32| {
                let places = (size + 2 * convolution.padding).checked_sub(convolution.kernel)?;
                let side = (places / convolution.stride + 1) / convolution.pool;
                (side > 0).then_some(side)
            };
            shape = side(height).zip(side(width)).map(|(h, w)| [h, w, convolution.channels]);
            shape
        };
        self.convolutions.iter().map(after).collect()
    }

    /// `(inputs, outputs)` of each linear layer behind the convolutions.
    #[must_use]
    pub fn layers(&self) -> Vec<(usize, usize)> {
        let image = [self.height, self.width, self.channels];
        let last = self.shapes().last().copied().flatten().unwrap_or(image);
        let mut widths = vec![last.into_iter().map(|size| size as usize).product()];
        widths.extend(self.hidden.iter().chain([&self.classes]).map(|&width| width as usize));
        widths.windows(2).map(|pair| (pair[0], pair[1])).collect()
    }

    pub(super) fn validate(&self) -> Result<(), ModelSpecError> {
        let sizes = [("height", self.height, 1), ("width", self.width, 1)];
        at_least(sizes.into_iter().chain([("channels", self.channels, 1)]))?;
        at_least([("convolutions", self.convolutions.len() as u32, 1)])?;
        at_least(self.convolutions.iter().flat_map(|convolution| {
            [
                ("convolutions.channels", convolution.channels, 1),
                ("convolutions.kernel", convolution.kernel, 1),
                ("convolutions.stride", convolution.stride, 1),
                ("convolutions.pool", convolution.pool, 1),
            ]
        }))?;
        at_least(self.hidden.iter().map(|&width| ("hidden", width, 1)))?;
        at_least([("classes", self.classes, 2)])?;
        let sizes = self.convolutions.iter().flat_map(|convolution| {
            [convolution.channels, convolution.kernel, convolution.padding, convolution.pool]
        });
        let image = [self.height, self.width, self.channels];
        if let Some(large) = image.into_iter().chain(sizes).find(|&size| size > SIZE_MAX) {
            let (value, range) = (large.into(), "at most 2^14 in each part");
            return Err(ModelSpecError::Unfit { field: "cnn", value, range });
        }
        if let Some(index) = self.shapes().iter().position(Option::is_none) {
            return Err(ModelSpecError::Unfit {
                field: "convolutions",
                value: (index + 1) as f64,
                range: "fewer: kernel and pool of this one no longer fit the image",
            });
        }
        Ok(())
    }

    pub(super) fn tensors(&self) -> Vec<TensorSpec> {
        let mut tensors = Vec::new();
        let mut channels = self.channels as usize;
        for (index, convolution) in self.convolutions.iter().enumerate() {
            let patch = convolution.kernel as usize * convolution.kernel as usize * channels;
            channels = convolution.channels as usize;
            let shape = [channels, patch];
            let start = Initialization::he(patch);
            tensors.push(TensorSpec::new(format!("convolutions.{index}.weight"), &shape, start));
            let bias = format!("convolutions.{index}.bias");
            tensors.push(TensorSpec::new(bias, &[channels], Initialization::Zeros));
        }
        for (index, (inputs, outputs)) in self.layers().into_iter().enumerate() {
            let start = Initialization::he(inputs);
            tensors.extend(TensorSpec::linear(
                &format!("layers.{index}"),
                [inputs, outputs],
                start,
            ));
        }
        tensors
    }
}
