//! What a model is, without any tensor library: the family, its sizes and its parameter layout.
//!
//! Both ends derive the same flat parameter order from a [`ModelSpec`], so an update is one vector
//! and the coordinator never needs the engine that trains or serves the model.

mod cnn;
mod decoder;
mod encoder;
mod federated;
mod mlp;

use std::ops::Range;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::{
    cnn::{CnnSpec, ConvolutionSpec},
    decoder::{DecoderSpec, RopeScalingSpec},
    encoder::EncoderSpec,
    federated::{FederatedPart, LowRankSite, SharedLora},
    mlp::MlpSpec,
};

/// The largest number of parameters a job may federate.
pub const PARAMETERS_MAX: u64 = 1 << 31;

/// The model that a job trains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ModelSpec {
    /// Fully connected layers with ReLU between them; no hidden layer gives logistic regression.
    Mlp(MlpSpec),
    /// Convolutions with pooling, then fully connected layers: classifies images.
    Cnn(CnnSpec),
    /// A BERT-class encoder with a classification head: classifies texts.
    Encoder(EncoderSpec),
    /// A Llama-class decoder: continues texts.
    Decoder(DecoderSpec),
}

/// How a tensor starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Initialization {
    /// All zero.
    Zeros,
    /// All one: the scales of normalisations.
    Ones,
    /// Uniform in `[-bound, bound]`.
    Uniform {
        /// Half the width of the interval.
        bound: f32,
    },
}

impl Initialization {
    /// He-uniform, which keeps the activations' variance through ReLU layers (He et al. 2015).
    fn he(inputs: usize) -> Self {
        Self::Uniform { bound: (6.0 / inputs as f32).sqrt() }
    }

    /// The deviation of 0.02 that BERT and Llama start with, as a uniform draw.
    const SMALL: Self = Self::Uniform { bound: 0.034_641_016 };
}

/// One named tensor of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Name as in the safetensors file.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// How the coordinator fills it for version 0.
    pub initialization: Initialization,
    /// Whether it is the weight of a linear layer that low-rank adapters change.
    pub adaptable: bool,
}

impl TensorSpec {
    fn new(name: impl Into<String>, shape: &[usize], initialization: Initialization) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), initialization, adaptable: false }
    }

    /// Weight `[outputs, inputs]` and bias of a linear layer that adapters change.
    fn linear(module: &str, [inputs, outputs]: [usize; 2], start: Initialization) -> [Self; 2] {
        let weight = Self {
            adaptable: true,
            ..Self::new(format!("{module}.weight"), &[outputs, inputs], start)
        };
        [weight, Self::new(format!("{module}.bias"), &[outputs], Initialization::Zeros)]
    }

    /// Number of elements.
    #[must_use]
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Says why a model cannot be built.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum ModelSpecError {
    /// A layer has no width, or fewer than two classes are asked for.
    #[error("model size `{field}` is {value}; it must be at least {min}")]
    TooSmall {
        /// The config key.
        field: String,
        /// What was given.
        value: u32,
        /// The least that works.
        min: u32,
    },
    /// The model has more parameters than [`PARAMETERS_MAX`].
    #[error("the model has {parameters} parameters; at most {PARAMETERS_MAX} are supported")]
    TooLarge {
        /// Number of parameters asked for.
        parameters: u128,
    },
    /// A size that does not go with the others.
    #[error("model size `{field}` is {value}; it must be {range}")]
    Unfit {
        /// The config key.
        field: &'static str,
        /// What was given.
        value: f64,
        /// What would work.
        range: &'static str,
    },
    /// The part that is to be federated is not there.
    #[error("`federated = \"head\"` cannot be: {reason}")]
    Head {
        /// Why.
        reason: &'static str,
    },
}

/// A linear layer of a model that low-rank adapters change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearSite {
    /// Path of the module, as in checkpoints: the name of the weight without its last part.
    pub module: String,
    /// Width of what goes in.
    pub inputs: usize,
    /// Width of what comes out.
    pub outputs: usize,
    /// Where the weight, `[outputs, inputs]`, lies in the flat parameters.
    pub weight: Range<usize>,
}

impl ModelSpec {
    /// Checks that every size is usable.
    ///
    /// # Errors
    /// [`ModelSpecError`] naming the size and what would work.
    pub fn validate(&self) -> Result<(), ModelSpecError> {
        match self {
            Self::Mlp(mlp) => mlp.validate()?,
            Self::Cnn(cnn) => cnn.validate()?,
            Self::Encoder(encoder) => encoder.validate()?,
            Self::Decoder(decoder) => decoder.validate()?,
        }
        let elements = |tensor: TensorSpec| {
            tensor.shape.iter().fold(1_u128, |product, &size| product.saturating_mul(size as u128))
        };
        let parameters = self.tensors().into_iter().map(elements).sum();
        if parameters > u128::from(PARAMETERS_MAX) {
            return Err(ModelSpecError::TooLarge { parameters });
        }
        Ok(())
    }

    /// The tensors in their flat parameter order, named as in checkpoints of the family.
    #[must_use]
    pub fn tensors(&self) -> Vec<TensorSpec> {
        match self {
            Self::Mlp(mlp) => mlp.tensors(),
            Self::Cnn(cnn) => cnn.tensors(),
            Self::Encoder(encoder) => encoder.tensors(),
            Self::Decoder(decoder) => decoder.tensors(),
        }
    }

    /// Every tensor's name and its place in the flat parameters.
    #[must_use]
    pub fn spans(&self) -> Vec<(String, Range<usize>)> {
        let mut end = 0;
        let place = |tensor: TensorSpec| {
            let start = end;
            end += tensor.num_elements();
            (tensor.name, start..end)
        };
        self.tensors().into_iter().map(place).collect()
    }

    /// The linear layers that low-rank adapters change, in flat parameter order.
    #[must_use]
    pub fn linear_sites(&self) -> Vec<LinearSite> {
        let sites = self.tensors().into_iter().zip(self.spans()).filter_map(|(tensor, span)| {
            let (name, weight) = span;
            let module = name.strip_suffix(".weight").filter(|_| tensor.adaptable)?.to_owned();
            let [outputs, inputs] = tensor.shape[..] else { return None };
            Some(LinearSite { module, inputs, outputs, weight })
        });
        sites.collect()
    }

    /// Where the parameters of the last layers, which turn features into answers, lie.
    ///
    /// # Errors
    /// [`ModelSpecError::Head`] if they are not parameters of their own.
    pub fn head(&self) -> Result<Range<usize>, ModelSpecError> {
        let prefixes: &[&str] = match self {
            Self::Mlp(_) | Self::Cnn(_) => &[],
            Self::Encoder(_) => &["bert.pooler.", "classifier."],
            Self::Decoder(decoder) if decoder.tied => {
                return Err(ModelSpecError::Head {
                    reason: "the head of a tied decoder is its embedding table",
                });
            }
            Self::Decoder(_) => &["lm_head."],
        };
        let spans = self.spans();
        let end = spans.last().map_or(0, |(_, span)| span.end);
        let first = match prefixes {
            // The last layer, weight and bias.
            [] => spans.iter().rev().nth(1),
            _ => spans.iter().find(|(name, _)| prefixes.iter().any(|it| name.starts_with(it))),
        };
        Ok(first.map_or(end, |(_, span)| span.start)..end)
    }

    /// Number of elements of each layer in the flat parameter order: tensors whose names differ in
    /// their last part only, as weight and bias, are one layer.
    #[must_use]
    pub fn layer_lengths(&self) -> Vec<usize> {
        layer_lengths(self.spans().into_iter().map(|(name, span)| (name, span.len())))
    }

    /// Total number of parameters.
    #[must_use]
    pub fn num_parameters(&self) -> usize {
        self.tensors().iter().map(TensorSpec::num_elements).sum()
    }

    /// Number of input features; for models of texts, the most tokens of one text.
    #[must_use]
    pub const fn num_inputs(&self) -> usize {
        match self {
            Self::Mlp(mlp) => mlp.inputs as usize,
            Self::Cnn(cnn) => cnn.height as usize * cnn.width as usize * cnn.channels as usize,
            Self::Encoder(encoder) => encoder.positions as usize,
            Self::Decoder(decoder) => decoder.context_max as usize,
        }
    }

    /// Number of classes; for decoders, of tokens.
    #[must_use]
    pub const fn num_classes(&self) -> usize {
        match self {
            Self::Mlp(mlp) => mlp.classes as usize,
            Self::Cnn(cnn) => cnn.classes as usize,
            Self::Encoder(encoder) => encoder.classes as usize,
            Self::Decoder(decoder) => decoder.vocab_size as usize,
        }
    }

    /// Tokens that a model of texts knows; nothing for models of features.
    #[must_use]
    pub const fn vocab_size(&self) -> Option<usize> {
        match self {
            Self::Mlp(_) | Self::Cnn(_) => None,
            Self::Encoder(encoder) => Some(encoder.vocab_size as usize),
            Self::Decoder(decoder) => Some(decoder.vocab_size as usize),
        }
    }

    /// The family's name as policies and logs write it.
    #[must_use]
    pub const fn family(&self) -> &'static str {
        match self {
            Self::Mlp(_) => "mlp",
            Self::Cnn(_) => "cnn",
            Self::Encoder(_) => "encoder",
            Self::Decoder(_) => "decoder",
        }
    }
}

/// Joins the lengths of neighbours whose names differ in their last part only.
fn layer_lengths(tensors: impl Iterator<Item = (String, usize)>) -> Vec<usize> {
    let mut layers: Vec<(String, usize)> = Vec::new();
    for (name, length) in tensors {
        let layer = name.rsplit_once('.').map_or(name.as_str(), |(layer, _)| layer);
        match layers.last_mut() {
            Some((last, sum)) if last == layer => *sum += length,
            _ => layers.push((layer.to_owned(), length)),
        }
    }
    layers.into_iter().map(|(_, length)| length).collect()
}

/// Checks sizes against the least that works for each.
fn at_least<'a>(
    sizes: impl IntoIterator<Item = (&'a str, u32, u32)>,
) -> Result<(), ModelSpecError> {
    match sizes.into_iter().find(|&(_, value, min)| value < min) {
        Some((field, value, min)) => {
            Err(ModelSpecError::TooSmall { field: field.to_owned(), value, min })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
