//! The adapter as trainable tensors over a frozen base, and merged into it.

use candle_core::Result;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tributary_protocol::{
    id::Digest,
    model::{LinearSite, ModelSpec},
    tensor_file::{TensorFileError, check_parameters},
};

use super::{Adapter, AdapterPlan, LowRank};
use crate::{
    compute,
    model::{Before, FactorStart, Factors, Matrix, ModelError, multiply},
};

impl Adapter {
    /// An adapter that changes nothing yet: A uniform, B zero.
    pub(super) fn new(spec: &ModelSpec, base: Digest, plan: &AdapterPlan, seed: u64) -> Self {
        let rank = plan.rank as usize;
        let mut source = Xoshiro256PlusPlus::seed_from_u64(seed);
        let layers = spec
            .linear_sites()
            .into_iter()
            .map(|LinearSite { inputs, outputs, .. }| {
                // Kaiming-uniform with slope √5, as PEFT starts its A.
                let bound = 1.0 / (inputs as f32).sqrt();
                let a = (0..rank * inputs).map(|_| source.random_range(-bound..=bound)).collect();
                Some(LowRank { a, b: vec![0.0; outputs * rank] })
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
        let scale = self.scale() as f32;
        for (site, layer) in self.changes(spec) {
            let b = Matrix::new(&layer.b, site.outputs, self.rank);
            let a = Matrix::new(&layer.a, self.rank, site.inputs);
            let weight = &mut merged[site.weight];
            multiply(b, a, scale, weight, Before::Added, compute::threads());
        }
        Ok(merged)
    }

    /// The linear layers that the adapter changes, with their factors.
    pub(super) fn changes(&self, spec: &ModelSpec) -> impl Iterator<Item = (LinearSite, &LowRank)> {
        let sites = spec.linear_sites().into_iter().zip(&self.layers);
        sites.filter_map(|(site, layer)| Some((site, layer.as_ref()?)))
    }

    /// Checks that the adapter has the layers and widths of `spec`.
    pub(super) fn check_shapes(&self, spec: &ModelSpec) -> std::result::Result<(), ModelError> {
        let sites = spec.linear_sites();
        let expected: usize =
            sites.iter().map(|site| (site.inputs + site.outputs) * self.rank).sum();
        let found = self.layers.iter().flatten().map(|layer| layer.a.len() + layer.b.len()).sum();
        let fits = self.layers.len() == sites.len()
            && self.changes(spec).all(|(site, layer)| {
                layer.a.len() == self.rank * site.inputs
                    && layer.b.len() == self.rank * site.outputs
            });
        if fits { Ok(()) } else { Err(TensorFileError::ParameterCount { expected, found }.into()) }
    }

    /// The factors as variables, in the flat order A, B of each layer.
    pub(super) fn factors(&self, spec: &ModelSpec) -> Result<Factors> {
        let changes: Vec<(LinearSite, &LowRank)> = self.changes(spec).collect();
        let mut end = 0;
        let mut next = |length: usize| {
            let start = end;
            end += length;
            start..end
        };
        let starts: Vec<FactorStart<'_>> = changes
            .iter()
            .map(|(site, layer)| FactorStart {
                module: &site.module,
                inputs: site.inputs,
                outputs: site.outputs,
                a: &layer.a,
                b: &layer.b,
                a_span: Some(next(layer.a.len())),
                b_span: next(layer.b.len()),
            })
            .collect();
        Factors::new(self.rank, self.scale(), starts)
    }

    /// An adapter like this one with the present values of its factors.
    pub(super) fn snapshot(&self, spec: &ModelSpec, factors: &Factors) -> Result<Self> {
        let sites = spec.linear_sites().into_iter();
        let layers = sites.map(|site| {
            let values = factors.values(&site.module)?;
            Ok(values.map(|(a, b)| LowRank { a, b }))
        });
        Ok(Self { layers: layers.collect::<Result<_>>()?, ..self.clone() })
    }
}
