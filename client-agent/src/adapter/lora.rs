//! The adapter as trainable tensors over a frozen base.

use candle_core::{Device, Result, Tensor, Var};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tributary_protocol::{
    id::Digest,
    model::ModelSpec,
    tensor_file::{TensorFileError, check_parameters},
};

use super::{Adapter, AdapterPlan, LowRank};
use crate::model::{
    Model, ModelError, Tape, add_scaled,
    layer::{Recording, Spans, linear},
    with_elements,
};

/// `(inputs, outputs)` of each layer that an adapter changes.
pub(super) fn layer_sizes(spec: &ModelSpec) -> Vec<(usize, usize)> {
    let ModelSpec::Mlp(mlp) = spec;
    mlp.layers()
}

impl Adapter {
    /// An adapter that changes nothing yet: A uniform, B zero.
    pub(super) fn new(spec: &ModelSpec, base: Digest, plan: &AdapterPlan, seed: u64) -> Self {
        let rank = plan.rank as usize;
        let mut source = Xoshiro256PlusPlus::seed_from_u64(seed);
        let layers = layer_sizes(spec)
            .into_iter()
            .map(|(inputs, outputs)| {
                // Kaiming-uniform with slope √5, as PEFT starts its A.
                let bound = 1.0 / (inputs as f32).sqrt();
                let a = (0..rank * inputs).map(|_| source.random_range(-bound..=bound)).collect();
                LowRank { a, b: vec![0.0; outputs * rank] }
            })
            .collect();
        Self { rank, alpha: plan.alpha, base, layers }
    }

    /// The base parameters with this adapter's change added.
    ///
    /// # Errors
    /// [`ModelError`] if base or adapter do not belong to `spec`.
    pub fn merge(
        &self,
        spec: &ModelSpec,
        base: &[f32],
    ) -> std::result::Result<Vec<f32>, ModelError> {
        check_parameters(spec, base)?;
        self.check_shapes(spec)?;
        let mut merged = base.to_vec();
        let mut offset = 0;
        for (layer, (inputs, outputs)) in self.layers.iter().zip(layer_sizes(spec)) {
            let a = Tensor::from_slice(&layer.a, (self.rank, inputs), &Device::Cpu)?;
            let b = Tensor::from_slice(&layer.b, (outputs, self.rank), &Device::Cpu)?;
            let change = b.matmul(&a)?;
            let scale = self.scale() as f32;
            with_elements(&change, |change| {
                for (value, change) in merged[offset..].iter_mut().zip(change) {
                    *value += scale * change;
                }
            })?;
            offset += (inputs + 1) * outputs;
        }
        Ok(merged)
    }

    /// Checks that the adapter has the layers and widths of `spec`.
    pub(super) fn check_shapes(&self, spec: &ModelSpec) -> std::result::Result<(), ModelError> {
        let wanted = layer_sizes(spec);
        let expected: usize = wanted.iter().map(|(i, o)| (i + o) * self.rank).sum();
        let found = self.layers.iter().map(|layer| layer.a.len() + layer.b.len()).sum();
        let fits = self.layers.len() == wanted.len()
            && self.layers.iter().zip(&wanted).all(|(layer, &(inputs, outputs))| {
                layer.a.len() == self.rank * inputs && layer.b.len() == self.rank * outputs
            });
        if fits { Ok(()) } else { Err(TensorFileError::ParameterCount { expected, found }.into()) }
    }
}

/// An adapter's factors as variables, in the flat order A, B of each layer.
pub(super) struct LoraModel<'a> {
    base: &'a Model,
    scale: f64,
    layers: Vec<LoraLayer>,
    num_parameters: usize,
}

struct LoraLayer {
    a: Var,
    a_spans: Spans,
    b: Var,
    b_spans: Spans,
}

impl<'a> LoraModel<'a> {
    pub(super) fn new(base: &'a Model, adapter: &Adapter) -> Result<Self> {
        let (mut layers, mut offset) = (Vec::new(), 0);
        let mut next = |values: &[f32], shape: (usize, usize)| -> Result<(Var, Spans)> {
            let weight = offset..offset + values.len();
            offset = weight.end;
            let tensor = Tensor::from_slice(values, shape, &Device::Cpu)?;
            Ok((Var::from_tensor(&tensor)?, Spans { weight, bias: None }))
        };
        for (layer, (inputs, outputs)) in adapter.layers.iter().zip(layer_sizes(base.spec())) {
            let (a, a_spans) = next(&layer.a, (adapter.rank, inputs))?;
            let (b, b_spans) = next(&layer.b, (outputs, adapter.rank))?;
            layers.push(LoraLayer { a, a_spans, b, b_spans });
        }
        Ok(Self { base, scale: adapter.scale(), layers, num_parameters: offset })
    }

    pub(super) const fn num_parameters(&self) -> usize {
        self.num_parameters
    }

    /// Logits `[n, classes]`, recording on `tape` what the gradients of A and B need.
    pub(super) fn run(&self, inputs: &Tensor, tape: &Tape) -> Result<Tensor> {
        let mut hidden = inputs.clone();
        for index in 0..self.base.num_layers() {
            let layer = &self.layers[index];
            let recording =
                |spans: &Spans| Some(Recording { tape: tape.clone(), spans: spans.clone() });
            let low = linear(&hidden, &layer.a, None, false, recording(&layer.a_spans))?;
            let change = linear(&low, &layer.b, None, false, recording(&layer.b_spans))?;
            let frozen = self.base.run_layer(index, &hidden, false, None)?;
            hidden = (frozen + (change * self.scale)?)?;
            if self.base.has_relu(index) {
                hidden = hidden.relu()?;
            }
        }
        Ok(hidden)
    }

    /// Adds `scale * step` to the factors.
    pub(super) fn add_scaled(&self, step: &[f32], scale: f32) -> Result<()> {
        for layer in &self.layers {
            add_scaled(&layer.a, &step[layer.a_spans.weight.clone()], scale)?;
            add_scaled(&layer.b, &step[layer.b_spans.weight.clone()], scale)?;
        }
        Ok(())
    }

    /// The present factors as an adapter like `template`.
    pub(super) fn snapshot(&self, template: &Adapter) -> Result<Adapter> {
        let layers = self.layers.iter().map(|layer| {
            let a = with_elements(&layer.a, <[f32]>::to_vec)?;
            Ok(LowRank { a, b: with_elements(&layer.b, <[f32]>::to_vec)? })
        });
        Ok(Adapter { layers: layers.collect::<Result<_>>()?, ..template.clone() })
    }
}
