//! Convolutional networks on images whose channels are last.

use candle_core::{Result, Tensor};
use tributary_protocol::model::CnnSpec;

use super::{
    flow::Flow,
    layer::{ConvGeometry, max_pool2d},
};

/// Logits `[n, classes]` of images `[n, height · width · channels]`.
pub(super) fn logits(spec: &CnnSpec, inputs: &Tensor, flow: Flow<'_>) -> Result<Tensor> {
    let image = [spec.height, spec.width, spec.channels].map(|size| size as usize);
    let mut hidden = inputs.reshape((inputs.dim(0)?, image[0], image[1], image[2]))?;
    for (index, convolution) in spec.convolutions.iter().enumerate() {
        let geometry = ConvGeometry {
            kernel: convolution.kernel as usize,
            stride: convolution.stride as usize,
            padding: convolution.padding as usize,
        };
        hidden = flow.conv2d(&format!("convolutions.{index}"), &hidden, geometry)?;
        if convolution.pool > 1 {
            hidden = max_pool2d(&hidden, convolution.pool as usize)?;
        }
    }
    super::mlp::logits(spec.layers().len(), &hidden.flatten_from(1)?, flow)
}
