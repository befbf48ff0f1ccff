//! Multi-layer perceptrons whose every parameter is federated: no graph, memory that is kept.

use tributary_privacy::mechanism::Held;

use super::{TrainError, learner::Learner};
use crate::{
    data::Dataset,
    model::{Before, Dense, ExampleClip},
};

/// Examples of one physical batch with clipping, at most; a larger one no longer fits the
/// processor's cache.
const MICRO_BATCH_MAX: usize = 256;
/// Examples of one physical batch without clipping, at most: what bounds the memory.
const PLAIN_BATCH_MAX: usize = 1024;

fn fill(dense: &mut Dense, data: &Dataset, indices: &[u32]) {
    let (rows, labels) = dense.batch(indices.len());
    data.fill_batch(indices, rows, labels);
}

impl Learner for Dense {
    fn load(&mut self, base: &[f32]) -> Result<(), TrainError> {
        self.parameters_mut().copy_from_slice(base);
        Ok(())
    }

    fn parameters(&self) -> &[f32] {
        Self::parameters(self)
    }

    fn micro_batch_max(&self) -> usize {
        MICRO_BATCH_MAX
    }

    fn plain_batch_max(&self) -> usize {
        PLAIN_BATCH_MAX
    }

    fn descend(&mut self, data: &Dataset, indices: &[u32], rate: f32) -> Result<bool, TrainError> {
        fill(self, data, indices);
        Ok(Self::descend(self, rate))
    }

    fn add_sum(
        &mut self,
        data: &Dataset,
        indices: &[u32],
        sum: &mut [f32],
    ) -> Result<(), TrainError> {
        fill(self, data, indices);
        Self::add_sum(self, sum);
        Ok(())
    }

    fn add_clipped_sum(
        &mut self,
        data: &Dataset,
        indices: &[u32],
        (clip, norm_max): (ExampleClip, f64),
        step: u32,
        sum: &mut [f32],
        held: Held,
    ) -> Result<(), TrainError> {
        let before = match held {
            Held::Anything => Before::Ignored,
            Held::Terms => Before::Added,
        };
        fill(self, data, indices);
        Self::add_clipped_sum(self, clip, norm_max, sum, before)
            .map_err(|error| TrainError::from_clipping(error, step))
    }

    fn in_place(&mut self) -> Option<(&mut [f32], usize)> {
        let threads = self.threads();
        Some((self.parameters_mut(), threads))
    }

    fn add_scaled(&mut self, step: &[f32], scale: f32) -> Result<(), TrainError> {
        Self::add_scaled(self, step, scale);
        Ok(())
    }
}
