//! How a pass uses a model's parameters.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use super::{
    Tape,
    factors::{Factor, Factors},
    layer::{self, ConvGeometry, Recording, Spans},
    parameters::{Parameter, Parameters},
};

/// One pass through a model: its parameters as constants, or with a record of what their gradients
/// need, and perhaps low-rank changes of its linear layers.
///
/// Every family is written once against this; training and inference differ in the flow only.
#[derive(Clone, Copy)]
pub(crate) struct Flow<'a> {
    parameters: &'a Parameters,
    /// Where records go, and the flat parameters from the first to behind the last that are trained.
    recorded: Option<(&'a Tape, usize, usize)>,
    /// Changes on top, and where the records of their factors go.
    factors: Option<(&'a Factors, Option<&'a Tape>)>,
}

impl<'a> Flow<'a> {
    /// All parameters are constants.
    pub(crate) const fn frozen(parameters: &'a Parameters) -> Self {
        Self { parameters, recorded: None, factors: None }
    }

    /// Records the gradients of a range of the flat parameters, as if the range were all there is.
    pub(crate) const fn recording(self, tape: &'a Tape, range: &Range<usize>) -> Self {
        Self { recorded: Some((tape, range.start, range.end)), ..self }
    }

    /// Adds low-rank changes, and records the gradients of their factors if there is a tape.
    pub(crate) const fn with_factors(self, factors: &'a Factors, tape: Option<&'a Tape>) -> Self {
        Self { factors: Some((factors, tape)), ..self }
    }

    /// A linear layer by its module, with its low-rank change.
    pub(crate) fn linear(&self, module: &str, inputs: &Tensor, relu: bool) -> Result<Tensor> {
        let (weight, bias, recording) = self.module(module)?;
        let pair = self
            .factors
            .and_then(|(factors, tape)| Some((factors, factors.by_module.get(module)?, tape)));
        let Some((factors, pair, tape)) = pair else {
            return layer::linear(inputs, weight, bias, relu, recording);
        };
        let recording_of = |factor: &Factor| {
            let spans = factor.spans.clone()?;
            tape.map(|tape| Recording { tape: tape.clone(), spans })
        };
        let (a, b) = (&pair.a, &pair.b);
        let low = layer::linear(inputs, &a.variable, None, false, recording_of(a))?;
        let change = layer::linear(&low, &b.variable, None, false, recording_of(b))?;
        let frozen = layer::linear(inputs, weight, bias, false, recording)?;
        let sum = (frozen + (change * factors.scale)?)?;
        if relu { sum.relu() } else { Ok(sum) }
    }

    /// A convolution with ReLU, by its module.
    pub(crate) fn conv2d(
        &self,
        module: &str,
        inputs: &Tensor,
        geometry: ConvGeometry,
    ) -> Result<Tensor> {
        let (weight, bias, recording) = self.module(module)?;
        layer::conv2d(inputs, weight, bias, geometry, true, recording)
    }

    /// Rows of a table `[n, time, width]` by ids `[n, time]`.
    pub(crate) fn embedding(&self, module: &str, ids: &Tensor) -> Result<Tensor> {
        let (weight, _, recording) = self.module(module)?;
        layer::embedding(ids, weight, recording)
    }

    /// Layer normalisation, by its module.
    pub(crate) fn layer_norm(&self, module: &str, rows: &Tensor, epsilon: f64) -> Result<Tensor> {
        let (scale, Some(bias), recording) = self.module(module)? else {
            bail!("{module} has no bias")
        };
        layer::layer_norm(rows, scale, bias, epsilon, recording)
    }

    /// Root-mean-square normalisation, by its module.
    pub(crate) fn rms_norm(&self, module: &str, rows: &Tensor, epsilon: f64) -> Result<Tensor> {
        let (scale, _, recording) = self.module(module)?;
        layer::rms_norm(rows, scale, epsilon, recording)
    }

    /// Weight, bias and recording of a module.
    fn module(&self, module: &str) -> Result<(&'a Tensor, Option<&'a Tensor>, Option<Recording>)> {
        let Some(weight) = self.parameters.find(&format!("{module}.weight")) else {
            bail!("the model has no module {module}")
        };
        let bias = self.parameters.find(&format!("{module}.bias"));
        Ok((weight.tensor(), bias.map(Parameter::tensor), self.record(weight, bias)))
    }

    fn record(&self, weight: &Parameter, bias: Option<&Parameter>) -> Option<Recording> {
        let (tape, start, end) = self.recorded?;
        let within = |span: &Range<usize>| span.start >= start && span.end <= end;
        let moved = |span: &Range<usize>| span.start - start..span.end - start;
        within(weight.span()).then(|| Recording {
            tape: tape.clone(),
            spans: Spans {
                weight: moved(weight.span()),
                bias: bias.map(|bias| moved(bias.span())),
            },
        })
    }
}
