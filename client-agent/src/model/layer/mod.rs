//! Layers as single graph nodes with book-keeping backward passes.
//!
//! Each takes plain tensors and, for training, a [`Recording`]. The first dimension of every input
//! is the example. A parameter may be used once in a forward pass: the norm of a gradient that
//! meets itself twice is not the sum of two norms, and the tape refuses it.

mod conv;
mod embedding;
mod linear;
mod norm;
mod pool;

use std::ops::Range;

use super::tape::Tape;

pub use self::{
    conv::{ConvGeometry, conv2d},
    embedding::embedding,
    linear::linear,
    norm::{layer_norm, rms_norm},
    pool::max_pool2d,
};

/// Where a layer's parameters lie in the flat parameter vector.
#[derive(Debug, Clone)]
pub struct Spans {
    /// The weight, table or scale.
    pub weight: Range<usize>,
    /// The bias, if the layer has one.
    pub bias: Option<Range<usize>>,
}

/// Book-keeping of one use of a layer: where to record, and for which parameters.
#[derive(Clone)]
pub struct Recording {
    /// Where the backward pass leaves its record.
    pub tape: Tape,
    /// For which parameters.
    pub spans: Spans,
}

#[cfg(test)]
mod tests;
