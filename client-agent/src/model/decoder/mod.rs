//! Llama-class decoders: RMSNorm, rotary positions, grouped-query attention, SwiGLU.
//!
//! One set of modules serves training and inference: [`Decoder`] holds the weights and the order of
//! the steps, a [`Pass`] says how each step is carried out. [`Dense`] runs whole sequences with
//! gradients for the factors of an adapter; the engine has a pass of its own over ragged rows of
//! many requests and a paged cache.

mod adapter;
mod config;
mod dense;
mod panels;
mod product;
mod rope;
#[cfg(test)]
pub(crate) mod tests;
mod training;

use std::{collections::HashMap, fmt};

use candle_core::{DType, Device, Result, Tensor};

use self::panels::in_panels;
pub(super) use self::training::logits;
pub use self::{
    adapter::{DecoderAdapter, LowRankFactors},
    config::DecoderConfig,
    dense::{Dense, DenseAdapter},
    rope::{Rope, RopeScaling},
};
pub(crate) use self::{
    panels::{panel_product, row_of_panels},
    product::product,
    rope::turn_head,
};
use super::layer::rms_norm;
use crate::compute::ComputeDevice;

/// Parameters by the name that checkpoints use, row-major.
pub(crate) type Weights = HashMap<String, Vec<f32>>;

/// A linear layer within a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Projection {
    /// Hidden state to queries.
    Query,
    /// Hidden state to keys.
    Key,
    /// Hidden state to values.
    Value,
    /// Attention's answer to hidden state.
    Output,
    /// Hidden state to the gate of SwiGLU.
    Gate,
    /// Hidden state to what is gated.
    Up,
    /// Gated values to hidden state.
    Down,
}

/// One linear layer of a decoder: where an adapter may sit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// Block, from 0.
    pub layer: usize,
    /// Which of its layers.
    pub projection: Projection,
}

/// One normalisation of a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormSite {
    /// Before a block's attention.
    Attention(usize),
    /// Before a block's SwiGLU layer.
    Mlp(usize),
    /// Before the head.
    Last,
}

/// A linear layer's parameters.
#[derive(Clone)]
pub struct Linear {
    /// `[outputs, inputs]`, or its panels ([`Decoder::in_panels`]).
    pub weight: Tensor,
    /// `[outputs]`.
    pub bias: Option<Tensor>,
}

#[derive(Clone)]
struct Block {
    attention_norm: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    mlp_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// A decoder with its parameters.
#[derive(Clone)]
pub struct Decoder {
    config: DecoderConfig,
    rope: Rope,
    embedding: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
    /// Absent where the head is the embedding table.
    head: Option<Tensor>,
}

/// How the steps of a decoder are carried out.
///
/// Rows are hidden states `[.., width]`; what the leading dimensions mean is up to the pass.
pub trait Pass {
    /// Looks up the rows of the tokens in the table `[vocabulary, hidden]`.
    ///
    /// # Errors
    /// The tensor library's.
    fn embed(&mut self, table: &Tensor) -> Result<Tensor>;

    /// Normalises rows by their root mean square.
    ///
    /// # Errors
    /// The tensor library's.
    fn norm(&mut self, _site: NormSite, scale: &Tensor, eps: f64, rows: &Tensor) -> Result<Tensor> {
        rms_norm(rows, scale, eps, None)
    }

    /// Applies a linear layer, with whatever adapters the pass has for its site.
    ///
    /// # Errors
    /// The tensor library's.
    fn linear(&mut self, site: Site, linear: &Linear, rows: &Tensor) -> Result<Tensor>;

    /// Lets each row attend to its own sequence up to itself, at its position.
    ///
    /// - `query`: `[.., heads · head_dim]`; `key`, `value`: `[.., kv_heads · head_dim]`
    ///
    /// # Errors
    /// The tensor library's.
    fn attend(
        &mut self,
        layer: usize,
        rope: &Rope,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
    ) -> Result<Tensor>;

    /// Computes `silu(gate) · up`.
    ///
    /// # Errors
    /// The tensor library's.
    fn gate(&mut self, gate: &Tensor, up: &Tensor) -> Result<Tensor>;
}

impl Projection {
    /// All of a block's linear layers.
    pub const ALL: [Self; 7] =
        [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// The module's path within a block of a checkpoint.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "model.layers.{}.{}", self.layer, self.projection.path())
    }
}

impl fmt::Display for NormSite {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attention(layer) => write!(formatter, "model.layers.{layer}.input_layernorm"),
            Self::Mlp(layer) => write!(formatter, "model.layers.{layer}.post_attention_layernorm"),
            Self::Last => formatter.write_str("model.norm"),
        }
    }
}

impl DecoderConfig {
    /// Every linear layer of every block, in order.
    pub fn sites(&self) -> impl Iterator<Item = Site> {
        (0..self.num_layers).flat_map(|layer| {
            Projection::ALL.into_iter().map(move |projection| Site { layer, projection })
        })
    }

    /// Inputs and outputs of a linear layer.
    #[must_use]
    pub const fn sizes(&self, projection: Projection) -> (usize, usize) {
        let (hidden, wide) = (self.hidden_size, self.intermediate_size);
        match projection {
            Projection::Query => (hidden, self.query_width()),
            Projection::Key | Projection::Value => (hidden, self.kv_width()),
            Projection::Output => (self.query_width(), hidden),
            Projection::Gate | Projection::Up => (hidden, wide),
            Projection::Down => (wide, hidden),
        }
    }

    const fn has_bias(&self, projection: Projection) -> bool {
        match projection {
            Projection::Query | Projection::Key | Projection::Value => self.qkv_bias,
            Projection::Output => self.output_bias,
            Projection::Gate | Projection::Up | Projection::Down => self.mlp_bias,
        }
    }

    /// Names and shapes of the parameters, as checkpoints have them.
    #[must_use]
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let hidden = self.hidden_size;
        let table = vec![self.vocab_size, hidden];
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), table.clone())];
        for layer in 0..self.num_layers {
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                tensors.push((format!("model.layers.{layer}.{norm}.weight"), vec![hidden]));
            }
            for projection in Projection::ALL {
                let site = Site { layer, projection };
                let (inputs, outputs) = self.sizes(projection);
                tensors.push((format!("{site}.weight"), vec![outputs, inputs]));
                if self.has_bias(projection) {
                    tensors.push((format!("{site}.bias"), vec![outputs]));
                }
            }
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        if !self.tied {
            tensors.push(("lm_head.weight".to_owned(), table));
        }
        tensors
    }
}

impl Decoder {
    /// Builds a decoder from parameters that have the names and sizes of
    /// [`DecoderConfig::tensors`].
    ///
    /// # Errors
    /// The tensor library's, for a parameter that is missing or of another size.
    pub(crate) fn new(config: DecoderConfig, mut weights: Weights) -> Result<Self> {
        let mut tensors = HashMap::new();
        for (name, shape) in config.tensors() {
            let Some(values) = weights.remove(&name) else {
                candle_core::bail!("parameter {name} is missing")
            };
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
            tensors.insert(name, tensor);
        }
        Ok(Self::of(config, |name| tensors.remove(name)))
    }

    /// Builds a decoder from tensors that have the names and shapes of [`DecoderConfig::tensors`].
    pub(super) fn of(config: DecoderConfig, mut take: impl FnMut(&str) -> Option<Tensor>) -> Self {
        let mut blocks = Vec::with_capacity(config.num_layers);
        for layer in 0..config.num_layers {
            blocks.push(Block::take(layer, &mut take).expect("the names are the configuration's"));
        }
        let embedding = take("model.embed_tokens.weight");
        let norm = take("model.norm.weight");
        Self {
            rope: Rope::new(&config),
            embedding: embedding.expect("the names are the configuration's"),
            blocks,
            norm: norm.expect("the names are the configuration's"),
            head: take("lm_head.weight"),
            config,
        }
    }

    /// The same decoder with its parameters on a device, on the processor in panels if in f32.
    ///
    /// # Errors
    /// The tensor library's, if the device has no room for them.
    pub fn on(self, device: &ComputeDevice) -> Result<Self> {
        let (device, dtype) = (&device.device, device.precision.dtype());
        let there = |tensor: Tensor| tensor.to_device(device)?.to_dtype(dtype);
        let decoder = self.map(there, there)?;
        if device.is_cpu() && dtype == DType::F32 { decoder.in_panels() } else { Ok(decoder) }
    }

    /// The same decoder with its weights laid out as the engine's products on the processor read
    /// them; it runs there alone.
    ///
    /// A weight `[outputs, inputs]`, the table and the head among them, becomes
    /// `[panels, inputs, outputs of a panel]`. The plain weights are given up one after the other, so
    /// there is no second copy of the whole.
    ///
    /// # Errors
    /// The tensor library's, for parameters that are not f32 on the processor.
    pub fn in_panels(self) -> Result<Self> {
        if self.is_in_panels() {
            return Ok(self);
        }
        self.map(|weight| in_panels(&weight), Ok)
    }

    /// Whether it was laid out so.
    pub(crate) fn is_in_panels(&self) -> bool {
        self.embedding.rank() == 3
    }

    /// Replaces every weight matrix, and every vector.
    fn map(
        self,
        matrix: impl Fn(Tensor) -> Result<Tensor>,
        vector: impl Fn(Tensor) -> Result<Tensor>,
    ) -> Result<Self> {
        let linear = |Linear { weight, bias }: Linear| {
            let bias = bias.map(&vector).transpose()?;
            Result::Ok(Linear { weight: matrix(weight)?, bias })
        };
        let block = |block: Block| {
            Result::Ok(Block {
                attention_norm: vector(block.attention_norm)?,
                query: linear(block.query)?,
                key: linear(block.key)?,
                value: linear(block.value)?,
                output: linear(block.output)?,
                mlp_norm: vector(block.mlp_norm)?,
                gate: linear(block.gate)?,
                up: linear(block.up)?,
                down: linear(block.down)?,
            })
        };
        Ok(Self {
            embedding: matrix(self.embedding)?,
            blocks: self.blocks.into_iter().map(block).collect::<Result<_>>()?,
            norm: vector(self.norm)?,
            head: self.head.map(&matrix).transpose()?,
            ..self
        })
    }

    /// Where the parameters are.
    pub(crate) fn device(&self) -> &Device {
        self.embedding.device()
    }

    /// The parameters' precision.
    pub(crate) fn dtype(&self) -> DType {
        self.embedding.dtype()
    }

    /// The angles of positions.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) const fn rope(&self) -> &Rope {
        &self.rope
    }

    /// The shape.
    #[must_use]
    pub const fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Runs all blocks and the last normalisation: hidden states `[.., hidden]`.
    ///
    /// # Errors
    /// The tensor library's.
    pub fn hidden(&self, pass: &mut impl Pass) -> Result<Tensor> {
        let eps = self.config.rms_norm_eps;
        let mut hidden = pass.embed(&self.embedding)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let site = |projection| Site { layer, projection };
            let rows =
                pass.norm(NormSite::Attention(layer), &block.attention_norm, eps, &hidden)?;
            let query = pass.linear(site(Projection::Query), &block.query, &rows)?;
            let key = pass.linear(site(Projection::Key), &block.key, &rows)?;
            let value = pass.linear(site(Projection::Value), &block.value, &rows)?;
            let mixed = pass.attend(layer, &self.rope, &query, &key, &value)?;
            let mixed = pass.linear(site(Projection::Output), &block.output, &mixed)?;
            hidden = (hidden + mixed)?;
            let rows = pass.norm(NormSite::Mlp(layer), &block.mlp_norm, eps, &hidden)?;
            let gate = pass.linear(site(Projection::Gate), &block.gate, &rows)?;
            let up = pass.linear(site(Projection::Up), &block.up, &rows)?;
            let gated = pass.gate(&gate, &up)?;
            let down = pass.linear(site(Projection::Down), &block.down, &gated)?;
            hidden = (hidden + down)?;
        }
        pass.norm(NormSite::Last, &self.norm, eps, &hidden)
    }

    /// The head's weight, `[vocabulary, hidden]`, or its panels ([`Decoder::in_panels`]).
    #[must_use]
    pub fn head(&self) -> &Tensor {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}

impl Block {
    fn take(layer: usize, take: &mut impl FnMut(&str) -> Option<Tensor>) -> Option<Self> {
        let mut linear = |projection| {
            let site = Site { layer, projection };
            let weight = take(&format!("{site}.weight"))?;
            Some(Linear { weight, bias: take(&format!("{site}.bias")) })
        };
        let (query, key) = (linear(Projection::Query)?, linear(Projection::Key)?);
        let (value, output) = (linear(Projection::Value)?, linear(Projection::Output)?);
        let (gate, up) = (linear(Projection::Gate)?, linear(Projection::Up)?);
        let down = linear(Projection::Down)?;
        let mut norm = |name: &str| take(&format!("model.layers.{layer}.{name}.weight"));
        Some(Self {
            attention_norm: norm("input_layernorm")?,
            query,
            key,
            value,
            output,
            mlp_norm: norm("post_attention_layernorm")?,
            gate,
            up,
            down,
        })
    }
}
