//! Low-rank changes of linear layers as trainable tensors.

use std::{collections::HashMap, ops::Range};

use candle_core::{Device, Result, Tensor, Var};
use tributary_protocol::model::{FederatedPart, ModelSpec};

use super::{kernels::AddScaled, layer::Spans, with_elements};

/// The factors of a model's linear layers, by module, and where each lies in their flat vector.
pub(crate) struct Factors {
    pub(super) scale: f64,
    pub(super) by_module: HashMap<String, FactorPair>,
    num_parameters: usize,
}

/// A and B of one layer.
pub(crate) struct FactorPair {
    pub(super) a: Factor,
    pub(super) b: Factor,
}

/// One factor.
pub(crate) struct Factor {
    pub(super) variable: Var,
    /// Nothing if it is frozen.
    pub(super) spans: Option<Spans>,
}

/// The values that a layer's factors start with.
pub(crate) struct FactorStart<'a> {
    /// Which layer.
    pub(crate) module: &'a str,
    /// Width of what goes into it.
    pub(crate) inputs: usize,
    /// Width of what comes out.
    pub(crate) outputs: usize,
    /// `[rank, inputs]`.
    pub(crate) a: &'a [f32],
    /// `[outputs, rank]`.
    pub(crate) b: &'a [f32],
    /// Where A lies; nothing if it is frozen.
    pub(crate) a_span: Option<Range<usize>>,
    /// Where B lies.
    pub(crate) b_span: Range<usize>,
}

impl Factors {
    pub(crate) fn new<'a>(
        rank: usize,
        scale: f64,
        starts: impl IntoIterator<Item = FactorStart<'a>>,
    ) -> Result<Self> {
        let (mut by_module, mut num_parameters) = (HashMap::new(), 0);
        for start in starts {
            num_parameters = num_parameters.max(start.b_span.end);
            let factor = |values: &[f32], shape: (usize, usize), span: Option<Range<usize>>| {
                let tensor = Tensor::from_slice(values, shape, &Device::Cpu)?;
                let spans = span.map(|weight| Spans { weight, bias: None });
                Ok::<_, candle_core::Error>(Factor { variable: Var::from_tensor(&tensor)?, spans })
            };
            let pair = FactorPair {
                a: factor(start.a, (rank, start.inputs), start.a_span)?,
                b: factor(start.b, (start.outputs, rank), Some(start.b_span))?,
            };
            by_module.insert(start.module.to_owned(), pair);
        }
        Ok(Self { scale, by_module, num_parameters })
    }

    /// The shared factors as every round starts with them; nothing unless low-rank changes are
    /// federated.
    pub(crate) fn shared(spec: &ModelSpec, part: FederatedPart) -> Result<Option<Self>> {
        let FederatedPart::Lora(lora) = part else { return Ok(None) };
        let (rank, sites) = (lora.rank as usize, part.factors(spec));
        let zeros = vec![0.0; sites.iter().map(|it| it.b_span.len()).max().unwrap_or(0)];
        let starts = sites.iter().map(|it| FactorStart {
            module: &it.site.module,
            inputs: it.site.inputs,
            outputs: it.site.outputs,
            a: &it.a,
            b: &zeros[..it.b_span.len()],
            a_span: it.a_span.clone(),
            b_span: it.b_span.clone(),
        });
        Self::new(rank, lora.alpha / f64::from(lora.rank), starts).map(Some)
    }

    /// Elements of all factors that are trained.
    pub(crate) const fn num_parameters(&self) -> usize {
        self.num_parameters
    }

    /// Adds `scale * step` to the trained factors in place.
    pub(crate) fn add_scaled(&self, step: &[f32], scale: f32) -> Result<()> {
        for pair in self.by_module.values() {
            for Factor { variable, spans } in [&pair.a, &pair.b] {
                if let Some(spans) = spans {
                    let source = &step[spans.weight.clone()];
                    variable.inplace_op1(&AddScaled { source, scale })?;
                }
            }
        }
        Ok(())
    }

    /// A and B of a layer as they are now, row-major.
    pub(crate) fn values(&self, module: &str) -> Result<Option<(Vec<f32>, Vec<f32>)>> {
        let Some(FactorPair { a, b }) = self.by_module.get(module) else { return Ok(None) };
        let values = |factor: &Factor| with_elements(&factor.variable, <[f32]>::to_vec);
        Ok(Some((values(a)?, values(b)?)))
    }
}
