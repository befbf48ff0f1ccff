use std::{collections::HashMap, ops::Range};

use candle_core::{Device, Result, Tensor, Var};
use tributary_protocol::model::ModelSpec;

use super::{kernels::AddScaled, with_elements};

/// A model's parameters by name, each a variable with its place in the flat vector.
pub(crate) struct Parameters {
    by_name: HashMap<String, Parameter>,
    /// Names in flat order.
    order: Vec<String>,
}

/// One parameter.
pub(crate) struct Parameter {
    variable: Var,
    span: Range<usize>,
}

impl Parameter {
    pub(crate) fn tensor(&self) -> &Tensor {
        self.variable.as_tensor()
    }

    pub(crate) const fn span(&self) -> &Range<usize> {
        &self.span
    }
}

impl Parameters {
    /// Makes variables of flat parameters, which must be as many as the model has.
    pub(crate) fn new(spec: &ModelSpec, flat: &[f32]) -> Result<Self> {
        let (mut by_name, mut order) = (HashMap::new(), Vec::new());
        for (tensor, (name, span)) in spec.tensors().into_iter().zip(spec.spans()) {
            let values = Tensor::from_slice(&flat[span.clone()], tensor.shape, &Device::Cpu)?;
            let parameter = Parameter { variable: Var::from_tensor(&values)?, span };
            order.push(name.clone());
            by_name.insert(name, parameter);
        }
        Ok(Self { by_name, order })
    }

    /// One parameter; nothing if the model has none of that name.
    pub(crate) fn find(&self, name: &str) -> Option<&Parameter> {
        self.by_name.get(name)
    }

    /// The flat vector.
    pub(crate) fn flat(&self) -> Result<Vec<f32>> {
        let mut flat = Vec::new();
        for parameter in self.in_order() {
            with_elements(parameter.tensor(), |values| flat.extend_from_slice(values))?;
        }
        Ok(flat)
    }

    /// Adds `scale * step` to the parameters from `start` on, in place.
    pub(crate) fn add_scaled(&self, start: usize, step: &[f32], scale: f32) -> Result<()> {
        for Parameter { variable, span } in self.in_order() {
            if span.start >= start && span.end - start <= step.len() {
                let source = &step[span.start - start..span.end - start];
                variable.inplace_op1(&AddScaled { source, scale })?;
            }
        }
        Ok(())
    }

    fn in_order(&self) -> impl Iterator<Item = &Parameter> {
        self.order.iter().filter_map(|name| self.by_name.get(name))
    }
}
